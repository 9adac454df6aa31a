"""Applications that fail, before and after the head of the response is out."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from gevent import GreenletExit

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


class OddError(BaseException):
    """Something that ``except Exception`` does not catch."""


KINDS: dict[str, type[BaseException]] = {
    "RuntimeError": RuntimeError,
    "OSError": OSError,
    "BrokenPipeError": BrokenPipeError,
    "TimeoutError": TimeoutError,
    "StopIteration": StopIteration,
    "SystemExit": SystemExit,
    "GreenletExit": GreenletExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "OddError": OddError,
}


def _fail(environ: WSGIEnvironment) -> BaseException:
    query = environ["gallery.query"]
    return KINDS[query.get("kind", "RuntimeError")](query.get("mark", "as asked"))


def at_once(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Before start_response."""
    raise _fail(environ)


def after_start(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """After start_response, before any byte is out."""
    start_response("200 OK", [("Content-Length", "5"), ("X-Never", "sent")])
    raise _fail(environ)


def in_generator(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    """While the first piece is made."""
    start_response("200 OK", [])
    if environ["REQUEST_METHOD"]:
        raise _fail(environ)
    yield b"never"


def after_head(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    """When the head and a first piece are out, without a length."""
    start_response("200 OK", [])
    yield b"first"
    raise _fail(environ)


def after_head_with_length(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    """When the head and a first piece are out, with a length."""
    start_response("200 OK", [("Content-Length", "100")])
    yield b"first"
    raise _fail(environ)


def after_write(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """When write() has sent something."""
    put = start_response("200 OK", [("Content-Length", "100")])
    put(b"first")
    raise _fail(environ)


class _FailingClose:
    def __init__(self, environ: WSGIEnvironment) -> None:
        self._environ = environ
        self._pieces = iter([b"whole"])

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces

    def close(self) -> None:
        """Fail."""
        raise _fail(self._environ)


def in_close(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """When the response is complete."""
    start_response("200 OK", [("Content-Length", "5")])
    return _FailingClose(environ)


def no_start(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """start_response is never called."""
    return [b"body"]


def no_start_empty(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """start_response is never called and there is no body either."""
    return []


def returns_none(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A forgotten return statement."""
    start_response("200 OK", [])
    return None  # type: ignore[return-value]


def start_twice(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A second start_response without exc_info is an error."""
    start_response("200 OK", [])
    start_response("200 OK", [])
    return [b"body"]


def replaced(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A second start_response with exc_info, in time."""
    start_response("200 OK", [("X-First", "1")])
    try:
        raise _fail(environ)
    except RuntimeError:
        start_response("503 Later", [("X-Second", "2"), ("Content-Length", "5")], sys.exc_info())
    return [b"later"]


def replaced_too_late(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A second start_response with exc_info when the head is out: it raises what it is given."""
    put = start_response("200 OK", [("Content-Length", "100")])
    put(b"first")
    try:
        raise _fail(environ)
    except RuntimeError:
        start_response("503 Later", [], sys.exc_info())
    return [b"never"]


def caught_late(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """As before, but the application catches it and ends its response in good order."""
    put = start_response("200 OK", [("Content-Length", "10")])
    put(b"first")
    try:
        raise _fail(environ)
    except RuntimeError:
        try:
            start_response("503 Later", [], sys.exc_info())
        except RuntimeError:
            return [b" last"]
    return [b"never"]


BAD_HEADERS: dict[str, tuple[object, object]] = {
    "name-space": ("X Y", "v"),
    "name-empty": ("", "v"),
    "name-colon": ("X:", "v"),
    "name-newline": ("X\r\nInjected: 1\r\nY", "v"),
    "name-latin": ("X-\xe9", "v"),
    "name-bytes": (b"X-Bytes", "v"),
    "value-crlf": ("X-V", "a\r\nInjected: 1"),
    "value-lf": ("X-V", "a\nInjected: 1"),
    "value-cr": ("X-V", "a\rb"),
    "value-nul": ("X-V", "a\x00b"),
    "value-del": ("X-V", "a\x7fb"),
    "value-wide": ("X-V", "\u20ac"),
    "value-bytes": ("X-V", b"v"),
    "value-int": ("X-V", 1),
    "length-word": ("Content-Length", "many"),
    "length-twice": ("Content-Length", "4, 4"),
}


def bad_header(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A header that must not reach the wire."""
    start_response("200 OK", [BAD_HEADERS[environ["gallery.query"]["which"]]])  # type: ignore[list-item]
    return [b"body"]


def bad_hint(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """An early hint that must not reach the wire."""
    environ["wsgi.early_hints"]([("Link", "a\r\n\r\nHTTP/1.1 200 OK")])
    start_response("200 OK", [("Content-Length", "0")])
    return []


BAD_STATUSES: dict[str, object] = {
    "word": "OK",
    "short": "20 OK",
    "long": "2000 OK",
    "newline": "200 OK\r\nInjected: 1",
    "no-space": "200OK",
    "empty": "",
    "int": 200,
    "bytes": b"200 OK",
    "wide": "200 \u20ac",
}


def bad_status(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A status line that must not reach the wire."""
    start_response(BAD_STATUSES[environ["gallery.query"]["which"]], [])  # type: ignore[arg-type]
    return [b"body"]

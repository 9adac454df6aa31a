"""Responses that are made while they are sent."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from gevent.event import Event

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

#: Gates by name; a response stands before its gate until another request opens it.
_gates: defaultdict[str, Event] = defaultdict(Event)
#: How many applications stand before a gate, by its name.
_waiting: defaultdict[str, int] = defaultdict(int)
#: How many pieces each watched response has made so far.
_made: defaultdict[str, int] = defaultdict(int)
#: How often close() was called on each watched iterable.
_closed: defaultdict[str, int] = defaultdict(int)


def _pass(name: str) -> None:
    _waiting[name] += 1
    _gates[name].wait()
    _waiting[name] -= 1


def open_gate(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Let those go on who wait at the gate."""
    _gates[environ["gallery.query"]["name"]].set()
    start_response("200 OK", [("Content-Length", "0")])
    return []


def gated(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    """A piece, a gate, another piece."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"before"
    _pass(environ["gallery.query"]["name"])
    yield b"after"


def gated_with_length(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    """The same with Content-Length."""
    start_response("200 OK", [("Content-Length", "11")])
    yield b"before"
    _pass(environ["gallery.query"]["name"])
    yield b"after"


def gated_write(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The same with write(), which has to send before it returns (PEP 3333)."""
    put = start_response("200 OK", [("Content-Type", "text/plain")])
    put(b"before")
    _pass(environ["gallery.query"]["name"])
    return [b"after"]


def slow(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A gate before the response is started."""
    _pass(environ["gallery.query"]["name"])
    start_response("200 OK", [("Content-Length", "4")])
    return [b"done"]


def state(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """What is known under a name."""
    name = environ["gallery.query"]["name"]
    known = {"waiting": _waiting[name], "made": _made[name], "closed": _closed[name]}
    body = json.dumps(known).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def piece(number: int) -> bytes:
    """64 KB that nobody could guess from other pieces."""
    return hashlib.sha256(b"%d" % number).digest() * 2048


class _Watched:
    """An iterable whose progress and closing others can ask for."""

    def __init__(self, name: str, pieces: Iterable[bytes]) -> None:
        self._name = name
        self._pieces = iter(pieces)

    def __iter__(self) -> _Watched:
        return self

    def __next__(self) -> bytes:
        made = next(self._pieces)
        _made[self._name] += 1
        return made

    def close(self) -> None:
        """Count the call."""
        _closed[self._name] += 1


def watched(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """As many pieces of 64 KB as asked for."""
    query = environ["gallery.query"]
    count = int(query["count"])
    headers = [("Content-Length", str(count << 16))] if "length" in query else []
    start_response(query.get("status", "200 OK"), headers)
    return _Watched(query["name"], (piece(number) for number in range(count)))


def _failing() -> Iterator[bytes]:
    yield b"first"
    raise RuntimeError("as asked")


def watched_failure(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """An iterable that fails at its second piece."""
    start_response("200 OK", [])
    return _Watched(environ["gallery.query"]["name"], _failing())


def watched_wrong_type(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """An iterable that yields a str."""
    start_response("200 OK", [])
    return _Watched(environ["gallery.query"]["name"], ["text"])  # type: ignore[list-item]


def watched_no_start(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """An iterable for which start_response was never called."""
    return _Watched(environ["gallery.query"]["name"], [b"body"])

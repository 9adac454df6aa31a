"""Applications that read their request's body: all of it, some of it, none of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


def _json(start_response: StartResponse, value: Any) -> Iterable[bytes]:
    body = json.dumps(value).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def echo(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The body, read in one call."""
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def _digest(environ: WSGIEnvironment) -> dict[str, Any]:
    total, sha = 0, hashlib.sha256()
    while data := environ["wsgi.input"].read(1 << 16):
        total += len(data)
        sha.update(data)
    return {"size": total, "sha256": sha.hexdigest()}


def digest(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Size and SHA-256 of the body, read in pieces of 64 KB."""
    return _json(start_response, _digest(environ))


def announced(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The same, and how the client announced the body."""
    names = ("CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING", "HTTP_EXPECT")
    return _json(start_response, _digest(environ) | {name: environ.get(name) for name in names})


def lines(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The body through readline(), readline(5), readlines() and iteration, in this order."""
    body = environ["wsgi.input"]
    got = [body.readline(), body.readline(5), next(iter(body)), *body.readlines(), body.read()]
    return _json(start_response, [line.decode("latin-1") for line in got])


def half(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The first five bytes of the body; the rest is left unread."""
    body = environ["wsgi.input"].read(5)
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def none(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The body is left unread."""
    start_response("200 OK", [("Content-Length", "6")])
    return [b"unread"]


def none_streamed(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The body is left unread, and the response has no length."""
    start_response("200 OK", [])
    return [b"un", b"read"]


def beyond(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Reads on after the end of the body: that must give nothing, not wait, nor eat the next request."""
    body = environ["wsgi.input"]
    return _json(
        start_response, [len(part) for part in (body.read(), body.read(), body.read(10), body.readline())]
    )


def mirror(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The body back while it comes, piece by piece."""
    body = environ["wsgi.input"]
    start_response("200 OK", [("Content-Length", environ["CONTENT_LENGTH"])])
    return iter(lambda: body.read(1 << 16), b"")


def mishap(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """What reading a body that is broken off raises or returns."""
    try:
        seen = f"{len(environ['wsgi.input'].read())} bytes"
    except Exception as error:
        seen = type(error).__name__
    environ["wsgi.errors"].write(f"mishap {environ['gallery.query']['mark']}: {seen}\n")
    return _json(start_response, seen)

"""Takes and gives bodies large enough for a client to be slow with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

#: More than the kernel holds for a client that does not read: tcp_wmem's default maximum is 4 MiB.
_LARGE = bytes(10_000_000)


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """``/upload`` reads the request's body, ``/large`` gives 10 MB, all else 14 bytes of text."""
    path = environ["PATH_INFO"]
    body = b"Hello, World!\n"
    if path == "/upload":
        while environ["wsgi.input"].read(1 << 16):
            pass
    elif path == "/large":
        body = _LARGE
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]

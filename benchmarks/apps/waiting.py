"""Asks another server on the network, and waits for it."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

#: Connections to the other server that no request uses right now.
_pool: list[socket.socket] = []


def _ask(port: int) -> bytes:
    try:
        other = _pool.pop()
    except IndexError:
        other = socket.create_connection(("127.0.0.1", port))
    other.sendall(b"?")
    answer = other.recv(100)
    _pool.append(other)
    return answer


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """``/wait?PORT`` answers what the server on PORT has answered, anything else at once."""
    body = b"Hello, World!\n"
    if environ["PATH_INFO"] == "/wait":
        body = _ask(int(environ["QUERY_STRING"]))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]

"""Gives every connection cause to end, and tells how those before it did.

``/closed`` answers the statistics' count for each reason.
"""

import json
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

_CHUNK = b"x" * 65536


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    if path == "/closed":
        totals = environ["keepalive.statistics"].report(limit=0)["totals"]
        return _answer(start_response, json.dumps(totals["closed"]).encode())
    if path == "/tcp":
        return _answer(start_response, json.dumps(_tcp_options(environ["keepalive.connection"].fd)).encode())
    if path == "/read":
        return _answer(start_response, b"%d" % len(environ["wsgi.input"].read()))
    if path == "/catch":
        try:
            environ["wsgi.input"].read()
        except Exception as error:
            return _answer(start_response, type(error).__name__.encode())
    if path == "/wrap":
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            raise ValueError("as frameworks do") from error
    if path == "/ignore":
        return _answer(start_response, b"ignored")
    if path == "/close":
        environ["keepalive.connection"].close()
    if path == "/keep-idle":
        environ["keepalive.connection"].keep_idle(float(environ["QUERY_STRING"]))
    if path == "/slow":
        environ["wsgi.errors"].write("slow begins\n")
        time.sleep(float(environ["QUERY_STRING"]))
    if path == "/large":
        start_response("200 OK", [("Content-Length", str(len(_CHUNK) * 1000))])
        return (_CHUNK for _ in range(1000))
    if path == "/fail":
        start_response("200 OK", [("Content-Length", "10")])
        return _broken()
    return _answer(start_response, b"ok")


def _tcp_options(fd: int) -> dict[str, int]:
    names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
    sock = socket.socket(fileno=fd)
    try:
        options = {name: sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names}
        return {"SO_KEEPALIVE": sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)} | options
    finally:
        sock.detach()


def _answer(start_response: Callable[..., Any], body: bytes) -> list[bytes]:
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def _broken() -> Iterable[bytes]:
    yield b"12345"
    raise RuntimeError("after the head")

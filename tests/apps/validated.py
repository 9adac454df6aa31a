"""A correct application behind wsgiref's validator, which raises where the server is not correct."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from wsgiref.validate import validator

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


def _app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    body = environ["wsgi.input"].read(1 << 20) or b"no body"
    environ["wsgi.errors"].flush()
    headers = [("Content-Type", "text/plain")]
    if environ["PATH_INFO"] == "/write":
        start_response("200 OK", headers)(body)
        return []
    if environ["PATH_INFO"] == "/204":
        start_response("204 No Content", [])
        return []
    if environ["PATH_INFO"] == "/length":
        headers.append(("Content-Length", str(len(body))))
    start_response("200 OK", headers)
    return [body]


app = validator(_app)

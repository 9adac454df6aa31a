"""Keeps the worker busy for ``?seconds=S``, and tells whether the worker may hold the response back."""

import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    until = time.monotonic() + float(parse_qs(environ["QUERY_STRING"]).get("seconds", ["0"])[0])
    while time.monotonic() < until:
        pass
    response = environ["wsgi.early_hints"].__self__
    body = b"held" if response._holding.allowed else b"sent"
    if environ["PATH_INFO"] == "/chunks":
        start_response("200 OK", [])
        return iter([body[:2], body[2:]])
    start_response("200 OK", [("Content-Length", "4")])
    return [body]

"""Answers every path with all that it was told in words: what of its environ is a str, and the body."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

#: Different for each connection and each server.
_LEFT_OUT = {"REMOTE_PORT", "SERVER_PORT"}


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The strings of the environ and the request's body, which may raise what it likes."""
    shown = {
        key: value
        for key, value in environ.items()
        if isinstance(value, str) and key not in _LEFT_OUT and not key.startswith("keepalive.")
    }
    shown["body"] = environ["wsgi.input"].read().decode("latin-1")
    body = json.dumps(shown, sort_keys=True).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]

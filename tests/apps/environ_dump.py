"""Answers every path with its environ as JSON, the query, body and all."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from gallery.introspection import describe

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The environ, and the request's body under the key ``body``."""
    shown = {key: describe(value) for key, value in environ.items()}
    shown["body"] = environ["wsgi.input"].read().decode("latin-1")
    body = json.dumps(shown, sort_keys=True).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]

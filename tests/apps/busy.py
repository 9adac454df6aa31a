"""Keeps the worker busy for ``?seconds=S``, and tells whether the worker may hold the response back.

``/read`` does so for each piece of the body that it reads, ``/rows`` for each that it sends; ``/steps`` tells how many
there have been.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs

PIECE = 4096
ROWS = 15

_steps = 0


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    seconds = float(parse_qs(environ["QUERY_STRING"]).get("seconds", ["0"])[0])
    if path == "/steps":
        body = b"%d" % _steps
    elif path == "/read":
        while environ["wsgi.input"].read(PIECE):
            _step(seconds)
        body = b"%d" % _steps
    elif path == "/rows":
        start_response("200 OK", [])
        return _rows(seconds)
    else:
        _be_busy(seconds)
        response = environ["wsgi.early_hints"].__self__
        body = b"held" if response._holding.allowed else b"sent"
    if path == "/chunks":
        start_response("200 OK", [])
        return iter([body[:2], body[2:]])
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def _be_busy(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def _step(seconds: float) -> None:
    global _steps
    _be_busy(seconds)
    _steps += 1


def _rows(seconds: float) -> Iterator[bytes]:
    for _ in range(ROWS):
        _step(seconds)
        yield b"a row\n"

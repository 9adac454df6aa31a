"""Counts a request's body; slow, streaming, or slow to load when asked. Tells which master its worker has.

``STEADY_LOAD_SECONDS`` makes loading the module take that long, as real applications do; ``STEADY_COMPUTE_SECONDS``
does so without ever waiting.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs

time.sleep(float(os.environ.get("STEADY_LOAD_SECONDS", "0")))
_until = time.monotonic() + float(os.environ.get("STEADY_COMPUTE_SECONDS", "0"))
while time.monotonic() < _until:
    pass


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    size = 0
    while data := environ["wsgi.input"].read(65536):
        size += len(data)
    asked = parse_qs(environ["QUERY_STRING"])
    seconds = float(asked.get("seconds", ["0"])[0])
    headers = [("Content-Type", "text/plain"), ("X-Master", str(os.getppid()))]
    if environ["PATH_INFO"] == "/stream":
        start_response("200 OK", headers)
        return stream(seconds)
    time.sleep(seconds)
    body = b"%d %d" % (os.getpid(), size) if environ["PATH_INFO"] == "/pid" else b"%d bytes" % size
    start_response("200 OK", [*headers, ("Content-Length", str(len(body)))])
    return [body]


def stream(seconds: float) -> Iterator[bytes]:
    yield b"begun\n"
    time.sleep(seconds)
    yield b"done\n"

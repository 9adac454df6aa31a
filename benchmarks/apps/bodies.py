"""Takes and gives bodies of all kinds and sizes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from wsgiref.util import FileWrapper

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_MEDIUM = bytes(100_000)

#: More than the kernel holds for a client that does not read: tcp_wmem's default maximum is 4 MiB.
_LARGE = bytes(10_000_000)

_CHUNK = bytes(1_000)


def _upload(environ: WSGIEnvironment) -> bytes:
    body = environ["wsgi.input"]
    left = int(environ.get("CONTENT_LENGTH") or 0)
    while left > 0:
        data = body.read(min(left, 1 << 16))
        if not data:
            break
        left -= len(data)
    return b"Hello, World!\n"


def _json(environ: WSGIEnvironment) -> bytes:
    order = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    total = sum(item["price"] * item["count"] for item in order["items"])
    return json.dumps({"order": order["order"], "total": total}).encode()


def _stream() -> Iterator[bytes]:
    for _ in range(100):
        yield _CHUNK


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """By path; anything else is 14 bytes of text.

    ``/upload`` reads the request's body; ``/json`` reads an order and answers with its sum; ``/medium`` and
    ``/large`` give 100 KB and 10 MB from memory, ``/file`` 10 MB from a file; ``/stream`` gives 100 pieces of
    1 KB with no length announced.
    """
    path = environ["PATH_INFO"]
    headers = [("Content-Type", "text/plain")]
    if path == "/stream":
        start_response("200 OK", headers)
        return _stream()
    if path == "/file":
        file = Path(os.environ["BENCHMARK_FOLDER"], "large").open("rb")  # noqa: SIM115 - the server closes it
        start_response("200 OK", [*headers, ("Content-Length", str(len(_LARGE)))])
        wrapper: Callable[..., Iterable[bytes]] = environ.get("wsgi.file_wrapper", FileWrapper)
        return wrapper(file, 1 << 16)
    if path == "/upload":
        body = _upload(environ)
    elif path == "/json":
        body = _json(environ)
    elif path == "/medium":
        body = _MEDIUM
    elif path == "/large":
        body = _LARGE
    else:
        body = b"Hello, World!\n"
    start_response("200 OK", [*headers, ("Content-Length", str(len(body)))])
    return [body]

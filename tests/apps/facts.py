"""Applications that look at, and act on, what our worker puts into environ."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl
from wsgiref.validate import validator

from keepalive_worker import KeepAliveMiddleware

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

NAMES = (
    *("id", "requests", "reused", "age", "idle", "bytes_received", "bytes_sent", "requests_left", "timeout"),
    *("peer", "protocol", "tls"),
)
#: Seconds after which nobody waits any longer for a file.
_PATIENCE = 60


def facts_of(environ: WSGIEnvironment) -> dict[str, Any]:
    """What the connection says of itself, and who it is that says so."""
    conn = environ.get("keepalive.connection")
    facts = {} if conn is None else {name: getattr(conn, name) for name in NAMES}
    return {"pid": os.getpid(), "keys": sorted(key for key in environ if "keepalive" in key), **facts}


def act(environ: WSGIEnvironment, path: str) -> None:
    """Do what the path names: ``/close``, ``/keep-idle?seconds=1.5``."""
    query = dict(parse_qsl(environ["QUERY_STRING"]))
    conn = environ.get("keepalive.connection")
    if conn is not None and path == "/close":
        conn.close()
    elif conn is not None and path == "/keep-idle":
        conn.keep_idle(float(query["seconds"]))
    elif path == "/spin":
        _wait_for(query["file"], lambda: None)
    elif path == "/wait":
        _wait_for(query["file"], lambda: time.sleep(0.005))
    elif path == "/fail":
        raise RuntimeError("as asked")


def _wait_for(file: str, pause: Any) -> None:
    """Wait until the file is there, having made one with ``.begun`` at the end of its name."""
    Path(file + ".begun").touch()
    until = time.monotonic() + _PATIENCE
    while not Path(file).exists() and time.monotonic() < until:
        pause()


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A plain WSGI application: the facts as JSON, whatever the path."""
    path = environ["PATH_INFO"]
    act(environ, path)
    if path == "/304":
        start_response("304 Not Modified", [("ETag", '"x"')])
        return []
    if path == "/204":
        start_response("204 No Content", [])
        return []
    body = json.dumps(facts_of(environ)).encode()
    headers = [("Content-Type", "application/json")]
    if path == "/own-header":
        headers += [("Keep-Alive", "timeout=999"), ("Content-Length", str(len(body)))]
    elif path == "/connection-close":
        headers += [("Connection", "close"), ("Content-Length", str(len(body)))]
    elif path == "/stream":
        start_response("200 OK", headers)
        return _in_pieces(body)
    elif path != "/unknown-length":
        headers.append(("Content-Length", str(len(body))))
    start_response("200 OK", headers)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


def _in_pieces(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), 10):
        yield body[start : start + 10]


#: What a user writes.
wrapped = KeepAliveMiddleware(app, stats_path="/stats", token="s3cret")
silent = KeepAliveMiddleware(app, advertise=False)
#: With wsgiref's validator on both sides, which raises where somebody breaks PEP 3333.
validated = validator(KeepAliveMiddleware(validator(app), stats_path="/stats"))

"""Forks. The child waits, with the hub running, until there is the file that the query names."""

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import gevent

_children: list[Any] = []


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path == "/start":
        child = multiprocessing.get_context("fork").Process(target=_wait_for, args=(Path(query),))
        child.start()
        _children.append(child)
        return _answer(start_response, b"%d" % (child.pid or 0))
    if path == "/terminate":
        child = _children.pop()
        child.terminate()
        return _answer(start_response, b"told")
    if path == "/return":
        pid = os.fork()
        if not pid:
            _wait_for(Path(query))
            return _answer(start_response, b"the child answers as well")
        return _answer(start_response, b"%d" % pid)
    if path == "/executor":
        with ProcessPoolExecutor(2) as executor:
            return _answer(start_response, str(list(executor.map(abs, [-1, -2, -3]))).encode())
    if path == "/close":
        environ["keepalive.connection"].close()
    return _answer(start_response, b"%d" % os.getpid())


def _wait_for(file: Path) -> None:
    file.with_suffix(".begun").touch()
    while not file.exists():
        gevent.sleep(0.01)
    file.with_suffix(".done").touch()


def _answer(start_response: Callable[..., Any], body: bytes) -> list[bytes]:
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

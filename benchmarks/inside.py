"""What a request costs in Python, part by part: ``python -m benchmarks.inside``.

The worker's own code serves requests in this process, with read(2) and write(2) replaced by functions that do nothing,
so that neither the kernel nor a client is measured. The path is cut off after each of its parts in turn; the
difference is what a part takes. The least of several rounds counts: whatever else the machine does only adds.
"""

from __future__ import annotations

import itertools
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import gevent
import greenlet
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.http.wsgi import base_environ

from benchmarks.apps import hello
from benchmarks.load import BROWSER_HEADERS, CHANGING, CHANGING_HEADERS
from keepalive_worker import KeepAliveMiddleware
from keepalive_worker import loop as loop_module
from keepalive_worker import response as response_module
from keepalive_worker.connection import IDLE, Connection
from keepalive_worker.counters import Counters
from keepalive_worker.greenlets import GreenletPool
from keepalive_worker.handler import RequestHandler
from keepalive_worker.heads import Limits, Memory
from keepalive_worker.listeners import Listener
from keepalive_worker.loop import EventLoop
from keepalive_worker.poller import READABLE
from keepalive_worker.settings import Options

_CONNECTIONS = 64
#: Times that each connection has a request, in a round.
_TURNS = 150
_ROUNDS = 15

#: Where the path can be cut off, and what has been done by then.
PARTS = (
    ("read, and find whose it is", "loop.begin"),
    ("look the request up", "handler._begin_plain"),
    ("make environ and the response", "pool.run"),
    ("fresh context", "handler._handle"),
    ("application, head and body sent", "handler._finish"),
    ("back to idleness", None),
)


class _Worker:
    """What the handler needs of gunicorn's worker."""

    alive = True
    nr = 0
    max_requests = sys.maxsize
    statistics = None

    def __init__(self, app: Any) -> None:
        self.cfg = Config()
        self.log = Logger(self.cfg)
        self.app_callable = app


class _Poller:
    """Says that all connections have something to read, as often as it is told to."""

    arm = None

    def __init__(self, descriptors: Iterable[int]) -> None:
        self._all = [(fd, READABLE) for fd in descriptors]
        self.turns = 0

    def poll(self) -> list[tuple[int, int]]:
        if not self.turns:
            return []
        self.turns -= 1
        return self._all


class _Kernel:
    """The module ``os`` for the worker's code: reading gives a request, writing takes everything."""

    def __init__(self, read: Callable[[int, int], bytes]) -> None:
        self.read = read
        self.write = lambda fd, data: len(data)


def _bytes(headers: Iterable[tuple[str, str]]) -> bytes:
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"GET / HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n{fields}\r\n".encode()


def _same(request: bytes) -> Callable[[int, int], bytes]:
    return lambda fd, size: request


def _changing() -> Callable[[int, int], bytes]:
    before, after = _bytes(CHANGING_HEADERS.items()).split(CHANGING.encode())
    numbers = itertools.count(1_000_000_000)
    return lambda fd, size: b"%s%d%s" % (before, next(numbers), after)


class Inside:
    """A worker's parts, put together without gunicorn's master.

    :param app: the application
    :param read: what stands in for read(2)
    """

    def __init__(self, app: Any, read: Callable[[int, int], bytes]) -> None:
        worker = _Worker(app)
        cfg = worker.cfg
        self.hub = gevent.get_hub()
        self.loop = EventLoop(self.hub, Options.from_config(cfg), 2 * _CONNECTIONS, Counters())
        self.pool = GreenletPool(self.hub, self._failed)
        limits, memory = Limits(cfg), Memory()
        self.handler = RequestHandler(worker, self.loop, self.pool, limits, memory)
        base = base_environ(cfg) | {"wsgi.multithread": True, "keepalive.statistics": None, "SCRIPT_NAME": ""}
        with socket.create_server(("127.0.0.1", 0), backlog=_CONNECTIONS) as server:
            listener = Listener(server, cfg, base, limits, memory)
            self._clients = [socket.create_connection(server.getsockname()) for _ in range(_CONNECTIONS)]
            accepted = [listener.accept() for _ in self._clients]
        for fd, host, port in accepted:
            self.loop._welcome(listener, fd, host, port)
        self._kernel = _Kernel(read)
        self._poller = _Poller(fd for fd, _, _ in accepted)

    @staticmethod
    def _failed(error: BaseException) -> None:
        raise SystemExit(f"a request failed: {error!r}")

    def cost(self, cut: str | None) -> float:
        """Microseconds of a request up to *cut*, one of :data:`PARTS`."""
        took: list[float] = []
        main = greenlet.getcurrent()

        def serve() -> None:
            for _ in range(_ROUNDS):
                began = time.process_time()
                for _ in range(_TURNS):
                    self._poller.turns = 1
                    self.loop._turn()
                took.append(time.process_time() - began)
            main.switch()

        with ExitStack() as stack:
            for module in (loop_module, response_module):
                stack.enter_context(patch.object(module, "os", self._kernel))
            stack.enter_context(patch.object(loop_module, "SLICE", 60.0))
            stack.enter_context(patch.object(self.loop, "_poller", self._poller))
            if cut is not None:
                part, name = cut.split(".")
                end = _end_before_run if part == "pool" else _end
                stack.enter_context(patch.object(getattr(self, part), name, end))
            self.hub.loop.run_callback(serve)
            self.hub.switch()
        return 1e6 * min(took) / _TURNS / _CONNECTIONS


def _end(conn: Connection, *_: Any) -> None:
    """The end of a path that is cut off."""
    conn.state = IDLE


def _end_before_run(_function: Any, conn: Connection, *_: Any) -> None:
    """The same in the place of :meth:`GreenletPool.run`."""
    conn.state = IDLE


def main() -> None:
    """Measure and print."""
    kinds = {
        "bare": lambda: Inside(hello.app, _same(_bytes(()))),
        "browser": lambda: Inside(hello.app, _same(_bytes(BROWSER_HEADERS.items()))),
        "changing": lambda: Inside(hello.app, _changing()),
        "bare, middleware": lambda: Inside(KeepAliveMiddleware(hello.app, stats_path="/stats"), _same(_bytes(()))),
    }
    print(f"µs of Python {sys.version.split()[0]} a request, the kernel's part left out\n")
    print(f"| up to and with | {' | '.join(kinds)} |\n| --- |{' ---: |' * len(kinds)}")
    made = [make() for make in kinds.values()]
    for each in made:
        each.cost(None)  # Warm, and with its requests remembered.
    for title, cut in PARTS:
        print(f"| {title} | {' | '.join(f'{each.cost(cut):.2f}' for each in made)} |", flush=True)
    # The worker's descriptors are its own to close, and this process is done.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()

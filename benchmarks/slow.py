"""Clients that hold a server up by being slow, thousands at a time."""

from __future__ import annotations

import contextlib
import math
import select
import socket
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.clients import ClientProcess, connect
from benchmarks.servers import Server

#: New slow clients per second; more at once would measure the listen queue.
_RAMP = 2_500.0

#: What each kind of slow client sends at first. One that reads slowly sends nothing more.
_BEGINNINGS = {
    "header": b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
    "body": b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n",
    "read": b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@dataclass(frozen=True)
class Attack:
    """Who is slow, and how.

    :param kind: ``header``, ``body`` or ``read``
    :param clients: how many
    :param interval: seconds between one byte and the next of each; None: it stops altogether
    """

    kind: str
    clients: int
    interval: float | None


@dataclass(frozen=True)
class Outcome:
    """What has become of the slow clients.

    :param cut_after: seconds from the beginning of each to its end, infinite where it was not cut
    :param told: how many got a 408 first
    """

    cut_after: list[float]
    told: int


@dataclass(slots=True)
class _Client:
    socket: socket.socket
    began: float


class Attackers:
    """The slow clients of one process."""

    def __init__(self, port: int, attack: Attack) -> None:
        self._port = port
        self._attack = attack
        self._poll = select.epoll()
        self._clients: dict[int, _Client] = {}
        self._next_bytes: deque[tuple[float, int, _Client]] = deque()  # in the order of their times
        self._cut_after: list[float] = []
        self._told = 0

    def run(self, seconds: float) -> Outcome:
        """Attack until all have been cut, or for that long."""
        began = time.monotonic()
        made = 0
        while (now := time.monotonic()) < began + seconds:
            while made < min(self._attack.clients, (now - began) * _RAMP):
                self._begin(made)
                made += 1
            if made == self._attack.clients and not self._clients:
                break
            for fd, _ in self._poll.poll(0.005):
                self._look(fd)
            self._go_on()
        never = [math.inf] * (self._attack.clients - len(self._cut_after))
        return Outcome(self._cut_after + never, self._told)

    def _begin(self, number: int) -> None:
        reads = self._attack.kind == "read"
        client = _Client(connect(self._port, number, narrow=reads), 0.0)
        fd = client.socket.fileno()
        self._clients[fd] = client
        client.began = time.monotonic()
        client.socket.send(_BEGINNINGS[self._attack.kind])
        # There is always something to read for one that reads slowly: it waits for the end alone.
        self._poll.register(fd, select.EPOLLRDHUP if reads else select.EPOLLIN)
        self._schedule(fd, client)

    def _schedule(self, fd: int, client: _Client) -> None:
        if self._attack.interval is not None:
            self._next_bytes.append((time.monotonic() + self._attack.interval, fd, client))

    def _go_on(self) -> None:
        """The next byte of all for whom it is time."""
        now = time.monotonic()
        while self._next_bytes and self._next_bytes[0][0] <= now:
            _, fd, client = self._next_bytes.popleft()
            if self._clients.get(fd) is not client:
                continue
            with contextlib.suppress(OSError):  # seen by the poll
                if self._attack.kind == "read":
                    client.socket.recv(1)
                else:
                    client.socket.send(b"a")
            self._schedule(fd, client)

    def _look(self, fd: int) -> None:
        client = self._clients[fd]
        if self._attack.kind != "read":
            with contextlib.suppress(OSError):
                data = client.socket.recv(4096)
                if data:
                    self._told += data.startswith(b"HTTP/1.1 408")
                    return
        self._cut_after.append(time.monotonic() - client.began)
        client.socket.close()
        del self._clients[fd]


@contextlib.contextmanager
def attackers(server: Server, attack: Attack, cpu: int | None) -> Iterator[ClientProcess]:
    """A process with slow clients, ready to ``run``."""
    process = ClientProcess(Attackers, server.port, attack, cpu=cpu)
    try:
        yield process
    finally:
        process.stop()

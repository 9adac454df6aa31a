"""Many idle connections, each of which has had one request answered."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from benchmarks.clients import GET, ClientProcess, connect, is_complete, receive
from benchmarks.servers import Server

#: Well below the 20,000 open files that a process may have on many machines, and few enough that the
#: processes share the work of TLS handshakes.
_CONNECTIONS_PER_PROCESS = 5_000

#: Requests under way at a time while the connections are made: a crowd, not a flood.
_IN_FLIGHT = 64

#: Seconds without any answer after which the server is given up.
_PATIENCE = 20.0
#: Seconds for a process to make its connections; TLS handshakes take their time.
_OPENING = 300.0


@dataclass
class Closes:
    """How the server has closed connections; times in monotonic seconds, the same in all processes.

    :param idle_since: when the last answer had come, for each connection that was closed
    :param closed: when the end of the connection was seen, in the same order
    :param resets: how many of them ended by RST instead of FIN
    :param open: how many are still open
    """

    idle_since: list[float] = field(default_factory=list)
    closed: list[float] = field(default_factory=list)
    resets: int = 0
    open: int = 0


class Holder:
    """The connections of one client process.

    :param port: the server's
    :param first: number of the first connection, over all processes
    :param count: how many
    :param secure: over TLS
    """

    def __init__(self, port: int, first: int, count: int, secure: bool) -> None:
        self._port = port
        self._secure = secure
        self._numbers = range(first, first + count)
        self._poll = select.epoll()
        self._clients: dict[int, socket.socket] = {}
        self._answered: dict[int, float] = {}
        self._partial: dict[int, bytes] = {}
        self._waiting: set[int] = set()

    def open(self) -> None:
        """Make the connections, with one request on each.

        :raises RuntimeError: the server does not answer, or closes a connection
        """
        for number in self._numbers:
            client = connect(self._port, number, secure=self._secure)
            self._clients[client.fileno()] = client
            self._poll.register(client, select.EPOLLIN)
            self._request(client)
            while len(self._waiting) >= _IN_FLIGHT:
                self._receive()
        self._receive_all()

    def request(self) -> list[float]:
        """One more request on all connections at once; when each was answered (monotonic seconds)."""
        for client in self._clients.values():
            self._request(client)
        self._receive_all()
        return list(self._answered.values())

    def watch(self, seconds: float) -> Closes:
        """Wait until the server has closed all connections, or for that long."""
        closes = Closes()
        deadline = time.monotonic() + seconds
        while self._clients and time.monotonic() < deadline:
            for fd, _ in self._poll.poll(0.1):
                client = self._clients[fd]
                try:
                    if receive(client) != b"":
                        continue  # a goodbye such as 408; the end is still to come
                except ConnectionResetError:
                    closes.resets += 1
                closes.closed.append(time.monotonic())
                closes.idle_since.append(self._answered[fd])
                client.close()
                del self._clients[fd]
        closes.open = len(self._clients)
        return closes

    def count_open(self) -> int:
        """How many connections the server has not closed."""
        closed = {fd for fd, _ in self._poll.poll(0)}
        return len(self._clients) - len(closed)

    def _request(self, client: socket.socket) -> None:
        client.send(GET)
        self._waiting.add(client.fileno())

    def _receive_all(self) -> None:
        while self._waiting:
            self._receive()

    def _receive(self) -> None:
        events = self._poll.poll(_PATIENCE)
        if not events:
            raise RuntimeError(
                f"{len(self._waiting)} of {len(self._clients)} connections got no answer in {_PATIENCE:.0f} s"
            )
        for fd, _ in events:
            data = receive(self._clients[fd])
            if data is None:
                continue
            if not data:
                raise RuntimeError(f"the server closed one of {len(self._clients)} idle connections")
            data = self._partial.pop(fd, b"") + data
            if is_complete(data):
                self._answered[fd] = time.monotonic()
                self._waiting.discard(fd)
            else:
                self._partial[fd] = data


class IdleConnections:
    """Idle connections in as many processes as it takes.

    :param server: that they are connected to
    :param count: how many
    :param cpu: the core for their processes, or None for any
    """

    def __init__(self, server: Server, count: int, cpu: int | None) -> None:
        port, secure = server.port, server.setup.tls
        self._count = count
        self._processes = [
            ClientProcess(Holder, port, first, min(_CONNECTIONS_PER_PROCESS, count - first), secure, cpu=cpu)
            for first in range(0, count, _CONNECTIONS_PER_PROCESS)
        ]

    def open(self) -> None:
        """Make them, all processes at the same time."""
        for process in self._processes:
            process.tell("open")
        for process in self._processes:
            process.answer(_OPENING)

    def request(self) -> list[float]:
        """One more request on all at once; when each was answered (monotonic seconds)."""
        for process in self._processes:
            process.tell("request")
        return [moment for process in self._processes for moment in process.answer()]

    def tell_watch(self, seconds: float) -> None:
        """Begin to watch them being closed; :meth:`closes` has the outcome."""
        for process in self._processes:
            process.tell("watch", seconds)

    def closes(self) -> Closes:
        """What was seen since :meth:`tell_watch`, once it is over."""
        total = Closes()
        for process in self._processes:
            part: Closes = process.answer()
            total.idle_since += part.idle_since
            total.closed += part.closed
            total.resets += part.resets
            total.open += part.open
        return total

    def check(self) -> None:
        """See whether all are still there.

        :raises RuntimeError: the server has closed some
        """
        remaining = sum(process.ask("count_open") for process in self._processes)
        if remaining < self._count:
            raise RuntimeError(f"only {remaining} of {self._count} idle connections have stayed")

    def stop(self) -> None:
        """Close them all."""
        for process in self._processes:
            process.stop()


@contextlib.contextmanager
def idle_connections(server: Server, count: int, cpu: int | None) -> Iterator[IdleConnections]:
    """Idle connections that are there while the block runs.

    :raises ClientError: the server did not answer all of them
    """
    connections = IdleConnections(server, count, cpu)
    try:
        connections.open()
        yield connections
    finally:
        connections.stop()

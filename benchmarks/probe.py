"""One well-behaved client that keeps asking and notes how long it had to wait."""

from __future__ import annotations

import contextlib
import math
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks import tls
from benchmarks.clients import GET, ClientProcess, is_complete
from benchmarks.servers import Server

#: Seconds past the end of a measurement for the last answer.
_PATIENCE = 1.0


@dataclass(frozen=True)
class Sample:
    """One request: when it was sent (monotonic seconds), and seconds until it was answered.

    Infinite: it was not, or the connection was lost.
    """

    sent: float
    latency: float


class Probe:
    """Asks over one connection, one request after the other.

    :param port: the server's
    :param secure: over TLS
    """

    def __init__(self, port: int, secure: bool) -> None:
        self._port = port
        self._secure = secure
        self._socket: socket.socket | None = None

    def run(self, seconds: float, pause: float) -> list[Sample]:
        """Ask for that long.

        :param pause: seconds between an answer and the next request
        """
        samples = []
        end = time.monotonic() + seconds
        while (sent := time.monotonic()) < end:
            try:
                self._ask(end + _PATIENCE)
                latency = time.monotonic() - sent
            except OSError:
                latency = math.inf
                self._close()
            samples.append(Sample(sent, latency))
            time.sleep(pause)
        return samples

    def once(self, patience: float) -> float:
        """Seconds from connecting to the answer, on a new connection that then stays open.

        :param patience: seconds to wait at most; more is infinite
        """
        began = time.monotonic()
        self._socket = None
        try:
            self._ask(began + patience)
        except OSError:
            return math.inf
        return time.monotonic() - began

    def visits(self, seconds: float, requests: int) -> tuple[list[float], list[float]]:
        """Connect, ask, ask again and leave, for that long.

        :param requests: on each connection
        :returns: seconds from connecting to the first answer; seconds that later requests took
        """
        first: list[float] = []
        later: list[float] = []
        end = time.monotonic() + seconds
        while not later or time.monotonic() < end:
            first.append(self.once(_PATIENCE))
            for _ in range(requests - 1):
                began = time.monotonic()
                self._ask(began + _PATIENCE)
                later.append(time.monotonic() - began)
            self._close()
        return first, later

    def fill(self, count: int, patience: float) -> list[float]:
        """:meth:`once` for *count* new clients, one after the other, none of which leaves.

        Ends early when three have had no answer: the next ones would not fare better.
        """
        latencies: list[float] = []
        kept = []
        while len(latencies) < count and latencies.count(math.inf) < 3:
            latencies.append(self.once(patience))
            kept.append(self._socket)
        return latencies

    def _ask(self, end: float) -> None:
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), _left(end))
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._secure:
                self._socket = tls.client_context().wrap_socket(self._socket)
        self._socket.settimeout(_left(end))
        self._socket.sendall(GET)
        response = b""
        while not is_complete(response):
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionResetError("closed before the answer was complete")
            response += data

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _left(end: float) -> float:
    return max(0.001, end - time.monotonic())


@contextlib.contextmanager
def probe(server: Server, cpu: int | None) -> Iterator[ClientProcess]:
    """A process with a :class:`Probe`."""
    process = ClientProcess(Probe, server.port, server.setup.tls, cpu=cpu)
    try:
        yield process
    finally:
        process.stop()

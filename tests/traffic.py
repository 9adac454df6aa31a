"""Kept-alive clients that go on while a server changes under them, and count what they lose.

Each behaves as a well-made connection pool does: it looks whether a connection was closed before
it uses it again, and does not send a request a second time. A request that was sent and got no
complete response is lost; so is a connect that was refused.
"""

from __future__ import annotations

import os
import random
import select
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from harness import Address, Client, NoAnswerError, Server, TruncatedError, process_exists, request, wait_until


class Traffic:
    """Clients on threads of their own, from construction until :meth:`stop`.

    :param address: of the server
    :param clients: how many; every third is slow between its requests, every fourth asks for
        slow responses
    :param seed: of their pauses and choices
    :param pause: most seconds that the others rest between two requests, so that more processes than
        these clients' get their turn
    """

    def __init__(self, address: Address, clients: int = 24, seed: int = 1, pause: float = 0.0) -> None:
        self.counts: Counter[str] = Counter()
        self.losses: list[str] = []
        #: Responses, and connections that had one, by the master whose worker answered (``X-Master``).
        self.requests_of: Counter[int] = Counter()
        self.connections_of: Counter[int] = Counter()
        self._held = 0
        self._go_on = threading.Event()
        self._go_on.set()
        self._address = address
        self._pause = pause
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._progress = threading.Condition(self._lock)
        self._threads = [
            threading.Thread(target=self._client, args=(number, random.Random(seed * 1000 + number)), daemon=True)
            for number in range(clients)
        ]
        for thread in self._threads:
            thread.start()

    def _client(self, number: int, dice: random.Random) -> None:
        client: Client | None = None
        while not self._over.is_set():
            if not self._go_on.is_set():
                self._count_held(1)
                self._go_on.wait()
                self._count_held(-1)
            if number % 3 == 0:
                self._over.wait(dice.uniform(0.0, 0.6))
            elif self._pause:
                self._over.wait(dice.uniform(0.0, self._pause))
            if client is not None and was_closed(client):
                self._count("closed while idle")
                if client.reset:
                    self._lose("idle", ConnectionResetError("by the server"))
                client.close()
                client = None
            if client is None:
                try:
                    client = Client(self._address)
                except OSError as error:
                    self._lose("connect", error)
                    continue
                self._count("connects")
                is_new = True
            body = b"x" * dice.choice((0, 10, 50_000))
            path = f"/slow?seconds={dice.uniform(0.05, 0.4):.2f}" if number % 4 == 0 else "/"
            try:
                client.send(request(path, method="POST" if body else "GET", body=body))
                response = client.read_response()
            except (OSError, TruncatedError) as error:
                self._lose("request", error)
                client.close()
                client = None
                continue
            if response.status != 200 or response.body != b"%d bytes" % len(body):
                self._lose("response", AssertionError(response.raw[:300]))
            if master := int(response.header("X-Master") or 0):
                with self._lock:
                    self.requests_of[master] += 1
                    self.connections_of[master] += is_new
            is_new = False
            self._count("requests")
            if not response.keeps_alive:
                self._count("told to close")
                client.close()
                client = None
        if client is not None:
            client.close()

    def _count(self, what: str) -> None:
        with self._progress:
            self.counts[what] += 1
            self._progress.notify_all()

    def _count_held(self, more: int) -> None:
        with self._progress:
            self._held += more
            self._progress.notify_all()

    def _lose(self, what: str, error: BaseException) -> None:
        with self._lock:
            self.losses.append(f"{time.strftime('%H:%M:%S')} {what}: {error!r}"[:400])

    def wait_for(self, requests: int, within: float = 30.0) -> None:
        """Return after that many more requests were answered."""
        with self._progress:
            goal = self.counts["requests"] + requests
            if not self._progress.wait_for(lambda: self.counts["requests"] >= goal, within):
                raise AssertionError(f"no {requests} requests within {within:g} s: {self.counts} {self.losses}")

    @contextmanager
    def held(self, within: float = 30.0) -> Iterator[None]:
        """No request is on its way meanwhile; connections stay open."""
        self._go_on.clear()
        try:
            with self._progress:
                assert self._progress.wait_for(lambda: self._held == len(self._threads), within), self.losses
            yield
        finally:
            self._go_on.set()

    def stop(self) -> Counter[str]:
        """End all clients; what they counted."""
        self._over.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()
        return self.counts


def was_closed(client: Client) -> bool:
    """Whether the server has closed a connection on which no response is awaited; see its ``reset``."""
    if not select.select([client.sock], [], [], 0)[0]:
        return False
    try:
        return not client.receive(time.monotonic() + 0.001)
    except NoAnswerError:
        return False  # On TLS: no more than a session ticket.


@contextmanager
def upgrading(server: Server) -> Iterator[Callable[[Traffic], None]]:
    """Give a function that replaces a server's master by a new one (USR2, then TERM to the old) under traffic.

    The new master ends with the context. The server has to be started with ``--pid {dir}/pid``.
    """
    masters: list[int] = []

    def upgrade(traffic: Traffic) -> None:
        old = server.workers()
        traffic.wait_for(requests=100)
        server.send_signal(signal.SIGUSR2)
        masters.append(int(wait_until(lambda: server.file("pid.2").strip(), "a new master")))
        wait_until(lambda: len(_children(masters[0])) == len(old), "its workers")
        traffic.wait_for(requests=100)
        server.send_signal(signal.SIGTERM)
        server.wait(20)
        traffic.wait_for(requests=100)
        assert not any(map(process_exists, old))

    try:
        yield upgrade
    finally:
        for master in masters:
            processes = [master, *_children(master)]
            os.kill(master, signal.SIGTERM)
            wait_until(lambda processes=processes: not any(map(process_exists, processes)), "the new master's end", 20)


def _children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []

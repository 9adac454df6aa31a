"""Long-lived connections are spread evenly over the workers, and are again after workers have changed."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import Counter

import pytest
from conftest import Serve
from harness import Client, Server, process_exists, wait_until

APP = "steady:app"

#: Seconds a connection lives in the tests of how balance returns; a tenth of it is spread.
LIFETIME = 6.0

pytestmark = pytest.mark.only_ours("gunicorn's gevent worker leaves it to the kernel whom it wakes")


@pytest.fixture(scope="module")
def backend() -> str:
    """One event backend: who steps back does so in the event loop, whatever that waits on."""
    return "epoll"


def _holders(clients: list[Client]) -> Counter[int]:
    return Counter(int(client.get("/pid").body.split()[0]) for client in clients)


def test_long_lived_connections_are_spread_over_the_workers(serve: Serve) -> None:
    """After a worker was killed its replacement gets what comes next."""
    server = serve(APP, "--workers", "4", "--keep-alive", "60", fresh=True)
    workers = server.wait_for_workers(4)
    wait_until(lambda: _is_even(server, 4), "four workers that know of each other")
    clients = [Client(server.address) for _ in range(1000)]
    try:
        held = _holders(clients)
        assert len(held) == 4
        assert max(held.values()) <= 1.3 * 250, held
        victim = workers[0]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(set(server.workers()) - set(workers)) == 1, "a replacement")
        (heir,) = set(server.workers()) - set(workers)
        wait_until(lambda: server.connect().get("/pid").body.split()[0] == b"%d" % heir, "the replacement's service")
        lost = [client for client in clients if _is_gone(client)]
        for client in lost:
            clients.remove(client)
            client.close()
        clients += [Client(server.address) for _ in lost]
        held = _holders(clients)
        assert max(held.values()) <= 1.3 * 250, held
    finally:
        for client in clients:
            client.close()


class Membership:
    """Clients who stay connected, come again at once when they must, and know which worker they have."""

    def __init__(self, server: Server, count: int) -> None:
        self._server = server
        self._clients = [self._join() for _ in range(count)]
        #: At what age those left who were told to, in seconds.
        self.ages: list[float] = []

    def _join(self) -> tuple[Client, float]:
        return Client(self._server.address), time.monotonic()

    def holders(self) -> Counter[int]:
        """How many have each worker, when each has asked once."""
        held = Counter[int]()
        for index, (client, since) in enumerate(self._clients):
            while True:
                if not _is_gone(client):
                    response = client.get("/pid")
                    if response.keeps_alive:
                        break
                    self.ages.append(time.monotonic() - since)
                client.close()
                client, since = self._clients[index] = self._join()
            held[int(response.body.split()[0])] += 1
        return held

    def close(self) -> None:
        for client, _ in self._clients:
            client.close()


@pytest.mark.parametrize("change", ["a reload", "a killed worker"])
def test_balance_returns_within_a_lifetime_and_without_a_burst(serve: Serve, change: str) -> None:
    """Connections come again when their lives end, each at a time of its own; nobody is sent away for the balance."""
    server = serve(
        APP, "--workers", "4", "--keep-alive", "60", "--keep-alive-lifetime", str(LIFETIME), "--drain-timeout", "0.3",
        env={"STEADY_LOAD_SECONDS": "1"}, fresh=True,
    )  # fmt: skip
    workers = server.wait_for_workers(4)
    wait_until(lambda: _is_even(server, 4), "four workers that know of each other")
    members = Membership(server, 200)
    try:
        assert max(members.holders().values()) <= 1.3 * 50
        if change == "a reload":
            server.send_signal(signal.SIGHUP)
            wait_until(lambda: not set(server.workers()) & set(workers), "the end of the old workers", 30)
        else:
            os.kill(workers[0], signal.SIGKILL)
            wait_until(lambda: not process_exists(workers[0]), "its end")
        held = members.holders()
        # By then the last of those who are there now has come to the end of its life.
        until = time.monotonic() + LIFETIME + 0.3
        if change == "a killed worker":
            assert set(held) == set(workers[1:]), "its replacement is still loading"
            assert members.ages == []
        members.ages.clear()
        while time.monotonic() < until:
            time.sleep(0.1)
            held = members.holders()
        assert len(held) == 4
        assert max(held.values()) <= 1.3 * 50, held
        assert min(held.values()) >= 0.5 * 50, held
        assert len(members.ages) >= 200
        assert min(members.ages) >= 0.9 * LIFETIME
        assert max(members.ages) - min(members.ages) >= 0.05 * LIFETIME
    finally:
        members.close()


def _is_even(server: Server, workers: int) -> bool:
    """Whether each worker takes its part of a few connections."""
    clients = [Client(server.address) for _ in range(10 * workers)]
    held = _holders(clients)
    for client in clients:
        client.close()
    return len(held) == workers and max(held.values()) <= 15


def _is_gone(client: Client) -> bool:
    """Whether the connection has ended, by FIN or, as a killed process leaves it, otherwise."""
    client.sock.setblocking(False)
    try:
        return client.sock.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True

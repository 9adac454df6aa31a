"""Behind real load balancers, configured as docs/behind-a-load-balancer.md says: no 502, and nothing lost."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from conftest import Serve
from fronts import RECIPES, Front, sections, worker_configuration
from harness import Client, Server, wait_until
from traffic import Traffic, upgrading

FRONTS = ("nginx", "haproxy", "apache", "caddy")
#: For what takes longer.
MAIN_FRONTS = FRONTS[:2]


@pytest.fixture(scope="module")
def backend() -> str:
    """One event backend: what differs between them is tested elsewhere."""
    return "epoll"


def _serve(serve: Serve, *options: str, keepalive: float | None = None) -> Server:
    """Two workers, configured as the page says."""
    options = ("--workers", "2", *options)
    return serve("steady:app", *options, config=worker_configuration(), keepalive=keepalive, fresh=True)


def _has_booted(server: Server, workers: int) -> Callable[[], bool]:
    return lambda: server.log().count("Booting worker") >= workers


# --- nothing is lost -----------------------------------------------------------------------------


NOTHING_LOST = pytest.mark.only_ours("gunicorn's gevent worker loses requests behind a load balancer")


@contextmanager
def _nothing_lost(front: Front, server: Server) -> Iterator[Traffic]:
    """Traffic through a front, none of which may be lost, and nothing of which the front may complain."""
    server.wait_for_workers(2)
    traffic = Traffic(front.address, clients=28, pause=0.02)
    try:
        yield traffic
    finally:
        counts = traffic.stop()
    assert traffic.losses == [], counts
    assert front.troubles() == []
    exchanges = front.exchanges()
    assert len(exchanges) >= 0.9 * counts["requests"], "most of them have to be in the log"
    assert {exchange.method for exchange in exchanges} == {"GET", "POST"}


@NOTHING_LOST
@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", MAIN_FRONTS)
def test_reloads_behind_a_front_lose_no_request(serve: Serve, kind: str) -> None:
    """POSTs among them, which no front sends again. Workers still drain when the next reload comes."""
    server = _serve(serve)
    with RECIPES[kind].start(server) as front, _nothing_lost(front, server) as traffic:
        for number in range(1, 21):
            traffic.wait_for(requests=40)
            server.send_signal(signal.SIGHUP)
            wait_until(_has_booted(server, 2 + 2 * number), "new workers")


@NOTHING_LOST
@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", FRONTS)
def test_recycled_workers_behind_a_front_lose_no_request(serve: Serve, kind: str) -> None:
    server = _serve(serve, "--max-requests", "300", "--drain-timeout", "0.5")
    with RECIPES[kind].start(server) as front, _nothing_lost(front, server):
        wait_until(_has_booted(server, 10), "eight workers recycled", 60)


@NOTHING_LOST
@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", MAIN_FRONTS)
def test_an_upgrade_behind_a_front_loses_no_request(serve: Serve, kind: str) -> None:
    """USR2, then TERM to the old master; the front's pool goes over to the new one."""
    server = _serve(serve, "--pid", "{dir}/pid")
    with (
        RECIPES[kind].start(server) as front,
        upgrading(server) as upgrade,
        _nothing_lost(front, server) as traffic,
    ):
        upgrade(traffic)


# --- the idle race -------------------------------------------------------------------------------

#: The page's times, a sixtieth of them long.
SHORT = {
    "nginx": {"keepalive_timeout 60s": "keepalive_timeout 1s"},
    "haproxy": {"pool-purge-delay 5s": "pool-purge-delay 1s"},
    "apache": {"ttl=60": "ttl=1"},
    "caddy": {"keepalive 60s": "keepalive 1s"},
}


def _tables() -> Iterator[tuple[str, list[str]]]:
    """The rows of the page's tables of load balancers, each with the setting that it is about."""
    setting = ""
    for line in sections()["Load balancers"].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| load balancer"):
            setting = cells[2].strip("`")
        elif line.startswith("| ") and not line.startswith("| ---"):
            yield setting, cells


def test_the_numbers_of_the_page_follow_its_rules() -> None:
    """The worker outlasts the fronts, and its probes come before a balancer forgets a connection."""
    (promised,) = re.findall(r"^keepalive = (\d+)$", worker_configuration(), re.MULTILINE)
    for kind, changes in SHORT.items():
        (time,) = changes
        (idle,) = re.findall(r"\d+", time)
        assert int(idle) < int(promised), kind
    seen = set()
    for setting, (name, idle, here, _, source) in _tables():
        assert re.fullmatch(r"\[.+\]\(https://\S+\)", source), name
        if setting == "--keep-alive":
            assert int(here) > int(idle), name
        else:
            assert setting == "--tcp-keepalive"
            assert int(here) < int(idle), name
        seen.add(name)
    assert len(seen) >= 15


@NOTHING_LOST
@pytest.mark.parametrize("kind", FRONTS)
def test_requests_at_the_moment_of_the_idle_timeout(serve: Serve, kind: str) -> None:
    """Bursts of POSTs, the later ones just when the front is about to end the connections of the one before."""
    server = _serve(serve, keepalive=1.25)
    failed: list[object] = []

    def post(client: Client) -> None:
        try:
            response = client.get("/slow?seconds=0.02", method="POST", body=b"x" * 100)
            assert response.status == 200, response.raw
        except BaseException as error:
            failed.append(error)

    pauses = [0.0, 0.97, 0.985, 0.995, 1.0, 1.005, 1.02]
    over = threading.Event()
    with RECIPES[kind].start(server, SHORT[kind]) as front:
        clients = [Client(front.address) for _ in range(10)]
        for pause in pauses:
            over.wait(pause)
            threads = [threading.Thread(target=post, args=(client,)) for client in clients]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(10)
            # For the pool to be used between the bursts, too.
            assert clients[0].get("/").status == 200
        for client in clients:
            client.close()
        assert failed == []
        front.wait_for_exchanges(len(pauses) * (len(clients) + 1))
        assert front.troubles() == []
        assert {exchange.method for exchange in front.exchanges()} == {"GET", "POST"}

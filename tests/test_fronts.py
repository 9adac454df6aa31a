"""Behind real load balancers, configured as docs/behind-a-load-balancer.md says: no 502, and nothing lost."""

from __future__ import annotations

import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from conftest import Serve
from fronts import Front, HAProxy, Nginx, changed, recipe
from harness import Client, Server, wait_until
from traffic import Traffic

FRONTS = {"nginx": Nginx, "haproxy": HAProxy}
#: The heading of each front's recipe.
HEADINGS = {"nginx": "nginx", "haproxy": "HAProxy"}
LISTEN = {"nginx": ("listen 80;", "listen 127.0.0.1:PORT;"), "haproxy": ("bind :80", "bind 127.0.0.1:PORT")}

#: Starts a front: ``start("nginx", server, {"60s": "1s"})``, with changes to its recipe.
Start = Callable[..., Front]


@pytest.fixture(scope="module")
def backend() -> str:
    """One event backend: what differs between them is tested elsewhere."""
    return "epoll"


@pytest.fixture
def start() -> Iterator[Start]:
    """Start fronts that end with the test."""
    with ExitStack() as stack:

        def start(kind: str, server: Server, changes: dict[str, str] | None = None) -> Front:
            program = FRONTS[kind].program
            if shutil.which(program) is None:
                pytest.skip(f"no {program} (Debian package {program})")
            text = changed(recipe(HEADINGS[kind]), dict([LISTEN[kind]]) | (changes or {}))
            return stack.enter_context(FRONTS[kind](_addressed(text, server)))

        yield start


def _addressed(text: str, server: Server) -> str:
    """A recipe with the address of the server, which has to be in it."""
    if isinstance(server.address, str):
        return changed(text, {"/run/app.sock": server.address})
    return changed(text, {"127.0.0.1:8000": f"127.0.0.1:{server.port}"})


def _worker_options() -> list[str]:
    """What the page's command gives gunicorn."""
    words = recipe("The worker").split()
    assert words[:3] == ["gunicorn", "-k", "keepalive_worker"]
    assert words[-1] == "app:app"
    return words[3:-1]


def _assert_no_trouble(front: Front, requests: int) -> None:
    """Nothing but 200, and no retry made up for anything."""
    assert front.troubles() == []
    exchanges = front.exchanges()
    assert len(exchanges) >= 0.9 * requests, "most of them have to be in the log"
    assert {exchange.method for exchange in exchanges} == {"GET", "POST"}


def _has_booted(server: Server, workers: int) -> Callable[[], bool]:
    return lambda: server.log().count("Booting worker") >= workers


# --- nothing is lost -----------------------------------------------------------------------------


NOTHING_LOST = pytest.mark.only_ours("gunicorn's gevent worker loses requests behind a load balancer")


@NOTHING_LOST
@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", FRONTS)
def test_reloads_behind_a_front_lose_no_request(serve: Serve, start: Start, kind: str) -> None:
    """POSTs among them, which no front sends again. Workers still drain when the next reload comes."""
    server = serve("steady:app", *_worker_options(), "--workers", "2", fresh=True)
    front = start(kind, server)
    server.wait_for_workers(2)
    traffic = Traffic(front.address, clients=28, pause=0.02)
    try:
        for number in range(1, 21):
            traffic.wait_for(requests=40)
            server.send_signal(signal.SIGHUP)
            wait_until(_has_booted(server, 2 + 2 * number), "new workers")
    finally:
        counts = traffic.stop()
    assert traffic.losses == [], counts
    _assert_no_trouble(front, counts["requests"])


@NOTHING_LOST
@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", FRONTS)
def test_recycled_workers_behind_a_front_lose_no_request(serve: Serve, start: Start, kind: str) -> None:
    options = [*_worker_options(), "--workers", "2", "--max-requests", "300", "--drain-timeout", "0.5"]
    server = serve("steady:app", *options, fresh=True)
    front = start(kind, server)
    traffic = Traffic(front.address, clients=28, pause=0.02)
    try:
        wait_until(_has_booted(server, 10), "eight workers recycled", 60)
    finally:
        counts = traffic.stop()
    assert traffic.losses == [], counts
    _assert_no_trouble(front, counts["requests"])


# --- the idle race -------------------------------------------------------------------------------

#: The page's times, a sixtieth of them long.
SHORT = {
    "nginx": {"keepalive_timeout 60s": "keepalive_timeout 1s"},
    "haproxy": {"pool-purge-delay 5s": "pool-purge-delay 1s"},
}


def test_the_worker_waits_longer_than_the_fronts() -> None:
    """The rule of the page, in the numbers of the page."""
    (promised,) = re.findall(r"--keep-alive (\d+)", recipe("The worker"))
    (idle,) = re.findall(r"keepalive_timeout (\d+)s", recipe("nginx"))
    assert int(promised) > int(idle)


@NOTHING_LOST
@pytest.mark.parametrize("kind", FRONTS)
def test_requests_at_the_moment_of_the_idle_timeout(serve: Serve, start: Start, kind: str) -> None:
    """Bursts of POSTs, the later ones just when the front is about to end the connections of the one before."""
    server = serve("steady:app", "--keep-alive", "1.25", fresh=True)
    front = start(kind, server, SHORT[kind])
    clients = [Client(front.address) for _ in range(10)]
    failed: list[object] = []

    def post(client: Client) -> None:
        try:
            response = client.get("/slow?seconds=0.02", method="POST", body=b"x" * 100)
            assert response.status == 200, response.raw
        except BaseException as error:
            failed.append(error)

    pauses = [0.0, 0.97, 0.985, 0.995, 1.0, 1.005, 1.02]
    over = threading.Event()
    for pause in pauses:
        over.wait(pause)
        threads = [threading.Thread(target=post, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        # A small one for the log to be complete, and for the pool to be used between the bursts, too.
        assert clients[0].get("/").status == 200
    for client in clients:
        client.close()
    assert failed == []
    assert front.troubles() == []
    assert len(front.exchanges()) == len(pauses) * (len(clients) + 1)
    assert {exchange.method for exchange in front.exchanges()} == {"GET", "POST"}

"""Idle connections: how long they stay, how they end, and what they cost (RFC 9112 9.3, 9.8)."""

from __future__ import annotations

import resource
import select
import selectors
import time
from typing import TYPE_CHECKING

import pytest
from harness import IS_OURS, Client, Server, request

if TYPE_CHECKING:
    from conftest import Serve

GALLERY = "gallery:app"
BODY = b"Hello, world!\n"
KEEP_ALIVE = 1
#: keepalive_grace by default; gunicorn's own worker has none.
GRACE = 1 if IS_OURS else 0
#: Seconds that a close may come late on a busy machine.
LATE = 0.5


@pytest.fixture
def server(serve: Serve) -> Server:
    """The gallery with a short idle timeout."""
    return serve(GALLERY, "--keep-alive", str(KEEP_ALIVE))


class Ends:
    """When each of several connections ended, by the monotonic clock, and how."""

    def __init__(self, clients: list[Client], within: float) -> None:
        self.at: dict[Client, float] = {}
        with selectors.DefaultSelector() as selector:
            for client in clients:
                selector.register(client.sock, selectors.EVENT_READ, client)
            deadline = time.monotonic() + within
            while len(self.at) < len(clients) and time.monotonic() < deadline:
                for key, _ in selector.select(deadline - time.monotonic()):
                    self.at[key.data] = time.monotonic()
                    selector.unregister(key.fileobj)
        assert len(self.at) == len(clients), f"{len(clients) - len(self.at)} connections did not end"
        for client in clients:
            # A FIN: the end is read as an end, not as an error, and nothing comes before it.
            assert client.sock.recv(100) == b""


def test_idle_connection_ends_on_time_by_fin(server: Server) -> None:
    """Never before the promise and the grace, and not much later; each by its own clock."""
    clients, asked, answered = [], {}, {}
    for number in range(30):
        client = server.connect()
        clients.append(client)
        asked[client] = time.monotonic()
        path = ("/", "/lengths/pieces", "/lengths/no_content", "/uploads/none")[number % 4]
        client.get(
            path, method="POST" if "uploads" in path else "GET", body=b"x" if "uploads" in path else b""
        )
        answered[client] = time.monotonic()
    ends = Ends(clients, KEEP_ALIVE + GRACE + 5)
    for client in clients:
        assert ends.at[client] - asked[client] >= KEEP_ALIVE + GRACE
        assert ends.at[client] - answered[client] <= KEEP_ALIVE + GRACE + LATE


def test_each_request_starts_the_idle_time_anew(server: Server) -> None:
    """A request at the last moment of the promise; then the end, at its time."""
    clients = [server.connect() for _ in range(10)]
    for client in clients:
        assert client.get("/").body == BODY
    # What is tested is what happens when this much time passes.
    time.sleep(KEEP_ALIVE * 0.9)
    asked = time.monotonic()
    for client in clients:
        assert client.get("/").body == BODY
    answered = time.monotonic()
    ends = Ends(clients, KEEP_ALIVE + GRACE + 5)
    assert min(ends.at.values()) - asked >= KEEP_ALIVE + GRACE
    assert max(ends.at.values()) - answered <= KEEP_ALIVE + GRACE + LATE


@pytest.mark.only_ours("has no grace")
def test_request_within_the_grace_is_served(server: Server) -> None:
    """A client that believes the promise and is late on the wire does not lose."""
    clients = [server.connect() for _ in range(10)]
    for client in clients:
        assert client.get("/").body == BODY
    time.sleep(KEEP_ALIVE + GRACE * 0.5)
    for client in clients:
        assert client.get("/").body == BODY


def test_connection_is_not_idle_while_its_application_works(server: Server) -> None:
    client = server.connect()
    client.send(request("/streaming/slow?name=idle"))
    # Longer than an idle connection would stay.
    time.sleep(KEEP_ALIVE + GRACE + LATE)
    client.assert_open()
    server.get("/streaming/open_gate?name=idle")
    assert client.read_response().body == b"done"
    assert client.get("/").body == BODY


def test_keepalive_0_closes_after_each_response(serve: Serve) -> None:
    server = serve(GALLERY, "--keep-alive", "0")
    for path in ("/", "/lengths/pieces", "/lengths/no_content", "/files/real"):
        client = server.connect()
        response = client.get(path, "Connection: keep-alive")
        assert response.header("Connection") == "close"
        client.assert_closed()
        assert not client.reset
    client = server.connect()
    client.send(request("/", "Connection: keep-alive", version="1.0"))
    assert client.read_response().header("Connection") == "close"
    client.assert_closed()


def _allow_descriptors(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        if hard != resource.RLIM_INFINITY and hard < count:
            pytest.skip(f"needs {count} descriptors, this system allows {hard}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def test_thousand_idle_connections_beside_a_busy_one(serve: Serve) -> None:
    _allow_descriptors(3000)
    server = serve(GALLERY, "--worker-connections", "2000")
    idle = [server.connect() for _ in range(1000)]
    for client in idle:
        client.send(request("/"))
    for client in idle:
        assert client.read_response().body == BODY
    busy = server.connect()
    begin = time.monotonic()
    for _ in range(500):
        assert busy.get("/").body == BODY
    assert time.monotonic() - begin < 10
    for client in idle:
        client.assert_open()
        client.send(request("/"))
    for client in idle:
        assert client.read_response().body == BODY


@pytest.mark.only_ours("has a greenlet for each connection")
def test_idle_connections_hold_no_greenlet(serve: Serve) -> None:
    server = serve(GALLERY, "--worker-connections", "2000", fresh=True)
    before = server.get("/introspection/worker").json()
    idle = [server.connect() for _ in range(300)]
    for client in idle:
        # One after the other, so that one greenlet serves them all.
        assert client.get("/").body == BODY
    silent = [server.connect() for _ in range(100)]
    for client in silent:
        client.send(b"GET / HT")
    server.settle()
    now = server.get("/introspection/worker").json()
    assert now["descriptors"] >= before["descriptors"] + 400
    assert now["greenlets"] <= before["greenlets"] + 5
    for client in idle:
        client.assert_open()


def test_idle_connections_end_while_others_are_busy(server: Server) -> None:
    """A client that always has the next request ready must not keep deadlines from striking."""
    idle = [server.connect() for _ in range(20)]
    asked = time.monotonic()
    for client in idle:
        assert client.get("/").body == BODY
    answered = time.monotonic()
    busy = server.connect()
    while time.monotonic() < asked + KEEP_ALIVE + GRACE - 0.3:
        busy.send(request("/") * 20)
        for _ in range(20):
            assert busy.read_response().body == BODY
        ended = select.select([client.sock for client in idle], [], [], 0)[0]
        # On a busy machine it may be later by now than the loop's condition says.
        assert not ended or time.monotonic() - asked >= KEEP_ALIVE + GRACE
    ends = Ends(idle, 5)
    assert min(ends.at.values()) - asked >= KEEP_ALIVE + GRACE
    assert max(ends.at.values()) - answered <= KEEP_ALIVE + GRACE + LATE
    assert busy.get("/").body == BODY


def test_connections_whose_clients_leave_are_given_back(server: Server) -> None:
    before = server.get("/introspection/worker").json()["descriptors"]
    for _ in range(3):
        clients = [server.connect() for _ in range(100)]
        for client in clients:
            assert client.get("/").body == BODY
        for client in clients:
            client.close()
    server.settle()
    assert server.get("/introspection/worker").json()["descriptors"] <= before + 5

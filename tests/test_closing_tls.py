"""Deadlines and limits on TLS connections; those without TLS are in test_closing.py."""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING

import pytest
from counting import closed, counted, takes
from harness import Certificates, Server, request

if TYPE_CHECKING:
    from conftest import Serve

APP = "closing:app"
QUICK = (
    *("--header-timeout", "1", "--body-timeout", "1", "--send-timeout", "1", "--min-data-rate", "0"),
    *("--keep-alive", "1", "--keep-alive-grace", "0.5"),
)

@pytest.fixture(scope="module")
def backend() -> str | None:
    """The one there is; that the others report the same, test_poller.py and test_closing.py show."""
    return None


pytestmark = pytest.mark.only_ours("gunicorn's own workers do not count, and have one deadline for all")


@pytest.fixture
def quick(serve: Serve, certificates: Certificates) -> Server:
    """A server whose deadlines are short."""
    return serve(APP, *QUICK, certificates=certificates)


def test_idle_timeout(quick: Server) -> None:
    with counted(quick, "idle_timeout"):
        client = quick.connect()
        client.get("/")
        with takes(1.5):
            client.assert_closed()
    assert not client.ragged


def test_a_silent_new_connection(quick: Server) -> None:
    """Its handshake is done; it is idle and not late."""
    with counted(quick, "idle_timeout"):
        client = quick.connect()
        with takes(1.5):
            client.assert_closed()


@pytest.mark.parametrize("earlier", [0, 1])
def test_header_timeout(quick: Server, earlier: int) -> None:
    with counted(quick, "header_timeout"):
        client = quick.connect()
        for _ in range(earlier):
            client.get("/")
        client.send(b"GET / HTTP/1.1\r\n")
        with takes(1.0):
            response = client.drip(client.read_response)
        assert response.status == 408
        client.assert_closed()


@pytest.mark.parametrize(("path", "status"), [("/read", 408), ("/ignore", 200)])
def test_body_timeout(quick: Server, path: str, status: int) -> None:
    with counted(quick, "body_timeout"), takes(1.0):
        client = quick.connect()
        client.send(request(path, "Content-Length: 10", method="POST") + b"12345")
        assert client.read_response().status == status
        client.assert_closed()


def test_send_timeout(quick: Server) -> None:
    with counted(quick, "send_timeout"):
        client = quick.connect(receive_buffer=4096)
        client.send(request("/large"))
        client.read_head()


def test_min_data_rate(serve: Serve, certificates: Certificates) -> None:
    """Up and down at the same time, for each has five seconds to spare."""
    server = serve(APP, "--min-data-rate", "100000000", certificates=certificates)
    with counted(server, "min_data_rate", 2):
        up, down = server.connect(), server.connect(receive_buffer=4096)
        up.send(request("/read", "Content-Length: 1000000", method="POST"))
        down.send(request("/large"))
        down.read_head()
        with takes(5.0):
            while not select.select([up.sock], [], [], 0.2)[0]:
                up.send(b"x" * 100)
            assert up.read_response().status == 408


def test_request_cap_and_lifetime(serve: Serve, certificates: Certificates) -> None:
    server = serve(APP, "--keep-alive-requests", "2", certificates=certificates)
    with counted(server, "request_cap"):
        client = server.connect()
        assert [client.get("/").keeps_alive for _ in range(2)] == [True, False]
        client.assert_closed()
    server = serve(APP, "--keep-alive-lifetime", "0.5", certificates=certificates)
    with counted(server, "lifetime"):
        client = server.connect()
        began = time.monotonic()
        while client.get("/").keeps_alive:
            pass
        assert 0.4 <= time.monotonic() - began < 1.5
        client.assert_closed()


def test_peer_limit(serve: Serve, certificates: Certificates) -> None:
    """No handshake for who is too many: it costs more than it would tell."""
    server = serve(APP, "--max-peer-connections", "2", certificates=certificates, fresh=True)
    one, _two = server.connect(), server.connect()
    one.get("/")
    with pytest.raises((OSError, AssertionError)):
        server.connect()
    assert one.get("/closed").json()["peer_limit"] == 1


@pytest.mark.parametrize("new", ["served", "silent"])
def test_evicted(serve: Serve, certificates: Certificates, new: str) -> None:
    """Connections that have not asked for anything yet give way as well."""
    server = serve(APP, "--worker-connections", "10", certificates=certificates, fresh=True)
    idle = [server.connect() for _ in range(10)]
    if new == "served":
        for client in idle:
            client.get("/")
    for number in range(5):
        server.connect().get("/")
        idle[number].assert_closed()
        assert not idle[number].reset
        assert not idle[number].ragged
    idle[-1].assert_open()
    assert closed(server)["evicted"] == 6  # five, and one for who asks

"""Applications that use what a request gave them when it is over, or go on after an error of the connection's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from harness import Server, request, wait_until

if TYPE_CHECKING:
    from conftest import Serve

pytestmark = pytest.mark.only_ours("gunicorn's has no such statistics, which the tests wait for")


@contextmanager
def _one_more_closed_for(server: Server, reason: str) -> Iterator[None]:
    """One connection is counted as closed for *reason* meanwhile."""
    asking = server.connect()

    def count() -> int:
        return int(asking.get("/closed").json()[reason])

    before = count()
    yield
    wait_until(lambda: count() == before + 1, f"one more closed for {reason}")


@pytest.mark.parametrize("how", ["write", "read", "socket"])
def test_a_connection_that_has_ended_is_nobody_elses(serve: Serve, how: str) -> None:
    """Its descriptor's number is the next client's, who must neither get nor lose a byte by that."""
    server = serve("late:app")
    with _one_more_closed_for(server, "client" if how == "read" else "response"), server.connect() as client:
        if how == "read":
            client.send(request(f"/keep?{how}", "Content-Length: 100", method="POST"))
            assert client.read_response().body == b"kept"
            client.abort()  # Else the body is waited for.
        else:
            assert client.get(f"/keep?{how}").body == b"kept"
            client.assert_closed()
    others = [server.connect() for _ in range(5)]
    server.settle()
    # Sent, and not looked at before the greenlet has gone on: all are ready at the same time.
    for other in others:
        other.send(request("/use" if other is others[0] else "/"))
    assert others[0].read_response().body == b"OSError"
    for other in others[1:]:
        assert other.read_response().body == b"ok"
        other.assert_open()


def test_a_socket_that_was_closed_is_nobody_elses(serve: Serve) -> None:
    """The application closes it and answers all the same, when the next client has its number."""
    server = serve("late:app")
    asking = server.connect()
    assert asking.get("/").body == b"ok"
    client = server.connect()
    client.send(request("/close_socket"))
    client.assert_closed()
    others = [server.connect() for _ in range(5)]
    server.settle()
    assert asking.get("/use").body == b"tried"
    for other in others:
        other.assert_open()
        assert other.get("/").body == b"ok"


def test_to_look_at_the_socket_takes_nothing_from_the_worker(serve: Serve) -> None:
    """It waits for what is to come, and for the client to take what is large, as for any other."""
    server = serve("late:app")
    client = server.connect(receive_buffer=4096)
    client.send(request("/look", "Content-Length: 10", method="POST"))
    server.settle()
    client.send(b"01234")
    server.settle()
    client.send(b"56789")
    assert client.read_response().body == b"0123456789" * 1_000_000
    assert client.get("/").body == b"ok"


def test_nothing_follows_a_response_that_was_cut(serve: Serve) -> None:
    """The client would take it for the rest of the body."""
    server = serve("late:app")
    with _one_more_closed_for(server, "error"):
        client = server.connect(receive_buffer=4096)
        client.send(request("/give_up_sending") + request("/"))
    # Not before: whoever reads at once may have it all before the application gives up.
    received = client.read_until_closed()
    assert received.count(b"HTTP/1.1") == 1
    assert len(received) < 20_000_000


def test_a_body_that_came_too_late_is_the_reason_for_the_end(serve: Serve) -> None:
    """Also where the application has answered all the same: the response says that it is the last."""
    server = serve("late:app", "--body-timeout", "0.5")
    with _one_more_closed_for(server, "body_timeout"):
        client = server.connect()
        client.send(request("/give_up_reading", "Content-Length: 10", method="POST") + b"12345")
        response = client.read_response()
        assert (response.body, response.header("Connection")) == (b"given up", "close")
        client.assert_closed()


def test_close_is_in_time_until_the_response_has_ended(serve: Serve) -> None:
    """A head that is out has promised what does not come true, as it may at any time (RFC 9112 9.5)."""
    server = serve("late:app")
    with _one_more_closed_for(server, "response"):
        client = server.connect()
        assert client.get("/close_late").body == b"late"
        client.assert_closed()

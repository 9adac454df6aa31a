"""Responses that the kernel holds back for a moment: which, until when, and that nobody waits for it."""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from conftest import Serve
from harness import Client, Server, request, wait_until
from hypothesis import given
from hypothesis import strategies as st

from keepalive_worker.holding import CALM, SHORT, WORTH_IT, Holding, kernel_calls

GOOD = (WORTH_IT + SHORT) / 2

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has MSG_MORE")


class Kernel:
    """What was sent, by descriptor, and what of it is out."""

    def __init__(self) -> None:
        self.kept: list[int] = []
        self.out: list[int] = []
        self.holding = Holding((self.send_more, self.push))

    def send_more(self, fd: int, data: bytes) -> int:
        self.kept.append(fd)
        return len(data)

    def push(self, fd: int) -> None:
        self.kept.remove(fd)
        self.out.append(fd)


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.mark.parametrize(
    ("took", "more_ready", "allowed"),
    [
        (GOOD, True, True),
        (GOOD, False, False),
        (WORTH_IT / 2, True, False),
        (SHORT * 2, True, False),
        (SHORT * 2, False, False),
    ],
)
def test_who_is_held(kernel: Kernel, took: float, more_ready: bool, allowed: bool) -> None:
    assert not kernel.holding.allowed
    kernel.holding.pace(took, 100.0, more_ready)
    assert kernel.holding.allowed == allowed


def test_after_a_long_request_nobody_is_for_a_while(kernel: Kernel) -> None:
    holding = kernel.holding
    holding.pace(SHORT * 2, 100.0, True)
    holding.pace(GOOD, 100.0 + CALM * 0.9, True)
    assert not holding.allowed
    holding.pace(GOOD, 100.0 + CALM * 1.1, True)
    assert holding.allowed


def test_what_is_held_goes_out_before_something_else_begins(kernel: Kernel) -> None:
    holding = kernel.holding
    holding.pace(GOOD, 100.0, True)
    assert [holding.send(fd, b"abc") for fd in (7, 8, 9)] == [3, 3, 3]
    holding.pace(GOOD, 100.1, True)
    assert (kernel.kept, kernel.out) == ([7, 8, 9], [])
    holding.end()
    assert (kernel.kept, kernel.out) == ([], [7, 8, 9])
    assert not holding.allowed
    holding.end()
    assert kernel.out == [7, 8, 9]


@pytest.mark.parametrize(("took", "more_ready"), [(GOOD, False), (WORTH_IT / 2, True), (SHORT * 2, True)])
def test_what_is_held_goes_out_when_the_next_is_not(kernel: Kernel, took: float, more_ready: bool) -> None:
    kernel.holding.pace(GOOD, 100.0, True)
    kernel.holding.send(7, b"abc")
    kernel.holding.pace(took, 100.1, more_ready)
    assert kernel.out == [7]


def test_where_the_system_cannot_nobody_is() -> None:
    holding = Holding(None)
    holding.pace(GOOD, 100.0, True)
    assert not holding.allowed
    holding.end()


@given(st.lists(st.tuples(st.floats(0, 3 * SHORT), st.floats(0, CALM), st.booleans(), st.booleans())))
def test_nothing_stays_behind(steps: list[tuple[float, float, bool, bool]]) -> None:
    """Whatever comes after what, held is only what may be, and all of it goes out once and in order."""
    kernel, now, sent, last_long = Kernel(), 1000.0, 0, 0.0
    for took, pause, more_ready, ends in steps:
        if kernel.holding.allowed:
            sent += 1
            kernel.holding.send(sent, b"")
        now += pause + took
        if took > SHORT:
            last_long = now
        kernel.holding.pace(took, now, more_ready)
        if ends:
            kernel.holding.end()
        assert not kernel.kept or kernel.holding.allowed
        assert not kernel.holding.allowed or now >= last_long + CALM
    kernel.holding.end()
    assert kernel.out == list(range(1, sent + 1))


# --- the kernel's part -------------------------------------------------------------------------


@contextmanager
def _connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as theirs:
        ours, _ = listener.accept()
        with ours:
            ours.setblocking(False)
            ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield ours, theirs


@linux
def test_the_kernel_keeps_the_bytes_until_it_is_asked_for_them() -> None:
    calls = kernel_calls()
    assert calls is not None
    send_more, push = calls
    with _connection() as (ours, theirs):

        def is_kept() -> bool:
            assert send_more(ours.fileno(), b"abc") == 3
            kept = not select.select([theirs], [], [], 0)[0]
            push(ours.fileno())
            assert theirs.recv(10) == b"abc"
            return kept

        # Not for longer than its own limit, which a busy machine may reach here.
        wait_until(is_kept, "bytes that are kept")


@linux
def test_the_kernel_does_not_keep_them_for_ever() -> None:
    calls = kernel_calls()
    assert calls is not None
    with _connection() as (ours, theirs):
        calls[0](ours.fileno(), b"abc")
        theirs.settimeout(10)
        assert theirs.recv(10) == b"abc"


@linux
def test_errors_are_the_systems() -> None:
    calls = kernel_calls()
    assert calls is not None
    send_more, push = calls

    def send_for_ever() -> None:
        while send_more(ours.fileno(), b"x" * 100_000):
            pass

    with _connection() as (ours, theirs):
        with pytest.raises(BlockingIOError):
            send_for_ever()
        theirs.close()
        wait_until(lambda: select.select([ours], [], [], 0)[0], "the news of its end")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_for_ever()
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.close(descriptor)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        send_more(descriptor, b"x")
    push(descriptor)  # Of a connection that was closed meanwhile: nothing happens.


# --- all of it ---------------------------------------------------------------------------------

SHORTLY = "0.0002"


@pytest.fixture(scope="module")
def backend() -> str:
    """The other one tells of one connection at a time: nobody waits behind it, so nothing is held."""
    return "epoll"


@pytest.fixture
def server(serve: Serve) -> Server:
    return serve("busy:app")


def _ready(server: Server, count: int) -> list[Client]:
    """Connections that have had a request."""
    clients = [server.connect() for _ in range(count)]
    for client in clients:
        client.get("/?seconds=0")
    return clients


@linux
@pytest.mark.only_ours("gunicorn's holds nothing")
@pytest.mark.parametrize("path", ["/", "/chunks"])
def test_responses_are_held_while_others_are_ready(server: Server, path: str) -> None:
    """And come, whole, to clients that go and to those that stay. Not on a machine that is too busy, so: in the end."""
    clients = _ready(server, 20)

    def some_are_held() -> bool:
        with server.stopped():
            for client in clients:
                client.send(request(f"{path}?seconds={SHORTLY}"))
        bodies = [client.read_response().body for client in clients]
        assert set(bodies) <= {b"held", b"sent"}
        return bodies.count(b"held") > 10

    wait_until(some_are_held, "responses that are held", 60)
    for client in clients[::2]:
        client.send(request(f"{path}?seconds={SHORTLY}", "Connection: close"))
    for client in clients[::2]:
        assert client.read_response().status == 200
        client.assert_closed()
        assert not client.reset


@linux
def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    clients = _ready(server, 3)
    count = 20
    with server.stopped():
        for client in clients:
            client.send(b"".join(request(f"{path}?seconds={SHORTLY}") for path in ("/", "/chunks") * (count // 2)))
    for client in clients:
        for number in range(count):
            response = client.read_response()
            assert (response.header("Content-Length") is None) == bool(number % 2)
            assert len(response.body) == 4


@linux
@pytest.mark.only_ours("gunicorn's holds nothing")
def test_who_is_held_does_not_wait_for_a_long_request(server: Server) -> None:
    """The kernel sends it by itself while an application keeps the worker busy."""
    clients = _ready(server, 13)
    middle = len(clients) // 2
    long = clients.pop(middle)

    def some_were_held() -> bool:
        with server.stopped():
            for number, client in enumerate(clients):
                if number == middle:
                    long.send(request("/?seconds=2"))
                client.send(request(f"/?seconds={SHORTLY}"))
        early: dict[Client, bytes] = {}
        while True:
            with_news = [client for client in clients if select.select([client.sock], [], [], 0)[0]]
            if select.select([long.sock], [], [], 0.02)[0]:
                break  # What was new before that came before it.
            early |= {client: client.read_response().body for client in with_news}
        assert len(early) == middle
        for client in {long, *clients} - early.keys():
            client.read_response()
        return b"held" in early.values()

    wait_until(some_were_held, "responses that were held", 60)

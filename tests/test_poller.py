"""Both pollers over socket pairs, on a real hub of gevent's."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from keepalive_worker import poller as module
from keepalive_worker.poller import (
    BACKEND_VARIABLE,
    ERROR,
    HANGUP,
    INPUT,
    PEER_CLOSED,
    READABLE,
    WRITABLE,
    EpollPoller,
    HubPoller,
    backend_name,
    make_poller,
)

needs_epoll = pytest.mark.skipif(module._epoll is None, reason="no epoll on this system")

#: For what only this one needs.
portable = pytest.mark.parametrize("bench", ["portable"], indirect=True)

#: Seconds within which a local event has surely come.
SOON = 5.0
#: Seconds after which an event that has not come will not come.
A_WHILE = 0.02


class Bench:
    """A poller, and a way to wait for what it reports."""

    def __init__(self, name: str) -> None:
        self.hub = gevent.get_hub()
        self.calls = 0
        self.poller: Any = (EpollPoller if name == "epoll" else HubPoller)(self.hub, self._on_ready)
        self.has_edges = self.poller.arm is None
        self._sockets: list[socket.socket] = []

    def _on_ready(self) -> None:
        self.calls += 1

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Our end, non-blocking, and the client's."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._sockets += [ours, theirs]
        return ours, theirs

    def added(self) -> tuple[socket.socket, socket.socket]:
        """As :meth:`pair`, already reported by the poller."""
        ours, theirs = self.pair()
        self.poller.add(ours.fileno())
        return ours, theirs

    def events(self, least: int = 1) -> dict[int, int]:
        """What is reported, for at least so many descriptors."""
        seen: dict[int, int] = {}
        with gevent.Timeout(SOON):
            while len(seen) < least:
                calls = self.calls
                while self.calls == calls:
                    gevent.sleep(0.001)
                for fd, event in self.poller.poll():
                    seen[fd] = seen.get(fd, 0) | event
        return seen

    def silence(self) -> None:
        """Nothing is reported for a while, and nothing was."""
        gevent.sleep(A_WHILE)
        assert self.poller.poll() == []

    def read_all(self, sock: socket.socket) -> bytes:
        """Read until the kernel has no more, and arm, as the event loop does."""
        data = b""
        while True:
            try:
                more = sock.recv(65536)
            except BlockingIOError:
                break
            data += more
            if not more:
                return data
        if self.poller.arm is not None:
            self.poller.arm(sock.fileno())
        return data

    def close(self) -> None:
        """Give all back."""
        self.poller.close()
        for sock in self._sockets:
            sock.close()


@pytest.fixture(params=[pytest.param("epoll", marks=needs_epoll), "portable"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    bench = Bench(request.param)
    try:
        yield bench
    finally:
        bench.close()


def fill(sock: socket.socket) -> int:
    """Send until the kernel takes no more; the number of bytes."""
    sent = 0
    while True:
        try:
            sent += sock.send(bytes(65536))
        except BlockingIOError:
            return sent


def empty(sock: socket.socket, count: int) -> None:
    """Receive *count* bytes."""
    while count:
        count -= len(sock.recv(count))


def test_nothing_is_reported_of_a_silent_connection(bench: Bench) -> None:
    bench.added()
    bench.silence()


def test_bytes_are_reported(bench: Bench) -> None:
    ours, theirs = bench.added()
    theirs.send(b"x")
    assert bench.events() == {ours.fileno(): READABLE}
    assert bench.read_all(ours) == b"x"


def test_bytes_that_came_before_it_was_added_are_reported(bench: Bench) -> None:
    ours, theirs = bench.pair()
    theirs.send(b"early")
    bench.poller.add(ours.fileno())
    assert bench.events() == {ours.fileno(): READABLE}


def test_what_is_not_read_is_not_reported_again(bench: Bench) -> None:
    ours, theirs = bench.added()
    theirs.send(b"x")
    bench.events()
    bench.silence()
    assert bench.read_all(ours) == b"x"


def test_each_arrival_after_a_full_read_is_reported(bench: Bench) -> None:
    ours, theirs = bench.added()
    for number in range(5):
        theirs.send(b"%d" % number)
        assert ours.fileno() in bench.events()
        assert bench.read_all(ours) == b"%d" % number
    bench.silence()


def test_what_came_between_the_report_and_the_read_is_read_once(bench: Bench) -> None:
    ours, theirs = bench.added()
    theirs.send(b"one")
    bench.events()
    theirs.send(b"two")
    assert bench.read_all(ours) == b"onetwo"
    # An edge may be reported for what is read already; it finds nothing.
    gevent.sleep(A_WHILE)
    for fd, _ in bench.poller.poll():
        assert fd == ours.fileno()
    assert bench.read_all(ours) == b""
    theirs.send(b"three")
    assert ours.fileno() in bench.events()


def test_the_end_of_the_stream_is_reported(bench: Bench) -> None:
    ours, theirs = bench.added()
    theirs.close()
    events = bench.events()[ours.fileno()]
    assert events & INPUT
    if bench.has_edges:
        assert events & PEER_CLOSED
    assert ours.recv(1) == b""


def test_a_half_closed_peer_is_reported_with_what_it_sent(bench: Bench) -> None:
    ours, theirs = bench.added()
    theirs.send(b"last words")
    theirs.shutdown(socket.SHUT_WR)
    events = bench.events()[ours.fileno()]
    assert events & READABLE
    if bench.has_edges:
        assert events != READABLE, "the reader must know that there is more to see after a short read"
    assert ours.recv(100) == b"last words"
    assert ours.recv(100) == b""


def test_a_reset_is_reported(bench: Bench) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    ours, _ = server.accept()
    ours.setblocking(False)
    with server, client, ours:
        bench.poller.add(ours.fileno())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        client.close()
        events = bench.events()[ours.fileno()]
        assert events & INPUT
        if bench.has_edges:
            assert events & (ERROR | HANGUP)
        with pytest.raises(ConnectionResetError):
            ours.recv(1)
        bench.poller.remove(ours.fileno())


def test_many_at_once(bench: Bench) -> None:
    pairs = [bench.added() for _ in range(30)]
    for _, theirs in pairs:
        theirs.send(b"x")
    assert bench.events(30) == {ours.fileno(): READABLE for ours, _ in pairs}
    bench.silence()


@needs_epoll
def test_more_than_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH", 4)
    bench = Bench("epoll")
    try:
        pairs = [bench.added() for _ in range(10)]
        for _, theirs in pairs:
            theirs.send(b"x")
        gevent.sleep(A_WHILE)
        sizes = [len(bench.poller.poll()) for _ in range(4)]
        assert sizes == [4, 4, 2, 0], "each poll gives what was not given yet"
    finally:
        bench.close()


def test_room_to_send_is_reported_when_asked_for(bench: Bench) -> None:
    ours, theirs = bench.added()
    sent = fill(ours)
    bench.silence()
    bench.poller.watch_writable(ours.fileno())
    bench.silence()
    empty(theirs, sent)
    assert bench.events()[ours.fileno()] & WRITABLE


def test_room_to_send_that_is_there_already_is_reported(bench: Bench) -> None:
    # The client may have made room between the failed send and the call.
    ours, _ = bench.added()
    bench.poller.watch_writable(ours.fileno())
    assert bench.events()[ours.fileno()] & WRITABLE


def test_room_is_reported_for_each_time_it_is_asked_for(bench: Bench) -> None:
    ours, theirs = bench.added()
    for _ in range(3):
        sent = fill(ours)
        bench.poller.watch_writable(ours.fileno())
        empty(theirs, sent)
        assert bench.events()[ours.fileno()] & WRITABLE
        bench.silence()


def test_watching_for_room_twice_is_as_once(bench: Bench) -> None:
    ours, theirs = bench.added()
    sent = fill(ours)
    bench.poller.watch_writable(ours.fileno())
    bench.poller.watch_writable(ours.fileno())
    empty(theirs, sent)
    assert bench.events()[ours.fileno()] & WRITABLE
    bench.silence()


def test_bytes_are_reported_while_it_waits_for_room(bench: Bench) -> None:
    ours, theirs = bench.added()
    fill(ours)
    bench.poller.watch_writable(ours.fileno())
    theirs.send(b"x")
    assert bench.events()[ours.fileno()] & READABLE
    assert bench.read_all(ours) == b"x"


def test_bytes_and_room_that_come_together_are_both_reported(bench: Bench) -> None:
    ours, theirs = bench.added()
    sent = fill(ours)
    bench.poller.watch_writable(ours.fileno())
    theirs.send(b"x")
    gevent.sleep(A_WHILE)
    empty(theirs, sent)
    gevent.sleep(A_WHILE)
    assert bench.poller.poll() == [(ours.fileno(), READABLE | WRITABLE)]


def test_the_end_of_a_peer_that_does_not_read_is_reported(bench: Bench) -> None:
    ours, theirs = bench.added()
    fill(ours)
    bench.poller.watch_writable(ours.fileno())
    theirs.close()
    assert bench.events()[ours.fileno()] & (WRITABLE | ERROR | HANGUP)


def test_a_removed_descriptor_is_silent(bench: Bench) -> None:
    ours, theirs = bench.added()
    bench.poller.watch_writable(ours.fileno())
    bench.events()
    bench.poller.remove(ours.fileno())
    theirs.send(b"x")
    bench.silence()
    assert ours.recv(1) == b"x"


def test_an_event_that_was_not_fetched_yet_goes_with_its_descriptor(bench: Bench) -> None:
    ours, theirs = bench.added()
    theirs.send(b"x")
    gevent.sleep(A_WHILE)
    assert bench.calls
    bench.poller.remove(ours.fileno())
    assert bench.poller.poll() == []


def test_a_descriptor_that_another_process_holds_is_silent_when_removed(bench: Bench) -> None:
    # What a fork of the application does: closing alone would not end the registration.
    ours, theirs = bench.added()
    held = os.dup(ours.fileno())
    try:
        bench.poller.remove(ours.fileno())
        ours.close()
        theirs.send(b"x")
        bench.silence()
    finally:
        os.close(held)


def test_a_descriptor_number_can_be_used_again(bench: Bench) -> None:
    for _ in range(3):
        ours, theirs = bench.added()
        fd = ours.fileno()
        theirs.send(b"for the old one")
        gevent.sleep(A_WHILE)
        bench.poller.remove(fd)
        ours.close()
        new, new_peer = bench.pair()
        if new.fileno() != fd:
            os.dup2(new.fileno(), fd)
        bench.poller.add(fd)
        bench.silence()
        new_peer.send(b"for the new one")
        assert bench.events() == {fd: READABLE}
        assert os.read(fd, 100) == b"for the new one"
        bench.poller.remove(fd)
        if new.fileno() != fd:
            os.close(fd)


def test_it_can_be_added_again_after_it_was_removed(bench: Bench) -> None:
    # A WebSocket library takes the connection over and gives it back.
    ours, theirs = bench.added()
    bench.poller.watch_writable(ours.fileno())
    bench.events()
    bench.poller.remove(ours.fileno())
    theirs.send(b"x")
    bench.poller.add(ours.fileno())
    assert bench.events() == {ours.fileno(): READABLE}


def test_a_listener_is_reported_for_as_long_as_somebody_waits(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        bench.poller.add_listener(server.fileno())
        bench.silence()
        clients = [socket.create_connection(server.getsockname()) for _ in range(3)]
        for _ in clients:
            assert bench.events() == {server.fileno(): READABLE}
            server.accept()[0].close()
        bench.silence()
        bench.poller.remove(server.fileno())
        clients.append(socket.create_connection(server.getsockname()))
        bench.silence()
        bench.poller.add_listener(server.fileno())
        assert bench.events() == {server.fileno(): READABLE}
        for client in clients:
            client.close()
        bench.poller.remove(server.fileno())


@portable
def test_arming_what_is_armed_is_nothing(bench: Bench) -> None:
    ours, theirs = bench.added()
    for _ in range(3):
        bench.poller.arm(ours.fileno())
    theirs.send(b"x")
    assert bench.events() == {ours.fileno(): READABLE}
    bench.silence()


@portable
def test_arming_with_bytes_unread_reports_them_again(bench: Bench) -> None:
    ours, theirs = bench.added()
    theirs.send(b"x")
    bench.events()
    bench.poller.arm(ours.fileno())
    assert bench.events() == {ours.fileno(): READABLE}


def test_after_close_nothing_is_reported(bench: Bench) -> None:
    _, theirs = bench.added()
    bench.poller.close()
    calls = bench.calls
    theirs.send(b"x")
    gevent.sleep(A_WHILE)
    assert bench.calls == calls
    bench.poller = HubPoller(bench.hub, bench._on_ready)  # for the fixture to close


# --------------------------------------------------------------------- which one


def test_the_best_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BACKEND_VARIABLE, raising=False)
    monkeypatch.setattr(module, "_epoll", object())
    assert backend_name() == "epoll"
    monkeypatch.setattr(module, "_epoll", None)
    assert backend_name() == "portable"


@pytest.mark.parametrize(
    ("name", "kind"), [pytest.param("epoll", EpollPoller, marks=needs_epoll), ("portable", HubPoller)]
)
def test_the_variable_decides(monkeypatch: pytest.MonkeyPatch, name: str, kind: type) -> None:
    monkeypatch.setenv(BACKEND_VARIABLE, name)
    made = make_poller(gevent.get_hub(), lambda: None)
    assert type(made) is kind
    made.close()


def test_other_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BACKEND_VARIABLE, "kqueue")
    with pytest.raises(ValueError, match=r"KEEPALIVE_WORKER_BACKEND=kqueue.*epoll.*portable"):
        backend_name()


def test_epoll_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BACKEND_VARIABLE, "epoll")
    monkeypatch.setattr(module, "_epoll", None)
    with pytest.raises(ValueError, match="no epoll"):
        backend_name()

"""The event loop under a fake hub, clock, poller and kernel, with everything that they may do to it.

The kernel here is as unkind as a real one: it gives out the lowest free descriptor, so numbers are
used again at once; events come late, twice, or after the connection they were for is gone; time
passes while the loop works. What must hold whatever happens is in :meth:`World.check` and in what
the fake application and kernel assert on the way.
"""

from __future__ import annotations

import errno
import gc
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import inf
from typing import Any

import gevent
import greenlet
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from keepalive_worker import loop as module
from keepalive_worker import poller as poller_module
from keepalive_worker.connection import (
    CLOSED,
    HANDLING,
    IDLE,
    LAST_PARKED,
    LINGERING,
    NEW,
    READING,
    TRANSITIONS,
    WRITING,
    Connection,
    Reason,
)
from keepalive_worker.counters import Counters
from keepalive_worker.listeners import Listener
from keepalive_worker.loop import ACCEPT_RETRY, ACCEPTS, LINGER, RECEIVE, SETTLED, EventLoop, ending_of
from keepalive_worker.poller import ERROR, HANGUP, INPUT, PEER_CLOSED, READABLE, WRITABLE
from keepalive_worker.settings import Options

#: How late a deadline may be when nothing else is going on.
LATE = 0.25


class LateError(OSError):
    """What a wait is ended with."""


class Client:
    """One client, its end of a connection and the kernel's buffers between."""

    def __init__(self, host: str) -> None:
        self.host = host
        #: All that it ever sent, and how much of that the server has taken in.
        self.sent = b""
        self.read = 0
        self.finished = False
        self.error = 0
        #: Whether the kernel takes more to send to it.
        self.room = True
        #: What the server did.
        self.got_fin = False
        self.got_reset = False
        self.closed = False
        self.fd = -1
        self.conn: Any = None
        self.lines = 0

    @property
    def unread(self) -> bytes:
        """What the server has not read."""
        return self.sent[self.read :]

    @property
    def readable(self) -> bool:
        """Whether reading would not block."""
        return bool(self.unread or self.finished or self.error)


class Kernel:
    """Descriptors, a backlog, and what stands in for the module ``os`` in the loop."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.open: dict[int, Client] = {}
        self.backlog: list[Client] = []
        self.accept_errors: list[int] = []
        self.refusals = 0

    def read(self, fd: int, size: int) -> bytes:
        """read(2)."""
        client = self.at(fd)
        if client.unread:
            data = client.unread[:size]
            client.read += len(data)
            return data
        if client.error:
            raise OSError(client.error, os.strerror(client.error))
        if client.finished:
            return b""
        raise BlockingIOError(errno.EAGAIN, "no more")

    def close(self, fd: int) -> None:
        """close(2)."""
        client = self.at(fd)
        del self.open[fd]
        client.closed = True

    def at(self, fd: int) -> Client:
        """Who is at the other end of a descriptor, which must be open."""
        assert fd in self.open, f"descriptor {fd} is not open"
        return self.open[fd]

    def accept(self) -> Client:
        """accept(2)."""
        if self.accept_errors:
            number = self.accept_errors.pop(0)
            raise OSError(number, os.strerror(number))
        if not self.backlog:
            raise BlockingIOError(errno.EAGAIN, "nobody")
        if len(self.open) >= self.most:
            self.refusals += 1
            raise OSError(errno.EMFILE, "Too many open files")
        client = self.backlog.pop(0)
        client.fd = next(fd for fd in range(10, 10_000) if fd not in self.open)
        self.open[client.fd] = client
        return client


class Numbered(Connection):
    """A connection whose place in a set does not depend on where it lies in memory."""

    __slots__ = ()

    def __hash__(self) -> int:
        return self.id


class FakeListener(Listener):
    """A listener on the fake kernel."""

    fd = 3
    tls_context = None
    is_own = False
    family = socket.AF_INET

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.closed = False

    def accept(self) -> tuple[int, str, int]:
        """As the real one."""
        assert not self.closed
        client = self.kernel.accept()
        return client.fd, client.host, 50_000

    def heads_for(self, host: str) -> Any:
        """Nobody parses here."""
        return None

    def half_close(self, conn: Connection) -> None:
        """shutdown(2)."""
        client = self.kernel.at(conn.fd)
        if client.error:
            raise OSError(errno.ENOTCONN, "gone")
        assert not client.got_fin, "FIN is sent once"
        client.got_fin = True

    def reset_on_close(self, conn: Connection) -> None:
        """setsockopt(2)."""
        self.kernel.at(conn.fd).got_reset = True

    def close(self) -> None:
        """As the real one."""
        self.closed = True


class FakePoller:
    """Both kinds of poller: with edges from the kernel, or with levels that are armed."""

    def __init__(self, kernel: Kernel, armed: bool) -> None:
        self.kernel = kernel
        self.registered: set[int] = set()
        self.writable: set[int] = set()
        self.edges: set[int] = set()
        self.ready: Callable[[], None] = lambda: None
        self.arm: Callable[[int], None] | None = self._arm if armed else None
        self.armed: set[int] = set()
        self.closed = False

    def signal(self, fd: int, event: int = READABLE) -> None:
        """The kernel has something to tell of a descriptor."""
        if fd not in self.registered:
            return
        if self.arm is None or fd == FakeListener.fd:
            self.edges.add(fd)
        elif event & INPUT and fd in self.armed:
            self.armed.discard(fd)
            self.edges.add(fd)
        elif event & WRITABLE and fd in self.writable:
            self.edges.add(fd)

    @property
    def has_news(self) -> bool:
        """Whether the hub would call the loop."""
        return bool(self.edges) or (FakeListener.fd in self.registered and bool(self.kernel.backlog))

    def poll(self) -> list[tuple[int, int]]:
        """What became ready, as the kernel sees it now."""
        if FakeListener.fd in self.registered and self.kernel.backlog:
            self.edges.add(FakeListener.fd)  # listeners are watched for their level
        events = []
        for fd in sorted(self.edges):
            if fd == FakeListener.fd:
                events.append((fd, READABLE))
                continue
            client = self.kernel.at(fd)
            bits = READABLE if client.readable else 0
            if self.arm is None:
                bits |= PEER_CLOSED if client.finished else 0
                bits |= ERROR | HANGUP if client.error else 0
            if fd in self.writable and client.room:
                bits |= WRITABLE
                if self.arm is not None:
                    self.writable.discard(fd)
            events.append((fd, bits or READABLE))
        self.edges.clear()
        return events

    def _arm(self, fd: int) -> None:
        assert fd in self.registered, "arming what is not registered"
        if self.kernel.at(fd).readable:
            self.edges.add(fd)
        else:
            self.armed.add(fd)

    def add(self, fd: int) -> None:
        """As the real ones."""
        assert fd not in self.registered, "registered twice"
        self.registered.add(fd)
        self.armed.add(fd)
        if self.kernel.at(fd).readable:
            self.signal(fd)

    def add_listener(self, fd: int) -> None:
        """As the real ones."""
        assert fd not in self.registered, "registered twice"
        self.registered.add(fd)

    def watch_writable(self, fd: int) -> None:
        """As the real ones."""
        assert fd in self.registered
        self.writable.add(fd)
        if self.kernel.at(fd).room:
            self.edges.add(fd)

    def remove(self, fd: int) -> None:
        """As the real ones."""
        assert fd in self.registered, "removed twice"
        self.registered.discard(fd)
        for each in (self.writable, self.edges, self.armed):
            each.discard(fd)

    def close(self) -> None:
        """As the real ones."""
        self.closed = True


class FakeTimer:
    """One timer of the fake hub."""

    def __init__(self, hub: FakeHub, after: float) -> None:
        assert after >= 0
        self.hub = hub
        self.after = after
        self.at = inf
        self.call: Callable[[], None] = lambda: None
        self.active = False

    def start(self, call: Callable[[], None], update: bool = False) -> None:
        """Call it when the time is up; what is left of a turn is taken up in the next one."""
        assert not self.active, "gevent refuses to start a timer twice"
        self.active = True
        self.at = self.hub.now + self.after
        self.call = call
        if self.after or call.__name__ != "_turn":
            self.hub.timers.append(self)
        else:
            self.hub.callbacks.append((self._next_turn, ()))

    def _next_turn(self) -> None:
        if self.active:
            self.active = False
            self.call()

    def stop(self) -> None:
        """Do not."""
        self.active = False
        if self in self.hub.timers:
            self.hub.timers.remove(self)

    close = stop

    def fire(self) -> None:
        """The time is up."""
        self.stop()
        self.call()


class FakeHub:
    """gevent's hub and its loop, and the clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        #: Seconds that pass with every look at the clock.
        self.tick = 0.0
        self.timers: list[FakeTimer] = []
        self.callbacks: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.errors: list[BaseException] = []
        self.loop = self

    def clock(self) -> float:
        """Monotonic seconds."""
        self.now += self.tick
        return self.now

    def timer(self, after: float) -> FakeTimer:
        """As the loop's."""
        return FakeTimer(self, after)

    def run_callback(self, function: Callable[..., None], *args: Any) -> None:
        """As the loop's."""
        self.callbacks.append((function, args))

    def handle_error(self, context: Any, kind: Any, error: BaseException, traceback: Any) -> None:
        """What the loop did not expect."""
        self.errors.append(error)

    def switch(self) -> Any:
        """From a greenlet to the hub, which is the greenlet that made it."""
        parent = greenlet.getcurrent().parent
        assert parent is not None
        return parent.switch()


class World:
    """An event loop in a world where all the rest is ours.

    The application understands lines. A greenlet that got one waits for a command of the test:
    see :meth:`command`.
    """

    CONNECTION: type[Connection] = Numbered
    OPTIONS = Options(keepalive=2.0, keepalive_grace=1.0, keepalive_lifetime=0.0, header_timeout=5.0)

    def __init__(self, *, limit: int = 1000, descriptors: int = 10_000, armed: bool = False, **options: Any) -> None:
        self.options = replace(self.OPTIONS, **options)
        self.limit = limit
        self.kernel = Kernel(descriptors)
        self.hub = FakeHub()
        self.poller = FakePoller(self.kernel, armed)
        self.counters = Counters()
        self.listener = FakeListener(self.kernel)
        hub: Any = self.hub
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(poller_module, "make_poller", self._make_poller)
            self.loop = EventLoop(hub, self.options, limit, self.counters, self.hub.clock)
        self.loop.begin = self._begin
        self.loop.head_is_late = self._head_is_late
        self.loop.over_peer_limit = lambda conn: self.loop.close(conn, Reason.PEER_LIMIT, linger=True)
        self.warnings: list[str] = []
        self.loop.warn = self.warnings.append
        self.loop.on_opened = self._opened
        self.loop.on_closed = self._closed
        #: Every connection that ever was, and why it ended.
        self.clients: dict[Connection, Client] = {}
        self.endings: dict[Connection, Reason] = {}
        #: Greenlets that wait for a command, and those that wait for their client.
        self.busy: dict[Connection, Any] = {}
        self.waiting: dict[Connection, float] = {}
        self.evicted: list[Connection] = []
        self.served: list[bytes] = []
        self.loop.listen(self.listener)

    def use(self, patch: pytest.MonkeyPatch) -> None:
        """Have the loop's system calls go to the fake kernel."""
        patch.setattr(module, "os", self.kernel)
        patch.setattr(module, "_close", self.kernel.close)
        patch.setattr(module, "Connection", self.CONNECTION)

    def _make_poller(self, hub: Any, ready: Callable[[], None]) -> FakePoller:
        self.poller.ready = ready
        return self.poller

    # -------------------------------------------------------------- the application

    def _opened(self, conn: Connection) -> None:
        client = self.kernel.at(conn.fd)
        client.conn = conn
        assert conn not in self.clients
        if self.loop.open > self.limit:
            # Those who were to give way turned out to have sent something.
            for other, peer in self.clients.items():
                assert other in self.endings or other.state not in (NEW, IDLE) or peer.readable, "one too many"
        self.clients[conn] = client

    def _begin(self, conn: Connection, data: bytes) -> None:
        assert conn not in self.endings, "a connection that has ended runs"
        assert conn.state <= LAST_PARKED
        client = self.clients[conn]
        assert self.kernel.at(conn.fd) is client, "another client's descriptor"
        assert conn.buffer is None
        taken = client.sent[: client.read]
        assert data
        assert taken.endswith(data), "what came on another connection, or not in order"
        line, newline, rest = data.partition(b"\n")
        if not newline:
            self.loop.wait_for_head(conn, data)
            return
        assert taken[: -len(data)].count(b"\n") == client.lines, "a request is served once, in order"
        client.lines += 1
        self.served.append(line)
        if conn.state != READING:
            conn.started = self.hub.clock()
        conn.state = HANDLING
        conn.requests += 1
        conn.buffer = rest or None
        greenlet.greenlet(self._serve).switch(conn)

    def _serve(self, conn: Connection) -> None:
        this = greenlet.getcurrent()
        while True:
            self.busy[conn] = this
            name, *args = self.hub.switch()
            del self.busy[conn]
            assert conn not in self.endings or name == "end"
            if name == "end":
                return
            if name == "park":
                self.loop.park(conn)
                return
            if name == "close":
                self.loop.close(conn, *args)
                return
            try:
                (self._read if name == "read" else self._write)(conn, *args)
            except LateError:
                assert self.hub.now >= self.waiting.pop(conn), "a wait was ended early"
                self.loop.close(conn, Reason.BODY_TIMEOUT, linger=True)
                return
            except EOFError:
                self.loop.close(conn, Reason.CLIENT)
                return
            except OSError:
                assert conn in self.endings, "a wait was ended, and nothing had happened"
                del self.waiting[conn]
                return

    def _read(self, conn: Connection, seconds: float) -> None:
        assert conn.buffer is None
        while True:
            try:
                data = self.kernel.read(conn.fd, RECEIVE)
            except BlockingIOError:
                conn.unseen = 0
                self._wait(conn, self.loop.wait_readable, seconds)
                continue
            except OSError:
                raise EOFError from None
            if not data:
                raise EOFError
            # What it reads is its body; whole lines of it are not served as requests.
            self.clients[conn].lines += data.count(b"\n")
            return

    def _write(self, conn: Connection, seconds: float) -> None:
        while not self.clients[conn].room:
            if self.clients[conn].error:
                raise EOFError
            self._wait(conn, self.loop.wait_writable, seconds)

    def _wait(self, conn: Connection, wait: Callable[..., None], seconds: float) -> None:
        deadline = self.hub.now + seconds
        self.waiting[conn] = deadline
        wait(conn, deadline, LateError)
        del self.waiting[conn]
        assert conn not in self.endings, "a connection that has ended runs"
        assert conn.state == HANDLING

    def _head_is_late(self, conn: Connection) -> None:
        assert conn.state == READING
        assert self.hub.now >= conn.started + self.options.header_timeout, "a head was given up early"
        self.loop.close(conn, Reason.HEADER_TIMEOUT, linger=True)

    def _closed(self, conn: Connection, reason: Reason) -> None:
        assert conn not in self.endings, "closed twice"
        client = self.clients[conn]
        now = self.hub.now
        if reason in (Reason.IDLE_TIMEOUT, Reason.EVICTED):
            assert conn.state in (NEW, IDLE)
            assert not client.unread, "a request that had come was lost"
            assert not client.finished
        if reason is Reason.IDLE_TIMEOUT:
            assert now >= self.deadline(conn), "an idle connection was closed early"
        if reason is Reason.EVICTED:
            self.evicted.append(conn)
            for other, peer in self.clients.items():
                idle = other not in self.endings and other.state in (NEW, IDLE) and other.buffer is None
                if idle and not peer.readable:
                    assert conn.since <= other.since, "another one was idle for longer"
        self.endings[conn] = reason

    def deadline(self, conn: Connection) -> float:
        """When a connection must go, by the documentation; infinite while the application has it."""
        options = self.options
        idle = conn.since + conn.timeout + options.keepalive_grace
        if conn.state == IDLE:
            return idle
        if conn.state == NEW:
            return max(idle, conn.accepted + options.header_timeout)
        if conn.state == READING and options.header_timeout:
            return conn.started + options.header_timeout
        if conn.state == LINGERING:
            return conn.since + LINGER
        return self.waiting.get(conn, inf) if conn.state != CLOSED else inf

    # ------------------------------------------------------------- what happens to it

    def connect(self, host: str = "192.0.2.1") -> Client:
        """A client connects."""
        client = Client(host)
        self.kernel.backlog.append(client)
        return client

    def accepted(self, *hosts: str) -> list[Client]:
        """Clients that are accepted one after the other, in time."""
        made = []
        for host in hosts:
            made.append(self.connect(host))
            self.settle()
            self.advance(0.001)
        return made

    def idle(self, count: int) -> list[Client]:
        """Clients that had a request each, the first of them idle for longest."""
        made = self.accepted(*["192.0.2.1"] * count)
        for client in made:
            self.request(client)
            self.command(client, "park")
            self.advance(0.001)
        self.advance(SETTLED)
        return made

    def send(self, client: Client, data: bytes) -> None:
        """Bytes arrive."""
        client.sent += data
        self.poller.signal(client.fd)

    def finish(self, client: Client) -> None:
        """A FIN arrives."""
        client.finished = True
        self.poller.signal(client.fd)

    def fail(self, client: Client, number: int) -> None:
        """A reset arrives, or the kernel gives the peer up."""
        client.error = number
        client.room = True
        self.poller.signal(client.fd, READABLE | WRITABLE)

    def make_room(self, client: Client) -> None:
        """The client takes what was sent."""
        client.room = True
        self.poller.signal(client.fd, WRITABLE)

    def request(self, client: Client) -> None:
        """A whole request comes, and the application has it."""
        self.send(client, b"request\n")
        self.settle()
        assert client.conn in self.busy

    def command(self, client: Client, *command: Any) -> None:
        """Have the application that is busy with this client do something.

        ``park``; ``close`` with a reason and whether to linger; ``read`` and ``write`` with the
        seconds it may take.
        """
        self.busy[client.conn].switch(command)
        self.settle()

    def turn(self) -> None:
        """One turn of the hub: the callbacks that are due, then the poller."""
        callbacks, self.hub.callbacks = self.hub.callbacks, []
        for function, args in callbacks:
            function(*args)
        if self.poller.has_news:
            self.poller.ready()

    def settle(self) -> None:
        """Turns until nothing is left to do."""
        for _ in range(1000):
            if not self.hub.callbacks and not self.poller.has_news:
                break
            self.turn()
        else:
            raise AssertionError("it spins")
        self.check()
        for conn, client in self.clients.items():
            if conn.state in (NEW, READING, IDLE, LINGERING):
                assert not client.readable, f"{conn!r} sleeps although there is something to read"
                assert conn.buffer is None or conn.state == READING, "a pipelined request sleeps"
            if conn in self.waiting and conn.reader is not None:
                assert not client.readable, "a greenlet sleeps although there is something to read"
            if conn in self.waiting and conn.writer is not None:
                assert not client.room, "a greenlet sleeps although there is room"

        pausing = any(timer.call == self.loop._listen for timer in self.hub.timers)
        if self.kernel.backlog and not pausing and not self.listener.closed:
            assert self.loop.open >= self.limit, "new ones wait although there is room"
            if self.options.evict_idle:
                idle = [conn for conn in self.loop.connections() if conn.state in (NEW, IDLE)]
                assert idle == [], "new ones wait although one could give way"

    def advance(self, seconds: float) -> None:
        """Time goes by, and nothing is late for it."""
        end = self.hub.now + seconds
        self._fire(end)
        self.hub.now = max(self.hub.now, end)
        for conn in self.clients:
            assert self.deadline(conn) > self.hub.now - LATE, f"{conn!r} should be gone"

    def stall(self, seconds: float) -> None:
        """Time goes by while something else keeps the hub busy; then it catches up."""
        self.hub.now += seconds
        self._fire(self.hub.now)

    def _fire(self, end: float) -> None:
        while True:
            timer = min(self.hub.timers, key=lambda timer: timer.at, default=None)
            if timer is None or timer.at > end:
                return
            self.hub.now = max(self.hub.now, timer.at)
            timer.fire()
            self.settle()

    # --------------------------------------------------------------- what must hold

    def check(self) -> None:
        """What holds between any two turns."""
        for error in self.hub.errors:
            raise error
        loop, counters = self.loop, self.counters
        open_now = [conn for conn in self.clients if conn not in self.endings]
        assert counters.accepted == len(self.clients)
        assert loop.open == len(open_now)
        assert counters.accepted == loop.open + sum(counters.closed.values())
        assert {reason: count for reason, count in counters.closed.items() if count} == self._counted()
        assert set(loop.connections()) == set(open_now)
        assert all(conn.state < LINGERING for conn in open_now)
        assert all(conn.state >= LINGERING for conn in self.endings)
        assert loop.lingering == sum(conn.state == LINGERING for conn in self.clients)
        held = {conn.fd: conn for conn in self.clients if conn.state != CLOSED}
        assert {fd: client.conn for fd, client in self.kernel.open.items()} == held, "a descriptor leaks"
        assert self.poller.registered - {FakeListener.fd} == set(held)
        for fd, conn in enumerate(loop._table):
            assert conn is held.get(fd) or fd == FakeListener.fd
        for conn in self.clients:
            if conn.state == CLOSED:
                assert conn.slot == 0, "a closed connection is still in the wheel"
                assert conn.buffer is None
            elif conn.state <= LAST_PARKED and self.deadline(conn) < inf:
                assert conn.slot, "a parked connection has no deadline"
        for host in {client.host for client in self.clients.values()}:
            count = sum(conn.host == host for conn in open_now)
            assert loop._per_peer.get(host, 0) == (count if self.options.max_peer_connections else 0)
        if self.options.max_peer_connections:
            assert set(loop._per_peer) == {conn.host for conn in open_now}

    def _counted(self) -> dict[Reason, int]:
        reasons = list(self.endings.values())
        return {reason: reasons.count(reason) for reason in reasons}

    def end(self) -> None:
        """Everything is given back."""
        self.hub.tick = 0.0
        self.settle()
        self.loop.stop_accepting()
        self.loop.end_all()
        self.settle()
        self.advance(LINGER + LATE)
        for conn, worker in list(self.busy.items()):
            assert conn in self.endings
            worker.switch(("end",))
        for conn in list(self.waiting):
            # Its connection was taken away; a real worker kills the greenlet.
            wait = conn.reader or conn.writer
            assert wait is not None
            self.waiting[conn] = -inf
            wait.expire()
        self.loop.shut_down()
        self.check()
        assert self.listener.closed
        assert self.poller.closed
        assert not self.kernel.open
        assert not self.poller.registered
        assert self.loop.open == self.loop.lingering == 0
        assert self.loop._wheel.due(inf, 10) == []
        assert not self.hub.timers


@contextmanager
def world(**options: Any) -> Iterator[World]:
    """A world, ended and checked."""
    made = World(**options)
    with pytest.MonkeyPatch.context() as patch:
        made.use(patch)
        yield made
        made.end()


both = pytest.mark.parametrize("armed", [False, True], ids=["edges", "armed"])


# --------------------------------------------------------------------- the machine


HOSTS = ["192.0.2.1", "192.0.2.2", "2001:db8::1"]

DATA = {
    "part": b"part",
    "whole": b"whole\n",
    "two": b"one\ntwo\n",
    "one and a part": b"one\npart",
    "empty": b"\n",
    "as much as is read at a time": b"x" * RECEIVE,
    "a bit more": b"x" * RECEIVE + b"\n",
}


COMMANDS: dict[str, tuple[Any, ...]] = {
    "park": ("park",),
    "park!": ("park",),
    "close": ("close", Reason.RESPONSE, False),
    "close and linger": ("close", Reason.REQUEST_CAP, True),
    "abort": ("close", Reason.ERROR, False, True),
    "read": ("read", 0.5),
    "read patiently": ("read", 20.0),
    "write": ("write", 0.5),
    "write patiently": ("write", 20.0),
}


class LoopMachine(RuleBasedStateMachine):
    """Anything that clients, the application, the kernel and time may do, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()

    @initialize(
        armed=st.booleans(),
        limit=st.sampled_from([2, 4, 1000]),
        descriptors=st.sampled_from([3, 6, 1000]),
        evict=st.booleans(),
        peers=st.sampled_from([0, 2]),
        header_timeout=st.sampled_from([0.0, 1.0, 30.0]),
    )
    def begin(self, armed: bool, limit: int, descriptors: int, evict: bool, peers: int, header_timeout: float) -> None:
        """The settings."""
        self.world = World(
            armed=armed,
            limit=limit,
            descriptors=descriptors,
            evict_idle=evict,
            max_peer_connections=peers,
            header_timeout=header_timeout,
        )
        self.world.use(self.patch)

    def pick(self, number: int, *states: int) -> Client | None:
        """A client whose connection is there, in one of these states if any are named."""
        conns = [conn for conn in self.world.clients if conn.state != CLOSED]
        if not conns:
            self.world.connect(HOSTS[number % len(HOSTS)])
            self.world.settle()
            conns = [conn for conn in self.world.clients if conn.state != CLOSED]
        conns = [conn for conn in conns if not states or conn.state in states]
        return self.world.clients[conns[number % len(conns)]] if conns else None

    @rule(host=st.sampled_from(HOSTS), count=st.integers(1, 3), settle=st.booleans())
    def connect(self, host: str, count: int, settle: bool) -> None:
        """Clients come."""
        for _ in range(count):
            self.world.connect(host)
        if settle:
            self.world.settle()

    @rule(number=st.integers(0, 99), data=st.sampled_from(sorted(DATA)), settle=st.booleans())
    def send(self, number: int, data: str, settle: bool) -> None:
        """Bytes come."""
        client = self.pick(number)
        if client is not None and not client.finished and not client.error:
            self.world.send(client, DATA[data])
            if settle:
                self.world.settle()

    @rule(number=st.integers(0, 99), seconds=st.sampled_from([0.0, 0.01, 2.0, 5.0]))
    def request(self, number: int, seconds: float) -> None:
        """The usual: a request comes, is answered after a while, and the connection is idle again."""
        self.world.settle()
        client = self.pick(number, NEW, IDLE)
        if client is None:
            return
        self.world.request(client)
        self.world.advance(seconds)
        if client.conn in self.world.busy:
            self.world.command(client, "park")

    @rule(number=st.integers(0, 99))
    def finish(self, number: int) -> None:
        """A FIN comes."""
        client = self.pick(number)
        if client is not None:
            self.world.finish(client)

    @rule(number=st.integers(0, 99), error=st.sampled_from([errno.ECONNRESET, errno.ETIMEDOUT]))
    def fail(self, number: int, error: int) -> None:
        """A reset comes."""
        client = self.pick(number)
        if client is not None:
            self.world.fail(client, error)

    @rule(number=st.integers(0, 99), room=st.booleans())
    def room(self, number: int, room: bool) -> None:
        """The client reads, or does not."""
        client = self.pick(number)
        if client is not None and not client.error:
            if room:
                self.world.make_room(client)
            else:
                client.room = False

    @precondition(lambda self: self.world.busy)
    @rule(number=st.integers(0, 99), name=st.sampled_from(sorted(COMMANDS)), settle=st.booleans())
    def command(self, number: int, name: str, settle: bool) -> None:
        """The application goes on."""
        command = COMMANDS[name]
        conns = list(self.world.busy)
        conn = conns[number % len(conns)]
        if command[0] == "read" and conn.buffer is not None:
            return  # Its body has come with the head.
        self.world.busy[conn].switch(command)
        if settle:
            self.world.settle()

    @rule(number=st.integers(0, 99))
    def spurious(self, number: int) -> None:
        """An event comes twice, or for nothing."""
        fds = sorted(self.world.poller.registered)
        if fds:
            self.world.poller.edges.add(fds[number % len(fds)])

    @rule(error=st.sampled_from([errno.ECONNABORTED, errno.EMFILE, errno.ENFILE, errno.EPERM]))
    def accept_fails(self, error: int) -> None:
        """The next accept will not work."""
        self.world.kernel.accept_errors.append(error)

    @rule()
    def turn(self) -> None:
        """The hub has a turn."""
        self.world.turn()

    @rule(tick=st.sampled_from([0.001, 0.006]))
    def slow_turn(self, tick: float) -> None:
        """A turn in which everything takes its time, so that some is left for the next."""
        self.world.hub.tick = tick
        self.world.turn()
        self.world.hub.tick = 0.0

    @rule()
    def settle(self) -> None:
        """The hub has turns until all is done."""
        self.world.settle()

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.3, 1.0, 3.2, 31.0]))
    def advance(self, seconds: float) -> None:
        """Time goes by."""
        self.world.settle()
        self.world.advance(seconds)

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.5]))
    def stall(self, seconds: float) -> None:
        """Time goes by and nobody looks."""
        self.world.stall(seconds)

    @invariant()
    def holds(self) -> None:
        """See :meth:`World.check`."""
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        """The end."""
        try:
            if hasattr(self, "world"):
                self.world.end()
        finally:
            self.patch.undo()


LoopMachine.TestCase.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestLoop = LoopMachine.TestCase


# ---------------------------------------------------------------------- deadlines


@both
@pytest.mark.parametrize("header_timeout", [0.0, 1.0, 30.0])
def test_an_idle_connection_ends_in_time_whatever_was_before(armed: bool, header_timeout: float) -> None:
    for busy_for in (0.0, 0.5, 2.9, 3.1, 4.0, 20.0):
        with world(armed=armed, header_timeout=header_timeout) as it:
            (client,) = it.accepted("192.0.2.1")
            for _ in range(2):
                it.send(client, b"req")
                it.settle()
                it.advance(0.1)
                it.send(client, b"uest\n")
                it.settle()
                it.advance(busy_for)
                it.command(client, "park")
                it.advance(2.999)
                assert client.conn not in it.endings
            it.advance(LATE)
            assert it.endings[client.conn] is Reason.IDLE_TIMEOUT
            assert client.got_fin
            assert not client.closed, "it waits for the client's FIN"
            it.advance(LINGER + LATE)
            assert client.closed


@both
def test_a_silent_new_connection_has_the_longer_of_two_times(armed: bool) -> None:
    for header_timeout, stays in ((0.0, 3.0), (1.0, 3.0), (30.0, 30.0)):
        with world(armed=armed, header_timeout=header_timeout) as it:
            (client,) = it.accepted("192.0.2.1")
            it.advance(stays - 0.002)
            assert client.conn not in it.endings
            it.advance(LATE)
            assert it.endings[client.conn] is Reason.IDLE_TIMEOUT


@both
def test_the_head_has_its_time_from_its_first_byte(armed: bool) -> None:
    with world(armed=armed, header_timeout=5.0) as it:
        slow, idle = it.accepted("192.0.2.1", "192.0.2.1")
        it.advance(1.0)
        it.send(slow, b"G")
        it.settle()
        for _ in range(4):
            it.advance(1.2)
            it.send(slow, b"x")  # more of it does not buy more time
            it.settle()
        it.advance(0.19)
        assert slow.conn not in it.endings
        it.advance(LATE)
        assert it.endings[slow.conn] is Reason.HEADER_TIMEOUT
        assert idle.conn in it.endings


@both
def test_the_head_of_a_later_request_too(armed: bool) -> None:
    with world(armed=armed, header_timeout=1.0) as it:
        (client,) = it.idle(1)
        it.advance(2.5)
        it.send(client, b"G")
        it.settle()
        it.advance(0.999)
        assert client.conn not in it.endings
        it.advance(LATE)
        assert it.endings[client.conn] is Reason.HEADER_TIMEOUT


@both
def test_keep_idle_holds_for_longer_and_for_shorter(armed: bool) -> None:
    for seconds in (0.25, 2.0, 60.0):
        with world(armed=armed) as it:
            (client,) = it.accepted("192.0.2.1")
            it.request(client)
            client.conn.keep_idle(seconds)
            it.hub.now += 0.001
            it.busy[client.conn].switch(("park",))
            it.settle()
            parked = it.hub.now
            while client.conn not in it.endings:
                it._fire(it.hub.now + 0.01)
                it.hub.now += 0.01
                assert it.hub.now < parked + 100
            assert seconds + 1.0 <= it.hub.now - parked < seconds + 1.0 + LATE


@both
@pytest.mark.parametrize("what", ["read", "write"])
def test_a_wait_ends_when_its_time_is_up(armed: bool, what: str) -> None:
    for seconds in (0.1, 2.9, 3.1, 60.0):
        with world(armed=armed) as it:
            (client,) = it.accepted("192.0.2.1")
            it.request(client)
            client.room = False
            it.command(client, what, seconds)
            assert client.conn.state == (WRITING if what == "write" else HANDLING)
            it.advance(seconds - 0.001)
            assert client.conn in it.waiting
            it.advance(0.001 + LATE)
            assert it.endings[client.conn] is Reason.BODY_TIMEOUT


@both
@pytest.mark.parametrize("what", ["read", "write"])
def test_a_wait_ends_when_its_client_does_its_part(armed: bool, what: str) -> None:
    with world(armed=armed) as it:
        (client,) = it.accepted("192.0.2.1")
        it.request(client)
        client.room = False
        it.command(client, what, 10.0)
        it.advance(9.9)
        if what == "read":
            it.send(client, b"body")
        else:
            it.make_room(client)
        it.settle()
        assert client.conn not in it.waiting
        it.advance(20.0)
        assert client.conn in it.busy, "the deadline of a wait that is over strikes nobody"
        it.command(client, "park")
        it.advance(2.999)
        assert client.conn.state == IDLE


def test_a_stall_ends_nobody_who_has_sent_something() -> None:
    with world() as it:
        served, silent = it.idle(2)
        it.send(served, b"request\n")
        it.stall(10.0)
        assert served.conn in it.busy, "the last look found it"
        assert it.endings[silent.conn] is Reason.IDLE_TIMEOUT


def test_a_part_of_a_pipelined_request_is_no_idleness() -> None:
    with world() as it:
        (client,) = it.accepted("192.0.2.1")
        it.send(client, b"one\npart")
        it.settle()
        it.busy[client.conn].switch(("park",))  # its turn to be looked at has not come yet
        assert not it.loop.end_idle(client.conn, Reason.IDLE_TIMEOUT)
        it.settle()
        assert client.conn.state == READING
        it.send(client, b"two\n")
        it.settle()
        assert it.served == [b"one", b"parttwo"]


def test_many_deadlines_at_once_leave_time_for_others() -> None:
    with world() as it:
        clients = it.accepted(*["192.0.2.1"] * 200)
        for client in clients:
            it.send(client, b"request\n")
        it.settle()
        for client in clients:
            it.busy[client.conn].switch(("park",))
        it.settle()
        it.hub.tick = 0.0005  # each look at the clock; some happen for each connection
        before = it.hub.now
        it.hub.now += 3.2
        timer = min(it.hub.timers, key=lambda timer: timer.at)
        timer.fire()
        assert 0 < len(it.endings) < 200, "a slice of them, then the others' turn"
        assert it.hub.now - before - 3.2 < 0.05
        it.hub.tick = 0.0
        it._fire(it.hub.now + 0.01)
        assert len(it.endings) == 200


# ------------------------------------------------------------------------- events


@both
def test_an_event_for_a_closed_connection_does_not_reach_the_next_one(armed: bool) -> None:
    with world(armed=armed) as it:
        one, two = it.accepted("192.0.2.1", "192.0.2.1")
        it.send(one, b"a\n")
        it.finish(two)
        it.hub.tick = 0.006  # a slice is over after each event
        it.turn()
        it.hub.tick = 0.0
        assert it.loop._ready, "an event is left over"
        late = it.loop._ready[0][0]
        it.loop.close(late, Reason.ERROR)
        fresh = it.connect()
        it.poller.ready()
        it.settle()
        assert fresh.fd == it.clients[late].fd
        assert fresh.conn.state == NEW
        assert fresh.conn.bytes_received == 0


def test_an_event_for_a_number_that_nobody_has_is_nothing() -> None:
    with world() as it:
        (client,) = it.accepted("192.0.2.1")
        it.finish(client)
        it.settle()
        assert client.closed
        (other,) = it.accepted("192.0.2.1")
        it.send(other, b"request\n")
        poll = it.poller.poll
        it.poller.poll = lambda: [*poll(), (11, READABLE)]  # type: ignore[method-assign]
        it.loop._grow_table(11)
        it.poller.ready()
        it.poller.poll = poll  # type: ignore[method-assign]
        it.settle()
        assert other.conn in it.busy


@both
def test_pipelined_requests_are_served_in_order_before_it_is_idle(armed: bool) -> None:
    with world(armed=armed) as it:
        (client,) = it.accepted("192.0.2.1")
        it.send(client, b"1\n2\n3\n4")
        it.settle()
        for _ in range(3):
            it.command(client, "park")
        assert client.conn.state == READING
        it.send(client, b"\n")
        it.settle()
        assert it.served == [b"1", b"2", b"3", b"4"]


@both
def test_a_client_with_the_next_request_ready_waits_for_its_turn(armed: bool) -> None:
    with world(armed=armed) as it:
        greedy, modest = it.accepted("192.0.2.1", "192.0.2.2")
        it.send(greedy, b"g\n" * 20)
        it.settle()
        it.send(modest, b"m\n")
        for _ in range(5):
            if greedy.conn in it.busy:
                it.busy[greedy.conn].switch(("park",))
            it.turn()
        assert b"m" in it.served[:5]


@both
def test_a_half_closed_client_gets_its_response(armed: bool) -> None:
    with world(armed=armed) as it:
        (client,) = it.accepted("192.0.2.1")
        it.send(client, b"request\n")
        it.finish(client)
        it.settle()
        assert client.conn in it.busy
        it.advance(60.0)
        it.command(client, "write", 5.0)
        assert client.conn in it.busy
        it.command(client, "park")
        assert it.endings[client.conn] is Reason.CLIENT


@both
def test_what_comes_while_the_app_is_busy_is_seen_afterwards(armed: bool) -> None:
    with world(armed=armed) as it:
        bytes_came, fin_came, reset_came = it.accepted(*["192.0.2.1"] * 3)
        for client in (bytes_came, fin_came, reset_came):
            it.request(client)
        it.send(bytes_came, b"next\n")
        it.finish(fin_came)
        it.fail(reset_came, errno.ECONNRESET)
        it.settle()
        assert len(it.busy) == 3
        for client in (bytes_came, fin_came, reset_came):
            it.command(client, "park")
        assert it.served[-1] == b"next"
        assert set(it.endings) == {fin_came.conn, reset_came.conn}


def test_of_two_waits_only_the_one_whose_time_is_up_ends() -> None:
    with world() as it:
        (client,) = it.accepted("192.0.2.1")
        it.request(client)
        conn, ended = client.conn, []

        def wait(how: Callable[..., None], seconds: float) -> None:
            with pytest.raises(LateError):
                how(conn, it.hub.now + seconds, LateError)
            ended.append((how.__name__, it.hub.now))

        began = it.hub.now
        for how, seconds in ((it.loop.wait_readable, 1.0), (it.loop.wait_writable, 4.0)):
            client.room = False
            greenlet.greenlet(wait).switch(how, seconds)
        it.advance(1.0 + LATE)
        assert [name for name, _ in ended] == ["wait_readable"]
        it.advance(3.0)
        assert [name for name, _ in ended] == ["wait_readable", "wait_writable"]
        assert began + 1.0 <= ended[0][1] < began + 1.0 + LATE
        assert began + 4.0 <= ended[1][1] < began + 4.0 + LATE


@both
def test_a_fin_that_came_with_a_long_part_of_a_head_is_seen(armed: bool) -> None:
    for header_timeout in (0.0, 5.0):
        with world(armed=armed, header_timeout=header_timeout) as it:
            (client,) = it.accepted("192.0.2.1")
            it.send(client, b"x" * (RECEIVE + 4))
            it.finish(client)
            it.settle()
            assert it.endings[client.conn] is Reason.CLIENT


@both
def test_a_fin_that_came_with_a_body_is_seen(armed: bool) -> None:
    with world(armed=armed) as it:
        (client,) = it.accepted("192.0.2.1")
        it.request(client)
        it.command(client, "read", 5.0)
        it.send(client, b"body")
        it.finish(client)
        it.settle()
        assert client.conn in it.busy
        it.command(client, "park")
        assert it.endings[client.conn] is Reason.CLIENT


def test_an_exception_costs_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    with world() as it:
        bad, good = it.accepted("192.0.2.1", "192.0.2.1")
        begin = it.loop.begin

        def fail(conn: Connection, data: bytes) -> None:
            if conn is bad.conn:
                raise RuntimeError("a bug")
            begin(conn, data)

        it.loop.begin = fail
        it.send(bad, b"request\n")
        it.send(good, b"request\n")
        it.poller.ready()
        assert [str(error) for error in it.hub.errors] == ["a bug"]
        it.hub.errors.clear()
        assert it.endings == {bad.conn: Reason.ERROR}
        assert good.conn in it.busy


def test_an_exception_at_a_deadline_costs_one_connection() -> None:
    with world(header_timeout=1.0) as it:
        bad, good = it.accepted("192.0.2.1", "192.0.2.1")
        late = it.loop.head_is_late

        def fail(conn: Connection) -> None:
            if conn is bad.conn:
                raise RuntimeError("a bug")
            late(conn)

        it.loop.head_is_late = fail
        for client in (bad, good):
            it.send(client, b"part")
        it.settle()
        it.hub.now += 2.0
        timer = min(it.hub.timers, key=lambda timer: timer.at)
        timer.fire()
        assert [str(error) for error in it.hub.errors] == ["a bug"]
        it.hub.errors.clear()
        assert it.endings == {bad.conn: Reason.ERROR, good.conn: Reason.HEADER_TIMEOUT}


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ECONNRESET, Reason.CLIENT),
        (errno.EPIPE, Reason.CLIENT),
        (errno.ETIMEDOUT, Reason.DEAD_PEER),
        (errno.EHOSTUNREACH, Reason.DEAD_PEER),
    ],
)
@both
def test_what_the_kernel_says_of_a_peer_is_the_reason(armed: bool, number: int, reason: Reason) -> None:
    assert ending_of(OSError(number, "")) is reason
    with world(armed=armed) as it:
        (client,) = it.idle(1)
        it.fail(client, number)
        it.settle()
        assert it.endings[client.conn] is reason
        assert client.closed


# --------------------------------------------------------------------- lingering


@both
def test_the_client_gets_fin_and_what_it_still_sends_is_thrown_away(armed: bool) -> None:
    with world(armed=armed) as it:
        (client,) = it.idle(1)
        it.advance(3.2)
        assert client.got_fin
        for _ in range(3):
            it.send(client, b"x" * 40 * RECEIVE)
            it.settle()
        assert client.fd in it.kernel.open
        assert len(it.served) == 1
        it.finish(client)
        it.settle()
        assert client.closed
        assert not client.got_reset


@both
def test_lingering_has_an_end(armed: bool) -> None:
    with world(armed=armed) as it:
        (client,) = it.idle(1)
        it.advance(3.2)
        assert client.got_fin
        end = it.hub.now + LINGER
        while not client.closed:
            it.send(client, b"x")
            it.settle()
            it.advance(0.1)
            assert it.hub.now < end + LATE + 0.1
        assert it.hub.now > end - 0.3


def test_lingering_is_as_long_when_an_idle_time_would_have_ended() -> None:
    with world() as it:
        (client,) = it.idle(1)
        it.advance(2.5)
        it.request(client)
        it.command(client, "close", Reason.REQUEST_CAP, True)
        it.advance(LINGER - 0.001)
        assert client.fd in it.kernel.open
        it.advance(LATE)
        assert client.closed


def test_a_client_that_has_gone_is_not_lingered_for() -> None:
    with world() as it:
        (client,) = it.idle(1)
        client.error = errno.ECONNRESET
        it.loop.close(client.conn, Reason.SHUTDOWN, linger=True)
        assert client.closed


# ------------------------------------------------------------------ room for others


@both
def test_the_longest_idle_gives_way_one_for_one(armed: bool) -> None:
    with world(armed=armed, limit=5) as it:
        old = it.idle(5)
        order = [old[index] for index in (3, 0, 4, 2, 1)]
        for client in order:
            it.request(client)
            it.command(client, "park")
            it.advance(0.01)
        it.advance(SETTLED)
        for number in range(5):
            (fresh,) = it.accepted("192.0.2.9")
            it.request(fresh)
            assert [it.clients[conn] for conn in it.evicted] == order[: number + 1]
            assert order[number].got_fin


@pytest.mark.parametrize("limit", [1, 3])
def test_nobody_gives_way_to_nobody(limit: int) -> None:
    with world(limit=limit) as it:
        it.accepted(*["192.0.2.1"] * limit)
        it.poller.edges.add(FakeListener.fd)  # another worker was faster
        it.poller.ready()
        it.settle()
        assert not it.evicted
        assert it.loop.open == limit


def test_order_of_eviction_holds_over_many_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVICTION_BATCH", 4)
    with world(limit=30) as it:
        clients = it.idle(30)
        for index in (0, 7, 8, 20):  # idle for the shortest time now
            it.request(clients[index])
            it.command(clients[index], "park")
            it.advance(0.001)
        it.advance(SETTLED)
        expected = [client for index, client in enumerate(clients) if index not in (0, 7, 8, 20)]
        for _ in range(26):
            (fresh,) = it.accepted("192.0.2.9")
            it.request(fresh)
        assert [it.clients[conn] for conn in it.evicted] == expected


def test_who_could_have_given_way_is_not_kept_after_its_end() -> None:
    """One search serves many evictions; what it found may be in use for very long."""
    with world(limit=3) as it:
        clients = it.idle(3)
        it.accepted("192.0.2.9")
        assert [it.clients[conn] for conn in it.evicted] == clients[:1]
        conn = clients[1].conn
        it.loop.close(conn, Reason.CLIENT)
        assert not [kept for kept in gc.get_referrers(conn) if isinstance(kept, tuple)]


def test_a_descriptor_that_was_used_again_is_not_taken_for_the_one_that_could_have_given_way() -> None:
    with world(limit=3) as it:
        _, gone, idle = it.idle(3)
        it.accepted("192.0.2.9")
        it.loop.close(gone.conn, Reason.CLIENT)
        it.accepted("192.0.2.9")
        it.advance(SETTLED / 2)
        (heir,) = it.accepted("192.0.2.9")
        assert [it.clients[conn] for conn in it.evicted[1:]] == [idle]
        assert heir.conn.state == NEW


def test_a_connection_whose_request_has_just_come_is_served_and_not_evicted() -> None:
    with world(limit=2) as it:
        lucky, idle = it.idle(2)
        lucky.sent += b"request\n"  # it is in the kernel, no event yet
        (fresh,) = it.accepted("192.0.2.9")
        assert lucky.conn in it.busy
        assert [it.clients[conn] for conn in it.evicted] == [idle]
        assert fresh.conn.state == NEW


@both
def test_there_are_never_more_than_allowed_when_somebody_can_give_way(armed: bool) -> None:
    with world(armed=armed, limit=3) as it:
        for _ in range(10):
            it.accepted("192.0.2.1", "192.0.2.2")
            assert it.loop.open <= 3


def test_new_ones_wait_only_when_all_are_busy_and_only_until_one_is_free() -> None:
    with world(limit=2) as it:
        clients = it.accepted("192.0.2.1", "192.0.2.1")
        for client in clients:
            it.request(client)
        assert not it.warnings, "nobody waits yet"
        waiting = it.connect()
        it.settle()
        assert waiting.conn is None
        assert len(it.warnings) == 1
        assert FakeListener.fd not in it.poller.registered, "a level that nobody looks at would spin"
        assert it.loop.terms.crowded, "whoever has its response is told to make room"
        it.command(clients[0], "close", Reason.RESPONSE)
        assert waiting.conn is not None
        assert not it.loop.terms.crowded


@both
def test_nobody_gives_way_whose_request_may_be_on_its_way(armed: bool) -> None:
    """Just accepted, or just answered: it has SETTLED seconds, and new ones wait for so long."""
    with world(armed=armed, limit=2) as it:
        (answered,) = it.idle(1)
        it.request(answered)
        it.command(answered, "park")
        (fresh,) = it.accepted("192.0.2.1")
        waiting = it.connect()
        it.settle()
        it.advance(SETTLED - 0.002)
        assert not it.evicted
        assert waiting.conn is None
        it.advance(0.002)
        assert it.evicted == [answered.conn]
        assert waiting.conn is not None
        assert fresh.conn.state == NEW
        assert not it.warnings, "that is no shortage"


def test_an_end_lets_those_in_who_wait_for_one_to_settle() -> None:
    with world(limit=2) as it:
        clients = it.accepted("192.0.2.1", "192.0.2.1")
        waiting = it.connect()
        it.settle()
        assert waiting.conn is None
        it.finish(clients[1])
        it.settle()
        assert waiting.conn is not None
        assert not it.evicted


def test_new_ones_wait_until_a_busy_one_is_idle() -> None:
    with world(limit=2) as it:
        clients = it.accepted("192.0.2.1", "192.0.2.1")
        for client in clients:
            it.request(client)
        waiting = it.connect()
        it.settle()
        it.command(clients[0], "park")
        it.advance(SETTLED + 0.001)
        assert waiting.conn is not None, "an idle connection gives way, also one that has become idle since"
        assert it.evicted == [clients[0].conn]


def test_without_eviction_new_ones_wait_for_an_end() -> None:
    with world(limit=2, evict_idle=False) as it:
        clients = it.idle(2)
        waiting = it.connect()
        it.settle()
        it.advance(1.0)
        assert waiting.conn is None
        assert not it.evicted
        it.finish(clients[0])
        it.settle()
        assert waiting.conn is not None


@both
def test_one_idle_connection_is_given_for_one_descriptor(armed: bool) -> None:
    # Clients do not answer our FIN at once, or at all: descriptors must come back all the same.
    with world(armed=armed, descriptors=8) as it:
        clients = it.idle(8)
        fresh = it.accepted("192.0.2.9")[0]
        assert fresh.conn is not None
        assert it.evicted == [clients[0].conn], "as many idle connections as new ones"
        assert it.kernel.refusals == 1


def test_out_of_descriptors_with_nobody_idle() -> None:
    with world(descriptors=2) as it:
        clients = it.accepted("192.0.2.1", "192.0.2.1")
        for client in clients:
            it.request(client)
        waiting = it.connect()
        it.settle()
        assert it.kernel.refusals == 1
        assert len(it.warnings) == 1
        it.advance(ACCEPT_RETRY * 3.5)
        assert it.kernel.refusals == 4, "one try each time"
        it.command(clients[0], "close", Reason.RESPONSE)
        assert waiting.conn is not None


@pytest.mark.parametrize("number", [errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_other_shortages_are_waited_out(number: int) -> None:
    with world() as it:
        it.kernel.accept_errors.append(number)
        client = it.connect()
        it.settle()
        assert client.conn is None
        it.advance(ACCEPT_RETRY)
        assert client.conn is not None


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPERM, errno.EPROTO])
def test_a_client_that_went_before_it_was_accepted_stops_nobody(number: int) -> None:
    with world() as it:
        it.kernel.accept_errors += [number] * 3
        client = it.connect()
        it.settle()
        assert client.conn is not None
        assert not it.warnings


def test_accepting_leaves_the_others_their_turn() -> None:
    with world() as it:
        clients = [it.connect() for _ in range(ACCEPTS + 10)]
        it.poller.ready = lambda: None
        it.turn()
        it.loop._accept(it.listener)
        assert sum(client.conn is not None for client in clients) == ACCEPTS
        it.poller.ready = it.loop._turn


def test_one_address_may_have_so_many() -> None:
    with world(max_peer_connections=2) as it:
        clients = it.accepted(*["192.0.2.1"] * 3, "192.0.2.2")
        assert {client: it.endings.get(client.conn) for client in clients} == {
            clients[0]: None,
            clients[1]: None,
            clients[2]: Reason.PEER_LIMIT,
            clients[3]: None,
        }
        it.finish(clients[0])
        it.settle()
        (again,) = it.accepted("192.0.2.1")
        assert again.conn not in it.endings, "the place of one that has gone is free"


def test_without_a_limit_nothing_is_counted_for_addresses() -> None:
    with world() as it:
        it.accepted(*["192.0.2.1"] * 5)
        assert not it.loop._per_peer


# -------------------------------------------------------------------------- the end


def test_the_end_of_everything() -> None:
    with world() as it:
        idle, reading, handling, writing, lingering = it.accepted(*["192.0.2.1"] * 5)
        it.send(reading, b"part")
        for client in (handling, writing, lingering):
            it.request(client)
        writing.room = False
        it.command(writing, "write", 60.0)
        it.command(lingering, "close", Reason.RESPONSE, True)
        states = [client.conn.state for client in (idle, reading, handling, writing, lingering)]
        assert states == [NEW, READING, HANDLING, WRITING, LINGERING]
        it.loop.stop_accepting()
        it.loop.end_all()
        assert (idle.got_fin, reading.got_fin, handling.got_fin) == (True, True, False)
        assert (idle.got_reset, handling.got_reset, writing.got_reset) == (False, True, True)
        assert set(it.endings.values()) == {Reason.SHUTDOWN, Reason.RESPONSE}


@pytest.mark.parametrize("is_own", [True, False])
def test_who_waits_at_a_socket_of_the_workers_own_is_taken_before_it_closes(
    monkeypatch: pytest.MonkeyPatch, is_own: bool
) -> None:
    """With reuse_port. At one that all workers have, another will."""
    monkeypatch.setattr(FakeListener, "is_own", is_own)
    with world() as it:
        waiting = [it.connect() for _ in range(3)]
        it.loop.stop_accepting()
        assert [client.conn is not None for client in waiting] == [is_own] * 3
        assert it.loop.open == 3 * is_own


def test_on_empty_comes_with_the_last_connection_and_the_last_that_lingers() -> None:
    with world() as it:
        calls: list[tuple[int, int]] = []
        it.loop.on_empty = lambda: calls.append((it.loop.open, it.loop.lingering))
        one, two = it.idle(2)
        it.loop.close(one.conn, Reason.SHUTDOWN, linger=True)
        assert calls == []
        it.loop.close(two.conn, Reason.SHUTDOWN, linger=True)
        assert calls == [(0, 2)]
        it.finish(one)
        it.settle()
        it.finish(two)
        it.settle()
        assert calls == [(0, 2), (0, 0)]


def test_closing_twice_is_closing_once() -> None:
    with world() as it:
        (client,) = it.idle(1)
        it.loop.close(client.conn, Reason.RESPONSE, linger=True)
        it.loop.close(client.conn, Reason.ERROR)
        it.loop.close(client.conn, Reason.ERROR, linger=True)
        assert it.endings == {client.conn: Reason.RESPONSE}
        assert client.conn.state == LINGERING


def test_counters_add_up() -> None:
    with world() as it:
        clients = it.idle(3)
        it.request(clients[0])
        it.command(clients[0], "close", Reason.RESPONSE)
        it.finish(clients[1])
        it.settle()
        it.advance(10.0)
        counters = it.counters
        assert counters.accepted == 3
        assert counters.closed[Reason.RESPONSE] == 1
        assert counters.closed[Reason.CLIENT] == 1
        assert counters.closed[Reason.IDLE_TIMEOUT] == 1
        assert sum(counters.connection_requests.counts) == 3
        assert counters.connection_requests.total == 4
        assert sum(counters.age_seconds.counts) == 3
        assert counters.bytes_received == 4 * len(b"request\n") == sum(conn.bytes_received for conn in it.clients)


def test_every_change_of_state_is_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[int, int]] = set()

    class Watched(Numbered):
        """Notes how its state changes."""

        __slots__ = ()

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "state" and hasattr(self, "state") and self.state != value:
                seen.add((self.state, value))
            super().__setattr__(name, value)

    monkeypatch.setattr(World, "CONNECTION", Watched)
    test_the_end_of_everything()
    for armed in (False, True):
        test_pipelined_requests_are_served_in_order_before_it_is_idle(armed)
        test_a_wait_ends_when_its_time_is_up(armed, "write")
        test_the_head_of_a_later_request_too(armed)
        test_lingering_has_an_end(armed)
        test_what_the_kernel_says_of_a_peer_is_the_reason(armed, errno.ETIMEDOUT, Reason.DEAD_PEER)
    test_an_exception_costs_one_connection(monkeypatch)
    assert len(seen) > 10
    assert [change for change in seen if change[1] not in TRANSITIONS[change[0]]] == []


# ------------------------------------------------- a connection that the app takes over


class RealWorld:
    """An event loop on a real hub and real sockets, for what is about real sockets."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.setblocking(False)
        self.loop = EventLoop(gevent.get_hub(), Options(keepalive=30.0, header_timeout=30.0), 100, Counters())
        self.begun: list[tuple[Connection, bytes]] = []
        self.loop.begin = lambda conn, data: self.begun.append((conn, data))
        self.loop.head_is_late = lambda conn: None
        self.loop.warn = lambda message: None
        self.listener = RealListener(self.server)
        self.loop.listen(self.listener)
        self.clients: list[socket.socket] = []
        self.ended = False

    def client(self) -> socket.socket:
        """A client that waits to be accepted, for the hub does not run meanwhile."""
        client = socket.create_connection(self.server.getsockname())
        self.clients.append(client)
        return client

    def connect(self, client: socket.socket | None = None) -> tuple[socket.socket, Connection]:
        """A client, and its connection, which is handling a request."""
        client = client or self.client()
        client.sendall(b"hello")
        for _ in range(100):
            gevent.sleep(0.005)
            if self.begun:
                break
        conn, _ = self.begun.pop()
        conn.state = HANDLING
        return client, conn

    def end(self) -> None:
        """As a worker that stops."""
        self.loop.stop_accepting()
        self.loop.end_all()
        self.loop.shut_down()
        self.ended = True

    def close(self) -> None:
        """Give all back."""
        if not self.ended:
            self.end()
        for client in self.clients:
            client.close()


class RealListener(Listener):
    """A listener without gunicorn around it."""

    tls_context = None
    is_own = False

    def __init__(self, sock: socket.socket) -> None:
        self.fd = sock.fileno()
        self.family = sock.family
        self.sock = sock

    def accept(self) -> tuple[int, str, int]:
        """As the real one."""
        sock, (host, port) = self.sock.accept()
        sock.setblocking(False)
        return sock.detach(), host, port

    def heads_for(self, host: str) -> Any:
        """Nobody parses here."""
        return None

    def close(self) -> None:
        """As the real one."""
        self.sock.close()


@pytest.fixture(params=["epoll", "portable"])
def real(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[RealWorld]:
    if request.param == "epoll" and poller_module._epoll is None:
        pytest.skip("no epoll on this system")
    monkeypatch.setenv(poller_module.BACKEND_VARIABLE, request.param)
    made = RealWorld()
    yield made
    made.close()


def test_a_connection_goes_to_the_app_and_comes_back(real: RealWorld) -> None:
    client, conn = real.connect()
    sock = real.loop.hand_over(conn)
    assert real.loop.hand_over(conn) is sock
    client.sendall(b"for the app")
    assert sock.recv(100) == b"for the app"
    sock.sendall(b"from the app")
    assert client.recv(100) == b"from the app"
    assert real.loop.take_back(conn)
    real.loop.park(conn)
    client.sendall(b"for the loop")
    gevent.sleep(0.02)
    assert [data for _, data in real.begun] == [b"for the loop"]


def test_the_app_closes_the_socket(real: RealWorld) -> None:
    client, conn = real.connect()
    real.loop.hand_over(conn).close()
    assert client.recv(1) == b""
    assert not real.loop.take_back(conn)
    real.loop.close(conn, Reason.RESPONSE)
    assert real.loop.open == 0
    assert real.loop.counters.closed[Reason.RESPONSE] == 1


def test_the_app_closes_the_socket_and_its_number_is_used_again(real: RealWorld) -> None:
    # simple-websocket closes the socket long before the view returns.
    _, conn = real.connect()
    fd, waiting = conn.fd, real.client()
    real.loop.hand_over(conn).close()
    other_client, other = real.connect(waiting)
    assert other.fd == fd
    real.loop.park(other)
    assert not real.loop.take_back(conn)
    real.loop.close(conn, Reason.RESPONSE)
    other_client.sendall(b"still there?")
    gevent.sleep(0.02)
    assert real.begun == [(other, b"still there?")]
    assert list(real.loop.connections()) == [other]


def test_everything_ends_while_the_app_has_a_connection(real: RealWorld) -> None:
    clients = [real.connect() for _ in range(2)]
    sock = real.loop.hand_over(clients[0][1])
    real.end()
    assert real.loop.open == 0
    assert sock.fileno() < 0
    for client, _ in clients:
        client.settimeout(5)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_everything_ends_after_the_app_has_closed_its_socket_and_the_number_was_used_again(
    real: RealWorld,
) -> None:
    _, conn = real.connect()
    waiting = real.client()
    real.loop.hand_over(conn).close()
    _, other = real.connect(waiting)
    assert other.fd == conn.fd
    real.loop.close(conn, Reason.SHUTDOWN)
    assert os.fstat(other.fd)
    assert list(real.loop.connections()) == [other]

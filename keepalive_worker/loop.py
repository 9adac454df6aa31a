"""The event loop of a worker: who is ready, whose time is up, who is let in, who has to go.

All connections lie in one poller and one deadline wheel. The loop itself reads for connections
that are parked; :attr:`EventLoop.begin` gets the bytes and may start a greenlet. A greenlet that
must wait for its client does so in :meth:`EventLoop.wait_readable` or
:meth:`EventLoop.wait_writable`, and gives its connection back with :meth:`EventLoop.park` or
:meth:`EventLoop.close`, which is the one place where connections end and are counted.

Everything here runs in gevent's hub, except where a method says that greenlets call it: nothing
in it may block, and nothing may raise into the hub for the sake of one connection.
"""

from __future__ import annotations

import errno
import os
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from math import inf
from time import monotonic, time
from typing import Any

from gevent import socket
from gevent.exceptions import ConcurrentObjectUseError
from gevent.monkey import get_original
from greenlet import getcurrent

from keepalive_worker import poller
from keepalive_worker.connection import (
    CLOSED,
    HANDLING,
    IDLE,
    LAST_PARKED,
    LINGERING,
    NEW,
    READING,
    WRITING,
    Connection,
    Reason,
    Terms,
)
from keepalive_worker.counters import Counters
from keepalive_worker.deadlines import Wheel
from keepalive_worker.holding import WORTH_IT, Holding, kernel_calls
from keepalive_worker.listeners import Listener
from keepalive_worker.roster import Balance
from keepalive_worker.settings import Options
from keepalive_worker.stream import NoMoreRequests, Wait
from keepalive_worker.tls import TLSEnded, read_tls, say_goodbye, shaking_hands

#: Bytes asked of the kernel at a time. A larger head or body simply takes more calls.
RECEIVE = 16384
#: Seconds after which the loop lets gevent's other greenlets and timers run.
SLICE = 0.005
#: Connections accepted in a row before those that are there get their turn again.
ACCEPTS = 64
#: Seconds that a connection which we ended waits for the client's FIN (RFC 9112 9.6).
LINGER = 2.0
#: Seconds until accepting is tried again after the system refused a descriptor.
ACCEPT_RETRY = 0.5
#: Seconds between two looks at a connection that has no deadline, at least.
LOOK_EVERY = 0.25
#: Seconds for which a worker that has more connections than others leaves new ones to them, and
#: how many it then takes all the same, lest somebody waits for workers that are stuck.
STEP_BACK = 0.01
ACCEPTS_WHEN_AHEAD = 4
#: Seconds of idleness from which a connection may be ended for another's sake: the request of a new one,
#: or the next one of a busy one, is likely to be on its way. Longer than most round trips.
SETTLED = 0.1
#: How many of the longest-idle connections are looked out at once.
EVICTION_BATCH = 256

_DEAD = frozenset((errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN))
_OUT_OF_RESOURCES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_WAY_OUT = "raise ulimit -n (LimitNOFILE= in a systemd unit) or lower --worker-connections"
_NEVER = inf

#: gevent's own puts closing off to the loop's next round, for the sake of watchers that we do not have.
_close = get_original("os", "close")


def _run_here(work: Callable[[], None]) -> None:
    work()


def ending_of(error: OSError) -> Reason:
    """Which reason an error of the operating system on a connection amounts to."""
    return Reason.DEAD_PEER if error.errno in _DEAD else Reason.CLIENT


def _waits_for_stream(conn: Connection) -> bool:
    """Whether it is idle though it has a greenlet, as HTTP/2 has one that waits for the next stream."""
    return conn.state == HANDLING and conn.reader is not None and conn.reader.between_requests


def _is_idle(conn: Connection) -> bool:
    return conn.state in (NEW, IDLE) or _waits_for_stream(conn)


class EventLoop:
    """See the module.

    :param hub: gevent's hub of this thread
    :param options: the settings
    :param worker_connections: most connections held at once
    :param counters: where to count
    :param clock: monotonic seconds
    """

    def __init__(
        self,
        hub: Any,
        options: Options,
        worker_connections: int,
        counters: Counters,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.hub = hub
        self.clock = clock
        self.options = options
        self.counters = counters
        self.terms = Terms(
            clock,
            options.keepalive,
            options.keepalive_grace,
            options.keepalive_requests,
            options.keepalive_lifetime,
            random.random(),
        )
        self.holding = Holding(kernel_calls())
        #: Called with a connection and the bytes that came; set by whoever serves requests.
        self.begin: Callable[[Connection, bytes], None]
        #: Runs what serves requests until it ends or first waits, as :meth:`GreenletPool.lead`.
        self.lead: Callable[[Callable[[], None]], None] = _run_here
        #: Called with a connection whose request head is late.
        self.head_is_late: Callable[[Connection], None]
        #: Called with a connection that is one too many from its address.
        self.over_peer_limit: Callable[[Connection], None]
        #: Called with a connection that does not speak TLS, and what OpenSSL says of it.
        self.refused: Callable[[Connection, str], None]
        #: Called with a message when descriptors or connections have run out.
        self.warn: Callable[[str], None]
        #: Tells whether other workers should take new connections rather than this one.
        self.balance: Balance | None = None
        #: Called when the last connection has ended, or the last that lingered is gone.
        self.on_empty: Callable[[], None] | None = None
        #: Hooks, None when unset.
        self.on_opened: Callable[[Connection], None] | None = None
        self.on_closed: Callable[[Connection, Reason], None] | None = None

        self.open = 0
        #: Connections that are ended and counted but still wait for the client's FIN.
        self.lingering = 0
        self._limit = worker_connections
        self._serial = 0
        self._table: list[Any] = []
        self._listeners: list[Listener] = []
        self._ready: deque[tuple[Any, int]] = deque()
        #: Whoever works off the requests that are ready; another object each time.
        self._leader: object = None
        #: When this turn has to end (monotonic seconds).
        self._turn_ends = 0.0
        self._next_turn = hub.loop.timer(0)
        self._poller = poller.make_poller(hub, self._turn)
        self._arm = self._poller.arm
        self._wheel: Wheel[Connection] = Wheel()
        self._timer = hub.loop.timer(0)
        self._timer_at = _NEVER
        self._accept_timer = hub.loop.timer(ACCEPT_RETRY)
        #: Nobody is accepted because no connection can be ended for it, or no descriptor is to be had.
        #: That ends with the end of a connection, and when one becomes idle or a time is over.
        self._is_full = False
        self._stepped_back = False
        self._handed_over: set[Connection] = set()
        #: Idle since, serial number and descriptor: who has ended meanwhile must not be kept by this.
        self._longest_idle: list[tuple[float, int, int]] = []
        self._per_peer: dict[str, int] = {}
        self._hosts: dict[str, str] = {}

    # ---------------------------------------------------------------- events

    def _turn(self) -> None:
        """Work off what is ready, for a slice of time; the rest stays for the next turn."""
        self._turn_ends = self.clock() + SLICE
        ready = self._ready
        table = self._table
        while True:
            # Looked up at once: a descriptor may be closed, and given to another connection,
            # before its turn comes.
            ready.extend([(table[fd], events) for fd, events in self._poller.poll() if table[fd] is not None])
            if not ready:
                return
            while ready:
                if ready[0][0].state <= LAST_PARKED:
                    self._leader = object()
                    self.lead(self._serve_ready)
                    self._leader = None
                    self.holding.end()
                else:
                    conn, events = ready.popleft()
                    try:
                        self._other_event(conn, events)
                    except Exception:
                        self._failed(conn)
                if self.clock() > self._turn_ends:
                    self._turn_again()
                    return

    def _serve_ready(self) -> None:
        """Read for those parked connections that are ready, as many as come before other events.

        This runs on a greenlet, and so does each request, on the same one, for as long as none of
        them waits. When one does, the hub goes on with :meth:`_turn`, which sends the next leader;
        once this one can go on, it has only that request to finish.
        """
        ready = self._ready
        clock = self.clock
        leader = self._leader
        holding, worth_it = self.holding, WORTH_IT
        now = clock()
        while ready:
            conn, events = ready[0]
            if conn.state > LAST_PARKED:
                return  # What wakes other greenlets is for the hub.
            ready.popleft()
            try:
                self._receive(conn, events)
            except Exception:
                self._failed(conn)
            began, now = now, clock()
            if self._leader is not leader or now > self._turn_ends:
                return
            if now - began > worth_it:
                holding.pace(now - began, now, len(ready) > 1)

    def _failed(self, conn: Connection) -> None:
        """An exception of our own making, a bug and not the client's doing, costs one connection."""
        self.hub.handle_error(conn, *sys.exc_info())
        self.close(conn, Reason.ERROR)

    def _turn_again(self) -> None:
        """Have :meth:`_turn` called soon, after gevent's other work."""
        if not self._next_turn.active:
            # Not a callback: gevent runs those that callbacks add in the same round, and looks at
            # timers and descriptors again only after fifty of them.
            self._next_turn.start(self._turn)

    def _receive(self, conn: Connection, events: int) -> None:
        """Read for a parked connection and pass on what came."""
        data = conn.buffer
        if data is not None and conn.state == IDLE:
            conn.buffer = None  # A pipelined request: it comes before anything on the wire.
            self.begin(conn, data)
            return
        try:
            if conn.listener.tls_context is None:
                more = os.read(conn.fd, RECEIVE)
            else:
                more = read_tls(conn, RECEIVE)
        except BlockingIOError:
            conn.unseen = 0
            if conn.tls_socket is not None and not conn.requests:
                self._time_handshake(conn)
            if self._arm is not None:
                self._arm(conn.fd)
            return
        except OSError as error:
            self.close(conn, ending_of(error))
            return
        except TLSEnded as error:
            if error.reason is Reason.BAD_REQUEST:
                self.refused(conn, str(error))
            self.close(conn, error.reason)
            return
        size = len(more)
        if not size:
            self.close(conn, Reason.CLIENT)
            return
        # After a short read the kernel has no more for now, unless the event told of a FIN, too.
        if size == RECEIVE or events != poller.READABLE or conn.tls_socket is not None:
            conn.unseen |= events
        else:
            conn.unseen = 0
        conn.bytes_received += size
        self.counters.bytes_received += size
        if data is not None:
            conn.buffer = None
            more = data + more
        begin = self.begin
        begin(conn, more)

    def _time_handshake(self, conn: Connection) -> None:
        """Give a TLS handshake the deadline of a request head, and end that when it is done."""
        if shaking_hands(conn):
            if conn.state == NEW:
                self._expect_head(conn)
        elif conn.state == READING and conn.buffer is None:
            conn.state = NEW
            conn.since = self.clock()

    def _other_event(self, conn: Any, events: int) -> None:
        """An event for a connection that a greenlet works on, that lingers, or for a listener."""
        if isinstance(conn, Listener):
            self._accept(conn)
        elif conn.state == CLOSED:
            pass
        elif conn.state == LINGERING:
            self._linger(conn)
        else:
            if events & poller.INPUT:
                conn.unseen |= events & poller.INPUT
                if conn.reader is not None:
                    conn.reader.wake()
            if events & ~poller.READABLE and conn.writer is not None:
                conn.writer.wake()

    # ------------------------------------------------------------- greenlets

    def wait_for_head(self, conn: Connection, data: bytes) -> None:
        """Keep *data* until the rest of the request head has come."""
        conn.buffer = data
        if conn.state != READING:
            self._expect_head(conn)
        self._look_again(conn)

    def _expect_head(self, conn: Connection) -> None:
        conn.state = READING
        conn.started = self.clock()
        if self.options.header_timeout:
            self.schedule(conn, conn.started + self.options.header_timeout)

    def _look_again(self, conn: Connection) -> None:
        """Have a parked connection read once more if it may have more, else on its next edge."""
        if conn.unseen:
            self._ready.append((conn, conn.unseen))
            self._turn_again()
        elif self._arm is not None:
            self._arm(conn.fd)

    def park(self, conn: Connection) -> None:
        """Take a connection back from its greenlet, to wait for the next request."""
        conn.state = IDLE
        clock = self.clock
        # One number for both: 32 bytes less for each idle connection.
        conn.since = conn.started = clock()
        # Others lie in a bucket of the wheel that is early enough already: see _next_look().
        if conn.overrides is not None or not conn.slot:
            self.schedule(conn, conn.idle_deadline())
        if self._is_full and not self._accept_timer.active:
            self._listen()
        if conn.buffer is not None:
            self._ready.append((conn, poller.READABLE))
            self._turn_again()
        elif conn.unseen or self._arm is not None:
            self._look_again(conn)

    def wait_readable(
        self, conn: Connection, deadline: float, error: Callable[[], Exception], between_requests: bool = False
    ) -> None:
        """Wait, on a greenlet, until there may be something to read.

        Who has found nothing to read has to set ``unseen`` to 0 first.

        :param deadline: monotonic seconds, may be infinite
        :param error: makes what is raised when the deadline strikes
        :param between_requests: whether what is waited for is a new request
        :raises ConcurrentObjectUseError: another greenlet waits for the same, as gevent's sockets have it
        """
        if conn.unseen:
            return
        if conn in self._handed_over:
            self._wait_for_taken(conn, socket.wait_read, deadline, error)
            return
        if conn.reader is not None:
            raise ConcurrentObjectUseError(f"another greenlet reads from {conn!r}")
        if self._arm is not None:
            self._arm(conn.fd)
        conn.reader = wait = Wait(getcurrent(), deadline, error, between_requests)
        try:
            self._wait(conn, wait)
        finally:
            conn.reader = None

    def wait_writable(self, conn: Connection, deadline: float, error: Callable[[], Exception]) -> None:
        """Wait, on a greenlet, until the kernel may take more; as :meth:`wait_readable`."""
        if conn in self._handed_over:
            self._wait_for_taken(conn, socket.wait_write, deadline, error)
            return
        if conn.writer is not None:
            raise ConcurrentObjectUseError(f"another greenlet writes to {conn!r}")
        conn.writer = wait = Wait(getcurrent(), deadline, error)
        state, conn.state = conn.state, WRITING
        self._poller.watch_writable(conn.fd)
        try:
            self._wait(conn, wait)
        finally:
            conn.writer = None
            if conn.state == WRITING:
                conn.state = state

    def _wait(self, conn: Connection, wait: Wait) -> None:
        if wait.deadline != _NEVER:
            self.schedule(conn, wait.deadline)
        self.hub.switch()

    def give_way(self) -> None:
        """Let everybody else have a turn, on a greenlet that has had its slice of time."""
        # Whoever was woken just now has not, however long ago our last turn was. (It is the wall
        # clock that the hub's loop tells the beginning of its round by.)
        if self.clock() > self._turn_ends and time() > self.hub.loop.now() + SLICE:
            self._turn_again()  # So that who is ready comes first.
            with self.hub.loop.timer(0) as turn:
                self.hub.wait(turn)
            self._turn_ends = self.clock() + SLICE

    def _wait_for_taken(
        self, conn: Connection, wait: Callable[..., None], deadline: float, error: Callable[[], Exception]
    ) -> None:
        """Wait for a connection that is not in the poller, because the application has its socket."""
        seconds = None if deadline == _NEVER else max(0.0, deadline - self.clock())
        wait(conn.fd, timeout=seconds, timeout_exc=error())

    def hand_over(self, conn: Connection) -> Any:
        """The connection as a socket of gevent's for the application, which now waits for itself.

        :raises OSError: the request is over, and the connection not the application's any more
        """
        if conn.state not in (HANDLING, WRITING):
            raise OSError(errno.EBADF, "the request that this socket came with is over")
        overrides = conn.own_overrides()
        if overrides.socket is None:
            # The application may close it, and its number be given to the next connection.
            self._poller.remove(conn.fd)
            self._table[conn.fd] = None
            self._handed_over.add(conn)
            if conn.tls_socket is not None:
                overrides.socket = conn.tls_socket
                overrides.socket.settimeout(None)
            else:
                overrides.socket = socket.socket(conn.listener.family, socket.SOCK_STREAM, 0, conn.fd)
        return overrides.socket

    def take_back(self, conn: Connection) -> bool:
        """Undo :meth:`hand_over` after the request; False when the application closed the socket."""
        overrides = conn.own_overrides()
        sock, overrides.socket = overrides.socket, None
        self._handed_over.discard(conn)
        if sock.fileno() != conn.fd:
            conn.fd = -1
            return False
        sock.settimeout(0.0)
        if sock is not conn.tls_socket:
            sock.detach()
        self._table[conn.fd] = conn
        self._poller.add(conn.fd)
        conn.unseen = poller.READABLE
        return True

    # ------------------------------------------------------------- deadlines

    def schedule(self, conn: Connection, deadline: float) -> None:
        """See to it that the connection's deadline is checked at *deadline*."""
        self._wheel.schedule(conn, deadline)
        if deadline < self._timer_at:
            self._set_timer()

    def _set_timer(self) -> None:
        due = self._wheel.next_due()
        if due is None:
            self._timer_at = _NEVER
            self._timer.stop()
        elif due != self._timer_at:
            self._timer_at = due
            self._timer.close()
            self._timer = self.hub.loop.timer(max(0.0, due - self.clock()))
            self._timer.start(self._deadlines, update=True)

    def _deadlines(self) -> None:
        """Act on the deadlines that have passed, for a slice of time."""
        now = self.clock()
        until = now + SLICE
        while now < until:
            due = self._wheel.due(now, 32)
            if not due:
                break
            for conn in due:
                try:
                    self._check_deadline(conn, now)
                except Exception:
                    self._failed(conn)
            now = self.clock()
        self._timer_at = _NEVER
        self._set_timer()

    def _check_deadline(self, conn: Connection, now: float) -> None:
        deadline = self.ends_at(conn)
        if deadline > now:
            self._wheel.schedule(conn, min(deadline, self._next_look(conn, now)))
        elif conn.state == READING:
            self.head_is_late(conn)
        elif conn.state == LINGERING:
            self._release(conn)
        elif conn.state <= LAST_PARKED:
            self.end_idle(conn, Reason.IDLE_TIMEOUT)
        else:
            reader, writer = conn.reader, conn.writer
            if reader is not None and reader.deadline <= now:
                reader.expire()
            # The one may have ended the other's wait.
            if writer is not None and writer is conn.writer and writer.deadline <= now:
                writer.expire()
            if conn.state < CLOSED and not conn.slot:
                self._wheel.schedule(conn, min(self.ends_at(conn), self._next_look(conn, now)))

    def ends_at(self, conn: Connection) -> float:
        """When a connection ends unless something happens before (monotonic seconds, may be infinite)."""
        state = conn.state
        options = self.options
        if state == IDLE:
            return conn.idle_deadline()
        if state == NEW:
            # Load balancers open connections ahead of need: what is silent is idle, not late.
            return max(conn.idle_deadline(), conn.since + options.header_timeout)
        if state == READING:
            if options.header_timeout:
                return conn.started + options.header_timeout
        elif state == LINGERING:
            return conn.since + LINGER
        else:
            return min((wait.deadline for wait in (conn.reader, conn.writer) if wait is not None), default=_NEVER)
        return _NEVER

    def _next_look(self, conn: Connection, now: float) -> float:
        """When to look at a connection again at the latest: as if it became idle just now.

        Whenever it does become idle, its deadline is later than that, and need not be scheduled.
        """
        return now + max(conn.timeout + conn.terms.grace, LOOK_EVERY)

    # --------------------------------------------------------------- endings

    def end_idle(self, conn: Connection, reason: Reason, linger: bool = True) -> bool:
        """End an idle connection, unless a request has just come on it. From the hub.

        :param linger: see :meth:`close`
        :returns: whether it was ended
        """
        if conn.state == IDLE and conn.buffer is not None:
            return False  # A pipelined request has come; its turn is near.
        if _waits_for_stream(conn):
            # What has just come is not lost: GOAWAY says that nobody has looked at it.
            conn.reader.expire(NoMoreRequests(reason))  # type: ignore[union-attr]
            if conn.state == LINGERING and not linger:
                self._release(conn)
            return conn.state >= LINGERING
        before = conn.requests, conn.bytes_received
        self._receive(conn, poller.READABLE)
        if (conn.requests, conn.bytes_received) != before or conn.state > LAST_PARKED:
            return False
        self.close(conn, reason, linger=linger)
        return True

    def close(self, conn: Connection, reason: Reason, linger: bool = False, abort: bool = False) -> None:
        """End a connection and count it; from the hub and from greenlets. A second call is nothing.

        :param linger: send FIN first and wait a moment for the client's, so that what the client
            may be sending at this moment is not answered with a reset
        :param abort: reset the connection, because a FIN would make a response that was cut look
            complete
        """
        if conn.state >= LINGERING:
            return
        now = self.clock()
        self.counters.count_closed(conn, reason, now)
        self.open -= 1
        if self.balance is not None:
            self.balance.publish(self.open)
        if self._per_peer:
            self._leave_peer(conn)
        conn.buffer = None
        if conn.reader is not None or conn.writer is not None:
            self._end_waits(conn)
        if self.on_closed is not None:
            self.on_closed(conn, reason)
        if conn.overrides is not None and conn.overrides.socket is not None:
            self.take_back(conn)
        if conn.fd < 0:
            linger = False
        elif abort:
            conn.listener.reset_on_close(conn)
        elif conn.tls_socket is not None:
            say_goodbye(conn)
        if linger:
            try:
                conn.listener.half_close(conn)
            except OSError:
                linger = False
        if linger:
            conn.state = LINGERING
            conn.since = now
            self.lingering += 1
            self.schedule(conn, now + LINGER)
            self._linger(conn)
        else:
            self._release(conn)
        if self._is_full:
            self._listen()
        if not self.open and self.on_empty is not None:
            self.on_empty()

    def _end_waits(self, conn: Connection) -> None:
        """Tell greenlets of the application that wait for a connection which somebody else has ended."""
        for wait in (conn.reader, conn.writer):
            if wait is not None:
                error = OSError(errno.EBADF, "the connection was closed")
                self.hub.loop.run_callback(self._end_wait, conn, wait, error)

    def _end_wait(self, conn: Connection, wait: Wait, error: Exception) -> None:
        if wait is conn.reader or wait is conn.writer:  # Else what it waited for has come meanwhile.
            wait.expire(error)

    def _linger(self, conn: Connection) -> None:
        """Throw away what still comes, until the client's FIN."""
        try:
            for _ in range(16):
                if not os.read(conn.fd, RECEIVE):
                    break
            else:
                conn.unseen = poller.READABLE
                self._look_again(conn)
                return
        except BlockingIOError:
            if self._arm is not None:
                self._arm(conn.fd)
            return
        except OSError:
            pass
        self._release(conn)

    def _release(self, conn: Connection) -> None:
        """Give the descriptor back."""
        self._wheel.forget(conn)
        if conn.state == LINGERING:
            self.lingering -= 1
            if not self.lingering and self.on_empty is not None:
                self.on_empty()
        conn.state = CLOSED
        # The next client gets this number: nobody who still has the connection may read from or
        # write to that one.
        fd, conn.fd = conn.fd, -1
        if fd < 0:
            return  # The application closed it itself.
        self._table[fd] = None
        self._poller.remove(fd)
        if conn.tls_socket is not None:
            conn.tls_socket.close()
        else:
            _close(fd)

    # ------------------------------------------------------------- accepting

    def listen(self, listener: Listener) -> None:
        """Accept connections there."""
        self._listeners.append(listener)
        self._grow_table(listener.fd)
        self._listen()

    def _listen(self) -> None:
        for listener in self._listeners:
            if self._table[listener.fd] is None:
                self._table[listener.fd] = listener
                self._poller.add_listener(listener.fd)
        self._is_full = self.terms.crowded = False

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            if self._table[listener.fd] is not None:
                self._table[listener.fd] = None
                self._poller.remove(listener.fd)

    def stop_accepting(self) -> None:
        """Close the listeners; the other workers have their own descriptors of the same socket."""
        self._stop_listening()
        for listener in self._listeners:
            if listener.is_own:
                self._take_the_rest(listener)
            listener.close()
        self._listeners.clear()
        self._accept_timer.stop()

    def _take_the_rest(self, listener: Listener) -> None:
        """Accept who waits at a socket that no other worker has: its end would reset them."""
        while True:
            try:
                fd, host, port = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    return
                continue
            self._welcome(listener, fd, host, port)

    def _grow_table(self, fd: int) -> None:
        if fd >= len(self._table):
            self._table.extend([None] * (fd + 1 - len(self._table)))

    def _accept(self, listener: Listener) -> None:
        """Take connections, in a batch that leaves the others their turn."""
        # Having stepped back once for others who did not come, take a few of those that wait.
        polite = 0 if self._stepped_back else ACCEPTS_WHEN_AHEAD
        self._stepped_back = False
        for taken in range(ACCEPTS):
            if taken >= ACCEPTS_WHEN_AHEAD - polite and self.balance is not None and self.balance.is_ahead(self.open):
                self._stepped_back = True
                self._pause_accepting(STEP_BACK)
                return
            is_full = self.open >= self._limit
            if is_full:
                room_in = self._room_in()
                if taken and room_in != 0:
                    return  # Whether there is another one that waits, the next event will tell.
                if room_in is None:
                    self.warn(
                        f"all {self._limit} connections are busy: new ones wait in the backlog until one is free;"
                        " where that is often so, raise --worker-connections or --workers"
                    )
                    self._stop_listening()
                    self._wait_for_an_end()
                    return
                if room_in > 0:
                    self._pause_accepting(room_in)
                    self._wait_for_an_end()
                    return
            try:
                fd, host, port = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    continue  # The client has gone before it was accepted (accept(2)).
                if not self._make_room(linger=False):
                    self._pause_accepting(self._room_in() or ACCEPT_RETRY)
                    self._wait_for_an_end()
                    self.warn(f"cannot accept connections: {error.strerror}; {_WAY_OUT}")
                    return
                self.warn(f"closed the longest-idle connection to accept another: {error.strerror}; {_WAY_OUT}")
                continue
            # Only now: somebody else may have taken the one who waited. Where a request has just come on
            # the one that was to go, there is one too many, and the next one goes, settled or not.
            if is_full and not self._make_room():
                self._make_room(settled=0.0)
            self._welcome(listener, fd, host, port)

    def _wait_for_an_end(self) -> None:
        """Somebody waits: whoever has its response is told to go, and its end lets us accept again."""
        self._is_full = True
        self.terms.crowded = self.options.evict_idle

    def _pause_accepting(self, seconds: float) -> None:
        """Leave the listeners alone for a moment: they stay ready and would spin."""
        self._stop_listening()
        self._accept_timer.close()
        self._accept_timer = self.hub.loop.timer(seconds)
        self._accept_timer.start(self._listen)

    def _welcome(self, listener: Listener, fd: int, host: str, port: int) -> None:
        now = self.clock()
        self._serial += 1
        # One string for all connections of a host: 60 bytes less for each.
        hosts = self._hosts
        if len(hosts) > 4096:
            hosts.clear()
        host = hosts.setdefault(host, host)
        conn = Connection(self._serial, fd, host, port, listener, listener.heads_for(host), self.terms, now)
        self._grow_table(fd)
        self._table[fd] = conn
        self.open += 1
        if self.balance is not None:
            self.balance.publish(self.open)
        self.counters.accepted += 1
        self._poller.add(fd)
        self.schedule(conn, self._next_look(conn, now))
        if self.on_opened is not None:
            self.on_opened(conn)
        if self.options.max_peer_connections and not listener.is_unix:
            count = self._per_peer[host] = self._per_peer.get(host, 0) + 1
            if count > self.options.max_peer_connections:
                self.over_peer_limit(conn)

    def _leave_peer(self, conn: Connection) -> None:
        left = self._per_peer.get(conn.host, 0) - 1
        if left > 0:
            self._per_peer[conn.host] = left
        else:
            self._per_peer.pop(conn.host, None)

    def _room_in(self) -> float | None:
        """Seconds until a connection may give way to another, 0 when one may now, None when nobody is idle."""
        if self.options.evict_idle:
            for conn in self._by_idleness():
                self._longest_idle.append((conn.since, conn.id, conn.fd))
                return max(0.0, conn.since + SETTLED - self.clock())
        return None

    def _make_room(self, linger: bool = True, settled: float = SETTLED) -> bool:
        """Close the longest-idle connection, if eviction is on and there is one that may be closed.

        :param linger: see :meth:`close`; who lingers keeps its descriptor
        :param settled: seconds of idleness from which it may
        """
        if not self.options.evict_idle:
            return False
        before = self.open
        latest = self.clock() - settled
        for conn in self._by_idleness():
            if conn.since > latest:
                self._longest_idle.append((conn.since, conn.id, conn.fd))
                break
            self.end_idle(conn, Reason.EVICTED, linger)
            if self.open < before:
                return True
        return False

    def _by_idleness(self) -> Iterator[Connection]:
        """The idle connections, the longest idle first, looked out in batches.

        One search over all connections serves many evictions: whoever became idle after the
        search has not been idle for longer than those it found.
        """
        for _ in range(2):
            while self._longest_idle:
                since, number, fd = self._longest_idle.pop()
                conn = self._table[fd]
                if conn is None or not _is_idle(conn):
                    continue
                if conn.id == number and conn.since == since and conn.buffer is None:
                    yield conn
            found = [(c.since, c.id, c.fd) for c in self.connections() if _is_idle(c)]
            found.sort(reverse=True)
            self._longest_idle = found[-EVICTION_BATCH:]

    # ------------------------------------------------------------- the table

    def connections(self) -> Iterator[Connection]:
        """All connections that are not closed or about to be."""
        for conn in self._table:
            if conn is not None and conn.state < LINGERING:
                yield conn
        yield from self._handed_over

    def count_idle(self) -> int:
        """How many connections wait for a request of which nothing has come."""
        states = [conn.state for conn in self._table if conn is not None]
        idle = states.count(NEW) + states.count(IDLE)
        if states.count(HANDLING):
            idle += sum(conn is not None and _waits_for_stream(conn) for conn in self._table)
        return idle

    # ------------------------------------------------------------- stopping

    def end_http2(self) -> None:
        """Have HTTP/2 connections that wait for their next request end with GOAWAY."""
        for conn in list(self.connections()):
            if _waits_for_stream(conn):
                self.hub.loop.run_callback(self._end_wait, conn, conn.reader, NoMoreRequests(Reason.SHUTDOWN))

    def end_all(self) -> None:
        """End every connection; what is being answered is reset, so that the client can tell."""
        for conn in list(self.connections()):
            parked = conn.state <= LAST_PARKED
            self.close(conn, Reason.SHUTDOWN, linger=parked, abort=not parked)

    def shut_down(self) -> None:
        """Give everything back, at once."""
        for conn in self._table:
            if conn is not None and conn.state == LINGERING:
                self._release(conn)
        self._stop_watching()

    def _stop_watching(self) -> None:
        self._timer.stop()
        self._accept_timer.stop()
        self._next_turn.stop()
        self._poller.close()

    def forget_all(self) -> None:
        """In a child that the application has forked: leave every connection to the parent.

        The child has copies of all descriptors, but the epoll set and the connections themselves are
        the parent's, too. So nothing may be unregistered or shut down here; closing the copies is what
        lets the parent's FIN reach the clients while the child lives.
        """
        self._stop_watching()
        # One that has nothing to report: who has just forked may have been called from _turn().
        self._poller = poller.HubPoller(self.hub, self._turn)
        self._wheel = Wheel()
        for conn in [conn for conn in self._table if isinstance(conn, Connection)]:
            fd, conn.fd = conn.fd, -1
            conn.state = CLOSED
            if conn.tls_socket is not None:
                conn.tls_socket.close()
            else:
                _close(fd)
        for conn in self._handed_over:
            conn.fd, conn.state = -1, CLOSED  # Its socket is the application's.
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        self._handed_over.clear()
        self._ready.clear()
        self._table.clear()
        self.open = self.lingering = 0

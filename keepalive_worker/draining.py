"""How a worker stops without losing a request and without keeping anybody waiting.

It answers what is already on its way with ``Connection: close``, keeps idle connections for
``drain_timeout`` in case a request is, ends them by FIN, lets responses finish within
``graceful_timeout`` and leaves as soon as the last one is done.

Meanwhile somebody has to accept. Workers that were told to stop because of a reload go on until
one of the new ones is there, for loading an application takes its time. One that stops because of
``max_requests`` is replaced only after it has ended, so with no other worker it goes on for as
long as it keeps idle connections.
"""

from __future__ import annotations

import fcntl
import mmap
import tempfile
from collections.abc import Callable
from typing import Any

from gevent.event import Event

from keepalive_worker.connection import IDLE, NEW, Connection, Reason
from keepalive_worker.greenlets import GreenletPool
from keepalive_worker.loop import EventLoop
from keepalive_worker.roster import BOOTING, RUNNING, Place, Roster

#: Seconds that clients get, at the very end, to answer our FIN with theirs. Together with the
#: ending of ten thousand connections (0.3 s), the master's look for its workers (every 0.1 s) and
#: the end of two interpreters (0.3 s) it has to stay below a second.
_LAST_LINGER = 0.25
#: Seconds that greenlets get to clean up when graceful_timeout is over.
_LAST_WORDS = 1.0
#: Seconds between two looks at who is idle and who else accepts.
_STEP = 0.1
#: Seconds after a worker's end by which the master has forked another, if it wants one: it is told
#: of the end at once, and does not want one after ``SIGTTOU``.
_REPLACED_WITHIN = 5.0


class Drain:
    """The end of a worker's life.

    :param loop: the event loop
    :param pool: where requests are handled
    :param roster: the server's workers
    :param place: this worker's place in it
    :param notify: tells the master that the worker is alive
    """

    def __init__(
        self, loop: EventLoop, pool: GreenletPool, roster: Roster, place: Place, notify: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._pool = pool
        self._roster = roster
        self._place = place
        self._notify = notify
        self._emptied = Event()
        loop.on_empty = self._emptied.set

    def run(self, graceful_timeout: float, recycling: bool) -> bool:
        """Finish what is under way.

        :param graceful_timeout: seconds that requests get to finish
        :param recycling: whether the reason is ``max_requests``
        :returns: False when something had to be cut off
        """
        loop = self._loop
        began = loop.clock()
        # The master kills when graceful_timeout is over: cutting off has to be done before.
        end_of_grace = began + graceful_timeout - min(_LAST_WORDS, graceful_timeout / 4)
        end_of_idling = min(began + loop.options.drain_timeout, end_of_grace)
        loop.terms.draining = True
        loop.end_http2()
        accepting = True
        while True:
            now = loop.clock()
            if accepting and not self._is_needed(recycling and now < end_of_idling):
                accepting = False
                loop.stop_accepting()
            if now >= end_of_grace:
                break
            if not accepting and not loop.open:
                break
            for conn in list(loop.connections()):
                if conn.state in (NEW, IDLE) and self._has_idled(conn, began, now):
                    loop.end_idle(conn, Reason.SHUTDOWN)
            # Not a step late for the moment at which most have had their time.
            self._wait(min(_STEP, (end_of_idling if now < end_of_idling else end_of_grace) - now))
        done = not loop.open
        if not done:
            self._pool.kill_busy()
            self._wait_until(lambda: not loop.open, _LAST_WORDS)
        self.leave()
        return done

    def leave(self) -> None:
        """Close what is left, after a moment for the clients to close first."""
        self._loop.stop_accepting()
        self._loop.end_all()
        self._wait_until(lambda: not self._loop.lingering, _LAST_LINGER)
        self._loop.shut_down()

    def _is_needed(self, recycling: bool) -> bool:
        """Whether nobody else accepts, but somebody will."""
        others = [place.state for place in self._roster.alive() if place.index != self._place.index]
        return RUNNING not in others and (recycling or BOOTING in others)

    def _has_idled(self, conn: Connection, began: float, now: float) -> bool:
        """Whether an idle connection had its time since it was idle and we were told to stop."""
        return now >= max(began, conn.since) + self._loop.options.drain_timeout

    def _wait(self, seconds: float) -> None:
        self._emptied.wait(seconds)
        self._emptied.clear()
        self._notify()

    def _wait_until(self, over: Callable[[], bool], seconds: float) -> None:
        until = self._loop.clock() + seconds
        while not over() and self._loop.clock() < until:
            self._wait(until - self._loop.clock())


class RecyclingTurn:
    """Whose turn it is to stop because of ``max_requests``: one worker of a server at a time.

    Workers that started together reach their count together. Were they to stop together, or each
    while the one before it is being replaced, nobody would be left to accept. A lock on a file
    without a name, made in the master, decides; the kernel takes it back when its holder ends,
    however that happens (POSIX record locks belong to the process). The turn passes on when the
    holder's replacement serves, for loading an application takes its time.

    :param roster: the server's workers
    """

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        # Open for as long as the server runs.
        self._file: Any = tempfile.TemporaryFile(prefix="keepalive-worker-")  # noqa: SIM115
        #: Shared, and written by who has the lock: the newest worker when the turn was last
        #: taken, and since when (monotonic seconds, 0 for not yet) it is known to be over.
        self._notes = memoryview(mmap.mmap(-1, 16)).cast("d")

    def close(self) -> None:
        """Give up the file; for tests, as a server needs it until its end."""
        self._file.close()

    def take(self, now: float) -> bool:
        """Whether it is this process's turn; it keeps it until it ends.

        :param now: monotonic seconds
        """
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        if not self._is_free(now):
            fcntl.lockf(self._file, fcntl.LOCK_UN)
            return False
        self._notes[0], self._notes[1] = self._newest(), 0
        return True

    def _is_free(self, now: float) -> bool:
        """Whether the last holder, which has ended, is replaced or will not be."""
        if any(place.state == BOOTING for place in self._roster.alive()):
            return False
        if self._newest() > self._notes[0]:
            return True
        self._notes[1] = self._notes[1] or now
        return now >= self._notes[1] + _REPLACED_WITHIN

    def _newest(self) -> int:
        return max(place.age for place in self._roster.alive())

"""A worker's part in the statistics: it publishes its own figures and asks the others for theirs.

Counting is done elsewhere, in plain attributes. With each sign of life, once a second, a worker
writes what has changed to the board; an idle one writes nothing but the time. Connections are
written only when somebody asks, because ten thousand of them take 20 ms.

Whoever answers a request for the report asks all workers by one descriptor that they have in
common. They are told of it by their hubs, list their connections in slices between other work,
and write. The one that asked waits for that, but not for long: a worker that is stuck is shown
with its last figures and their age.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import gevent

from keepalive_worker.board import DRAINING, ENDED, Board, Record, Slot, pack_row
from keepalive_worker.connection import IDLE, LINGERING, Connection
from keepalive_worker.statistics import BATCH, NOTHING, SILENT_AFTER, Figures, Row, WorkerRecord, report

if TYPE_CHECKING:
    from keepalive_worker.loop import EventLoop

#: Seconds that the others get to answer.
PATIENCE = 0.5
#: Without a common descriptor they look with each sign of life.
_PATIENCE_WITHOUT_BELL = 1.25
#: Seconds between two looks whether they have.
_FIRST_LOOK, _LATER_LOOKS = 0.0005, 0.01

# Taken before gevent's monkey-patching, which deletes select.epoll (see poller.py).
_epoll = getattr(select, "epoll", None)


class Bell:
    """Wakes all workers at once: an eventfd(2) that nobody ever reads.

    Each worker has it in an epoll set of its own, edge-triggered: every write is an edge for all
    of them. To be made in the master. Elsewhere than on Linux it does nothing.
    """

    def __init__(self) -> None:
        self._fd: int | None = None
        self._set: Any = None
        self._watcher: Any = None
        if _epoll is not None and hasattr(os, "eventfd"):
            with contextlib.suppress(OSError):
                self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    @property
    def works(self) -> bool:
        """Whether the others hear it."""
        return self._fd is not None

    def ring(self) -> None:
        """Wake all workers."""
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.eventfd_write(self._fd, 1)

    def listen(self, hub: Any, heard: Callable[[], None]) -> None:
        """Have *heard* called in the hub whenever somebody rings."""
        if self._fd is None or _epoll is None:
            return
        self._set = _epoll()
        self._set.register(self._fd, select.EPOLLIN | select.EPOLLET)
        self._watcher = hub.loop.io(self._set.fileno(), 1)
        self._watcher.start(self._rung, heard)

    def _rung(self, heard: Callable[[], None]) -> None:
        self._set.poll(0)
        heard()

    def stop_listening(self) -> None:
        """Undo :meth:`listen`."""
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
            self._watcher = None
            self._set.close()


class Reporter:
    """``environ["keepalive.statistics"]``: gives the report of the whole server.

    :param loop: the worker's event loop
    :param board: what the workers share, and this worker's slot on it; None where it could not be
        made, and the report is about this worker alone
    :param bell: wakes the other workers
    """

    def __init__(self, loop: EventLoop, place: tuple[Board, Slot] | None, bell: Bell) -> None:
        self._loop = loop
        self._clock = loop.clock
        self._board: Board | None = None
        self._slot: Slot | None = None
        if place is not None:
            self._board, self._slot = place
        self._bell = bell
        self._changes: tuple[Any, ...] = ()
        #: When the connections on the board were listed.
        self._listed_at = 0.0
        self._listing: Iterator[None] | None = None
        # Not a callback of the hub's loop: it runs fifty of those in a row before it looks at
        # descriptors again. A timer waits for its next turn.
        self._next_slice: Any = loop.hub.loop.timer(0)
        self._pid = os.getpid()
        self._started_at = time.time()

    # ------------------------------------------------------------------- publishing

    def begin(self) -> None:
        """The worker serves from now on."""
        if self._slot is not None:
            self._slot.begin(self._started_at, self._clock())
            self._bell.listen(self._loop.hub, self._answer)

    def beat(self) -> None:
        """A sign of life; to be called about once a second."""
        if self._slot is None or self._board is None:
            return
        now = self._clock()
        counters = self._loop.counters
        changes = (
            counters.requests,
            counters.accepted,
            counters.bytes_received,
            counters.bytes_sent,
            self._loop.open,
        )
        if changes != self._changes:
            self._changes = changes
            self._write_figures(now)
        self._slot.seen = now
        if self._loop.terms.draining and self._slot.state != DRAINING:
            self._slot.state = DRAINING
        if self._board.asked_at > self._listed_at and not self._bell.works:
            self._answer()

    def forget_all(self) -> None:
        """In a child that the application has forked: the figures on the board are the parent's."""
        self._bell.stop_listening()
        self._next_slice.stop()
        self._listing = None

    def end(self) -> None:
        """The worker has served its last request."""
        if self._slot is not None:
            self._bell.stop_listening()
            self._write_figures(self._clock())
            self._slot.state = ENDED

    def _figures(self) -> Figures:
        open_, idle = self._loop.open, self._loop.count_idle()
        return Figures.of(self._loop.counters, open_, idle)

    def _write_figures(self, now: float) -> None:
        assert self._slot is not None
        self._slot.write_figures(self._figures(), now)
        self._slot.seen = now

    # ------------------------------------------------------------------- answering others

    def _answer(self) -> None:
        """In the hub: somebody wants to know how things are, now."""
        assert self._board is not None
        self._write_figures(self._clock())
        if self._board.asked_at > self._listed_at and self._listing is None:
            self._listing = self._list()
            self._go_on_listing()

    def _go_on_listing(self) -> None:
        listing, self._listing = self._listing, None
        if listing is None:
            return
        for _ in listing:
            self._listing = listing
            self._next_slice.start(self._go_on_listing)
            return
        assert self._board is not None
        if self._board.asked_at > self._listed_at:
            self._answer()  # Somebody else has asked meanwhile.

    def _list(self) -> Iterator[None]:
        """Write all connections to the board, in slices."""
        assert self._slot is not None
        began = self._clock()
        connections = list(self._loop.connections())
        packed: list[bytes] = []
        for start in range(0, len(connections), BATCH):
            if start:
                yield
            batch = connections[start : start + BATCH]
            packed += [pack_row(self._row(conn)) for conn in batch if conn.state < LINGERING]
        self._write_figures(self._clock())
        if began > self._listed_at:
            self._listed_at = began
            self._slot.write_rows(b"".join(packed), began)

    def _row(self, conn: Connection) -> Row:
        between = conn.reader is not None and conn.reader.between_requests
        return Row(
            conn.id,
            conn.accepted,
            conn.since,
            self._loop.ends_at(conn),
            conn.requests,
            conn.bytes_received,
            conn.bytes_sent,
            conn.port,
            IDLE if between else conn.state,
            conn.protocol.encode("ascii"),
            conn.host.encode("utf-8", "replace"),
        )

    # ------------------------------------------------------------------- asking

    def report(self, sort: str = "idle", limit: int = 100) -> dict[str, Any]:
        """The report about the whole server. On a greenlet, which waits.

        :param sort: ``idle``, ``age``, ``requests`` or ``bytes``
        :param limit: most connections to list; with 0 nobody is asked for any
        """
        if self._board is None or self._slot is None:
            return self._report_alone(sort, limit)
        asked = self._clock()
        if limit:
            self._board.asked_at = asked
            self._bell.ring()
            for _ in self._list():
                self.pause()
        else:
            self._bell.ring()
        self._wait_for_others(asked, bool(limit))
        if limit and self._loop.open <= BATCH:
            for _ in self._list():  # Once more, so that figures and connections agree exactly.
                pass
        self._write_figures(self._clock())
        ended, records = self._read()
        notes: list[str] = []
        workers = [self._with_rows(record, notes) if limit else _without_rows(record) for record in records]
        return report(
            time=time.time(),
            now=self._clock(),
            worker_pid=self._pid,
            workers=workers,
            ended=ended,
            sort=sort,
            limit=limit,
            notes=notes,
            pause=self.pause,
        )

    def pause(self) -> None:
        """Let other requests go first."""
        # Not sleep(0), for the same reason as above.
        with self._loop.hub.loop.timer(0) as turn:
            self._loop.hub.wait(turn)

    def _wait_for_others(self, asked: float, rows: bool) -> None:
        assert self._board is not None
        assert self._slot is not None
        until = asked + (PATIENCE if self._bell.works else _PATIENCE_WITHOUT_BELL)
        look = _FIRST_LOOK
        # Not for those who have been silent for long.
        waiting = [
            slot
            for slot in self._board.slots()
            if slot.start != self._slot.start and slot.is_alive and slot.seen > asked - SILENT_AFTER
        ]
        while True:
            waiting = [
                slot
                for slot in waiting
                if (slot.figures_as_of < asked or (rows and slot.rows_as_of < asked)) and slot.is_alive
            ]
            if not waiting or self._clock() >= until:
                return
            gevent.sleep(look)
            look = min(_LATER_LOOKS, 1.5 * look)

    def _read(self) -> tuple[Figures, list[Record]]:
        assert self._board is not None
        while (found := self._board.read()) is None:
            gevent.sleep(_FIRST_LOOK)
        return found

    def _with_rows(self, record: Record, notes: list[str]) -> WorkerRecord:
        found = record.slot.read_rows()
        # Of a worker that does not answer, those of earlier may long be gone.
        if found is not None and found[0] >= record.as_of - SILENT_AFTER:
            return _without_rows(record)._replace(rows=found[1])
        if record.figures.open:
            notes.append(f"Worker {record.pid} does not answer: its connections are not listed.")
        return _without_rows(record)

    def _report_alone(self, sort: str, limit: int) -> dict[str, Any]:
        now = self._clock()
        rows = [self._row(conn) for conn in self._loop.connections()] if limit else None
        draining = self._loop.terms.draining
        alone = WorkerRecord(self._pid, self._started_at, draining, self._figures(), now, rows)
        return report(
            time=time.time(),
            now=now,
            worker_pid=self._pid,
            workers=[alone],
            ended=NOTHING,
            sort=sort,
            limit=limit,
            notes=["There was no memory to share: this report is about one worker alone."],
            pause=self.pause,
        )


def _without_rows(record: Record) -> WorkerRecord:
    return WorkerRecord(record.pid, record.started_at, record.draining, record.figures, record.as_of)

"""Memory in which each worker of a server writes its figures and all workers read them.

It is a file without a name (``memfd_create(2)``; a temporary file where there is none), made in
the master before the first fork, so all workers inherit it, also those that are forked later. It
can grow, which an anonymous mapping cannot: a worker more than expected, or one with more
connections after a reload, gets a slot at the end, and whoever reads maps the longer file.

    header      folding mark, where the last slot ends, when connections were last asked for,
                and the figures of all workers that have ended
    slot        one worker at a time: who it is, its figures twice, its connections twice
    slot ...

Pages that nobody writes to take no memory, so the room for connections costs nothing until
somebody asks for them.

Every number has one writer. The master gives slots out, and takes over what a worker that has
ended left in its slot; a worker writes in its slot alone. Nobody takes a lock, so nobody can die
with one. (A new master, after ``USR2``, has a board of its own: each of the two servers tells of
itself while both run.) Figures and connections are written to two places by turns, with a serial number and a
checksum: a reader takes the newest that is whole, and of a worker killed in the middle of a write
it still finds what was there before.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import tempfile
import weakref
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from keepalive_worker.connection import Reason
from keepalive_worker.statistics import COUNTS, NOTHING, SUMS, Figures, Row

_PAGE = mmap.PAGESIZE

#: Of the header: the folding mark, and where the last slot ends.
_MARK, _END = struct.Struct("=q"), 8
#: When connections were last asked for, in monotonic seconds.
_ASKED, _ASKED_AT = struct.Struct("=d"), 16
_ENDED_AT = 64
_FIRST_SLOT = _PAGE

#: Of a slot: its bytes, its room for connections.
_ROOM = struct.Struct("=qq")
#: Process id, when the process was born (see :func:`birth_of`), when the worker began to serve
#: (seconds since the epoch), its state.
_OWNER, _OWNER_AT = struct.Struct("=qqdq"), 16
_STATE, _STATE_AT = struct.Struct("=q"), 40
#: The last sign of life, in monotonic seconds.
_SEEN, _SEEN_AT = struct.Struct("=d"), 48

_FIGURES = struct.Struct(f"={COUNTS}q{SUMS}d2q")
#: Of what is written twice: serial number, time (monotonic seconds), bytes, checksum of all that.
_STAMP = struct.Struct("=qdqq")
_NUMBERED = struct.Struct("=qd")
_RECORD_AT = 64
_RECORD = _STAMP.size + _FIGURES.size
_ROWS_AT = -(-(_RECORD_AT + 2 * _RECORD) // _PAGE) * _PAGE

#: :class:`~keepalive_worker.statistics.Row`. An IPv6 address has at most 45 characters, a scope
#: not counted; a longer name of a unix socket is cut.
ROW = struct.Struct("=qdddqqqiB8s62s")

#: States of a slot's worker. One that is claimed does not serve yet.
CLAIMED, RUNNING, DRAINING, ENDED = range(4)

#: How often a reader that finds the master at work looks again before it gives up for now.
_TRIES = 20


class Record(NamedTuple):
    """What a slot says about its worker."""

    slot: Slot
    pid: int
    started_at: float
    draining: bool
    figures: Figures
    #: When the figures were true (monotonic seconds).
    as_of: float


class Board:
    """See the module. To be made in the master."""

    def __init__(self) -> None:
        self._fd = _nameless_file()
        os.ftruncate(self._fd, _FIRST_SLOT)
        self.memory = mmap.mmap(self._fd, _FIRST_SLOT)
        _MARK.pack_into(self.memory, _END, _FIRST_SLOT)
        self._write_ended(NOTHING)
        #: In the master: who was given which slot. gunicorn forgets a worker once it has ended.
        self._owners: dict[int, weakref.ref[object]] = {}

    def close(self) -> None:
        """Give the memory back; for tests, as a server needs it until its end."""
        self.memory.close()
        os.close(self._fd)

    # ------------------------------------------------------------------- in the master

    def claim(self, connections: int, owner: object) -> Slot:
        """A slot for a worker that is about to be forked.

        :param connections: most connections that it will hold
        :param owner: the worker object; when nothing refers to it any more, the worker has ended
        :raises OSError: when there is no memory for it
        """
        for slot in self.slots():
            if slot.connections >= connections and self._is_over(slot):
                self._fold(slot)
                break
        else:
            slot = self._append(connections)
        self._owners[slot.start] = weakref.ref(owner)
        return slot

    def _is_over(self, slot: Slot) -> bool:
        owner = self._owners.get(slot.start)
        if owner is None or owner() is None:
            return True
        pid, born, _, _ = slot.owner
        return bool(pid) and birth_of(pid) != born

    def _fold(self, slot: Slot) -> None:
        """Add the figures of the slot's last worker to those of the ended ones, and clear it."""
        left = slot.left_behind()
        mark = _MARK.unpack_from(self.memory)[0]
        # Odd while the figures are in both places or in neither.
        _MARK.pack_into(self.memory, 0, mark + 1)
        if left is not None:
            self._write_ended(self._read_ended().plus(left))
        slot.clear()
        _MARK.pack_into(self.memory, 0, mark + 2)

    def _append(self, connections: int) -> Slot:
        start = self._end
        rows = -(-(_STAMP.size + connections * ROW.size) // _PAGE) * _PAGE
        size = _ROWS_AT + 2 * rows
        os.ftruncate(self._fd, start + size)
        self._map(start + size)
        _ROOM.pack_into(self.memory, start, size, connections)
        _MARK.pack_into(self.memory, _END, start + size)
        return Slot(self, start)

    # ------------------------------------------------------------------- for everybody

    @property
    def _end(self) -> int:
        return int(_MARK.unpack_from(self.memory, _END)[0])

    def _map(self, end: int) -> None:
        # Not mmap.resize(): it would also cut a file that has meanwhile grown further.
        shorter, self.memory = self.memory, mmap.mmap(self._fd, end)
        shorter.close()

    def slots(self) -> Iterator[Slot]:
        """All slots, taken or not."""
        end = self._end
        if end > len(self.memory):
            self._map(end)
        start = _FIRST_SLOT
        while start < end:
            slot = Slot(self, start)
            yield slot
            start += slot.size

    @property
    def asked_at(self) -> float:
        """When somebody last asked for connections (monotonic seconds, 0 for never)."""
        return float(_ASKED.unpack_from(self.memory, _ASKED_AT)[0])

    @asked_at.setter
    def asked_at(self, now: float) -> None:
        # Two who ask at once overwrite each other. Both times are later than the last answer.
        _ASKED.pack_into(self.memory, _ASKED_AT, now)

    def _read_ended(self) -> Figures:
        return _unpack(self.memory[_ENDED_AT : _ENDED_AT + _FIGURES.size])

    def _write_ended(self, figures: Figures) -> None:
        self.memory[_ENDED_AT : _ENDED_AT + _FIGURES.size] = _pack(figures)

    def read(self) -> tuple[Figures, list[Record]] | None:
        """The figures of the workers that have ended, together, and of those that run.

        :returns: None when the master is just taking a worker's figures over; look again later
        """
        for _ in range(_TRIES):
            mark = _MARK.unpack_from(self.memory)[0]
            ended = self._read_ended()
            running: list[Record] = []
            for slot in self.slots():
                if slot.is_alive:
                    record = slot.read()
                    if record is not None:
                        running.append(record)
                else:
                    left = slot.left_behind()
                    if left is not None:
                        ended = ended.plus(left)
            if not mark % 2 and mark == _MARK.unpack_from(self.memory)[0]:
                return ended, running
        return None


class Slot:
    """The place of one worker at a time on a board.

    :param board: where
    :param start: at which byte
    """

    __slots__ = ("_board", "connections", "size", "start")

    def __init__(self, board: Board, start: int) -> None:
        self._board = board
        self.start = start
        #: Its bytes; and most connections that it has room for.
        self.size: int
        self.connections: int
        self.size, self.connections = _ROOM.unpack_from(board.memory, start)

    # ------------------------------------------------------------------- for its worker

    def begin(self, started_at: float, now: float) -> None:
        """This process is the worker now, and serves.

        :param started_at: seconds since the epoch
        :param now: the same moment in monotonic seconds
        """
        self.write_figures(NOTHING, now)
        self.seen = now
        pid = os.getpid()
        _OWNER.pack_into(
            self._board.memory, self.start + _OWNER_AT, pid, birth_of(pid) or 0, started_at, RUNNING
        )

    @property
    def state(self) -> int:
        """One of the states in this module."""
        return int(_STATE.unpack_from(self._board.memory, self.start + _STATE_AT)[0])

    @state.setter
    def state(self, state: int) -> None:
        _STATE.pack_into(self._board.memory, self.start + _STATE_AT, state)

    @property
    def seen(self) -> float:
        """When the worker last gave a sign of life: its figures are true as of then, or later."""
        return float(_SEEN.unpack_from(self._board.memory, self.start + _SEEN_AT)[0])

    @seen.setter
    def seen(self, now: float) -> None:
        _SEEN.pack_into(self._board.memory, self.start + _SEEN_AT, now)

    def write_figures(self, figures: Figures, now: float) -> None:
        """Publish the worker's figures, true *now* (monotonic seconds)."""
        self._write(_RECORD_AT, _RECORD, _pack(figures), now)

    def write_rows(self, rows: bytes, began: float) -> None:
        """Publish the worker's connections.

        :param rows: as :func:`pack_row` packs them; what there is no room for is left out
        :param began: when the worker began to list them (monotonic seconds)
        """
        room = self.connections * ROW.size
        self._write(_ROWS_AT, (self.size - _ROWS_AT) // 2, rows[:room], began)

    # ------------------------------------------------------------------- for everybody

    @property
    def owner(self) -> tuple[int, int, float, int]:
        """Process id, birth, beginning of service (seconds since the epoch), state."""
        return _OWNER.unpack_from(self._board.memory, self.start + _OWNER_AT)

    @property
    def is_alive(self) -> bool:
        """Whether a worker serves here."""
        pid, born, _, state = self.owner
        return state in (RUNNING, DRAINING) and birth_of(pid) == born

    def read(self) -> Record | None:
        """What the slot says; None while its worker has not begun."""
        pid, _, started_at, state = self.owner
        found = self._read(_RECORD_AT, _RECORD)
        if not pid or found is None:
            return None
        as_of, data = found
        return Record(self, pid, started_at, state == DRAINING, _unpack(data), max(as_of, self.seen))

    @property
    def figures_as_of(self) -> float:
        """When the figures were written (monotonic seconds)."""
        return self._newest(_RECORD_AT, _RECORD)[0][1]

    @property
    def rows_as_of(self) -> float:
        """When the worker began to list its connections, the last time; 0 for never."""
        return self._newest(_ROWS_AT, (self.size - _ROWS_AT) // 2)[0][1]

    def read_rows(self) -> tuple[float, Sequence[Row]] | None:
        """When the worker began to list its connections, the last time, and the connections."""
        found = self._read(_ROWS_AT, (self.size - _ROWS_AT) // 2)
        return None if found is None else (found[0], Rows(found[1]))

    def left_behind(self) -> Figures | None:
        """What a worker that has ended counted, with an end for the connections it still had.

        A worker that ended in good order has closed them all, or left them to its end. One that
        was killed has not: for their clients that is an error.
        """
        record = self.read()
        if record is None:
            return None
        return record.figures.ended(Reason.SHUTDOWN if self.state == ENDED else Reason.ERROR)

    def clear(self) -> None:
        """Forget the last worker. Only in the master."""
        memory, start = self._board.memory, self.start
        _OWNER.pack_into(memory, start + _OWNER_AT, 0, 0, 0.0, CLAIMED)
        for at, size in ((_RECORD_AT, _RECORD), (_ROWS_AT, (self.size - _ROWS_AT) // 2)):
            for place in (start + at, start + at + size):
                _STAMP.pack_into(memory, place, 0, 0.0, 0, 0)

    # ------------------------------------------------------------------- two places by turns

    def _newest(self, at: int, size: int) -> tuple[tuple[int, float, int, int], int]:
        """The stamp with the higher number, and where it is."""
        memory = self._board.memory
        places = (self.start + at, self.start + at + size)
        return max((_STAMP.unpack_from(memory, place), place) for place in places)

    def _write(self, at: int, size: int, data: bytes, now: float) -> None:
        (number, *_), place = self._newest(at, size)
        if number:
            place = 2 * (self.start + at) + size - place
        memory = self._board.memory
        # Not whole from here on, whoever looks and whenever this process is stopped.
        _STAMP.pack_into(memory, place, 0, 0.0, 0, 0)
        memory[place + _STAMP.size : place + _STAMP.size + len(data)] = data
        _STAMP.pack_into(memory, place, number + 1, now, len(data), _checksum(number + 1, now, data))

    def _read(self, at: int, size: int) -> tuple[float, bytes] | None:
        memory = self._board.memory
        places = [self.start + at, self.start + at + size]
        for _ in range(_TRIES):
            stamped = sorted(((_STAMP.unpack_from(memory, place), place) for place in places), reverse=True)
            for (number, now, length, checksum), place in stamped:
                if number and 0 <= length <= size - _STAMP.size:
                    data = memory[place + _STAMP.size : place + _STAMP.size + length]
                    if _checksum(number, now, data) == checksum:
                        return now, data
            if not stamped[0][0][0]:
                return None
        return None


class Rows(Sequence[Row]):
    """Connections, unpacked when somebody looks at them."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data) // ROW.size

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return list(map(Row._make, ROW.iter_unpack(self._data[start * ROW.size : stop * ROW.size])))
            return [self[number] for number in range(start, stop, step)]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return Row._make(ROW.unpack_from(self._data, index % len(self) * ROW.size))


def pack_row(row: Row) -> bytes:
    """*row* as it stands on the board."""
    return ROW.pack(*row)


def birth_of(pid: int) -> int | None:
    """When a process was born, in a measure of its own; None when it is not there or a zombie.

    Process ids are used again; together with this they are not. Where there is no ``/proc``, all
    processes were born at 0.
    """
    try:
        # proc(5): state is the third field, starttime the 22nd; the second may hold anything.
        fields = _read_stat(pid).rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, IndexError, ValueError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return 0


def _read_stat(pid: int) -> bytes:
    return Path(f"/proc/{pid}/stat").read_bytes()


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):  # Forbidden by some sandboxes.
            return os.memfd_create("keepalive-worker")
    with tempfile.TemporaryFile(prefix="keepalive-worker-") as file:
        return os.dup(file.fileno())


def _pack(figures: Figures) -> bytes:
    return _FIGURES.pack(*figures.counts, *figures.sums, figures.open, figures.idle)


def _unpack(data: bytes) -> Figures:
    numbers = _FIGURES.unpack(data)
    return Figures(numbers[:COUNTS], numbers[COUNTS : COUNTS + SUMS], numbers[-2], numbers[-1])


def _checksum(number: int, now: float, data: bytes) -> int:
    return zlib.crc32(_NUMBERED.pack(number, now), zlib.crc32(data))

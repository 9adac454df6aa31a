"""The memory that the workers of a server share: real processes, killed where it hurts."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest
from harness import wait_until
from hypothesis import given
from hypothesis import strategies as st

from keepalive_worker import board as board_module
from keepalive_worker.board import (
    DRAINING,
    ENDED,
    ROW,
    RUNNING,
    Board,
    Slot,
    birth_of,
    pack_row,
)
from keepalive_worker.connection import IDLE, Reason
from keepalive_worker.statistics import COUNTS, NOTHING, REASONS, SUMS, Figures, Row

ROOM = 100


class Owner:
    """Stands for gunicorn's worker object, which the master forgets when the worker has ended."""


def figures(number: int, open_: int = 0) -> Figures:
    """Figures of which every part is *number*."""
    return Figures((number,) * COUNTS, (float(number),) * SUMS, open_, 0)


def row(number: int, host: bytes = b"127.0.0.1", port: int = 4000) -> Row:
    return Row(number, 1.0, 2.0, 3.0, 4, 5, 6, port, IDLE, b"HTTP/1.1", host)


@pytest.fixture
def board() -> Iterator[Board]:
    """A board as the master makes it."""
    made = Board()
    yield made
    made.close()


class Child:
    """A process that does one thing and then waits to be ended."""

    def __init__(self, action: Callable[[], object]) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            _be_the_child(action, writing)
        os.close(writing)
        with os.fdopen(reading, "rb") as done:
            assert done.read(1) == b"+", "the child failed"

    def kill(self) -> None:
        """End it without a chance to say anything, and wait until it is gone."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _be_the_child(action: Callable[[], object], writing: int) -> NoReturn:
    try:
        action()
        os.write(writing, b"+")
        signal.pause()
    finally:
        os._exit(1)


def begin(slot: Slot, values: Figures = NOTHING, state: int = RUNNING) -> None:
    """What a worker does when it begins to serve, and later."""
    slot.begin(1000.0, 10.0)
    slot.write_figures(values, 11.0)
    slot.state = state


def read(board: Board) -> tuple[Figures, list[board_module.Record]]:
    found = board.read()
    assert found is not None
    return found


# --- one worker ------------------------------------------------------------------------------------


def test_a_new_board_is_empty(board: Board) -> None:
    assert read(board) == (NOTHING, [])


def test_a_worker_that_has_not_begun_is_not_there(board: Board) -> None:
    owner = Owner()
    board.claim(ROOM, owner)
    assert read(board) == (NOTHING, [])


def test_a_worker_is_there_from_its_beginning(board: Board) -> None:
    owner = Owner()
    slot = board.claim(ROOM, owner)
    child = Child(lambda: begin(slot, figures(7, open_=3)))
    try:
        ended, (record,) = read(board)
        assert ended == NOTHING
        assert (record.pid, record.started_at, record.draining) == (child.pid, 1000.0, False)
        assert (record.figures, record.as_of) == (figures(7, open_=3), 11.0)
    finally:
        child.kill()


def test_figures_without_a_change_are_as_new_as_the_last_sign_of_life(board: Board) -> None:
    owner = Owner()
    slot = board.claim(ROOM, owner)
    begin(slot)
    slot.seen = 99.0
    assert read(board)[1][0].as_of == 99.0
    slot.write_figures(figures(1), 120.0)
    assert read(board)[1][0].as_of == 120.0


def test_draining_is_seen(board: Board) -> None:
    owner = Owner()
    begin(board.claim(ROOM, owner), state=DRAINING)
    assert read(board)[1][0].draining


# --- the end of a worker -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "reason"), [(RUNNING, Reason.ERROR), (DRAINING, Reason.ERROR), (ENDED, Reason.SHUTDOWN)]
)
def test_what_a_worker_counted_outlives_it(board: Board, state: int, reason: Reason) -> None:
    owner: Owner | None = Owner()
    slot = board.claim(ROOM, owner)
    child = Child(lambda: begin(slot, figures(7, open_=3), state))
    child.kill()
    expected = figures(7, open_=3).ended(reason)
    assert expected.open == 0
    assert expected.counts[5 + REASONS.index(reason)] == 10
    assert read(board) == (expected, [])
    owner = None
    gc.collect()
    # The master gives the slot to the next, and takes the figures over.
    again = Owner()
    assert board.claim(ROOM, again).start == slot.start
    assert read(board) == (expected, [])
    begin(slot, figures(1))
    ended, (record,) = read(board)
    assert (ended, record.figures) == (expected, figures(1))


def test_a_zombie_has_ended(board: Board) -> None:
    owner = Owner()
    slot = board.claim(ROOM, owner)
    child = Child(lambda: begin(slot, figures(1)))
    assert slot.is_alive
    os.kill(child.pid, signal.SIGKILL)
    # Nobody has waited for it, so its process id is still there.
    wait_until(lambda: not slot.is_alive, "the process's end")
    os.kill(child.pid, 0)
    os.waitpid(child.pid, 0)
    assert not slot.is_alive


def test_a_process_id_that_was_used_again_is_not_the_worker(board: Board) -> None:
    owner = Owner()
    slot = board.claim(ROOM, owner)
    begin(slot)
    assert slot.is_alive
    pid, born, started_at, state = slot.owner
    struct.pack_into("=qqdq", board.memory, slot.start + 16, pid, born - 1, started_at, state)
    assert not slot.is_alive


def test_a_slot_is_not_taken_from_a_living_worker(board: Board) -> None:
    owners = [Owner(), Owner(), Owner()]
    first = board.claim(ROOM, owners[0])  # Not forked yet.
    second = board.claim(ROOM, owners[1])
    child = Child(lambda: begin(second))
    try:
        assert board.claim(ROOM, owners[2]).start not in (first.start, second.start)
    finally:
        child.kill()


def test_a_worker_that_never_began_leaves_its_slot(board: Board) -> None:
    owner: Owner | None = Owner()
    slot = board.claim(ROOM, owner)
    owner = None
    gc.collect()
    again = Owner()
    assert board.claim(ROOM, again).start == slot.start
    assert read(board) == (NOTHING, [])


def test_a_kept_object_does_not_keep_the_slot_of_a_killed_worker(board: Board) -> None:
    """An application's hook may store worker objects in the master."""
    owner, again = Owner(), Owner()
    slot = board.claim(ROOM, owner)
    Child(lambda: begin(slot)).kill()
    assert board.claim(ROOM, again).start == slot.start


def test_the_next_worker_does_not_show_connections_of_the_last(board: Board) -> None:
    owner, again = Owner(), Owner()
    slot = board.claim(ROOM, owner)

    def work() -> None:
        begin(slot)
        for began in (1.0, 2.0):
            slot.write_rows(pack_row(row(1)), began)

    Child(work).kill()
    assert slot.read_rows() is not None
    board.claim(ROOM, again)
    assert slot.read_rows() is None
    assert slot.rows_as_of == 0.0


# --- readers and writers at the same time --------------------------------------------------------------


def _write_for_ever(slot: Slot) -> NoReturn:
    number = 1
    while True:
        number += 1
        slot.write_figures(figures(number), float(number))
        slot.write_rows(pack_row(row(number)) * ROOM, float(number))


def _fork(action: Callable[[], Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        action()
    finally:
        os._exit(1)


def test_a_reader_never_sees_half_a_write_nor_goes_back(board: Board) -> None:
    owner = Owner()
    slot = board.claim(ROOM, owner)
    begin(slot, figures(1))
    slot.write_rows(pack_row(row(1)), 1.0)
    pid = _fork(lambda: _write_for_ever(slot))
    try:
        last = last_row = 0
        begun = time.monotonic()
        while last < 3000 or last_row < 3000:
            record = slot.read()
            if record is None:  # The writer was quicker, again and again.
                continue
            assert record.figures == figures(record.figures.counts[0])
            assert record.figures.counts[0] >= last
            last = record.figures.counts[0]
            found = slot.read_rows()
            if found is not None:
                began, rows = found
                assert {each.id for each in rows[:]} == {int(began)}
                assert int(began) >= last_row
                last_row = int(began)
            assert time.monotonic() - begun < 60
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("part", range(0, 40, 2))
def test_a_worker_killed_while_it_writes_loses_nothing_that_was_seen(board: Board, part: int) -> None:
    owner = Owner()
    slot = board.claim(ROOM, owner)
    begin(slot, figures(1))
    slot.write_rows(pack_row(row(1)), 1.0)
    pid = _fork(lambda: _write_for_ever(slot))
    try:
        seen = 0
        while seen < 2 + part * 5:
            record = slot.read()
            seen = record.figures.counts[0] if record is not None else seen
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    record = slot.read()
    assert record is not None
    assert record.figures.counts[0] >= seen
    found = slot.read_rows()
    assert found is not None
    assert {each.id for each in found[1][:]} == {int(found[0])}


def test_one_half_that_is_damaged_leaves_the_other(board: Board) -> None:
    owner = Owner()
    slot = board.claim(ROOM, owner)
    begin(slot, figures(1))
    slot.write_figures(figures(2), 12.0)
    _, place = slot._newest(board_module._RECORD_AT, board_module._RECORD)
    board.memory[place + 100] ^= 1
    record = slot.read()
    assert record is not None
    assert record.figures == figures(1)


def test_totals_never_go_backwards_while_workers_come_and_go(board: Board) -> None:
    """One process reads without a pause while the master takes over one worker after another."""
    stop, results = os.pipe(), os.pipe()

    def watch() -> None:
        os.set_blocking(stop[0], False)
        last, looks, stopping = 0, 0, False
        while True:
            found = board.read()
            if found is not None:
                ended, running = found
                total = ended.counts[0] + sum(record.figures.counts[0] for record in running)
                if total < last:
                    os.write(results[1], f"from {last} to {total}".encode())
                    return
                last, looks = total, looks + 1
            if stopping:
                os.write(results[1], f"fine {last} {looks}".encode())
                return
            with contextlib.suppress(BlockingIOError):
                stopping = bool(os.read(stop[0], 1))

    watcher = _fork(watch)
    for _ in range(300):
        owner: Owner | None = Owner()
        slot = board.claim(ROOM, owner)
        begin(slot)
        for number in (1, 2, 3):
            slot.write_figures(figures(number), 1.0)
        slot.state = ENDED
        owner = None
        gc.collect(0)
    os.write(stop[1], b"+")
    verdict = os.read(results[0], 100).decode().split()
    os.waitpid(watcher, 0)
    for fd in (*stop, *results):
        os.close(fd)
    assert verdict[:2] == ["fine", "900"], verdict
    assert int(verdict[2]) > 100


def test_a_reader_gives_up_for_now_when_the_master_is_at_work(board: Board) -> None:
    struct.pack_into("=q", board.memory, 0, 1)
    assert board.read() is None
    struct.pack_into("=q", board.memory, 0, 2)
    assert board.read() == (NOTHING, [])


# --- growing ---------------------------------------------------------------------------------------------


def test_there_is_a_slot_for_any_number_of_workers(board: Board) -> None:
    owners = [Owner() for _ in range(200)]
    slots = [board.claim(ROOM, owner) for owner in owners]
    assert len({slot.start for slot in slots}) == 200
    for number, slot in enumerate(slots):
        begin(slot, figures(number))
    assert [record.figures.counts[0] for record in read(board)[1]] == list(range(200))


def test_workers_forked_before_see_those_that_come_later(board: Board) -> None:
    """TTIN beyond what was there at the start."""
    answer = os.pipe()
    go = os.pipe()

    def early() -> None:
        assert os.read(go[0], 1) == b"+"
        os.write(answer[1], str(len(read(board)[1])).encode())

    pid = _fork(early)
    owners = [Owner() for _ in range(20)]
    for owner in owners:
        begin(board.claim(10_000, owner))
    os.write(go[1], b"+")
    assert os.read(answer[0], 10) == b"20"
    os.waitpid(pid, 0)
    for fd in (*answer, *go):
        os.close(fd)


def test_a_reload_with_more_connections_gets_more_room(board: Board) -> None:
    owners: list[Owner] = [Owner()]
    small = board.claim(10, owners[0])
    begin(small, figures(5))
    small.state = ENDED
    owners.clear()
    gc.collect()
    owners.append(Owner())
    large = board.claim(1000, owners[0])
    assert (small.connections, large.connections) == (10, 1000)
    assert large.start != small.start
    assert read(board)[0] == figures(5)
    # And back: what is large enough is used again.
    owners.append(Owner())
    assert board.claim(5, owners[1]).start == small.start


def test_room_that_nobody_uses_takes_no_memory(board: Board) -> None:
    owners = [Owner() for _ in range(10)]
    for owner in owners:
        begin(board.claim(100_000, owner))
    taken = os.fstat(board._fd).st_blocks * 512
    assert os.fstat(board._fd).st_size > 200_000_000
    assert taken < 40 * 4096


# --- connections -----------------------------------------------------------------------------------------


def test_connections_come_back_as_they_were(board: Board) -> None:
    owner = Owner()
    slot = board.claim(ROOM, owner)
    rows = [
        row(1),
        row(2, b"2001:db8:1111:2222:3333:4444:5555:6666%eth0"),
        row(3, b"", -1),
        row(4, b"/run/" + b"x" * 100, -1),
        row(2**62)._replace(deadline=float("inf"), protocol=b"HTTP/2"),
    ]
    slot.write_rows(b"".join(map(pack_row, rows)), 5.0)
    assert slot.rows_as_of == 5.0
    found = slot.read_rows()
    assert found is not None
    began, got = found
    assert (began, len(got)) == (5.0, 5)
    assert [each.peer for each in got[:]] == [
        "127.0.0.1:4000",
        "[2001:db8:1111:2222:3333:4444:5555:6666%eth0]:4000",
        "",
        "/run/" + "x" * 57,
        "127.0.0.1:4000",
    ]
    assert [each[:-2] for each in got[:]] == [each[:-2] for each in rows]
    assert got[4].protocol.rstrip(b"\0") == b"HTTP/2"
    assert got[-1] == got[4]
    assert list(got[1:5:2]) == [got[1], got[3]]
    with pytest.raises(IndexError):
        got[5]


def test_no_connections_are_an_answer_too(board: Board) -> None:
    owner = Owner()
    slot = board.claim(ROOM, owner)
    assert slot.read_rows() is None
    slot.write_rows(b"", 5.0)
    found = slot.read_rows()
    assert found is not None
    assert (found[0], len(found[1])) == (5.0, 0)


def test_connections_beyond_the_room_are_left_out(board: Board) -> None:
    owners = [Owner(), Owner()]
    slot, neighbour = (board.claim(ROOM, owner) for owner in owners)
    neighbour.write_rows(pack_row(row(77)), 1.0)
    for began in (1.0, 2.0, 3.0):
        slot.write_rows(pack_row(row(1)) * (2 * ROOM + 50), began)
        found = slot.read_rows()
        assert found is not None
        assert len(found[1]) == ROOM
    (kept,) = neighbour.read_rows()[1][:]  # type: ignore[index]
    assert kept.id == 77


@given(
    st.lists(st.integers(0, 2**40), min_size=COUNTS, max_size=COUNTS), st.integers(0, 9), st.integers(0, 9)
)
def test_figures_come_back_as_they_were(counts: list[int], open_: int, idle: int) -> None:
    board, owner = Board(), Owner()
    try:
        slot = board.claim(1, owner)
        values = Figures(tuple(counts), (0.1, 1e9, 3.0), open_, idle)
        begin(slot, values)
        assert read(board)[1][0].figures == values
    finally:
        board.close()


# --- processes -------------------------------------------------------------------------------------------


def test_birth_of() -> None:
    assert birth_of(os.getpid()) == birth_of(os.getpid())
    assert birth_of(os.getpid()) is not None
    child = Child(lambda: None)
    assert birth_of(child.pid) is not None
    child.kill()
    assert birth_of(child.pid) is None


def test_birth_of_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "_read_stat", _no_proc)
    assert birth_of(os.getpid()) == 0
    assert birth_of(1) == 0  # Where this is not ours, the answer is EPERM.
    child = Child(lambda: None)
    child.kill()
    assert birth_of(child.pid) is None


def _no_proc(pid: int) -> bytes:
    raise FileNotFoundError(pid)


def test_where_memfd_is_forbidden_a_file_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(name: str) -> int:
        raise PermissionError(1, name)

    monkeypatch.setattr(os, "memfd_create", forbidden, raising=False)
    board, owner = Board(), Owner()
    try:
        assert os.fstat(board._fd).st_nlink == 0
        begin(board.claim(ROOM, owner), figures(3))
        assert read(board)[1][0].figures == figures(3)
    finally:
        board.close()


def test_a_row_is_small() -> None:
    """It is paid for ten thousand connections at a time."""
    assert ROW.size <= 136

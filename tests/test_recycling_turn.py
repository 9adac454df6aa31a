"""Whose turn it is to stop because of ``max_requests``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from keepalive_worker.draining import RecyclingTurn
from keepalive_worker.roster import BOOTING, DRAINING, FREE, RUNNING, Place, Roster


class Workers:
    """A server's workers, and what this process finds when it asks for the turn as one of them."""

    def __init__(self) -> None:
        self.roster = Roster(3)
        self.turn = RecyclingTurn(self.roster)
        self.made = 0
        self.now = 1000.0

    def fork(self) -> Place:
        self.made += 1
        return self.roster.claim(self.made)

    def serve(self, place: Place) -> Place:
        place.pid = os.getpid()
        place.state = RUNNING
        return place

    def take(self) -> bool:
        return self.turn.take(self.now)

    @contextmanager
    def held_by_another_process(self) -> Iterator[None]:
        taken, take = os.pipe()
        over, end = os.pipe()
        child = os.fork()
        if not child:
            os.close(end)
            os.write(take, b"1" if self.take() else b"0")
            os.read(over, 1)  # Until the parent closes the other end.
            os._exit(0)
        try:
            assert os.read(taken, 1) == b"1"
            yield
        finally:
            os.close(end)
            os.waitpid(child, 0)
            for fd in (taken, take, over):
                os.close(fd)


@pytest.fixture
def workers() -> Iterator[Workers]:
    """Three workers that serve."""
    workers = Workers()
    for _ in range(3):
        workers.serve(workers.fork())
    yield workers
    workers.turn.close()


def test_one_at_a_time(workers: Workers) -> None:
    with workers.held_by_another_process():
        workers.serve(workers.fork())
        workers.now += 1000
        assert not workers.take()
    assert workers.take()


def test_the_next_waits_for_the_replacement(workers: Workers) -> None:
    with workers.held_by_another_process():
        pass
    assert not workers.take()
    heir = workers.fork()
    workers.now += 1000
    assert not workers.take()
    workers.serve(heir)
    assert workers.take()


def test_who_is_not_replaced_is_waited_for_only_a_while(workers: Workers) -> None:
    """After SIGTTOU nobody comes."""
    for _ in range(2):
        assert workers.take()
        assert not workers.take()
        workers.now += 4.9
        assert not workers.take()
        workers.now += 0.2
    assert workers.take()


def test_nobody_stops_while_another_boots(workers: Workers) -> None:
    booting = workers.fork()
    assert not workers.take()
    booting.state = FREE
    assert workers.take()


@pytest.mark.parametrize("state", [RUNNING, DRAINING])
def test_a_worker_that_has_been_replaced_since_counts(workers: Workers, state: int) -> None:
    """Whatever has become of it: others may have been replaced by a reload meanwhile."""
    assert workers.take()
    workers.serve(workers.fork()).state = state
    assert workers.take()


def test_a_worker_that_was_killed_while_it_booted_is_not_waited_for(workers: Workers) -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    place = workers.fork()
    place.pid = child
    assert place.state == BOOTING
    assert workers.take()

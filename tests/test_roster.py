"""Which workers there are, and who of them lets others go first: numbers in memory that they share."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from keepalive_worker.roster import BOOTING, DRAINING, FREE, RUNNING, Balance, Place, Roster


@pytest.fixture
def roster() -> Roster:
    """Of a server that was told to run four workers."""
    return Roster(4)


def _ended() -> int:
    """The process id of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def _running(roster: Roster, connections: int = 0) -> Place:
    place = roster.claim(1)
    place.pid = os.getpid()
    place.state = RUNNING
    place.connections = connections
    return place


def test_a_worker_has_a_place_before_it_is_forked(roster: Roster) -> None:
    place = roster.claim(1)
    assert (place.pid, place.state, place.connections) == (0, BOOTING, 0)
    assert [other.index for other in roster.alive()] == [place.index]
    assert roster.claim(1).index != place.index


@pytest.mark.parametrize("end", ["in good order", "killed"])
def test_a_place_is_given_again_when_its_worker_has_ended(roster: Roster, end: str) -> None:
    stays, goes = _running(roster, 5), _running(roster, 7)
    if end == "killed":
        goes.pid = _ended()
    else:
        goes.state = FREE
    assert [other.index for other in roster.alive()] == [stays.index]
    heir = roster.claim(1)
    assert heir.index == goes.index
    assert (heir.pid, heir.state, heir.connections) == (0, BOOTING, 0)
    assert stays.connections == 5


def test_when_all_places_are_taken_nothing_fails(roster: Roster) -> None:
    places = [_running(roster) for _ in range(200)]
    assert len({place.index for place in places}) < 200
    assert places[-1].index == places[-2].index


def test_every_change_of_state_changes_the_version(roster: Roster) -> None:
    seen = [roster.version]
    place = roster.claim(1)
    seen.append(roster.version)
    for state in (RUNNING, DRAINING, FREE):
        place.state = state
        seen.append(roster.version)
    assert len(set(seen)) == len(seen)


def test_a_worker_alone_is_never_ahead(roster: Roster) -> None:
    balance = Balance(roster, _running(roster))
    assert not balance.is_ahead(1_000_000)


@pytest.mark.parametrize(
    ("others", "count", "ahead"),
    [
        # The mean of few may be missed by three.
        ((0,), 6, False),
        ((0,), 7, True),
        ((10, 10, 10), 14, False),
        ((10, 10, 10), 15, True),
        # That of many by a twentieth: 1,000 * 1.05 and its own part in the mean.
        ((1000, 1000, 1000), 1067, False),
        ((1000, 1000, 1000), 1068, True),
        ((2000, 0, 0), 700, False),
    ],
)
def test_who_has_clearly_more_than_the_mean_is_ahead(
    roster: Roster, others: tuple[int, ...], count: int, ahead: bool
) -> None:
    balance = Balance(roster, _running(roster))
    for other in others:
        _running(roster, other)
    assert balance.is_ahead(count) is ahead


@pytest.mark.parametrize("state", [BOOTING, DRAINING, FREE])
def test_nobody_waits_for_those_who_do_not_accept(roster: Roster, state: int) -> None:
    balance = Balance(roster, _running(roster))
    other = _running(roster)
    assert balance.is_ahead(100)
    other.state = state
    assert not balance.is_ahead(100)
    other.state = RUNNING
    assert balance.is_ahead(100)


def test_nobody_waits_for_a_killed_worker_after_the_next_look(roster: Roster) -> None:
    balance = Balance(roster, _running(roster))
    other = _running(roster)
    assert balance.is_ahead(100)
    other.pid = _ended()
    balance.refresh()
    assert not balance.is_ahead(100)


def test_what_one_publishes_the_other_reads(roster: Roster) -> None:
    one, other = _running(roster), _running(roster)
    balance = Balance(roster, one)
    assert balance.is_ahead(50)
    Balance(roster, other).publish(50)
    assert not balance.is_ahead(50)

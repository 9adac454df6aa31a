"""Which workers a server has and how far they are, for the workers themselves to know.

A few numbers a worker in memory that all of them share. It is made in the master, which makes
the worker objects before it forks (so it is inherited, and so only the master gives out places),
and needs no files. Each worker writes its own numbers and reads the others'.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

#: States of a place. A worker that boots has been forked and does not accept yet.
FREE, BOOTING, RUNNING, DRAINING = range(4)

_PID, _STATE, _OPEN, _AGE = range(4)
_FIELDS = 4
#: Places beyond twice the workers asked for: TTIN adds workers, reloads double them for a while.
_SPARE = 64


class Roster:
    """The places of a server's workers.

    :param workers: how many the server was told to run
    """

    def __init__(self, workers: int) -> None:
        places = 2 * workers + _SPARE
        # One cell more, at the end: a number that changes whenever a worker's state does.
        self._memory = mmap.mmap(-1, (places * _FIELDS + 1) * 8)
        self._cells = memoryview(self._memory).cast("q")
        self._places = places

    @property
    def version(self) -> int:
        """Changes whenever a worker's state does."""
        return self._cells[-1]

    def claim(self, age: int) -> Place:
        """A place for a worker that is about to be forked. Only in the master.

        When all are taken by living workers the last one is shared: its figures are then of use
        to nobody, but nothing fails.

        :param age: how many workers the master has made, this one included
        """
        for index in range(self._places):
            place = Place(self, index)
            if place.state == FREE or not place.is_alive:
                break
        place.pid = 0
        place.age = age
        place.connections = 0
        place.state = BOOTING
        return place

    def alive(self) -> Iterator[Place]:
        """The places of workers that have not ended."""
        for index in range(self._places):
            place = Place(self, index)
            if place.state != FREE and place.is_alive:
                yield place


class Place:
    """One worker's numbers in a :class:`Roster`.

    :param roster: where it is
    :param index: which one
    """

    __slots__ = ("_base", "_cells", "index")

    def __init__(self, roster: Roster, index: int) -> None:
        self.index = index
        self._cells = roster._cells
        self._base = index * _FIELDS

    @property
    def pid(self) -> int:
        """Process id, 0 until it is known."""
        return self._cells[self._base + _PID]

    @pid.setter
    def pid(self, pid: int) -> None:
        self._cells[self._base + _PID] = pid

    @property
    def state(self) -> int:
        """One of the module's states."""
        return self._cells[self._base + _STATE]

    @state.setter
    def state(self, state: int) -> None:
        self._cells[self._base + _STATE] = state
        self._cells[-1] += 1

    @property
    def connections(self) -> int:
        """Connections that the worker holds at this moment."""
        return self._cells[self._base + _OPEN]

    @connections.setter
    def connections(self, count: int) -> None:
        self._cells[self._base + _OPEN] = count

    @property
    def age(self) -> int:
        """How many workers the master had made with this one, as gunicorn calls it: the newest has the most."""
        return self._cells[self._base + _AGE]

    @age.setter
    def age(self, age: int) -> None:
        self._cells[self._base + _AGE] = age

    @property
    def is_alive(self) -> bool:
        """Whether its process is there; one that is not forked yet counts as there."""
        pid = self.pid
        if not pid:
            return True
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # The number belongs to somebody else's process by now, or ours changed its user.
        return True


class Balance:
    """Keeps long-lived connections spread evenly over the workers.

    Who accepts a persistent connection has it for its life, and the kernel wakes whom it likes.
    So a worker that has clearly more than the mean steps back for a moment when a new one comes.

    :param roster: the server's workers
    :param place: this worker's place in it
    """

    #: Connections above the mean that do not count as more, at least and as a share of the mean.
    SLACK = 3
    SHARE = 0.05

    def __init__(self, roster: Roster, place: Place) -> None:
        self._roster = roster
        self._place = place
        self._others: list[Place] = []
        self._version = -1

    def refresh(self) -> None:
        """Look again who else accepts; to be called every second or so, for workers may be killed."""
        self._version = self._roster.version
        self._others = [
            place for place in self._roster.alive() if place.state == RUNNING and place.index != self._place.index
        ]

    def publish(self, count: int) -> None:
        """Let the others know how many connections this worker holds."""
        self._place.connections = count

    def is_ahead(self, count: int) -> bool:
        """Whether others should take the next connection.

        :param count: how many this worker holds
        """
        if self._version != self._roster.version:
            self.refresh()
        others = self._others
        if not others:
            return False
        mean = (count + sum(place.connections for place in others)) / (len(others) + 1)
        return count > mean + max(self.SLACK, self.SHARE * mean)

"""Deadlines of very many connections at next to no cost: a lazy timing wheel.

A kept-alive connection starts a new idle time with every request, so moving it in a queue each
time would be paid by every request. Here a connection lies in one bucket and is not touched when
its deadline moves *later*: when the bucket's time comes, whoever has meanwhile got a later
deadline is put into the bucket of that one. Only a deadline that moves *earlier* than the bucket
the connection lies in costs an insertion. A request pays nothing, an idle connection is looked at
about once per idle timeout, and one timer serves all.

The one rule: a connection lies in a bucket that is not later than its deadline.

No I/O, no gevent and no clock here: times are passed in, in monotonic seconds.
"""

from __future__ import annotations

import heapq
from math import ceil, inf
from typing import Generic, Protocol, TypeVar

#: Seconds between two buckets: half the lateness that an idle worker may have (0.25 s), so that
#: the loop's own delay has the other half.
GRAIN = 0.125


class Scheduled(Protocol):
    """What the wheel needs of the things it holds."""

    #: The bucket it lies in, 0 when in none. Belongs to the wheel.
    slot: int


T = TypeVar("T", bound=Scheduled)


class Bucket(set[T]):
    """What is due at the same time."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Wheel(Generic[T]):
    """Buckets of things with a deadline, the earliest first."""

    def __init__(self, grain: float = GRAIN) -> None:
        self._grain = grain
        self._buckets: dict[int, Bucket[T]] = {}
        #: The numbers of the buckets, as a heap, each once; some may be of buckets that are gone.
        self._order: list[int] = []
        self._ordered: set[int] = set()

    def schedule(self, item: T, deadline: float) -> None:
        """See to it that *item* comes out of :meth:`due` at *deadline* or before.

        Next to free when it lies early enough already, as it does when a deadline moves later.
        """
        # Rounded up, so that a bucket's time is never before the deadlines in it.
        number = ceil(deadline / self._grain)
        if item.slot:
            if item.slot <= number:
                return
            self.forget(item)
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = Bucket(number)
            if number not in self._ordered:
                self._ordered.add(number)
                heapq.heappush(self._order, number)
        bucket.add(item)
        # The bucket's number and not an equal one: 32 bytes less for each connection.
        item.slot = bucket.number

    def next_due(self) -> float | None:
        """When :meth:`due` will next have something to look at, or None when there is nothing."""
        number = self._first()
        return None if number is None else number * self._grain

    def _first(self) -> int | None:
        """The number of the earliest bucket."""
        while self._order:
            number = self._order[0]
            if number in self._buckets:
                return number
            self._ordered.discard(heapq.heappop(self._order))
        return None

    def due(self, now: float, most: int) -> list[T]:
        """Take out up to *most* things whose bucket's time has come.

        The caller acts on those whose deadline has really passed and schedules the others again.
        """
        taken: list[T] = []
        while len(taken) < most:
            number = self._first()
            if number is None or number * self._grain > now:
                break
            bucket = self._buckets[number]
            while bucket and len(taken) < most:
                item = bucket.pop()
                item.slot = 0
                taken.append(item)
            if not bucket:
                del self._buckets[number]
        return taken

    def forget(self, item: T) -> None:
        """Drop *item*, which may be in no bucket: nothing here refers to it any more."""
        if item.slot:
            bucket = self._buckets[item.slot]
            bucket.discard(item)
            if not bucket:
                del self._buckets[item.slot]
            item.slot = 0


class Pace:
    """How long to wait for a peer that is to take, or to send, many bytes.

    Each wait has a limit of its own, and all waits together must not be so long that the bytes
    came at less than a minimum rate. Only time spent waiting for the peer counts, so that nobody
    is cut because the application was slow.

    :param timeout: longest single wait in seconds, 0 for no limit
    :param rate: least bytes a second, 0 for no limit
    """

    #: Seconds of waiting that are free, whatever the rate (Kestrel gives the same).
    GRACE = 5.0

    __slots__ = ("moved", "rate", "timeout", "waited")

    def __init__(self, timeout: float, rate: float) -> None:
        self.timeout = timeout
        self.rate = rate
        #: Bytes moved so far; the caller adds to it.
        self.moved = 0
        #: Seconds waited so far; the caller adds to it.
        self.waited = 0.0

    def deadline(self, now: float, since: float | None = None) -> tuple[float, bool]:
        """When a wait that begins *now* has to end, and whether that is for the rate's sake.

        :param since: when the wait began that this one goes on with, if it does: nothing had come of that
        """
        latest = (now if since is None else since) + self.timeout if self.timeout else inf
        if self.rate:
            paced = now + max(0.0, self.GRACE + self.moved / self.rate - self.waited)
            if paced < latest:
                return paced, True
        return latest, False

"""The timing wheel against the simplest thing that could do its job, and the pace of slow peers."""

from __future__ import annotations

import gc
import weakref
from math import inf

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from keepalive_worker.deadlines import GRAIN, Pace, Wheel


class Item:
    """Something with a deadline."""

    def __init__(self, deadline: float = 0.0) -> None:
        self.slot = 0
        self.deadline = deadline


def act(wheel: Wheel[Item], now: float, most: int = 1000) -> list[Item]:
    """What the event loop does with what is due: act on it, or schedule it again."""
    ended = []
    for item in wheel.due(now, most):
        if item.deadline > now:
            wheel.schedule(item, item.deadline)
        else:
            ended.append(item)
    return ended


SECONDS = st.floats(0, 5000, allow_nan=False)


class WheelMachine(RuleBasedStateMachine):
    """A wheel beside a dictionary of deadlines.

    The model knows the true deadline of every item. What the wheel says must follow from it: an
    item whose deadline has passed comes out before its lateness exceeds one grain, and not
    before its deadline by the caller's rule.
    """

    items = Bundle("items")

    def __init__(self) -> None:
        super().__init__()
        self.wheel: Wheel[Item] = Wheel()
        self.now = 1000.0
        #: Those in the wheel, by their true deadline.
        self.model: dict[Item, float] = {}

    @rule(target=items, delays=st.lists(SECONDS, min_size=1, max_size=6))
    def add(self, delays: list[float]) -> object:
        """New items, some in the same bucket."""
        made = [Item() for _ in delays]
        for item, delay in zip(made, delays, strict=True):
            self._schedule(item, self.now + delay)
        return multiple(*made)

    @rule(item=items, delay=SECONDS)
    def move(self, item: Item, delay: float) -> None:
        """Another deadline, earlier or later, or the first one again after it came out."""
        self._schedule(item, self.now + delay)

    @rule(item=items, part=st.floats(0, 1))
    def move_later(self, item: Item, part: float) -> None:
        """What every request does to its connection: nothing is touched."""
        if item in self.model:
            slot = item.slot
            self._schedule(item, self.model[item] + part)
            assert item.slot == slot

    def _schedule(self, item: Item, deadline: float) -> None:
        item.deadline = deadline
        self.wheel.schedule(item, deadline)
        self.model[item] = deadline

    @rule(item=items)
    def forget(self, item: Item) -> None:
        """A connection that is closed, in the wheel or not."""
        self.wheel.forget(item)
        self.model.pop(item, None)
        assert item.slot == 0

    @rule(seconds=st.one_of(st.floats(0, 1), SECONDS), most=st.integers(1, 4))
    def advance(self, seconds: float, most: int) -> None:
        """Time goes by; the loop takes what is due in portions, as often as there is any."""
        self.now += seconds
        while True:
            taken = self.wheel.due(self.now, most)
            if not taken:
                break
            assert len(taken) <= most
            assert len(set(taken)) == len(taken)
            for item in taken:
                deadline = self.model.pop(item)
                assert item.slot == 0
                # A bucket that is not later than the deadline has come: so much is owed by the
                # wheel. That it may be much earlier is the point of it.
                if deadline > self.now:
                    self.wheel.schedule(item, deadline)
                    self.model[item] = deadline
        for deadline in self.model.values():
            # Whatever is left has a deadline to come, or one in the grain that is running.
            assert deadline > self.now - GRAIN

    @rule(seconds=st.floats(0, 10))
    def advance_by_next_due(self, seconds: float) -> None:
        """The loop sleeps until next_due() says so, and no deadline is missed by more than a grain."""
        end = self.now + seconds
        while True:
            due = self.wheel.next_due()
            if due is None or due > end:
                break
            assert not self.model or due < min(self.model.values()) + GRAIN
            self.now = max(self.now, due)
            for item in self.wheel.due(self.now, 100):
                deadline = self.model.pop(item)
                if deadline > self.now:
                    self.wheel.schedule(item, deadline)
                    self.model[item] = deadline
                else:
                    assert self.now < deadline + GRAIN or deadline < end - seconds
        self.now = end

    @invariant()
    def every_item_lies_in_one_early_bucket(self) -> None:
        """The one rule of the wheel, and nothing that the model does not know."""
        held = [(number, item) for number, bucket in self.wheel._buckets.items() for item in bucket]
        assert len(held) == len(self.model)
        for number, item in held:
            assert item.slot == number
            assert (number - 1) * GRAIN < self.model[item], "its bucket is later than one grain after its deadline"

    @invariant()
    def the_next_look_is_early_enough(self) -> None:
        """next_due() is at most one grain after the earliest deadline, None only for an empty wheel."""
        due = self.wheel.next_due()
        if self.model:
            assert due is not None
            assert due < min(self.model.values()) + GRAIN

    def teardown(self) -> None:
        """When all is over, nothing is left behind, empty buckets included."""
        for item in list(self.model):
            self.wheel.forget(item)
        while self.wheel.due(inf, 100):
            raise AssertionError("due() gave an item that was forgotten")
        assert self.wheel.next_due() is None
        assert not self.wheel._buckets
        assert not self.wheel._order


WheelMachine.TestCase.settings = settings(
    max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestWheel = WheelMachine.TestCase


@given(deadline=st.floats(0.001, 1e9), early=st.floats(0, 1), late=st.floats(0, 10))
def test_an_untouched_item_is_due_within_one_grain_and_not_before(deadline: float, early: float, late: float) -> None:
    wheel: Wheel[Item] = Wheel()
    item = Item(deadline)
    wheel.schedule(item, deadline)
    due = wheel.next_due()
    assert due is not None
    assert deadline <= due < deadline + GRAIN or due == pytest.approx(deadline, rel=1e-15)
    if deadline - early < due:
        assert act(wheel, deadline - early) == []
    assert act(wheel, due) == [item]
    assert wheel.due(due + late, 10) == []


def test_a_deadline_that_moved_later_is_not_early() -> None:
    wheel: Wheel[Item] = Wheel()
    item = Item(10.0)
    wheel.schedule(item, item.deadline)
    item.deadline = 20.0
    wheel.schedule(item, item.deadline)
    assert act(wheel, 10.0) == []
    assert act(wheel, 19.999) == []
    assert act(wheel, 20.0) == [item]


def test_a_deadline_that_moved_earlier_is_not_late() -> None:
    wheel: Wheel[Item] = Wheel()
    item = Item(3600.0)
    wheel.schedule(item, item.deadline)
    item.deadline = 2.0
    wheel.schedule(item, item.deadline)
    assert wheel.next_due() == 2.0
    assert act(wheel, 2.0) == [item]
    assert act(wheel, 4000.0) == []


def test_due_gives_portions_in_order_of_time() -> None:
    wheel: Wheel[Item] = Wheel()
    late = [Item(2.0) for _ in range(5)]
    soon = [Item(1.0) for _ in range(5)]
    for item in late + soon:
        wheel.schedule(item, item.deadline)
    portions = [wheel.due(10.0, 3) for _ in range(5)]
    assert [len(portion) for portion in portions] == [3, 3, 3, 1, 0]
    in_order = [item for portion in portions for item in portion]
    assert set(in_order[:5]) == set(soon)
    assert set(in_order[5:]) == set(late)
    assert wheel.next_due() is None


def test_due_takes_only_buckets_whose_time_has_come() -> None:
    wheel: Wheel[Item] = Wheel(grain=1.0)
    items = [Item(float(second)) for second in (1, 2, 3)]
    for item in items:
        wheel.schedule(item, item.deadline)
    assert wheel.due(2.0, 10) == items[:2]
    assert wheel.next_due() == 3.0


def test_forgotten_items_can_be_collected() -> None:
    wheel: Wheel[Item] = Wheel()
    items = [Item(float(number)) for number in range(1, 50)]
    gone = [weakref.ref(item) for item in items]
    for item in items:
        wheel.schedule(item, item.deadline)
        wheel.schedule(item, item.deadline / 2)
        wheel.forget(item)
    del item
    items.clear()
    gc.collect()
    assert [ref() for ref in gone if ref() is not None] == []


def test_forgetting_twice_or_what_was_never_there_is_nothing() -> None:
    wheel: Wheel[Item] = Wheel()
    other, item = Item(), Item()
    wheel.schedule(other, 5.0)
    wheel.forget(item)
    wheel.schedule(item, 5.0)
    wheel.forget(item)
    wheel.forget(item)
    assert wheel.due(6.0, 10) == [other]


def test_connections_that_come_and_go_leave_no_buckets_behind() -> None:
    # One that asks for a day of idleness (keep_idle) and leaves at once must not cost a bucket
    # for a day: at one a grain that would be 691,200 of them.
    wheel: Wheel[Item] = Wheel()
    for number in range(1000):
        item = Item()
        wheel.schedule(item, 86400.0 + number)
        wheel.forget(item)
    # due() may need to look once; afterwards all is as new.
    wheel.due(0.0, 10)
    assert len(wheel._buckets) <= 100


def test_the_least_time_above_zero_is_a_deadline_too() -> None:
    # Slot 0 means "in no bucket".
    wheel: Wheel[Item] = Wheel()
    item = Item(1e-9)
    wheel.schedule(item, item.deadline)
    assert item.slot
    assert wheel.due(1.0, 10) == [item]


@given(
    timeout=st.floats(0, 1000),
    rate=st.floats(0, 1e6),
    now=st.floats(0, 1e6),
    moved=st.integers(0, 10**9),
    waited=st.floats(0, 1e6),
)
def test_pace(timeout: float, rate: float, now: float, moved: int, waited: float) -> None:
    pace = Pace(timeout, rate)
    pace.moved = moved
    pace.waited = waited
    deadline, for_the_rate = pace.deadline(now)
    assert deadline >= now
    if timeout:
        assert deadline <= now + timeout
    else:
        assert for_the_rate or deadline == inf
    if for_the_rate:
        assert rate
        # Had the peer moved less by then, its bytes would have come below the rate.
        total = waited + (deadline - now)
        assert total >= Pace.GRACE + moved / rate - 1e-6 * max(1.0, now, total)
        assert not timeout or deadline < now + timeout
    elif rate:
        assert deadline - now <= max(0.0, Pace.GRACE + moved / rate - waited) + 1e-6 * max(1.0, now)


def test_a_peer_at_just_the_rate_is_never_cut() -> None:
    pace = Pace(timeout=0, rate=100)
    now = 0.0
    for _ in range(1000):
        deadline, paced = pace.deadline(now)
        assert paced
        assert deadline > now + 1.0
        now += 1.0
        pace.waited += 1.0
        pace.moved += 100
    assert pace.deadline(now) == (now + Pace.GRACE, True)


def test_a_peer_below_the_rate_is_cut_when_the_grace_is_used_up() -> None:
    pace = Pace(timeout=60, rate=100)
    now = 0.0
    while True:
        deadline, paced = pace.deadline(now)
        if deadline <= now + 1.0:
            break
        now += 1.0
        pace.waited += 1.0
        pace.moved += 50
    # 5 s free, then half a second lost in each.
    assert paced
    assert deadline == pytest.approx(10.0, abs=1.0)


def test_a_silent_peer_has_the_grace_and_no_more() -> None:
    pace = Pace(timeout=60, rate=240)
    assert pace.deadline(100.0) == (105.0, True)
    pace.waited = 4.0
    assert pace.deadline(104.0) == (105.0, True)
    pace.waited = 9.0
    assert pace.deadline(109.0) == (109.0, True)


def test_the_shorter_of_timeout_and_rate_wins() -> None:
    assert Pace(timeout=3, rate=240).deadline(10.0) == (13.0, False)
    # At the same moment it is the timeout's doing.
    assert Pace(timeout=Pace.GRACE, rate=240).deadline(10.0) == (15.0, False)
    fast = Pace(timeout=60, rate=240)
    fast.moved = 240 * 1000
    assert fast.deadline(10.0) == (70.0, False)


def test_no_limits_at_all() -> None:
    assert Pace(timeout=0, rate=0).deadline(10.0) == (inf, False)
    assert Pace(timeout=7, rate=0).deadline(10.0) == (17.0, False)


def test_each_wait_has_a_timeout_of_its_own() -> None:
    pace = Pace(timeout=10, rate=0)
    pace.waited = 1000.0
    assert pace.deadline(50.0) == (60.0, False)

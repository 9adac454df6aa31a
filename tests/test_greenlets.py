"""The pool of greenlets, on a real hub of gevent's."""

from __future__ import annotations

import contextvars
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event
from greenlet import GreenletExit, getcurrent
from hypothesis import given, settings
from hypothesis import strategies as st

from keepalive_worker.greenlets import GreenletPool

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE")


class Bench:
    """A pool, and what went wrong in it."""

    def __init__(self) -> None:
        self.hub = gevent.get_hub()
        self.errors: list[tuple[BaseException, Any, tuple[Any, ...]]] = []
        self.pool = GreenletPool(self.hub, lambda error, args: self.errors.append((error, getcurrent(), args)))

    def run(self, function: Callable[..., None], *args: Any) -> None:
        """pool.run(), from the hub as it has to be."""
        failed: list[BaseException] = []

        def in_hub() -> None:
            try:
                self.pool.run(function, *args)
            except BaseException as error:
                failed.append(error)

        self.hub.loop.run_callback(in_hub)
        turn()
        assert not failed

    def lead(self, work: Callable[[], None]) -> None:
        """pool.lead(), from the hub as it has to be."""
        self.hub.loop.run_callback(self.pool.lead, work)
        turn()

    def start(self, count: int) -> list[tuple[Event, Any]]:
        """*count* functions that run until their event is set, and their greenlets."""
        started: list[tuple[Event, Any]] = []

        def wait(event: Event) -> None:
            started.append((event, getcurrent()))
            event.wait()

        for _ in range(count):
            self.run(wait, Event())
        return started

    def who_runs(self) -> Any:
        """The greenlet that the next function gets."""
        seen: list[Any] = []
        self.run(lambda: seen.append(getcurrent()))
        return seen[0]


def turn() -> None:
    """Let the hub do all that it has to do now."""
    for _ in range(3):
        gevent.sleep(0)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.pool.trim()
    bench.pool.trim()
    turn()


def test_a_function_runs_at_once_with_its_arguments(bench: Bench) -> None:
    order: list[object] = []

    def in_hub() -> None:
        bench.pool.run(lambda *args: order.append(args), 1, "two")
        order.append("back in the hub")

    bench.hub.loop.run_callback(in_hub)
    turn()
    assert order == [(1, "two"), "back in the hub"]


def test_run_comes_back_when_the_function_first_waits(bench: Bench) -> None:
    order = []

    def wait() -> None:
        order.append("began")
        gevent.sleep(0)
        order.append("ended")

    def in_hub() -> None:
        bench.pool.run(wait)
        order.append("back in the hub")

    bench.hub.loop.run_callback(in_hub)
    turn()
    assert order == ["began", "back in the hub", "ended"]


def test_later_runs_in_a_turn_of_the_hub(bench: Bench) -> None:
    order = []
    bench.pool.later(lambda word: order.append(word), "later")
    order.append("now")
    turn()
    assert order == ["now", "later"]


def test_a_greenlet_that_is_not_the_hub_goes_on_after_run(bench: Bench) -> None:
    """As a worker that drains does: its main greenlet may find a request on a connection that it is about to end.

    Were it to switch into the pool's greenlet, that one would give control to the hub in the end, and never back.
    """
    order = []

    def drain() -> None:
        bench.pool.run(order.append, "the request")
        order.append("the drain goes on")

    greenlet = gevent.spawn(drain)
    greenlet.join(5)
    turn()
    assert order == ["the drain goes on", "the request"]


def test_functions_do_not_run_on_the_hub_itself(bench: Bench) -> None:
    greenlet = bench.who_runs()
    assert greenlet is not bench.hub
    assert greenlet.parent is bench.hub


def test_one_after_another_they_get_the_same_greenlet(bench: Bench) -> None:
    assert len({bench.who_runs() for _ in range(20)}) == 1


def test_the_last_to_end_is_the_first_to_be_used_again(bench: Bench) -> None:
    started = bench.start(4)
    assert len({greenlet for _, greenlet in started}) == 4
    ended = []
    for index in (2, 0, 3, 1):
        event, greenlet = started[index]
        event.set()
        turn()
        ended.append(greenlet)
    again = [greenlet for _, greenlet in bench.start(4)]
    assert again == ended[::-1]


def test_there_are_as_many_as_ran_at_the_same_time(bench: Bench) -> None:
    seen = set()
    for count in (3, 1, 3, 2):
        for event, greenlet in bench.start(count):
            seen.add(greenlet)
            event.set()
        turn()
    assert len(seen) == 3


@given(st.lists(st.one_of(st.just("start"), st.integers(0, 9)), max_size=30))
@settings(max_examples=40, deadline=None)
def test_reuse_is_a_stack(steps: list[str | int]) -> None:
    bench = Bench()
    running: list[tuple[Event, Any]] = []
    stack: list[Any] = []
    seen: set[Any] = set()
    for step in steps:
        if step == "start":
            (started,) = bench.start(1)
            if stack:
                assert started[1] is stack.pop()
            else:
                assert started[1] not in seen
            seen.add(started[1])
            running.append(started)
        elif running and isinstance(step, int):
            event, greenlet = running.pop(step % len(running))
            event.set()
            turn()
            stack.append(greenlet)
    for event, _ in running:
        event.set()
    turn()
    bench.pool.trim()
    bench.pool.trim()
    turn()
    assert all(greenlet.dead for greenlet in seen)


def test_each_run_has_a_fresh_context(bench: Bench) -> None:
    seen: list[str] = []

    def look_and_set(value: str) -> None:
        seen.append(VARIABLE.get("unset"))
        VARIABLE.set(value)
        gevent.sleep(0)
        seen.append(VARIABLE.get("unset"))

    token = VARIABLE.set("outside")
    try:
        bench.run(look_and_set, "one")
        bench.run(look_and_set, "two")
        assert VARIABLE.get() == "outside"
    finally:
        VARIABLE.reset(token)
    assert seen == ["unset", "one", "unset", "two"]


def test_contexts_of_runs_at_the_same_time_are_apart(bench: Bench) -> None:
    seen = {}

    def work(name: str, event: Event) -> None:
        VARIABLE.set(name)
        event.wait()
        seen[name] = VARIABLE.get()

    events = {name: Event() for name in "abc"}
    for name, event in events.items():
        bench.run(work, name, event)
    for name in "cab":
        events[name].set()
    turn()
    assert seen == {"a": "a", "b": "b", "c": "c"}


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt, gevent.Timeout])
def test_an_exception_costs_no_greenlet(bench: Bench, kind: type[BaseException]) -> None:
    def fail(number: int) -> None:
        raise kind()

    before = bench.who_runs()
    bench.run(fail, 7)
    ((error, where, args),) = bench.errors
    assert isinstance(error, kind)
    assert where is before, "on_error is called on the greenlet itself"
    assert args == (7,)
    assert bench.who_runs() is before


def test_greenlet_exit_ends_one_greenlet(bench: Bench) -> None:
    def leave() -> None:
        raise GreenletExit

    before = bench.who_runs()
    bench.run(leave)
    assert before.dead
    assert [type(error) for error, _, _ in bench.errors] == [GreenletExit]
    after = bench.who_runs()
    assert after is not before
    assert after is bench.who_runs()


@pytest.mark.parametrize("stray", [gevent.Timeout(1), GreenletExit(), ValueError(), None])
def test_what_was_meant_for_an_earlier_function_strikes_nobody(bench: Bench, stray: BaseException | None) -> None:
    """A timeout that was not cancelled, a kill that came late, a switch to one who waits no more."""
    before = bench.who_runs()
    bench.hub.loop.run_callback(before.switch if stray is None else lambda: before.throw(stray))
    turn()
    assert bench.who_runs() is before
    assert bench.errors == []


def test_a_greenlet_killed_at_work_is_not_used_again(bench: Bench) -> None:
    cleaned_up = []

    seen: list[Any] = []

    def wait() -> None:
        seen.append(getcurrent())
        try:
            Event().wait()
        finally:
            cleaned_up.append(True)

    bench.run(wait)
    gevent.kill(seen[0])
    turn()
    assert cleaned_up == [True]
    assert seen[0].dead
    assert [type(error) for error, _, _ in bench.errors] == [GreenletExit]
    assert bench.who_runs() is not seen[0]


def test_kill_busy_ends_those_at_work_and_no_others(bench: Bench) -> None:
    (busy,) = bench.start(1)
    (idle,) = bench.start(1)
    idle[0].set()
    turn()
    bench.pool.kill_busy()
    turn()
    assert busy[1].dead
    assert not idle[1].dead
    assert [type(error) for error, _, _ in bench.errors] == [GreenletExit]
    assert bench.who_runs() is idle[1]


def test_nothing_of_a_request_lives_on(bench: Bench) -> None:
    class Request:
        pass

    request = Request()
    gone = weakref.ref(request)
    bench.run(lambda _: None, request)
    del request
    gc.collect()
    assert gone() is None


def test_nothing_of_a_failed_request_lives_on(bench: Bench) -> None:
    class Request:
        pass

    def fail(request: Request) -> None:
        raise ValueError

    request = Request()
    gone = weakref.ref(request)
    bench.run(fail, request)
    bench.errors.clear()
    del request
    gc.collect()
    assert gone() is None


def test_trim_ends_those_that_nobody_needed(bench: Bench) -> None:
    started = bench.start(5)
    for event, _ in started:
        event.set()
    turn()
    greenlets = [greenlet for _, greenlet in started]
    bench.pool.trim()
    turn()
    assert not any(greenlet.dead for greenlet in greenlets), "all five were needed since the last trim"
    for event, _ in bench.start(2):
        event.set()
    turn()
    bench.pool.trim()
    turn()
    assert sum(greenlet.dead for greenlet in greenlets) == 3
    assert bench.who_runs() in greenlets
    bench.pool.trim()
    turn()
    assert sum(not greenlet.dead for greenlet in greenlets) == 1, "only one was needed at a time"
    bench.pool.trim()
    turn()
    assert all(greenlet.dead for greenlet in greenlets)


def test_trim_spares_those_at_work(bench: Bench) -> None:
    started = bench.start(3)
    for _ in range(3):
        bench.pool.trim()
        turn()
    assert not any(greenlet.dead for _, greenlet in started)
    for event, _ in started:
        event.set()
    turn()
    assert bench.who_runs() is started[-1][1]


def test_trim_spares_the_hot_ones(bench: Bench) -> None:
    started = bench.start(3)
    for event, _ in started:
        event.set()
    turn()
    bench.pool.trim()
    hot = bench.who_runs()
    bench.pool.trim()
    turn()
    assert not hot.dead
    assert bench.who_runs() is hot


def test_a_trimmed_greenlet_that_is_about_to_end_gets_no_work(bench: Bench) -> None:
    started = bench.start(2)
    for event, _ in started:
        event.set()
    turn()
    bench.pool.trim()
    ran = []

    def in_hub() -> None:
        bench.pool.trim()  # their end comes in the next turn
        bench.pool.run(lambda: ran.append(getcurrent()))

    bench.hub.loop.run_callback(in_hub)
    turn()
    assert len(ran) == 1
    assert not ran[0].dead
    assert all(greenlet.dead for _, greenlet in started)


def test_a_new_one_is_made_when_trimmed_ones_were_needed_after_all(bench: Bench) -> None:
    (first,) = bench.start(1)
    first[0].set()
    turn()
    bench.pool.trim()
    bench.pool.trim()
    turn()
    assert first[1].dead
    assert not bench.who_runs().dead


# ------------------------------------------------------------------- one greenlet for several


def test_a_leader_runs_functions_one_after_another_without_switching(bench: Bench) -> None:
    order: list[Any] = []

    def work() -> None:
        for number in range(3):
            VARIABLE.set("of the work")
            bench.pool.run(note, number)

    def note(number: int) -> None:
        order.append((number, getcurrent(), VARIABLE.get("a context of its own")))
        VARIABLE.set("left behind")

    bench.lead(work)
    (greenlet,) = {which for _, which, _ in order}
    assert [(number, value) for number, _, value in order] == [(n, "a context of its own") for n in range(3)]
    assert bench.who_runs() is greenlet, "it is back in the pool"


def test_a_function_that_waits_ends_the_lead(bench: Bench) -> None:
    event = Event()
    order: list[Any] = []

    def work() -> None:
        bench.pool.run(wait)
        order.append("over")
        bench.pool.run(note, "not led")
        order.append("end")

    def wait() -> None:
        event.wait()
        order.append("waited")

    def note(what: str) -> None:
        order.append((what, getcurrent()))

    bench.lead(work)
    assert order == []
    bench.lead(lambda: bench.pool.run(note, "another"))
    ((what, _),) = order
    assert what == "another"
    event.set()
    turn()
    # It may go on, but leads no more: what it starts gets a greenlet of its own, later.
    assert order[1:4] == ["waited", "over", "end"]
    assert [what for what, _ in order[4:]] == ["not led"]


def test_a_function_that_fails_does_not_end_the_lead(bench: Bench) -> None:
    ran: list[int] = []

    def fail(number: int) -> None:
        ran.append(number)
        raise ZeroDivisionError(number)

    bench.lead(lambda: [bench.pool.run(fail, number) for number in range(2)] and None)
    assert ran == [0, 1]
    assert [str(error) for error, _, _ in bench.errors] == ["0", "1"]


def test_whoever_is_killed_while_it_leads_is_gone(bench: Bench) -> None:
    ran: list[Any] = []

    def wait() -> None:
        ran.append(getcurrent())
        Event().wait()

    bench.lead(lambda: bench.pool.run(wait))
    bench.pool.kill_busy()
    turn()
    assert ran[0].dead
    assert bench.who_runs() is not ran[0]


def test_a_function_given_by_some_other_greenlet_does_not_keep_it(bench: Bench) -> None:
    event = Event()
    ran: list[str] = []

    def wait() -> None:
        ran.append("begun")
        event.wait()
        ran.append("done")

    bench.pool.run(wait)  # From the main greenlet, to which nobody would switch back.
    assert ran == []
    turn()
    assert ran == ["begun"]
    event.set()
    turn()
    assert ran == ["begun", "done"]

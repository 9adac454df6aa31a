"""What the application may know of its connection, and the table of a connection's states."""

from __future__ import annotations

import inspect
import itertools
import statistics
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepalive_worker import connection
from keepalive_worker.connection import (
    CLOSED,
    HANDLING,
    IDLE,
    LAST_PARKED,
    LINGERING,
    NEW,
    READING,
    STATE_NAMES,
    TRANSITIONS,
    WRITING,
    Connection,
    Overrides,
    Reason,
    Terms,
)
from keepalive_worker.deadlines import Wheel

STATES = (NEW, READING, IDLE, HANDLING, WRITING, LINGERING, CLOSED)

#: What the documentation promises to applications.
PUBLIC = {
    "age",
    "bytes_received",
    "bytes_sent",
    "close",
    "id",
    "idle",
    "keep_idle",
    "peer",
    "protocol",
    "requests",
    "requests_left",
    "reused",
    "timeout",
    "tls",
}

REASONS = {
    "client",
    "idle_timeout",
    "request_cap",
    "lifetime",
    "header_timeout",
    "body_timeout",
    "send_timeout",
    "min_data_rate",
    "evicted",
    "peer_limit",
    "dead_peer",
    "bad_request",
    "response",
    "error",
    "shutdown",
}


class Clock:
    """Time as the test has it."""

    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


class Listener:
    """As much of a listener as a connection needs."""

    tls_context = None

    def peer_address(self, host: str, port: int) -> Any:
        """As the real one has it."""
        return host if port < 0 else (host, port)


def make(
    clock: Clock | None = None, *, number: int = 1, host: str = "192.0.2.7", port: int = 51234, **terms: Any
) -> Connection:
    """A connection that was just accepted."""
    clock = clock or Clock()
    granted = Terms(clock, **({"timeout": 5.0, "grace": 1.0} | terms))
    listener: Any = Listener()
    heads: Any = None
    return Connection(number, 9, host, port, listener, heads, granted, clock())


# ------------------------------------------------------------- what applications see


def test_a_new_connection() -> None:
    clock = Clock()
    conn = make(clock, number=42)
    assert conn.id == 42
    assert conn.requests == 0
    assert not conn.reused
    assert conn.age == 0.0
    assert conn.idle == 0.0
    assert (conn.bytes_received, conn.bytes_sent) == (0, 0)
    assert conn.requests_left is None
    assert conn.timeout == 5.0
    assert conn.peer == "192.0.2.7:51234"
    assert conn.protocol == "HTTP/1.1"
    assert conn.tls is False
    assert conn.state == NEW


def test_all_that_is_promised_is_there() -> None:
    conn = make()
    for name in PUBLIC:
        assert hasattr(conn, name), name


def test_no_attribute_can_be_invented() -> None:
    conn = make()
    with pytest.raises(AttributeError):
        conn.color = "green"  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(PUBLIC - {"bytes_received", "bytes_sent", "id", "protocol", "requests"}))
def test_applications_cannot_set_what_is_computed(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(make(), name, 1)


def test_age_and_idle() -> None:
    clock = Clock()
    conn = make(clock)
    clock.now += 10.0
    conn.since, conn.started = clock.now, clock.now + 3.0
    clock.now += 4.0
    assert conn.age == 14.0
    assert conn.idle == 3.0
    clock.now += 1.0
    assert conn.age == 15.0
    assert conn.idle == 3.0, "idle is about the time before this request"


def test_reused_from_the_second_request_on() -> None:
    conn = make()
    seen = []
    for conn.requests in (1, 2, 3):
        seen.append(conn.reused)
    assert seen == [False, True, True]


@pytest.mark.parametrize(
    ("host", "port", "peer", "address"),
    [
        ("192.0.2.7", 80, "192.0.2.7:80", ("192.0.2.7", 80)),
        ("192.0.2.7", 0, "192.0.2.7:0", ("192.0.2.7", 0)),
        ("2001:db8::1", 443, "[2001:db8::1]:443", ("2001:db8::1", 443)),
        ("", -1, "", ""),
        ("/run/client.sock", -1, "/run/client.sock", "/run/client.sock"),
    ],
)
def test_peer(host: str, port: int, peer: str, address: object) -> None:
    conn = make(host=host, port=port)
    assert conn.peer == peer
    assert conn.address == address
    assert conn.peer in repr(conn)


@pytest.mark.parametrize("state", STATES)
def test_repr_names_the_state(state: int) -> None:
    conn = make(number=77)
    conn.state = state
    assert STATE_NAMES[state] in repr(conn)
    assert "77" in repr(conn)


def test_tls() -> None:
    conn = make()
    conn.tls_socket = object()
    assert conn.tls is True


@given(cap=st.integers(1, 50), requests=st.integers(1, 100))
def test_requests_left_agrees_with_what_ends_the_connection(cap: int, requests: int) -> None:
    conn = make(requests=cap)
    conn.requests = requests
    assert conn.requests_left == max(0, cap - requests)
    ends = conn.last_request_reason(conn.accepted)
    assert (conn.requests_left == 0) == (ends is Reason.REQUEST_CAP)
    assert ends in (None, Reason.REQUEST_CAP)


def test_requests_left_without_a_cap() -> None:
    conn = make(requests=0)
    conn.requests = 10**6
    assert conn.requests_left is None
    assert conn.last_request_reason(conn.accepted) is None


def test_nothing_is_left_after_close() -> None:
    conn = make()
    conn.close()
    assert conn.requests_left == 0
    assert conn.last_request_reason(conn.accepted) is Reason.RESPONSE


def test_nothing_is_left_of_a_worker_that_stops() -> None:
    conn = make()
    conn.terms.draining = True
    assert conn.requests_left == 0
    assert conn.last_request_reason(conn.accepted) is Reason.SHUTDOWN


def test_nothing_is_left_of_a_lifetime_that_is_over() -> None:
    clock = Clock()
    conn = make(clock, lifetime=100.0)
    clock.now += 100.0
    assert conn.last_request_reason(clock()) is Reason.LIFETIME
    assert conn.requests_left == 0


def test_without_persistence_nothing_is_left() -> None:
    conn = make(timeout=0)
    assert conn.last_request_reason(conn.accepted) is Reason.RESPONSE
    assert conn.requests_left == 0


# --------------------------------------------------------------- why it is the last one


@given(
    cap=st.sampled_from([0, 3]),
    requests=st.integers(1, 4),
    lifetime=st.sampled_from([0.0, 100.0]),
    age=st.sampled_from([0.0, 80.0, 100.0]),
    draining=st.booleans(),
    crowded=st.booleans(),
    asked=st.booleans(),
    timeout=st.sampled_from([0.0, 5.0]),
)
def test_the_last_request_has_one_reason(
    cap: int, requests: int, lifetime: float, age: float, draining: bool, crowded: bool, asked: bool, timeout: float
) -> None:
    conn = make(requests=cap, lifetime=lifetime, timeout=timeout)
    conn.requests = requests
    conn.terms.draining = draining
    conn.terms.crowded = crowded
    if asked:
        conn.close()
    true = {
        Reason.REQUEST_CAP: cap > 0 and requests >= cap,
        Reason.LIFETIME: lifetime > 0 and age >= lifetime,
        Reason.SHUTDOWN: draining,
        Reason.EVICTED: crowded,
        Reason.RESPONSE: asked or timeout == 0,
    }
    expected = next((reason for reason, holds in true.items() if holds), None)
    assert conn.last_request_reason(conn.accepted + age) is expected


def test_the_cap_names_exactly_the_last_request() -> None:
    conn = make(requests=3)
    reasons = []
    for conn.requests in (1, 2, 3):
        reasons.append(conn.last_request_reason(conn.accepted))
    assert reasons == [None, None, Reason.REQUEST_CAP]


# ------------------------------------------------------------------------- lifetime


@given(lifetime=st.floats(0.01, 1e7), spread=st.floats(0, 1, exclude_max=True), number=st.integers(1, 10**9))
def test_lifetime_loses_at_most_a_tenth(lifetime: float, spread: float, number: int) -> None:
    terms = Terms(Clock(), 5.0, 1.0, 0, lifetime, spread)
    assert 0.9 * lifetime * (1 - 1e-12) <= terms.lifetime_of(number) <= lifetime


@pytest.mark.parametrize("spread", [0.0, 0.123, 0.5, 0.999])
@pytest.mark.parametrize("first", [1, 1000, 10**6])
def test_lifetimes_of_neighbours_are_well_spread(spread: float, first: int) -> None:
    terms = Terms(Clock(), 5.0, 1.0, 0, 1000.0, spread)
    taken = [1000.0 - terms.lifetime_of(number) for number in range(first, first + 1000)]
    for low in range(0, 100, 5):
        share = sum(low <= seconds < low + 5 for seconds in taken) / 1000
        assert 0.03 <= share <= 0.07, "an even spread has a twentieth in each twentieth"
    assert max(taken) > 99.0
    assert min(taken) < 1.0
    assert statistics.mean(taken) == pytest.approx(50.0, abs=1.0)


def test_a_connection_keeps_its_lifetime() -> None:
    terms = Terms(Clock(), 5.0, 1.0, 0, 1000.0, 0.4)
    assert len({terms.lifetime_of(17) for _ in range(3)}) == 1
    assert terms.lifetime_of(17) != Terms(Clock(), 5.0, 1.0, 0, 1000.0, 0.7).lifetime_of(17), "workers differ"


def test_lifetime_ends_a_connection_when_it_is_reached_and_not_before() -> None:
    conn = make(lifetime=1000.0, number=5)
    end = conn.accepted + conn.terms.lifetime_of(5)
    assert conn.last_request_reason(end - 0.001) is None
    assert conn.last_request_reason(end + 0.001) is Reason.LIFETIME


# ------------------------------------------------------------------------ keep_idle


@given(st.one_of(st.integers(0, 10**6), st.floats(0, 1e6)))
def test_keep_idle_is_the_timeout_from_now_on(seconds: float) -> None:
    conn = make()
    conn.keep_idle(seconds)
    assert conn.timeout == seconds
    assert conn.idle_deadline() == conn.since + seconds + 1.0, "the grace comes on top"
    assert (conn.last_request_reason(conn.accepted) is Reason.RESPONSE) == (seconds == 0)


def test_keep_idle_can_be_said_again() -> None:
    conn = make()
    conn.keep_idle(100)
    conn.keep_idle(0.5)
    assert conn.timeout == 0.5


def test_keep_idle_is_for_one_connection() -> None:
    clock = Clock()
    terms = Terms(clock, 5.0, 1.0)
    listener: Any = Listener()
    heads: Any = None
    one, other = (Connection(n, n, "::1", n, listener, heads, terms, 0.0) for n in (1, 2))
    one.keep_idle(60)
    assert (one.timeout, other.timeout) == (60, 5.0)


@pytest.mark.parametrize(
    "seconds", [-1, -0.001, float("inf"), float("-inf"), float("nan"), True, False, None, "5", b"5", 5j, [5]]
)
def test_keep_idle_refuses(seconds: Any) -> None:
    conn = make()
    with pytest.raises(ValueError, match="keep_idle"):
        conn.keep_idle(seconds)
    assert conn.timeout == 5.0
    assert conn.overrides is None


@pytest.mark.parametrize("seconds", [1e17, sys.float_info.max, 10**400], ids=["1e17", "1.8e308", "1e400"])
def test_what_keep_idle_takes_can_be_waited_for(seconds: float) -> None:
    # Either it is refused there, or it is a deadline like any other.
    conn = make()
    try:
        conn.keep_idle(seconds)
    except ValueError:
        return
    Wheel[Connection]().schedule(conn, conn.idle_deadline())


# ----------------------------------------------------------------- states and reasons


def test_every_state_has_its_transitions_and_its_name() -> None:
    assert set(TRANSITIONS) == set(STATES)
    assert len(STATE_NAMES) == len(STATES)
    assert set(STATE_NAMES) - {"closed"} == {"idle", "reading", "handling", "writing"}
    assert connection.LISTENING not in STATES


def test_states_for_which_no_greenlet_runs_come_first() -> None:
    assert {state for state in STATES if state <= LAST_PARKED} == {NEW, READING, IDLE}


def test_every_transition_leads_to_a_state() -> None:
    assert set(itertools.chain.from_iterable(TRANSITIONS.values())) <= set(STATES)


def walk(start: int) -> set[int]:
    """The states that can follow *start*, at once or later."""
    seen: set[int] = set()
    todo = [start]
    while todo:
        for state in TRANSITIONS[todo.pop()] - seen:
            seen.add(state)
            todo.append(state)
    return seen


def test_every_state_is_reached_from_accept() -> None:
    assert walk(NEW) | {NEW} == set(STATES)


@pytest.mark.parametrize("state", STATES[:-1])
def test_every_state_can_end(state: int) -> None:
    assert CLOSED in TRANSITIONS[state]


def test_the_end_is_the_end() -> None:
    assert walk(CLOSED) == set()
    assert walk(LINGERING) == {CLOSED}


def test_nothing_becomes_new_but_a_connection_that_has_not_begun() -> None:
    assert {state for state in STATES if NEW in TRANSITIONS[state]} == {READING}


def test_only_a_greenlet_gives_a_connection_back_to_idleness() -> None:
    assert {state for state in STATES if IDLE in TRANSITIONS[state]} == {HANDLING}


def test_the_module_comment_shows_every_state() -> None:
    text = inspect.getdoc(connection) or ""
    for name in ("NEW", "READING", "HANDLING", "WRITING", "IDLE", "LINGERING", "CLOSED"):
        assert text.count(name) >= 1


def test_reasons() -> None:
    assert {reason.value for reason in Reason} == REASONS


# ----------------------------------------------------------------------------- memory


def size_of_idle(conn: Connection) -> int:
    """Bytes that one idle connection adds: itself, and values that it shares with nobody.

    With the head that the garbage collector puts before each object, which getsizeof() of an
    object with slots already counts.
    """
    size = sys.getsizeof(conn)
    for name in Connection.__slots__:
        value = getattr(conn, name)
        if isinstance(value, float) or (isinstance(value, int) and value > 256):
            size += sys.getsizeof(value)
    return size


def test_an_idle_connection_is_small() -> None:
    # The target is 0.6 KB of private memory for all that an idle connection takes, the kernel's
    # part not counted: the table's pointer, the wheel's entry and the poller's come on top.
    clock = Clock()
    conn = make(clock, number=100_000)
    conn.requests = 1000
    conn.bytes_received = conn.bytes_sent = 10**6
    conn.fd = 9999
    conn.slot = 10**6
    conn.state = IDLE
    assert size_of_idle(conn) <= 500


def test_an_idle_connection_holds_nothing_of_its_requests() -> None:
    conn = make()
    for name in ("buffer", "overrides", "reader", "tls_socket", "writer"):
        assert getattr(conn, name) is None


def test_connections_and_what_belongs_to_them_have_no_dictionary() -> None:
    for thing in (make(), Overrides(), make().terms):
        assert not hasattr(thing, "__dict__")
        assert not hasattr(thing, "__weakref__"), "eight bytes that nobody needs"

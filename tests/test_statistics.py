"""The report made of plain records, and its three formats. No I/O, no clock."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import time
from math import inf
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from keepalive_worker import page, prometheus
from keepalive_worker.connection import HANDLING, IDLE, NEW, READING, WRITING, Reason
from keepalive_worker.counters import REQUEST_BOUNDS, SECOND_BOUNDS, Counters, Histogram
from keepalive_worker.statistics import (
    BATCH,
    COUNTS,
    MOST_CONNECTIONS,
    NOTHING,
    SORTS,
    SUMS,
    Figures,
    Row,
    WorkerRecord,
    connections,
    counters,
    histogram,
    json_parts,
    report,
)

NOW = 1000.0

#: What users rely on, written down once more: the report must have it, in this order.
PROMISED_REASONS = [
    *("client", "idle_timeout", "request_cap", "lifetime", "header_timeout", "body_timeout", "send_timeout"),
    *("min_data_rate", "evicted", "peer_limit", "dead_peer", "bad_request", "response", "error", "shutdown"),
]
PROMISED_COUNTERS = {
    *("connections_accepted", "connections_open", "connections_idle", "connections_active"),
    *("requests", "requests_reused", "reuse_ratio", "bytes_received", "bytes_sent", "closed"),
    *("connection_requests", "connection_age_seconds", "idle_seconds"),
}
PROMISED_CONNECTION = [
    *("id", "worker_pid", "peer", "state", "protocol", "requests", "age", "idle", "closes_in"),
    *("bytes_received", "bytes_sent"),
]


def row(number: int = 1, **changes: Any) -> Row:
    """A connection that was accepted 100 s ago, idle for 10 s and with 20 s to go."""
    plain = Row(number, 900.0, 990.0, 1020.0, 3, 300, 30, 4000 + number, IDLE, b"HTTP/1.1", b"192.0.2.1")
    return plain._replace(**changes)


def worker(pid: int = 1, rows: list[Row] | None = None, **changes: Any) -> WorkerRecord:
    return WorkerRecord(pid, 1e9 + pid, False, NOTHING, NOW, rows)._replace(**changes)


def made(*workers: WorkerRecord, ended: Figures = NOTHING, **more: Any) -> dict[str, Any]:
    return report(time=1.7e9, now=NOW, worker_pid=1, workers=workers, ended=ended, **more)


def listed(rows: list[Row], sort: str = "idle", limit: int = 100) -> list[dict[str, Any]]:
    return connections([worker(rows=rows)], NOW, sort, limit)


# --- figures -----------------------------------------------------------------------------------------


def counted() -> Counters:
    """Counters as a worker has them after two connections, one of which is closed."""
    made = Counters()
    made.accepted = 2
    made.bytes_received, made.bytes_sent = 1000, 2000
    conn = cast("Any", SimpleNamespace(requests=0, started=50.0, since=50.0, accepted=50.0))
    made.count_request(conn)
    conn.started, conn.since = 57.5, 55.0
    made.count_request(conn)
    made.count_closed(conn, Reason.LIFETIME, 60.0)
    other = cast("Any", SimpleNamespace(requests=0, started=61.0, since=61.0, accepted=61.0))
    made.count_request(other)
    return made


def test_what_a_worker_counts_is_what_the_report_says() -> None:
    got = counters(Figures.of(counted(), 1, 1))
    closed = dict.fromkeys(PROMISED_REASONS, 0) | {"lifetime": 1}
    histograms = {
        name: got.pop(name) for name in ("connection_requests", "connection_age_seconds", "idle_seconds")
    }
    assert got == {
        "connections_accepted": 2,
        "connections_open": 1,
        "connections_idle": 1,
        "connections_active": 0,
        "requests": 3,
        "requests_reused": 1,
        "reuse_ratio": 0.333333,
        "bytes_received": 1000,
        "bytes_sent": 2000,
        "closed": closed,
    }
    assert {name: (each["count"], each["sum"]) for name, each in histograms.items()} == {
        "connection_requests": (1, 2.0),
        "connection_age_seconds": (1, 10.0),
        "idle_seconds": (1, 2.5),
    }
    for name, bounds, value in (
        ("connection_requests", REQUEST_BOUNDS, 2),
        ("connection_age_seconds", SECOND_BOUNDS, 10.0),
        ("idle_seconds", SECOND_BOUNDS, 2.5),
    ):
        buckets = histograms[name]["buckets"]
        assert [each["le"] for each in buckets] == [*bounds, "+Inf"]
        assert [each["count"] for each in buckets] == [*(int(value <= bound) for bound in bounds), 1]


def test_names_and_reasons_are_those_of_the_contract() -> None:
    assert set(counters(NOTHING)) == PROMISED_COUNTERS
    assert list(counters(NOTHING)["closed"]) == PROMISED_REASONS


def test_nothing_is_reused_where_nothing_was_asked() -> None:
    assert counters(NOTHING)["reuse_ratio"] == 0.0


numbers = st.integers(0, 10**12)
some_figures = st.builds(
    lambda counts, sums, open_: Figures(tuple(counts), tuple(sums), open_, open_ // 2),
    st.lists(numbers, min_size=COUNTS, max_size=COUNTS),
    st.lists(st.floats(0, 1e9), min_size=SUMS, max_size=SUMS),
    st.integers(0, 10_000),
)


@given(some_figures, some_figures)
def test_two_together_are_the_sum_of_both(one: Figures, other: Figures) -> None:
    both = counters(one.plus(other))
    for name, value in counters(one).items():
        if isinstance(value, int):
            assert both[name] == value + counters(other)[name]
    assert one.plus(other) == other.plus(one)
    assert one.plus(NOTHING) == one


@given(some_figures, st.sampled_from(Reason))
def test_an_end_closes_what_was_open_and_changes_nothing_else(one: Figures, reason: Reason) -> None:
    before, after = counters(one), counters(one.ended(reason))
    assert after["connections_open"] == after["connections_idle"] == after["connections_active"] == 0
    assert after["closed"].pop(reason.value) == before["closed"].pop(reason.value) + one.open
    for name in PROMISED_COUNTERS - {"connections_open", "connections_idle", "connections_active"}:
        assert after[name] == before[name]


# --- histograms ------------------------------------------------------------------------------------


@given(st.lists(st.one_of(st.floats(0, 5000), st.sampled_from(SECOND_BOUNDS)), max_size=50))
def test_a_bucket_counts_all_values_up_to_its_bound(values: list[float]) -> None:
    counting = Histogram(SECOND_BOUNDS)
    for value in values:
        counting.observe(value)
    got = histogram(counting.bounds, counting.counts, counting.total)
    assert got["count"] == len(values)
    assert got["sum"] == pytest.approx(sum(values), abs=1e-6)
    for bucket in got["buckets"]:
        bound = inf if bucket["le"] == "+Inf" else bucket["le"]
        assert bucket["count"] == sum(value <= bound for value in values)


# --- the report ------------------------------------------------------------------------------------


def test_the_report_has_the_shape_of_the_contract() -> None:
    got = made(worker(5, [row()]), worker(6, [row(2)], draining=True))
    assert list(got) == ["generated_at", "worker_pid", "totals", "workers", "connections"]
    assert got["generated_at"] == "2023-11-14T22:13:20.000Z"
    assert got["worker_pid"] == 1
    assert set(got["totals"]) == PROMISED_COUNTERS
    for each, pid, state in zip(got["workers"], (5, 6), ("running", "draining"), strict=True):
        assert set(each) == PROMISED_COUNTERS | {"pid", "started_at", "state", "figures_age"}
        assert (each["pid"], each["state"]) == (pid, state)
        assert each["started_at"] == f"2001-09-09T01:46:4{pid}.000Z"
    assert [list(each) for each in got["connections"]] == [PROMISED_CONNECTION] * 2


@given(st.lists(some_figures, max_size=3), some_figures)
def test_totals_are_all_workers_and_those_that_have_ended(running: list[Figures], ended: Figures) -> None:
    got = made(*(worker(pid, figures=each) for pid, each in enumerate(running)), ended=ended)
    for name in PROMISED_COUNTERS - {"reuse_ratio", "closed"}:
        if isinstance(got["totals"][name], int):
            assert got["totals"][name] == counters(ended)[name] + sum(each[name] for each in got["workers"])
    totals = got["totals"]
    requests = totals["requests"]
    assert totals["reuse_ratio"] == (round(totals["requests_reused"] / requests, 6) if requests else 0.0)


def test_two_workers_give_the_same_report() -> None:
    workers = [worker(pid, [row(number) for number in range(5)]) for pid in (3, 1, 2)]
    one = made(*workers, sort="requests")
    other = made(*reversed(workers), sort="requests")
    assert one == other


def test_old_figures_have_their_age_and_a_note() -> None:
    got = made(worker(1), worker(2, as_of=NOW - 1.9), worker(3, as_of=NOW - 7.25))
    assert [each["figures_age"] for each in got["workers"]] == [0.0, 1.9, 7.25]
    (note,) = got["notes"]
    assert "Worker 3" in note
    assert "7.2 s" in note


def test_notes_are_there_only_when_there_is_something_to_say() -> None:
    assert "notes" not in made(worker())
    assert made(worker(), notes=["Mind the gap."])["notes"] == ["Mind the gap."]


# --- connections -----------------------------------------------------------------------------------


def test_a_connection_in_full() -> None:
    assert listed([row(7)]) == [
        {
            "id": 7,
            "worker_pid": 1,
            "peer": "192.0.2.1:4007",
            "state": "idle",
            "protocol": "HTTP/1.1",
            "requests": 3,
            "age": 100.0,
            "idle": 10.0,
            "closes_in": 20.0,
            "bytes_received": 300,
            "bytes_sent": 30,
        }
    ]


@pytest.mark.parametrize(
    ("state", "name", "idle"),
    [
        (NEW, "idle", 10.0),
        (READING, "reading", 0.0),
        (IDLE, "idle", 10.0),
        (HANDLING, "handling", 0.0),
        (WRITING, "writing", 0.0),
    ],
)
def test_states(state: int, name: str, idle: float) -> None:
    (got,) = listed([row(state=state)])
    assert (got["state"], got["idle"]) == (name, idle)


@pytest.mark.parametrize(("deadline", "closes_in"), [(inf, None), (1000.0, 0.0), (990.0, 0.0), (1000.5, 0.5)])
def test_closes_in(deadline: float, closes_in: float | None) -> None:
    assert listed([row(deadline=deadline)])[0]["closes_in"] == closes_in


@pytest.mark.parametrize(
    ("host", "port", "peer"),
    [
        (b"192.0.2.1", 80, "192.0.2.1:80"),
        (b"2001:db8::1\0\0\0", 80, "[2001:db8::1]:80"),
        (b"", -1, ""),
        (b"/run/a.sock", -1, "/run/a.sock"),
        (b"\xff", -1, "\ufffd"),
    ],
)
def test_peers(host: bytes, port: int, peer: str) -> None:
    assert listed([row(host=host, port=port)])[0]["peer"] == peer


@pytest.mark.parametrize(
    ("sort", "order"),
    [("idle", [2, 1, 3, 4]), ("age", [3, 1, 2, 4]), ("requests", [4, 1, 2, 3]), ("bytes", [1, 4, 2, 3])],
)
def test_the_greatest_comes_first(sort: str, order: list[int]) -> None:
    rows = [
        row(1, since=980.0, accepted=500.0, requests=50, bytes_received=500, bytes_sent=501),
        row(2, since=970.0, accepted=600.0, requests=40, bytes_received=10, bytes_sent=10),
        row(3, since=990.0, accepted=400.0, requests=30, bytes_received=0, bytes_sent=0),
        row(4, since=100.0, accepted=900.0, requests=60, bytes_received=1000, bytes_sent=0, state=HANDLING),
    ]
    assert [each["id"] for each in listed(rows, sort)] == order
    assert [each["id"] for each in listed(rows, sort, 2)] == order[:2]
    assert listed(rows, sort, 0) == []


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 50)), max_size=60),
    st.sampled_from(SORTS),
    st.integers(0, 70),
)
def test_sorting_in_batches_is_sorting(pairs: list[tuple[int, int]], sort: str, limit: int) -> None:
    workers: dict[int, list[Row]] = {}
    for number, (pid, value) in enumerate(pairs):
        changed = row(number, since=NOW - value, accepted=NOW - value, requests=value, bytes_sent=value)
        workers.setdefault(pid, []).append(changed._replace(bytes_received=0))
    got = connections([worker(pid, rows) for pid, rows in workers.items()], NOW, sort, limit)
    everything = [(-value, pid, number) for number, (pid, value) in enumerate(pairs)]
    assert [(each["worker_pid"], each["id"]) for each in got] == [
        (pid, number) for _, pid, number in sorted(everything)[:limit]
    ]


@pytest.mark.parametrize("sort", SORTS)
def test_the_best_of_very_many_are_found(sort: str) -> None:
    """More than are kept between one batch and the next."""
    many = 12 * BATCH
    rows = [
        row(n, since=NOW - n, accepted=NOW - n, requests=n, bytes_received=n, bytes_sent=0)
        for n in range(many)
    ]
    for order in (rows, rows[::-1]):
        assert [each["id"] for each in listed(order, sort, 3)] == [many - 1, many - 2, many - 3]


def test_others_go_first_after_each_batch() -> None:
    pauses: list[None] = []
    rows = [row(number) for number in range(10 * BATCH + 1)]
    connections(
        [worker(rows=rows), worker(2, rows)], NOW, "age", MOST_CONNECTIONS, lambda: pauses.append(None)
    )
    assert len(pauses) >= 2 * 11 + MOST_CONNECTIONS // BATCH


@pytest.mark.parametrize("sort", SORTS)
def test_very_many_connections_are_worked_on_in_short_slices(sort: str) -> None:
    """No other request waits for more than 20 ms.

    Measured in processor time, the best of a few runs, and with the garbage of other tests out of
    the way: what else goes on in this machine and in this process is not what is tested.
    """
    rows = [
        row(n, since=NOW - n % 977, accepted=NOW - n % 991, requests=n % 7, bytes_sent=n % 10_007)
        for n in range(10_000)
    ]
    gc.collect()
    gc.freeze()
    try:
        longest = min(_longest_slice(rows, sort) for _ in range(5))
    finally:
        gc.unfreeze()
    assert longest < 0.02


def _longest_slice(rows: list[Row], sort: str) -> float:
    slices: list[float] = []
    begun = time.thread_time()

    def pause() -> None:
        nonlocal begun
        slices.append(time.thread_time() - begun)
        begun = time.thread_time()

    got = made(worker(rows=rows), sort=sort, limit=MOST_CONNECTIONS, pause=pause)
    for parts in (json_parts(got), page.parts(got, nonce="abc")):
        for _ in parts:
            pause()
    assert len(got["connections"]) == 10_000
    assert len(slices) > 60
    return max(slices)


# --- formats ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, BATCH - 1, BATCH, BATCH + 1, 3 * BATCH])
def test_json_in_parts_is_json(number: int) -> None:
    got = made(worker(rows=[row(each) for each in range(number)]), limit=MOST_CONNECTIONS, notes=["é"])
    parts = list(json_parts(got))
    assert json.loads(b"".join(parts)) == got
    assert len(parts) == 2 + -(-number // BATCH)


def test_the_page_takes_the_report() -> None:
    got = made(worker(1, [row()], figures=Figures.of(counted(), 1, 1)), worker(2, as_of=1.0))
    assert b"192.0.2.1:4001" in page.render(got, nonce="abc")


def parsed(text: str) -> dict[str, Any]:
    """Samples of a text in Prometheus' format, by name and labels, and families by name."""
    families = list(text_string_to_metric_families(text))
    samples = {
        (sample.name, *sample.labels.values()): sample.value for each in families for sample in each.samples
    }
    assert len(samples) == sum(len(each.samples) for each in families), "a sample is there twice"
    return {"types": {each.name: each.type for each in families}, "samples": samples}


def test_prometheus_reads_what_the_report_says() -> None:
    got = made(worker(figures=Figures.of(counted(), 5, 4)))
    totals = got["totals"]
    read = parsed(prometheus.render(got).decode("ascii"))
    assert read["types"] == {
        "keepalive_connections": "gauge",
        "keepalive_connections_accepted": "counter",
        "keepalive_connections_closed": "counter",
        "keepalive_requests": "counter",
        "keepalive_requests_reused": "counter",
        "keepalive_bytes_received": "counter",
        "keepalive_bytes_sent": "counter",
        "keepalive_connection_requests": "histogram",
        "keepalive_connection_age_seconds": "histogram",
        "keepalive_idle_seconds": "histogram",
    }
    expected: dict[tuple[str, ...], float] = {
        ("keepalive_connections", "idle"): 4,
        ("keepalive_connections", "active"): 1,
        ("keepalive_connections_accepted_total",): 2,
        ("keepalive_requests_total",): 3,
        ("keepalive_requests_reused_total",): 1,
        ("keepalive_bytes_received_total",): 1000,
        ("keepalive_bytes_sent_total",): 2000,
    }
    for reason in PROMISED_REASONS:
        expected["keepalive_connections_closed_total", reason] = totals["closed"][reason]
    for name in ("connection_requests", "connection_age_seconds", "idle_seconds"):
        expected[f"keepalive_{name}_sum",] = totals[name]["sum"]
        expected[f"keepalive_{name}_count",] = totals[name]["count"]
        for bucket in totals[name]["buckets"]:
            expected[f"keepalive_{name}_bucket", str(bucket["le"])] = bucket["count"]
    assert read["samples"] == expected


def test_prometheus_has_nothing_to_say_against_it() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    text = prometheus.render(made(worker(figures=Figures.of(counted(), 5, 4))))
    run = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, check=False, timeout=60
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, b"", b"")

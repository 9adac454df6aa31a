"""The end of idle connections, and of a server that is full of them."""

from __future__ import annotations

import math

from benchmarks.case import Case, Conditions, Target, Values
from benchmarks.clients import percentile
from benchmarks.idle import Closes, idle_connections
from benchmarks.measures import P50
from benchmarks.memory import cpu_seconds
from benchmarks.peers import BASELINE, GRANIAN, GTHREAD, NGINX, OURS
from benchmarks.probe import Sample, probe
from benchmarks.servers import Server, Setup

#: What this worker adds to --keep-alive by default before it closes an idle connection.
_GRACE = 1.0
#: gunicorn gives up on its workers after 30 s.
_EXIT_PATIENCE = 40.0

CLOSES_SPREAD = "closes spread over, s"
EARLIEST = "earliest after, s"
LATEST = "latest after, s"
CLOSED = "closed, %"
BY_FIN = "by FIN, %"
BUSY_SLOWEST = "busy client slowest, ms"
EXIT = "exit after, s"
SLOWEST = "slowest, ms"
ANSWERED = "answered, %"


def common_deadline(server: Server, conditions: Conditions) -> Values:
    """All idle connections have had their last answer at about the same time, so that all end at once.

    Meanwhile one client asks every millisecond.
    """
    cpu = conditions.client_cpu
    seconds = server.setup.keep_alive + _GRACE + 3
    with idle_connections(server, conditions.idle, cpu) as idle, probe(server, cpu) as busy:
        answered = idle.request()
        used = cpu_seconds(server.pids)
        busy.tell("run", seconds, 0.001)
        idle.tell_watch(seconds)
        closes: Closes = idle.closes()
        samples: list[Sample] = busy.answer()
        used = cpu_seconds(server.pids) - used
    if not closes.closed:
        raise RuntimeError(f"no idle connection was closed within {seconds:g} s")
    first, last = min(closes.closed), max(closes.closed)
    meanwhile = [1000 * s.latency for s in samples if first - 0.1 <= s.sent <= last]
    idled = [closed - since for closed, since in zip(closes.closed, closes.idle_since, strict=True)]
    return {
        CLOSES_SPREAD: last - first,
        "answers spread over, s": max(answered) - min(answered),
        EARLIEST: min(idled),
        LATEST: max(idled),
        CLOSED: 100 * len(closes.closed) / conditions.idle,
        BY_FIN: 100 * (1 - closes.resets / len(closes.closed)),
        "busy client p99, ms": percentile(meanwhile, 99),
        BUSY_SLOWEST: max(meanwhile, default=math.inf),
        "server CPU meanwhile, s": used,
    }


def exit_time(server: Server, conditions: Conditions) -> Values:
    """SIGTERM while all connections are idle: seconds until the last process is gone."""
    with idle_connections(server, conditions.idle, conditions.client_cpu) as idle:
        idle.check()
        idle.tell_watch(_EXIT_PATIENCE)
        seconds = server.end(_EXIT_PATIENCE)
        closes = idle.closes()
    return {
        EXIT: seconds,
        CLOSED: 100 * len(closes.closed) / conditions.idle,
        BY_FIN: 100 * (1 - closes.resets / max(1, len(closes.closed))),
    }


def full_of_idle(server: Server, conditions: Conditions) -> Values:
    """New clients, one after the other, while all connections that the server may have are taken by idle ones."""
    cpu = conditions.client_cpu
    new = 50
    with idle_connections(server, server.setup.connections, cpu), probe(server, cpu) as client:
        latencies = [1000 * seconds for seconds in client.ask("fill", new, 5.0)]
    return {
        SLOWEST: max(latencies),
        "first, ms": latencies[0],
        P50: percentile(latencies, 50),
        ANSWERED: 100 * sum(latency < math.inf for latency in latencies) / new,
    }


def cases(conditions: Conditions) -> list[Case]:
    """Closing, exit, a full server."""
    return [
        Case(
            "common-deadline",
            "closing",
            f"{conditions.idle:,} idle connections whose deadlines fall together, --keep-alive {conditions.closing}",
            common_deadline,
            (BASELINE, GTHREAD, OURS, NGINX),
            Setup(keep_alive=conditions.closing),
            (
                Target(CLOSES_SPREAD, most=1),
                Target(EARLIEST, least=conditions.closing),
                Target(CLOSED, least=100),
                Target(BY_FIN, least=100),
                Target(BUSY_SLOWEST, most=50),
            ),
            compare=False,
            files=conditions.idle + 300,
            most_rounds=2,
        ),
        Case(
            "exit",
            "closing",
            f"SIGTERM with {conditions.idle:,} idle connections",
            exit_time,
            (BASELINE, GTHREAD, OURS, GRANIAN, NGINX),
            targets=(Target(EXIT, most=1, to=BASELINE), Target(CLOSED, least=100)),
            compare=False,
            files=conditions.idle + 300,
            most_rounds=2,
        ),
        Case(
            "full-of-idle",
            "closing",
            "50 new clients, one after the other, while --worker-connections 100 are taken by idle ones",
            full_of_idle,
            (BASELINE, GTHREAD, OURS, NGINX),
            Setup(connections=100),
            (Target(SLOWEST, most=100), Target(ANSWERED, least=100)),
            compare=False,
            most_rounds=2,
        ),
    ]

"""Clients that hold a server up by being slow. Not about speed: measured only where it is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable

from benchmarks.case import Case, Conditions, Target, Values
from benchmarks.clients import percentile
from benchmarks.peers import BASELINE, GTHREAD, OURS
from benchmarks.probe import Sample, probe
from benchmarks.servers import Server, Setup
from benchmarks.slow import Attack, Outcome, attackers

CUT = "cut, %"
EARLIEST = "earliest after, s"
LATEST = "latest after, s"
NORMAL_P99 = "normal client p99, ms"


def attack(kind: str, interval: float | None) -> Callable[[Server, Conditions], Values]:
    """Thousands of clients that are slow in a certain way, and a normal one that asks every 5 ms beside."""

    def measure(server: Server, conditions: Conditions) -> Values:
        cpu = conditions.client_cpu
        with attackers(server, Attack(kind, conditions.slow, interval), cpu) as slow, probe(server, cpu) as normal:
            slow.tell("run", conditions.attack)
            normal.tell("run", conditions.attack, 0.005)
            samples: list[Sample] = normal.answer()
            outcome: Outcome = slow.answer()
        cut = [seconds for seconds in outcome.cut_after if seconds != math.inf]
        latencies = [1000 * sample.latency for sample in samples]
        return {
            CUT: 100 * len(cut) / len(outcome.cut_after),
            EARLIEST: min(outcome.cut_after),
            LATEST: max(outcome.cut_after),
            "told 408, %": 100 * outcome.told / len(outcome.cut_after),
            "normal client p50, ms": percentile(latencies, 50),
            NORMAL_P99: percentile(latencies, 99),
            "normal client slowest, ms": max(latencies),
        }

    return measure


def cases(conditions: Conditions) -> list[Case]:
    """Slow and stalled, in each state of a connection that has a deadline of its own."""
    return [
        Case(
            name,
            "slow",
            f"{conditions.slow:,} clients {title}, a normal one beside, {' '.join(deadlines) or 'default deadlines'}",
            attack(kind, interval),
            (BASELINE, GTHREAD, OURS),
            Setup(app="bodies", deadlines=deadlines),
            (
                Target(CUT, least=100),
                Target(EARLIEST, least=cut),
                Target(LATEST, most=cut + 1),
                Target(NORMAL_P99, most=50),
            ),
            compare=False,
            files=conditions.slow + 300,
            most_rounds=2,
        )
        for name, title, kind, interval, cut, deadlines in (
            ("slow-headers", "that send a byte of a head each second", "header", 1, 3, ("--header-timeout", "3")),
            ("slow-bodies", "that send a byte of a body each second", "body", 1, 5, ()),
            ("slow-reads", "that read a byte of 10 MB each second", "read", 1, 5, ()),
            ("stalled-bodies", "that stop before the body", "body", None, 3, ("--body-timeout", "3")),
            ("stalled-reads", "that do not read their 10 MB", "read", None, 3, ("--send-timeout", "3")),
        )
    ]

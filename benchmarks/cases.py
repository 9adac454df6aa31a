"""What is measured. A new case is one more :class:`Case` in :data:`CASES`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks import load
from benchmarks.clients import percentile
from benchmarks.idle import Closes, idle_connections
from benchmarks.memory import cpu_seconds, private_memory
from benchmarks.probe import Sample, probe
from benchmarks.servers import Server, Setup
from benchmarks.slow import Attack, Outcome, attackers

#: Seconds that an attack is watched; a server without a deadline for it would let it go on for good.
_ATTACK_SECONDS = 9.0
#: Seconds for a server to come to rest after many connections were opened or closed.
_SETTLE = 1.0
#: What this worker adds to --keep-alive by default before it closes an idle connection.
_GRACE = 1.0


@dataclass(frozen=True)
class Conditions:
    """What the person who measures can choose.

    :param seconds: of each load
    :param idle: idle connections beside, or to be closed
    :param slow: slow clients of an attack
    :param client_cpu: the core for the clients, or None for any
    """

    seconds: float = 4.0
    idle: int = 10_000
    slow: int = 5_000
    client_cpu: int | None = None


#: Figures by their titles, in the order of the table.
Values = dict[str, float]


@dataclass(frozen=True)
class Target:
    """What this worker is to reach.

    :param figure: title of the figure
    :param least: as small as this it may be
    :param most: as large as this it may be
    :param relative: the limits are for the ratio to the baseline in the same round
    """

    figure: str
    least: float | None = None
    most: float | None = None
    relative: bool = False


#: How servers are started unless a case says otherwise.
_DEFAULT = Setup()


@dataclass(frozen=True)
class Case:
    """One thing that is measured.

    :param name: as on the command line
    :param title: as in the report; may name the fields of :class:`Conditions`
    :param measure: measures a running server
    :param setup: how the servers are started
    :param targets: what is to be reached
    :param compare: the ratio of the first figure to the baseline's says something
    :param needs_load: wrk is needed
    :param modules: what the application needs beside the server
    :param most_rounds: more would take long and say little
    """

    name: str
    title: str
    measure: Callable[[Server, Conditions], Values]
    setup: Setup = _DEFAULT
    targets: tuple[Target, ...] = ()
    compare: bool = True
    needs_load: bool = False
    modules: tuple[str, ...] = ()
    most_rounds: int | None = None


REQUESTS = "requests/s"
P50 = "p50, ms"
P99 = "p99, ms"
P999 = "p99.9, ms"
CPU = "server CPU, µs/request"
CORE = "of its core, %"
SLOWEST = "slowest, ms"
LOSS = "loss, %"
IDLE_MEMORY = "KB per idle connection"
IDLE_CPU = "idle CPU, ms/s"
CUT = "cut, %"
CLOSED = "closed, %"
BY_FIN = "by FIN, %"
CLOSES_SPREAD = "closes spread over, s"
EARLIEST = "earliest after, s"
LATEST = "latest after, s"
NORMAL_P99 = "normal client p99, ms"
BUSY_SLOWEST = "busy client slowest, ms"
ANSWERED = "answered, %"


def _idle_memory(server: Server, conditions: Conditions) -> Values:
    # What the first requests cost (caches, pages shared with the master until written) is no connection's.
    with idle_connections(server.port, 100, conditions.client_cpu) as warm:
        warm.request()
    time.sleep(_SETTLE)
    pids = server.pids
    before = private_memory(pids)
    with idle_connections(server.port, conditions.idle, conditions.client_cpu) as idle:
        time.sleep(_SETTLE)
        after = private_memory(pids)
        cpu = cpu_seconds(pids)
        began = time.monotonic()
        time.sleep(max(5.0, conditions.seconds))
        cpu_share = (cpu_seconds(pids) - cpu) / (time.monotonic() - began)
        remaining = idle.count_open()
    if remaining < conditions.idle:
        raise RuntimeError(f"only {remaining} of {conditions.idle} idle connections have stayed")
    return {IDLE_MEMORY: (after - before) / 1024 / conditions.idle, IDLE_CPU: 1000 * cpu_share}


def _throughput(
    headers: Mapping[str, str] | None = None,
) -> Callable[[Server, Conditions], Values]:
    def measure(server: Server, conditions: Conditions) -> Values:
        load.run(server.port, 1, conditions.client_cpu, headers=headers)
        pids = server.pids
        cpu = cpu_seconds(pids)
        result = load.run(server.port, conditions.seconds, conditions.client_cpu, headers=headers)
        cpu = cpu_seconds(pids) - cpu
        if result.errors:
            raise RuntimeError(f"wrk counted {result.errors} errors")
        return {
            REQUESTS: result.requests_per_second,
            P50: result.p50,
            P99: result.p99,
            P999: result.p999,
            CPU: 1e6 * cpu / result.requests,
            CORE: 100 * cpu / result.seconds,
        }

    return measure


def _beside_idle(server: Server, conditions: Conditions) -> Values:
    cpu = conditions.client_cpu
    load.run(server.port, 1, cpu)
    # Alone, with, alone: what drifts meanwhile counts on both sides.
    alone = load.run(server.port, conditions.seconds, cpu).requests_per_second
    with idle_connections(server.port, conditions.idle, cpu) as idle:
        time.sleep(_SETTLE)
        beside = load.run(server.port, conditions.seconds, cpu)
        remaining = idle.count_open()
    if remaining < conditions.idle:
        raise RuntimeError(f"only {remaining} of {conditions.idle} idle connections have stayed")
    time.sleep(_SETTLE)
    alone = (alone + load.run(server.port, conditions.seconds, cpu).requests_per_second) / 2
    return {
        REQUESTS: beside.requests_per_second,
        "without them": alone,
        LOSS: 100 * (1 - beside.requests_per_second / alone),
        P50: beside.p50,
        P99: beside.p99,
    }


def _attack(kind: str, interval: float | None) -> Callable[[Server, Conditions], Values]:
    def measure(server: Server, conditions: Conditions) -> Values:
        cpu = conditions.client_cpu
        attack = Attack(kind, conditions.slow, interval)
        with attackers(server.port, attack, cpu) as slow, probe(server.port, cpu) as normal:
            slow.tell("run", _ATTACK_SECONDS)
            normal.tell("run", _ATTACK_SECONDS, 0.005)
            samples: list[Sample] = normal.answer()
            outcome: Outcome = slow.answer()
        cut = [seconds for seconds in outcome.cut_after if seconds != float("inf")]
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


def _common_deadline(server: Server, conditions: Conditions) -> Values:
    cpu = conditions.client_cpu
    seconds = server.setup.keep_alive + _GRACE + 3
    with idle_connections(server.port, conditions.idle, cpu) as idle, probe(server.port, cpu) as busy:
        answered = idle.request()
        busy.tell("run", seconds, 0.001)
        idle.tell_watch(seconds)
        closes: Closes = idle.closes()
        samples: list[Sample] = busy.answer()
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
        BUSY_SLOWEST: max(meanwhile, default=float("inf")),
    }


def _full_of_idle(server: Server, conditions: Conditions) -> Values:
    cpu = conditions.client_cpu
    new = 50
    with idle_connections(server.port, server.setup.connections, cpu), probe(server.port, cpu) as client:
        latencies = [1000 * seconds for seconds in client.ask("fill", new, 5.0)]
    return {
        SLOWEST: max(latencies),
        P50: percentile(latencies, 50),
        ANSWERED: 100 * sum(latency < float("inf") for latency in latencies) / new,
    }


def _attack_case(
    name: str, title: str, kind: str, interval: float | None, cut: tuple[float, float], *deadlines: str
) -> Case:
    return Case(
        name,
        f"{{slow:,}} clients {title}, a normal one beside, {' '.join(deadlines) or 'default deadlines'}",
        _attack(kind, interval),
        Setup(app="bodies", deadlines=deadlines),
        (
            Target(CUT, least=100),
            Target(EARLIEST, least=cut[0]),
            Target(LATEST, most=cut[1]),
            Target(NORMAL_P99, most=50),
        ),
        compare=False,
        most_rounds=2,
    )


CASES = (
    Case(
        "idle-memory",
        "Memory and CPU of {idle:,} idle connections",
        _idle_memory,
        targets=(Target(IDLE_MEMORY, most=0.6), Target(IDLE_CPU, most=1)),
    ),
    Case(
        "hello",
        "Hello world over 64 kept-alive connections",
        _throughput(),
        targets=(Target(REQUESTS, least=8, relative=True), Target(P99, most=5)),
        needs_load=True,
    ),
    Case(
        "flask",
        "Flask hello world over 64 kept-alive connections",
        _throughput(),
        Setup(app="flask_hello"),
        (Target(REQUESTS, least=1.8, relative=True),),
        needs_load=True,
        modules=("flask",),
    ),
    Case(
        "beside-idle",
        "Hello world over 64 kept-alive connections with {idle:,} idle ones beside",
        _beside_idle,
        targets=(Target(LOSS, most=10),),
        needs_load=True,
    ),
    Case(
        "new-connections",
        "Hello world, a new connection for each request, 64 at a time",
        _throughput({"Connection": "close"}),
        targets=(Target(REQUESTS, least=1, relative=True),),
        needs_load=True,
    ),
    Case(
        "browser-headers",
        "Hello world with a browser's headers, the same each time, over 64 kept-alive connections",
        _throughput(load.BROWSER_HEADERS),
        targets=(Target(REQUESTS, least=10, relative=True),),
        needs_load=True,
    ),
    Case(
        "changing-headers",
        "Hello world with a browser's headers and another cookie each time, over 64 kept-alive connections",
        _throughput(load.CHANGING_HEADERS),
        targets=(Target(REQUESTS, least=7, relative=True),),
        needs_load=True,
    ),
    _attack_case(
        "slow-headers", "that send a byte of a head each second", "header", 1, (3, 4), "--header-timeout", "3"
    ),
    _attack_case("slow-bodies", "that send a byte of a body each second", "body", 1, (5, 6)),
    _attack_case("slow-reads", "that read a byte of 10 MB each second", "read", 1, (5, 6)),
    _attack_case("stalled-bodies", "that stop before the body", "body", None, (3, 4), "--body-timeout", "3"),
    _attack_case(
        "stalled-reads", "that do not read their 10 MB", "read", None, (3, 4), "--send-timeout", "3"
    ),
    Case(
        "common-deadline",
        "{idle:,} idle connections whose deadlines fall together, --keep-alive 10",
        _common_deadline,
        Setup(keep_alive=10),
        (
            Target(CLOSES_SPREAD, most=1),
            Target(EARLIEST, least=10),
            Target(CLOSED, least=100),
            Target(BY_FIN, least=100),
            Target(BUSY_SLOWEST, most=50),
        ),
        compare=False,
        most_rounds=3,
    ),
    Case(
        "full-of-idle",
        "50 new clients, one after the other, while --worker-connections 100 are taken by idle ones",
        _full_of_idle,
        Setup(connections=100),
        (Target(SLOWEST, most=100), Target(ANSWERED, least=100)),
        compare=False,
        most_rounds=2,
    ),
)

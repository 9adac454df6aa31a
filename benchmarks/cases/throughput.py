"""Hello world: how many requests a second, and how long each takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from benchmarks import load, measures, tls
from benchmarks.case import Case, Conditions, Target, Values
from benchmarks.idle import idle_connections
from benchmarks.measures import P50, P99, REQUESTS
from benchmarks.peers import BASELINE, BJOERN, CHEROOT, GRANIAN, GTHREAD, NGINX, OURS, PYWSGI, UWSGI, WAITRESS
from benchmarks.servers import Server, Setup

LOSS = "loss, %"

_EVERYONE = (BASELINE, GTHREAD, PYWSGI, OURS, GRANIAN, BJOERN, CHEROOT, WAITRESS, UWSGI, NGINX)
_FASTEST = (BASELINE, OURS, GRANIAN, BJOERN, NGINX)
_TLS = (BASELINE, GTHREAD, OURS, GRANIAN, UWSGI, NGINX)
_BESIDE = (BASELINE, OURS, GRANIAN, NGINX)

_NO_SLOWER = Target(REQUESTS, least=1, to=BASELINE)


def hello(connections: int = 64, headers: Mapping[str, str] | None = None) -> Callable[[Server, Conditions], Values]:
    """Hello world over so many connections, each of which asks again as soon as it is answered."""

    def measure(server: Server, conditions: Conditions) -> Values:
        return measures.throughput(server, conditions, connections=connections, headers=headers)

    return measure


def beside_idle(server: Server, conditions: Conditions) -> Values:
    """Hello world over 64 connections beside none, 1,000 and many that are idle."""
    cpu = conditions.client_cpu
    alone = load.run(server, conditions.seconds, cpu)
    beside = []
    for count in (min(1_000, conditions.idle), conditions.idle):
        with idle_connections(server, count, cpu) as idle:
            time.sleep(conditions.settle)
            beside.append(load.run(server, conditions.seconds, cpu))
            idle.check()
        time.sleep(conditions.settle)
    # Alone, with, with, alone: what drifts meanwhile counts on both sides.
    again = load.run(server, conditions.seconds, cpu)
    without = (alone.requests_per_second + again.requests_per_second) / 2
    few, many = (result.requests_per_second for result in beside)
    return {
        f"{REQUESTS} beside {conditions.idle:,}": many,
        f"beside {min(1_000, conditions.idle):,}": few,
        "beside none": without,
        LOSS: 100 * (1 - many / without),
        P50: beside[-1].p50,
        P99: beside[-1].p99,
    }


def _over(connections: int, *targets: Target, peers: tuple[str, ...] = _FASTEST) -> Case:
    plural = "s" if connections > 1 else ""
    return Case(
        f"hello-{connections}",
        "throughput",
        f"Hello world over {connections:,} kept-alive connection{plural}",
        hello(connections),
        peers,
        targets=targets or (_NO_SLOWER,),
        shared=True,
        needs=(load.missing,),
        files=connections + 300,
    )


def cases(conditions: Conditions) -> list[Case]:
    """Numbers of connections, kinds of headers, idle connections beside, TLS."""
    return [
        _over(
            64,
            Target(REQUESTS, least=10, to=BASELINE),
            Target(REQUESTS, least=1, to=GRANIAN),
            Target(P99, most=2),
            peers=_EVERYONE,
        ),
        _over(1),
        _over(512),
        _over(4096),
        Case(
            "browser-headers",
            "throughput",
            "Hello world with a browser's headers, the same each time, over 64 kept-alive connections",
            hello(headers=load.BROWSER_HEADERS),
            _FASTEST,
            targets=(Target(REQUESTS, least=10, to=BASELINE), Target(REQUESTS, least=1, to=BJOERN)),
            shared=True,
            needs=(load.missing,),
        ),
        Case(
            "changing-headers",
            "throughput",
            "Hello world with a browser's headers and another cookie each time, over 64 kept-alive connections",
            hello(headers=load.CHANGING_HEADERS),
            _FASTEST,
            targets=(Target(REQUESTS, least=7, to=BASELINE),),
            shared=True,
            needs=(load.missing,),
        ),
        Case(
            "beside-idle",
            "throughput",
            f"Hello world over 64 kept-alive connections with up to {conditions.idle:,} idle ones beside",
            beside_idle,
            _BESIDE,
            targets=(Target(LOSS, most=5),),
            shared=False,
            needs=(load.missing,),
            files=conditions.idle + 300,
            most_rounds=3,
        ),
        Case(
            "hello-tls",
            "throughput",
            "Hello world over 64 kept-alive connections with TLS",
            hello(),
            _TLS,
            Setup(tls=True),
            (_NO_SLOWER,),
            needs=(load.missing, tls.missing),
        ),
    ]

"""What an idle connection costs, in memory and CPU."""

from __future__ import annotations

import math
import time

from benchmarks import tls
from benchmarks.case import Case, Conditions, Target, Values
from benchmarks.idle import idle_connections
from benchmarks.memory import cpu_seconds, private_memory
from benchmarks.peers import BASELINE, BJOERN, CHEROOT, GRANIAN, GTHREAD, NGINX, OURS, PYWSGI, UWSGI, WAITRESS
from benchmarks.servers import Server, Setup

IDLE_MEMORY = "KB per idle connection"
IDLE_CPU = "idle CPU, ms/s"

#: Long enough that none is closed while the others are being opened.
_KEEP_ALIVE = 600
#: Connections of one worker where there are several. They are never shared out evenly, so a process may
#: have half as many again.
_PER_WORKER = 10_000
#: What a process needs beside its connections.
_OTHER_FILES = 300

_EVERYONE = (BASELINE, GTHREAD, PYWSGI, OURS, GRANIAN, BJOERN, CHEROOT, WAITRESS, UWSGI, NGINX)
_TLS = (BASELINE, GTHREAD, OURS, GRANIAN, NGINX)
_MANY = (BASELINE, OURS, GRANIAN, NGINX)


def idle_cost(server: Server, conditions: Conditions, count: int) -> Values:
    """Private memory and CPU of *count* connections that have each had one request answered."""
    # What the first requests cost (caches, pages shared with the master until written) is no connection's.
    with idle_connections(server, min(count, 100 * server.setup.workers), conditions.client_cpu) as warm:
        warm.request()
    time.sleep(conditions.settle)
    pids = server.pids
    before = private_memory(pids)
    with idle_connections(server, count, conditions.client_cpu) as idle:
        time.sleep(conditions.settle)
        after = private_memory(pids)
        cpu = cpu_seconds(pids)
        began = time.monotonic()
        time.sleep(conditions.seconds)
        share = (cpu_seconds(pids) - cpu) / (time.monotonic() - began)
        idle.check()
    return {IDLE_MEMORY: (after - before) / 1024 / count, IDLE_CPU: 1000 * share}


def _case(count: int, peers: tuple[str, ...], *, secure: bool, most: bool) -> Case:
    workers = math.ceil(count / _PER_WORKER) if most else 1
    title = f"Memory and CPU of {count:,} idle connections"
    targets = [Target(IDLE_MEMORY, most=1.3 if secure else 1, to=NGINX)]
    if not secure:
        targets.append(Target(IDLE_MEMORY, most=1 / 25, to=BASELINE))
    return Case(
        f"idle-{'tls-' if secure else ''}{'most' if most else count}",
        "memory",
        title + (" over TLS" if secure else "") + (f", {workers} workers" if workers > 1 else ""),
        lambda server, conditions: idle_cost(server, conditions, count),
        peers,
        Setup(keep_alive=_KEEP_ALIVE, tls=secure, workers=workers),
        tuple(targets),
        needs=(tls.missing,) if secure else (),
        files=(count if workers == 1 else _PER_WORKER * 3 // 2) + _OTHER_FILES,
        # Memory hardly differs from one time to the next.
        most_rounds=1 if most else 2,
    )


def cases(conditions: Conditions) -> list[Case]:
    """From 1,000 connections to the most."""
    few = min(1_000, conditions.idle)
    found = []
    for secure in (False, True):
        peers = _TLS if secure else _EVERYONE
        counts = [few, conditions.idle] if conditions.idle > few else [few]
        found += [_case(count, peers, secure=secure, most=False) for count in counts]
        most = conditions.most_tls if secure else conditions.most_idle
        found.append(_case(most, _MANY, secure=secure, most=True))
    return found

"""What several cases measure, and the titles of the figures."""

from __future__ import annotations

from benchmarks import load
from benchmarks.case import Conditions, Values
from benchmarks.memory import cpu_seconds
from benchmarks.servers import Server

REQUESTS = "requests/s"
P50 = "p50, ms"
P99 = "p99, ms"
P999 = "p99.9, ms"
CPU = "server CPU, µs/request"
CORE = "of its core, %"


def throughput(server: Server, conditions: Conditions, **request: object) -> Values:
    """As many requests as *server* answers, and how long each took.

    :param request: for :func:`benchmarks.load.run`
    :raises RuntimeError: a request has failed
    """
    pids = server.pids
    cpu = cpu_seconds(pids)
    result = load.run(server, conditions.seconds, conditions.client_cpu, **request)  # type: ignore[arg-type]
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

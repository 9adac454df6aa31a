"""An application that waits: what greenlets are for."""

from __future__ import annotations

from benchmarks import load, measures
from benchmarks.case import Case, Conditions, Target, Values
from benchmarks.measures import REQUESTS
from benchmarks.peers import BASELINE, GRANIAN, GTHREAD, OURS, PYWSGI, UWSGI, WAITRESS
from benchmarks.servers import Server, Setup
from benchmarks.upstream import DELAY, upstream

_CLIENTS = 2_000
#: For servers with a thread for each request; many, and still too few for all clients.
_THREADS = 256


def waiting(server: Server, conditions: Conditions) -> Values:
    """2,000 clients at a time; for each request the application asks another server, which takes 50 ms."""
    with upstream(conditions.client_cpu) as port:
        return measures.throughput(server, conditions, path=f"/wait?{port}", connections=_CLIENTS)


def cases(_: Conditions) -> list[Case]:
    """The one."""
    return [
        Case(
            "waiting",
            "waiting",
            f"An application that waits {1000 * DELAY:.0f} ms on the network, {_CLIENTS:,} clients at a time, "
            f"{_THREADS} threads where a request needs one",
            waiting,
            (BASELINE, GTHREAD, PYWSGI, OURS, GRANIAN, WAITRESS, UWSGI),
            Setup(app="waiting", threads=_THREADS),
            (Target(REQUESTS, least=1, to=BASELINE),),
            needs=(load.missing,),
            files=2 * _CLIENTS + 300,
        )
    ]

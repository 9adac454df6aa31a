"""What a connection costs to set up, and what is saved by keeping it."""

from __future__ import annotations

import statistics
from dataclasses import replace

from benchmarks import browser, load, measures, tls
from benchmarks.case import Case, Conditions, Target, Values
from benchmarks.clients import percentile
from benchmarks.measures import CPU, P50, REQUESTS
from benchmarks.peers import BASELINE, BJOERN, GRANIAN, NGINX, OURS
from benchmarks.probe import probe
from benchmarks.servers import Server, Setup, running

_PEERS = (BASELINE, OURS, GRANIAN, BJOERN, NGINX)
_TLS = (BASELINE, OURS, GRANIAN, NGINX)
_BROWSER = (BASELINE, OURS)

#: How often the page is loaded each way; each time takes a second for Chromium to start.
_PAGES = 5

_NEW_EACH_TIME = {"Connection": "close"}


def new_connections(server: Server, conditions: Conditions) -> Values:
    """A new connection for each request, 64 at a time."""
    return measures.throughput(server, conditions, headers=_NEW_EACH_TIME)


def kept_or_not(server: Server, conditions: Conditions) -> Values:
    """The same requests over connections that are kept, and over a new one each.

    Latencies are those of a single client that has the server to itself; throughput and CPU come from 64.
    """
    with probe(server, conditions.client_cpu) as client:
        first, later = client.ask("visits", conditions.seconds / 2, 10)
    kept = measures.throughput(server, conditions)
    new = measures.throughput(server, conditions, headers=_NEW_EACH_TIME)
    return {
        "times the requests/s": kept[REQUESTS] / new[REQUESTS],
        "first request p50, ms": 1000 * percentile(first, 50),
        f"later requests {P50}": 1000 * percentile(later, 50),
        f"{CPU}, new": new[CPU],
        f"{CPU}, kept": kept[CPU],
    }


def page(server: Server, conditions: Conditions) -> Values:
    """A page of thirty images in Chromium, loaded with kept connections and with a new one for each request."""
    cpu = conditions.client_cpu
    pages = max(1, min(_PAGES, round(_PAGES * conditions.seconds)))
    kept = statistics.median(browser.load_page(server, cpu) for _ in range(pages))
    with running(server.peer, replace(server.setup, keep_alive=0), server.cpu) as without:
        new = statistics.median(browser.load_page(without, cpu) for _ in range(pages))
    return {
        "kept, ms": 1000 * kept,
        "a new one each, ms": 1000 * new,
        "saved, %": 100 * (1 - kept / new),
    }


def cases(_: Conditions) -> list[Case]:
    """Connection set-up rate; what keeping them saves."""
    found = [
        Case(
            "new-connections",
            "connections",
            "Hello world, a new connection for each request, 64 at a time",
            new_connections,
            _PEERS,
            targets=(Target(REQUESTS, least=1, to=BASELINE),),
            shared=True,
            needs=(load.missing,),
        ),
        Case(
            "kept-or-not",
            "connections",
            "What keeping connections saves: hello world with and without",
            kept_or_not,
            _PEERS,
            compare=False,
            shared=True,
            needs=(load.missing,),
        ),
        Case(
            "kept-or-not-tls",
            "connections",
            "What keeping connections saves over TLS",
            kept_or_not,
            _TLS,
            Setup(tls=True),
            compare=False,
            needs=(load.missing, tls.missing),
        ),
    ]
    pages = [
        Case(
            "page-tls" if secure else "page",
            "connections",
            f"A page of thirty images in Chromium{' over TLS' if secure else ''}",
            page,
            _BROWSER,
            Setup(app="page", tls=secure),
            compare=False,
            needs=(browser.missing, tls.missing) if secure else (browser.missing,),
            most_rounds=1,
        )
        for secure in (False, True)
    ]
    return found + pages

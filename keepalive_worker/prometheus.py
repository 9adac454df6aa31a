"""The report in Prometheus' text format, version 0.0.4.

Written out here and not by the library ``prometheus-client``: that is made for counters which
live in the process, brings a registry and its own way of many processes (files), and would be
fed finished numbers through a custom collector that is longer than this module. A test reads what
comes out with the library's parser and with Prometheus itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

#: https://prometheus.io/docs/instrumenting/exposition_formats/
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_COUNTERS = (
    ("connections_accepted", "Connections accepted."),
    ("requests", "Requests that have begun."),
    ("requests_reused", "Requests that were not the first on their connection."),
    ("bytes_received", "Bytes received from clients."),
    ("bytes_sent", "Bytes sent to clients."),
)

_HISTOGRAMS = (
    ("connection_requests", "Requests that a connection had served when it was closed."),
    ("connection_age_seconds", "Age of connections when they were closed."),
    ("idle_seconds", "How long connections had been idle when their next request came."),
)


def render(report: Mapping[str, Any]) -> bytes:
    """The totals of a report as metrics."""
    return "".join(f"{line}\n" for line in _lines(report["totals"])).encode("ascii")


def _lines(totals: Mapping[str, Any]) -> Iterator[str]:
    yield from _about("connections", "gauge", "Open connections, by whether a request is on its way.")
    for state in ("idle", "active"):
        yield f'keepalive_connections{{state="{state}"}} {totals[f"connections_{state}"]}'
    for name, meaning in _COUNTERS:
        yield from _about(f"{name}_total", "counter", meaning)
        yield f"keepalive_{name}_total {totals[name]}"
    yield from _about("connections_closed_total", "counter", "Connections that have ended, by reason.")
    for reason, count in totals["closed"].items():
        yield f'keepalive_connections_closed_total{{reason="{reason}"}} {count}'
    for name, meaning in _HISTOGRAMS:
        yield from _about(name, "histogram", meaning)
        histogram = totals[name]
        for bucket in histogram["buckets"]:
            yield f'keepalive_{name}_bucket{{le="{bucket["le"]}"}} {bucket["count"]}'
        yield f"keepalive_{name}_sum {histogram['sum']}"
        yield f"keepalive_{name}_count {histogram['count']}"


def _about(name: str, kind: str, meaning: str) -> Iterator[str]:
    yield f"# HELP keepalive_{name} {meaning}"
    yield f"# TYPE keepalive_{name} {kind}"

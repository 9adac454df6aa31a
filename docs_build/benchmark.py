"""The table of the main figures, from the published report of the benchmarks."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPORT = Path(__file__).resolve().parent.parent / "docs" / "benchmark" / "report.json"

#: Columns: the name in the report, and in the table.
_SERVERS = {
    "keepalive_worker": "keepalive_worker",
    "gunicorn gevent": "gunicorn gevent",
    "granian": "granian (Rust)",
    "bjoern": "bjoern (C)",
    "nginx (static)": "nginx, no app",
}
#: Rows: what it is, the case, the figure, and how it is written.
_ROWS = (
    ("memory of an idle connection, KB", "idle-15000", "KB per idle connection", "{:.2f}"),
    ("the same over TLS", "idle-tls-15000", "KB per idle connection", "{:.1f}"),
    ("hello world, 64 connections, requests/s", "hello-64", "requests/s", "{:,.0f}"),
    ("99 % of these within, ms", "hello-64", "p99, ms", "{:.1f}"),
    ("with a browser's headers", "browser-headers", "requests/s", "{:,.0f}"),
    ("with another cookie each time", "changing-headers", "requests/s", "{:,.0f}"),
    ("over TLS", "hello-tls", "requests/s", "{:,.0f}"),
    ("a new connection for each request", "new-connections", "requests/s", "{:,.0f}"),
    ("Flask", "flask", "requests/s", "{:,.0f}"),
    ("Django", "django", "requests/s", "{:,.0f}"),
    ("2,000 requests that wait 50 ms for a network", "waiting", "requests/s", "{:,.0f}"),
)


#: What ``python -m benchmarks.inside`` has printed.
_INSIDE = REPORT.with_name("inside.txt")


def inside() -> str:
    """The table of what a request costs in Python."""
    return _INSIDE.read_text().strip()


def figure(case: Mapping[str, Any], server: str, title: str) -> float | None:
    """The median of the rounds, None where there is none."""
    rounds = [values for values in case["rounds"].get(server, ()) if values is not None]
    found = [values[title] for values in rounds if values.get(title) is not None]
    return statistics.median(found) if found else None


def summary() -> str:
    """The table in Markdown.

    :raises KeyError: the report does not have a case
    """
    cases = {case["name"]: case for case in json.loads(REPORT.read_text())["cases"]}
    lines = [f"| one worker | {' | '.join(_SERVERS.values())} |", f"| --- |{' ---: |' * len(_SERVERS)}"]
    for title, name, measure, form in _ROWS:
        found = [figure(cases[name], server, measure) for server in _SERVERS]
        lines.append(f"| {title} | {' | '.join('' if value is None else form.format(value) for value in found)} |")
    return "\n".join(lines)

"""From reports to what a terminal shows: rates, sparklines, rows, lines of text. No I/O and no clock here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_address
from math import inf
from typing import Any, NamedTuple

from keepalive_worker.page import REASONS
from keepalive_worker.page.figures import NONE, count, decimal, duration, ratio, size
from keepalive_worker.top.report import moment, printable

Report = Mapping[str, Any]

#: Reports that sparklines look back on.
HISTORY = 120

_BARS = "▁▂▃▄▅▆▇█"


# --- rates -----------------------------------------------------------------------------------


class Rates(NamedTuple):
    """What happened between two reports, per second; ``reuse`` is a part of one, None without requests."""

    seconds: float
    requests: float
    accepted: float
    closed: float
    received: float
    sent: float
    reuse: float | None

    def as_json(self) -> dict[str, float | None]:
        """For ``--json``."""
        return {name: None if value is None else round(value, 3) for name, value in self._asdict().items()}


def rates(before: Report, after: Report) -> Rates | None:
    """The rates from one report to the next; None where the server has been started anew in between."""
    seconds = (moment(after) - moment(before)).total_seconds()
    if seconds <= 0:
        return None
    old, new = before["totals"], after["totals"]

    def grown(name: str) -> int:
        return int(new.get(name, 0) - old.get(name, 0))

    requests, reused = grown("requests"), grown("requests_reused")
    accepted, received, sent = grown("connections_accepted"), grown("bytes_received"), grown("bytes_sent")
    closed = sum(new["closed"].values()) - sum(old["closed"].values())
    # Totals never go backwards in the life of a server.
    if min(requests, reused, accepted, received, sent, closed) < 0:
        return None
    return Rates(
        seconds,
        requests / seconds,
        accepted / seconds,
        closed / seconds,
        received / seconds,
        sent / seconds,
        reused / requests if requests else None,
    )


class History:
    """The latest report, and the rates between those before it."""

    def __init__(self, length: int = HISTORY) -> None:
        self.latest: Report | None = None
        #: None where there is a gap: the server was away, or has been started anew.
        self.rates: deque[Rates | None] = deque(maxlen=length)
        self.open: deque[float | None] = deque(maxlen=length)

    def add(self, report: Report) -> Rates | None:
        """Take the next report; the rates since the one before."""
        made = None if self.latest is None else rates(self.latest, report)
        if self.latest is not None:
            self.rates.append(made)
        self.open.append(report["totals"].get("connections_open", 0))
        self.latest = report
        return made

    def gap(self) -> None:
        """The server did not answer: what comes next cannot be compared with what was before."""
        if self.latest is not None:
            self.latest = None
            self.open.append(None)

    def spark(self, name: str, width: int) -> str:
        """A sparkline of one of the rates."""
        return sparkline([None if each is None else getattr(each, name) for each in self.rates], width)


def sparkline(values: Iterable[float | None], width: int) -> str:
    """The last *width* values as bars from zero to the greatest of them; a space where there is none."""
    shown = list(values)[-width:] if width > 0 else []
    top = max((value for value in shown if value is not None), default=0)
    line = ""
    for value in shown:
        if value is None:
            line += " "
        elif top <= 0:
            line += _BARS[0]
        else:
            line += _BARS[round(max(0, value) / top * (len(_BARS) - 1))]
    return line


# --- connections -----------------------------------------------------------------------------


class Column(NamedTuple):
    """One column of the connection table."""

    title: str
    #: The key in a report's connections.
    name: str
    show: Callable[[Any], str]
    #: Whether the greatest comes first.
    descending: bool = True
    #: By what the server is asked to choose its rows, where it knows this order.
    ask: str | None = None
    is_text: bool = False


def _text(value: Any) -> str:
    return printable(str(value))


def _peer(value: Any) -> str:
    return printable(str(value)) or "unix socket"


COLUMNS = (
    Column("Peer", "peer", _peer, descending=False, is_text=True),
    Column("State", "state", _text, descending=False, is_text=True),
    Column("Idle", "idle", duration, ask="idle"),
    Column("Closes in", "closes_in", duration, descending=False),
    Column("Age", "age", duration, ask="age"),
    Column("Requests", "requests", count, ask="requests"),
    Column("Received", "bytes_received", size, ask="bytes"),
    Column("Sent", "bytes_sent", size, ask="bytes"),
    Column("Protocol", "protocol", _text, descending=False, is_text=True),
    Column("Worker", "worker_pid", _text, descending=False),
    Column("Id", "id", count),
)
BY_NAME = {column.name: column for column in COLUMNS}
DEFAULT_SORT = "idle"


def sorted_by(connections: Iterable[Report], name: str, reverse: bool = False) -> list[Report]:
    """Connections in the order of a column, or the other way round; equal ones stay as they came.

    Those without a value (no deadline, say) come last in either order.
    """
    column = BY_NAME[name]
    known = [each for each in connections if each.get(name) is not None]
    unknown = [each for each in connections if each.get(name) is None]
    known.sort(key=lambda each: _key(column, each[name]), reverse=column.descending != reverse)
    return known + unknown


def _key(column: Column, value: Any) -> Any:
    if column.name == "peer":
        host, _, port = str(value).rpartition(":")
        try:
            address = ip_address(host.strip("[]"))
            return address.version, int(address), int(port)
        except ValueError:
            return inf, 0, 0
    return str(value) if column.is_text else value


def matching(connections: Iterable[Report], words: str) -> list[Report]:
    """The connections in whose peer, state, protocol or worker each of the *words* is found."""
    wanted = words.lower().split()
    return [each for each in connections if all(word in _searched(each) for word in wanted)]


def _searched(connection: Report) -> str:
    return " ".join(_text(connection.get(name, "")) for name in ("peer", "state", "protocol", "worker_pid")).lower()


def cells(connection: Report) -> list[str]:
    """One row, in the order of :data:`COLUMNS`."""
    return [column.show(connection.get(column.name)) for column in COLUMNS]


# --- lines of text ---------------------------------------------------------------------------


def headline(report: Report, url: str) -> str:
    """Which server that is."""
    workers = report["workers"]
    draining = sum(worker.get("state") == "draining" for worker in workers)
    text = f"{url}  {len(workers)} {'worker' if len(workers) == 1 else 'workers'}"
    if draining:
        text += f" ({draining} draining)"
    return f"{text}  {moment(report):%H:%M:%S} UTC"


def totals(report: Report, now: Rates | None, history: History | None = None, width: int = 80) -> list[str]:
    """A line for connections, requests, and bytes each way, with rates and sparklines where there are some."""
    made = report["totals"]
    spark = max(0, min(HISTORY, width - 70))

    def per_second(value: float | None, show: Callable[[float | None], str]) -> str:
        return NONE if value is None else f"{show(value)}/s"

    def line(name: str, value: str, rate: str, more: str, sparks: str) -> str:
        return f"{name:<12}{value:>12} {rate:>12}  {more:<28} {sparks}".rstrip()

    idle, active = made.get("connections_idle", 0), made.get("connections_active", 0)
    sparks = {name: history.spark(name, spark) if history else "" for name in ("requests", "received", "sent")}
    reuse = made.get("reuse_ratio") if made["requests"] else None
    recent = f" (now {ratio(now.reuse)})" if now is not None and now.reuse is not None else ""
    return [
        line(
            "Open",
            count(made.get("connections_open", 0)),
            "",
            f"{count(idle)} idle, {count(active)} active",
            sparkline(history.open, spark) if history else "",
        ),
        line("Accepted", count(made.get("connections_accepted", 0)), per_second(now and now.accepted, decimal), "", ""),
        line(
            "Requests",
            count(made["requests"]),
            per_second(now and now.requests, decimal),
            f"{ratio(reuse)} reused{recent}",
            sparks["requests"],
        ),
        line(
            "Received",
            size(made.get("bytes_received", 0)),
            per_second(now and now.received, size),
            "",
            sparks["received"],
        ),
        line("Sent", size(made.get("bytes_sent", 0)), per_second(now and now.sent, size), "", sparks["sent"]),
    ]


def closes(report: Report) -> list[tuple[str, str, bool]]:
    """Reason, count, and whether an operator should look into it; most frequent first, none that never was."""
    closed = sorted(report["totals"]["closed"].items(), key=lambda item: -item[1])
    return [
        (printable(str(reason)), count(number), REASONS[reason][1] if reason in REASONS else True)
        for reason, number in closed
        if number
    ]


def page(report: Report, url: str) -> str:
    """A report as plain text, for ``--once``."""
    lines = [headline(report, url), "", *totals(report, None)]
    reasons = ", ".join(f"{name} {number}" for name, number, _ in closes(report))
    lines += ["", f"Closed      {reasons or 'none so far'}"]
    lines += [f"Note: {printable(str(note))}" for note in report.get("notes", ())]
    lines += ["", *table([column.title for column in COLUMNS], [cells(row) for row in report["connections"]])]
    return "\n".join(lines) + "\n"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as they need to be: text to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]

    def line(texts: Sequence[str]) -> str:
        aligned = [
            text.ljust(width) if column.is_text else text.rjust(width)
            for text, width, column in zip(texts, widths, COLUMNS, strict=True)
        ]
        return "  ".join(aligned).rstrip()

    return [line(titles), *map(line, rows)]

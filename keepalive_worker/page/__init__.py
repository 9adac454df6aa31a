"""The debug endpoint as a page: one HTML document with all it needs in it.

``page.html``, ``page.css`` and ``page.js`` lie beside this file. The document carries the report twice: as
tables that can be read without JavaScript, and as JSON for ``page.js``, which draws from it and then fetches
newer reports from the document's own address. Everything that a client can choose, its address above all,
is escaped here and set as text there; the Content-Security-Policy is the second wall, not the first.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from html import escape
from importlib import resources
from math import floor
from typing import Any

from keepalive_worker.page.figures import NONE, bound, count, decimal, duration, ratio, size

__all__ = ["content_security_policy", "parts", "render"]

#: Most rows of the connection table; whoever wants more of them reads the JSON. As in page.js.
MOST_ROWS = 1000

#: What stands for the address of a client that has none.
UNNAMED = "unix socket"

#: Connections that go into one part of the document: some 2 ms of work.
BATCH = 200

#: A base64 value (CSP3, 2.3.1); anything else could end the attribute or the directive it stands in.
_NONCE = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")

#: The report's reasons to close: the name, whether an operator should look into it, what it means.
REASONS: Mapping[str, tuple[str, bool, str]] = {
    "client": ("Closed by the client", False, "The client ended the connection."),
    "idle_timeout": ("Idle timeout", False, "No request came within the keep-alive time and its grace."),
    "request_cap": ("Request cap", False, "The connection had served as many requests as it may."),
    "lifetime": ("Lifetime", False, "The connection had reached the age at which it takes no more requests."),
    "response": ("By the response", False, "The application, its response or HTTP/1.0 asked for the end."),
    "shutdown": ("Shutdown", False, "The worker was stopping or being replaced."),
    "evicted": ("Evicted", True, "It was the longest idle, and a new client needed its place."),
    "header_timeout": ("Header timeout", True, "The head of a request did not arrive in time."),
    "body_timeout": ("Body timeout", True, "The body of a request did not arrive in time."),
    "send_timeout": ("Send timeout", True, "The client stopped taking the response."),
    "min_data_rate": ("Too slow", True, "Bytes came or went more slowly than the lowest rate allowed."),
    "peer_limit": ("Peer limit", True, "Its address had as many connections open as one address may."),
    "dead_peer": ("Dead peer", True, "TCP keepalive probes or retransmissions went unanswered."),
    "bad_request": ("Bad request", True, "What the client sent was not valid HTTP."),
    "error": ("Error", True, "The application or the worker failed in the middle of a response."),
}

#: The report's histograms: the title, the unit, and what is counted.
HISTOGRAMS: Mapping[str, tuple[str, str, str]] = {
    "connection_requests": ("Requests per connection", "requests", "Connections"),
    "idle_seconds": ("Idle times", "seconds", "Waits"),
    "connection_age_seconds": ("Age at close", "seconds", "Connections"),
}


def render(report: dict[str, Any], *, nonce: str) -> bytes:
    """The whole document, in UTF-8.

    :param report: what the endpoint gives as JSON
    :param nonce: base64, fresh for each response and the same as in its :func:`content_security_policy`
    :raises ValueError: for a nonce that is no base64, or a number in the report that JSON does not know
    """
    return b"".join(parts(report, nonce=nonce))


def parts(report: dict[str, Any], *, nonce: str) -> Iterator[bytes]:
    """The document of :func:`render` in pieces, each made in a few milliseconds when it is asked for.

    Ten thousand connections take long enough that a server which does one thing at a time should do others
    in between.
    """
    _check(nonce)
    return (piece.encode("utf-8", "backslashreplace") for piece in _pieces(report, nonce))


def content_security_policy(nonce: str) -> str:
    """The value of the ``Content-Security-Policy`` header that belongs to a document with this *nonce*.

    Images may be ``data:`` for the sake of the icon; without one, browsers ask the application for
    ``/favicon.ico``, which would count as a request.
    """
    _check(nonce)
    return (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _check(nonce: str) -> None:
    if not _NONCE.fullmatch(nonce):
        raise ValueError(f"a nonce is base64, not {nonce!r}")


@functools.cache
def _template() -> Sequence[str]:
    """Text and names of fields by turns, text first."""
    folder = resources.files(__name__)
    page, style, script = (
        folder.joinpath(name).read_text("utf-8") for name in ("page.html", "page.css", "page.js")
    )
    return re.split(r"\{\{(\w+)\}\}", page.replace("{{style}}", style).replace("{{script}}", script))


def _pieces(report: dict[str, Any], nonce: str) -> Iterator[str]:
    totals = report.get("totals", {})
    closed = totals.get("closed", {})
    workers = report.get("workers", [])
    connections = report.get("connections", [])
    notes = report.get("notes", [])
    generated_at = str(report.get("generated_at", ""))
    fields: dict[str, str | Iterator[str]] = {
        "nonce": nonce,
        "generated_at": escape(generated_at),
        "worker_pid": escape(str(report.get("worker_pid", NONE))),
        "notes": "".join(f"<li>{escape(str(note))}</li>" for note in notes),
        "notes_hidden": _hidden(not notes),
        "tiles": "".join(_tiles(totals)),
        "closed": "".join(_closed(closed)),
        "closed_none_hidden": _hidden(any(closed.values())),
        "meanings": "".join(_meanings()),
        "histograms": "".join(_histogram(name, totals.get(name, {})) for name in HISTOGRAMS),
        "workers": "".join(_worker(worker, generated_at, _most_open(workers)) for worker in workers),
        "workers_none_hidden": _hidden(bool(workers)),
        "shown": f"{count(min(MOST_ROWS, len(connections)))} of {count(totals.get('connections_open', 0))}",
        "rows": _rows(connections[:MOST_ROWS]),
        "report": _embedded(report),
    }
    text = ""
    for number, piece in enumerate(_template()):
        field = fields[piece] if number % 2 else piece
        if isinstance(field, str):
            text += field
        else:
            for more in field:
                yield text
                text = more
    yield text


def _hidden(hidden: bool) -> str:
    return " hidden" if hidden else ""


def _embedded(report: dict[str, Any]) -> Iterator[str]:
    """The report as JSON in which nothing can end a script element, nor a line of JavaScript."""
    head = {name: value for name, value in report.items() if name != "connections"}
    connections: list[Any] = report.get("connections", [])
    yield _json(head)[:-1] + (', "connections": [' if head else '"connections": [')
    for start in range(0, len(connections), BATCH):
        batch = _json(connections[start : start + BATCH])
        yield (", " if start else "") + batch[1:-1]
    yield "]}"


def _json(value: Any) -> str:
    # ASCII only: U+2028 and U+2029 come out as escapes with everything else.
    text = json.dumps(value, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _tiles(totals: Mapping[str, Any]) -> Iterator[str]:
    is_open = totals.get("connections_open", 0)
    idle = totals.get("connections_idle", 0)
    active = totals.get("connections_active", 0)
    requests = totals.get("requests", 0)
    reused = totals.get("requests_reused", 0)
    reuse = totals.get("reuse_ratio") if requests else None
    received = size(totals.get("bytes_received", 0))
    for name, title, value, note in (
        ("open", "Open", count(is_open), f"{count(totals.get('connections_accepted', 0))} accepted"),
        ("idle", "Idle", count(idle), f"{ratio(idle / is_open if is_open else None)} of open"),
        ("active", "Active", count(active), f"{ratio(active / is_open if is_open else None)} of open"),
        ("rate", "Requests per second", NONE, f"{count(requests)} requests"),
        ("reuse", "Reuse ratio", ratio(reuse), f"{count(reused)} reused"),
        ("sent", "Sent per second", NONE, f"{size(totals.get('bytes_sent', 0))}, received {received}"),
    ):
        yield (
            f'<div class="tile" id="tile-{name}"><dt>{title}</dt><dd class="value">{value}</dd>'
            f'<dd class="note">{note}</dd><dd class="spark" aria-hidden="true"></dd></div>\n'
        )


def _closed(closed: Mapping[str, int]) -> Iterator[str]:
    """A row for each reason there can be, most frequent first; those that never were are hidden."""
    numbers = dict.fromkeys(REASONS, 0) | dict(closed)
    total = sum(numbers.values())
    most = max(numbers.values())
    for reason, number in sorted(numbers.items(), key=lambda item: -item[1]):
        title, notable, meaning = REASONS.get(reason, (reason, True, ""))
        share = max(1, 100 * number / most) if number else 0
        yield (
            f'<tr data-reason="{escape(reason)}"{" data-notable" if notable else ""}{_hidden(not number)}>'
            f'<th scope="row" title="{escape(meaning)}">{escape(title)}</th>'
            f"<td>{_bar(share)}<span>{ratio(number / total if total else None)}</span></td>"
            f"<td>{count(number)}</td></tr>"
        )


def _meanings() -> Iterator[str]:
    for reason, (title, _, meaning) in REASONS.items():
        yield f"<div><dt>{title} <code>{reason}</code></dt><dd>{meaning}</dd></div>\n"


def _bar(percent: float, second: float | None = None) -> str:
    bar = f'<rect width="{percent:.1f}%" height="100%"/>'
    if second is not None:
        bar += f'<rect class="second" x="{percent:.1f}%" width="{second:.1f}%" height="100%"/>'
    return f'<svg class="bar" aria-hidden="true">{bar}</svg>'


def _histogram(name: str, histogram: Mapping[str, Any]) -> str:
    title, unit, counted = HISTOGRAMS[name]
    buckets = histogram.get("buckets", [])
    total = histogram.get("count", 0)
    rows = []
    before = 0
    last = 0.0
    for bucket in buckets:
        number = bucket["count"] - before
        before = bucket["count"]
        above = bucket["le"] == "+Inf"
        last = last if above else float(bucket["le"])
        rows.append(
            f'<tr><th scope="row">{"over" if above else "up to"} {bound(last, unit)}</th>'
            f"<td>{count(number)}</td><td>{ratio(number / total if total else None)}</td></tr>"
        )
    mean, quantiles, number = _summary(histogram, unit)
    return (
        f'<section class="panel histogram" id="{name}" data-unit="{unit}" aria-labelledby="{name}-title">\n'
        f'<div class="title"><h2 id="{name}-title">{title}</h2><p class="quiet summary">{mean}</p></div>\n'
        '<div class="plot" aria-hidden="true"></div>\n'
        f'<table><thead><tr><th scope="col">Range</th><th scope="col">{counted}</th>'
        f'<th scope="col">Share</th></tr></thead><tbody>{"".join(rows)}</tbody></table>\n'
        f'<div class="title"><p class="quiet summary">{quantiles}</p>'
        f'<p class="quiet summary">{number}</p></div>\n'
        "</section>\n"
    )


def _summary(histogram: Mapping[str, Any], unit: str) -> tuple[str, str, str]:
    """The mean, what can be told of the quantiles, and of how many that is."""
    total = histogram.get("count", 0)
    if not total:
        return "", "None so far.", ""
    mean = histogram["sum"] / total
    return (
        f"mean {_mean(mean, unit)}",
        f"50 % {_quantile(histogram, 0.5, unit)} · 95 % {_quantile(histogram, 0.95, unit)}",
        f"of {count(total)}",
    )


def _mean(mean: float, unit: str) -> str:
    if unit == "requests":
        return decimal(mean)
    return duration(mean) if mean >= 1 else bound(floor(mean * 1000 + 0.5) / 1000, unit)


def _quantile(histogram: Mapping[str, Any], part: float, unit: str) -> str:
    """As much as a histogram tells of a quantile: the range that it lies in."""
    last = 0.0
    for bucket in histogram["buckets"]:
        if bucket["le"] == "+Inf":
            break
        last = float(bucket["le"])
        if bucket["count"] >= part * histogram["count"]:
            return f"≤ {bound(last, unit)}"
    return f"> {bound(last, unit)}"


def _most_open(workers: Iterable[Mapping[str, Any]]) -> int:
    return max((worker["connections_open"] for worker in workers), default=0)


def _worker(worker: Mapping[str, Any], generated_at: str, most_open: int) -> str:
    def share(connections: int) -> float:
        return 100 * connections / most_open if most_open else 0

    idle = worker["connections_idle"]
    active = worker["connections_active"]
    requests = worker["requests"]
    state = escape(str(worker["state"]))
    return (
        f'<tr><th scope="row">{escape(str(worker["pid"]))}</th>'
        f'<td class="text"><span class="state" data-state="{state}">{state}</span></td>'
        f"<td>{duration(_seconds_between(str(worker['started_at']), generated_at))}</td>"
        f'<td class="load">{_bar(share(idle), share(active))}</td>'
        f"<td>{count(worker['connections_open'])}</td><td>{count(idle)}</td><td>{count(active)}</td>"
        f"<td>{count(requests)}</td><td>{NONE}</td>"
        f"<td>{ratio(worker['reuse_ratio'] if requests else None)}</td>"
        f"<td>{size(worker['bytes_received'])}</td><td>{size(worker['bytes_sent'])}</td>"
        f"<td>{_ago(worker.get('figures_age'))}</td></tr>\n"
    )


def _ago(seconds: float | None) -> str:
    return NONE if seconds is None else f"{duration(seconds)} ago"


def _seconds_between(start: str, end: str) -> float | None:
    """Seconds from one ISO 8601 time to another; None where one of them is something else."""
    try:
        # Python 3.10 does not know the Z.
        first, last = (datetime.fromisoformat(time.replace("Z", "+00:00")) for time in (start, end))
        return (last - first).total_seconds()
    except (TypeError, ValueError):
        return None


def _rows(connections: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for start in range(0, len(connections), BATCH):
        yield "".join(_row(connection) for connection in connections[start : start + BATCH])


def _row(connection: Mapping[str, Any]) -> str:
    state = escape(str(connection["state"]))
    return (
        f'<tr><th scope="row"><bdi>{escape(connection["peer"]) or UNNAMED}</bdi></th>'
        f'<td class="text"><span class="state" data-state="{state}">{state}</span></td>'
        f"<td>{duration(connection['idle'])}</td><td>{duration(connection['closes_in'])}</td>"
        f"<td>{duration(connection['age'])}</td><td>{count(connection['requests'])}</td>"
        f"<td>{size(connection['bytes_received'])}</td><td>{size(connection['bytes_sent'])}</td>"
        f'<td class="text">{escape(str(connection["protocol"]))}</td>'
        f'<td class="text">{escape(str(connection["worker_pid"]))}</td>'
        f"<td>{count(connection['id'])}</td></tr>\n"
    )

"""From what workers counted to the report of the debug endpoint.

Pure functions over plain records: no I/O, no gevent, no clock. Where the records come from is in
``board.py``; who asks for them, in ``reporter.py``.

Ten thousand connections take a while to go through, so whatever goes over connections does it in
batches of :data:`BATCH` and calls ``pause`` in between, which lets other requests go first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from math import inf
from typing import Any, NamedTuple

from keepalive_worker.connection import IDLE, NEW, STATE_NAMES, Reason
from keepalive_worker.counters import REQUEST_BOUNDS, SECOND_BOUNDS, Counters

#: Connections worked on between two calls of ``pause``: 1 to 3 ms.
BATCH = 500

#: What connections can be sorted by, and the most of them that a report has.
SORTS = ("idle", "age", "requests", "bytes")
MOST_CONNECTIONS = 10_000

#: Seconds for which a worker may be silent before the report says so: its figures are to be no
#: older, and it gives a sign of life every second.
SILENT_AFTER = 2.0

REASONS = tuple(Reason)

#: The plain counters, in the order of :attr:`Figures.counts`; then come the reasons of
#: :data:`REASONS`, then the ranges of :data:`HISTOGRAMS`.
_PLAIN = ("accepted", "requests", "reused", "bytes_received", "bytes_sent")
#: Name in the report, attribute of :class:`~keepalive_worker.counters.Counters`, bounds.
HISTOGRAMS: tuple[tuple[str, str, tuple[float, ...]], ...] = (
    ("connection_requests", "connection_requests", REQUEST_BOUNDS),
    ("connection_age_seconds", "age_seconds", SECOND_BOUNDS),
    ("idle_seconds", "idle_seconds", SECOND_BOUNDS),
)
_FIRST_REASON = len(_PLAIN)
_FIRST_RANGE = _FIRST_REASON + len(REASONS)

#: How many numbers :class:`Figures` has.
COUNTS = _FIRST_RANGE + sum(len(bounds) + 1 for _, _, bounds in HISTOGRAMS)
SUMS = len(HISTOGRAMS)


class Figures(NamedTuple):
    """All counters of one worker at one moment, or of several together."""

    counts: tuple[int, ...]
    #: The sums of the histograms, in requests and seconds.
    sums: tuple[float, ...]
    open: int
    #: Of the open connections, those that wait for a request of which nothing has come.
    idle: int

    @classmethod
    def of(cls, counters: Counters, open_: int, idle: int) -> Figures:
        """The present state of *counters*."""
        counts = [counters.accepted, counters.requests, counters.reused]
        counts += (counters.bytes_received, counters.bytes_sent, *counters.closed.values())
        histograms = [getattr(counters, attribute) for _, attribute, _ in HISTOGRAMS]
        for histogram in histograms:
            counts += histogram.counts
        return cls(tuple(counts), tuple(histogram.total for histogram in histograms), open_, idle)

    def plus(self, other: Figures) -> Figures:
        """Both together."""
        return Figures(
            tuple(map(int.__add__, self.counts, other.counts)),
            tuple(map(float.__add__, self.sums, other.sums)),
            self.open + other.open,
            self.idle + other.idle,
        )

    def ended(self, reason: Reason) -> Figures:
        """What is left of a worker that has ended: what was open is closed, for *reason*.

        The histograms of closed connections do not get those: nobody knows how far they had come.
        """
        counts = list(self.counts)
        counts[_FIRST_REASON + REASONS.index(reason)] += self.open
        return Figures(tuple(counts), self.sums, 0, 0)


NOTHING = Figures((0,) * COUNTS, (0.0,) * SUMS, 0, 0)


class Row(NamedTuple):
    """One open connection. Times are monotonic seconds, which all processes of a host share."""

    id: int
    accepted: float
    #: When the latest idle time began.
    since: float
    #: When it ends unless something happens before; infinite where that is open.
    deadline: float
    requests: int
    bytes_received: int
    bytes_sent: int
    #: Negative for a peer without a port: a unix socket.
    port: int
    #: One of the states in ``connection.py``.
    state: int
    protocol: bytes
    host: bytes

    @property
    def peer(self) -> str:
        """As :attr:`keepalive_worker.connection.Connection.peer`."""
        host = self.host.rstrip(b"\0").decode("utf-8", "replace")
        if self.port < 0:
            return host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def idle_at(self, now: float) -> float:
        """Seconds that it has waited for a request; 0 while there is one."""
        return max(0.0, now - self.since) if self.state in (NEW, IDLE) else 0.0


class WorkerRecord(NamedTuple):
    """What is known of one worker that runs."""

    pid: int
    #: Seconds since the epoch.
    started_at: float
    draining: bool
    figures: Figures
    #: When :attr:`figures` were true (monotonic seconds).
    as_of: float
    #: Its connections, or None where they are not known or not asked for.
    rows: Sequence[Row] | None = None


def _no_pause() -> None:
    pass


def report(
    *,
    time: float,
    now: float,
    worker_pid: int,
    workers: Iterable[WorkerRecord],
    ended: Figures,
    sort: str = "idle",
    limit: int = 100,
    notes: Sequence[str] = (),
    pause: Callable[[], None] = _no_pause,
) -> dict[str, Any]:
    """The report as the endpoint gives it.

    :param time: seconds since the epoch
    :param now: the same moment in monotonic seconds
    :param worker_pid: who answers
    :param workers: those that run
    :param ended: those that have ended, together
    :param sort: one of :data:`SORTS`; the greatest comes first
    :param limit: most connections to list
    :param notes: what else the reader must know; the key ``notes`` is there only with some
    """
    workers = sorted(workers, key=lambda worker: (worker.started_at, worker.pid))
    totals = ended
    for worker in workers:
        totals = totals.plus(worker.figures)
    notes = [*notes, *silences(workers, now)]
    made: dict[str, Any] = {
        "generated_at": iso(time),
        "worker_pid": worker_pid,
        "totals": counters(totals),
        "workers": [_worker(worker, now) for worker in workers],
        "connections": connections(workers, now, sort, limit, pause),
    }
    if notes:
        made["notes"] = notes
    return made


def iso(time: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC, with milliseconds."""
    moment = datetime.fromtimestamp(time, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def counters(figures: Figures) -> dict[str, Any]:
    """The counters under their public names."""
    plain = dict(zip(_PLAIN, figures.counts[:_FIRST_REASON], strict=True))
    requests = plain["requests"]
    made: dict[str, Any] = {
        "connections_accepted": plain["accepted"],
        "connections_open": figures.open,
        "connections_idle": figures.idle,
        "connections_active": figures.open - figures.idle,
        "requests": requests,
        "requests_reused": plain["reused"],
        "reuse_ratio": round(plain["reused"] / requests, 6) if requests else 0.0,
        "bytes_received": plain["bytes_received"],
        "bytes_sent": plain["bytes_sent"],
        "closed": {
            reason.value: count
            for reason, count in zip(REASONS, figures.counts[_FIRST_REASON:_FIRST_RANGE], strict=True)
        },
    }
    start = _FIRST_RANGE
    for (name, _, bounds), total in zip(HISTOGRAMS, figures.sums, strict=True):
        end = start + len(bounds) + 1
        made[name] = histogram(bounds, figures.counts[start:end], total)
        start = end
    return made


def histogram(bounds: Sequence[float], counts: Sequence[int], total: float) -> dict[str, Any]:
    """A histogram as Prometheus has them: each bucket counts all values up to its bound ``le``."""
    buckets: list[dict[str, Any]] = []
    so_far = 0
    for bound, count in zip((*bounds, "+Inf"), counts, strict=True):
        so_far += count
        buckets.append({"le": bound, "count": so_far})
    return {"count": so_far, "sum": round(total, 6), "buckets": buckets}


def _worker(worker: WorkerRecord, now: float) -> dict[str, Any]:
    return {
        "pid": worker.pid,
        "started_at": iso(worker.started_at),
        "state": "draining" if worker.draining else "running",
        "figures_age": round(max(0.0, now - worker.as_of), 3),
        **counters(worker.figures),
    }


def silences(workers: Iterable[WorkerRecord], now: float) -> Iterator[str]:
    """A sentence about each worker that does not answer."""
    for worker in workers:
        age = now - worker.as_of
        if age > SILENT_AFTER:
            yield (
                f"Worker {worker.pid} has not answered for {age:.1f} s (it is busy or stuck):"
                " its figures are that old."
            )


def connections(
    workers: Iterable[WorkerRecord],
    now: float,
    sort: str,
    limit: int,
    pause: Callable[[], None] = _no_pause,
) -> list[dict[str, Any]]:
    """The first *limit* open connections of all workers, the greatest by *sort* first."""
    if not limit:
        return []
    workers = list(workers)
    key = _KEYS[sort]
    least = _least_listed(workers, now, key, limit, pause)
    best: list[tuple[float, int, int, Row]] = []
    for worker, rows in _batches(workers):
        # Equal ones stand in a fixed order, so that two reports can be compared.
        some = [(-key(row, now), worker.pid, row.id, row) for row in rows if key(row, now) >= least]
        some.sort()
        best += some
        if len(best) > limit + 4 * BATCH:
            best.sort()
            del best[limit:]
        pause()
    best.sort()
    del best[limit:]
    made: list[dict[str, Any]] = []
    for start in range(0, len(best), BATCH):
        made += [_connection(row, pid, now) for _, pid, _, row in best[start : start + BATCH]]
        pause()
    return made


def _batches(workers: Iterable[WorkerRecord]) -> Iterator[tuple[WorkerRecord, Sequence[Row]]]:
    for worker in workers:
        rows = worker.rows or ()
        for start in range(0, len(rows), BATCH):
            yield worker, rows[start : start + BATCH]


def _least_listed(
    workers: Sequence[WorkerRecord],
    now: float,
    key: Callable[[Row, float], float],
    limit: int,
    pause: Callable[[], None],
) -> float:
    """The key of the last connection that will be listed.

    Looked for in a pass of its own over plain numbers: to hold very many rows, most of them for
    nothing, would set off the garbage collector, which nobody can interrupt.
    """
    if sum(len(worker.rows or ()) for worker in workers) <= limit:
        return -inf
    greatest: list[float] = []
    for _, rows in _batches(workers):
        greatest += [key(row, now) for row in rows]
        if len(greatest) > limit + 4 * BATCH:
            greatest.sort(reverse=True)
            del greatest[limit:]
        pause()
    greatest.sort(reverse=True)
    return greatest[limit - 1]


_KEYS: Mapping[str, Callable[[Row, float], float]] = {
    "idle": Row.idle_at,
    "age": lambda row, now: now - row.accepted,
    "requests": lambda row, now: row.requests,
    "bytes": lambda row, now: row.bytes_received + row.bytes_sent,
}


def _connection(row: Row, pid: int, now: float) -> dict[str, Any]:
    return {
        "id": row.id,
        "worker_pid": pid,
        "peer": row.peer,
        "state": STATE_NAMES[row.state],
        "protocol": row.protocol.rstrip(b"\0").decode("ascii"),
        "requests": row.requests,
        "age": round(max(0.0, now - row.accepted), 3),
        "idle": round(row.idle_at(now), 3),
        "closes_in": round(max(0.0, row.deadline - now), 3) if row.deadline < inf else None,
        "bytes_received": row.bytes_received,
        "bytes_sent": row.bytes_sent,
    }


def json_parts(made: Mapping[str, Any]) -> Iterator[bytes]:
    """A report as JSON, in parts of at most a few milliseconds' work."""
    rows = made["connections"]
    others = {name: value for name, value in made.items() if name != "connections"}
    yield json.dumps(others)[:-1].encode("ascii") + b', "connections": ['
    for start in range(0, len(rows), BATCH):
        batch = json.dumps(rows[start : start + BATCH])[1:-1]
        yield (b", " if start else b"") + batch.encode("ascii")
    yield b"]}\n"

"""What a worker counts. Plain attributes: counting is on the path of every request."""

from __future__ import annotations

from bisect import bisect_left

from keepalive_worker.connection import Connection, Reason


class Histogram:
    """How often a value fell between bounds.

    :param bounds: the upper ends of the ranges, rising; what is above the last goes to one more
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        #: The sum of all values.
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count *value*; one that equals a bound belongs below it, as Prometheus has it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


REQUEST_BOUNDS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10000)
SECOND_BOUNDS = (0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


class Counters:
    """The counters of one worker."""

    __slots__ = (
        "accepted",
        "age_seconds",
        "bytes_received",
        "bytes_sent",
        "closed",
        "connection_requests",
        "first_requests",
        "idle_seconds",
    )

    def __init__(self) -> None:
        self.accepted = 0
        #: Connections that a request has come on.
        self.first_requests = 0
        self.bytes_received = 0
        self.bytes_sent = 0
        self.closed = dict.fromkeys(Reason, 0)
        self.connection_requests = Histogram(REQUEST_BOUNDS)
        self.age_seconds = Histogram(SECOND_BOUNDS)
        #: Of every request that was not the first on its connection.
        self.idle_seconds = Histogram(SECOND_BOUNDS)

    # Both are summed up by those who ask, so that a request has less to count.

    @property
    def reused(self) -> int:
        """Requests that were not the first on their connection."""
        return sum(self.idle_seconds.counts)

    @property
    def requests(self) -> int:
        """All requests."""
        return self.first_requests + self.reused

    def count_request(self, conn: Connection) -> None:
        """Count a request that begins now, for the connection and for the worker."""
        if conn.requests:
            # Histogram.observe(), at half the cost.
            idle, histogram = conn.started - conn.since, self.idle_seconds
            histogram.counts[bisect_left(SECOND_BOUNDS, idle)] += 1
            histogram.total += idle
        else:
            self.first_requests += 1
        conn.requests += 1

    def count_closed(self, conn: Connection, reason: Reason, now: float) -> None:
        """Count the end of a connection, once, and fold what it counted itself into the totals."""
        self.closed[reason] += 1
        self.connection_requests.observe(conn.requests)
        self.age_seconds.observe(now - conn.accepted)

"""The life of a connection: its states, why it ends, and what the application may know of it.

This module does no I/O and knows no gevent. Everything that decides what a connection may do
next is in this file:

            accept
              |
              v
             NEW ----------+
              | ^          |
              v |          v
           READING --> HANDLING <--> WRITING
              ^          | ^
              |          v |
              +--------- IDLE           every state may go to LINGERING or CLOSED

NEW       accepted, has sent nothing yet (load balancers open connections ahead of need)
READING   some bytes of a request head are here, not all of it; nobody runs for it
HANDLING  a greenlet runs the application, or reads what only gunicorn's parser understands
WRITING   the greenlet waits for the client to take more of the response
IDLE      parked between requests: no greenlet, parser, buffer, socket object or timer
LINGERING our FIN is sent, the client's is awaited for a moment (RFC 9112 9.6); already counted
CLOSED    the descriptor is gone
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keepalive_worker.heads import Heads
    from keepalive_worker.listeners import Listener
    from keepalive_worker.stream import Wait

#: States are plain integers: the event loop compares them for every event.
NEW, READING, IDLE, HANDLING, WRITING, LINGERING, CLOSED = range(7)

#: Not a state of a connection: what a listener has in its place.
LISTENING = 7

#: The states for which no greenlet runs; the event loop itself reads for them.
LAST_PARKED = IDLE

#: What the statistics call each state.
STATE_NAMES = ("idle", "reading", "idle", "handling", "writing", "closed", "closed")

TRANSITIONS: dict[int, frozenset[int]] = {
    NEW: frozenset((READING, HANDLING, LINGERING, CLOSED)),
    READING: frozenset((NEW, HANDLING, LINGERING, CLOSED)),
    IDLE: frozenset((READING, HANDLING, LINGERING, CLOSED)),
    HANDLING: frozenset((WRITING, IDLE, LINGERING, CLOSED)),
    WRITING: frozenset((HANDLING, LINGERING, CLOSED)),
    LINGERING: frozenset((CLOSED,)),
    CLOSED: frozenset(),
}


#: Seconds; the longest idle time there is, a year.
LONGEST_IDLE = 365 * 24 * 3600


class Reason(enum.Enum):
    """Why a connection ended; each one is counted once under exactly one of these."""

    CLIENT = "client"
    IDLE_TIMEOUT = "idle_timeout"
    REQUEST_CAP = "request_cap"
    LIFETIME = "lifetime"
    HEADER_TIMEOUT = "header_timeout"
    BODY_TIMEOUT = "body_timeout"
    SEND_TIMEOUT = "send_timeout"
    MIN_DATA_RATE = "min_data_rate"
    EVICTED = "evicted"
    PEER_LIMIT = "peer_limit"
    DEAD_PEER = "dead_peer"
    BAD_REQUEST = "bad_request"
    RESPONSE = "response"
    ERROR = "error"
    SHUTDOWN = "shutdown"


class Overrides:
    """What differs from the settings for one connection; most connections have none."""

    __slots__ = ("idle_timeout", "proxy_info", "socket")

    def __init__(self) -> None:
        #: Seconds set by :meth:`Connection.keep_idle`.
        self.idle_timeout: float | None = None
        #: What the PROXY protocol header of the first request said (gunicorn's dictionary).
        self.proxy_info: dict[str, Any] | None = None
        #: The socket that the application took from ``environ["gunicorn.socket"]``.
        self.socket: Any = None


class Terms:
    """What a worker grants its connections; one object shared by all of them.

    :param timeout: seconds promised to an idle client (``keepalive``)
    :param grace: seconds past the promise for which an idle connection really stays open
    :param requests: most requests on a connection, 0 for no cap
    :param lifetime: seconds of age past which no further request is promised, 0 for no cap
    :param spread: a number in [0, 1) that differs between workers; see :meth:`lifetime_of`
    """

    __slots__ = (
        "_crowded",
        "_draining",
        "carefree",
        "clock",
        "grace",
        "lifetime",
        "promise",
        "requests",
        "spread",
        "timeout",
    )

    #: The part of the lifetime that is taken off at random, so that connections which came
    #: together (after a deploy, say) do not all have to come again together.
    LIFETIME_SPREAD = 0.1
    #: Multiples of the golden ratio's fraction are spread evenly however many are taken, so a
    #: serial number serves as the random number and nothing has to be remembered for it.
    _GOLDEN = 0.6180339887498949

    def __init__(
        self,
        clock: Callable[[], float],
        timeout: float,
        grace: float,
        requests: int = 0,
        lifetime: float = 0,
        spread: float = 0.0,
    ) -> None:
        self.clock = clock
        self.timeout = timeout
        self.grace = grace
        self.requests = requests
        self.lifetime = lifetime
        self.spread = spread
        #: What most connections tell their clients, made once; see :meth:`Connection.promise`.
        self.promise = keep_alive_field(timeout)
        self._draining = False
        self._crowded = False
        self._set_carefree()

    def _set_carefree(self) -> None:
        #: Seconds of age up to which nothing but what the application asked for makes a request
        #: the last one: saves most requests the look at each of the reasons.
        self.carefree = 0.0
        if not (self.requests or self.draining or self.crowded or not self.timeout):
            self.carefree = self.lifetime * (1.0 - self.LIFETIME_SPREAD) if self.lifetime else inf

    @property
    def draining(self) -> bool:
        """The worker is stopping: no connection is promised another request."""
        return self._draining

    @draining.setter
    def draining(self, draining: bool) -> None:
        self._draining = draining
        self._set_carefree()

    @property
    def crowded(self) -> bool:
        """Somebody waits for a connection to end: whoever has its response is to make room, and is told so."""
        return self._crowded

    @crowded.setter
    def crowded(self, crowded: bool) -> None:
        if crowded != self._crowded:
            self._crowded = crowded
            self._set_carefree()

    def lifetime_of(self, number: int) -> float:
        """Seconds of age at which connection *number* takes its last request."""
        fraction = (self.spread + number * self._GOLDEN) % 1.0
        return self.lifetime * (1.0 - self.LIFETIME_SPREAD * fraction)


def keep_alive_field(timeout: float, left: int | None = None) -> bytes:
    """The field ``Keep-Alive`` of a response, its CRLF included.

    :param timeout: seconds promised to an idle client; the field has whole ones, never more than
        promised, and there is none where that is nothing
    :param left: how many requests may follow, None where there is no cap
    """
    if timeout < 1:
        return b""
    limit = "" if left is None else f", max={left}"
    return f"Keep-Alive: timeout={int(timeout)}{limit}\r\n".encode("ascii")


class Connection:
    """One client's connection; ``environ["keepalive.connection"]`` is this object.

    It is all that an idle connection costs besides its descriptor, so it has slots for what must
    outlive a request and nothing else. Names without an underscore that the README lists
    are public; the other attributes belong to the worker.
    """

    __slots__ = (
        "accepted",
        "advertise",
        "asked_to_close",
        "buffer",
        "bytes_received",
        "bytes_sent",
        "fd",
        "heads",
        "host",
        "id",
        "listener",
        "overrides",
        "port",
        "protocol",
        "reader",
        "requests",
        "since",
        "slot",
        "started",
        "state",
        "terms",
        "tls_socket",
        "unseen",
        "writer",
    )

    def __init__(
        self,
        number: int,
        fd: int,
        host: str,
        port: int,
        listener: Listener,
        heads: Heads,
        terms: Terms,
        now: float,
    ) -> None:
        #: Serial number of the connection in its worker, from 1 (nginx ``$connection``).
        self.id = number
        #: Which request this is on the connection, from 1 (nginx ``$connection_requests``).
        self.requests = 0
        #: Bytes received on the wire so far, the head of the current request included.
        self.bytes_received = 0
        #: Bytes sent on the wire so far, the current response not included.
        self.bytes_sent = 0
        #: ``HTTP/1.0``, ``HTTP/1.1`` or ``HTTP/2``: what the latest request spoke.
        self.protocol = "HTTP/1.1"

        self.fd = fd
        self.host = host
        self.port = port
        self.listener = listener
        #: Who parses what this peer sends; it depends on the listener and on whom gunicorn trusts.
        self.heads = heads
        self.terms = terms
        self.state = NEW
        self.accepted = now
        #: When the latest idle time began (monotonic seconds).
        self.since = now
        #: When the first byte of the latest request came.
        self.started = now
        #: Bytes that came before they could be used: part of a head, or a pipelined request.
        self.buffer: bytes | None = None
        #: The event bits of edges after which not all was read yet; 0 when the kernel has no more.
        self.unseen = 0
        #: Whether responses tell the client ``timeout`` and ``requests_left`` (KeepAliveMiddleware).
        self.advertise = False
        self.asked_to_close = False
        #: Which bucket of the deadline wheel holds this connection.
        self.slot = 0
        self.reader: Wait | None = None
        self.writer: Wait | None = None
        self.tls_socket: Any = None
        self.overrides: Overrides | None = None

    def __repr__(self) -> str:
        return f"<Connection {self.id} from {self.peer}, {STATE_NAMES[self.state]}>"

    @property
    def address(self) -> Any:
        """The peer as ``accept()`` gives it: ``(host, port)``, or a string on a unix socket."""
        return self.listener.peer_address(self.host, self.port)

    @property
    def peer(self) -> str:
        """The address of the peer, ``host:port``; empty for an unnamed unix socket."""
        if self.port < 0:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def has_front(self) -> bool:
        """Whether the peer is a front server by its protocol, and its address not that of who asks."""
        return self.listener.has_front

    @property
    def reused(self) -> bool:
        """Whether the connection served a request before this one."""
        return self.requests > 1

    @property
    def age(self) -> float:
        """Seconds since accept (nginx ``$connection_time``)."""
        return self.terms.clock() - self.accepted

    @property
    def idle(self) -> float:
        """Seconds the connection had waited, idle, before this request."""
        return self.started - self.since

    @property
    def requests_left(self) -> int | None:
        """How many requests may follow this one, or None where there is no cap."""
        if self.last_request_reason(self.terms.clock()) is not None:
            return 0
        cap = self.terms.requests
        return cap - self.requests if cap else None

    @property
    def timeout(self) -> float:
        """Seconds of idleness promised to the client."""
        overrides = self.overrides
        if overrides is not None and overrides.idle_timeout is not None:
            return overrides.idle_timeout
        return self.terms.timeout

    def promise(self) -> bytes:
        """The field ``Keep-Alive`` of a response after which the connection stays."""
        terms = self.terms
        if self.overrides is None and not terms.requests:
            return terms.promise
        return keep_alive_field(self.timeout, self.requests_left)

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.tls_socket is not None

    def close(self) -> None:
        """End the connection after this response, which then says ``Connection: close``."""
        self.asked_to_close = True

    def keep_idle(self, seconds: float) -> None:
        """Give this connection another idle timeout from now on.

        :param seconds: the promise to the client, in seconds; the grace comes on top
        :raises ValueError: for anything but a number from 0 to :data:`LONGEST_IDLE`
        """
        number: object = seconds
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= LONGEST_IDLE:
            raise ValueError(f"keep_idle() takes a number of seconds from 0 to {LONGEST_IDLE}, not {seconds!r}")
        self.own_overrides().idle_timeout = seconds

    # For the worker.

    def own_overrides(self) -> Overrides:
        """The connection's overrides, made now if it had none."""
        if self.overrides is None:
            self.overrides = Overrides()
        return self.overrides

    def idle_deadline(self) -> float:
        """When this connection, idle since ``since``, is to be closed (monotonic seconds)."""
        return self.since + self.timeout + self.terms.grace

    def last_request_reason(self, now: float) -> Reason | None:
        """Why the present request must be the last one, or None when another may follow."""
        terms = self.terms
        if now - self.accepted < terms.carefree and self.overrides is None and not self.asked_to_close:
            return None
        if terms.requests and self.requests >= terms.requests:
            return Reason.REQUEST_CAP
        if terms.lifetime and now - self.accepted >= terms.lifetime_of(self.id):
            return Reason.LIFETIME
        if terms.draining:
            return Reason.SHUTDOWN
        if terms.crowded:
            return Reason.EVICTED
        if self.asked_to_close or self.timeout == 0:
            return Reason.RESPONSE
        return None

"""What an application answers, on its way to the client.

gunicorn's own response class holds the rules (PEP 3333, hop-by-hop fields, framing, what has no
body). This subclass keeps them and makes the common case cheap: what was found good a moment ago is not
examined again, the part of the head that all responses of a second share is made once, and head
and body leave in one call.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from gunicorn import util
from gunicorn.http import wsgi
from gunicorn.http.message import TOKEN_RE, Request
from gunicorn.http.unreader import IterUnreader

from keepalive_worker.connection import Connection, Reason
from keepalive_worker.counters import Counters
from keepalive_worker.holding import Holding
from keepalive_worker.stream import Stream

if TYPE_CHECKING:
    from keepalive_worker.loop import EventLoop

#: Bodies from this size on are not copied to stand behind their head, but sent as they are.
_LARGE = 16384

# What is known of status lines and header names that were used before. Applications use few; the
# bound keeps one that makes names up from filling memory.
_MAX_KNOWN = 1024
_PLAIN, _LENGTH = 0, 1
_statuses: dict[str, tuple[int, bool]] = {}
_names: dict[str, int] = {}


class ResponseMemory:
    """What the responses of the same second have in common, made once.

    These are the first lines of heads (status, ``Server``, ``Date`` and ``Connection``) and fields
    that were checked. ``Date`` changes once a second, and then all that is kept here is forgotten:
    fields may be cookies.
    """

    #: Longest value that is worth keeping.
    MAX_VALUE = 200

    def __init__(self) -> None:
        #: When :attr:`made` is to be used no longer (monotonic seconds).
        self.until = 0.0
        #: What :meth:`first_lines` has made, by its arguments but the first.
        self.made: dict[tuple[str, str, str], bytes] = {}
        self._date = ""
        #: By name and value: the line as it is sent, and its number if it is ``Content-Length``.
        self.fields: dict[tuple[str, str], tuple[bytes, int | None]] = {}

    def forget(self) -> None:
        """Begin with nothing."""
        self.until = 0.0
        self.made.clear()
        self.fields.clear()

    def field(self, pair: tuple[str, str]) -> tuple[bytes, int | None] | None:
        """What :attr:`fields` has, or gets now, for a field; None if that is not beyond doubt.

        The name must be known, and the value such that gunicorn's rules take it as it is.
        """
        name, value = pair
        kind = _names.get(name)
        if (
            kind is None
            or type(value) is not str
            or not (value.isascii() and value.isprintable() and value.strip() == value)
        ):
            return None
        length = None
        if kind == _LENGTH:
            if not value.isdecimal():
                return None
            length = int(value)
        made = (f"{name}: {value}\r\n".encode("ascii"), length)
        if len(self.fields) < _MAX_KNOWN and len(value) <= self.MAX_VALUE and type(pair) is tuple:
            self.fields[pair] = made
        return made

    def first_lines(self, now: float, version: str, status: str, connection: str) -> bytes:
        """The lines, each with its CRLF.

        :param now: monotonic seconds
        :param version: ``HTTP/1.1`` and the like
        :param status: as PEP 3333 has it, ``200 OK``
        :param connection: the value of ``Connection``
        """
        if now >= self.until:
            today = time.time()
            self.forget()
            self.until = now + 1.0 - today % 1.0
            self._date = util.http_date(today)
        key = (version, status, connection)
        lines = self.made.get(key)
        if lines is None:
            lines = self.made[key] = (
                f"{version} {status}\r\nServer: {wsgi.SERVER}\r\nDate: {self._date}\r\nConnection: {connection}\r\n"
            ).encode("latin-1")
        return lines


class PlainRequest(Request):  # type: ignore[misc]
    """The request as gunicorn's hooks and loggers know it, made from its head when they look.

    Reading ``method``, ``uri`` and ``headers`` costs little; any other attribute has gunicorn's
    parser go over the head.
    """

    def __init__(self, cfg: Any, conn: Connection, head: bytes, body: Any) -> None:
        # Not gunicorn's own __init__: it parses at once.
        self.cfg = cfg
        self.peer_addr = self.remote_addr = conn.address
        self.req_number = conn.requests
        self._head = head
        self._wsgi_input = body
        self.method, self.uri, version = head[: head.index(b"\r\n")].decode("latin-1").split(" ")
        self.version = (1, int(version[-1]))

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Pairs of an upper-case name and a value."""
        lines = self._head.decode("latin-1").split("\r\n")[1:-2]
        return [(name.upper(), value.strip(" ")) for name, _, value in (line.partition(":") for line in lines)]

    @property
    def scheme(self) -> str:
        """``http`` or ``https``, as ``secure_scheme_headers`` have it; not None as on the base class."""
        if "scheme" not in self.__dict__:
            self._parse()
        scheme: str = self.__dict__["scheme"]
        return scheme

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "scheme" in self.__dict__:
            raise AttributeError(name)
        self._parse()
        return getattr(self, name)

    def _parse(self) -> None:
        parsed = Request(self.cfg, IterUnreader([self._head]), self.peer_addr, self.req_number)
        for key, value in parsed.__dict__.items():
            if key != "headers":
                self.__dict__.setdefault(key, value)
        self.body = self._wsgi_input


class Response(wsgi.Response):  # type: ignore[misc]
    """One response.

    Workers use the subclass that :func:`response_class` makes for them.

    :param req: gunicorn's request
    :param sock: the connection's :class:`~keepalive_worker.stream.Stream`
    :param cfg: gunicorn's configuration, which gunicorn's code passes; the class has it already
    :param conn: where it goes
    :param method: of the request
    :param protocol: of the request, ``HTTP/1.0`` or ``HTTP/1.1``
    :param close: whether the request asked for the connection's end
    """

    _loop: EventLoop
    _counters: Counters
    _holding: Holding
    _memory: ResponseMemory
    #: Makes the response to a request that :class:`PlainRequest` can stand for; see :func:`_plain_maker`.
    to_plain: ClassVar[Callable[[Connection, str, str, bool, bytes, int], Response]]
    #: Whether bodies without a length may be chunked; front servers that speak uWSGI do it themselves.
    _chunks: bool

    status: str | None = None
    status_code = 0
    chunked = False
    headers_sent = False
    response_length = None
    sent = 0
    upgrade = False
    version = wsgi.SERVER
    _omits_body = False
    _omits_body_warned = False
    #: Why the connection ends after this response, None when it stays; settled when the head is sent.
    ending: Reason | None = None
    #: What sending raised; the client is gone then.
    failure: OSError | None = None
    #: The body's reader when it did not all come with the head: gunicorn's Body, and its source.
    body: Any = None
    unreader: Any = None
    #: The bytes that began with the request's head, and the head's size.
    received: bytes = b""
    head_size = 0
    wsgi_input: Any = None
    _req: Any = None
    _sock: Stream | None = None
    _taken_socket: Any = None
    #: The fields as they are sent; gunicorn's code has them as :attr:`headers`, made when needed.
    _fields = b""
    _headers: list[tuple[str, str]] | None = None

    def __init__(
        self,
        req: Any,
        sock: Stream,
        cfg: Any,
        conn: Connection,
        method: str,
        protocol: str,
        close: bool,
    ) -> None:
        # Not gunicorn's own __init__: the defaults above save setting a dozen attributes.
        self._req = req
        self._sock = sock
        self.conn = conn
        self._method = method
        self._protocol = protocol
        self.must_close = close

    # Made when somebody looks: hooks, loggers, error pages.

    @property
    def req(self) -> Any:
        """The request as gunicorn's hooks know it."""
        if self._req is None:
            self._req = PlainRequest(self.cfg, self.conn, self.received[: self.head_size], self.wsgi_input)
        return self._req

    @property
    def sock(self) -> Stream:
        """The connection as something that waits for the client."""
        if self._sock is None:
            self._sock = Stream(self._loop, self.conn)
            self._sock.in_head = False
        return self._sock

    @property
    def real_socket(self) -> Any:
        """The connection as a socket of gevent's: from now on the application waits for itself."""
        if self._taken_socket is None:
            self._taken_socket = self._loop.hand_over(self.conn)
            # Set on the object, so that nobody else pays for it.
            self._send = self._send_by_stream  # type: ignore[method-assign]
            self._send_piece = self._send_by_stream  # type: ignore[method-assign,assignment]
        return self._taken_socket

    # ------------------------------------------------------------------ head

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        """As PEP 3333 has it."""
        known = _statuses.get(status)
        length = None
        fields = b""
        if exc_info is not None or self.status is not None or type(headers) is not list:
            known = None
        else:
            memory = self._memory
            try:
                for pair in headers:
                    line, number = memory.fields.get(pair) or memory.field(pair)  # type: ignore[misc]
                    fields += line
                    if number is not None:
                        length = number
            except (TypeError, ValueError):
                known = None  # Not beyond doubt, or not a pair of strings at all.
        if known is None:
            return self._start_response_by_the_book(status, headers, exc_info)
        self.status = status
        self.status_code, bodiless = known
        self._fields = fields
        self.response_length = length
        self._omits_body = bodiless or self._method == "HEAD"
        self.chunked = length is None and self._chunks and not self._omits_body and self._protocol > "HTTP/1.0"
        return self.write

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The application's fields, as gunicorn's code, hooks and loggers know them."""
        if self._headers is None:
            lines = self._fields.decode("latin-1").split("\r\n")[:-1]
            self._headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
        return self._headers

    @headers.setter
    def headers(self, headers: list[tuple[str, str]]) -> None:
        self._headers = headers

    def _start_response_by_the_book(self, status: Any, headers: Any, exc_info: Any) -> Callable[[bytes], None]:
        """Let gunicorn's code judge, and remember what it found good."""
        if exc_info is not None and not self.headers_sent:
            # PEP 3333: the new head replaces the one that was not sent.
            self.headers, self.response_length, self.upgrade = [], None, False
        headers = list(headers)
        super().start_response(status, headers, exc_info)
        if len(_statuses) < _MAX_KNOWN and self.status_code >= 200 and self.status_code != 204:
            _statuses[status] = (self.status_code, self.status_code == 304)
        for name, _ in headers:
            if name in _names or len(_names) >= _MAX_KNOWN:
                continue
            if not util.is_hoppish(name) and TOKEN_RE.fullmatch(name):
                _names[name] = _LENGTH if name.lower() == "content-length" else _PLAIN
        return self.write

    def is_chunked(self) -> bool:
        """Whether the body is sent in chunks; gunicorn's rule."""
        if self.response_length is not None or self._omits_body:
            return False
        return self._chunks and self._protocol > "HTTP/1.0"

    def should_close(self) -> bool:
        """Whether the connection ends after this response, as far as that is known now."""
        return self._why_close(self._loop.clock()) is not None

    def _why_close(self, now: float) -> Reason | None:
        if self.must_close or (self.response_length is None and self.ends_with_connection):
            return Reason.RESPONSE
        if self.body is not None and self.body.failed:
            return Reason.RESPONSE  # Where the next request begins is not known.
        return self.conn.last_request_reason(now)

    def _make_head(self) -> bytes:
        """The whole head. The connection's fate is settled here, not when the request came."""
        if self.status is None:
            raise AssertionError("the application did not call start_response()")
        conn = self.conn
        clock = conn.terms.clock
        now = clock()
        if self.must_close or self.response_length is None or self.body is not None:
            ending = self._why_close(now)
        else:
            ending = conn.last_request_reason(now)  # What that comes to, with a call less.
        self.ending = ending
        if self.upgrade:
            connection = "upgrade"
        elif ending is not None:
            connection = "close"
        else:
            connection = "keep-alive"
        memory = self._memory
        head = memory.made.get((self._protocol, self.status, connection)) if now < memory.until else None
        if head is None:
            head = memory.first_lines(now, self._protocol, self.status, connection)
        if conn.advertise and connection == "keep-alive":
            # RFC 9110 7.6.1: a field for this hop only is named in Connection. gunicorn writes
            # "keep-alive" there anyway, which is that name.
            head += conn.promise()
        if self.chunked:
            head += b"Transfer-Encoding: chunked\r\n"
        self.headers_sent = True
        if self._headers is None:
            return head + self._fields + b"\r\n"
        return head + "".join([f"{name}: {value}\r\n" for name, value in self._headers]).encode("latin-1") + b"\r\n"

    def send_headers(self) -> None:
        """Send the head on its own, unless it is sent already."""
        if not self.headers_sent:
            self._send(self._make_head())

    def send_early_hints(self, headers: list[tuple[str, str]]) -> None:
        """``environ["wsgi.early_hints"]``: send a 103 response (RFC 8297) by gunicorn's code."""
        wsgi._make_early_hints_callback(self.req, self.sock, self)(headers)

    # ------------------------------------------------------------------ body

    def write(self, data: bytes) -> None:
        """Send a piece of the body, the head before it if that is still to come.

        :raises TypeError: for anything but bytes
        :raises OSError: when the client is gone or takes too long
        """
        if not isinstance(data, bytes):
            raise TypeError(f"{data!r} is not a byte")
        if self.send_whole(data):
            return  # Frameworks answer by an iterator that has one piece.
        head = b"" if self.headers_sent else self._make_head()
        if self._omits_body:
            if head:
                self._send(head)
            # gunicorn's code drops the bytes and says so, once.
            super().write(data)
            return
        length = self.response_length
        if length is not None and len(data) > length - self.sent:
            data = data[: max(0, length - self.sent)]
        size = len(data)
        self.sent += size
        if self.chunked and size:
            self._send(head + b"%X\r\n" % size, data, b"\r\n")
        elif size or head:
            self._send(head, data)
        # A client that takes all at once would otherwise have the worker for as long as there are pieces.
        self._loop.give_way()

    def send_whole(self, data: bytes) -> bool:
        """Send head and body of a response in one piece, if *data* is all there is to it.

        :returns: False, and nothing is sent, when it is not that simple
        """
        if (
            self.response_length != len(data)
            or type(data) is not bytes
            or self._omits_body
            or self.headers_sent
            or self.conn.tls_socket is not None
        ):
            return False
        self.sent = size = len(data)
        if size < _LARGE:
            self._send_piece(self._make_head() + data)
        else:
            self._send(self._make_head(), data)
        return True

    def close(self) -> None:
        """End the response: the head if there was no body, and the last chunk."""
        head = b"" if self.headers_sent else self._make_head()
        if self.chunked:
            self._send(head + b"0\r\n\r\n")
        elif head:
            self._send(head)

    def is_complete(self) -> bool:
        """Whether as many bytes were sent as the head announced."""
        if self.failure is not None:
            return False
        sock = self._sock
        if sock is not None and (sock.was_cut or sock.file_was_short):
            return False
        return self.response_length is None or self._omits_body or self.sent >= self.response_length

    def sendfile(self, respiter: Any) -> bool:
        """Send the rest of a file by sendfile(2), where gunicorn's rules allow it."""
        before = self.sock.file_bytes
        if not super().sendfile(respiter):
            return False
        self.sent += self.sock.file_bytes - before
        return True

    def _send(self, *parts: bytes) -> None:
        """Send the parts as one, and wait for the client only if the kernel does not take all."""
        conn = self.conn
        if conn.tls_socket is not None:
            if len(parts) > 1 and len(parts[1]) < _LARGE:
                parts = (b"".join(parts),)
            for part in parts:
                self.sock.sendall(part)
            return
        if len(parts) == 1 or len(parts[1]) < _LARGE:
            self._send_piece(b"".join(parts))
            return
        try:
            sent = os.writev(conn.fd, parts)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.failure = error
            raise
        conn.bytes_sent += sent
        self._counters.bytes_sent += sent
        for part in parts:
            if sent < len(part):
                self.sock.sendall(memoryview(part)[sent:])
                sent = 0
            else:
                sent -= len(part)

    def _send_piece(self, data: bytes) -> None:
        """Send on a connection without TLS what the kernel mostly takes at once."""
        conn = self.conn
        holding = self._holding
        try:
            if holding.allowed and self.ending is None and conn.port >= 0:
                sent = holding.send(conn.fd, data)
            else:
                sent = os.write(conn.fd, data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.failure = error
            raise
        conn.bytes_sent += sent
        self._counters.bytes_sent += sent
        if sent != len(data):
            self.sock.sendall(memoryview(data)[sent:])

    def _send_by_stream(self, *parts: bytes) -> None:
        """Send on a connection whose socket the application has, and may have closed."""
        for part in parts:
            self.sock.sendall(part)

    @property
    def ends_with_connection(self) -> bool:
        """Whether only the end of the connection tells the client that the body is complete."""
        return self.response_length is None and not self.chunked and not self._omits_body

    @property
    def was_cut(self) -> bool:
        """Whether something was not sent, or not in full, and an exception told the application so."""
        return self.failure is not None or (self._sock is not None and self._sock.was_cut)

    @property
    def why_lost(self) -> OSError | None:
        """What reading from or writing to the client raised, if it failed."""
        return self.failure or (self._sock.failure if self._sock is not None else None)


def response_class(cfg: Any, loop: EventLoop) -> type[Response]:
    """The responses of one worker: what they have in common is in their class.

    :param cfg: gunicorn's configuration
    :param loop: the worker's event loop
    """
    common = {
        "cfg": cfg,
        "_loop": loop,
        "_counters": loop.counters,
        "_holding": loop.holding,
        "_memory": ResponseMemory(),
        "_chunks": cfg.protocol != "uwsgi",
    }
    made: type[Response] = type("Response", (Response,), common)
    made.to_plain = staticmethod(_plain_maker(made))
    return made


def _plain_maker(kind: type[Response]) -> Callable[[Connection, str, str, bool, bytes, int], Response]:
    """What makes responses of a worker's class *kind* in half the time that its ``__init__`` takes."""
    new, memory, counters, holding = object.__new__, kind._memory, kind._counters, kind._holding

    def to_plain(
        conn: Connection, method: str, protocol: str, close: bool, received: bytes, head_size: int
    ) -> Response:
        self = new(kind)
        self.conn = conn
        self._method = method
        self._protocol = protocol
        self.must_close = close
        self.received = received
        self.head_size = head_size
        # The class has these as well, but to get an attribute of its class from an object takes
        # Python 3.11 0.05 µs, and one of its own next to nothing.
        self._memory = memory
        self._counters = counters
        self._holding = holding
        self.status = None
        self.headers_sent = False
        self.upgrade = False
        self.chunked = False
        self._headers = None
        self._sock = None
        self.body = None
        self.failure = None
        return self

    return to_plain

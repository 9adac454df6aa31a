"""A connection as something a greenlet can read from and write to, waiting as long as it may.

Made only when the event loop's own reading and the first attempt at sending are not enough: for a
request body that is still to come, a client that is slow to take its response, and everything
that goes through gunicorn's own code, which expects a socket.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from math import inf
from typing import TYPE_CHECKING, Any

from gevent import socket as gevent_socket

from keepalive_worker.connection import Connection, Reason
from keepalive_worker.deadlines import Pace
from keepalive_worker.frames import FrameReader
from keepalive_worker.tls import TLSEnded, read_tls, write_tls

if TYPE_CHECKING:
    from keepalive_worker.loop import EventLoop
    from keepalive_worker.response import Response

#: Most bytes received at a time. gunicorn's body reader asks for a megabyte, and with each piece that the application
#: then reads of it moves all that is left: with this, uploads are six times as fast.
_RECEIVE = 65536
#: Bytes that one sendfile(2) call is asked for; Linux moves less than 2 GiB.
_SENDFILE_STEP = 1 << 30


class StreamTimeout(ConnectionResetError):
    """The client did not do its part in time.

    It is what gunicorn's code and applications already know of clients that vanish: an
    :class:`OSError` with ``ECONNRESET``.

    :param reason: what to count when the connection is closed for it
    """

    def __init__(self, reason: Reason, what: str) -> None:
        super().__init__(errno.ECONNRESET, what)
        self.reason = reason


class NoMoreRequests(Exception):
    """A connection that waits for its next request (HTTP/2, whose connections are not parked) is to end.

    :param reason: what to count it as
    """

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class Wait:
    """A greenlet that waits for its connection.

    :param greenlet: who waits
    :param deadline: until when, in monotonic seconds
    :param error: makes what the greenlet gets when the deadline has passed
    """

    __slots__ = ("_error", "_greenlet", "between_requests", "deadline")

    def __init__(
        self, greenlet: Any, deadline: float, error: Callable[[], BaseException], between_requests: bool = False
    ) -> None:
        self._greenlet = greenlet
        self.deadline = deadline
        self._error = error
        #: It waits for a request that has not begun (HTTP/2, whose connections are not parked).
        self.between_requests = between_requests

    def wake(self) -> None:
        """Let it go on, now. Only from the hub."""
        self._greenlet.switch()

    def expire(self, error: BaseException | None = None) -> None:
        """Raise *error*, or the deadline's, where it waits. Only from the hub."""
        self._greenlet.throw(error or self._error())


class Stream:
    """What gunicorn's parser and response code take for a socket.

    :param loop: the worker's event loop
    :param conn: the connection; only the greenlet that handles it may use this
    """

    def __init__(self, loop: EventLoop, conn: Connection) -> None:
        self._loop = loop
        self.conn = conn
        self._timeout: float | None = None
        self._options = options = loop.options
        #: Whether the head of a request is still being read; its deadline is that of the whole.
        self.in_head = True
        #: On HTTP/2, whose connections are not parked: how far the frames are that the client sends.
        self.frames: FrameReader | None = None
        #: On HTTP/2: no stream is being served.
        self.between_requests = False
        #: On HTTP/2: when to wait for the next stream no longer, whatever the settings say (monotonic seconds).
        self.leaves_at = inf
        #: On HTTP/2: why the worker ended the connection.
        self.ending: Reason | None = None
        #: The client has sent all it will ever send.
        self.at_end = False
        #: What reading or writing raised; the connection is of no more use then.
        self.failure: OSError | None = None
        #: A send ended before all was sent: whatever came next would stand in the middle of it.
        self.was_cut = False
        #: Bytes sent by :meth:`sendfile`, and whether a file ended before its count was reached.
        self.file_bytes = 0
        self.file_was_short = False
        #: When a body that nobody wants must have been thrown away (monotonic seconds).
        self.drained_by = inf
        self._unread = b""
        self._receiving = Pace(options.body_timeout, options.min_data_rate)
        self._sending = Pace(options.send_timeout, options.min_data_rate)

    @property
    def _fd(self) -> int:
        """The descriptor; -1 once the application has closed the socket that it took, for the number is free then."""
        overrides = self.conn.overrides
        if overrides is None or overrides.socket is None:
            return self.conn.fd
        return int(overrides.socket.fileno())

    # ---------------------------------------------------------------- reading

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Up to *size* bytes, waiting for them; none at the end of the stream.

        :raises StreamTimeout: when the client took too long
        :raises TimeoutError: when :meth:`settimeout`'s limit was reached first
        :raises NoMoreRequests: instead, where a request is waited for; or when the worker stops
        :raises OSError: what the system says
        """
        if self._unread:
            data, self._unread = self._unread[:size], self._unread[size:]
            if self.frames is not None:
                self.frames.feed(data, self._loop.clock())
            return data
        conn = self.conn
        since = None
        most = min(size, _RECEIVE)
        if not self.in_head:
            # Of an upload that comes faster than it is read there is always more.
            self._loop.give_way()
        while True:
            try:
                data = os.read(self._fd, most) if conn.tls_socket is None else read_tls(conn, most)
            except BlockingIOError:
                conn.unseen = 0
                # On TLS a part of a record may have come, which is nothing yet.
                since = since or self._loop.clock()
                self._wait_for_input(since)
                continue
            except TLSEnded as error:
                self.failure = ConnectionResetError(errno.ECONNRESET, str(error))
                raise self.failure from error
            except OSError as error:
                self.failure = error
                raise
            self.at_end = not data
            conn.bytes_received += len(data)
            self._loop.counters.bytes_received += len(data)
            if not self.in_head:
                self._receiving.moved += len(data)
            if self.frames is not None:
                self.frames.feed(data, self._loop.clock())
            return data

    def unread(self, data: bytes) -> None:
        """Have *data* be what comes next; it was received, and counted, before."""
        self._unread = data + self._unread

    def take_unread(self) -> bytes:
        """What was received and not used."""
        data, self._unread = self._unread, b""
        return data

    def _wait_for_input(self, since: float) -> None:
        loop = self._loop
        began = loop.clock()
        if self.frames is not None and self.between_requests:
            self._wait_for_stream(self.frames)
            return
        if self._timeout is not None and self.frames is None:
            loop.wait_readable(self.conn, began + self._timeout, TimeoutError)
            return
        try:
            if self.in_head:
                limit = loop.options.header_timeout
                loop.wait_readable(self.conn, self.conn.started + limit if limit else inf, _late_head)
                return
            deadline, paced = self._receiving.deadline(began, since)
            if self.frames is not None:
                # gunicorn's code resets the stream; the connection has others.
                loop.wait_readable(self.conn, deadline, _StreamIsLate)
                return
            loop.wait_readable(self.conn, min(deadline, self.drained_by), _slow_body if paced else _late_body)
        except _StreamIsLate:
            raise
        except OSError as error:
            self.failure = error
            raise
        finally:
            self._receiving.waited += loop.clock() - began

    def _wait_for_stream(self, frames: FrameReader) -> None:
        """On HTTP/2: wait for the next stream, as long as an idle connection may, or a head take.

        Nothing but a stream renews the idle time. Of what a client sends, a PING keeps no connection
        open that serves nobody, and nor does a frame that never comes to its end.
        """
        conn, header_timeout = self.conn, self._options.header_timeout
        if frames.is_midway and header_timeout:
            self._wait_at_most(frames.began + header_timeout, _head_takes_too_long)
            return
        deadline = conn.idle_deadline()
        if not conn.requests:
            deadline = max(deadline, conn.since + header_timeout)  # As for one that is parked: EventLoop.ends_at().
        self._wait_at_most(deadline, _idle_for_too_long)

    def _wait_at_most(self, deadline: float, error: Callable[[], Exception]) -> None:
        self._loop.wait_readable(self.conn, min(deadline, self.leaves_at), error, between_requests=True)

    def begin_stream(self) -> None:
        """On HTTP/2: how fast the client is counts for each stream anew."""
        self._receiving = Pace(self._options.body_timeout, self._options.min_data_rate)
        self._sending = Pace(self._options.send_timeout, self._options.min_data_rate)

    @contextlib.contextmanager
    def waiting_for_window(self) -> Iterator[float | None]:
        """On HTTP/2: around a wait for the client to take more of a stream, by its flow-control window.

        Gives the deadline (monotonic seconds), or None where there is none.
        """
        began = self._loop.clock()
        deadline, _ = self._sending.deadline(began)
        try:
            yield None if deadline == inf else deadline
        finally:
            self._sending.waited += self._loop.clock() - began

    # ---------------------------------------------------------------- writing

    def send(self, data: Any, flags: int = 0) -> int:
        """Send all of *data*; the number of its bytes."""
        self.sendall(data)
        return len(data)

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send all of *data*, waiting for the client to take it.

        :raises StreamTimeout: when the client took too long
        :raises OSError: what the system says
        """
        conn = self.conn
        rest = memoryview(data)
        try:
            while len(rest):
                try:
                    sent = os.write(self._fd, rest) if conn.tls_socket is None else write_tls(conn, rest)
                except BlockingIOError:
                    self._wait_for_room()
                    continue
                self._sent(sent)
                rest = rest[sent:]
        except BaseException as error:
            self._cut_by(error)
            raise

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Send from a file without bringing its bytes into the process (sendfile(2)).

        :param file: an open binary file
        :param offset: where in it to begin
        :param count: bytes to send; None for all up to its end
        :returns: the number of bytes sent, which is less when the file ends before
        """
        fd = file.fileno()
        done = 0
        try:
            while count is None or done < count:
                step = _SENDFILE_STEP if count is None else min(_SENDFILE_STEP, count - done)
                try:
                    sent = os.sendfile(self._fd, fd, offset + done, step)
                except BlockingIOError:
                    self._wait_for_room()
                    continue
                if not sent:
                    self.file_was_short = count is not None
                    break
                self._sent(sent)
                done += sent
        except BaseException as error:
            self._cut_by(error)
            raise
        self.file_bytes += done
        return done

    def _cut_by(self, error: BaseException) -> None:
        """Remember what broke a send off; it may also be a timeout of the application's (gevent.Timeout)."""
        self.was_cut = True
        if isinstance(error, OSError):
            self.failure = error

    def _sent(self, size: int) -> None:
        self.conn.bytes_sent += size
        self._loop.counters.bytes_sent += size
        self._sending.moved += size

    def _wait_for_room(self) -> None:
        loop = self._loop
        began = loop.clock()
        deadline, paced = self._sending.deadline(began)
        try:
            loop.wait_writable(self.conn, deadline, _slow_reader if paced else _late_reader)
        finally:
            self._sending.waited += loop.clock() - began

    # ------------------------------------------------- what else sockets have

    def fileno(self) -> int:
        """The descriptor."""
        return self.conn.fd

    def gettimeout(self) -> float | None:
        """Seconds that :meth:`recv` may take on top of the settings' limits; None for no limit."""
        return self._timeout

    def settimeout(self, seconds: float | None) -> None:
        """See :meth:`gettimeout`."""
        self._timeout = seconds or None

    def setblocking(self, flag: bool) -> None:
        """Nothing: whether to wait is not the caller's choice here."""

    def shutdown(self, how: int) -> None:
        """Nothing: the connection is ended by the worker, which counts it."""

    def close(self) -> None:
        """Nothing, for the same reason."""


class SocketHandle:
    """``environ["gunicorn.socket"]``: becomes a real socket when somebody uses it.

    WebSocket libraries take the connection over this way. Once they do, the worker's deadlines no
    longer apply to it.
    """

    __slots__ = ("_response",)

    def __init__(self, response: Response) -> None:
        self._response = response

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        # So that isinstance(sock, socket.socket) holds, without making the socket.
        tls_socket = self._response.conn.tls_socket
        return gevent_socket.socket if tls_socket is None else type(tls_socket)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._response.real_socket, name)


class _StreamIsLate(TimeoutError):
    """The body of one of several streams; it is not a failure of the connection."""


def _idle_for_too_long() -> NoMoreRequests:
    return NoMoreRequests(Reason.IDLE_TIMEOUT)


def _head_takes_too_long() -> NoMoreRequests:
    return NoMoreRequests(Reason.HEADER_TIMEOUT)


def _late_head() -> StreamTimeout:
    return StreamTimeout(Reason.HEADER_TIMEOUT, "request head not complete within header_timeout")


def _late_body() -> StreamTimeout:
    return StreamTimeout(Reason.BODY_TIMEOUT, "no more of the request body within body_timeout")


def _slow_body() -> StreamTimeout:
    return StreamTimeout(Reason.MIN_DATA_RATE, "request body came slower than min_data_rate")


def _late_reader() -> StreamTimeout:
    return StreamTimeout(Reason.SEND_TIMEOUT, "client took no more of the response within send_timeout")


def _slow_reader() -> StreamTimeout:
    return StreamTimeout(Reason.MIN_DATA_RATE, "client took the response slower than min_data_rate")

"""From bytes to a request, to the application, to the end of the response.

Follow one request: :meth:`RequestHandler.begin` gets its bytes in the hub. A plain head goes to
:meth:`RequestHandler._begin_plain`, which makes environ; any other goes, bytes untouched, to
:meth:`RequestHandler._serve_parsed`, which has gunicorn's parser read it on a greenlet. Both end
in :meth:`RequestHandler._handle`, which runs the application, and :meth:`RequestHandler._finish`,
which gives the connection back.
"""

from __future__ import annotations

import errno
import io
import logging
from datetime import timedelta
from typing import Any

from greenlet import GreenletExit
from gunicorn import http, util
from gunicorn.config import PostRequest, PreRequest
from gunicorn.glogging import Logger
from gunicorn.http import wsgi
from gunicorn.http.body import Body, LengthReader
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.http.unreader import SocketUnreader
from gunicorn.http2 import negotiation

from keepalive_worker.connection import HANDLING, LINGERING, READING, Connection, Reason
from keepalive_worker.greenlets import GreenletPool
from keepalive_worker.heads import MAX_WAITING_HEAD, Head, Limits, Memory, RequestLine, RequestLines
from keepalive_worker.loop import EventLoop, ending_of
from keepalive_worker.response import Response, response_class
from keepalive_worker.stream import SocketHandle, Stream, StreamTimeout
from keepalive_worker.tls import speaks_http2

#: Errors that only say the client has gone; gunicorn's worker keeps quiet about the same ones.
_GONE = frozenset((errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN))
_new = object.__new__
#: Bytes taken at a time when a body that nobody read is thrown away.
_DRAIN_STEP = 65536
#: In front of a response to a request that was never read in full.
_END = b"\r\n\r\n"


class RequestHandler:
    """Serves the requests of one worker.

    :param worker: gunicorn's worker: its configuration, its log, its application
    :param loop: the event loop, to which this attaches itself
    :param pool: where greenlets come from
    :param limits: gunicorn's limits on request heads
    :param memory: what says when to forget what was remembered of requests
    """

    def __init__(self, worker: Any, loop: EventLoop, pool: GreenletPool, limits: Limits, memory: Memory) -> None:
        cfg = worker.cfg
        self._worker = worker
        self._cfg = cfg
        self._log = worker.log
        self._loop = loop
        self._pool = pool
        self._app = worker.app_callable
        self._response = response_class(cfg, loop)
        self._respond = self._response.to_plain
        self._clock = loop.clock
        self._counters = loop.counters
        self._lines = RequestLines(limits, memory)
        self._line_wait = min(limits.line, MAX_WAITING_HEAD)
        #: The first request on a connection may not be HTTP/1 at all, or have something before it.
        self._first_is_special = cfg.proxy_protocol != "off" or cfg.http2_cleartext in ("prior-knowledge", "both")
        self._pre_request = self._hook(cfg.pre_request, PreRequest.default, self._log_level_is_debug())
        self._post_request = self._hook(cfg.post_request, PostRequest.default, False)
        # gunicorn's Logger returns at once when the access log is off; others (statsd) do not.
        quiet = type(self._log).access is Logger.access and not self._log.access_log_enabled
        self._access = None if quiet else self._log.access
        # A pre_request hook may change the request before environ is made of it.
        always_parsed = cfg.protocol == "uwsgi" or self._pre_request is not None
        loop.lead = pool.lead
        loop.begin = self._begin_parsed if always_parsed else self.begin
        loop.head_is_late = self._head_is_late
        loop.over_peer_limit = self._over_peer_limit
        loop.refused = self._refused

    @staticmethod
    def _hook(hook: Any, default: Any, needed: bool) -> Any:
        """A server hook, or None when it is gunicorn's own, which does nothing that is needed."""
        return hook if needed or hook is not default else None

    def _log_level_is_debug(self) -> bool:
        return bool(self._log.error_log.isEnabledFor(logging.DEBUG))

    # --------------------------------------------------------------- in the hub

    def begin(self, conn: Connection, data: bytes) -> None:
        """Take what came on a parked connection; it may be less than a head or more than one."""
        heads = conn.heads
        latest, same_request, same_head = heads.latest
        if data == latest and conn.requests:
            self._begin_plain(conn, data, same_request, same_head, len(data))
            return
        end_of_line = data.find(b"\r\n")
        if end_of_line > 0:
            line = data[:end_of_line]
            request = self._lines.known.get(line) or self._lines.check(line)
            if request is not None and (conn.requests or self._first_may_be_plain(conn)):
                end = data.find(_END, end_of_line) + 4
                if end > 3:
                    block = data[end_of_line + 2 : end]
                    head = heads.young.get(block)
                    if head is None:
                        head = heads.lookup(block)
                    elif end == len(data) and not head[2]:
                        heads.latest = data, request, head
                    if head is not None:
                        self._begin_plain(conn, data, request, head, end)
                        return
                elif len(data) < MAX_WAITING_HEAD and data.count(b"\n") == data.count(b"\r\n"):
                    self._loop.wait_for_head(conn, data)
                    return
        elif (
            end_of_line < 0
            and len(data) < self._line_wait
            and b"\n" not in data
            and (conn.requests or self._first_may_be_plain(conn))
        ):
            self._loop.wait_for_head(conn, data)
            return
        self._begin_parsed(conn, data)

    def _begin_parsed(self, conn: Connection, data: bytes) -> None:
        """Leave it to gunicorn's parser."""
        self._start(conn)
        self._pool.run(self._serve_parsed, conn, data)

    def _first_may_be_plain(self, conn: Connection) -> bool:
        return not (self._first_is_special or (conn.tls_socket is not None and speaks_http2(conn)))

    def _start(self, conn: Connection) -> None:
        if conn.state != READING:
            conn.started = self._loop.clock()
        conn.state = HANDLING

    def _begin_plain(self, conn: Connection, data: bytes, request: RequestLine, head: Head, end: int) -> None:
        """Make environ and start the application."""
        method, target, path, query, protocol = request
        if conn.state != READING:
            # Here and elsewhere on this path a function that is an attribute is called by way of a
            # local name: Python 3.11 looks it up ten times as fast (0.05 µs each time).
            clock = self._clock
            conn.started = clock()
        conn.state = HANDLING
        self._counters.count_request(conn)
        conn.protocol = protocol
        template, close, length = head
        if close is None:
            close = protocol == "HTTP/1.0"
        respond = self._respond
        response = respond(conn, method, protocol, close, data, end)
        if len(data) == end and not length:
            body: Any = io.BytesIO()
        elif len(data) >= end + length:
            body = io.BytesIO(data[end : end + length])
            conn.buffer = data[end + length :] or None
        else:
            response.unreader = SocketUnreader(response.sock)
            response.unreader.unread(data[end:])
            response.body = body = Body(LengthReader(response.unreader, length))
        response.wsgi_input = body
        environ = template.copy()
        environ["REQUEST_METHOD"] = method
        environ["RAW_URI"] = target
        environ["PATH_INFO"] = path
        environ["QUERY_STRING"] = query
        environ["SERVER_PROTOCOL"] = protocol
        environ["REMOTE_ADDR"] = conn.host
        if conn.port >= 0:
            environ["REMOTE_PORT"] = str(conn.port)
        if conn.overrides is not None and conn.overrides.proxy_info:
            response.req.proxy_protocol_info = conn.overrides.proxy_info
            environ.update(wsgi.proxy_environ(response.req))
        environ["wsgi.input"] = body
        environ["wsgi.early_hints"] = response.send_early_hints
        environ["gunicorn.socket"] = handle = _new(SocketHandle)
        handle._response = response  # As SocketHandle(response), at half the cost.
        environ["keepalive.connection"] = conn
        self._pool.run(self._handle, conn, environ, response)

    # ------------------------------------------------------------ on a greenlet

    def _serve_parsed(self, conn: Connection, data: bytes) -> None:
        """Have gunicorn's parser read the request, from *data* and from what is still to come."""
        cfg, worker, listener = self._cfg, self._worker, conn.listener
        stream = Stream(self._loop, conn)
        stream.unread(data)
        request = None
        response = None
        try:
            if conn.tls_socket is not None and conn.requests == 0 and speaks_http2(conn):
                self._serve_http2(conn, stream)
                return
            if conn.requests == 0 and negotiation.prior_knowledge_allowed(cfg, conn.address):
                matched, preface = negotiation.read_preface_blocking(stream)
                stream.unread(preface)
                if matched:
                    self._serve_http2(conn, stream)
                    return
                if negotiation.mismatch_is_error(cfg):
                    raise http.errors.InvalidH2CPreface(preface)
            parser = http.get_parser(cfg, stream, conn.address)
            parser.req_count = conn.requests
            request = next(parser)
            stream.in_head = False
            if self._upgraded(conn, stream, request, parser):
                return
            self._counters.count_request(conn)
            self._remember_proxy(conn, request)
            conn.protocol = "HTTP/1.0" if request.version <= (1, 0) else "HTTP/1.1"
            if self._pre_request is not None:
                self._pre_request(worker, request)
            response, environ = wsgi.create(
                request,
                stream,
                conn.address,
                listener.name,
                cfg,
                response_class=self._response,
                response_args=(
                    conn,
                    request.method,
                    "HTTP/{}.{}".format(*request.version),
                    request.should_close(),
                ),
            )
        except (NoMoreData, StopIteration):
            self._loop.close(conn, Reason.CLIENT)
            return
        except BaseException as error:
            if request is not None and response is None and not isinstance(error, OSError | ParseException):
                self._log_error_and_answer(conn, stream, request, error)
                self._after(request, {}, None)
            else:
                self._refuse(conn, stream, request, error)
            return
        response.body, response.unreader = request.body, parser.unreader
        environ["wsgi.multithread"] = True
        environ["keepalive.statistics"] = worker.statistics
        environ["gunicorn.socket"] = SocketHandle(response)
        environ["keepalive.connection"] = conn
        self._handle(conn, environ, response)

    def _remember_proxy(self, conn: Connection, request: Any) -> None:
        """The PROXY protocol header came before the first request and holds for all of them."""
        if request.proxy_protocol_info:
            conn.own_overrides().proxy_info = request.proxy_protocol_info
        elif conn.overrides is not None and conn.overrides.proxy_info:
            request.proxy_protocol_info = conn.overrides.proxy_info

    def _handle(self, conn: Connection, environ: dict[str, Any], response: Response) -> None:
        """Run the application and send what it answers (PEP 3333)."""
        worker = self._worker
        try:
            worker.nr += 1
            if worker.nr >= worker.max_requests and worker.alive:
                worker.recycle()
            app = self._app
            result = app(environ, response.start_response)
            try:
                if type(result) is not list or len(result) != 1 or not response.send_whole(result[0]):
                    if isinstance(result, wsgi.FileWrapper):
                        response.write_file(result)
                    else:
                        for item in result:
                            response.write(item)
                    response.close()
            finally:
                if self._access is not None:
                    self._log_access(conn, environ, response)
                close = getattr(result, "close", None)
                if close is not None:
                    close()
        except BaseException as error:
            self._failed(conn, response, error)
        if self._post_request is not None:
            self._after(response.req, environ, response)
        self._finish(conn, response)

    def _log_access(self, conn: Connection, environ: dict[str, Any], response: Response) -> None:
        assert self._access is not None
        environ["keepalive.requests"] = conn.requests
        environ["keepalive.idle"] = f"{conn.idle:.3f}"
        took = timedelta(seconds=self._loop.clock() - conn.started)
        self._access(response, response.req, environ, took)

    def _after(self, request: Any, environ: dict[str, Any], response: Response | None) -> None:
        if self._post_request is not None:
            try:
                self._post_request(self._worker, request, environ, response)
            except Exception:
                self._log.exception("Exception in post_request hook")

    # ------------------------------------------------------------------- endings

    def _finish(self, conn: Connection, response: Response) -> None:
        """Give the connection back: to wait for the next request, or to be closed."""
        loop = self._loop
        if conn.state >= LINGERING:
            return
        was_taken = conn.overrides is not None and conn.overrides.socket is not None
        if was_taken and (not loop.take_back(conn) or not response.headers_sent or response.upgrade):
            loop.close(conn, Reason.RESPONSE)
            return
        # The first condition is what is_complete() finds of most, with a call less.
        if (
            response.sent != response.response_length or response.failure is not None or response._sock is not None
        ) and not response.is_complete():
            if response.was_cut:
                # The application knows, and went on. Nothing more may go out behind what was cut.
                loop.close(conn, _reason(response.why_lost, Reason.ERROR), abort=True)
                return
            self._log.error(
                "Response to %s %s ended after %s of %s bytes: connection closed",
                response.req.method,
                response.req.uri,
                response.sent,
                response.response_length,
            )
            loop.close(conn, Reason.ERROR)
            return
        if response.body is not None and not self._drain(conn, response):
            return
        if response.ending is None and not conn.asked_to_close:
            loop.park(conn)
        else:
            # A client that pipelines may still be sending; a reset could cost it the response. One
            # whose head was out when the application asked for the end has not been told.
            told = response.ending is Reason.RESPONSE and conn.buffer is None and response.body is None
            loop.close(conn, response.ending or Reason.RESPONSE, linger=not told)

    def _drain(self, conn: Connection, response: Response) -> bool:
        """Throw away what the application left of the body; False when that ended the connection.

        There is no limit in bytes: a client that keeps its pace gets its response, and its
        connection back.
        """
        stream, body = response.sock, response.body
        if body.failed:
            self._loop.close(conn, _reason(stream.failure, Reason.BAD_REQUEST), linger=True)
            return False
        limit = self._loop.options.body_timeout
        if limit:
            stream.drained_by = self._loop.clock() + limit
        try:
            while body.read(_DRAIN_STEP):
                pass
        except OSError as error:
            self._loop.close(conn, _reason(error, Reason.CLIENT), linger=isinstance(error, StreamTimeout))
            return False
        except Exception:
            self._loop.close(conn, Reason.BAD_REQUEST, linger=True)
            return False
        if stream.at_end and _bytes_missing(body):
            self._loop.close(conn, Reason.CLIENT)
            return False
        conn.buffer = (response.unreader.take_buffered() + stream.take_unread()) or None
        return True

    def _failed(self, conn: Connection, response: Response, error: BaseException) -> None:
        """The application, or the way to the client, did not hold."""
        loop = self._loop
        if isinstance(error, StopIteration):
            # How WebSocket libraries say that they answered by themselves.
            self._end_taken_over(conn, response)
        elif isinstance(error, NoMoreData) and not response.headers_sent:
            self._log.debug("Ignored premature client disconnection. %s", error)
            loop.close(conn, Reason.CLIENT)
        elif (failure := response.why_lost) is not None:
            if isinstance(error, OSError):
                self._log.debug("Client gone: %s", error)
            else:
                self._log.exception("Error handling request")
            # Applications and frameworks may have made another exception of it.
            if isinstance(failure, StreamTimeout) and not response.headers_sent:
                self._answer_408(conn, response.sock, failure)
            else:
                # To a client that takes nothing a FIN would wait behind what it does not take,
                # and that would stay in the kernel's memory.
                loop.close(conn, _reason(failure, Reason.CLIENT), abort=isinstance(failure, StreamTimeout))
        elif isinstance(error, GreenletExit):
            # graceful_timeout is over, or somebody killed the greenlet.
            loop.close(conn, Reason.SHUTDOWN if loop.terms.draining else Reason.ERROR, abort=True)
        elif response.headers_sent:
            # Writing an error page now would corrupt the response; the client must see it cut.
            self._log.exception("Error handling request")
            loop.close(conn, Reason.ERROR, abort=response.ends_with_connection)
        else:
            self._log_error_and_answer(conn, response.sock, response.req, error)

    def _end_taken_over(self, conn: Connection, response: Response) -> None:
        overrides = conn.overrides
        if overrides is not None and overrides.socket is not None:
            self._loop.take_back(conn)
        self._loop.close(conn, Reason.RESPONSE, linger=True)

    def _log_error_and_answer(self, conn: Connection, stream: Stream, request: Any, error: BaseException) -> None:
        """gunicorn's error page and log line for *error*; 500 with a traceback unless it knows better."""
        self._worker.handle_error(request, stream, conn.address, error)
        bad = isinstance(error, ParseException)
        self._loop.close(conn, Reason.BAD_REQUEST if bad else Reason.ERROR, linger=True)

    def _refuse(self, conn: Connection, stream: Stream, request: Any, error: BaseException) -> None:
        """A request that could not be read."""
        if isinstance(error, StreamTimeout):
            self._answer_408(conn, stream, error)
        elif isinstance(error, OSError):
            self._log.debug("Client gone: %s", error)
            self._loop.close(conn, ending_of(error))
        else:
            self._log_error_and_answer(conn, stream, request, error)

    def _answer_408(self, conn: Connection, stream: Stream, error: StreamTimeout) -> None:
        self._log.warning("Request from ip=%s timed out: %s", conn.host, error.strerror)
        self._write_error(stream, 408, "Request Timeout", str(error.strerror))
        self._loop.close(conn, error.reason, linger=True)

    def _write_error(self, stream: Stream, status: int, reason: str, message: str) -> None:
        try:
            util.write_error(stream, status, reason, message)
        except OSError:
            self._log.debug("Failed to send error message.")

    def _head_is_late(self, conn: Connection) -> None:
        """In the hub: the head of a request did not come in time."""
        self._start(conn)
        self._pool.run(self._time_out, conn)

    def _time_out(self, conn: Connection) -> None:
        error = StreamTimeout(Reason.HEADER_TIMEOUT, "request head not complete within header_timeout")
        if conn.tls_socket is not None and conn.buffer is None:
            self._loop.close(conn, error.reason)  # Its handshake is not done: it could not read a 408.
        else:
            self._answer_408(conn, Stream(self._loop, conn), error)

    def _over_peer_limit(self, conn: Connection) -> None:
        """In the hub: one connection too many from this address."""
        self._start(conn)
        self._pool.run(self._turn_away, conn)

    def _turn_away(self, conn: Connection) -> None:
        most = self._loop.options.max_peer_connections
        self._log.warning("Refused connection from ip=%s: it has %s open (max_peer_connections)", conn.host, most)
        if conn.listener.tls_context is None:
            message = "Too many connections from this address"
            self._write_error(Stream(self._loop, conn), 503, "Service Unavailable", message)
        self._loop.close(conn, Reason.PEER_LIMIT, linger=True)

    def _refused(self, conn: Connection, message: str) -> None:
        """In the hub: what the client speaks is not TLS."""
        self._pool.run(self._log.warning, "Invalid request from ip=%s: %s", conn.host, message)

    # ------------------------------------------------------------------- HTTP/2

    def _serve_http2(self, conn: Connection, stream: Stream) -> None:
        stream.in_head = False
        self._worker.handle_http2(conn.listener.socket, stream, conn.address)
        self._end_http2(conn, stream)

    def _upgraded(self, conn: Connection, stream: Stream, request: Any, parser: Any) -> bool:
        """Whether the request asked for HTTP/2 and got it; the connection has ended then."""
        if self._cfg.protocol == "uwsgi":
            return False
        if not self._worker._try_h2c_upgrade(conn.listener.socket, request, parser, stream, conn.address):
            return False
        self._end_http2(conn, stream)
        return True

    def _end_http2(self, conn: Connection, stream: Stream) -> None:
        if stream.failure is not None or stream.at_end:
            reason = _reason(stream.failure, Reason.CLIENT)
        elif self._loop.terms.draining:
            reason = Reason.SHUTDOWN
        else:
            # Where we had no reason the client has said GOAWAY, or what is no HTTP/2.
            reason = stream.ending or Reason.CLIENT
        self._loop.close(conn, reason, linger=True)


def _reason(error: BaseException | None, otherwise: Reason) -> Reason:
    """What a connection is counted under that *error* has ended, if it was an error of the client's."""
    if isinstance(error, StreamTimeout):
        return error.reason
    return ending_of(error) if isinstance(error, OSError) else otherwise


def _bytes_missing(body: Any) -> int:
    """How much of a body with a length gunicorn's reader has not asked for yet."""
    length: int = getattr(body.reader, "length", 0)
    return length

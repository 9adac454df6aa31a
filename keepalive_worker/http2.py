"""How long an HTTP/2 connection lasts and how it ends.

gunicorn's code speaks the protocol and serves the streams, one after the other, on the connection's
greenlet. Its own loop around that is not used: when the worker stops it leaves without GOAWAY,
because it takes the ``b""`` that it feeds its protocol code for the end of the connection, and it
turns away the connections that come while somebody still has to accept them.
"""

from __future__ import annotations

import errno
from typing import Any

from greenlet import GreenletExit
from gunicorn import http
from gunicorn.http2.errors import HTTP2ConnectionError, HTTP2ProtocolError

from keepalive_worker.connection import Connection, Reason
from keepalive_worker.stream import NoMoreRequests, Stream

#: Errors that only say the client has gone.
_GONE = frozenset((errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN))


def serve(worker: Any, listener_name: Any, stream: Stream, address: Any, preface: bytes, upgrade: Any) -> None:
    """Serve a connection's streams until there are no more.

    ``stream.ending`` says why the worker has ended it, None where it was the client or an error of
    the protocol.

    :param preface: what was received while the protocol was found out
    :param upgrade: what came of an HTTP/1.1 request that asked for HTTP/2, see gunicorn
    """
    log = worker.log
    last_served = 0
    try:
        http2 = http.get_parser(worker.cfg, stream, address, http2_connection=True)
        if upgrade is None:
            http2.initiate_connection()
            requests = []
        else:
            requests = [http2.initiate_upgrade(*upgrade)]
        if preface:
            requests += http2.receive_data(preface)
        is_last_round = False
        while True:
            for request in requests:
                # A client that always has the next one ready must not keep the others from theirs.
                worker.loop.give_way()
                worker._serve_http2_stream(listener_name, request, stream, address, http2)
                last_served = request.stream.stream_id
            if http2.is_closed:
                return
            ending = _ending(stream.conn)
            if ending is Reason.SHUTDOWN and not last_served:
                # It came while we were the only one to accept; its request has its time to come, too.
                http2.idle_timeout = worker.options.drain_timeout or 0.001
            elif ending is not None:
                if is_last_round or not http2.pending_requests:
                    raise NoMoreRequests(ending)
                is_last_round = True
            requests = http2.receive_data()
    except NoMoreRequests as end:
        stream.ending = end.reason
        # Of streams that come later the client learns that nobody has looked at them: it may send
        # their requests again elsewhere (RFC 9113 6.8).
        http2.close(last_stream_id=last_served)
    except (HTTP2ConnectionError, HTTP2ProtocolError) as error:
        log.debug("HTTP/2 connection closed: %s", error)
    except OSError as error:
        if error.errno in _GONE:
            log.debug("HTTP/2 client gone: %s", error)
        else:
            log.exception("HTTP/2 socket error")
    except GreenletExit:
        # graceful_timeout is over, or somebody killed the greenlet; the stream was reset.
        stream.ending = Reason.ERROR
    except (Exception, SystemExit):
        log.exception("HTTP/2 connection error")
        stream.ending = Reason.ERROR


def _ending(conn: Connection) -> Reason | None:
    """Why a connection takes no more requests, None where it does.

    Without keep-alive streams still share a connection: it is what HTTP/2 is for.
    """
    reason = conn.last_request_reason(conn.terms.clock())
    return None if reason is Reason.RESPONSE and not conn.asked_to_close else reason

"""TLS on connections that the event loop reads for.

The socket is gevent's, or whatever the user's ``ssl_context`` hook makes, in non-blocking mode:
OpenSSL does the handshake as part of the first read, so a client that is slow with its handshake
holds no greenlet either.
"""

from __future__ import annotations

import contextlib
import errno
import os
import ssl
from typing import Any

from gevent import socket

from keepalive_worker.connection import Connection, Reason


class TLSEnded(Exception):
    """The connection is of no more use.

    :param reason: what to count
    :param message: what OpenSSL said, empty where it is nobody's fault
    """

    def __init__(self, reason: Reason, message: str = "") -> None:
        super().__init__(message)
        self.reason = reason


def _wrap(conn: Connection) -> None:
    """Make the connection's descriptor a TLS socket; the handshake is still to come."""
    listener = conn.listener
    sock = socket.socket(listener.family, socket.SOCK_STREAM, 0, conn.fd)
    try:
        sock.setblocking(False)
        # A client that has gone already has no name. Made for one, a TLS socket would close the
        # descriptor, whose number the event loop would then close once more, or for somebody else.
        sock.getpeername()
        conn.tls_socket = listener.tls_context.wrap_socket(
            sock,
            server_side=True,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=listener.suppress_ragged_eofs,
        )
    except BaseException:
        if sock.fileno() < 0:
            conn.fd = -1  # It has closed it: the client went at this very moment.
        else:
            sock.detach()
        raise


def read_tls(conn: Connection, size: int) -> bytes:
    """Read without waiting, as :func:`os.read` does.

    :returns: decrypted bytes, none of them at the end of the stream
    :raises BlockingIOError: when more has to come first
    :raises TLSEnded: when the peer does not speak TLS, or not as it must
    :raises OSError: when the system has given the peer up
    """
    if conn.tls_socket is None:
        _wrap(conn)
    _check_system_error(conn)
    try:
        return conn.tls_socket.recv(size)  # type: ignore[no-any-return]
    except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
        raise BlockingIOError(errno.EAGAIN, "TLS needs more") from error
    except ssl.SSLError as error:
        if error.args[0] == ssl.SSL_ERROR_EOF:
            raise TLSEnded(Reason.CLIENT) from error
        raise TLSEnded(Reason.BAD_REQUEST, str(error)) from error


def _check_system_error(conn: Connection) -> None:
    """Raise the error with which the system has ended the connection, if it has.

    To be called before OpenSSL gets to see it: Python 3.10 and later make the end of the stream of it
    (they read by SSL_read_ex(), whose result for both is 0), and a vanished peer would pass for one that left.
    """
    error = conn.tls_socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    # A reset is the client's doing, as is the end; before it there may be something to read.
    if error not in (0, errno.ECONNRESET, errno.EPIPE):
        raise OSError(error, os.strerror(error))


def write_tls(conn: Connection, data: Any) -> int:
    """Write without waiting, as :func:`os.write` does.

    :raises BlockingIOError: when nothing could be sent
    :raises OSError: when the system has given the peer up
    """
    _check_system_error(conn)
    try:
        sent = conn.tls_socket.send(data)
    except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
        raise BlockingIOError(errno.EAGAIN, "TLS needs more") from error
    if not sent and len(data):
        # gevent's sockets say so by sending nothing.
        raise BlockingIOError(errno.EAGAIN, "TLS needs more")
    return sent  # type: ignore[no-any-return]


def shaking_hands(conn: Connection) -> bool:
    """Whether the handshake has begun and is not done."""
    return conn.tls_socket.version() is None


def speaks_http2(conn: Connection) -> bool:
    """Whether ALPN (RFC 7301) chose HTTP/2."""
    return bool(conn.tls_socket.selected_alpn_protocol() == "h2")


def say_goodbye(conn: Connection) -> None:
    """Send the closure alert, which tells the peer that nothing was cut off (RFC 8446 6.1)."""
    # The peer may have gone, or not have finished its handshake.
    with contextlib.suppress(OSError, ValueError):
        conn.tls_socket.unwrap()

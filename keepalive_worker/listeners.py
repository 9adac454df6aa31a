"""The sockets that a worker accepts from, and what follows from where a connection came in."""

from __future__ import annotations

# The C type under socket.socket, which gevent never replaces: it accepts and shuts down without
# waiting and without building Python objects around the descriptor.
import _socket
import os
import socket
import struct
from math import ceil
from typing import Any

from gunicorn.http.message import _ip_in_allow_list

from keepalive_worker.connection import LISTENING, Connection
from keepalive_worker.heads import Heads, Limits, Memory

#: Probes to a silent peer, and the share of the idle time between them. With three, a vanished
#: peer is found after twice the idle time at most.
KEEPALIVE_PROBES = 3

_MAX_TRUST_MEMO = 1024

#: Keys of environ whose values every request has of its own.
_REQUEST_KEYS = (
    "REQUEST_METHOD",
    "RAW_URI",
    "PATH_INFO",
    "QUERY_STRING",
    "SERVER_PROTOCOL",
    "REMOTE_ADDR",
    "wsgi.input",
    "wsgi.early_hints",
    "gunicorn.socket",
    "keepalive.connection",
)

#: struct linger: on, for no time.
_RESET = struct.pack("ii", 1, 0)


class Listener:
    """One bound address.

    :param sock: the listening socket as gunicorn hands it to the worker
    :param cfg: gunicorn's configuration
    :param base: what :func:`gunicorn.http.wsgi.base_environ` gives, plus what the worker adds
    :param limits: gunicorn's limits on request heads
    :param memory: where remembered header blocks are counted
    :param tls_context: an :class:`ssl.SSLContext`, or None for plain text
    """

    #: Told apart from connections in the event loop's table by this.
    state = LISTENING

    def __init__(
        self,
        sock: Any,
        cfg: Any,
        base: dict[str, Any],
        limits: Limits,
        memory: Memory,
        tls_context: Any = None,
    ) -> None:
        #: The socket as gunicorn knows it; its name goes to gunicorn's own code.
        self.socket = sock
        #: Whether no other worker has it.
        self.is_own: bool = cfg.reuse_port
        self.name = sock.getsockname()
        self.fd = sock.fileno()
        self.tls_context = tls_context
        self.suppress_ragged_eofs = cfg.suppress_ragged_eofs
        self.family = sock.family
        #: Only front servers speak the uWSGI protocol: peers hand on what others ask.
        self.has_front: bool = cfg.protocol == "uwsgi"
        self._cfg = cfg
        self._accepting = _socket.socket(sock.family, socket.SOCK_STREAM, 0, os.dup(self.fd))
        self._accepting.setblocking(False)
        #: What :meth:`set_tcp_keepalive` was told, while there may be connections in the backlog from before.
        self._early = 0.0
        template = dict(base)
        template["wsgi.url_scheme"] = "https" if cfg.is_ssl else "http"
        # By gunicorn's rule (wsgi.create); the path of a unix socket names no server, "Host" does.
        name = self.name.split(":") if isinstance(self.name, str) else self.name
        if len(name) > 1:
            template["SERVER_NAME"] = name[0]
            template["SERVER_PORT"] = str(name[1])
        # Copying a dictionary that has all its keys is cheaper than making a copy grow.
        template.update(dict.fromkeys(_REQUEST_KEYS))
        if not self.is_unix:
            template["REMOTE_PORT"] = None
        self._heads = {
            trusted: Heads(cfg, limits, template, trusted, memory) for trusted in (False, True)
        }
        self._trust: dict[str, bool] = {}

    @property
    def is_unix(self) -> bool:
        """Whether peers have no IP address; gunicorn trusts them as it trusts a front proxy."""
        return bool(self.family == socket.AF_UNIX)

    def set_tcp_keepalive(self, idle: float) -> None:
        """Have the kernel probe silent peers; accepted sockets inherit it from the listener.

        :param idle: seconds of silence before the first probe; 0 leaves probing off
        """
        if self.is_unix:
            return
        self._probe(self._accepting, idle)
        # Who has connected before now (systemd's socket is there before the server) inherits nothing.
        self._early = idle

    @staticmethod
    def _probe(sock: Any, idle: float) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1 if idle else 0)
        if not idle:
            return
        # The kernel counts whole seconds, and refuses 0.
        interval = max(1, ceil(idle / KEEPALIVE_PROBES))
        options = {
            "TCP_KEEPIDLE": max(1, ceil(idle)),
            "TCP_KEEPALIVE": max(1, ceil(idle)),  # what macOS calls TCP_KEEPIDLE
            "TCP_KEEPINTVL": interval,
            "TCP_KEEPCNT": KEEPALIVE_PROBES,
            # Bytes of ours that the peer does not acknowledge, in milliseconds: without it a peer
            # that vanished while we send is only given up after some 15 minutes of retransmission.
            "TCP_USER_TIMEOUT": (max(1, ceil(idle)) + KEEPALIVE_PROBES * interval) * 1000,
        }
        for name, value in options.items():
            number = getattr(socket, name, None)
            if number is not None:
                sock.setsockopt(socket.IPPROTO_TCP, number, value)

    def accept(self) -> tuple[int, str, int]:
        """Take one connection: its descriptor, non-blocking, and the peer's host and port.

        :raises BlockingIOError: when nobody waits
        :raises OSError: whatever else ``accept(2)`` says
        """
        try:
            fd, address = self._accepting._accept()  # type: ignore[attr-defined]
        except BlockingIOError:
            self._early = 0.0
            raise
        os.set_blocking(fd, False)
        if self._early:
            sock = _socket.socket(self.family, socket.SOCK_STREAM, 0, fd)
            try:
                self._probe(sock, self._early)
            except OSError:
                pass  # The client has gone already (macOS says EINVAL then); reading will tell.
            finally:
                sock.detach()
        if isinstance(address, tuple):
            return fd, address[0], address[1]
        # Linux's abstract names are any bytes.
        return fd, address.decode("utf-8", "replace") if isinstance(address, bytes) else address, -1

    def peer_address(self, host: str, port: int) -> Any:
        """The peer as gunicorn's own code expects it: a tuple, or a string on a unix socket."""
        return host if port < 0 else (host, port)

    def heads_for(self, host: str) -> Heads:
        """Who parses the heads that this peer sends: it depends on ``forwarded_allow_ips``."""
        if self.is_unix:
            return self._heads[True]
        trusted = self._trust.get(host)
        if trusted is None:
            cfg = self._cfg
            trusted = _ip_in_allow_list(host, cfg.forwarded_allow_ips, cfg.forwarded_allow_networks())
            if len(self._trust) >= _MAX_TRUST_MEMO:
                self._trust.clear()
            self._trust[host] = trusted
        return self._heads[trusted]

    def half_close(self, conn: Connection) -> None:
        """Send FIN and go on reading (RFC 9112 9.6).

        :raises OSError: when the peer has gone already
        """
        sock = _socket.socket(self.family, socket.SOCK_STREAM, 0, conn.fd)
        try:
            sock.shutdown(socket.SHUT_WR)
        finally:
            sock.detach()

    def reset_on_close(self, conn: Connection) -> None:
        """Have close(2) send a reset instead of FIN."""
        sock = _socket.socket(self.family, socket.SOCK_STREAM, 0, conn.fd)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        finally:
            sock.detach()

    def close(self) -> None:
        """Stop accepting here."""
        self._accepting.close()
        self.socket.close()

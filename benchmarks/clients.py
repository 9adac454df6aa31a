"""Clients in processes of their own, on the clients' core, and how to talk to them."""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import socket
import ssl
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from benchmarks import tls

#: Linux's number of it; Python's socket module knows the name from 3.12 on. The kernel then picks the
#: port only when it knows the other end, and the same port can serve several source addresses.
_IP_BIND_ADDRESS_NO_PORT = 24

#: Of about 28,000 ports that Linux has for the connections from one address to one server.
_CONNECTIONS_PER_ADDRESS = 10_000

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def source_address(index: int) -> str:
    """The address from which connection number *index* comes; all of 127.0.0.0/8 is this machine."""
    high, low = divmod(2 + index // _CONNECTIONS_PER_ADDRESS, 250)
    return f"127.0.{high}.{low}"


def connect(port: int, index: int, *, secure: bool = False, narrow: bool = False) -> socket.socket:
    """A connection to 127.0.0.1:*port* that does not block.

    :param secure: over TLS
    :param narrow: let hardly anything be on its way that was not read: a small receive buffer, and segments
        as on Ethernet. With the loopback's of 64 KB the kernel takes 2 MB a connection from the server
        before it has it wait, and soon has no more memory for TCP.
    """
    client = socket.socket()
    if narrow:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)  # the kernel takes no less
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1460)
    client.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
    client.bind((source_address(index), 0))
    client.settimeout(20)
    client.connect(("127.0.0.1", port))
    if secure:
        client = tls.client_context().wrap_socket(client)
    client.setblocking(False)
    return client


def receive(client: socket.socket) -> bytes | None:
    """What has come from the server; None: not yet anything, or just TLS's own business; empty: the end."""
    try:
        return client.recv(65536)
    except (ssl.SSLWantReadError, BlockingIOError):
        return None
    except ssl.SSLEOFError:  # it has not said goodbye in TLS's words
        return b""


def is_complete(response: bytes) -> bool:
    """Whether that is all of a response with a ``Content-Length``."""
    head, separator, body = response.partition(b"\r\n\r\n")
    if not separator:
        return False
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return len(body) >= int(value)
    raise ValueError(f"a response without Content-Length: {head!r}")


def percentile(values: list[float], percent: float) -> float:
    """The smallest of *values* that *percent* of them do not exceed; infinite without any."""
    if not values:
        return math.inf
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


class ClientError(Exception):
    """A client process has failed, or does not answer."""


class ClientProcess:
    """An object in another process, whose methods are called through a pipe.

    :param make: makes the object, there
    :param cpu: the core to run on, or None for any
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any, cpu: int | None) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, cpu, make, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def tell(self, method: str, *arguments: Any) -> None:
        """Call *method* there; :meth:`answer` gets what it returns."""
        self._pipe.send((method, arguments))

    def answer(self, timeout: float = 120.0) -> Any:
        """What the last called method has returned.

        :param timeout: seconds to wait for it at most
        :raises ClientError: it raised, or it takes longer
        """
        if not self._pipe.poll(timeout):
            raise ClientError(f"no answer from the clients within {timeout:.0f} s")
        try:
            failed, result = self._pipe.recv()
        except EOFError:
            raise ClientError("the clients' process has ended") from None
        if failed:
            raise ClientError(result)
        return result

    def ask(self, method: str, *arguments: Any) -> Any:
        """:meth:`tell` and :meth:`answer`."""
        self.tell(method, *arguments)
        return self.answer()

    def stop(self) -> None:
        """End the process, and so its connections."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(pipe: Connection, cpu: int | None, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    gc.disable()  # a pause of ours would be taken for one of the server's
    target = make(*arguments)
    while True:
        try:
            method, parameters = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            pipe.send((False, getattr(target, method)(*parameters)))
        except KeyboardInterrupt:
            return
        except RuntimeError as error:  # ours, about the server
            pipe.send((True, str(error)))
        except Exception:
            pipe.send((True, traceback.format_exc(limit=-3)))

"""Responses that the kernel keeps for a moment, so that their clients are woken together.

Whoever waits for a response sleeps, mostly in a process on another core: a front server, say. To wake
it costs the core that sends some 15 µs, the more so in a virtual machine, where it leaves the machine for
that. With an application that takes a few times as long it is a fifth of all, paid for each response;
responses that go out in a row pay it once.

So, while more requests are ready and each takes long enough for clients to fall asleep meanwhile, but
not long, the kernel is told with a response that more is to come (``MSG_MORE``, see send(2)): it takes
the bytes, and keeps the last of them back until it is asked for them, when nothing else is ready or the
event loop's slice of time is over. Should an application keep the worker busy just then, the
kernel sends them by itself after 200 ms (tcp(7), ``TCP_CORK``). After a request that took long
nothing is held for a while, and for an application that waits, nothing ever: control is the event loop's then.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from typing import Any

#: Seconds that a request has to take for its client, or the last one's, to be asleep when it is done.
WORTH_IT = 40e-6
#: Seconds that it may take if the clients of others are to wait for it.
SHORT = 1e-3
#: Seconds without a longer request after which responses are held again.
CALM = 0.1

SendMore = Callable[[int, bytes], int]
Push = Callable[[int], Any]


def kernel_calls() -> tuple[SendMore, Push] | None:
    """What sends bytes of which more are to come, and what ends that; None where there is no such thing.

    Python's own way to both is a socket object, which a connection here does not have.
    """
    if sys.platform != "linux":
        return None
    try:
        import ctypes  # Not every Python has it.

        # Neither call ever waits: the connections are non-blocking. So there is no need to release the GIL.
        libc = ctypes.PyDLL(None, use_errno=True)
        send, setsockopt = libc.send, libc.setsockopt
    except (ImportError, OSError, AttributeError):
        return None
    send.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int)
    send.restype = ctypes.c_ssize_t
    setsockopt.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint)
    flags = socket.MSG_MORE | socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
    on = ctypes.c_int(1)
    size = ctypes.sizeof(on)

    def send_more(fd: int, data: bytes) -> int:
        sent: int = send(fd, data, len(data), flags)
        if sent < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        return sent

    def push(fd: int) -> None:
        # As all connections have it already; to set it again sends what there is (tcp(7)).
        setsockopt(fd, socket.IPPROTO_TCP, socket.TCP_NODELAY, ctypes.byref(on), size)

    return send_more, push


class Holding:
    """Which responses are held, and until when. Everything but :meth:`send` is for the event loop.

    :param calls: as :func:`kernel_calls` has them; with None nothing is ever held
    """

    __slots__ = ("_calm_from", "_fds", "_is_possible", "_push", "_send_more", "allowed")

    def __init__(self, calls: tuple[SendMore, Push] | None) -> None:
        self._is_possible = calls is not None
        if calls is not None:
            self._send_more, self._push = calls
        #: Whether the response that is made next may be held.
        self.allowed = False
        #: Of connections whose last bytes are held; those of a closed one the kernel has sent, and where its number
        #: is another's by now, pushing does no harm.
        self._fds: list[int] = []
        self._calm_from = 0.0

    def pace(self, took: float, now: float, more_ready: bool) -> None:
        """Settle what holds for the next request, by how long the last one took; send what was held long enough.

        :param took: seconds
        :param now: monotonic seconds
        :param more_ready: whether yet another one is ready
        """
        if took > SHORT:
            self._calm_from = now + CALM
        self.allowed = self._is_possible and more_ready and took > WORTH_IT and now >= self._calm_from
        if self._fds and not self.allowed:
            self.end()

    def send(self, fd: int, data: bytes) -> int:
        """Send *data* by a TCP connection, which stays open; it may be held. Only when it is allowed.

        :returns: how many bytes the kernel has taken
        :raises OSError: what the system says
        """
        sent = self._send_more(fd, data)
        self._fds.append(fd)
        return sent

    def end(self) -> None:
        """Have all that is held sent, and hold nothing more: something else comes next."""
        self.allowed = False
        if self._fds:
            push = self._push
            for fd in self._fds:
                push(fd)
            self._fds.clear()

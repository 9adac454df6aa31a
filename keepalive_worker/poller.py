"""How the worker learns that connections are ready, at no cost for those that are not.

Two pollers do the same job behind the same methods:

``EpollPoller``  one epoll set of our own, of which gevent's hub watches just the one descriptor
``HubPoller``    a watcher of gevent's hub for each connection, wherever gevent runs

Both report edges: after an event was reported there need not be another one before the reader has
read until the kernel had no more, and has called :attr:`arm` where the poller has one.
"""

from __future__ import annotations

import os

# Taken before gevent's monkey-patching, which deletes select.epoll: this module is imported in
# the master process, where nothing is patched.
import select
from collections.abc import Callable
from typing import Any

#: Event bits, with epoll's numbers; both pollers use them.
READABLE = 0x001
WRITABLE = 0x004
ERROR = 0x008
HANGUP = 0x010
PEER_CLOSED = 0x2000
#: What makes a read worth trying.
INPUT = READABLE | ERROR | HANGUP | PEER_CLOSED

_epoll = getattr(select, "epoll", None)
_EDGES = READABLE | PEER_CLOSED | getattr(select, "EPOLLET", 0)
#: One wake-up for one new connection instead of one for each worker (Linux 4.5).
_LISTEN = READABLE | getattr(select, "EPOLLEXCLUSIVE", 0)
#: Events fetched at once. They are worked off in time slices, so this bounds memory only.
_BATCH = 512

BACKEND_VARIABLE = "KEEPALIVE_WORKER_BACKEND"
BACKENDS = ("epoll", "portable")


class EpollPoller:
    """Edges from one epoll set; a connection is registered once, at accept."""

    #: Nothing has to be done to get the next edge.
    arm: Callable[[int], None] | None = None

    def __init__(self, hub: Any, on_ready: Callable[[], None]) -> None:
        self._epoll = _epoll()  # type: ignore[misc]
        self._watcher = hub.loop.io(self._epoll.fileno(), 1)
        self._watcher.start(on_ready)

    def poll(self) -> list[tuple[int, int]]:
        """The descriptors that got an edge since they were last reported, without waiting."""
        return self._epoll.poll(0, _BATCH)  # type: ignore[no-any-return]

    def add(self, fd: int) -> None:
        """Report the edges of a connection's descriptor."""
        self._epoll.register(fd, _EDGES)

    def add_listener(self, fd: int) -> None:
        """Report a listening descriptor for as long as somebody waits to be accepted."""
        self._epoll.register(fd, _LISTEN)

    def watch_writable(self, fd: int) -> None:
        """Report from now on also when the kernel takes more to send."""
        self._epoll.modify(fd, _EDGES | WRITABLE)

    def remove(self, fd: int) -> None:
        """Forget a descriptor, before it is closed.

        Closing alone does it only while no other process holds the descriptor (an application
        may fork), and then events of the dead number would go on.
        """
        self._epoll.unregister(fd)

    def close(self) -> None:
        """Give the epoll set back."""
        self._watcher.stop()
        self._watcher.close()
        self._epoll.close()


class HubPoller:
    """The same from watchers of gevent's hub, for systems without epoll.

    They report levels. A watcher that has fired is stopped until :attr:`arm` is called, which
    makes edges of them.
    """

    def __init__(self, hub: Any, on_ready: Callable[[], None]) -> None:
        self._loop = hub.loop
        self._on_ready = on_ready
        self._readers: dict[int, Any] = {}
        self._writers: dict[int, Any] = {}
        self._listeners: dict[int, Any] = {}
        self._events: dict[int, int] = {}
        self.arm: Callable[[int], None] | None = self._arm

    def _fired(self, fd: int, event: int, watcher: Any) -> None:
        watcher.stop()
        self._events[fd] = self._events.get(fd, 0) | event
        self._on_ready()

    def _start(self, fd: int, event: int, watcher: Any) -> None:
        watcher.start(self._fired, fd, event, watcher)

    def _arm(self, fd: int) -> None:
        watcher = self._readers[fd]
        if not watcher.active and fd not in self._events:
            self._start(fd, READABLE, watcher)

    def poll(self) -> list[tuple[int, int]]:
        """The descriptors that became ready, as :meth:`EpollPoller.poll`."""
        events, self._events = self._events, {}
        for fd in events:
            if fd in self._listeners:
                self._start(fd, READABLE, self._listeners[fd])
        return list(events.items())

    def add(self, fd: int) -> None:
        """As :meth:`EpollPoller.add`."""
        self._readers[fd] = self._loop.io(fd, 1)
        self._arm(fd)

    def add_listener(self, fd: int) -> None:
        """As :meth:`EpollPoller.add_listener`."""
        self._listeners[fd] = self._loop.io(fd, 1)
        self._start(fd, READABLE, self._listeners[fd])

    def watch_writable(self, fd: int) -> None:
        """As :meth:`EpollPoller.watch_writable`, but for one edge: it is called for each wait."""
        watcher = self._writers.get(fd)
        if watcher is None:
            watcher = self._writers[fd] = self._loop.io(fd, 2)
        if not watcher.active:
            self._start(fd, WRITABLE, watcher)

    def remove(self, fd: int) -> None:
        """As :meth:`EpollPoller.remove`."""
        self._events.pop(fd, None)
        for watchers in (self._readers, self._writers, self._listeners):
            watcher = watchers.pop(fd, None)
            if watcher is not None:
                watcher.stop()
                watcher.close()

    def close(self) -> None:
        """Give all watchers back."""
        for fd in {*self._readers, *self._writers, *self._listeners}:
            self.remove(fd)


def backend_name() -> str:
    """Which of :data:`BACKENDS` to use: what the environment variable says, else the best here.

    :raises ValueError: when the variable names none of them, or epoll where there is none
    """
    wanted = os.environ.get(BACKEND_VARIABLE, "")
    if not wanted:
        return "epoll" if _epoll is not None else "portable"
    if wanted not in BACKENDS:
        raise ValueError(f"{BACKEND_VARIABLE}={wanted}: the accepted values are {' and '.join(BACKENDS)}")
    if wanted == "epoll" and _epoll is None:
        raise ValueError(f"{BACKEND_VARIABLE}=epoll: this system has no epoll; use portable")
    return wanted


def make_poller(hub: Any, on_ready: Callable[[], None]) -> EpollPoller | HubPoller:
    """The poller for :func:`backend_name`; *on_ready* is called in the hub when there is work."""
    return (EpollPoller if backend_name() == "epoll" else HubPoller)(hub, on_ready)

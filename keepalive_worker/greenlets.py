"""Greenlets that are used again, so that a request need not pay for a new one.

They are raw greenlets, last in first out, so the hot ones stay hot, and what an application keeps
per greenlet (Django's database connections, for one) is bounded by the peak of requests that were
handled at the same time, as it is with threads.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from typing import Any

import gevent
from greenlet import GreenletExit, getcurrent, greenlet


class GreenletPool:
    """Runs functions on pooled greenlets.

    :param hub: gevent's hub of this thread
    :param on_error: called, on the greenlet, with an exception that a function let through, and what it was
        called with
    """

    def __init__(self, hub: Any, on_error: Callable[[BaseException, tuple[Any, ...]], None]) -> None:
        self._hub = hub
        self._on_error = on_error
        self._all: set[Any] = set()
        self._idle: list[Any] = []
        #: The fewest that were idle since the last trim: nobody needed these.
        self._spare = 0
        #: On which :meth:`run` runs functions there and then; see :meth:`lead`.
        self._leader: Any = None

    def run(self, function: Callable[..., None], *args: Any) -> None:
        """Run ``function(*args)`` on a greenlet of the pool, in a context of its own (PEP 567).

        From the hub, and from a greenlet that leads, it runs now, until it ends or first waits;
        from any other greenlet in the hub's next turn.
        """
        this = getcurrent()
        if this is self._leader:
            # As _call(), with a call less.
            try:
                Context().run(function, *args)
            except BaseException as error:
                self._failed(error, args)
        elif this is self._hub:
            self._take().switch(self._call, (function, args))
        else:
            self.later(function, *args)

    def lead(self, work: Callable[[], None]) -> None:
        """Run ``work()`` on a greenlet of the pool, until it ends or first waits. Only from the hub.

        The functions that it gives to :meth:`run` run on the same greenlet, one after another, at
        no cost for switching. Once one of them has waited, and so has given control back to the
        caller of this method, *work* does not lead any more: it has to end, and leave what there
        is left to do to the next.
        """
        self._leader = leader = self._take()
        leader.switch(work, ())
        self._leader = None

    def _take(self) -> Any:
        idle = self._idle
        if idle:
            worker = idle.pop()
            if len(idle) < self._spare:
                self._spare = len(idle)
        else:
            self._spare = 0
            worker = greenlet(self._main, self._hub)
            # What a greenlet is started with lives for as long as it does: so, with nothing.
            worker.switch()
        return worker

    def later(self, function: Callable[..., None], *args: Any) -> None:
        """Run ``function(*args)`` in the hub's next turn, from wherever this is called."""
        self._hub.loop.run_callback(self.run, function, *args)

    def _main(self) -> None:
        this = getcurrent()
        idle = self._idle
        wait = self._hub.switch
        self._all.add(this)
        try:
            while True:
                try:
                    function, args = wait()
                except BaseException:
                    if this not in self._all:
                        return  # trim() ends it.
                    # Meant for a request that is over: a timeout, say, that the application has
                    # not cancelled.
                    continue
                function(*args)
                # Nothing of the request may live on in a waiting greenlet.
                function = args = None
                idle.append(this)
        except GreenletExit:
            pass
        finally:
            self._all.discard(this)

    def _call(self, function: Callable[..., None], args: tuple[Any, ...]) -> None:
        try:
            Context().run(function, *args)
        except BaseException as error:
            self._failed(error, args)

    def _failed(self, error: BaseException, args: tuple[Any, ...]) -> None:
        self._on_error(error, args)
        if isinstance(error, GreenletExit):
            raise error

    def trim(self) -> None:
        """End the greenlets that were not needed since the last call."""
        unneeded, self._idle[: self._spare] = self._idle[: self._spare], []
        self._spare = len(self._idle)
        for worker in unneeded:
            self._all.discard(worker)
            gevent.kill(worker)

    def has_done(self, worker: Any) -> bool:
        """Whether a greenlet, of this pool or not, runs nothing any more."""
        return worker.dead or worker in self._idle

    def kill_busy(self) -> None:
        """Raise GreenletExit in every greenlet that runs a function, in the hub's next turn."""
        for worker in self._all.difference(self._idle):
            gevent.kill(worker)

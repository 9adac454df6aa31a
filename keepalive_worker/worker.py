"""The gunicorn worker: ``gunicorn -k keepalive_worker app:app``.

Glue between gunicorn, which starts, signals and watches over worker processes, and the parts of
this package. It is gunicorn's gevent worker with another way of serving connections; HTTP/2 is
still served by gunicorn's own code, on a greenlet.
"""

from __future__ import annotations

import os
from typing import Any

import gevent
from gevent.event import Event
from gunicorn.http.wsgi import base_environ
from gunicorn.sock import ssl_context
from gunicorn.workers.ggevent import GeventWorker

from keepalive_worker.connection import IDLE, NEW, Connection, Reason
from keepalive_worker.counters import Counters
from keepalive_worker.greenlets import GreenletPool
from keepalive_worker.handler import RequestHandler
from keepalive_worker.heads import Limits, Memory
from keepalive_worker.listeners import Listener
from keepalive_worker.loop import EventLoop
from keepalive_worker.settings import Options

#: Seconds between two signs of life to the master; chores are done at the same time.
HEARTBEAT = 1.0
#: Heartbeats after which header blocks that were not used are forgotten.
_AGE_EVERY = 4
#: Heartbeats after which greenlets that were not needed end.
_TRIM_EVERY = 10
#: Seconds between two log lines about the same shortage.
_WARN_EVERY = 60.0


class KeepaliveWorker(GeventWorker):  # type: ignore[misc]
    """A gunicorn worker that parks idle connections and ends each by a deadline of its own."""

    loop: EventLoop

    # ------------------------------------------------------------------- serving

    def run(self) -> None:
        """Serve until told to stop, then finish what is under way."""
        self._woken = Event()
        hub = gevent.get_hub()
        self.options = Options.from_config(self.cfg)
        self.counters = Counters()
        self.loop = loop = EventLoop(hub, self.options, self.cfg.worker_connections, self.counters)
        self._pool = GreenletPool(hub, self._lost_exception)
        limits, self._memory = Limits(self.cfg), Memory()
        self.app_callable = self.wsgi
        RequestHandler(self, loop, self._pool, limits)
        self._warned: dict[str, float] = {}
        loop.warn = self._warn
        self._set_hooks()
        base = base_environ(self.cfg)
        base["wsgi.multithread"] = True
        base["SCRIPT_NAME"] = os.environ.get("SCRIPT_NAME", "")
        tls = ssl_context(self.cfg) if self.cfg.is_ssl else None
        for sock in self.sockets:
            listener = Listener(sock, self.cfg, base, limits, self._memory, tls)
            listener.set_tcp_keepalive(self.options.tcp_keepalive)
            loop.listen(listener)
        wakeup = hub.loop.io(self.PIPE[0], 1)
        wakeup.start(self._signalled)
        beats = 0
        while self.alive:
            self.notify()
            self._woken.wait(HEARTBEAT)
            self._woken.clear()
            beats += 1
            if beats % _AGE_EVERY == 0:
                self._memory.age()
            if beats % _TRIM_EVERY == 0:
                self._pool.trim()
        self._drain()
        wakeup.stop()

    def _signalled(self) -> None:
        """gunicorn's handlers have run, or will; look at ``alive`` now and not in a second."""
        try:
            while os.read(self.PIPE[0], 512):
                pass
        except OSError:
            pass
        self._woken.set()

    def recycle(self) -> None:
        """``max_requests`` is reached: stop after what is under way."""
        self.log.info("Autorestarting worker after current request.")
        self.alive = False
        self._woken.set()

    def _set_hooks(self) -> None:
        opened, closed = self.options.connection_opened, self.options.connection_closed
        if opened is not None:
            self.loop.on_opened = lambda conn: self._pool.later(self._call_hook, opened, conn)
        if closed is not None:
            self.loop.on_closed = lambda conn, reason: self._pool.later(self._call_hook, closed, conn, reason.value)

    def _call_hook(self, hook: Any, *args: Any) -> None:
        try:
            hook(self, *args)
        except Exception:
            self.log.exception("Exception in %s hook", getattr(hook, "__name__", "connection"))

    def _warn(self, message: str) -> None:
        """Log a shortage, at most once a minute. From the hub, where logging could block."""
        now = self.loop.clock()
        if now - self._warned.get(message, -_WARN_EVERY) >= _WARN_EVERY:
            self._warned[message] = now
            self._pool.later(self.log.warning, message)

    def _lost_exception(self, error: BaseException) -> None:
        self.log.error("Exception in worker's own code", exc_info=error)

    def handle_usr1(self, sig: int, frame: Any) -> None:
        """Reopen the log files; ``wsgi.errors`` in remembered heads writes to the old ones."""
        super().handle_usr1(sig, frame)
        self._memory.clear()

    # ------------------------------------------------------------------- stopping

    def _drain(self) -> None:
        """Stop accepting, answer what still comes, and leave when nothing is under way."""
        loop, clock = self.loop, self.loop.clock
        loop.terms.draining = True
        loop.stop_accepting()
        began = clock()
        give_up = began + self.cfg.graceful_timeout
        end_idle_at = min(began + self.options.drain_timeout, give_up)
        while loop.open and clock() < give_up:
            if clock() >= end_idle_at:
                for conn in list(loop.connections()):
                    if conn.state in (NEW, IDLE):
                        loop.end_idle(conn, Reason.SHUTDOWN)
            self.notify()
            gevent.sleep(0.05)
        if loop.open:
            self.log.warning("Worker graceful timeout (pid:%s)", self.pid)
        loop.shut_down()

    # --------------------------------------------------------------------- HTTP/2

    def handle_http2_request(self, listener_name: Any, req: Any, sock: Any, addr: Any, h2_conn: Any) -> None:
        """Serve one stream by gunicorn's code, counting it."""
        conn: Connection = sock.conn
        conn.requests += 1
        self.counters.requests += 1
        if conn.requests > 1:
            self.counters.reused += 1
        super().handle_http2_request(listener_name, req, sock, addr, h2_conn)

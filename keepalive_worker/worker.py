"""The gunicorn worker: ``gunicorn -k keepalive_worker app:app``.

Glue between gunicorn, which starts, signals and watches over worker processes, and the parts of
this package. It is gunicorn's gevent worker with another way of serving connections; HTTP/2 is
still spoken by gunicorn's own code, on a greenlet.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
from collections.abc import Callable
from typing import Any, ClassVar

import gevent
from gevent.event import Event
from gevent.hub import Hub
from greenlet import GreenletExit, getcurrent
from gunicorn.http.wsgi import base_environ
from gunicorn.sock import ssl_context
from gunicorn.workers.base import Worker
from gunicorn.workers.ggevent import GeventWorker

from keepalive_worker import http2, notices, poller
from keepalive_worker.board import Board, Slot
from keepalive_worker.connection import Connection, Reason
from keepalive_worker.counters import Counters
from keepalive_worker.draining import Drain, RecyclingTurn
from keepalive_worker.error_stream import ErrorStream
from keepalive_worker.greenlets import GreenletPool
from keepalive_worker.handler import RequestHandler
from keepalive_worker.heads import Limits, Memory
from keepalive_worker.listeners import Listener
from keepalive_worker.loop import EventLoop
from keepalive_worker.parser_choice import avoid_old_c_parser
from keepalive_worker.reporter import Bell, Reporter
from keepalive_worker.roster import DRAINING, FREE, RUNNING, Balance, Place, Roster
from keepalive_worker.settings import Options, keepalive_is_given, unregistered

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

    #: Made in the master with its first worker, and inherited by all workers.
    _roster: ClassVar[Roster | None] = None
    _recycling_turn: ClassVar[RecyclingTurn | None] = None
    #: What the master has said of its configuration, so that it does not say it for each worker.
    _said: ClassVar[set[str]] = set()
    _board: ClassVar[Board | None] = None
    _bell: ClassVar[Bell | None] = None

    #: Not None in a child that the application has forked: the greenlet which did it.
    _forker: Any = None
    #: What this worker tells of itself and of the others, once it serves.
    statistics: Reporter | None = None
    loop: EventLoop
    counters: Counters
    options: Options

    # ------------------------------------------------------------------- in the master

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Called by the master, just before it forks."""
        cls = type(self)
        super().__init__(*args, **kwargs)
        if cls._roster is None:
            cls._roster = Roster(self.cfg.workers)
            cls._recycling_turn = RecyclingTurn(cls._roster)
        self._place: Place = cls._roster.claim(self.age)
        self._slot = self._claim_slot()
        self._say_what_holds()
        self._quitting = False
        self._recycling = False

    def _claim_slot(self) -> tuple[Board, Slot] | None:
        """Room for the worker's statistics; a server that has none serves all the same."""
        cls = type(self)
        try:
            if cls._board is None:
                cls._bell = Bell()
                cls._board = Board()
            return cls._board, cls._board.claim(self.cfg.worker_connections, self)
        except OSError as error:
            self.log.warning(
                "No memory to share statistics in (%s): a worker that answers at --stats-path will know its own"
                " connections only. Free some memory and reload.",
                error,
            )
            return None

    def _say_what_holds(self) -> None:
        """Log the deadlines in force, and what is likely to be a mistake; again only when it has changed."""
        cfg, log = self.cfg, self.log
        options = Options.from_config(cfg)
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        for text, say in (
            (notices.deadlines(options), log.info),
            (notices.default_keepalive(options, keepalive_is_given(cfg)), log.warning),
            (
                notices.too_few_descriptors(
                    cfg.worker_connections, None if limit == resource.RLIM_INFINITY else limit
                ),
                log.warning,
            ),
            (avoid_old_c_parser(cfg), log.warning),
        ):
            if text is not None and text not in self._said:
                self._said.add(text)
                say("%s", text)

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Refuse to start with what would fail in every worker. gunicorn calls this in the master.

        :raises RuntimeError: for a value that names no poller. gunicorn shows the message of a RuntimeError,
            and of every other error a traceback
        """
        try:
            poller.backend_name()
        except ValueError as error:
            raise RuntimeError(str(error)) from None
        unknown = unregistered(cfg)
        if unknown:
            log.warning(
                "The start-up hook of keepalive-worker is off, so gunicorn does not know these settings and"
                " their defaults hold: %s. It runs where the package is installed by pip into the environment"
                " (not with --target), Python is started without -S, and KEEPALIVE_WORKER_NO_HOOK is not set.",
                ", ".join(unknown),
            )

    @property
    def pid(self) -> Any:
        """The process id. Both the master and the worker set it right after the fork."""
        return self._pid

    @pid.setter
    def pid(self, pid: Any) -> None:
        self._pid = pid
        if isinstance(pid, int):
            self._place.pid = pid
            if pid == os.getpid():
                # The first thing that happens in the new process. Until gunicorn sets its signal
                # handlers up, the master's are in force here and would swallow these, which the
                # master sends once; a reload or a stop would then wait for this worker in vain.
                signal.signal(signal.SIGTERM, self.handle_exit)
                signal.signal(signal.SIGQUIT, self.handle_quit)
                signal.signal(signal.SIGINT, self.handle_quit)

    # ------------------------------------------------------------------- serving

    def run(self) -> None:
        """Serve until told to stop, then finish what is under way."""
        assert self._roster is not None
        self._woken = Event()
        self._warned: dict[str, float] = {}
        hub = gevent.get_hub()
        self.options = Options.from_config(self.cfg)
        self.counters = Counters()
        self.loop = loop = EventLoop(hub, self.options, self.cfg.worker_connections, self.counters)
        loop.warn = self._warn
        loop.balance = balance = Balance(self._roster, self._place)
        self._pool = pool = GreenletPool(hub, self._lost_exception)
        self._set_hooks()
        self.statistics = statistics = Reporter(loop, self._slot, self._bell or Bell())
        self.app_callable: Any = self.wsgi
        self._wrap_app()
        self._listen()
        drain = Drain(loop, pool, self._roster, self._place, self.notify)
        self._wakeup = wakeup = hub.loop.io(self.PIPE[0], 1)
        wakeup.start(self._signalled)
        self._keep_what_is_loaded()
        statistics.begin()
        # From here on others may stop, as this worker is there.
        self._place.state = RUNNING
        os.register_at_fork(after_in_child=self._forked)
        beats = 0
        self.notify()
        while self.alive:
            balance.refresh()
            self._woken.wait(HEARTBEAT)
            self._woken.clear()
            self.notify()
            beats += 1
            if beats % _AGE_EVERY == 0:
                self._memory.age()
            if beats % _TRIM_EVERY == 0:
                pool.trim()
        self._place.state = DRAINING
        if self._quitting:
            self.cfg.worker_int(self)
            drain.leave()
        elif not drain.run(self.cfg.graceful_timeout, self._recycling):
            self.log.warning(
                "Worker graceful timeout (pid:%s): requests that were not done within --graceful-timeout %s were cut",
                self.pid,
                self.cfg.graceful_timeout,
            )
        self._place.state = FREE
        statistics.end()
        wakeup.stop()

    def _keep_what_is_loaded(self) -> None:
        """Spare the garbage collector what the application has loaded, which stays for as long as the worker.

        Otherwise a full collection goes over all of it again and again, in the middle of a request: a
        tenth of a second in a large application, and 3 % of the CPU in a small one made with Flask.
        """
        if not self.cfg.preload_app:
            # What is preloaded shares its memory with the master's until somebody writes to it, as this does.
            gc.collect()
        gc.freeze()

    def _listen(self) -> None:
        """Accept from all of gunicorn's sockets."""
        cfg = self.cfg
        limits, self._memory = Limits(cfg), Memory()
        RequestHandler(self, self.loop, self._pool, limits, self._memory)
        base = base_environ(cfg)
        base["wsgi.errors"] = ErrorStream(cfg)
        base["wsgi.multithread"] = True
        base["keepalive.statistics"] = self.statistics
        base["SCRIPT_NAME"] = os.environ.get("SCRIPT_NAME", "")
        tls = ssl_context(cfg) if cfg.is_ssl else None
        for sock in self.sockets:
            listener = Listener(sock, cfg, base, limits, self._memory, tls)
            listener.set_tcp_keepalive(self.options.tcp_keepalive)
            self.loop.listen(listener)

    def _wrap_app(self) -> None:
        """Put the middleware around the application where ``stats_path`` asks for it."""
        options, app = self.options, self.app_callable
        if options.stats_path is not None:
            from keepalive_worker.middleware import KeepAliveMiddleware

            app = KeepAliveMiddleware(
                app, stats_path=options.stats_path, allow=options.stats_allow, token=options.stats_token
            )

        def app_for_http2(environ: dict[str, Any], start_response: Any) -> Any:
            conn = environ["keepalive.connection"] = environ["gunicorn.socket"].conn
            environ["keepalive.statistics"] = self.statistics
            environ["keepalive.requests"] = conn.requests
            environ["keepalive.idle"] = f"{conn.idle:.3f}"
            return app(environ, start_response)

        self.app_callable = app
        #: gunicorn's HTTP/2 code, which makes environ itself, calls this.
        self.wsgi = app_for_http2

    def _set_hooks(self) -> None:
        opened, closed, later = self.options.connection_opened, self.options.connection_closed, self._pool.later
        if opened is not None:
            self.loop.on_opened = lambda conn: later(self._call_hook, "connection_opened", opened, conn)
        if closed is not None:
            self.loop.on_closed = lambda conn, reason: later(
                self._call_hook, "connection_closed", closed, conn, reason.value
            )

    def _call_hook(self, name: str, hook: Callable[..., Any], *args: Any) -> None:
        try:
            hook(self, *args)
        except Exception:
            self.log.exception("Exception in %s hook", name)

    def _warn(self, message: str) -> None:
        """Log a shortage, at most once a minute. From the hub, where logging could block."""
        now = self.loop.clock()
        if now - self._warned.get(message, -_WARN_EVERY) >= _WARN_EVERY:
            self._warned[message] = now
            self._pool.later(self.log.warning, message)

    def _lost_exception(self, error: BaseException, args: tuple[Any, ...]) -> None:
        """What nobody expected: a bug, a logger that fails, or what somebody threw into the greenlet."""
        if not isinstance(error, GreenletExit):
            self.log.error("Exception in the worker's own code", exc_info=error)
        for conn in args[:1]:
            if isinstance(conn, Connection):
                self.loop.close(conn, Reason.ERROR, abort=True)

    # ------------------------------------------------------------------- in a fork

    def _forked(self) -> None:
        """In a child that the application has forked (multiprocessing, say), before it goes on.

        It has all greenlets of this process, and they go on as soon as it waits for something. None of
        them may do the worker's work there a second time.
        """
        self._forker = getcurrent()
        self.alive = True
        self.loop.forget_all()
        self._wakeup.stop()
        if self.statistics is not None:
            self.statistics.forget_all()

    def _outlast(self, forker: Any) -> None:
        """In a child, on what was the worker's main greenlet: end when its work is done, or by SIGTERM."""
        while self.alive and forker is not getcurrent() and not self._pool.has_done(forker):
            gevent.sleep(HEARTBEAT)
        os._exit(0)

    # ------------------------------------------------------------------- stopping

    def recycle(self) -> None:
        """``max_requests`` is reached: stop after what is under way, if no other worker stops or is being replaced."""
        assert self._recycling_turn is not None
        if self._recycling_turn.take(self.loop.clock()):
            self.log.info("Autorestarting worker after current request.")
            self.alive = False
            self._recycling = True
            self._woken.set()
        else:
            self.max_requests = self.nr + 1 + max(1, self.cfg.max_requests // 10)

    def notify(self) -> None:
        """Tell the master that this worker is alive; stop when there is no master any more."""
        if self._forker is not None:
            self._outlast(self._forker)
        Worker.notify(self)
        if self.statistics is not None:
            self.statistics.beat()
        if self.alive and self.ppid != os.getppid():
            self.log.info("Parent changed, shutting down: %s", self)
            self.alive = False

    def _signalled(self) -> None:
        """gunicorn's handlers have run, or will; look at ``alive`` now and not in a second."""
        try:
            while os.read(self.PIPE[0], 512):
                pass
        except OSError:
            pass
        self._woken.set()

    def handle_quit(self, sig: int, frame: Any) -> None:
        """Stop at once."""
        if not self.booted:
            if isinstance(getcurrent(), Hub):
                super().handle_quit(sig, frame)  # Which does it on a greenlet, as the hub may not wait.
            else:
                # Here and now, for an application that is being loaded may let no other greenlet run.
                Worker.handle_quit(self, sig, frame)
            return
        self._quitting = True
        self.alive = False

    # --------------------------------------------------------------------- HTTP/2

    def handle_http2(
        self, listener: Any, client: Any, addr: Any, preface: bytes = b"", upgrade: Any = None
    ) -> None:
        """Serve an HTTP/2 connection. *listener* may be closed by now, and know its name no more."""
        client.conn.protocol = "HTTP/2"
        http2.serve(self, client.conn.listener.name, client, addr, preface, upgrade)

    def _serve_http2_stream(self, listener_name: Any, req: Any, sock: Any, addr: Any, h2_conn: Any) -> None:
        """Serve one stream by gunicorn's code, counting it."""
        conn: Connection = sock.conn
        conn.started = self.loop.clock()
        self.counters.count_request(conn)
        if self.nr + 1 >= self.max_requests and self.alive:
            self.recycle()  # Before gunicorn's code finds the same, which knows of no turns.
        sock.between_requests = False
        sock.begin_stream()
        try:
            super()._serve_http2_stream(listener_name, req, sock, addr, h2_conn)
        except (Exception, GreenletExit):
            raise
        except BaseException:
            # A gevent.Timeout, sys.exit(): as in HTTP/1.1 they cost the request; its stream was reset.
            self.log.exception("Error handling HTTP/2 request")
        finally:
            sock.between_requests = True
            conn.since = self.loop.clock()

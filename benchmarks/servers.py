"""How each server is started. A new peer is one more :class:`Peer` in :data:`PEERS`."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.memory import descendants

APPS = Path(__file__).resolve().parent / "apps"

#: The peer that ratios refer to.
BASELINE = "gunicorn gevent"
#: The one that is being measured.
OURS = "keepalive_worker"

#: Seconds for a server to answer its first request.
_START_TIMEOUT = 20.0
#: Seconds for a server to end by itself; a benchmark has nothing to lose by killing it.
_STOP_TIMEOUT = 1.0

#: Below the ports that the kernel gives to clients, and a new one for each server, so that what a server
#: leaves in TIME_WAIT is not the next one's.
_PORTS = itertools.cycle(range(20_000, 30_000))


@dataclass(frozen=True)
class Setup:
    """What a case wants of a server; each peer puts it into its own words.

    :param app: module in benchmarks/apps; the application in it is called ``app``
    :param keep_alive: seconds that an idle connection stays
    :param connections: most connections at a time
    :param deadlines: settings of this worker that its peers have no word for, as flags
    """

    app: str = "hello"
    keep_alive: int = 75
    connections: int = 20_000
    deadlines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Peer:
    """A server to be measured.

    :param name: as in the report, and on the command line
    :param modules: what it imports; where that fails the peer is left out
    :param install: how to get it
    :param command: the command line for a set-up and a port on 127.0.0.1, with one worker
    """

    name: str
    modules: tuple[str, ...]
    install: str
    command: Callable[[Setup, int], list[str]]


def _gunicorn(worker: str, *options: str) -> Callable[[Setup, int], list[str]]:
    def command(setup: Setup, port: int) -> list[str]:
        return [
            *(sys.executable, "-m", "gunicorn", f"{setup.app}:app"),
            *("--bind", f"127.0.0.1:{port}"),
            *("--worker-class", worker),
            *("--workers", "1"),
            *("--keep-alive", str(setup.keep_alive)),
            *("--worker-connections", str(setup.connections)),
            *("--log-level", "warning"),
            "--no-control-socket",
            *options,
        ]

    return command


def _ours(setup: Setup, port: int) -> list[str]:
    return [*_gunicorn("keepalive_worker.KeepaliveWorker")(setup, port), *setup.deadlines]


PEERS = (
    Peer(BASELINE, ("gunicorn.workers.ggevent",), "pip install 'gunicorn[gevent]'", _gunicorn("gevent")),
    Peer(
        "gunicorn gthread",
        ("gunicorn.workers.gthread",),
        "pip install gunicorn",
        _gunicorn("gthread", "--threads", "4"),
    ),
    Peer(OURS, ("keepalive_worker.worker",), "pip install . in the checkout", _ours),
)


def cannot_import(modules: Iterable[str]) -> str | None:
    """Why a server could not import *modules*, in a line; None where it can.

    In a process of its own and from the folder of the applications, like the servers: what counts is
    what is installed, not what lies in the checkout.
    """
    for module in modules:
        command = [sys.executable, "-c", f"import {module}"]
        result = subprocess.run(command, cwd=APPS, capture_output=True, text=True, check=False)
        if result.returncode:
            lines = result.stderr.splitlines() or [f"cannot import {module}"]
            return lines[-1]
    return None


class StartError(Exception):
    """A server has not come up; the text ends with its log."""


class Server:
    """One run of a peer.

    :param peer: which
    :param setup: how
    :param cpu: the core to run it on, or None for any
    """

    def __init__(self, peer: Peer, setup: Setup, cpu: int | None) -> None:
        self.peer = peer
        self.setup = setup
        self.port = _free_port()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        pinned = [] if cpu is None else ["taskset", "--cpu-list", str(cpu)]
        self._process = subprocess.Popen(
            pinned + peer.command(setup, self.port),
            cwd=APPS,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._answers():
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                what = "ended at once" if ended else f"did not answer within {_START_TIMEOUT:.0f} s"
                raise StartError(f"{self.peer.name} {what}:\n{self.log_tail()}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return client.recv(12).startswith(b"HTTP/1.1 200")
        return False

    @property
    def pids(self) -> list[int]:
        """All its processes, a master included."""
        return descendants(self._process.pid)

    def log_tail(self, lines: int = 15) -> str:
        """The end of what it has printed."""
        self._log.seek(0)
        return "\n".join(self._log.read().decode(errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        """End it, at once where it does not end soon: waiting for idle clients is not measured here."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_TIMEOUT)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()


@contextlib.contextmanager
def running(peer: Peer, setup: Setup, cpu: int | None) -> Iterator[Server]:
    """A server that runs as long as the block.

    :raises StartError: it has not come up
    """
    server = Server(peer, setup, cpu)
    try:
        yield server
    finally:
        server.stop()


def _free_port() -> int:
    for port in _PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("a cycle has no end")

"""A running server: started for a set-up, asked until it answers, ended."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import tls
from benchmarks.memory import descendants

APPS = Path(__file__).resolve().parent / "apps"

#: What applications send and servers serve: files of these sizes in the folder of each run.
FILES = {"medium": 100_000, "large": 10_000_000}

#: Seconds for a server to answer its first request.
_START_TIMEOUT = 20.0
#: Seconds for a server to end by itself; a benchmark has nothing to lose by killing it.
_STOP_TIMEOUT = 1.0
#: Requests before anything is measured: Python's interpreter has then seen the code that it is to run fast.
_WARM_UP = 50

#: Below the ports that the kernel gives to clients, and a new one for each server, so that what a server
#: leaves in TIME_WAIT is not the next one's.
_PORTS = itertools.cycle(range(20_000, 30_000))


@dataclass(frozen=True)
class Setup:
    """What a case wants of a server; each peer puts it into its own words.

    :param app: module in benchmarks/apps; the application in it is called ``app``
    :param tls: HTTP over TLS, with :func:`benchmarks.tls.certificate`
    :param workers: processes that serve
    :param threads: for servers that have a thread for each request
    :param keep_alive: seconds that an idle connection stays; 0: none does
    :param connections: most connections at a time, in each worker
    :param deadlines: settings of this worker that its peers have no word for, as flags
    """

    app: str = "hello"
    tls: bool = False
    workers: int = 1
    threads: int = 4
    keep_alive: int = 75
    connections: int = 20_000
    deadlines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Peer:
    """A server to be measured.

    :param name: as in the report, and on the command line
    :param missing: why it cannot be run here, and how to get it; None where it can
    :param version: of the server
    :param command: the command line for a set-up, a port on 127.0.0.1 and a folder with :data:`FILES`
    :param lacks: what it does not have, in words of :func:`wants`
    """

    name: str
    missing: Callable[[], str | None]
    version: Callable[[], str]
    command: Callable[[Setup, int, Path], list[str]]
    lacks: frozenset[str] = frozenset()


def wants(setup: Setup) -> set[str]:
    """What not every server has."""
    wanted = set()
    if setup.tls:
        wanted.add("TLS")
    if setup.workers > 1:
        wanted.add("several workers")
    if setup.app not in ("hello", "bodies"):
        wanted.add("applications")
    return wanted


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
        self.cpu = cpu
        self.port = _free_port()
        self._temporary = tempfile.TemporaryDirectory(prefix="benchmark-")
        self.folder = Path(self._temporary.name)
        self.folder.chmod(0o755)  # for workers that are not root any more
        for name, size in FILES.items():
            (self.folder / name).write_bytes(bytes(size))
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        pinned = [] if cpu is None else ["taskset", "--cpu-list", str(cpu)]
        self._process = subprocess.Popen(
            pinned + peer.command(setup, self.port, self.folder),
            cwd=APPS,
            env={**os.environ, "PYTHONPATH": str(APPS), "BENCHMARK_FOLDER": str(self.folder)},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            self._wait_until_ready()
            for _ in range(_WARM_UP):
                self._answers()
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
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            client: socket.socket = stack.enter_context(socket.create_connection(("127.0.0.1", self.port), 5))
            if self.setup.tls:
                client = stack.enter_context(tls.client_context().wrap_socket(client))
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return client.recv(12).startswith(b"HTTP/1.1 200")
        return False

    @property
    def url(self) -> str:
        """Without a slash at its end."""
        return f"{'https' if self.setup.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def pids(self) -> list[int]:
        """All its processes, a master included."""
        return descendants(self._process.pid)

    def log_tail(self, lines: int = 15) -> str:
        """The end of what it has printed."""
        self._log.seek(0)
        return "\n".join(self._log.read().decode(errors="replace").splitlines()[-lines:])

    def end(self, patience: float) -> float:
        """Ask it to end with SIGTERM; seconds until it has, infinite when it takes longer than *patience*."""
        began = time.monotonic()
        self._process.terminate()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            return float("inf")
        return time.monotonic() - began

    def stop(self) -> None:
        """End it, at once where it does not end soon: waiting for idle clients is not measured here."""
        self.end(_STOP_TIMEOUT)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()
        self._temporary.cleanup()


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

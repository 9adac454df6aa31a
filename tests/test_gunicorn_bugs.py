"""gunicorn's own bugs that docs/architecture.md lists: they are there, and how its worker and ours behave.

When one of these fails because gunicorn has mended the bug, its line in the documentation goes, and what was done about
it here may go as well.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from harness import APPS, Certificates, NoAnswerError, Server, process_exists, request, stop_all, wait_until
from test_http2 import Http2Client

#: Waits in the new worker, before gunicorn has set its signal handlers, until there is a file "go".
WAIT_AFTER_FORK = """
import os, time

def post_fork(server, worker):
    os.rename(_write("{dir}/new", str(os.getpid())), "{dir}/forked")
    while not os.path.exists("{dir}/go"):
        time.sleep(0.01)

def _write(path, text):
    with open(path, "w") as file:
        file.write(text)
    return path
"""
#: The second worker is forked when there is a file "go".
WAIT_BEFORE_SECOND = """
import os, time

def pre_fork(server, worker):
    while worker.age > 1 and not os.path.exists("{dir}/go"):
        time.sleep(0.01)
"""

WORKERS = ("gevent", "keepalive_worker")


@pytest.fixture
def run() -> Iterator[Callable[..., Server]]:
    """Starts servers with any worker."""
    servers: list[Server] = []

    def start(*args: Any, **keywords: Any) -> Server:
        servers.append(Server(*args, **keywords))
        return servers[-1]

    yield start
    stop_all(servers)


@pytest.mark.parametrize("worker", WORKERS)
def test_a_500_in_answer_to_head_has_a_body(run: Callable[..., Server], worker: str) -> None:
    client = run("gallery:app", worker=worker).connect()
    client.send(request("/failures/at_once?kind=ValueError", method="HEAD"))
    assert b"\r\n\r\n<html>" in client.read_until_closed()


@pytest.mark.parametrize("worker", WORKERS)
def test_an_upgrade_to_http_2_and_expect(run: Callable[..., Server], worker: str) -> None:
    """A client that waits for 100 waits in vain (RFC 9110 10.1.1); one that asks for no upgrade gets it."""
    server = run("gallery:app", "--http-protocols", "h2,h1", "--http2-cleartext", "both", worker=worker)
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
    expect = ("Expect: 100-continue", "Content-Length: 2")
    waits = server.connect()
    waits.send(request("/echo", *upgrade, *expect, method="POST"))
    client = server.connect()
    client.send(request("/echo", *expect, method="POST"))
    assert client.read_head().status == 100
    with pytest.raises(NoAnswerError):
        waits.read_head(within=0.5)


@pytest.mark.parametrize("worker", WORKERS)
def test_a_stop_and_goaway(run: Callable[..., Server], certificates: Certificates, worker: str) -> None:
    """A busy connection is to be told by GOAWAY (RFC 9113 6.8)."""
    server = run("steady:app", "--http-protocols", "h2,h1", worker=worker, certificates=certificates)
    client = Http2Client(server.connect(tls=certificates.client_context("h2")))
    stream = client.ask("/stream?seconds=0.5")
    client.flush()
    while not client.bodies.get(stream):
        client.receive()
    server.send_signal(signal.SIGTERM)
    client.read_to_the_end()
    assert client.bodies[stream] == b"begun\ndone\n"
    assert (client.goaway is None) == (worker == "gevent")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGINT])
@pytest.mark.parametrize("worker", WORKERS)
def test_a_signal_right_after_the_fork(run: Callable[..., Server], worker: str, number: signal.Signals) -> None:
    server = run("steady:app", worker=worker, config=WAIT_AFTER_FORK)
    pid = int(wait_until(lambda: server.file("forked"), "the worker"))
    os.kill(pid, number)
    (server.directory / "go").touch()
    if worker == "gevent":
        with server.connect() as client:
            assert client.get("/pid").body.split()[0] == b"%d" % pid
    else:
        wait_until(lambda: not process_exists(pid), "its end")


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="no SO_REUSEPORT on this system")
@pytest.mark.parametrize("worker", WORKERS)
def test_reuse_port_with_one_worker_and_max_requests(run: Callable[..., Server], worker: str) -> None:
    """Connects are refused from one worker's end to the beginning of the next."""
    with closing(socket.socket()) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        options = ("--reuse-port", "--max-requests", "1", "--graceful-timeout", "1")
        binds = [f"127.0.0.1:{holder.getsockname()[1]}"]
        server = run("steady:app", *options, worker=worker, binds=binds, config=WAIT_BEFORE_SECOND)
        wait_until(lambda: not _is_refused(server), "the first worker")
        server.get("/")
        wait_until(lambda: _is_refused(server), "a refused connection")
        (server.directory / "go").touch()
        wait_until(lambda: not _is_refused(server), "the next worker")


def _is_refused(server: Server) -> bool:
    try:
        with closing(socket.create_connection(server.address)):
            return False
    except ConnectionRefusedError:
        return True


@pytest.mark.parametrize("worker", WORKERS)
def test_usr2_for_python_m_gunicorn(tmp_path: Path, worker: str) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-m", "gunicorn", "-k", worker, "--no-control-socket", "--graceful-timeout", "1"]
    options = ["--pid", "pid", "--chdir", str(APPS), "--bind", "127.0.0.1:0"]
    with log.open("wb") as file:
        master = subprocess.Popen([*command, *options, "steady:app"], cwd=tmp_path, stderr=file)
    try:
        wait_until(lambda: "Booting worker" in log.read_text(), "the server")
        master.send_signal(signal.SIGUSR2)
        wait_until(lambda: "cannot import name 'client' from 'http'" in log.read_text(), "the new master's error")
    finally:
        master.terminate()
        master.wait()

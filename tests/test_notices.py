"""What a user reads in the log and on the terminal: what happened, and what to do."""

from __future__ import annotations

import re
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness import APPS, IS_OURS, Server
from interpreter import gunicorn

from keepalive_worker import notices
from keepalive_worker.settings import Options

if TYPE_CHECKING:
    from conftest import Serve

pytestmark = pytest.mark.skipif(not IS_OURS, reason="other workers do not say these things")

APP = "steady:app"
#: How a line of the log begins.
LINE = r"^\[[^]]*\] \[\d+\] \[{level}\] "


@pytest.fixture(scope="module")
def backend() -> None:
    """The default one: nothing here depends on it."""


def lines(server: Server, level: str, words: str) -> list[str]:
    """The lines of a level that have *words* in them.

    The tests may run beside an old gunicorn_h1c; that it is said is in test_parser_choice.py.
    """
    found = re.findall(LINE.format(level=level) + f"(.*{words}.*)$", server.log(), re.MULTILINE)
    return [line for line in found if not line.startswith("gunicorn_h1c ")]


@contextmanager
def open_files(limit: int) -> Iterator[None]:
    """Processes started meanwhile may have that many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- the deadlines in force -------------------------------------------------------------------


def test_the_line_has_every_deadline() -> None:
    assert notices.deadlines(Options(keepalive=75, header_timeout=1.5)) == (
        "Deadlines: idle 75 s + 1 s grace, request head 1.5 s, request body 60 s, sending 60 s,"
        " data rate at least 240 bytes/s, lifetime 3600 s, requests no limit, TCP keepalive after 60 s, drain 2 s"
    )


def test_the_line_says_what_is_off() -> None:
    off = Options(0, 0, 9, 0, 0, 0, 0, 0, 0, drain_timeout=0)
    assert notices.deadlines(off) == (
        "Deadlines: no persistent connections, request head no limit, request body no limit, sending no limit,"
        " data rate no limit, lifetime no limit, requests 9, TCP keepalive after never, drain 0 s"
    )


def test_the_deadlines_are_logged_once(serve: Serve) -> None:
    server = serve(APP, "--workers", "3", "--header-timeout", "7", fresh=True)
    server.wait_for_workers(3)
    (line,) = lines(server, "INFO", "Deadlines: ")
    assert "idle 20 s + 1 s grace, request head 7 s," in line
    assert lines(server, "WARNING", "") == []


def test_a_reload_tells_new_deadlines(serve: Serve) -> None:
    server = serve(APP, config="header_timeout = 7\n", fresh=True)
    (server.directory / "gunicorn.conf.py").write_text("header_timeout = 8\n")
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("request head 8 s")


# --- --keep-alive that nobody chose -----------------------------------------------------------


def test_the_default_keepalive_is_warned_of_once(serve: Serve) -> None:
    server = without_keepalive(serve, "--workers", "3")
    server.wait_for_workers(3)
    (line,) = lines(server, "WARNING", "--keep-alive")
    assert line.startswith("--keep-alive is not set: it is 2 s, so clients lose")
    assert "--keep-alive 75" in line
    assert line.endswith("--keep-alive 2 says that you mean 2 s.")


def without_keepalive(serve: Serve, *options: str, **keywords: object) -> Server:
    """A server whose command line has no ``--keep-alive``, which the harness would give it."""
    return serve(APP, *options, keepalive=None, fresh=True, **keywords)


@pytest.mark.parametrize("way", ["command line", "file", "environment"])
def test_two_seconds_by_choice_are_not_warned_of(serve: Serve, way: str) -> None:
    if way == "command line":
        server = without_keepalive(serve, "--keep-alive", "2")
    elif way == "file":
        server = without_keepalive(serve, config="keepalive = 2\n")
    else:
        server = without_keepalive(serve, env={"GUNICORN_CMD_ARGS": "--keep-alive 2"})
    assert "idle 2 s" in lines(server, "INFO", "Deadlines: ")[0]
    assert lines(server, "WARNING", "") == []


def test_without_the_hook_it_says_what_it_knows(serve: Serve) -> None:
    server = without_keepalive(serve, "--keep-alive", "2", env={"KEEPALIVE_WORKER_NO_HOOK": "1"})
    (line,) = lines(server, "WARNING", "--keep-alive is")
    assert line.startswith("--keep-alive is 2 s, as it is by default, so")
    assert "you mean" not in line


# --- too few descriptors ----------------------------------------------------------------------


def test_a_low_ulimit_is_warned_of_once(serve: Serve) -> None:
    with open_files(100):
        server = serve(APP, "--workers", "2", fresh=True)
    server.wait_for_workers(2)
    (line,) = lines(server, "WARNING", "")
    assert line.startswith("ulimit -n is 100, too low for --worker-connections 1000: a worker needs 1020 open files")
    assert "LimitNOFILE=" in line


def test_the_usual_ulimit_suits_the_default(serve: Serve) -> None:
    with open_files(1024):
        server = serve(APP, fresh=True)
    assert lines(server, "WARNING", "") == []


def test_what_is_said_to_be_enough_is(serve: Serve) -> None:
    with open_files(40 + notices.OTHER_DESCRIPTORS):
        server = serve(APP, "--worker-connections", "40", "--keep-alive", "300", fresh=True)
    assert lines(server, "WARNING", "") == []
    clients = [server.connect() for _ in range(40)]
    for client in clients:
        client.get()
    for client in clients:
        client.get()
    assert lines(server, "WARNING", "") == []


# --- what stops a server from starting --------------------------------------------------------


def test_a_bad_setting_is_named_with_what_it_takes(tmp_path: Path) -> None:
    done = gunicorn("-k", "keepalive_worker", "--header-timeout", "soon", "app:app", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "Error: header_timeout (--header-timeout) must be a number of seconds from 0 to 31536000, fractions allowed,"
        " not 'soon'"
    )


def test_a_bad_backend_is_no_traceback(tmp_path: Path) -> None:
    command = ("-k", "keepalive_worker", "--bind", "127.0.0.1:0", "app:app")
    done = gunicorn(*command, cwd=tmp_path, KEEPALIVE_WORKER_BACKEND="fast")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    error = "Error: KEEPALIVE_WORKER_BACKEND=fast: the accepted values are epoll and portable"
    assert done.stderr.splitlines()[-2] == error


def test_a_port_in_use_is_told_by_gunicorn(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        # gunicorn tries five times, a second apart.
        impatient = "import gunicorn.sock\ngunicorn.sock.time.sleep = lambda _: None\n"
        (tmp_path / "gunicorn.conf.py").write_text(impatient)
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        done = gunicorn("-k", "keepalive_worker", "--bind", bind, "app:app", cwd=tmp_path)
    assert done.returncode == 1
    assert "Connection in use" in done.stderr
    assert "Traceback" not in done.stderr


# --- the hook that is off ---------------------------------------------------------------------


def test_a_hook_that_is_off_is_told_with_the_ways_to_turn_it_on(serve: Serve) -> None:
    server = serve(APP, env={"KEEPALIVE_WORKER_NO_HOOK": "1"}, fresh=True)
    (line,) = lines(server, "WARNING", "hook")
    assert "their defaults hold: keepalive_grace, " in line
    assert "KEEPALIVE_WORKER_NO_HOOK is not set" in line


# --- the endpoint -----------------------------------------------------------------------------


def test_a_refusal_tells_who_is_let_in(serve: Serve) -> None:
    server = serve(APP, "--stats-path", "/stats", "--stats-allow", "192.0.2.1", chdir=APPS)
    response = server.get("/stats")
    assert response.status == 403
    assert b"--stats-allow" in response.body
    assert b"--stats-token" in response.body

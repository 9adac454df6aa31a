"""Load generators: nothing fails, and the statistics say, to the request and to the byte, what the tool says.

Each runs a bounded number of requests over a few connections. How fast is no matter here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness import IS_OURS, Certificates, Server, wait_until

if TYPE_CHECKING:
    from conftest import Serve

pytestmark = pytest.mark.skipif(not IS_OURS, reason="gunicorn's own workers keep no statistics")

APP = "gallery:app"
CONNECTIONS = 8


@dataclass(frozen=True)
class Task:
    """What a tool is to do."""

    requests: int
    path: str
    #: A file to POST each time.
    body: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What a tool says of it."""

    done: int
    failed: int
    #: Bytes of all responses with their heads; None where the tool rounds.
    received: int | None = None


@dataclass(frozen=True)
class Tool:
    """A load generator.

    :param package: Debian's name for what has it
    :param command: how to run it: a URL, the task, and a directory for files that it needs
    :param outcome: reads what it has printed
    :param server: options of the server
    :param tls: whether the server has a certificate
    :param requests: how many small ones
    """

    package: str
    command: Callable[[str, Task, Path], list[str]]
    outcome: Callable[[str], Outcome]
    server: tuple[str, ...] = ()
    tls: bool = False
    requests: int = 1000


def _number(pattern: str, output: str) -> int:
    found = re.search(pattern, output)
    assert found is not None, output
    return int(found[1])


def _ab(url: str, task: Task, directory: Path) -> list[str]:
    body = ["-p", str(task.body), "-T", "application/octet-stream"] if task.body else []
    return ["ab", "-q", "-k", "-n", str(task.requests), "-c", str(CONNECTIONS), *body, url]


def _ab_outcome(output: str) -> Outcome:
    done = _number(r"Complete requests: +(\d+)", output)
    # Those whose connection did not stay are failures here.
    lost = done - _number(r"Keep-Alive requests: +(\d+)", output)
    failed = _number(r"Failed requests: +(\d+)", output)
    other = re.search(r"Non-2xx responses: +(\d+)", output)
    return Outcome(done, failed + lost + (int(other[1]) if other else 0), _number(r"Total transferred: +(\d+)", output))


def _h2load(*options: str) -> Callable[[str, Task, Path], list[str]]:
    def command(url: str, task: Task, directory: Path) -> list[str]:
        body = ["-d", str(task.body)] if task.body else []
        return ["h2load", *options, "-n", str(task.requests), "-c", str(CONNECTIONS), *body, url]

    return command


def _h2load_outcome(output: str) -> Outcome:
    failed = sum(_number(rf"requests: .* (\d+) {word}", output) for word in ("failed", "errored", "timeout"))
    received = _number(r"traffic: .*?\((\d+)\) total", output)
    return Outcome(_number(r"status codes: (\d+) 2xx", output), failed, received)


def _siege(url: str, task: Task, directory: Path) -> list[str]:
    settings = directory / "siegerc"
    settings.write_text("protocol = HTTP/1.1\nconnection = keep-alive\nparser = false\naccept-encoding = identity\n")
    target = f"{url} POST <{task.body}" if task.body else url
    each, rest = divmod(task.requests, CONNECTIONS)
    assert not rest
    return ["siege", "-R", str(settings), "-q", "-j", "-b", "-c", str(CONNECTIONS), "-r", str(each), target]


def _siege_outcome(output: str) -> Outcome:
    said = json.loads(output[output.index("{") :])
    assert said["successful_transactions"] == said["transactions"]
    return Outcome(said["transactions"], said["failed_transactions"])


H2 = ("--http-protocols", "h2,h1", "--http2-cleartext", "both")
TOOLS = {
    "ab": Tool("apache2-utils", _ab, _ab_outcome),
    "ab-tls": Tool("apache2-utils", _ab, _ab_outcome, tls=True),
    "siege": Tool("siege", _siege, _siege_outcome),
    "h2load-h1": Tool("nghttp2-client", _h2load("--h1"), _h2load_outcome),
    "h2load-h1-tls": Tool("nghttp2-client", _h2load("--h1"), _h2load_outcome, tls=True),
    "h2load-h2": Tool("nghttp2-client", _h2load("-m", "10"), _h2load_outcome, H2, tls=True, requests=200),
    "h2load-h2c": Tool("nghttp2-client", _h2load("-m", "10"), _h2load_outcome, H2, requests=200),
}


def _run(command: list[str], package: str, directory: Path) -> str:
    """What it prints."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} (Debian package {package})")
    # siege wants to make a folder for its settings.
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=os.environ | {"HOME": str(directory)}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Watch:
    """The statistics' totals since it was made, without what asking for them adds."""

    def __init__(self, server: Server) -> None:
        self._client = server.connect()
        self._before, self._own = self._ask()
        self._own_requests = 0

    def _ask(self) -> tuple[dict[str, Any], int]:
        response = self._client.get("/stats")
        totals: dict[str, Any] = response.json()["totals"]
        return totals, len(response.raw)

    def totals(self) -> dict[str, Any]:
        """What has been added to each."""
        now, size = self._ask()
        self._own_requests += 1
        names = ("connections_accepted", "requests", "requests_reused", "bytes_sent")
        added = {name: now[name] - self._before[name] for name in names}
        added["requests"] -= self._own_requests
        added["requests_reused"] -= self._own_requests
        added["bytes_sent"] -= self._own
        self._own += size
        closed = Counter(now["closed"])
        closed.subtract(self._before["closed"])
        added["closed"] = dict(+closed)
        return added

    def totals_at_the_end(self) -> dict[str, Any]:
        """The same, once all connections are closed that were accepted meanwhile."""

        def all_closed() -> dict[str, Any] | None:
            added = self.totals()
            return added if sum(added["closed"].values()) == added["connections_accepted"] else None

        added: dict[str, Any] = wait_until(all_closed, "the end of all connections")
        return added


@pytest.mark.parametrize("what", ["small", "download", "upload"])
@pytest.mark.parametrize("name", TOOLS)
def test_load(serve: Serve, certificates: Certificates, tmp_path: Path, name: str, what: str) -> None:
    tool = TOOLS[name]
    server = serve(APP, "--stats-path", "/stats", *tool.server, certificates=certificates if tool.tls else None)
    body = tmp_path / "body"
    body.write_bytes(os.urandom(300_000))
    task = {
        "small": Task(tool.requests, "/"),
        "download": Task(16, "/streaming/watched?name=load&count=32&length=1"),
        "upload": Task(64, "/uploads/digest", body),
    }[what]
    log = server.log_size
    watch = Watch(server)
    outcome = tool.outcome(_run(tool.command(server.url + task.path, task, tmp_path), tool.package, tmp_path))
    assert outcome.done == task.requests
    assert outcome.failed == 0
    added = watch.totals_at_the_end()
    assert added["connections_accepted"] == CONNECTIONS
    assert added["closed"] == {"client": CONNECTIONS}
    assert added["requests"] == task.requests
    assert added["requests_reused"] == task.requests - CONNECTIONS
    if outcome.received is not None:
        assert added["bytes_sent"] == outcome.received
    assert server.complaints(log) == []


def test_wrk(serve: Serve, tmp_path: Path) -> None:
    """It ends in the middle of requests, which are no failures, one on each connection at most."""
    server = serve(APP, "--stats-path", "/stats")
    log = server.log_size
    watch = Watch(server)
    command = ["wrk", "--threads", "1", "--connections", str(CONNECTIONS), "--duration", "1s", server.url + "/"]
    output = _run(command, "wrk", tmp_path)
    assert "Socket errors" not in output
    assert "Non-2xx" not in output
    done = _number(r"(\d+) requests in", output)
    added = watch.totals_at_the_end()
    # At first it looks whether anybody is there.
    assert added["connections_accepted"] == CONNECTIONS + 1
    assert added["closed"] == {"client": CONNECTIONS + 1}
    assert done <= added["requests"] <= done + CONNECTIONS
    assert added["requests_reused"] == added["requests"] - CONNECTIONS
    assert server.complaints(log) == []

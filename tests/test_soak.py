"""Long mixed traffic with faults, after which everything is as it was.

What is drawn at random comes from a seed, which is printed, so that a run that failed shows it::

    SOAK_SECONDS=600 SOAK_SEED=4711 pytest -s tests/test_soak.py

``SOAK_SECONDS`` is how long the traffic goes on in all, shared by the event backends (60 unless said
otherwise, which is what CI has time for; a release gets 600). ``SOAK_SEED`` draws the same again, as far
as the machine's timing allows; without it each run draws anew.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Serve
from harness import Certificates, Server, descriptors, wait_until
from mixed_traffic import MixedTraffic

#: Seconds of traffic in all, by default those that CI has time for.
SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))
#: Each event backend gets its share.
_BACKENDS = 2

#: Clients of each server.
POLITE, RUDE = 8, 12

OPTIONS = (
    "--workers", "2", "--stats-path", "/stats", "--keep-alive", "2", "--keep-alive-grace", "0.5",
    "--header-timeout", "4", "--body-timeout", "4", "--send-timeout", "4", "--tcp-keepalive", "1",
    "--timeout", "20",
)  # fmt: skip
#: Reasons for which connections end in such traffic, killed workers not counted.
REASONS = {"client", "idle_timeout", "header_timeout", "body_timeout", "send_timeout", "bad_request", "response"}

#: Part of all exchanges that may fail when their worker is killed or has no descriptors left.
MOST_EXCUSED = 0.05

#: Bytes by which a worker's memory may be larger than after the warm-up: the allocator's holes.
HOLES = 6 << 20
#: Exceptions that the traffic makes applications, or their bodies, raise, and that are logged with a traceback.
_EXPECTED = re.compile(r"^(gunicorn\.http\.errors\.\w+|OSError: \[Errno 24\])", re.MULTILINE)

pytestmark = [
    pytest.mark.only_ours("gunicorn's gevent worker has none of the deadlines that end the rude clients"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc and sets limits of other processes"),
    pytest.mark.timeout(SECONDS + 240),
]


@pytest.fixture
def seed() -> int:
    """What the run draws from."""
    value = int(os.environ.get("SOAK_SEED") or random.randrange(1_000_000))
    sys.stdout.write(f"SOAK_SEED={value}\n")
    return value


def _memory(pid: int) -> int:
    """Bytes that only this process has."""
    found = re.findall(r"Private_\w+: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text())
    return 1024 * sum(map(int, found))


def _statistics(server: Server) -> dict[str, Any]:
    stats: dict[str, Any] = server.get("/stats?format=json&limit=0").json()
    return stats


class Holdings:
    """What a server's processes hold when nobody is connected."""

    def __init__(self, server: Server) -> None:
        self.workers = set(server.workers())
        wait_until(lambda: _statistics(server)["totals"]["connections_open"] == 1, "the end of all connections", 30)
        self.states: dict[int, dict[str, Any]] = {}

        def all_have_told() -> bool:
            state = server.get("/state").json()
            self.states[state["pid"]] = state
            return self.states.keys() == self.workers

        wait_until(all_have_told, "every worker's state")
        self.descriptors = {pid: _lasting_descriptors(pid) for pid in (server.pid, *self.workers)}
        self.memory = {pid: _memory(pid) for pid in (server.pid, *self.workers)}


def _lasting_descriptors(pid: int) -> Counter[str]:
    """Without that of the connection that has just asked for the state, if it has not gone yet."""
    found = descriptors(pid)
    for _ in range(5):
        time.sleep(0.02)
        found &= descriptors(pid)
    return found


@contextmanager
def _few_descriptors(server: Server, left: int) -> Iterator[None]:
    """The workers may open *left* descriptors more, and no others."""
    limits = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in server.workers()}
    for pid, (_, hard) in limits.items():
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (descriptors(pid).total() + left, hard))
    try:
        yield
    finally:
        for pid, limit in limits.items():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)


class Troubles:
    """What happens to a server in the meantime: a worker is killed, descriptors are short.

    One worker is spared, to be seen at the end as it was at the beginning.
    """

    def __init__(self, server: Server, traffic: MixedTraffic, dice: random.Random) -> None:
        self.spared = server.workers()[0]
        self.kills = self.shortages = 0
        self._server = server
        self._traffic = traffic
        self._dice = dice

    def make(self) -> None:
        """One trouble, after a while of quiet."""
        time.sleep(self._dice.uniform(0.2, 1.5))
        if self._dice.random() < (0.8 if self.shortages and not self.kills else 0.4):
            self._kill()
        else:
            self._run_short()

    def _kill(self) -> None:
        (victim,) = set(self._server.wait_for_workers(2)) - {self.spared}
        self._traffic.killed.append(victim)
        os.kill(victim, signal.SIGKILL)
        self.kills += 1
        wait_until(lambda: self._serving() - {self.spared, victim}, "a replacement", 30)

    def _serving(self) -> set[int]:
        return {worker["pid"] for worker in _statistics(self._server)["workers"]}

    def _run_short(self) -> None:
        self._traffic.shortages += 1
        with _few_descriptors(self._server, left=self._dice.randint(0, 5)):
            time.sleep(self._dice.uniform(0.3, 1.5))
        self.shortages += 1
        self._traffic.shortages += 1


def _warmed_up(server: Server, dice: random.Random) -> Holdings:
    """What is held after each kind of traffic, when that is over."""
    traffic = MixedTraffic(server, dice.getrandbits(32), POLITE, RUDE)
    try:
        wait_until(lambda: not traffic.kinds - traffic.done.keys(), "each kind of exchange", 60)
    finally:
        traffic.stop()
    assert not traffic.losses, "\n".join(traffic.losses[:20])
    return Holdings(server)


def _assert_as_before(server: Server, before: Holdings) -> None:
    """Nothing is left of the traffic, in the worker that saw it all and in those that came later."""
    worst: list[str] = []

    def is_as_before() -> bool:
        now = Holdings(server)
        worst.clear()
        for pid in (server.pid, *now.workers):
            known = pid if pid in before.descriptors else next(iter(before.states))
            if more := now.descriptors[pid] - before.descriptors[known]:
                worst.append(f"{pid}: more descriptors than before: {dict(more)}")
            if now.memory[pid] > before.memory[known] + HOLES:
                worst.append(f"{pid}: {now.memory[pid]} bytes, before {before.memory[known]}")
            if pid in now.states:
                then, state = before.states[known], now.states[pid]
                if state["greenlets"] > then["greenlets"]:
                    worst.append(f"{pid}: {state['greenlets']} greenlets, before {then['greenlets']}")
                if more := Counter(state["objects"]) - Counter(then["objects"]):
                    worst.append(f"{pid}: more objects than before: {dict(more)}")
        return not worst

    try:
        # Pooled greenlets are given up when two looks, ten seconds apart, have found them unused.
        wait_until(is_as_before, "all as before", 40)
    except AssertionError:
        raise AssertionError("\n".join(worst)) from None


def _unexpected_tracebacks(log: str) -> list[str]:
    parts = log.split("Traceback (most recent call last):")[1:]
    # A traceback ends with the first line that is not indented.
    ends = [re.search(r"^\S.*", part, re.MULTILINE) for part in parts]
    return [part[:3000] for part, end in zip(parts, ends, strict=True) if end and not _EXPECTED.match(end[0])]


@pytest.mark.logs_traceback
def test_soak(serve: Serve, certificates: Certificates, seed: int) -> None:
    """Polite clients get every response whole and right, and rude ones leave nothing behind.

    A request in the hands of a worker that is killed may fail, visibly. In plain text and over TLS, with
    HTTP/2 there, at the same time.
    """
    until = time.monotonic() + SECONDS / _BACKENDS
    dice = random.Random(seed)
    servers = [
        serve("soaked:app", *OPTIONS, fresh=True),
        serve("soaked:app", *OPTIONS, "--http-protocols", "h2,h1", certificates=certificates, fresh=True),
    ]
    for server in servers:
        server.wait_for_workers(2)
    before = [_warmed_up(server, dice) for server in servers]
    traffics = [MixedTraffic(server, dice.getrandbits(32), POLITE, RUDE) for server in servers]
    troubles = [Troubles(server, traffic, dice) for server, traffic in zip(servers, traffics, strict=True)]
    while time.monotonic() < until or not all(one.kills and one.shortages for one in troubles):
        dice.choice(troubles).make()
    for traffic in traffics:
        traffic.stop()
        told = {"done": traffic.done, "excused": traffic.excused, "killed": traffic.killed}
        sys.stdout.write(json.dumps(told, indent=1) + "\n")
    for server, traffic, trouble, then in zip(servers, traffics, troubles, before, strict=True):
        assert not traffic.losses, "\n".join(traffic.losses[:20])
        assert len(traffic.excused) < MOST_EXCUSED * traffic.done.total(), "\n".join(traffic.excused)
        assert trouble.spared in server.wait_for_workers(2)
        _assert_as_before(server, then)
        _assert_figures_add_up(_statistics(server))
        assert "WORKER TIMEOUT" not in server.log()
        assert _unexpected_tracebacks(server.log()) == []


def _assert_figures_add_up(statistics: dict[str, Any]) -> None:
    """Who came has gone, for a reason, but for the connection that asks."""
    for figures in (statistics["totals"], *statistics["workers"]):
        assert figures["connections_accepted"] == sum(figures["closed"].values()) + figures["connections_open"]
    assert statistics["totals"]["connections_open"] == 1
    assert {reason for reason, count in statistics["totals"]["closed"].items() if count} >= REASONS

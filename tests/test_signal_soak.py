"""A thousand requests while a server is told all it can be told, in random order: nothing is lost.

The order comes from a seed, which is printed; ``SOAK_SEED`` gives one. As in ``test_soak.py``.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import Serve
from harness import HEARTBEAT, Server, descriptors, process_exists, process_fields, wait_until
from traffic import Traffic

REQUESTS = 1000
WORKERS = 2
#: Requests after which a worker recycles: some do so between the signals.
MAX_REQUESTS = 150
#: How often each thing happens.
STEPS = {"HUP": 3, "TTIN": 3, "TTOU": 3, "TERM to a worker": 3, "USR2, then TERM": 2}

pytestmark = [
    pytest.mark.only_ours("gunicorn's gevent worker loses requests, and waits for idle clients"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
    pytest.mark.timeout(240),
]


@pytest.fixture
def dice() -> random.Random:
    """What the order is drawn from."""
    seed = int(os.environ.get("SOAK_SEED") or random.randrange(1_000_000))
    sys.stdout.write(f"SOAK_SEED={seed}\n")
    return random.Random(seed)


def children(pid: int) -> set[int]:
    """The living child processes."""
    try:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return set()
    return {int(word) for word in words if process_exists(int(word))}


def session(leader: int) -> set[int]:
    """The living processes of a session, also when its leader has ended."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = process_fields(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == leader and fields[0] != "Z":
                found.add(int(entry.name))
    return found


def open_files(pid: int, workers: int = 1) -> Counter[str]:
    """What a process has open, by kind, but for the file by which each of its workers shows that it is alive."""
    found = descriptors(pid)
    found[HEARTBEAT] -= workers
    return found


class Operator:
    """Gives a server its signals, one after another, and knows which processes there have to be.

    :param server: that has just started; its clients come now
    :param dice: draws what has to be drawn
    """

    def __init__(self, server: Server, dice: random.Random) -> None:
        self.master = server.pid
        self.workers = WORKERS
        self._server = server
        self._dice = dice
        #: Requests for the statistics, each on a connection of its own, by the master that answered.
        self._asked: Counter[int] = Counter()
        server.wait_for_workers(WORKERS)
        self.settle()
        self.open_files = open_files(self.master, WORKERS)
        self.open_files_of_a_worker = open_files(server.workers()[0])
        self.traffic = Traffic(server.address, seed=dice.getrandbits(32), pause=0.05)

    def do(self, what: str) -> None:
        """One of :data:`STEPS`."""
        if what == "TERM to a worker":
            os.kill(self._dice.choice(sorted(children(self.master))), signal.SIGTERM)
        elif what == "USR2, then TERM":
            self._upgrade()
        else:
            before = self._server.log_size
            os.kill(self.master, signal.Signals[f"SIG{what}"])
            # One after the other: the master takes those that come together in an order of its own.
            line = f"Handling signal: {what.lower()}"
            wait_until(lambda: line in self._server.log(before), f"{what} (a master that reloads hears nothing)", 40)
            self.workers = {"HUP": WORKERS, "TTIN": self.workers + 1, "TTOU": max(1, self.workers - 1)}[what]

    def _upgrade(self) -> None:
        old = self.master
        os.kill(old, signal.SIGUSR2)
        new = int(wait_until(lambda: self._server.file("pid.2").strip(), "a new master", 20))
        wait_until(lambda: self.statistics(new), "its service")
        self.traffic.wait_for(requests=self._dice.randrange(50))
        with self.traffic.held():
            # The last look at what the old one has counted.
            self.assert_figures_add_up(old)
        os.kill(old, signal.SIGTERM)
        # It takes the name of the old one when it has seen that it has gone, and no USR2 before.
        wait_until(lambda: self._server.file("pid").strip() == str(new), "the end of the old master", 40)
        self.master, self.workers = new, WORKERS
        self.open_files = open_files(new, len(children(new)))

    def settle(self) -> None:
        """Wait until all signals have had their effect; to be called when no client makes workers recycle."""
        seen: list[Any] = []

        def are_as_many() -> bool:
            states = {one["pid"]: one["state"] for one in self.statistics(self.master)["workers"]}
            seen[:] = [states, children(self.master)]
            return [*states.values()] == ["running"] * self.workers and states.keys() == children(self.master)

        try:
            wait_until(are_as_many, f"{self.workers} workers of {self.master}", 30)
        except AssertionError as error:
            raise AssertionError(f"{error}, but {seen}\n{self._server.log()}") from None

    def statistics(self, master: int) -> dict[str, Any]:
        """What a worker of that master says of its server."""
        while True:
            found: dict[str, Any] = self._server.get("/stats?format=json&limit=0").json()
            parent = int(process_fields(found["worker_pid"])[1])
            self._asked[parent] += 1
            if parent == master:
                return found

    def assert_figures_add_up(self, master: int) -> None:
        """What the server has counted is what its clients have; to be called while they are held."""
        totals = self.statistics(master)["totals"]
        asked = self._asked[master]
        assert totals["requests"] == self.traffic.requests_of[master] + asked
        assert totals["connections_accepted"] == self.traffic.connections_of[master] + asked
        assert totals["connections_accepted"] == sum(totals["closed"].values()) + totals["connections_open"]
        assert set(filter(totals["closed"].get, totals["closed"])) <= {"client", "response", "shutdown"}


def test_signals_in_random_order_lose_no_request(serve: Serve, dice: random.Random) -> None:
    """Nor do they leave a worker or a descriptor behind, and the statistics still add up."""
    server = serve(
        "steady:app", "--workers", str(WORKERS), "--max-requests", str(MAX_REQUESTS), "--drain-timeout", "0.5",
        "--stats-path", "/stats", "--pid", "{dir}/pid", "--keep-alive", "60", fresh=True,
    )  # fmt: skip
    steps = [step for step, times in STEPS.items() for _ in range(times)]
    dice.shuffle(steps)
    sys.stdout.write(json.dumps(steps) + "\n")
    operator = Operator(server, dice)
    traffic = operator.traffic
    try:
        for step in steps:
            traffic.wait_for(requests=dice.choice((1, dice.randrange(1, 100))))
            operator.do(step)
        traffic.wait_for(requests=max(1, REQUESTS - traffic.counts["requests"]))
        with traffic.held():
            operator.settle()
            operator.assert_figures_add_up(operator.master)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{server.log()}") from error
    finally:
        counts = traffic.stop()
    assert traffic.losses == [], counts
    assert "Autorestarting" in server.log()
    assert session(server.pid) == {operator.master, *children(operator.master)}

    def is_as_before() -> bool:
        # The statistics come on a connection that may not have gone yet.
        seen[:] = [
            operator.statistics(operator.master)["totals"]["connections_open"] - 1,
            *(open_files(worker) - operator.open_files_of_a_worker for worker in children(operator.master)),
        ]
        return not any(seen)

    seen: list[Any] = []
    try:
        wait_until(is_as_before, "the end of all connections and their descriptors", 20)
    except AssertionError as error:
        raise AssertionError(f"{error}: {seen} more than before") from None
    assert open_files(operator.master, operator.workers) == operator.open_files

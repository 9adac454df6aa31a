"""The debug endpoint of a real server with several workers, and what their comings and goings do to it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness import APPS, IS_OURS, OURS, Certificates, Client, Response, Server, request, wait_until
from test_http2 import Http2Client

if TYPE_CHECKING:
    from conftest import Serve
    from typing_extensions import Self

pytestmark = pytest.mark.skipif(not IS_OURS, reason="other workers have no such endpoint")

STATS = ("--stats-path", "/stats")
#: Counters that only ever rise.
RISING = ("connections_accepted", "requests", "requests_reused", "bytes_received", "bytes_sent")
HISTOGRAMS = ("connection_requests", "connection_age_seconds", "idle_seconds")


# --- helpers ---------------------------------------------------------------------------------------


def report(client: Client, query: str = "") -> dict[str, Any]:
    """The report as JSON, over a connection that is there."""
    response = client.get(f"/stats{query}")
    assert response.status == 200, response.body
    made: dict[str, Any] = response.json()
    check(made)
    return made


def check(made: dict[str, Any]) -> None:
    """What holds for every report."""
    for each in (made["totals"], *made["workers"]):
        closed = sum(each["closed"].values())
        assert each["connections_accepted"] == each["connections_open"] + closed
        assert each["connections_open"] == each["connections_idle"] + each["connections_active"]
        assert each["connection_requests"]["count"] <= closed
        assert each["idle_seconds"]["count"] == each["requests_reused"] <= each["requests"]
    pids = [each["pid"] for each in made["workers"]]
    assert len(pids) == len(set(pids))
    assert made["worker_pid"] in pids
    rows = [(each["worker_pid"], each["id"]) for each in made["connections"]]
    assert len(rows) == len(set(rows))
    assert {pid for pid, _ in rows} <= set(pids)


def rising(made: dict[str, Any]) -> dict[str, float]:
    """All totals that must never fall, flat."""
    totals = made["totals"]
    flat: dict[str, float] = {name: totals[name] for name in RISING}
    flat.update({f"closed {reason}": count for reason, count in totals["closed"].items()})
    for name in HISTOGRAMS:
        flat[f"{name} sum"] = totals[name]["sum"]
        flat.update({f"{name} {each['le']}": each["count"] for each in totals[name]["buckets"]})
    return flat


def assert_no_fall(before: dict[str, Any], after: dict[str, Any]) -> None:
    one, other = rising(before), rising(after)
    fallen = {name: (one[name], other[name]) for name in one if other[name] < one[name]}
    assert not fallen


def serving(server: Server) -> list[int]:
    """The workers that serve, by what the endpoint says."""
    with server.connect() as client:
        return sorted(each["pid"] for each in report(client)["workers"])


def wait_for_serving(server: Server, count: int) -> list[int]:
    """Wait until that many workers serve, and no others live."""
    wait_until(
        lambda: len(serving(server)) == count and serving(server) == sorted(server.workers()),
        f"{count} workers that serve",
        20,
    )
    return serving(server)


def one_for_each(server: Server, pids: list[int]) -> dict[int, Client]:
    """A connection to each of these workers."""
    found: dict[int, Client] = {}

    def all_found() -> bool:
        client = server.connect()
        pid = client.get("/").json()["pid"]
        if pid in found or pid not in pids:
            client.close()
        else:
            found[pid] = client
        return len(found) == len(pids)

    wait_until(all_found, f"connections to {pids}", 30)
    return found


def quiet(client: Client, open_: int) -> dict[str, Any]:
    """The report once the server has seen the end of all connections but these."""
    made: list[dict[str, Any]] = []

    def is_quiet() -> bool:
        made[:] = [report(client)]
        return bool(made[0]["totals"]["connections_open"] == open_)

    wait_until(is_quiet, f"{open_} open connections")
    return made[0]


@pytest.fixture
def trio(serve: Serve) -> tuple[Server, dict[int, Client]]:
    """A fresh server with three workers and a connection to each."""
    server = serve("facts:app", "--workers", "3", "--keep-alive", "60", *STATS, fresh=True)
    clients = one_for_each(server, wait_for_serving(server, 3))
    quiet(next(iter(clients.values())), 3)
    return server, clients


# --- one server, several workers -----------------------------------------------------------------------


def test_every_worker_answers_for_the_whole_server(trio: tuple[Server, dict[int, Client]]) -> None:
    server, clients = trio
    ports = sorted(client.port for client in clients.values())
    for pid, client in clients.items():
        made = report(client)
        assert made["worker_pid"] == pid
        assert sorted(each["pid"] for each in made["workers"]) == sorted(server.workers())
        assert {each["state"] for each in made["workers"]} == {"running"}
        assert {each["connections_open"] for each in made["workers"]} == {1}
        assert sorted(int(each["peer"].rpartition(":")[2]) for each in made["connections"]) == ports
        states = {each["worker_pid"]: each["state"] for each in made["connections"]}
        assert states == {each: "handling" if each == pid else "idle" for each in clients}
        assert "notes" not in made


def test_two_workers_disagree_on_nothing(trio: tuple[Server, dict[int, Client]]) -> None:
    """Each report is the one before plus the request for it: nothing is late, nothing is lost."""
    _, clients = trio
    answers: list[tuple[int, Response]] = []
    for _ in range(3):
        for pid, client in clients.items():
            answers.append((pid, client.get("/stats?sort=age")))
    size = len(request("/stats?sort=age"))
    for (_, before), (pid, after) in pairwise(answers):
        one, other = before.json(), after.json()
        check(other)
        totals, expected = other["totals"], one["totals"]
        assert totals["requests"] == expected["requests"] + 1
        assert totals["requests_reused"] == expected["requests_reused"] + 1
        assert totals["bytes_received"] == expected["bytes_received"] + size
        assert totals["bytes_sent"] == expected["bytes_sent"] + len(before.raw)
        assert totals["idle_seconds"]["count"] == expected["idle_seconds"]["count"] + 1
        for name in ("connections_accepted", "connections_open", "connections_idle", "closed"):
            assert totals[name] == expected[name]
        for name in ("connection_requests", "connection_age_seconds"):
            assert totals[name] == expected[name]
        # Who was not asked says the same as before.
        still = {each["pid"]: each for each in one["workers"] if each["pid"] not in (pid, one["worker_pid"])}
        for each in other["workers"]:
            if each["pid"] in still:
                assert {**each, "figures_age": 0} == {**still[each["pid"]], "figures_age": 0}


def test_many_ask_at_once(trio: tuple[Server, dict[int, Client]]) -> None:
    _, clients = trio
    for _ in range(10):
        for client in clients.values():
            client.send(request("/stats"))
        for client in clients.values():
            made = client.read_response().json()
            check(made)
            assert len(made["connections"]) == 3
            assert "notes" not in made


def test_figures_of_others_are_new(trio: tuple[Server, dict[int, Client]]) -> None:
    """What another worker did is in the next report, at once."""
    _, clients = trio
    one, other, _ = clients.values()
    before = report(one)["totals"]["requests"]
    for number in range(1, 21):
        other.get("/")
        assert report(one)["totals"]["requests"] == before + 2 * number


@pytest.mark.parametrize(
    ("sort", "limit"), [("idle", 2), ("age", 5), ("requests", 1), ("bytes", 3), ("idle", 0)]
)
def test_sort_and_limit(serve: Serve, sort: str, limit: int) -> None:
    server = serve("facts:app", "--workers", "2", *STATS)
    clients = [server.connect() for _ in range(6)]
    for number, client in enumerate(clients):
        for _ in range(number + 1):
            client.get("/")
    everything = report(clients[0], f"?sort={sort}")["connections"]
    made = report(clients[0], f"?sort={sort}&limit={limit}")["connections"]
    assert len(made) == limit
    keys: dict[str, Callable[[dict[str, Any]], float]] = {
        "idle": lambda each: each["idle"],
        "age": lambda each: each["age"],
        "requests": lambda each: each["requests"],
        "bytes": lambda each: each["bytes_received"] + each["bytes_sent"],
    }
    for rows in (everything, made):
        values = [keys[sort](row) for row in rows]
        assert values == sorted(values, reverse=True)
    if sort == "age":  # The others change with the request itself.
        assert [each["peer"] for each in everything[:limit]] == [each["peer"] for each in made]


def test_states_and_deadlines_of_connections(serve: Serve, tmp_path: Path) -> None:
    server = serve(
        "facts:app", "--keep-alive", "30", "--keep-alive-grace", "5", "--header-timeout", "70", *STATS
    )
    fresh, idle, reading, handling, asking = (server.connect() for _ in range(5))
    idle.get("/")
    reading.send(b"GET / HTT")
    handling.send(request(f"/wait?file={tmp_path}/go"))
    wait_until((tmp_path / "go.begun").exists, "the request")
    try:
        asking.get("/")  # Came after all that was sent before.
        rows = {int(row["peer"].rpartition(":")[2]): row for row in report(asking)["connections"]}
    finally:
        (tmp_path / "go").touch()
    assert handling.read_response().status == 200
    states = [rows[client.port]["state"] for client in (fresh, idle, reading, handling, asking)]
    assert states == ["idle", "idle", "reading", "handling", "handling"]
    assert 60 < rows[fresh.port]["closes_in"] <= 70
    assert 25 < rows[idle.port]["closes_in"] <= 35
    assert 60 < rows[reading.port]["closes_in"] <= 70
    assert rows[handling.port]["closes_in"] is None
    numbers = [rows[client.port]["requests"] for client in (fresh, idle, reading, handling, asking)]
    assert numbers == [0, 1, 0, 1, 2]
    assert rows[reading.port]["bytes_received"] == 9
    assert 0 < rows[idle.port]["idle"] <= rows[idle.port]["age"]
    assert rows[asking.port]["idle"] == 0
    assert {row["protocol"] for row in rows.values()} == {"HTTP/1.1"}


# --- comings and goings ----------------------------------------------------------------------------------


class Watcher:
    """Asks for the report all the time, of whoever takes the connection, and compares."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.reports: list[dict[str, Any]] = []
        self.error: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: len(self.reports) > 2 or self.error, "the first reports")
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        assert self.error is None, repr(self.error)
        assert len(self.reports) > 10
        for before, after in pairwise(self.reports):
            assert_no_fall(before, after)

    def _watch(self) -> None:
        try:
            while not self._stop.is_set():
                # The connection may be one that a killed worker takes with it.
                with contextlib.suppress(ConnectionError, AssertionError), self._server.connect() as client:
                    response = client.get("/stats")
                    made = response.json()
                    self.reports.append(made)
            for made in self.reports:
                check(made)
        except BaseException as error:
            self.error = error


def test_a_killed_worker_leaves_its_totals(trio: tuple[Server, dict[int, Client]]) -> None:
    server, clients = trio
    (victim, lost), (_, asking), _ = clients.items()
    for _ in range(5):
        lost.get("/")
    before = report(asking)
    with Watcher(server):
        os.kill(victim, signal.SIGKILL)
        lost.assert_closed()
        wait_until(lambda: victim not in serving(server), "the killed worker to be gone from the report")
        wait_for_serving(server, 3)
    after = quiet(asking, 2)
    assert victim not in {each["pid"] for each in after["workers"]}
    assert_no_fall(before, after)
    # Its open connection has ended; no client asked for that, so it is an error. It may have had
    # another one just then, the watcher's.
    assert after["totals"]["closed"]["error"] - before["totals"]["closed"]["error"] in (1, 2)
    assert "notes" not in after


def test_what_a_worker_has_said_survives_its_death(trio: tuple[Server, dict[int, Client]]) -> None:
    """Also what it had counted a moment before it was killed."""
    server, clients = trio
    (victim, lost), (_, asking), _ = clients.items()
    for _ in range(100):
        lost.get("/")
    said = report(lost)
    os.kill(victim, signal.SIGKILL)
    assert_no_fall(said, report(asking))
    wait_for_serving(server, 3)
    assert_no_fall(said, report(asking))


def test_a_reload_keeps_the_totals(trio: tuple[Server, dict[int, Client]]) -> None:
    server, clients = trio
    old = set(clients)
    before = report(next(iter(clients.values())))
    with Watcher(server):
        server.send_signal(signal.SIGHUP)
        wait_until(lambda: old.isdisjoint(server.workers()), "the old workers' end", 20)
        assert old.isdisjoint(wait_for_serving(server, 3))
    client = server.connect()
    after = quiet(client, 1)
    assert_no_fall(before, after)
    assert after["totals"]["closed"]["shutdown"] >= before["totals"]["closed"]["shutdown"] + 3
    assert after["totals"]["closed"]["error"] == 0


def test_a_draining_worker_says_so(serve: Serve, tmp_path: Path) -> None:
    server = serve("facts:app", "--workers", "2", *STATS, fresh=True)
    clients = one_for_each(server, wait_for_serving(server, 2))
    pid, client = next(iter(clients.items()))
    client.send(request(f"/wait?file={tmp_path}/go"))
    wait_until((tmp_path / "go.begun").exists, "the request")
    os.kill(pid, signal.SIGTERM)

    def state() -> str | None:
        with server.connect() as asking:
            return {each["pid"]: each["state"] for each in report(asking)["workers"]}.get(pid)

    wait_until(lambda: state() == "draining", "the state of the worker")
    (tmp_path / "go").touch()
    assert client.read_response().header("Connection") == "close"
    wait_until(lambda: state() is None, "the worker's end")


def test_workers_more_and_fewer(serve: Serve) -> None:
    """TTIN far beyond what the server was started with, and TTOU."""
    server = serve("facts:app", "--workers", "1", *STATS, fresh=True)
    with Watcher(server):
        for _ in range(5):
            more = len(server.workers()) + 1
            server.send_signal(signal.SIGTTIN)
            server.wait_for_workers(more)
        many = wait_for_serving(server, 6)
        clients = one_for_each(server, many)
        made = report(clients[many[0]])
        assert len({each["worker_pid"] for each in made["connections"]}) == 6
        for left in (5, 4):
            server.send_signal(signal.SIGTTOU)
            wait_for_serving(server, left)


def test_workers_that_are_recycled(serve: Serve) -> None:
    server = serve("facts:app", "--workers", "2", "--max-requests", "40", *STATS, fresh=True)
    wait_for_serving(server, 2)
    with Watcher(server) as watcher:
        wait_until(lambda: server.log().count("Booting worker") >= 8, "six more workers", 60)
    pids = {each["pid"] for made in watcher.reports for each in made["workers"]}
    assert len(pids) >= 4
    assert watcher.reports[-1]["totals"]["closed"]["error"] == 0


def test_a_reload_to_more_connections_shows_them_all(serve: Serve) -> None:
    server = serve("facts:app", *STATS, config="worker_connections = 5\n", fresh=True)
    wait_for_serving(server, 1)
    first = server.worker
    (server.directory / "gunicorn.conf.py").write_text("worker_connections = 50\n")
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: [*server.workers()] != [first] and len(server.workers()) == 1, "the new worker", 20)
    wait_for_serving(server, 1)
    clients = [server.connect() for _ in range(40)]
    for client in clients:
        client.get("/")
    made = quiet(clients[0], 40)
    assert len(made["connections"]) == 40
    assert made["totals"]["closed"]["evicted"] == 0


def test_a_stuck_worker_shows_with_its_last_figures_and_their_age(serve: Serve, tmp_path: Path) -> None:
    server = serve("facts:app", "--workers", "2", "--timeout", "60", *STATS, fresh=True)
    clients = one_for_each(server, wait_for_serving(server, 2))
    (stuck, busy), (_, asking) = clients.items()
    for _ in range(7):
        busy.get("/")
    before = {each["pid"]: each for each in report(asking)["workers"]}[stuck]
    busy.send(request(f"/spin?file={tmp_path}/go"))
    wait_until((tmp_path / "go.begun").exists, "the loop")
    try:

        def old_figures() -> dict[str, Any] | None:
            made = report(asking)
            each = {each["pid"]: each for each in made["workers"]}[stuck]
            return made if each["figures_age"] > 2 else None

        made = wait_until(old_figures, "figures of some age")
        began = time.monotonic()
        assert report(asking)["notes"]
        assert time.monotonic() - began < 1
        each = {each["pid"]: each for each in made["workers"]}[stuck]
        assert each["requests"] >= before["requests"]
        assert each["connections_open"] == 1
        assert any(f"Worker {stuck} has not answered" in note for note in made["notes"])
    finally:
        (tmp_path / "go").touch()
    busy.read_response()
    wait_until(lambda: "notes" not in report(asking), "the worker's answer")
    after = report(asking)
    assert {each["pid"]: each for each in after["workers"]}[stuck]["requests"] == before["requests"] + 1


def test_one_server_s_figures_are_not_another_s(serve: Serve) -> None:
    one = serve("facts:app", *STATS, fresh=True)
    other = serve("facts:app", *STATS, fresh=True)
    clients = [one.connect() for _ in range(5)]
    for client in clients:
        client.get("/")
    with other.connect() as client:
        made = report(client)
    assert made["totals"]["connections_accepted"] == 1


def test_without_shared_memory_a_worker_knows_its_own(serve: Serve) -> None:
    config = """
from keepalive_worker import board

def nothing():
    raise OSError(12, "no memory")

board._nameless_file = nothing
"""
    server = serve("facts:app", *STATS, config=config, fresh=True)
    with server.connect() as client:
        made = report(client)
        assert made["totals"]["requests"] == 1
        assert len(made["connections"]) == 1
        assert "one worker alone" in made["notes"][0]
    assert any("No memory to share statistics in" in line for line in server.complaints())


# --- who is let in ---------------------------------------------------------------------------------------


@pytest.fixture
def guarded(serve: Serve) -> Server:
    """A server whose endpoint has a token too; its application answers every path with JSON."""
    return serve("facts:app", *STATS, "--stats-token", "s3cret=")


def is_endpoint(response: Response) -> bool:
    return response.status == 200 and b'"generated_at"' in response.body


def is_app(response: Response) -> bool:
    return response.status == 200 and b'"pid"' in response.body and b'"generated_at"' not in response.body


@pytest.mark.parametrize(
    "header",
    [
        "X-Forwarded-For: 127.0.0.1",
        "x-forwarded-for:",
        "Forwarded: for=127.0.0.1",
        "X-Real-IP: 127.0.0.1",
        "x-ReAl-iP:127.0.0.1",
        "Via: 1.1 localhost",
        "VIA:",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: localhost",
        # A second one, and one that the client would have the proxy take for hop-by-hop.
        "Via: 1.1 a\r\nvia: 1.0 b",
        "Connection: X-Forwarded-For\r\nX-Forwarded-For: 127.0.0.1",
    ],
)
def test_a_proxy_on_the_same_host_does_not_open_the_door(guarded: Server, header: str) -> None:
    assert is_endpoint(guarded.get("/stats"))
    refused = guarded.get("/stats", header)
    assert refused.status == 403
    assert refused.header("Cache-Control") == "no-store"
    assert is_endpoint(guarded.get("/stats", header, "Authorization: Bearer s3cret="))
    assert guarded.get("/stats", header, "Authorization: Bearer s3cret").status == 403
    assert guarded.get("/stats?token=s3cret%3D", header).status == 403


@pytest.mark.parametrize(
    "target",
    [
        "/%73tats",
        "/stats/",
        "//stats",
        "/./stats",
        "/x/../stats",
        "/stats%2f",
        "/STATS",
        "/stats;x",
        "/stats%00",
        "/stats/.",
        "/stats/../stats",
        "/x//../stats",
        "/stats%20",
        "/stats%3Fformat=json",
        "/stats%23",
        "/%2e/stats",
        "/%2Fstats",
        "/stats/?format=json",
        "///stats",
        "/\\stats",
        "/stat%73?limit=1",
        "http://localhost//stats",
        "http://localhost/./stats",
        "http://stats/",
        "/x?/stats",
    ],
)
def test_other_spellings_go_to_the_app(guarded: Server, target: str) -> None:
    assert is_app(guarded.get(target))


@pytest.mark.parametrize("header", ["X_Forwarded_For: 127.0.0.1", "X_Real-IP: 127.0.0.1"])
@pytest.mark.parametrize("header_map", ["drop", "refuse", "dangerous"])
def test_underscores_open_no_door(serve: Serve, header: str, header_map: str) -> None:
    """gunicorn drops such a field, refuses the request, or takes it for the one with dashes."""
    server = serve("facts:app", *STATS, "--header-map", header_map)
    alone, beside = server.get("/stats", header), server.get("/stats", header, "Via: 1.1 x")
    assert alone.status == {"drop": 200, "refuse": 400, "dangerous": 403}[header_map]
    assert beside.status == {"drop": 403, "refuse": 400, "dangerous": 403}[header_map]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (["Bearer s3cret="], 200),
        (["bearer  s3cret="], 200),
        (["Bearer s3cret=", "Bearer s3cret="], 403),
        (["Bearer wrong", "Bearer s3cret="], 403),
        (["Bearer s3cret=", "Basic eDp5"], 403),
        (["Basic czNjcmV0PQ=="], 403),
        (["Bearer s3cret%3D"], 403),
        (["s3cret="], 403),
    ],
)
def test_authorization(guarded: Server, fields: list[str], status: int) -> None:
    """Of two fields neither counts (RFC 9110 11.6.2 knows only one)."""
    headers = [f"Authorization: {field}" for field in fields]
    # gunicorn may refuse a request that has two.
    assert guarded.get("/stats", "Via: 1.1 x", *headers).status in ((200,) if status == 200 else (400, 403))
    assert guarded.get("/stats", "Via: 1.1 x", "Cookie: token=s3cret=", "X-Token: s3cret=").status == 403


def test_http_1_0_is_held_to_the_same_rules(guarded: Server) -> None:
    """What nginx speaks to its upstreams unless told otherwise."""
    for headers, status in (([], 200), (["Via: 1.0 x"], 403), (["X-Real-IP: 127.0.0.1"], 403)):
        answer = guarded.exchange(request("/stats", *headers, version="1.0"))
        assert answer.split(b" ")[1] == b"%d" % status
    assert guarded.exchange(b"GET /stats HTTP/1.0\r\n\r\n").split(b" ")[1] == b"200"
    assert b"generated_at" not in guarded.exchange(b"GET /%73tats HTTP/1.0\r\n\r\n")


def test_http2_is_held_to_the_same_rules(serve: Serve, certificates: Certificates) -> None:
    """Whatever the pseudo-header fields say (RFC 9113 8.3.1)."""
    server = serve(
        "facts:app", *STATS, "--stats-token", "s3cret", "--http-protocols", "h2,h1", certificates=certificates
    )

    def ask(path: str, *headers: tuple[str, str], authority: str = "localhost") -> tuple[str, bytes]:
        client = Http2Client(server.connect(tls=certificates.client_context("h2")))
        stream = client.h2.get_next_available_stream_id()
        pseudo = [(":method", "GET"), (":path", path), (":scheme", "https"), (":authority", authority)]
        client.h2.send_headers(stream, [*pseudo, *headers], end_stream=True)
        client.flush()
        return client.finish(stream)

    for authority in ("localhost", "127.0.0.1", "evil.example"):
        status, body = ask("/stats", authority=authority)
        assert (status, b"generated_at" in body) == ("200", True)
        assert ask("/stats", ("x-forwarded-for", "127.0.0.1"), authority=authority)[0] == "403"
    assert ask("/stats", ("via", "2 x"))[0] == "403"
    assert ask("/stats", ("via", "2 x"), ("authorization", "Bearer s3cret"))[0] == "200"
    for path in ("/%73tats", "/stats/", "//stats", "/x/../stats", "/STATS"):
        assert b"generated_at" not in ask(path)[1]


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "unix:{dir}/s"])
def test_a_front_that_speaks_uwsgi_does_not_open_the_door(serve: Serve, bind: str) -> None:
    """nginx's uwsgi_pass adds no forwarding header; its address is not that of who asks."""
    server = serve("facts:app", *STATS, "--stats-token", "s3cret", "--protocol", "uwsgi", binds=(bind,))

    def ask(**variables: str) -> Response:
        with server.connect() as client:
            client.send(uwsgi_packet(REQUEST_METHOD="GET", PATH_INFO="/stats", QUERY_STRING="", **variables))
            return client.read_response()

    assert ask().status == 403
    assert ask(REMOTE_ADDR="127.0.0.1", REMOTE_PORT="4000").status == 403
    assert ask(REMOTE_ADDR="203.0.113.9").status == 403
    assert ask(REQUEST_URI="/stats", HTTP_HOST="localhost").status == 403
    assert is_endpoint(ask(HTTP_AUTHORIZATION="Bearer s3cret"))


def uwsgi_packet(**variables: str) -> bytes:
    """A request as front servers that speak the uWSGI protocol send it."""
    texts = [text.encode("latin-1") for pair in variables.items() for text in pair]
    block = b"".join(struct.pack("<H", len(text)) + text for text in texts)
    return struct.pack("<BHB", 0, len(block), 0) + block


def test_absolute_form_is_held_to_the_same_rules(guarded: Server) -> None:
    assert is_endpoint(guarded.get("http://localhost/stats"))
    assert is_endpoint(guarded.get("HTTP://evil.example:1/stats"))
    assert guarded.get("http://127.0.0.1/stats", "X-Forwarded-For: ::1").status == 403
    assert guarded.get("http://localhost/stats", "Via: 1.1 x").status == 403
    assert is_app(guarded.get("http://localhost/%73tats"))
    assert is_app(guarded.get("http://localhost/"))


def test_head_and_other_methods(guarded: Server) -> None:
    with guarded.connect() as client:
        head = client.get("/stats", method="HEAD")
        assert (head.status, head.body) == (200, b"")
        assert int(head.header("Content-Length") or 0) > 100
        assert client.get("/stats", "Via: 1.1 x", method="HEAD").status == 403
        assert client.get("/stats", method="OPTIONS").status == 405
        refused = client.get("/stats", method="POST", body=b"x=y")
        assert (refused.status, refused.header("Allow")) == (405, "GET, HEAD")
        assert client.get("/stats?limit=x").status == 400
        assert is_endpoint(client.get("/stats"))


@pytest.mark.parametrize("size", [1000, 7000, 20_000, 200_000])
def test_a_very_long_token_is_not_let_in(guarded: Server, size: int) -> None:
    data = request("/stats", "Via: 1.1 x", f"Authorization: Bearer {'x' * size}")
    status = guarded.exchange(data).split(b" ")[1]
    assert status in (b"403", b"400", b"431")
    assert is_endpoint(guarded.get("/stats"))


def test_a_long_token_that_is_right_is_let_in(serve: Serve) -> None:
    token = "x" * 7000
    server = serve("facts:app", *STATS, "--stats-allow", "192.0.2.1", "--stats-token", token)
    assert server.get("/stats").status == 403
    assert server.get("/stats", f"Authorization: Bearer {token}y").status == 403
    assert is_endpoint(server.get("/stats", f"Authorization: Bearer {token}"))


def test_an_empty_allow_lets_nobody_in(serve: Serve) -> None:
    server = serve("facts:app", *STATS, "--stats-allow", "")
    assert server.get("/stats").status == 403


def test_a_unix_socket_needs_the_token(serve: Serve) -> None:
    server = serve("facts:app", *STATS, "--stats-token", "s3cret", binds=("unix:{dir}/s",))
    assert server.get("/stats").status == 403
    assert is_endpoint(server.get("/stats", "Authorization: Bearer s3cret"))
    made = server.get("/stats", "Authorization: Bearer s3cret").json()
    assert {each["peer"] for each in made["connections"]} == {""}


PROXY_V2 = b"\r\n\r\n\0\r\nQUIT\n"


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 127.0.0.1 127.0.0.1 4000 80\r\n",
        b"PROXY TCP4 203.0.113.9 127.0.0.1 4000 80\r\n",
        PROXY_V2 + b"\x21\x11" + struct.pack(">H4s4sHH", 12, b"\x7f\0\0\1", b"\x7f\0\0\1", 4000, 80),
    ],
)
def test_a_peer_named_by_the_proxy_protocol_is_not_straight(serve: Serve, header: bytes) -> None:
    server = serve("facts:app", *STATS, "--proxy-protocol", "auto", "--stats-token", "s3cret")
    with server.connect() as client:
        client.send(header + request("/stats"))
        assert client.read_response().status == 403
        # It holds for the whole connection.
        assert client.get("/stats").status == 403
        assert is_endpoint(client.get("/stats", "Authorization: Bearer s3cret"))
    assert is_endpoint(server.get("/stats"))


def test_ipv6_loopback_is_let_in(serve: Serve) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    server = serve("facts:app", *STATS, binds=("[::1]:0",))
    made = server.get("/stats")
    assert is_endpoint(made)
    assert made.json()["connections"][0]["peer"].startswith("[::1]:")


# --- under other servers -----------------------------------------------------------------------------------


def test_under_gthread_it_says_what_is_missing(serve: Serve) -> None:
    server = serve("facts:wrapped", worker="gthread", backend=None)
    missing = server.get("/stats")
    assert missing.status == 503
    assert b"No connection data is available" in missing.body
    assert server.get("/stats", "Via: 1.1 x").status == 403
    plain = server.get("/")
    assert plain.json()["keys"] == []
    assert plain.header("Keep-Alive") is None


def test_under_werkzeug_s_server_it_says_what_is_missing() -> None:
    code = "import facts, werkzeug.serving as w; w.run_simple('127.0.0.1', 0, facts.wrapped)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(APPS), str(APPS.parent.parent)))}
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code], stderr=subprocess.PIPE, env=environment, text=True, cwd=APPS
    )
    try:
        assert process.stderr is not None
        port = 0
        for line in process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                port = int(found[1])
                break
        with Client(("127.0.0.1", port)) as client:
            missing = client.get("/stats")
            assert missing.status == 503
            assert b"No connection data is available" in missing.body
        with Client(("127.0.0.1", port)) as client:
            assert client.get("/").json()["keys"] == []
        with Client(("127.0.0.1", port)) as client:
            assert client.get("/%73tats").json()["keys"] == []
    finally:
        process.kill()
        process.communicate()


# --- Prometheus -------------------------------------------------------------------------------------------


def test_prometheus_scrapes_it(serve: Serve, tmp_path: Path) -> None:
    """The real one, with its own parser, against two workers."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (Debian: prometheus)")
    server = serve("facts:app", "--workers", "2", "--stats-token", "s3cret", *STATS, fresh=True)
    wait_for_serving(server, 2)
    clients = [server.connect() for _ in range(6)]
    for client in clients:
        client.get("/")
        client.get("/")
    quiet(clients[0], 6)
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
        "scrape_configs:\n"
        "- job_name: keepalive\n"
        "  metrics_path: /stats\n"
        "  params: {format: [prometheus]}\n"
        "  authorization: {credentials: s3cret}\n"
        f"  static_configs: [{{targets: ['127.0.0.1:{server.port}']}}]\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(
        [
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={tmp_path}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=log,
        stderr=log,
        stdin=subprocess.DEVNULL,
    )

    def query(expression: str) -> dict[tuple[str, ...], float]:
        url = f"http://127.0.0.1:{port}/api/v1/query?query={urllib.parse.quote(expression)}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                found = json.load(answer)["data"]["result"]
        except OSError:
            return {}
        return {tuple(sorted(each["metric"].items())): float(each["value"][1]) for each in found}

    def value(expression: str) -> float:
        return sum(query(expression).values())

    try:
        wait_until(lambda: value("up") == 1 and value("keepalive_requests_total") >= 12, "a scrape", 30)
        assert value("scrape_samples_scraped") == 2 + 5 + 15 + 3 * 2 + 13 + 16 + 16
        assert value('keepalive_connections{state="idle"}') == 6
        before = value('keepalive_connections_closed_total{reason="client"}')
        for client in clients[:4]:
            client.close()
        wait_until(
            lambda: value('keepalive_connections_closed_total{reason="client"}') == before + 4,
            "the closes",
            30,
        )
        assert value("histogram_quantile(0.5, keepalive_idle_seconds_bucket)") > 0
        assert value("keepalive_requests_reused_total") >= 6
    finally:
        process.terminate()
        process.wait(20)
        log.close()


# --- the documented class name ----------------------------------------------------------------------------


def test_the_middleware_in_the_app_is_the_same(serve: Serve) -> None:
    server = serve("facts:wrapped", worker=OURS)
    assert is_endpoint(server.get("/stats"))
    assert server.get("/stats", "Via: 1.1 x").status == 403
    assert is_endpoint(server.get("/stats", "Via: 1.1 x", "Authorization: Bearer s3cret"))


def test_the_validator_is_quiet_on_both_sides(serve: Serve) -> None:
    server = serve("facts:validated", "--http-parser", "python")  # nothing to say of an old gunicorn_h1c
    with server.connect() as client:
        for target in ("/", "/stats", "/stats?format=prometheus", "/stats?format=html", "/stream"):
            assert client.get(target).status == 200
        assert client.get("/stats?format=x").status == 400
        assert client.get("/stats", method="HEAD").status == 200
        assert client.get("/stats", "Via: x").status == 403
    assert server.complaints() == []

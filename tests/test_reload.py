"""Reload, recycle and stop: nothing is lost and nobody waits."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import Counter
from contextlib import ExitStack

import pytest
from conftest import Serve
from harness import Client, Server, TruncatedError, process_exists, request, wait_until
from traffic import Traffic, upgrading

APP = "steady:app"

pytestmark = pytest.mark.only_ours("gunicorn's gevent worker loses requests, and waits for idle clients")


def _assert_nothing_lost(traffic: Traffic) -> Counter[str]:
    counts = traffic.stop()
    assert traffic.losses == [], counts
    assert counts["requests"] > counts["connects"] > 0
    return counts


def _wait_for_change(server: Server, before: list[int]) -> list[int]:
    """The new workers, when none of those *before* is left."""

    def changed() -> list[int]:
        now = server.workers()
        return now if len(now) == len(before) and not set(now) & set(before) else []

    workers: list[int] = wait_until(changed, f"workers {before} replaced", 30)
    return workers


def _reload(server: Server, traffic: Traffic, times: int) -> None:
    workers = server.workers()
    for _ in range(times):
        traffic.wait_for(requests=50)
        server.send_signal(signal.SIGHUP)
        workers = _wait_for_change(server, workers)


@pytest.mark.timeout(180)
def test_reloads_lose_no_request(serve: Serve) -> None:
    server = serve(APP, "--workers", "2", "--drain-timeout", "0.7", fresh=True)
    server.wait_for_workers(2)
    traffic = Traffic(server.address)
    _reload(server, traffic, times=20)
    counts = _assert_nothing_lost(traffic)
    assert counts["told to close"] > 0


@pytest.mark.parametrize("kind", ["one worker", "reuse port", "unix socket"])
def test_reloads_of_other_servers_lose_no_request(serve: Serve, kind: str) -> None:
    options, binds, count = ["--drain-timeout", "0.5"], ["127.0.0.1:0"], 1
    with ExitStack() as stack:
        if kind == "reuse port":
            if not hasattr(socket, "SO_REUSEPORT"):
                pytest.skip("no SO_REUSEPORT on this system")
            # Holds the port, without listening, for workers that each make a listener of their own.
            holder = stack.enter_context(socket.socket())
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            holder.bind(("127.0.0.1", 0))
            options, binds, count = [*options, "--reuse-port"], [f"127.0.0.1:{holder.getsockname()[1]}"], 2
        elif kind == "unix socket":
            binds = ["unix:{dir}/socket"]
        server = serve(APP, "--workers", str(count), *options, binds=binds, fresh=True)
        server.wait_for_workers(count)
        traffic = Traffic(server.address, pause=0.02)
        _reload(server, traffic, times=2)
        counts = _assert_nothing_lost(traffic)
        assert counts["told to close"] > 0


@pytest.mark.parametrize("count", [1, 2])
def test_reload_of_an_application_that_takes_its_time_to_load(serve: Serve, count: int) -> None:
    """Somebody accepts all the while: connects are answered, not left in the backlog."""
    server = serve(
        APP, "--workers", str(count), "--drain-timeout", "0.5", env={"STEADY_LOAD_SECONDS": "2"}, fresh=True
    )
    workers = server.wait_for_workers(count)
    server.get("/")
    server.send_signal(signal.SIGHUP)
    longest, answered_by = 0.0, set()
    while not answered_by - set(workers):
        began = time.monotonic()
        with Client(server.address) as client:
            response = client.get("/pid")
        longest = max(longest, time.monotonic() - began)
        answered_by.add(int(response.body.split()[0]))
    assert answered_by & set(workers), "the old workers stopped accepting before there were new ones"
    assert longest < 1.0


@pytest.mark.parametrize("workers", [1, 3])
def test_max_requests_loses_no_request(serve: Serve, workers: int) -> None:
    server = serve(APP, "--workers", str(workers), "--max-requests", "300", "--drain-timeout", "0.5", fresh=True)
    traffic = Traffic(server.address)
    first = server.wait_for_workers(workers)
    wait_until(lambda: not set(server.workers()) & set(first), "every first worker recycled", 60)
    _assert_nothing_lost(traffic)


@pytest.mark.parametrize("load_seconds", [0, 2])
def test_max_requests_recycles_one_worker_at_a_time(serve: Serve, load_seconds: int) -> None:
    """The next one's turn comes when the last one's replacement serves, however long it takes to load."""
    server = serve(
        APP, "--workers", "3", "--max-requests", "200", "--drain-timeout", "0.5", "--stats-path", "/stats",
        env={"STEADY_LOAD_SECONDS": str(load_seconds)}, fresh=True,
    )  # fmt: skip
    first = set(server.wait_for_workers(3))
    counts = []

    def serving() -> set[int]:
        """As the statistics say; the connection is of its own, for the worker that answers may be about to end."""
        with Client(server.address) as client:
            workers = client.get("/stats").json()["workers"]
        return {each["pid"] for each in workers if each["state"] == "running"}

    wait_until(lambda: serving() == first, "three workers that serve", 20)
    traffic = Traffic(server.address)

    def all_gone() -> bool:
        now = serving()
        counts.append(len(now))
        return not first & now

    wait_until(all_gone, "every first worker recycled", 60)
    _assert_nothing_lost(traffic)
    assert min(counts) == 2


def test_upgrade_to_a_new_master_loses_no_request(serve: Serve) -> None:
    server = serve(APP, "--workers", "2", "--drain-timeout", "0.7", "--pid", "{dir}/pid", fresh=True)
    with upgrading(server) as upgrade:
        traffic = Traffic(server.address)
        server.wait_for_workers(2)
        upgrade(traffic)
        _assert_nothing_lost(traffic)


# --- stopping ----------------------------------------------------------------------------------


@pytest.fixture
def stopping(serve: Serve) -> Server:
    """A server that keeps idle connections for half a second when it stops."""
    return serve(APP, "--drain-timeout", "0.5", "--graceful-timeout", "5", fresh=True)


def test_a_request_during_the_drain_is_answered_and_told_to_close(stopping: Server) -> None:
    client = stopping.connect()
    client.get("/")
    stopping.send_signal(signal.SIGTERM)
    while (response := client.get("/")).keeps_alive:
        assert response.status == 200  # The worker has not heard of it yet.
    assert response.status == 200
    assert response.header("Connection") == "close"
    client.assert_closed()
    assert not client.reset
    assert stopping.wait() == 0


def test_a_request_that_is_arriving_is_not_cut_off_by_the_end_of_the_drain(stopping: Server) -> None:
    arriving, idle = stopping.connect(), stopping.connect()
    assert arriving.get("/").status == 200
    assert idle.get("/").status == 200
    sent = request("/", method="POST", body=b"x" * 10)
    arriving.send(sent[:20])
    stopping.settle()
    stopping.send_signal(signal.SIGTERM)
    idle.assert_closed()
    for part in (sent[20:-5], sent[-5:]):
        arriving.assert_open(for_=0.3)
        arriving.send(part)
    response = arriving.read_response()
    assert (response.body, response.header("Connection")) == (b"10 bytes", "close")
    arriving.assert_closed()
    assert not arriving.reset
    assert stopping.wait() == 0


def test_a_request_that_was_being_handled_is_told_to_close(stopping: Server) -> None:
    """The connection's fate is decided when the head is written, not when the request came."""
    client = stopping.connect()
    client.send(request("/slow?seconds=1"))
    idle = stopping.connect()
    idle.get("/")
    stopping.send_signal(signal.SIGTERM)
    response = client.read_response()
    assert response.body == b"0 bytes"
    assert response.header("Connection") == "close"
    assert stopping.wait() == 0


def test_idle_connections_end_by_fin_as_the_drain_timeout_runs_out(stopping: Server) -> None:
    clients = [stopping.connect() for _ in range(20)]
    for client in clients[:10]:
        client.get("/")
    began = time.monotonic()
    stopping.send_signal(signal.SIGTERM)
    for client in clients:
        client.assert_closed()
        assert not client.reset
    assert time.monotonic() - began >= 0.45
    assert stopping.wait() == 0


def test_exit_follows_the_last_response_at_once(stopping: Server) -> None:
    client = stopping.connect()
    client.send(request("/slow?seconds=1.5"))
    wait_until(lambda: stopping.connect().get("/").status == 200, "the server's attention")
    stopping.send_signal(signal.SIGTERM)
    client.read_response()
    done = time.monotonic()
    assert stopping.wait() == 0
    assert time.monotonic() - done < 1.5


def test_a_stream_finishes_within_the_graceful_timeout(stopping: Server) -> None:
    client = stopping.connect()
    client.send(request("/stream?seconds=1.5"))
    client.read_head()
    stopping.send_signal(signal.SIGTERM)
    assert client.read_until_closed().endswith(b"done\n\r\n0\r\n\r\n")


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_stream_that_outlives_it_is_cut_so_that_the_client_can_tell(serve: Serve, version: str) -> None:
    """Also where only the connection's end ends the body: that must be no orderly end then."""
    server = serve(APP, "--drain-timeout", "0.2", "--graceful-timeout", "4", fresh=True)
    client = server.connect()
    client.send(request("/stream?seconds=30", version=version))
    client.read_until(b"begun\n")
    server.send_signal(signal.SIGTERM)
    try:
        rest = client.read_until_closed()
    except TruncatedError as error:
        rest = error.got
    assert b"done" not in rest
    assert b"0\r\n\r\n" not in rest
    assert client.reset
    server.wait_for_log("graceful timeout")
    assert server.wait() == 0


def test_an_upload_finishes_within_the_graceful_timeout(stopping: Server) -> None:
    client, idle = stopping.connect(), stopping.connect()
    idle.get("/")
    client.send(request("/", "Content-Length: 30", method="POST") + b"x" * 10)
    stopping.settle()
    stopping.send_signal(signal.SIGTERM)
    idle.assert_closed()
    for _ in range(2):
        client.assert_open(for_=0.3)
        client.send(b"x" * 10)
    response = client.read_response()
    assert (response.body, response.header("Connection")) == (b"30 bytes", "close")
    assert stopping.wait() == 0


def test_an_upload_that_outlives_it_gets_no_response(serve: Serve) -> None:
    server = serve(APP, "--drain-timeout", "0.2", "--graceful-timeout", "4", fresh=True)
    client = server.connect()
    client.send(request("/", "Content-Length: 30", method="POST") + b"x" * 10)
    server.settle()
    server.send_signal(signal.SIGTERM)
    assert client.read_until_closed() == b""
    server.wait_for_log("graceful timeout")
    assert server.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_quit_does_not_wait(serve: Serve, number: signal.Signals) -> None:
    server = serve(APP, "--drain-timeout", "20", "--graceful-timeout", "20", fresh=True)
    busy, idle = server.connect(), server.connect()
    idle.get("/")
    busy.send(request("/slow?seconds=30"))
    wait_until(lambda: server.connect().get("/").status == 200, "the server's attention")
    workers = server.workers()
    began = time.monotonic()
    server.send_signal(number)
    idle.assert_closed()
    assert not idle.reset
    assert busy.read_until_closed() == b""
    server.wait()
    wait_until(lambda: not any(map(process_exists, workers)), "the workers' end")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("loading", ["LOAD", "COMPUTE"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_quit_does_not_wait_for_an_application_that_is_being_loaded(
    serve: Serve, number: signal.Signals, loading: str
) -> None:
    server = serve(APP, "--graceful-timeout", "60", env={f"STEADY_{loading}_SECONDS": "60"}, fresh=True)
    (worker,) = server.wait_for_workers(1)
    server.send_signal(number)
    assert server.wait() == 0
    assert not process_exists(worker)


def test_a_worker_whose_master_was_killed_leaves(serve: Serve) -> None:
    server = serve(APP, "--workers", "2", "--drain-timeout", "0.5", fresh=True)
    workers = server.wait_for_workers(2)
    client = server.connect()
    client.get("/")
    os.kill(server.pid, signal.SIGKILL)
    client.assert_closed()
    assert not client.reset
    wait_until(lambda: not any(map(process_exists, workers)), "the workers' end", 10)

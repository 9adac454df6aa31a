"""Every reason for which a connection ends, brought about for real.

The deadlines are those of the settings' reference: never early, and soon.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from conftest import Serve
from harness import ROOT, Client, NoAnswerError, Server, request, wait_until

APP = "closing:app"
#: Seconds that a deadline may be late on a busy machine; an idle one keeps within 0.25.
LATE = 1.0

pytestmark = pytest.mark.only_ours("gunicorn's own workers do not count, and have one deadline for all")


def _closed(server: Server) -> dict[str, int]:
    with Client(server.address, tls=_tls(server)) as client:
        counts: dict[str, int] = json.loads(client.get("/closed").body)
    return counts


def _tls(server: Server) -> object:
    return server.certificates.client_context() if server.certificates else None


@contextmanager
def _counted(server: Server, reason: str, times: int = 1) -> Iterator[None]:
    """Exactly so many connections end for this reason meanwhile."""
    before = _closed(server)[reason]
    yield
    wait_until(lambda: _closed(server)[reason] >= before + times, f"{times} more closed for {reason}")
    assert _closed(server)[reason] == before + times


@contextmanager
def _takes(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert seconds - 0.05 <= took <= seconds + LATE, f"{took:.2f} s instead of {seconds}"


def _quick(serve: Serve, *options: str) -> Server:
    return serve(
        APP, "--header-timeout", "1", "--body-timeout", "1", "--send-timeout", "1", "--keep-alive", "1.5",
        "--keep-alive-grace", "0.5", *options,
    )  # fmt: skip


def test_client(serve: Serve) -> None:
    server = _quick(serve)
    before = _closed(server)["client"]
    with server.connect() as client:
        client.get("/")
        assert _closed(server)["client"] == before + 1, "the one that asked before, and no other"
    wait_until(lambda: _closed(server)["client"] >= before + 3, "its end, and that of who asked then")


def test_idle_timeout(serve: Serve) -> None:
    server = _quick(serve)
    with _counted(server, "idle_timeout"):
        client = server.connect()
        client.get("/")
        with _takes(2.0):
            client.assert_closed()
    assert not client.reset


def test_a_silent_new_connection_ends_without_a_408(serve: Serve) -> None:
    server = _quick(serve)
    with _counted(server, "idle_timeout"), _takes(2.0):
        server.connect().assert_closed()


def test_request_cap(serve: Serve) -> None:
    server = serve(APP, "--keep-alive-requests", "3")
    with _counted(server, "request_cap"):
        client = server.connect()
        assert [client.get("/").keeps_alive for _ in range(3)] == [True, True, False]
        client.assert_closed()


def test_lifetime(serve: Serve) -> None:
    """With up to a tenth off, the last request is told so; nothing is cut."""
    server = serve(APP, "--keep-alive-lifetime", "1")
    with _counted(server, "lifetime"):
        client = server.connect()
        began = time.monotonic()
        while client.get("/").keeps_alive:
            assert time.monotonic() - began < 1 + LATE
        assert time.monotonic() - began >= 0.85
        client.assert_closed()


def test_header_timeout(serve: Serve) -> None:
    """From the first byte to the end of the head, however the bytes are spread."""
    server = _quick(serve)
    with _counted(server, "header_timeout"):
        client = server.connect()
        client.send(b"GET / HTTP/1.1\r\n")
        with _takes(1.0):
            while True:
                try:
                    response = client.read_head(within=0.15)
                    break
                except NoAnswerError:
                    client.send(b"X-Drip: 1\r\n")
        assert response.status == 408
    client.read_until_closed()


def test_header_timeout_of_a_tls_handshake(serve: Serve, certificates: object) -> None:
    server = serve(APP, "--header-timeout", "1", "--keep-alive", "20", certificates=certificates)
    with _counted(server, "header_timeout"):
        client = server.connect_plain()
        client.send(b"\x16\x03\x01")
        with _takes(1.0):
            client.read_until_closed()


def test_body_timeout(serve: Serve) -> None:
    server = _quick(serve)
    with _counted(server, "body_timeout"):
        client = server.connect()
        client.send(b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
        with _takes(1.0):
            assert client.read_response().status == 408
        client.read_until_closed()


def test_body_timeout_of_a_body_that_nobody_reads(serve: Serve) -> None:
    """The client has its response before."""
    server = _quick(serve)
    with _counted(server, "body_timeout"):
        client = server.connect()
        client.send(b"POST /ignore HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
        assert client.read_response().body == b"ignored"
        with _takes(1.0):
            client.assert_closed()


def test_a_body_that_nobody_reads_is_drained_however_large(serve: Serve) -> None:
    server = _quick(serve)
    client = server.connect()
    client.send(request("/ignore", method="POST", body=b"x" * 5_000_000))
    assert client.read_response().keeps_alive
    assert client.get("/").body == b"ok"


def test_send_timeout(serve: Serve) -> None:
    server = _quick(serve, "--min-data-rate", "0")
    with _counted(server, "send_timeout"):
        client = server.connect(receive_buffer=4096)
        client.send(request("/large"))
        client.read_head()


def test_min_data_rate_of_a_body(serve: Serve) -> None:
    """Bytes that keep coming, but too slowly; five seconds are free."""
    server = serve(APP, "--body-timeout", "60", "--min-data-rate", "1000")
    with _counted(server, "min_data_rate"):
        client = server.connect()
        client.send(b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        with _takes(5.0):
            while True:
                try:
                    response = client.read_head(within=0.2)
                    break
                except NoAnswerError:
                    client.send(b"x")
        assert response.status == 408


def test_min_data_rate_of_a_response(serve: Serve) -> None:
    server = serve(APP, "--send-timeout", "60", "--min-data-rate", "100000000")
    with _counted(server, "min_data_rate"):
        client = server.connect(receive_buffer=4096)
        client.send(request("/large"))
        client.read_head()


def test_evicted(serve: Serve) -> None:
    """At the limit each new client is served at once, and the longest-idle one goes."""
    server = serve(APP, "--worker-connections", "20", fresh=True)
    idle = [server.connect() for _ in range(20)]
    for client in idle:
        client.get("/")
    slowest = 0.0
    for _ in range(10):
        began = time.monotonic()
        server.connect().get("/")
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 0.5
    for client in idle[:10]:
        client.assert_closed()
        assert not client.reset
    idle[-1].assert_open()
    assert _closed(server)["evicted"] == 11  # ten, and one for who asks


def test_when_all_are_busy_new_ones_wait_until_one_is_free(serve: Serve) -> None:
    server = serve(APP, "--worker-connections", "2", fresh=True)
    busy = [server.connect() for _ in range(2)]
    for client in busy:
        client.send(request("/slow?2"))
    wait_until(lambda: server.log().count("slow begins") == 2, "both to be busy")
    late = server.connect()
    late.send(request("/"))
    with pytest.raises(NoAnswerError):
        late.read_head(within=0.5)
    with _takes(1.5):
        assert late.read_response().body == b"ok"
    server.wait_for_log("all 2 connections are busy")


def test_out_of_descriptors(serve: Serve) -> None:
    """The longest-idle connection gives its descriptor to a new client; nothing spins."""
    few = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, few[1]))
    try:
        server = serve(APP, fresh=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, few)
    clients = [server.connect() for _ in range(100)]
    for client in clients[-30:]:
        assert client.get("/").body == b"ok"
    server.wait_for_log("closed the longest-idle connection to accept another: .* raise ulimit -n")
    before = _cpu(server.worker)
    with pytest.raises(NoAnswerError):
        clients[-1].read_head(within=1.0)
    assert _cpu(server.worker) - before < 0.3
    assert server.log().count("closed the longest-idle connection") == 1
    assert _closed(server)["evicted"] > 30


def _cpu(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_peer_limit(serve: Serve) -> None:
    server = serve(APP, "--max-peer-connections", "3", fresh=True)
    for client in [server.connect() for _ in range(3)]:
        client.get("/")
    refused = server.connect()
    assert refused.read_response().status == 503
    refused.read_until_closed()
    # Another address has its own count.
    with socket.create_connection(server.address, source_address=("127.0.0.2", 0)) as other:
        other.sendall(request("/closed", "Connection: close"))
        answer = b"".join(iter(lambda: other.recv(65536), b""))
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["peer_limit"] == 1
    server.wait_for_log("max_peer_connections")


def test_bad_request(serve: Serve) -> None:
    server = _quick(serve)
    with _counted(server, "bad_request"):
        client = server.connect()
        client.send(b"GET / HTTP/9.9\r\n\r\n")
        assert client.read_response().status == 400


@pytest.mark.parametrize("how", ["app", "client"])
def test_response(serve: Serve, how: str) -> None:
    server = _quick(serve)
    with _counted(server, "response"):
        client = server.connect()
        response = client.get("/close") if how == "app" else client.get("/", "Connection: close")
        assert not response.keeps_alive
        client.assert_closed()


@pytest.mark.logs_traceback
def test_error(serve: Serve) -> None:
    server = _quick(serve)
    with _counted(server, "error"):
        client = server.connect()
        client.send(request("/fail"))
        assert client.read_until_closed().endswith(b"12345")


def test_shutdown(serve: Serve) -> None:
    """The totals of workers that have ended are kept."""
    server = serve(APP, "--drain-timeout", "0.3", fresh=True)
    client = server.connect()
    client.get("/")
    (old,) = server.wait_for_workers(1)
    server.send_signal(signal.SIGHUP)
    client.assert_closed()
    wait_until(lambda: old not in server.workers(), "the old worker's end")
    wait_until(lambda: _closed(server)["shutdown"] >= 1, "its count")


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2")
def test_dead_peer(serve: Serve) -> None:
    """A peer that vanishes without a FIN is found by TCP keepalive, long before its idle timeout."""
    name = f"kw{os.getpid() % 100000}"
    setup = [
        f"ip netns add {name}",
        f"ip link add {name}a type veth peer name {name}b netns {name}",
        f"ip addr add 10.213.7.1/30 dev {name}a",
        f"ip link set {name}a up",
        f"ip -n {name} addr add 10.213.7.2/30 dev {name}b",
        f"ip -n {name} link set {name}b up",
    ]
    try:
        for command in setup:
            done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no network namespaces here: {done.stderr.strip()}")
        server = serve(APP, "--keep-alive", "3600", "--tcp-keepalive", "1", binds=["0.0.0.0:0"], fresh=True)
        server.addresses = [("127.0.0.1", server.port)]
        with _counted(server, "dead_peer"):
            script = (
                "import sys; from harness import Client; "
                f"client = Client(('10.213.7.1', {server.port})); client.get('/'); print('ready', flush=True); "
                "sys.stdin.read()"
            )
            with subprocess.Popen(
                ["ip", "netns", "exec", name, sys.executable, "-c", script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=ROOT / "tests",
            ) as peer:
                assert peer.stdout is not None
                assert peer.stdout.readline() == b"ready\n"
                subprocess.run(["ip", "link", "set", f"{name}a", "down"], check=True)
                peer.kill()
    finally:
        subprocess.run(["ip", "link", "del", f"{name}a"], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

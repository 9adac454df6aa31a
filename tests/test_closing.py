"""Every reason for which a connection ends, brought about for real.

The deadlines are those of the settings' reference: never early, and soon.
"""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import Serve
from counting import LATE, closed, counted, takes
from harness import ROOT, Certificates, Client, NoAnswerError, Server, chunked, process_fields, request, wait_until

APP = "closing:app"

pytestmark = pytest.mark.only_ours("gunicorn's own workers do not count, and have one deadline for all")


def _quick(serve: Serve, *options: str) -> Server:
    return serve(
        APP, "--header-timeout", "1", "--body-timeout", "1", "--send-timeout", "1", "--keep-alive", "1.5",
        "--keep-alive-grace", "0.5", *options,
    )  # fmt: skip


def test_client(serve: Serve) -> None:
    server = _quick(serve)
    before = closed(server)["client"]
    with server.connect() as client:
        client.get("/")
        assert closed(server)["client"] == before + 1, "the one that asked before, and no other"
    wait_until(lambda: closed(server)["client"] >= before + 3, "its end, and that of who asked then")


def test_idle_timeout(serve: Serve) -> None:
    server = _quick(serve)
    with counted(server, "idle_timeout"):
        client = server.connect()
        client.get("/")
        with takes(2.0):
            client.assert_closed()
    assert not client.reset


def test_a_silent_new_connection_ends_without_a_408(serve: Serve) -> None:
    server = _quick(serve)
    with counted(server, "idle_timeout"), takes(2.0):
        server.connect().assert_closed()


#: Has the worker note how late each end was by its own clock, to the moment at which it is counted.
NOTE_LATENESS = """
import json, os
from keepalive_worker.connection import LINGERING
from keepalive_worker.loop import EventLoop

waits, file = {}, os.open("{dir}/ends", os.O_CREAT | os.O_APPEND | os.O_WRONLY)

def noting(method):
    def wait(self, conn, deadline, *args, **kwargs):
        waits[conn] = deadline
        return method(self, conn, deadline, *args, **kwargs)
    return wait

def close(self, conn, reason, *args, close=EventLoop.close, **kwargs):
    if conn.state < LINGERING:
        due = {
            "idle_timeout": conn.since + conn.timeout + conn.terms.grace,
            "header_timeout": conn.started + self.options.header_timeout,
        }.get(reason.value, waits.get(conn))
        if due is not None:
            os.write(file, json.dumps([reason.value, self.clock() - due]).encode() + b"\\n")
    close(self, conn, reason, *args, **kwargs)

EventLoop.close = close
EventLoop.wait_readable = noting(EventLoop.wait_readable)
EventLoop.wait_writable = noting(EventLoop.wait_writable)
"""


def test_no_deadline_is_early_and_none_late(serve: Serve) -> None:
    """On the worker's clock, at any place between two ticks of the deadline wheel."""
    server = serve(
        APP, "--header-timeout", "1", "--body-timeout", "1.3", "--send-timeout", "0.9", "--min-data-rate", "0",
        "--keep-alive", "1", "--keep-alive-grace", "0.1", config=NOTE_LATENESS, fresh=True,
    )  # fmt: skip
    clients = []
    for _ in range(12):
        idle, head, body, slow = (server.connect(receive_buffer=4096) for _ in range(4))
        idle.get("/")
        head.send(b"GET / HT")
        body.send(request("/read", "Content-Length: 9", method="POST"))
        slow.send(request("/large"))
        clients += [idle, head, body, slow]
        # So that they do not all fall into the same place; nothing is waited for.
        time.sleep(0.037)
    reasons = ("idle_timeout", "header_timeout", "body_timeout", "send_timeout")
    wait_until(lambda: server.file("ends").count("_timeout") >= len(clients), "all to end")
    ends = [json.loads(line) for line in server.file("ends").splitlines()]
    for reason in reasons:
        lateness = [late for name, late in ends if name == reason]
        assert len(lateness) == 12, reason
        assert min(lateness) >= 0, reason
        assert max(lateness) <= LATE, reason


def test_request_cap(serve: Serve) -> None:
    server = serve(APP, "--keep-alive-requests", "3")
    with counted(server, "request_cap"):
        client = server.connect()
        assert [client.get("/").keeps_alive for _ in range(3)] == [True, True, False]
        client.assert_closed()


def test_lifetime(serve: Serve) -> None:
    """With up to a tenth off, the last request is told so; nothing is cut."""
    server = serve(APP, "--keep-alive-lifetime", "1")
    with counted(server, "lifetime"):
        client = server.connect()
        began = time.monotonic()
        while client.get("/").keeps_alive:
            assert time.monotonic() - began < 1 + LATE
        assert time.monotonic() - began >= 0.85
        client.assert_closed()


def test_header_timeout(serve: Serve) -> None:
    """From the first byte to the end of the head, however the bytes are spread."""
    server = _quick(serve)
    with counted(server, "header_timeout"):
        client = server.connect()
        client.send(b"GET / HTTP/1.1\r\n")
        with takes(1.0):
            response = client.drip(client.read_head)
        assert response.status == 408
    client.read_until_closed()


def test_header_timeout_of_a_tls_handshake(serve: Serve, certificates: object) -> None:
    server = serve(APP, "--header-timeout", "1", "--keep-alive", "20", certificates=certificates)
    with counted(server, "header_timeout"):
        client = server.connect_plain()
        client.send(b"\x16\x03\x01")
        with takes(1.0):
            client.read_until_closed()


def test_body_timeout(serve: Serve) -> None:
    server = _quick(serve)
    with counted(server, "body_timeout"):
        client = server.connect()
        client.send(b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
        with takes(1.0):
            assert client.read_response().status == 408
        client.read_until_closed()


#: Requests of which a part of the body does not come.
UNFINISHED = {
    "length": b"Content-Length: 10\r\n\r\n12345",
    "chunked": b"Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n",
    "continue": b"Expect: 100-continue\r\nContent-Length: 10\r\n\r\n",
}


def _begin(client: Client, path: str, body: str, version: str = "1.1") -> None:
    client.send(b"POST %b HTTP/%b\r\nHost: x\r\n%b" % (path.encode(), version.encode(), UNFINISHED[body]))
    if body == "continue":
        assert client.read_response().status == 100


@pytest.mark.logs_traceback
@pytest.mark.parametrize("body", UNFINISHED)
def test_body_timeout_of_which_the_application_makes_another_error(serve: Serve, body: str) -> None:
    server = _quick(serve)
    log = server.log_size
    with counted(server, "body_timeout"):
        client = server.connect()
        _begin(client, "/wrap", body)
        assert client.read_response().status == 408
        client.assert_closed()
    assert "ValueError: as frameworks do" in server.log(log)


@pytest.mark.parametrize("body", UNFINISHED)
def test_body_timeout_that_the_application_answers(serve: Serve, body: str) -> None:
    """It says what it likes; that the connection ends, the response tells, too."""
    server = _quick(serve)
    with counted(server, "body_timeout"):
        client = server.connect()
        _begin(client, "/catch", body)
        response = client.read_response()
        assert (response.body, response.keeps_alive) == (b"StreamTimeout", False)
        client.assert_closed()


def test_a_bad_body_that_the_application_answers(serve: Serve) -> None:
    """Where the next request would begin is not known, so none is promised."""
    server = _quick(serve)
    with counted(server, "bad_request"):
        client = server.connect()
        client.send(request("/catch", "Transfer-Encoding: chunked", method="POST") + b"nonsense\r\n\r\n")
        response = client.read_response()
        assert (response.body, response.keeps_alive) == (b"InvalidChunkSize", False)
        client.assert_closed()


def test_body_timeout_of_a_body_that_nobody_reads(serve: Serve) -> None:
    """The client has its response before; body_timeout is for all of the rest, however it comes."""
    server = _quick(serve)
    with counted(server, "body_timeout"):
        client = server.connect()
        client.send(b"POST /ignore HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n12345")
        assert client.read_response().body == b"ignored"
        with takes(1.0):
            while select.select([client.sock], [], [], 0.2)[0] == []:
                client.send(b"x")
            client.assert_closed()


@pytest.mark.parametrize(("body", "version"), [("chunked", "1.1"), ("continue", "1.1"), ("length", "1.0")])
def test_body_timeout_of_other_bodies_that_nobody_reads(serve: Serve, body: str, version: str) -> None:
    server = _quick(serve)
    with counted(server, "body_timeout"):
        client = server.connect()
        _begin(client, "/ignore", body, version)
        assert client.read_response().body == b"ignored"
        with takes(1.0):
            client.assert_closed()
        assert not client.reset


def test_min_data_rate_of_a_body_that_nobody_reads(serve: Serve) -> None:
    server = serve(APP, "--body-timeout", "60", "--min-data-rate", "1000")
    with counted(server, "min_data_rate"):
        client = server.connect()
        client.send(b"POST /ignore HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        assert client.read_response().body == b"ignored"
        with takes(5.0):
            while select.select([client.sock], [], [], 0.2)[0] == []:
                client.send(b"x")
            client.assert_closed()


@pytest.mark.parametrize("coding", ["length", "chunked"])
@pytest.mark.parametrize("head", ["1.1", "1.0", "close"])
def test_a_body_that_nobody_reads_is_drained_however_large(serve: Serve, coding: str, head: str) -> None:
    """The response is not lost, and it keeps its word."""
    server = _quick(serve)
    body = b"x" * 5_000_000
    headers = {"1.1": [], "1.0": ["Connection: keep-alive"], "close": ["Connection: close"]}[head]
    version = "1.0" if head == "1.0" else "1.1"
    if coding == "chunked" and version == "1.0":
        pytest.skip("HTTP/1.0 has no chunks")
    client = server.connect()
    for number in range(2):
        if coding == "length":
            client.send(request("/ignore", *headers, method="POST", version=version, body=body))
        else:
            client.send(request("/ignore", "Transfer-Encoding: chunked", *headers, method="POST"))
            client.send(chunked(*[body[:50_000]] * 100))
        response = client.read_response()
        assert (response.body, response.keeps_alive) == (b"ignored", head != "close")
        if head == "close":
            client.assert_closed()
            assert not client.reset
            break
        assert client.get("/").body == b"ok", number


def test_expect_continue_where_nobody_reads(serve: Serve) -> None:
    """The client is told to send what it then sends for nothing; the connection stays in step."""
    client = _quick(serve).connect()
    for _ in range(2):
        client.send(request("/ignore", "Expect: 100-continue", "Content-Length: 5", method="POST"))
        assert client.read_response().status == 100
        response = client.read_response()
        assert (response.body, response.keeps_alive) == (b"ignored", True)
        client.send(b"hello")
        assert client.get("/").body == b"ok"


def test_send_timeout(serve: Serve) -> None:
    server = _quick(serve, "--min-data-rate", "0")
    with counted(server, "send_timeout"):
        client = server.connect(receive_buffer=4096)
        client.send(request("/large"))
        client.read_head()


def test_min_data_rate_of_a_body(serve: Serve) -> None:
    """Bytes that keep coming, but too slowly; five seconds are free."""
    server = serve(APP, "--body-timeout", "60", "--min-data-rate", "1000")
    with counted(server, "min_data_rate"):
        client = server.connect()
        client.send(b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        with takes(5.0):
            while True:
                try:
                    response = client.read_head(within=0.2)
                    break
                except NoAnswerError:
                    client.send(b"x")
        assert response.status == 408


def test_min_data_rate_of_a_response(serve: Serve) -> None:
    server = serve(APP, "--send-timeout", "60", "--min-data-rate", "100000000")
    with counted(server, "min_data_rate"):
        client = server.connect(receive_buffer=4096)
        client.send(request("/large"))
        client.read_head()


def test_evicted(serve: Serve) -> None:
    """At the limit each new client is served at once, and the longest-idle one goes."""
    server = serve(APP, "--worker-connections", "100", fresh=True)
    idle = [server.connect() for _ in range(100)]
    for client in idle:
        client.get("/")
    time.sleep(0.2)  # None is ended for another before it has been idle for a moment (loop.SETTLED).
    clients = []
    for number in range(50):
        with takes(0.0):
            clients.append(server.connect())
            clients[-1].get("/")
        idle[number].assert_closed()
        assert not idle[number].reset
        idle[number + 1].assert_open()
    assert closed(server)["evicted"] == 51  # fifty, and one for who asks


def test_when_all_are_busy_new_ones_wait_until_one_is_free(serve: Serve) -> None:
    server = serve(APP, "--worker-connections", "2", fresh=True)
    busy = [server.connect() for _ in range(2)]
    for client in busy:
        client.send(request("/slow?2"))
    wait_until(lambda: server.log().count("slow begins") == 2, "both to be busy")
    late = [server.connect() for _ in range(20)]
    for client in late:
        client.send(request("/"))
    before = _cpu(server.worker)
    with pytest.raises(NoAnswerError):
        late[0].read_head(within=0.5)
    assert _cpu(server.worker) - before < 0.25, "it spins"
    with takes(1.5):
        assert late[0].read_response().body == b"ok"
    for client in late[1:]:
        assert client.read_response().body == b"ok"
    # Who was answered while others waited was told to make room.
    answers = [client.read_response().header("Connection") for client in busy]
    assert "close" in answers
    told = busy[answers.index("close")]
    told.assert_closed()
    assert not told.reset
    server.wait_for_log("all 2 connections are busy")
    # Once a minute, though each that waited has met it.
    assert server.log().count("all 2 connections are busy") == 1


def test_who_is_polite_loses_nothing_in_a_crowd(serve: Serve) -> None:
    """Three times as many clients as connections: all are served, and none is closed without a word."""
    # So long that nobody is ended for being idle, however slow this machine is.
    config = "from keepalive_worker import loop\n\nloop.SETTLED = 60\n"
    server = serve(APP, "--worker-connections", "4", config=config, fresh=True)
    losses: list[object] = []

    def ask() -> None:
        client = server.connect()
        try:
            for _ in range(30):
                response = client.get("/", method="POST", body=b"x")
                assert response.body == b"ok"
                if not response.keeps_alive:
                    client.assert_closed()
                    client.close()
                    client = server.connect()
        except (AssertionError, OSError) as error:
            losses.append(error)
        finally:
            client.close()

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert losses == []


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
    assert closed(server)["evicted"] > 30


def _cpu(pid: int) -> float:
    fields = process_fields(pid)
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
    with counted(server, "bad_request"):
        client = server.connect()
        client.send(b"GET / HTTP/9.9\r\n\r\n")
        assert client.read_response().status == 400


@pytest.mark.parametrize("how", ["app", "client"])
def test_response(serve: Serve, how: str) -> None:
    server = _quick(serve)
    with counted(server, "response"):
        client = server.connect()
        response = client.get("/close") if how == "app" else client.get("/", "Connection: close")
        assert not response.keeps_alive
        client.assert_closed()


@pytest.mark.logs_traceback
def test_error(serve: Serve) -> None:
    server = _quick(serve)
    with counted(server, "error"):
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
    wait_until(lambda: closed(server)["shutdown"] >= 1, "its count")


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the names of Linux")
def test_tcp_keepalive_is_for_all_connections(serve: Serve) -> None:
    """Also for those that came before there was a worker to ask for it."""
    config = "import time\ndef post_fork(server, worker):\n    time.sleep(1)\n"
    server = serve(APP, "--tcp-keepalive", "7", config=config, fresh=True)
    expected = {
        "SO_KEEPALIVE": 1,
        "TCP_KEEPIDLE": 7,
        "TCP_KEEPINTVL": 3,
        "TCP_KEEPCNT": 3,
        "TCP_USER_TIMEOUT": 16_000,
    }
    early = [server.connect() for _ in range(3)]
    for client in [*early, server.connect()]:
        assert client.get("/tcp").json() == expected
    off = serve(APP, "--tcp-keepalive", "0")
    assert off.get("/tcp").json()["SO_KEEPALIVE"] == 0


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2")
@pytest.mark.parametrize(
    ("tls", "what"),
    [
        (False, "client.get('/')"),
        (True, "client.get('/')"),
        (True, "client.send(request('/large')); client.read_head()"),
    ],
    ids=["idle", "idle-tls", "busy-tls"],
)
def test_dead_peer(serve: Serve, certificates: Certificates, tls: bool, what: str) -> None:
    """A peer that vanishes without a FIN is found by TCP keepalive, long before its idle timeout.

    Where something was sent to it that it has not acknowledged there are no probes: TCP_USER_TIMEOUT.
    """
    pid = os.getpid()
    name = f"kw{pid % 100000}"
    # Other runs on this machine have networks of their own.
    here, there = (f"10.213.{pid % 256}.{pid // 256 % 64 * 4 + number}" for number in (1, 2))
    setup = [
        f"ip netns add {name}",
        f"ip link add {name}a type veth peer name {name}b netns {name}",
        f"ip addr add {here}/30 dev {name}a",
        f"ip link set {name}a up",
        f"ip -n {name} addr add {there}/30 dev {name}b",
        f"ip -n {name} link set {name}b up",
    ]
    try:
        for command in setup:
            done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no network namespaces here: {done.stderr.strip()}")
        server = serve(
            APP, "--keep-alive", "3600", "--tcp-keepalive", "1",
            binds=["0.0.0.0:0"], certificates=certificates if tls else None, fresh=True,
        )  # fmt: skip
        server.addresses = [("127.0.0.1", server.port)]
        context = f"ssl.create_default_context(cafile={str(certificates.ca_file)!r})" if tls else None
        with counted(server, "dead_peer"):
            script = (
                "import ssl, sys; from harness import Client, request; "
                f"client = Client(({here!r}, {server.port}), tls={context}); "
                f"{what}; print('ready', flush=True); "
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

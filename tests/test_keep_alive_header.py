"""``Keep-Alive`` on the wire: there where the connection stays, absent where it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from harness import (
    IS_OURS,
    OURS,
    TESTS,
    Certificates,
    Client,
    Response,
    Server,
    request,
    stop_all,
    wait_until,
)

if TYPE_CHECKING:
    from conftest import Serve

pytestmark = pytest.mark.skipif(not IS_OURS, reason="other workers have no such header")

APP = "facts:wrapped"


def assert_stays(client: Client, response: Response, expected: str) -> None:
    """The response says so, in the one way that RFC 9110 7.6.1 allows, and it is true."""
    assert response.header("Keep-Alive") == expected
    assert response.header("Connection") == "keep-alive"
    assert client.get("/").status == 200


def assert_ends(client: Client, response: Response) -> None:
    """The response says that the connection ends and nothing else, and it is true."""
    assert response.all("Keep-Alive") == []
    assert response.header("Connection") == "close"
    client.assert_closed()


def ask(
    client: Client, target: str = "/", *headers: str, method: str = "GET", version: str = "1.1"
) -> Response:
    client.send(request(target, *headers, method=method, version=version))
    return client.read_response(method)


@pytest.fixture
def server(serve: Serve) -> Server:
    return serve(APP, "--keep-alive", "20")


@pytest.fixture
def client(server: Server) -> Client:
    return server.connect()


# --- responses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "method"),
    [
        ("/", "GET"),
        ("/", "HEAD"),
        ("/", "OPTIONS"),
        ("/204", "GET"),
        ("/304", "GET"),
        ("/304", "HEAD"),
        ("/stream", "GET"),
        ("/stream", "HEAD"),
        ("/unknown-length", "GET"),
        ("/own-header", "GET"),
        ("/stats", "GET"),
        ("/stats", "HEAD"),
        ("/stats?format=nonsense", "GET"),
    ],
)
def test_whatever_leaves_the_connection_open_says_for_how_long(
    client: Client, target: str, method: str
) -> None:
    assert_stays(client, ask(client, target, method=method), "timeout=20")


def test_it_is_on_every_response(client: Client) -> None:
    for _ in range(5):
        assert ask(client).header("Keep-Alive") == "timeout=20"


def test_pipelined_responses_have_it_each(client: Client) -> None:
    client.send(request("/") * 3)
    for _ in range(3):
        assert client.read_response().header("Keep-Alive") == "timeout=20"


def test_http_1_0_with_keep_alive(client: Client) -> None:
    response = ask(client, "/", "Connection: keep-alive", version="1.0")
    assert response.header("Keep-Alive") == "timeout=20"
    assert response.header("Connection") == "keep-alive"
    assert ask(client, "/", "Connection: keep-alive", version="1.0").status == 200


def test_http_1_0_without(client: Client) -> None:
    assert_ends(client, ask(client, version="1.0"))


@pytest.mark.parametrize("target", ["/stream", "/unknown-length"])
def test_http_1_0_where_only_the_end_of_the_connection_ends_the_body(client: Client, target: str) -> None:
    assert_ends(client, ask(client, target, "Connection: keep-alive", version="1.0"))


@pytest.mark.parametrize("header", ["Connection: close", "Connection: Close", "connection:close"])
def test_the_client_wants_the_end(client: Client, header: str) -> None:
    assert_ends(client, ask(client, "/", header))


def test_the_app_wants_the_end(client: Client) -> None:
    assert_ends(client, ask(client, "/close"))


def test_an_app_s_own_hop_by_hop_headers_do_not_get_through(client: Client) -> None:
    """gunicorn drops them; what is on the wire is what the worker means."""
    response = ask(client, "/connection-close")
    if response.header("Connection") == "close":
        assert_ends(client, response)
    else:
        assert_stays(client, response, "timeout=20")


@pytest.mark.logs_traceback
def test_an_app_that_fails(client: Client) -> None:
    response = ask(client, "/fail")
    assert response.status == 500
    assert_ends(client, response)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nbad header\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x\r\n\r\n", 501),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n", 400),
    ],
)
def test_errors_of_the_worker_itself(client: Client, data: bytes, status: int) -> None:
    ask(client)
    client.send(data)
    response = client.read_response()
    assert response.status in (status, 400, 414)
    assert_ends(client, response)


def test_a_head_that_is_late(serve: Serve) -> None:
    client = serve(APP, "--header-timeout", "0.3").connect()
    client.send(b"GET / HTTP/1.1\r\n")
    response = client.read_response()
    assert response.status == 408
    assert_ends(client, response)


def test_one_connection_too_many(serve: Serve) -> None:
    server = serve(APP, "--max-peer-connections", "1")
    first, second = server.connect(), None
    assert ask(first).status == 200
    second = server.connect()
    response = second.read_response()
    assert response.status == 503
    assert_ends(second, response)


def test_a_draining_worker(serve: Serve, tmp_path: Path) -> None:
    server = serve(APP, fresh=True)
    waiting, idle = server.connect(), server.connect()
    assert ask(idle).header("Keep-Alive") == "timeout=20"
    waiting.send(request(f"/wait?file={tmp_path}/go"))
    wait_until((tmp_path / "go.begun").exists, "the request")
    server.send_signal(signal.SIGTERM)
    server.wait_for_log("Handling signal: term")
    # A request on its way when the worker has begun to stop; it may take a moment to begin.
    while (response := ask(idle)).header("Keep-Alive") is not None:
        pass
    assert_ends(idle, response)
    (tmp_path / "go").touch()
    assert_ends(waiting, waiting.read_response())


# --- terms --------------------------------------------------------------------------------------------


def test_max_is_what_is_left_after_this_response(serve: Serve) -> None:
    client = serve(APP, "--keep-alive", "20", "--keep-alive-requests", "3").connect()
    assert ask(client).header("Keep-Alive") == "timeout=20, max=2"
    assert ask(client).header("Keep-Alive") == "timeout=20, max=1"
    assert_ends(client, ask(client))


def test_a_cap_of_one(serve: Serve) -> None:
    client = serve(APP, "--keep-alive-requests", "1").connect()
    assert_ends(client, ask(client))


@pytest.mark.parametrize(
    ("seconds", "header"),
    [("1", "timeout=1"), ("2.7", "timeout=2"), ("0.5", None), ("100000", "timeout=100000")],
)
def test_fractions_are_cut_and_never_promised(serve: Serve, seconds: str, header: str | None) -> None:
    client = serve(APP, "--keep-alive", seconds).connect()
    response = ask(client)
    assert response.header("Keep-Alive") == header
    assert response.header("Connection") == "keep-alive"


def test_no_persistence(serve: Serve) -> None:
    client = serve(APP, "--keep-alive", "0").connect()
    assert_ends(client, ask(client))


def test_a_connection_past_its_lifetime(serve: Serve) -> None:
    client = serve(APP, "--keep-alive-lifetime", "0.4").connect()
    assert ask(client).header("Keep-Alive") == "timeout=20"
    last: Response | None = None
    while (response := ask(client)).header("Connection") != "close":
        last = response
    assert last is None or last.header("Keep-Alive") == "timeout=20"
    assert_ends(client, response)


def test_keep_idle_changes_the_promise_and_what_comes_of_it(client: Client) -> None:
    assert ask(client, "/keep-idle?seconds=45.9").header("Keep-Alive") == "timeout=45"
    assert ask(client).header("Keep-Alive") == "timeout=45"
    assert ask(client, "/keep-idle?seconds=0.4").header("Keep-Alive") is None
    client.assert_closed(5)


@pytest.mark.parametrize("app", ["facts:silent", "facts:app"])
def test_without_advertise_nothing_is_said(serve: Serve, app: str) -> None:
    client = serve(app).connect()
    for target in ("/", "/own-header", "/stream"):
        response = ask(client, target)
        assert response.all("Keep-Alive") == []
        assert response.header("Connection") == "keep-alive"


def test_the_setting_alone_turns_it_on(serve: Serve) -> None:
    client = serve("facts:app", "--stats-path", "/stats").connect()
    assert_stays(client, ask(client), "timeout=20")


# --- HTTP/2 ------------------------------------------------------------------------------------------


def test_http2_has_no_such_header_but_all_else(serve: Serve, certificates: Certificates) -> None:
    server = serve(APP, "--http-protocols", "h2,h1", "--keep-alive-requests", "50", certificates=certificates)
    context = certificates.client_context("h2", "http/1.1")
    with httpx.Client(http2=True, verify=context, base_url=server.url) as client:
        for number in range(1, 4):
            response = client.get("/")
            assert response.http_version == "HTTP/2"
            assert not {"keep-alive", "connection"} & set(response.headers)
            facts = response.json()
            assert (facts["protocol"], facts["requests"], facts["tls"]) == ("HTTP/2", number, True)
            assert facts["reused"] is (number > 1)
            assert "keepalive.statistics" in facts["keys"]
            assert facts["bytes_received"] > 0
        made = client.get("/stats").json()
        assert client.get("/stats", headers={"Via": "2 x"}).status_code == 403
        assert (
            b"text/html"
            in client.get("/stats", headers={"Accept": "text/html"}).headers["Content-Type"].encode()
        )
    (row,) = [each for each in made["connections"] if each["protocol"] == "HTTP/2"]
    assert (row["requests"], row["state"]) == (4, "handling")
    with httpx.Client(verify=certificates.client_context(), base_url=server.url) as client:
        response = client.get("/")
        assert (response.http_version, response.headers["Keep-Alive"]) == ("HTTP/1.1", "timeout=20, max=49")


def test_an_http2_connection_between_requests_is_idle(serve: Serve, certificates: Certificates) -> None:
    server = serve(APP, "--http-protocols", "h2,h1", certificates=certificates)
    context = certificates.client_context("h2", "http/1.1")
    with httpx.Client(http2=True, verify=context, base_url=server.url) as client:
        client.get("/")

        def is_idle() -> bool:
            made = server.get("/stats").json()
            rows = [each for each in made["connections"] if each["protocol"] == "HTTP/2"]
            totals = made["totals"]
            return [each["state"] for each in rows] == ["idle"] and totals["connections_active"] == 1

        wait_until(is_idle, "the connection to be idle")


# --- clients that heed it ----------------------------------------------------------------------------

#: The real end comes before 4 s, after which fetch lets go of a connection by itself.
PROMISE, GRACE = 3, 0.2
#: Seconds of idleness and of a busy client: http.Agent takes 1 s off the promise, fetch 2 s, so just before and after
#: their own ends, just before, at and after the promise, and around the real end.
SHORT = ("0.5:0.01", "0.95:0.1", "1.95:0.1", "2.99:0.02", "3:0.8", "2.95:0.85")
#: Together more than a minute.
FULL = (
    *("0.5:0.01", "0.9:0.05", "0.99:0.02", "1:0.02", "1.05:0.3", "0.95:0.1"),
    *("1.9:0.05", "1.99:0.02", "2:0.02", "2.05:0.3", "1.95:0.1"),
    *("2.9:0.05", "2.95:0.1", "2.98:0.04", "2.99:0.02", "3:0.02", "3.01:0.01", "3.05:0.3", "2.9:0.3"),
    *("3.1:0.05", "3.15:0.3", "3.2:0.3", "3.1:0.4", "3.4:0.1", "3:0.5", "3:0.8", "2.95:0.85"),
)
#: ``NODE_SCHEDULE=full`` for the long one.
SCHEDULE = FULL if os.environ.get("NODE_SCHEDULE") == "full" else SHORT


@pytest.fixture
def both() -> Iterator[tuple[Server, Server]]:
    """The same server twice, with and without the header."""
    options = ("--keep-alive", str(PROMISE), "--keep-alive-grace", str(GRACE))
    servers: list[Server] = []
    try:
        told = Server(APP, *options, worker=OURS)
        servers.append(told)
        not_told = Server("facts:silent", *options, worker=OURS)
        servers.append(not_told)
        yield told, not_told
    finally:
        stop_all(servers)


@pytest.mark.timeout(180)
def test_node_loses_no_request_where_it_is_told_and_some_where_not(both: tuple[Server, Server]) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    runs = [
        subprocess.Popen(
            [node, str(TESTS / "node_client.mjs"), f"http://127.0.0.1:{server.port}/", "20", *SCHEDULE],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for server in both
    ]
    results: list[dict[str, Any]] = []
    for run in runs:
        out, err = run.communicate(timeout=150)
        assert run.returncode == 0, err
        results.append(json.loads(out))
    told, not_told = results
    assert told["sent"] == not_told["sent"] == 2 * 2 * 20 * len(SCHEDULE)
    assert told["errors"] == []
    # The schedule does meet connections that are kept, and those that are just being closed.
    assert told["reused"] >= 2 * 20
    assert not_told["errors"], "the schedule could not have failed"
    assert any(error.startswith("fetch") for error in not_told["errors"])
    assert any(error.startswith("agent") for error in not_told["errors"])

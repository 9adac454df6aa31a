"""WebSockets: the application takes the connection over (RFC 6455, by flask-sock)."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import websocket
from harness import Certificates, Server, request

if TYPE_CHECKING:
    from conftest import Serve

ECHO = "websocket_echo:app"
KEEP_ALIVE = 1


@pytest.fixture
def server(serve: Serve) -> Server:
    """The echo, with a short idle timeout for HTTP."""
    return serve(ECHO, "--keep-alive", str(KEEP_ALIVE))


@contextmanager
def _open(server: Server, path: str = "/echo") -> Iterator[websocket.WebSocket]:
    connection = websocket.create_connection(f"ws://127.0.0.1:{server.port}{path}", timeout=10)
    try:
        yield connection
    finally:
        connection.shutdown()  # type: ignore[no-untyped-call]


def test_echo(server: Server) -> None:
    with _open(server) as connection:
        for size in (0, 1, 125, 126, 65535, 65536, 300_000):
            connection.send("x" * size)
            assert connection.recv() == "x" * size
        connection.send_binary(os.urandom(1000))
        assert len(connection.recv()) == 1000
        connection.ping()
        connection.send("after the ping")
        assert connection.recv() == "after the ping"
        connection.close()


def test_messages_sent_before_the_answer_to_the_handshake(server: Server) -> None:
    """What came in the same packet as the request belongs to the application."""
    client = server.connect()
    headers = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
    headers.append("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    frame = b"\x81\x85\0\0\0\0hello"
    client.send(request("/echo", *headers))
    switched = client.read_response()
    assert (switched.status, switched.header("Sec-WebSocket-Accept")) == (101, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    client.send(frame)
    assert client.read_exactly(7) == b"\x81\x05hello"
    client.send(b"\x88\x80\0\0\0\0")
    assert client.read_exactly(1) == b"\x88"
    client.read_until_closed()


def test_websocket_on_a_connection_that_has_served_requests(server: Server) -> None:
    client = server.connect()
    for _ in range(3):
        assert client.get("/").body == b"Hello, world!\n"
        server.settle()
    headers = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
    client.send(request("/echo", *headers, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="))
    assert client.read_response().status == 101
    for _ in range(3):
        client.send(b"\x81\x85\0\0\0\0hello")
        assert client.read_exactly(7) == b"\x81\x05hello"


def test_server_pushes(server: Server) -> None:
    with _open(server, "/push") as connection:
        assert [connection.recv() for _ in range(100)] == [f"message {number}" for number in range(100)]


@pytest.mark.parametrize("who", ["server", "client", "vanish"])
def test_end_of_a_websocket(server: Server, who: str) -> None:
    """It costs nothing but its connection, whoever ends it and however."""
    before = server.log_size
    pid = server.worker
    with _open(server) as connection:
        connection.send("hello")
        assert connection.recv() == "hello"
        if who == "server":
            connection.send("close")
            opcode, _ = connection.recv_data()
            assert opcode == websocket.ABNF.OPCODE_CLOSE
        elif who == "client":
            connection.close()
    assert server.get("/").status == 200
    assert server.worker == pid
    assert server.complaints(before) == []


def test_many_websockets_and_an_idle_one(server: Server) -> None:
    """Idle for longer than HTTP's keep-alive allows, which is not for a WebSocket."""
    with _open(server) as idle:
        idle.send("first")
        assert idle.recv() == "first"
        since = time.monotonic()
        connections = [
            websocket.create_connection(f"ws://127.0.0.1:{server.port}/echo", timeout=10) for _ in range(50)
        ]
        try:
            for number, connection in enumerate(connections):
                connection.send(str(number))
            for number, connection in enumerate(connections):
                assert connection.recv() == str(number)
            assert server.get("/").status == 200
            # Past the idle timeout of HTTP and its grace, with room to spare.
            threading.Event().wait(max(0.0, since + KEEP_ALIVE + 2.0 - time.monotonic()))
            idle.send("second")
            assert idle.recv() == "second"
            for number, connection in enumerate(connections):
                connection.send(f"again {number}")
            for number, connection in enumerate(connections):
                assert connection.recv() == f"again {number}"
        finally:
            for connection in connections:
                connection.shutdown()  # type: ignore[no-untyped-call]


def test_websocket_over_tls(serve: Serve, certificates: Certificates) -> None:
    server = serve(ECHO, certificates=certificates)
    connection = websocket.create_connection(
        f"wss://localhost:{server.port}/echo",
        timeout=10,
        sslopt={"context": certificates.client_context()},
    )
    try:
        for size in (1, 1000, 100_000):
            connection.send("x" * size)
            assert connection.recv() == "x" * size
        connection.close()
    finally:
        connection.shutdown()  # type: ignore[no-untyped-call]
    assert server.get("/").status == 200

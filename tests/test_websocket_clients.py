"""WebSockets with clients that compress, fragment and ask for the closing handshake: websockets, and a browser."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import websockets
from chromium import start_chromium
from harness import Certificates, Server
from websockets.sync.client import connect

if TYPE_CHECKING:
    from conftest import Serve
    from selenium.webdriver import Chrome

ECHO = "websocket_echo:app"
SIZES = (0, 1, 125, 126, 65535, 65536, 900_000)
TIMEOUT = 10.0


@pytest.fixture(scope="module")
def backend() -> str:
    """One event backend: what differs between them is tested elsewhere."""
    return "epoll"


@pytest.fixture(params=["plain", "tls"])
def server(request: pytest.FixtureRequest, serve: Serve, certificates: Certificates) -> Iterator[Server]:
    """The echo, with an idle timeout for HTTP; it must not complain."""
    server = serve(ECHO, "--keep-alive", "1", certificates=certificates if request.param == "tls" else None)
    before = server.log_size
    yield server
    assert server.complaints(before) == []


def _target(server: Server) -> dict[str, Any]:
    """Where to connect to."""
    url = server.url.replace("http", "ws", 1) + "/echo"
    return {"uri": url, "ssl": server.certificates.client_context() if server.certificates else None}


def test_messages_whole_compressed_and_in_fragments(server: Server) -> None:
    with connect(**_target(server), open_timeout=TIMEOUT, close_timeout=TIMEOUT) as connection:
        assert connection.response is not None
        assert "permessage-deflate" in connection.response.headers["Sec-WebSocket-Extensions"]
        for size in SIZES:
            # What cannot be compressed, and what can.
            for data in (os.urandom(size), bytes(size)):
                connection.send(data)
                assert connection.recv(TIMEOUT) == data
        connection.send(["in ", "three ", "fragments"])
        assert connection.recv(TIMEOUT) == "in three fragments"
        assert connection.ping().wait(TIMEOUT)
        connection.send("after the ping")
        assert connection.recv(TIMEOUT) == "after the ping"
    assert connection.close_code == 1000


def test_without_compression(server: Server) -> None:
    with connect(**_target(server), compression=None, open_timeout=TIMEOUT, close_timeout=TIMEOUT) as connection:
        assert connection.response is not None
        assert "Sec-WebSocket-Extensions" not in connection.response.headers
        for size in SIZES:
            connection.send("x" * size)
            assert connection.recv(TIMEOUT) == "x" * size
    assert connection.close_code == 1000


def test_the_server_closes(server: Server) -> None:
    with connect(**_target(server), open_timeout=TIMEOUT, close_timeout=TIMEOUT) as connection:
        connection.send("close")
        with pytest.raises(websockets.ConnectionClosedOK):
            connection.recv(TIMEOUT)
    assert connection.close_code == 1000


def test_many_at_once(server: Server) -> None:
    target = _target(server)

    async def talk(number: int) -> None:
        async with websockets.connect(**target, open_timeout=TIMEOUT, close_timeout=TIMEOUT) as connection:
            for message in (f"{number}: {count}" for count in range(20)):
                await connection.send(message)
                assert await asyncio.wait_for(connection.recv(), TIMEOUT) == message

    async def talk_all() -> None:
        await asyncio.gather(*map(talk, range(40)))

    asyncio.run(talk_all())
    assert server.get("/").status == 200


def test_a_stop_ends_it(serve: Serve) -> None:
    """A WebSocket is a request that does not end: it has ``graceful_timeout``."""
    server = serve(ECHO, "--graceful-timeout", "1", fresh=True)
    with connect(**_target(server), open_timeout=TIMEOUT, close_timeout=TIMEOUT) as connection:
        connection.send("hello")
        assert connection.recv(TIMEOUT) == "hello"
        assert server.stop() == 0
        with pytest.raises(websockets.ConnectionClosed):
            connection.recv(TIMEOUT)


# --- in a browser --------------------------------------------------------------------------------

#: Sends each message when the one before has come back, then closes; hands over what came, and how it ended.
_TALK = """
const [url, sizes, done] = arguments;
const socket = new WebSocket(url);
const messages = sizes.flatMap((size) => ['x'.repeat(size), new Blob([new Uint8Array(size)])]);
const got = [];
socket.onopen = () => socket.send(messages[0]);
socket.onmessage = ({data}) => {
  got.push(typeof data === 'string' ? ['text', data.length] : ['binary', data.size]);
  if (got.length < messages.length) socket.send(messages[got.length]);
  else socket.close(1000);
};
socket.onclose = ({code, wasClean}) => done({got, code, wasClean, extensions: socket.extensions});
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chrome]:
    """A browser for the tests of this module."""
    browser = start_chromium()
    try:
        yield browser
    finally:
        browser.quit()


def test_chromium(server: Server, chromium: Chrome) -> None:
    chromium.get(server.url + "/")
    ended = chromium.execute_async_script(_TALK, _target(server)["uri"], SIZES)
    assert ended["got"] == [[kind, size] for size in SIZES for kind in ("text", "binary")]
    assert (ended["code"], ended["wasClean"]) == (1000, True)
    assert "permessage-deflate" in ended["extensions"]

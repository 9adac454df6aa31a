"""Clients that people use, each as a session with persistent connections.

What differs between them is only how one says it. None sends a POST again by itself, so that one that the server
loses is seen.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import io
import json
import os
import random
import select
import shutil
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

import aiohttp
import httpx
import pytest
import requests
from chromium import start_chromium
from harness import TESTS, Certificates, Server

if TYPE_CHECKING:
    from typing_extensions import Self

#: Seconds after which a client's answer is no longer expected.
PATIENCE = 30.0

#: What is put into one piece of an upload whose length is not told beforehand, in bytes.
_PIECE = 100_000


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _pieces(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), _PIECE):
        yield data[start : start + _PIECE]


class Session:
    """A client with its connections; a context manager.

    :param certificates: whom to trust
    """

    #: Most connections that it may use for what the tests do.
    connections = 1
    #: Requests that :meth:`get` makes at the same time.
    abreast = 1
    #: How it can send a body: with its ``length``, ``streamed`` without that, and with ``expect``, that is with its
    #: length and only when ``100 Continue`` has come.
    uploads: tuple[str, ...] = ("length", "streamed")
    #: Which protocols the server is to speak for it, as ``--http-protocols`` has them; None without TLS.
    protocols: str | None = None
    #: Whether it looks, before it sends a request, whether the server has ended the connection meanwhile.
    looks = True

    server: Server

    def __init__(self, certificates: Certificates) -> None:
        self.certificates = certificates

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def visit(self, server: Server) -> None:
        """Have the paths that the other methods take be of this server."""
        self.server = server

    def catch_up(self) -> None:
        """Return when it has seen what the server did before; those that look by themselves need no time for it."""

    def get(self, path: str, count: int = 1) -> list[Any]:
        """The JSON answers to so many requests, one after the other or a few abreast."""
        raise NotImplementedError

    def upload(self, path: str, size: int, how: str = "length") -> tuple[str, Any]:
        """POST *size* random bytes, see :attr:`uploads`; their SHA-256 and the JSON answer."""
        raise NotImplementedError

    def download(self, path: str) -> str:
        """The SHA-256 of what is there."""
        raise NotImplementedError

    def open(self, path: str) -> None:
        """Begin a response that is then read by :meth:`read`."""
        raise NotImplementedError

    def read(self) -> str:
        """What comes next of the opened response; empty at its end."""
        raise NotImplementedError

    def close(self) -> None:
        """End all connections."""
        raise NotImplementedError


# --- Python --------------------------------------------------------------------------------------


class Requests(Session):
    """requests, that is urllib3, which looks whether an idle connection was closed before it uses it."""

    def __init__(self, certificates: Certificates) -> None:
        super().__init__(certificates)
        self._session = requests.Session()
        self._opened: requests.Response | None = None

    def _ask(self, method: str, path: str, **keywords: Any) -> requests.Response:
        response = self._session.request(method, self.server.url + path, timeout=PATIENCE, **keywords)
        response.raise_for_status()
        return response

    def get(self, path: str, count: int = 1) -> list[Any]:
        return [self._ask("GET", path).json() for _ in range(count)]

    def upload(self, path: str, size: int, how: str = "length") -> tuple[str, Any]:
        data = random.randbytes(size)
        return _sha256(data), self._ask("POST", path, data=_pieces(data) if how == "streamed" else data).json()

    def download(self, path: str) -> str:
        return _sha256(self._ask("GET", path).content)

    def open(self, path: str) -> None:
        self._opened = self._ask("GET", path, stream=True)

    def read(self) -> str:
        assert self._opened is not None
        # iter_content() waits until it has as much as it was asked for.
        return str(self._opened.raw.read1().decode())

    def close(self) -> None:
        self._session.close()


class Httpx(Session):
    """httpx over HTTP/1.1."""

    http2 = False

    def __init__(self, certificates: Certificates) -> None:
        super().__init__(certificates)
        self._session = httpx.Client(http2=self.http2, verify=certificates.client_context(), timeout=PATIENCE)
        self._streams = contextlib.ExitStack()
        self._opened: Iterator[bytes] = iter(())

    def _checked(self, response: httpx.Response) -> httpx.Response:
        assert response.http_version == ("HTTP/2" if self.http2 else "HTTP/1.1")
        return response.raise_for_status()

    def get(self, path: str, count: int = 1) -> list[Any]:
        return [self._checked(self._session.get(self.server.url + path)).json() for _ in range(count)]

    def upload(self, path: str, size: int, how: str = "length") -> tuple[str, Any]:
        data = random.randbytes(size)
        response = self._session.post(self.server.url + path, content=_pieces(data) if how == "streamed" else data)
        return _sha256(data), self._checked(response).json()

    def download(self, path: str) -> str:
        return _sha256(self._checked(self._session.get(self.server.url + path)).content)

    def open(self, path: str) -> None:
        response = self._streams.enter_context(self._session.stream("GET", self.server.url + path))
        self._opened = self._checked(response).iter_raw()

    def read(self) -> str:
        piece = next(self._opened, b"")
        if not piece:
            self._streams.close()
        return piece.decode()

    def close(self) -> None:
        self._streams.close()
        self._session.close()


class Http2x(Httpx):
    """httpx over HTTP/2, whose connections it uses unseen (https://github.com/encode/httpcore/pull/1054)."""

    http2 = True
    looks = False
    protocols = "h2,h1"


class Aiohttp(Session):
    """aiohttp on an event loop that runs all the time, as an application's does."""

    uploads = ("length", "streamed", "expect")

    def __init__(self, certificates: Certificates) -> None:
        super().__init__(certificates)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._session = self._wait(self._make())
        self._opened: aiohttp.ClientResponse | None = None

    def _wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE + 5)

    async def _make(self) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        return aiohttp.ClientSession(timeout=timeout, raise_for_status=True)

    def catch_up(self) -> None:
        async def turn() -> None:
            # What is read in one turn of the event loop reaches the pool of connections in the next.
            for _ in range(3):
                await asyncio.sleep(0)

        self._wait(turn())

    async def _json(self, method: str, path: str, **keywords: Any) -> Any:
        async with self._session.request(method, self.server.url + path, **keywords) as response:
            return json.loads(await response.read())

    def get(self, path: str, count: int = 1) -> list[Any]:
        async def ask_all() -> list[Any]:
            return [await self._json("GET", path) for _ in range(count)]

        return list(self._wait(ask_all()))

    def upload(self, path: str, size: int, how: str = "length") -> tuple[str, Any]:
        data = random.randbytes(size)

        async def pieces() -> AsyncIterator[bytes]:
            for piece in _pieces(data):
                yield piece

        body = pieces() if how == "streamed" else io.BytesIO(data)
        return _sha256(data), self._wait(self._json("POST", path, data=body, expect100=how == "expect"))

    def download(self, path: str) -> str:
        async def fetch() -> str:
            async with self._session.get(self.server.url + path) as response:
                return _sha256(await response.read())

        return str(self._wait(fetch()))

    def open(self, path: str) -> None:
        async def begin() -> None:
            self._opened = await self._session.get(self.server.url + path)

        self._wait(begin())

    def read(self) -> str:
        assert self._opened is not None
        return str(self._wait(self._opened.content.readany()).decode())

    def close(self) -> None:
        self._wait(self._session.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()


# --- JavaScript ----------------------------------------------------------------------------------


class Scripted(Session):
    """A client whose operations are those of ``fetch_operations.mjs``."""

    def _run(self, operation: str, *arguments: Any) -> Any:
        raise NotImplementedError

    def catch_up(self) -> None:
        self._run("turn")

    def get(self, path: str, count: int = 1) -> list[Any]:
        return list(self._run("get", self.server.url + path, count, self.abreast))

    def upload(self, path: str, size: int, how: str = "length") -> tuple[str, Any]:
        sent, answer = self._run("upload", self.server.url + path, size, how)
        return sent, answer

    def download(self, path: str) -> str:
        return str(self._run("download", self.server.url + path))

    def open(self, path: str) -> None:
        self._run("open", self.server.url + path)

    def read(self) -> str:
        return str(self._run("read"))


class NodeFetch(Scripted):
    """Node's fetch, that is undici."""

    # A request made at once after a response finds the connection not free yet, and takes another.
    connections = 2
    kind = "fetch"

    def __init__(self, certificates: Certificates) -> None:
        super().__init__(certificates)
        node = shutil.which("node")
        if node is None:
            pytest.skip("no node (Debian package nodejs)")
        self._process = subprocess.Popen(
            [node, str(TESTS / "fetch_client.mjs"), self.kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | {"NODE_EXTRA_CA_CERTS": str(certificates.ca_file)},
        )
        self._unread = b""

    def _run(self, operation: str, *arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([operation, *arguments]).encode() + b"\n")
        deadline = time.monotonic() + PATIENCE + 5
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no answer from node to {operation}"
            piece = self._process.stdout.read(1 << 20)
            assert piece, f"node ended at {operation}"
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        answer = json.loads(line)
        assert "error" not in answer, f"{operation}: {answer['error']}"
        return answer["result"]

    def close(self) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(PATIENCE)
            finally:
                self._process.kill()


class NodeAgent(NodeFetch):
    """Node's older client with an ``http.Agent`` that keeps connections."""

    connections = 1
    kind = "agent"
    uploads = ("length", "streamed", "expect")


#: Runs one operation in a page and hands over what came of it.
_IN_PAGE = """
const [source, name, words, done] = arguments;
(async () => {
  window.known ??= (await import(source)).operations(fetch.bind(window));
  return {result: await window.known[name](...words)};
})().catch((error) => ({error: String(error)})).then(done);
"""


class Chromium(Scripted):
    """Headless Chromium over HTTP/1.1, in a page of the server itself."""

    connections = 6  # what browsers open to one server
    abreast = 6
    #: Streamed only over HTTP/2 (https://developer.chrome.com/docs/capabilities/web-apis/fetch-streaming-requests).
    uploads: tuple[str, ...] = ("length",)

    def __init__(self, certificates: Certificates) -> None:
        super().__init__(certificates)
        source = (TESTS / "fetch_operations.mjs").read_bytes()
        self._source = "data:text/javascript;base64," + base64.b64encode(source).decode()
        self._browser = start_chromium(timeout=PATIENCE + 5)

    def visit(self, server: Server) -> None:
        super().visit(server)
        self._browser.get(server.url + "/")

    def _run(self, operation: str, *arguments: Any) -> Any:
        answer = self._browser.execute_async_script(_IN_PAGE, self._source, operation, arguments)
        assert "error" not in answer, f"{operation}: {answer['error']}"
        return answer["result"]

    def close(self) -> None:
        self._browser.quit()


class ChromiumHttp2(Chromium):
    """Headless Chromium over HTTP/2."""

    # One for the page, and one for a moment where it opened two before it knew that they would be HTTP/2.
    connections = 2
    uploads = ("length", "streamed")
    protocols = "h2,h1"


SESSIONS: dict[str, type[Session]] = {
    "requests": Requests,
    "httpx": Httpx,
    "httpx-h2": Http2x,
    "aiohttp": Aiohttp,
    "node-fetch": NodeFetch,
    "node-agent": NodeAgent,
    "chromium": Chromium,
    "chromium-h2": ChromiumHttp2,
}

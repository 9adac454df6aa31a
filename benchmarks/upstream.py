"""The other server on the network that an application waits for."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

from benchmarks.clients import ClientProcess

#: Seconds until it answers.
DELAY = 0.05


class _Answer(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        asyncio.get_running_loop().call_later(DELAY, self._transport.write, b"Hello, World!\n")


class Upstream:
    """Answers whatever it is sent, :data:`DELAY` later."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        threading.Thread(target=asyncio.run, args=(self._serve(),), daemon=True).start()

    async def _serve(self) -> None:
        server = await asyncio.get_running_loop().create_server(_Answer, sock=self._listener, backlog=4096)
        await server.serve_forever()

    def port(self) -> int:
        """Where it listens."""
        port: int = self._listener.getsockname()[1]
        return port


@contextlib.contextmanager
def upstream(cpu: int | None) -> Iterator[int]:
    """The port of one that runs as long as the block."""
    process = ClientProcess(Upstream, cpu=cpu)
    try:
        yield process.ask("port")
    finally:
        process.stop()

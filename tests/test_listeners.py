"""What an accepted socket is like."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from gunicorn.config import Config
from gunicorn.http.wsgi import base_environ

from keepalive_worker.heads import Limits, Memory
from keepalive_worker.listeners import KEEPALIVE_PROBES, Listener

IDLE = 60


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what the test opened."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def server(stack: ExitStack) -> socket.socket:
    """A socket that listens, as systemd or gunicorn's master makes it."""
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    server.setblocking(False)
    return server


def _listener(server: socket.socket) -> Listener:
    cfg = Config()
    return Listener(server, cfg, base_environ(cfg), Limits(cfg), Memory())


def _accepted(stack: ExitStack, listener: Listener) -> socket.socket:
    fd, _, _ = listener.accept()
    return stack.enter_context(socket.socket(fileno=fd))


def _probing(sock: socket.socket) -> tuple[int, ...]:
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE)]
    if hasattr(socket, "TCP_KEEPIDLE"):
        options += [(socket.IPPROTO_TCP, name) for name in (socket.TCP_KEEPIDLE, socket.TCP_KEEPCNT)]
    return tuple(sock.getsockopt(*option) for option in options)


WITH_PROBES = (1, IDLE, KEEPALIVE_PROBES) if hasattr(socket, "TCP_KEEPIDLE") else (1,)


def test_probes_for_who_was_there_before_the_worker(stack: ExitStack, server: socket.socket) -> None:
    """In the backlog of a socket that systemd or the master opened, they have inherited nothing."""
    early = [stack.enter_context(socket.create_connection(server.getsockname())) for _ in range(3)]
    listener = _listener(server)
    stack.callback(listener.close)
    listener.set_tcp_keepalive(IDLE)
    for _ in early:
        assert _probing(_accepted(stack, listener)) == WITH_PROBES


def test_probes_for_who_comes_later(
    stack: ExitStack, server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They inherit the options: accepting costs no call for them."""
    listener = _listener(server)
    stack.callback(listener.close)
    listener.set_tcp_keepalive(IDLE)
    with pytest.raises(BlockingIOError):
        listener.accept()
    stack.enter_context(socket.create_connection(server.getsockname()))
    monkeypatch.setattr(listener, "_probe", None)
    assert _probing(_accepted(stack, listener)) == WITH_PROBES


def test_no_probes(stack: ExitStack, server: socket.socket) -> None:
    stack.enter_context(socket.create_connection(server.getsockname()))
    listener = _listener(server)
    stack.callback(listener.close)
    listener.set_tcp_keepalive(0)
    assert _probing(_accepted(stack, listener))[0] == 0

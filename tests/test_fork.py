"""Applications that fork: the child has copies of everything, and must keep its hands off all of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness import process_exists, wait_until

if TYPE_CHECKING:
    from conftest import Serve
    from harness import Certificates, Server


def _start(server: Server, how: str, file: Path) -> int:
    """The process id of a child that runs now."""
    child = int(server.get(f"/{how}?{file}").body)
    wait_until(file.with_suffix(".begun").exists, "the child runs")
    return child


@pytest.mark.only_ours("gunicorn's child accepts connections, too")
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("how", ["start", "return"])
def test_a_child_leaves_connections_to_the_worker(
    serve: Serve, certificates: Certificates, tmp_path: Path, how: str, tls: bool
) -> None:
    """What comes on them, new ones, and their ends; in epoll's set, which is the parent's too, nothing changes."""
    server = serve("forks:app", certificates=certificates if tls else None)
    worker = b"%d" % server.worker
    kept = [server.connect() for _ in range(5)]
    for client in kept:
        assert client.get("/").body == worker
    child = _start(server, how, tmp_path / "go")
    # Longer than it takes the worker's heartbeat to come round, in the child as well.
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        for client in kept:
            assert client.get("/").body == worker
        assert server.get("/").body == worker
    assert kept[0].get("/close").body == worker
    kept[0].assert_closed(within=2)  # Although the child had a copy.
    assert process_exists(child)
    (tmp_path / "go").touch()
    wait_until(lambda: not process_exists(child), "the child has ended")
    assert (tmp_path / "go.done").exists()
    for client in kept[1:]:
        assert client.get("/").body == worker
        client.assert_open()
    assert server.get("/").body == worker


def test_a_child_can_be_terminated(serve: Serve, tmp_path: Path) -> None:
    server = serve("forks:app")
    child = _start(server, "start", tmp_path / "go")
    assert server.get("/terminate").body == b"told"
    wait_until(lambda: not process_exists(child), "the child has ended")
    assert not (tmp_path / "go.done").exists()
    assert server.get("/").status == 200


def test_a_pool_of_processes(serve: Serve) -> None:
    """The one of concurrent.futures; multiprocessing's own hangs with gevent, whoever runs it."""
    server = serve("forks:app")
    kept = server.connect()
    for _ in range(3):
        assert kept.get("/executor").body == b"[1, 2, 3]"
        assert server.get("/").status == 200

"""What is measured on: its processor, cores, memory and limits."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.servers import Peer

#: What the kernel and the largest user space need for a connection, both its ends, with room to spare.
_BYTES_PER_CONNECTION = 100_000


def environment(peers: Iterable[Peer]) -> dict[str, str]:
    """What the figures depend on."""
    result = {
        "Date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "Machine": f"{_processor()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "Python": platform.python_version(),
    }
    for package in ("gunicorn", "gevent", "flask", "django"):
        try:
            result[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    for peer in peers:
        if not peer.name.startswith("gunicorn"):
            result[peer.name] = peer.version()
    return result


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def cores(server: int | None, client: int | None) -> tuple[int | None, int | None, str | None]:
    """The cores for server and clients, and what is to be said about it.

    :param server: the one asked for, or None
    :param client: the same
    """
    allowed = sorted(os.sched_getaffinity(0))
    if shutil.which("taskset") is None:
        return None, None, "taskset is not installed (util-linux): nothing is pinned to a core."
    server = allowed[0] if server is None else server
    others = [core for core in allowed if core != server]
    if client is None and not others:
        return None, None, "There is only one core: server and clients take it from each other."
    return server, others[0] if client is None else client, None


def allow_many_files() -> int:
    """Raise the limit of open files as far as it goes; all processes inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def most_connections() -> int:
    """How many idle connections the machine has room for, over all processes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            memory = 1024 * int(line.split()[1]) // _BYTES_PER_CONNECTION
    files = int(Path("/proc/sys/fs/file-max").read_text()) // 3
    return min(memory, files)

"""What a server's processes use, from Linux's /proc."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """*pid* and all processes below it."""
    found = [pid]
    for parent in found:  # grows on the way
        with contextlib.suppress(OSError):  # it has ended
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def parse_smaps_rollup(text: str) -> int:
    """Bytes that only this process holds: ``Private_Clean`` and ``Private_Dirty`` (proc(5)).

    :raises ValueError: the two are not there
    """
    kilobytes = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name in ("Private_Clean", "Private_Dirty"):
            kilobytes[name] = int(value.removesuffix("kB"))
    if len(kilobytes) != 2:
        raise ValueError("no Private_Clean and Private_Dirty in smaps_rollup")
    return 1024 * sum(kilobytes.values())


def parse_schedstat(text: str) -> float:
    """Seconds of CPU, user and system, of a thread, from its ``schedstat``: the first field, in nanoseconds."""
    return int(text.split()[0]) / 1e9


def private_memory(pids: Iterable[int]) -> int:
    """Bytes that these processes hold and share with nobody."""
    return sum(parse_smaps_rollup(Path(f"/proc/{pid}/smaps_rollup").read_text()) for pid in pids)


def cpu_seconds(pids: Iterable[int]) -> float:
    """Seconds of CPU that the threads that these processes have now have used so far."""
    return sum(
        parse_schedstat((task / "schedstat").read_text())
        for pid in pids
        for task in Path(f"/proc/{pid}/task").iterdir()
    )

"""What a server's processes use, from Linux's /proc."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


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


def parse_stat(text: str) -> float:
    """Seconds of CPU, user and system, of all threads of a process, from its ``stat`` (proc(5))."""
    # The second field, the name in brackets, may itself hold blanks and brackets.
    after_name = text.rpartition(")")[2].split()
    utime, stime = after_name[11:13]
    return (int(utime) + int(stime)) / _TICKS_PER_SECOND


def private_memory(pids: Iterable[int]) -> int:
    """Bytes that these processes hold and share with nobody."""
    return sum(parse_smaps_rollup(Path(f"/proc/{pid}/smaps_rollup").read_text()) for pid in pids)


def cpu_seconds(pids: Iterable[int]) -> float:
    """Seconds of CPU that these processes have used so far, in steps of 0.01 as a rule."""
    return sum(parse_stat(Path(f"/proc/{pid}/stat").read_text()) for pid in pids)

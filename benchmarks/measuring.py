"""In which order everything is measured, and what is left out."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.case import Case, Conditions
from benchmarks.clients import ClientError
from benchmarks.peers import cannot_import
from benchmarks.progress import Progress
from benchmarks.report import CaseResult, show
from benchmarks.servers import Peer, Server, Setup, StartError, wants

#: What goes wrong with a server or a client, in contrast to what is wrong here.
_FAILURES = (StartError, ClientError, RuntimeError, ValueError, OSError, subprocess.SubprocessError)


@dataclass(frozen=True)
class Batch:
    """Cases that are measured one after the other on the same servers.

    :param rounds: how often each server is started and measured
    """

    cases: tuple[Case, ...]
    peers: tuple[Peer, ...]
    rounds: int

    @property
    def measurements(self) -> int:
        """How many there will be."""
        return len(self.cases) * len(self.peers) * self.rounds


def reason_to_leave_out(case: Case, files: int) -> str | None:
    """Why *case* cannot be measured here; None where it can.

    :param files: that a process may have open
    """
    for missing in case.needs:
        if reason := missing():
            return reason
    if reason := cannot_import(case.modules):
        return reason
    if files < case.files:
        return f"needs {case.files} open files a process, {files} are allowed: ulimit -n {case.files}"
    return None


def peers_for(case: Case, present: Iterable[Peer], chosen: Sequence[str] | None) -> tuple[Peer, ...]:
    """The servers that *case* is measured on: those it names, or those that were chosen, as far as they can."""
    names = case.peers if chosen is None else chosen
    return tuple(peer for peer in present if peer.name in names and not wants(case.setup) & peer.lacks)


def batches(plan: Iterable[tuple[Case, tuple[Peer, ...]]], rounds: int) -> list[Batch]:
    """Cases in a row share their servers where they may, which saves time."""

    def together(entry: tuple[Case, tuple[Peer, ...]]) -> tuple[object, ...]:
        case, peers = entry
        return (case.setup, peers, case.most_rounds) if case.shared else (case.name,)

    result = []
    for _, entries in itertools.groupby(plan, together):
        cases, peers = zip(*entries, strict=True)
        if peers[0]:
            result.append(Batch(cases, peers[0], min(rounds, cases[0].most_rounds or rounds)))
    return result


class _Runner:
    """Has a server running as long as it does well."""

    def __init__(self, peer: Peer, setup: Setup, cpu: int | None) -> None:
        self._start = lambda: Server(peer, setup, cpu)
        self._server: Server | None = None

    def server(self) -> Server:
        if self._server is None:
            self._server = self._start()
        return self._server

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None


def measure(
    batch: Batch, conditions: Conditions, cpu: int | None, progress: Progress, results: dict[str, CaseResult]
) -> None:
    """Fill in *results*, the peers taking turns.

    :param cpu: the core for servers, or None for any
    :param results: of each case, by its name
    """
    for turn, peer in itertools.product(range(batch.rounds), batch.peers):
        with _runner(peer, batch.cases[0].setup, cpu) as runner:
            for case in batch.cases:
                result = results[case.name]
                progress.begin(f"{case.name}, round {turn + 1} of {batch.rounds}, {peer.name}")
                try:
                    values = case.measure(runner.server(), conditions)
                except _FAILURES as error:
                    runner.stop()  # what comes next does not start with what is broken
                    result.rounds[peer.name].append(None)
                    last_line = (str(error).strip() or repr(error)).splitlines()[-1]
                    result.remarks.append(f"{peer.name}, round {turn + 1} failed: {last_line}")
                    progress.end(f"failed:\n{error}")
                else:
                    result.rounds[peer.name].append(values)
                    progress.end("; ".join(f"{figure}: {show(value)}" for figure, value in values.items()))


@contextlib.contextmanager
def _runner(peer: Peer, setup: Setup, cpu: int | None) -> Iterator[_Runner]:
    runner = _Runner(peer, setup, cpu)
    try:
        yield runner
    finally:
        runner.stop()

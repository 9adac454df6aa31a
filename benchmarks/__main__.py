"""The command line: which cases, which peers, how long; progress on the way, and the report."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType

from benchmarks import load
from benchmarks.cases import CASES, Case, Conditions
from benchmarks.clients import ClientError
from benchmarks.report import CaseResult, Report, show
from benchmarks.servers import BASELINE, OURS, PEERS, Peer, StartError, cannot_import, running

#: What a server or a client process needs beside its connections.
_OTHER_FILES = 200


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure this worker beside other servers, in turn, on this machine.",
    )
    defaults = Conditions()
    names = [case.name for case in CASES]
    peers = [peer.name for peer in PEERS]
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"which cases: {', '.join(names)} [all]")
    parser.add_argument(
        "--peers", nargs="+", metavar="PEER", choices=peers, help=f"which servers: {', '.join(peers)} [all]"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=defaults.seconds,
        help=f"length of each load, in whole seconds [{defaults.seconds:g}]",
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each server is measured [3]")
    parser.add_argument("--idle", type=int, default=defaults.idle, help=f"idle connections [{defaults.idle}]")
    parser.add_argument("--slow", type=int, default=defaults.slow, help=f"slow clients [{defaults.slow}]")
    parser.add_argument("--quick", action="store_true", help="one short round, to see whether all works")
    parser.add_argument("--server-cpu", type=int, help="core for the server [the first one allowed]")
    parser.add_argument("--client-cpu", type=int, help="core for the clients [the second one allowed]")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write report.md and report.json there")
    parser.add_argument("--list", action="store_true", help="list the cases and end")
    result = parser.parse_intermixed_args(arguments)
    for name in result.cases:
        if name not in names:
            parser.error(f"no case {name!r}: choose from {', '.join(names)}")
    if result.rounds < 1 or result.seconds < 1 or result.idle < 1 or result.slow < 1:
        parser.error("--rounds, --seconds, --idle and --slow must be 1 or more")
    return result


def _environment() -> dict[str, str]:
    """What the figures depend on."""
    result = {
        "Date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "Machine": f"{_processor()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "Python": platform.python_version(),
    }
    for name in ("keepalive-worker", "gunicorn", "gevent", "flask"):
        try:
            result[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return result


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _cores(arguments: argparse.Namespace) -> tuple[int | None, int | None]:
    """The cores for server and clients; none without taskset or where there is just one."""
    allowed = sorted(os.sched_getaffinity(0))
    if shutil.which("taskset") is None:
        print("taskset is not installed (util-linux): nothing is pinned to a core.", file=sys.stderr)
        return None, None
    server = allowed[0] if arguments.server_cpu is None else arguments.server_cpu
    others = [core for core in allowed if core != server]
    client = others[0] if others and arguments.client_cpu is None else arguments.client_cpu
    if client is None:
        print("There is only one core: server and clients take it from each other.", file=sys.stderr)
        return None, None
    return server, client


def _allow_many_files() -> int:
    """Raise the limit of open files as far as it goes; all processes inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Progress:
    """Tells on stderr what is going on and how long it will still take."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._began = time.monotonic()

    def begin(self, what: str) -> None:
        """The next measurement has begun."""
        passed = time.monotonic() - self._began
        left = (
            f", about {_clock(passed / self._done * (self._total - self._done))} left" if self._done else ""
        )
        self._done += 1
        print(f"[{self._done}/{self._total}, {_clock(passed)}{left}] {what} ...", end=" ", file=sys.stderr)
        sys.stderr.flush()

    def end(self, outcome: str) -> None:
        """It is over."""
        print(outcome, file=sys.stderr)


def _clock(seconds: float) -> str:
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f}"


def _present_peers(chosen: Sequence[str] | None) -> Iterator[tuple[Peer, str | None]]:
    """The chosen peers, each with the reason to leave it out, if there is one."""
    for peer in PEERS:
        if chosen is None or peer.name in chosen:
            reason = cannot_import(peer.modules)
            yield peer, reason and f"{peer.name} ({reason}): {peer.install}"


def _reason_to_leave_out(case: Case, conditions: Conditions, files: int) -> str | None:
    if case.needs_load and (reason := load.missing()):
        return f"{case.name} ({reason})"
    if reason := cannot_import(case.modules):
        return f"{case.name} ({reason})"
    needed = max(conditions.idle, conditions.slow) + _OTHER_FILES
    if files < needed:
        return f"{case.name} (needs {needed} open files a process, {files} are allowed: ulimit -n {needed})"
    return None


def _measure(
    result: CaseResult,
    peers: Sequence[Peer],
    rounds: int,
    conditions: Conditions,
    cpu: int | None,
    progress: Progress,
) -> None:
    """Fill in *result*, the peers taking turns."""
    case = result.case
    for turn in range(rounds):
        for peer in peers:
            progress.begin(f"{case.name}, round {turn + 1} of {rounds}, {peer.name}")
            try:
                with running(peer, case.setup, cpu) as server:
                    values = case.measure(server, conditions)
            except (StartError, ClientError, RuntimeError, ValueError, OSError) as error:
                result.rounds[peer.name].append(None)
                last_line = (str(error).strip() or repr(error)).splitlines()[-1]
                result.remarks.append(f"{peer.name}, round {turn + 1} failed: {last_line}")
                progress.end(f"failed:\n{error}")
            else:
                result.rounds[peer.name].append(values)
                progress.end("; ".join(f"{figure}: {show(value)}" for figure, value in values.items()))


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # so that servers and clients are ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 0 unless nothing could be measured."""
    chosen = _arguments(arguments)
    if chosen.list:
        for case in CASES:
            print(f"{case.name:18} {case.title.format(idle=chosen.idle, slow=chosen.slow)}")
        return 0
    if not sys.platform.startswith("linux"):
        print("The benchmarks read Linux's /proc and pin processes to cores: Linux only.", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, _interrupt)

    conditions = Conditions(chosen.seconds, chosen.idle, chosen.slow)
    rounds = chosen.rounds
    if chosen.quick:
        rounds = 1
        conditions = replace(conditions, seconds=1, idle=min(1_000, chosen.idle), slow=min(500, chosen.slow))
    server_cpu, client_cpu = _cores(chosen)
    conditions = replace(conditions, client_cpu=client_cpu)
    files = _allow_many_files()

    left_out = []
    peers = []
    for peer, reason in _present_peers(chosen.peers):
        if reason is None:
            peers.append(peer)
        else:
            left_out.append(reason)
    cases = []
    for case in CASES:
        if chosen.cases and case.name not in chosen.cases:
            continue
        reason = _reason_to_leave_out(case, conditions, files)
        if reason is None:
            cases.append(case)
        else:
            left_out.append(reason)
    for reason in left_out:
        print(f"Left out: {reason}", file=sys.stderr)
    if not peers or not cases:
        print("There is nothing to measure.", file=sys.stderr)
        return 1

    plan = [(case, min(rounds, case.most_rounds or rounds)) for case in cases]
    progress = Progress(sum(count for _, count in plan) * len(peers))
    results: list[CaseResult] = []
    report = Report(_environment(), conditions, results, left_out, OURS, BASELINE)
    try:
        for case, count in plan:
            result = CaseResult(case, {peer.name: [] for peer in peers})
            results.append(result)
            try:
                _measure(result, peers, count, conditions, server_cpu, progress)
            finally:
                print(f"\n{report.case_markdown(result)}", flush=True)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
    if chosen.output is not None and results:
        chosen.output.mkdir(parents=True, exist_ok=True)
        (chosen.output / "report.md").write_text(report.markdown())
        (chosen.output / "report.json").write_text(report.json())
        print(f"Written: {chosen.output / 'report.md'}, {chosen.output / 'report.json'}", file=sys.stderr)
    return 0 if any(result.has_values for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())

"""The command line: which cases, which peers, how long; progress on the way, and the report."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from benchmarks import machine, measuring, plots
from benchmarks.case import Conditions
from benchmarks.cases import GROUPS, USUAL, all_cases
from benchmarks.peers import BASELINE, OURS, PEERS, install
from benchmarks.progress import Progress
from benchmarks.report import CaseResult, Report, merge


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure this worker beside other servers, in turn, on this machine.",
    )
    defaults = Conditions()
    names = [*GROUPS, *(case.name for case in all_cases(defaults))]
    peers = [peer.name for peer in PEERS]
    add = parser.add_argument
    add(
        "--cases",
        nargs="+",
        metavar="CASE",
        default=list(USUAL),
        help=f"which cases, by name (--list) or group: {', '.join(GROUPS)} [{' '.join(USUAL)}]",
    )
    add(
        "--peers",
        nargs="+",
        metavar="PEER",
        choices=peers,
        help=f"which servers: {', '.join(peers)} [those for which the case says something]",
    )
    add("--rounds", type=int, default=3, help="how often each server is measured [3]")
    add("--seconds", type=float, default=defaults.seconds, help=f"length of each load [{defaults.seconds:g}]")
    add("--idle", type=int, default=defaults.idle, help=f"idle connections [{defaults.idle}]")
    add("--most-idle", type=int, help=f"in the largest case [{defaults.most_idle}, or what memory allows]")
    add("--most-tls", type=int, help="the same over TLS [as --most-idle]")
    add("--slow", type=int, default=defaults.slow, help=f"slow clients [{defaults.slow}]")
    add("--attack", type=float, default=defaults.attack, help=f"seconds of theirs [{defaults.attack:g}]")
    add(
        "--closing",
        type=int,
        default=defaults.closing,
        help=f"--keep-alive where closing is measured [{defaults.closing}]",
    )
    add("--quick", action="store_true", help="one short round, to see whether all works")
    add("--server-cpu", type=int, help="core for the server [the first one allowed]")
    add("--client-cpu", type=int, help="core for the clients [the second one allowed]")
    add("--output", type=Path, metavar="FOLDER", help="write report.md, report.json and plots there")
    add("--list", action="store_true", help="list the cases and end")
    add("--install-peers", action="store_true", help="install other servers into benchmarks/.peers, and end")
    add(
        "--merge",
        nargs="+",
        type=Path,
        metavar="JSON",
        help="measure nothing: make one report of several report.json, of which later ones count",
    )
    result = parser.parse_args(arguments)
    for name in result.cases:
        if name not in names:
            parser.error(f"no case {name!r}: choose from {', '.join(names)}")
    if result.rounds < 1 or result.seconds <= 0 or result.idle < 1 or result.slow < 1:
        parser.error("--rounds, --seconds, --idle and --slow must be 1 or more")
    if result.merge and not result.output:
        parser.error("--merge needs --output")
    return result


def _conditions(chosen: argparse.Namespace) -> Conditions:
    room = machine.most_connections()
    most = chosen.most_idle or min(Conditions.most_idle, room)
    conditions = Conditions(
        seconds=chosen.seconds,
        idle=chosen.idle,
        most_idle=most,
        most_tls=chosen.most_tls or most,
        slow=chosen.slow,
        attack=chosen.attack,
        closing=chosen.closing,
    )
    if chosen.quick:
        conditions = replace(
            conditions,
            seconds=min(0.5, chosen.seconds),
            idle=min(1_000, chosen.idle),
            most_idle=min(3_000, most),
            most_tls=min(3_000, conditions.most_tls),
            slow=min(500, chosen.slow),
            closing=min(3, chosen.closing),
        )
    return conditions


def _write(report: Report, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    reason = plots.missing()
    drawn = [] if reason else plots.draw(report, folder)
    if reason:
        print(f"No plots: {reason}", file=sys.stderr)
    (folder / "report.md").write_text(report.markdown(drawn))
    (folder / "report.json").write_text(report.json())
    print(f"Written: {', '.join(str(folder / name) for name in ('report.md', 'report.json', *drawn))}", file=sys.stderr)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # so that servers and clients are ended


def _measure(chosen: argparse.Namespace) -> Report | None:
    """Measure and print; None where there is nothing to measure."""
    conditions = _conditions(chosen)
    server_cpu, client_cpu, remark = machine.cores(chosen.server_cpu, chosen.client_cpu)
    if remark:
        print(remark, file=sys.stderr)
    conditions = replace(conditions, client_cpu=client_cpu)
    files = machine.allow_many_files()

    left_out = []
    present = []
    for peer in PEERS:
        if chosen.peers is None or peer.name in chosen.peers:
            if reason := peer.missing():
                left_out.append(f"{peer.name} ({reason})")
            else:
                present.append(peer)
    plan = []
    for case in all_cases(conditions):
        if case.name not in chosen.cases and case.group not in chosen.cases:
            continue
        if reason := measuring.reason_to_leave_out(case, files):
            left_out.append(f"{case.name} ({reason})")
        else:
            plan.append((case, measuring.peers_for(case, present, chosen.peers)))
    for reason in left_out:
        print(f"Left out: {reason}", file=sys.stderr)
    batches = measuring.batches(plan, 1 if chosen.quick else chosen.rounds)
    if not batches:
        print("There is nothing to measure.", file=sys.stderr)
        return None

    progress = Progress(sum(batch.measurements for batch in batches))
    results: dict[str, CaseResult] = {}
    report = Report(machine.environment(present), conditions, results, left_out, OURS, BASELINE)
    try:
        for batch in batches:
            added = {case.name: CaseResult(case, {peer.name: [] for peer in batch.peers}) for case in batch.cases}
            results.update(added)
            try:
                measuring.measure(batch, conditions, server_cpu, progress, added)
            finally:
                for result in added.values():
                    print(f"\n{report.case_markdown(result)}", flush=True)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; 0 unless nothing could be measured."""
    chosen = _arguments(arguments)
    if chosen.list:
        for case in all_cases(_conditions(chosen)):
            print(f"{case.group:13} {case.name:18} {case.title}")
        return 0
    if not sys.platform.startswith("linux") or shutil.which("timeout") is None:
        print("The benchmarks read Linux's /proc and pin processes to cores: Linux only.", file=sys.stderr)
        return 1
    if chosen.install_peers:
        install(lambda text: print(text, file=sys.stderr))
        return 0
    if chosen.merge:
        _write(merge([path.read_text() for path in chosen.merge]), chosen.output)
        return 0
    signal.signal(signal.SIGTERM, _interrupt)
    report = _measure(chosen)
    if report is None:
        return 1
    if chosen.output is not None:
        _write(report, chosen.output)
    return 0 if any(result.has_values for result in report.results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

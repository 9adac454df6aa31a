"""Pictures of a report, as SVG, for the README and the docs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases.memory import IDLE_MEMORY
from benchmarks.measures import P50, P99, P999, REQUESTS
from benchmarks.peers import NGINX, cannot_import
from benchmarks.report import CaseResult, Report, show

#: Ours stands out; the others are told apart by their places and marks.
_OURS_COLOUR = "#c2410c"
_OTHERS = ("#334155", "#64748b", "#0e7490", "#4d7c0f", "#7e22ce", "#a16207", "#be185d", "#1d4ed8", "#94a3b8")
_MARKS = "so^vDPX*<>"


def missing() -> str | None:
    """Why nothing can be drawn, or None."""
    reason = cannot_import(("matplotlib",))
    return reason and f"{reason}: pip install '.[bench]'"


def draw(report: Report, folder: Path) -> list[str]:
    """Draw what the report has figures for; the names of the files in *folder*."""
    import matplotlib as mpl

    mpl.use("svg")
    # The same figures give the same file, byte for byte; text stays text.
    mpl.rcParams.update({"svg.hashsalt": "benchmarks", "svg.fonttype": "none", "font.size": 9})
    import matplotlib.pyplot as plt

    drawn = []
    for name, size, draw_into in _PLOTS:
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        if draw_into(report, axes):
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
            figure.savefig(folder / name, metadata={"Date": None, "Creator": None})
            drawn.append(name)
        plt.close(figure)
    return drawn


def _colour(report: Report, peer: str) -> str:
    if peer == report.ours:
        return _OURS_COLOUR
    others = [other for other in report.peers if other != report.ours]
    return _OTHERS[others.index(peer) % len(_OTHERS)]


def _mark(report: Report, peer: str) -> str:
    return _MARKS[report.peers.index(peer) % len(_MARKS)]


def _present(report: Report, names: Sequence[str]) -> list[CaseResult]:
    return [report.results[name] for name in names if name in report.results and report.results[name].has_values]


def _bars(report: Report, axes: Any, case: str, figure: str, title: str) -> bool:
    """One bar for each server, the longest on top; lines show the smallest and the largest round."""
    for result in _present(report, [case]):
        spreads = {peer: result.spread(peer, figure) for peer in result.rounds}
        found = sorted(((spread, peer) for peer, spread in spreads.items() if spread), key=lambda item: item[0].median)
        for place, (spread, peer) in enumerate(found):
            error = [[spread.median - spread.least], [spread.most - spread.median]]
            axes.barh(place, spread.median, xerr=error, color=_colour(report, peer), ecolor="black", capsize=2)
            axes.annotate(
                f"  {show(spread.median)}", (spread.most, place), va="center", xytext=(2, 0), textcoords="offset points"
            )
        axes.set_yticks(range(len(found)), [peer for _, peer in found])
        axes.margins(x=0.15)
        axes.set_title(title)
        return True
    return False


def _lines(
    report: Report, axes: Any, cases: Sequence[tuple[str, float]], figure: str, *, dashes: str = "-", label: str = ""
) -> bool:
    """One line for each server over cases that differ in a number."""
    numbers = dict(cases)
    results = _present(report, list(numbers))
    for peer in report.peers:
        points = [(numbers[result.case.name], result.spread(peer, figure)) for result in results]
        known = [(number, spread.median) for number, spread in points if spread]
        if known:
            axes.plot(
                *zip(*known, strict=True),
                color=_colour(report, peer),
                marker=_mark(report, peer),
                linestyle=dashes,
                linewidth=2.5 if peer == report.ours else 1.2,
                label=peer + label,
            )
    return bool(results)


def _memory(report: Report, axes: Any) -> bool:
    """Memory of an idle connection by their number, plain and over TLS."""
    conditions = report.conditions
    found = False
    for kind, most, dashes, label in (
        ("", conditions.most_idle, "-", ""),
        ("tls-", conditions.most_tls, "--", ", TLS"),
    ):
        counts = [min(1_000, conditions.idle), conditions.idle]
        cases = [*((f"idle-{kind}{count}", float(count)) for count in counts), (f"idle-{kind}most", float(most))]
        found = _lines(report, axes, cases, IDLE_MEMORY, dashes=dashes, label=label) or found
    if not found:
        return False
    axes.set(xscale="log", yscale="log", xlabel="idle connections", ylabel=IDLE_MEMORY)
    axes.set_title("Memory of an idle connection")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return True


def _hello(report: Report, axes: Any) -> bool:
    return _bars(report, axes, "hello-64", REQUESTS, "Hello world, 64 connections, one worker: requests/s")


def _concurrency(report: Report, axes: Any) -> bool:
    """Hello world by the number of connections."""
    if not _lines(report, axes, [(f"hello-{count}", count) for count in (1, 64, 512, 4096)], REQUESTS):
        return False
    axes.set(xscale="log", yscale="log", xlabel="connections", ylabel=REQUESTS)
    axes.set_title("Hello world by the number of connections")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return True


def _latency(report: Report, axes: Any) -> bool:
    """Half, one in a hundred and one in a thousand requests wait longer."""
    for result in _present(report, ["hello-64"]):
        for peer in result.rounds:
            spreads = [result.spread(peer, figure) for figure in (P50, P99, P999)]
            if all(spreads):
                axes.plot(
                    ["p50", "p99", "p99.9"],
                    [spread.median for spread in spreads if spread],
                    color=_colour(report, peer),
                    marker=_mark(report, peer),
                    linewidth=2.5 if peer == report.ours else 1.2,
                    label=peer,
                )
        axes.set(yscale="log", ylabel="ms")
        axes.set_title("Latency of hello world under full load, 64 connections")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
        return True
    return False


def _ratios(report: Report, axes: Any) -> bool:
    """All cases in requests a second, as multiples of the baseline."""
    results = [
        result
        for result in report.results.values()
        if result.case.compare and result.has_values and result.figures[0].startswith(REQUESTS)
    ]
    if not results:
        return False
    shown = set()
    for place, result in enumerate(reversed(results)):
        for peer in result.rounds:
            spread = result.ratio(peer, report.baseline, result.figures[0])
            if spread and peer not in (report.baseline, NGINX):
                axes.plot(
                    spread.median,
                    place,
                    color=_colour(report, peer),
                    marker=_mark(report, peer),
                    markersize=8 if peer == report.ours else 5,
                    linestyle="none",
                    label=None if peer in shown else peer,
                )
                shown.add(peer)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(results)), [result.case.name for result in reversed(results)])
    axes.set(xscale="log", xlabel=f"times {report.baseline}")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title(f"Requests a second, as a multiple of {report.baseline}")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return True


#: File, size in inches, and what draws it; it returns whether there was anything to draw.
_PLOTS: tuple[tuple[str, tuple[float, float], Callable[[Report, Any], bool]], ...] = (
    ("hello.svg", (7, 3.2), _hello),
    ("concurrency.svg", (7, 4), _concurrency),
    ("latency.svg", (7, 4), _latency),
    ("memory.svg", (8, 4.5), _memory),
    ("ratios.svg", (8, 5), _ratios),
)

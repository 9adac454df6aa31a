"""From measured values to a table in Markdown, and to JSON."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from benchmarks.case import Case, Conditions, Target, Values
from benchmarks.cases import all_cases
from benchmarks.peers import BASELINE, OURS

#: Stands where something did not happen as long as it was waited for.
_NEVER = "never"


@dataclass(frozen=True)
class Spread:
    """Values of several rounds: their median, smallest and largest."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of one value or more."""
        ordered = sorted(values)
        if math.inf in ordered:  # no mean of it and another one
            return cls(ordered[len(ordered) // 2], ordered[0], ordered[-1])
        return cls(statistics.median(ordered), ordered[0], ordered[-1])

    def __str__(self) -> str:
        if show(self.least) == show(self.most):
            return show(self.median)
        return f"{show(self.median)} ({show(self.least)}..{show(self.most)})"


def show(value: float) -> str:
    """*value* to three digits or to the unit, whichever is finer."""
    if math.isinf(value):
        return _NEVER
    if abs(value) >= 100:
        return f"{value:,.0f}"
    # 0.04 of a per cent is as good as none of it.
    digits = 2 if abs(value) < 10 else 1
    return f"{value:.{digits}f}"


@dataclass
class CaseResult:
    """What a case has given.

    :param rounds: of each peer, the values of each round; None where that round failed
    :param remarks: what went wrong, for the reader
    """

    case: Case
    rounds: dict[str, list[Values | None]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def figures(self) -> list[str]:
        """Titles of what was measured; the first is the main one. None where all failed."""
        for rounds in self.rounds.values():
            for values in rounds:
                if values is not None:
                    return list(values)
        return []

    @property
    def has_values(self) -> bool:
        """Whether anything was measured."""
        return bool(self.figures)

    def spread(self, peer: str, figure: str) -> Spread | None:
        """The spread of a figure of a peer, or None without a single value."""
        values = [values[figure] for values in self.rounds.get(peer, []) if values is not None]
        return Spread.of(values) if values else None

    def ratio(self, peer: str, baseline: str, figure: str) -> Spread | None:
        """The spread of the ratios to *baseline* in the same rounds, or None where there are none."""
        pairs = zip(self.rounds.get(peer, []), self.rounds.get(baseline, []), strict=False)
        ratios = [
            ours[figure] / theirs[figure]
            for ours, theirs in pairs
            if ours is not None and theirs is not None and math.isfinite(theirs[figure]) and theirs[figure] > 0
        ]
        return Spread.of(ratios) if ratios else None


@dataclass(frozen=True)
class Verdict:
    """A target, the measured value, and whether it reaches it; None where nothing was measured."""

    target: Target
    value: float | None
    reached: bool | None


def judge(result: CaseResult, ours: str) -> list[Verdict]:
    """Compare the medians with the targets of the case."""
    verdicts = []
    for target in result.case.targets:
        if target.to is None:
            spread = result.spread(ours, target.figure)
        else:
            spread = result.ratio(ours, target.to, target.figure)
        if spread is None:
            verdicts.append(Verdict(target, None, None))
            continue
        # What never happened is neither early nor late enough.
        reached = math.isfinite(spread.median)
        reached = reached and (target.least is None or spread.median >= target.least)
        reached = reached and (target.most is None or spread.median <= target.most)
        verdicts.append(Verdict(target, spread.median, reached))
    return verdicts


def _describe(verdict: Verdict) -> str:
    target = verdict.target
    limits = []
    if target.least is not None:
        limits.append(f"at least {show(target.least)}")
    if target.most is not None:
        limits.append(f"at most {show(target.most)}")
    what = f"{target.figure}: {', '.join(limits)}"
    if target.to is not None:
        what += f" times {target.to}'s"
    if verdict.value is None:
        return f"{what}. Not measured."
    return f"{what}. Measured: {show(verdict.value)}, {'reached' if verdict.reached else '**not reached**'}."


def _row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _table(result: CaseResult, baseline: str) -> list[str]:
    if not result.has_values:
        return ["Nothing was measured."]
    figures = result.figures
    columns = list(figures)
    if result.case.compare:
        columns.insert(1, f"x {baseline}")
    lines = [_row(["server", *columns]), f"| --- |{' ---: |' * len(columns)}"]
    for peer in result.rounds:
        cells = [result.spread(peer, figure) for figure in figures]
        if not any(cells):
            continue
        if result.case.compare:
            cells.insert(1, None if peer == baseline else result.ratio(peer, baseline, figures[0]))
        lines.append(_row([peer, *("" if cell is None else cell for cell in cells)]))
    return lines


@dataclass(frozen=True)
class Report:
    """All that is to be told.

    :param environment: what was measured on, by name
    :param results: by the name of the case
    :param left_out: peers and cases that could not be measured, with the reason
    """

    environment: dict[str, str]
    conditions: Conditions
    results: Mapping[str, CaseResult]
    left_out: Sequence[str]
    ours: str
    baseline: str

    @property
    def peers(self) -> list[str]:
        """All that were measured, in order."""
        return list(dict.fromkeys(peer for result in self.results.values() for peer in result.rounds))

    def case_markdown(self, result: CaseResult) -> str:
        """The table of one case, with its targets."""
        lines = [f"## {result.case.name}", "", f"{result.case.title}.", "", *_table(result, self.baseline), ""]
        if self.ours in result.rounds:
            lines += [f"- {_describe(verdict)}" for verdict in judge(result, self.ours)]
        lines += [f"- {remark}" for remark in result.remarks]
        return "\n".join(lines).rstrip() + "\n"

    def _ratios(self) -> list[str]:
        """A table of all cases: how each server did, as a multiple of the baseline."""
        compared = [result for result in self.results.values() if result.case.compare and result.has_values]
        peers = [peer for peer in self.peers if peer != self.baseline]
        if not compared or not peers:
            return []
        lines = [
            f"As a multiple of {self.baseline} in the same round (median):",
            "",
            _row(["case", "figure", *peers]),
            f"| --- | --- |{' ---: |' * len(peers)}",
        ]
        for result in compared:
            figure = result.figures[0]
            ratios = [result.ratio(peer, self.baseline, figure) for peer in peers]
            lines.append(_row([result.case.name, figure, *("" if r is None else show(r.median) for r in ratios)]))
        return [*lines, ""]

    def _unreached(self) -> list[str]:
        """The targets that were not reached."""
        named = [(name, verdict) for name, result in self.results.items() for verdict in judge(result, self.ours)]
        judged = [(name, verdict) for name, verdict in named if verdict.reached is not None]
        reached = sum(bool(verdict.reached) for _, verdict in judged)
        if not judged:
            return []
        lines = [f"Targets reached: {reached} of {len(judged)}.", ""]
        missed = [f"- {name}: {_describe(verdict)}" for name, verdict in judged if not verdict.reached]
        return [*lines, *missed, ""] if missed else lines

    def markdown(self, plots: Sequence[str] = ()) -> str:
        """All of it.

        :param plots: files beside the report
        """
        lines = ["# Benchmark", ""]
        lines += [f"- {name}: {value}" for name, value in self.environment.items()]
        lines += [f"- Left out: {text}" for text in self.left_out]
        lines += ["", "Medians of all rounds, in brackets the smallest and the largest value.", ""]
        lines += self._ratios() + self._unreached()
        for plot in plots:
            lines += [f"![{plot.rpartition('.')[0]}]({plot})", ""]
        return "\n".join(lines) + "\n" + "\n".join(map(self.case_markdown, self.results.values()))

    def json(self) -> str:
        """All of it, with the values of each round; what never happened is null."""
        cases = []
        for result in self.results.values():
            verdicts = judge(result, self.ours)
            cases.append(
                {
                    "name": result.case.name,
                    "title": result.case.title,
                    "rounds": {
                        peer: [None if values is None else _without_infinity(values) for values in rounds]
                        for peer, rounds in result.rounds.items()
                    },
                    "targets": [
                        {
                            **asdict(verdict.target),
                            "value": None if verdict.value is None else _finite(verdict.value),
                            "reached": verdict.reached,
                        }
                        for verdict in verdicts
                    ],
                    "remarks": result.remarks,
                }
            )
        content = {
            "environment": self.environment,
            "conditions": asdict(self.conditions),
            "baseline": self.baseline,
            "left_out": list(self.left_out),
            "cases": cases,
        }
        return json.dumps(content, indent=2, allow_nan=False) + "\n"


def merge(contents: Iterable[str]) -> Report:
    """One report of several written by :meth:`Report.json`; of a case that is in two of them, the later one.

    So a long measurement can be made in parts. What was measured on is told for the last part.
    """
    results: dict[str, CaseResult] = {}
    left_out: dict[str, None] = {}
    for text in contents:
        content = json.loads(text)
        conditions = Conditions(**content["conditions"])
        known = {case.name: case for case in all_cases(conditions)}
        left_out.update(dict.fromkeys(content["left_out"]))
        for case in content["cases"]:
            rounds = {
                peer: [values and {figure: _infinite(value) for figure, value in values.items()} for values in rounds]
                for peer, rounds in case["rounds"].items()
            }
            results[case["name"]] = CaseResult(known[case["name"]], rounds, case["remarks"])
    order = {case.name: number for number, case in enumerate(all_cases(conditions))}
    ordered = dict(sorted(results.items(), key=lambda item: order.get(item[0], len(order))))
    return Report(content["environment"], conditions, ordered, list(left_out), OURS, BASELINE)


def _without_infinity(values: Values) -> dict[str, float | None]:
    return {figure: _finite(value) for figure, value in values.items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _infinite(value: float | None) -> float:
    return math.inf if value is None else value

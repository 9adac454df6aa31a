"""From measured values to a table in Markdown, and to JSON."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.cases import Case, Conditions, Target, Values

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
    def has_values(self) -> bool:
        """Whether anything was measured."""
        return any(values is not None for rounds in self.rounds.values() for values in rounds)

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
            if ours is not None
            and theirs is not None
            and math.isfinite(theirs[figure])
            and theirs[figure] > 0
        ]
        return Spread.of(ratios) if ratios else None


@dataclass(frozen=True)
class Verdict:
    """A target, the measured value, and whether it reaches it; None where nothing was measured."""

    target: Target
    value: float | None
    reached: bool | None


def judge(result: CaseResult, ours: str, baseline: str) -> list[Verdict]:
    """Compare the medians with the targets of the case."""
    verdicts = []
    for target in result.case.targets:
        if target.relative:
            spread = result.ratio(ours, baseline, target.figure)
        else:
            spread = result.spread(ours, target.figure)
        if spread is None:
            verdicts.append(Verdict(target, None, None))
            continue
        # What never happened is neither early nor late enough.
        reached = math.isfinite(spread.median)
        reached = reached and (target.least is None or spread.median >= target.least)
        reached = reached and (target.most is None or spread.median <= target.most)
        verdicts.append(Verdict(target, spread.median, reached))
    return verdicts


def _describe(verdict: Verdict, baseline: str) -> str:
    target = verdict.target
    limits = []
    if target.least is not None:
        limits.append(f"at least {show(target.least)}")
    if target.most is not None:
        limits.append(f"at most {show(target.most)}")
    what = f"{target.figure}: {', '.join(limits)}"
    if target.relative:
        what += f" times {baseline}'s"
    if verdict.value is None:
        return f"{what}. Not measured."
    return f"{what}. Measured: {show(verdict.value)}, {'reached' if verdict.reached else '**not reached**'}."


def _table(result: CaseResult, baseline: str) -> list[str]:
    measured = [peer for peer, rounds in result.rounds.items() if any(values for values in rounds)]
    if not measured:
        return ["Nothing was measured."]
    figures = list(next(values for values in result.rounds[measured[0]] if values is not None))
    main = figures[0]
    columns = list(figures)
    if result.case.compare:
        columns.insert(1, f"x {baseline}")
    lines = [f"| server | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    for peer in measured:
        cells = [result.spread(peer, figure) for figure in figures]
        if result.case.compare:
            cells.insert(1, None if peer == baseline else result.ratio(peer, baseline, main))
        lines.append(f"| {peer} | {' | '.join('' if cell is None else str(cell) for cell in cells)} |")
    return lines


@dataclass(frozen=True)
class Report:
    """All that is to be told.

    :param environment: what was measured on, by name
    :param left_out: peers and cases that could not be measured, with the reason
    """

    environment: dict[str, str]
    conditions: Conditions
    results: Sequence[CaseResult]
    left_out: Sequence[str]
    ours: str
    baseline: str

    def case_markdown(self, result: CaseResult) -> str:
        """The table of one case, with its targets."""
        conditions = self.conditions
        title = result.case.title.format(idle=conditions.idle, slow=conditions.slow)
        lines = [f"## {result.case.name}", "", f"{title}.", "", *_table(result, self.baseline), ""]
        if self.ours in result.rounds:
            verdicts = judge(result, self.ours, self.baseline)
            lines += [f"- {_describe(verdict, self.baseline)}" for verdict in verdicts]
        lines += [f"- {remark}" for remark in result.remarks]
        return "\n".join(lines).rstrip() + "\n"

    def markdown(self) -> str:
        """All of it."""
        lines = ["# Benchmark", ""]
        lines += [f"- {name}: {value}" for name, value in self.environment.items()]
        lines += [f"- Left out: {text}" for text in self.left_out]
        lines += ["", "Medians of all rounds, in brackets the smallest and the largest value.", ""]
        return "\n".join(lines) + "\n" + "\n".join(self.case_markdown(result) for result in self.results)

    def json(self) -> str:
        """All of it, with the values of each round; what never happened is null."""
        cases = []
        for result in self.results:
            verdicts = judge(result, self.ours, self.baseline)
            cases.append(
                {
                    "name": result.case.name,
                    "rounds": {
                        peer: [None if values is None else _without_infinity(values) for values in rounds]
                        for peer, rounds in result.rounds.items()
                    },
                    "targets": [
                        {
                            "figure": verdict.target.figure,
                            "least": verdict.target.least,
                            "most": verdict.target.most,
                            "relative": verdict.target.relative,
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
            "conditions": {
                "seconds": self.conditions.seconds,
                "idle": self.conditions.idle,
                "slow": self.conditions.slow,
            },
            "baseline": self.baseline,
            "left_out": list(self.left_out),
            "cases": cases,
        }
        return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _without_infinity(values: Values) -> dict[str, float | None]:
    return {figure: _finite(value) for figure, value in values.items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

"""Figures of the benchmarks: one JSON line each, and the table with the goal beside the figure.

`ratio` says how many times better we are than the baseline, above 1 is better: the baseline's time
over ours, or our rate over its rate. A goal is a bound on the value or on the ratio.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

_SCALES = {"s": ((1e-6, 1e9, "ns"), (1e-3, 1e6, "us"), (1.0, 1e3, "ms"))}
_NOTICEABLE = 0.005  # of the CPU time: from there on a p99 is the host's more than ours
# The order in which a line's fields are written; bench/README.md says what they are.
FIELDS = (
    "bench",
    "goal_id",
    "metric",
    "value",
    "unit",
    "baseline",
    "baseline_value",
    "ratio",
    "runs",
    "goal",
    "goal_met",
    "size",
    "page_kind",
    "machine",
    "stolen",
    "features",
    "date",
    "command",
)


@dataclass(frozen=True)
class Goal:
    """A bound; `text` is what the table shows."""

    text: str
    holds: Callable[[float, float], bool]  # value, ratio


def at_most(most: float, text: str) -> Goal:
    """The value itself is bounded."""
    return Goal(text, lambda value, _: value <= most)


def at_least(least: float, text: str) -> Goal:
    """The value itself is bounded from below."""
    return Goal(text, lambda value, _: value >= least)


def at_most_more(most: float, text: str) -> Goal:
    """Than the baseline, by the same unit."""
    return Goal(text, lambda value, ratio: value - value * ratio <= most)


def times_better(least: float) -> Goal:
    """So many times as good as the baseline, or more."""
    return Goal(f"ratio >= {least:g}", lambda _, ratio: ratio >= least)


def within_times(most: float) -> Goal:
    """At most so many times the baseline's time or bytes."""
    text = f"<= {most:g} x baseline: ratio >= {1 / most:.2f}"
    return Goal(text, lambda _, ratio: ratio * most >= 1)


FASTER = Goal("faster: ratio > 1", lambda _, ratio: ratio > 1)


@dataclass
class Figure:
    """One line. The fields of a machine and a run are filled in by Figures."""

    bench: str
    goal_id: str
    metric: str
    value: float
    unit: str
    baseline: str
    baseline_value: float
    ratio: float
    runs: int
    goal: str
    goal_met: bool | None  # None: no goal, or one for another file or machine
    size: int  # bytes of the file; 0 where none matters
    page_kind: str
    machine: str
    stolen: float  # 0 to 1: of the CPU time since the program's start, by the host
    features: list[str] = field(default_factory=list)
    date: str = ""
    command: str = ""


class Figures:
    """Takes figures in, writes each at once as a line, and prints the table at the end."""

    def __init__(self, out: TextIO, common: Mapping[str, Any], stolen: Callable[[], float]) -> None:
        """`common`: the fields that all figures of a run share. `stolen`: the share so far."""
        self._out = out
        self._stolen = stolen
        self._common = dict(common)
        self._lines: list[dict[str, Any]] = []

    def say_of_all(self, **common: Any) -> None:
        """Fields for the figures from now on."""
        self._common |= common

    def add(
        self,
        metric: str,
        value: float,
        baseline: str,
        against: float,
        *,
        runs: int,
        unit: str = "s",
        goal: Goal | None = None,
        goal_id: str = "",
        applies: bool = True,
        more_is_better: bool = False,
        **fields: Any,
    ) -> None:
        """`applies`: whether the goal is meant for this file and this machine."""
        ours, theirs = (value, against) if more_is_better else (against, value)
        # Nothing at all against something: as good as can be, and JSON has no infinity.
        ratio = ours / theirs if theirs else (1.0 if ours == 0 else 1e9)
        common = {**self._common, **fields}
        if goal_id:
            common["goal_id"] = goal_id
        figure = Figure(
            metric=metric,
            value=float(value),
            unit=unit,
            baseline=baseline,
            baseline_value=float(against),
            ratio=ratio,
            runs=runs,
            goal=goal.text if goal else "",
            goal_met=goal.holds(value, ratio) if goal and applies else None,
            stolen=round(self._stolen(), 4),
            **common,
        )
        line = asdict(figure)
        self._write({name: line[name] for name in FIELDS})

    def leave_out(self, what: str, reason: str) -> None:
        """Says what was not measured, and why: nothing is dropped silently."""
        self._write({"bench": self._common["bench"], "left_out": what, "reason": reason})

    def table(self) -> str:
        """All of this run's figures."""
        return table(self._lines)

    def _write(self, line: dict[str, Any]) -> None:
        self._lines.append(line)
        print(json.dumps(line), file=self._out, flush=True)


def parse_lines(text: str) -> list[dict[str, Any]]:
    """What a program wrote."""
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def shown(value: float, unit: str) -> str:
    """A value for people: a time in the unit that fits it."""
    if unit == "s":
        for below, factor, name in _SCALES["s"]:
            if value < below:
                return f"{value * factor:.3g} {name}"
        return f"{value:.2f} s"
    if unit == "bytes":
        return f"{value / 1e6:,.1f} MB" if value else "0 bytes"
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def table(lines: Iterable[dict[str, Any]]) -> str:
    """Figures as aligned text, then what was left out and whom the host disturbed."""
    met = {True: "met", False: "MISSED", None: ""}
    rows = [("", "figure", "value", "baseline", "", "ratio", "goal", "")]
    left: list[str] = []
    stolen: dict[str, float] = {}
    for line in lines:
        if "left_out" in line:
            left.append(f"left out: {line['bench']}, {line['left_out']}: {line['reason']}")
            continue
        stolen[line["bench"]] = max(stolen.get(line["bench"], 0), line.get("stolen", 0))
        verdict = line.get("verdict", met[line["goal_met"]])
        if line["goal"] and line["goal_met"] is None:
            verdict = "not for this"
        rows.append(
            (
                line["goal_id"],
                line["metric"],
                shown(line["value"], line["unit"]),
                line["baseline"],
                shown(line["baseline_value"], line["unit"]),
                f"{line['ratio']:.2f}" if line["ratio"] < 1e6 else "-",
                line["goal"],
                verdict,
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    texts = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    taken = [f"{bench} {share:.1%}" for bench, share in stolen.items() if share >= _NOTICEABLE]
    if taken:
        left.append(f"CPU time that the host of this virtual machine took: {', '.join(taken)}")
    return "\n".join([*texts, *left])


def medians(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line for what was measured in several runs, and in how many of them its goal was met."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        words = ("bench", "left_out", "metric", "baseline", "goal", "size")
        groups.setdefault(tuple(line.get(word) for word in words), []).append(line)
    found = []
    for group in groups.values():
        one = dict(group[0])
        if len(group) > 1 and "left_out" not in one:
            for word in ("value", "baseline_value", "ratio"):
                one[word] = statistics.median(line[word] for line in group)
            one["stolen"] = max(line.get("stolen", 0) for line in group)
            if one["goal"] and one["goal_met"] is not None:
                times = sum(bool(line["goal_met"]) for line in group)
                one["verdict"] = f"met in {times} of {len(group)}"
        found.append(one)
    return found


def main() -> None:
    """Prints the table of kept lines; the medians of what was measured more than once."""
    if len(sys.argv) < 2:
        sys.exit("usage: figures.py FIGURES.jsonl...")
    lines = [line for path in sys.argv[1:] for line in parse_lines(Path(path).read_text())]
    print(table(medians(lines)))


if __name__ == "__main__":
    main()

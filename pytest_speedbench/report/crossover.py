"""Speed-ups over concurrency: a map of where speculation pays, as text, markdown and JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pytest_speedbench.cells import Cell
from pytest_speedbench.gates.crossover import ENOUGH_STARTS, Answer, Bounds, Crossover, crossover, point
from pytest_speedbench.gates.verdict import Verdict
from pytest_speedbench.measure.metrics import Metric
from pytest_speedbench.measure.speedup import ASSUMED_NOISE, PER_PROMPT, SPEEDUP, TOTAL_TIME
from pytest_speedbench.report.result_json import cell_to_json, number
from pytest_speedbench.report.table import BOLD, Column, Line, Markup, Row, is_utf8, table, wrap
from pytest_speedbench.report.wording import MISSING, escape, one_line, percent
from pytest_speedbench.results import CellResult

_MARKS = {Answer.PAYS: "▲", Answer.OPEN: "○", Answer.COSTS: "▼"}
_ASCII_MARKS = {Answer.PAYS: "+", Answer.OPEN: "?", Answer.COSTS: "-"}
_COLOURS: dict[Answer, Markup] = {
    Answer.PAYS: {"green": True},
    Answer.OPEN: {"yellow": True},
    Answer.COSTS: {"red": True},
}
_INVALID = "invalid"
_TITLE = "speed-up of output tokens per second, by concurrency"
_PROMPTS_TITLE = "speed-up of decoding the same prompts, 95 % intervals"


@dataclass(frozen=True, slots=True)
class CellSpeedup:
    """The speed-ups of one cell. ``runs`` are (engine start, speed-up in output rate).

    ``invalid`` is the code of what keeps the cell from having any.
    """

    cell: Cell
    runs: tuple[tuple[int, float], ...] = ()
    per_prompt: Metric | None = None
    total_time: Metric | None = None
    invalid: str = ""


@dataclass(frozen=True, slots=True)
class Curve:
    """One ISL and difficulty over concurrency. ``missing`` are concurrencies without a valid speed-up."""

    name: str
    crossover: Crossover
    missing: tuple[int, ...]

    @property
    def short(self) -> str:
        """The crossover for a table: ``64``, ``32–128`` where it is open between, ``512+`` at the end of the grid."""
        if not self.crossover.bounds:
            return MISSING
        paid, possible = self.crossover.paid, self.crossover.possible
        if not possible:
            return "none"
        top = "+" if possible == self.crossover.bounds[-1].concurrency else ""
        return f"{possible}{top}" if paid == possible else f"{paid}–{possible}{top}"


@dataclass(frozen=True, slots=True)
class SpeedupMap:
    """The speed-ups of one engine profile; ``curves`` are those of the throughput split."""

    profile: str
    cells: tuple[CellSpeedup, ...]
    curves: tuple[Curve, ...] = field(default=())

    @classmethod
    def of(cls, profile: str, cells: Iterable[CellSpeedup]) -> SpeedupMap:
        """The map with its curves worked out."""
        cells = tuple(cells)
        groups: dict[str, list[CellSpeedup]] = {}
        for each in cells:
            if each.cell.split == "throughput":
                groups.setdefault(each.cell.name, []).append(each)
        return cls(profile, cells, tuple(_curve(name, own) for name, own in groups.items()))


def from_results(results: Iterable[CellResult], profile: str) -> SpeedupMap:
    """The map from cells that were measured with ``--speedbench-speedup``."""
    found = []
    for result in results:
        if result.profile != profile or not (SPEEDUP in result.metrics or PER_PROMPT in result.metrics):
            continue
        runs = tuple((run.start, run.values[SPEEDUP]) for run in result.runs if SPEEDUP in run.values)
        invalid = next((r.code for r in result.reasons), "") if result.verdict is Verdict.INVALID else ""
        metrics = result.metrics
        found.append(CellSpeedup(result.cell, runs, metrics.get(PER_PROMPT), metrics.get(TOTAL_TIME), invalid))
    return SpeedupMap.of(profile, found)


def lines(found: SpeedupMap, *, width: int, encoding: str) -> list[Line]:
    """For a terminal: one row per ISL and difficulty, one column per concurrency, then decoding per prompt."""
    marks = _MARKS if is_utf8(encoding) else _ASCII_MARKS
    text: list[Line] = []
    if found.curves:
        legend = ", ".join(f"{marks[answer]} {answer.value}" for answer in Answer)
        text += [[(line, BOLD)] for line in wrap(f"{_TITLE}: {legend}", width, "", encoding)]
        columns = [Column("cell", left=True), *(Column(str(c)) for c in _concurrencies(found)), _LAST]
        rows = [
            Row((curve.name, *(_mapped(curve, c, marks) for c in _concurrencies(found)), curve.short), _colours(curve))
            for curve in found.curves
        ]
        text += table(columns, rows, width=width, encoding=encoding)
        text += [[(line, {})] for note in _notes(found) for line in wrap(one_line(note), width, "", encoding)]
        text.append([("", {})])
    rows = [Row(cells, {}) for cells in _decoding(found)]
    if rows:
        text.append([(_PROMPTS_TITLE, BOLD)])
        text += table(_DECODING, rows, width=width, encoding=encoding)
    return text


def markdown(found: SpeedupMap) -> str:
    """The same tables as GitHub-flavoured markdown."""
    text = []
    if found.curves:
        concurrencies = _concurrencies(found)
        text += [f"**{_TITLE}** (▲ pays, ○ open, ▼ costs)", ""]
        text += _markdown_table(
            ("cell", *map(str, concurrencies), "crossover"),
            [(c.name, *(_mapped(c, n, _MARKS) for n in concurrencies), c.short) for c in found.curves],
        )
        text += ["", *(f"- {escape(note)}" for note in _notes(found)), ""]
    rows = _decoding(found)
    if rows:
        text += [f"**{_PROMPTS_TITLE}**", "", *_markdown_table([c.title for c in _DECODING], rows)]
    return "\n".join(text)


def to_json(found: SpeedupMap) -> dict[str, object]:
    """The numbers, unrounded. ``paid`` and ``possible`` are concurrencies, 0 for none."""
    return {
        "profile": found.profile,
        "cells": [
            {
                "cell": cell_to_json(each.cell),
                "runs": [{"start": start, SPEEDUP: number(value)} for start, value in each.runs],
                PER_PROMPT: _metric_json(each.per_prompt),
                TOTAL_TIME: _metric_json(each.total_time),
                "invalid": each.invalid or None,
            }
            for each in found.cells
        ],
        "crossovers": [
            {
                "name": curve.name,
                "paid": curve.crossover.paid,
                "possible": curve.crossover.possible,
                "missing": list(curve.missing),
                "points": [
                    {
                        "concurrency": b.concurrency,
                        SPEEDUP: b.speedup,
                        "low": b.low,
                        "high": b.high,
                        "answer": b.answer.value,
                    }
                    for b in curve.crossover.bounds
                ],
            }
            for curve in found.curves
        ],
    }


_LAST = Column("crossover", left=True)
_DECODING = (
    Column("cell", left=True),
    Column("per prompt"),
    Column("interval", drop=2),
    Column("total time"),
    Column("interval", drop=1),
)


def _curve(name: str, cells: Sequence[CellSpeedup]) -> Curve:
    valid = [each for each in cells if each.runs and not each.invalid]
    points = [point(each.cell.concurrency, each.runs, assumed=ASSUMED_NOISE) for each in valid]
    missing = sorted(each.cell.concurrency for each in cells if each not in valid)
    return Curve(name, crossover(points), tuple(missing))


def _concurrencies(found: SpeedupMap) -> list[int]:
    return sorted({each.cell.concurrency for each in found.cells if each.cell.split == "throughput"})


def _bounds(curve: Curve, concurrency: int) -> Bounds | None:
    return next((b for b in curve.crossover.bounds if b.concurrency == concurrency), None)


def _mapped(curve: Curve, concurrency: int, marks: dict[Answer, str]) -> str:
    if concurrency in curve.missing:
        return _INVALID
    bounds = _bounds(curve, concurrency)
    return MISSING if bounds is None else f"{bounds.speedup:.2f} {marks[bounds.answer]}"


def _colours(curve: Curve) -> dict[str, Markup]:
    return {str(b.concurrency): _COLOURS[b.answer] for b in curve.crossover.bounds}


def _notes(found: SpeedupMap) -> list[str]:
    notes = []
    few = any(len({start for start, _ in each.runs}) < ENOUGH_STARTS for each in found.cells if each.runs)
    if few:
        notes.append(
            f"assumed noise {percent(ASSUMED_NOISE)} of each speed-up: fewer than {ENOUGH_STARTS} engine starts do not "
            "show how starts differ"
        )
    for curve in found.curves:
        for bounds in curve.crossover.contradicted:
            notes.append(f"{curve.name}: speed-up {bounds}, but it pays at a larger concurrency: measure again")
    reasons = {each.invalid for each in found.cells if each.invalid}
    for reason in sorted(reasons):
        cells = [f"{e.cell.name}-c{e.cell.concurrency}" for e in found.cells if e.invalid == reason]
        notes.append(f"invalid, {reason}: {', '.join(cells)}")
    return notes


def _decoding(found: SpeedupMap) -> list[tuple[str, ...]]:
    return [
        (
            each.cell.id(with_concurrency=True),
            *(text for metric in (each.per_prompt, each.total_time) for text in _shown(metric)),
        )
        for each in found.cells
        if each.per_prompt is not None and not each.invalid
    ]


def _shown(metric: Metric | None) -> tuple[str, str]:
    if metric is None:
        return MISSING, MISSING
    ends = (metric.low, metric.high)
    interval = MISSING if ends[0] is None or ends[1] is None else f"{ends[0]:.2f}–{ends[1]:.2f}"
    return f"{metric.value:.2f}", interval


def _markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    head = [f"| {' | '.join(titles)} |", f"| :- | {' | '.join(['-:'] * (len(titles) - 1))} |"]
    return head + [f"| {' | '.join(map(escape, row))} |" for row in rows]


def _metric_json(metric: Metric | None) -> dict[str, object] | None:
    if metric is None:
        return None
    return {"value": number(metric.value), "low": number(metric.low), "high": number(metric.high)}

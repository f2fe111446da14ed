"""Random-token control beside real prompts: what a benchmark on random tokens would have told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_speedbench.report.table import BOLD, Column, Line, Row, table, wrap
from pytest_speedbench.report.wording import MISSING, percent, quantity
from pytest_speedbench.results import CellResult

TITLE = "random tokens (control) against real prompts"
NOTE = "what a benchmark on random tokens would have told instead; no limit applies to the control"
COLUMNS = (
    Column("cell", left=True),
    Column("AL"),
    Column("random AL"),
    Column("off by", drop=1),
    Column("TPS"),
    Column("random TPS"),
    Column("off by"),
)
_METRICS = ("acceptance_length", "output_tps")


@dataclass(frozen=True, slots=True)
class Pair:
    """A real cell and the control of the same profile, ISL and concurrency."""

    real: CellResult
    control: CellResult

    @property
    def cells(self) -> tuple[str, ...]:
        """One text per column of COLUMNS. ``off by`` is control / real − 1."""
        texts = [f"{self.real.cell.name}-c{self.real.cell.concurrency}"]
        for name in _METRICS:
            real, control = self.real.metrics.get(name), self.control.metrics.get(name)
            texts += [quantity(name, metric.value) if metric else MISSING for metric in (real, control)]
            off = percent(control.value / real.value - 1, signed=True) if real and control and real.value else MISSING
            texts.append(off)
        return tuple(texts)


def pairs(results: Sequence[CellResult]) -> list[Pair]:
    """Every real throughput cell that has a control, in the order of ``results``."""
    controls = {(r.profile, r.cell.isl, r.cell.concurrency): r for r in results if r.cell.is_control}
    return [
        Pair(result, control)
        for result in results
        if result.cell.split == "throughput" and not result.cell.is_control
        if (control := controls.get((result.profile, result.cell.isl, result.cell.concurrency)))
    ]


def control_lines(results: Sequence[CellResult], *, width: int, encoding: str) -> list[Line]:
    """The table for a terminal; nothing where there is no control beside real cells."""
    found = pairs(results)
    if not found:
        return []
    lines: list[Line] = [[(text, BOLD)] for text in wrap(TITLE, width, "", encoding)]
    lines += table(COLUMNS, [Row(pair.cells, {}) for pair in found], width=width, encoding=encoding)
    lines += [[(text, {})] for text in wrap(NOTE, width, "", encoding)]
    return [*lines, [("", {})]]

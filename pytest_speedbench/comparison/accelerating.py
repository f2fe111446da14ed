"""Speed-ups from two stored runs: the same engine without and with speculation."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pytest_speedbench.cells import STEADY_PROMPTS_PER_STREAM, Cell
from pytest_speedbench.comparison.comparing import require_alike, require_same_prompts
from pytest_speedbench.comparison.judging import timing_problem, unsound
from pytest_speedbench.comparison.sources import Side, Windows, common_cells
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.measure.metrics import Metric
from pytest_speedbench.measure.runs import mean_over_starts
from pytest_speedbench.measure.samples import Window
from pytest_speedbench.measure.speedup import PER_PROMPT, TOTAL_TIME, decode_speedups, tps_speedup
from pytest_speedbench.report.crossover import CellSpeedup, SpeedupMap
from pytest_speedbench.results import runs_of


def measure(plain: Side, fast: Side, *, allow: Collection[str] = ()) -> tuple[SpeedupMap, list[str]]:
    """The speed-ups of every common cell, and what to know beside them.

    Raises ConfigError where the first run speculates or the second does not, and for runs that differ in
    more than that.
    """
    if plain.engine.method:
        raise ConfigError(f"{plain.name} speculates (method {plain.engine.method}); the first run must be without")
    if not fast.engine.method:
        raise ConfigError(f"{fast.name} does not speculate; the second run must be with speculation")
    require_alike(plain, fast, allow=allow, speculation=True)
    cells = list(common_cells(plain, fast))
    require_same_prompts(plain, fast, cells)
    logs = Windows(plain), Windows(fast)
    found = [_cell(cell, plain, fast, (logs[0].of(cell), logs[1].of(cell))) for cell in cells]
    notes = [note for log in logs for note in log.notes]
    gpus = [{gpu.uuid for gpu in side.engine.gpus} for side in (plain, fast)]
    if gpus[0] != gpus[1]:
        notes.append("the two runs had other GPUs of the same kind: part of the difference may be the cards'")
    return SpeedupMap.of(fast.profile, found), notes


def _cell(cell: Cell, plain: Side, fast: Side, windows: tuple[Sequence[Window], Sequence[Window]]) -> CellSpeedup:
    without, with_ = plain.cells[cell], fast.cells[cell]
    problems = unsound(plain, without) + unsound(fast, with_)
    problems += timing_problem(plain, without, windows[0]) + timing_problem(fast, with_, windows[1])
    if problems:
        return CellSpeedup(cell, invalid=problems[0].code)
    steady = min(without.turns, with_.turns) >= STEADY_PROMPTS_PER_STREAM * cell.concurrency
    rates = {(run.start, run.repeat): run.values for run in runs_of(without)}
    runs = tuple(
        (run.start, ratio)
        for run in runs_of(with_)
        if (run.start, run.repeat) in rates
        and (ratio := tps_speedup(rates[run.start, run.repeat], run.values, steady=steady)) is not None
    )
    one, other = ({(window.start, window.repeat): window for window in side} for side in windows)
    decoded = [
        (key[0], decode_speedups(one[key].turns, other[key].turns, seed_parts=(cell.id(with_concurrency=True),)))
        for key in one
        if key in other
    ]
    return CellSpeedup(cell, runs, _mean(PER_PROMPT, decoded), _mean(TOTAL_TIME, decoded))


def _mean(name: str, runs: Sequence[tuple[int, dict[str, Metric]]]) -> Metric | None:
    """Over engine starts, the ends of the interval like the value: they do not shrink when prompts are repeated."""
    found = [(start, metrics[name]) for start, metrics in runs if name in metrics]
    if not found:
        return None
    value = mean_over_starts([(start, metric.value) for start, metric in found], log=True)
    lows = [(start, metric.low) for start, metric in found if metric.low is not None]
    highs = [(start, metric.high) for start, metric in found if metric.high is not None]
    if len(lows) < len(found) or len(highs) < len(found):
        return Metric(value)
    return Metric(value, mean_over_starts(lows, log=True), mean_over_starts(highs, log=True))

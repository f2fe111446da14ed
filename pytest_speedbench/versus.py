"""A cell against the same cell on the engine before an upgrade: the gates that need no stored limit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from pytest_speedbench.cells import Cell
from pytest_speedbench.gates.limits import Family
from pytest_speedbench.gates.paired import Arm, judge_pair, margin_of
from pytest_speedbench.gates.verdict import GateResult, allocate, spent_rate
from pytest_speedbench.measure.acceptance import conditional_by_position, conversations
from pytest_speedbench.measure.checks import Reason
from pytest_speedbench.measure.metrics import METRICS, Metric
from pytest_speedbench.measure.pairing import pair_turns
from pytest_speedbench.measure.runs import Run, pooled_acceptance
from pytest_speedbench.measure.samples import Window
from pytest_speedbench.measure.speedup import decode_speedups, speedups

_ACCEPTANCE = "acceptance_length"
_OF_CELL = "decode_acceptance_length"
"""What is known where a server joins events but counts its steps."""
_RATES = ("output_tps", "user_tps", "ttft_p50_s")
_STEADY = "steady_output_tps"


@dataclass(frozen=True, slots=True)
class Shared:
    """Acceptance lengths of one run (start and repeat) of both engines, by prompt.

    Only turns whose input was the same for both: first turns, and later ones while all replies agree.
    """

    start: int
    repeat: int
    new: Mapping[str, float]
    old: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Baseline:
    """The engine before the upgrade, in one cell.

    ``cells`` are all that the baseline gates in this run. ``reasons`` keep it from being compared with at all,
    ``timing`` only where a rate or a latency is.
    """

    source: str
    runs: tuple[Run, ...]
    shared: tuple[Shared, ...]
    cells: tuple[Cell, ...]
    reasons: tuple[Reason, ...] = ()
    timing: tuple[Reason, ...] = ()


def shared(old: Iterable[Window], new: Iterable[Window]) -> Shared | None:
    """What the windows of one run (several for the overall cell) have in common; None without steps per request."""
    before, after = list(old), list(new)
    if not before or not after:
        return None
    lengths: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for one, other in zip(before, after, strict=True):
        for pair in pair_turns(one.turns, other.turns).pairs:
            sides = conversations(pair.new), conversations(pair.base)
            if not all(sides):
                return None
            for known, side in zip(lengths, sides, strict=True):
                known[pair.question_id] = side[0].acceptance_length
    return Shared(after[0].start, after[0].repeat, *lengths) if lengths[0] else None


def speedups_of(plain: Sequence[Window], fast: Sequence[Window], *, seed_parts: Sequence[str]) -> dict[str, Metric]:
    """Speed-ups of one run over the same run without speculation; of the overall cell those of its prompts only.

    Empty where either has nothing sound.
    """
    if not plain or not fast:
        return {}
    if len(plain) == len(fast) == 1:
        return speedups(plain[0], fast[0], seed_parts=seed_parts)
    without, with_ = ([turn for window in windows for turn in window.turns] for windows in (plain, fast))
    return decode_speedups(without, with_, seed_parts=seed_parts)


def paired_gates(
    cell: Cell,
    runs: Sequence[Run],
    baseline: Baseline,
    *,
    speculates: bool,
    look: int = 1,
    looks: int = 1,
    starts: tuple[int, ...] = (1,),
) -> tuple[GateResult, ...]:
    """One gate per metric that an upgrade must not worsen: acceptance length, and in throughput cells rates too.

    Where an engine start has no run with steps per request, the acceptance length of decoding in whole cells stands in:
    no start is left out.

    The family's α is allocated as within a thresholds file, over all cells that the baseline gates, and spent over
    ``looks`` looks at growing evidence, of which this is the ``look``-th; these are at so many engine ``starts`` if
    there are several.
    """
    several = len(starts) > 1
    by_prompt = _known_by_prompt(runs, baseline)
    metrics = [_ACCEPTANCE if by_prompt else _OF_CELL] if speculates else []
    if cell.split == "throughput":
        steady = all(_STEADY in run.metrics for run in (*runs, *baseline.runs))
        metrics += [_STEADY if steady and name == "output_tps" else name for name in _RATES]
    alpha, beta = allocate(Family(), baseline.cells, cell, metrics=max(1, len(metrics)))
    gates = tuple(
        judge_pair(
            name,
            *(_acceptance_arms(baseline.shared) if name == _ACCEPTANCE else _cell_arms(name, runs, baseline.runs)),
            margin=margin_of(METRICS[name], cell),
            alpha=alpha if several else spent_rate(alpha, look, looks),
            beta=beta if several else spent_rate(beta, look, looks),
            looks=starts if several else (),
            source=baseline.source,
            assumed_noise=METRICS[name].assumed_noise if len({run.start for run in runs}) == 1 else None,
        )
        for name in metrics
    )
    before = _conditional(baseline.runs)
    return tuple(replace(gate, looks=gate.looks if several else look, conditional_reference=before) for gate in gates)


def _known_by_prompt(runs: Sequence[Run], baseline: Baseline) -> bool:
    """Whether every engine start of both has a run whose steps are known per request."""
    known = {share.start for share in baseline.shared}
    return {run.start for run in (*runs, *baseline.runs)} <= known


def _conditional(runs: Sequence[Run]) -> tuple[float, ...]:
    """Conditional acceptance per draft position of all runs together."""
    histogram = pooled_acceptance(runs).decode_histogram if runs else {}
    return conditional_by_position(histogram, max(histogram) - 1) if histogram else ()


def _acceptance_arms(runs: Sequence[Shared]) -> tuple[Arm, Arm]:
    # In the order in which prompts were sent: neighbours can be alike, which the noise must know.
    common = [prompt for prompt in runs[0].new if all(prompt in run.new for run in runs)] if runs else []

    def arm(sides: Sequence[Mapping[str, float]]) -> Arm:
        return Arm(
            runs=[
                (run.start, run.repeat, fmean(side[prompt] for prompt in common))
                for run, side in zip(runs, sides, strict=True)
            ],
            prompts={prompt: fmean(side[prompt] for side in sides) for prompt in common},
        )

    return arm([run.new for run in runs]), arm([run.old for run in runs])


def _cell_arms(name: str, new: Sequence[Run], old: Sequence[Run]) -> tuple[Arm, Arm]:
    def arm(runs: Sequence[Run]) -> Arm:
        return Arm(runs=[(run.start, run.repeat, run.metrics[name].value) for run in runs if name in run.metrics])

    found = [run.metrics.get(name) for run in (*new, *old)]
    if name == _OF_CELL and not all(metric is not None and metric.bracket is None for metric in found):
        # What is only known to lie between two numbers is no number to compare.
        return Arm(()), Arm(())
    return arm(new), arm(old)

"""Cells that are worked out from others: where speculation stops paying, and whether it changes greedy output."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pytest_speedbench.cells import Cell
from pytest_speedbench.engines.base import Profile
from pytest_speedbench.gates import crossover
from pytest_speedbench.gates.verdict import GateResult, Verdict, combine, spent_rate
from pytest_speedbench.judging import Labels, Rules, invalid_gates, limits_of, without_gate
from pytest_speedbench.measure.checks import Reason
from pytest_speedbench.measure.losslessness import Grade, Losslessness
from pytest_speedbench.measure.metrics import Metric
from pytest_speedbench.measure.runs import Run
from pytest_speedbench.measure.speedup import ASSUMED_NOISE, SPEEDUP
from pytest_speedbench.names import LOSSLESS
from pytest_speedbench.results import CellResult

MISMATCHES = "lossless_mismatches"


def judge_crossover(cell: Cell, runs: Mapping[int, Sequence[Run]], rules: Rules, labels: Labels) -> CellResult:
    """Up to which concurrency speculation pays. ``runs`` has those of every planned concurrency, sound ones only."""
    speedups = {
        concurrency: [(run.start, run.metrics[SPEEDUP].value) for run in own if SPEEDUP in run.metrics]
        for concurrency, own in runs.items()
    }
    points = [crossover.point(n, own, assumed=ASSUMED_NOISE) for n, own in speedups.items() if own]
    missing = [concurrency for concurrency, own in speedups.items() if not own]
    found = crossover.crossover(points) if points else None
    gates = tuple(
        crossover.judge_crossover(
            points,
            each.limit,
            missing=missing,
            alpha=spent_rate(each.alpha, rules.look, rules.looks, rules.starts),
            beta=spent_rate(each.beta, rules.look, rules.looks, rules.starts),
        )
        for each in limits_of(cell, rules)
    )
    reasons = invalid_gates(gates) if gates else without_gate(cell, rules)
    return replace(
        _result(cell, gates, reasons, labels),
        metrics={} if found is None else {crossover.METRIC: Metric(float(found.paid))},
    )


def judge_losslessness(cell: Cell, found: Losslessness, labels: Labels) -> CellResult:
    """Whether speculation left greedy output as it is."""
    verdict = Verdict[found.verdict]
    mismatches = float(found.count(Grade.MISMATCH))
    gate = GateResult(
        metric=MISMATCHES,
        verdict=verdict,
        value=mismatches,
        limit=0.0,
        ceiling=True,
        reference=None,
        margin=None,
        sigma=0.0,
        guard=0.0,
        headroom=math.nan,
        mde_not_passed=None,
        mde_failed=None,
        source="--speedbench-lossless",
        reason=found.reason or None,
        note="; ".join([found.text, *found.lines[:3]]),
        kind=LOSSLESS,
    )
    reasons = [Reason(found.reason, found.text)] if verdict is Verdict.INVALID else []
    result = _result(cell, (gate,), reasons, labels)
    return replace(result, metrics={MISMATCHES: Metric(mismatches)}, turns=found.compared, conversations=found.compared)


def dtype_of(profile: Profile, resolved: Mapping[str, object]) -> str | None:
    """In what the target computes: as the engine tells, else as it was launched; None where neither says."""
    told = resolved.get("dtype")
    if told is not None:
        return str(told)
    words = [str(word) for word in profile.options.get("args", ())]
    for word, following in zip(words, [*words, ""][1:], strict=True):
        name, equals, value = word.partition("=")
        if name == "--dtype":
            return value if equals else following
    return None


def _result(cell: Cell, gates: tuple[GateResult, ...], reasons: Sequence[Reason], labels: Labels) -> CellResult:
    return CellResult(
        profile=labels.profile,
        cell=cell,
        item_id=labels.item_id,
        verdict=Verdict.INVALID if reasons else combine(gates) if gates else None,
        reasons=tuple(reasons),
        gates=gates,
        prompts_sha256=labels.prompts_sha256,
        steps_source=labels.steps_source,
        duration_s=labels.duration_s,
    )

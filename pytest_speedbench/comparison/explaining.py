"""What lies behind a change of one cell: a likely cause, and whether answers only got shorter or longer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pytest_speedbench.gates.verdict import GateResult, Verdict
from pytest_speedbench.measure.diagnosis import Change, Symptoms, change, conditional_changes, diagnose
from pytest_speedbench.measure.equal_length import EqualLength, Paired, equal_length
from pytest_speedbench.measure.metrics import METRICS
from pytest_speedbench.measure.samples import Window
from pytest_speedbench.results import CellResult


@dataclass(frozen=True, slots=True)
class Explanation:
    """``causes`` by metric, for gates that were not passed. ``length`` is None where steps or outputs are unknown."""

    causes: Mapping[str, str] = field(default_factory=dict)
    length: EqualLength | None = None

    def of(self, metric: str) -> tuple[str, ...]:
        """What to say of one gate that was not passed: its cause, and how far lengths explain the acceptance."""
        cause = (self.causes[metric],) if metric in self.causes else ()
        return (*cause, self.length.text) if _is_acceptance(metric) and self.length is not None else cause


def explain(
    old: CellResult,
    now: CellResult,
    gates: Sequence[GateResult],
    windows: tuple[Sequence[Window], Sequence[Window]],
    categories: Sequence[tuple[CellResult, CellResult]] = (),
    *,
    same_drafting: bool = True,
) -> Explanation:
    """Look for the cause of every gate that did not pass.

    ``categories`` are the cells that an overall cell sums up, old and new. Without ``same_drafting`` another
    drafter or method is the cause of another acceptance, and no further one is looked for.
    """
    open_gates = [gate for gate in gates if gate.verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE)]
    if not open_gates:
        return Explanation()
    base, new = ([turn for window in side for turn in window.turns] for side in windows)
    length = equal_length(new, base)
    symptoms = _symptoms(old, now, length, categories)
    found = {
        gate.metric: diagnose(symptoms, gate.metric)
        for gate in open_gates
        if same_drafting or not _is_acceptance(gate.metric)
    }
    return Explanation({metric: cause.text for metric, cause in found.items() if cause is not None}, length)


def _is_acceptance(metric: str) -> bool:
    return METRICS[metric].unit in ("tokens/step", "share")


def _symptoms(
    old: CellResult, now: CellResult, length: EqualLength | None, categories: Sequence[tuple[CellResult, CellResult]]
) -> Symptoms:
    conditional: tuple[Change, ...] = ()
    if old.acceptance is not None and now.acceptance is not None:
        conditional = conditional_changes(now.acceptance.decode_histogram, old.acceptance.decode_histogram)
    changes = {after.cell.name: _changed("acceptance_length", before, after) for before, after in categories}
    return Symptoms(
        conditional=conditional,
        acceptance_length=_changed("acceptance_length", old, now),
        equal_length=None if length is None else _paired(length.prefix),
        output_tokens=None if length is None else _paired(length.tokens),
        categories={name: found for name, found in changes.items() if found is not None},
        step_s=_changed("step_p50_s", old, now),
        ttft_s=_changed("ttft_p50_s", old, now),
        output_tps=_changed("output_tps", old, now),
    )


def _paired(paired: Paired) -> Change:
    return Change(paired.new, paired.old, paired.band / paired.old)


def _changed(metric: str, old: CellResult, now: CellResult) -> Change | None:
    if metric not in old.metrics or metric not in now.metrics:
        return None
    return change(metric, now.metrics[metric].value, old.metrics[metric].value)

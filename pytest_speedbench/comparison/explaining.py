"""What lies behind a change of one cell: a likely cause, and whether answers only got shorter or longer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from pytest_speedbench.gates.verdict import GateResult, Verdict
from pytest_speedbench.measure.diagnosis import (
    CLOCK_BAND,
    UTILISATION_BAND,
    Change,
    Symptoms,
    change,
    conditional_changes,
    diagnose,
    drafting_change,
)
from pytest_speedbench.measure.equal_length import EqualLength, Paired, equal_length
from pytest_speedbench.measure.gpu_record import GpuWindow
from pytest_speedbench.measure.gpu_validity import MIN_RUN
from pytest_speedbench.measure.metrics import METRICS
from pytest_speedbench.measure.samples import Counters, Window
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
    symptoms = _symptoms(old, now, length, categories, windows)
    found = {
        gate.metric: diagnose(symptoms, gate.metric)
        for gate in open_gates
        if same_drafting or not _is_acceptance(gate.metric)
    }
    return Explanation({metric: cause.text for metric, cause in found.items() if cause is not None}, length)


def _is_acceptance(metric: str) -> bool:
    return METRICS[metric].unit in ("tokens/step", "share")


def _symptoms(
    old: CellResult,
    now: CellResult,
    length: EqualLength | None,
    categories: Sequence[tuple[CellResult, CellResult]],
    windows: tuple[Sequence[Window], Sequence[Window]],
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
        drafting=_drafting(*windows),
        sm_clock=_of_gpus(_clock, CLOCK_BAND, old, now),
        gpu_utilisation=_of_gpus(_utilisation, UTILISATION_BAND, old, now),
        client_cpu=max((window.client.cpu_share for window in windows[1]), default=None),
    )


def _drafting(base: Sequence[Window], new: Sequence[Window]) -> Change | None:
    """By the counters of the server, where it counts both drafts and steps."""
    now, was = (Counters.total(window.counters for window in side) for side in (new, base))
    if now.drafts is None or now.steps is None or was.drafts is None or was.steps is None:
        return None
    return drafting_change((now.drafts, now.steps), (was.drafts, was.steps))


def _of_gpus(read: Callable[[GpuWindow], float | None], band: float, old: CellResult, now: CellResult) -> Change | None:
    """Mean over the GPUs of all runs; None where any of them does not tell, or in too few samples."""
    values = [[read(gpu) for run in result.runs for gpu in run.gpus] for result in (now, old)]
    known = [[value for value in side if value is not None] for side in values]
    if not all(known) or known != values:
        return None
    return Change(fmean(known[0]), fmean(known[1]), band)


def _clock(gpu: GpuWindow) -> float | None:
    return None if gpu.sm_mhz is None or gpu.working < MIN_RUN else gpu.sm_mhz.median


def _utilisation(gpu: GpuWindow) -> float | None:
    return None if gpu.samples < MIN_RUN else gpu.utilisation


def _paired(paired: Paired) -> Change:
    return Change(paired.new, paired.old, paired.band / paired.old)


def _changed(metric: str, old: CellResult, now: CellResult) -> Change | None:
    if metric not in old.metrics or metric not in now.metrics:
        return None
    return change(metric, now.metrics[metric].value, old.metrics[metric].value)

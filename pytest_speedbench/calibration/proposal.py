"""One calibrated limit from the runs of one cell, and whether it can tell anything."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass

from pytest_speedbench.calibration.choice import measured_as
from pytest_speedbench.calibration.noise import two_levels
from pytest_speedbench.calibration.runs import Calibration, Measured, Table
from pytest_speedbench.cells import Cell
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates.limits import Evidence, Limit
from pytest_speedbench.gates.verdict import UNREACHABLE, GateResult, Verdict, judge
from pytest_speedbench.measure.metrics import METRICS
from pytest_speedbench.measure.statistics import RunNoise, run_sigma

_PROMPTS_SHOWN = 12
_ANY_RATE = 0.05
"""Stands in where a rate has to be given but does not matter."""
_ACCEPTANCE = ("tokens/step", "share")
_MOST_PER_RUN = 100


@dataclass(frozen=True, slots=True)
class Proposal:
    """A limit for one cell. Its numbers are already rounded as the file has them.

    ``refusal`` says why the gate is not worth having, empty if it is.
    """

    measured: Measured
    limit: Limit
    evidence: Evidence
    refusal: str = ""

    @property
    def cell(self) -> Cell:
        """The gated cell."""
        return self.measured.cell

    @property
    def name(self) -> str:
        """What messages call the gate."""
        return f"{self.cell.id(with_concurrency=True)} {self.limit.metric}"

    @property
    def measures_acceptance(self) -> bool:
        """Whether it is an acceptance length."""
        return METRICS[self.limit.metric].unit == "tokens/step"

    @property
    def noise(self) -> RunNoise:
        """Relative noise of one engine start with as many repeats as at calibration."""
        return _noise(self.limit, self.evidence, repeats=self.evidence.repeats)

    def judged(self, value: float, *, alpha: float, beta: float, repeats: int | None = None) -> GateResult:
        """The verdict on one engine start, by default with as many repeats as at calibration."""
        return judge(
            self.limit.metric,
            value,
            self.limit,
            alpha=alpha,
            beta=beta,
            repeats=repeats or self.evidence.repeats,
            prompts=self.measured.prompts_sha256,
        )


def propose(
    calibration: Calibration, measured: Measured, metric: str, estimator: str, margin: float, run: str | None
) -> Proposal:
    """The limit that the runs of one cell give. Raises ConfigError for values that the metric cannot have."""
    spec = METRICS[metric]
    table = measured.tables[measured_as(metric, estimator)]
    _require_possible(measured, metric, table)
    spread = two_levels(table, log=spec.log_scale)
    if spec.log_scale and spread.lowest == spread.highest:
        raise ConfigError(
            f"{measured.cell.id(with_concurrency=True)}: {metric} is {spread.lowest:g} in every run, and times and "
            "rates never repeat exactly; were these artifacts made, not measured?"
        )
    reference = rounded(spread.mean)
    sign = 1 if spec.ceiling else -1
    evidence = Evidence(
        starts=spread.starts,
        repeats=spread.repeats,
        sd_start=rounded(spread.sd_start, 4),
        sd_repeat=rounded(spread.sd_repeat, 4),
        lowest=rounded(spread.lowest),
        highest=rounded(spread.highest),
        date=dt.date.fromisoformat(calibration.date),
        run=run,
        engine_version=calibration.engine.version or None,
        gpu=gpu_text(calibration),
        conditional=tuple(round(rate, 3) for rate in measured.conditional) if spec.unit in _ACCEPTANCE else (),
        prompts=measured.prompts_sha256[:_PROMPTS_SHOWN] or None,
    )
    limit = Limit(
        metric=metric,
        value=rounded(reference * (1 + sign * margin)),
        ceiling=spec.ceiling,
        source=measured.cell.id(with_concurrency=True),
        reference=reference,
        margin=margin,
        evidence=evidence,
        estimator=estimator,
    )
    draft_tokens = calibration.engine.draft_tokens
    refusal = _idle(limit, draft_tokens) or _ambiguous(limit, measured) or _unreachable(limit, evidence, measured)
    return Proposal(measured, limit, evidence, refusal)


def _require_possible(measured: Measured, metric: str, table: Table) -> None:
    for start, row in zip(measured.starts, table, strict=True):
        for value in row:
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(
                    f"{start}: {metric} of {measured.cell.id(with_concurrency=True)} is {value:g}, which it cannot be"
                )


def needed_repeats(proposal: Proposal) -> int | None:
    """How many repeats a run of one start needs for this gate, if more than one."""
    needs = _needs(proposal.limit, proposal.evidence)
    return needs.repeats if needs.repeats is not None and needs.repeats > 1 else None


def rounded(number: float, digits: int = 6) -> float:
    """To ``digits`` significant ones."""
    return float(f"{number:.{digits}g}")


def gpu_text(calibration: Calibration) -> str:
    """``2 × NVIDIA H100 80GB HBM3``, or ``none``."""
    names = [gpu.name for gpu in calibration.engine.gpus]
    return ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names)) or "none"


def _idle(limit: Limit, draft_tokens: int | None) -> str:
    """Why nothing can miss, or meet, the limit."""
    spec = METRICS[limit.metric]
    if spec.unit == "tokens/step" and limit.value <= 1:
        most = 100 * (1 - 1 / (limit.reference or 1)) if (limit.reference or 1) > 1 else 0.0
        return (
            f"reference {limit.reference:g} − {_percent(limit.margin)} is {limit.value:g}, and nothing is ever below "
            f"1, so it could not fail; it needs a margin below {most:.1f} %, or a drafter that is accepted more often"
        )
    if spec.unit == "tokens/step" and draft_tokens is not None and limit.value > draft_tokens + 1:
        return f"{limit.value:g} is more than draft_tokens + 1 = {draft_tokens + 1}; the runs or their record are wrong"
    return ""


def _ambiguous(limit: Limit, measured: Measured) -> str:
    width = measured.brackets.get(limit.measured_as, 0.0)
    if width > (limit.margin or 0.0):
        return (
            f"known only within {_percent(width)}, more than the margin of {_percent(limit.margin)}: the server joined "
            "events and has no step counter, so every verdict would be INVALID ambiguous_steps"
        )
    return ""


@dataclass(frozen=True, slots=True)
class _Needs:
    """What would reach the margin, each alone; None where no number would."""

    repeats: int | None
    starts: int | None
    both_starts: int
    prompts_factor: float
    margin: float


def _noise(limit: Limit, evidence: Evidence, *, starts: int = 1, repeats: int = 1) -> RunNoise:
    unit = limit.reference or 1.0
    return run_sigma(
        evidence.sd_start / unit,
        evidence.sd_repeat / unit,
        starts=starts,
        repeats=repeats,
        cal_starts=evidence.starts,
        cal_repeats=evidence.repeats,
    )


def _needs(limit: Limit, evidence: Evidence) -> _Needs:
    """Solves σ ≤ δ / 4.5 for each of what can be changed.

    σ² = σ_b² (1/b + 1/b_cal) + σ_w² (1/n + 1/n_cal), with b = 1 and n = n_cal / b_cal to begin with.
    """
    reference, spec = limit.reference or 1.0, METRICS[limit.metric]
    ratio = limit.value / reference
    distance = abs(math.log(ratio)) if spec.log_scale else abs(1 - ratio)
    most = (distance / UNREACHABLE) ** 2
    starts, repeats = evidence.starts, evidence.repeats
    between, within = (evidence.sd_start / reference) ** 2, (evidence.sd_repeat / reference) ** 2
    calibrated = between / starts + within / (starts * repeats)
    for_repeats = most - between - calibrated
    for_starts = most - calibrated
    per_start = between + within / repeats
    sigma = math.sqrt(per_start + calibrated)
    needed = UNREACHABLE * sigma
    if spec.log_scale:
        needed = math.expm1(needed) if limit.ceiling else -math.expm1(-needed)
    return _Needs(
        repeats=_quotient(within, for_repeats),
        starts=_quotient(per_start, for_starts),
        both_starts=max(starts, math.ceil(2 * per_start / most)),
        prompts_factor=sigma**2 / most,
        margin=needed,
    )


def _quotient(variance: float, room: float) -> int | None:
    """How many measurements bring ``variance`` of their mean down to ``room``, if a feasible number does."""
    if variance == 0:
        return 1 if room >= 0 else None
    if room <= 0 or variance / room > _MOST_PER_RUN:
        return None
    return max(1, math.ceil(variance / room - 1e-9))


def _unreachable(limit: Limit, evidence: Evidence, measured: Measured) -> str:
    """Why the noise fills the margin, and what would help."""
    reference = limit.reference or 1.0
    result = judge(
        limit.metric,
        reference,
        limit,
        alpha=_ANY_RATE,
        beta=_ANY_RATE,
        repeats=evidence.repeats,
        prompts=measured.prompts_sha256,
    )
    if not (result.verdict is Verdict.INVALID and result.reason == "unreachable"):
        return ""
    needs, ways = _needs(limit, evidence), []
    if needs.margin < 1:
        ways.append(f"a margin of {math.ceil(1000 * needs.margin + 1e-6) / 10:g} %")
    if needs.repeats is not None:
        ways.append(f"{needs.repeats} repeats per engine start")
    if needs.starts is not None:
        ways.append(f"{needs.starts} engine starts in each run")
    else:
        ways.append(f"{needs.both_starts} engine starts, at calibration and in each run")
    if METRICS[limit.metric].unit in _ACCEPTANCE and measured.conversations:
        prompts = math.ceil(measured.conversations * needs.prompts_factor)
        ways.append(f"about {prompts} prompts instead of {measured.conversations}")
    return (
        f"noise σ {_percent(result.sigma)} is more than the margin {_percent(limit.margin)} / {UNREACHABLE}; "
        f"it needs {' or '.join(ways)}"
    )


def _percent(share: float | None) -> str:
    return f"{100 * (share or 0.0):.3g} %"

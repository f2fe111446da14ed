"""The verdict on one gate: pure functions from a value, a limit and a noise model."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from pytest_speedbench.cells import Cell
from pytest_speedbench.gates.limits import Family, Limit
from pytest_speedbench.gates.spending import POCOCK, levels
from pytest_speedbench.measure.metrics import METRICS
from pytest_speedbench.measure.student import t_quantile

Z_POWER = 0.8416
"""The normal quantile of 80 % power."""

UNREACHABLE = 4.5
"""A margin of fewer sigmas than this cannot tell an unchanged system from one at the limit."""


class Verdict(str, Enum):
    """The four answers of a gate."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    INVALID = "INVALID"


@dataclass(frozen=True, slots=True)
class GateResult:
    """One metric of one cell compared with one limit.

    ``headroom`` is (value - limit) / limit, sign-corrected for ceilings, so positive is good.
    ``sigma`` is the noise of the comparison relative to the reference, or to a hand-written limit;
    for metrics on the log scale that of the logarithm, which is the same for small noise.
    ``guard`` is the relative half-width t*sigma that separates PASS from the limit. The two minimum
    detectable effects are relative drops (rises, for ceilings): not passed, and failed, with 80 % power.
    ``source`` is ``file:line`` of the limit.
    """

    metric: str
    verdict: Verdict
    value: float
    limit: float
    ceiling: bool
    reference: float | None
    margin: float | None
    sigma: float
    guard: float
    headroom: float
    mde_not_passed: float | None
    mde_failed: float | None
    source: str
    reason: str | None = None
    note: str = ""
    evidence: str = ""
    """One line on where the reference comes from, e.g. ``6 starts × 2 repeats on 2026-12-01``."""
    conditional_reference: tuple[float, ...] = ()
    """Conditional acceptance per draft position at calibration, where the file has it."""
    kind: str = "floor"
    """``floor``: against a limit of a file. ``paired``: against a baseline measured beside it."""
    looks: int = 1
    """How many looks at growing evidence were taken, this one included."""
    waiver: str = ""
    """What a waiver says of this gate: that it covers it, that it does not reach, or that it is no longer needed."""
    waived: bool = False
    """Missed or inconclusive, and a waiver covers it: an expected failure, never counted as passed."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps a metric's values to where noise is additive and more is better."""

    log: bool
    ceiling: bool

    def __call__(self, value: float) -> float:
        """The position of ``value``, higher for better."""
        position = math.log(value) if self.log else value
        return -position if self.ceiling else position

    def relative(self, distance: float, base: float) -> float:
        """A worsening by ``distance`` from the value ``base``, as a fraction of it."""
        if not self.log:
            return distance / base
        return math.expm1(distance) if self.ceiling else -math.expm1(-distance)

    def guard(self, distance: float, limit: float) -> float:
        """An improvement by ``distance`` on ``limit``, as a fraction of it."""
        return -self.relative(-distance, limit)


@dataclass(frozen=True, slots=True)
class Noise:
    """Sigma on the metric's scale, and the t quantiles for β and α."""

    sigma: float
    t_beta: float
    t_alpha: float

    @classmethod
    def of(cls, sigma: float, df: float, *, alpha: float, beta: float) -> Noise:
        """The noise ``sigma``, known with ``df`` degrees of freedom, at one-sided levels."""
        return cls(sigma, t_quantile(1 - beta, df), t_quantile(1 - alpha, df))


def judge(
    metric: str,
    value: float | None,
    limit: Limit,
    *,
    alpha: float,
    beta: float,
    starts: int = 1,
    repeats: int = 1,
    prompts: str | None = None,
    look: int = 1,
    looks: int = 1,
    planned: Sequence[int] = (),
) -> GateResult:
    """Compare the mean over ``starts`` engine starts with ``repeats`` runs each to ``limit``.

    P(PASS | true value at or beyond the limit) ≤ ``beta``, P(FAIL | true value as good as the
    reference) ≤ ``alpha``. Without a reference the limit takes its place, and the metric's assumed
    noise that of the measured one: PASS and FAIL are then values clear of the limit on either side.
    ``prompts`` is the hash of the measured prompts; a limit that pins another is INVALID.

    ``looks`` is how many looks the policy plans, 2 where an inconclusive gate is measured once more,
    and ``look`` says which of them this is. Evidence is pooled: ``value``, ``starts`` and ``repeats``
    are those of all measurements so far. Both rates are spent over all planned looks, whether or not
    they happen; see ``spent_rate``. ``planned`` are the numbers of engine starts at which it is looked.
    """
    if metric != limit.metric:
        raise ValueError(f"a limit on {limit.metric} cannot judge {metric}")
    if not (0 < alpha < 0.5 and 0 < beta < 0.5):
        raise ValueError(f"alpha and beta are error rates below 0.5, not {alpha} and {beta}")
    spec = METRICS[metric]
    scale = Scale(spec.log_scale, limit.ceiling)
    sigma, df = run_noise(metric, limit, starts=starts, repeats=repeats)
    spent = [spent_rate(rate, look, looks, planned) for rate in (alpha, beta)]
    noise = Noise.of(sigma, df, alpha=spent[0], beta=spent[1])
    base = limit.reference if limit.reference is not None else limit.value
    blank = GateResult(
        metric=metric,
        verdict=Verdict.INVALID,
        value=math.nan if value is None else value,
        limit=limit.value,
        ceiling=limit.ceiling,
        reference=limit.reference,
        margin=limit.margin,
        sigma=noise.sigma if spec.log_scale else noise.sigma / base,
        guard=scale.guard(noise.t_beta * noise.sigma, limit.value),
        headroom=math.nan,
        mde_not_passed=None,
        mde_failed=None,
        source=limit.source,
        note=f"assumed noise {100 * spec.assumed_noise:g} %" if limit.evidence is None else "",
        evidence=str(limit.evidence) if limit.evidence is not None else "",
        conditional_reference=limit.evidence.conditional if limit.evidence is not None else (),
        looks=look,
    )
    if value is None or not math.isfinite(value):
        return replace(blank, reason="not_measured", note=f"{metric} was not measured")
    if value < 0 or (value == 0 and spec.log_scale):
        return replace(blank, reason="impossible_value", note=f"{metric} cannot be {value:g}")
    sign = -1 if limit.ceiling else 1
    result = replace(blank, headroom=sign * (value - limit.value) / limit.value)
    result = with_effects(result, scale, noise)
    if limit.evidence is not None:
        if limit.evidence.prompts is not None and not (prompts or "").startswith(limit.evidence.prompts):
            return replace(
                result,
                reason="other_prompts",
                note=f"calibrated on prompts {limit.evidence.prompts[:12]}, measured on {(prompts or 'unknown')[:12]}",
            )
        distance = scale(base) - scale(limit.value)
        if noise.sigma > distance / UNREACHABLE:
            return replace(
                result,
                reason="unreachable",
                note=f"noise σ {100 * result.sigma:.2g} % is more than the margin {100 * (limit.margin or 0):.3g} % / "
                f"{UNREACHABLE}; measure more engine starts, or widen the margin",
            )
    return replace(result, verdict=decide(value, limit.value, base, scale, noise))


def spent_rate(rate: float, look: int, looks: int, planned: Sequence[int] = ()) -> float:
    """The nominal level of one of ``looks`` looks.

    The information is the share of the engine starts that are ``planned`` at each look; without several of these
    each look adds as much evidence as the first. Where looks share noise, such as that of the reference
    or of an engine start that is only repeated, they are more alike than that: the true rate is then
    smaller, never larger. The spending is Pocock's, since the first look should decide: a gate that
    can just reach its margin, calibrated with 6 starts, passes an unchanged system at once in 98 % of
    cases, against 72 % with that of O'Brien and Fleming.

    Raises ValueError unless 1 <= look <= looks.
    """
    if not 1 <= look <= looks:
        raise ValueError(f"look {look} is none of {looks}")
    if looks == 1:
        return rate
    at = tuple(planned) if len(planned) == looks else tuple(range(1, looks + 1))
    return levels(rate, tuple(number / at[-1] for number in at), POCOCK)[look - 1]


def decide(value: float, limit: float, good: float, scale: Scale, noise: Noise) -> Verdict:
    """PASS, FAIL or INCONCLUSIVE. ``good`` is the value that must not be failed, the reference."""
    at, low = scale(value), scale(limit)
    met = value <= limit if scale.ceiling else value >= limit
    # met is asked for beside the band: the logarithm may round a value just off its limit onto it
    if met and at - noise.t_beta * noise.sigma >= low:
        return Verdict.PASS
    if not met and at + noise.t_alpha * noise.sigma < scale(good):
        return Verdict.FAIL
    return Verdict.INCONCLUSIVE


def with_effects(result: GateResult, scale: Scale, noise: Noise) -> GateResult:
    """The result with both minimum detectable effects, where it has a reference."""
    if result.reference is None:
        return result
    distance = scale(result.reference) - scale(result.limit)
    power = Z_POWER * noise.sigma
    not_passed = max(0.0, distance - noise.t_beta * noise.sigma + power)
    failed = max(distance + power, noise.t_alpha * noise.sigma + power)
    return replace(
        result,
        mde_not_passed=scale.relative(not_passed, result.reference),
        mde_failed=scale.relative(failed, result.reference),
    )


def run_noise(metric: str, limit: Limit, *, starts: int, repeats: int) -> tuple[float, float]:
    """σ of (measured − reference) on the metric's scale and its degrees of freedom, from the limit's evidence.

    Without evidence it is the metric's assumed noise, with infinitely many.
    """
    spec = METRICS[metric]
    if limit.evidence is None or limit.reference is None:
        # Assumed noise counts as spread between engine starts, which repeats do not average away.
        unit = 1.0 if spec.log_scale else limit.value
        return spec.assumed_noise * unit / math.sqrt(starts), math.inf
    # Imported here because it needs numpy, and every report imports this module.
    from pytest_speedbench.measure.statistics import run_sigma

    evidence = limit.evidence
    unit = limit.reference if spec.log_scale else 1.0
    noise = run_sigma(
        evidence.sd_start / unit,
        evidence.sd_repeat / unit,
        starts=starts,
        repeats=repeats,
        cal_starts=evidence.starts,
        cal_repeats=evidence.repeats,
    )
    return noise.sigma, noise.df


def allocate(family: Family, cells_in_file: Collection[Cell], cell: Cell, *, metrics: int = 1) -> tuple[float, float]:
    """The α and β of one gate on ``cell``, which has ``metrics`` gates in its file.

    Half of the family's α goes to the overall cells, half to the others, evenly over
    ``cells_in_file`` and evenly over the metrics of a cell; a file with only one kind gives it all.
    β holds for each gate and is not split: to release something bad, one gate must pass it wrongly.
    """
    overall = sum(c.is_overall for c in cells_in_file)
    others = len(cells_in_file) - overall
    share = 0.5 if overall and others else 1.0
    peers = overall if cell.is_overall else others
    return family.alpha * share / max(1, peers) / metrics, family.beta


_WORST_FIRST = (Verdict.INVALID, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)


def combine(results: Sequence[GateResult]) -> Verdict:
    """The verdict of a cell: INVALID > FAIL > INCONCLUSIVE > PASS, what is waived after all that is not.

    A waived gate still shows as what it is: a cell that has one never passes. Raises ValueError for no results: a
    cell without a gate has no verdict.
    """
    missed = _WORST_FIRST[:-1]
    for waived in (False, True):
        verdicts = {result.verdict for result in results if result.waived is waived}
        for verdict in missed:
            if verdict in verdicts:
                return verdict
    if not results:
        raise ValueError("no gate results to combine")
    return Verdict.PASS

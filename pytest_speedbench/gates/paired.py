"""The verdict on a new engine against an old one that was measured beside it, without a stored limit.

The two are arms of one experiment on the same machine and prompts. What is compared is new against
old; the margin is policy, as with a floor. Noise is that of this run alone, seen in two ways:

Acceptance metrics: prompts are the same in both arms, so the scatter of the differences over prompts
shows the noise with many degrees of freedom, but not what shifts a whole engine start. The spread of
whole-cell values between engine starts shows all of it, with few degrees of freedom. Each gives a
band, and the wider one counts: the band of the starts alone is an exact t test where the starts of both
engines vary alike, and the band of the prompts guards against starts that agree by luck. With
one start per arm there are only the prompts (and repeats), and the result says what that assumes.
Where an engine start has no run with steps per request (the server joined events), there are whole-cell values
only: the band is that of the starts, and no narrower than the noise that the metric is assumed to have, since a few
starts of an engine without randomness agree exactly and still answer other prompts otherwise.

Rates and latencies: start k of the new engine and start k of the old are neighbours in the order
new-old-old-new, so each pair gives one logarithm of a ratio that slow drift hardly touches (Kalibera
and Jones, "Rigorous benchmarking in reasonable time", ISMM 2013: repeat where the variance arises).
Repeats within a start only make its own value better known.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, variance

from pytest_speedbench.cells import Cell
from pytest_speedbench.gates.spending import POCOCK, increments
from pytest_speedbench.gates.verdict import GateResult, Noise, Scale, Verdict, decide, with_effects
from pytest_speedbench.measure.metrics import METRICS, MetricSpec
from pytest_speedbench.measure.runs import mean_over_starts

LEAST_PAIRS = 2
"""One pair of engine starts cannot show how starts differ."""


@dataclass(frozen=True, slots=True)
class Arm:
    """What was measured of one metric with one of the two engines.

    ``runs`` are whole-cell values as (start, repeat, value), starts counted from 0 in each arm.
    ``prompts`` is the value of each conversation, its mean over ``runs``, by id and in send order; only
    acceptance metrics have it, and not where the engine tells no steps per request. ``weights`` are for
    estimators that are not the mean over conversations but Σ weight · value / Σ weight, such as the pooled
    acceptance length with decode steps as weights.
    """

    runs: Sequence[tuple[int, int, float]]
    prompts: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)


def judge_pair(
    metric: str,
    new: Arm,
    old: Arm,
    *,
    margin: float,
    alpha: float,
    beta: float,
    source: str,
    looks: Sequence[int] = (),
    assumed_noise: float | None = None,
) -> GateResult:
    """Compare the new engine's ``metric`` with the old one's, which is the reference.

    P(PASS | truly worse by ``margin`` or more) ≤ ``beta``; P(FAIL | truly as good) ≤ ``alpha``. With
    ``looks``, the numbers of engine starts per arm at which a verdict is planned, both rates are
    spent over them, and this look is at as many starts as both arms have. ``assumed_noise``, the
    relative standard deviation between engine starts, lets one pair of starts decide on a rate or a
    latency. ``source`` names the baseline.

    INVALID: ``not_measured``, ``impossible_value``, and ``other_prompts`` where the arms' prompts
    differ. INCONCLUSIVE has the reason ``too_few_starts`` where more are needed for any verdict.
    Raises ValueError for rates or a margin that cannot be.
    """
    if not (0 < alpha < 0.5 and 0 < beta < 0.5 and 0 < margin < 1):
        raise ValueError(f"need 0 < alpha, beta < 0.5 and 0 < margin < 1, not {alpha}, {beta} and {margin}")
    spec = METRICS[metric]
    scale = Scale(spec.log_scale, spec.ceiling)
    common = {run[0] for run in new.runs} & {run[0] for run in old.runs}
    if spec.log_scale:
        new, old = (replace(arm, runs=[run for run in arm.runs if run[0] in common]) for arm in (new, old))
    blank = unjudged(metric, new, old, margin, source)
    assert blank.reference is not None
    if not (math.isfinite(blank.value) and math.isfinite(blank.reference)):
        return replace(blank, reason="not_measured", note=f"{metric} was not measured with both engines")
    values = [run[2] for arm in (new, old) for run in arm.runs]
    if min(values) < 0 or blank.reference == 0 or (spec.log_scale and min(values) == 0):
        return replace(blank, reason="impossible_value", note=f"{metric} cannot be {min(values):g}")
    if not spec.log_scale and new.prompts.keys() != old.prompts.keys():
        return replace(blank, reason="other_prompts", note=_unlike(new, old))
    starts = min(len({run[0] for run in arm.runs}) for arm in (new, old))
    alpha, beta = (_spent(rate, starts, looks) for rate in (alpha, beta))
    blank = replace(blank, looks=1 + sum(planned < starts for planned in looks))
    if spec.log_scale:
        if starts < LEAST_PAIRS and assumed_noise is None:
            return replace(blank, verdict=Verdict.INCONCLUSIVE, reason="too_few_starts", note=_MORE_STARTS)
        sigma, df, note = _between_pairs(new, old, assumed_noise)
        bands = [Noise.of(sigma, df, alpha=alpha, beta=beta)]
    elif not new.prompts:
        if starts < LEAST_PAIRS:
            return replace(blank, verdict=Verdict.INCONCLUSIVE, reason="too_few_starts", note=_NO_PROMPTS)
        assert blank.reference is not None
        assumed = spec.assumed_noise * blank.reference * math.sqrt(2 / starts)
        bands = [Noise.of(*each, alpha=alpha, beta=beta) for each in (_of_starts(new, old), (assumed, math.inf))]
        note = "whole cells, since steps per request are not known for every start"
        if bands[1].t_beta * bands[1].sigma > bands[0].t_beta * bands[0].sigma:
            note += f"; assumed noise {100 * spec.assumed_noise:g} % between starts"
    else:
        if len(new.prompts) < 2:
            return replace(
                blank, verdict=Verdict.INCONCLUSIVE, reason="too_few_prompts", note="one prompt does not show any noise"
            )
        bands = [Noise.of(prompt_sigma(new, old), len(new.prompts) - 1, alpha=alpha, beta=beta)]
        of_runs, note = _between_runs(new, old)
        if of_runs is not None:
            bands.append(Noise.of(*of_runs, alpha=alpha, beta=beta))
    return conclude(replace(blank, note=note), scale, bands)


def margin_of(spec: MetricSpec, cell: Cell) -> float:
    """The relative change for the worse that is too much where the user names none.

    The wider margin is for categories of 80 prompts; throughput cells have hundreds.
    """
    return spec.margin if cell.category is not None and not cell.is_overall else spec.overall_margin


def conclude(blank: GateResult, scale: Scale, bands: Sequence[Noise]) -> GateResult:
    """The result with the verdict by the widest of the bands, and what that can detect."""
    assert blank.reference is not None
    widest = max(bands, key=lambda band: band.t_beta * band.sigma)
    # The band that is widest for β need not be so for α.
    for_alpha = max(band.t_alpha * band.sigma for band in bands)
    noise = Noise(widest.sigma, widest.t_beta, for_alpha / widest.sigma if widest.sigma else 0.0)
    result = replace(
        blank,
        verdict=decide(blank.value, blank.limit, blank.reference, scale, noise),
        sigma=noise.sigma if scale.log else noise.sigma / blank.reference,
        guard=scale.guard(noise.t_beta * noise.sigma, blank.limit),
    )
    return with_effects(result, scale, noise)


def pairs_wanted(looks: Sequence[int], done: int) -> int | None:
    """The engine starts per arm of the next planned look after ``done``; None when there is none."""
    return min((planned for planned in looks if planned > done), default=None)


def prompt_sigma(new: Arm, old: Arm) -> float:
    """Standard error of (new − old) from the scatter of the prompts' differences, in the metric's unit.

    Each prompt contributes w (v − R) / w̄ to its arm's value R = Σ w v / Σ w, to first order (Cochran,
    "Sampling techniques", 1977, section 6.4); for the mean over conversations that is v − R. Prompts
    that the new engine treats unlike the others count as noise too, which only widens the band.

    ``new.prompts`` is in send order: prompts that were in flight together share a batch, and where
    neighbours are alike their number says less. With their correlation ρ, if positive, the error grows
    by √((1 + ρ) / (1 − ρ)) (Bartlett, "On the theoretical specification and sampling properties of
    autocorrelated time-series", JRSS Supplement 1946).
    """
    first, second = _influence(new), _influence(old)
    differences = [first[name] - second[name] for name in first]
    n, mean = len(differences), fmean(differences)
    off = [difference - mean for difference in differences]
    squares = math.fsum(each**2 for each in off)
    if not squares:
        return 0.0
    alike = math.fsum(one * following for one, following in itertools.pairwise(off)) / squares
    rho = min(max(alike, 0.0), _MOST_ALIKE)
    return math.sqrt(squares / (n - 1) / n * (1 + rho) / (1 - rho))


_MOST_ALIKE = 0.9

_MORE_STARTS = (
    "one pair of engine starts cannot show how starts differ: measure at least 2 of each engine "
    "(--speedbench-starts 2; 3, then 5, then 8 decide most), or state the noise between starts"
)

_NO_PROMPTS = (
    "acceptance is not known by prompt, and one engine start of an arm shows no noise: measure at least 2 of each "
    "(--speedbench-starts 2)"
)


def unjudged(metric: str, new: Arm, old: Arm, margin: float, source: str) -> GateResult:
    """What a paired result says before noise comes in: the values, the limit, and INVALID for a verdict."""
    spec = METRICS[metric]
    value, reference = (
        mean_over_starts([(start, value) for start, _, value in arm.runs], log=spec.log_scale) if arm.runs else math.nan
        for arm in (new, old)
    )
    limit = reference * (1 + margin if spec.ceiling else 1 - margin)
    sign = -1 if spec.ceiling else 1
    return GateResult(
        metric=metric,
        verdict=Verdict.INVALID,
        value=value,
        limit=limit,
        ceiling=spec.ceiling,
        reference=reference,
        margin=margin,
        sigma=math.nan,
        guard=math.nan,
        headroom=sign * (value - limit) / limit if limit else math.nan,
        mde_not_passed=None,
        mde_failed=None,
        source=source,
        evidence=f"{_count(new)} of the new engine, {_count(old)} of the old",
        kind="paired",
    )


def _count(arm: Arm) -> str:
    starts, runs = len({run[0] for run in arm.runs}), len(arm.runs)
    return f"{starts} start{'s' * (starts != 1)}, {runs} run{'s' * (runs != 1)}"


def _unlike(new: Arm, old: Arm) -> str:
    only = sorted(new.prompts.keys() ^ old.prompts.keys())
    return f"{len(only)} prompts were measured with one engine only: {', '.join(only[:3])}"


def _spent(rate: float, starts: int, looks: Sequence[int]) -> float:
    """The nominal level at ``starts``, on the assumption that every smaller planned look was taken."""
    if not looks:
        return rate
    planned = max(*looks, starts)
    taken = sorted({n for n in looks if n < starts} | {starts})
    return increments(rate, tuple(n / planned for n in taken), POCOCK)[-1]


def _between_pairs(new: Arm, old: Arm, assumed_noise: float | None) -> tuple[float, float, str]:
    """Standard error and degrees of freedom of the mean logarithm of new / old over pairs of starts."""
    first, second = (_start_means(arm, log=True) for arm in (new, old))
    ratios = [first[start] - second[start] for start in first]
    n = len(ratios)
    if n < LEAST_PAIRS:
        assert assumed_noise is not None
        return assumed_noise * math.sqrt(2 / n), math.inf, f"assumed noise {100 * assumed_noise:g} % between starts"
    mean = fmean(ratios)
    return math.sqrt(math.fsum((r - mean) ** 2 for r in ratios) / (n - 1) / n), n - 1.0, ""


def _between_runs(new: Arm, old: Arm) -> tuple[tuple[float, float] | None, str]:
    """Standard error of (new − old), with degrees of freedom, from whole-cell values; and what it assumes.

    Of starts where an arm has several, else of repeats; both arms are taken to vary alike.
    """
    values_of_arms = [list(_start_means(arm, log=False).values()) for arm in (new, old)]
    note = ""
    if max(len(values) for values in values_of_arms) < LEAST_PAIRS:
        values_of_arms = [[value for _, _, value in arm.runs] for arm in (new, old)]
        note = "one engine start each: what shifts a whole start is assumed to be less than the prompts show"
    df = sum(len(values) - 1 for values in values_of_arms)
    if df == 0:
        return None, note
    squares = math.fsum((v - fmean(values)) ** 2 for values in values_of_arms for v in values)
    return (math.sqrt(squares / df * sum(1 / len(values) for values in values_of_arms)), df), note


def _of_starts(new: Arm, old: Arm) -> tuple[float, float]:
    """Standard error of (new − old) from the starts of each, and its degrees of freedom.

    The arms may vary unlike: one engine can repeat to the last token, and the other not (Welch, "The
    generalization of Student's problem when several different population variances are involved", Biometrika 1947).
    """
    arms = [list(_start_means(arm, log=False).values()) for arm in (new, old)]
    terms = [(variance(values) / len(values), len(values) - 1) for values in arms]
    total = sum(term for term, _ in terms)
    if not total:
        return 0.0, float(sum(df for _, df in terms))
    return math.sqrt(total), total**2 / sum(term**2 / df for term, df in terms)


def _start_means(arm: Arm, *, log: bool) -> dict[int, float]:
    starts: dict[int, list[float]] = defaultdict(list)
    for start, _, value in arm.runs:
        starts[start].append(math.log(value) if log else value)
    return {start: fmean(values) for start, values in sorted(starts.items())}


def _influence(arm: Arm) -> dict[str, float]:
    weights = {name: arm.weights.get(name, 0.0) if arm.weights else 1.0 for name in arm.prompts}
    total = math.fsum(weights.values())
    whole = math.fsum(weights[name] * value for name, value in arm.prompts.items()) / total
    return {name: weights[name] * (value - whole) * len(weights) / total for name, value in arm.prompts.items()}

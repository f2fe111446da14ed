"""Deciding on a cell before all of its prompts are measured.

Prompts are sent in a seeded order that spreads the strata evenly, cut into blocks; a look is taken
when a block has drained. (In the order of completion short answers come first, and with them other
acceptance lengths.) The prompts so far are then a random sample, without replacement, of the cell's
fixed prompts, and the whole-cell value is predicted from them:

    predicted − true:   σ_n² = s² (1/n − 1/N) + σ_run²

with s the standard deviation over prompts of what is averaged (the difference from each prompt's
calibrated value where that is known, else the value itself), 1 − n/N the finite-population correction
(Cochran, "Sampling techniques", 1977, section 2.6), and σ_run the noise of whole-cell values from the
evidence. The rates are spent by share of prompts, with the shape of O'Brien and Fleming, so that the
last look loses next to nothing. The boundaries take the looks for as much alike as if prompts were
independent; docs/verdicts.md shows by simulation what holds where they are more or less so.

A floor may only FAIL early: cells that PASS early would leave the overall value to the cells that do
badly. A paired gate may PASS early, but not before enough prompts were seen that a few of them
falling to one token per step could not have hidden among the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, variance

from pytest_speedbench.gates.limits import Limit
from pytest_speedbench.gates.paired import Arm, conclude, prompt_sigma, unjudged
from pytest_speedbench.gates.spending import OBRIEN_FLEMING, POCOCK, levels
from pytest_speedbench.gates.verdict import GateResult, Noise, Scale, Verdict, decide, judge, run_noise, with_effects
from pytest_speedbench.measure.metrics import METRICS
from pytest_speedbench.strata import stratified

FIRST_LOOK = 1 / 3
"""No look before this share of the prompts."""

LEAST_PROMPTS = 16
"""No look at fewer prompts than this: their scatter would be little known, and their mean not near normal."""

NUMBER_OF_BLOCKS = 6


def blocks(
    ids_by_stratum: Mapping[str, Sequence[str]], seed: int, number: int = NUMBER_OF_BLOCKS
) -> tuple[tuple[str, ...], ...]:
    """The seeded send order of all ids, cut into ``number`` blocks of nearly equal size.

    Every prefix holds each stratum's share to within one prompt. The order depends on the seed and the names alone.
    Fewer ids than blocks give as many blocks as ids. Raises ValueError for ``number`` below 1 or an id given twice.
    """
    if number < 1:
        raise ValueError(f"a send order needs at least one block, not {number}")
    order = stratified(ids_by_stratum, seed, "prompt")
    if len(set(order)) < len(order):
        raise ValueError("an id is in the send order twice")
    count = min(number, len(order))
    ends = [len(order) * (i + 1) // count for i in range(count)]
    return tuple(tuple(order[a:b]) for a, b in zip([0, *ends], ends, strict=False))


def look_sizes(parts: Sequence[Sequence[str]]) -> tuple[int, ...]:
    """How many prompts each look has: after every block from a third of the prompts on; the last has all."""
    sizes, done, planned = [], 0, sum(len(part) for part in parts)
    for part in parts:
        done += len(part)
        # The first block that ends a prompt short of a third, since N is no multiple of 3, is early enough.
        if done == planned or (done >= max(LEAST_PROMPTS, math.floor(FIRST_LOOK * planned))):
            sizes.append(done)
    return tuple(sizes)


def last_rate(rate: float, sizes: Sequence[int]) -> float:
    """The nominal level that is left of ``rate`` for the whole cell, after looks at all smaller ``sizes``.

    This is the price of having looked, due also where no look decided.
    """
    return _levels(rate, sizes)[-1]


def early_floor(
    metric: str,
    values: Mapping[str, float],
    limit: Limit,
    *,
    sizes: Sequence[int],
    alpha: float,
    beta: float,
    reference: Mapping[str, float] | None = None,
    starts: int = 1,
    repeats: int = 1,
) -> GateResult | None:
    """FAIL from the prompts so far, or None to go on.

    ``values`` is the metric of each drained prompt by id, as many as one of ``sizes`` (``look_sizes``)
    but not the last, which ``judge`` decides with ``last_rate(alpha, sizes)``. ``reference`` is the
    same at calibration. The result's value is the predicted one of the whole cell. FAIL needs that to
    be under the limit and its upper bound under the reference, as with all prompts.

    A limit without evidence fails early by its assumed noise, one that ``judge`` calls INVALID never.
    Raises ValueError for a number of prompts at which no look was planned.
    """
    look = _look(len(values), sizes)
    spec = METRICS[metric]
    if spec.log_scale or limit.ceiling:
        return None
    predicted, averaged = _predict(values, limit, reference)
    pinned = limit.evidence.prompts if limit.evidence is not None else None
    result = judge(metric, predicted, limit, alpha=alpha, beta=beta, starts=starts, repeats=repeats, prompts=pinned)
    if result.verdict is Verdict.INVALID:
        return None
    run, run_df = run_noise(metric, limit, starts=starts, repeats=repeats)
    missing = variance(averaged) * (1 / len(averaged) - 1 / sizes[-1])
    sigma, df = math.sqrt(missing + run**2), _satterthwaite((missing, len(averaged) - 1), (run**2, run_df))
    noise = Noise.of(sigma, df, alpha=_levels(alpha, sizes)[look], beta=beta)
    good = limit.reference if limit.reference is not None else limit.value
    scale = Scale(spec.log_scale, limit.ceiling)
    if decide(predicted, limit.value, good, scale, noise) is not Verdict.FAIL:
        return None
    result = replace(
        result,
        verdict=Verdict.FAIL,
        sigma=sigma / good,
        guard=scale.guard(noise.t_beta * sigma, limit.value),
        looks=look + 1,
        note=_stopped(sizes, look, result.note),
    )
    return with_effects(result, scale, noise)


def early_pair(
    metric: str,
    new: Mapping[str, float],
    old: Mapping[str, float],
    *,
    sizes: Sequence[int],
    margin: float,
    alpha: float,
    beta: float,
    source: str,
) -> GateResult | None:
    """PASS or FAIL of a paired gate on tokens per step from the prompts so far, or None to go on.

    ``new`` and ``old`` have the same drained prompts, as many as one of ``sizes`` but not the last,
    which ``judge_pair`` decides with ``last_rate`` of both rates. What is to come is not known of
    either arm, so no finite-population correction narrows the band. PASS also needs so many prompts
    that, if the fewest that make up the margin (``concentrated``) had fallen, one of them would have
    shown with probability 1 − ``beta``, spent over the looks; how much one that shows weighs is the
    band's business.

    Raises ValueError for a number of prompts at which no look was planned, or different prompts.
    """
    if new.keys() != old.keys():
        raise ValueError(f"{len(new.keys() ^ old.keys())} prompts were measured with one engine only")
    look = _look(len(new), sizes)
    if METRICS[metric].unit != "tokens/step":
        return None
    first, second = (Arm([(0, 0, fmean(values.values()))], values) for values in (new, old))
    band = Noise.of(
        prompt_sigma(first, second),
        len(new) - 1,
        alpha=_levels(alpha, sizes)[look],
        beta=_levels(beta, sizes)[look],
    )
    result = conclude(unjudged(metric, first, second, margin, source), Scale(False, False), [band])
    fewest = concentrated(sizes[-1], fmean(old.values()), margin)
    enough = prompts_to_see(sizes[-1], fewest, _levels(beta, sizes, POCOCK)[look])
    if result.verdict is Verdict.PASS and len(new) < enough:
        return None
    if result.verdict is Verdict.INCONCLUSIVE:
        return None
    return replace(result, looks=look + 1, note=_stopped(sizes, look, ""))


def concentrated(planned: int, length: float, margin: float) -> int:
    """The fewest of ``planned`` prompts that, falling to one token per step, lower the mean by ``margin``.

    ``length`` is the mean acceptance length. All of them where not even all can.
    Raises ValueError for a length below 1 or fewer prompts than one.
    """
    if planned < 1 or length < 1:
        raise ValueError(f"need at least one prompt and a length of 1, not {planned} and {length}")
    lost = margin * length * planned
    return planned if lost >= (length - 1) * planned else max(1, math.ceil(lost / (length - 1) - 1e-9))


def seen_at_most(seen: int, drawn: int, planned: int, fallen: int) -> float:
    """P(at most ``seen`` of ``fallen`` prompts are among ``drawn`` of ``planned``): the hypergeometric tail."""
    ways = sum(math.comb(fallen, c) * math.comb(planned - fallen, drawn - c) for c in range(min(seen, drawn) + 1))
    return ways / math.comb(planned, drawn)


def prompts_to_see(planned: int, fallen: int, beta: float, seen: int = 0) -> int:
    """The fewest prompts to draw so that more than ``seen`` of the ``fallen`` ones show with P >= 1 − ``beta``.

    Raises ValueError where not even all prompts show so many.
    """
    if not 0 <= seen < fallen <= planned:
        raise ValueError(f"of {planned} prompts with {fallen} fallen ones never more than {seen} show")
    return next(n for n in range(1, planned + 1) if seen_at_most(seen, n, planned, fallen) <= beta)


def _predict(
    values: Mapping[str, float], limit: Limit, reference: Mapping[str, float] | None
) -> tuple[float, Sequence[float]]:
    """The whole cell's value, and the numbers whose mean it comes from."""
    if reference is not None and limit.reference is not None and values.keys() <= reference.keys():
        differences = [value - reference[name] for name, value in values.items()]
        return limit.reference + fmean(differences), differences
    return fmean(values.values()), list(values.values())


def _look(done: int, sizes: Sequence[int]) -> int:
    if done not in sizes[:-1]:
        raise ValueError(f"no early look was planned at {done} prompts, only at {', '.join(map(str, sizes[:-1]))}")
    return list(sizes).index(done)


def _levels(rate: float, sizes: Sequence[int], shape: str = OBRIEN_FLEMING) -> tuple[float, ...]:
    return levels(rate, tuple(size / sizes[-1] for size in sizes), shape)


def _satterthwaite(*parts: tuple[float, float]) -> float:
    """Degrees of freedom of a sum of (variance, degrees of freedom)."""
    total = sum(part for part, _ in parts)
    spread = sum(part**2 / df for part, df in parts)
    return total**2 / spread if spread else math.inf


def _stopped(sizes: Sequence[int], look: int, note: str) -> str:
    stopped = f"decided after {sizes[look]} of {sizes[-1]} prompts (look {look + 1} of {len(sizes)})"
    return f"{stopped}; {note}" if note else stopped

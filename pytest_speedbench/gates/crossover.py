"""The largest concurrency at which speculation still pays, and the gate on it.

Speculation spends compute to save memory traffic, so its gain shrinks as batches fill the GPU. Measured at several
concurrencies, the crossover lies where the speed-up falls through 1. Not every real curve falls all the way: a
mixture-of-experts model may gain little at concurrency 1, where drafts wake more experts. So no shape is assumed.
"It pays up to c" is claimed where every measured concurrency up to c is shown to pay. Testing these in ascending
order and stopping at the first that is not shown keeps P(claimed > true) ≤ β without any correction (fixed-sequence
test: Maurer, Hothorn and Lehmacher 1995; Westfall and Krishen, J. Stat. Plan. Inference 99, 2001). One
noisy cell can therefore only make the answer open, and the answer names it; it cannot make it wrong.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import fmean, stdev

from pytest_speedbench.gates.limits import Limit
from pytest_speedbench.gates.verdict import GateResult, Verdict
from pytest_speedbench.measure.student import t_quantile

METRIC = "crossover"
ENOUGH_STARTS = 3
"""From this many engine starts on their own spread is the noise; with fewer the assumed noise is."""


@dataclass(frozen=True, slots=True)
class Point:
    """The speed-up at one concurrency. ``sigma`` is the standard deviation of its logarithm."""

    concurrency: int
    speedup: float
    sigma: float
    df: float = math.inf


class Answer(Enum):
    """Whether speculation pays at one concurrency."""

    PAYS = "pays"
    OPEN = "open"
    COSTS = "costs"


@dataclass(frozen=True, slots=True)
class Bounds:
    """A speed-up with its one-sided bounds: ``low`` at 1 - β, ``high`` at 1 - α over all points together."""

    concurrency: int
    speedup: float
    low: float
    high: float
    answer: Answer

    def __str__(self) -> str:
        return f"{self.speedup:.2f} ({self.low:.2f}–{self.high:.2f}) at {self.concurrency}"


@dataclass(frozen=True, slots=True)
class Crossover:
    """Where speculation stops paying.

    It is shown to pay at every measured concurrency up to ``paid``, and shown not to at every one beyond
    ``possible``; 0 where there is none. The two are equal where nothing is open.
    """

    bounds: tuple[Bounds, ...]
    paid: int
    possible: int

    @property
    def contradicted(self) -> tuple[Bounds, ...]:
        """Concurrencies at which it is shown not to pay although at a larger one it is shown to."""
        largest = max((b.concurrency for b in self.bounds if b.answer is Answer.PAYS), default=0)
        return tuple(b for b in self.bounds if b.answer is Answer.COSTS and b.concurrency < largest)

    def __str__(self) -> str:
        if not self.bounds:
            return "not measured"
        if not self.possible:
            return "never pays"
        top = self.bounds[-1].concurrency
        most = f"{self.possible}" + (" or more" if self.possible == top else "")
        if self.paid == self.possible:
            return f"pays up to {most}"
        return f"pays up to {self.paid}, open up to {most}" if self.paid else f"open up to {most}"


def point(concurrency: int, runs: Sequence[tuple[int, float]], *, assumed: float) -> Point:
    """The geometric mean of a speed-up over engine starts, from (start, value) of every run.

    A start counts once, however often it was repeated. With fewer than three starts their spread says little:
    ``assumed``, the relative standard deviation over restarted runs, takes its place, as for every hand-written limit.
    Raises ValueError for no runs, or a speed-up that is not a positive number.
    """
    if not runs or not all(0 < value < math.inf for _, value in runs):
        raise ValueError(f"need speed-ups above 0, not {runs!r}")
    starts: dict[int, list[float]] = {}
    for start, value in runs:
        starts.setdefault(start, []).append(math.log(value))
    means = [fmean(own) for own in starts.values()]
    measured = len(means) >= ENOUGH_STARTS
    sd = stdev(means) if measured else assumed
    return Point(
        concurrency, math.exp(fmean(means)), sd / math.sqrt(len(means)), len(means) - 1.0 if measured else math.inf
    )


def crossover(points: Iterable[Point], *, pays: float = 1.0, alpha: float = 0.05, beta: float = 0.05) -> Crossover:
    """Where the speed-up falls through ``pays``, 1 or what it must exceed to be worth its drafter's memory.

    ``beta`` bounds the probability that ``paid`` is too large, ``alpha`` that any point is called a cost
    although speculation pays there. Raises ValueError for two points of one concurrency.
    """
    ordered = sorted(points, key=lambda p: p.concurrency)
    if len({p.concurrency for p in ordered}) < len(ordered):
        raise ValueError("two speed-ups at one concurrency")
    bounds = tuple(_bounds(p, pays, alpha / len(ordered), beta) for p in ordered)
    paid = possible = 0
    for bound in bounds:
        if bound.answer is not Answer.PAYS:
            break
        paid = bound.concurrency
    for bound in reversed(bounds):
        if bound.answer is not Answer.COSTS:
            possible = bound.concurrency
            break
    return Crossover(bounds, paid, possible)


def _bounds(p: Point, pays: float, alpha: float, beta: float) -> Bounds:
    middle = math.log(p.speedup)
    low = math.exp(middle - t_quantile(1 - beta, p.df) * p.sigma)
    high = math.exp(middle + t_quantile(1 - alpha, p.df) * p.sigma)
    answer = Answer.PAYS if low > pays else Answer.COSTS if high < pays else Answer.OPEN
    return Bounds(p.concurrency, p.speedup, low, high, answer)


def judge_crossover(
    points: Iterable[Point],
    limit: Limit,
    *,
    missing: Collection[int] = (),
    pays: float = 1.0,
    alpha: float = 0.05,
    beta: float = 0.05,
) -> GateResult:
    """Whether speculation pays at least up to the concurrency that ``limit`` names.

    PASS: it is shown to pay at every measured concurrency up to the limit, the limit itself or one beyond it
    included. FAIL: at one of them it is shown not to pay, and nowhere beyond that one is it shown to.
    INVALID ``not_measured``: neither can be said whatever the noise, since the concurrencies do not reach the
    limit, or because of ``missing``, those that were planned and have no valid speed-up. INCONCLUSIVE
    otherwise, with the cells to measure again.

    P(PASS | some concurrency up to the limit does not pay) ≤ β, P(FAIL | all pay) ≤ α.
    """
    if limit.metric != METRIC:
        raise ValueError(f"a limit on {limit.metric} is not one on the crossover")
    found = crossover(points, pays=pays, alpha=alpha, beta=beta)
    verdict, note = _verdict(found, limit.value, sorted(missing))
    if pays != 1:
        note += f"; counted from a speed-up of {pays:g}"
    return GateResult(
        metric=METRIC,
        verdict=verdict,
        value=float(found.paid),
        limit=limit.value,
        ceiling=False,
        reference=None,
        margin=None,
        sigma=0.0,
        guard=0.0,
        headroom=(found.paid - limit.value) / limit.value,
        mde_not_passed=None,
        mde_failed=None,
        source=limit.source,
        reason="not_measured" if verdict is Verdict.INVALID else None,
        note=note,
    )


def _verdict(found: Crossover, limit: float, missing: Sequence[int]) -> tuple[Verdict, str]:
    """The verdict, and what it rests on in words."""
    contradicted = found.contradicted
    below = [bound for bound in found.bounds if bound.concurrency <= limit]
    costs = [bound for bound in below if bound.answer is Answer.COSTS and bound not in contradicted]
    if costs:
        return Verdict.FAIL, f"{found}: speed-up {costs[-1]}"
    reach = next((bound.concurrency for bound in found.bounds if bound.concurrency >= limit), None)
    if reach is None or (reach > limit and found.paid < reach):
        has = ", ".join(str(bound.concurrency) for bound in found.bounds) or "none"
        return Verdict.INVALID, f"no speed-up was measured at {limit:g} (only at {has}); {found}"
    gaps = [concurrency for concurrency in missing if concurrency <= reach]
    if gaps:
        return Verdict.INVALID, f"no valid speed-up at {', '.join(map(str, gaps))}; {found}"
    if found.paid >= limit:
        return Verdict.PASS, f"{found}: speed-up {next(b for b in found.bounds if b.concurrency == reach)}"
    again = [str(b) for b in found.bounds if b.concurrency <= limit and b.answer is not Answer.PAYS]
    why = "does not pay, but at a larger concurrency it does" if contradicted else "too close to call"
    return Verdict.INCONCLUSIVE, f"{found}: speed-up {', '.join(again)}: {why}; measure again"

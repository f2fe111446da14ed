"""Error rates spread over several looks at growing evidence: the price of looking more than once.

Lan and DeMets ("Discrete sequential boundaries for clinical trials", Biometrika 1983): a function of
the information so far says how much of the rate may have been used up, so that neither the number of
looks nor their places need be fixed. The boundaries follow by recursive numerical integration over
the looks (Armitage, McPherson and Rowe, JRSS A 1969; Jennison and Turnbull, "Group sequential
methods", 2000, chapter 19).

All is one-sided and exact for a normal statistic with known σ. Where σ is estimated, the nominal
level of a look goes with a quantile of Student's t ("significance level approach", Jennison and
Turnbull, chapter 11). That keeps the rates where all looks share one estimate, or have many degrees of
freedom; elsewhere ``increments`` does. docs/verdicts.md shows both by simulation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

OBRIEN_FLEMING = "obrien-fleming"
"""Spends next to nothing early: for many looks, of which the last should lose nothing."""

POCOCK = "pocock"
"""Spends about evenly: for few looks, of which the first should decide."""

CLOSEST = 1e-3
"""Looks closer than this in information are as good as one."""

_NORMAL = NormalDist()
_REACH = 8.0
_STEPS_PER_SIGMA = 12
_MOST_NODES = 1200


def cumulative(rate: float, fraction: float, shape: str = OBRIEN_FLEMING) -> float:
    """How much of ``rate`` may have been spent when ``fraction`` of the final information is there.

    ``obrien-fleming``: 2 − 2 Φ(z(1 − rate/2) / √t); ``pocock``: rate · ln(1 + (e − 1) t), both from Lan
    and DeMets. Raises ValueError unless 0 < rate < 0.5 and 0 < fraction <= 1.
    """
    if not 0 < rate < 0.5:
        raise ValueError(f"an error rate must be between 0 and 0.5, not {rate!r}")
    if not 0 < fraction <= 1:
        raise ValueError(f"a fraction of the information must be above 0 and at most 1, not {fraction!r}")
    if fraction == 1:
        return rate
    if shape == OBRIEN_FLEMING:
        return math.erfc(-_NORMAL.inv_cdf(rate / 2) / math.sqrt(2 * fraction))
    if shape == POCOCK:
        return rate * math.log1p((math.e - 1) * fraction)
    raise ValueError(f"unknown spending shape {shape!r}")


def boundaries(rate: float, information: Sequence[float], shape: str = OBRIEN_FLEMING) -> tuple[float, ...]:
    """The standard-normal value to exceed at each look, so that exceeding any has the probability ``rate``.

    ``information`` is that of each look as a fraction of the planned final one, rising, so that the
    correlation of looks i < k is √(t_i / t_k). A look with no more information than the one before
    has an infinite boundary. Where the last fraction is below 1, not all of ``rate`` is spent.

    Raises ValueError for fractions that do not rise or leave (0, 1], and for rates out of range.
    """
    fractions = tuple(information)
    if not fractions:
        raise ValueError("no look to find a boundary for")
    if any(b < a for a, b in itertools.pairwise(fractions)):
        raise ValueError(f"fractions must rise from look to look, not {fractions}")
    if not (fractions[0] > 0 and fractions[-1] <= 1):
        raise ValueError(f"fractions must be above 0 and at most 1, not {fractions}")
    return _solve(fractions, tuple(cumulative(rate, fraction, shape) for fraction in fractions))


def levels(rate: float, information: Sequence[float], shape: str = OBRIEN_FLEMING) -> tuple[float, ...]:
    """The nominal one-sided level of each look: the normal tail beyond its boundary; see ``boundaries``."""
    return tuple(_tail(z) for z in boundaries(rate, information, shape))


def increments(rate: float, information: Sequence[float], shape: str = OBRIEN_FLEMING) -> tuple[float, ...]:
    """What each look spends, as a nominal level of its own: valid however looks are correlated (Bonferroni).

    For statistics that bring their own estimate of σ with few degrees of freedom. Those are less alike
    than normal ones; with ``levels`` looks at 3, 5 and 8 pairs would use 110 % of a rate of 5 %.
    """
    spent = [0.0, *(cumulative(rate, fraction, shape) for fraction in information)]
    return tuple(b - a for a, b in itertools.pairwise(spent))


def _tail(z: float) -> float:
    return 0.5 * math.erfc(z / math.sqrt(2))


@lru_cache(maxsize=512)
def _solve(information: tuple[float, ...], spent: tuple[float, ...]) -> tuple[float, ...]:
    """Boundaries on the z scale from the cumulative rates.

    On the scale b = z √t the looks are a Brownian motion. ``nodes`` and ``masses`` are its position
    at the last look, given that no boundary was crossed, as a quadrature: Σ masses · f(nodes).
    """
    found: list[float] = []
    nodes, masses, at, before = [0.0], [1.0], 0.0, 0.0
    for look, (t, target) in enumerate(zip(information, spent, strict=True)):
        step = t - at
        if step < CLOSEST or target <= before:
            found.append(math.inf)
            continue
        width = math.sqrt(step)
        bound = _crossing(nodes, masses, width, target - before, math.sqrt(t))
        found.append(bound / math.sqrt(t))
        if look + 1 < len(information):
            nodes, masses = _advance(nodes, masses, width, bound, _reach(information, look))
        at, before = t, target
    return tuple(found)


def _reach(information: tuple[float, ...], look: int) -> tuple[float, float]:
    """The range to cover at a look, and the finest detail that it or the next look needs."""
    t = information[look]
    gaps = [b - a for a, b in zip((0.0, *information), information, strict=False)]
    finest = min(math.sqrt(max(gap, CLOSEST)) for gap in gaps[look : look + 2])
    return _REACH * math.sqrt(t), finest


def _crossing(nodes: Sequence[float], masses: Sequence[float], width: float, probability: float, scale: float) -> float:
    """The bound that is exceeded after the next increment with ``probability``, by bisection."""

    def exceeded(bound: float) -> float:
        return math.fsum(m * _tail((bound - x) / width) for x, m in zip(nodes, masses, strict=True))

    low, high = -_REACH * scale, 40 * scale
    for _ in range(60):
        middle = (low + high) / 2
        if exceeded(middle) > probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _advance(
    nodes: Sequence[float], masses: Sequence[float], width: float, bound: float, reach: tuple[float, float]
) -> tuple[list[float], list[float]]:
    """The position after one more increment, where it stayed below ``bound``: Simpson's rule."""
    lowest, finest = -reach[0], reach[1]
    highest = min(bound, reach[0])
    intervals = 2 * math.ceil((highest - lowest) / finest * _STEPS_PER_SIGMA / 2)
    intervals = min(max(intervals, 2), _MOST_NODES)
    h = (highest - lowest) / intervals
    density = 1 / (width * math.sqrt(2 * math.pi))
    following, weighted = [], []
    for i in range(intervals + 1):
        x = lowest + i * h
        simpson = h / 3 * (1 if i in (0, intervals) else 4 if i % 2 else 2)
        value = sum(
            m * math.exp(-0.5 * ((x - y) / width) ** 2)
            for y, m in zip(nodes, masses, strict=True)
            if abs(x - y) < _REACH * width
        )
        following.append(x)
        weighted.append(simpson * density * value)
    return following, weighted

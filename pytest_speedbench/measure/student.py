"""Quantiles of Student's t for real degrees of freedom, which Satterthwaite's formula yields.

The tail is P(T > t) = I_y(df/2, 1/2) / 2 with y = df / (df + t²) and the regularised incomplete
beta function I, evaluated by its continued fraction (Abramowitz and Stegun, 26.5.8 and 26.7.1).
From 10,000 degrees of freedom on, the series around the normal quantile (26.7.5) is more accurate
than that. Error below 1e-9, relative for quantiles above 1 and absolute below.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

_SERIES_FROM = 1e4
_TINY = 1e-300
_MOST_TERMS = 2000
_LARGEST_LOG = 700.0


@lru_cache(maxsize=4096)
def t_quantile(p: float, df: float) -> float:
    """The t with P(T <= t) = p for ``df`` degrees of freedom; ``math.inf`` gives the normal's.

    Raises ValueError unless 0 < p < 1 and df > 0. Quantiles beyond 1e304 come out as infinite.
    """
    if not 0 < p < 1:
        raise ValueError(f"a probability must be between 0 and 1, not {p!r}")
    if not df > 0:
        raise ValueError(f"degrees of freedom must be positive, not {df!r}")
    if p == 0.5:
        return 0.0
    # The smaller tail is the one that floating point holds exactly.
    if p > 0.5:
        return _upper_quantile(1 - p, df)
    return -_upper_quantile(p, df)


def _upper_quantile(tail: float, df: float) -> float:
    if df >= _SERIES_FROM:
        return _near_normal(-NormalDist().inv_cdf(tail), df)
    return _solve(tail, df)


def _near_normal(z: float, df: float) -> float:
    if math.isinf(df):
        return z
    s = z * z
    return z + z * (
        (s + 1) / (4 * df)
        + ((5 * s + 16) * s + 3) / (96 * df**2)
        + (((3 * s + 19) * s + 17) * s - 15) / (384 * df**3)
        + ((((79 * s + 776) * s + 1482) * s - 1920) * s - 945) / (92160 * df**4)
    )


def _solve(tail: float, df: float) -> float:
    """Newton on log(tail) over log(t), kept inside a bracket.

    In logarithms the tail is smooth and falls ever more steeply towards a straight line, even where
    t itself spans hundreds of orders of magnitude, as it does for a df below 1.
    """
    low, high = _bracket(tail, df)
    if high > _LARGEST_LOG:
        return math.inf
    x = (low + high) / 2
    for _ in range(200):
        t = math.exp(x)
        found = _tail(t, df)
        if found > tail:
            low = x
        else:
            high = x
        slope = t * _density(t, df) / found if found > 0 else 0.0
        step = math.log(found / tail) / slope if slope > 0 else math.inf
        following = x + step if low < x + step < high else (low + high) / 2
        if abs(following - x) < 1e-15 * max(1.0, abs(x)):
            break
        x = following
    return math.exp(x)


def _bracket(tail: float, df: float) -> tuple[float, float]:
    """Logarithms of a t below and a t above the quantile."""
    low, high, width = -1.0, 1.0, 1.0
    while _tail(math.exp(low), df) < tail:
        low -= width
        width *= 2
    width = 1.0
    while high <= _LARGEST_LOG and _tail(math.exp(high), df) > tail:
        high += width
        width *= 2
    return low, high


def _density(t: float, df: float) -> float:
    constant = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
    return math.exp(constant - (df + 1) / 2 * _log_sum(t, df))


def _log_sum(t: float, df: float) -> float:
    """log(1 + t²/df) without overflow for any finite t."""
    log_ratio = 2 * math.log(t) - math.log(df)
    if log_ratio > 50:
        return log_ratio
    return math.log1p(math.exp(log_ratio))


def _tail(t: float, df: float) -> float:
    """P(T > t) for t > 0."""
    log_y = -_log_sum(t, df)
    log_rest = 2 * math.log(t) - math.log(df) + log_y
    if t * t < 3:
        # Near the centre the other side of the beta function converges.
        return 0.5 * (1 - _incomplete_beta(0.5, df / 2, log_rest, log_y))
    return 0.5 * _incomplete_beta(df / 2, 0.5, log_y, log_rest)


def _incomplete_beta(a: float, b: float, log_x: float, log_rest: float) -> float:
    """I_x(a, b) for x on the lower side; log_rest is log(1 - x), so that neither end loses digits."""
    log_front = a * log_x + b * log_rest + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return math.exp(log_front) / a / _beta_fraction(a, b, math.exp(log_x))


def _beta_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction 1 + d1 / (1 + d2 / (1 + …)) of I_x(a, b), from the front (Lentz)."""
    value = upper = 1.0
    lower = 0.0
    for i in range(1, _MOST_TERMS):
        m, odd = divmod(i, 2)
        if odd:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        upper = 1 + d / upper or _TINY
        lower = 1 / (1 + d * lower or _TINY)
        value *= upper * lower
        if abs(upper * lower - 1) < 1e-16:
            break
    return value

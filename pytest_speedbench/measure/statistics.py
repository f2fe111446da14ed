"""Uncertainty: bootstrap intervals over conversations, and the noise of whole runs.

These answer two different questions. The bootstrap asks what a metric would be on other prompts of
the same kind; ``run_sigma`` asks how far it moves when nothing changed but the run. Verdicts use
the latter, reports show both.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pytest_speedbench.measure.student import t_quantile

__all__ = ["Interval", "RunNoise", "bootstrap_mean", "bootstrap_ratio", "run_sigma", "seed_of", "t_quantile"]

Interval = tuple[float, float]

_DRAWS_AT_ONCE = 1_000_000


def seed_of(*parts: str) -> int:
    """A seed of 64 bits that is the same in every process and on every machine.

    The parts are kept apart, so that ("a", "bc") and ("ab", "c") give different seeds.
    """
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def bootstrap_mean(
    values: Sequence[float], *, seed: int, resamples: int = 10_000, confidence: float = 0.95
) -> Interval | None:
    """Percentile interval of the mean; each value is one conversation.

    None for fewer than two values: one conversation does not tell how conversations differ.
    """
    return bootstrap_ratio(values, [1.0] * len(values), seed=seed, resamples=resamples, confidence=confidence)


def bootstrap_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    seed: int,
    resamples: int = 10_000,
    confidence: float = 0.95,
) -> Interval | None:
    """Percentile interval of Σ numerators / Σ denominators; each pair is one conversation.

    The ratio is formed anew in every resample; resamples without any denominator have no ratio and
    do not count. None for fewer than two pairs, or when no resample has a ratio. The result depends
    on the order of the pairs, so callers sort them.

    Raises ValueError for sequences of different lengths, values that are not finite, and a
    ``resamples`` or ``confidence`` out of range.
    """
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"need resamples >= 1 and 0 < confidence < 1, not {resamples!r} and {confidence!r}")
    over = np.asarray(numerators, dtype=np.float64)
    under = np.asarray(denominators, dtype=np.float64)
    if over.shape != under.shape:
        raise ValueError(f"{over.size} numerators for {under.size} denominators")
    if not (np.isfinite(over).all() and np.isfinite(under).all()):
        raise ValueError("cannot resample values that are not finite")
    if over.size < 2:
        return None
    ratios = _resampled_ratios(over, under, seed, resamples)
    if ratios.size == 0:
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(ratios, (tail, 1 - tail))
    return float(low), float(high)


def _resampled_ratios(
    over: NDArray[np.float64], under: NDArray[np.float64], seed: int, resamples: int
) -> NDArray[np.float64]:
    # Raw bits, since numpy keeps the stream of a bit generator for good but not that of its
    # distributions: the same records must give the same interval next year.
    bits = np.random.PCG64(seed)
    size = over.size
    at_once = max(1, _DRAWS_AT_ONCE // size)
    ratios = []
    for begin in range(0, resamples, at_once):
        rows = min(at_once, resamples - begin)
        draws = bits.random_raw((rows, size)) >> np.uint64(32)
        picks = (draws * np.uint64(size)) >> np.uint64(32)
        sums = over[picks].sum(axis=1), under[picks].sum(axis=1)
        defined = sums[1] != 0
        ratios.append(sums[0][defined] / sums[1][defined])
    return np.concatenate(ratios)


@dataclass(frozen=True, slots=True)
class RunNoise:
    """Standard deviation of (measured - reference), and the degrees of freedom it is known with."""

    sigma: float
    df: float


def run_sigma(
    sd_start: float, sd_repeat: float, *, starts: int, repeats: int, cal_starts: int, cal_repeats: int
) -> RunNoise:
    """Noise of a run's mean against a calibrated reference, from two levels (Kalibera and Jones).

    ``sd_start`` (σ_b) is the spread *between* engine starts beyond what repeats explain, and
    ``sd_repeat`` (σ_w) that of repeats *within* a start; both on the scale of the verdict. The run
    has b = ``starts`` starts with ``repeats`` repeats each, n runs in total; the calibration that
    the deviations and the reference come from has b_cal and n_cal = b_cal * ``cal_repeats``.

        σ² = σ_b² (1/b + 1/b_cal) + σ_w² (1/n + 1/n_cal)

    Degrees of freedom follow Satterthwaite, applied to the mean squares that were estimated:
    MS_b = cal_repeats σ_b² + σ_w² with b_cal - 1, MS_w = σ_w² with n_cal - b_cal. Applied to σ_b²
    itself, which is a difference of the two, the formula promises too many: in simulations with 3 to
    10 starts up to 7.6 % pass where 5 % are allowed, as against 5.9 % this way (5.5 % from 4 starts
    on). They are never fewer than the b_cal - 1 that the starts alone give. Without any noise σ is
    0, with infinite degrees of freedom.

    Raises ValueError for numbers that cannot be: counts below 1, negative deviations, one
    calibration start (it cannot show how starts differ), or a ``sd_repeat`` from single repeats.
    """
    _require_possible(sd_start, sd_repeat, starts, repeats, cal_starts, cal_repeats)
    between = 1 / starts + 1 / cal_starts
    within = 1 / (starts * repeats) + 1 / (cal_starts * cal_repeats)
    variance = between * sd_start**2 + within * sd_repeat**2
    if variance == 0:
        return RunNoise(0.0, math.inf)
    # The same variance, written in the two mean squares.
    from_starts = between / cal_repeats * (cal_repeats * sd_start**2 + sd_repeat**2)
    from_repeats = (within - between / cal_repeats) * sd_repeat**2
    # As shares, since squares of squares underflow for tiny deviations.
    uncertainty = (from_starts / variance) ** 2 / (cal_starts - 1)
    if sd_repeat > 0:
        uncertainty += (from_repeats / variance) ** 2 / (cal_starts * (cal_repeats - 1))
    return RunNoise(math.sqrt(variance), max(1 / uncertainty, cal_starts - 1.0))


def _require_possible(
    sd_start: float, sd_repeat: float, starts: int, repeats: int, cal_starts: int, cal_repeats: int
) -> None:
    if min(starts, repeats, cal_starts, cal_repeats) < 1:
        raise ValueError("starts and repeats must be at least 1")
    if not (0 <= sd_start < math.inf and 0 <= sd_repeat < math.inf):
        raise ValueError(f"standard deviations must be finite and not negative: {sd_start!r}, {sd_repeat!r}")
    if cal_starts < 2:
        raise ValueError("a calibration with 1 start cannot tell how starts differ; it needs at least 2")
    if cal_repeats < 2 and sd_repeat > 0:
        raise ValueError("a calibration with 1 repeat per start has no sd_repeat; its spread is all sd_start")

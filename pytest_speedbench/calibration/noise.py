"""The spread of whole-cell values, split into what engine starts and what repeats contribute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and spread of a balanced table of runs, all in the metric's own unit.

    ``sd_start`` is the standard deviation between engine starts beyond what repeats explain,
    ``sd_repeat`` that of repeats within a start. For a metric on the log scale ``mean`` is the
    geometric one, and the deviations are those of the logarithm times ``mean``.
    """

    mean: float
    sd_start: float
    sd_repeat: float
    starts: int
    repeats: int
    lowest: float
    highest: float


_ROUNDING = 1e-9
"""Relative."""


def two_levels(table: Sequence[Sequence[float]], *, log: bool = False) -> Spread:
    """Split the variance of ``table``, one row of equally many repeats per engine start.

    The estimates of a one-way random-effects analysis of variance, as Kalibera and Jones use it for
    benchmarks ("Rigorous benchmarking in reasonable time", ISMM 2013): with s starts of r repeats,

        MS_b = r Σ (ȳ_i − ȳ)² / (s − 1)        MS_w = Σ (y_ij − ȳ_i)² / (s (r − 1))
        σ_b² = max(0, (MS_b − MS_w) / r)       σ_w² = MS_w

    With one repeat there is nothing to tell the two apart: all of the spread counts as σ_b, which no
    repeat averages away. Raises ValueError for fewer than two starts, rows of unequal length, values
    that are not finite, and on the log scale such as are not positive.
    """
    starts, repeats = len(table), len(table[0]) if table else 0
    if starts < 2 or repeats < 1 or any(len(row) != repeats for row in table):
        raise ValueError("need at least two starts with equally many repeats each")
    values = [value for row in table for value in row]
    if not all(math.isfinite(value) and (value > 0 or not log) for value in values):
        raise ValueError("values must be finite, and above 0 on the log scale")
    rows = [[math.log(value) if log else value for value in row] for row in table]
    means = [fmean(row) for row in rows]
    mean = fmean(means)
    between = repeats * sum((own - mean) ** 2 for own in means) / (starts - 1)
    within = 0.0
    if repeats > 1:
        squares = ((value - own) ** 2 for row, own in zip(rows, means, strict=True) for value in row)
        within = sum(squares) / (starts * (repeats - 1))
    # What sums in another order differ by is no noise.
    rounding = (_ROUNDING if log else _ROUNDING * abs(mean)) ** 2
    between, within = (each if each > rounding else 0.0 for each in (between, within))
    reference, unit = (math.exp(mean), math.exp(mean)) if log else (mean, 1.0)
    return Spread(
        mean=reference,
        sd_start=unit * math.sqrt(max(0.0, (between - within) / repeats)),
        sd_repeat=unit * math.sqrt(within),
        starts=starts,
        repeats=repeats,
        lowest=min(values),
        highest=max(values),
    )

"""Open loop: when conversations begin, by a schedule that does not look at what is in flight."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

KINDS = ("poisson", "fixed")


@dataclass(frozen=True, slots=True)
class Arrivals:
    """``rate`` conversations begin per second, evenly (``fixed``) or as a Poisson process.

    Raises ValueError for another kind, or a rate that is not a positive number.
    """

    rate: float
    kind: str = "poisson"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"arrivals are {' or '.join(KINDS)}, not {self.kind!r}")
        if not 0 < self.rate < math.inf:
            raise ValueError(f"arrivals need a rate above 0 per second, not {self.rate!r}")


def schedule(arrivals: Arrivals, number: int, seed: int) -> tuple[int, ...]:
    """When each of ``number`` conversations begins, in ns after the first, which begins at 0.

    Gaps of a Poisson process are exponential: -ln(1 - u) / rate for u uniform in [0, 1), drawn by Python's
    Mersenne Twister, whose stream is the same in every version. So equal seeds give equal schedules, and one
    of fewer conversations is the beginning of one of more. The gaps are not scaled to make up the rate: that of a
    drawn schedule is off by about 1 / √number, in every run by the same.
    """
    if arrivals.kind == "fixed":
        return tuple(round(i / arrivals.rate * 1e9) for i in range(number))
    return tuple(round(at * 1e9) for at, _ in zip(_poisson(arrivals.rate, seed), range(number), strict=False))


def _poisson(rate: float, seed: int) -> Iterator[float]:
    # The order of the conversations is drawn from the seed itself.
    draws, at = random.Random(f"arrivals {seed}"), 0.0
    while True:
        yield at
        at -= math.log(1.0 - draws.random()) / rate

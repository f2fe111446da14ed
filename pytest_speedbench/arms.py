"""In which order engines are started, where a cell is measured over several starts or beside another engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_speedbench.engines.base import Profile


@dataclass(frozen=True, slots=True)
class Arm:
    """One start of one engine: the ``start``-th of its profile, from 0."""

    profile: Profile
    start: int


def order(profile: Profile, companions: Sequence[Profile], starts: range) -> tuple[Arm, ...]:
    """Every start of ``profile`` and of what it is compared with, in turn; ``starts`` are their numbers.

    Blocks are mirrored (new, old, old, new), so that a drift of the machine cancels out of the comparison; the last
    block ends with ``profile``, whose items are judged while it runs. With an odd number of starts the first
    block has no mirror image.
    """
    arms: list[Arm] = []
    for start in starts:
        block = (*companions, profile)
        mirrored = (starts.stop - 1 - start) % 2 == 1
        arms += [Arm(each, start) for each in (reversed(block) if mirrored else block)]
    return tuple(arms)

"""A seeded order in which every beginning holds about every stratum's share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence


def stratified(ids_by_stratum: Mapping[str, Sequence[str]], seed: int, kind: str) -> list[str]:
    """All ids in an order that depends on the seed, the ``kind`` of order and the names alone.

    Systematic sampling: members at even distances on [0, 1) with a random start. Without the random start,
    strata of one member would all stand at the same place, first or last.
    """
    ranked = []
    for stratum, ids in ids_by_stratum.items():
        start = int.from_bytes(_digest(seed, "stratum", stratum)[:8], "big") / 2**64
        members = sorted(ids, key=lambda name: _digest(seed, kind, name))
        ranked += [((i + start) / len(members), _digest(seed, kind, name), name) for i, name in enumerate(members)]
    return [name for _, _, name in sorted(ranked)]


def _digest(seed: int, kind: str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{kind}\n{name}".encode()).digest()

"""Which prompts of a cell are used: seeded, nested and independent of the order in the file."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence

from pytest_speedbench.data.schema import Row
from pytest_speedbench.errors import ConfigError


def select(rows: Sequence[Row], n: int | None, seed: int) -> tuple[Row, ...]:
    """At most ``n`` of ``rows``; all of them, in file order, when ``n`` is None or not below their number.

    A choice is a prefix of one seeded order, so that the first 8 prompts are among the first 16, and
    it is stratified by ``sub_category``, so that each prefix holds about every stratum's share. The
    order depends on the seed and the rows' ids only, not on where they stand in the file.

    Raises ConfigError for ``n`` below 1.
    """
    if n is not None and n < 1:
        raise ConfigError(f"a cell needs at least one prompt, not {n}")
    if n is None or n >= len(rows):
        return tuple(rows)
    strata = defaultdict(list)
    for row in rows:
        strata[row.sub_category].append(row)
    ranked = []
    for name, members in strata.items():
        members.sort(key=lambda row: _digest(seed, "row", row.question_id))
        # Systematic sampling: members at even distances on [0, 1) with a random start. Without the
        # random start, strata of one row would all stand at the same place, first or last.
        start = int.from_bytes(_digest(seed, "stratum", name)[:8], "big") / 2**64
        ranked += [((i + start) / len(members), _digest(seed, "row", r.question_id), r) for i, r in enumerate(members)]
    ranked.sort(key=lambda entry: entry[:2])
    return tuple(row for _, _, row in ranked[:n])


def content_sha256(rows: Iterable[Row]) -> str:
    """The identity of a set of prompts: sha256 over id and turns, whatever the order of ``rows``."""
    digest = hashlib.sha256()
    for row in sorted(rows, key=lambda row: row.question_id):
        # JSON keeps the borders between turns, so moving text from one to the next changes the hash.
        digest.update(json.dumps([row.question_id, row.turns], separators=(",", ":")).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _digest(seed: int, kind: str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{kind}\n{name}".encode()).digest()

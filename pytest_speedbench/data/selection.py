"""Which prompts of a cell are used: by default seeded, nested and independent of the order in the file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol, TypeVar

from pytest_speedbench.errors import ConfigError
from pytest_speedbench.names import PROMPT_ORDERS
from pytest_speedbench.strata import stratified

STRATIFIED, ROUND_ROBIN = PROMPT_ORDERS


class Named(Protocol):
    """What a choice depends on."""

    @property
    def question_id(self) -> str:
        """Unique in a cell."""

    @property
    def sub_category(self) -> str:
        """The stratum."""


N = TypeVar("N", bound=Named)


def select(rows: Sequence[N], n: int | None, seed: int, order: str = STRATIFIED) -> tuple[N, ...]:
    """At most ``n`` of the ``rows`` of one cell; all, in file order, when ``n`` is None or not below their number.

    ``round-robin`` is what SPEED-Bench's own --num_requests takes: it goes round the categories and takes
    row i of each, so a cell gets its first rows of the file. ``stratified``:

    A choice is a prefix of one seeded order, so that the first 8 prompts are among the first 16, and
    it is stratified by ``sub_category``, so that each prefix holds about every stratum's share. The
    order depends on the seed and the rows' ids only, not on where they stand in the file.

    Raises ConfigError for ``n`` below 1.
    """
    if n is not None and n < 1:
        raise ConfigError(f"a cell needs at least one prompt, not {n}")
    if n is None or n >= len(rows):
        return tuple(rows)
    if order == ROUND_ROBIN:
        return tuple(rows[:n])
    strata: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        strata[row.sub_category].append(row.question_id)
    named = {row.question_id: row for row in rows}
    return tuple(named[name] for name in stratified(strata, seed, "row")[:n])

"""Iteration statistics of ``trtllm-serve``: GET /metrics is a JSON array, emptied by reading.

A row tells of one iteration of the executor. Reading takes rows away from every other reader, and the
server drops the oldest when too many wait, so totals are kept here and gaps are counted.

With the overlap scheduler, the engine's default, the executor launches the next iteration before it has
seen that a request ended. The ended request is counted once more, with the drafts of its last step, and
where nothing else runs in the row of a later window. Totals of such rows are no counts of steps; they
only show that there were drafts.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Mapping
from typing import Any

from pytest_speedbench.measure.samples import Counters

QUIET_READS = 3
"""So many readings without a row mean that no iteration runs, where the rows themselves do not say it."""


class IterationLog:
    """Totals over the rows that were read. ``read`` takes the body of one GET /metrics.

    ``overlap`` is whether the overlap scheduler is on, as far as the launch tells; rows of newer versions
    say it themselves. ``most_drafts`` is the most draft tokens of one request in one iteration.
    """

    def __init__(self, *, speculation: bool, overlap: bool, most_drafts: int) -> None:
        self._speculation, self._overlap, self._most_drafts = speculation, overlap, most_drafts
        self._numbers = Numbers()
        self._totals = dict.fromkeys(("steps", "drafts", "drafted", "accepted", "preemptions"), 0)
        self._newest: tuple[int, int | None] | None = None
        self._wrong: ValueError | None = None
        self.empty_reads = 0
        """Readings without a row since the last one that had some."""

    @property
    def rows(self) -> int:
        """Iterations that are in the totals."""
        return self._numbers.count

    def read(self, body: bytes) -> None:
        """Add the rows. Raises ValueError for anything but the array that this module knows.

        After that every reading raises: what was lost with the wrong one is in no later one.
        """
        if self._wrong is not None:
            raise self._wrong
        try:
            self._read(body)
        except ValueError as error:
            self._wrong = error
            raise

    def _read(self, body: bytes) -> None:
        rows = json.loads(body)
        if not isinstance(rows, list):
            raise ValueError(f"GET /metrics is not a JSON array but {body[:60]!r}")
        self.empty_reads = 0 if rows else self.empty_reads + 1
        for row in rows:
            # Some versions send each row as a text of its own.
            self._add(json.loads(row) if isinstance(row, str) else row)

    def counters(self) -> Counters:
        """The totals; those that are no exact counts are left out."""
        totals = self._totals
        if self._overlap:
            return Counters(drafted=totals["drafted"], preemptions=totals["preemptions"], missing=self._numbers.missing)
        return Counters(**totals, missing=self._numbers.missing)

    @property
    def idle(self) -> bool:
        """Whether no request is left, by the newest row, or else because no rows come any more."""
        left = None if self._newest is None else self._newest[1]
        return left == 0 or self.empty_reads >= QUIET_READS

    def _add(self, row: Any) -> None:
        if not isinstance(row, Mapping):
            raise ValueError(f"a row of /metrics must be an object, but is {row!r}")
        # The sequence counts rows alone; iterations without a batch have a number too.
        number = _number(row, "statsSequence" if row.get("statsSequence") is not None else "iter")
        if (row.get("attentionDpRank") or 0) > 0:
            raise ValueError(
                f"iteration {number} of /metrics has a row for attentionDpRank {row['attentionDpRank']}: with "
                "attention DP each rank repeats the drafts of rank 0, so they cannot be counted"
            )
        if not self._numbers.add(number):
            return
        if self._newest is None or number > self._newest[0]:
            self._newest = number, _left(row)
        mode = row.get("schedulerMode")
        if mode is not None:
            self._overlap = mode != "non_overlap"
        batch = _group(row, "inflightBatchingStats")
        self._totals["steps"] += _number(batch, "numGenRequests")
        self._totals["preemptions"] += _number(batch, "numPausedRequests")
        if self._speculation or row.get("specDecodingStats") is not None:
            self._add_drafts(_group(row, "specDecodingStats"), number)

    def _add_drafts(self, stats: Mapping[str, Any], number: int) -> None:
        drafts, drafted = _number(stats, "numRequestsWithDraftTokens"), _number(stats, "numDraftTokens")
        if self._speculation and drafted > drafts * self._most_drafts:
            raise ValueError(
                f"iteration {number} of /metrics has {drafted} draft tokens for {drafts} requests, but the profile "
                f"asks for at most {self._most_drafts} per request: the server drafts otherwise than the profile says"
            )
        self._totals["drafts"] += drafts
        self._totals["drafted"] += drafted
        self._totals["accepted"] += _number(stats, "numAcceptedTokens")


class Numbers:
    """A set of whole numbers, kept as its runs: few where they come one after the other."""

    def __init__(self) -> None:
        self._first: list[int] = []
        self._last: list[int] = []
        self.count = 0

    def add(self, number: int) -> bool:
        """Whether it was new."""
        at = bisect.bisect_right(self._first, number)
        if at and number <= self._last[at - 1]:
            return False
        self.count += 1
        joins_left = at > 0 and self._last[at - 1] == number - 1
        joins_right = at < len(self._first) and self._first[at] == number + 1
        if joins_left and joins_right:
            self._last[at - 1] = self._last.pop(at)
            self._first.pop(at)
        elif joins_left:
            self._last[at - 1] = number
        elif joins_right:
            self._first[at] = number
        else:
            self._first.insert(at, number)
            self._last.insert(at, number)
        return True

    @property
    def runs(self) -> int:
        """How many runs they make."""
        return len(self._first)

    @property
    def missing(self) -> int:
        """How many lie between the lowest and the highest and were never added."""
        return self._last[-1] - self._first[0] + 1 - self.count if self.count else 0


def _left(row: Mapping[str, Any]) -> int | None:
    """Requests that are running or waiting after the iteration; None where the row does not say it."""
    if row.get("numCompletedRequests") is None:
        return None
    ended = _number(row, "numCompletedRequests")
    return _number(row, "numActiveRequests") - ended + _number(row, "numQueuedRequests")


def _group(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    group = row.get(name)
    if not isinstance(group, Mapping):
        raise ValueError(f"a row of /metrics has no {name}, only {', '.join(map(str, row))}")
    return group


def _number(row: Mapping[str, Any], name: str) -> int:
    value = row.get(name)
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} in a row of /metrics must be a count, but is {value!r}")
    return value

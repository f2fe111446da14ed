"""What a thresholds file says, as frozen values: limits with their evidence, and gates."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field

from pytest_speedbench.cells import Cell
from pytest_speedbench.gates.match import Match

MIN_STARTS = 5
"""Fewer engine starts than this leave the spread between starts all but unknown."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The calibration behind a reference: how often it was measured, and how far values spread.

    ``sd_start`` (between engine starts) and ``sd_repeat`` (between repeats within one start) are
    standard deviations in the metric's own unit, for metrics on the log scale too.
    ``repeats`` counts per start. ``conditional`` is the conditional acceptance per draft position.
    ``prompts`` pins the hash of the prompts, or a leading part of it. ``lowest`` and ``highest`` are
    the extreme values of single runs. ``engine_version`` and ``gpu`` say what was measured; they pin
    nothing, since an upgrade is what a gate is for.
    """

    starts: int
    repeats: int
    sd_start: float
    sd_repeat: float
    date: dt.date
    run: str | None = None
    conditional: tuple[float, ...] = ()
    prompts: str | None = None
    engine_version: str | None = None
    gpu: str | None = None
    lowest: float | None = None
    highest: float | None = None

    def __str__(self) -> str:
        repeats = "repeat" if self.repeats == 1 else "repeats"
        return f"{self.starts} starts × {self.repeats} {repeats} on {self.date.isoformat()}"


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of a limit's history: it was loosened from ``before`` to ``after``, and why.

    With ``prompts``, the hash of other prompts than before, it is a new reference: the two values
    are then not comparable, and drift is counted from ``after`` on.
    """

    date: dt.date
    before: float
    after: float
    reason: str
    prompts: str | None = None


@dataclass(frozen=True, slots=True)
class Limit:
    """One floor or ceiling. ``reference``, ``margin`` and ``evidence`` are all set, or none is.

    ``source`` is ``file:line``. ``estimator`` is that of its file. ``history`` is oldest first.
    """

    metric: str
    value: float
    ceiling: bool
    source: str
    reference: float | None = None
    margin: float | None = None
    evidence: Evidence | None = None
    estimator: str = "request_mean"
    history: tuple[Change, ...] = ()

    @property
    def first_logged(self) -> float | None:
        """The value from which cumulative drift is counted, None where nothing was logged."""
        for change in reversed(self.history):
            if change.prompts is not None:
                return change.after
        return self.history[0].before if self.history else None

    def loosened(self, before: float, after: float) -> bool:
        """Whether a change from ``before`` to ``after`` lets more through."""
        return after > before if self.ceiling else after < before

    @property
    def measured_as(self) -> str:
        """The name of the measured metric to compare: the estimator decides for acceptance length."""
        pooled = self.metric == "acceptance_length" and self.estimator == "pooled"
        return "acceptance_length_pooled" if pooled else self.metric


@dataclass(frozen=True, slots=True)
class CellPattern:
    """Which cells a gate is for. A field that is None matches everything."""

    split: str | None = None
    category: str | None = None
    isl: str | None = None
    difficulty: str | None = None
    concurrency: int | None = None

    def fields(self) -> dict[str, str | int]:
        """The fields that are set."""
        named = {
            "split": self.split,
            "category": self.category,
            "isl": self.isl,
            "difficulty": self.difficulty,
            "concurrency": self.concurrency,
        }
        return {name: value for name, value in named.items() if value is not None}

    def matches(self, cell: Cell) -> bool:
        """Whether ``cell`` has every field that is set."""
        return self.fields().items() <= cell.as_dict().items()

    def matches_point(self, point: Cell) -> bool:
        """Like ``matches``, whatever the concurrency."""
        return {k: v for k, v in self.fields().items() if k != "concurrency"}.items() <= point.as_dict().items()

    def narrower(self, other: CellPattern) -> bool:
        """Whether this pattern matches a proper part of what ``other`` matches."""
        return self.fields().items() > other.fields().items()

    @property
    def names_one_cell(self) -> bool:
        """Whether at most one cell can match."""
        point = self.category is not None or (self.isl is not None and self.difficulty is not None)
        return point and self.concurrency is not None

    def __str__(self) -> str:
        return "{" + ", ".join(f"{name}: {value}" for name, value in self.fields().items()) + "}"


@dataclass(frozen=True, slots=True)
class Gate:
    """The limits for the cells of one pattern. ``source`` is ``file:line``."""

    cell: CellPattern
    limits: tuple[Limit, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Family:
    """Error rates: ``alpha`` over all gates of a file, ``beta`` for each gate."""

    alpha: float = 0.05
    beta: float = 0.05


@dataclass(frozen=True, slots=True)
class Waiver:
    """A missed limit that is accepted for a while: of one cell and metric, for one issue, until a day (inclusive).

    ``level`` is the value that was measured when the waiver was granted. It covers values down to ``limit``,
    level × (1 − margin) for floors, level × (1 + margin) for ceilings; what is worse than that is missed as ever.
    ``waives`` and ``source`` are ``file:line`` of the limit and of the waiver itself.
    """

    cell: CellPattern
    metric: str
    issue: str
    until: dt.date
    reason: str
    level: float
    margin: float
    limit: float
    waives: str
    source: str


@dataclass(frozen=True, slots=True)
class ThresholdsFile:
    """One thresholds file, checked."""

    path: str
    schema: int
    match: Match
    estimator: str
    family: Family = field(default_factory=Family)
    gates: tuple[Gate, ...] = ()
    waivers: tuple[Waiver, ...] = ()

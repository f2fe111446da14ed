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
    ``prompts`` pins the hash of the prompts, or a leading part of it.
    """

    starts: int
    repeats: int
    sd_start: float
    sd_repeat: float
    date: dt.date
    run: str | None = None
    conditional: tuple[float, ...] = ()
    prompts: str | None = None

    def __str__(self) -> str:
        repeats = "repeat" if self.repeats == 1 else "repeats"
        return f"{self.starts} starts × {self.repeats} {repeats} on {self.date.isoformat()}"


@dataclass(frozen=True, slots=True)
class Limit:
    """One floor or ceiling. ``reference``, ``margin`` and ``evidence`` are all set, or none is.

    ``source`` is ``file:line``. ``estimator`` is that of its file.
    """

    metric: str
    value: float
    ceiling: bool
    source: str
    reference: float | None = None
    margin: float | None = None
    evidence: Evidence | None = None
    estimator: str = "request_mean"

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
class ThresholdsFile:
    """One thresholds file, checked."""

    path: str
    schema: int
    match: Match
    estimator: str
    family: Family = field(default_factory=Family)
    gates: tuple[Gate, ...] = ()

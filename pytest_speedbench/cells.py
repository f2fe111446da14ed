"""Cells: the points of the plan, one pytest item each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_speedbench.errors import ConfigError
from pytest_speedbench.names import CATEGORIES, CONTROL, CROSSOVER, DIFFICULTIES, ISLS, LOSSLESS, OVERALL, SPLITS

__all__ = [
    "CATEGORIES",
    "DEFAULT_CONCURRENCY",
    "DIFFICULTIES",
    "ISLS",
    "OVERALL",
    "SPLITS",
    "STEADY_PROMPTS_PER_STREAM",
    "Axes",
    "Cell",
    "control_beside",
    "control_cells",
    "expand",
    "implied_splits",
    "isl_tokens",
]

STEADY_PROMPTS_PER_STREAM = 4


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the plan.

    Qualitative cells have a ``category`` and no ``isl`` or ``difficulty``; throughput cells have both of those
    and no ``category``. ``concurrency`` is the number of conversations that the client keeps in flight.

    Derived cells are not measured but worked out from others: ``overall`` and ``lossless`` from the
    categories at their concurrency, ``crossover`` from its ISL and difficulty at all concurrencies, of which it
    has the largest.
    """

    split: str
    concurrency: int
    category: str | None = None
    isl: str | None = None
    difficulty: str | None = None

    @property
    def is_overall(self) -> bool:
        """Whether this cell is computed from the other qualitative cells."""
        return self.category == OVERALL

    @property
    def is_lossless(self) -> bool:
        """Whether this cell compares the output of the other qualitative cells with and without speculation."""
        return self.category == LOSSLESS

    @property
    def is_crossover(self) -> bool:
        """Whether this cell says up to which concurrency speculation pays."""
        return self.category == CROSSOVER

    @property
    def is_derived(self) -> bool:
        """Whether this cell is worked out from others."""
        return self.is_overall or self.is_lossless or self.is_crossover

    @property
    def is_control(self) -> bool:
        """Whether the prompts are random tokens, which no limit applies to."""
        return self.difficulty == CONTROL

    @property
    def name(self) -> str:
        """The cell without its concurrency, e.g. ``coding``, ``8k-mixed`` or ``8k-mixed-crossover``."""
        parts = (self.isl, self.difficulty, self.category)
        return "-".join(part for part in parts if part is not None)

    def id(self, *, with_concurrency: bool) -> str:
        """The stable part of the pytest id, e.g. ``throughput-8k-mixed-c32``."""
        suffix = f"-c{self.concurrency}" if with_concurrency and not self.is_crossover else ""
        return f"{self.split}-{self.name}{suffix}"

    def as_dict(self) -> dict[str, str | int]:
        """The set fields, in the order of a thresholds file."""
        fields = {
            "split": self.split,
            "category": self.category,
            "isl": self.isl,
            "difficulty": self.difficulty,
            "concurrency": self.concurrency,
        }
        return {name: value for name, value in fields.items() if value is not None}


def isl_tokens(isl: str) -> int:
    """Tokens of an ISL bucket: decimal thousands, so ``8k`` is 8000 (as in SPEED-Bench).

    Raises ConfigError for anything that is not a number followed by ``k``.
    """
    match = re.fullmatch(r"(\d+)k", isl)
    if match is None:
        raise ConfigError(f"unknown ISL {isl!r}; choose from {', '.join(ISLS)}")
    return int(match.group(1)) * 1000


@dataclass(frozen=True, slots=True)
class Axes:
    """What the user asked for. An empty tuple means: not asked, take the default."""

    splits: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    isls: tuple[str, ...] = ()
    difficulties: tuple[str, ...] = ()
    concurrencies: tuple[int, ...] = ()

    @property
    def explicit(self) -> bool:
        """Whether any axis other than concurrency was given."""
        return bool(self.splits or self.categories or self.isls or self.difficulties)

    def takes(self, point: Cell) -> bool:
        """Whether ``point``, whatever its concurrency, lies on the axes that were asked for."""
        named: list[tuple[tuple[str, ...], str | None]] = [
            (self.splits, point.split),
            (self.categories, point.category),
            (self.isls, point.isl),
            (self.difficulties, point.difficulty),
        ]
        return all(not asked or value is None or value in asked for asked, value in named)


DEFAULT_CONCURRENCY = {
    "qualitative": (32,),
    "throughput": (2, 4, 8, 16, 32, 64, 128, 256, 512),
}


def expand(axes: Axes, available: Iterable[Cell], defaults: dict[str, tuple[int, ...]]) -> list[Cell]:
    """The cells that explicit ``axes`` name, in canonical order.

    ``available`` lists what the dataset has (its ``concurrency`` is ignored), ``defaults`` the
    concurrencies per split for when none is asked. The ``overall`` cell is added when every
    available category is planned, or when it is asked for by name.

    Raises ConfigError when a split cannot have an axis, or when nothing is left.
    """
    asked_splits = implied_splits(axes)
    splits = [split for split in SPLITS if split in asked_splits]
    if "qualitative" in splits and (axes.isls or axes.difficulties):
        asked = "isl" if axes.isls else "difficulty"
        raise ConfigError(
            f"the qualitative split has no {asked}; drop --speedbench-{asked} or use --speedbench-split=throughput"
        )
    if "throughput" in splits and axes.categories:
        raise ConfigError(
            "the throughput split has no category; drop --speedbench-category or use --speedbench-split=qualitative"
        )
    points = list(available)
    planned: list[Cell] = []
    for split in splits:
        concurrencies = axes.concurrencies or defaults[split]
        if split == "qualitative":
            planned += _qualitative(axes, points, concurrencies)
        else:
            planned += _throughput(axes, points, concurrencies)
    if not planned:
        raise ConfigError("no cell is left to measure: the dataset has none of what was asked for")
    return list(dict.fromkeys(planned))


def control_cells(axes: Axes, defaults: dict[str, tuple[int, ...]]) -> list[Cell]:
    """The cells of a run that has random prompts only. Raises ConfigError for axes that they do not have."""
    if axes.categories or axes.difficulties or "qualitative" in axes.splits:
        raise ConfigError(
            "random prompts are a control of the throughput split and have no category or difficulty; name "
            "--speedbench-isl and --speedbench-concurrency only"
        )
    return [
        Cell("throughput", concurrency, isl=isl, difficulty=CONTROL)
        for isl in axes.isls or ISLS
        for concurrency in axes.concurrencies or defaults["throughput"]
    ]


def control_beside(cells: Iterable[Cell]) -> list[Cell]:
    """One control for every ISL and concurrency of the throughput split among ``cells``."""
    return list(
        dict.fromkeys(
            Cell("throughput", cell.concurrency, isl=cell.isl, difficulty=CONTROL)
            for cell in cells
            if cell.split == "throughput"
        )
    )


def implied_splits(axes: Axes) -> tuple[str, ...]:
    """The splits that ``axes`` can have cells of."""
    if axes.splits:
        return axes.splits
    if axes.categories:
        return ("qualitative",)
    if axes.isls or axes.difficulties:
        return ("throughput",)
    return SPLITS


def _qualitative(axes: Axes, points: Sequence[Cell], concurrencies: Sequence[int]) -> list[Cell]:
    present = [c for c in CATEGORIES if any(p.split == "qualitative" and p.category == c for p in points)]
    wanted = [c for c in axes.categories if c != OVERALL] or present
    missing = [c for c in wanted if c not in present]
    if missing:
        raise ConfigError(
            f"the dataset has no prompts in category {', '.join(missing)}; it has {', '.join(present) or 'none'}"
        )
    with_overall = OVERALL in axes.categories or (bool(present) and set(wanted) == set(present))
    cells = []
    for concurrency in concurrencies:
        cells += [Cell("qualitative", concurrency, category=c) for c in present if c in wanted]
        if with_overall:
            cells.append(Cell("qualitative", concurrency, category=OVERALL))
    return cells


def _throughput(axes: Axes, points: Sequence[Cell], concurrencies: Sequence[int]) -> list[Cell]:
    present = {(p.isl, p.difficulty) for p in points if p.split == "throughput"}
    isls = sorted({isl for isl, _ in present if isl is not None}, key=isl_tokens)
    missing = [i for i in axes.isls if i not in isls]
    if missing:
        raise ConfigError(f"the dataset has no ISL {', '.join(missing)}; it has {', '.join(isls) or 'none'}")
    tiers = [d for d in DIFFICULTIES if any(difficulty == d for _, difficulty in present)]
    missing = [d for d in axes.difficulties if d not in tiers]
    if missing:
        raise ConfigError(f"the dataset has no difficulty {', '.join(missing)}; it has {', '.join(tiers) or 'none'}")
    return [
        Cell("throughput", concurrency, isl=isl, difficulty=difficulty)
        for isl in isls
        if not axes.isls or isl in axes.isls
        for difficulty in DIFFICULTIES
        if (not axes.difficulties or difficulty in axes.difficulties) and (isl, difficulty) in present
        for concurrency in concurrencies
    ]

"""Which limits apply to which cells, which cells files plan, and each gate's share of the errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_speedbench.cells import CATEGORIES, DIFFICULTIES, OVERALL, SPLITS, Cell, isl_tokens
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates.limits import CellPattern, Limit, ThresholdsFile
from pytest_speedbench.gates.verdict import allocate
from pytest_speedbench.names import CROSSOVER

UNMEASURED_OVERALL = ("output_tps", "steady_output_tps", "speedup")
"""Rates over a window, which the overall cell does not have: a pattern that takes in all cells leaves it out."""


@dataclass(frozen=True, slots=True)
class AssignedLimit:
    """A limit of a cell with the error rates that its verdict may spend."""

    limit: Limit
    alpha: float
    beta: float


def gates_for(files: Iterable[ThresholdsFile], cell: Cell) -> tuple[Limit, ...]:
    """The limits of ``cell``, at most one per metric, sorted by metric.

    ``files`` are those that match the run, runtime fields included. A gate whose pattern matches a
    proper part of another's overrides it, so a pattern with fewer fields is a default.

    Raises ConfigError when two gates apply and neither is narrower, within a file or across files.
    """
    candidates: dict[str, list[tuple[CellPattern, Limit]]] = {}
    for file in files:
        for gate in file.gates:
            if _applies(gate.cell, cell):
                for limit in gate.limits:
                    if (limit.metric == CROSSOVER) is not cell.is_crossover:
                        continue
                    if cell.is_overall and gate.cell.category is None and limit.metric in UNMEASURED_OVERALL:
                        continue
                    candidates.setdefault(limit.metric, []).append((gate.cell, limit))
    return tuple(_narrowest(candidates[metric], cell) for metric in sorted(candidates))


def _applies(pattern: CellPattern, cell: Cell) -> bool:
    """A cell over all concurrencies, and the losslessness cell, are not of a category."""
    if cell.is_lossless:
        return False
    return pattern.matches(replace(cell, category=None)) if cell.is_crossover else pattern.matches(cell)


def _narrowest(candidates: list[tuple[CellPattern, Limit]], cell: Cell) -> Limit:
    kept = [
        (pattern, limit) for pattern, limit in candidates if not any(other.narrower(pattern) for other, _ in candidates)
    ]
    if len(kept) > 1:
        (_, first), (_, second) = kept[:2]
        raise ConfigError(
            f"{second.source}: {second.metric} of {cell.id(with_concurrency=True)} is also gated in {first.source}, "
            "and neither cell pattern is narrower; keep one, or match different runs"
        )
    return kept[0][1]


def planned_cells(
    files: Iterable[ThresholdsFile], points: Sequence[Cell], default_concurrency: Mapping[str, Sequence[int]]
) -> list[Cell]:
    """The cells that ``files`` gate, in canonical order.

    ``points`` is what the dataset has (concurrency ignored); ``overall`` is added to its categories.
    A gate without concurrency stands for the default concurrencies of the split. ``files`` need to
    match in their static fields only, so files for different GPUs may gate the same cell here;
    contradictions are looked for within each file.
    """
    cells: set[Cell] = set()
    for file in files:
        own: set[Cell] = set()
        for gate in file.gates:
            for point in _with_overall(points):
                if gate.cell.matches_point(point):
                    if point.split == "throughput" and any(limit.metric == CROSSOVER for limit in gate.limits):
                        own.add(_crossover(point, default_concurrency))
                    asked = gate.cell.concurrency
                    concurrencies = (asked,) if asked is not None else default_concurrency[point.split]
                    own.update(_at(point, concurrency) for concurrency in concurrencies)
        cells |= {cell for cell in sorted(own, key=_order) if gates_for((file,), cell)}
    return sorted(cells, key=_order)


def unmatched_gates(files: Iterable[ThresholdsFile], points: Sequence[Cell]) -> tuple[str, ...]:
    """One line, with file and line, per gate that matches no cell of the dataset."""
    available = _with_overall(points)
    return tuple(
        f"{gate.source}: the dataset has no cell {gate.cell}"
        for file in files
        for gate in file.gates
        if not any(gate.cell.matches_point(point) for point in available)
    )


def assigned(
    files: Sequence[ThresholdsFile],
    cell: Cell,
    points: Sequence[Cell],
    default_concurrency: Mapping[str, Sequence[int]],
) -> tuple[AssignedLimit, ...]:
    """``gates_for`` with each gate's α and β.

    Each file is a family of its own. For the split not to depend on what is selected, give all of
    the dataset's points and the defaults, not what was asked for.
    """
    limits = gates_for(files, cell)
    result: dict[str, AssignedLimit] = {}
    for file in files:
        own = {limit.source for gate in file.gates for limit in gate.limits}
        mine = [limit for limit in limits if limit.source in own]
        if not mine:
            continue
        family_cells = planned_cells((file,), points, default_concurrency)
        for limit in mine:
            alpha, beta = allocate(file.family, family_cells, cell, metrics=len(mine))
            result[limit.metric] = AssignedLimit(limit, alpha, beta)
    return tuple(result[limit.metric] for limit in limits)


def _with_overall(points: Sequence[Cell]) -> list[Cell]:
    unique = {_at(point, 1) for point in points}
    if any(point.split == "qualitative" for point in unique):
        unique.add(Cell("qualitative", 1, category=OVERALL))
    return sorted(unique, key=_order)


def _crossover(point: Cell, default_concurrency: Mapping[str, Sequence[int]]) -> Cell:
    return Cell("throughput", max(default_concurrency["throughput"]), CROSSOVER, point.isl, point.difficulty)


def _at(point: Cell, concurrency: int) -> Cell:
    return Cell(point.split, concurrency, point.category, point.isl, point.difficulty)


def _order(cell: Cell) -> tuple[int, ...]:
    """Qualitative by concurrency, then category with overall last; throughput by ISL, difficulty, concurrency."""
    split = SPLITS.index(cell.split)
    if cell.split == "qualitative":
        return (split, cell.concurrency, (*CATEGORIES, OVERALL).index(str(cell.category)))
    place = (isl_tokens(str(cell.isl)), DIFFICULTIES.index(str(cell.difficulty)))
    return (split, *place, cell.is_crossover, cell.concurrency)

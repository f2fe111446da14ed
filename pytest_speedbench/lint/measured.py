"""Limits against what was measured: far looser than need be, or missed by every run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_speedbench.cells import Cell
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates.limits import Limit, ThresholdsFile
from pytest_speedbench.gates.match import Facts
from pytest_speedbench.gates.selection import gates_for
from pytest_speedbench.gates.verdict import UNREACHABLE
from pytest_speedbench.lint.findings import Finding, Level
from pytest_speedbench.measure.metrics import METRICS
from pytest_speedbench.report import artifact
from pytest_speedbench.results import CellResult
from pytest_speedbench.selftest.recorded import facts_of

LOOSE = 2.0
"""A hand-written limit may lie this many times as far from the measured value as margin and assumed noise need."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The cells of one profile of an artifact."""

    facts: Facts
    results: tuple[CellResult, ...]


def read(path: Path) -> list[Measured]:
    """The profiles of an artifact. Raises ConfigError where it cannot be read."""
    run, results, _ = artifact.read(path / artifact.FILE_NAME if path.is_dir() else path)
    return [
        Measured(facts_of(run, engine), tuple(result for result in results if result.profile == engine.profile))
        for engine in run.engines
    ]


def check(files: Sequence[ThresholdsFile], measured: Sequence[Measured]) -> Iterator[Finding]:
    """Findings per limit that any of the runs could have been compared with."""
    values: dict[Limit, dict[Cell, list[float]]] = {}
    for profile in measured:
        fitting = [
            file
            for file in files
            if not file.match.static_mismatches(profile.facts) and not file.match.runtime_mismatches(profile.facts)
        ]
        for result in profile.results:
            for limit in _limits(fitting, result.cell):
                found = [run.values[limit.measured_as] for run in result.runs if limit.measured_as in run.values]
                if not found and limit.measured_as in result.metrics:
                    found = [result.metrics[limit.measured_as].value]
                values.setdefault(limit, {}).setdefault(result.cell, []).extend(found)
    for limit, by_cell in values.items():
        known = {cell: found for cell, found in by_cell.items() if found}
        if known:
            yield from _missed(limit, known)
            yield from _loose(limit, known)


def _limits(files: Sequence[ThresholdsFile], cell: Cell) -> tuple[Limit, ...]:
    """The limits of a cell; of files that contradict each other those of each, since the contradiction is reported."""
    try:
        return gates_for(files, cell)
    except ConfigError:
        return tuple(limit for file in files for limit in _limits((file,), cell)) if len(files) > 1 else ()


def _missed(limit: Limit, values: dict[Cell, list[float]]) -> Iterator[Finding]:
    best = {cell: min(found) if limit.ceiling else max(found) for cell, found in values.items()}
    missed = [cell for cell, value in best.items() if (value > limit.value if limit.ceiling else value < limit.value)]
    if missed:
        cell, runs = missed[0], len(values[missed[0]])
        more = f", nor did {len(missed) - 1} more cells" if len(missed) > 1 else ""
        yield Finding.at(
            Level.ERROR,
            "never-met",
            limit.source,
            f"{limit.metric} {'max' if limit.ceiling else 'min'} {limit.value:g} was met in none of {runs} "
            f"run{'' if runs == 1 else 's'} of {cell.id(with_concurrency=True)} (best {best[cell]:.4g}){more}",
        )


def _loose(limit: Limit, values: dict[Cell, list[float]]) -> Iterator[Finding]:
    """The cell that comes closest to the limit decides: a limit for many cells is made for the weakest."""
    if limit.evidence is not None:
        return
    sign = 1 if limit.ceiling else -1
    rooms = {
        cell: min(sign * (limit.value - value) / value for value in found if value) for cell, found in values.items()
    }
    cell = min(rooms, key=lambda cell: rooms[cell])
    spec = METRICS[limit.metric]
    need = max(spec.margin, UNREACHABLE * spec.assumed_noise)
    if rooms[cell] > LOOSE * need:
        yield Finding.at(
            Level.WARNING,
            "slack",
            limit.source,
            f"{limit.metric} {limit.value:g} is hand-written and lies {100 * rooms[cell]:.0f} % from what was measured "
            f"even in the closest cell, {cell.id(with_concurrency=True)}; {100 * need:.0f} % would do",
        )

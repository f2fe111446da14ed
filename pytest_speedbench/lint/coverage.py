"""Gates against the cells of a dataset: those that match none, and cells that no gate matches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pytest_speedbench.cells import OVERALL, Cell
from pytest_speedbench.gates.limits import ThresholdsFile
from pytest_speedbench.gates.selection import unmatched_gates
from pytest_speedbench.lint.findings import Finding, Level

_NAMED = 6


def check(files: Sequence[ThresholdsFile], points: Sequence[Cell], dataset: str) -> Iterator[Finding]:
    """Findings of files that may be used with this dataset. Files with equal ``match`` complete one another."""
    fitting = [file for file in files if file.match.dataset in (None, dataset)]
    for line in unmatched_gates(fitting, points):
        source, _, message = line.partition(": ")
        yield Finding.at(Level.ERROR, "no-cell", source, f"{message}; {dataset} is what was looked at")
    for file in files:
        if file not in fitting:
            yield Finding.at(
                Level.INFO,
                "other-dataset",
                file.path,
                f"is for dataset {file.match.dataset}, so its cells were not looked for in {dataset}; give --dataset",
            )
    groups: dict[str, list[ThresholdsFile]] = {}
    for file in fitting:
        groups.setdefault(str(file.match), []).append(file)
    for group in groups.values():
        yield from _uncovered(group, points)


def _uncovered(group: Sequence[ThresholdsFile], points: Sequence[Cell]) -> Iterator[Finding]:
    gates = [gate for file in group for gate in file.gates]
    for split in dict.fromkeys(point.split for point in points):
        own = [point for point in points if point.split == split]
        gated = [point for point in own if any(gate.cell.matches_point(point) for gate in gates)]
        first = next((g.source for g in gates if any(g.cell.matches_point(point) for point in own)), None)
        if first is None:
            continue
        missing = [point.name for point in own if point not in gated]
        if missing:
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            yield Finding.at(
                Level.WARNING,
                "uncovered",
                first,
                f"{len(gated)} of {len(own)} cells of the {split} split are gated, but not "
                f"{', '.join(missing[:_NAMED])}{more}: a regression there is seen by no gate",
            )
        overall = Cell(split, 1, category=OVERALL)
        if split == "qualitative" and not any(gate.cell.matches_point(overall) for gate in gates):
            yield Finding.at(
                Level.WARNING,
                "no-overall",
                first,
                "categories are gated but not overall, which sees a small drop of all of them long before any one does",
            )

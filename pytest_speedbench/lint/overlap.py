"""Two files that match the same run and gate the same metric of the same cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import combinations

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from pytest_speedbench.cells import CATEGORIES, DEFAULT_CONCURRENCY, DIFFICULTIES, ISLS, Cell
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates.limits import ThresholdsFile
from pytest_speedbench.gates.match import STATIC_FIELDS, Match
from pytest_speedbench.gates.selection import gates_for, planned_cells
from pytest_speedbench.lint.findings import Finding, Level

GRID = (
    *(Cell("qualitative", 1, category=category) for category in CATEGORIES),
    *(Cell("throughput", 1, isl=isl, difficulty=difficulty) for isl in ISLS for difficulty in DIFFICULTIES),
)
"""Every cell that a dataset can have."""


def check(files: Sequence[ThresholdsFile]) -> Iterator[Finding]:
    """Contradictions within a file and between files (errors), and limits that override another file's (warnings)."""
    cells: dict[str, list[Cell]] = {}
    for file in files:
        try:
            cells[file.path] = planned_cells((file,), GRID, DEFAULT_CONCURRENCY)
        except ConfigError as error:
            yield Finding.of_error("contradiction", error, file.path)
    for first, second in combinations([file for file in files if file.path in cells], 2):
        if can_both_match(first.match, second.match):
            both = [cell for cell in cells[first.path] if cell in set(cells[second.path])]
            yield from _pair(first, second, both)


def _pair(first: ThresholdsFile, second: ThresholdsFile, cells: Sequence[Cell]) -> Iterator[Finding]:
    overridden: dict[tuple[str, str], list[tuple[Cell, str]]] = {}
    contradictions: dict[str, Finding] = {}
    for cell in cells:
        try:
            kept = {limit.metric: limit for limit in gates_for((first, second), cell)}
        except ConfigError as error:
            # One cell stands for all in which the same two limits contradict each other.
            finding = Finding.of_error("contradiction", error, second.path)
            contradictions.setdefault(finding.place, finding)
            continue
        for file in (first, second):
            for limit in gates_for((file,), cell):
                by = kept[limit.metric].source
                if by != limit.source:
                    overridden.setdefault((limit.source, limit.metric), []).append((cell, by))
    yield from contradictions.values()
    for (source, metric), where in overridden.items():
        (cell, by), more = where[0], len(where) - 1
        yield Finding.at(
            Level.WARNING,
            "overlap",
            source,
            f"{metric} of {cell.id(with_concurrency=True)} is overridden by {by}, whose cell is narrower, in runs that "
            f"match both files{f'; so it is in {more} more cells' if more else ''}",
        )


def can_both_match(one: Match, two: Match) -> bool:
    """Whether some run fits both. GPU patterns count as overlapping where one matches the other."""
    for name in (*STATIC_FIELDS, "gpu_count"):
        a, b = getattr(one, name), getattr(two, name)
        if a is not None and b is not None and a != b:
            return False
    gpus = one.gpu is None or two.gpu is None or fnmatchcase(one.gpu, two.gpu) or fnmatchcase(two.gpu, one.gpu)
    return gpus and _versions_meet(one.engine_version, two.engine_version)


def _versions_meet(one: SpecifierSet | None, two: SpecifierSet | None) -> bool:
    """Whether a version satisfies both: tried are those named, one just above each, and one below all."""
    if one is None or two is None:
        return True
    named = [specifier.version.removesuffix(".*") for both in (one, two) for specifier in both]
    tried = [Version("0"), *(Version(text) for name in named for text in (name, f"{name}.1", f"{name}.post1"))]
    tried += [Version(f"{version.major}.{version.minor + 1}") for version in tried]
    return any(all(spec.contains(version, prereleases=True) for spec in (one, two)) for version in tried)

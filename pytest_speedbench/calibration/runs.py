"""Artifacts, checked to be sound runs of one system, as tables of values per engine start and repeat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_speedbench.calibration.likeness import facts, require_alike
from pytest_speedbench.cells import Cell
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates.limits import MIN_STARTS
from pytest_speedbench.gates.verdict import Verdict
from pytest_speedbench.measure.acceptance import conditional_by_position
from pytest_speedbench.report import artifact
from pytest_speedbench.report.run_info import EngineRecord, RunInfo
from pytest_speedbench.results import CellResult, CellRun, runs_of

GOOD_STARTS = 6
"""Engine starts that a calibration should have; MIN_STARTS are accepted with a warning."""

_ABOUT_GATES = ("no_gate", "unreachable", "other_prompts")
"""Reasons that speak of the limits which a judged run had, and not of its measurement."""

Table = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Source:
    """The cells of one engine profile in one artifact."""

    path: Path
    run: RunInfo
    engine: EngineRecord
    results: tuple[CellResult, ...]

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.path.as_posix()


@dataclass(frozen=True, slots=True)
class Measured:
    """One cell over all runs.

    ``tables`` has, for every metric that all runs have, one row of repeats per engine start; ``starts``
    names the rows. ``brackets`` are the relative widths of what is known only to lie in a bracket.
    """

    cell: Cell
    tables: Mapping[str, Table]
    starts: tuple[str, ...]
    prompts_sha256: str
    conversations: int
    conditional: tuple[float, ...]
    brackets: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Sound runs of one system. ``notes`` is what the user should know of them."""

    sources: tuple[Source, ...]
    run: RunInfo
    engine: EngineRecord
    cells: tuple[Measured, ...]
    notes: tuple[str, ...]

    @property
    def date(self) -> str:
        """The day of the last run."""
        return max(source.run.started for source in self.sources)[:10]


def read(paths: Sequence[Path], profile: str | None = None) -> tuple[Source, ...]:
    """The artifacts of finished runs; of several engine profiles the one that is named.

    Cells with random prompts are left out, since no limit applies to them. Raises ConfigError, naming
    the file, for a run that was interrupted and for one with several profiles or not the named one.
    """
    sources = []
    for path in paths:
        run, results, flags = artifact.read(path)
        if not flags.complete:
            raise ConfigError(f"{path}: the run was interrupted, or is not over yet; measure it again")
        engine = _engine(path, run, profile)
        own = (result for result in results if result.profile == engine.profile and not result.cell.is_control)
        sources.append(Source(path, run, engine, tuple(own)))
    return tuple(sources)


def calibration(sources: Sequence[Source], *, vary: Collection[str] = ()) -> Calibration:
    """Check that ``sources`` are sound and different runs of one system, and gather their values.

    ``vary`` names settings that may differ. Raises ConfigError, naming files and cells, for a run that
    is given twice, unlike runs, INVALID cells, cells or prompts that not all runs have, unequal
    repeats, and fewer than five engine starts.
    """
    _refuse_twins(sources)
    require_alike({source.name: facts(source.run, source.engine) for source in sources}, vary)
    _refuse_invalid(sources)
    cells = tuple(_measured(sources, cell) for cell in _common_cells(sources))
    newest = max(sources, key=lambda source: source.run.started)
    starts = min(len(cell.starts) for cell in cells)
    if starts < MIN_STARTS:
        raise ConfigError(
            f"{starts} engine starts are too few: at least {MIN_STARTS} are needed, and {GOOD_STARTS} are better, to "
            "know how starts differ; measure more with --speedbench-starts, or give more artifacts"
        )
    notes = []
    if starts < GOOD_STARTS:
        notes.append(f"{starts} engine starts are few to know how starts differ; {GOOD_STARTS} are better")
    attached = [source.name for source in sources if source.engine.base_url is not None]
    if attached:
        notes.append(
            f"{', '.join(attached)}: attached to a server that ran already, and counted as an engine start of its own; "
            "that is wrong if it was not started anew for each"
        )
    return Calibration(tuple(sources), newest.run, newest.engine, cells, tuple(notes))


def _refuse_twins(sources: Sequence[Source]) -> None:
    seen: dict[object, str] = {}
    for source in sources:
        # Jobs of one CI matrix may begin in the same second, but do not take equally long to the nanosecond.
        key = (source.run.started, *(result.duration_s for result in source.results))
        if key in seen:
            raise ConfigError(f"{seen[key]} and {source.name} are the same run; each counts once")
        seen[key] = source.name


def _engine(path: Path, run: RunInfo, profile: str | None) -> EngineRecord:
    engines = {engine.profile: engine for engine in run.engines}
    if profile is None and len(engines) == 1:
        return next(iter(engines.values()))
    if profile not in engines:
        have = ", ".join(engines) or "none"
        raise ConfigError(f"{path}: choose one of its engine profiles with --profile: {have}")
    return engines[profile]


def _refuse_invalid(sources: Sequence[Source]) -> None:
    lines = []
    for source in sources:
        for result in source.results:
            reasons = [reason for reason in result.reasons if reason.code not in _ABOUT_GATES]
            if result.verdict is Verdict.INVALID and (reasons or not result.reasons):
                why = "; ".join(f"{reason.code}: {reason.message.splitlines()[0]}" for reason in reasons)
                lines.append(f"{source.name}: {result.cell.id(with_concurrency=True)} is INVALID {why}".rstrip())
    if lines:
        more = f"\n  and {len(lines) - 8} more" if len(lines) > 8 else ""
        raise ConfigError("runs with INVALID cells cannot be calibrated:\n  " + "\n  ".join(lines[:8]) + more)


def _common_cells(sources: Sequence[Source]) -> tuple[Cell, ...]:
    first = dict.fromkeys(result.cell for result in sources[0].results)
    if not first:
        raise ConfigError(f"{sources[0].name} has no cells")
    for source in sources[1:]:
        own = {result.cell for result in source.results}
        for has, lacks, cells in ((sources[0], source, first.keys() - own), (source, sources[0], own - first.keys())):
            if cells:
                names = ", ".join(sorted(cell.id(with_concurrency=True) for cell in cells))
                raise ConfigError(f"{names}: in {has.name}, but not in {lacks.name}; all runs need the same cells")
    return tuple(first)


def _measured(sources: Sequence[Source], cell: Cell) -> Measured:
    name = cell.id(with_concurrency=True)
    found = {source.name: next(r for r in source.results if r.cell == cell) for source in sources}
    prompts = {path: result.prompts_sha256 for path, result in found.items()}
    if len(set(prompts.values())) > 1:
        one, other = list(dict.fromkeys(prompts.values()))[:2]
        paths = {sha: next(path for path, own in prompts.items() if own == sha) for sha in (one, other)}
        raise ConfigError(
            f"{name}: {paths[one]} measured the prompts {one[:12]}, {paths[other]} the prompts {other[:12]}; "
            "all runs need the same prompts"
        )
    rows: dict[str, list[CellRun]] = {}
    for path, result in found.items():
        for run in runs_of(result):
            rows.setdefault(f"{path} start {run.start + 1}", []).append(run)
    _refuse_unequal(name, rows)
    runs = [run for row in rows.values() for run in row]
    metrics = [metric for metric in runs[0].values if all(metric in run.values for run in runs)]
    results = list(found.values())
    return Measured(
        cell=cell,
        tables={metric: tuple(tuple(run.values[metric] for run in row) for row in rows.values()) for metric in metrics},
        starts=tuple(rows),
        prompts_sha256=results[0].prompts_sha256,
        conversations=min(result.conversations for result in results),
        conditional=_conditional(results),
        brackets=_brackets(results),
    )


def _refuse_unequal(name: str, rows: Mapping[str, Sequence[CellRun]]) -> None:
    counts = Counter(len(row) for row in rows.values())
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        odd = ", ".join(f"{start} has {len(row)}" for start, row in rows.items() if len(row) != usual)
        raise ConfigError(
            f"{name}: {odd}, the others {usual} repeat{'s' * (usual != 1)}; every engine start needs equally many "
            "(a run that was judged may have repeated what was inconclusive: use --speedbench-measure-only)"
        )


def _conditional(results: Sequence[CellResult]) -> tuple[float, ...]:
    """Conditional acceptance per draft position over all runs together."""
    lengths: Counter[int] = Counter()
    for result in results:
        if result.acceptance is not None:
            lengths.update(result.acceptance.decode_histogram)
    return conditional_by_position(lengths, max(lengths) - 1) if lengths else ()


def _brackets(results: Sequence[CellResult]) -> dict[str, float]:
    widths: dict[str, float] = {}
    for result in results:
        for metric, value in result.metrics.items():
            if value.bracket is not None:
                low, high = value.bracket
                widths[metric] = max(widths.get(metric, 0.0), (high - low) / low)
    return widths

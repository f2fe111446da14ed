"""A recorded run, with all that it takes to judge it again as the run itself was judged."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from pytest_speedbench.cells import DEFAULT_CONCURRENCY, Cell
from pytest_speedbench.engines import embedded
from pytest_speedbench.engines.base import Speculation
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates.limits import ThresholdsFile
from pytest_speedbench.gates.match import Facts
from pytest_speedbench.judging import Assessed, Labels, Rules, assess, assess_overall, is_sound, judge_runs
from pytest_speedbench.measure.samples import Window
from pytest_speedbench.names import BASELINE, PLAIN
from pytest_speedbench.report import artifact
from pytest_speedbench.report.requests import log_path, read_windows
from pytest_speedbench.report.run_info import EngineRecord, RunInfo
from pytest_speedbench.results import CellResult

T = TypeVar("T", int, float, bool)
Windows = Mapping[Cell, tuple[Window, ...]]


@dataclass(frozen=True, slots=True)
class Recorded:
    """What one profile measured. ``windows`` has every run of every cell, ``overall`` the overall cells.

    ``points`` and ``default_concurrency`` are those of the plan, over which a file's α is split.
    """

    profile: str
    speculation: Speculation
    facts: Facts
    windows: Windows
    overall: tuple[Cell, ...]
    labels: Mapping[Cell, Labels]
    points: tuple[Cell, ...]
    default_concurrency: Mapping[str, tuple[int, ...]]

    @property
    def draft_tokens(self) -> int:
        """The most drafts of one step."""
        return self.speculation.draft_tokens

    def rules(self, files: Sequence[ThresholdsFile]) -> Rules:
        """Rules of a live run with the files that fit what is known before an engine starts."""
        mismatches = {file.path: file.match.static_mismatches(self.facts) for file in files}
        return Rules(
            files=tuple(file for file in files if not mismatches[file.path]),
            others=tuple(f"{path}: {'; '.join(lines)}" for path, lines in mismatches.items() if lines),
            facts=self.facts,
            points=self.points,
            default_concurrency=self.default_concurrency,
            speculation=self.speculation,
            measure_only=False,
        )

    def assessed(self, cell: Cell, windows: Windows) -> tuple[Assessed, ...]:
        """All runs of ``cell``, checked and reduced as a live run does; ``windows`` are as measured or changed."""
        seed = (self.labels[cell].item_id,)
        if not cell.is_overall:
            return tuple(assess(window, self.speculation, seed) for window in windows[cell])
        parts = self.parts(cell)
        runs = sorted({(window.start, window.repeat) for part in parts for window in windows[part]})
        return tuple(
            assess_overall({str(part.category): self._sound(windows[part], run) for part in parts}, seed)
            for run in runs
        )

    def parts(self, overall: Cell) -> list[Cell]:
        """The cells that an overall cell sums up."""
        names = [str(point.category) for point in self.points if point.split == overall.split and point.category]
        return [Cell(overall.split, overall.concurrency, category=name) for name in names]

    def _sound(self, windows: Iterable[Window], run: tuple[int, int]) -> Window | None:
        own = [window for window in windows if (window.start, window.repeat) == run]
        return own[0] if own and is_sound(own[0], self.speculation) else None

    def judged(self, cell: Cell, runs: Sequence[Assessed], rules: Rules) -> CellResult:
        """The result of ``cell``, by the code that judges a live run."""
        return judge_runs(cell, runs, rules, self.labels[cell])


def read(path: Path) -> list[Recorded]:
    """The profiles of an artifact whose request log lies beside it.

    Profiles that were measured only to be compared with, and cells of random prompts, are left out: no limit
    applies to them. Raises ConfigError where artifact or log cannot be read, or nothing was recorded.
    """
    path = path / artifact.FILE_NAME if path.is_dir() else path
    run, results, _ = artifact.read(path)
    log = log_path(path)
    if not log.exists():
        raise ConfigError(
            f"{log}: no such file; the self-test needs the request log that a run writes beside {path.name}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        measured = list(read_windows(log))
    found = []
    for engine in run.engines:
        if engine.profile.startswith((BASELINE, PLAIN)):
            continue
        own = [result for result in results if result.profile == engine.profile and not result.cell.is_control]
        windows = [window for profile, window in measured if profile == engine.profile]
        recorded = _recorded(run, engine, own, windows)
        if recorded.windows:
            found.append(recorded)
    if not found:
        raise ConfigError(f"{path}: no cell that a limit could apply to was recorded in {log.name}")
    return found


def _recorded(
    run: RunInfo, engine: EngineRecord, results: Sequence[CellResult], measured: Sequence[Window]
) -> Recorded:
    labels = {
        result.cell: Labels(
            profile=result.profile,
            item_id=result.item_id,
            steps_source=result.steps_source,
            prompts_sha256=result.prompts_sha256,
            duration_s=result.duration_s,
            isl=result.isl,
            masked=result.masked,
        )
        for result in results
    }
    windows: dict[Cell, tuple[Window, ...]] = {}
    for window in measured:
        if window.cell in labels:
            windows[window.cell] = (*windows.get(window.cell, ()), window)
    points = _points(run, windows)
    speculation = _speculation(engine)
    recorded = Recorded(
        profile=engine.profile,
        speculation=speculation,
        facts=facts_of(run, engine),
        windows=windows,
        overall=(),
        labels=labels,
        points=points,
        default_concurrency=_default_concurrency(run, engine),
    )
    whole = tuple(cell for cell in labels if cell.is_overall and all(part in windows for part in recorded.parts(cell)))
    return replace(recorded, overall=whole)


def _speculation(engine: EngineRecord) -> Speculation:
    return Speculation(engine.method or "none", engine.draft_tokens or 0, engine.draft_model)


def facts_of(run: RunInfo, engine: EngineRecord) -> Facts:
    """What a thresholds file is matched with, as the run itself knew it."""
    resolved, speculation = engine.resolved, _speculation(engine)

    def told(name: str, kind: type[T]) -> T | None:
        value = resolved.get(name)
        return kind(value) if isinstance(value, (int, float)) else None

    return Facts(
        engine=engine.engine,
        model=engine.model,
        method=speculation.method,
        draft_tokens=speculation.draft_tokens,
        draft_model=speculation.draft_model,
        dataset=run.dataset,
        osl=told("osl_cap", int),
        temperature=told("temperature", float),
        ignore_eos=told("ignore_eos", bool),
        engine_version=engine.version,
        gpus=tuple(gpu.name for gpu in engine.gpus),
    )


def _points(run: RunInfo, windows: Windows) -> tuple[Cell, ...]:
    """The cells of the dataset: as the artifact has them, else those of the bundled dataset, else what was measured."""
    if run.dataset_cells:
        return tuple(_point(data.cell) for data in run.dataset_cells if data.prompts)
    from pytest_speedbench.data.loading import MINI, load

    mini = load(MINI)
    if mini.id == run.dataset:
        return tuple(mini.points())
    return tuple(dict.fromkeys(Cell(c.split, 1, c.category, c.isl, c.difficulty) for c in windows))


def _point(name: str) -> Cell:
    """The cell that ``Cell.id`` without its concurrency names."""
    split, _, rest = name.partition("-")
    if split == "qualitative":
        return Cell(split, 1, category=rest)
    isl, _, difficulty = rest.partition("-")
    return Cell(split, 1, isl=isl, difficulty=difficulty)


def _default_concurrency(run: RunInfo, engine: EngineRecord) -> Mapping[str, tuple[int, ...]]:
    """What a gate without a concurrency stands for: the quick start has values of its own."""
    quick = engine.engine == "llamacpp" and not any(option.name == "model" for option in run.options)
    return embedded.CONCURRENCY if quick else DEFAULT_CONCURRENCY

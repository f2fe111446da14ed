"""The plan: which cells are measured with which profile, and which limits may apply to them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_speedbench.cells import (
    STEADY_PROMPTS_PER_STREAM,
    Axes,
    Cell,
    control_beside,
    control_cells,
    expand,
    implied_splits,
)
from pytest_speedbench.data.dataset import Dataset, Entry
from pytest_speedbench.data.loading import load as load_dataset
from pytest_speedbench.data.schema import CONFIGS
from pytest_speedbench.data.selection import select
from pytest_speedbench.engines.base import Profile, model_name
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates.limits import ThresholdsFile
from pytest_speedbench.gates.match import RUNTIME_FIELDS, Facts
from pytest_speedbench.gates.selection import gates_for, planned_cells
from pytest_speedbench.gates.thresholds import load as load_thresholds
from pytest_speedbench.measure.metrics import METRICS
from pytest_speedbench.names import CROSSOVER, LOSSLESS
from pytest_speedbench.settings import Settings

MAX_REPEATS = 8
"""A prompt that is repeated more often than this would stand for the whole cell."""
CONTROL_PROMPTS = 512
"""Random prompts of an ISL where no real ones say how many: as many as SPEED-Bench has per cell."""


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """One item of the suite. ``item_id`` is what stands in the brackets of its node id.

    ``supporting`` cells were not asked for: an overall cell needs them. They may be without a gate. Control
    cells have random prompts and are never judged.
    """

    profile: Profile
    cell: Cell
    item_id: str
    supporting: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will do.

    ``matching`` holds, per profile label, the thresholds files whose static fields fit;
    ``others`` says for each other file what does not.
    """

    settings: Settings
    dataset: Dataset
    matching: Mapping[str, tuple[ThresholdsFile, ...]]
    others: Mapping[str, tuple[str, ...]]
    cells: tuple[PlannedCell, ...]

    def entries(self, cell: Cell) -> tuple[Entry, ...]:
        """The prompts of a cell, after ``--speedbench-prompts``. Raises ConfigError if the dataset has none."""
        settings = self.settings
        return select(self.dataset.prompts(cell), settings.prompts, seed=settings.seed, order=settings.prompt_order)

    def number(self, cell: Cell) -> int:
        """How many prompts a cell has. Raises ConfigError if there are none."""
        return _number(self.settings, self.dataset, cell)

    def repeats(self, cell: Cell) -> int:
        """How often each prompt of the cell is sent: throughput cells need 4 × concurrency for a steady window.

        Raises ConfigError where that is more often than a prompt may be repeated.
        """
        if cell.split != "throughput":
            return 1
        prompts = self.number(cell)
        times = _repeats(prompts, cell.concurrency)
        if times > MAX_REPEATS:
            raise ConfigError(
                f"{cell.id(with_concurrency=True)} has {prompts} prompts, each of which would have to be sent {times} "
                f"times for a steady window (at most {MAX_REPEATS}); lower the concurrency, or give more prompts"
            )
        return times


def _repeats(prompts: int, concurrency: int) -> int:
    return -(-STEADY_PROMPTS_PER_STREAM * concurrency // prompts)


def _number(settings: Settings, dataset: Dataset, cell: Cell) -> int:
    if cell.is_control:
        # As many as the real cells beside it have.
        beside = [len(dataset.prompts(point)) for point in dataset.points() if point.isl == cell.isl]
        have = max(beside, default=CONTROL_PROMPTS)
        return have if beside and settings.prompts is None else min(settings.prompts or have, have)
    have = len(dataset.prompts(cell))
    return have if settings.prompts is None else min(settings.prompts, have)


def make(settings: Settings, *, offline: bool = False) -> Plan:
    """Load data and thresholds and lay out the cells. Starts nothing, needs no model and no GPU.

    ``offline`` downloads nothing. Raises ConfigError when something is missing or when nothing is left
    to measure.
    """
    dataset, files = _inputs(settings, offline=offline)
    matching: dict[str, tuple[ThresholdsFile, ...]] = {}
    others: dict[str, tuple[str, ...]] = {}
    cells: list[PlannedCell] = []
    for profile in settings.profiles:
        facts = static_facts(profile, settings, dataset.id)
        mismatches = {file.path: file.match.static_mismatches(facts) for file in files}
        matching[profile.label] = tuple(file for file in files if not mismatches[file.path])
        others[profile.label] = tuple(f"{path}: {'; '.join(lines)}" for path, lines in mismatches.items() if lines)
        planned = _cells(settings, dataset, matching[profile.label], others[profile.label], profile)
        _refuse_contradictions(matching[profile.label], planned)
        _refuse_unpaired(settings, profile, matching[profile.label], planned)
        if settings.control is not None and settings.dataset is not None:
            planned += control_beside(planned)
        if settings.lossless and profile.label in settings.plain:
            lossless = _lossless(planned)
            if not lossless:
                raise ConfigError(
                    "--speedbench-lossless compares answers of the qualitative split, and none is planned; add "
                    "--speedbench-split=qualitative"
                )
            planned += lossless
        support = _support(planned, dataset.points(), settings.axes) | _under_crossovers(settings, dataset, planned)
        cells += _items(profile, planned, support)
    return Plan(settings, dataset, matching, others, tuple(cells))


def without_cells(settings: Settings) -> Plan:
    """A plan for a user's own tests, which name the cells themselves and bring their own limits."""
    nothing: dict[str, tuple[()]] = {profile.label: () for profile in settings.profiles}
    return Plan(settings, _load(settings), nothing, nothing, ())


def static_facts(profile: Profile, settings: Settings, dataset_id: str) -> Facts:
    """What is known of a run before its engine starts. Models given as files go by their name."""
    speculation = profile.speculation
    return Facts(
        engine=profile.engine,
        model=model_name(profile.model),
        method=speculation.method,
        draft_tokens=speculation.draft_tokens,
        draft_model=None if speculation.draft_model is None else model_name(speculation.draft_model),
        dataset=dataset_id,
        osl=settings.sampling.osl_cap,
        temperature=settings.sampling.temperature,
        ignore_eos=settings.sampling.ignore_eos,
    )


def _load(settings: Settings, *, offline: bool = False) -> Dataset:
    if settings.dataset is None:
        return Dataset(str(settings.control), {}, Path(), {})
    needed = tuple(config for config in CONFIGS if _needed(config, settings.axes))
    return load_dataset(settings.dataset, needed, allow_partial=settings.allow_partial, offline=offline)


def _needed(config: str, axes: Axes) -> bool:
    """Whether cells that were asked for can need the prompts of ``config``."""
    splits = implied_splits(axes)
    if config == "qualitative":
        return "qualitative" in splits
    return "throughput" in splits and (not axes.isls or config.removeprefix("throughput_") in axes.isls)


def _inputs(settings: Settings, *, offline: bool) -> tuple[Dataset, tuple[ThresholdsFile, ...]]:
    """Data and limits; one ConfigError for whatever is wrong with either."""
    try:
        dataset = _load(settings, offline=offline)
    except ConfigError as error:
        try:
            _thresholds(settings)
        except ConfigError as other:
            raise ConfigError(f"{error}\n{other}") from None
        raise
    return dataset, _thresholds(settings)


def _thresholds(settings: Settings) -> tuple[ThresholdsFile, ...]:
    path = settings.thresholds
    if not settings.needs_limits and settings.thresholds_origin != "command line" and not any(path.glob("**/*.y*ml")):
        # Nothing is judged by them, so limits that are not there are not missed.
        return ()
    if not path.exists():
        raise ConfigError(
            f"there are no thresholds at {path}; write some (`speedbench init` makes a stub), give "
            "--speedbench-thresholds, or measure without judging with --speedbench-measure-only"
        )
    return load_thresholds(_shortest(path))


def _shortest(path: Path) -> Path:
    """Relative to the working directory where it lies below it: this is what messages show."""
    return Path(os.path.relpath(path)) if path.resolve().is_relative_to(Path.cwd()) else path


def _cells(
    settings: Settings,
    dataset: Dataset,
    files: Sequence[ThresholdsFile],
    others: Sequence[str],
    profile: Profile,
) -> list[Cell]:
    """Explicit axes, else what the files gate, else (measure-only) all that the dataset has."""
    axes, points = settings.axes, dataset.points()
    if settings.dataset is None:
        return _with_enough_prompts(settings, dataset, control_cells(axes, dict(settings.default_concurrency)))
    defaults = {split: axes.concurrencies or own for split, own in settings.default_concurrency.items()}
    gated = planned_cells(files, points, defaults)
    crossovers = [cell for cell in gated if cell.is_crossover and axes.takes(replace(cell, category=None))]
    if axes.explicit:
        cells = [*expand(axes, points, dict(settings.default_concurrency)), *crossovers]
        return _with_enough_prompts(settings, dataset, cells, files)
    if axes.concurrencies:
        # Only concurrency was asked for: the gated cells, at those values.
        single = [cell for cell in gated if not cell.is_crossover]
        gated = [*(replace(cell, concurrency=n) for n in axes.concurrencies for cell in single), *crossovers]
        gated = list(dict.fromkeys(gated))
    if gated:
        return _with_enough_prompts(settings, dataset, gated, files)
    if not settings.needs_limits:
        return _with_enough_prompts(settings, dataset, expand(axes, points, dict(settings.default_concurrency)))
    if files:
        raise ConfigError(
            f"{', '.join(file.path for file in files)} gates no cell that dataset {dataset.id} has; "
            "name cells with --speedbench-split, or another dataset"
        )
    looked = "; ".join(others) or f"{settings.thresholds} is empty"
    raise ConfigError(
        f"no thresholds file fits {profile.engine}, so nothing is planned ({looked}); add a file, name cells with "
        "--speedbench-split, or measure without judging with --speedbench-measure-only"
    )


def _with_enough_prompts(
    settings: Settings, dataset: Dataset, cells: Iterable[Cell], files: Sequence[ThresholdsFile] = ()
) -> list[Cell]:
    """Throughput cells need prompts for a steady window; each is sent up to eight times.

    A concurrency that was asked for, by option or by a gate of ``files``, and cannot be held even so
    is an error; of the default ones those that cannot are left out.
    """
    kept: list[Cell] = []
    short: list[str] = []
    asked = bool(settings.axes.concurrencies)
    for cell in cells:
        if cell.is_derived:
            kept.append(cell)
            continue
        have = _number(settings, dataset, cell)
        if cell.split == "throughput" and _repeats(have, cell.concurrency) > MAX_REPEATS:
            need = -(-STEADY_PROMPTS_PER_STREAM * cell.concurrency // MAX_REPEATS)
            short.append(f"{cell.id(with_concurrency=True)} has {have} and needs {need}")
            asked |= any(
                gate.cell.concurrency is not None and gate.cell.matches(cell) for file in files for gate in file.gates
            )
        else:
            kept.append(cell)
    if short and (asked or not kept):
        raise ConfigError(
            f"too few prompts for a steady window ({STEADY_PROMPTS_PER_STREAM} × concurrency, each prompt sent at most "
            f"{MAX_REPEATS} times): "
            f"{'; '.join(short[:3])}{' …' if len(short) > 3 else ''}; lower the concurrency, or give more prompts"
        )
    return kept


def _refuse_contradictions(files: Sequence[ThresholdsFile], cells: Iterable[Cell]) -> None:
    """Raise ConfigError for limits that contradict each other, before anything is measured.

    Files that differ in what is only known after the start may gate the same cell.
    """
    runtime = [tuple(getattr(file.match, name) for name in RUNTIME_FIELDS) for file in files]
    for fields in dict.fromkeys(map(str, runtime)):
        group = [file for file, own in zip(files, runtime, strict=True) if str(own) == fields]
        for cell in cells:
            gates_for(group, cell)


def _refuse_unpaired(
    settings: Settings, profile: Profile, files: Sequence[ThresholdsFile], cells: Iterable[Cell]
) -> None:
    """Raise ConfigError for limits on a speed-up where nothing is measured without speculation."""
    if settings.plain.get(profile.label) is not None or settings.measure_only:
        return
    gated = [
        limit
        for cell in cells
        for file in files
        for limit in gates_for((file,), cell)
        if METRICS[limit.metric].unit == "×" or limit.metric == CROSSOVER
    ]
    if gated:
        raise ConfigError(
            f"{gated[0].source}: {gated[0].metric} is gated, which needs the engine without speculation too; add "
            "--speedbench-speedup (or `speedup: true` in the profile file), which about doubles the GPU time"
        )


def _lossless(cells: Iterable[Cell]) -> list[Cell]:
    """One cell per concurrency of the qualitative split that compares outputs."""
    concurrencies = dict.fromkeys(c.concurrency for c in cells if c.split == "qualitative" and not c.is_derived)
    return [Cell("qualitative", concurrency, category=LOSSLESS) for concurrency in concurrencies]


def _under_crossovers(settings: Settings, dataset: Dataset, cells: Iterable[Cell]) -> set[Cell]:
    """Cells that only a crossover among ``cells`` needs: its ISL and difficulty at every concurrency."""
    concurrencies = settings.axes.concurrencies or settings.default_concurrency["throughput"]
    under = [
        replace(cell, category=None, concurrency=concurrency)
        for cell in cells
        if cell.is_crossover
        for concurrency in concurrencies
    ]
    return set(_with_enough_prompts(settings, dataset, under)) - set(cells) if under else set()


def _support(cells: Sequence[Cell], points: Sequence[Cell], axes: Axes) -> set[Cell]:
    """Categories that only the overall cells among ``cells`` need."""
    needed = {
        replace(point, concurrency=cell.concurrency)
        for cell in cells
        if cell.is_overall
        for point in points
        if point.split == cell.split
    }
    by_name = {cell for cell in cells if axes.categories and cell.category not in axes.categories}
    return (needed - set(cells)) | (needed & by_name)


def _items(profile: Profile, asked: Sequence[Cell], support: set[Cell]) -> list[PlannedCell]:
    cells = [*asked, *sorted(support - set(asked), key=lambda cell: (cell.concurrency, str(cell.category)))]
    several = len({cell.concurrency for cell in cells if cell.split == "qualitative"}) > 1
    return [
        PlannedCell(
            profile,
            cell,
            f"{profile.label}-{cell.id(with_concurrency=several or cell.split == 'throughput')}",
            supporting=cell in support,
        )
        for cell in sorted(cells, key=lambda cell: cell.is_derived)
    ]

"""Stored runs, and which engine of which run is compared with which."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_speedbench.cells import Cell
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.measure.samples import Turn, Window
from pytest_speedbench.names import BASELINE, PLAIN
from pytest_speedbench.report import artifact
from pytest_speedbench.report.requests import RequestsCutWarning, log_path, read_windows
from pytest_speedbench.report.run_info import EngineRecord, RunInfo
from pytest_speedbench.results import CellResult

COMPANIONS = (BASELINE, PLAIN)


@dataclass(frozen=True, slots=True)
class Source:
    """One artifact, its request log left for later. ``complete``: the session came to its end."""

    path: Path
    run: RunInfo
    results: tuple[CellResult, ...]
    complete: bool

    @property
    def log(self) -> Path:
        """Where the session wrote the request log of this artifact."""
        return log_path(self.path)


@dataclass(frozen=True, slots=True)
class Side:
    """One engine of one artifact, with its cells."""

    source: Source
    engine: EngineRecord
    cells: Mapping[Cell, CellResult]

    @property
    def name(self) -> str:
        """How messages call it: the file, and the profile where the file has several."""
        several = len({engine.profile for engine in self.source.run.engines}) > 1
        return f"{self.source.path.as_posix()} [{self.engine.profile}]" if several else self.source.path.as_posix()

    @property
    def profile(self) -> str:
        """The label of its profile."""
        return self.engine.profile


def read(path: Path) -> Source:
    """An artifact. Raises ConfigError for a file that is missing, cut, foreign or newer."""
    run, results, flags = artifact.read(path)
    if not results:
        raise ConfigError(f"{path} has no cells: nothing was measured")
    return Source(path, run, results, flags.complete)


def sides(base: Source, new: Source, *, profile: str | None, base_profile: str | None) -> tuple[Side, Side]:
    """The engine of each of two artifacts. The only one, that of equal label in both, or as named.

    Raises ConfigError, listing the profiles, where it is not clear which ones are meant.
    """
    own, others = _labels(new), _labels(base)
    label = profile or _only(own, new)
    if base_profile is None:
        base_profile = label if label in others else _only(others, base)
    return _side(base, base_profile), _side(new, label)


def sides_within(source: Source, prefix: str, *, profile: str | None) -> tuple[Side, Side]:
    """The two engines of one artifact: ``baseline-vllm`` (or ``plain-vllm``) and ``vllm``.

    Raises ConfigError where the artifact has none, or several and none is named.
    """
    labels = [label for label in _labels(source) if f"{prefix}{label}" in _all_labels(source)]
    if not labels:
        option = "--speedbench-baseline" if prefix == BASELINE else "--speedbench-speedup"
        raise ConfigError(
            f"{source.path} holds one run only (profiles {', '.join(_all_labels(source))}); give a second artifact, or "
            f"measure with {option}"
        )
    if profile is not None and profile not in labels:
        raise ConfigError(f"{source.path} has no {prefix}{profile}; choose --profile from {', '.join(labels)}")
    if profile is None and len(labels) > 1:
        raise ConfigError(f"{source.path} has several pairs; choose --profile from {', '.join(labels)}")
    label = profile or labels[0]
    return _side(source, f"{prefix}{label}"), _side(source, label)


class Windows:
    """The measured windows of one run, reduced to what a comparison needs. ``notes``: what to know of the log.

    Without a log every cell has none. Raises ConfigError for a damaged one.
    """

    def __init__(self, side: Side) -> None:
        self.notes: list[str] = []
        self._found: dict[Cell, list[Window]] = {}
        path = side.source.log
        if not path.exists():
            self.notes.append(f"no {path.as_posix()}: whole cells were compared, since prompts cannot be paired")
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RequestsCutWarning)
            for profile, window in read_windows(path):
                if profile == side.profile:
                    self._found.setdefault(window.cell, []).append(_reduced(window))
        self.notes += [str(warning.message) for warning in caught if warning.category is RequestsCutWarning]

    def of(self, cell: Cell) -> tuple[Window, ...]:
        """One window per engine start and repeat; that of an overall cell has the turns of all categories.

        A run that was broken off has not got them all, and does not count.
        """
        if not cell.is_overall:
            return tuple(self._found.get(cell, ()))
        joint: dict[tuple[int, int], list[Window]] = {}
        for other, own in self._found.items():
            if other.split == cell.split and other.concurrency == cell.concurrency:
                for window in own:
                    joint.setdefault((window.start, window.repeat), []).append(window)
        whole = max(map(len, joint.values()), default=0)
        return tuple(_joined(cell, own) for _, own in sorted(joint.items()) if len(own) == whole)


def _joined(cell: Cell, parts: list[Window]) -> Window:
    """The turns of several windows; the client is that which lagged most."""
    worst = max(parts, key=lambda window: window.client.lag_p99_s)
    return replace(worst, cell=cell, turns=tuple(turn for window in parts for turn in window.turns), steady_ns=None)


def _reduced(window: Window) -> Window:
    return replace(window, turns=tuple(map(_slim, window.turns)), failures=())


def _slim(turn: Turn) -> Turn:
    """Without the times of single events, which are most of a window, but for the first and the last."""
    ends = (turn.event_ns[0], turn.event_ns[-1]) if turn.event_ns else ()
    return replace(turn, event_ns=ends, event_tokens=(), step_ns=())


def _side(source: Source, label: str) -> Side:
    engine = source.run.engine(label)
    if engine is None:
        raise ConfigError(f"{source.path} has no profile {label}; it has {', '.join(_all_labels(source)) or 'none'}")
    return Side(source, engine, {result.cell: result for result in source.results if result.profile == label})


def _only(labels: list[str], source: Source) -> str:
    if len(labels) == 1:
        return labels[0]
    raise ConfigError(
        f"{source.path} has {len(labels)} profiles ({', '.join(labels) or 'no engine was started'}); "
        "choose one with --profile or --base-profile"
    )


def _labels(source: Source) -> list[str]:
    """The profiles that were measured for their own sake."""
    return [label for label in _all_labels(source) if not label.startswith(COMPANIONS)]


def _all_labels(source: Source) -> list[str]:
    return list(dict.fromkeys(engine.profile for engine in source.run.engines))


def common_cells(base: Side, new: Side) -> Iterator[Cell]:
    """The cells of both, in the order of the new run. Control cells are no benchmark and are compared like others."""
    return (cell for cell in new.cells if cell in base.cells)

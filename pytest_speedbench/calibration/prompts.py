"""What the request logs beside the artifacts say: every prompt over all runs, and how the client did."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from pytest_speedbench.calibration.proposal import Proposal, rounded
from pytest_speedbench.calibration.runs import Calibration, Source
from pytest_speedbench.cells import Cell
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates.prompt_reference import CellReference, PromptReference
from pytest_speedbench.measure.acceptance import conversations
from pytest_speedbench.measure.checks import client_problem
from pytest_speedbench.measure.metrics import METRICS
from pytest_speedbench.measure.samples import Window
from pytest_speedbench.report.requests import RequestsCutWarning, log_path, read_windows
from pytest_speedbench.results import runs_of

_AGREE = 1e-3
"""How far, relatively, the mean over a log's prompts may lie from the artifact's acceptance length."""


@dataclass(frozen=True, slots=True)
class _Prompt:
    length: float
    tokens: float


_Lengths = Mapping[str, _Prompt]
"""The prompts of one run of one cell, by question id; empty where steps per request are unknown."""


@dataclass(frozen=True, slots=True)
class Logs:
    """All request logs of a calibration. ``missing`` are those that are not there.

    ``lengths`` is by artifact, cell, start and repeat; ``client`` is what kept the client from timing
    a cell, by cell.
    """

    lengths: Mapping[tuple[str, Cell, int, int], _Lengths]
    client: Mapping[Cell, str]
    missing: tuple[Path, ...]


def read_logs(calibration: Calibration) -> Logs:
    """Read what there is. Raises ConfigError for a log that is damaged."""
    lengths: dict[tuple[str, Cell, int, int], _Lengths] = {}
    client: dict[Cell, str] = {}
    missing = tuple(log_path(s.path) for s in calibration.sources if not log_path(s.path).exists())
    for source in calibration.sources:
        if log_path(source.path) in missing:
            continue
        for window in _windows(source):
            lengths[source.name, window.cell, window.start, window.repeat] = _prompts(window)
            problem = client_problem(window.client)
            if problem is not None:
                client.setdefault(window.cell, f"{source.name}: {problem.message}")
    return Logs(lengths, client, missing)


def timing_problem(logs: Logs, proposal: Proposal) -> str:
    """Why a rate or latency was not measured soundly; runs that are not judged do not look at this themselves."""
    if not METRICS[proposal.limit.metric].log_scale:
        return ""
    cell, measured = proposal.cell, proposal.measured.conversations
    if cell.split == "qualitative" and not cell.is_overall and measured < cell.concurrency:
        return f"{measured} conversations cannot hold a concurrency of {cell.concurrency}"
    problems = [text for own, text in logs.client.items() if own == cell or (cell.is_overall and _part(own, cell))]
    return f"the client was too slow to time anything: {problems[0]}" if problems else ""


def references(calibration: Calibration, logs: Logs, proposals: Mapping[Cell, list[Proposal]]) -> list[CellReference]:
    """The prompts of each gated cell whose steps per request are known in every run.

    Raises ConfigError for a log that lacks a run of its artifact or does not agree with it.
    """
    return [
        found
        for cell, own in proposals.items()
        if (found := _reference(calibration, logs, cell, own)) is not None and found.prompts
    ]


def _reference(calibration: Calibration, logs: Logs, cell: Cell, proposals: list[Proposal]) -> CellReference | None:
    runs = []
    for source in calibration.sources:
        result = next(result for result in source.results if result.cell == cell)
        for run in runs_of(result):
            prompts = _of_run(source, logs, cell, run.start, run.repeat)
            if not prompts:
                return None
            _require_agreement(source, cell, prompts, run.values.get("acceptance_length"))
            runs.append(prompts)
    names = runs[0].keys()
    if any(run.keys() != names for run in runs):
        raise ConfigError(
            f"{cell.id(with_concurrency=True)}: the request logs do not have the same prompts in all runs"
        )
    return CellReference(
        cell=cell,
        prompts_sha256=proposals[0].measured.prompts_sha256,
        references={own.limit.metric: own.limit.reference for own in proposals if own.limit.reference is not None},
        prompts={name: _over_runs([run[name] for run in runs]) for name in names},
    )


def _of_run(source: Source, logs: Logs, cell: Cell, start: int, repeat: int) -> _Lengths:
    """Empty where the steps of one of the parts are unknown: a server joins events now and then."""
    found: list[_Lengths] = []
    parts = [result.cell for result in source.results if _part(result.cell, cell)] if cell.is_overall else [cell]
    for part in parts:
        prompts = logs.lengths.get((source.name, part, start, repeat))
        if prompts is None:
            raise ConfigError(
                f"{log_path(source.path)} has no start {start + 1}, repeat {repeat + 1} of "
                f"{part.id(with_concurrency=True)}: it is not the log of {source.name}, or it was cut"
            )
        found.append(prompts)
    # Of all parts or of none: a mean over the others would be that of another cell.
    return {name: one for own in found for name, one in own.items()} if all(found) else {}


def _part(cell: Cell, overall: Cell) -> bool:
    """Whether ``overall`` sums up ``cell``."""
    return cell.split == overall.split and cell.concurrency == overall.concurrency and not cell.is_overall


def _require_agreement(source: Source, cell: Cell, prompts: _Lengths, length: float | None) -> None:
    mean = fmean(prompt.length for prompt in prompts.values())
    if length is not None and abs(mean - length) > _AGREE * length:
        raise ConfigError(
            f"{log_path(source.path)} is not the log of {source.name}: its prompts have a mean acceptance length of "
            f"{mean:.4f} in {cell.id(with_concurrency=True)}, the artifact {length:.4f}"
        )


def _over_runs(runs: list[_Prompt]) -> PromptReference:
    lengths = [run.length for run in runs]
    return PromptReference(
        length=rounded(fmean(lengths)),
        sd=rounded(stdev(lengths), 4) if len(set(lengths)) > 1 else 0.0,
        runs=len(runs),
        tokens=rounded(fmean(run.tokens for run in runs)),
    )


def _windows(source: Source) -> Iterator[Window]:
    with warnings.catch_warnings():
        # A log that was cut lacks runs, and those are named when they are needed.
        warnings.simplefilter("ignore", RequestsCutWarning)
        for profile, window in read_windows(log_path(source.path)):
            if profile == source.engine.profile:
                yield window


def _prompts(window: Window) -> _Lengths:
    return {c.question_id: _Prompt(c.acceptance_length, c.tokens / c.turns) for c in conversations(window.turns)}

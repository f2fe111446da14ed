"""A thresholds file from measure-only runs: one artifact per engine start."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_speedbench.cells import Cell
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates.limits import MIN_STARTS
from pytest_speedbench.gates.verdict import UNREACHABLE, Verdict
from pytest_speedbench.measure.metrics import METRICS
from pytest_speedbench.measure.statistics import run_sigma
from pytest_speedbench.report.artifact import Flags
from pytest_speedbench.report.run_info import EngineRecord, RunInfo
from pytest_speedbench.report.wording import draft_positions
from pytest_speedbench.results import CellResult

Artifact = tuple[RunInfo, tuple[CellResult, ...], Flags]

_METRIC = "acceptance_length"
_WORKLOAD = {"osl": "osl_cap", "temperature": "temperature", "ignore_eos": "ignore_eos"}
_PROMPTS_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Margins:
    """How far, relatively, a limit lies below its reference: policy, not a measure of noise."""

    overall: float = METRICS[_METRIC].overall_margin
    category: float = METRICS[_METRIC].margin

    def of(self, cell: Cell) -> float:
        """The margin of one cell."""
        return self.overall if cell.is_overall else self.category


def thresholds_yaml(artifacts: Sequence[Artifact], margins: Margins) -> str:
    """The text of a thresholds file that gates the acceptance length of every cell in ``artifacts``.

    The reference is the mean over the runs, the limit lies a margin below it, and the evidence holds
    the standard deviation between runs. Raises ConfigError for fewer than five runs, for unlike or
    unfinished ones, for cells that were not measured soundly in each, and for margins that are too
    narrow for the noise: their gates would be INVALID ``unreachable``.
    """
    engine = _common_engine(artifacts)
    runs = [_cells(run, results, flags) for run, results, flags in artifacts]
    cells = list(runs[0])
    for (run, _, _), measured in zip(artifacts, runs, strict=True):
        if set(measured) != set(cells):
            odd = next(iter(set(measured) ^ set(cells)))
            raise ConfigError(f"the run of {run.started} and the first one differ in {odd.id(with_concurrency=True)}")
    date = max(run.started for run, _, _ in artifacts)[:10]
    lines = [*_head(artifacts[0][0], engine), "gates:"]
    too_narrow = []
    for cell in cells:
        gate = _Gate.of(cell, [measured[cell] for measured in runs], margins.of(cell))
        lines += gate.lines(date)
        if gate.needed_margin > gate.margin:
            too_narrow.append(f"{cell.name} (σ {gate.sigma:.1%}, needs {math.ceil(100 * gate.needed_margin)}%)")
    if too_narrow:
        raise ConfigError(
            f"the margin must be {UNREACHABLE} σ at least, and is too narrow for {', '.join(too_narrow)}; measure more "
            "engine starts or more prompts, or widen it with --margin and --overall-margin"
        )
    return "\n".join(lines) + "\n"


def _common_engine(artifacts: Sequence[Artifact]) -> EngineRecord:
    if len(artifacts) < MIN_STARTS:
        raise ConfigError(f"{len(artifacts)} artifacts are too few: give one per engine start, at least {MIN_STARTS}")
    starts = [run.started for run, _, _ in artifacts]
    if len(set(starts)) < len(starts):
        raise ConfigError("two of the artifacts are the same run; each engine start counts once")
    first = artifacts[0][0]
    for run, _, _ in artifacts:
        if run.engines and run.engines[0].method is None:
            raise ConfigError("without speculation the acceptance length is 1 by definition: there is nothing to gate")
        if len(run.engines) != 1:
            raise ConfigError(f"the run of {run.started} has {len(run.engines)} engines; calibrate one at a time")
        if _comparable(run) != _comparable(first):
            raise ConfigError(
                f"the runs of {run.started} and {first.started} differ in engine, model, data or sampling"
            )
    return first.engines[0]


def _comparable(run: RunInfo) -> tuple[object, ...]:
    engine = run.engines[0]
    workload = (engine.resolved.get(name) for name in _WORKLOAD.values())
    speculation = (engine.method, engine.draft_model, engine.draft_tokens)
    return (run.dataset, engine.engine, engine.model, *speculation, *workload)


def _cells(run: RunInfo, results: Sequence[CellResult], flags: Flags) -> dict[Cell, CellResult]:
    if not flags.complete or flags.partial:
        raise ConfigError(f"the run of {run.started} is not complete")
    for result in results:
        if result.verdict is Verdict.INVALID:
            raise ConfigError(f"the run of {run.started} has an INVALID cell: {result.item_id}")
    return {result.cell: result for result in results}


def _head(run: RunInfo, engine: EngineRecord) -> Iterator[str]:
    yield "schema: 1"
    fields: dict[str, object] = {"engine": engine.engine, "model": engine.model, "method": engine.method or "none"}
    fields |= {"draft_tokens": engine.draft_tokens or 0}
    if engine.draft_model is not None:
        fields["draft_model"] = engine.draft_model
    fields["dataset"] = run.dataset
    for name, key in _WORKLOAD.items():
        value = engine.resolved.get(key)
        fields[name] = value
    yield "match:"
    # JSON is YAML, and quotes what a model's name may contain.
    yield from (f"  {name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items())
    yield "estimator: request_mean"
    yield "family: {alpha: 0.05, beta: 0.05}"


@dataclass(frozen=True, slots=True)
class _Gate:
    """One calibrated limit. ``sigma`` is the relative noise of a single run against the reference."""

    cell: Cell
    values: tuple[float, ...]
    margin: float
    prompts: str
    conditional: tuple[float, ...]

    @classmethod
    def of(cls, cell: Cell, results: Sequence[CellResult], margin: float) -> _Gate:
        prompts = {result.prompts_sha256 for result in results}
        if len(prompts) > 1:
            raise ConfigError(f"the runs measured different prompts in {cell.id(with_concurrency=True)}")
        if any(_METRIC not in result.metrics for result in results):
            raise ConfigError(
                f"{cell.id(with_concurrency=True)} has no {_METRIC}: the engine did not tell decode steps per request"
            )
        rates = zip(*(draft_positions(result) for result in results), strict=False)
        return cls(
            cell=cell,
            values=tuple(result.metrics[_METRIC].value for result in results),
            margin=margin,
            prompts=prompts.pop(),
            conditional=tuple(statistics.fmean(position) for position in rates),
        )

    @property
    def reference(self) -> float:
        return round(statistics.fmean(self.values), 4)

    @property
    def sigma(self) -> float:
        sd, starts = statistics.stdev(self.values), len(self.values)
        noise = run_sigma(sd, 0.0, starts=1, repeats=1, cal_starts=starts, cal_repeats=1)
        return noise.sigma / self.reference

    @property
    def needed_margin(self) -> float:
        return UNREACHABLE * self.sigma

    def lines(self, date: str) -> Iterator[str]:
        evidence = {
            "starts": len(self.values),
            "repeats": 1,
            "sd_start": f"{statistics.stdev(self.values):.4g}",
            "date": date,
            "prompts": f'"{self.prompts[:_PROMPTS_SHOWN]}"',
            "conditional": "[" + ", ".join(f"{rate:.3f}" for rate in self.conditional) + "]",
        }
        yield "  - cell: {" + ", ".join(f"{name}: {value}" for name, value in self.cell.as_dict().items()) + "}"
        yield f"    {_METRIC}:"
        yield f"      min: {self.reference * (1 - self.margin):.4f}"
        yield f"      reference: {self.reference}"
        yield f"      margin: {100 * self.margin:g}%"
        yield "      evidence: {" + ", ".join(f"{name}: {value}" for name, value in evidence.items()) + "}"

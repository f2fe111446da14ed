"""Which metrics of a cell are gated, and with what margin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pytest_speedbench.calibration.runs import Calibration, Measured
from pytest_speedbench.cells import Cell
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.measure.metrics import METRICS, gateable

_PER_REQUEST = "acceptance_length"
_POOLED = "acceptance_length_pooled"
_LAST_RESORT = "decode_acceptance_length"


@dataclass(frozen=True, slots=True)
class Margins:
    """How far limits lie from their references: policy, never a measure of noise.

    Keys are metrics, None stands for all of them; ``overall`` is for the overall cell. What neither
    names has the margin that the file has, else that of the metric.
    """

    cells: Mapping[str | None, float] = field(default_factory=dict)
    overall: Mapping[str | None, float] = field(default_factory=dict)

    def of(self, cell: Cell, metric: str, in_file: float | None) -> float:
        """The margin of one gate."""
        asked = self.overall if cell.is_overall else self.cells
        spec = METRICS[metric]
        default = spec.overall_margin if cell.is_overall else spec.margin
        chosen = asked.get(metric) or asked.get(None)
        if chosen is None and in_file is not None:
            return in_file
        # The file has it in per cent, and reads back just this number.
        return round(100 * (chosen or default), 10) / 100


def estimator_of(calibration: Calibration, in_file: str | None) -> str:
    """The estimator of the acceptance length: that of the file, else the best that all cells have."""
    if in_file is not None:
        return in_file
    every = calibration.cells
    pooled = any(_PER_REQUEST not in cell.tables for cell in every) and all(_POOLED in cell.tables for cell in every)
    return "pooled" if pooled else "request_mean"


def metrics_of(measured: Measured, asked: Sequence[str], estimator: str, *, speculation: bool) -> tuple[str, ...]:
    """The metrics to gate in one cell, by their names in a thresholds file.

    By default the acceptance length and, in the throughput split, a rate, the rate of a user and the
    time to the first token. Raises ConfigError for an unknown metric, one that the cell does not
    have, and an acceptance length without speculation.
    """
    if not asked:
        return tuple(metric for metric in _default(measured, estimator, speculation) if metric is not None)
    for metric in asked:
        spec = gateable(metric)
        name = measured.cell.id(with_concurrency=True)
        if spec.unit in ("tokens/step", "share") and not speculation:
            raise ConfigError(f"without speculation {metric} says nothing: there is nothing to gate")
        if measured_as(metric, estimator) not in measured.tables and not (
            measured.cell.is_overall and metric in ("output_tps", "steady_output_tps")
        ):
            have = ", ".join(m for m in METRICS if METRICS[m].gateable and m in measured.tables)
            raise ConfigError(f"{name}: not every run has {metric}; choose from {have}")
    return tuple(metric for metric in asked if measured_as(metric, estimator) in measured.tables)


def measured_as(metric: str, estimator: str) -> str:
    """The measured metric that a gate compares (``Limit.measured_as``)."""
    return _POOLED if (metric, estimator) == (_PER_REQUEST, "pooled") else metric


def _default(measured: Measured, estimator: str, speculation: bool) -> tuple[str | None, ...]:
    def first(*names: str) -> str | None:
        return next((name for name in names if measured_as(name, estimator) in measured.tables), None)

    acceptance = first(_PER_REQUEST, _LAST_RESORT) if speculation else None
    if measured.cell.split != "throughput":
        return (acceptance,)
    return acceptance, first("steady_output_tps", "output_tps"), first("user_tps"), first("ttft_p50_s")

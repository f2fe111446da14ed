"""What a measured cell is to every report: one frozen CellResult."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_speedbench.cells import Cell
from pytest_speedbench.data.lengths import Lengths
from pytest_speedbench.gates.verdict import GateResult, Verdict
from pytest_speedbench.measure.acceptance import Acceptance
from pytest_speedbench.measure.checks import Reason
from pytest_speedbench.measure.gpu_record import GpuWindow
from pytest_speedbench.measure.metrics import Metric
from pytest_speedbench.names import BASELINE, PLAIN


@dataclass(frozen=True, slots=True)
class CellRun:
    """One measurement of all of a cell's prompts: repeat ``repeat`` of engine start ``start``, both from 0.

    ``values`` holds the metrics of that run by name, ``gpus`` what was seen of the engine's GPUs meanwhile.
    """

    start: int
    repeat: int
    values: Mapping[str, float]
    gpus: tuple[GpuWindow, ...] = ()


@dataclass(frozen=True, slots=True)
class CellResult:
    """One cell, measured with one engine profile, and the verdict on it.

    ``profile`` is the label in the item id. ``steps_source`` says where step counts come from.
    ``verdict`` is None for a measured cell without a gate under ``--speedbench-measure-only``. ``isl`` is the
    length of first prompts as the engine gets them, None where nothing was sent. ``masked`` prompts of the
    cell were placeholders and left out: it is partial, and not comparable with a full one. ``metrics`` are the mean
    over ``runs``, one per engine start and repeat.
    """

    profile: str
    cell: Cell
    item_id: str
    verdict: Verdict | None
    reasons: tuple[Reason, ...] = ()
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    acceptance: Acceptance | None = None
    gates: tuple[GateResult, ...] = ()
    conversations: int = 0
    conversations_planned: int = 0
    turns: int = 0
    prompts_sha256: str = ""
    steps_source: str = ""
    duration_s: float = 0.0
    isl: Lengths | None = None
    masked: int = 0
    runs: tuple[CellRun, ...] = ()

    @property
    def is_waived(self) -> bool:
        """Whether all that is missed is waived: an expected failure, which never counts as passed."""
        missed = [gate for gate in self.gates if gate.verdict is not Verdict.PASS]
        return bool(missed) and not self.reasons and all(gate.waived for gate in missed)

    @property
    def is_companion(self) -> bool:
        """Whether the cell was measured only for another profile's cell to be compared with."""
        return self.profile.startswith((BASELINE, PLAIN))


def runs_of(result: CellResult) -> tuple[CellRun, ...]:
    """The runs of a cell, by start and repeat; an artifact without any holds one, and its values are the metrics."""
    whole = CellRun(0, 0, {name: metric.value for name, metric in result.metrics.items()})
    return tuple(sorted(result.runs or (whole,), key=lambda run: (run.start, run.repeat)))

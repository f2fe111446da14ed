"""What `speedbench compare` knows of GPUs, client and drafting, and what causes follow from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_speedbench.cells import Cell
from pytest_speedbench.comparison.explaining import explain
from pytest_speedbench.gates.verdict import GateResult, Verdict
from pytest_speedbench.measure.diagnosis import drafting_change
from pytest_speedbench.measure.gpu_record import Card, GpuWindow, Spread
from pytest_speedbench.measure.metrics import Metric
from pytest_speedbench.measure.samples import Client, Counters, Window
from pytest_speedbench.results import CellResult, CellRun

CELL = Cell("throughput", 8, isl="1k", difficulty="mixed")
GPU = GpuWindow(Card(0, "GPU-0"), 20.0, 20, 18, sm_mhz=Spread(1950, 1980, 1980), utilisation=0.97)
AS_BEFORE = {"acceptance_length": 2.5, "output_tps": 1000.0, "step_p50_s": 0.020, "ttft_p50_s": 0.1}
SLOWER = {"acceptance_length": 2.5, "output_tps": 800.0, "step_p50_s": 0.025, "ttft_p50_s": 0.13}


def result(values: dict[str, float], *gpus: GpuWindow) -> CellResult:
    metrics = {name: Metric(value) for name, value in values.items()}
    return CellResult("vllm", CELL, "vllm-throughput", None, metrics=metrics, runs=(CellRun(0, 0, values, gpus),))


def window(*, drafts: int | None = 900, steps: int | None = 1000, cpu: float = 0.3) -> Window:
    return Window(CELL, (), (), (), Counters(drafts=drafts, steps=steps), Client(0.001, cpu))


def cause(old: CellResult, now: CellResult, *windows: Window, metric: str = "output_tps") -> str | None:
    known: dict[str, Any] = dict.fromkeys(("reference", "margin", "mde_not_passed", "mde_failed"))
    missed = GateResult(metric, Verdict.FAIL, 1, 2, ceiling=False, sigma=0, guard=0, headroom=-1, source="", **known)
    base, new = windows or (window(), window())
    return explain(old, now, [missed], ([base], [new])).causes.get(metric)


def test_a_lower_clock_is_named() -> None:
    slow = replace(GPU, sm_mhz=Spread(1400, 1410, 1980))
    found = cause(result(AS_BEFORE, GPU), result(SLOWER, slow))
    assert found is not None
    assert "1980 → 1410 MHz" in found


def test_a_gpu_that_idles_more_is_the_hosts_fault() -> None:
    idle = replace(GPU, utilisation=0.6)
    found = cause(result(AS_BEFORE, GPU), result(SLOWER, idle))
    assert found is not None
    assert "busy 60 % of the time (was 97 %)" in found


@pytest.mark.parametrize(
    ("old", "now", "cpu"),
    [
        pytest.param(GPU, replace(GPU, utilisation=0.93), 0.3, id="hardly more idle"),
        pytest.param(GPU, replace(GPU, utilisation=0.6), 0.95, id="the client may be what it waits for"),
        pytest.param(GPU, replace(GPU, utilisation=0.6, samples=2), 0.3, id="seen twice"),
        pytest.param(replace(GPU, utilisation=None), replace(GPU, utilisation=0.6), 0.3, id="not known of before"),
        pytest.param(GPU, replace(GPU, sm_mhz=Spread(1400, 1410, 1980), working=2), 0.3, id="clock seen twice"),
    ],
)
def test_what_is_not_known_well_enough_names_neither(old: GpuWindow, now: GpuWindow, cpu: float) -> None:
    found = cause(result(AS_BEFORE, old), result(SLOWER, now), window(), window(cpu=cpu))
    assert found is not None
    # Slower steps with as much accepted: all that is left.
    assert "drafting or verifying costs more" in found


def test_one_gpu_of_two_that_does_not_tell_leaves_the_clock_unknown() -> None:
    slow, silent = replace(GPU, sm_mhz=Spread(1400, 1410, 1980)), replace(GPU, sm_mhz=None)
    found = cause(result(AS_BEFORE, GPU, GPU), result(SLOWER, slow, silent))
    assert found is not None
    assert "MHz" not in found


def test_fewer_steps_that_draft_are_named() -> None:
    lower = {**AS_BEFORE, "acceptance_length": 1.9}
    found = cause(result(AS_BEFORE), result(lower), window(), window(drafts=500), metric="acceptance_length")
    assert found is not None
    assert found.startswith("50 % of the steps drafted (was 90 %)")
    unknown = cause(result(AS_BEFORE), result(lower), window(), window(drafts=None), metric="acceptance_length")
    assert unknown is None


@pytest.mark.parametrize(
    ("now", "was", "expected"),
    [
        # 2 standard deviations of 0.9 over twice 1000 steps: 2 x sqrt(2 x 0.9 x 0.1 / 1000) / 0.9 = 3.0 %, below 5 %.
        ((500, 1000), (900, 1000), (0.5, 0.9, 0.05)),
        # Over twice 10: 2 x sqrt(2 x 0.9 x 0.1 / 10) / 0.9 = 29.8 %.
        ((5, 10), (9, 10), (0.5, 0.9, 0.298142)),
        # A cut last turn can leave one draft more than steps.
        ((11, 10), (10, 10), (1.0, 1.0, 0.05)),
        ((0, 0), (9, 10), None),
        ((0, 10), (9, 10), None),
    ],
)
def test_the_share_of_steps_that_draft(
    now: tuple[int, int], was: tuple[int, int], expected: tuple[float, float, float] | None
) -> None:
    found: Any = drafting_change(now, was)
    if expected is None:
        assert found is None
    else:
        assert (found.now, found.was, found.band) == pytest.approx(expected, rel=1e-5)

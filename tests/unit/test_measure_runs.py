"""Several runs of one cell: starts count once, rates average on the log scale, step lengths add up."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pytest_speedbench.measure import acceptance as acc
from pytest_speedbench.measure.acceptance import Acceptance
from pytest_speedbench.measure.metrics import Metric
from pytest_speedbench.measure.runs import Run, mean_metrics, mean_over_starts, pooled_acceptance, prompt_lengths
from tests.unit.test_measure_samples import turn


def run(start: int, repeat: int, **metrics: Any) -> Run:
    values = {name: value if isinstance(value, Metric) else Metric(value) for name, value in metrics.items()}
    return Run(start, repeat, values, acc.acceptance([turn("q", [2, 3])]))


def test_a_start_counts_once_however_often_it_was_repeated() -> None:
    runs = [run(0, 0, acceptance_length=2.0), run(0, 1, acceptance_length=2.2), run(1, 0, acceptance_length=3.0)]
    assert mean_metrics(runs)["acceptance_length"].value == pytest.approx((2.1 + 3.0) / 2)


def test_rates_average_on_the_log_scale() -> None:
    runs = [run(0, 0, output_tps=100.0), run(1, 0, output_tps=400.0)]
    assert mean_metrics(runs)["output_tps"].value == pytest.approx(200.0)
    assert mean_over_starts([(0, 0.0), (1, 4.0)], log=True) == 2.0


def test_intervals_are_averaged_and_do_not_shrink() -> None:
    runs = [run(0, n, acceptance_length=Metric(2.0, 1.5 + n, 3.0 + n)) for n in range(2)]
    mean = mean_metrics(runs)["acceptance_length"]
    assert (mean.low, mean.high) == (2.0, 3.5)
    assert mean_metrics([run(0, 0, acceptance_length=Metric(2.0)), runs[0]])["acceptance_length"].low is None


def test_a_doubt_in_one_run_is_a_doubt_in_the_mean() -> None:
    runs = [
        run(0, 0, decode_acceptance_length=Metric(1.2, bracket=(1.2, 1.4))),
        run(1, 0, decode_acceptance_length=Metric(1.4)),
    ]
    assert mean_metrics(runs)["decode_acceptance_length"].bracket == pytest.approx((1.3, 1.4))


def test_a_metric_that_one_run_lacks_has_no_mean() -> None:
    assert set(mean_metrics([run(0, 0, user_tps=1.0, osl_mean=3.0), run(1, 0, osl_mean=5.0)])) == {"osl_mean"}


def test_step_lengths_of_all_runs_are_one_histogram() -> None:
    one, other = [turn("q", [2, 3, 1])], [turn("q", [3, 3, 2])]
    both = pooled_acceptance([Run(n, 0, {}, acc.acceptance(turns)) for n, turns in enumerate((one, other))])
    together = acc.acceptance(one + other)
    assert both == together
    assert isinstance(both, Acceptance)
    assert both.histogram == {1: 3, 2: 2, 3: 3}


def test_lengths_per_prompt_count_the_prefill() -> None:
    lengths = prompt_lengths([turn("a", [2, 2]), turn("b", [4])])
    assert lengths == {"a": pytest.approx(5 / 3), "b": pytest.approx(5 / 2)}
    assert all(math.isfinite(value) for value in lengths.values())

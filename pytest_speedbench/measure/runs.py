"""Whole-cell measurements of one cell, repeated over engine starts, and what they are together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from pytest_speedbench.measure import acceptance as acc
from pytest_speedbench.measure.acceptance import Acceptance
from pytest_speedbench.measure.metrics import METRICS, Metric
from pytest_speedbench.measure.samples import Turn


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement of all of a cell's prompts: repeat ``repeat`` of engine start ``start``, both from 0.

    ``prompts`` is the acceptance length of each conversation, by its id; empty where steps per request are unknown.
    """

    start: int
    repeat: int
    metrics: Mapping[str, Metric]
    acceptance: Acceptance
    prompts: Mapping[str, float] = field(default_factory=dict)


def prompt_lengths(turns: Sequence[Turn]) -> dict[str, float]:
    """Acceptance length per conversation, the prefill step counted."""
    return {c.question_id: c.acceptance_length for c in acc.conversations(turns)}


def mean_metrics(runs: Sequence[Run]) -> dict[str, Metric]:
    """The metrics that every run has, averaged: within each engine start first, then over starts.

    So a start counts once, however often it was repeated. Rates and latencies are averaged on the log scale, on
    which their noise is additive. Ends of intervals and brackets are averaged like the values: an interval over
    conversations does not shrink when the same conversations are measured again.
    """
    if len(runs) == 1:
        return dict(runs[0].metrics)
    common = [name for name in METRICS if all(name in run.metrics for run in runs)]
    return {name: _mean_metric(name, runs) for name in common}


def mean_over_starts(values: Sequence[tuple[int, float]], *, log: bool = False) -> float:
    """The mean over engine starts of their means, from (start, value) pairs.

    With ``log`` the geometric one, unless a value has no logarithm.
    """
    log = log and all(value > 0 for _, value in values)
    starts: dict[int, list[float]] = {}
    for start, value in values:
        starts.setdefault(start, []).append(math.log(value) if log else value)
    mean = fmean(fmean(own) for own in starts.values())
    return math.exp(mean) if log else mean


def _mean_metric(name: str, runs: Sequence[Run]) -> Metric:
    log, metrics = METRICS[name].log_scale, [(run.start, run.metrics[name]) for run in runs]

    def mean(of: Callable[[Metric], float]) -> float:
        return mean_over_starts([(start, of(metric)) for start, metric in metrics], log=log)

    def end(of: Callable[[Metric], float | None]) -> float | None:
        ends = [(start, value) for start, metric in metrics if (value := of(metric)) is not None]
        return mean_over_starts(ends, log=log) if len(ends) == len(metrics) else None

    bracket = None
    if any(metric.bracket for _, metric in metrics):
        bracket = (mean(lambda m: (m.bracket or (m.value,))[0]), mean(lambda m: (m.bracket or (m.value,))[-1]))
    return Metric(mean(lambda m: m.value), end(lambda m: m.low), end(lambda m: m.high), bracket)


def pooled_acceptance(runs: Sequence[Run]) -> Acceptance:
    """The step lengths of all runs together."""
    if len(runs) == 1:
        return runs[0].acceptance
    lengths: Counter[int] = Counter()
    decode: Counter[int] = Counter()
    for run in runs:
        lengths.update(run.acceptance.histogram)
        decode.update(run.acceptance.decode_histogram)
    histogram = dict(sorted(lengths.items()))
    return Acceptance(
        histogram=histogram,
        conditional=acc.conditional(histogram),
        joint=acc.joint(histogram),
        decode_histogram=dict(sorted(decode.items())),
        unresolved_steps=sum(run.acceptance.unresolved_steps for run in runs),
    )

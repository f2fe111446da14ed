"""All metrics of a cell, by the names of ``METRICS``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pytest_speedbench.measure import acceptance as acc
from pytest_speedbench.measure import timing
from pytest_speedbench.measure.acceptance import Acceptance, Conversation
from pytest_speedbench.measure.metrics import METRICS, Metric
from pytest_speedbench.measure.samples import Counters, Turn, Window
from pytest_speedbench.measure.statistics import Interval, bootstrap_mean, bootstrap_ratio, seed_of


def summarise(
    turns: Sequence[Turn], *, counters: Counters, steady_ns: tuple[int, int] | None, seed_parts: Sequence[str]
) -> tuple[dict[str, Metric], Acceptance]:
    """The metrics of one window, in the order of ``METRICS``, and its acceptance.

    A metric that is not defined is absent: no rate without a draft, no steady rate without a steady
    window. Acceptance lengths and the rate carry 95 % intervals over conversations; ``seed_parts``
    (the item's id, say) seeds them, so that equal samples give equal intervals.
    """
    values = {
        **_values(turns, counters),
        "output_tps": timing.output_tps(turns),
        "steady_output_tps": timing.steady_output_tps(turns, steady_ns),
    }
    return _metrics(values, _intervals(turns, seed_parts)), acc.acceptance(turns)


def summarise_overall(windows: Sequence[Window], *, seed_parts: Sequence[str]) -> tuple[dict[str, Metric], Acceptance]:
    """The metrics over all conversations of several windows, as ``summarise`` gives them.

    ``output_tps`` and ``steady_output_tps`` are absent: the windows did not run side by side, so
    the time from the first to the last of them means nothing.
    """
    turns = [turn for window in windows for turn in window.turns]
    values = _values(turns, _total([window.counters for window in windows]))
    return _metrics(values, _intervals(turns, seed_parts)), acc.acceptance(turns)


def _values(turns: Sequence[Turn], counters: Counters) -> dict[str, float | None]:
    values: dict[str, float | None] = {
        "acceptance_length": acc.acceptance_length(turns),
        "acceptance_length_pooled": acc.acceptance_length_pooled(turns),
        "decode_acceptance_length": acc.decode_acceptance_length(turns),
        "decode_acceptance_length_uncut": acc.decode_acceptance_length_uncut(turns),
        "drafted_acceptance_length": acc.drafted_acceptance_length(counters),
        "acceptance_rate": acc.acceptance_rate(turns),
        "osl_mean": timing.osl_mean(turns),
        "osl_capped_share": timing.osl_capped_share(turns),
    }
    speeds = timing.user_tps(turns)
    if speeds.size:
        values["user_tps"] = timing.mean(speeds)
        values["user_tps_p50"] = timing.percentile(speeds, 50)
        values["user_tps_p5"] = timing.percentile(speeds, 5)
    latencies: dict[str, Callable[[Sequence[Turn]], timing.Values]] = {
        "ttft": timing.ttft_s,
        "e2e": timing.e2e_s,
        "step": timing.step_s,
        "tpot": timing.tpot_s,
    }
    for quantity, measure in latencies.items():
        seconds = measure(turns)
        if seconds.size:
            values[f"{quantity}_mean_s"] = timing.mean(seconds)
            for percent in (50, 95, 99):
                values[f"{quantity}_p{percent}_s"] = timing.percentile(seconds, percent)
    return values


def _intervals(turns: Sequence[Turn], seed_parts: Sequence[str]) -> dict[str, Interval | None]:
    cell = acc.conversations(turns)

    def seed(metric: str) -> int:
        return seed_of(*seed_parts, metric)

    def ratio(
        metric: str, over: Callable[[Conversation], int], under: Callable[[Conversation], int]
    ) -> Interval | None:
        return bootstrap_ratio([over(c) for c in cell], [under(c) for c in cell], seed=seed(metric))

    name = "acceptance_length"
    return {
        name: bootstrap_mean([c.acceptance_length for c in cell], seed=seed(name)),
        f"{name}_pooled": ratio(f"{name}_pooled", lambda c: c.tokens, lambda c: c.steps_with_prefill),
        f"decode_{name}": ratio(f"decode_{name}", lambda c: c.tokens - c.turns, lambda c: c.steps),
        "acceptance_rate": ratio("acceptance_rate", lambda c: c.accepted, lambda c: c.drafted),
    }


def _metrics(values: Mapping[str, float | None], intervals: Mapping[str, Interval | None]) -> dict[str, Metric]:
    metrics = {}
    for name in METRICS:
        value = values.get(name)
        if value is not None:
            low, high = intervals.get(name) or (None, None)
            metrics[name] = Metric(value, low, high)
    return metrics


def _total(counters: Sequence[Counters]) -> Counters:
    """The sum over several windows; a counter that one of them lacks has no sum."""

    def add(values: Sequence[int | None]) -> int | None:
        known = [value for value in values if value is not None]
        return sum(known) if known and len(known) == len(values) else None

    return Counters(
        prompt_tokens=add([c.prompt_tokens for c in counters]),
        output_tokens=add([c.output_tokens for c in counters]),
        drafts=add([c.drafts for c in counters]),
        drafted=add([c.drafted for c in counters]),
        accepted=add([c.accepted for c in counters]),
    )

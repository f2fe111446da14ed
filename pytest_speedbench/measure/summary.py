"""All metrics of a cell, by the names of ``METRICS``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pytest_speedbench.measure import acceptance as acc
from pytest_speedbench.measure import timing
from pytest_speedbench.measure.acceptance import Acceptance, Conversation
from pytest_speedbench.measure.metrics import METRICS, Metric
from pytest_speedbench.measure.samples import Counters, StepTotal, Turn, Window
from pytest_speedbench.measure.statistics import Interval, bootstrap_mean, bootstrap_ratio, seed_of
from pytest_speedbench.measure.steps import step_total

SEEN_SHARE = 0.99
"""Step times are reported where at least this share of the steps was seen to arrive."""


def summarise(window: Window, *, seed_parts: Sequence[str]) -> tuple[dict[str, Metric], Acceptance]:
    """The metrics of one window, in the order of ``METRICS``, and its acceptance.

    A metric that is not defined is absent: no rate without a draft, no steady rate without a steady
    window, no mean over requests without steps per request. Acceptance lengths and the rate carry
    95 % intervals over conversations; ``seed_parts`` (the item's id, say) seeds them, so that equal
    samples give equal intervals.
    """
    values = {
        **_values(window.turns, window.counters),
        "output_tps": timing.output_tps(window.turns),
        "steady_output_tps": timing.steady_output_tps(window.turns, window.steady_ns),
    }
    return _metrics(values, window.turns, step_total(window), seed_parts), acc.acceptance(window.turns)


def summarise_overall(windows: Sequence[Window], *, seed_parts: Sequence[str]) -> tuple[dict[str, Metric], Acceptance]:
    """The metrics over all conversations of several windows, as ``summarise`` gives them.

    ``output_tps`` and ``steady_output_tps`` are absent: the windows did not run side by side, so
    the time from the first to the last of them means nothing.
    """
    turns = [turn for window in windows for turn in window.turns]
    values = _values(turns, Counters.total(window.counters for window in windows))
    totals = [total for total in map(step_total, windows) if total is not None]
    steps = StepTotal(sum(t.low for t in totals), sum(t.high for t in totals), "")
    total = steps if len(totals) == len(windows) else None
    return _metrics(values, turns, total, seed_parts), acc.acceptance(turns)


def _values(turns: Sequence[Turn], counters: Counters) -> dict[str, float | None]:
    rate = acc.acceptance_rate(turns)
    if rate is None and counters.accepted is not None and counters.drafted:
        rate = counters.accepted / counters.drafted
    values: dict[str, float | None] = {
        "acceptance_length": acc.acceptance_length(turns),
        "decode_acceptance_length_uncut": acc.decode_acceptance_length_uncut(turns),
        "drafted_acceptance_length": acc.drafted_acceptance_length(counters, turns),
        "acceptance_rate": rate,
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
        # What hides the arrival of steps is a stall: what is left would look better than it was.
        hidden = quantity == "step" and seconds.size < SEEN_SHARE * (acc.total_steps(turns) or 0)
        if seconds.size and not hidden:
            values[f"{quantity}_mean_s"] = timing.mean(seconds)
            for percent in (50, 95, 99):
                values[f"{quantity}_p{percent}_s"] = timing.percentile(seconds, percent)
    return values


def _intervals(turns: Sequence[Turn], seed_parts: Sequence[str]) -> dict[str, Interval | None]:
    cell = acc.conversations(turns)

    def seed(metric: str) -> int:
        return seed_of(*seed_parts, metric)

    def ratio(
        metric: str, over: Callable[[Conversation], int | None], under: Callable[[Conversation], int | None]
    ) -> Interval | None:
        pairs = [(over(c), under(c)) for c in cell]
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        if not known or len(known) < len(pairs):
            return None
        return bootstrap_ratio([a for a, _ in known], [b for _, b in known], seed=seed(metric))

    name = "acceptance_length"
    return {
        name: bootstrap_mean([c.acceptance_length for c in cell], seed=seed(name)) if cell else None,
        f"{name}_pooled": ratio(f"{name}_pooled", lambda c: c.tokens, lambda c: c.steps_with_prefill),
        f"decode_{name}": ratio(f"decode_{name}", lambda c: c.tokens - c.turns, lambda c: c.steps),
        "acceptance_rate": ratio("acceptance_rate", lambda c: c.accepted, lambda c: c.drafted),
    }


def _metrics(
    values: Mapping[str, float | None], turns: Sequence[Turn], total: StepTotal | None, seed_parts: Sequence[str]
) -> dict[str, Metric]:
    values, brackets = dict(values), dict[str, tuple[float, float]]()
    if total is not None:
        for name, of in (
            ("acceptance_length_pooled", acc.acceptance_length_pooled),
            ("decode_acceptance_length", acc.decode_acceptance_length),
        ):
            low, high = of(turns, total.high), of(turns, total.low)
            values[name] = low
            if low is not None and high is not None and low != high:
                brackets[name] = (low, high)
    intervals, metrics = _intervals(turns, seed_parts), {}
    for name in METRICS:
        value = values.get(name)
        if value is not None:
            low, high = intervals.get(name) or (None, None)
            metrics[name] = Metric(value, low, high, brackets.get(name))
    return metrics

"""The metrics by name: unit, direction, and the policy that applies where a file is silent."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_speedbench.errors import ConfigError

ESTIMATORS = ("request_mean", "pooled")


@dataclass(frozen=True, slots=True)
class Metric:
    """A number with its 95 % interval over conversations, where one is defined.

    ``bracket``: the number itself is known only to lie in it, and ``value`` is its lower end.
    """

    value: float
    low: float | None = None
    high: float | None = None
    bracket: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """What a metric is, for gates and reports.

    ``ceiling``: lower is better, so the limit is a ``max``. ``assumed_noise`` is the relative
    standard deviation of whole-cell values over restarted runs, used for hand-written limits that
    carry no evidence of their own. ``margin`` and ``overall_margin`` are the relative practical
    margins of calibrated limits, per cell and for the overall cell. ``log_scale``: noise is
    multiplicative.
    """

    name: str
    unit: str
    ceiling: bool
    assumed_noise: float
    margin: float
    overall_margin: float
    log_scale: bool = False
    gateable: bool = True


def _acceptance(name: str, unit: str = "tokens/step", *, gateable: bool = True) -> MetricSpec:
    return MetricSpec(name, unit, False, 0.005, 0.04, 0.02, gateable=gateable)


def _rate(name: str) -> MetricSpec:
    return MetricSpec(name, "tokens/s", False, 0.02, 0.05, 0.05, log_scale=True)


def _latency(name: str, margin: float, noise: float) -> MetricSpec:
    return MetricSpec(name, "s", True, noise, margin, margin, log_scale=True)


def _speedup(name: str) -> MetricSpec:
    return MetricSpec(name, "×", False, 0.03, 0.05, 0.05, log_scale=True)


def _info(name: str, unit: str) -> MetricSpec:
    return MetricSpec(name, unit, False, 0.0, 0.0, 0.0, gateable=False)


_LATENCIES = tuple(
    _latency(f"{quantity}_{statistic}_s", margin, noise)
    for quantity in ("ttft", "e2e", "step", "tpot")
    for statistic, margin, noise in (
        ("mean", 0.08, 0.02),
        ("p50", 0.08, 0.02),
        ("p95", 0.15, 0.04),
        ("p99", 0.15, 0.06),
    )
)

METRICS: dict[str, MetricSpec] = {
    spec.name: spec
    for spec in (
        _acceptance("acceptance_length"),
        _acceptance("acceptance_length_pooled", gateable=False),
        _acceptance("decode_acceptance_length"),
        _acceptance("decode_acceptance_length_uncut"),
        _acceptance("drafted_acceptance_length"),
        _acceptance("acceptance_rate", "share"),
        _rate("output_tps"),
        _rate("steady_output_tps"),
        _rate("user_tps"),
        _rate("user_tps_p50"),
        _rate("user_tps_p5"),
        *_LATENCIES,
        _speedup("speedup"),
        _speedup("speedup_per_prompt"),
        _speedup("speedup_total_time"),
        MetricSpec("crossover", "streams", False, 0.0, 0.0, 0.0),
        _info("lossless_mismatches", "turns"),
        _info("osl_mean", "tokens"),
        _info("osl_capped_share", "share"),
    )
}
"""Every metric that a cell can have, in the order of the reports.

The file's ``estimator`` decides whether the gate named ``acceptance_length`` compares the request
mean or ``acceptance_length_pooled``; the pooled value is therefore reported but not gated by name.
"""


def gateable(name: str) -> MetricSpec:
    """The spec of a metric that a thresholds file may name.

    Raises ConfigError, listing the choices, for any other name.
    """
    spec = METRICS.get(name)
    if spec is None or not spec.gateable:
        choices = ", ".join(s.name for s in METRICS.values() if s.gateable)
        raise ConfigError(f"unknown metric {name!r}; choose from {choices}")
    return spec

"""Verdicts worked out by hand.

With evidence from 6 starts of 1 repeat and a run of 1 start, σ² = sd² (1 + 1/6) with 5 degrees of
freedom; t is 2.0150 at 95 %, 2.5706 at 97.5 % and 6.8688 at 99.95 %.
"""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import replace

import pytest

from pytest_speedbench.cells import CATEGORIES, OVERALL, Cell
from pytest_speedbench.gates.limits import Evidence, Family, Limit
from pytest_speedbench.gates.verdict import GateResult, Verdict, allocate, combine, judge

PASS, FAIL, INCONCLUSIVE, INVALID = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.INVALID
DATE = dt.date(2026, 12, 1)


def calibrated(metric: str, value: float, reference: float, margin: float, sigma: float, *, ceiling: bool) -> Limit:
    """A limit whose comparison with a run of one start has the noise ``sigma``, in the metric's unit."""
    evidence = Evidence(6, 1, sigma / math.sqrt(7 / 6), 0.0, DATE, conditional=(0.7, 0.6))
    return Limit(metric, value, ceiling, "thresholds/a.yaml:14", reference, margin, evidence)


def verdict_of(limit: Limit, value: float | None, *, alpha: float = 0.025, beta: float = 0.05) -> Verdict:
    return judge(limit.metric, value, limit, alpha=alpha, beta=beta).verdict


# L = 2 × 0.96 = 1.92; PASS from 1.92 + 2.0150 × 0.01 = 1.94015; FAIL below 1.92, as 1.92 + 0.0257 < 2.
FLOOR = calibrated("acceptance_length", 1.92, 2.0, 0.04, 0.01, ceiling=False)
# σ = 0.015 is less than 0.08 / 4.5 = 0.0178.
NOISY = calibrated("acceptance_length", 1.92, 2.0, 0.04, 0.015, ceiling=False)
# The logarithm's σ is 50 / 5000 = 0.01; PASS from 4750 × exp(0.020150) = 4846.68.
RATE = calibrated("output_tps", 4750.0, 5000.0, 0.05, 50.0, ceiling=False)
# The logarithm's σ is 0.02; PASS up to 0.23 / exp(0.040300) = 0.220915.
CEILING = calibrated("ttft_p95_s", 0.23, 0.2, 0.15, 0.004, ceiling=True)
EXACT = replace(FLOOR, evidence=Evidence(6, 2, 0.0, 0.0, DATE))
# Assumed noise 0.5 %: PASS from 2 (1 + 1.64485 × 0.005) = 2.016449; FAIL below 2 (1 − 1.95996 × 0.005) = 1.980400.
HAND_FLOOR = Limit("acceptance_length", 2.0, False, "a.yaml:1")
# Assumed noise 4 %: PASS up to 0.2 exp(−1.64485 × 0.04) = 0.187265; FAIL above 0.2 exp(1.95996 × 0.04) = 0.216311.
HAND_CEILING = Limit("ttft_p95_s", 0.2, True, "a.yaml:1")


@pytest.mark.parametrize(
    ("limit", "value", "expected"),
    [
        (FLOOR, 2.5, PASS),
        (FLOOR, 2.0, PASS),
        (FLOOR, 1.94016, PASS),
        (FLOOR, 1.94014, INCONCLUSIVE),
        (FLOOR, 1.92, INCONCLUSIVE),
        (FLOOR, 1.91999, FAIL),
        (FLOOR, 1.0, FAIL),
        (RATE, 4846.7, PASS),
        (RATE, 4846.6, INCONCLUSIVE),
        (RATE, 4750.0, INCONCLUSIVE),
        (RATE, 4749.9, FAIL),
        (CEILING, 0.1, PASS),
        (CEILING, 0.22091, PASS),
        (CEILING, 0.22092, INCONCLUSIVE),
        (CEILING, 0.23, INCONCLUSIVE),
        (CEILING, 0.23001, FAIL),
        (CEILING, 3.0, FAIL),
        (EXACT, 2.1, PASS),
        (EXACT, 1.92, PASS),
        (EXACT, 1.9199999, FAIL),
        (HAND_FLOOR, 2.01645, PASS),
        (HAND_FLOOR, 2.01644, INCONCLUSIVE),
        (HAND_FLOOR, 2.0, INCONCLUSIVE),
        (HAND_FLOOR, 1.98041, INCONCLUSIVE),
        (HAND_FLOOR, 1.98039, FAIL),
        (HAND_CEILING, 0.18726, PASS),
        (HAND_CEILING, 0.18727, INCONCLUSIVE),
        (HAND_CEILING, 0.21631, INCONCLUSIVE),
        (HAND_CEILING, 0.21632, FAIL),
    ],
)
def test_verdict(limit: Limit, value: float, expected: Verdict) -> None:
    assert verdict_of(limit, value) is expected


@pytest.mark.parametrize(("value", "expected"), [(1.9, INCONCLUSIVE), (1.8970, INCONCLUSIVE), (1.8969, FAIL)])
def test_fail_also_needs_to_be_clear_of_the_reference(value: float, expected: Verdict) -> None:
    # 2 − 6.8688 × 0.015 = 1.896968: with so small an α, being under the limit is not enough.
    assert verdict_of(NOISY, value, alpha=0.0005) is expected


def test_beta_moves_pass_and_alpha_moves_fail() -> None:
    assert verdict_of(FLOOR, 1.943, beta=0.05) is PASS
    assert verdict_of(FLOOR, 1.943, beta=0.025) is INCONCLUSIVE
    assert verdict_of(HAND_FLOOR, 1.983, alpha=0.05) is FAIL
    assert verdict_of(HAND_FLOOR, 1.983, alpha=0.025) is INCONCLUSIVE


def test_more_starts_narrow_the_band() -> None:
    # σ² = sd² (1/4 + 1/6), so PASS begins at 1.92 + 2.0150 × 0.01 × √(5/14) = 1.93204.
    one = judge("acceptance_length", 1.935, FLOOR, alpha=0.025, beta=0.05)
    four = judge("acceptance_length", 1.935, FLOOR, alpha=0.025, beta=0.05, starts=4)
    assert (one.verdict, four.verdict) == (INCONCLUSIVE, PASS)
    assert four.sigma == pytest.approx(one.sigma * math.sqrt(5 / 14))


def test_assumed_noise_shrinks_with_starts_but_not_with_repeats() -> None:
    def sigma(starts: int, repeats: int) -> float:
        return judge("acceptance_length", 2.1, HAND_FLOOR, alpha=0.05, beta=0.05, starts=starts, repeats=repeats).sigma

    assert sigma(1, 1) == sigma(1, 9) == pytest.approx(0.005)
    assert sigma(4, 1) == pytest.approx(0.0025)


def test_calibrated_floor_reports_what_it_can_see() -> None:
    result = judge("acceptance_length", 1.95, FLOOR, alpha=0.025, beta=0.05)
    assert result.sigma == pytest.approx(0.005)
    assert result.guard == pytest.approx(0.020150 / 1.92, rel=1e-4)
    assert result.headroom == pytest.approx(0.03 / 1.92)
    # 4 % − 2.0150 × 0.5 % + 0.8416 × 0.5 % and 4 % + 0.8416 × 0.5 %
    assert result.mde_not_passed == pytest.approx(0.034133, abs=1e-6)
    assert result.mde_failed == pytest.approx(0.044208, abs=1e-6)
    assert (result.limit, result.reference, result.margin, result.ceiling) == (1.92, 2.0, 0.04, False)
    assert (result.source, result.evidence) == ("thresholds/a.yaml:14", "6 starts × 1 repeat on 2026-12-01")
    assert result.conditional_reference == (0.7, 0.6)
    assert (result.reason, result.note) == (None, "")


def test_failing_needs_a_larger_drop_when_alpha_is_small() -> None:
    # (6.8688 + 0.8416) × 0.75 % = 5.783 % is more than 4 % + 0.8416 × 0.75 % = 4.631 %.
    assert judge("acceptance_length", 2.0, NOISY, alpha=0.0005, beta=0.05).mde_failed == pytest.approx(
        0.05783, abs=1e-5
    )


def test_ceiling_reports_rises() -> None:
    result = judge("ttft_p95_s", 0.2, CEILING, alpha=0.025, beta=0.05)
    assert result.sigma == pytest.approx(0.02)
    assert result.guard == pytest.approx(1 - math.exp(-0.0403), rel=1e-3)
    assert result.headroom == pytest.approx(0.03 / 0.23)
    # 1.15 × exp(−0.040300 + 0.016832) − 1 and 1.15 × exp(0.016832) − 1
    assert result.mde_not_passed == pytest.approx(0.12332, abs=1e-5)
    assert result.mde_failed == pytest.approx(0.16952, abs=1e-5)


def test_guard_is_where_pass_begins() -> None:
    for limit in (FLOOR, RATE, CEILING, HAND_FLOOR, HAND_CEILING):
        sign = -1 if limit.ceiling else 1
        guard = judge(limit.metric, limit.value, limit, alpha=0.025, beta=0.05).guard
        assert verdict_of(limit, limit.value * (1 + sign * guard * 1.000001)) is PASS
        assert verdict_of(limit, limit.value * (1 + sign * guard * 0.999999)) is INCONCLUSIVE


def test_hand_written_limit_names_its_assumed_noise() -> None:
    result = judge("acceptance_length", 1.5, HAND_FLOOR, alpha=0.025, beta=0.05)
    assert (result.note, result.evidence) == ("assumed noise 0.5 %", "")
    assert (result.reference, result.mde_not_passed, result.mde_failed) == (None, None, None)
    assert result.headroom == pytest.approx(-0.25)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("limit", [FLOOR, CEILING, HAND_FLOOR, EXACT], ids=["floor", "ceiling", "hand", "exact"])
def test_what_was_not_measured_is_invalid(limit: Limit, value: float | None) -> None:
    result = judge(limit.metric, value, limit, alpha=0.025, beta=0.05)
    assert (result.verdict, result.reason) == (INVALID, "not_measured")
    assert math.isnan(result.headroom)


@pytest.mark.parametrize(("limit", "value"), [(FLOOR, -1.0), (CEILING, 0.0), (CEILING, -0.1), (RATE, 0.0)])
def test_impossible_values_are_invalid(limit: Limit, value: float) -> None:
    result = judge(limit.metric, value, limit, alpha=0.025, beta=0.05)
    assert (result.verdict, result.reason) == (INVALID, "impossible_value")


def test_nothing_accepted_is_a_value() -> None:
    assert verdict_of(Limit("acceptance_rate", 0.4, False, "a.yaml:1"), 0.0) is FAIL


@pytest.mark.parametrize(("sigma", "expected"), [(0.01777, PASS), (0.01778, INVALID)])
@pytest.mark.parametrize("value", [2.0])
def test_noise_beyond_a_share_of_the_margin_is_unreachable(sigma: float, value: float, expected: Verdict) -> None:
    # 0.08 / 4.5 = 0.017778
    limit = calibrated("acceptance_length", 1.92, 2.0, 0.04, sigma, ceiling=False)
    assert verdict_of(limit, value) is expected


def test_unreachable_says_so_whatever_the_value() -> None:
    limit = calibrated("acceptance_length", 1.92, 2.0, 0.04, 0.03, ceiling=False)
    for value in (0.5, 1.9, 1.95, 9.0):
        result = judge("acceptance_length", value, limit, alpha=0.025, beta=0.05)
        assert (result.verdict, result.reason) == (INVALID, "unreachable")
        assert result.note == (
            "noise σ 1.5 % is more than the margin 4 % / 4.5; measure more engine starts, or widen the margin"
        )


def test_unreachable_on_the_log_scale() -> None:
    # ln(1.15) / 4.5 = 0.031058, times the reference 0.2
    for sigma, expected in ((0.00621, PASS), (0.006212, INVALID)):
        assert verdict_of(calibrated("ttft_p95_s", 0.23, 0.2, 0.15, sigma, ceiling=True), 0.15) is expected


@pytest.mark.parametrize(
    ("pinned", "measured", "reason"),
    [
        (None, None, None),
        (None, "9f86d081884c", None),
        ("9f86d081", "9f86d081884c", None),
        ("9f86d081", "60303ae22b99", "other_prompts"),
        ("9f86d081", None, "other_prompts"),
        ("9f86d081", "", "other_prompts"),
    ],
)
def test_reference_of_other_prompts_judges_nothing(
    pinned: str | None, measured: str | None, reason: str | None
) -> None:
    evidence = replace(EXACT, evidence=Evidence(6, 2, 0.0, 0.0, DATE, prompts=pinned))
    result = judge("acceptance_length", 2.5, evidence, alpha=0.025, beta=0.05, prompts=measured)
    assert result.reason == reason
    assert result.verdict is (INVALID if reason else PASS)


def test_wrong_metric_and_wrong_rates_are_refused() -> None:
    with pytest.raises(ValueError, match="a limit on acceptance_length cannot judge output_tps"):
        judge("output_tps", 1.0, FLOOR, alpha=0.05, beta=0.05)
    for alpha, beta in ((0.0, 0.05), (0.05, 0.5), (0.6, 0.05)):
        with pytest.raises(ValueError, match=r"error rates below 0\.5"):
            judge("acceptance_length", 1.0, FLOOR, alpha=alpha, beta=beta)


def at_look(value: float, look: int, looks: int, repeats: int = 1) -> GateResult:
    return judge("acceptance_length", value, FLOOR, alpha=0.025, beta=0.05, look=look, looks=looks, repeats=repeats)


def test_a_planned_rerun_costs_some_of_the_first_look() -> None:
    # Pocock's spending of 5 % over two looks: 0.05 ln(1 + 0.859141) = 3.1006 % at the first, where t is 2.3949, so
    # PASS begins at 1.92 + 0.023949. The nominal level of the second is 2.9723 %, and t 2.4291.
    assert [at_look(value, 1, 2).verdict for value in (1.94394, 1.94396)] == [INCONCLUSIVE, PASS]
    assert at_look(1.94394, 1, 1).verdict is PASS
    assert [at_look(value, 2, 2).verdict for value in (1.94428, 1.94430)] == [INCONCLUSIVE, PASS]
    assert (at_look(1.95, 1, 2).looks, at_look(1.95, 2, 2).looks, at_look(1.95, 1, 1).looks) == (1, 2, 1)


def test_a_rerun_needs_no_more_than_its_share_to_fail() -> None:
    # α = 0.05 %, of which the first look has 0.031 %: t is 7.6165, so FAIL below 2 − 0.1143.
    def verdict(value: float, look: int, looks: int) -> Verdict:
        return judge("acceptance_length", value, NOISY, alpha=0.0005, beta=0.05, look=look, looks=looks).verdict

    assert verdict(1.89, 1, 1) is FAIL
    assert verdict(1.89, 1, 2) is INCONCLUSIVE
    assert verdict(1.88, 1, 2) is FAIL


@pytest.mark.parametrize(("look", "looks"), [(0, 1), (2, 1), (3, 2)])
def test_looks_that_were_not_planned_are_refused(look: int, looks: int) -> None:
    with pytest.raises(ValueError, match=f"look {look} is none of {looks}"):
        at_look(1.95, look, looks)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([PASS], PASS),
        ([PASS, INCONCLUSIVE], INCONCLUSIVE),
        ([INCONCLUSIVE, FAIL, PASS], FAIL),
        ([PASS, FAIL, INVALID, INCONCLUSIVE], INVALID),
    ],
)
def test_worst_gate_decides_the_cell(verdicts: list[Verdict], expected: Verdict) -> None:
    gate = judge("acceptance_length", 2.0, FLOOR, alpha=0.025, beta=0.05)
    results: list[GateResult] = [replace(gate, verdict=verdict) for verdict in verdicts]
    assert combine(results) is expected


def test_no_gate_is_no_verdict() -> None:
    with pytest.raises(ValueError, match="no gate results"):
        combine([])


QUALITATIVE = [Cell("qualitative", 8, category=c) for c in CATEGORIES]
OVERALL_CELL = Cell("qualitative", 8, category=OVERALL)


@pytest.mark.parametrize(
    ("cells", "cell", "metrics", "alpha"),
    [
        ([*QUALITATIVE, OVERALL_CELL], OVERALL_CELL, 1, 0.025),
        ([*QUALITATIVE, OVERALL_CELL], QUALITATIVE[0], 1, 0.025 / 11),
        ([*QUALITATIVE, OVERALL_CELL], QUALITATIVE[0], 2, 0.025 / 22),
        (QUALITATIVE, QUALITATIVE[0], 1, 0.05 / 11),
        ([OVERALL_CELL], OVERALL_CELL, 1, 0.05),
        ([*QUALITATIVE, OVERALL_CELL, Cell("qualitative", 1, category=OVERALL)], OVERALL_CELL, 1, 0.0125),
        ([], QUALITATIVE[0], 1, 0.05),
    ],
)
def test_allocation_of_alpha(cells: list[Cell], cell: Cell, metrics: int, alpha: float) -> None:
    found, beta = allocate(Family(alpha=0.05, beta=0.1), cells, cell, metrics=metrics)
    assert found == pytest.approx(alpha)
    assert beta == 0.1

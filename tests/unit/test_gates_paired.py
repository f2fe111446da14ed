"""Paired verdicts worked out by hand, and their error rates.

t is 6.3138 at 95 % and 12.7062 at 97.5 % with one degree of freedom, 2.9200 with two, 2.3534 with three.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_speedbench.gates.paired import Arm, judge_pair, pairs_wanted, prompt_sigma
from pytest_speedbench.gates.verdict import GateResult, Verdict
from pytest_speedbench.measure.runs import prompt_lengths
from pytest_speedbench.measure.student import t_quantile
from pytest_speedbench.report.requests import read_windows

PASS, FAIL, INCONCLUSIVE, INVALID = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.INVALID
NAN = math.nan


def rates(*values: float) -> Arm:
    return Arm([(start, 0, value) for start, value in enumerate(values)])


def of_rates(new: Arm, old: Arm, *, looks: tuple[int, ...] = (), assumed: float | None = None) -> GateResult:
    return judge_pair(
        "output_tps",
        new,
        old,
        margin=0.05,
        alpha=0.025,
        beta=0.05,
        source="old.yaml",
        looks=looks,
        assumed_noise=assumed,
    )


def of_lengths(new: Arm, old: Arm, margin: float = 0.02) -> GateResult:
    return judge_pair("acceptance_length", new, old, margin=margin, alpha=0.025, beta=0.05, source="old.yaml")


def lengths(*values: float, starts: tuple[float, ...] = (), weights: tuple[float, ...] = ()) -> Arm:
    whole = starts or (sum(values) / len(values),)
    return Arm(
        [(start, 0, value) for start, value in enumerate(whole)],
        {f"q{i}": value for i, value in enumerate(values)},
        {f"q{i}": weight for i, weight in enumerate(weights)},
    )


@pytest.mark.parametrize(
    ("logs", "expected"),
    [
        # σ = 0.005, so PASS from ln 0.95 + 6.3138 × 0.005 = −0.019724, FAIL below −12.7062 × 0.005 = −0.063531.
        ((0.005, -0.005), PASS),
        ((-0.0147, -0.0247), PASS),
        ((-0.0148, -0.0248), INCONCLUSIVE),
        ((-0.0585, -0.0685), INCONCLUSIVE),
        ((-0.0586, -0.0686), FAIL),
        # σ = 0.01: 6.3138 × 0.01 is more than the margin.
        ((0.01, -0.01), INCONCLUSIVE),
        # Without spread only the limit counts: ln 0.95 = −0.051293.
        ((-0.0512, -0.0512), PASS),
        ((-0.0514, -0.0514), FAIL),
    ],
)
def test_rates_from_two_pairs(logs: tuple[float, float], expected: Verdict) -> None:
    old = rates(100.0, 110.0)
    new = rates(*(value * math.exp(log) for (_, _, value), log in zip(old.runs, logs, strict=True)))
    assert of_rates(new, old).verdict is expected


def test_what_a_paired_result_says() -> None:
    result = of_rates(rates(100 * math.exp(0.005), 121 * math.exp(-0.005)), rates(100.0, 121.0))
    assert (result.kind, result.looks, result.source, result.margin) == ("paired", 1, "old.yaml", 0.05)
    assert result.reference == pytest.approx(110.0)
    assert result.value == pytest.approx(110.0)
    assert result.limit == pytest.approx(104.5)
    assert result.headroom == pytest.approx(1 / 0.95 - 1)
    assert result.sigma == pytest.approx(0.005)
    assert result.guard == pytest.approx(math.expm1(6.3138 * 0.005), rel=1e-4)
    # −ln 0.95 − (6.3138 − 0.8416) 0.005 = 0.023932; (12.7062 + 0.8416) 0.005 = 0.067739 is more than −ln 0.95 + 0.0042.
    assert result.mde_not_passed == pytest.approx(-math.expm1(-0.023932), abs=1e-5)
    assert result.mde_failed == pytest.approx(-math.expm1(-0.067739), abs=1e-5)
    assert result.evidence == "2 starts, 2 runs of the new engine, 2 starts, 2 runs of the old"


def test_repeats_within_a_start_are_its_mean_and_do_not_count_as_starts() -> None:
    once = of_rates(rates(100.0, 104.0), rates(101.0, 102.0))
    repeated = Arm([(s, r, v * f) for s, _, v in rates(100.0, 104.0).runs for r, f in enumerate((1.1, 1 / 1.1))])
    twice = of_rates(repeated, rates(101.0, 102.0))
    assert once.sigma == pytest.approx(twice.sigma)
    assert once.verdict is twice.verdict


def test_ceilings_are_mirrored() -> None:
    def verdict(rise: float) -> Verdict:
        new = rates(0.2 * (1 + rise), 0.21 * (1 + rise))
        return judge_pair("ttft_p95_s", new, rates(0.2, 0.21), margin=0.15, alpha=0.025, beta=0.05, source="o").verdict

    assert [verdict(rise) for rise in (-0.5, 0.0, 0.149, 0.151, 1.0)] == [PASS, PASS, PASS, FAIL, FAIL]


def test_one_pair_of_starts_decides_no_rate_unless_noise_is_stated() -> None:
    result = of_rates(rates(100.0), rates(100.0))
    assert (result.verdict, result.reason) == (INCONCLUSIVE, "too_few_starts")
    assert "--speedbench-starts 2" in result.note
    stated = of_rates(rates(100.0), rates(100.0), assumed=0.01)
    # 1.6449 × 0.01 × √2 = 0.02326 is less than the margin.
    assert (stated.verdict, stated.note) == (PASS, "assumed noise 1 % between starts")
    assert stated.sigma == pytest.approx(0.01 * math.sqrt(2))


def test_a_start_of_one_arm_only_is_left_out_of_pairs() -> None:
    full = of_rates(rates(100.0, 101.0, 50.0), rates(100.0, 102.0))
    assert full.value == pytest.approx(math.sqrt(100 * 101))
    assert of_rates(rates(100.0, 101.0), rates(100.0)).reason == "too_few_starts"


def test_looks_widen_the_band_and_are_counted() -> None:
    new, old = rates(100.0, 101.0, 102.0), rates(100.5, 101.0, 101.5)
    alone, first = of_rates(new, old), of_rates(new, old, looks=(3, 5, 8))
    assert first.guard > alone.guard
    assert (alone.looks, first.looks) == (1, 1)
    five = of_rates(rates(*[100.0] * 5), rates(*[100.0] * 5), looks=(3, 5, 8))
    assert five.looks == 2
    # It has cumulative(5/8) − cumulative(3/8) = 0.0364722 − 0.0248674 of 5 % to spend, with four degrees of freedom.
    spread = of_rates(rates(100.0, 101.0, 102.0, 99.0, 98.0), rates(*[100.0] * 5), looks=(3, 5, 8))
    assert spread.guard == pytest.approx(math.expm1(t_quantile(1 - 0.0116047, 4) * spread.sigma), rel=1e-4)
    # Cut short at 4 pairs: a look of its own, the second after that at 3.
    assert of_rates(rates(*[100.0] * 4), rates(*[100.0] * 4), looks=(3, 5, 8)).looks == 2
    assert [pairs_wanted((3, 5, 8), done) for done in (0, 3, 4, 5, 8)] == [3, 5, 5, 8, None]


def test_lengths_from_one_pair_by_their_prompts() -> None:
    # Differences ±0.02: sd 0.023094, σ 0.011547; PASS from 1.96 + 2.3534 × 0.011547 = 1.987175.
    old = lengths(2.0, 2.0, 2.0, 2.0)
    result = of_lengths(lengths(2.02, 1.98, 2.02, 1.98), old)
    assert result.verdict is PASS
    assert result.sigma == pytest.approx(0.0057735, rel=1e-4)
    assert result.guard == pytest.approx(0.027174 / 1.96, rel=1e-3)
    assert result.note.startswith("one engine start each")
    assert of_lengths(lengths(2.0072, 1.9672, 2.0072, 1.9672), old).verdict is PASS
    assert of_lengths(lengths(2.0071, 1.9671, 2.0071, 1.9671), old).verdict is INCONCLUSIVE
    # t at 97.5 % is 3.1824: FAIL below both 1.96 and 2 − 3.1824 × 0.011547 = 1.963252.
    assert of_lengths(lengths(1.9801, 1.9401, 1.9801, 1.9401), old).verdict is INCONCLUSIVE
    assert of_lengths(lengths(1.9799, 1.9399, 1.9799, 1.9399), old).verdict is FAIL


def test_starts_that_differ_more_than_prompts_widen_the_band() -> None:
    quiet = [2.0, 2.02] * 40
    agreeing = of_lengths(lengths(*quiet, starts=(2.01, 2.01)), lengths(*quiet, starts=(2.01, 2.01)))
    assert (agreeing.verdict, agreeing.note) == (PASS, "")
    # S² = 0.0002 in each arm, σ² = 0.0002 (½ + ½): 2.9200 × 0.014142 = 0.041295 is more than 2 % of 2.01.
    apart = of_lengths(lengths(*quiet, starts=(2.0, 2.02)), lengths(*quiet, starts=(2.0, 2.02)))
    assert apart.verdict is INCONCLUSIVE
    assert apart.sigma == pytest.approx(0.014142 / 2.01, rel=1e-4)


def test_a_failure_needs_the_wider_band_too() -> None:
    # t at 97.5 % is 4.3027: 4.3027 × 0.014142 = 0.060849, so a loss of 0.05 may be that of starts, one of 0.07 not.
    quiet = lengths(*[2.0, 2.02] * 40, starts=(2.0, 2.02))
    for loss, wanted in ((0.05, INCONCLUSIVE), (0.07, FAIL)):
        new = lengths(*[2.0 - loss, 2.02 - loss] * 40, starts=(2.0 - loss, 2.02 - loss))
        assert of_lengths(new, quiet).verdict is wanted


def test_repeats_of_one_start_widen_it_too() -> None:
    arm = lengths(*[2.0, 2.02] * 40)
    noisy = replace(arm, runs=[(0, 0, 2.0), (0, 1, 2.02)])
    assert of_lengths(noisy, noisy).sigma == pytest.approx(0.014142 / 2.01, rel=1e-4)


def test_weights_make_the_ratio_estimator() -> None:
    # R = Σ w v / Σ w = (3 × 2 + 1 × 4) / 4 = 2.5 with influences 3 (2 − 2.5) / 2 = −0.75 and 1 (4 − 2.5) / 2 = 0.75,
    # against 0 in the other arm: σ = sd / √2 = 1.06066 / √2.
    new, old = lengths(2.0, 4.0, weights=(3.0, 1.0)), lengths(2.5, 2.5, weights=(1.0, 1.0))
    assert prompt_sigma(new, old) == pytest.approx(0.75)


def test_neighbours_that_are_alike_widen_the_band() -> None:
    # Products of neighbours a², −a², a² over 4 a²: ρ = ¼, so √(1.25 / 0.75) times the error of independent prompts.
    old = lengths(2.0, 2.0, 2.0, 2.0)
    apart, alike = lengths(2.02, 1.98, 2.02, 1.98), lengths(2.02, 2.02, 1.98, 1.98)
    assert prompt_sigma(alike, old) == pytest.approx(prompt_sigma(apart, old) * math.sqrt(1.25 / 0.75))
    # It is the send order of the new engine that counts, not that of the mapping of the old one.
    turned = replace(old, prompts={name: old.prompts[name] for name in sorted(old.prompts, reverse=True)})
    assert prompt_sigma(alike, turned) == prompt_sigma(alike, old)


@pytest.mark.parametrize(
    ("new", "old", "reason"),
    [
        (Arm([]), rates(1.0, 1.0), "not_measured"),
        (rates(NAN, 1.0), rates(1.0, 1.0), "not_measured"),
        (rates(0.0, 1.0), rates(1.0, 1.0), "impossible_value"),
        (rates(1.0, 1.0), rates(-1.0, 1.0), "impossible_value"),
    ],
)
def test_what_cannot_be_compared_is_invalid(new: Arm, old: Arm, reason: str) -> None:
    result = of_rates(new, old)
    assert (result.verdict, result.reason) == (INVALID, reason)


def test_other_prompts_are_invalid_and_one_prompt_decides_nothing() -> None:
    result = of_lengths(lengths(2.0, 2.0), lengths(2.0, 2.0, 2.0))
    assert (result.verdict, result.reason) == (INVALID, "other_prompts")
    assert result.note == "1 prompts were measured with one engine only: q2"
    assert of_lengths(lengths(2.0), lengths(2.0)).reason == "too_few_prompts"


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        # Starts: squares 2 × 0.01² + 2 × 0.01² over 2 degrees of freedom, so σ = 0.0141 × √(1/2 + 1/2) = 0.0141;
        # PASS from 1.96 + 2.9200 × 0.0141 = 2.0013, FAIL below 2 − 4.3027 × 0.0141 = 1.9392.
        ((2.012, 1.992), (2.01, 1.99), PASS),
        ((2.010, 1.990), (2.01, 1.99), INCONCLUSIVE),
        ((1.950, 1.930), (2.01, 1.99), INCONCLUSIVE),
        ((1.949, 1.929), (2.01, 1.99), FAIL),
        # Starts that agree exactly: σ = 0.005 × 2 × √(2/2) = 0.01; PASS from 1.96 + 1.6449 × 0.01 = 1.97645,
        # FAIL below the limit, since 2 − 1.9600 × 0.01 is above it.
        ((1.977, 1.977), (2.0, 2.0), PASS),
        ((1.976, 1.976), (2.0, 2.0), INCONCLUSIVE),
        ((1.961, 1.961), (2.0, 2.0), INCONCLUSIVE),
        ((1.959, 1.959), (2.0, 2.0), FAIL),
    ],
)
def test_whole_cells_alone_decide_from_two_starts_on(
    new: tuple[float, ...], old: tuple[float, ...], expected: Verdict
) -> None:
    assert of_lengths(rates(*new), rates(*old)).verdict is expected


def test_arms_that_vary_unlike_have_fewer_degrees_of_freedom() -> None:
    # One repeats exactly: σ = √(2 × 0.01² / 2) = 0.01, all of it from one degree of freedom (6.3138).
    result = of_lengths(rates(2.0, 2.0), rates(2.01, 1.99))
    assert result.sigma == pytest.approx(0.005)
    assert result.guard == pytest.approx(6.3138 * 0.01 / 1.96, rel=1e-4)
    assert result.note == "whole cells, since steps per request are not known for every start"
    same = of_lengths(rates(2.0, 2.0), rates(2.0, 2.0))
    assert same.guard == pytest.approx(1.6449 * 0.01 / 1.96, rel=1e-4)
    assert same.note.endswith("; assumed noise 0.5 % between starts")


def test_whole_cells_of_one_start_decide_nothing() -> None:
    for new, old in (((1.0,), (2.0,)), ((2.0, 2.0), (2.0,))):
        result = of_lengths(rates(*new), rates(*old))
        assert (result.verdict, result.reason) == (INCONCLUSIVE, "too_few_starts")
        assert "--speedbench-starts 2" in result.note


def test_nothing_accepted_any_more_is_a_failure() -> None:
    new, old = lengths(*[0.0] * 20), lengths(*[0.4] * 20)
    assert judge_pair("acceptance_rate", new, old, margin=0.04, alpha=0.05, beta=0.05, source="o").verdict is FAIL


@given(st.lists(st.floats(1.0, 5.0), min_size=2, max_size=40), st.floats(0.9, 1.1))
@settings(deadline=None)
def test_without_noise_the_verdict_is_the_comparison(values: list[float], factor: float) -> None:
    same = of_lengths(lengths(*values), lengths(*values))
    assert (same.verdict, same.sigma) == (PASS, 0.0)
    scaled = of_lengths(lengths(*[value * factor for value in values]), lengths(*values))
    if scaled.verdict is PASS:
        assert scaled.value >= scaled.limit
    if scaled.verdict is FAIL:
        assert scaled.value < scaled.limit


def test_wrong_rates_are_refused() -> None:
    with pytest.raises(ValueError, match="margin"):
        of_lengths(lengths(2.0, 2.0), lengths(2.0, 2.0), margin=1.0)


@pytest.mark.parametrize(("drop", "wanted"), [(0.0, PASS), (0.04, FAIL)])
def test_each_single_pair_of_runs_decides_a_drop_of_two_margins(drop: float, wanted: Verdict) -> None:
    # 256 prompts of 512 tokens at 2.5 tokens per step, whose sd is about 1.2: 205 steps, so sd 0.084 per prompt.
    random = np.random.default_rng(11)
    for _ in range(200):
        new, old = (lengths(*random.normal(mean, 0.084, 256).tolist()) for mean in (2.5 * (1 - drop), 2.5))
        assert of_lengths(new, old).verdict is wanted


KNOWN = (
    Path(__file__).parents[2]
    / "examples/known-truth/artifacts/vllm-0.24.0-synthetic-2.5"
    / "speedbench-requests.jsonl.gz"
)


def test_two_recorded_runs_of_one_engine_pass_and_a_drop_of_four_percent_fails() -> None:
    runs = [prompt_lengths(window.turns) for _, window in read_windows(KNOWN)]
    one, other = (run for run in runs if len(run) == 256)
    new = Arm([(0, 0, fmean(other.values()))], other)
    assert of_lengths(new, Arm([(0, 0, fmean(one.values()))], one)).verdict is PASS
    worse = {name: 0.96 * value for name, value in other.items()}
    assert of_lengths(Arm([(0, 0, fmean(worse.values()))], worse), new).verdict is FAIL
    assert (
        of_lengths(Arm([(0, 0, fmean(worse.values()))], worse), Arm([(0, 0, fmean(one.values()))], one)).verdict is FAIL
    )


@pytest.mark.parametrize("sd_start", [0.0, 0.002, 0.01])
def test_starts_that_shift_do_not_break_the_rates(sd_start: float) -> None:
    random = np.random.default_rng(12)
    trials, passed, failed = 3000, 0, 0
    noise = random.normal(0, 0.03, (trials, 2, 2, 60))
    shift = random.normal(0, sd_start, (trials, 2, 2))
    for trial in range(trials):
        arms = []
        for arm, mean in enumerate((1.0, 1.0)):
            runs = mean + noise[trial, arm] + shift[trial, arm][:, None]
            arms.append(lengths(*runs.mean(axis=0).tolist(), starts=tuple(runs.mean(axis=1).tolist())))
        at_reference = of_lengths(arms[0], arms[1])
        moved = replace(
            arms[0],
            runs=[(s, r, v - 0.02) for s, r, v in arms[0].runs],
            prompts={name: value - 0.02 for name, value in arms[0].prompts.items()},
        )
        failed += at_reference.verdict is FAIL
        passed += of_lengths(moved, arms[1]).verdict is PASS
    # Three standard errors of 3000 draws are 1.2 % at 5 %.
    assert passed / trials <= 0.05 + 0.012
    assert failed / trials <= 0.025 + 0.009

"""Bootstrap intervals and the noise of whole runs."""

from __future__ import annotations

import math
import random
import statistics
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.measure import statistics as stats
from pytest_speedbench.measure.statistics import RunNoise, bootstrap_mean, bootstrap_ratio, run_sigma, seed_of

# Seeds


def test_seed_is_known_and_the_same_in_another_process() -> None:
    assert seed_of("vllm-qualitative-coding", "acceptance_length") == 0xDF45BF5EE6604C53
    code = "from pytest_speedbench.measure.statistics import seed_of; print(seed_of('a', 'b'))"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert int(printed) == seed_of("a", "b")


def test_seed_keeps_its_parts_apart() -> None:
    assert len({seed_of("a", "bc"), seed_of("ab", "c"), seed_of("abc"), seed_of("a", "bc", "")}) == 4


# Bootstrap


def test_mean_interval_of_a_large_sample_is_that_of_the_normal() -> None:
    chance = random.Random(1)
    values = [chance.gauss(3, 0.5) for _ in range(400)]
    interval = bootstrap_mean(values, seed=1)
    assert interval is not None
    half = 1.96 * statistics.stdev(values) / math.sqrt(len(values))
    assert interval[0] == pytest.approx(statistics.mean(values) - half, abs=0.05 * half)
    assert interval[1] == pytest.approx(statistics.mean(values) + half, abs=0.05 * half)


def test_two_values_give_the_exact_percentiles() -> None:
    # Of all resamples a quarter are (0, 0), half have mean 1, a quarter are (2, 2).
    assert bootstrap_mean([0, 2], seed=3) == (0, 2)
    assert bootstrap_mean([0, 2], seed=3, confidence=0.4) == (1, 1)


def test_every_conversation_is_drawn_equally_often() -> None:
    # The mean of the resampled mean is the mean; its variance is the sample's over n.
    values = np.arange(10.0)
    means = stats._resampled_ratios(values, np.ones(10), seed=5, resamples=200_000)
    assert means.mean() == pytest.approx(4.5, abs=4 * math.sqrt(8.25 / 10 / 200_000))
    assert means.var() == pytest.approx(8.25 / 10, rel=0.02)


def test_ratio_is_formed_anew_in_every_resample() -> None:
    # A mean of ratios would span 1 to 3; tokens over steps is nearly always the long one's.
    interval = bootstrap_ratio([3, 1000], [1, 1000], seed=3, confidence=0.4)
    assert interval == (1003 / 1001, 1003 / 1001)


def test_resamples_without_a_denominator_do_not_count() -> None:
    assert bootstrap_ratio([0, 6], [0, 8], seed=1) == (0.75, 0.75)
    assert bootstrap_ratio([0, 0], [0, 0], seed=1) is None


@pytest.mark.parametrize("values", [[], [2.5]])
def test_fewer_than_two_conversations_have_no_interval(values: list[float]) -> None:
    assert bootstrap_mean(values, seed=1) is None


def test_interval_is_pinned_for_a_seed() -> None:
    # The stream of raw bits is stable across numpy versions and platforms, so these must never move.
    values = [1.0, 1.25, 1.5, 2.0, 2.25, 3.5, 3.75, 4.0]
    assert bootstrap_mean(values, seed=7) == (1.65625, 3.15625)


def test_memory_is_bounded_without_changing_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [float(i % 7) for i in range(50)]
    whole = bootstrap_mean(values, seed=9)
    monkeypatch.setattr(stats, "_DRAWS_AT_ONCE", 333)
    assert bootstrap_mean(values, seed=9) == whole
    monkeypatch.setattr(stats, "_DRAWS_AT_ONCE", 1)
    assert bootstrap_mean(values, seed=9) == whole


def test_intervals_cover_about_as_often_as_they_say() -> None:
    chance = random.Random(2)
    hits = 0
    for seed in range(400):
        interval = bootstrap_mean([chance.expovariate(1) + 1 for _ in range(80)], seed=seed, resamples=500)
        assert interval is not None
        hits += interval[0] <= 2 <= interval[1]
    assert 0.90 <= hits / 400 <= 0.98


@given(st.lists(st.floats(1, 6), min_size=2, max_size=40), st.integers(0, 2**64 - 1))
def test_interval_is_deterministic_and_inside_the_values(values: list[float], seed: int) -> None:
    interval = bootstrap_mean(values, seed=seed, resamples=200)
    assert interval == bootstrap_mean(values, seed=seed, resamples=200)
    assert interval is not None
    low, high = interval
    assert min(values) - 1e-12 <= low <= high <= max(values) + 1e-12


@given(st.lists(st.floats(1, 6), min_size=8, max_size=40))
def test_interval_holds_the_mean(values: list[float]) -> None:
    interval = bootstrap_mean(values, seed=0, resamples=500, confidence=0.999)
    assert interval is not None
    assert interval[0] - 1e-12 <= statistics.fmean(values) <= interval[1] + 1e-12


@pytest.mark.parametrize(
    ("numerators", "denominators", "options"),
    [
        ([1, 2], [1], {}),
        ([1, math.nan], [1, 1], {}),
        ([1, 2], [1, math.inf], {}),
        ([1, 2], [1, 1], {"resamples": 0}),
        ([1, 2], [1, 1], {"confidence": 1}),
        ([1, 2], [1, 1], {"confidence": 0}),
    ],
)
def test_bootstrap_refuses_what_has_no_answer(
    numerators: list[float], denominators: list[float], options: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match=r"numerators|finite|resamples"):
        bootstrap_ratio(numerators, denominators, seed=1, **options)


# Noise of runs


def test_sigma_by_hand() -> None:
    noise = run_sigma(0.003, 0.002, starts=1, repeats=2, cal_starts=6, cal_repeats=2)
    # 0.003² (1 + 1/6) + 0.002² (1/2 + 1/12)
    assert noise.sigma == pytest.approx(math.sqrt(9e-6 * 7 / 6 + 4e-6 * 7 / 12))
    # With as many repeats as at calibration the spread of the starts' means says it all.
    assert noise.df == pytest.approx(5)


def test_degrees_of_freedom_by_hand() -> None:
    noise = run_sigma(3, 4, starts=2, repeats=1, cal_starts=4, cal_repeats=2)
    between, within = 1 / 2 + 1 / 4, 1 / 2 + 1 / 8
    assert noise.sigma**2 == pytest.approx(between * 9 + within * 16)
    # MS_b = 2·9 + 16 = 34 weighs 0.375 with 3 degrees of freedom, MS_w = 16 weighs 0.25 with 4.
    assert pytest.approx(noise.sigma**2) == 0.375 * 34 + 0.25 * 16
    assert noise.df == pytest.approx((0.375 * 34 + 0.25 * 16) ** 2 / ((0.375 * 34) ** 2 / 3 + (0.25 * 16) ** 2 / 4))


def test_single_repeats_leave_everything_to_the_starts() -> None:
    noise = run_sigma(0.01, 0, starts=1, repeats=1, cal_starts=5, cal_repeats=1)
    assert noise.sigma == pytest.approx(0.01 * math.sqrt(6 / 5))
    assert noise.df == pytest.approx(4)


def test_repeats_never_shrink_what_starts_vary() -> None:
    few = run_sigma(0.01, 0.001, starts=1, repeats=1, cal_starts=6, cal_repeats=2)
    many = run_sigma(0.01, 0.001, starts=1, repeats=1000, cal_starts=6, cal_repeats=2)
    restarted = run_sigma(0.01, 0.001, starts=4, repeats=1, cal_starts=6, cal_repeats=2)
    assert many.sigma == pytest.approx(few.sigma, rel=0.01)
    assert restarted.sigma < 0.7 * few.sigma


def test_no_noise_is_known_exactly() -> None:
    assert run_sigma(0, 0, starts=1, repeats=1, cal_starts=3, cal_repeats=2) == RunNoise(0.0, math.inf)


def test_tiny_noise_does_not_underflow() -> None:
    tiny = run_sigma(3e-150, 2e-150, starts=1, repeats=1, cal_starts=6, cal_repeats=2)
    assert tiny.df == pytest.approx(run_sigma(3, 2, starts=1, repeats=1, cal_starts=6, cal_repeats=2).df)


@given(
    st.floats(0, 1, allow_subnormal=False),
    st.floats(0, 1, allow_subnormal=False),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(2, 12),
    st.integers(2, 6),
)
def test_degrees_of_freedom_stay_between_the_starts_and_all_runs(
    sd_start: float, sd_repeat: float, starts: int, repeats: int, cal_starts: int, cal_repeats: int
) -> None:
    noise = run_sigma(
        sd_start, sd_repeat, starts=starts, repeats=repeats, cal_starts=cal_starts, cal_repeats=cal_repeats
    )
    if noise.sigma > 0:
        assert cal_starts - 1 <= noise.df <= (cal_starts * cal_repeats - 1) * (1 + 1e-12)
    else:
        assert noise.df == math.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cal_starts": 1}, "needs at least 2"),
        ({"cal_repeats": 1}, "no sd_repeat"),
        ({"starts": 0}, "at least 1"),
        ({"repeats": 0}, "at least 1"),
        ({"sd_start": -1.0}, "not negative"),
        ({"sd_repeat": math.nan}, "finite"),
    ],
)
def test_sigma_refuses_evidence_that_cannot_be(change: dict[str, float], message: str) -> None:
    evidence = {"sd_start": 0.1, "sd_repeat": 0.1, "starts": 1, "repeats": 1, "cal_starts": 3, "cal_repeats": 2}
    with pytest.raises(ValueError, match=message):
        run_sigma(**{**evidence, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sd_start", "starts", "repeats", "cal_starts", "cal_repeats"),
    [(1.0, 1, 4, 3, 4), (1.0, 1, 2, 6, 2), (0.0, 1, 1, 6, 2), (1.0, 2, 2, 4, 2)],
)
def test_a_run_at_the_limit_passes_no_more_often_than_promised(
    sd_start: float, starts: int, repeats: int, cal_starts: int, cal_repeats: int
) -> None:
    """Calibrate, run an engine that sits on the limit, and count how often the guard lets it pass."""
    chance = np.random.default_rng(11)
    beta, trials, passed = 0.05, 4000, 0
    for _ in range(trials):
        level = sd_start * chance.standard_normal((cal_starts, 1))
        calibration = level + chance.standard_normal((cal_starts, cal_repeats))
        means = calibration.mean(axis=1)
        within = calibration.var(axis=1, ddof=1).mean()
        between = max(0.0, means.var(ddof=1) - within / cal_repeats)
        noise = run_sigma(
            math.sqrt(between),
            math.sqrt(within),
            starts=starts,
            repeats=repeats,
            cal_starts=cal_starts,
            cal_repeats=cal_repeats,
        )
        run = sd_start * chance.standard_normal((starts, 1)) + chance.standard_normal((starts, repeats))
        passed += run.mean() - means.mean() >= stats.t_quantile(1 - beta, noise.df) * noise.sigma
    assert passed / trials <= beta + 3 * math.sqrt(beta * (1 - beta) / trials)

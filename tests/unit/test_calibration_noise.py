"""The split of variance against values worked out by hand, and what must hold of any table."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.calibration.noise import two_levels


def test_hand_computed() -> None:
    # Means 11, 13, 15, mean 13: MS_b = 2 (4 + 0 + 4) / 2 = 8. Each value is 1 from its mean: MS_w = 6 / 3 = 2.
    spread = two_levels([(10, 12), (12, 14), (14, 16)])
    assert (spread.mean, spread.starts, spread.repeats) == (13.0, 3, 2)
    assert spread.sd_start == pytest.approx(math.sqrt(3.0))
    assert spread.sd_repeat == pytest.approx(math.sqrt(2.0))
    assert (spread.lowest, spread.highest) == (10, 16)


def test_three_repeats() -> None:
    # Means 2, 5: MS_b = 3 (1.5² + 1.5²) / 1 = 13.5; MS_w = (1 + 0 + 1 + 1 + 0 + 1) / 4 = 1; σ_b² = 12.5 / 3.
    spread = two_levels([(1, 2, 3), (4, 5, 6)])
    assert spread.sd_start == pytest.approx(math.sqrt(12.5 / 3))
    assert spread.sd_repeat == pytest.approx(1.0)


def test_less_between_starts_than_repeats_explain_is_nothing() -> None:
    # Equal means, so MS_b = 0 < MS_w = 2 and the estimate of σ_b² is −1.
    spread = two_levels([(9, 11), (9, 11), (9, 11)])
    assert spread.sd_start == 0.0
    assert spread.sd_repeat == pytest.approx(math.sqrt(2.0))


def test_single_repeats_have_all_their_spread_between_starts() -> None:
    spread = two_levels([(1.0,), (2.0,), (4.0,)])
    assert spread.sd_start == pytest.approx(statistics.stdev([1, 2, 4]))
    assert spread.sd_repeat == 0.0


def test_log_scale() -> None:
    # Logarithms 0, 1, 2 in units of ln 2: mean 1, standard deviation 1. Geometric mean 2, sd ln 2 of it.
    spread = two_levels([(1.0,), (2.0,), (4.0,)], log=True)
    assert spread.mean == pytest.approx(2.0)
    assert spread.sd_start == pytest.approx(2.0 * math.log(2))


@pytest.mark.parametrize(
    ("table", "log"),
    [
        ([], False),
        ([(1.0, 2.0)], False),
        ([(1.0,), ()], False),
        ([(), ()], False),
        ([(1.0, 2.0), (1.0,)], False),
        ([(1.0,), (math.nan,)], False),
        ([(1.0,), (math.inf,)], False),
        ([(1.0,), (0.0,)], True),
        ([(1.0,), (-1.0,)], True),
    ],
)
def test_tables_that_cannot_be(table: list[tuple[float, ...]], log: bool) -> None:
    with pytest.raises(ValueError, match=r"need at least two starts|values must be finite"):
        two_levels(table, log=log)


tables = st.integers(1, 4).flatmap(
    lambda repeats: st.lists(st.lists(st.floats(0.5, 100), min_size=repeats, max_size=repeats), min_size=2, max_size=8)
)


@given(tables)
def test_the_parts_add_up_to_what_starts_show(table: list[list[float]]) -> None:
    spread = two_levels(table)
    means = [statistics.fmean(row) for row in table]
    total = spread.sd_start**2 + spread.sd_repeat**2 / spread.repeats
    # Var(mean of a start) = σ_b² + σ_w² / r, unless the estimate of σ_b² was negative.
    if spread.sd_start > 0:
        assert total == pytest.approx(statistics.variance(means), rel=1e-6, abs=1e-9)
    else:
        assert total >= statistics.variance(means) * (1 - 1e-6) - 1e-9


def test_sums_in_another_order_are_no_noise() -> None:
    value = 1.9443
    spread = two_levels([[value, value], [value, value * (1 + 4e-16)], [value, value]])
    assert (spread.sd_start, spread.sd_repeat) == (0.0, 0.0)
    assert two_levels([[value, value], [value, value * (1 + 1e-6)]]).sd_repeat > 0


@given(tables, st.floats(0.1, 10))
def test_a_change_of_unit_changes_the_unit_only(table: list[list[float]], factor: float) -> None:
    for log in (False, True):
        one, other = two_levels(table, log=log), two_levels([[factor * v for v in row] for row in table], log=log)
        for name in ("mean", "sd_start", "sd_repeat"):
            assert getattr(other, name) == pytest.approx(factor * getattr(one, name), rel=1e-6, abs=1e-6)


@given(tables)
def test_the_order_of_starts_and_repeats_does_not_matter(table: list[list[float]]) -> None:
    one, other = two_levels(table), two_levels([row[::-1] for row in reversed(table)])
    assert (one.mean, one.sd_start, one.sd_repeat) == pytest.approx(
        (other.mean, other.sd_start, other.sd_repeat), rel=1e-6, abs=1e-5
    )

"""Quantiles of Student's t against closed forms, printed tables and another implementation."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.measure.student import t_quantile

# scipy 1.17.1: scipy.stats.t.ppf(p, df)
SCIPY = [
    (0.5000001, 2.7, 2.74470539388769e-07),
    (0.55, 7.18, 0.13017524801091385),
    (0.75, 1.5, 0.8725946625415716),
    (0.8, 29.3, 0.8540614824823897),
    (0.9, 0.5, 10.27032441023451),
    (0.95, 2.7, 2.4638889362708496),
    (0.95, 7.18, 1.887457150238181),
    (0.95, 29.3, 1.6985533811280282),
    (0.95, 999.5, 1.646379580973917),
    (0.95, 10000.0, 1.645006018069243),
    (0.95, 12345.6, 1.6449770623609463),
    (0.975, 1.5, 6.016663104427929),
    (0.975, 120, 1.9799304050824402),
    (0.975, 1000000.0, 1.959966356814107),
    (0.99, 5, 3.3649299989072174),
    (0.995, 0.5, 4113.964588804174),
    (0.995, 7.18, 3.4697984650371336),
    (0.999, 2.7, 12.06032454310242),
    (0.999999, 10, 9.751995490909856),
    (0.999999, 12345.6, 4.755696455659822),
    (0.9999999999, 3, 2225.7692232960744),
    (0.9999999999, 10000.0, 6.3679413387372295),
    (1e-06, 0.5, -102849115631.63399),
    (1e-06, 999.5, -4.781622792514474),
]


def near(value: float) -> object:
    return pytest.approx(value, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("p", "df", "expected"), SCIPY)
def test_against_scipy(p: float, df: float, expected: float) -> None:
    assert t_quantile(p, df) == near(expected)


@pytest.mark.parametrize(
    ("df", "row"),
    [
        (1, "3.078 6.314 12.706 31.821 63.657"),
        (2, "1.886 2.920 4.303 6.965 9.925"),
        (5, "1.476 2.015 2.571 3.365 4.032"),
        (10, "1.372 1.812 2.228 2.764 3.169"),
        (30, "1.310 1.697 2.042 2.457 2.750"),
        (120, "1.289 1.658 1.980 2.358 2.617"),
        (math.inf, "1.282 1.645 1.960 2.326 2.576"),
    ],
)
def test_against_the_table_in_every_textbook(df: float, row: str) -> None:
    assert " ".join(f"{t_quantile(p, df):.3f}" for p in (0.9, 0.95, 0.975, 0.99, 0.995)) == row


@pytest.mark.parametrize("p", [0.501, 0.6, 0.9, 0.975, 0.9999, 1 - 2**-40, 0.01])
def test_closed_forms(p: float) -> None:
    # 1 degree of freedom is Cauchy's distribution, 2 have an algebraic quantile.
    tail = 1 - p
    assert t_quantile(p, 1) == near(1 / math.tan(math.pi * tail))
    assert t_quantile(p, 2) == near((p - tail) / math.sqrt(2 * p * tail))
    assert t_quantile(p, math.inf) == near(NormalDist().inv_cdf(p))


@pytest.mark.parametrize("p", [0.3, 0.05, 1e-3, 1e-9, 1e-20, 1e-40])
def test_both_methods_agree_where_they_meet(p: float) -> None:
    below, above = t_quantile(p, 1e4 * (1 - 1e-12)), t_quantile(p, 1e4)
    # Tighter than promised, so that every term of the series matters for one of these.
    assert below == pytest.approx(above, rel=3e-11 if p < 0.01 else 1e-9)


@given(st.floats(1e-9, 0.4999), st.floats(0.3, 1e6))
def test_symmetric_and_rising_in_p(p: float, df: float) -> None:
    low = t_quantile(p, df)
    assert low < 0
    assert t_quantile(1 - p, df) == pytest.approx(-low, rel=1e-6)
    assert t_quantile(p * 0.9, df) < low


@given(st.floats(0.51, 0.9999), st.floats(0.5, 1e6))
def test_fewer_degrees_of_freedom_are_never_nearer_to_the_centre(p: float, df: float) -> None:
    assert t_quantile(p, df) >= t_quantile(p, df * 1.01) >= t_quantile(p, math.inf)


def test_the_median_is_zero() -> None:
    assert t_quantile(0.5, 3.3) == 0


def test_beyond_floating_point_is_infinite() -> None:
    assert t_quantile(1e-300, 0.1) == -math.inf


@pytest.mark.parametrize("p", [0.0, 1.0, -0.1, math.nan])
def test_refuses_what_is_no_probability(p: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        t_quantile(p, 5)


@pytest.mark.parametrize("df", [0.0, -1.0, math.nan])
def test_refuses_impossible_degrees_of_freedom(df: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        t_quantile(0.95, df)

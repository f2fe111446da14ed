"""Boundaries against published tables, and what they promise."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_speedbench.gates.spending import CLOSEST, OBRIEN_FLEMING, POCOCK, boundaries, cumulative, increments, levels


def even(looks: int) -> tuple[float, ...]:
    return tuple(k / looks for k in range(1, looks + 1))


@pytest.mark.parametrize(
    ("shape", "published"),
    [
        # One-sided 0.025, evenly spaced: the values that Lan-DeMets programs (ldBounds, gsDesign) print.
        (OBRIEN_FLEMING, (1.9600,)),
        (OBRIEN_FLEMING, (2.9626, 1.9686)),
        (OBRIEN_FLEMING, (3.7103, 2.5114, 1.9930)),
        (OBRIEN_FLEMING, (4.3326, 2.9631, 2.3590, 2.0141)),
        (OBRIEN_FLEMING, (4.8769, 3.3570, 2.6803, 2.2898, 2.0310)),
        (POCOCK, (2.1570, 2.2010)),
        (POCOCK, (2.4380, 2.4268, 2.4102, 2.3966, 2.3860)),
    ],
)
def test_published_boundaries(shape: str, published: tuple[float, ...]) -> None:
    assert boundaries(0.025, even(len(published)), shape) == pytest.approx(published, abs=1e-4)


def test_spent_by_hand() -> None:
    # 2 − 2 Φ(1.959964 / √½) = 2 − 2 Φ(2.771808) and 0.05 ln(1 + 1.718282 / 2)
    assert cumulative(0.05, 0.5) == pytest.approx(0.0055746, abs=1e-7)
    assert cumulative(0.05, 0.5, POCOCK) == pytest.approx(0.0310057, abs=1e-7)
    for shape in (OBRIEN_FLEMING, POCOCK):
        assert cumulative(0.05, 1.0, shape) == 0.05


def test_a_single_look_spends_all() -> None:
    assert levels(0.05, (1.0,)) == pytest.approx((0.05,))
    assert boundaries(0.0023, (1.0,)) == pytest.approx((NormalDist().inv_cdf(1 - 0.0023),))


@st.composite
def schedules(draw: st.DrawFn) -> tuple[float, ...]:
    steps = draw(st.lists(st.floats(0.05, 1.0), min_size=1, max_size=5))
    ends = list(itertools.accumulate(steps))
    return tuple(end / ends[-1] for end in ends)


@given(schedules(), st.floats(1e-4, 0.2), st.sampled_from((OBRIEN_FLEMING, POCOCK)))
@settings(max_examples=15, deadline=None)
def test_no_look_is_free_and_none_costs_more_than_the_rate(
    information: tuple[float, ...], rate: float, shape: str
) -> None:
    nominal = levels(rate, information, shape)
    # Bonferroni from above, the single look from below.
    assert sum(nominal) >= rate * (1 - 1e-6)
    assert max(nominal) <= rate * (1 + 1e-6)
    assert nominal[0] == pytest.approx(cumulative(rate, information[0], shape), rel=1e-6)


@pytest.mark.parametrize("shape", [OBRIEN_FLEMING, POCOCK])
@pytest.mark.parametrize("information", [(0.5, 1.0), (0.375, 0.625, 1.0), (0.1, 0.11, 0.6, 1.0)])
def test_simulated_looks_cross_as_often_as_allowed(shape: str, information: tuple[float, ...]) -> None:
    random = np.random.default_rng(7)
    steps = np.sqrt(np.diff((0.0, *information)))
    motion = np.cumsum(random.normal(size=(200_000, len(steps))) * steps, axis=1)
    crossed = motion / np.sqrt(information) > boundaries(0.05, information, shape)
    # Four standard errors of 200,000 draws at 5 % are 0.2 %.
    assert crossed.any(axis=1).mean() == pytest.approx(0.05, abs=0.002)
    first = crossed.cumsum(axis=1) > 0
    for look, fraction in enumerate(information):
        assert first[:, look].mean() == pytest.approx(cumulative(0.05, fraction, shape), abs=0.002)


def test_increments_by_hand() -> None:
    # 0.05 ln(1 + 1.718282 t) at 3/8, 5/8 and 1 is 0.0248674, 0.0364722 and 0.05.
    assert increments(0.05, (0.375, 0.625, 1.0), POCOCK) == pytest.approx((0.0248674, 0.0116047, 0.0135278), abs=1e-7)
    assert sum(increments(0.01, (0.2, 0.3, 0.9, 1.0))) == pytest.approx(0.01)


def test_a_look_without_news_cannot_decide() -> None:
    with_repeat = boundaries(0.05, (0.5, 0.5 + CLOSEST / 2, 1.0))
    assert with_repeat[1] == math.inf
    assert (with_repeat[0], with_repeat[2]) == pytest.approx(boundaries(0.05, (0.5, 1.0)))


@pytest.mark.parametrize(
    ("information", "message"),
    [((), "no look"), ((0.5, 0.4), "rise"), ((0.0, 1.0), "above 0"), ((0.5, 1.1), "at most 1")],
)
def test_impossible_schedules(information: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        boundaries(0.05, information)


def test_impossible_rates_and_shapes() -> None:
    for rate in (0.0, 0.5):
        with pytest.raises(ValueError, match="error rate"):
            cumulative(rate, 0.5)
    with pytest.raises(ValueError, match="fraction"):
        cumulative(0.05, 1.5)
    with pytest.raises(ValueError, match="shape"):
        cumulative(0.05, 0.5, "haybittle")

"""Totals from Prometheus text."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.engines.prometheus import totals


@pytest.mark.parametrize(
    ("text", "sums"),
    [
        ("", {}),
        ("# HELP a x\n# TYPE a counter\n\n", {}),
        ("a 3\n", {"a": 3}),
        ("a 3", {"a": 3}),
        ("a 3 1700000000000\n", {"a": 3}),
        ("a 3.5e+06\n", {"a": 3.5e6}),
        ("a:b_total 3\na:b_total{} 4\n", {"a:b_total": 7}),
        ('a{x="1"} 3\na{x="2"} 4\nb 1\n', {"a": 7, "b": 1}),
        ('a{x="1",y="two words"} 3 1700000000000\n', {"a": 3}),
        ('a{x="}"} 3\n', {"a": 3}),
        ('a{x="{"} 3\n', {"a": 3}),
        ('a{x="\\"} 9"} 3\n', {"a": 3}),
        ('a_bucket{le="+Inf"} 3\na_count 3\n', {"a_bucket": 3, "a_count": 3}),
        ("a +Inf\n", {"a": math.inf}),
        ("a\t3\r\n", {"a": 3}),
    ],
)
def test_totals(text: str, sums: dict[str, float]) -> None:
    assert totals(text) == sums


def test_not_a_number_stays_one() -> None:
    assert math.isnan(totals("a NaN\n")["a"])


NAMES = st.from_regex(r"[a-z_:][a-z0-9_:]{0,8}", fullmatch=True)
LABELS = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters='"\\')) | st.just("a b")


@given(st.lists(st.tuples(NAMES, st.lists(LABELS, max_size=2), st.integers(0, 10**9))))
def test_series_of_one_name_add_up(series: list[tuple[str, list[str], int]]) -> None:
    lines, expected = [], dict[str, float]()
    for name, labels, value in series:
        inside = ",".join(f'l{i}="{label}"' for i, label in enumerate(labels))
        lines.append(f"{name}{{{inside}}} {value}" if labels else f"{name} {value}")
        expected[name] = expected.get(name, 0) + value
    assert totals("\n".join(lines)) == expected

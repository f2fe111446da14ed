"""Selection of prompts: nested, seeded, stratified, and blind to the order in the file."""

from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.data.schema import Row
from pytest_speedbench.data.schema import content_sha256 as of_digests
from pytest_speedbench.data.selection import select
from pytest_speedbench.errors import ConfigError


def content_sha256(rows: Iterable[Row]) -> str:
    return of_digests((row.question_id, row.digest()) for row in rows)


def row(number: int, sub_category: str = "", turns: tuple[str, ...] = ("a",)) -> Row:
    return Row(f"{number:032x}", "coding", sub_category, turns, "", "", "", False)


@st.composite
def rows(draw: st.DrawFn, min_size: int = 0) -> list[Row]:
    kinds = draw(st.lists(st.sampled_from(["", "python", "go", "rust"]), min_size=min_size, max_size=40))
    return [row(number, kind) for number, kind in enumerate(kinds)]


@given(data=st.data(), some=rows(min_size=1), seed=st.integers())
def test_a_smaller_choice_is_part_of_a_larger_one(data: st.DataObject, some: list[Row], seed: int) -> None:
    larger = data.draw(st.integers(1, len(some)))
    smaller = data.draw(st.integers(1, larger))

    assert set(select(some, smaller, seed)) <= set(select(some, larger, seed))
    if larger < len(some):
        assert select(some, larger, seed)[:smaller] == select(some, smaller, seed)


@given(some=rows(min_size=1), n=st.integers(1, 50), seed=st.integers())
def test_a_choice_has_as_many_rows_as_asked_and_none_twice(some: list[Row], n: int, seed: int) -> None:
    chosen = select(some, n, seed)

    assert len(chosen) == len(set(chosen)) == min(n, len(some))
    assert set(chosen) <= set(some)


@given(data=st.data(), some=rows(min_size=1), n=st.integers(1, 50), seed=st.integers())
def test_the_order_in_the_file_does_not_matter(data: st.DataObject, some: list[Row], n: int, seed: int) -> None:
    shuffled = data.draw(st.permutations(some))

    assert set(select(some, n, seed)) == set(select(shuffled, n, seed))
    if n < len(some):
        assert select(some, n, seed) == select(shuffled, n, seed)


@given(some=rows(), seed=st.integers())
def test_the_full_set_keeps_the_order_of_the_file(some: list[Row], seed: int) -> None:
    assert select(some, None, seed) == select(some, len(some) or 1, seed) == select(some, 99, seed) == tuple(some)


@given(some=rows(min_size=1), n=st.integers(1, 40), seed=st.integers())
def test_each_sub_category_has_its_share(some: list[Row], n: int, seed: int) -> None:
    n = min(n, len(some))
    chosen = Counter(r.sub_category for r in select(some, n, seed))

    for kind, members in Counter(r.sub_category for r in some).items():
        share = n * members / len(some)
        # Each of the four strata is at most one row off at the common cut, and so moves that cut by one row.
        assert abs(chosen[kind] - share) < 5


def test_many_small_strata_are_not_passed_over_for_a_large_one() -> None:
    some = [row(i, "large") for i in range(40)] + [row(100 + i, f"small {i}") for i in range(40)]

    small = [sum(r.sub_category != "large" for r in select(some, 20, seed)) for seed in range(200)]

    assert 9 < sum(small) / len(small) < 11


def test_seeds_choose_differently_and_repeatably() -> None:
    some = [row(i) for i in range(40)]

    assert select(some, 8, 1) == select(some, 8, 1)
    assert len({select(some, 8, seed) for seed in range(20)}) == 20


def test_the_choice_is_the_same_on_every_machine_and_version() -> None:
    """Thresholds are calibrated for a choice, so it may never drift."""
    some = [row(i, "ab"[i % 2]) for i in range(16)]

    assert [int(r.question_id, 16) for r in select(some, 6, 0)] == PINNED_CHOICE


def test_round_robin_is_what_upstream_takes() -> None:
    """Upstream goes round the categories and takes row i of each: of 2 categories and n = 6, three rows each."""
    some = [row(i, "ab"[i % 2]) for i in range(16)]

    assert select(some, 3, 0, "round-robin") == select(some, 3, 7, "round-robin") == tuple(some[:3])
    assert select(some, 99, 0, "round-robin") == tuple(some)


@pytest.mark.parametrize("n", [0, -1])
def test_less_than_one_prompt_is_refused(n: int) -> None:
    with pytest.raises(ConfigError, match="at least one prompt"):
        select([row(1)], n, 0)


@given(data=st.data(), some=rows(min_size=1))
def test_the_content_hash_does_not_depend_on_order(data: st.DataObject, some: list[Row]) -> None:
    assert content_sha256(some) == content_sha256(data.draw(st.permutations(some)))


def test_the_content_hash_depends_on_ids_and_turns_only() -> None:
    base = content_sha256([row(1, turns=("ab", "c"))])

    assert base != content_sha256([row(2, turns=("ab", "c"))])
    assert base != content_sha256([row(1, turns=("a", "bc"))])
    assert base != content_sha256([row(1, turns=("ab",)), row(2, turns=("c",))])
    assert base == content_sha256([row(1, "python", turns=("ab", "c"))])


def test_the_content_hash_is_pinned() -> None:
    assert content_sha256([row(1, turns=("été",))]) == PINNED_HASH


PINNED_CHOICE = [11, 2, 9, 12, 13, 0]
PINNED_HASH = "aa90df092687133c6a7489245ac69739a7356b9fd40b36acf3a9a61a44584d01"

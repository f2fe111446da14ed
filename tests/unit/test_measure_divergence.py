"""Where two outputs part."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.measure.divergence import Divergence, compare, first_divergence
from pytest_speedbench.measure.samples import Turn
from tests.unit.test_measure_samples import turn


def said(question_id: str, text: str, ids: tuple[int, ...] | None = None, index: int = 0) -> Turn:
    return replace(turn(question_id, [1], index=index), text=text, output_ids=ids)


@pytest.mark.parametrize(
    ("a", "b", "at"),
    [
        ((), (), None),
        ((1, 2), (1, 2), None),
        ((1, 2), (1, 3), 1),
        ((1, 2), (1, 2, 3), 2),
        ((), (1,), 0),
        ("same", "same", None),
        ("same", "some", 1),
    ],
)
def test_first_divergence(a: tuple[int, ...] | str, b: tuple[int, ...] | str, at: int | None) -> None:
    assert first_divergence(a, b) == at
    assert first_divergence(b, a) == at


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_everything_before_it_is_equal_and_nothing_after_need_be(a: list[int], b: list[int]) -> None:
    at = first_divergence(a, b)
    if at is None:
        assert a == b
    else:
        assert a[:at] == b[:at]
        assert a[at : at + 1] != b[at : at + 1]


def test_runs_of_ids_alone_are_compared_by_their_ids() -> None:
    run = [replace(said("a", "", (1, 2)), text=None)]
    assert compare(run, run).identical
    other = compare(run, [replace(said("a", "", (1, 3)), text=None)])
    assert (other.divergences[0].unit, other.divergences[0].at) == ("token", 1)


def test_identical_runs() -> None:
    run = [said("a", "x", (1,)), said("b", "y"), said("a", "z", (2,), index=1)]
    result = compare(run, run[::-1])
    assert result.identical
    assert (result.compared, str(result)) == (3, "0 of 3 turns differ")


def test_nothing_compared_is_not_identical() -> None:
    assert not compare([], []).identical
    assert not compare([said("a", "x")], []).identical


def test_ids_decide_where_both_runs_have_them() -> None:
    result = compare([said("a", "x", (5, 6, 7))], [said("a", "x", (5, 9))])
    assert result.divergences == (Divergence("a", 0, "token", 1, "[6, 7]", "[9]"),)
    assert str(result) == "1 of 1 turns differ\n  a turn 1: token 1: [6, 7] | [9]"


def test_texts_decide_where_a_stream_hid_tokens() -> None:
    result = compare([said("a", "Hi 🚀", None)], [said("a", "Hi there", (1, 2))])
    assert result.divergences == (Divergence("a", 0, "character", 3, "'🚀'", "'there'"),)
    assert compare([said("a", "Hi", None)], [said("a", "Hi", (1, 2))]).identical


def test_turns_after_a_divergence_had_another_input() -> None:
    a = [said("q", "one"), said("q", "two", index=1), said("r", "x")]
    b = [said("q", "uno"), said("q", "due", index=1), said("r", "x")]
    result = compare(a, b)
    assert result.compared == 2
    assert [(d.question_id, d.index) for d in result.divergences] == [("q", 0)]


def test_a_turn_that_only_one_run_has() -> None:
    result = compare([said("a", "x"), said("b", "y")], [said("a", "x")])
    assert not result.identical
    assert result.missing == (("b", 0),)
    assert str(result) == "0 of 1 turns differ\n  b turn 1: only in one run"


def test_tokens_count_up_to_the_first_difference_of_a_conversation() -> None:
    a = [said("a", "", (1,)), said("b", "x"), said("c", "", (1,)), said("c", "", (2,), index=1)]
    assert (compare(a, a).common_tokens, compare(a, a).tokens) == (3, 3)
    b = [*a[:2], said("c", "", (9,)), said("c", "", (2,), index=1)]
    # c's second turn is equal by chance: its input was not. b has no ids and counts nowhere.
    assert (compare(a, b).common_tokens, compare(a, b).tokens) == (1, 3)

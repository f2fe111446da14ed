"""Differences of greedy output are graded by what the engine itself thinks of the two tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.gates.verdict import Verdict
from pytest_speedbench.measure.losslessness import (
    Demand,
    Grade,
    Losslessness,
    TopTokens,
    demand,
    judge,
)
from pytest_speedbench.measure.samples import Turn
from tests.unit.test_measure_samples import turn

TENTH = Demand(tolerance=0.1, exact=False)


def said(question_id: str, *ids: int, index: int = 0) -> Turn:
    made = turn(question_id, [1] * (len(ids) - 1), index=index)
    return replace(made, output_ids=ids)


def top(**tokens: float) -> TopTokens:
    """``top(t6=-0.1)``: token 6 with that log-probability."""
    return TopTokens.of((int(name[1:]), logprob) for name, logprob in tokens.items())


class Told:
    """Answers with what it was given, in order, and keeps what it was asked."""

    def __init__(self, *answers: TopTokens | None) -> None:
        self.answers, self.asked = list(answers), list[tuple[str, int, int]]()

    def __call__(self, turn: Turn, at: int) -> TopTokens | None:
        self.asked.append((turn.question_id, turn.index, at))
        return self.answers.pop(0)


def graded(top: TopTokens | None, *, held_to: Demand = TENTH) -> Losslessness:
    """One conversation in which token 6 became token 7 at position 2."""
    return judge([said("q", 4, 5, 6, 8)], [said("q", 4, 5, 7, 8)], Told(top), held_to)


def test_identical_output_passes_without_a_question() -> None:
    run, told = [said("a", 1, 2), said("b", 3), said("b", 4, index=1)], Told()
    result = judge(run, run[::-1], told, TENTH)
    assert (result.verdict, result.reason) == ("PASS", "")
    assert result.text == "3 of 3 turns identical, 0 near-ties, 0 mismatches · 4 of 4 tokens compared"
    assert told.asked == []


@pytest.mark.parametrize(
    ("answer", "grade", "gap", "beyond", "verdict"),
    [
        # The plain run's token is the likeliest, the other one is close, or not.
        (top(t6=-0.70, t7=-0.78, t9=-3.0), Grade.NEAR_TIE, 0.08, False, "PASS"),
        (top(t6=-0.70, t7=-0.85, t9=-3.0), Grade.MISMATCH, 0.15, False, "FAIL"),
        # Asked again, the engine prefers the other token, or a third one, all within rounding.
        (top(t7=-0.70, t6=-0.75, t9=-3.0), Grade.NEAR_TIE, 0.05, False, "PASS"),
        (top(t9=-1.00, t7=-1.04, t6=-1.09), Grade.NEAR_TIE, 0.09, False, "PASS"),
        # The speculating run's token is none of the likeliest.
        (top(t6=-0.01, t8=-5.0), Grade.MISMATCH, 4.99, True, "FAIL"),
        # The engine does not stand by the plain run's token: it is no yardstick for the other.
        (top(t7=-0.01, t8=-5.0), Grade.UNREPEATABLE, 4.99, True, "INCONCLUSIVE"),
        (top(t7=-0.01, t6=-5.0), Grade.UNREPEATABLE, 4.99, False, "INCONCLUSIVE"),
        (None, Grade.UNKNOWN, None, False, "INCONCLUSIVE"),
    ],
)
def test_the_grade(answer: TopTokens | None, grade: Grade, gap: float | None, beyond: bool, verdict: str) -> None:
    result = graded(answer)
    (finding,) = result.findings
    assert (finding.grade, finding.beyond, result.verdict) == (grade, beyond, verdict)
    assert (finding.plain_id, finding.speculating_id, finding.where.at) == (6, 7, 2)
    assert finding.gap == (None if gap is None else pytest.approx(gap))


def test_a_tie_of_three_is_no_mismatch_though_the_token_comes_third() -> None:
    assert graded(top(t6=-1.0, t9=-1.01, t7=-1.02)).verdict == "PASS"


@pytest.mark.parametrize(("tolerance", "verdict"), [(0.0625, "FAIL"), (0.125, "PASS"), (0.25, "PASS")])
def test_a_gap_of_just_the_tolerance_is_a_tie(tolerance: float, verdict: str) -> None:
    assert graded(top(t6=-1.0, t7=-1.125), held_to=Demand(tolerance, exact=False)).verdict == verdict


def test_where_equality_is_exact_even_a_tie_fails_and_is_still_graded() -> None:
    result = graded(top(t6=-1.0, t7=-1.0), held_to=Demand(0.1, exact=True))
    assert result.verdict == "FAIL"
    assert result.text == (
        "0 of 1 turns identical, 1 near-tie (gap 0 nats), 0 mismatches · 2 of 4 tokens compared · "
        "equality is exact here, any difference fails"
    )
    assert graded(None, held_to=Demand(0.1, exact=True)).verdict == "FAIL"


def test_what_is_asked_is_the_plain_run_at_the_first_difference_of_each_conversation() -> None:
    plain = [said("a", 1, 2, 3), said("a", 1, 1, index=1), said("b", 5, 6), said("b", 7, 8, index=1), said("c", 9)]
    other = [said("a", 1, 9, 3), said("a", 2, 2, index=1), said("b", 5, 6), said("b", 7, 9, index=1), said("c", 9)]
    told = Told(top(t2=-1.0, t9=-1.02), top(t8=-0.1, t9=-2.6))
    result = judge(plain, other, told, TENTH)
    assert told.asked == [("a", 0, 1), ("b", 1, 1)]
    assert (result.compared, result.identical, result.verdict) == (4, 2, "FAIL")
    # One token of a's first turn, both of b's first, one of its second, and c's. a's second had another input.
    assert result.text == "2 of 4 turns identical, 1 near-tie (gap 0.02 nats), 1 mismatch · 5 of 10 tokens compared"
    assert result.lines == [
        "mismatch, 2.5 nats apart: b turn 2: token 1: [8] | [9]",
        "near-tie, 0.02 nats apart: a turn 1: token 1: [2, 3] | [9, 3]",
    ]


def test_the_text_of_many() -> None:
    plain = [said(f"q{i:02}", 1, 2, 3, 4) for i in range(64)]
    other = [said(f"q{i:02}", 1, 2, 5, 6) if i < 3 else said(f"q{i:02}", 1, 2, 3, 4) for i in range(64)]
    result = judge(plain, other, Told(*(top(t3=-1.0, t5=-1.0 - gap) for gap in (0.01, 0.02, 0.0))), TENTH)
    assert result.text == (
        "61 of 64 turns identical, 3 near-ties (largest gap 0.02 nats), 0 mismatches · 250 of 256 tokens compared"
    )


def test_an_output_that_ends_inside_the_other_cannot_be_graded() -> None:
    told = Told()
    result = judge([said("q", 4, 5)], [said("q", 4, 5, 6)], told, TENTH)
    assert (result.verdict, result.reason) == ("INCONCLUSIVE", "no_logprobs")
    assert told.asked == []
    assert "1 not graded" in result.text


def test_texts_that_differ_cannot_be_graded() -> None:
    one, other = (replace(turn("q", [1]), text=text, output_ids=None) for text in ("so", "no"))
    result = judge([one], [other], Told(), TENTH)
    assert (result.verdict, result.findings[0].where.unit, result.tokens) == ("INCONCLUSIVE", "character", 0)
    assert judge([one], [one], Told(), TENTH).text == "1 of 1 turns identical, 0 near-ties, 0 mismatches"


def test_a_real_mismatch_outweighs_what_could_not_be_graded() -> None:
    plain, other = [said("a", 1), said("b", 1)], [said("a", 2), said("b", 2)]
    result = judge(plain, other, Told(None, top(t1=-0.1, t2=-4.0)), TENTH)
    assert (result.verdict, result.reason) == ("FAIL", "")


@pytest.mark.parametrize(
    ("plain", "other", "temperature", "reason", "words"),
    [
        ([], [], 0.0, "nothing_compared", "no turn was measured both with and without"),
        ([said("a", 1)], [said("b", 1)], 0.0, "nothing_compared", "no turn"),
        ([said("a", 1), said("b", 1)], [said("a", 1)], 0.0, "missing_turns", "1 turn in one run only"),
        ([said("a", 1)], [said("a", 2)], 0.7, "not_greedy", "temperature 0.7 is random"),
    ],
)
def test_what_carries_no_verdict(
    plain: Sequence[Turn], other: Sequence[Turn], temperature: float, reason: str, words: str
) -> None:
    result = judge(plain, other, Told(), TENTH, temperature=temperature)
    assert (result.verdict, result.reason) == ("INVALID", reason)
    assert words in result.text


@pytest.mark.parametrize(
    ("dtype", "concurrency", "invariant", "expected"),
    [
        ("float32", 1, False, Demand(1e-3, exact=True)),
        ("torch.float32", 8, False, Demand(1e-3, exact=False)),
        ("bfloat16", 1, False, Demand(0.5, exact=False)),
        ("bf16", 1, False, Demand(0.5, exact=False)),
        ("half", 32, True, Demand(0.1, exact=True)),
        (None, 1, False, Demand(0.5, exact=False)),
        ("auto", 1, False, Demand(0.5, exact=False)),
    ],
)
def test_what_is_demanded(dtype: str | None, concurrency: int, invariant: bool, expected: Demand) -> None:
    assert demand(dtype, concurrency=concurrency, batch_invariant=invariant) == expected


def test_top_tokens_are_ranked_and_impossible_ones_left_out() -> None:
    found = TopTokens.of([(1, -math.inf), (2, -3.0), (3, -1.0), (4, -1.0)])
    assert found.tokens == ((3, -1.0), (4, -1.0), (2, -3.0))
    assert (found.deficit(2), found.deficit(1), found.reach) == (2.0, None, 2.0)


@pytest.mark.parametrize(
    "tokens", [[], [(1, -1.0)], [(1, -1.0), (1, -1.0)], [(1, 0.5), (2, -1.0)], [(1, math.nan), (2, -1.0)]]
)
def test_what_are_no_top_tokens(tokens: list[tuple[int, float]]) -> None:
    with pytest.raises(ValueError, match="not the log-probabilities"):
        TopTokens.of(tokens)


outputs = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=4)
answers = st.none() | st.permutations([0, 1, 2]).flatmap(
    lambda ids: st.lists(st.floats(-9, 0), min_size=3, max_size=3).map(
        lambda ps: TopTokens.of(zip(ids, ps, strict=True))
    )
)


@given(outputs, outputs, st.lists(answers, min_size=4, max_size=4), st.booleans(), st.floats(0, 1))
def test_no_pass_with_anything_unexplained(
    a: list[list[int]], b: list[list[int]], told: list[TopTokens | None], exact: bool, tolerance: float
) -> None:
    plain, other = ([said(str(i), *ids) for i, ids in enumerate(run)] for run in (a, b))
    result = judge(plain, other, Told(*told), Demand(tolerance, exact))
    assert result.verdict in Verdict.__members__
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["verdict"] == result.verdict
    assert 0 <= result.tokens_compared <= result.tokens
    if result.verdict == "PASS":
        assert len(a) == len(b)
        assert all(f.grade is Grade.NEAR_TIE and f.gap is not None and f.gap <= tolerance for f in result.findings)
        assert a == b or not exact
    if a == b:
        assert result.verdict == "PASS"

"""Acceptance against published figures, hand-computed cells and invariants."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.measure import acceptance as acc
from pytest_speedbench.measure.samples import Counters, Steps, Turn
from tests.unit.test_measure_samples import known, plain, steps_of, turn

# Llama-3.3-70B-Instruct with EAGLE-3, 3 draft tokens: the worked example published with SPEED-Bench.
PUBLISHED = {1: 57385, 2: 36968, 3: 24441, 4: 61182}
PUBLISHED_CATEGORIES = {
    "coding": 3.0001,
    "humanities": 2.3699,
    "math": 2.4710,
    "multilingual": 1.7277,
    "qa": 2.3184,
    "rag": 2.7502,
    "reasoning": 2.6142,
    "roleplay": 2.0407,
    "stem": 2.4306,
    "summarization": 2.6026,
    "writing": 2.6364,
}

# Tokens per event of 4 requests × 96 tokens, greedy, one at a time, on an H100 under vLLM 0.24.0.
NGRAM_EVENTS = [
    [1] * 22 + [3] + [1] * 34 + [3] + [1] * 7 + [2, 1, 1, 6, 6, 1, 1, 2] + [1] * 7,
    [1] * 14 + [2] + [1] * 80,
    [1, 1, 1, 6, 6, 1, 1, 2, 2, 2, 1, 1, 2, 2, 2, 2, 2, 2, 3, 5] + [6] * 8 + [3],
    [1] * 15 + [2] + [1] * 14 + [2] + [1] * 11 + [2, 1, 3, 1, 1, 2, 2] + [1] * 8
    + [2, 1, 1, 4] + [1] * 7 + [3] + [1] * 12 + [2],
]  # fmt: skip
DRAFT_STEPS = [[4] * 22 + [1, 4, 4], [4] * 24, [4] * 24, [4] * 8 + [3] + [4] * 15]
DRAFT_CUT = [2, 1, 1, 0]


def from_events(name: str, events: list[int]) -> Turn:
    """The turn as a client sees it that takes every event for a step."""
    return turn(name, events[1:])


# Published figures


def test_published_histogram_gives_the_published_rates() -> None:
    assert acc.conditional(PUBLISHED) == pytest.approx(
        {1: 1.0, 2: 0.681151931368627, 3: 0.6984444208791836, 4: 0.7145509968116043}, abs=1e-12
    )
    joint = acc.joint(PUBLISHED)
    assert [round(rate, 6) for rate in joint.values()] == [1.0, 0.681152, 0.475747, 0.339945]
    assert list(joint) == [1, 2, 3, 4]


def test_published_histogram_gives_the_published_pooled_length() -> None:
    pooled = acc.mean_length(PUBLISHED)
    assert pooled == 449372 / 179976
    assert round(pooled, 4) == 2.4968
    assert math.fsum(acc.joint(PUBLISHED).values()) == pytest.approx(pooled, abs=1e-12)


def test_published_categories_give_the_published_overall_mean() -> None:
    turns = []
    for category, length in PUBLISHED_CATEGORIES.items():
        # 9,999 decode steps and the prefill; how they divide does not matter to the mean.
        tokens = round(length * 10_000)
        turns.append(turn(f"{category}-1", [0] * 9_999, hidden=tokens - 10_000, category=category))
        assert round(acc.acceptance_length(turns[-1:]) or 0, 4) == length
    assert f"{acc.acceptance_length(turns):.4f}" == "2.4511"


def test_vector_convention_of_the_speculation_profile() -> None:
    histogram = {1: 40, 2: 30, 3: 30}
    assert acc.conditional_by_position(histogram, 3) == (0.6, 0.5, 0.0)
    assert acc.joint_by_position(histogram, 3) == (0.6, 0.3, 0.0)
    assert acc.mean_length(histogram) == 1.9


# Real traffic: why the names matter


def test_recorded_ngram_run_request_mean_and_pooled_differ_by_a_quarter() -> None:
    turns = [from_events(f"q{i}", events) for i, events in enumerate(NGRAM_EVENTS)]
    assert [t.output_tokens for t in turns] == [96] * 4
    assert [steps_of(t).count + 1 for t in turns] == [80, 95, 29, 82]
    assert f"{acc.acceptance_length(turns):.4f}" == "1.6729"
    assert f"{acc.acceptance_length_pooled(turns):.4f}" == "1.3427"
    assert f"{acc.decode_acceptance_length(turns):.4f}" == "1.3475"
    assert acc.drafted_acceptance_length(Counters(drafts=60, accepted=105)) == 2.75


def test_recorded_draft_model_run() -> None:
    turns = [
        turn(f"q{i}", lengths, cut=cut)
        for i, (lengths, cut) in enumerate(zip(DRAFT_STEPS, DRAFT_CUT, strict=True))
    ]  # fmt: skip
    assert [t.output_tokens for t in turns] == [96] * 4
    assert (sum(steps_of(t).count for t in turns), sum(known(steps_of(t).accepted) for t in turns)) == (97, 287)
    assert f"{acc.acceptance_length(turns):.4f}" == "3.8031"
    assert f"{acc.acceptance_length_pooled(turns):.4f}" == "3.8020"
    assert f"{acc.decode_acceptance_length(turns):.4f}" == "3.9175"
    assert f"{acc.drafted_acceptance_length(Counters(drafts=97, accepted=287)):.4f}" == "3.9588"
    assert acc.acceptance_rate(turns) == 287 / 291
    # 97 steps emit 384 tokens; without the last 4, of 4 tokens each, 93 steps emit 368.
    assert acc.decode_acceptance_length_uncut(turns) == 368 / 93


def test_recorded_plain_run_events_are_not_steps() -> None:
    # In two of four requests one event carried the tokens of two steps.
    merged = [[1] * 50 + [2] + [1] * 44, [1] * 96, [1] * 96, [1] * 94 + [2]]
    seen = [from_events(f"q{i}", events) for i, events in enumerate(merged)]
    assert f"{acc.acceptance_length(seen):.4f}" == "1.0053"
    assert f"{acc.acceptance_length_pooled(seen):.4f}" == "1.0052"
    assert f"{acc.decode_acceptance_length(seen):.4f}" == "1.0053"
    true = [plain(f"q{i}", 96) for i in range(4)]
    assert acc.decode_acceptance_length(true) == 1


# Hand-computed cells


def test_request_mean_and_pooled_sum_up_a_conversations_turns_first() -> None:
    turns = [
        turn("a", [4, 4, 4], cut=1),  # 12 tokens, 4 steps with the prefill
        turn("a", [2], index=1),  # 3 tokens, 2 steps
        turn("b", [1, 1, 1]),  # 4 tokens, 4 steps
    ]
    assert acc.acceptance_length(turns) == (15 / 6 + 4 / 4) / 2
    assert acc.acceptance_length_pooled(turns) == 19 / 10
    # Without the prefill: 19 - 3 tokens in 7 steps.
    assert acc.decode_acceptance_length(turns) == 16 / 7
    # Without the last steps (4, 2 and 1 long): 4 + 4 and 1 + 1 in 2 + 2 steps.
    assert acc.decode_acceptance_length_uncut(turns) == 10 / 4
    assert acc.acceptance_rate(turns) == 10 / 21


def test_upstream_histogram_counts_the_prefill_and_the_last_step_as_cut() -> None:
    turns = [turn("a", [4, 4, 4], cut=1), turn("b", [2])]
    assert acc.histogram(turns) == {1: 2, 2: 1, 3: 1, 4: 2}
    assert acc.uncut_histogram(turns) == {4: 2}
    assert acc.acceptance(turns) == acc.Acceptance(
        histogram={1: 2, 2: 1, 3: 1, 4: 2},
        conditional={1: 1.0, 2: 4 / 6, 3: 3 / 4, 4: 2 / 3},
        joint={1: 1.0, 2: 4 / 6, 3: 3 / 6, 4: 2 / 6},
        decode_histogram={4: 2},
    )


def test_steps_of_unknown_length_are_counted_apart() -> None:
    turns = [turn("a", [4, 0, 0, 2, 0], hidden=3, cut=1)]
    assert acc.histogram(turns) == {1: 1, 2: 1, 4: 1}
    assert acc.uncut_histogram(turns) == {2: 1, 4: 1}
    assert acc.acceptance(turns).unresolved_steps == 3
    # Their sum is known, so the lengths that need only sums are exact: 11 tokens, 6 steps.
    assert acc.acceptance_length(turns) == 12 / 6


def test_uncut_length_leaves_out_turns_whose_last_step_is_unknown() -> None:
    usable = turn("a", [4, 0, 2, 3], hidden=2, cut=2)  # 4 + 3 + 2 before the last, in 3 steps
    unusable = turn("b", [4, 0], hidden=1)
    assert acc.decode_acceptance_length_uncut([usable, unusable]) == 9 / 3
    assert acc.decode_acceptance_length_uncut([unusable]) is None


def unordered(lengths: list[int], *, cut: int | None) -> Turn:
    """A turn of which only is known which lengths there were."""
    made = turn("u", sorted(lengths), cut=cut or 0)
    return replace(made, steps=replace(steps_of(made), cut=cut, ordered=False))


def test_lengths_without_an_order_count_as_far_as_the_cut_is_certain() -> None:
    # Nothing was cut: it does not matter which was the last, but for the lengths without it.
    assert acc.histogram([unordered([1, 2, 4], cut=0)]) == {1: 2, 2: 1, 4: 1}
    assert acc.uncut_histogram([unordered([1, 2, 4], cut=0)]) == {}
    # Only the 4 was long enough to be cut by 2.
    certain = unordered([1, 2, 4], cut=2)
    assert acc.histogram([certain]) == {1: 2, 2: 2}
    assert acc.uncut_histogram([certain]) == {1: 1, 2: 1}
    assert acc.unresolved_steps([certain]) == 0
    assert acc.decode_acceptance_length_uncut([certain]) == 3 / 2
    # The 3 or the 4 was cut by 2: the steps are counted apart, the prefill's is not among them.
    doubtful = unordered([1, 3, 4], cut=2)
    assert acc.histogram([doubtful]) == {1: 1}
    assert acc.uncut_histogram([doubtful]) == {}
    assert acc.unresolved_steps([doubtful]) == 3
    assert acc.decode_acceptance_length_uncut([doubtful]) is None
    # The lengths that need only sums are exact: 6 tokens after the first in 3 steps.
    assert acc.decode_acceptance_length([doubtful]) == 6 / 3
    assert acc.acceptance_length([doubtful]) == 7 / 4
    # Any of equally long ones may have been the last.
    assert acc.uncut_histogram([unordered([3, 3, 3], cut=2)]) == {3: 2}


def test_an_unknown_cut_leaves_the_last_length_as_cut() -> None:
    ordered = replace(turn("a", [4, 4, 2]), steps=Steps((4, 4, 2), accepted=None, drafted=None, cut=None))
    assert acc.histogram([ordered]) == {1: 1, 2: 1, 4: 2}
    assert acc.uncut_histogram([ordered]) == {4: 2}
    assert acc.decode_acceptance_length_uncut([ordered]) == 8 / 2
    assert acc.acceptance_rate([ordered]) is None
    unknown = unordered([4, 4, 2], cut=None)
    assert acc.histogram([unknown]) == {1: 1}
    assert acc.unresolved_steps([unknown]) == 3


def test_one_turn_without_steps_leaves_no_figure_per_request() -> None:
    turns = [turn("a", [4, 4, 4]), replace(turn("b", [2, 2]), steps=None)]
    assert acc.conversations(turns) == ()
    assert acc.acceptance_length(turns) is None
    assert acc.acceptance_length_pooled(turns) is None
    assert acc.decode_acceptance_length(turns) is None
    # With S of the cell known, 18 tokens come from S + 2 steps, and 16 from S.
    assert acc.acceptance_length_pooled(turns, 5) == 18 / 7
    assert acc.decode_acceptance_length(turns, 5) == 16 / 5
    # What is known of single turns is kept.
    assert acc.histogram(turns) == {1: 1, 4: 3}


def test_draft_tokens_that_one_turn_does_not_tell_have_no_rate() -> None:
    silent = replace(turn("b", [2]), steps=Steps((2,), accepted=1, drafted=None))
    assert acc.acceptance_rate([turn("a", [4]), silent]) is None
    assert [c.drafted for c in acc.conversations([turn("a", [4]), silent])] == [3, None]
    assert acc.acceptance_length([turn("a", [4]), silent]) == (5 / 2 + 3 / 2) / 2


def test_turns_of_a_single_token_have_no_decode_step() -> None:
    single = turn("a", [])
    assert (single.output_tokens, steps_of(single).count) == (1, 0)
    assert acc.acceptance_length([single]) == 1
    assert acc.decode_acceptance_length([single]) is None
    assert acc.decode_acceptance_length_uncut([single]) is None
    assert acc.acceptance_rate([single]) is None
    assert acc.histogram([single]) == {1: 1}
    with_other = [single, turn("b", [3, 2])]
    assert acc.decode_acceptance_length(with_other) == 5 / 2
    assert acc.decode_acceptance_length_uncut(with_other) == 3


def test_without_speculation_every_length_is_one() -> None:
    turns = [plain("a", 7), plain("a", 1, index=1), plain("b", 30)]
    assert acc.acceptance_length(turns) == 1
    assert acc.acceptance_length_pooled(turns) == 1
    assert acc.decode_acceptance_length(turns) == 1
    assert acc.decode_acceptance_length_uncut(turns) == 1
    assert acc.acceptance_rate(turns) is None
    assert acc.drafted_acceptance_length(Counters(drafts=0, accepted=0)) is None
    assert acc.acceptance(turns) == acc.Acceptance({1: 38}, {1: 1.0}, {1: 1.0}, {1: 33})


def test_drafted_length_needs_both_counters() -> None:
    assert acc.drafted_acceptance_length(Counters(drafts=10)) is None
    assert acc.drafted_acceptance_length(Counters(accepted=10)) is None
    assert acc.drafted_acceptance_length(Counters(drafts=10, accepted=0)) == 1


def test_nothing_measured_is_none_and_never_nan() -> None:
    for length in (
        acc.acceptance_length,
        acc.acceptance_length_pooled,
        acc.decode_acceptance_length,
        acc.decode_acceptance_length_uncut,
        acc.acceptance_rate,
    ):
        assert length([]) is None
    assert acc.acceptance([]) == acc.Acceptance({}, {}, {})
    assert acc.mean_length({}) is None
    assert acc.joint_by_position({}, 3) == ()
    assert acc.conditional_by_position({}, 3) == ()


def test_rates_are_keyed_by_observed_lengths_only() -> None:
    # No step of length 2: key 4 follows key 1 and spans both missing positions.
    assert acc.conditional({4: 30, 1: 70, 3: 0}) == {1: 1.0, 4: 0.3}
    assert acc.joint({4: 30, 1: 70, 3: 0}) == {1: 1.0, 4: 0.3}
    assert acc.conditional_by_position({4: 30, 1: 70}, 3) == (0.3, 1.0, 1.0)


def test_positions_that_were_never_reached_have_rate_zero() -> None:
    assert acc.conditional_by_position({1: 5}, 3) == (0.0, 0.0, 0.0)
    assert acc.joint_by_position({1: 5}, 3) == (0.0, 0.0, 0.0)


def test_lengths_beyond_the_draft_passed_every_position() -> None:
    assert acc.joint_by_position({1: 1, 9: 1}, 2) == (0.5, 0.5)


def test_conversations_are_sorted_and_the_same_id_in_two_categories_stays_apart() -> None:
    turns = [turn("q", [2], category="qa"), turn("q", [3], category="coding"), turn("a", [1], category="qa")]
    assert [(c.category, c.question_id) for c in acc.conversations(turns)] == [
        ("coding", "q"),
        ("qa", "a"),
        ("qa", "q"),
    ]


def test_the_report_types_do_not_import_numpy() -> None:
    code = "import sys, pytest_speedbench.results; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Invariants

K = 4


@st.composite
def cells(draw: st.DrawFn, *, resolved: bool = False) -> list[Turn]:
    """A few conversations of up to three turns each, every identity kept, at most K drafts."""
    turns = []
    for q in range(draw(st.integers(1, 5))):
        for index in range(draw(st.integers(1, 3))):
            lengths = draw(st.lists(st.integers(1, K + 1), max_size=8))
            cut = draw(st.integers(0, lengths[-1] - 1)) if lengths else 0
            hidden = 0
            if not resolved:
                for i in draw(st.lists(st.integers(0, max(0, len(lengths) - 1)), max_size=3)):
                    if lengths and lengths[i]:
                        hidden += lengths[i] - 1
                        lengths[i] = 0
            turns.append(turn(f"q{q}", lengths, cut=cut, hidden=hidden, index=index))
    return turns


@given(cells())
def test_histogram_and_unknown_steps_make_up_all_steps(turns: list[Turn]) -> None:
    counted = sum(acc.histogram(turns).values()) + acc.unresolved_steps(turns)
    assert counted == sum(steps_of(t).count + 1 for t in turns)


@given(cells(resolved=True))
def test_histogram_holds_every_token_once(turns: list[Turn]) -> None:
    histogram = acc.histogram(turns)
    assert sum(length * count for length, count in histogram.items()) == sum(t.output_tokens for t in turns)
    assert acc.mean_length(histogram) == acc.acceptance_length_pooled(turns)


@given(cells(resolved=True))
def test_uncut_length_is_the_mean_of_the_uncut_histogram(turns: list[Turn]) -> None:
    assert acc.mean_length(acc.uncut_histogram(turns)) == acc.decode_acceptance_length_uncut(turns)


@given(cells())
def test_joint_starts_at_one_falls_and_is_the_product_of_the_conditional(turns: list[Turn]) -> None:
    rates = acc.acceptance(turns)
    joint = list(rates.joint.values())
    assert joint[0] == 1
    assert all(a > b for a, b in itertools.pairwise(joint))
    assert joint == pytest.approx(list(itertools.accumulate(rates.conditional.values(), lambda a, b: a * b)))


@given(cells())
def test_pooled_length_is_the_sum_of_the_joint_rates(turns: list[Turn]) -> None:
    for histogram in (acc.histogram(turns), acc.uncut_histogram(turns)):
        if histogram:
            assert 1 + math.fsum(acc.joint_by_position(histogram, K)) == pytest.approx(acc.mean_length(histogram))


@given(cells())
def test_every_length_lies_between_one_and_all_drafts_accepted(turns: list[Turn]) -> None:
    for length in (
        acc.acceptance_length(turns),
        acc.acceptance_length_pooled(turns),
        acc.decode_acceptance_length(turns),
        acc.decode_acceptance_length_uncut(turns),
    ):
        assert length is None or 1 <= length <= K + 1


@given(st.lists(st.integers(1, K + 1), max_size=8), st.integers(1, 6))
def test_estimators_agree_when_all_conversations_are_equal(lengths: list[int], conversations: int) -> None:
    turns = [turn(f"q{i}", lengths) for i in range(conversations)]
    assert acc.acceptance_length(turns) == pytest.approx(acc.acceptance_length_pooled(turns), rel=1e-15)


@given(cells(), st.randoms(use_true_random=False))
def test_the_order_of_arrival_changes_nothing(turns: list[Turn], shuffle: random.Random) -> None:
    shuffled = list(turns)
    shuffle.shuffle(shuffled)
    assert acc.conversations(shuffled) == acc.conversations(turns)
    assert acc.acceptance(shuffled) == acc.acceptance(turns)
    assert acc.acceptance_length(shuffled) == acc.acceptance_length(turns)

"""Whether acceptance moved because drafting did, or because outputs are of other lengths."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.measure.acceptance import decode_acceptance_length, decode_acceptance_length_uncut
from pytest_speedbench.measure.equal_length import EqualLength, equal_length, steps_within
from pytest_speedbench.measure.samples import Steps, Turn
from tests.unit.test_measure_samples import turn


def compared(new: Sequence[Turn], old: Sequence[Turn]) -> EqualLength:
    found = equal_length(new, old)
    assert found is not None
    return found


# Steps within the first tokens


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        # Steps of 3, 2, 4 end at tokens 4, 6 and 10; what ends at the very last token is left out.
        (1, (0, 0)),
        (4, (0, 0)),
        (5, (3, 1)),
        (6, (3, 1)),
        (7, (5, 2)),
        (10, (5, 2)),
        (11, (9, 3)),
    ],
)
def test_steps_that_end_before_a_token(tokens: int, expected: tuple[int, int]) -> None:
    assert steps_within(turn("q", [3, 2, 4]), tokens) == expected


def test_a_turn_that_was_cut_is_treated_like_the_beginning_of_a_longer_one() -> None:
    # Both produced steps of 3, 2 and 4, the shorter one hit the cap or EOS two tokens into the last.
    cut, whole = turn("q", [3, 2, 4], cut=2), turn("q", [3, 2, 4, 1, 1])
    assert cut.output_tokens == 8
    assert steps_within(cut, 8) == steps_within(whole, 8) == (5, 2)


def test_lengths_without_an_order_do_for_a_whole_turn_alone() -> None:
    measured = turn("q", [1, 3, 3])
    unordered = replace(measured, steps=Steps((1, 3, 3), accepted=4, drafted=9, cut=2, ordered=False))
    # Only a step of 3 can have been cut by 2.
    assert steps_within(unordered, unordered.output_tokens) == (4, 2)
    assert steps_within(unordered, unordered.output_tokens - 1) is None
    doubtful = replace(measured, steps=Steps((1, 2, 3), accepted=3, drafted=9, cut=0, ordered=False))
    assert steps_within(doubtful, doubtful.output_tokens) is None


def test_unknown_steps() -> None:
    assert steps_within(replace(turn("q", [3]), steps=None), 2) is None
    assert steps_within(turn("q", [3, 0, 2], hidden=1), 3) is None


@given(st.lists(st.integers(1, 5), max_size=12), st.data())
def test_the_whole_is_the_uncut_acceptance_length(lengths: list[int], data: st.DataObject) -> None:
    measured = turn("q", lengths, cut=data.draw(st.integers(0, lengths[-1] - 1)) if lengths else 0)
    tokens, steps = steps_within(measured, measured.output_tokens) or (0, 0)
    assert (tokens / steps if steps else None) == decode_acceptance_length_uncut([measured])


# Two runs


def test_hand_computed() -> None:
    # a: steps 2 2 2 2 and, in the old run, 5 5 after them; b: 3 3 3 in both.
    new = [turn("a", [2, 2, 2, 2]), turn("b", [3, 3, 3])]
    old = [turn("a", [2, 2, 2, 2, 5, 5]), turn("b", [3, 3, 3])]
    found = compared(new, old)
    assert (found.conversations, found.left_out) == (2, 0)
    assert (found.prefix.new, found.prefix.old) == (2.5, 2.5)
    # Without the last step the old a has 2 2 2 2 5 = 13 / 5.
    assert found.whole.new == 2.5
    assert found.whole.old == pytest.approx((13 / 5 + 3) / 2)
    assert (found.tokens.new, found.tokens.old) == (9.5, 14.5)
    # Differences of the whole are -0.6 and 0: their deviation is 0.6 / sqrt(2), and the mean's 0.3.
    assert found.whole.error == pytest.approx(0.3)
    assert found.whole.band == pytest.approx(12.706 * 0.3, rel=1e-4)


def replay(question: int, tokens: int, *, rate: float = 1.0, turns_at: int = 775) -> Turn:
    """One prompt's output: 5.3 tokens per step up to token 775, more after it. ``rate`` scales the drafter."""
    law, lengths, produced = random.Random(question), list[int](), 1
    while produced < tokens:
        mean = (5.3 if produced < turns_at else 8.0) * rate
        lengths.append(min(9, max(1, round(law.gauss(mean, 1.5)))))
        produced += lengths[-1]
    return turn(f"q{question:02}", lengths, cut=produced - tokens, finish="stop" if tokens < 2048 else "length")


def test_answers_that_stop_at_775_instead_of_2048_tokens_are_a_length_shift() -> None:
    old = [replay(i, 2048) for i in range(24)]
    new = [replay(i, 775) for i in range(24)]
    found = compared(new, old)
    overall = [decode_acceptance_length([one]) or 0.0 for one in (*new, *old)]
    assert sum(overall[:24]) / 24 == pytest.approx(5.3, abs=0.1)
    assert sum(overall[24:]) / 24 == pytest.approx(6.6, abs=0.1)
    assert found.shift == "length"
    assert found.prefix.new == found.prefix.old
    assert found.whole.change < -0.15
    assert found.text == (
        f"decode acceptance length −{100 * -found.whole.change:.1f} % over whole outputs, +0.0 % ± 0.0 % on the same "
        "first tokens: outputs got shorter (2048 → 775 tokens, 100 → 0 % at the cap), drafting is as good as before"
    )


def test_a_worse_drafter_is_no_length_shift() -> None:
    old, new = ([replay(i, 2048, rate=rate) for i in range(24)] for rate in (1.0, 0.94))
    found = compared(new, old)
    assert found.shift == "acceptance"
    assert found.text.endswith("drafting got worse")
    assert compared(old, new).text.endswith("drafting got better")


def test_a_worse_drafter_and_shorter_answers_are_both() -> None:
    old, new = [replay(i, 2048) for i in range(24)], [replay(i, 775, rate=0.94) for i in range(24)]
    found = compared(new, old)
    assert found.shift == "both"
    assert "drafting got worse, and outputs got shorter (2048 → 775 tokens" in found.text


def test_the_same_run_twice_has_not_moved() -> None:
    run = [replay(i, 300) for i in range(8)]
    found = compared(run, run[::-1])
    assert (found.shift, found.prefix.change, found.rest.new) == ("none", 0.0, 0.0)
    assert found.text.endswith("no change beyond noise")


def test_one_prompt_is_not_enough_to_tell() -> None:
    found = compared([replay(0, 775)], [replay(0, 2048)])
    assert found.shift == "unclear"
    assert "± ? on the same first tokens: too few prompts" in found.text
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["prefix"]["error"] is None


def test_later_turns_count_only_while_replies_agree() -> None:
    def conversation(reply: int) -> list[Turn]:
        first, second = turn("q", [2, 2, 2]), turn("q", [4, 4, 4], index=1)
        return [replace(first, output_ids=(reply,) * 7), replace(second, output_ids=(1,) * 13)]

    assert compared(conversation(1), conversation(1)).prefix.new == pytest.approx((4 + 8) / 4)
    assert compared(conversation(1), conversation(2)).prefix.new == 2.0


def test_a_prompt_that_was_measured_twice_is_cut_to_its_shortest_output() -> None:
    found = compared([turn("q", [3, 3, 3]), turn("q", [3, 3])], [turn("q", [3, 3, 3, 9, 9])] * 2)
    assert found.conversations == 1
    assert (found.prefix.new, found.prefix.old) == (3.0, 3.0)


def test_conversations_that_cannot_be_compared() -> None:
    assert equal_length([], []) is None
    assert equal_length([turn("a", [2, 2])], [turn("b", [2, 2])]) is None
    # A single step is the last one, which is left out.
    assert equal_length([turn("a", [2])], [turn("a", [2, 2])]) is None
    found = compared([turn("a", [2]), turn("b", [2, 2])], [turn("a", [2, 2]), turn("b", [2, 2])])
    assert (found.conversations, found.left_out) == (1, 1)


@given(
    st.lists(st.lists(st.integers(1, 4), min_size=2, max_size=30), min_size=2, max_size=6),
    st.lists(st.integers(2, 30), min_size=6, max_size=6),
)
def test_stopping_earlier_never_looks_like_worse_drafting(lengths: list[list[int]], kept: list[int]) -> None:
    old = [turn(str(i), one) for i, one in enumerate(lengths)]
    new = [turn(str(i), one[: kept[i]]) for i, one in enumerate(lengths)]
    found = equal_length(new, old)
    assert found is not None
    assert found.prefix.new == found.prefix.old
    assert found.shift in ("none", "length", "unclear")
    json.dumps(found.to_json(), allow_nan=False)

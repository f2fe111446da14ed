"""Steps from per-token totals: recorded sequences, and random ones with known truth."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_speedbench.engines.llamacpp_steps import UNOBSERVED, Seen, Window, reconstruct
from tests.unit.test_measure_samples import known


def seen(*rows: tuple[int, int, int]) -> list[Seen]:
    return [Seen(n, d, a, at_ns=1000 * n) for n, d, a in rows]


def test_draft_model_stream_that_ends_at_eos() -> None:
    # Recorded: "What is the capital of France?", draft model, k = 4.
    events = seen((1, 0, 0), (2, 4, 4), (3, 4, 4), (4, 4, 4), (5, 4, 4), (6, 4, 4), (7, 8, 5), (8, 8, 5))
    steps, arrivals = reconstruct(
        events, output_tokens=8, drafted=8, accepted=5, stopped=True, window=Window(cap=64, draft_size=4)
    )
    assert steps.lengths == (5, 2)
    assert steps.cut == 0
    assert arrivals == (1000, 2000, 7000)


def test_ngram_steps_without_draft_have_length_one() -> None:
    # Recorded: n-gram, one draft of 4 that was rejected whole.
    events = seen((1, 0, 0), (2, 0, 0), (3, 0, 0), (4, 0, 0), (5, 4, 0), (6, 4, 0), (7, 4, 0), (8, 4, 0))
    steps, _ = reconstruct(events, output_tokens=8, drafted=4, accepted=0, stopped=True, window=Window(cap=64))
    assert steps.lengths == (1,) * 7


def test_last_step_cut_at_eos() -> None:
    # The step that starts at token 3 accepted 4 drafts, but EOS was its second token.
    events = seen((1, 0, 0), (2, 0, 0), (3, 4, 4), (4, 4, 4))
    steps, _ = reconstruct(
        events, output_tokens=4, drafted=4, accepted=4, stopped=True, window=Window(cap=64, draft_size=4)
    )
    assert steps.lengths == (1, 5)
    assert steps.cut == 3
    assert 4 - 1 + known(steps.cut) == known(steps.accepted) + steps.count


def test_hidden_tokens_leave_the_number_of_steps_exact() -> None:
    # Recorded: emoji, every other token hidden; D jumps by one draft each time.
    events = seen((2, 4, 4), (4, 4, 4), (6, 4, 4), (8, 8, 8), (10, 8, 8))
    steps, arrivals = reconstruct(
        events, output_tokens=11, drafted=8, accepted=8, stopped=False, window=Window(cap=64, draft_size=4)
    )
    assert steps.count == 2
    assert steps.lengths == (5, 5)
    assert arrivals[0] == UNOBSERVED


def test_two_drafts_behind_hidden_tokens_stay_unresolved() -> None:
    events = seen((1, 0, 0), (2, 0, 0), (5, 8, 2))
    steps, _ = reconstruct(
        events, output_tokens=6, drafted=8, accepted=2, stopped=False, window=Window(cap=64, draft_size=4)
    )
    assert steps.count == 6 - 1 - 2
    assert steps.unresolved == 2


@st.composite
def generations(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[bool], int, bool]:
    """(drafted, accepted) per step, which tokens are hidden, the cut, fixed draft size."""
    fixed = draw(st.booleans())
    steps = []
    for _ in range(draw(st.integers(1, 12))):
        drafted = 4 if fixed else draw(st.integers(0, 4))
        steps.append((drafted, draw(st.integers(0, drafted))))
    cut = draw(st.integers(0, steps[-1][1]))
    tokens = 1 + sum(a + 1 for _, a in steps) - cut
    hidden = draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens))
    return steps, hidden, cut, fixed


@settings(max_examples=500)
@given(generations())
def test_against_known_truth(case: tuple[list[tuple[int, int]], list[bool], int, bool]) -> None:
    truth, hidden, cut, fixed = case
    tokens = 1 + sum(a + 1 for _, a in truth) - cut
    rows, drafted, accepted = [(1, 0, 0)], 0, 0
    for d, a in truth:
        drafted, accepted = drafted + d, accepted + a
        rows += [(len(rows) + 1 + i, drafted, accepted) for i in range(a + 1)]
    visible = [row for row, gone in zip(rows[:tokens], hidden, strict=True) if not gone]
    # EOS itself is always sent, so a cut step shows its last token.
    if cut and (not visible or visible[-1] != rows[tokens - 1]):
        visible.append(rows[tokens - 1])
    window = Window(cap=tokens + 4, draft_size=4 if fixed else None)
    steps, arrivals = reconstruct(
        seen(*visible), output_tokens=tokens, drafted=drafted, accepted=accepted, stopped=cut > 0, window=window
    )
    # The identity of the turn holds, whatever was hidden.
    assert tokens - 1 + known(steps.cut) == accepted + steps.count
    assert len(arrivals) == steps.count + 1
    if cut == 0:
        assert steps.count == len(truth)
    else:
        # Where the start of the cut step is hidden, the count errs to more steps, never to fewer.
        assert steps.count >= len(truth)
    # Every length that is claimed to be known is one that occurred.
    claimed, occurred = Counter(x for x in steps.lengths if x), Counter(a + 1 for _, a in truth)
    if steps.count == len(truth):
        assert not claimed - occurred
        assert sum(occurred.values()) - sum(claimed.values()) == steps.unresolved
    if not any(hidden):
        assert steps.lengths == tuple(a + 1 for _, a in truth)
        assert steps.cut == cut
        assert UNOBSERVED not in arrivals


@pytest.mark.parametrize("output_tokens", [1])
def test_a_single_token_has_no_decode_step(output_tokens: int) -> None:
    steps, arrivals = reconstruct(
        seen((1, 0, 0)), output_tokens=output_tokens, drafted=0, accepted=0, stopped=True, window=Window(cap=4)
    )
    assert steps.lengths == ()
    assert arrivals == (1000,)

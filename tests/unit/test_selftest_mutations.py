"""The injected regressions: what each does to a window, and that none but the broken runs breaks an identity."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import pvariance

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_speedbench.measure.acceptance import acceptance_length, conversations
from pytest_speedbench.measure.checks import problems
from pytest_speedbench.measure.samples import Counters, StepTotal, Told, Turn, Window
from pytest_speedbench.measure.summary import summarise
from pytest_speedbench.measure.timing import output_tps, step_s, ttft_s
from pytest_speedbench.report import artifact
from pytest_speedbench.report.requests import read_windows
from pytest_speedbench.selftest import edits
from pytest_speedbench.selftest.mutations import MUTATIONS, Kind
from tests.unit.test_measure_samples import MS, plain, steps_of, turn, window

ARTIFACTS = Path(__file__).parents[2] / "examples" / "h100" / "artifacts"
BROKEN = {
    "lost": "lost_requests",
    "duplicate": "duplicated",
    "counters": "counter_mismatch",
    "undrafted": "no_speculation",
}


def mutated(name: str, measured: Window, *, draft_tokens: int = 3, seed: int = 0) -> Window:
    changed = MUTATIONS[name].applied(measured, draft_tokens, seed)
    assert changed is not None
    return changed


def codes(measured: Window, draft_tokens: int = 3) -> list[str]:
    return [r.code for r in problems(measured, speculation=draft_tokens > 0, draft_tokens=draft_tokens)]


def expected(name: str) -> list[str]:
    return [BROKEN[name]] if name in BROKEN else []


def al(measured: Window) -> float:
    value = acceptance_length(measured.turns)
    assert value is not None
    return value


# Edits


def test_a_step_is_divided_where_each_part_emits_a_token_of_the_output() -> None:
    # The last step produced 3 and was cut by 1, so two tokens of it reached the output.
    assert edits.joints(turn("a", [4, 2, 3], cut=1)) == [(0, 1), (0, 2), (0, 3), (1, 1), (2, 1)]
    assert edits.joints(turn("a", [1, 1])) == []
    assert edits.joints(replace(turn("a", [4]), steps=None)) == []


def test_of_steps_of_unknown_length_only_the_number_of_places_is_known() -> None:
    assert edits.joints(turn("a", [2, 0, 0], hidden=3)) == [(0, 1), (1, 1), (1, 2), (1, 3)]
    assert len(edits.joints(turn("a", [0, 0], hidden=3, cut=1))) == 2


def test_without_an_order_any_step_that_is_long_enough_may_be_the_one_that_was_cut() -> None:
    unordered = turn("a", [3, 3], cut=1)
    unordered = replace(unordered, steps=replace(steps_of(unordered), ordered=False))
    assert edits.joints(unordered) == [(0, 1), (1, 1)]


def test_dividing_keeps_tokens_and_times_and_counts_a_step_and_a_draft() -> None:
    before = turn("a", [4, 2], drafted=6)
    after = edits.divided(before, [(0, 1), (0, 3)], 3)
    steps = steps_of(after)
    assert steps.lengths == (1, 2, 1, 2)
    assert (steps.accepted, steps.drafted, steps.cut) == (2, 12, 0)
    assert (after.event_ns, after.event_tokens, after.output_tokens) == (
        before.event_ns,
        before.event_tokens,
        before.output_tokens,
    )
    # The step took from 100 to 110 ms; its three parts arrive in equal distances.
    assert after.step_ns == (100 * MS, 103333333, 106666666, 110 * MS, 120 * MS)


def test_no_arrival_is_made_up_beside_one_that_was_not_seen() -> None:
    before = turn("a", [2, 2])
    hidden = replace(before, step_ns=(before.step_ns[0], -1, before.step_ns[2]))
    assert edits.divided(hidden, [(0, 1), (1, 1)], 3).step_ns == (100 * MS, -1, -1, -1, 120 * MS)


def test_joining_is_the_reverse_of_dividing() -> None:
    before = turn("a", [1, 2, 3, 1])
    assert edits.joinable(before, 3) == [0, 2]
    after = edits.joined(before, [0, 2], 3)
    assert steps_of(after).lengths == (3, 4)
    assert (steps_of(after).accepted, steps_of(after).drafted) == (5, 6)
    assert after.event_tokens == (1, 3, 4)
    assert after.step_ns == after.event_ns == (100 * MS, 120 * MS, 140 * MS)


def test_what_an_engine_told_of_a_turn_changes_along() -> None:
    told = replace(turn("a", [4, 2]), told=Told(steps=2, drafts=2, drafted=6, accepted=4, lengths=(2, 4)))
    assert edits.divided(told, [(0, 2)], 3).told == Told(steps=3, drafts=3, drafted=9, accepted=3)


# Acceptance


def test_ten_percent_less_acceptance_by_hand() -> None:
    # 25 tokens in 10 steps, the prefill's included: 2.5. One step more: 25 / 11; 10 steps / 0.9 = 11.1.
    turns = [turn(f"q{i}", [3, 3, 3, 3, 3, 3, 2, 2, 2]) for i in range(8)]
    lower = mutated("al-10", window(turns))
    assert al(window(turns)) == 2.5
    # 8 conversations with 11 steps miss 0.1 × 2.5 by 0.023 each: a ninth step brings the mean closer.
    assert sorted(steps_of(t).count for t in lower.turns) == [10] * 7 + [11]
    assert al(lower) == pytest.approx((7 * 25 / 11 + 25 / 12) / 8)
    assert codes(lower) == []


@pytest.mark.parametrize(("name", "share"), [("al-2", 0.02), ("al-4", 0.04), ("al-6", 0.06), ("al-10", 0.1)])
def test_the_drop_is_what_it_says(name: str, share: float) -> None:
    measured = window([turn(f"q{i}", [4, 2, 3, 1, 4, 2] * 6) for i in range(40)])
    assert al(mutated(name, measured)) / al(measured) == pytest.approx(1 - share, abs=0.0005)


def test_a_drop_that_acceptance_has_no_room_for_is_not_made() -> None:
    assert MUTATIONS["al-10"].applied(window([turn("a", [2, *[1] * 30])]), 3, 0) is None
    assert MUTATIONS["al-2"].applied(window([plain("a", 30)]), 0, 0) is None


def test_where_only_totals_tell_of_steps_these_change() -> None:
    turns = [replace(turn(f"q{i}", [3, 3, 3, 2]), steps=None, step_ns=()) for i in range(10)]
    counters = Counters(output_tokens=120, steps=40, drafts=40, drafted=120, accepted=70)
    measured = window(turns, counters=counters, total=StepTotal(40, 40, "counter"))
    lower = mutated("al-10", measured)
    # 50 steps with the prefills', / 0.9 = 55.6.
    assert lower.steps == StepTotal(46, 46, "counter")
    assert (lower.counters.steps, lower.counters.accepted, lower.counters.drafted) == (46, 64, 138)
    assert codes(lower) == codes(measured) == []


def test_few_prompts_fall_to_one_and_the_others_stay() -> None:
    measured = window([turn(f"q{i}", [4, 4, 4]) for i in range(60)])
    lengths = [c.acceptance_length for c in conversations(mutated("few", measured).turns)]
    assert sorted(lengths) == [1.0] * 3 + [13 / 4] * 57


def test_a_dead_draft_position_is_never_reached() -> None:
    measured = window([turn("a", [4, 3, 1, 4]), turn("b", [2, 4], cut=1)])
    assert steps_of(mutated("dead-2", measured).turns[0]).lengths == (2, 2, 2, 1, 1, 2, 2)
    assert steps_of(mutated("dead-last", measured).turns[0]).lengths == (3, 1, 3, 1, 3, 1)
    assert MUTATIONS["dead-2"].applied(measured, 1, 0) is None


def test_the_spread_grows_and_the_mean_stays() -> None:
    measured = window([turn(f"q{i}", [2, 1, 2, 3, 1, 2] * 5) for i in range(20)])
    wider = mutated("spread", measured)
    before, after = ([c.acceptance_length for c in conversations(w.turns)] for w in (measured, wider))
    assert pvariance(after) > pvariance(before) + 0.01
    assert al(wider) == pytest.approx(al(measured), rel=0.005)
    assert codes(wider) == []


# Time


def test_everything_slower_lowers_rates_by_just_that() -> None:
    measured = window([turn("a", [3, 3]), turn("b", [2, 2], start_ms=200)])
    for name, share in (("tps-5", 0.95), ("tps-10", 0.9)):
        before, after = output_tps(measured.turns), output_tps(mutated(name, measured).turns)
        assert before is not None
        assert after == pytest.approx(share * before, rel=1e-6)


def test_a_later_first_token_delays_what_the_stream_sends_next() -> None:
    # One stream: the second turn is sent when the first has ended.
    measured = window([turn("a", [2, 2]), turn("b", [2, 2], start_ms=120)], steady_ns=(100 * MS, 240 * MS))
    later = mutated("ttft-20", measured)
    assert ttft_s(later.turns).tolist() == pytest.approx([0.12, 0.12])
    assert step_s(later.turns).tolist() == pytest.approx(step_s(measured.turns).tolist())
    assert [t.start_ns for t in later.turns] == [0, 140 * MS]
    # At 100 ms the first token is 20 ms late, at 240 ms both are.
    assert later.steady_ns == (120 * MS, 280 * MS)


# Identities


def shapes(measured: Window) -> Iterator[Window]:
    """The same cell as engines tell of it: everything, no order, no counts per turn, totals only."""
    yield measured
    counted = replace(measured.counters, steps=sum(steps_of(t).count for t in measured.turns))
    yield replace(measured, counters=counted)
    yield replace(measured, turns=tuple(unordered(t) for t in measured.turns))
    total = StepTotal(counted.steps or 0, counted.steps or 0, "counter")
    by_events = tuple(
        replace(t, steps=replace(steps_of(t), lengths=t.event_tokens[1:], accepted=None, drafted=None, cut=None))
        for t in measured.turns
    )
    yield replace(measured, turns=by_events, counters=counted, steps=total)
    no_steps = tuple(replace(t, steps=None, step_ns=()) for t in measured.turns)
    yield replace(measured, turns=no_steps, counters=counted, steps=total)


def unordered(measured: Turn) -> Turn:
    steps = steps_of(measured)
    return replace(measured, steps=replace(steps, lengths=tuple(sorted(steps.lengths)), ordered=False))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=8), min_size=1, max_size=6), st.data())
def test_no_mutation_breaks_an_identity_that_it_is_not_meant_to(cell: list[list[int]], data: st.DataObject) -> None:
    turns = []
    for i, lengths in enumerate(cell):
        cut = data.draw(st.integers(0, lengths[-1] - 1))
        turns.append(turn(f"q{i % 4}", lengths, cut=cut, index=i // 4, start_ms=300 * i))
    seed = data.draw(st.integers(0, 3))
    for measured in shapes(window(turns)):
        if codes(measured):
            continue
        for name, mutation in MUTATIONS.items():
            changed = mutation.applied(measured, 3, seed)
            if changed is not None:
                # The one turn that there was may be lost: then nothing is measured either.
                found = [code for code in codes(changed) if code != "nothing_measured"]
                assert found == expected(name), name
                assert changed == mutation.applied(measured, 3, seed)


@pytest.mark.parametrize("folder", sorted(path.name for path in ARTIFACTS.iterdir()))
def test_recorded_runs_of_every_engine_can_be_mutated(folder: str) -> None:
    run, _, _ = artifact.read(ARTIFACTS / folder / artifact.FILE_NAME)
    engine = run.engines[0]
    draft_tokens = engine.draft_tokens or 0
    windows = [w for _, w in read_windows(ARTIFACTS / folder / "speedbench-requests.jsonl.gz")][::9]
    tried = set()
    for measured in windows:
        assert codes(measured, draft_tokens) == []
        for name, mutation in MUTATIONS.items():
            changed = mutation.applied(measured, draft_tokens, 0)
            if changed is not None:
                tried.add(name)
                assert codes(changed, draft_tokens) == expected(name), (measured.cell, name)
    timing = {name for name in MUTATIONS if name.startswith(("tps", "ttft", "halt"))} | {
        "lost",
        "duplicate",
        "counters",
    }
    assert tried == (set(MUTATIONS) if draft_tokens else timing)


def test_step_times_survive_a_drop_of_acceptance() -> None:
    # Without arrivals of the new steps a gate on step times would be INVALID, and seem to notice.
    measured = window([turn(f"q{i}", [4, 2, 3, 1, 4]) for i in range(10)])
    metrics, _ = summarise(mutated("al-10", measured), seed_parts=("x",))
    assert "step_p50_s" in metrics


def test_kinds() -> None:
    assert {name for name, m in MUTATIONS.items() if m.kind is Kind.BROKEN} == set(BROKEN)
    assert [m.name for m in MUTATIONS.values() if m.kind is Kind.EXTREME] == ["collapse", "halt"]

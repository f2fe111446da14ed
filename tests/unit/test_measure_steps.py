"""Decode steps from what engines tell, against schedules whose truth is known."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.measure import acceptance as acc
from pytest_speedbench.measure.samples import Counters, Steps, StepTotal, Told, Turn
from pytest_speedbench.measure.steps import BRACKET, NO_SPECULATION, STEP_COUNTER, Drafting, settle
from tests.emulator.schedule import Schedule

DRAFT = Drafting(3, always=True, told="sums of the engine")
NGRAM = Drafting(3, always=False, told="sums of the engine")


def turn(schedule: Schedule, told: Told | None = None, *, name: str = "q") -> Turn:
    """What a decoder makes of a schedule's events: one millisecond apart."""
    sizes = tuple(map(len, schedule.events))
    return Turn(
        question_id=name,
        category="coding",
        index=0,
        prompt_tokens=7,
        output_tokens=schedule.output_tokens,
        finish="length",
        start_ns=0,
        event_ns=tuple(1_000_000 * (i + 1) for i in range(len(sizes))),
        event_tokens=sizes,
        step_ns=(),
        steps=None,
        text="",
        output_ids=schedule.ids,
        told=told,
    )


def counters(schedules: Sequence[Schedule], *, steps: bool = True, drafts: bool = True) -> Counters:
    return Counters(
        steps=sum(len(s.steps) for s in schedules) if steps else None,
        drafts=sum(s.drafts for s in schedules) if drafts else None,
        drafted=sum(s.drafted for s in schedules) if drafts else None,
        accepted=sum(s.accepted for s in schedules) if drafts else None,
    )


def sums(schedule: Schedule) -> Told:
    """As SGLang: steps, and how many drafts each step accepted, without their order."""
    return Told(
        steps=len(schedule.steps),
        drafts=len(schedule.steps),
        drafted=schedule.drafted,
        accepted=schedule.accepted,
        lengths=tuple(sorted(schedule.lengths)),
        ordered=False,
    )


def drafted_steps(schedule: Schedule, *, detailed: bool) -> Told:
    """As vLLM with per-request metrics: steps that did not draft are not told."""
    lengths = tuple(a + 1 for d, a in schedule.steps if d)
    return Told(
        drafts=schedule.drafts,
        drafted=schedule.drafted,
        accepted=schedule.accepted,
        lengths=lengths if detailed else tuple(sorted(lengths)),
        ordered=detailed,
    )


def settled(turns: Sequence[Turn], totals: Counters, drafting: Drafting) -> tuple[tuple[Turn, ...], StepTotal]:
    return settle(turns, totals, drafting)


def steps_of(found: Turn) -> Steps:
    assert found.steps is not None
    return found.steps


# No speculation


def test_without_speculation_every_token_after_the_first_is_a_step() -> None:
    schedule = Schedule.of(6, draft=0, joins=frozenset({2}))
    assert [len(e) for e in schedule.events] == [1, 1, 2, 1, 1]
    ((found,), total) = settled([turn(schedule)], Counters(), Drafting(0, always=True, told=""))
    assert found.steps == Steps((1, 1, 1, 1, 1), accepted=0, drafted=0)
    assert total == StepTotal(5, 5, NO_SPECULATION)
    # No gap may be formed across the event in which a second step is hidden.
    assert found.step_ns == (1_000_000, 2_000_000, -3_000_000, 4_000_000, 5_000_000)
    assert acc.acceptance_length([found]) == 1.0


# Exact sums per turn


def test_sums_and_one_event_per_step_give_the_lengths_in_order() -> None:
    schedule = Schedule.of(12, draft=3, accept=(2, 0, 3))
    ((found,), total) = settled([turn(schedule, sums(schedule))], Counters(), DRAFT)
    assert schedule.steps == ((3, 2), (3, 0), (3, 3), (3, 2))
    assert steps_of(found) == Steps((3, 1, 4, 3), accepted=7, drafted=12, cut=0)
    assert total == StepTotal(4, 4, "sums of the engine")
    assert found.step_ns == found.event_ns


def test_the_cut_of_the_last_step_follows_from_the_identity() -> None:
    schedule = Schedule.of(10, draft=3, accept=(2, 0, 3))
    assert (schedule.lengths, schedule.cut) == ((3, 1, 4, 3), 2)
    ((found,), _) = settled([turn(schedule, sums(schedule))], Counters(), DRAFT)
    assert steps_of(found) == Steps((3, 1, 4, 3), accepted=7, drafted=12, cut=2)
    assert acc.histogram([found]) == schedule.histogram == {1: 3, 3: 1, 4: 1}


def test_joined_events_hide_the_order_but_not_the_lengths() -> None:
    schedule = Schedule.of(12, draft=3, accept=(2, 0, 3), joins=frozenset({1}))
    ((found,), _) = settled([turn(schedule, sums(schedule))], Counters(), DRAFT)
    assert steps_of(found) == Steps((1, 3, 3, 4), accepted=7, drafted=12, cut=0, ordered=False)
    assert acc.histogram([found]) == schedule.histogram
    assert found.step_ns == ()
    assert acc.uncut_histogram([found]) == {}


def test_joined_events_and_a_cut_that_only_one_length_allows() -> None:
    schedule = Schedule.of(8, draft=3, accept=(0, 0, 3), joins=frozenset({1}))
    assert (schedule.lengths, schedule.cut) == ((1, 1, 4, 1), 0)
    schedule = dataclasses.replace(schedule, ids=schedule.ids[:5], steps=schedule.steps[:3])
    assert (schedule.lengths, schedule.cut) == ((1, 1, 4), 2)
    ((found,), _) = settled([turn(schedule, sums(schedule))], Counters(), DRAFT)
    assert not steps_of(found).ordered
    assert acc.histogram([found]) == schedule.histogram == {1: 3, 2: 1}
    assert acc.uncut_histogram([found]) == {1: 2}
    assert acc.unresolved_steps([found]) == 0


def test_joined_events_and_a_cut_that_two_lengths_allow_is_left_out_of_the_histogram() -> None:
    schedule = Schedule.of(10, draft=3, accept=(2, 0, 3), joins=frozenset({1}))
    ((found,), _) = settled([turn(schedule, sums(schedule))], Counters(), DRAFT)
    assert acc.histogram([found]) == {1: 1}
    assert acc.unresolved_steps([found]) == 4
    assert acc.acceptance_length([found]) == 10 / 5


def test_steps_without_lengths_are_counted_and_unresolved() -> None:
    schedule = Schedule.of(12, draft=3, accept=(2, 0, 3), joins=frozenset({1}))
    told = Told(steps=4, accepted=7, drafted=12)
    ((found,), _) = settled([turn(schedule, told)], Counters(), DRAFT)
    assert steps_of(found) == Steps((0, 0, 0, 0), accepted=7, drafted=12, cut=0)


def test_steps_alone_make_every_event_a_step_with_unknown_drafts() -> None:
    schedule = Schedule.of(10, draft=3, accept=(2, 0, 3))
    ((found,), _) = settled([turn(schedule, Told(steps=4))], Counters(), DRAFT)
    assert steps_of(found) == Steps((3, 1, 4, 1), accepted=None, drafted=None, cut=None)
    assert acc.histogram([found]) == schedule.histogram
    assert acc.acceptance_length([found]) == 2.0
    assert acc.acceptance_rate([found]) is None


# Steps that drafted, and steps that did not


@pytest.mark.parametrize("detailed", [True, False])
def test_misses_are_found_with_the_servers_counter(detailed: bool) -> None:
    schedule = Schedule.of(14, draft=3, accept=(2, 0, 3), miss=2)
    assert schedule.drafts < len(schedule.steps)
    told = turn(schedule, drafted_steps(schedule, detailed=detailed))
    ((found,), total) = settled([told], counters([schedule]), NGRAM)
    assert steps_of(found) == Steps(schedule.lengths, schedule.accepted, schedule.drafted, schedule.cut)
    assert total == StepTotal(len(schedule.steps), len(schedule.steps), STEP_COUNTER)


def test_a_last_step_that_accepted_nothing_was_not_cut() -> None:
    schedule = Schedule(tuple(range(10)), ((3, 2), (0, 0), (3, 3), (3, 0)), joins=frozenset({1}))
    ((found,), total) = settled([turn(schedule, drafted_steps(schedule, detailed=True))], Counters(), NGRAM)
    assert steps_of(found) == Steps((1, 1, 3, 4), 5, 9, 0, ordered=False)
    assert total.source == NGRAM.told


def test_a_drafter_that_always_drafts_needs_no_events() -> None:
    schedule = Schedule.of(12, draft=3, accept=(2, 0, 3), joins=frozenset({1, 2}))
    ((found,), total) = settled([turn(schedule, drafted_steps(schedule, detailed=True))], Counters(), DRAFT)
    assert steps_of(found) == Steps((3, 1, 4, 3), accepted=7, drafted=12, cut=0)
    assert total == StepTotal(4, 4, "sums of the engine")


def test_joined_misses_are_in_doubt_until_the_server_counts_steps() -> None:
    schedule = Schedule(tuple(range(13)), ((3, 2), (0, 0), (3, 0), (3, 3), (3, 3)), joins=frozenset({1}))
    assert (schedule.lengths, schedule.cut) == ((3, 1, 1, 4, 4), 1)
    told = turn(schedule, drafted_steps(schedule, detailed=True))
    ((found,), total) = settled([told], counters([schedule], steps=False), NGRAM)
    assert found.steps is None
    assert total == StepTotal(5, 7, BRACKET)
    # Four steps in order 3, 1, 4, 4 fit events of 4, 1, 4, 3 only if the miss was joined to the first.
    ((found,), total) = settled([told], counters([schedule]), NGRAM)
    assert steps_of(found) == Steps((1, 1, 3, 4, 4), 8, 12, 1, ordered=False)
    assert total == StepTotal(5, 5, STEP_COUNTER)


# The window's counter


def test_as_many_steps_as_events_means_that_none_was_joined() -> None:
    schedules = [Schedule.of(n, draft=3, accept=(2, 0, 3), miss=3) for n in (10, 15, 1)]
    turns, total = settled([turn(s) for s in schedules], counters(schedules), NGRAM)
    assert total == StepTotal(sum(len(s.steps) for s in schedules), total.high, STEP_COUNTER)
    assert acc.histogram(turns) == dict(sorted(sum((Counter(s.histogram) for s in schedules), Counter()).items()))
    assert [steps_of(t).count for t in turns] == [len(s.steps) for s in schedules]
    assert [steps_of(t).cut for t in turns] == [None, None, None]
    assert acc.acceptance_length(turns) is not None


def test_one_joined_event_leaves_the_pooled_count_alone() -> None:
    schedules = [Schedule.of(10, draft=3, accept=(2, 0, 3)), Schedule.of(15, draft=3, joins=frozenset({4}))]
    turns, total = settled([turn(s) for s in schedules], counters(schedules), DRAFT)
    assert total == StepTotal(18, 18, STEP_COUNTER)
    assert [t.steps for t in turns] == [None, None]
    assert acc.acceptance_length(turns) is None
    assert acc.decode_acceptance_length(turns, total.low) == 23 / 18


def test_a_join_into_the_first_event_is_a_join() -> None:
    schedule = Schedule.of(10, draft=3, accept=(2, 0, 3), joins=frozenset({0}))
    ((found,), total) = settled([turn(schedule)], counters([schedule], steps=False), DRAFT)
    assert found.steps is None
    assert (total.low, total.source) == (4, BRACKET)
    ((found,), total) = settled([turn(schedule)], counters([schedule]), DRAFT)
    # Four steps in three later events and an over-full first one: each is known to be one.
    assert (steps_of(found).lengths, total.low) == ((0, 0, 0, 0), 4)


# The bracket


def test_the_bracket_by_hand() -> None:
    # 9 + 14 tokens after the first, of which 12 are accepted drafts: at least 11 steps, at most 3 more per turn.
    schedules = [
        Schedule.of(10, draft=3, accept=(2, 0, 3), joins=frozenset({1})),
        Schedule.of(15, draft=3, accept=(1, 0), joins=frozenset({4, 5})),
    ]
    ((_, _), total) = settled([turn(s) for s in schedules], counters(schedules, steps=False), DRAFT)
    events = sum(len(s.events) - 1 for s in schedules)
    accepted = sum(s.accepted for s in schedules)
    assert (events, accepted, sum(s.drafts for s in schedules)) == (10, 12, 13)
    assert total == StepTotal(13, 17, BRACKET)


def test_without_any_counter_only_events_and_tokens_bound() -> None:
    schedule = Schedule.of(10, draft=3, accept=(2, 0, 3))
    ((_,), total) = settled([turn(schedule)], Counters(), DRAFT)
    assert total == StepTotal(4, 9, BRACKET)


@st.composite
def schedules(draw: st.DrawFn) -> list[Schedule]:
    made = []
    for seed in range(draw(st.integers(1, 4))):
        law = random.Random(draw(st.integers(0, 10**6)))
        tokens = draw(st.integers(1, 40))
        left, steps = tokens - 1, []
        while left > 0:
            drafted = law.choice((0, 1, 3, 3))
            accepted = min(drafted, law.choice((0, 0, 1, 2, 3)))
            steps.append((drafted, accepted))
            left -= accepted + 1
        joins = frozenset(i for i in range(len(steps)) if law.random() < draw(st.sampled_from((0.0, 0.0, 0.1, 0.5))))
        ids = tuple(law.choices(range(100), k=tokens))
        made.append(Schedule(ids, tuple(steps), joins=joins))
        assert seed < 4
    return made


TELLING: dict[str, Callable[[Schedule], Told | None]] = {
    "nothing": lambda s: None,
    "sums": sums,
    "detailed": lambda s: drafted_steps(s, detailed=True),
    "summary": lambda s: drafted_steps(s, detailed=False),
    "steps": lambda s: Told(steps=len(s.steps)),
}


@given(schedules(), st.sampled_from(list(TELLING)), st.booleans(), st.booleans())
def test_what_is_said_to_be_known_is_true(
    made: list[Schedule], telling: str, counted: bool, drafts_counted: bool
) -> None:
    told = [turn(s, TELLING[telling](s), name=str(i)) for i, s in enumerate(made)]
    turns, total = settled(told, counters(made, steps=counted, drafts=drafts_counted), NGRAM)
    truth = sum(len(s.steps) for s in made)
    assert total.low <= truth <= total.high
    assert not counted or total.exact
    if telling in ("sums", "steps"):
        assert total.exact
    for found, schedule in zip(turns, made, strict=True):
        steps = found.steps
        if steps is None:
            continue
        assert steps.count == len(schedule.steps)
        assert steps.cut in (None, schedule.cut)
        assert steps.accepted in (None, schedule.accepted)
        if not steps.unresolved and steps.cut is not None:
            expected = schedule.lengths if steps.ordered else tuple(sorted(schedule.lengths))
            assert steps.lengths == expected

"""Events of ``/generate`` to turns and their steps, against scripts of known truth."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_speedbench.engines.base import Profile, Sampling, Speculation, TurnRequest
from pytest_speedbench.engines.sglang import Sglang
from pytest_speedbench.errors import RequestError
from pytest_speedbench.measure import acceptance
from pytest_speedbench.measure.checks import problems
from pytest_speedbench.measure.samples import Client, Counters, Told, Turn, Window
from pytest_speedbench.measure.steps import Drafting, settle
from tests.emulator.schedule import Schedule
from tests.emulator.sglang import events
from tests.unit.test_measure_samples import CODING

PROMPT = (1, 2, 3)
K = 3


def engine_of(k: int = K, method: str = "draft") -> Sglang:
    return Sglang(Profile("sglang", "sglang", "model", Speculation(method if k else "none", k, "drafter")))


def request(schedule: Schedule, *, question: str = "q1", ignore_eos: bool = False) -> TurnRequest:
    """A reply that does not stop by itself ends at its cap."""
    cap = schedule.output_tokens + (50 if schedule.stopped else 0)
    return TurnRequest(question, "coding", 1, PROMPT, Sampling(osl_cap=cap, ignore_eos=ignore_eos))


def decode(
    schedule: Schedule,
    *,
    k: int = K,
    incremental: bool = True,
    question: str = "q1",
    ignore_eos: bool = False,
    **how: Any,
) -> Turn:
    decoder = engine_of(k).decoder(request(schedule, question=question, ignore_eos=ignore_eos))
    window = k + 1 if k else None
    for number, event in enumerate(events(schedule, len(PROMPT), window=window, incremental=incremental, **how)):
        decoder.event(json.dumps(event).encode(), 1000 + number)
    decoder.event(b"[DONE]", 5000)
    return decoder.finish(500)


def drafting(k: int = K) -> Drafting:
    engine = engine_of(k)
    return Drafting(k, engine.drafts_always, engine.steps_source)


def settled(turn: Turn, k: int = K) -> Turn:
    (done,), total = settle([turn], Counters(), drafting(k))
    assert total.exact
    return done


# One turn, by hand


def test_a_turn_in_full() -> None:
    # The prefill's token, then verify steps of 3, 1 and 4 tokens, the last cut by 2 at the cap: 1 + 3 + 1 + 2 = 7.
    schedule = Schedule(tuple(b"abcdefg"), ((3, 2), (3, 0), (3, 3)))
    assert schedule.cut == 2
    turn = decode(schedule)
    assert (turn.question_id, turn.category, turn.index) == ("q1", "coding", 1)
    assert (turn.prompt_tokens, turn.output_tokens, turn.finish, turn.start_ns) == (3, 7, "length", 500)
    assert turn.event_ns == (1000, 1001, 1002, 1003)
    assert turn.event_tokens == (1, 3, 1, 2)
    assert turn.output_ids == tuple(b"abcdefg")
    assert turn.text == "abcdefg"
    assert turn.steps is None
    assert turn.step_ns == ()
    assert turn.told == Told(steps=3, drafts=3, drafted=9, accepted=5, lengths=(1, 3, 4), ordered=False)

    done = settled(turn)
    assert done.steps is not None
    assert (done.steps.lengths, done.steps.cut, done.steps.ordered) == ((3, 1, 4), 2, True)
    assert done.step_ns == (1000, 1001, 1002, 1003)


def test_without_speculation_nothing_is_told() -> None:
    turn = decode(Schedule.of(5, draft=0), k=0)
    assert turn.told is None
    assert turn.event_tokens == (1,) * 5


def test_a_turn_of_one_token_has_no_verify_step() -> None:
    # SGLang says nothing of speculation then.
    turn = decode(Schedule((65,), (), stopped=True))
    assert turn.told == Told(steps=0, drafts=0, drafted=0, accepted=0, lengths=())
    done = settled(turn)
    assert done.steps is not None
    assert done.steps.lengths == ()
    assert turn.text == ""


def test_joined_events_hide_the_order_alone() -> None:
    # Steps of 4, 1 and 2 tokens, the second in the event of the first: which length came when is not known.
    schedule = Schedule(tuple(b"abcdefgh"), ((3, 3), (3, 0), (3, 1)), joins=frozenset({1}))
    turn = decode(schedule)
    assert turn.event_tokens == (1, 5, 2)
    done = settled(turn)
    assert done.steps is not None
    assert (done.steps.lengths, done.steps.ordered) == ((1, 2, 4), False)
    assert done.step_ns == ()


def test_incremental_and_cumulative_streams_give_the_same_turn() -> None:
    schedule = Schedule.drawn(60, draft=K, rate=0.6, seed=3, joins=frozenset({0, 4, 5}))
    cumulative, incremental = (decode(schedule, incremental=mode) for mode in (False, True))
    assert cumulative == incremental
    assert cumulative.output_ids == schedule.ids


def test_the_mode_is_told_apart_event_by_event() -> None:
    # Two events of one token each: the second is the delta [66] or the whole [65, 66].
    schedule = Schedule((65, 66), ((3, 0),))
    assert decode(schedule, incremental=True).output_ids == (65, 66)
    assert decode(schedule, incremental=False).output_ids == (65, 66)
    # Same length, other beginning: neither.
    first, second = events(schedule, len(PROMPT), window=K + 1, incremental=False)
    decoder = engine_of().decoder(request(schedule))
    decoder.event(json.dumps(first).encode(), 1)
    with pytest.raises(RequestError, match="2 ids where 1 tokens were known and 2 have been produced") as caught:
        decoder.event(json.dumps({**second, "output_ids": [70, 66]}).encode(), 2)
    assert caught.value.reason == "ids_lost"


def test_an_event_without_new_tokens_is_no_arrival() -> None:
    # The reason to finish in an event of its own.
    schedule = Schedule(tuple(b"abc"), ((3, 1),))
    first, second = events(schedule, len(PROMPT), window=K + 1)
    early = {**second, "meta_info": {**second["meta_info"], "finish_reason": None}}
    for closing in ({**second, "output_ids": [], "text": ""}, {**second, "output_ids": [97, 98, 99], "text": "abc"}):
        decoder = engine_of().decoder(request(schedule))
        for number, event in enumerate((first, early, closing)):
            decoder.event(json.dumps(event).encode(), number)
        decoder.event(b"[DONE]", 9)
        turn = decoder.finish(0)
        assert (turn.event_ns, turn.event_tokens, turn.text) == ((0, 1), (1, 2), "abc")


def test_a_server_without_a_detokenizer_sends_ids_only() -> None:
    schedule = Schedule.of(4, draft=K)
    decoder = engine_of().decoder(request(schedule))
    for event in events(schedule, len(PROMPT), window=K + 1):
        del event["text"]
        decoder.event(json.dumps(event).encode(), 1)
    decoder.event(b"[DONE]", 2)
    turn = decoder.finish(0)
    assert turn.text is None
    assert turn.output_ids == schedule.ids


def test_names_before_the_present_ones_are_read_too() -> None:
    schedule = Schedule.of(9, draft=K, accept=(2, 0))
    new = frozenset({"spec_num_correct_drafts", "spec_num_proposed_drafts", "spec_correct_drafts_histogram"})
    old = frozenset({"spec_accepted_drafts", "spec_proposed_drafts", "spec_accept_histogram"})
    assert decode(schedule, drop=new).told == decode(schedule, drop=old).told == decode(schedule).told


def test_the_servers_own_length_is_never_used() -> None:
    # 7 tokens in 3 verify steps are 7 / 3 to SGLang, which counts the prefill's token; the steps made 6 / 3.
    schedule = Schedule(tuple(b"abcdefg"), ((3, 1), (3, 1), (3, 1)))
    assert events(schedule, 3, window=K + 1)[-1]["meta_info"]["spec_accept_length"] == 7 / 3
    done = settled(decode(schedule, meta={"spec_accept_length": 99.0, "spec_accept_rate": 99.0}))
    assert acceptance.decode_acceptance_length([done]) == 2.0


# Any schedule


@st.composite
def schedules(draw: st.DrawFn) -> tuple[Schedule, int]:
    """What SGLang can produce, and k: n-gram misses verify nothing but their own token."""
    k = draw(st.integers(1, 8))
    accepts = draw(st.lists(st.integers(0, k), max_size=14))
    steps = tuple((0, 0) if a == 0 and draw(st.booleans()) else (k, a) for a in accepts)
    cut = draw(st.integers(0, accepts[-1])) if accepts else 0
    stopped = draw(st.booleans())
    output_tokens = 1 + sum(a + 1 for a in accepts) - cut
    ids = draw(st.lists(st.integers(32, 126), min_size=output_tokens, max_size=output_tokens))
    joins = draw(st.frozensets(st.integers(0, len(accepts) - 1))) if accepts else frozenset()
    return Schedule(tuple(ids), steps, stopped=stopped, joins=joins), k


@settings(max_examples=300, deadline=None)
@given(schedules(), st.booleans())
def test_truth_is_recovered(case: tuple[Schedule, int], incremental: bool) -> None:
    schedule, k = case
    verified = len(schedule.steps)
    turn = decode(schedule, k=k, incremental=incremental)
    assert turn.output_ids == schedule.ids
    assert turn.event_tokens == tuple(map(len, schedule.events))
    assert turn.finish == ("stop" if schedule.stopped else "length")
    assert turn.told is not None
    assert (turn.told.steps, turn.told.drafts, turn.told.drafted) == (verified, verified, verified * k)
    assert turn.told.accepted == schedule.accepted

    (done,), total = settle([turn], Counters(steps=verified), drafting(k))
    assert (total.low, total.high, total.source) == (verified, verified, Sglang.steps_source)
    assert done.steps is not None
    assert (done.steps.count, done.steps.accepted, done.steps.drafted) == (verified, schedule.accepted, verified * k)
    assert done.steps.cut == schedule.cut
    assert Counter(done.steps.lengths) == Counter(schedule.lengths)
    if not schedule.joins:
        assert done.steps.ordered
        assert done.steps.lengths == schedule.lengths
        assert done.step_ns == turn.event_ns
    if not schedule.joins or schedule.cut == 0:
        assert acceptance.unresolved_steps([done]) == 0
    if acceptance.unresolved_steps([done]) == 0:
        assert acceptance.histogram([done]) == schedule.histogram
    assert acceptance.acceptance_length([done]) == schedule.output_tokens / (verified + 1)
    if verified:
        assert acceptance.decode_acceptance_length([done]) == (schedule.output_tokens - 1) / verified


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.data())
def test_a_window_of_any_turns_passes_every_check(k: int, data: st.DataObject) -> None:
    made = data.draw(st.lists(schedules().map(lambda case: case[0]), min_size=1, max_size=5))
    several = [replace(s, steps=tuple((k if d else 0, a) for d, a in s.steps)) for s in made if _fits(s, k)]
    turns = [replace(decode(s, k=k, question=f"q{i}"), index=0) for i, s in enumerate(several)]
    if not turns:
        return
    verified = sum(len(s.steps) for s in several)
    counters = Counters(
        prompt_tokens=len(PROMPT) * len(turns),
        output_tokens=sum(s.output_tokens for s in several),
        steps=verified,
        drafts=verified,
        cached_tokens=0,
        preemptions=0,
    )
    done, total = settle(turns, counters, drafting(k))
    window = Window(
        cell=CODING,
        planned=tuple((t.question_id, 1) for t in done),
        turns=done,
        failures=(),
        counters=counters,
        client=Client(0.0, 0.1),
        steps=total,
    )
    assert {reason.code for reason in problems(window, speculation=True, draft_tokens=k)} <= {"no_speculation"}
    tokens = sum(s.output_tokens for s in several)
    assert acceptance.acceptance_length_pooled(done) == tokens / (verified + len(turns))
    means = [s.output_tokens / (len(s.steps) + 1) for s in several]
    assert acceptance.acceptance_length(done) == pytest.approx(sum(means) / len(means), abs=1e-12)


def _fits(schedule: Schedule, k: int) -> bool:
    return all(a <= k for _, a in schedule.steps)


# Refusals


@pytest.mark.parametrize(
    ("meta", "reason", "message"),
    [
        ({"cached_tokens": 2}, "prefix_cache", "2 of 3 prompt tokens came from a cache"),
        ({"prompt_tokens": 4}, "prompt_changed", "3 prompt tokens were sent and 4 were processed"),
        ({"finish_reason": {"type": "tool"}}, "unknown_stop", "the server stopped for 'tool'"),
        ({"finish_reason": {"type": "abort", "message": "no memory"}}, "aborted", "gave up the request: no memory"),
        ({"completion_tokens": 9}, "ids_lost", "5 ids where 0 tokens were known and 9 have been produced"),
        ({"completion_tokens": 0}, "ids_lost", "5 ids where 0 tokens were known and 0 have been produced"),
        (
            {"spec_correct_drafts_histogram": [1]},
            "bad_event",
            r"\[1\] holds 1 verify steps and 0 correct drafts, but the counts beside it are 2 and 2",
        ),
        ({"spec_verify_ct": 3}, "bad_event", "but the counts beside it are 3 and 2"),
    ],
)
def test_refused_answers(meta: dict[str, Any], reason: str, message: str) -> None:
    schedule = Schedule(tuple(b"abcde"), ((3, 2), (3, 0)), joins=frozenset({0, 1}))
    with pytest.raises(RequestError, match=message) as caught:
        decode(schedule, meta=meta)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("dropped", "named"),
    [
        ({"spec_verify_ct"}, "spec_verify_ct"),
        (
            {"spec_num_correct_drafts", "spec_accepted_drafts"},
            "spec_num_correct_drafts or spec_accepted_drafts",
        ),
        (
            {"spec_num_proposed_drafts", "spec_proposed_drafts"},
            "spec_num_proposed_drafts or spec_proposed_drafts",
        ),
        (
            {"spec_correct_drafts_histogram", "spec_accept_histogram"},
            "spec_correct_drafts_histogram or spec_accept_histogram",
        ),
        ({"completion_tokens"}, "completion_tokens"),
        ({"prompt_tokens"}, "prompt_tokens"),
        ({"cached_tokens"}, "cached_tokens"),
    ],
)
def test_missing_fields_are_named(dropped: set[str], named: str) -> None:
    with pytest.raises(RequestError, match=rf"^meta_info of SGLang \(version unknown\) has no {named}$") as caught:
        decode(Schedule.of(9, draft=K), drop=frozenset(dropped))
    assert caught.value.reason == "missing_field"


def test_an_end_that_is_neither_eos_nor_the_cap_is_truncated() -> None:
    # The context was full: SGLang calls that "length" too.
    schedule = Schedule.of(5, draft=K)
    decoder = engine_of().decoder(TurnRequest("q", "c", 0, PROMPT, Sampling(osl_cap=6)))
    for event in events(schedule, len(PROMPT), window=K + 1):
        decoder.event(json.dumps(event).encode(), 1)
    decoder.event(b"[DONE]", 2)
    with pytest.raises(RequestError, match="ended at 5 tokens, not at EOS or the cap of 6") as caught:
        decoder.finish(0)
    assert caught.value.reason == "truncated"


def test_a_stop_that_was_to_be_ignored_is_refused() -> None:
    schedule = Schedule.of(5, draft=K, stopped=True)
    decode(schedule)
    with pytest.raises(RequestError, match="was to ignore EOS") as caught:
        decode(schedule, ignore_eos=True)
    assert caught.value.reason == "unknown_stop"


@pytest.mark.parametrize(
    ("kept", "message"), [(1, "before an event gave a reason"), (2, r"without its end mark, \[DONE\]")]
)
def test_a_stream_without_its_end_is_cut(kept: int, message: str) -> None:
    schedule = Schedule(tuple(b"abc"), ((3, 1),))
    decoder = engine_of().decoder(request(schedule))
    for event in events(schedule, len(PROMPT), window=K + 1)[:kept]:
        decoder.event(json.dumps(event).encode(), 1)
    with pytest.raises(RequestError, match=message) as caught:
        decoder.finish(0)
    assert caught.value.reason == "stream_cut"


def test_an_end_mark_alone_finishes_nothing() -> None:
    decoder = engine_of().decoder(request(Schedule.of(3, draft=K)))
    decoder.event(b"[DONE]", 1)
    with pytest.raises(RequestError, match="before an event gave a reason") as caught:
        decoder.finish(0)
    assert caught.value.reason == "stream_cut"


def test_a_turn_without_a_token_cannot_be_timed() -> None:
    decoder = engine_of().decoder(request(Schedule.of(3, draft=K)))
    meta = {"finish_reason": {"type": "length", "length": 0}, "completion_tokens": 0, "prompt_tokens": 3}
    decoder.event(json.dumps({"text": "", "output_ids": [], "meta_info": meta}).encode(), 1)
    decoder.event(b"[DONE]", 2)
    with pytest.raises(RequestError, match="finished without a token") as caught:
        decoder.finish(0)
    assert caught.value.reason == "no_tokens"


def test_an_event_after_the_closing_one_is_refused() -> None:
    schedule = Schedule.of(3, draft=K)
    decoder = engine_of().decoder(request(schedule))
    made = events(schedule, len(PROMPT), window=K + 1)
    for event in made:
        decoder.event(json.dumps(event).encode(), 1)
    with pytest.raises(RequestError, match="after the one that closed the turn") as caught:
        decoder.event(json.dumps(made[-1]).encode(), 2)
    assert caught.value.reason == "bad_event"


def test_an_error_inside_http_200_carries_the_servers_message() -> None:
    decoder = engine_of().decoder(request(Schedule.of(3, draft=K)))
    with pytest.raises(RequestError, match=r"^too long$") as caught:
        decoder.event(b'{"error":{"message":"too long","type":"invalid_request_error","code":400}}', 1)
    assert caught.value.reason == "error_event"

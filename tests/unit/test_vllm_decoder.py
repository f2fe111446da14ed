"""Events of vLLM's ``/v1/completions`` to turns, against schedules of known truth."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pytest_speedbench.engines.base import Profile, Sampling, Speculation, TurnRequest
from pytest_speedbench.engines.vllm import Vllm
from pytest_speedbench.engines.vllm_speculation import told
from pytest_speedbench.errors import EngineError, RequestError
from pytest_speedbench.measure import acceptance as acc
from pytest_speedbench.measure.samples import Counters, StepTotal, Told, Turn
from pytest_speedbench.measure.steps import Drafting, settle
from tests.emulator import vllm as emulator
from tests.emulator.schedule import Schedule
from tests.emulator.server import Request

PROMPT = (1, 2, 3)
LEVELS = ("none", "summary", "detailed")


def engine_of(method: str, k: int, *, version: str = "0.32.0", base_url: str | None = None) -> Vllm:
    """An adapter that has described a server of that version."""
    speculation = Speculation() if method == "none" else Speculation(method, k, "org/draft")
    engine = Vllm(Profile("v", "vllm", "org/target", speculation, base_url=base_url))
    app = emulator.Vllm(lambda request: Schedule.of(1, draft=0), version=version)

    def fetch(path: str) -> bytes:
        return app.plain(Request(-1, "GET", path, {})).body

    engine.describe(fetch)
    return engine


def decode(
    schedule: Schedule,
    engine: Vllm,
    *,
    k: int = 0,
    level: str = "none",
    cap: int | None = None,
    ignore_eos: bool = False,
    change: Any = lambda event: None,
) -> Turn:
    """The turn of a schedule; without EOS it ends at its cap. ``change`` may alter each event's payload."""
    default = schedule.output_tokens + (64 if schedule.stopped else 0)
    sampling = Sampling(osl_cap=default if cap is None else cap, ignore_eos=ignore_eos)
    request = TurnRequest("q1", "coding", 1, PROMPT, sampling)
    app = emulator.Vllm(lambda _: schedule, draft_tokens=k, metrics=level)
    decoder = engine.decoder(request)
    for number, event in enumerate(app.events(engine.body(request), schedule)):
        change(event)
        decoder.event(json.dumps(event).encode(), 1000 + number)
    decoder.event(b"[DONE]", 9999)
    return decoder.finish(500)


def counters_of(schedules: Sequence[Schedule], *, step_counter: bool) -> Counters:
    return Counters(
        prompt_tokens=len(PROMPT) * len(schedules),
        output_tokens=sum(s.output_tokens for s in schedules),
        steps=sum(len(s.steps) for s in schedules) if step_counter else None,
        drafts=sum(s.drafts for s in schedules),
        drafted=sum(s.drafted for s in schedules),
        accepted=sum(s.accepted for s in schedules),
    )


def settled(
    schedules: Sequence[Schedule], method: str, k: int, *, level: str, step_counter: bool
) -> tuple[tuple[Turn, ...], StepTotal]:
    version = "0.24.0" if level == "none" else "0.32.0"
    engine = engine_of(method, k, version=version)
    turns = [decode(s, engine, k=k, level=level) for s in schedules]
    counters = counters_of(schedules, step_counter=step_counter)
    return settle(turns, counters, Drafting(k if method != "none" else 0, engine.drafts_always, engine.steps_source))


def merged_histogram(schedules: Sequence[Schedule]) -> dict[int, int]:
    counts: Counter[int] = Counter()
    for schedule in schedules:
        counts.update(schedule.histogram)
    return dict(sorted(counts.items()))


# One turn in full


def test_a_turn_in_full() -> None:
    # 1 prefill token, steps of 4, 1 and 3 tokens; the third comes joined to the second.
    schedule = Schedule((97, 98, 99, 100, 101, 102, 103, 104, 105), ((3, 3), (3, 0), (3, 2)), joins=frozenset({2}))
    turn = decode(schedule, engine_of("draft", 3), k=3, level="detailed")
    assert turn == Turn(
        question_id="q1",
        category="coding",
        index=1,
        prompt_tokens=3,
        output_tokens=9,
        finish="length",
        start_ns=500,
        event_ns=(1000, 1001, 1002),
        event_tokens=(1, 4, 4),
        step_ns=(),
        steps=None,
        text="abcdefghi",
        output_ids=(97, 98, 99, 100, 101, 102, 103, 104, 105),
        told=Told(drafts=3, drafted=9, accepted=5, lengths=(4, 1, 3), ordered=True),
    )


def test_the_three_levels_of_metrics() -> None:
    schedule = Schedule.of(20, draft=3, accept=(3, 0, 1), miss=4)
    engine = engine_of("ngram", 3)
    by_level = {
        level: decode(schedule, engine_of("ngram", 3, version="0.24.0"), k=3, level=level).told for level in LEVELS
    }
    detailed = decode(schedule, engine, k=3, level="detailed").told
    assert schedule.lengths == (4, 1, 2, 1, 1, 2, 4, 1, 2, 4)
    assert schedule.steps[3] == schedule.steps[7] == (0, 0)
    assert by_level["none"] is None
    assert by_level["summary"] == Told(
        drafts=8, drafted=24, accepted=12, lengths=(1, 1, 2, 2, 2, 4, 4, 4), ordered=False
    )
    assert detailed == by_level["detailed"]
    assert detailed == Told(drafts=8, drafted=24, accepted=12, lengths=(4, 1, 2, 1, 2, 4, 2, 4), ordered=True)


def test_a_request_without_any_draft_tells_so() -> None:
    for level in ("summary", "detailed"):
        turn = decode(Schedule.of(5, draft=0), engine_of("ngram", 3), k=3, level=level)
        assert turn.told == Told(drafts=0, drafted=0, accepted=0, lengths=(), ordered=True)


def test_text_that_is_held_back_comes_with_the_token_that_completes_it() -> None:
    ids = tuple("é湖!".encode())
    turn = decode(Schedule(ids, ((0, 0),) * 5), engine_of("none", 0))
    assert turn.text == "é湖!"
    assert turn.event_tokens == (1,) * 6
    assert turn.output_ids == ids


def test_eos_is_a_token_without_text() -> None:
    turn = decode(Schedule((97, 98, 0), ((3, 1),), stopped=True), engine_of("draft", 3), k=3, level="detailed")
    assert (turn.finish, turn.text, turn.output_tokens, turn.output_ids) == ("stop", "ab", 3, (97, 98, 0))


def test_an_event_without_tokens_is_no_event_of_the_turn() -> None:
    schedule = Schedule.of(4, draft=0)

    def split_last(event: dict[str, Any]) -> None:
        if event["choices"] and event["choices"][0]["finish_reason"]:
            event["choices"][0] |= {"token_ids": [], "text": "held"}
        if event.get("usage"):
            event["usage"]["completion_tokens"] -= 1

    turn = decode(schedule, engine_of("none", 0), cap=3, change=split_last)
    assert (turn.event_tokens, turn.event_ns, turn.finish) == ((1, 1, 1), (1000, 1001, 1002), "length")
    assert turn.text is not None
    assert turn.text.endswith("held")


# Truth is recovered


@st.composite
def schedules(draw: st.DrawFn, k: int, *, misses: bool) -> Schedule:
    """An answer as the real server can produce it: cut at EOS or the cap, events joined anywhere."""
    left = draw(st.integers(0, 30))
    tokens, steps = left + 1, list[tuple[int, int]]()
    while left > 0:
        drafted = draw(st.integers(0, k)) if misses else k
        steps.append((drafted, draw(st.integers(0, drafted))))
        left -= steps[-1][1] + 1
    joins = draw(st.frozensets(st.integers(0, len(steps) - 1))) if steps else frozenset()
    if draw(st.booleans()):
        joins = frozenset()
    return Schedule(tuple(range(32, 32 + tokens)), tuple(steps), stopped=draw(st.booleans()), joins=joins)


@st.composite
def windows(draw: st.DrawFn, *, misses: bool) -> tuple[int, list[Schedule]]:
    k = draw(st.integers(1, 8))
    return k, draw(st.lists(schedules(k, misses=misses), min_size=1, max_size=4))


def assert_claims_are_true(turns: Sequence[Turn], truth: Sequence[Schedule]) -> None:
    for turn, schedule in zip(turns, truth, strict=True):
        steps = turn.steps
        if steps is None:
            continue
        assert steps.count == len(schedule.steps)
        assert steps.accepted in (None, schedule.accepted)
        assert steps.drafted in (None, schedule.drafted)
        assert steps.cut in (None, schedule.cut)
        resolved = list(steps.lengths)
        if steps.cut is None and resolved and resolved[-1]:
            # As cut, says Steps.
            resolved[-1] += schedule.cut
        assert not Counter(n for n in resolved if n) - Counter(schedule.lengths)
        if steps.ordered:
            assert all(found in (0, true) for found, true in zip(resolved, schedule.lengths, strict=True))
        if turn.step_ns:
            assert turn.step_ns == turn.event_ns
            assert not schedule.joins


@settings(max_examples=200, deadline=None)
@given(windows(misses=False), st.booleans())
def test_per_step_lists_give_everything(case: tuple[int, list[Schedule]], step_counter: bool) -> None:
    k, truth = case
    turns, total = settled(truth, "draft", k, level="detailed", step_counter=step_counter)
    assert total.exact
    assert total.low == sum(len(s.steps) for s in truth)
    for turn, schedule in zip(turns, truth, strict=True):
        assert turn.steps is not None
        assert turn.steps.lengths == schedule.lengths
        assert (turn.steps.accepted, turn.steps.drafted) == (schedule.accepted, schedule.drafted)
        assert (turn.steps.cut, turn.steps.ordered) == (schedule.cut, True)
    assert acc.histogram(turns) == merged_histogram(truth)
    # Upstream's request mean counts the prefill as a step.
    means = [s.output_tokens / (len(s.steps) + 1) for s in truth]
    assert acc.acceptance_length([replace(t, question_id=str(i)) for i, t in enumerate(turns)]) == pytest.approx(
        sum(means) / len(means), abs=1e-12
    )
    assert_claims_are_true(turns, truth)


@settings(max_examples=200, deadline=None)
@given(windows(misses=False))
def test_sums_give_the_totals_of_drafters_that_always_draft(case: tuple[int, list[Schedule]]) -> None:
    k, truth = case
    turns, total = settled(truth, "draft", k, level="summary", step_counter=False)
    assert (total.low, total.high) == (sum(len(s.steps) for s in truth),) * 2
    for turn, schedule in zip(turns, truth, strict=True):
        assert turn.steps is not None
        assert (turn.steps.count, turn.steps.accepted) == (len(schedule.steps), schedule.accepted)
        assert turn.steps.cut == schedule.cut
        assert Counter(turn.steps.lengths) == Counter(schedule.lengths)
    assert_claims_are_true(turns, truth)


@settings(max_examples=300, deadline=None)
@given(windows(misses=True), st.sampled_from(LEVELS))
@example((3, [Schedule((1, 2, 3), ((3, 3),), joins=frozenset({0}))]), "none")
def test_the_step_counter_makes_the_total_exact(case: tuple[int, list[Schedule]], level: str) -> None:
    k, truth = case
    turns, total = settled(truth, "ngram", k, level=level, step_counter=True)
    assert (total.low, total.high) == (sum(len(s.steps) for s in truth),) * 2
    assert_claims_are_true(turns, truth)
    if not any(s.joins for s in truth):
        # No event joined two steps, so each turn's own are certain too.
        assert [t.steps and t.steps.count for t in turns] == [len(s.steps) for s in truth]


@settings(max_examples=300, deadline=None)
@given(windows(misses=True), st.sampled_from(LEVELS))
def test_without_the_step_counter_the_truth_is_in_the_bracket(case: tuple[int, list[Schedule]], level: str) -> None:
    k, truth = case
    turns, total = settled(truth, "ngram", k, level=level, step_counter=False)
    assert total.low <= sum(len(s.steps) for s in truth) <= total.high
    assert_claims_are_true(turns, truth)


@settings(max_examples=100, deadline=None)
@given(windows(misses=False).map(lambda case: [replace(s, steps=((0, 0),) * (s.output_tokens - 1)) for s in case[1]]))
def test_without_speculation_the_acceptance_length_is_one(truth: list[Schedule]) -> None:
    turns, total = settled(truth, "none", 0, level="none", step_counter=False)
    assert total.exact
    assert acc.decode_acceptance_length(turns, total.low) in (None, 1.0)
    assert all(turn.steps is not None and turn.steps.lengths == (1,) * (turn.output_tokens - 1) for turn in turns)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_random_laws(k: int, rate: float) -> None:
    truth = [Schedule.drawn(64 + seed, draft=k, rate=rate, seed=seed) for seed in range(8)]
    turns, _ = settled(truth, "eagle3", k, level="detailed", step_counter=True)
    assert acc.histogram(turns) == merged_histogram(truth)
    assert all(t.step_ns == t.event_ns for t in turns)


def test_the_last_steps_before_the_end_of_the_context_draft_less_and_not_at_all() -> None:
    # Seen on vLLM 0.32.0 where prompt and cap fill max_model_len: a drafter that always drafts does not.
    truth = Schedule(tuple([97] * 48), ((4, 4),) * 9 + ((1, 0), (0, 0)))
    turns, total = settled([truth], "draft", 4, level="detailed", step_counter=True)
    assert turns[0].told == Told(drafts=10, drafted=37, accepted=36, lengths=(5,) * 9 + (1,))
    assert (total.low, total.high) == (11, 11)
    assert turns[0].steps is not None
    assert (turns[0].steps.lengths, turns[0].steps.cut) == ((5,) * 9 + (1, 1), 0)


# Refusals


def refused(schedule: Schedule, engine: Vllm, **options: Any) -> tuple[str, str]:
    with pytest.raises(RequestError) as caught:
        decode(schedule, engine, **options)
    return caught.value.reason, str(caught.value)


@pytest.mark.parametrize(
    ("fault", "reason", "message"),
    [
        ("no_usage", "missing_field", "vLLM 0.32.0 sent no usage, which this plugin relies on"),
        ("no_ids", "missing_field", "vLLM 0.32.0 sent no token_ids, which this plugin relies on"),
        (
            "no_metrics",
            "missing_field",
            "vLLM 0.32.0 sent no metrics.speculative_decoding, which this plugin relies on",
        ),
        ("more_usage", "ids_lost", "10 tokens were generated and 9 token ids came back"),
        ("abort", "aborted", "the server aborted the request after 9 tokens"),
        ("cached", "prefix_cache", "16 of 3 prompt tokens came from a cache that is to be off"),
        ("other_prompt", "prompt_changed", "3 prompt tokens were sent and 4 were processed"),
    ],
)
def test_refused_answers(fault: str, reason: str, message: str) -> None:
    schedule = Schedule.of(9, draft=3, accept=(2,), fault=fault)
    assert refused(schedule, engine_of("draft", 3), k=3, level="detailed") == (reason, message)


@pytest.mark.parametrize("finish", ["repetition", "error", "content_filter"])
def test_unknown_reasons_to_stop(finish: str) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["choices"] and event["choices"][0]["finish_reason"]:
            event["choices"][0]["finish_reason"] = finish

    assert refused(Schedule.of(3, draft=0), engine_of("none", 0), change=stop) == (
        "unknown_stop",
        f"the server stopped for {finish!r}, not at EOS or the cap",
    )


def test_a_stop_that_was_to_be_ignored() -> None:
    reason, _ = refused(Schedule.of(3, draft=0, stopped=True), engine_of("none", 0), ignore_eos=True)
    assert reason == "unknown_stop"


def test_length_before_the_cap_is_a_full_context() -> None:
    assert refused(Schedule.of(3, draft=0), engine_of("none", 0), cap=4) == (
        "truncated",
        "the server stopped for length after 3 tokens, and the cap is 4",
    )


def test_no_tokens() -> None:
    def nothing(event: dict[str, Any]) -> None:
        for choice in event["choices"]:
            choice["token_ids"] = []
        if event.get("usage"):
            event["usage"]["completion_tokens"] = 0

    assert refused(Schedule.of(3, draft=0), engine_of("none", 0), change=nothing)[0] == "no_tokens"


def test_a_stream_without_its_end_is_cut() -> None:
    engine = engine_of("none", 0)
    request = TurnRequest("q", "c", 0, PROMPT, Sampling(osl_cap=3))
    events = emulator.Vllm(lambda _: Schedule.of(3, draft=0)).events(engine.body(request), Schedule.of(3, draft=0))
    without_done, without_finish = engine.decoder(request), engine.decoder(request)
    for event in events:
        without_done.event(json.dumps(event).encode(), 1)
    without_finish.event(json.dumps(events[0]).encode(), 1)
    without_finish.event(b"[DONE]", 1)
    for decoder in (without_done, without_finish):
        with pytest.raises(RequestError, match="ended without its end mark") as caught:
            decoder.finish(0)
        assert caught.value.reason == "stream_cut"


def test_tokens_after_the_end_are_refused() -> None:
    engine = engine_of("none", 0)
    request = TurnRequest("q", "c", 0, PROMPT, Sampling(osl_cap=2))
    *_, last, _ = emulator.Vllm(lambda _: Schedule.of(2, draft=0)).events(engine.body(request), Schedule.of(2, draft=0))
    decoder = engine.decoder(request)
    decoder.event(json.dumps(last).encode(), 1)
    with pytest.raises(ValueError, match="finished before"):
        decoder.event(json.dumps(last).encode(), 2)


def test_an_error_event_carries_the_servers_message() -> None:
    decoder = engine_of("none", 0).decoder(TurnRequest("q", "c", 0, PROMPT, Sampling(osl_cap=2)))
    with pytest.raises(RequestError, match=r"^EngineCore died$") as caught:
        decoder.event(b'{"error":{"message":"EngineCore died","type":"InternalServerError","code":500}}', 1)
    assert caught.value.reason == "error_event"


@pytest.mark.parametrize(
    ("version", "base_url"), [("0.24.0", None), ("0.31.2", None), ("0.32.0", "http://host:1"), ("0.33.0", "http://h:1")]
)
def test_servers_that_cannot_or_were_not_asked_to_tell(version: str, base_url: str | None) -> None:
    schedule = Schedule.of(9, draft=3, accept=(2,))
    engine = engine_of("draft", 3, version=version, base_url=base_url)
    assert decode(schedule, engine, k=3, level="none").told is None
    # One that tells all the same is listened to.
    assert decode(schedule, engine, k=3, level="detailed").told is not None


def test_a_server_that_speculates_unasked_is_left_to_the_counters() -> None:
    assert decode(Schedule.of(9, draft=3), engine_of("none", 0), k=3, level="detailed").told is None


# The engine's own numbers

STEPS = ((3, 3), (3, 0), (2, 1), (3, 1))


def test_metrics_that_agree() -> None:
    metrics = emulator.spec_metrics(STEPS, 3, detailed=True)
    assert told(metrics, 3) == Told(drafts=4, drafted=11, accepted=5, lengths=(4, 1, 2, 2), ordered=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_spec_steps": 5}, "steps: 5 by num_spec_steps, 4 by acceptance_histogram"),
        ({"num_accepted_draft_tokens": 6}, "accepted drafts: 6 by num_accepted_draft_tokens, 5 by acceptance_hist"),
        ({"num_draft_tokens": 4}, "5 drafts accepted of 4 in 4 steps of up to 3"),
        ({"num_draft_tokens": 13}, "5 drafts accepted of 13 in 4 steps of up to 3"),
        ({"num_draft_tokens": 12}, "drafts: 12 by num_draft_tokens, 11 by per_step_drafted"),
        ({"num_spec_tokens": 4}, "the server drafts up to 4 tokens per step, but the profile says 3"),
        ({"acceptance_histogram": [1, 2, 0, 1, 0]}, "acceptance_histogram has 5 entries for up to 3 drafts"),
        ({"acceptance_histogram": [1, 2, -1, 2]}, "acceptance_histogram is [1, 2, -1, 2], which is no list of counts"),
        ({"acceptance_histogram": None}, "acceptance_histogram is None, which is no list of counts"),
        ({"num_spec_steps": None}, "num_spec_steps is None, which is no count"),
        ({"num_spec_steps": 4.0}, "num_spec_steps is 4.0, which is no count"),
        ({"num_spec_steps": True}, "num_spec_steps is True, which is no count"),
        ({"per_step_accepted": [3, 0, 1]}, "4 by num_spec_steps, 3 by per_step_accepted, 4 by per_step_drafted"),
        ({"per_step_accepted": [3, 0, 1, 2]}, "5 by num_accepted_draft_tokens, 6 by per_step_accepted"),
        ({"per_step_accepted": [2, 0, 2, 1]}, "per_step_accepted does not give acceptance_histogram [1, 2, 0, 1]"),
        ({"per_step_accepted": [0, 3, 1, 1], "per_step_drafted": [3, 2, 3, 3]}, "a step accepted more drafts than"),
        ({"per_step_drafted": None}, "per_step_drafted is None, which is no list of counts"),
    ],
)
def test_metrics_that_contradict_themselves(changes: dict[str, Any], message: str) -> None:
    metrics = emulator.spec_metrics(STEPS, 3, detailed=True) | changes
    with pytest.raises(RequestError) as caught:
        told(metrics, 3)
    assert caught.value.reason == "bad_metrics"
    assert message in str(caught.value)


def test_fields_of_newer_versions_do_no_harm() -> None:
    metrics = emulator.spec_metrics(STEPS, 3, detailed=True) | {"acceptance_histogram_by_draft_length": {"3": [1]}}
    assert told(metrics, 3).drafts == 4


@given(st.integers(1, 8).flatmap(lambda k: st.tuples(st.just(k), schedules(k, misses=True))))
def test_what_is_told_of_any_schedule(case: tuple[int, Schedule]) -> None:
    k, schedule = case
    drafting = [a + 1 for d, a in schedule.steps if d]
    for detailed in (False, True):
        answer = told(emulator.spec_metrics(schedule.steps, k, detailed=detailed), k)
        assert (answer.steps, answer.drafts) == (None, schedule.drafts)
        assert (answer.drafted, answer.accepted) == (schedule.drafted, schedule.accepted)
        assert answer.lengths == tuple(drafting if detailed else sorted(drafting))
        assert answer.ordered is (detailed or not drafting)


def test_describe_must_come_before_a_missing_field_can_name_the_version() -> None:
    engine = Vllm(Profile("v", "vllm", "m", Speculation()))
    with pytest.raises(RequestError, match=r"^vLLM sent no usage"):
        decode(Schedule.of(3, draft=0, fault="no_usage"), engine)
    with pytest.raises(EngineError, match="does not answer like vLLM"):
        engine.describe(lambda path: b"[]")

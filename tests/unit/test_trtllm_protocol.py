"""The TensorRT-LLM adapter over HTTP, against an executor of known truth, with its faults and its lies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_speedbench.engines.base import Profile, Sampling, Speculation, TurnRequest
from pytest_speedbench.engines.trtllm import TrtLlm
from pytest_speedbench.errors import EngineError, RequestError
from pytest_speedbench.load.client import StreamingClient, fetcher, is_ready
from pytest_speedbench.measure.acceptance import (
    acceptance_length,
    acceptance_length_pooled,
    decode_acceptance_length,
    drafted_acceptance_length,
    histogram,
)
from pytest_speedbench.measure.checks import problems
from pytest_speedbench.measure.samples import Client, Counters, StepTotal, Turn, Window
from pytest_speedbench.measure.steps import Drafting, settle
from tests.emulator import trtllm as emulator
from tests.emulator.schedule import Schedule
from tests.emulator.server import Request, Server
from tests.unit.test_measure_samples import CODING

PROMPT = (1, 2, 3)
EXACT: dict[str, Any] = {"config": {"disable_overlap_scheduler": True}}


def engine_of(method: str, k: int, *, base_url: str | None = None, **options: Any) -> TrtLlm:
    speculation = Speculation() if method == "none" else Speculation(method, k, "drafter")
    return TrtLlm(Profile("trtllm", "trtllm", "target", speculation, base_url=base_url, options=options))


def requests(number: int, **sampling: Any) -> list[TurnRequest]:
    """Requests whose prompt ends with their number."""
    return [TurnRequest(f"q{i}", "coding", 0, (*PROMPT, i), Sampling(osl_cap=512, **sampling)) for i in range(number)]


def answering(schedules: Sequence[Schedule]) -> Callable[[Request], Schedule]:
    return lambda request: schedules[request.body["prompt"][-1]]


def together(number: int) -> Callable[[int, int], bool]:
    return lambda in_flight, begun: begun >= number


async def turns_of(engine: TrtLlm, server: Server, asked: Sequence[TurnRequest]) -> list[Turn]:
    async with StreamingClient(engine, server.base_url, concurrency=len(asked)) as client:
        return await asyncio.gather(*(client.turn(request, deadline_s=20) for request in asked))


def settled(engine: TrtLlm, fetch: Callable[[str], bytes]) -> Counters:
    for _ in range(20):
        if engine.idle(fetch):
            return engine.counters(fetch)
    raise AssertionError("never idle")


def run(
    schedules: Sequence[Schedule], engine: TrtLlm, *, server: dict[str, Any] | None = None, **app: Any
) -> tuple[list[Turn], Counters]:
    """The turns of all schedules, sent together, and what the counters advanced by."""
    with Server(
        emulator.TrtLlm(answering(schedules), **app), hold=together(len(schedules)), **(server or {})
    ) as running:
        fetch = fetcher(running.base_url)
        engine.describe(fetch)
        before = settled(engine, fetch)
        turns = asyncio.run(turns_of(engine, running, requests(len(schedules))))
        return turns, settled(engine, fetch) - before


def window_of(schedules: Sequence[Schedule], method: str, k: int, turns: Sequence[Turn], counters: Counters) -> Window:
    always = method not in ("none", "ngram", "sa")
    done, total = settle(turns, counters, Drafting(k, always, TrtLlm.steps_source))
    planned = tuple((f"q{i}", 1) for i in range(len(schedules)))
    return Window(CODING, planned, done, (), counters, Client(0.0, 0.1), steps=total)


def measured(
    schedules: Sequence[Schedule], method: str, k: int, options: dict[str, Any] | None = None, **app: Any
) -> Window:
    engine = engine_of(method, k, **(EXACT if options is None else options))
    turns, counters = run(schedules, engine, draft_tokens=k, **app)
    return window_of(schedules, method, k, turns, counters)


def codes(window: Window, k: int) -> set[str]:
    return {reason.code for reason in problems(window, speculation=k > 0, draft_tokens=k)}


def pooled(schedules: Sequence[Schedule]) -> tuple[int, int, int, int]:
    """S, K, D and A."""
    return (
        sum(len(s.steps) for s in schedules),
        sum(s.drafts for s in schedules),
        sum(s.drafted for s in schedules),
        sum(s.accepted for s in schedules),
    )


def counted(counters: Counters) -> tuple[int | None, ...]:
    return counters.steps, counters.drafts, counters.drafted, counters.accepted


# The truth is recovered


@st.composite
def schedules(draw: st.DrawFn, *, joined: bool = False) -> tuple[list[Schedule], int, str]:
    k = draw(st.integers(1, 8))
    method = draw(st.sampled_from(["eagle3", "ngram", "mtp"]))
    every = []
    for seed in range(draw(st.integers(1, 4))):
        tokens, stopped = draw(st.integers(1, 40)), draw(st.booleans())
        if draw(st.booleans()):
            one = Schedule.drawn(tokens, draft=k, rate=draw(st.floats(0, 1)), seed=seed, stopped=stopped)
        else:
            accept = draw(st.lists(st.integers(0, k), min_size=1, max_size=5))
            miss = draw(st.integers(2, 4)) if method == "ngram" and draw(st.booleans()) else 0
            one = Schedule.of(tokens, draft=k, accept=accept, miss=miss, seed=seed, stopped=stopped)
        if stopped:
            # A token that stops is nowhere before the end.
            one = replace(one, ids=(*one.ids[:-1], 2))
        if joined:
            joins = draw(st.sets(st.sampled_from(range(len(one.steps))))) if one.steps else set()
            one = replace(one, joins=frozenset(joins))
        every.append(one)
    return every, k, method


@settings(max_examples=25, deadline=None)
@given(schedules(), st.booleans(), st.booleans(), st.booleans())
def test_truth_is_recovered(case: tuple[list[Schedule], int, str], counted_in: bool, trim: bool, newer: bool) -> None:
    every, k, method = case
    window = measured(every, method, k, context_counted=counted_in, trim_stop=trim, sequence=newer)
    steps = sum(len(s.steps) for s in every)
    assert window.steps == StepTotal(steps, steps, TrtLlm.steps_source)
    for turn, schedule in zip(window.turns, every, strict=True):
        assert turn.steps is not None
        assert turn.steps.count == len(schedule.steps)
        assert (turn.output_tokens, turn.output_ids) == (schedule.output_tokens, schedule.ids)
        assert turn.event_tokens == tuple(map(len, schedule.events))
        assert turn.finish == ("stop" if schedule.stopped else "length")
        assert turn.text is None
        assert len(turn.step_ns) == len(schedule.steps) + 1
        assert histogram([turn]) == schedule.histogram
    assert counted(window.counters) == pooled(every)
    assert (window.counters.missing, window.counters.preemptions) == (0, 0)
    tokens = [s.output_tokens for s in every]
    per_turn = [s.output_tokens / (1 + len(s.steps)) for s in every]
    assert acceptance_length(window.turns) == pytest.approx(sum(per_turn) / len(every), rel=1e-12)
    assert acceptance_length_pooled(window.turns) == pytest.approx(sum(tokens) / (steps + len(every)), rel=1e-12)
    if steps:
        found = decode_acceptance_length(window.turns)
        assert found == pytest.approx((sum(tokens) - len(every)) / steps, rel=1e-12)
    _, drafts, _, accepted = pooled(every)
    if drafts:
        assert drafted_acceptance_length(window.counters) == pytest.approx(1 + accepted / drafts, rel=1e-12)
    assert codes(window, k) <= {"no_speculation"}


@settings(max_examples=15, deadline=None)
@given(schedules(joined=True), st.booleans())
def test_joined_events_leave_s_to_the_counter(case: tuple[list[Schedule], int, str], exact: bool) -> None:
    every, k, method = case
    # Only looking up is launched without overlap unless the profile says so.
    window = measured(every, method, k, EXACT if exact else {}, overlap=not exact and method != "ngram")
    truth = sum(len(s.steps) for s in every)
    assert window.steps is not None
    assert window.steps.low <= truth <= window.steps.high
    if exact:
        assert window.steps.exact
    for turn, schedule in zip(window.turns, every, strict=True):
        if turn.steps is not None:
            assert turn.steps.count == len(schedule.steps)
    assert codes(window, k) <= {"no_speculation"}


def test_without_speculation_every_token_is_a_step() -> None:
    every = [Schedule.of(5, draft=0), Schedule.of(3, draft=0, stopped=True)]
    window = measured(every, "none", 0)
    assert [t.told for t in window.turns] == [None, None]
    assert [t.steps.count for t in window.turns if t.steps] == [4, 2]
    assert counted(window.counters) == (6, 0, 0, 0)
    assert codes(window, 0) == set()


def test_speculation_that_nobody_asked_for_is_seen() -> None:
    every = [Schedule.of(9, draft=3, accept=(1,))]
    turns, counters = run(every, engine_of("none", 0, **EXACT), draft_tokens=3)
    assert "unexpected_speculation" in codes(window_of(every, "none", 0, turns, counters), 0)


def test_speculation_that_drafts_nothing_is_seen() -> None:
    every = [Schedule.of(9, draft=0)]
    for overlap in (False, True):
        window = measured(every, "eagle3", 3, {} if overlap else EXACT, overlap=overlap)
        assert codes(window, 3) == {"no_speculation"}


# The overlap scheduler


@pytest.mark.parametrize("newer", [False, True])
def test_overlapping_iterations_are_no_counts(newer: bool) -> None:
    # Each request is in one more iteration than it has steps, with the drafts of its last step.
    every = [Schedule.of(9, draft=3, accept=(1,)), Schedule.of(21, draft=3, accept=(2, 0))]
    app = emulator.TrtLlm(answering(every), draft_tokens=3, overlap=True, sequence=newer)
    engine = engine_of("eagle3", 3)
    with Server(app, hold=together(2)) as server:
        fetch = fetcher(server.base_url)
        engine.describe(fetch)
        turns = asyncio.run(turns_of(engine, server, requests(2)))
        counters = settled(engine, fetch)
    drafts = sum(s.drafts for s in every)
    assert (counters.steps, counters.drafts, counters.accepted) == (None, None, None)
    # The request that ended last is not seen once more before the executor works again.
    assert counters.drafted == 3 * (drafts + 1)
    window = window_of(every, "eagle3", 3, turns, counters)
    assert [t.steps.count for t in window.turns if t.steps] == [len(s.steps) for s in every]
    assert [histogram([t]) for t in window.turns] == [s.histogram for s in every]
    assert codes(window, 3) == set()


def test_rows_that_say_how_they_were_scheduled_are_believed() -> None:
    every = [Schedule.of(9, draft=3, accept=(1,))]
    window = measured(every, "eagle3", 3, {}, overlap=False, sequence=True)
    assert counted(window.counters) == pooled(every)
    lying = measured(every, "eagle3", 3, EXACT, overlap=True, sequence=True)
    assert lying.counters.drafts is None


def test_nothing_is_known_of_the_scheduler_of_another_ones_server() -> None:
    every = [Schedule.of(9, draft=3, accept=(1,))]
    _, counters = run(every, engine_of("ngram", 3, base_url="http://x", **EXACT), draft_tokens=3)
    assert counters.drafts is None


# Counters: queue, gaps, order


def test_rows_that_come_late_are_waited_for() -> None:
    every = [Schedule.of(9, draft=3, accept=(1,))]
    assert counted(measured(every, "eagle3", 3, late=1).counters) == pooled(every)


@pytest.mark.parametrize("newer", [False, True])
def test_a_queue_that_overflows_leaves_a_gap(newer: bool) -> None:
    first, second = Schedule.of(9, draft=3, accept=(1,)), Schedule.of(30, draft=3)
    app = emulator.TrtLlm(answering([first, second]), draft_tokens=3, stats_len=10, sequence=newer)
    engine = engine_of("eagle3", 3, **EXACT)
    with Server(app) as server:
        fetch = fetcher(server.base_url)
        engine.describe(fetch)
        both = requests(2)
        asyncio.run(turns_of(engine, server, both[:1]))
        before = settled(engine, fetch)
        turns = asyncio.run(turns_of(engine, server, both[1:]))
        counters = settled(engine, fetch) - before
    # The prefill and 29 steps, of which the last ten are kept.
    assert (counters.missing, counters.steps) == (20, 10)
    window = window_of([second], "eagle3", 3, turns, counters)
    assert "counter_gap" in codes(replace(window, planned=(("q1", 1),)), 3)


def test_reading_while_requests_run_keeps_every_row() -> None:
    schedule = Schedule.of(60, draft=3, accept=(1, 0))
    app = emulator.TrtLlm(answering([schedule]), draft_tokens=3, stats_len=4, paced=True)
    engine = engine_of("eagle3", 3, **EXACT)
    with Server(app) as server:
        fetch = fetcher(server.base_url)
        engine.describe(fetch)

        async def watched() -> None:
            sent = asyncio.create_task(turns_of(engine, server, requests(1)))
            while not sent.done():
                await asyncio.to_thread(engine.counters, fetch)
            await sent

        asyncio.run(watched())
        counters = settled(engine, fetch)
    assert (*counted(counters), counters.missing) == (*pooled([schedule]), 0)
    assert app.readings > 10


def test_counters_that_lie_are_found_out() -> None:
    every = [Schedule.of(9, draft=3, accept=(1,))]
    window = measured(every, "eagle3", 3, lies={"numAcceptedTokens": 9})
    assert codes(window, 3) & {"identity", "rate_above_one", "counter_mismatch"}
    with pytest.raises(EngineError, match="iteration 1 of /metrics has 5 draft tokens for 0 requests"):
        measured(every, "eagle3", 3, lies={"numDraftTokens": 5})


def test_paused_requests_are_preemptions() -> None:
    window = measured([Schedule.of(9, draft=3)], "eagle3", 3, paused=2)
    assert window.counters.preemptions == 2
    assert codes(window, 3) == {"server_queued"}


@pytest.mark.parametrize("app", [{"stats": False}, {"thief": True}], ids=["off", "thief"])
def test_a_queue_that_is_always_empty_is_an_error(app: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="1 requests have run, but GET /metrics of the engine told of no iteration"):
        measured([Schedule.of(9, draft=3)], "eagle3", 3, **app)


# Streams


@pytest.mark.parametrize("piece", [1, 7, None])
def test_pieces_of_any_size(piece: int | None) -> None:
    schedule = Schedule.of(12, draft=3, accept=(3, 0))
    turns, _ = run([schedule], engine_of("eagle3", 3), draft_tokens=3, server={"piece": piece}, perf_event=True)
    assert turns[0].output_ids == schedule.ids


@pytest.mark.parametrize(
    ("fault", "reason", "message"),
    [
        ("cut", "stream_cut", "without its end mark"),
        ("crash", "stream_cut", "the connection broke off"),
        ("no_done", "stream_cut", "without its end mark"),
        ("error_event", "error_event", "^the executor died$"),
        ("garbage", "bad_event", "cannot make sense of {]"),
        ("http_400", "http_400", "^the request is bad$"),
        ("http_flat", "http_400", "^the prompt is too long$"),
        ("no_finish", "unknown_stop", "stopped for None"),
        ("cancelled", "aborted", "gave the request up: cancelled"),
        ("no_ids", "missing_field", r"TensorRT-LLM 1\.2\.1 sends no choices\[0\]\.token_ids"),
        ("no_usage", "missing_field", r"TensorRT-LLM 1\.2\.1 sends no usage$"),
        ("no_cached", "missing_field", "sends no usage.prompt_tokens_details.cached_tokens"),
        ("no_mean", "missing_field", r"sends no choices\[0\]\.avg_decoded_tokens_per_iter"),
        ("odd_mean", "bad_metrics", "which must be a whole number"),
        ("cached", "prefix_cache", "16 of 4 prompt tokens came from a cache"),
        ("more_usage", "ids_lost", "13 tokens were generated and 12 ids were streamed"),
        ("other_prompt", "prompt_changed", "4 prompt tokens were sent and 5 were processed"),
        ("no_tokens", "no_tokens", "without a token"),
    ],
)
def test_faults(fault: str, reason: str, message: str) -> None:
    schedule = Schedule.of(12, draft=3, accept=(1,), fault=fault)
    with pytest.raises(RequestError, match=message) as caught:
        run([schedule], engine_of("eagle3", 3), draft_tokens=3)
    assert caught.value.reason == reason


def test_every_fault_of_the_emulator_is_tested() -> None:
    marks = test_faults.pytestmark  # type: ignore[attr-defined]
    tested = {case[0] for case in marks[0].args[1]}
    assert tested | {"hang"} == {*emulator.STREAM_FAULTS, *emulator.END_FAULTS, *emulator.OTHER_FAULTS}


def test_a_stream_that_hangs_meets_the_deadline() -> None:
    app = emulator.TrtLlm(answering([Schedule.of(12, draft=3, fault="hang")]), draft_tokens=3)
    engine = engine_of("eagle3", 3)

    async def turn(server: Server) -> None:
        async with StreamingClient(engine, server.base_url, concurrency=1) as client:
            await client.turn(requests(1)[0], deadline_s=0.2)

    with Server(app) as server:
        engine.describe(fetcher(server.base_url))
        with pytest.raises(RequestError) as caught:
            asyncio.run(turn(server))
    assert caught.value.reason == "deadline"


def test_a_request_that_is_no_ones_protocol_is_refused() -> None:
    # The schema forbids fields that it does not have.
    class Chatty(TrtLlm):
        def body(self, request: TurnRequest) -> dict[str, Any]:
            return {**super().body(request), "return_token_ids": True}

    engine = Chatty(Profile("trtllm", "trtllm", "target", Speculation()))
    with pytest.raises(RequestError, match="Extra inputs are not permitted: return_token_ids") as caught:
        run([Schedule.of(3, draft=0)], engine)
    assert caught.value.reason == "http_400"


def test_the_body_is_spelled_out() -> None:
    app = emulator.TrtLlm(answering([Schedule.of(3, draft=0)]), served="the-model")
    engine = engine_of("none", 0)
    with Server(app) as server:
        engine.describe(fetcher(server.base_url))
        asyncio.run(turns_of(engine, server, requests(1, temperature=0.7, seed=5, ignore_eos=True)))
    assert server.requests[0].body == {
        "model": "the-model",
        "prompt": [1, 2, 3, 0],
        "max_tokens": 512,
        "ignore_eos": True,
        "temperature": 0.7,
        "top_p": 1.0,
        "top_k": 0,
        "seed": 5,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": False},
        "detokenize": False,
    }


def test_ready_when_healthy() -> None:
    app = emulator.TrtLlm(answering([]), not_ready=2)
    with Server(app) as server:
        assert [is_ready(server.base_url, TrtLlm.ready_paths) for _ in range(3)] == [False, False, True]


# Whose server it is


@pytest.mark.parametrize("version", ["1.2.0", "1.2.1", "1.3.0rc14", "1.4.0rc1"])
def test_description(version: str) -> None:
    engine = engine_of("none", 0)
    with Server(emulator.TrtLlm(answering([]), version=version)) as server:
        found = engine.describe(fetcher(server.base_url))
    assert (found.version, found.resolved["served_model"]) == (version, "target")
    assert found.resolved["config"]["stream_interval"] == 1


@pytest.mark.parametrize(
    ("app", "message"),
    [
        ({"version": "1.1.0"}, "version 1.1.0 is not supported; it must be at least 1.2 and below 2"),
        ({"version": "1.2.0rc6"}, "version 1.2.0rc6 is not supported"),
        ({"version": "2.0.0rc1"}, "version 2.0.0rc1 is not supported"),
        ({"version": "main"}, "cannot read 'main' as a version of TensorRT-LLM"),
        ({"owned_by": "vllm"}, "does not answer like TensorRT-LLM: its model is owned by 'vllm'"),
    ],
)
def test_servers_that_are_refused(app: dict[str, Any], message: str) -> None:
    with Server(emulator.TrtLlm(answering([]), **app)) as server, pytest.raises(EngineError, match=message):
        engine_of("none", 0).describe(fetcher(server.base_url))

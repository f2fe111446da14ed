"""The SGLang adapter over real HTTP, against an emulator of known truth: what it recovers, and every fault."""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

import httpx
import pytest

from pytest_speedbench.engines.base import Profile, Sampling, Speculation, TurnRequest
from pytest_speedbench.engines.sglang import Sglang
from pytest_speedbench.errors import EngineError, RequestError
from pytest_speedbench.load.client import StreamingClient, fetcher, is_ready, post
from pytest_speedbench.measure import acceptance
from pytest_speedbench.measure.checks import problems
from pytest_speedbench.measure.samples import Client, Counters, Failure, StepTotal, Turn, Window
from pytest_speedbench.measure.steps import Drafting, settle
from tests.emulator.schedule import Schedule
from tests.emulator.server import Request, Server
from tests.emulator.sglang import VOCABULARY, SglangApp
from tests.unit.test_measure_samples import CODING

K = 3
DEADLINE_S = 60.0
Outcome = Turn | Failure


def engine_of(k: int = K, method: str = "draft") -> Sglang:
    speculation = Speculation(method, k, "drafter") if k else Speculation()
    return Sglang(Profile("sglang", "sglang", "model", speculation))


def request(question: str = "q", *, cap: int = 64, ids: Sequence[int] = (1, 2, 3)) -> TurnRequest:
    return TurnRequest(question, "coding", 0, tuple(ids), Sampling(osl_cap=cap))


def play(engine: Sglang, base_url: str, requests: Sequence[TurnRequest], *, concurrency: int = 1) -> list[Outcome]:
    """What became of each request, in their order; at most ``concurrency`` at once."""

    async def run() -> list[Outcome]:
        places = asyncio.Semaphore(concurrency)
        async with StreamingClient(engine, base_url, concurrency=concurrency) as client:

            async def one(asked: TurnRequest) -> Outcome:
                async with places:
                    try:
                        return await client.turn(asked, deadline_s=DEADLINE_S)
                    except RequestError as error:
                        return Failure(asked.question_id, asked.index, error.reason, str(error))

            return list(await asyncio.gather(*map(one, requests)))

    return asyncio.run(run())


def one(app: SglangApp, *, k: int = K, cap: int = 64) -> Outcome:
    with Server(app) as server:
        (outcome,) = play(engine_of(k), server.base_url, [request(cap=cap)])
    return outcome


def always(schedule: Schedule) -> Callable[[Request, int], Schedule]:
    return lambda request, seen: schedule


def turn_of(outcome: Outcome) -> Turn:
    assert isinstance(outcome, Turn), outcome
    return outcome


def failure_of(outcome: Outcome) -> Failure:
    assert isinstance(outcome, Failure), outcome
    return outcome


# Truth through the whole of the client


def measured(
    schedules: Sequence[Schedule], *, k: int, incremental: bool = True, piece: int | None = None
) -> tuple[Window, StepTotal]:
    """One window: schedule i answers prompt i, cap and end as the schedule says."""
    engine = engine_of(k)
    served = SglangApp(
        lambda request, seen: schedules[request.body["input_ids"][0]],
        window=k + 1 if k else None,
        incremental=incremental,
    )
    asked = [
        request(f"q{i}", cap=s.output_tokens + (9 if s.stopped else 0), ids=(i, 7)) for i, s in enumerate(schedules)
    ]
    with Server(served, piece=piece) as server:
        fetch = fetcher(server.base_url)
        before = engine.counters(fetch)
        outcomes = play(engine, server.base_url, asked, concurrency=4)
        counters = engine.counters(fetch) - before
    turns = tuple(o for o in outcomes if isinstance(o, Turn))
    done, total = settle(turns, counters, Drafting(k, engine.drafts_always, engine.steps_source))
    window = Window(
        cell=CODING,
        planned=tuple((a.question_id, 1) for a in asked),
        turns=done,
        failures=tuple(o for o in outcomes if isinstance(o, Failure)),
        counters=counters,
        client=Client(0.0, 0.1),
        steps=total,
    )
    return window, total


def scripted(k: int) -> list[Schedule]:
    """Patterns, random laws, misses, joins, cuts at EOS and at the cap, and a turn of one token."""
    pattern = Schedule.of(41, draft=k, accept=(k, 0, k // 2), seed=1)
    missing = Schedule.of(30, draft=k, accept=(k, 1), miss=3, seed=2)
    made = [
        pattern,
        Schedule(pattern.ids, pattern.steps, joins=frozenset(range(0, len(pattern.steps), 3))),
        Schedule(pattern.ids, pattern.steps, joins=frozenset(range(len(pattern.steps)))),
        Schedule(missing.ids, missing.steps, stopped=True),
        Schedule.drawn(50, draft=k, rate=0.7, seed=3),
        Schedule.drawn(50, draft=k, rate=0.2, seed=4, joins=frozenset({0, 7})),
        Schedule((65,), (), stopped=True),
        Schedule(tuple(b"ab"), ((k, k),)),
        Schedule(tuple(b"ab"), ((k, k),), stopped=True),
    ]
    assert {s.cut > 0 for s in made} == {True, False}
    return made


@pytest.mark.parametrize("incremental", [True, False])
@pytest.mark.parametrize("k", [1, 2, 3, 5, 8])
def test_truth_is_recovered(k: int, incremental: bool) -> None:
    schedules = scripted(k)
    window, total = measured(schedules, k=k, incremental=incremental, piece=None if k % 2 else 50)
    verified = sum(len(s.steps) for s in schedules)
    tokens, turns = sum(s.output_tokens for s in schedules), len(schedules)
    assert problems(window, speculation=True, draft_tokens=k) == ()
    assert (total.low, total.high) == (verified, verified)
    assert window.counters.steps == window.counters.drafts == verified
    by_question = {t.question_id: t for t in window.turns}
    for i, schedule in enumerate(schedules):
        turn = by_question[f"q{i}"]
        assert turn.steps is not None
        assert turn.output_ids == schedule.ids
        assert (turn.steps.count, turn.steps.accepted) == (len(schedule.steps), schedule.accepted)
        assert turn.steps.drafted == len(schedule.steps) * k
        assert turn.steps.cut == schedule.cut
        assert Counter(turn.steps.lengths) == Counter(schedule.lengths)
        if acceptance.unresolved_steps([turn]) == 0:
            assert acceptance.histogram([turn]) == schedule.histogram
        else:
            assert schedule.joins
            assert schedule.cut
    means = [s.output_tokens / (len(s.steps) + 1) for s in schedules]
    assert acceptance.acceptance_length(window.turns) == pytest.approx(math.fsum(means) / turns, abs=1e-12)
    assert acceptance.acceptance_length_pooled(window.turns, total.low) == tokens / (verified + turns)
    assert acceptance.decode_acceptance_length(window.turns, total.low) == (tokens - turns) / verified
    accepted = sum(s.accepted for s in schedules)
    assert acceptance.acceptance_rate(window.turns) == accepted / (verified * k)


def test_without_speculation_every_token_is_a_step() -> None:
    schedules = [Schedule.of(n, draft=0, seed=n) for n in (1, 2, 30)]
    window, total = measured(schedules, k=0)
    assert problems(window, speculation=False, draft_tokens=0) == ()
    assert window.counters.steps is None
    assert total.low == 30
    assert acceptance.decode_acceptance_length(window.turns, total.low) == 1.0


def test_a_tree_drafter_proposes_more_than_one_chain() -> None:
    # N-gram with k = 5: each step proposes the five nodes of a tree, of which one branch can be right.
    schedule = Schedule(tuple(b"abcdefg"), ((5, 2), (5, 2)))
    app = SglangApp(always(schedule), window=6, algorithm="NGRAM")
    with Server(app) as server:
        (outcome,) = play(engine_of(5, "ngram"), server.base_url, [request(cap=7)])
    told = turn_of(outcome).told
    assert told is not None
    assert (told.steps, told.accepted, told.drafted) == (2, 4, 10)


# Faults of a stream


@pytest.mark.parametrize(
    ("fault", "after", "reason", "message"),
    [
        ("cut", 2, "stream_cut", "before an event gave a reason to finish"),
        ("cut", 99, "stream_cut", r"without its end mark, \[DONE\]"),
        ("cut", 0, "stream_cut", "before an event gave a reason to finish"),
        ("crash", 2, "stream_cut", "the connection broke off"),
        ("error_event", 2, "error_event", "^the scheduler refused$"),
        ("too_long", 0, "error_event", "longer than the model's context length"),
        ("abort", 2, "aborted", "gave up the request: The request queue is full"),
        ("abort", 0, "aborted", "gave up the request: The request queue is full"),
        ("garbage", 1, "bad_event", "cannot make sense of {not json"),
        ("no_meta", 1, "bad_event", r"KeyError: 'meta_info'"),
        ("http_400", 0, "http_400", "^the request is bad$"),
    ],
)
@pytest.mark.parametrize("incremental", [True, False])
def test_faults_are_failures_with_a_reason(
    fault: str, after: int, reason: str, message: str, incremental: bool
) -> None:
    schedule = Schedule.of(20, draft=K, accept=(2, 0), fault=fault, fault_after=after)
    failure = failure_of(one(SglangApp(always(schedule), window=K + 1, incremental=incremental), cap=20))
    assert failure.reason == reason
    assert re.search(message, failure.message)


def test_a_silent_server_runs_into_the_deadline() -> None:
    schedule = Schedule.of(20, draft=K, fault="hang")

    async def run(base_url: str) -> None:
        async with StreamingClient(engine_of(), base_url, concurrency=1) as client:
            await client.turn(request(cap=20), deadline_s=0.2)

    with Server(SglangApp(always(schedule), window=K + 1)) as server, pytest.raises(RequestError) as caught:
        asyncio.run(run(server.base_url))
    assert caught.value.reason == "deadline"


def test_an_id_outside_the_vocabulary_kills_the_server_and_every_running_stream() -> None:
    # Three streams run when the bad id arrives; a request after that finds nobody.
    running = Schedule.of(20, draft=K, fault="until_crash", fault_after=2)
    with Server(
        SglangApp(always(running), window=K + 1),
        hold=lambda in_flight, begun: begun >= 4,
    ) as server:
        asked = [request(f"q{i}", cap=20) for i in range(3)]
        asked.append(request("bad", cap=20, ids=(1, VOCABULARY)))
        outcomes = play(engine_of(), server.base_url, asked, concurrency=4)
        (after,) = play(engine_of(), server.base_url, [request("after")])
        with pytest.raises(EngineError, match="GET /metrics of the engine failed"):
            engine_of().counters(fetcher(server.base_url))
    assert [failure_of(o).reason for o in outcomes] == ["stream_cut"] * 4
    assert failure_of(after).reason == "connection_refused"


@pytest.mark.parametrize(
    ("drop", "meta", "reason", "message"),
    [
        ({"spec_verify_ct"}, {}, "missing_field", "no spec_verify_ct"),
        ({"cached_tokens"}, {}, "missing_field", "no cached_tokens"),
        ((), {"cached_tokens": 1}, "prefix_cache", "1 of 3 prompt tokens"),
        ((), {"prompt_tokens": 2}, "prompt_changed", "3 prompt tokens were sent and 2"),
        ((), {"completion_tokens": 5}, "ids_lost", "1 ids where 0 tokens were known and 5"),
    ],
)
def test_answers_that_do_not_add_up(drop: Sequence[str], meta: dict[str, object], reason: str, message: str) -> None:
    schedule = Schedule.of(20, draft=K)
    failure = failure_of(one(SglangApp(always(schedule), window=K + 1, drop=frozenset(drop), meta=meta), cap=20))
    assert failure.reason == reason
    assert message in failure.message


def test_the_version_is_named_where_a_field_is_missing() -> None:
    app = SglangApp(
        always(Schedule.of(9, draft=K)), window=K + 1, drop=frozenset({"spec_verify_ct"}), info={"version": "0.6.1"}
    )
    engine = engine_of()
    with Server(app) as server:
        engine.describe(fetcher(server.base_url))
        (outcome,) = play(engine, server.base_url, [request(cap=9)])
    assert failure_of(outcome).message == "meta_info of SGLang 0.6.1 has no spec_verify_ct"


# Counters


@pytest.mark.parametrize(
    ("lies", "code", "message"),
    [
        ({"prompt_tokens_total": 1}, "counter_mismatch", "prompt tokens: client 18, server 19"),
        ({"generation_tokens_total": -1}, "counter_mismatch", "output tokens: client 258, server 257"),
        ({"spec_verify_calls_total": 2}, "counter_mismatch", "decode steps: client"),
        ({"cached_tokens_total": 4}, "prefix_cache", "8 prompt tokens came from a cache"),
        ({"num_retracted_requests_total": 3}, "server_queued", "3 times a running request was put back"),
    ],
)
def test_counters_that_contradict_the_streams_void_the_window(lies: dict[str, int], code: str, message: str) -> None:
    schedules = scripted(K)
    engine = engine_of()
    served = SglangApp(lambda request, seen: schedules[request.body["input_ids"][0]], window=K + 1, tensor_parallel=2)
    asked = [
        request(f"q{i}", cap=s.output_tokens + (9 if s.stopped else 0), ids=(i, 7)) for i, s in enumerate(schedules)
    ]
    with Server(served) as server:
        fetch = fetcher(server.base_url)
        before = engine.counters(fetch)
        turns = tuple(map(turn_of, play(engine, server.base_url, asked, concurrency=3)))
        served.lies = lies
        counters = engine.counters(fetch) - before
    done, total = settle(turns, counters, Drafting(K, True, engine.steps_source))
    window = Window(CODING, tuple((a.question_id, 1) for a in asked), done, (), counters, Client(0.0, 0.1), steps=total)
    found = {reason.code: reason.message for reason in problems(window, speculation=True, draft_tokens=K)}
    assert message in found[code]


def test_a_server_that_drafts_more_than_the_profile_says_is_out_of_range() -> None:
    # k = 3, and the server verifies a window of 6 for whatever reason.
    schedule = Schedule(tuple(b"abcdefghijklm"), ((5, 5), (5, 5)))
    outcome = turn_of(one(SglangApp(always(schedule), window=6), cap=13))
    done, total = settle([outcome], Counters(), Drafting(K, True, Sglang.steps_source))
    window = Window(CODING, (("q", 1),), done, (), Counters(), Client(0.0, 0.1), steps=total)
    assert "acceptance_out_of_range" in {r.code for r in problems(window, speculation=True, draft_tokens=K)}


def test_counters_are_not_zero_where_the_endpoint_is_off() -> None:
    with (
        Server(SglangApp(always(Schedule.of(3, draft=K)), metrics=False)) as server,
        pytest.raises(EngineError, match="HTTP 404; SGLang has counters only if started with --enable-metrics"),
    ):
        engine_of().counters(fetcher(server.base_url))


# Readiness, description, flush


@pytest.mark.parametrize("ready_route", [True, False])
def test_a_slow_start_is_seen(ready_route: bool) -> None:
    # SGLang 0.5.16 has no /ready yet.
    app = SglangApp(always(Schedule.of(3, draft=K)), starting=3, ready_route=ready_route)
    with Server(app) as server:
        assert [is_ready(server.base_url, Sglang.ready_paths) for _ in range(5)] == [False] * 3 + [True] * 2
        asked = [r.path for r in server.plain_requests]
    assert asked == (["/ready"] * 5 if ready_route else ["/ready", "/health"] * 5)


@pytest.mark.parametrize("old_routes_only", [True, False])
def test_describe_over_http(old_routes_only: bool) -> None:
    app = SglangApp(always(Schedule.of(3, draft=K)), window=K + 1, old_routes_only=old_routes_only)
    with Server(app) as server:
        described = engine_of().describe(fetcher(server.base_url))
    assert described.version == "0.5.16"
    assert described.resolved["speculative_num_draft_tokens"] == K + 1
    assert described.resolved["draft_model"] == "/models/drafter"
    assert described.resolved["architectures"] == ["LlamaForCausalLM"]


def test_a_server_of_another_method_is_refused_before_any_request() -> None:
    app = SglangApp(always(Schedule.of(3, draft=K)), window=K + 1, algorithm="NGRAM")
    with Server(app) as server, pytest.raises(EngineError, match=r"method is draft \(STANDALONE\).* runs NGRAM"):
        engine_of().describe(fetcher(server.base_url))


def test_the_ngram_memory_grows_with_repeats_until_it_is_flushed() -> None:
    # As the real trie: what was generated once is drafted the next time, for any request.
    def answer(request: Request, seen: int) -> Schedule:
        return Schedule.of(61, draft=5, accept=(min(seen, 5),), seed=1)

    engine = engine_of(5, "ngram")
    assert engine.remembers
    app = SglangApp(answer, window=6, algorithm="NGRAM")

    def length(base_url: str) -> float:
        turn = turn_of(play(engine, base_url, [request(cap=61)])[0])
        (done,), _ = settle([turn], Counters(), Drafting(5, engine.drafts_always, engine.steps_source))
        found = acceptance.decode_acceptance_length([done])
        assert found is not None
        return found

    with Server(app) as server:
        repeats = [length(server.base_url) for _ in range(4)]
        assert post(server.base_url, str(engine.flush_path), timeout_s=DEADLINE_S)
        again = [length(server.base_url) for _ in range(2)]
    assert repeats == [1.0, 2.0, 3.0, 4.0]
    assert again == [1.0, 2.0]


def test_a_flush_waits_for_pending_requests() -> None:
    app = SglangApp(always(Schedule.of(20, draft=K, fault="hang", fault_after=1)), window=K + 1)
    engine = engine_of()
    with Server(app) as server:
        flush, fetch = server.base_url + str(engine.flush_path), fetcher(server.base_url)
        with httpx.stream(
            "POST", server.base_url + "/generate", json=engine.body(request()), trust_env=False
        ) as answer:
            assert answer.status_code == 200
            assert not engine.idle(fetch)
            assert httpx.post(flush, trust_env=False).status_code == 400
            assert app.flushes == 0
        # The client hung up, which ends the request a moment later.
        assert post(server.base_url, str(engine.flush_path), timeout_s=DEADLINE_S)
        assert engine.idle(fetch)
        assert app.flushes == 1

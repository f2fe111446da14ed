"""The vLLM adapter over real HTTP against an emulated server: truth, faults, counters, readiness."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from pytest_speedbench.engines.base import Profile, Sampling, Speculation, TurnRequest
from pytest_speedbench.engines.vllm import Vllm
from pytest_speedbench.errors import EngineError, RequestError
from pytest_speedbench.load.client import StreamingClient, fetcher, is_ready
from pytest_speedbench.measure import acceptance as acc
from pytest_speedbench.measure.samples import Counters, StepTotal, Turn
from pytest_speedbench.measure.steps import Drafting, settle
from tests.emulator.schedule import Schedule
from tests.emulator.server import Request, Server
from tests.emulator.vllm import STREAM_FAULTS
from tests.emulator.vllm import Vllm as Emulator

K = 3
PROMPT = (5, 6, 7)


def engine_of(method: str = "draft") -> Vllm:
    speculation = Speculation() if method == "none" else Speculation(method, K, "org/draft")
    return Vllm(Profile("v", "vllm", "org/target", speculation))


@contextlib.contextmanager
def serving(
    answer: Callable[[Request], Schedule] | Schedule, engine: Vllm, *, piece: int | None = None, **options: Any
) -> Iterator[tuple[Server, Emulator]]:
    """A server with ``answer``, already described to ``engine``."""
    app = Emulator(answer if callable(answer) else lambda request: answer, **{"draft_tokens": K, **options})
    with Server(app, piece=piece) as server:
        engine.describe(fetcher(server.base_url))
        yield server, app


def send(engine: Vllm, server: Server, caps: Sequence[int], *, deadline_s: float = 30.0) -> list[Turn]:
    """One turn per cap, all at once; what fails is raised."""

    async def run() -> list[Turn]:
        async with StreamingClient(engine, server.base_url, concurrency=len(caps)) as client:
            requests = [
                TurnRequest(f"q{i}", "coding", 0, (*PROMPT, i), Sampling(osl_cap=cap)) for i, cap in enumerate(caps)
            ]
            return list(await asyncio.gather(*(client.turn(r, deadline_s=deadline_s) for r in requests)))

    return asyncio.run(run())


def by_prompt(schedules: Sequence[Schedule]) -> Callable[[Request], Schedule]:
    return lambda request: schedules[request.body["prompt"][-1]]


def failure(schedule: Schedule, *, deadline_s: float = 30.0, **options: Any) -> tuple[str, str]:
    engine = engine_of()
    with serving(schedule, engine, metrics="detailed", **options) as (server, _):
        with pytest.raises(RequestError) as caught:
            send(engine, server, [schedule.output_tokens], deadline_s=deadline_s)
        return caught.value.reason, str(caught.value)


# Truth


def measured(
    schedules: Sequence[Schedule], method: str, **options: Any
) -> tuple[tuple[Turn, ...], StepTotal, Counters]:
    engine = engine_of(method)
    with serving(by_prompt(schedules), engine, **options) as (server, _):
        fetch = fetcher(server.base_url)
        before = engine.counters(fetch)
        turns = send(engine, server, [s.output_tokens for s in schedules])
        assert engine.idle(fetch)
        counters = engine.counters(fetch) - before
    drafting = Drafting(K if method != "none" else 0, engine.drafts_always, engine.steps_source)
    return *settle(turns, counters, drafting), counters


SCHEDULES = (
    Schedule.of(40, draft=K, accept=(3, 1, 0)),
    Schedule.of(17, draft=K, accept=(2,), stopped=False, joins=frozenset({0, 3})),
    Schedule.of(23, draft=K, accept=(0, 3), stopped=True),
    Schedule.of(1, draft=K),
    Schedule.drawn(64, draft=K, rate=0.7, seed=5),
)


@pytest.mark.parametrize("piece", [None, 1, 7])
def test_a_window_in_full(piece: int | None) -> None:
    turns, total, counters = measured(SCHEDULES, "draft", metrics="detailed", engines=2, piece=piece)
    steps = sum(len(s.steps) for s in SCHEDULES)
    assert counters == Counters(
        prompt_tokens=4 * len(SCHEDULES),
        output_tokens=40 + 17 + 23 + 1 + 64,
        steps=steps,
        drafts=sum(s.drafts for s in SCHEDULES),
        drafted=sum(s.drafted for s in SCHEDULES),
        accepted=sum(s.accepted for s in SCHEDULES),
        cached_tokens=0,
        preemptions=0,
    )
    assert total == StepTotal(steps, steps, "per-request metrics (speculative_decoding)")
    for turn, schedule in zip(turns, SCHEDULES, strict=True):
        assert turn.steps is not None
        assert (turn.steps.lengths, turn.steps.cut) == (schedule.lengths, schedule.cut)
        assert turn.output_ids == schedule.ids
        assert turn.finish == ("stop" if schedule.stopped else "length")
    assert acc.decode_acceptance_length(turns) == (145 - 5) / steps
    assert acc.drafted_acceptance_length(counters) == 1 + counters.accepted / counters.drafts  # type: ignore[operator]


@pytest.mark.parametrize("metrics", ["none", "summary", "detailed"])
def test_ngram_with_misses_has_an_exact_total_by_the_step_counter(metrics: str) -> None:
    schedules = [Schedule.of(30 + i, draft=K, accept=(3, 0, 1), miss=2 + i, joins=frozenset({i})) for i in range(4)]
    version = "0.24.0" if metrics == "none" else "0.32.0"
    _, total, counters = measured(schedules, "ngram", metrics=metrics, version=version, series_late=True)
    assert (total.low, total.high) == (sum(len(s.steps) for s in schedules),) * 2
    assert counters.drafts == sum(s.drafts for s in schedules)


def test_without_a_step_counter_the_bracket_holds_the_truth() -> None:
    schedules = [Schedule.of(30 + i, draft=K, accept=(3, 0, 1), miss=2 + i, joins=frozenset({i})) for i in range(4)]
    _, total, counters = measured(schedules, "ngram", version="0.24.0", step_counter=None)
    assert counters.steps is None
    assert total.low <= sum(len(s.steps) for s in schedules) <= total.high
    assert not total.exact


def test_plain_decoding() -> None:
    schedules = [Schedule.of(20, draft=0, joins=frozenset({2, 9})), Schedule.of(5, draft=0)]
    turns, total, counters = measured(schedules, "none", draft_tokens=0)
    assert (counters.drafts, counters.steps, total.low) == (None, 23, 23)
    assert acc.decode_acceptance_length(turns) == 1.0
    assert turns[0].event_tokens.count(2) == 2


def test_utf8_over_http_in_small_pieces() -> None:
    text = "Zürich 湖 😀!"
    ids = tuple(text.encode())
    (turn,), _, _ = measured([Schedule(ids, ((0, 0),) * (len(ids) - 1))], "none", draft_tokens=0, piece=3)
    assert (turn.text, turn.output_ids) == (text, ids)


# Faults


@pytest.mark.parametrize(
    ("fault", "reason", "message"),
    [
        ("http_400", "http_400", "the request is bad"),
        ("cut", "stream_cut", "ended without its end mark"),
        ("no_done", "stream_cut", "ended without its end mark"),
        ("crash", "stream_cut", ""),
        ("error_event", "error_event", "EngineCore died"),
        ("garbage", "bad_event", "cannot make sense of {]"),
        ("no_usage", "missing_field", "vLLM 0.32.0 sent no usage"),
        ("no_ids", "missing_field", "vLLM 0.32.0 sent no token_ids"),
        ("no_metrics", "missing_field", "vLLM 0.32.0 sent no metrics.speculative_decoding"),
        ("more_usage", "ids_lost", "13 tokens were generated and 12 token ids came back"),
        ("abort", "aborted", "the server aborted the request"),
        ("cached", "prefix_cache", "16 of 4 prompt tokens came from a cache"),
        ("other_prompt", "prompt_changed", "4 prompt tokens were sent and 5 were processed"),
    ],
)
def test_faults(fault: str, reason: str, message: str) -> None:
    found, text = failure(Schedule.of(12, draft=K, accept=(1,), fault=fault))
    assert found == reason
    assert message in text


@pytest.mark.parametrize("fault", [fault for fault in STREAM_FAULTS if fault != "hang"])
@pytest.mark.parametrize("after", range(7))
def test_a_broken_stream_is_never_a_finished_one(fault: str, after: int) -> None:
    # Events: prefill, four steps, usage: wherever it breaks, also behind the last token.
    schedule = Schedule.of(9, draft=K, accept=(1,), fault=fault, fault_after=after)
    assert len(schedule.events) == 5
    if after == 6:
        schedule = Schedule.of(9, draft=K, accept=(1,), fault="no_done")
    failure(schedule)


def test_a_silent_server_meets_the_deadline() -> None:
    schedule = Schedule.of(12, draft=K, accept=(1,), fault="hang")
    assert failure(schedule, deadline_s=0.3) == ("deadline", "not finished after 0 s")


def test_metrics_that_lie_are_refused() -> None:
    def lie(metrics: dict[str, Any]) -> None:
        metrics["num_accepted_draft_tokens"] += 1

    reason, message = failure(Schedule.of(12, draft=K, accept=(1,)), tell=lie)
    assert reason == "bad_metrics"
    assert "accepted drafts: 7 by num_accepted_draft_tokens, 6 by acceptance_histogram" in message


@pytest.mark.parametrize(
    ("series", "field"),
    [
        ("prompt_tokens_total", "prompt_tokens"),
        ("generation_tokens_total", "output_tokens"),
        ("inter_token_latency_seconds_count", "steps"),
        ("spec_decode_num_drafts_total", "drafts"),
        ("spec_decode_num_draft_tokens_total", "drafted"),
        ("spec_decode_num_accepted_tokens_total", "accepted"),
        ("prefix_cache_hits_total", "cached_tokens"),
        ("num_preemptions_total", "preemptions"),
    ],
)
def test_each_counter_is_its_own_series(series: str, field: str) -> None:
    engine = engine_of()
    with serving(Schedule.of(9, draft=K), engine, metrics="detailed") as (server, _):
        send(engine, server, [9, 9])
        honest = engine.counters(fetcher(server.base_url))
    with serving(Schedule.of(9, draft=K), engine, metrics="detailed", lies={series: 3}) as (server, _):
        send(engine, server, [9, 9])
        lying = engine.counters(fetcher(server.base_url))
    changed = {name for name in Counters.__dataclass_fields__ if getattr(honest, name) != getattr(lying, name)}
    assert changed == {field}
    assert getattr(lying, field) == getattr(honest, field) + 3


def test_a_server_is_idle_only_between_requests() -> None:
    engine = engine_of()
    seen = []

    def answer(request: Request) -> Schedule:
        return Schedule.of(9, draft=K)

    with serving(answer, engine, metrics="detailed") as (server, app):
        fetch = fetcher(server.base_url)
        seen.append(engine.idle(fetch))
        app.running += 1
        seen.append(engine.idle(fetch))
        app.running -= 1
        send(engine, server, [9])
        seen.append(engine.idle(fetch))
    assert seen == [True, False, True]


# Requests that the server refuses


def test_another_model_id_is_refused_by_the_server() -> None:
    engine = engine_of()
    with Server(Emulator(lambda request: Schedule.of(3, draft=0), served="other")) as server:
        with pytest.raises(RequestError, match=r"The model `speedbench` does not exist") as caught:
            send(engine, server, [3])
        assert caught.value.reason == "http_404"
        with pytest.raises(EngineError, match="another server answers on the port: it serves other"):
            engine.describe(fetcher(server.base_url))


def test_a_prompt_beyond_the_context_is_an_http_error() -> None:
    reason, message = failure(Schedule.of(60, draft=K), max_model_len=4)
    assert (reason, message) == ("http_400", "This model's maximum context length is 4 tokens.")


def test_an_answer_that_fills_the_context_is_truncated() -> None:
    engine = engine_of()
    with serving(Schedule.of(60, draft=K), engine, metrics="detailed", max_model_len=64) as (server, _):
        with pytest.raises(RequestError, match="stopped for length after 60 tokens, and the cap is 80") as caught:
            send(engine, server, [80])
        assert caught.value.reason == "truncated"


# Start


def test_readiness_is_awaited() -> None:
    app = Emulator(lambda request: Schedule.of(3, draft=0), not_ready=3)
    with Server(app) as server:
        assert [is_ready(server.base_url, Vllm.ready_paths) for _ in range(5)] == [False, False, False, True, True]
    assert not is_ready(server.base_url, Vllm.ready_paths)


def test_a_server_of_another_engine_is_named() -> None:
    with Server(Emulator(lambda request: Schedule.of(3, draft=0), owned_by="sglang")) as server:
        engine = Vllm(Profile("v", "vllm", "m", Speculation(), base_url=server.base_url))
        with pytest.raises(EngineError) as caught:
            engine.describe(fetcher(server.base_url))
        assert str(caught.value) == (
            f"the server at {server.base_url} is not vLLM: GET /v1/models says that its models are owned by sglang"
        )

"""The TensorRT-LLM adapter on what its server says of itself: rows of ``/metrics`` to totals, and description."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.engines.base import Fetch, Profile, Sampling, Speculation, TurnRequest
from pytest_speedbench.engines.trtllm import TrtLlm
from pytest_speedbench.engines.trtllm_stats import IterationLog, Numbers
from pytest_speedbench.errors import EngineError
from pytest_speedbench.measure.samples import Counters

K = 3
ANSWER = (
    b'{"choices": [{"token_ids": [1], "finish_reason": "length", "avg_decoded_tokens_per_iter": 1.0}]}',
    b'{"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1, '
    b'"prompt_tokens_details": {"cached_tokens": 0}}}',
    b"[DONE]",
)


def engine_of(method: str = "eagle3", drafter: str = "drafter") -> TrtLlm:
    speculation = Speculation() if method == "none" else Speculation(method, K, drafter)
    return TrtLlm(Profile("trtllm", "trtllm", "target", speculation))


# Rows of /metrics


def row(number: int, **fields: Any) -> dict[str, Any]:
    """An iteration of two requests in decoding, one of which drafts 3 tokens and has 2 accepted."""
    return {
        "iter": number,
        "numActiveRequests": 2,
        "numQueuedRequests": 0,
        "numCompletedRequests": 0,
        "inflightBatchingStats": {"numContextRequests": 1, "numGenRequests": 2, "numPausedRequests": 0},
        "specDecodingStats": {"numDraftTokens": 3, "numAcceptedTokens": 2, "numRequestsWithDraftTokens": 1},
        **fields,
    }


def log_of(*readings: Sequence[Any], speculation: bool = True, overlap: bool = False) -> IterationLog:
    log = IterationLog(speculation=speculation, overlap=overlap, most_drafts=K)
    for rows in readings:
        log.read(json.dumps(rows).encode())
    return log


def totals(rows: int, missing: int = 0) -> Counters:
    return Counters(steps=2 * rows, drafts=rows, drafted=3 * rows, accepted=2 * rows, preemptions=0, missing=missing)


def test_rows_add_up() -> None:
    assert log_of([row(5), row(6)], [], [row(7)]).counters() == totals(3)
    assert log_of([]).counters() == totals(0)


def test_rows_as_texts() -> None:
    assert log_of([json.dumps(row(5)), row(6)]).counters() == totals(2)


def test_rows_before_the_first_are_not_missing() -> None:
    assert log_of([row(500)]).counters().missing == 0


def test_the_sequence_goes_before_the_iteration() -> None:
    # Iterations without a batch have a number and no row.
    rows = [row(5, statsSequence=1), row(9, statsSequence=2), row(11, statsSequence=4)]
    assert log_of(rows).counters() == totals(3, missing=1)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60), st.data())
def test_rows_in_any_order_and_twice(numbers: list[int], data: st.DataObject) -> None:
    readings, left = [], list(numbers)
    while left:
        taken = data.draw(st.integers(1, len(left)))
        readings.append([row(n) for n in left[:taken]])
        left = left[taken:]
    every = set(numbers)
    log = log_of(*readings)
    assert log.counters() == totals(len(every), missing=max(every) - min(every) + 1 - len(every))
    assert log.rows == len(every)


@given(st.permutations(range(12)))
def test_numbers_take_no_more_room_than_their_runs(order: list[int]) -> None:
    numbers, seen = Numbers(), set[int]()
    for number in order:
        assert numbers.add(number)
        seen.add(number)
        assert numbers.runs == sum(n - 1 not in seen for n in seen)
    assert (numbers.runs, numbers.missing, numbers.count) == (1, 0, 12)


def test_overlapping_iterations_only_show_that_there_were_drafts() -> None:
    shown = Counters(drafted=3, preemptions=0, missing=0)
    assert log_of([row(1)], overlap=True).counters() == shown
    assert log_of([row(1, schedulerMode="overlap")]).counters() == shown
    assert log_of([row(1, schedulerMode="non_overlap")], overlap=True).counters() == totals(1)


@pytest.mark.parametrize(
    ("fields", "idle"),
    [
        ({}, False),
        ({"numCompletedRequests": 2}, True),
        ({"numCompletedRequests": 1}, False),
        ({"numCompletedRequests": 2, "numQueuedRequests": 1}, False),
        ({"numCompletedRequests": None}, False),
    ],
)
def test_idle_by_the_newest_row(fields: dict[str, Any], idle: bool) -> None:
    assert log_of([row(2, **fields), row(1)]).idle is idle


def test_idle_when_no_rows_come() -> None:
    rows = [row(1)]
    assert [log_of(rows, *([[]] * n)).idle for n in range(5)] == [False, False, False, True, True]
    assert not log_of(rows, [], [], [], [row(2)]).idle


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"iter": 1}, "is not a JSON array but"),
        ([5], "a row of /metrics must be an object, but is 5"),
        ([row(1, iter=None)], "iter in a row of /metrics must be a count, but is None"),
        ([row(1, iter=True)], "must be a count, but is True"),
        ([row(1, inflightBatchingStats=None)], "has no inflightBatchingStats, only iter, numActiveRequests"),
        ([row(1, inflightBatchingStats={"numPausedRequests": 0})], "numGenRequests in a row of /metrics must be"),
        ([row(1, specDecodingStats=None)], "has no specDecodingStats"),
        ([row(1, specDecodingStats={})], "numRequestsWithDraftTokens in a row of /metrics must be a count"),
        ([row(1), row(1, attentionDpRank=1)], "iteration 1 of /metrics has a row for attentionDpRank 1"),
        (
            [row(1, specDecodingStats={"numDraftTokens": 4, "numAcceptedTokens": 0, "numRequestsWithDraftTokens": 1})],
            "has 4 draft tokens for 1 requests, but the profile asks for at most 3",
        ),
    ],
)
def test_rows_that_are_refused(rows: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        log_of(rows)
    with pytest.raises(EngineError, match=f"does not answer like TensorRT-LLM: .*{message}"):
        engine_of().counters(lambda path: json.dumps(rows).encode())


def test_a_wrong_reading_is_not_forgotten() -> None:
    # A reader beside the run may not pass it on, and the rows after the wrong one are gone.
    engine = engine_of()
    readings = iter([b'[{"iter": 1}]', b"[]", b"[]"])
    for _ in range(3):
        with pytest.raises(EngineError, match="has no inflightBatchingStats"):
            engine.counters(lambda path: next(readings))


def test_without_speculation_rows_need_no_drafts() -> None:
    plain = {k: v for k, v in row(1).items() if k != "specDecodingStats"}
    log = log_of([plain, row(2, specDecodingStats=None)], speculation=False)
    assert log.counters() == Counters(steps=4, drafts=0, drafted=0, accepted=0, preemptions=0, missing=0)
    assert log_of([row(1)], speculation=False).counters() == totals(1)


def test_a_queue_that_stays_empty_is_an_error_only_once_requests_have_run() -> None:
    engine = engine_of()
    for _ in range(5):
        assert engine.counters(lambda path: b"[]") == Counters(drafted=0, preemptions=0, missing=0)
    decoder = engine.decoder(TurnRequest("q", "coding", 0, (1,), Sampling(osl_cap=1)))
    for event in ANSWER:
        decoder.event(event, 0)
    decoder.finish(0)
    with pytest.raises(EngineError, match="either enable_iter_perf_stats is off, or something else empties its queue"):
        engine.counters(lambda path: b"[]")


# Whose server it is


def served(**answers: Any) -> dict[str, bytes]:
    """Answers by path, ``None`` for one that is not there; names stand for ``/``-paths."""
    model = {"data": [{"id": "target", "owned_by": "tensorrt_llm"}]}
    paths = {"version": {"version": "1.2.1"}, "v1_models": model, "metrics": list[Any]()} | answers
    return {"/" + k.replace("_", "/"): json.dumps(v).encode() for k, v in paths.items() if v is not None}


def fetching(answers: dict[str, bytes]) -> Fetch:
    def fetch(path: str) -> bytes:
        if path not in answers:
            raise EngineError(f"GET {path} of the engine answered HTTP 404")
        return answers[path]

    return fetch


def describe(answers: dict[str, bytes]) -> None:
    engine_of("none").describe(fetching(answers))


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"version": None}, "GET /version of the engine answered HTTP 404"),
        ({"version": {"build": 1}}, "GET /version gave {'build': 1}"),
        ({"version": ["1.2.1"]}, "GET /version gave"),
        ({"v1_models": {"data": []}}, "GET /v1/models gave"),
        ({"metrics": None}, "GET /metrics of the engine answered HTTP 404"),
        ({"metrics": {"a": 1}}, "GET /metrics is not a JSON array"),
    ],
)
def test_servers_of_another_protocol(answers: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        describe(served(**answers))


def test_prometheus_text_is_not_taken_for_rows() -> None:
    answers = served() | {"/metrics": b"# HELP vllm:x\n"}
    with pytest.raises(EngineError, match="does not answer like TensorRT-LLM"):
        describe(answers)


def test_a_model_that_nobody_owns_is_served_all_the_same() -> None:
    describe(served(v1_models={"data": [{"id": "target"}]}))


def test_what_is_resolved_is_the_same_for_equal_launches(tmp_path: Path) -> None:
    (tmp_path / "drafter").mkdir()
    found = engine_of("eagle3", str(tmp_path / "drafter")).describe(fetching(served()))
    # A folder by its name: where it lies is no part of the configuration.
    assert found.resolved == {
        "served_model": "target",
        "config": {
            "enable_iter_perf_stats": True,
            "kv_cache_config": {"enable_block_reuse": False},
            "max_stats_len": 100_000,
            "speculative_config": {
                "decoding_type": "Eagle",
                "max_draft_len": K,
                "speculative_model_dir": "drafter",
            },
            "stream_interval": 1,
        },
    }


def test_of_another_ones_server_no_configuration_is_known() -> None:
    engine = TrtLlm(Profile("trtllm", "trtllm", "target", Speculation(), base_url="http://x"))
    assert engine.describe(fetching(served())).resolved == {"served_model": "target"}

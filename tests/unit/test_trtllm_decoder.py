"""Events of ``/v1/completions`` to turns, without a server."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_speedbench.engines.base import Profile, Sampling, Speculation, StreamDecoder, TurnRequest
from pytest_speedbench.engines.trtllm import TrtLlm
from pytest_speedbench.errors import RequestError
from pytest_speedbench.measure.samples import Told, Turn

K = 3


def engine_of(method: str = "eagle3") -> TrtLlm:
    speculation = Speculation() if method == "none" else Speculation(method, K, "drafter")
    return TrtLlm(Profile("trtllm", "trtllm", "target", speculation))


def request(**sampling: Any) -> TurnRequest:
    return TurnRequest("q1", "coding", 1, (1, 2, 3), Sampling(osl_cap=64, **sampling))


def chunk(ids: Sequence[int] | None, mean: float | None = None, **fields: Any) -> bytes:
    choice = {"index": 0, "text": "", "token_ids": ids, "finish_reason": None, "stop_reason": None}
    return json.dumps({"choices": [{**choice, "avg_decoded_tokens_per_iter": mean, **fields}], "usage": None}).encode()


def usage(output: int, prompt: int = 3, cached: int = 0) -> bytes:
    details = {"prompt_tokens": prompt, "completion_tokens": output, "prompt_tokens_details": {"cached_tokens": cached}}
    return json.dumps({"choices": [], "usage": details}).encode()


def decode(*events: bytes, engine: TrtLlm | None = None, **sampling: Any) -> Turn:
    decoder = (engine or engine_of()).decoder(request(**sampling))
    feed(decoder, *events)
    return decoder.finish(500)


def feed(decoder: StreamDecoder, *events: bytes) -> None:
    for number, event in enumerate(events):
        decoder.event(event, 1000 + number)


def reason_of(*events: bytes, **options: Any) -> str:
    with pytest.raises(RequestError) as caught:
        decode(*events, **options)
    return caught.value.reason


# Turns


def test_a_turn_in_full() -> None:
    # The prompt's iteration gives one token, the next ones 4, 1 and 2.
    turn = decode(
        chunk([10], 1.0),
        chunk([11, 12, 13, 14], 2.5),
        chunk([15], 2.0),
        chunk([16, 17], 2.0, finish_reason="length"),
        usage(8),
        b"[DONE]",
    )
    assert turn == Turn(
        question_id="q1",
        category="coding",
        index=1,
        prompt_tokens=3,
        output_tokens=8,
        finish="length",
        start_ns=500,
        event_ns=(1000, 1001, 1002, 1003),
        event_tokens=(1, 4, 1, 2),
        step_ns=(),
        steps=None,
        text=None,
        output_ids=(10, 11, 12, 13, 14, 15, 16, 17),
        told=Told(steps=3),
    )


def test_usage_in_every_chunk_ends_with_the_last() -> None:
    first = json.loads(chunk([10], 1.0)) | {"usage": json.loads(usage(1))["usage"]}
    turn = decode(json.dumps(first).encode(), chunk([11], 1.0, finish_reason="length"), usage(2), b"[DONE]")
    assert turn.output_tokens == 2


def test_what_comes_after_the_end_mark_is_ignored() -> None:
    after = b'{"error": "not of this answer"}'
    assert decode(chunk([10], 1.0, finish_reason="length"), usage(1), b"[DONE]", after, b"{").output_tokens == 1


@pytest.mark.parametrize("last", [[], [11, 12]])
def test_a_stop_token_that_was_taken_off_is_put_back(last: list[int]) -> None:
    # Generated were 2 + len(last) tokens in 2 iterations.
    turn = decode(
        chunk([10], 1.0),
        chunk(last, (2 + len(last)) / 2, finish_reason="stop", stop_reason=7),
        usage(1 + len(last)),
        b"[DONE]",
    )
    assert turn.output_ids == (10, *last, 7)
    assert (turn.output_tokens, turn.event_tokens) == (2 + len(last), (1, 1 + len(last)))
    assert turn.told == Told(steps=1)


def test_a_stop_token_that_was_left_in_is_not_put_back() -> None:
    turn = decode(chunk([10], 1.0), chunk([7], 1.0, finish_reason="stop", stop_reason=7), usage(2), b"[DONE]")
    assert turn.output_ids == (10, 7)


def test_eos_at_once() -> None:
    turn = decode(chunk([], None, finish_reason="stop", stop_reason=7), usage(0), b"[DONE]")
    assert (turn.output_ids, turn.event_tokens, turn.told) == ((7,), (1,), Told(steps=0))


def test_without_speculation_nothing_is_told() -> None:
    turn = decode(
        chunk([1], None), chunk([2], None, finish_reason="length"), usage(2), b"[DONE]", engine=engine_of("none")
    )
    assert turn.told is None


# Steps


def told(events: int, iterations: float, engine: TrtLlm | None = None) -> int | None:
    """S of a turn of two tokens per event."""
    mean = 2 * events / iterations
    chunks = [chunk([1, 2], mean) for _ in range(events - 1)]
    turn = decode(*chunks, chunk([1, 2], mean, finish_reason="length"), usage(2 * events), b"[DONE]", engine=engine)
    assert turn.told is not None
    return turn.told.steps


def test_readings_of_the_mean() -> None:
    # One event per iteration, the prompt's counted.
    assert told(5, 5) == 4
    # One event more than iterations: the prompt's is not counted.
    assert told(5, 4) == 4
    # Some events were joined: 6 or 5 steps.
    assert told(5, 6) is None
    assert told(5, 9) is None
    # Three events beyond the iterations are nobody's reading.
    assert told(5, 2) is None


def test_once_a_server_is_seen_not_to_count_the_prompts_iteration() -> None:
    engine = engine_of()
    assert told(5, 6, engine) is None
    assert told(5, 4, engine) == 4
    # With one join, this would pass for the other reading.
    assert told(5, 5, engine) == 5
    assert told(5, 6, engine) == 6
    assert told(5, 6) is None


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 5000), st.integers(2, 5000))
def test_single_precision_is_enough(tokens: int, iterations: int) -> None:
    iterations = min(iterations, tokens)
    mean = struct.unpack("f", struct.pack("f", tokens / iterations))[0]
    chunks = [chunk([0], mean) for _ in range(iterations - 1)]
    last = chunk([0] * (tokens - iterations + 1), mean, finish_reason="length")
    turn = decode(*chunks, last, usage(tokens), b"[DONE]")
    assert turn.told == Told(steps=iterations - 1)


@pytest.mark.parametrize("mean", [1.3, 9.0, 2.0001])
def test_a_mean_that_makes_no_whole_number(mean: float) -> None:
    events = (chunk([1], 1.0), chunk([2, 3, 4], mean, finish_reason="length"), usage(4), b"[DONE]")
    with pytest.raises(RequestError, match=f"4 tokens at avg_decoded_tokens_per_iter {mean} make") as caught:
        decode(*events)
    assert caught.value.reason == "bad_metrics"


@pytest.mark.parametrize("mean", [None, 0.0])
def test_a_mean_that_is_missing(mean: float | None) -> None:
    assert reason_of(chunk([1], mean), chunk([2], mean, finish_reason="length"), usage(2), b"[DONE]") == "missing_field"
    # One token needs no step, whatever the mean says.
    assert decode(chunk([1], mean, finish_reason="length"), usage(1), b"[DONE]").told == Told(steps=0)


# Refusals


@pytest.mark.parametrize(
    ("reason", "events"),
    [
        ("stream_cut", (chunk([1], 1.0, finish_reason="length"), usage(1))),
        ("unknown_stop", (chunk([1], 1.0), usage(1), b"[DONE]")),
        ("unknown_stop", (chunk([1], 1.0, finish_reason="not_finished"), usage(1), b"[DONE]")),
        ("aborted", (chunk([1], 1.0, finish_reason="timeout"), usage(1), b"[DONE]")),
        ("aborted", (chunk([1], 1.0, finish_reason="cancelled"), usage(1), b"[DONE]")),
        ("missing_field", (chunk(None, 1.0),)),
        ("missing_field", (chunk([1], 1.0, finish_reason="length"), b"[DONE]")),
        ("prompt_changed", (chunk([1], 1.0, finish_reason="length"), usage(1, prompt=4), b"[DONE]")),
        ("prefix_cache", (chunk([1], 1.0, finish_reason="length"), usage(1, cached=2), b"[DONE]")),
        ("ids_lost", (chunk([1], 1.0, finish_reason="length"), usage(2), b"[DONE]")),
        ("ids_lost", (chunk([1, 2], 1.0, finish_reason="length"), usage(1), b"[DONE]")),
        ("no_tokens", (chunk([], None, finish_reason="length"), usage(0), b"[DONE]")),
        ("error_event", (chunk([1], 1.0), b'{"error": {"message": "gone"}}')),
    ],
)
def test_refused_answers(reason: str, events: tuple[bytes, ...]) -> None:
    assert reason_of(*events) == reason


def test_a_stop_that_was_to_be_ignored() -> None:
    events = (chunk([1], 1.0, finish_reason="stop"), usage(1), b"[DONE]")
    assert decode(*events).finish == "stop"
    assert reason_of(*events, ignore_eos=True) == "unknown_stop"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error":"field required"}', "field required"),
        (b'{"object":"error","message":"too long","type":"BadRequestError","code":400}', "too long"),
        (b'{"error":{"message":"gone","code":500}}', "gone"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b"[1]", "[1]"),
        (b"<html>Bad Gateway</html>\n", "<html>Bad Gateway</html>"),
        (b"\xff" * 3, "\ufffd" * 3),
        (b"x" * 900, "x" * 500),
    ],
)
def test_error_text(body: bytes, text: str) -> None:
    assert engine_of().error_text(body) == text

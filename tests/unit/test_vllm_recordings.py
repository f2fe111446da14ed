"""Recorded traffic of vLLM 0.24.0 on an H100, byte for byte: decoder, client and counters."""

from __future__ import annotations

import asyncio
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pytest_speedbench.engines.base import Profile, Sampling, Speculation, TurnRequest
from pytest_speedbench.engines.vllm import Vllm
from pytest_speedbench.load.client import StreamingClient
from pytest_speedbench.load.sse import EventParser
from pytest_speedbench.measure import acceptance as acc
from pytest_speedbench.measure.samples import Counters, StepTotal, Turn
from pytest_speedbench.measure.steps import Drafting, settle
from tests.emulator.server import Server
from tests.emulator.vllm import Recorded

FOLDER = Path(__file__).parents[1] / "recordings" / "vllm-0.24.0-h100"
K = {"base": 0, "ngram": 5, "draft": 3}


@cache
def recording(name: str) -> dict[str, Any]:
    data = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert isinstance(data, dict)
    return data


def engine_of(name: str) -> Vllm:
    """An adapter attached to the server that was recorded."""
    method = {"base": "none", "ngram": "ngram", "draft": "draft"}[name]
    speculation = Speculation(method, K[name], "smol" if method == "draft" else None)
    return Vllm(Profile("v", "vllm", "smol", speculation, base_url="http://recorded:8000"))


def requests_of(name: str) -> list[TurnRequest]:
    return [
        TurnRequest(
            f"q{i}",
            "recorded",
            0,
            tuple(recorded["request"]["prompt"]),
            Sampling(osl_cap=recorded["request"]["max_tokens"], ignore_eos=recorded["request"]["ignore_eos"]),
        )
        for i, recorded in enumerate(recording(name)["requests"])
    ]


def turns_of(name: str, *, piece: int | None = None) -> list[Turn]:
    """The recorded streams as the client would have seen them, in pieces of some bytes or event by event."""
    engine, turns = engine_of(name), []
    for request, recorded in zip(requests_of(name), recording(name)["requests"], strict=True):
        decoder, parser = engine.decoder(request), EventParser()
        for at_s, line in recorded["events"]:
            data = line.encode() + b"\n\n"
            for start in range(0, len(data), piece or len(data)):
                for event in parser.feed(data[start : start + (piece or len(data))]):
                    decoder.event(event, round(at_s * 1e9))
        turns.append(decoder.finish(0))
    return turns


def counters_of(name: str, steps: int | None) -> Counters:
    delta = recording(name)["counters_delta"]
    return Counters(
        prompt_tokens=delta["prompt_tokens"],
        output_tokens=delta["generation_tokens"],
        steps=steps,
        drafts=delta.get("num_drafts"),
        drafted=delta.get("num_draft_tokens"),
        accepted=delta.get("num_accepted_tokens"),
    )


def settled(name: str, steps: int | None) -> tuple[tuple[Turn, ...], StepTotal]:
    engine = engine_of(name)
    drafting = Drafting(K[name], engine.drafts_always, engine.steps_source)
    return settle(turns_of(name), counters_of(name, steps), drafting)


@pytest.mark.parametrize("name", K)
def test_every_recorded_turn_is_sound(name: str) -> None:
    turns, requests = turns_of(name), recording(name)["requests"]
    assert len(turns) == 4
    for turn, recorded in zip(turns, requests, strict=True):
        payloads = [json.loads(line[6:]) for _, line in recorded["events"] if line != "data: [DONE]"]
        assert turn.output_ids == tuple(i for p in payloads for c in p["choices"] for i in c["token_ids"])
        assert turn.text == "".join(c["text"] for p in payloads for c in p["choices"])
        assert (turn.output_tokens, sum(turn.event_tokens), turn.finish) == (96, 96, "length")
        assert turn.prompt_tokens == payloads[-1]["usage"]["prompt_tokens"]
        assert turn.told is None
        assert list(turn.event_ns) == sorted(turn.event_ns)
    counters = counters_of(name, None)
    assert sum(t.output_tokens for t in turns) == counters.output_tokens == 384
    assert sum(t.prompt_tokens for t in turns) == counters.prompt_tokens == 196


@pytest.mark.parametrize("name", K)
@pytest.mark.parametrize("piece", [1, 17, 4096])
def test_the_cut_into_pieces_does_not_matter(name: str, piece: int) -> None:
    assert turns_of(name, piece=piece) == turns_of(name)


def test_plain_decoding_is_one_in_spite_of_merged_events() -> None:
    turns, total = settled("base", None)
    assert [len(t.event_tokens) for t in turns] == [95, 96, 96, 95]
    assert (total.low, total.high) == (380, 380)
    assert acc.decode_acceptance_length(turns, total.low) == 1.0
    # Two merged events: by events it would be 380 / 378.
    assert sum(len(t.event_tokens) - 1 for t in turns) == 378


def test_ngram() -> None:
    turns, total = settled("ngram", None)
    counters = counters_of("ngram", None)
    assert acc.drafted_acceptance_length(counters) == 2.75
    assert sum(len(t.event_tokens) - 1 for t in turns) == 282
    assert (total.low, total.high) == (282, 295)
    assert acc.decode_acceptance_length(turns, total.high) == pytest.approx(1.2881, abs=1e-4)
    assert acc.decode_acceptance_length(turns, total.low) == pytest.approx(1.3475, abs=1e-4)


def test_ngram_with_its_step_counter_would_be_exact() -> None:
    turns, total = settled("ngram", 282)
    assert total.exact
    assert [t.steps.count for t in turns if t.steps] == [len(t.event_tokens) - 1 for t in turns]
    _, joined = settled("ngram", 284)
    assert (joined.low, joined.high) == (284, 284)


def test_draft_with_the_step_counter() -> None:
    turns, total = settled("draft", 97)
    assert (total.low, total.high) == (97, 97)
    assert acc.decode_acceptance_length(turns, total.low) == 380 / 97
    assert acc.drafted_acceptance_length(counters_of("draft", 97)) == 1 + 287 / 97
    assert [t.steps.count for t in turns if t.steps] == [25, 24, 24, 24]
    # Four prefills, and the last step of three turns is cut.
    assert acc.histogram(turns) == {1: 5, 2: 1, 3: 3, 4: 92}


def test_draft_without_the_step_counter() -> None:
    # Every step drafts, so K = 97 steps; the upper end of the acceptance length is the true one.
    turns, total = settled("draft", None)
    assert total.low == 97
    assert acc.decode_acceptance_length(turns, total.low) == pytest.approx(3.9175, abs=1e-4)


@pytest.mark.parametrize("name", K)
def test_over_http_the_turns_are_the_same(name: str) -> None:
    engine, requests = engine_of(name), requests_of(name)
    streams = [(r["request"]["prompt"], [line for _, line in r["events"]]) for r in recording(name)["requests"]]

    async def run(server: Server) -> list[Turn]:
        async with StreamingClient(engine, server.base_url, concurrency=4) as client:
            return list(await asyncio.gather(*(client.turn(r, deadline_s=30) for r in requests)))

    with Server(Recorded(streams), piece=1000) as server:
        turns = asyncio.run(run(server))
        sent = [request.body for request in server.requests]
    for turn, expected in zip(turns, turns_of(name), strict=True):
        assert (turn.output_ids, turn.text, turn.event_tokens) == (
            expected.output_ids,
            expected.text,
            expected.event_tokens,
        )
    # What is asked for is what was asked for when it was recorded, and more of it spelled out.
    recorded = {tuple(r["request"]["prompt"]): r["request"] for r in recording(name)["requests"]}
    for body in sent:
        assert recorded[tuple(body["prompt"])].items() <= body.items()


# Metrics pages


def page(name: str) -> bytes:
    return (FOLDER / f"{name}.metrics.txt").read_bytes()


def test_the_counters_of_the_draft_run() -> None:
    counters = engine_of("draft").counters(lambda path: page("draft"))
    assert counters == Counters(7847, 20880, 5381, 5381, 16143, 15539, cached_tokens=0, preemptions=0)
    assert engine_of("draft").idle(lambda path: page("draft"))


def test_the_counters_of_the_plain_run() -> None:
    counters = engine_of("base").counters(lambda path: page("base"))
    requests = 165
    assert counters == Counters(7847, 20880, 20880 - requests, None, None, None, cached_tokens=0, preemptions=0)


def test_the_description_of_the_recorded_server() -> None:
    pages = {
        "/version": b'{"version":"0.24.0"}',
        "/v1/models": b'{"object":"list","data":[{"id":"smol","owned_by":"vllm","root":"/m","max_model_len":8192}]}',
        "/metrics": page("draft"),
    }
    description = engine_of("draft").describe(lambda path: pages[path])
    assert description.version == "0.24.0"
    assert description.resolved == {
        "model": "/m",
        "max_model_len": 8192,
        "prefix_caching": "False",
        "kv_cache_dtype": "auto",
        "block_size": "16",
        "draft_tokens": 3,
        "speculative_config": None,
    }

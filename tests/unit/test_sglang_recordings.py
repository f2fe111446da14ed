"""SGLang 0.5.16 on an H100, recorded: bytes replayed through the parser, the decoder and real HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pytest_speedbench.engines.base import Profile, Sampling, Speculation, TurnRequest
from pytest_speedbench.engines.sglang import Sglang
from pytest_speedbench.errors import RequestError
from pytest_speedbench.load.client import StreamingClient
from pytest_speedbench.load.sse import EventParser
from pytest_speedbench.measure import acceptance
from pytest_speedbench.measure.checks import problems
from pytest_speedbench.measure.samples import Client, Counters, Turn, Window
from pytest_speedbench.measure.steps import Drafting, settle
from tests.emulator.server import Request, Response, Server, Stream
from tests.unit.test_measure_samples import CODING

FOLDER = Path(__file__).parent.parent / "recordings" / "sglang-0.5.16-h100"
SPECULATION = {
    "base": Speculation(),
    "ngram": Speculation("ngram", 5),
    "standalone": Speculation("draft", 3, "drafter"),
    "standalone_inc": Speculation("draft", 3, "drafter"),
}
RUNS = tuple(SPECULATION)


@cache
def recording(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


def engine_of(run: str) -> Sglang:
    return Sglang(Profile("sglang", "sglang", "model", SPECULATION[run]))


def request_of(recorded: dict[str, Any], question: str = "q") -> TurnRequest:
    asked = recorded["request"]
    params = asked["sampling_params"]
    sampling = Sampling(params["max_new_tokens"], params["temperature"], 0, params.get("ignore_eos", False))
    return TurnRequest(question, "coding", 0, asked["input_ids"], sampling)


def wire(recorded: dict[str, Any]) -> bytes:
    return b"".join(line.encode() + b"\n\n" for _, line in recorded["events"])


def replay(run: str, recorded: dict[str, Any], *, question: str = "q", piece: int = 4096) -> Turn:
    """Through parser and decoder, in pieces that end anywhere. The clock counts pieces."""
    decoder, parser, data = engine_of(run).decoder(request_of(recorded, question)), EventParser(), wire(recorded)
    for number, at in enumerate(range(0, len(data), piece)):
        for event in parser.feed(data[at : at + piece]):
            decoder.event(event, number)
    return decoder.finish(-1)


def turns_of(run: str) -> tuple[Turn, ...]:
    return tuple(replay(run, r, question=f"q{i}") for i, r in enumerate(recording(run)["requests"]))


def settled(run: str) -> tuple[Turn, ...]:
    speculation = SPECULATION[run]
    done, total = settle(turns_of(run), Counters(), Drafting(speculation.draft_tokens, True, Sglang.steps_source))
    assert total.exact
    return done


@pytest.mark.parametrize("run", RUNS)
def test_every_recorded_request_is_a_sound_turn(run: str) -> None:
    turns = settled(run)
    assert [t.output_tokens for t in turns] == [96] * 4
    assert [t.finish for t in turns] == ["length"] * 4
    closing = [json.loads(r["events"][-2][1].removeprefix("data: ")) for r in recording(run)["requests"]]
    if run != "standalone_inc":
        assert [list(t.output_ids or ()) for t in turns] == [c["output_ids"] for c in closing]
        assert [t.text for t in turns] == [c["text"] for c in closing]
    window = Window(
        cell=CODING,
        planned=tuple((t.question_id, 1) for t in turns),
        turns=turns,
        failures=(),
        counters=Counters(
            prompt_tokens=sum(len(r["request"]["input_ids"]) for r in recording(run)["requests"]), output_tokens=384
        ),
        client=Client(0.0, 0.1),
    )
    speculation = SPECULATION[run]
    assert problems(window, speculation=speculation.active, draft_tokens=speculation.draft_tokens) == ()


@pytest.mark.parametrize(
    ("run", "verified", "accepted", "histogram"),
    [
        ("ngram", 56, 39, [41, 6, 3, 1, 1, 4]),
        ("standalone", 25, 70, [1, 1, 0, 23]),
        ("standalone_inc", 25, 70, [1, 1, 0, 23]),
    ],
)
def test_the_first_request_step_by_step(run: str, verified: int, accepted: int, histogram: list[int]) -> None:
    turn = settled(run)[0]
    k = SPECULATION[run].draft_tokens
    assert turn.told is not None
    assert (turn.told.steps, turn.told.drafts, turn.told.accepted) == (verified, verified, accepted)
    assert turn.told.drafted == verified * k
    steps = turn.steps
    assert steps is not None
    assert (steps.count, steps.cut, steps.ordered) == (verified, 0, True)
    assert [steps.lengths.count(j + 1) for j in range(k + 1)] == histogram
    # Each event was one step, so their order is known.
    assert steps.lengths == turn.event_tokens[1:]
    assert len(turn.step_ns) == verified + 1
    # 95 tokens came from the verify steps. SGLang's own figure has the prefill's token in it: 96 / 25 = 3.84.
    assert acceptance.decode_acceptance_length([turn]) == 95 / verified
    assert acceptance.acceptance_length([turn]) == 96 / (verified + 1)
    closing = json.loads(recording(run)["requests"][0]["events"][-2][1].removeprefix("data: "))["meta_info"]
    assert closing["spec_accept_length"] == 96 / verified


def test_the_four_requests_of_each_run() -> None:
    # tokens / events of the recording's own statistics: 217 events with n-gram, 103 with the draft model.
    for run, events in (("ngram", 217), ("standalone", 103), ("standalone_inc", 103)):
        turns = settled(run)
        steps = sum(t.steps.count for t in turns if t.steps is not None)
        assert sum(len(t.event_tokens) for t in turns) == events == steps + 4
        assert acceptance.decode_acceptance_length(turns) == 380 / steps
        assert acceptance.acceptance_length_pooled(turns) == 384 / events


def test_cumulative_and_incremental_streams_give_the_same_ids() -> None:
    cumulative, incremental = settled("standalone"), settled("standalone_inc")
    assert [t.output_ids for t in cumulative] == [t.output_ids for t in incremental]
    assert [t.text for t in cumulative] == [t.text for t in incremental]
    assert [t.steps for t in cumulative] == [t.steps for t in incremental]


@pytest.mark.parametrize("run", RUNS)
def test_pieces_of_the_wire_may_end_anywhere(run: str) -> None:
    recorded = recording(run)["requests"][0]
    whole = replay(run, recorded, piece=10**9)
    for piece in (7, 1000):
        assert replace(replay(run, recorded, piece=piece), event_ns=whole.event_ns) == whole


@pytest.mark.parametrize("run", RUNS)
def test_a_recording_cut_short_is_never_a_turn(run: str) -> None:
    recorded = recording(run)["requests"][0]
    for kept in (0, 1, 10, len(recorded["events"]) - 2, len(recorded["events"]) - 1):
        with pytest.raises(RequestError) as caught:
            replay(run, {**recorded, "events": recorded["events"][:kept]})
        assert caught.value.reason == "stream_cut"


# Other requests


def other(name: str) -> Any:
    return recording("other_requests")[name]


def test_eos() -> None:
    turn = replay("base", other("eos_stream"))
    assert (turn.finish, turn.output_tokens, turn.prompt_tokens) == ("stop", 51, 37)
    # The end token is an id of the output and no text.
    assert turn.output_ids is not None
    assert turn.output_ids[-1] == 2
    assert turn.text is not None
    assert turn.text.endswith("the human condition.")


def test_sampled_at_temperature_1() -> None:
    turn = replay("base", other("temp1_stream"))
    assert (turn.finish, turn.output_tokens, turn.event_tokens) == ("length", 32, (1,) * 32)


@pytest.mark.parametrize("name", ["too_long_stream", "over_budget_stream"])
def test_errors_inside_http_200(name: str) -> None:
    asked = {"input_ids": [1], "sampling_params": {"max_new_tokens": 8, "temperature": 0}}
    with pytest.raises(RequestError, match="context length") as caught:
        replay("base", {**other(name), "request": asked})
    assert caught.value.reason == "error_event"


def test_plain_errors() -> None:
    assert other("too_long")["status"] == 400
    assert engine_of("base").error_text(other("too_long")["text"].encode()) == (
        "The input (9000 tokens) is longer than the model's context length (8192 tokens)."
    )


def test_a_stream_of_another_route_is_not_taken_for_generate() -> None:
    recorded = {**other("completions_stream"), "request": recording("base")["requests"][0]["request"]}
    with pytest.raises(KeyError, match="meta_info"):
        replay("base", recorded)


# Counters


def counters(run: str) -> Counters:
    engine = engine_of("standalone" if run == "standalone" else "base")
    return engine.counters(lambda path: (FOLDER / f"{run}.metrics.txt").read_bytes())


def test_counters_of_the_recorded_servers() -> None:
    assert counters("base") == Counters(9417, 16296, cached_tokens=0, preemptions=0)
    assert counters("standalone") == Counters(9417, 16296, steps=4357, drafts=4357, cached_tokens=0, preemptions=0)


@pytest.mark.parametrize("run", ["base", "standalone"])
def test_the_recorded_servers_were_idle(run: str) -> None:
    engine, text = engine_of(run), (FOLDER / f"{run}.metrics.txt").read_text()
    assert engine.idle(lambda path: text.encode())
    busy = text.replace('sglang:num_running_reqs{engine_type="unified"', 'sglang:num_running_reqs{a="b"', 1)
    busy = busy.replace('moe_ep_rank="0",pp_rank="0",tp_rank="0"} 0.0', 'tp_rank="0"} 3.0')
    assert not engine.idle(lambda path: busy.encode())


def test_a_cancelled_request_leaves_the_gauge_of_running_ones() -> None:
    engine = engine_of("base")
    texts = ["\n".join(lines) for _, lines in other("cancel")]
    # The gauge is behind: it read 0 while the request already ran.
    assert [_idle(engine, text) for text in texts] == [True] + [False] * 6 + [True] * 5


def _idle(engine: Sglang, text: str) -> bool:
    return engine.idle(lambda path: text.encode())


# Real HTTP


class Recorded:
    """Answers each request with the recorded bytes of the one that had the same prompt."""

    stream_path = "/generate"

    def __init__(self, requests: list[dict[str, Any]]) -> None:
        self._bytes = {tuple(r["request"]["input_ids"]): wire(r) for r in requests}

    def plain(self, request: Request) -> Response:
        return Response(404, b"{}")

    def stream(self, request: Request) -> Stream:
        return Stream(self._pieces(self._bytes[tuple(request.body["input_ids"])]))

    async def _pieces(self, data: bytes) -> AsyncIterator[bytes]:
        yield data


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("piece", [None, 1000])
def test_recorded_bytes_over_http(run: str, piece: int | None) -> None:
    requests = recording(run)["requests"]
    engine = engine_of(run)

    async def play(base_url: str) -> list[Turn]:
        async with StreamingClient(engine, base_url, concurrency=4) as client:
            asked = [client.turn(request_of(r, f"q{i}"), deadline_s=60) for i, r in enumerate(requests)]
            return list(await asyncio.gather(*asked))

    with Server(Recorded(requests), piece=piece) as server:
        turns = asyncio.run(play(server.base_url))
    for turn, expected in zip(turns, turns_of(run), strict=True):
        assert replace(turn, event_ns=expected.event_ns, start_ns=expected.start_ns) == expected
    params = server.requests[0].body["sampling_params"]
    assert (params["max_new_tokens"], params["temperature"], params["ignore_eos"]) == (96, 0, True)

"""How each engine is asked for the likeliest next tokens, and what is made of its answer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pytest_speedbench.engines.base import Engine, Profile, Sampling, Speculation, TurnRequest
from pytest_speedbench.engines.llamacpp import LlamaCpp
from pytest_speedbench.engines.sglang import Sglang
from pytest_speedbench.engines.trtllm import TrtLlm
from pytest_speedbench.engines.vllm import Vllm
from pytest_speedbench.errors import EngineError
from pytest_speedbench.load.client import post_json
from pytest_speedbench.measure.losslessness import TOP_TOKENS, TopTokens
from tests.emulator.llamacpp import Emulator as LlamaCppServer
from tests.emulator.llamacpp import Script
from tests.emulator.schedule import Schedule
from tests.emulator.server import Server
from tests.emulator.sglang import SglangApp
from tests.emulator.vllm import Vllm as VllmApp

RECORDINGS = Path(__file__).parent.parent / "recordings" / "sglang-0.5.16-h100"
# The last one is beyond what is asked for. Not in the order of the ids, nor that of their texts.
TOP = ((9, -0.5), (104, -1.25), (7, -2.0), (65, -4.0), (66, -5.0), (67, -6.0))
TURN = TurnRequest("q", "coding", 0, (1, 2, 3), Sampling(osl_cap=64, ignore_eos=True))
NEVER = Schedule((1,), ())


def profile(engine: str) -> Profile:
    return Profile(engine, engine, "model", Speculation())


def ask(engine: Engine, base_url: str) -> TopTokens:
    request = engine.top_tokens(TURN)
    assert request is not None
    return request.read(post_json(base_url, request.path, request.body, engine.error_text, timeout_s=30))


def test_vllm_tells_ids_though_texts_are_its_habit() -> None:
    with Server(VllmApp(lambda request: NEVER, top=lambda request: TOP)) as server:
        assert ask(Vllm(profile("vllm")), server.base_url).tokens == TOP[:TOP_TOKENS]
    body = server.requests[0].body
    assert (body["prompt"], body["max_tokens"], body["ignore_eos"]) == ([1, 2, 3], 1, True)
    assert "stream" not in body
    assert "stream_options" not in body


def test_sglang() -> None:
    with Server(SglangApp(lambda request, seen: NEVER, top=lambda request: TOP)) as server:
        assert ask(Sglang(profile("sglang")), server.base_url).tokens == TOP[:TOP_TOKENS]
    body = server.requests[0].body
    assert (body["input_ids"], body["stream"]) == ([1, 2, 3], False)
    assert (body["sampling_params"]["max_new_tokens"], body["sampling_params"]["ignore_eos"]) == (1, True)


def test_llamacpp_tells_probabilities_after_sampling() -> None:
    likely = [(token, math.exp(logprob)) for token, logprob in TOP[:2]]
    with LlamaCppServer(lambda request: Script.of("x"), top=lambda request: [*likely, (5, 0.0)]) as server:
        found = ask(LlamaCpp(profile("llamacpp")), server.base_url).tokens
    assert [token for token, _ in found] == [9, 104, 5]
    assert [logprob for _, logprob in found[:2]] == pytest.approx([-0.5, -1.25])
    assert -math.inf < found[2][1] < -100


def test_trtllm_cannot_tell() -> None:
    assert TrtLlm(profile("trtllm")).top_tokens(TURN) is None


def recorded_event() -> dict[str, Any]:
    """An event with log-probabilities, recorded from SGLang 0.5.16; there one alternative was asked for."""
    stream = json.loads((RECORDINGS / "other_requests.json").read_text())["logprob_stream"]["events"]
    event: dict[str, Any] = json.loads(stream[0][1].removeprefix("data: "))
    return event


def test_sglang_as_it_was_recorded() -> None:
    request = Sglang(profile("sglang")).top_tokens(TURN)
    event = recorded_event()
    with pytest.raises(ValueError, match="two or more tokens"):
        request.read(json.dumps(event).encode())
    event["meta_info"]["output_top_logprobs"][0].append([-2.5, 11, None])
    assert request.read(json.dumps(event).encode()).tokens == ((3725, -0.48517265915870667), (11, -2.5))


@pytest.mark.parametrize("answer", [b"", b"{}", b"[]", b'{"choices": [{"logprobs": null}]}', b'{"meta_info": {}}'])
@pytest.mark.parametrize("engine", [Vllm(profile("vllm")), Sglang(profile("sglang")), LlamaCpp(profile("llamacpp"))])
def test_another_answer_is_refused(engine: Engine, answer: bytes) -> None:
    request = engine.top_tokens(TURN)
    assert request is not None
    with pytest.raises((ValueError, LookupError, TypeError)):
        request.read(answer)


def test_a_refusal_has_the_servers_own_words() -> None:
    with (
        Server(VllmApp(lambda request: NEVER, max_model_len=3)) as server,
        pytest.raises(EngineError, match="answered HTTP 400: This model's maximum context length is 3 tokens"),
    ):
        ask(Vllm(profile("vllm")), server.base_url)


def test_a_server_that_is_gone() -> None:
    with Server(VllmApp(lambda request: NEVER)) as server:
        url = server.base_url
    with pytest.raises(EngineError, match=r"POST /v1/completions of the engine failed: .+"):
        ask(Vllm(profile("vllm")), url)

"""The likeliest next tokens, from real llama-servers: what greedy decoding chooses, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from pytest_speedbench.engines.base import Sampling, TurnRequest
from pytest_speedbench.errors import EngineError
from pytest_speedbench.load.client import post_json
from pytest_speedbench.measure.losslessness import TOP_TOKENS, Grade, TopTokens, demand, judge
from pytest_speedbench.measure.samples import Turn
from pytest_speedbench.running import RunningEngine
from tests.engines.conftest import Engines, conversations, measure

pytestmark = pytest.mark.real_engine

EOS = 2
TEXTS = ("What is the capital of France?", "Repeat five times: the quick brown fox.")


def top_tokens(engine: RunningEngine, ids: Sequence[int], *, ignore_eos: bool = False) -> TopTokens:
    module = engine.prepared.engine
    request = module.top_tokens(TurnRequest("q", "coding", 0, ids, Sampling(osl_cap=1, ignore_eos=ignore_eos)))
    assert request is not None
    return request.read(post_json(engine.base_url, request.path, request.body, module.error_text, timeout_s=60))


def prompts(engine: RunningEngine) -> dict[str, Sequence[int]]:
    return {c.question_id: c.first_ids for c in conversations(engine, TEXTS)}


def test_greedy_output_takes_the_likeliest_token_every_time(engines: Engines) -> None:
    engine = engines("none")
    for turn in measure(engine, TEXTS, osl_cap=8).turns:
        assert turn.output_ids is not None
        for at, token in enumerate(turn.output_ids):
            top = top_tokens(engine, [*prompts(engine)[turn.question_id], *turn.output_ids[:at]])
            assert len(top.tokens) == TOP_TOKENS
            # Decoding one token and processing a prompt round differently, but not by this much.
            deficit = top.deficit(token)
            assert deficit is not None
            assert deficit < 0.1


def test_what_is_asked_is_not_speculated(engines: Engines) -> None:
    ids = conversations(engines("none"), TEXTS)[0].first_ids
    plain, drafting = (top_tokens(engines(method), ids) for method in ("none", "draft"))
    assert plain == drafting


def test_eos_is_no_alternative_where_it_is_ignored(engines: Engines) -> None:
    engine = engines("none")
    tokenizer = engine.prepared.tokenizer
    ids = [*prompts(engine)["q0"], *tokenizer.encode("The capital of France is Paris.")]
    assert top_tokens(engine, ids).tokens[0][0] == EOS
    assert top_tokens(engine, ids, ignore_eos=True).deficit(EOS) is None


def test_a_refused_question_is_an_error_with_the_servers_message(engines: Engines) -> None:
    with pytest.raises(EngineError, match=r"POST /completion of the engine answered HTTP 400: .*(context|size)"):
        top_tokens(engines("none"), [1] * 100_000)


def altered(turn: Turn, at: int, token: int) -> Turn:
    ids = turn.output_ids
    assert ids is not None
    return replace(turn, output_ids=(*ids[:at], token, *ids[at + 1 :]))


def test_the_grade_of_a_wrong_token_rests_on_the_engines_own_opinion(engines: Engines) -> None:
    engine = engines("none")
    turns = measure(engine, TEXTS, osl_cap=8).turns

    def ask(turn: Turn, at: int) -> TopTokens:
        assert turn.output_ids is not None
        return top_tokens(engine, [*prompts(engine)[turn.question_id], *turn.output_ids[:at]])

    (first,) = (turn for turn in turns if turn.question_id == "q0")
    runner_up, deficit = ((top := ask(first, 3)).tokens[1][0], top.tokens[0][1] - top.tokens[1][1])
    unlikely = 2 if runner_up != 2 else 3
    held_to = demand("float32", concurrency=2)
    for token, gap in ((runner_up, deficit), (unlikely, None)):
        wrong = [altered(turn, 3, token) if turn is first else turn for turn in turns]
        result = judge(turns, wrong, ask, held_to)
        assert (result.verdict, result.identical, result.compared) == ("FAIL", 1, 2)
        (finding,) = result.findings
        assert (finding.grade, finding.beyond) == (Grade.MISMATCH, gap is None)
        assert finding.gap == pytest.approx(gap, abs=0.02) if gap is not None else finding.gap
        # The same difference is a tie to who tolerates it.
        lenient = judge(turns, wrong, ask, replace(held_to, tolerance=deficit + 0.1))
        assert lenient.verdict == ("PASS" if gap is not None else "FAIL")


def test_speculation_in_a_real_engine_is_lossless(engines: Engines) -> None:
    engine = engines("none")
    plain = measure(engine, TEXTS, osl_cap=24).turns

    def ask(turn: Turn, at: int) -> TopTokens:
        assert turn.output_ids is not None
        return top_tokens(engine, [*prompts(engine)[turn.question_id], *turn.output_ids[:at]])

    for method in ("draft", "ngram"):
        result = judge(plain, measure(engines(method), TEXTS, osl_cap=24).turns, ask, demand(None, concurrency=1))
        assert result.verdict == "PASS", result.lines
        assert result.tokens_compared > 0

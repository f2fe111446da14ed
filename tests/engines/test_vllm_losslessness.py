"""A real vLLM in bfloat16: speculation changes greedy output there, and only where two tokens tie.

Needs what ``test_vllm`` needs.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_speedbench.engines.gpus import Nvml
from pytest_speedbench.measure.losslessness import Grade, TopTokens, demand, judge
from pytest_speedbench.measure.samples import Turn
from pytest_speedbench.running import Prepared, RunningEngine
from pytest_speedbench.starting import started
from tests.engines.conftest import conversations, measure, settings_of
from tests.engines.test_top_tokens import top_tokens
from tests.engines.test_vllm import CAPACITY, TEXTS, profile, pytestmark

__all__ = ["pytestmark"]

MORE = (
    *TEXTS,
    "Write a haiku about the sea.",
    "List three uses of copper.",
    "Explain why the sky is blue.",
    "Translate to French: I would like two coffees, please.",
)
TOKENS = 48


@contextlib.contextmanager
def bfloat16(folder: Path, method: str) -> Iterator[RunningEngine]:
    written = profile(method, args=["--dtype", "bfloat16", "--enforce-eager"])
    settings = settings_of(folder, json.dumps(written), engine="vllm")
    with started(Prepared.of(settings.profiles[0]), CAPACITY, settings, folder, Nvml()) as (engine, _):
        yield engine


def turns(engine: RunningEngine, concurrency: int = 1) -> tuple[Turn, ...]:
    return measure(engine, MORE, concurrency=concurrency, osl_cap=TOKENS, ignore_eos=True).turns


def test_what_differs_in_bfloat16_are_near_ties(tmp_path_factory: pytest.TempPathFactory) -> None:
    with bfloat16(tmp_path_factory.mktemp("drafter"), "drafter") as engine:
        speculating = turns(engine)
    with bfloat16(tmp_path_factory.mktemp("plain"), "none") as engine:
        plain, batched = turns(engine), turns(engine, concurrency=4)
        prompts = {c.question_id: c.first_ids for c in conversations(engine, MORE)}

        def ask(turn: Turn, at: int) -> TopTokens:
            assert turn.output_ids is not None
            return top_tokens(engine, [*prompts[turn.question_id], *turn.output_ids[:at]], ignore_eos=True)

        held_to = demand("bfloat16", concurrency=1)
        again = judge(plain, turns(engine), ask, held_to)
        assert (again.verdict, again.identical) == ("PASS", len(MORE))
        for other in (speculating, batched):
            result = judge(plain, other, ask, held_to)
            assert result.verdict == "PASS", result.lines
            assert 0 < result.count(Grade.NEAR_TIE) == result.compared - result.identical
        # An engine that takes the second best at the fifth token of every answer is found out.
        wrong = [replace(turn, output_ids=second_best(turn, ask(turn, 5), 5)) for turn in plain]
        assert judge(plain, wrong, ask, held_to).verdict == "FAIL"


def second_best(turn: Turn, top: TopTokens, at: int) -> tuple[int, ...]:
    assert turn.output_ids is not None
    other = next(token for token, _ in top.tokens if token != turn.output_ids[at])
    return (*turn.output_ids[:at], other, *turn.output_ids[at + 1 :])

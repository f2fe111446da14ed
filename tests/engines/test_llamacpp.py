"""A real llama-server: this project's sums are the server's own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest

from pytest_speedbench.cells import Cell
from pytest_speedbench.engines.base import Sampling
from pytest_speedbench.engines.process import ServerProcess, free_port, require_free
from pytest_speedbench.engines.prometheus import totals
from pytest_speedbench.errors import ConfigError, EngineDied, EngineStartError
from pytest_speedbench.load.client import StreamingClient, is_ready
from pytest_speedbench.load.driver import Load, Sent, drive
from pytest_speedbench.measure.checks import problems
from pytest_speedbench.measure.divergence import compare
from pytest_speedbench.measure.samples import Window
from pytest_speedbench.running import RunningEngine
from tests.engines.conftest import CAPACITY, Engines, conversations, measure, serving
from tests.unit.test_measure_samples import known, steps_of

pytestmark = pytest.mark.real_engine

METHODS = ("none", "ngram", "draft")
PLAIN = (
    "What is the capital of France?",
    "Write a Python function that adds two numbers.",
    "Repeat five times: the quick brown fox.",
    "Say the word yes.",
)
# Replies with characters of several tokens, whose parts the server never sends.
HIDING = (
    "Repeat exactly: 👩‍🚀🚀 👩‍🚀🚀 👩‍🚀🚀 👩‍🚀🚀",
    "Wiederhole: Größe, Übung, straße, façade, naïve.",
    "次の文を繰り返してください：日本語の文章です。日本語の文章です。",
    "Repeat: Привет, мир! مرحبا 你好 안녕하세요",
)


def decodes(engine: RunningEngine) -> int:
    """Forward passes of the target since the start."""
    return int(totals(engine.fetch("/metrics").decode())["llamacpp:n_decode_total"])


def process_of(engine: RunningEngine) -> ServerProcess:
    assert isinstance(engine.server, ServerProcess)
    return engine.server


def check(engine: RunningEngine, window: Window) -> None:
    """Client and server agree on every sum, and nothing else is wrong."""
    speculation = engine.prepared.profile.speculation
    found = problems(window, speculation=speculation.active, draft_tokens=speculation.draft_tokens)
    assert found == ()
    turns, counters = window.turns, window.counters
    assert (counters.prompt_tokens, counters.output_tokens, counters.drafted, counters.accepted) == (
        sum(turn.prompt_tokens for turn in turns),
        sum(turn.output_tokens for turn in turns),
        sum(known(steps_of(turn).drafted) for turn in turns),
        sum(known(steps_of(turn).accepted) for turn in turns),
    )
    assert window.steps is not None
    assert window.steps.exact
    assert window.steps.low == sum(steps_of(turn).count for turn in turns)
    assert window.steps.source == (engine.prepared.engine.steps_source if speculation.active else "no speculation")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("texts", [PLAIN, HIDING], ids=["plain", "hiding"])
def test_sums_and_steps_are_the_servers(engines: Engines, method: str, texts: tuple[str, ...]) -> None:
    engine = engines(method)
    measure(engine, texts[:1])  # warms up
    before = decodes(engine)
    # Without EOS no step can be cut, so that the number of steps is exact whatever is hidden.
    window = measure(engine, texts, osl_cap=24, ignore_eos=True)
    check(engine, window)
    assert len(window.turns) == len(texts)
    assert {turn.output_tokens for turn in window.turns} == {24}
    hidden = [turn for turn in window.turns if turn.output_ids is None]
    assert bool(hidden) == (texts is HIDING)
    # One forward pass per turn is the prefill.
    assert sum(steps_of(turn).count for turn in window.turns) == decodes(engine) - before - len(window.turns)
    for turn in window.turns:
        assert len(turn.step_ns) == steps_of(turn).count + 1
        assert turn.finish == "length"
        if method == "none":
            assert set(steps_of(turn).lengths) == {1}


@dataclass(frozen=True)
class Run:
    """One pass over all texts at concurrency 1, with the server's own count of its forward passes."""

    window: Window
    decodes: int


@pytest.fixture(scope="module")
def run(engines: Engines) -> Callable[[str], Run]:
    """The run of a method, measured once."""

    @cache
    def measured(method: str) -> Run:
        engine = engines(method)
        measure(engine, PLAIN[:1])
        before = decodes(engine)
        window = measure(engine, (*PLAIN, *HIDING), osl_cap=24)
        return Run(window, decodes(engine) - before)

    return measured


@pytest.mark.parametrize("method", METHODS)
def test_replies_that_end_by_themselves(engines: Engines, run: Callable[[str], Run], method: str) -> None:
    window = run(method).window
    check(engines(method), window)
    assert {turn.finish for turn in window.turns} == {"stop", "length"}
    steps = sum(steps_of(turn).count for turn in window.turns)
    expected = run(method).decodes - len(window.turns)
    unclear = [turn for turn in window.turns if turn.finish == "stop" and turn.output_ids is None]
    if method == "ngram" and unclear:
        # Where an n-gram draft starts among hidden tokens and reaches beyond EOS is unknown.
        assert steps >= expected
    else:
        assert steps == expected


REPEATING = ("Repeat five times: the quick brown fox.", "Count from one to thirty in words, twice.")


@pytest.mark.parametrize("method", ["ngram_map_k", "ngram_map_k4v", "ngram_mod"])
def test_the_other_kinds_of_ngrams(model: Path, tmp_path: Path, method: str) -> None:
    with serving(tmp_path, "engines: {llamacpp: {threads: 1}}\n", method=method, draft_tokens="6") as engine:
        before = decodes(engine)
        window = measure(engine, REPEATING, osl_cap=64, ignore_eos=True)
        check(engine, window)
        assert known(window.counters.accepted) > 0
        assert engine.prepared.engine.remembers == (method == "ngram_mod")
        assert sum(steps_of(turn).count for turn in window.turns) < decodes(engine) - before


@pytest.mark.parametrize("method", METHODS)
def test_conversations_of_several_turns_at_concurrency_2(engines: Engines, method: str) -> None:
    engine = engines(method)
    chats = [("Name a colour.", "Name another.", "And one more."), ("Hello!", "Who are you?"), ("Count: 1 2 3",)]
    window = measure(engine, chats, concurrency=2, osl_cap=12)
    check(engine, window)
    assert sorted((t.question_id, t.index) for t in window.turns) == [
        ("q0", 0),
        ("q0", 1),
        ("q0", 2),
        ("q1", 0),
        ("q1", 1),
        ("q2", 0),
    ]
    lengths = {(t.question_id, t.index): t.prompt_tokens for t in window.turns}
    assert lengths["q0", 0] < lengths["q0", 1] < lengths["q0", 2]


@pytest.mark.parametrize("method", ["ngram", "draft"])
def test_greedy_output_does_not_depend_on_speculation(run: Callable[[str], Run], method: str) -> None:
    comparison = compare(run("none").window.turns, run(method).window.turns)
    assert comparison.compared == len(PLAIN) + len(HIDING)
    assert comparison.identical, str(comparison)


def test_speculation_drafts_and_no_speculation_does_not(run: Callable[[str], Run]) -> None:
    drafting = run("draft").window
    drafted = sum(known(steps_of(turn).drafted) for turn in drafting.turns)
    accepted = sum(known(steps_of(turn).accepted) for turn in drafting.turns)
    assert 0 < accepted < drafted
    assert run("ngram").window.counters.drafts
    plain = run("none").window.counters
    assert (plain.drafts, plain.drafted, plain.accepted) == (0, 0, 0)


def test_the_server_says_what_it_is(engines: Engines) -> None:
    description = engines("none").description
    assert description.version == version("xllamacpp")
    assert description.resolved["total_slots"] == CAPACITY.max_batch_size
    assert description.resolved["n_ctx_slot"] == CAPACITY.max_model_len
    json.dumps(description.resolved)


def test_a_prompt_that_does_not_fit_is_a_failure_with_the_servers_words(engines: Engines) -> None:
    engine = engines("none")
    (chat,) = conversations(engine, ["Hi"])
    load = Load((replace(chat, first_ids=tuple([100] * 2000)),), 1, Sampling(osl_cap=4), 60.0, 0)

    async def send() -> Sent:
        async with StreamingClient(engine.prepared.engine, engine.base_url, concurrency=1) as client:
            return await drive(client, engine.prepared.tokenizer, load, progress=lambda done, total: None)

    (failure,) = asyncio.run(send()).failures
    assert failure.reason == "http_400"
    assert "2000 tokens" in failure.message
    # The server goes on.
    check(engine, measure(engine, PLAIN[:1], osl_cap=4))


def test_a_prompt_that_does_not_fit_is_refused_before_it_is_sent(engines: Engines) -> None:
    with pytest.raises(ConfigError, match="and the engine was started with 1024; set max_model_len in the profile"):
        measure(engines("none"), ["long " * 1024])


def test_more_at_once_than_it_was_started_for_is_refused(engines: Engines) -> None:
    with pytest.raises(ConfigError, match="concurrency 3 is above the 2 that the engine was started for"):
        measure(engines("none"), PLAIN, concurrency=3)


def test_fixed_port(model: Path, tmp_path: Path) -> None:
    port = free_port()
    profile = f"engines: {{llamacpp: {{port: {port}}}}}\n"
    with serving(tmp_path, profile, method="none") as engine:
        assert engine.base_url == f"http://127.0.0.1:{port}"
        check(engine, measure(engine, PLAIN[:1], osl_cap=4))
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is in use"):
            require_free(port)
    assert not is_ready(f"http://127.0.0.1:{port}", ("/health",))
    # Its connections are in TIME_WAIT now; the next run can have the port all the same.
    require_free(port)
    assert process_of(engine).exit_code == 0


def test_a_server_that_dies_while_it_is_measured(model: Path, tmp_path: Path) -> None:
    with serving(tmp_path, method="none") as engine:

        def kill(done: int, total: int) -> None:
            os.kill(process_of(engine).pid, signal.SIGKILL)

        cell = Cell("qualitative", 1, category="coding")
        measure(engine, PLAIN[:1], osl_cap=4)
        with pytest.raises(EngineDied, match="was ended by SIGKILL while it was in use"):
            engine.measure(cell, conversations(engine, PLAIN), Sampling(osl_cap=4), kill)
        with pytest.raises(EngineDied):
            measure(engine, PLAIN[:1])


def test_a_wrong_setting_shows_in_the_error(model: Path, tmp_path: Path) -> None:
    profile = "engines: {llamacpp: {params: {no_such_field: 1}}}\n"
    with (
        pytest.raises(EngineStartError, match="exited with code 1 before it was ready") as caught,
        serving(tmp_path, profile),
    ):
        pass
    assert "CommonParams has no field 'no_such_field'" in str(caught.value)


def test_the_server_ends_when_its_standard_input_does(model: Path, engines: Engines, tmp_path: Path) -> None:
    launch = engines("none").prepared.engine.launch(CAPACITY, free_port())
    for name, content in launch.files.items():
        (tmp_path / name).write_text(content)
    assert launch.argv[0] == sys.executable
    with subprocess.Popen(
        launch.argv, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            assert any(line.startswith("listening on http://127.0.0.1:") for line in server.stdout)
            assert server.poll() is None
            server.stdin.close()
            assert server.wait(timeout=60) == 0
        finally:
            server.kill()

"""A real vLLM on the CPU: what it says of each request, of all together, and what its events show are one truth.

Needs the environment that ``tools/vllm_cpu.sh FOLDER`` makes; SPEEDBENCH_TEST_VLLM names the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import psutil
import pytest

from pytest_speedbench.engines.base import Capacity
from pytest_speedbench.engines.gpus import Nvml
from pytest_speedbench.engines.leases import MARKER, reap
from pytest_speedbench.measure.checks import problems
from pytest_speedbench.measure.divergence import compare
from pytest_speedbench.measure.samples import Steps, Turn, Window
from pytest_speedbench.running import Prepared, RunningEngine
from pytest_speedbench.starting import started
from tests.engines.conftest import measure, settings_of
from tests.plugin import project as files

FOLDER = Path(os.environ.get("SPEEDBENCH_TEST_VLLM", ""))
pytestmark = [
    pytest.mark.real_engine,
    pytest.mark.skipif(
        "SPEEDBENCH_TEST_VLLM" not in os.environ, reason="SPEEDBENCH_TEST_VLLM does not name a folder with vLLM"
    ),
]

SPECULATION = {
    "none": {"method": "none"},
    "ngram": {"method": "ngram", "draft_tokens": 4},
    "drafter": {"method": "draft", "draft_tokens": 4, "draft_model": str(FOLDER / "models" / "SmolLM2-28-layers")},
    "self": {"method": "draft", "draft_tokens": 4, "draft_model": str(FOLDER / "models" / "SmolLM2-135M-Instruct")},
}
ENGINE = {
    "python": str(FOLDER / "venv" / "bin" / "python"),
    "args": ["--dtype", "float32", "--enforce-eager"],
    "env": {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_HOST_IP": "127.0.0.1", "HF_HUB_OFFLINE": "1"},
}
TEXTS = (
    "What is the capital of France?",
    "Write a Python function that adds two numbers.",
    "Repeat five times: the quick brown fox.",
    "次の文を繰り返してください：日本語の文章です。",
)
CAPACITY = Capacity(max_batch_size=4, max_model_len=1024)


def profile(method: str, **engine: object) -> dict[str, object]:
    own: dict[str, object] = dict(ENGINE)
    if method == "ngram":
        own["speculation"] = {"prompt_lookup_min": 2, "prompt_lookup_max": 4}
    return {
        "model": str(FOLDER / "models" / "SmolLM2-135M-Instruct"),
        "speculation": SPECULATION[method],
        "start_timeout": 300,
        "engines": {"vllm": {**own, **engine}},
    }


@contextlib.contextmanager
def serving(folder: Path, method: str) -> Iterator[RunningEngine]:
    settings = settings_of(folder, json.dumps(profile(method)), engine="vllm")
    with started(Prepared.of(settings.profiles[0]), CAPACITY, settings, folder, Nvml()) as (engine, gpus):
        assert gpus == ()
        yield engine


Windows = Callable[[str], dict[int, Window]]


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Windows:
    """By method: the same texts at concurrency 1 and 4. One server at a time: it takes both cores."""

    @cache
    def measured(method: str) -> dict[int, Window]:
        with serving(tmp_path_factory.mktemp(method), method) as engine:
            assert engine.description.version.startswith("0.32")
            return {n: measure(engine, TEXTS, concurrency=n, osl_cap=48, ignore_eos=True) for n in (1, 4)}

    return measured


def steps_of(turn: Turn) -> Steps:
    assert turn.steps is not None, turn
    return turn.steps


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("method", SPECULATION)
def test_requests_counters_and_events_agree(windows: Windows, method: str, concurrency: int) -> None:
    window, active = windows(method)[concurrency], method != "none"
    assert problems(window, speculation=active, draft_tokens=4 if active else 0) == ()
    turns, counters = window.turns, window.counters
    assert len(turns) == len(TEXTS)
    assert window.steps is not None
    assert window.steps.exact
    assert counters.steps == window.steps.low
    assert counters.output_tokens == sum(t.output_tokens for t in turns) == 48 * len(TEXTS)
    assert counters.prompt_tokens == sum(t.prompt_tokens for t in turns)
    assert counters.preemptions == 0
    for turn in turns:
        assert turn.output_ids is not None
        assert len(turn.output_ids) == turn.output_tokens
    if not active:
        assert counters.steps == sum(t.output_tokens - 1 for t in turns)
        return
    told = [t.told for t in turns if t.told is not None]
    assert counters.drafts == sum(t.drafts or 0 for t in told) > 0
    assert counters.drafted == sum(t.drafted or 0 for t in told)
    assert counters.accepted == sum(t.accepted or 0 for t in told)


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("method", ["ngram", "drafter", "self"])
def test_accepted_plus_one_is_what_the_events_hold(windows: Windows, method: str, concurrency: int) -> None:
    compared = 0
    for turn in windows(method)[concurrency].turns:
        steps = steps_of(turn)
        assert turn.told is not None
        assert turn.told.lengths is not None
        if len(turn.event_tokens) != steps.count + 1:
            continue  # the server joined events
        compared += 1
        assert steps.cut is not None
        emitted = [*turn.event_tokens[1:-1], turn.event_tokens[-1] + steps.cut]
        if method == "ngram":
            # Steps that found nothing to draft are events of one token, and not in the list.
            assert [n for n in emitted if n > 1] == [n for n in turn.told.lengths if n > 1]
        else:
            assert emitted == list(turn.told.lengths)
    assert compared >= len(TEXTS) / 2


@pytest.mark.parametrize("method", ["ngram", "drafter", "self"])
def test_greedy_output_in_float32_does_not_depend_on_speculation(windows: Windows, method: str) -> None:
    compared = compare(windows("none")[1].turns, windows(method)[1].turns)
    assert compared.identical, str(compared)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_model_that_drafts_for_itself_is_always_right(windows: Windows, concurrency: int) -> None:
    counters = windows("self")[concurrency].counters
    assert counters.accepted == counters.drafted
    assert all(set(steps_of(turn).lengths) == {5} for turn in windows("self")[concurrency].turns)


def test_a_weaker_drafter_is_sometimes_right(windows: Windows) -> None:
    counters = windows("drafter")[1].counters
    assert counters.accepted is not None
    assert counters.drafted is not None
    assert 0.2 < counters.accepted / counters.drafted < 0.9


def write_project(folder: Path) -> None:
    """Cells, limits of both engines and a profile for both: what an upgrade of either is gated with."""
    files.write_prompts(folder / "prompts", files.PROMPTS)
    (folder / "limits").mkdir()
    for engine in ("llamacpp", "vllm"):
        files.write_limits(folder / "limits" / f"{engine}.yaml", files.LOOSE, engine=engine, method="draft")
    llamacpp = {"threads": 1, "model": str(next((FOLDER / "gguf").rglob("*.gguf"))), "draft_cache_type": "q4_0"}
    shared = {
        "dataset": "prompts",
        "thresholds": "limits",
        "osl": 12,
        "start_timeout": 300,
        "tokenizer": str(FOLDER / "models" / "SmolLM2-135M-Instruct"),
        "speculation": {"method": "draft", "draft_tokens": 2},
        "engines": {
            "llamacpp": {**llamacpp, "draft_model": llamacpp["model"]},
            "vllm": {
                **ENGINE,
                "model": str(FOLDER / "models" / "SmolLM2-135M-Instruct"),
                "draft_model": str(FOLDER / "models" / "SmolLM2-28-layers"),
            },
        },
    }
    (folder / "speedbench.yaml").write_text(json.dumps(shared), encoding="utf-8")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leases of this test alone."""
    monkeypatch.setenv("SPEEDBENCH_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state" / "engines"


def test_the_same_cells_are_gated_on_either_engine(tmp_path: Path, state: Path) -> None:
    write_project(tmp_path)
    cells = {}
    for engine in ("llamacpp", "vllm"):
        result = files.run_pytest(tmp_path, f"--speedbench-engine={engine}", timeout_s=400)
        assert result.ret == pytest.ExitCode.OK, files.text(result)
        cells[engine] = files.verdicts(tmp_path)
        assert not list(state.glob("*.json"))
    assert cells["llamacpp"] == cells["vllm"] == dict.fromkeys(("coding", "math", "rag", "overall"), "PASS")


def test_an_engine_whose_pytest_was_killed_is_reaped(tmp_path: Path, state: Path) -> None:
    write_project(tmp_path)
    with files.background(tmp_path, "--speedbench-engine=vllm") as pytest_process:
        # The server has children of its own once it loads the model.
        files.wait_until(lambda: len(_marked(pytest_process.pid)) >= 2, "the engine was started", 120)
        engine = _marked(pytest_process.pid)
        pytest_process.send_signal(signal.SIGKILL)
        pytest_process.wait()
        assert any(process.is_running() for process in engine)
    (reaped,) = reap(state)
    assert "vllm" in str(reaped) or "python" in str(reaped)
    assert not [process for process in engine if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not list(state.glob("*.json"))


def _marked(pid: int) -> list[psutil.Process]:
    """The engine's processes below a pytest."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if MARKER in child.environ():
                found.append(child)
    return found

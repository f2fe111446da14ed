"""Servers that someone else runs: all four protocols through the whole plugin, and servers that are something else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pytest_speedbench.report import artifact as artifacts
from tests.emulator import llamacpp
from tests.emulator.schedule import Schedule
from tests.emulator.server import App, Request, Server
from tests.emulator.sglang import SglangApp
from tests.emulator.trtllm import TrtLlm
from tests.emulator.vllm import Vllm
from tests.plugin import project as files

DRAFT, TOKENS = 2, 12
SERVED = {"vllm": "someone/model", "sglang": "speedbench", "trtllm": "target"}
"""What each emulator calls its model, which the profile knows by the folder of its tokenizer."""
ACCEPT = (2, 0, 1, 1)


def schedule(request: Request, **fields: Any) -> Schedule:
    """Another answer for every request, of known steps."""
    return Schedule.of(TOKENS, draft=DRAFT, accept=ACCEPT, seed=request.number, **fields)


def app_of(engine: str, **fields: Any) -> App:
    if engine == "vllm":
        return Vllm(lambda r: schedule(r, **fields), draft_tokens=DRAFT, metrics="detailed", served="someone/model")
    if engine == "sglang":
        return SglangApp(lambda r, _: schedule(r, **fields), window=DRAFT + 1, vocabulary=50_000)
    return TrtLlm(lambda r: schedule(r, **fields), draft_tokens=DRAFT)


Serve = Callable[[str], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start the emulator of an engine; its address."""
    with ExitStack() as stack:

        def start(engine: str, **fields: Any) -> str:
            if engine == "llamacpp":
                script = llamacpp.Script.of("x" * TOKENS, draft=DRAFT, accept=ACCEPT)
                return stack.enter_context(llamacpp.serving(script)).base_url
            return stack.enter_context(Server(app_of(engine, **fields))).base_url

        yield start


@pytest.fixture
def attached(tmp_path: Path, tokenizer: Path) -> Path:
    """A project whose profile says what the server is said to be: the model's folder holds its tokenizer."""
    files.write_project(tmp_path, {"qualitative": 1.2}, tokenizer=tokenizer)
    files.write_limits(tmp_path / "limits.yaml", {"qualitative": 1.2}, method="draft")
    text = (tmp_path / "limits.yaml").read_text(encoding="utf-8").replace('"engine": "llamacpp", ', "")
    (tmp_path / "limits.yaml").write_text(text, encoding="utf-8")
    profile = {
        "dataset": "prompts",
        "thresholds": "limits.yaml",
        "osl": TOKENS,
        "ignore_eos": True,
        "model": "tokenizer",
        "speculation": {"method": "draft", "draft_tokens": DRAFT, "draft_model": "someone/drafter"},
        "max_model_len": 2048,
        "engines": {engine: {"served_model": name} for engine, name in SERVED.items()},
    }
    (tmp_path / "speedbench.yaml").write_text(json.dumps(profile), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_cells_are_gated_on_a_server_of_someone_else(attached: Path, serve: Serve, engine: str) -> None:
    url = serve(engine)
    result = files.run_pytest(attached, f"--speedbench-engine={engine}", f"--speedbench-base-url={url}/")
    assert result.ret == pytest.ExitCode.OK, files.text(result)
    assert set(files.verdicts(attached).values()) == {"PASS"}
    data = files.artifact(attached)
    artifacts.validate(data)
    (record,) = data["run"]["engines"]
    assert (record["base_url"], record["start_s"], record["gpus"]) == (url, None, [])
    truth = Schedule.of(TOKENS, draft=DRAFT, accept=ACCEPT)
    for cell in data["cells"]:
        found = cell["metrics"]["acceptance_length"]["value"]
        assert found == pytest.approx(TOKENS / (len(truth.steps) + 1), abs=1e-12)
    assert f"{engine}: attached to {url}, which someone else runs" in files.text(result)


def test_a_llama_server_of_someone_else(attached: Path, serve: Serve) -> None:
    url = serve("llamacpp")
    result = files.run_pytest(
        attached,
        "--speedbench-engine=llamacpp",
        f"--speedbench-base-url={url}",
        "--speedbench-tokenizer=tokenizer",
        "--speedbench-concurrency=4",
    )
    assert result.ret == pytest.ExitCode.OK, files.text(result)
    assert set(files.verdicts(attached).values()) == {"PASS"}


@pytest.mark.parametrize("named", ["vllm", "sglang", "trtllm", "llamacpp"])
@pytest.mark.parametrize("there", ["vllm", "sglang", "trtllm", "llamacpp"])
def test_a_server_that_speaks_another_protocol(attached: Path, serve: Serve, named: str, there: str) -> None:
    if named == there:
        pytest.skip("that is the right one")
    result = files.run_pytest(attached, f"--speedbench-engine={named}", f"--speedbench-base-url={serve(there)}")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(errors=4)
    shown = files.text(result)
    assert f"INVALID engine_start_failed: {named}: " in shown
    assert "Traceback" not in shown
    assert set(files.verdicts(attached).values()) == {"INVALID"}


@pytest.mark.parametrize("engine", SERVED)
def test_a_server_of_another_model(attached: Path, serve: Serve, engine: str) -> None:
    profile = json.loads((attached / "speedbench.yaml").read_text(encoding="utf-8"))
    del profile["engines"]
    (attached / "speedbench.yaml").write_text(json.dumps(profile), encoding="utf-8")
    result = files.run_pytest(attached, f"--speedbench-engine={engine}", f"--speedbench-base-url={serve(engine)}")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    shown = files.text(result)
    assert f"serves {SERVED[engine]}" in shown
    assert f"give the right --speedbench-model, or engines.{engine}.served_model" in shown


def test_more_conversations_than_the_server_takes(attached: Path) -> None:
    app = SglangApp(lambda r, _: schedule(r), window=DRAFT + 1, vocabulary=50_000, info={"max_running_requests": 8})
    with Server(app) as server:
        result = files.run_pytest(attached, "--speedbench-engine=sglang", f"--speedbench-base-url={server.base_url}")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "the server takes 8 requests at once, and 32 are to be measured" in files.text(result)


def test_nobody_at_the_address(attached: Path) -> None:
    result = files.run_pytest(attached, "--speedbench-engine=vllm", "--speedbench-base-url=http://127.0.0.1:9")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "no vllm answers at http://127.0.0.1:9" in files.text(result)


@pytest.mark.parametrize(
    ("engine", "fault", "code"),
    [
        ("vllm", "error_event", "error_event"),
        ("vllm", "cut", "stream_cut"),
        ("vllm", "more_usage", "ids_lost"),
        ("sglang", "error_event", "error_event"),
        ("sglang", "cut", "stream_cut"),
    ],
)
def test_answers_that_cannot_be_trusted_are_lost_requests(
    attached: Path, serve: Serve, engine: str, fault: str, code: str
) -> None:
    url = serve(engine, fault=fault)  # type: ignore[call-arg]
    result = files.run_pytest(
        attached, f"--speedbench-engine={engine}", f"--speedbench-base-url={url}", "--speedbench-category=math"
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert f"2 × {code}" in files.text(result)
    assert files.verdicts(attached) == {"math": "INVALID"}


def test_limits_that_ask_for_a_gpu_do_not_apply(attached: Path, serve: Serve) -> None:
    files.write_limits(attached / "limits.yaml", {"qualitative": 1.2}, engine="vllm", gpu="NVIDIA H100*")
    result = files.run_pytest(attached, "--speedbench-engine=vllm", f"--speedbench-base-url={serve('vllm')}")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "gpu: wanted 'NVIDIA H100*', found none" in files.text(result)


def test_a_server_without_speculation_is_not_what_the_profile_says(attached: Path) -> None:
    with Server(Vllm(lambda r: Schedule.of(TOKENS, draft=0), served="someone/model")) as server:
        result = files.run_pytest(attached, "--speedbench-engine=vllm", f"--speedbench-base-url={server.base_url}")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "no_speculation" in files.text(result)


def test_one_address_is_one_server(attached: Path) -> None:
    result = files.run_pytest(
        attached, "--speedbench-engine=vllm,sglang", "--speedbench-base-url=http://127.0.0.1:8000"
    )
    files.refused(result, "--speedbench-base-url is one server, but 2 engines are named")


# The control


def test_a_control_beside_the_real_cells(attached: Path, serve: Serve) -> None:
    long = "Count the words of this sentence, then name a colour and a city, and say why. " * 8
    files.write_prompts(attached / "prompts", {"mixed": [[f"{n}. {long}"] for n in range(4)]}, "throughput_1k")
    limits = "schema: 1\nmatch: {engine: vllm}\ngates:\n  - cell: {split: throughput}\n"
    limits += "    decode_acceptance_length: {min: 1.01}\n"
    (attached / "limits.yaml").write_text(limits, encoding="utf-8")
    attach = ("--speedbench-engine=vllm", f"--speedbench-base-url={serve('vllm')}", "--speedbench-concurrency=1")

    result = files.run_pytest(
        attached, *attach, "--speedbench-split=throughput", "--speedbench-dataset=prompts,random-uniform"
    )

    text = files.text(result)
    assert result.ret == pytest.ExitCode.OK, text
    assert "random tokens (control) against real prompts" in text
    real, control = files.artifact(attached)["cells"]
    assert (real["cell"]["difficulty"], real["verdict"]) == ("mixed", "PASS")
    # It would pass the limit of all throughput cells, but it is nothing that a limit may be for.
    assert (control["cell"]["difficulty"], control["verdict"], control["gates"]) == ("random", None, [])
    assert control["conversations"] == 4
    # The template adds the same to each; what is in it is 1k within two tokens.
    assert control["isl"]["max"] - control["isl"]["min"] <= 4
    assert 1000 <= control["isl"]["mean"] < 1060


def test_a_control_alone_needs_no_limits_and_no_data(attached: Path, serve: Serve) -> None:
    attach = ("--speedbench-engine=vllm", f"--speedbench-base-url={serve('vllm')}", "--speedbench-concurrency=1,2")

    result = files.run_pytest(
        attached, *attach, "--speedbench-isl=1k", "--speedbench-dataset=random", "--speedbench-prompts=2"
    )

    text = files.text(result)
    assert result.ret == pytest.ExitCode.OK, text
    assert "measured only: nothing was compared with a limit" in text
    assert [(cell["item_id"], cell["verdict"]) for cell in files.artifact(attached)["cells"]] == [
        ("vllm-throughput-1k-random-c1", None),
        ("vllm-throughput-1k-random-c2", None),
    ]

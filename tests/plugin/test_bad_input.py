"""What cannot work is refused before any engine starts: exit 4, what is possible, and no traceback."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest

from pytest_speedbench.data.schema import SENTINEL
from pytest_speedbench.engines import embedded, registry
from pytest_speedbench.names import CATEGORIES, DIFFICULTIES, ISLS
from tests.plugin import project as files
from tests.plugin.project import ENGINE

# A model of one's own does not draft for itself.
NGRAM = {"method": "ngram", "draft_tokens": 2}

# Options


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--speedbench-engine=vlllm"], ["unknown engine 'vlllm'", f"choose from {', '.join(registry.NAMES)}"]),
        (["--speedbench-engine=tensorrt"], ["unknown engine 'tensorrt'", f"choose from {', '.join(registry.NAMES)}"]),
        (["--speedbench-engine=llamacpp,nope"], ["unknown engine 'nope'"]),
        (["--speedbench-split=x"], ["--speedbench-split=x", "qualitative, throughput"]),
        (["--speedbench-category=code"], ["--speedbench-category=code", ", ".join(CATEGORIES)]),
        (["--speedbench-isl=3k"], ["--speedbench-isl=3k", ", ".join(ISLS)]),
        (["--speedbench-difficulty=hard"], ["--speedbench-difficulty=hard", ", ".join(DIFFICULTIES)]),
        (["--speedbench-inconclusive=pass"], ["--speedbench-inconclusive=pass", "fail, warn"]),
        (["--speedbench-method=medusa"], ["no method 'medusa'", ", ".join(registry.methods("llamacpp"))]),
        (["--speedbench-concurrency=0"], ["--speedbench-concurrency=0", "at least 1"]),
        (["--speedbench-osl=many"], ["--speedbench-osl=many", "whole number"]),
        (["--speedbench-tensor-parallel=0"], ["--speedbench-tensor-parallel=0", "at least 1"]),
        (["--speedbench-base-url=localhost:8000"], ["--speedbench-base-url=localhost:8000", "http://127.0.0.1:8000"]),
        (["--speedbench-temperature=-1"], ["--speedbench-temperature=-1", "at least 0"]),
        (["--speedbench-split=qualitative", "--speedbench-isl=1k"], ["the qualitative split has no isl"]),
        (["--speedbench-category=writing"], ["no prompts in category writing", "coding, math, rag"]),
        (["--speedbench-profile=other.yaml"], ["other.yaml"]),
        (["--speedbench-thresholds=other.yaml"], ["other.yaml", "--speedbench-measure-only"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_an_impossible_option_names_the_possible_ones(
    project: pytest.Pytester, options: list[str], fragments: list[str]
) -> None:
    engine = [] if options[0].startswith("--speedbench-engine") else [ENGINE]
    files.refused(project.runpytest_subprocess(*engine, *options), *fragments)


def test_an_impossible_ini_value_names_its_origin(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\nspeedbench_inconclusive = maybe\n")
    files.refused(project.runpytest_subprocess(ENGINE), "fail, warn", "(from ini speedbench_inconclusive)")


def test_a_typed_engine_is_checked_beside_a_path_too(project: pytest.Pytester) -> None:
    project.makepyfile(test_plain="def test_plain(): pass")
    files.refused(project.runpytest_subprocess("--speedbench-engine=vlllm", "test_plain.py"), "unknown engine 'vlllm'")


def test_a_profile_with_an_unknown_key_names_file_line_and_keys(project: pytest.Pytester) -> None:
    (project.path / "speedbench.yaml").write_text("dataset: prompts\nspeculative: {method: draft}\n", encoding="utf-8")
    files.refused(project.runpytest_subprocess(ENGINE), "speedbench.yaml:2", "speculative", "speculation")


def test_an_engine_option_that_does_not_exist_names_those_that_do(project: pytest.Pytester) -> None:
    files.write_profile(project.path, engine={"thread": 4})
    files.refused(project.runpytest_subprocess(ENGINE), "llamacpp has no option thread", "threads")


# Thresholds


@pytest.mark.parametrize(
    ("gate", "fragments"),
    [
        ("acceptance_lenght: {min: 1.2}", ["limits.yaml:4", "acceptance_lenght", "acceptance_length"]),
        ("ttft_p95_s: {min: 0.2}", ["limits.yaml:4", "ttft_p95_s", "max"]),
        ("output_tps: {max: 5}", ["limits.yaml:4", "output_tps", "min"]),
        ("acceptance_length: {min: [}", ["limits.yaml:4"]),
        ("acceptance_length: {min: fast}", ["limits.yaml:4", "fast"]),
    ],
)
def test_a_wrong_limit_is_named_by_file_and_line(project: pytest.Pytester, gate: str, fragments: list[str]) -> None:
    (project.path / "limits.yaml").write_text(
        f"schema: 1\nestimator: request_mean\ngates:\n  - {{cell: {{split: qualitative}}, {gate}}}\n", encoding="utf-8"
    )
    files.refused(project.runpytest_subprocess(ENGINE), *fragments)


# Data


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (None, ["no data", "<config>.jsonl"]),
        ('{"question_id": "a", "category": "coding", "turns": ["x"', ["qualitative.jsonl, line 1", "not JSON"]),
        (
            json.dumps({"question_id": "a", "category": "poetry", "turns": ["x"]}),
            ["qualitative.jsonl, line 1", "poetry"],
        ),
        (
            json.dumps({"question_id": "a", "category": "coding", "turns": [SENTINEL]}),
            ["placeholders", "prepare_data.py"],
        ),
    ],
    ids=["missing", "cut", "foreign", "placeholder"],
)
def test_data_that_cannot_be_measured_is_named(
    project: pytest.Pytester, content: str | None, fragments: list[str]
) -> None:
    path = project.path / "prompts" / "qualitative.jsonl"
    path.unlink()
    if content is not None:
        path.write_text(content + "\n", encoding="utf-8")
    files.refused(project.runpytest_subprocess(ENGINE), *fragments)


def test_a_dataset_that_is_not_there_says_what_can_be_given(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(project.path / "hub"))
    result = project.runpytest_subprocess(ENGINE, "--speedbench-dataset=nvidia/SPEED-Bench")
    files.refused(result, "dataset nvidia/SPEED-Bench at ", "`hf download nvidia/SPEED-Bench --repo-type dataset")


# Models and engines


def test_all_that_is_missing_is_listed_at_once(pytester: pytest.Pytester) -> None:
    """An empty folder, an engine that is not installed, a model and a dataset that are not there."""
    python = pytester.path / "python"
    python.write_text("#!/bin/sh\n", encoding="utf-8")
    python.chmod(0o755)
    (pytester.path / "speedbench.yaml").write_text(
        f"engines: {{llamacpp: {{python: {python}}}}}\nmodel: none.gguf\ndataset: nowhere\n"
        "speculation: {method: ngram, draft_tokens: 2}\n",
        encoding="utf-8",
    )
    files.refused(
        pytester.runpytest_subprocess(ENGINE),
        "dataset 'nowhere'",
        f"{python} has no package xllamacpp",
        "pip install 'pytest-speedbench[llamacpp]'",
        "none.gguf does not exist",
    )


def test_a_python_that_does_not_run_is_refused_with_its_last_words(project: pytest.Pytester) -> None:
    files.write_profile(project.path, engine={"python": "/usr/bin/false"})
    files.refused(
        project.runpytest_subprocess(ENGINE), "llamacpp: the Python of the profile, /usr/bin/false, exited with code 1"
    )


def test_a_model_that_is_no_gguf_file_is_refused(project: pytest.Pytester) -> None:
    (project.path / "text.gguf").write_text("Once upon a time", encoding="utf-8")
    files.write_profile(project.path, model="text.gguf", speculation=NGRAM)
    files.refused(project.runpytest_subprocess(ENGINE), "text.gguf is no GGUF file", "b'Once'")


def test_a_damaged_copy_of_the_default_model_is_refused(project: pytest.Pytester) -> None:
    source, copy = embedded.find_model(), project.path / embedded.MODEL_FILE
    shutil.copyfile(source, copy)
    with copy.open("r+b") as stream:
        stream.seek(copy.stat().st_size // 2)
        stream.write(b"flipped")
    files.write_profile(project.path, model=copy.name, speculation=NGRAM)
    files.refused(project.runpytest_subprocess(ENGINE), "is damaged", embedded.MODEL_SHA256)


@pytest.mark.parametrize("cut_at", [8, 100_000])
def test_a_cut_model_of_another_name_is_refused(project: pytest.Pytester, cut_at: int) -> None:
    with embedded.find_model().open("rb") as stream:
        (project.path / "cut.gguf").write_bytes(stream.read(cut_at))
    files.write_profile(project.path, model="cut.gguf", tokenizer=None, speculation=NGRAM)
    files.refused(project.runpytest_subprocess(ENGINE), "cut.gguf")


def test_a_fixed_port_that_is_taken_is_refused(project: pytest.Pytester) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        files.write_profile(project.path, engine={"port": port})
        files.refused(project.runpytest_subprocess(ENGINE), f"port {port} of 127.0.0.1 is in use")


def test_prompts_that_exceed_the_context_are_named(project: pytest.Pytester) -> None:
    files.write_profile(project.path, max_model_len=60)
    files.refused(
        project.runpytest_subprocess(ENGINE),
        "do not fit the context of 60 tokens",
        "1 of 6 prompts",
        "rag-0 (",
        "--speedbench-osl",
    )
    assert not list(project.path.rglob("engine.log"))


# Places to write to


def test_an_artifact_that_cannot_be_written_is_refused(project: pytest.Pytester) -> None:
    result = project.runpytest_subprocess(ENGINE, "--speedbench-artifact=prompts")
    files.refused(result, "cannot write", "prompts")
    assert not list(project.path.rglob("engine.log"))


@pytest.mark.real_engine
def test_a_report_that_cannot_be_written_is_red_and_the_rest_is_kept(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_OUTPUT", str(Path("prompts").absolute()))
    result = project.runpytest_subprocess(ENGINE, "--speedbench-category=math", "--speedbench-junit=prompts")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["speedbench: cannot write *prompts*", "speedbench: cannot write *prompts*"])
    assert files.verdicts(project.path) == {"math": "PASS"}
    assert "Traceback" not in files.text(result)

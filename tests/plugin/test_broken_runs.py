"""Engines that break and runs that are cut short: what was measured is kept, and no engine stays behind."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from pytest_speedbench.report import artifact as artifacts
from tests.plugin import project as files
from tests.plugin.project import ENGINE

pytestmark = pytest.mark.real_engine

LONG = ("--speedbench-measure-only", "--speedbench-ignore-eos", "--speedbench-osl=48", "-v")


def long_project(folder: Path, tokenizer: Path) -> None:
    """A first cell of a second, and a second one that takes many."""
    files.write_project(folder, tokenizer=tokenizer)
    prompts = {
        "coding": [["Sort a list."]],
        "math": [[f"Count to {number}."] for number in range(30)],
        "rag": [["Who wrote Hamlet?"]],
    }
    files.write_prompts(folder / "prompts", prompts)
    files.write_profile(folder, speculation={"method": "none"})


def measured_cells(folder: Path) -> int:
    return len(files.artifact(folder)["cells"]) if (folder / "speedbench.json").exists() else 0


def until_the_second_cell(folder: Path) -> None:
    files.wait_until(lambda: measured_cells(folder) == 1, "the first cell was measured")
    time.sleep(0.5)


# An engine that does not start


@pytest.mark.parametrize("cause", ["field", "wrapper"])
def test_a_failed_start_is_told_in_full_once(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    monkeypatch.setenv("PWD", str(project.path))  # as every shell does; it is no password
    wrapper = project.path / "python-wrapper"
    if cause == "field":
        files.write_profile(project.path, engine={"params": {"no_such_field": 1}})
        ended, last_line = "exited with code 1", "xllamacpp.CommonParams has no field 'no_such_field'"
    else:
        # Answers the question for the version as Python does, and dies as a server.
        wrapper.write_text(
            f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\necho "CUDA error: out of memory"\nexit 3\n',
            encoding="utf-8",
        )
        wrapper.chmod(0o755)
        files.write_profile(project.path, engine={"python": str(wrapper)})
        ended, last_line = "exited with code 3", "CUDA error: out of memory"
    result = project.runpytest_subprocess(ENGINE, "--speedbench-category=coding,math")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(errors=2)
    shown = files.text(result)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at setup of test_cell*coding*",
            f"INVALID engine_start_failed: llamacpp: the engine {ended} before it was ready*",
            f"*last lines of {project.path}/*engine.log:*",
            f"*{last_line}*",
            "*ERROR at setup of test_cell*math*",
            f"INVALID engine_unavailable: llamacpp: the engine {ended}*(reported in full above)*",
        ]
    )
    errors = shown[shown.index("= ERRORS =") : shown.index("= speedbench =")]
    assert errors.count("  | ") >= 1
    assert "  | " not in errors[errors.index("engine_unavailable") :]
    assert "Traceback" not in shown
    (log,) = project.path.rglob("engine.log")
    assert last_line in log.read_text(encoding="utf-8")
    assert set(files.verdicts(project.path).values()) == {"INVALID"}
    artifacts.validate(files.artifact(project.path))


# An engine that dies


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    """A run whose engine was killed while its second cell was measured; exit code and output are files in it."""
    folder = tmp_path_factory.mktemp("killed")
    long_project(folder, tokenizer)
    with files.background(folder, ENGINE, *LONG) as pytest_process:
        until_the_second_cell(folder)
        (engine,) = files.engines_of(pytest_process)
        engine.send_signal(signal.SIGKILL)
        (folder / "exit.txt").write_text(str(pytest_process.wait(60)), encoding="utf-8")
    return folder


def test_a_killed_engine_is_an_error_of_its_cell_and_of_the_later_ones(killed: Path) -> None:
    assert (killed / "exit.txt").read_text(encoding="utf-8") == "1"
    assert files.verdicts(killed) == {"coding": None, "math": "INVALID", "rag": "INVALID", "overall": "INVALID"}
    codes = {cell["cell"]["category"]: [r["code"] for r in cell["reasons"]] for cell in files.artifact(killed)["cells"]}
    assert codes == {
        "coding": [],
        "math": ["engine_died"],
        "rag": ["engine_unavailable"],
        "overall": ["incomplete_family"],
    }
    assert files.flags(killed) == (True, False)
    artifacts.validate(files.artifact(killed))


def test_a_killed_engine_is_told_with_its_signal_and_log(killed: Path) -> None:
    shown = (killed / "output.txt").read_text(encoding="utf-8")
    names = [line.removeprefix("speedbench::test_cell[llamacpp-qualitative-") for line in shown.splitlines()]
    assert [name.split()[:2] for name in names if name.split("]")[0] in files.PROMPTS and " " in name][:3] == [
        ["coding]", "PASSED"],
        ["math]", "ERROR"],
        ["rag]", "ERROR"],
    ]
    assert "INVALID engine_died: the engine was ended by SIGKILL while it was in use" in shown
    assert "engine.log" in shown
    assert "Traceback" not in shown


# A run that is cut short


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_stopped_run_leaves_no_engine_and_a_readable_artifact(
    tmp_path: Path, tokenizer: Path, number: signal.Signals
) -> None:
    long_project(tmp_path, tokenizer)
    with files.background(tmp_path, ENGINE, *LONG) as pytest_process:
        until_the_second_cell(tmp_path)
        (engine,) = files.engines_of(pytest_process)
        pytest_process.send_signal(number)
        status = pytest_process.wait(30)
        files.wait_until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, "it ended", 10)
    assert status == (pytest.ExitCode.INTERRUPTED if number == signal.SIGINT else -number)
    data = files.artifact(tmp_path)
    artifacts.validate(data)
    assert (data["complete"], data["partial"], data["planned"]) == (False, True, 4)
    assert files.verdicts(tmp_path) == {"coding": None}
    if number == signal.SIGINT:
        shown = (tmp_path / "output.txt").read_text(encoding="utf-8")
        assert "partial: " in shown
        assert "coding" in shown


def test_a_run_that_dies_at_once_leaves_no_artifact_of_an_earlier_one(project: pytest.Pytester) -> None:
    old = json.dumps({"verdict": "all green"})
    (project.path / "speedbench.json").write_text(old, encoding="utf-8")
    with files.background(project.path, ENGINE) as pytest_process:
        files.wait_until(lambda: files.engines_of(pytest_process), "the engine was started")
        pytest_process.kill()
        pytest_process.wait()
    assert files.flags(project.path) == (False, True)
    assert files.artifact(project.path)["cells"] == []

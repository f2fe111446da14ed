"""The examples, run as their READMEs say, on the real engine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pytest_speedbench import init

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.real_engine


@pytest.fixture
def example(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of the example that the test is named for."""
    return Path(shutil.copytree(EXAMPLES / request.param, tmp_path / request.param))


def commands(folder: Path) -> list[str]:
    """The pytest commands of the example's README, in order."""
    return re.findall(r"^    (pytest .*)$", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE)


def run(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    words = command.split()
    return subprocess.run([sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("example", ["quickstart"], indirect=True)
def test_quickstart(example: Path) -> None:
    green, red = commands(example)
    done = run(example, green)
    assert done.returncode == 0, done.stdout
    artifact = json.loads((example / "speedbench.json").read_text(encoding="utf-8"))
    assert artifact["complete"]
    assert artifact["counts"]["pass"] == 3

    done = run(example, red)
    assert done.returncode == 1, done.stdout
    missed = r"^FAIL acceptance_length .* < limit 4\.950 .* · qa · .*raised-floor\.yaml:\d+$"
    assert re.search(missed, done.stdout, re.MULTILINE)
    assert "1 failed" in done.stdout
    assert "2 passed" in done.stdout


@pytest.mark.parametrize("example", ["custom-test"], indirect=True)
def test_custom_test(example: Path) -> None:
    (command,) = commands(example)
    done = run(example, command)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
    without_engine = run(example, command.replace("--speedbench-engine=llamacpp ", ""))
    assert without_engine.returncode == 0
    assert "2 skipped" in without_engine.stdout


def test_the_workflow_is_what_init_writes(tmp_path: Path) -> None:
    init.write(tmp_path, engine="llamacpp", model="meta-llama/Llama-3.3-70B-Instruct")
    written = (tmp_path / ".github/workflows/speedbench.yml").read_text(encoding="utf-8")
    assert (EXAMPLES / "github-actions/speedbench.yml").read_text(encoding="utf-8") == written
    workflow = yaml.safe_load(written)
    steps = workflow["jobs"]["gate"]["steps"]
    assert "self-hosted" in workflow["jobs"]["gate"]["runs-on"]
    upload = next(step for step in steps if "upload-artifact" in step.get("uses", ""))
    assert upload["if"] == "always()"
    for name in ("speedbench-junit.xml", "speedbench.json"):
        assert name in upload["with"]["path"]


def test_the_upgrade_workflow_runs_a_command_that_plans_cells(tmp_path: Path) -> None:
    workflow = yaml.safe_load((EXAMPLES / "github-actions/upgrade.yml").read_text(encoding="utf-8"))
    (command,) = (s["run"] for s in workflow["jobs"]["upgrade"]["steps"] if "speedbench-baseline" in s.get("run", ""))
    (tmp_path / "profiles").mkdir()
    for name in ("old", "new"):
        text = "model: SmolLM2-135M-Instruct.Q4_1.gguf\ndataset: mini\nspeculation: {method: draft, draft_tokens: 4,"
        (tmp_path / f"profiles/{name}.yaml").write_text(f"{text} draft_model: drafter.gguf}}\ncategory: coding\n")
    words = command.replace(".venv/bin/pytest", f"{sys.executable} -m pytest").replace("=vllm", "=llamacpp").split()
    done = subprocess.run(
        [*words, "--collect-only", "-q", "-p", "no:randomly"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "speedbench::test_cell[llamacpp-qualitative-coding]" in done.stdout

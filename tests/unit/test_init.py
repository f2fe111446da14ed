"""``speedbench init``: what it writes is accepted by what reads it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from pytest_speedbench.cli import main
from pytest_speedbench.engines import registry
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates.thresholds import load
from pytest_speedbench.init import write
from pytest_speedbench.options import BY_KEY
from pytest_speedbench.settings import build

NAMES = ("speedbench.yaml", "thresholds/llamacpp.yaml", ".github/workflows/speedbench.yml")


def test_three_files(tmp_path: Path) -> None:
    written = write(tmp_path, engine="llamacpp", model="org/model")
    assert written == [tmp_path / name for name in NAMES]
    for path in written:
        text = path.read_text(encoding="utf-8")
        assert not re.search("@[A-Z]+@", text)
        assert text.endswith("\n")


@pytest.mark.parametrize("engine", registry.NAMES)
def test_profile_and_thresholds_fit_each_other(tmp_path: Path, engine: str) -> None:
    write(tmp_path, engine=engine, model="org/model")
    settings = build(
        command_line=lambda option: engine if option.key == "engine" else None,
        ini=lambda option: None,
        environ={},
        rootdir=tmp_path,
        invocation_dir=tmp_path,
    )
    (profile,) = settings.profiles
    assert (profile.engine, profile.model) == (engine, "org/model")
    assert profile.speculation.active
    (file,) = load(settings.thresholds)
    assert (file.match.engine, file.match.model) == (engine, "org/model")
    assert file.gates


def test_the_workflow_is_yaml_and_uses_options_that_exist(tmp_path: Path) -> None:
    *_, workflow = write(tmp_path, engine="llamacpp", model="org/model")
    parsed = yaml.safe_load(workflow.read_text())
    steps = parsed["jobs"]["gate"]["steps"]
    (gate,) = [step for step in steps if step.get("id") == "gate"]
    named = [word.split("=")[0] for word in gate["run"].split() if word.startswith("--speedbench-")]
    assert named
    for name in named:
        assert name.removeprefix("--speedbench-").replace("-", "_") in BY_KEY


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_overwritten_and_nothing_half_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    with pytest.raises(ConfigError, match=f"^{path} exists already; move it away or choose another folder$"):
        write(tmp_path, engine="llamacpp", model="org/model")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]
    assert path.read_text() == "mine"


def test_an_unknown_engine_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"unknown engine 'llama'; choose from {', '.join(registry.NAMES)}$"):
        write(tmp_path, engine="llama", model="org/model")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert all(path.is_file() for path in write(tmp_path / "a" / "b", engine="llamacpp", model="org/model"))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--engine=llamacpp", "--model=org/model", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / name) for name in NAMES]
    assert main(["init", str(tmp_path)]) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("speedbench: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "model",
    [
        "org/model",
        "/models/with space.gguf",
        "C:\\models",
        "it's",
        'quote"d',
        "org/model@main",
        "r#1",
        "a: b",
        "a #1",
        "[a]",
        "ünï",
    ],
)
def test_any_model_name_survives(tmp_path: Path, model: str) -> None:
    profile, thresholds, _ = write(tmp_path, engine="llamacpp", model=model)
    assert yaml.safe_load(profile.read_text())["model"] == model
    assert load(thresholds)[0].match.model == model

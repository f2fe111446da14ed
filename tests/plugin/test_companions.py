"""Engine starts, repeats, reruns and the engine without speculation: a real llama-server, and a known truth."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest

from pytest_speedbench.report import artifact as artifacts
from tests.emulator.schedule import Schedule
from tests.emulator.server import Server
from tests.emulator.vllm import Vllm
from tests.plugin import project as files

ENGINE = files.ENGINE


def cells(folder: Path) -> dict[str, dict[str, Any]]:
    data = files.artifact(folder)
    artifacts.validate(data)
    return {cell["item_id"]: cell for cell in data["cells"]}


@pytest.mark.real_engine
def test_every_start_is_measured_with_and_without_speculation(tmp_path: Path, tokenizer: Path) -> None:
    files.write_project(tmp_path, tokenizer=tokenizer)
    result = files.run_pytest(
        tmp_path,
        ENGINE,
        "--speedbench-category=coding",
        "--speedbench-starts=2",
        "--speedbench-speedup",
        "--speedbench-lossless",
        "-v",
    )
    assert result.ret == pytest.ExitCode.OK, files.text(result)
    result.assert_outcomes(passed=2)
    found = cells(tmp_path)
    fast, plain = found["llamacpp-qualitative-coding"], found["plain-llamacpp-qualitative-coding"]
    assert [(run["start"], run["repeat"]) for run in fast["runs"]] == [(0, 0), (1, 0)]
    assert [(run["start"], run["repeat"]) for run in plain["runs"]] == [(0, 0), (1, 0)]
    assert plain["verdict"] is None
    assert plain["metrics"]["acceptance_length"]["value"] == 1.0
    # Without speculation every step gives one token, so the same tokens take at least as many steps.
    assert fast["metrics"]["acceptance_length"]["value"] > 1.5
    for run in fast["runs"]:
        assert run["values"]["speedup_per_prompt"] > 0
    lossless = found["llamacpp-qualitative-lossless"]
    assert lossless["verdict"] == "PASS"
    assert "2 of 2 turns identical" in lossless["gates"][0]["note"]
    assert files.artifact(tmp_path)["counts"]["pass"] == 2
    assert "speed-up of decoding the same prompts" in files.text(result)


@pytest.mark.real_engine
def test_a_selection_measures_only_what_is_selected_before_too(tmp_path: Path, tokenizer: Path) -> None:
    files.write_project(tmp_path, tokenizer=tokenizer)
    result = files.run_pytest(tmp_path, ENGINE, "--speedbench-starts=2", "-k", "math")
    assert result.ret == pytest.ExitCode.OK, files.text(result)
    assert {name: len(cell["runs"]) for name, cell in cells(tmp_path).items()} == {"llamacpp-qualitative-math": 2}


@pytest.fixture
def attached(tmp_path: Path, tokenizer: Path) -> Path:
    texts = {name: [[f"Question {n} on {name}"] for n in range(6)] for name in ("coding", "math")}
    files.write_prompts(tmp_path / "prompts", texts)
    files.write_attached(tmp_path, tokenizer, osl=64, draft_tokens=2, concurrency=2, thresholds="limits.yaml")
    return tmp_path


def run_on_emulator(folder: Path, limit: float, *args: str, more: str = "") -> pytest.RunResult:
    (folder / "limits.yaml").write_text(
        "schema: 1\nestimator: request_mean\ngates:\n"
        f"  - cell: {{split: qualitative}}\n    acceptance_length: {{min: {limit}}}\n{more}"
    )
    schedule = Schedule.of(64, draft=2, accept=(1,))
    app = Vllm(lambda _: schedule, draft_tokens=2, metrics="detailed", served="someone/model")
    with Server(app) as server:
        return files.run_pytest(folder, "--speedbench-engine=vllm", f"--speedbench-base-url={server.base_url}", *args)


# 64 tokens, the first by the prefill: 63 in steps of 2, so 32 steps and the prefill's.
EXACT = 64 / 33


def test_what_is_too_close_to_call_is_measured_once_more_and_pooled(attached: Path) -> None:
    result = run_on_emulator(attached, EXACT, "--speedbench-inconclusive=rerun")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    for cell in cells(attached).values():
        # What is exactly at a limit stays undecided, however often it is measured.
        assert cell["verdict"] == "INCONCLUSIVE"
        assert [(run["start"], run["repeat"]) for run in cell["runs"]] == [(0, 0), (0, 1)]
        assert cell["gates"][0]["looks"] == 2
        assert cell["metrics"]["acceptance_length"]["value"] == pytest.approx(EXACT, abs=1e-12)


def test_what_is_clear_is_not_measured_again(attached: Path) -> None:
    result = run_on_emulator(attached, EXACT * 0.97, "--speedbench-inconclusive=rerun")
    assert result.ret == pytest.ExitCode.OK, files.text(result)
    assert {len(cell["runs"]) for cell in cells(attached).values()} == {1}


def test_a_server_of_someone_else_cannot_be_started_again(attached: Path) -> None:
    result = run_on_emulator(attached, 1.5, "--speedbench-starts=2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--speedbench-starts=2: a server that someone else runs is not started here" in files.text(result)


def test_an_open_loop_is_measured_and_not_compared_with_limits(attached: Path) -> None:
    result = run_on_emulator(
        attached, 1.5, "--speedbench-arrival-rate=20", "--speedbench-arrivals=fixed", "--speedbench-category=coding"
    )
    assert result.ret == pytest.ExitCode.OK, files.text(result)
    data = files.artifact(attached)
    assert (data["measure_only"], data["cells"][0]["verdict"]) == (True, None)
    assert data["run"]["engines"][0]["resolved"]["arrival_rate"] == 20.0


WAIVER = """
waivers:
  - cell: {{category: coding, concurrency: 2}}
    metric: acceptance_length
    issue: "#7"
    level: {level}
    until: {until}
    reason: the drafter of this week
"""


def run_waived(folder: Path, limit: float, level: float, *args: str) -> pytest.RunResult:
    until = dt.datetime.now(dt.timezone.utc).date() + dt.timedelta(days=30)
    return run_on_emulator(folder, limit, *args, more=WAIVER.format(level=level, until=until.isoformat()))


def test_what_is_waived_is_an_expected_failure_and_never_a_pass(attached: Path) -> None:
    # The same miss in both categories, one of them waived at the level that it has.
    result = run_waived(attached, EXACT * 1.1, EXACT, "--runxfail", "--junitxml=junit.xml")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "1 waived" in files.text(result)
    data = files.artifact(attached)
    assert (data["counts"]["waived"], data["counts"]["pass"], data["outcome"]) == (1, 0, "fail")
    verdicts = {cell["cell"]["category"]: (cell["verdict"], cell["gates"][0]["waived"]) for cell in data["cells"]}
    assert verdicts == {"coding": ("FAIL", True), "math": ("FAIL", False), "overall": ("FAIL", False)}
    only = run_waived(attached, EXACT * 1.1, EXACT, "--speedbench-category=coding")
    assert only.ret == pytest.ExitCode.OK, files.text(only)
    assert files.artifact(attached)["outcome"] == "inconclusive"


def test_what_is_worse_than_waived_fails(attached: Path) -> None:
    result = run_waived(attached, EXACT * 1.3, EXACT * 1.15, "--speedbench-category=coding")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert cells(attached)["vllm-qualitative-coding"]["gates"][0]["waived"] is False


@pytest.mark.real_engine
def test_more_starts_are_for_what_is_still_open(tmp_path: Path, tokenizer: Path) -> None:
    files.write_project(tmp_path, tokenizer=tokenizer)
    only = "--speedbench-category=coding,math"
    measured = files.run_pytest(tmp_path, ENGINE, only, "--speedbench-measure-only")
    assert measured.ret == pytest.ExitCode.OK, files.text(measured)
    exact = cells(tmp_path)["llamacpp-qualitative-coding"]["metrics"]["acceptance_length"]["value"]
    # Exactly at its limit a cell stays undecided; the other is far above its own.
    files.write_limits(tmp_path / "limits.yaml", {"coding": exact, "math": 1.05})
    result = files.run_pytest(tmp_path, ENGINE, only, "--speedbench-starts=1,2")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    found = cells(tmp_path)
    coding, math = found["llamacpp-qualitative-coding"], found["llamacpp-qualitative-math"]
    assert (coding["verdict"], [run["start"] for run in coding["runs"]]) == ("INCONCLUSIVE", [0, 1])
    assert coding["gates"][0]["looks"] == 2
    assert (math["verdict"], [run["start"] for run in math["runs"]]) == ("PASS", [0])
    assert math["gates"][0]["looks"] == 1

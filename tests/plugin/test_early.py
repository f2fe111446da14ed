"""A cell that has failed for sure is not measured to the end; one that has not, is."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.plugin import project as files
from tests.plugin.conftest import ServeDrafts

DRAFT, TOKENS, PROMPTS = 3, 128, 60
RATE = 0.7
# Every draft is accepted with probability 0.7 if those before it were: 1 + 0.7 + 0.49 + 0.343 tokens per decode step,
# and the prefill counts as a step of one token in every answer.
DECODE = 1 + RATE + RATE**2 + RATE**3
REFERENCE = round(TOKENS / ((TOKENS - 1) / DECODE + 1), 3)
Serve = Callable[[float], str]


@pytest.fixture
def serve(serve_drafts: ServeDrafts) -> Serve:
    """Start a server whose drafts are accepted with a given probability; its address."""
    return lambda rate: serve_drafts(rate, tokens=TOKENS, draft=DRAFT)


@pytest.fixture
def calibrated(tmp_path: Path, tokenizer: Path) -> Path:
    """A project with a calibrated floor for one category of 60 prompts."""
    files.write_prompts(tmp_path / "prompts", {"coding": [[f"Question {n}"] for n in range(PROMPTS)]})
    evidence = "{starts: 6, repeats: 1, sd_start: 0.005, date: 2026-11-20}"
    (tmp_path / "limits.yaml").write_text(
        "schema: 1\nestimator: request_mean\ngates:\n"
        "  - cell: {category: coding, concurrency: 4}\n"
        f"    acceptance_length: {{min: {REFERENCE * 0.96:.5f}, reference: {REFERENCE}, margin: 4%,\n"
        f"      evidence: {evidence}}}\n"
    )
    files.write_attached(tmp_path, tokenizer, osl=TOKENS, draft_tokens=DRAFT, concurrency=4, thresholds="limits.yaml")
    return tmp_path


def test_a_clear_regression_stops_after_a_third_of_the_prompts(calibrated: Path, serve: Serve) -> None:
    result = files.run_pytest(calibrated, "--speedbench-engine=vllm", f"--speedbench-base-url={serve(0.5)}")
    assert result.ret == pytest.ExitCode.TESTS_FAILED, files.text(result)
    (cell,) = files.artifact(calibrated)["cells"]
    assert (cell["verdict"], cell["conversations"], cell["conversations_planned"]) == ("FAIL", 20, PROMPTS)
    (gate,) = cell["gates"]
    assert (gate["verdict"], gate["looks"]) == ("FAIL", 1)
    assert "20 of 60 prompts" in files.text(result)


def test_what_is_as_good_as_the_reference_is_measured_whole_and_passes(calibrated: Path, serve: Serve) -> None:
    result = files.run_pytest(calibrated, "--speedbench-engine=vllm", f"--speedbench-base-url={serve(RATE)}")
    assert result.ret == pytest.ExitCode.OK, files.text(result)
    (cell,) = files.artifact(calibrated)["cells"]
    assert (cell["verdict"], cell["conversations"]) == ("PASS", PROMPTS)
    assert cell["runs"][0]["values"]["acceptance_length"] == pytest.approx(REFERENCE, rel=0.03)


def test_other_prompts_than_calibrated_are_no_regression(calibrated: Path, serve: Serve) -> None:
    path = calibrated / "limits.yaml"
    path.write_text(path.read_text().replace("starts: 6,", 'starts: 6, prompts: "0123456789ab",'))
    result = files.run_pytest(calibrated, "--speedbench-engine=vllm", f"--speedbench-base-url={serve(0.5)}")
    (cell,) = files.artifact(calibrated)["cells"]
    assert (cell["verdict"], cell["reasons"][0]["code"]) == ("INVALID", "other_prompts"), files.text(result)
    assert cell["conversations"] == PROMPTS


def test_what_is_waived_is_measured_whole(calibrated: Path, serve: Serve) -> None:
    until = dt.datetime.now(dt.timezone.utc).date() + dt.timedelta(days=30)
    rate = 0.5
    level = round(TOKENS / ((TOKENS - 1) / (1 + rate + rate**2 + rate**3) + 1), 2)
    with (calibrated / "limits.yaml").open("a") as limits:
        limits.write(
            "waivers:\n  - {cell: {category: coding, concurrency: 4}, metric: acceptance_length, issue: '#7',"
            f" level: {level}, until: {until}, reason: known}}\n"
        )
    result = files.run_pytest(calibrated, "--speedbench-engine=vllm", f"--speedbench-base-url={serve(rate)}")
    assert result.ret == pytest.ExitCode.OK, files.text(result)
    (cell,) = files.artifact(calibrated)["cells"]
    # A look would have called it a regression after a third of the prompts.
    assert (cell["gates"][0]["waived"], cell["conversations"]) == (True, PROMPTS)

"""The committed runs on an H100: they fit the schema, and every number in them follows from their request logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_speedbench.measure.checks import problems
from pytest_speedbench.measure.samples import Window
from pytest_speedbench.measure.summary import summarise
from pytest_speedbench.report import artifact as artifacts
from pytest_speedbench.report.requests import read_windows

FOLDER = Path(__file__).parents[2] / "examples" / "h100" / "artifacts"
RUNS = ("vllm-0.24.0-ngram", "sglang-0.5.16-draft")


def artifact(run: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((FOLDER / run / "speedbench.json").read_text(encoding="utf-8"))
    return data


def windows(run: str) -> dict[str, Window]:
    log = FOLDER / run / "speedbench-requests.jsonl.gz"
    return {window.cell.id(with_concurrency=True): window for _, window in read_windows(log)}


@pytest.mark.parametrize("run", RUNS)
def test_numbers_follow_from_the_requests(run: str) -> None:
    data, measured = artifact(run), windows(run)
    artifacts.validate(data)
    (engine,) = data["run"]["engines"]
    cells = [cell for cell in data["cells"] if cell["cell"]["category"] != "overall"]
    assert len(cells) == len(measured) == 11 * 3 + 6 * 3
    for cell in cells:
        window = measured[cell["item_id"].removeprefix(f"{engine['engine']}-")]
        assert problems(window, speculation=True, draft_tokens=engine["draft_tokens"]) == ()
        metrics, acceptance = summarise(window, seed_parts=(cell["item_id"],))
        assert {name: metric["value"] for name, metric in cell["metrics"].items()} == pytest.approx(
            {name: metric.value for name, metric in metrics.items()}, rel=1e-9
        )
        assert cell["acceptance"]["histogram"] == {str(k): n for k, n in acceptance.histogram.items()}


@pytest.mark.parametrize("run", RUNS)
def test_every_window_has_exact_steps(run: str) -> None:
    for name, window in windows(run).items():
        assert window.steps is not None
        assert window.steps.exact, name
        assert window.counters.steps == window.steps.low, name


def test_both_engines_had_the_same_prompts() -> None:
    vllm, sglang = (
        {cell["item_id"].partition("-")[2]: cell["prompts_sha256"] for cell in artifact(run)["cells"]} for run in RUNS
    )
    assert vllm == sglang
    assert len(vllm) == 54

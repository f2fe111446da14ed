"""The committed runs on an H100: they fit the schema, and every number in them follows from their request logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_speedbench.gates import thresholds
from pytest_speedbench.measure.checks import problems
from pytest_speedbench.measure.samples import Window
from pytest_speedbench.measure.summary import summarise
from pytest_speedbench.report import artifact as artifacts
from pytest_speedbench.report.requests import read_windows

FOLDER = Path(__file__).parents[2] / "examples" / "h100" / "artifacts"
RUNS = {
    "vllm-0.24.0-none": 11 * 2 + 6 * 3,
    "vllm-0.24.0-ngram": 11 * 3 + 6 * 3,
    "vllm-0.24.0-draft": 11 * 3 + 6 * 3,
    "sglang-0.5.16-none": 11 * 3 + 6 * 3,
    "sglang-0.5.16-ngram": 11 * 3 + 6,
    "sglang-0.5.16-draft": 11 * 3 + 6 * 3,
}


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
    speculation = engine["method"] is not None
    assert len(cells) == len(measured) == RUNS[run]
    for cell in cells:
        window = measured[cell["item_id"].removeprefix(f"{engine['engine']}-")]
        assert problems(window, speculation=speculation, draft_tokens=engine["draft_tokens"] or 0) == ()
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
        # SGLang counts steps only with speculation.
        assert window.counters.steps in (None, window.steps.low), name


def test_every_run_had_the_same_prompts() -> None:
    hashes: dict[str, set[str]] = {}
    for run in RUNS:
        for cell in artifact(run)["cells"]:
            hashes.setdefault(cell["item_id"].partition("-")[2], set()).add(cell["prompts_sha256"])
    assert {name: len(found) for name, found in hashes.items()} == dict.fromkeys(hashes, 1)


@pytest.mark.parametrize("method", ["none", "ngram", "draft"])
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_thresholds_of_every_run_are_sound(engine: str, method: str) -> None:
    """So that a rule that a later version adds is met here and not on a GPU host."""
    files = thresholds.load(FOLDER.parent / "thresholds")
    (own,) = [file for file in files if Path(file.path).name == f"{engine}-{method}.yaml"]
    assert own.gates


KNOWN = FOLDER.parents[1] / "known-truth" / "artifacts"


@pytest.mark.parametrize(
    ("length", "concurrencies", "by_request"),
    [
        # The first draft always, the second half of the time, the third never.
        (2.5, (1, 64, 512), (1, 64)),
        # Both of the first two always.
        (3.0, (1, 64, 512), (1, 64, 512)),
        # The first always. Here the server joined events, so that no request has steps of its own.
        (2.0, (512,), ()),
    ],
)
def test_a_known_acceptance_length_was_measured(
    length: float, concurrencies: tuple[int, ...], by_request: tuple[int, ...]
) -> None:
    folder = KNOWN / f"vllm-0.24.0-synthetic-{length}"
    data = json.loads((folder / "speedbench.json").read_text(encoding="utf-8"))
    artifacts.validate(data)
    measured = {window.cell.concurrency: window for _, window in read_windows(folder / "speedbench-requests.jsonl.gz")}
    assert tuple(measured) == tuple(cell["cell"]["concurrency"] for cell in data["cells"]) == concurrencies
    for cell in data["cells"]:
        metrics, _ = summarise(measured[cell["cell"]["concurrency"]], seed_parts=(cell["item_id"],))
        assert metrics["drafted_acceptance_length"].value == pytest.approx(length, rel=0.01)
        assert metrics["drafted_acceptance_length"].value == cell["metrics"]["drafted_acceptance_length"]["value"]
        uncut = metrics.get("decode_acceptance_length_uncut")
        assert (uncut is not None) == (cell["cell"]["concurrency"] in by_request)
        if uncut is not None:
            assert uncut.value == pytest.approx(length, rel=0.01)


def test_the_whole_lengths_were_measured_exactly() -> None:
    for length in (2, 3):
        for _, window in read_windows(KNOWN / f"vllm-0.24.0-synthetic-{length}.0" / "speedbench-requests.jsonl.gz"):
            # 47 tokens after the first, in steps of that many.
            assert window.steps is not None
            assert (window.steps.low, window.steps.high) == (-(-47 // length) * len(window.turns),) * 2

"""The reference per prompt: what is written from request logs, and how it is read back."""

from __future__ import annotations

import datetime as dt
import gzip
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import pytest

from pytest_speedbench.cells import Cell
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates import prompt_reference, thresholds
from pytest_speedbench.gates.limits import Evidence, Limit
from pytest_speedbench.gates.prompt_reference import CellReference, PromptReference, encoded, fallen, path_of
from pytest_speedbench.gates.selection import gates_for
from pytest_speedbench.measure.samples import Client, Counters, Steps, Turn, Window
from pytest_speedbench.report.requests import RequestLog
from pytest_speedbench.results import CellResult
from tests.unit.test_calibration import CODING, OVERALL, PROMPTS, Calibrate, calibrate, cell_result, limits, store

__all__ = ["calibrate"]

QA = replace(CODING, category="qa")


def turn(question: str, category: str, lengths: Sequence[int], known: bool = True) -> Turn:
    """One turn whose decode steps have ``lengths``: Σ + 1 tokens over len + 1 steps."""
    tokens = sum(lengths) + 1
    steps = Steps(tuple(lengths), sum(lengths) - len(lengths), 3 * len(lengths)) if known else None
    return Turn(question, category, 0, 10, tokens, "stop", 0, (1,), (tokens,), (1,), steps, "")


def window(
    cell: Cell, start: int, repeat: int, prompts: dict[str, Sequence[int]], known: bool = True, lag: float = 0.0
) -> Window:
    category = str(cell.category)
    return Window(
        cell=cell,
        planned=tuple((name, 1) for name in prompts),
        turns=tuple(turn(name, category, lengths, known) for name, lengths in prompts.items()),
        failures=(),
        counters=Counters(),
        client=Client(lag, 0.1),
        start=start,
        repeat=repeat,
    )


def length(lengths: Sequence[int]) -> float:
    return (sum(lengths) + 1) / (len(lengths) + 1)


def prompts_of(cell: Cell, start: int, repeat: int) -> dict[str, Sequence[int]]:
    """Two prompts; the first has one token more in the second repeat."""
    name = str(cell.category)
    return {f"{name}-1": [3] * 59 + [2 + repeat], f"{name}-2": [2] * 60}


def measure(
    folder: Path,
    *,
    known: bool = True,
    lag: float = 0.0,
    drop: tuple[int, int] | None = None,
    joined: tuple[Cell, int, int] | None = None,
) -> Path:
    """An artifact of six starts with two repeats and its request log.

    ``drop`` leaves a run out of the log; of ``joined`` no steps per request are known.
    """
    log = RequestLog(folder / "run0-requests.jsonl.gz")
    rows: dict[Cell, list[list[float]]] = {CODING: [], QA: []}
    for start in range(6):
        for repeat in range(2):
            for cell, table in rows.items():
                prompts = prompts_of(cell, start, repeat)
                if (start, repeat) != drop:
                    clear = known and (cell, start, repeat) != joined
                    log.append("vllm", window(cell, start, repeat, prompts, clear, lag))
                    log.append("other", window(cell, start, repeat, {"x": [9]}))
                if repeat == 0:
                    table.append([])
                table[-1].append(fmean(map(length, prompts.values())))
    results = [cell_result(cell, table) for cell, table in rows.items()]
    return store(folder, 0, *results, cell_result(OVERALL, rows[CODING]))


def test_each_prompt_has_its_mean_and_spread(tmp_path: Path, calibrate: Calibrate) -> None:
    output = tmp_path / "h100.yaml"
    calibrate(measure(tmp_path), "-o", output)
    references = prompt_reference.read(output)
    assert references is not None
    assert set(references.cells) == {CODING, QA, OVERALL}
    prompts = references.of(CODING, limits(output)["coding acceptance_length"])
    assert prompts is not None
    # 180 or 181 tokens over 61 steps: six runs of each.
    low, high = 180 / 61, 181 / 61
    assert prompts["coding-1"].length == pytest.approx((low + high) / 2, rel=1e-5)
    assert prompts["coding-1"].sd == pytest.approx(stdev([low] * 6 + [high] * 6), rel=1e-3)
    assert (prompts["coding-1"].runs, prompts["coding-1"].tokens) == (12, 180.5)
    assert prompts["coding-2"] == PromptReference(pytest.approx(121 / 61, rel=1e-5), 0.0, 12, 121.0)  # type: ignore[arg-type]
    overall = references.of(OVERALL, limits(output)["overall acceptance_length"])
    assert overall is not None
    assert set(overall) == {"coding-1", "coding-2", "qa-1", "qa-2"}


def test_equal_runs_give_equal_bytes(tmp_path: Path, calibrate: Calibrate) -> None:
    output, other = tmp_path / "a.yaml", tmp_path / "b.yaml"
    one = measure(tmp_path)
    calibrate(one, "-o", output)
    calibrate(one, "-o", other)
    data = path_of(output).read_bytes()
    assert data == path_of(other).read_bytes()
    # No time and no file name in the header of the archive.
    assert data[3:8] == bytes(5)


def test_without_a_log_there_is_no_reference(tmp_path: Path, calibrate: Calibrate) -> None:
    output = tmp_path / "h100.yaml"
    one = measure(tmp_path)
    calibrate(one, "-o", output)
    (tmp_path / "run0-requests.jsonl.gz").unlink()
    answer = calibrate(one, "-o", output)
    assert "run0-requests.jsonl.gz is missing, so there is no reference per prompt" in answer.err
    # An old one would contradict the new limits.
    assert prompt_reference.read(output) is None


def test_without_steps_per_request_there_is_none(tmp_path: Path, calibrate: Calibrate) -> None:
    output = tmp_path / "h100.yaml"
    answer = calibrate(measure(tmp_path, known=False), "-o", output)
    assert "no steps per request, so no reference per prompt: qualitative-coding-c8, qualitative-qa-c8" in answer.err
    assert not path_of(output).exists()


def test_where_one_run_of_one_category_lacks_them_it_has_none_and_neither_has_overall(
    tmp_path: Path, calibrate: Calibrate
) -> None:
    output = tmp_path / "h100.yaml"
    answer = calibrate(measure(tmp_path, joined=(QA, 3, 1)), "-o", output)
    assert "so no reference per prompt: qualitative-qa-c8, qualitative-overall-c8" in answer.err
    references = prompt_reference.read(output)
    assert references is not None
    assert set(references.cells) == {CODING}


def test_a_log_that_lacks_a_run_is_refused(tmp_path: Path, calibrate: Calibrate) -> None:
    output = tmp_path / "h100.yaml"
    with pytest.raises(ConfigError, match=r"requests\.jsonl\.gz has no start 4, repeat 2 of qualitative-coding-c8"):
        calibrate(measure(tmp_path, drop=(3, 1)), "-o", output)
    assert not output.exists()


def test_the_log_of_another_run_is_refused(tmp_path: Path, calibrate: Calibrate) -> None:
    one = measure(tmp_path)
    other = store(tmp_path, 0, cell_result(CODING, [[2.6, 2.61]] * 6))
    assert one == other
    with pytest.raises(
        ConfigError, match=r"is not the log of .*run0\.json: its prompts have a mean acceptance length of"
    ):
        calibrate(other, "-o", tmp_path / "x.yaml")


def test_references_of_other_cells_stay(tmp_path: Path, calibrate: Calibrate) -> None:
    output = tmp_path / "h100.yaml"
    one = measure(tmp_path)
    calibrate(one, "-o", output)
    part = store(tmp_path, 0, cell_result(QA, [[length([3] * 60), length([3] * 59 + [2])]] * 6))
    log = RequestLog(tmp_path / "run0-requests.jsonl.gz")
    for start in range(6):
        for repeat in range(2):
            log.append("vllm", window(QA, start, repeat, {"qa-9": [3] * 59 + [3 - repeat]}))
    calibrate(part, "-o", output)
    references = prompt_reference.read(output)
    assert references is not None
    assert set(references.cells) == {CODING, OVERALL, QA}
    assert set(references.cells[QA].prompts) == {"qa-9"}


@pytest.mark.parametrize("known", [True, False])
def test_a_client_that_was_too_slow_gives_no_times(tmp_path: Path, calibrate: Calibrate, known: bool) -> None:
    rates = [[50.0, 50.1], [50.3, 50.2], [49.8, 49.9], [50.0, 50.1], [50.2, 50.0], [49.9, 50.0]]
    measure(tmp_path, lag=0.5)
    if not known:
        (tmp_path / "run0-requests.jsonl.gz").unlink()
    one = store(tmp_path, 0, replace(cell_result(CODING, rates, "user_tps"), conversations=8))
    if known:
        with pytest.raises(ConfigError, match=r"the client was too slow to time anything: .*lagged 500"):
            calibrate(one, "--metric=user_tps")
    else:
        assert "user_tps" in calibrate(one, "--metric=user_tps").out


def test_too_few_conversations_give_no_times(tmp_path: Path, calibrate: Calibrate) -> None:
    rates = [[50.0], [50.3], [49.8], [50.0], [50.2], [49.9]]
    few: CellResult = replace(cell_result(CODING, rates, "user_tps"), conversations=7)
    with pytest.raises(ConfigError, match="7 conversations cannot hold a concurrency of 8"):
        calibrate(store(tmp_path, 0, few), "--metric=user_tps")


# The file by itself

REFERENCE = CellReference(
    CODING,
    PROMPTS,
    {"acceptance_length": 2.5},
    {"ö-1": PromptReference(2.0, 0.0, 12, 64.0), "b": PromptReference(3.0, 0.1, 12, 60.5)},
)
THROUGHPUT = replace(REFERENCE, cell=Cell("throughput", 4, isl="1k", difficulty="mixed"))
LIMIT = Limit("acceptance_length", 2.4, False, "h100.yaml:7", 2.5, 0.04)


def stored(folder: Path, *cells: CellReference) -> Path:
    output = folder / "h100.yaml"
    path_of(output).write_bytes(encoded(cells))
    return output


def test_what_is_written_is_read(tmp_path: Path) -> None:
    found = prompt_reference.read(stored(tmp_path, REFERENCE, THROUGHPUT))
    assert found is not None
    assert list(found.cells.values()) == [REFERENCE, THROUGHPUT]
    assert found.of(CODING, LIMIT) == REFERENCE.prompts


def test_what_is_absent_is_no_error(tmp_path: Path) -> None:
    assert prompt_reference.read(tmp_path / "none.yaml") is None
    found = prompt_reference.read(stored(tmp_path, REFERENCE))
    assert found is not None
    assert found.of(OVERALL, LIMIT) is None
    assert found.of(CODING, replace(LIMIT, metric="user_tps")) is None
    assert found.of(CODING, Limit("acceptance_length", 2.4, False, "h100.yaml:7")) is None


def test_another_calibration_is_an_error(tmp_path: Path) -> None:
    found = prompt_reference.read(stored(tmp_path, REFERENCE))
    assert found is not None
    with pytest.raises(ConfigError, match=r"h100\.yaml:7: .*its acceptance_length was 2\.5, but .* reference is 2\.6"):
        found.of(CODING, replace(LIMIT, reference=2.6))
    evidence = Evidence(6, 2, 0.0, 0.0, dt.date(2026, 12, 1), prompts="ffff")
    with pytest.raises(ConfigError, match="it has the prompts 0123456789ab, but the limit ffff"):
        found.of(CODING, replace(LIMIT, evidence=evidence))
    assert found.of(CODING, replace(LIMIT, evidence=replace(evidence, prompts=PROMPTS[:12]))) is not None


def lines_of(output: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in gzip.decompress(path_of(output).read_bytes()).splitlines()]


@pytest.mark.parametrize(
    ("number", "changes", "message"),
    [
        (0, {"format": "x"}, ":1: not a prompt reference"),
        (0, {"schema": 2}, ":1: schema 2 is not 1"),
        (0, {"cells": 2}, ": damaged: cells are missing, or there are some twice"),
        (1, {"cell": {"split": "qualitative"}}, ":2: damaged: cell is {'split': 'qualitative'}"),
        (1, {"cell": {"split": "qualitative", "concurrency": "8"}}, ":2: damaged: cell is"),
        (1, {"references": {"acceptance_length": "2"}}, ":2: damaged: references is"),
        (1, {"prompts": 3}, ":2: damaged: the prompts of this cell are cut off"),
        (1, {"prompts": 1}, ":4: damaged: references is None"),
        (2, {"length": float("nan")}, ":3: damaged: length is nan"),
        (2, {"sd": -1}, ":3: damaged: sd is -1"),
        (2, {"runs": 0}, ":3: damaged: runs is 0"),
        (3, {"question_id": "b"}, ":4: damaged: b is there twice"),
        (3, {"question_id": 7}, ":4: damaged: question_id is 7"),
    ],
)
def test_damage_is_named_with_its_line(tmp_path: Path, number: int, changes: dict[str, object], message: str) -> None:
    output = stored(tmp_path, REFERENCE)
    lines = lines_of(output)
    lines[number] |= changes
    path_of(output).write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    with pytest.raises(ConfigError, match=re.escape(f"h100.prompts.jsonl.gz{message}")):
        prompt_reference.read(output)


@pytest.mark.parametrize("cut", [1, 20, 60, -30, -8, -1])
def test_a_file_that_was_cut_is_damaged(tmp_path: Path, cut: int) -> None:
    output = stored(tmp_path, REFERENCE)
    path_of(output).write_bytes(path_of(output).read_bytes()[:cut])
    with pytest.raises(ConfigError, match=r"h100\.prompts\.jsonl\.gz: damaged: .*calibrate"):
        prompt_reference.read(output)


def test_prompts_that_fell_are_named_deepest_first() -> None:
    reference = {
        "steady": PromptReference(2.0, 0.0, 12, 64.0),
        "noisy": PromptReference(3.0, 0.2, 12, 64.0),
        "deep": PromptReference(4.0, 0.2, 12, 64.0),
        "gone": PromptReference(2.0, 0.0, 12, 64.0),
    }
    # 3 · 0.2 · √(1 + 1/12) = 0.624: noisy may fall to 2.376.
    found = fallen(reference, {"steady": 1.99, "noisy": 2.38, "deep": 1.0, "other": 1.0})
    assert [str(each) for each in found] == ["deep 1.00 (was 4.00)", "steady 1.99 (was 2.00)"]
    assert fallen(reference, {"noisy": 2.37, "steady": 2.0}) == (prompt_reference.Fallen("noisy", 3.0, 2.37),)


@pytest.mark.parametrize("run", ["vllm-0.24.0-draft", "sglang-0.5.16-ngram"])
def test_the_log_of_a_real_run(tmp_path: Path, calibrate: Calibrate, run: str) -> None:
    # One real run stands in for six engine starts that gave the same.
    folder = Path(__file__).parents[2] / "examples/h100/artifacts" / run
    data = json.loads((folder / "speedbench.json").read_text(encoding="utf-8"))
    paths = []
    for number in range(6):
        data["run"]["started"] = f"2026-11-2{number}T03:00:00+00:00"
        paths.append(tmp_path / f"run{number}.json")
        paths[-1].write_text(json.dumps(data), encoding="utf-8")
        shutil.copy(folder / "speedbench-requests.jsonl.gz", tmp_path / f"run{number}-requests.jsonl.gz")
    output = tmp_path / "h100.yaml"
    calibrate(*paths, "-o", output, "--metric=acceptance_length", "--skip-unreachable")
    references = prompt_reference.read(output)
    (file,) = thresholds.load(output)
    assert references is not None
    assert len(references.cells) == len(file.gates) > 0
    for cell, found in references.cells.items():
        (limit,) = gates_for((file,), cell)
        prompts = references.of(cell, limit)
        assert prompts == found.prompts
        assert fmean(prompt.length for prompt in found.prompts.values()) == pytest.approx(limit.reference, rel=1e-4)
        assert all(prompt.runs == 6 for prompt in found.prompts.values())

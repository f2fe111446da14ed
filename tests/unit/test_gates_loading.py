"""Thresholds files that load, and what they load as."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates.limits import CellPattern, Change, Evidence, Family, Limit
from pytest_speedbench.gates.match import Match
from pytest_speedbench.gates.thresholds import load

TODAY = dt.date(2026, 12, 5)

FULL = """\
schema: 1
match: {engine: vllm, engine_version: ">=0.24", model: HuggingFaceTB/SmolLM2-135M-Instruct,
        method: ngram, draft_tokens: 5, gpu: "NVIDIA H100*", gpu_count: 1, dataset: speed-bench-mini@1,
        osl: 256, temperature: 0, ignore_eos: true}
estimator: request_mean
family: {alpha: 0.05, beta: 10%}
gates:
  - cell: {split: qualitative, category: coding, concurrency: 8}
    acceptance_length: {min: 1.306, reference: 1.360, margin: 4%, evidence: {starts: 6, repeats: 2, sd_start: 0.003,
      sd_repeat: 0.002, date: 2026-12-01, run: h100-a, conditional: [0.71, 0.62], prompts: 9f86d081}}
  - cell: {split: throughput, isl: 1k, difficulty: low_entropy, concurrency: 32}
    user_tps:   {min: 160}
    ttft_p95_s: {max: 0.20}
"""
HAND_WRITTEN = """\
schema: 1
gates:
  - cell: {split: throughput}
    output_tps: {min: 5}
"""


def write(folder: Path, text: str, name: str = "h100.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_full_file(tmp_path: Path) -> None:
    path = write(tmp_path, FULL)
    (file,) = load(path, today=TODAY)
    assert file.path == path.as_posix()
    assert file.schema == 1
    assert file.estimator == "request_mean"
    assert file.family == Family(alpha=0.05, beta=0.10)
    assert file.match == Match(
        engine="vllm",
        engine_version=SpecifierSet(">=0.24"),
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        method="ngram",
        draft_tokens=5,
        gpu="NVIDIA H100*",
        gpu_count=1,
        dataset="speed-bench-mini@1",
        osl=256,
        temperature=0.0,
        ignore_eos=True,
    )
    coding, throughput = file.gates
    assert coding.cell == CellPattern(split="qualitative", category="coding", concurrency=8)
    assert coding.limits == (
        Limit(
            metric="acceptance_length",
            value=1.306,
            ceiling=False,
            source=f"{path.as_posix()}:9",
            reference=1.360,
            margin=0.04,
            evidence=Evidence(
                starts=6,
                repeats=2,
                sd_start=0.003,
                sd_repeat=0.002,
                date=dt.date(2026, 12, 1),
                run="h100-a",
                conditional=(0.71, 0.62),
                prompts="9f86d081",
            ),
        ),
    )
    assert throughput.source == f"{path.as_posix()}:11"
    assert [(limit.metric, limit.value, limit.ceiling, limit.source) for limit in throughput.limits] == [
        ("user_tps", 160.0, False, f"{path.as_posix()}:12"),
        ("ttft_p95_s", 0.2, True, f"{path.as_posix()}:13"),
    ]


def test_defaults_of_a_hand_written_file(tmp_path: Path) -> None:
    (file,) = load(write(tmp_path, HAND_WRITTEN))
    assert file.match == Match()
    assert file.family == Family(alpha=0.05, beta=0.05)
    assert file.gates[0].limits[0].evidence is None


def test_evidence_reads_as_one_line() -> None:
    evidence = Evidence(6, 2, 0.003, 0.002, dt.date(2026, 12, 1))
    assert str(evidence) == "6 starts × 2 repeats on 2026-12-01"
    assert str(Evidence(5, 1, 0.003, 0.0, dt.date(2026, 12, 1))) == "5 starts × 1 repeat on 2026-12-01"


@pytest.mark.parametrize(
    ("metric", "cell", "limit", "margin"),
    [
        ("acceptance_length", "{category: coding, concurrency: 1}", "min: 1.92", 0.04),
        ("acceptance_length", "{category: overall, concurrency: 1}", "min: 1.96", 0.02),
        ("output_tps", "{isl: 8k, difficulty: mixed, concurrency: 1}", "min: 1.9", 0.05),
        ("ttft_p95_s", "{isl: 8k, difficulty: mixed, concurrency: 1}", "max: 2.3", 0.15),
    ],
)
def test_margin_defaults_to_the_policy_of_the_metric(
    tmp_path: Path, metric: str, cell: str, limit: str, margin: float
) -> None:
    evidence = "{starts: 5, repeats: 1, sd_start: 0.01, date: 2026-12-01}"
    text = f"""\
schema: 1
estimator: pooled
gates:
  - cell: {cell}
    {metric}: {{{limit}, reference: 2, evidence: {evidence}}}
"""
    (file,) = load(write(tmp_path, text), today=TODAY)
    assert file.gates[0].limits[0].margin == margin


@pytest.mark.parametrize(
    ("estimator", "metric", "measured_as"),
    [
        ("pooled", "acceptance_length", "acceptance_length_pooled"),
        ("request_mean", "acceptance_length", "acceptance_length"),
        ("pooled", "decode_acceptance_length", "decode_acceptance_length"),
    ],
)
def test_estimator_decides_which_acceptance_length_is_compared(
    tmp_path: Path, estimator: str, metric: str, measured_as: str
) -> None:
    text = f"schema: 1\nestimator: {estimator}\ngates:\n  - cell: {{}}\n    {metric}: {{min: 1.5}}\n"
    (file,) = load(write(tmp_path, text))
    assert file.gates[0].limits[0].measured_as == measured_as


def test_everything_that_calibration_writes(tmp_path: Path) -> None:
    evidence = (
        "{starts: 6, repeats: 2, sd_start: 0.003, sd_repeat: 0.002, lowest: 1.355, highest: 1.364, date: 2026-12-01, "
        "engine_version: 0.24.0, gpu: 2 × NVIDIA H100 80GB HBM3}"
    )
    text = f"""\
schema: 1
estimator: request_mean
gates:
  - cell: {{category: coding, concurrency: 8}}
    acceptance_length:
      min: 1.306
      reference: 1.360
      evidence: {evidence}
      history:
        - {{date: 2026-11-01, from: 1.4, to: 1.35, reason: new drafter}}
        - {{date: 2026-11-01, from: 1.35, to: 1.5, reason: other prompts, prompts: 9f86d081}}
        - {{date: 2026-12-01, from: 1.5, to: 1.306, reason: "kernel, as agreed in #7"}}
"""
    (file,) = load(write(tmp_path, text), today=TODAY)
    (limit,) = file.gates[0].limits
    assert limit.evidence is not None
    assert (limit.evidence.lowest, limit.evidence.highest) == (1.355, 1.364)
    assert (limit.evidence.engine_version, limit.evidence.gpu) == ("0.24.0", "2 × NVIDIA H100 80GB HBM3")
    assert limit.history == (
        Change(dt.date(2026, 11, 1), 1.4, 1.35, "new drafter"),
        Change(dt.date(2026, 11, 1), 1.35, 1.5, "other prompts", "9f86d081"),
        Change(dt.date(2026, 12, 1), 1.5, 1.306, "kernel, as agreed in #7"),
    )
    # Drift is counted from the last new reference.
    assert limit.first_logged == 1.5


def test_drift_is_counted_from_the_first_value_that_was_logged() -> None:
    day = dt.date(2026, 12, 1)
    limit = Limit("acceptance_length", 1.8, False, "x:1")
    assert limit.first_logged is None
    logged = (Change(day, 2.0, 1.9, "x"), Change(day, 1.9, 1.8, "y"))
    assert Limit("acceptance_length", 1.8, False, "x:1", history=logged).first_logged == 2.0


def test_a_limit_may_be_tighter_than_its_history_ends_with(tmp_path: Path) -> None:
    text = """\
schema: 1
estimator: pooled
gates:
  - cell: {category: coding}
    acceptance_length: {min: 2.1, history: [{date: 2026-12-01, from: 2, to: 1.9, reason: x}]}
"""
    assert load(write(tmp_path, text), today=TODAY)[0].gates[0].limits[0].value == 2.1


def test_category_or_isl_implies_the_split(tmp_path: Path) -> None:
    text = """\
schema: 1
gates:
  - cell: {category: coding}
    user_tps: {min: 5}
  - cell: {isl: 1k}
    user_tps: {min: 5}
"""
    (file,) = load(write(tmp_path, text))
    assert [gate.cell.split for gate in file.gates] == ["qualitative", "throughput"]


def test_a_date_of_tomorrow_is_today_elsewhere(tmp_path: Path) -> None:
    text = FULL.replace("2026-12-01", "2026-12-06")
    assert load(write(tmp_path, text), today=TODAY)[0].gates


def test_date_and_numbers_may_be_quoted_or_not_as_they_are_meant(tmp_path: Path) -> None:
    text = FULL.replace("2026-12-01", '"2026-12-01"').replace("min: 160", "min: 1.6e2")
    assert load(write(tmp_path, text), today=TODAY)[0].gates[1].limits[0].value == 160.0


def test_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + HAND_WRITTEN.encode())
    assert load(path)[0].gates[0].limits[0].source.endswith(":4")


def test_folder_loads_all_files_sorted(tmp_path: Path) -> None:
    for name in ("b.yml", "a.yaml", "h100/c.yaml", ".hidden.yaml", "old.yaml.disabled", "notes.txt"):
        write(tmp_path, HAND_WRITTEN, name)
    assert [Path(file.path).relative_to(tmp_path).as_posix() for file in load(tmp_path)] == [
        "a.yaml",
        "b.yml",
        "h100/c.yaml",
    ]


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such thresholds file or folder"):
        load(tmp_path / "none.yaml")


def test_folder_without_thresholds(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the folder has no \*\.yaml or \*\.yml file"):
        load(tmp_path)


def test_broken_file_in_a_folder_is_not_left_out(tmp_path: Path) -> None:
    write(tmp_path, HAND_WRITTEN, "a.yaml")
    write(tmp_path, "", "b.yaml")
    with pytest.raises(ConfigError, match=r"b\.yaml:1: the file is empty"):
        load(tmp_path)


def test_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"folder\.yaml: cannot be read: Is a directory"):
        load(tmp_path)

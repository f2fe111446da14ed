"""Limits from artifacts: hand-computed values, and a file that the loader takes back."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_speedbench.calibration import Artifact, Margins, thresholds_yaml
from pytest_speedbench.cells import Cell
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates import thresholds
from pytest_speedbench.gates.verdict import Verdict, judge
from pytest_speedbench.measure.acceptance import Acceptance
from pytest_speedbench.measure.metrics import Metric
from pytest_speedbench.report.artifact import Flags
from pytest_speedbench.report.run_info import EngineRecord, RunInfo
from pytest_speedbench.results import CellResult

CODING = Cell("qualitative", 8, category="coding")
OVERALL = Cell("qualitative", 8, category="overall")
VALUES = (2.00, 2.01, 1.99, 2.00, 2.02, 1.98)


def artifact(number: int, coding: float, overall: float = 3.0, **changes: object) -> Artifact:
    resolved = {"osl_cap": 64, "temperature": 0.0, "ignore_eos": False} | changes
    run = RunInfo(
        started=f"2026-11-0{number + 1}T03:00:00+00:00",
        argv=(),
        plugin_version="0",
        python_version="3",
        pytest_version="9",
        platform="",
        cpu="",
        dataset="speed-bench-mini@1",
        engines=(EngineRecord("vllm", "vllm", "0.24.0", "org/model", "eagle3", "org/drafter", 3, (), resolved),),
    )
    histogram = {1: 50, 2: 25, 3: 15, 4: 10}
    acceptance = Acceptance(histogram, {}, {}, decode_histogram=histogram)

    def result(cell: Cell, value: float) -> CellResult:
        return CellResult(
            "vllm",
            cell,
            f"vllm-{cell.name}",
            None,
            metrics={"acceptance_length": Metric(value)},
            acceptance=acceptance,
            prompts_sha256="0123456789abcdef",
        )

    return run, (result(CODING, coding), result(OVERALL, overall)), Flags(complete=True, partial=False)


def artifacts() -> list[Artifact]:
    return [artifact(number, value) for number, value in enumerate(VALUES)]


def test_the_file_holds_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "calibrated.yaml"
    path.write_text(thresholds_yaml(artifacts(), Margins()))
    (file,) = thresholds.load(path)
    assert (file.match.engine, file.match.model, file.match.method) == ("vllm", "org/model", "eagle3")
    assert (file.match.draft_tokens, file.match.draft_model) == (3, "org/drafter")
    assert (file.match.osl, file.match.temperature, file.match.ignore_eos) == (64, 0.0, False)
    coding, overall = (gate.limits[0] for gate in file.gates)
    assert coding.reference == 2.0
    assert coding.value == pytest.approx(2.0 * 0.96)
    assert overall.value == pytest.approx(3.0 * 0.98)
    assert coding.evidence is not None
    assert coding.evidence.starts == 6
    assert coding.evidence.sd_start == pytest.approx(statistics.stdev(VALUES), rel=1e-3)
    assert coding.evidence.date.isoformat() == "2026-11-06"
    # 50 of 100 steps reach length 2, 25 of those 50 length 3, 10 of those 25 length 4.
    assert coding.evidence.conditional == (0.5, 0.5, 0.4)
    for value, verdict in ((2.0, Verdict.PASS), (1.5, Verdict.FAIL)):
        judged = judge("acceptance_length", value, coding, alpha=0.025, beta=0.05, prompts="0123456789abcdef")
        assert judged.verdict is verdict


def test_other_margins(tmp_path: Path) -> None:
    path = tmp_path / "calibrated.yaml"
    path.write_text(thresholds_yaml(artifacts(), Margins(overall=0.05, category=0.3)))
    (file,) = thresholds.load(path)
    assert [gate.limits[0].margin for gate in file.gates] == [0.3, 0.05]


def test_a_margin_that_the_noise_fills_is_refused() -> None:
    noisy = [artifact(number, value) for number, value in enumerate((2.0, 2.2, 1.8, 2.1, 1.9))]
    with pytest.raises(ConfigError, match=r"too narrow for coding \(σ 8\.7%, needs 39%\)"):
        thresholds_yaml(noisy, Margins())
    assert "margin: 39%" in thresholds_yaml(noisy, Margins(category=0.39))


def test_fewer_than_five_starts_are_refused() -> None:
    with pytest.raises(ConfigError, match="4 artifacts are too few"):
        thresholds_yaml(artifacts()[:4], Margins())


def test_one_run_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="the same run"):
        thresholds_yaml([*artifacts(), artifacts()[0]], Margins())


def test_unlike_runs_are_refused() -> None:
    with pytest.raises(ConfigError, match="differ in engine, model, data or sampling"):
        thresholds_yaml([*artifacts()[:5], artifact(5, 2.0, osl_cap=128)], Margins())


def test_a_run_that_was_interrupted_is_refused() -> None:
    run, results, _ = artifacts()[5]
    with pytest.raises(ConfigError, match="not complete"):
        thresholds_yaml([*artifacts()[:5], (run, results, Flags(complete=False, partial=True))], Margins())


def test_an_invalid_cell_is_refused() -> None:
    run, (coding, overall), flags = artifacts()[5]
    broken = replace(coding, verdict=Verdict.INVALID)
    with pytest.raises(ConfigError, match="INVALID cell: vllm-coding"):
        thresholds_yaml([*artifacts()[:5], (run, (broken, overall), flags)], Margins())


def test_other_prompts_are_refused() -> None:
    run, (coding, overall), flags = artifacts()[5]
    other = replace(coding, prompts_sha256="f" * 16)
    with pytest.raises(ConfigError, match="different prompts in qualitative-coding"):
        thresholds_yaml([*artifacts()[:5], (run, (other, overall), flags)], Margins())


def test_a_missing_cell_is_refused() -> None:
    run, (coding, _), flags = artifacts()[5]
    with pytest.raises(ConfigError, match="differ in qualitative-overall"):
        thresholds_yaml([*artifacts()[:5], (run, (coding,), flags)], Margins())

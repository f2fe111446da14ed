"""From artifacts to a thresholds file: what is written, what is said, and that it judges as it promises."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pytest_speedbench.calibration import command
from pytest_speedbench.cells import Cell
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates import thresholds
from pytest_speedbench.gates.limits import Limit
from pytest_speedbench.gates.verdict import GateResult, Verdict, judge
from pytest_speedbench.measure.acceptance import Acceptance
from pytest_speedbench.measure.checks import Reason
from pytest_speedbench.measure.metrics import Metric
from pytest_speedbench.report import artifact
from pytest_speedbench.report.run_info import EngineRecord, GpuRecord, RunInfo
from pytest_speedbench.results import CellResult, CellRun

CODING = Cell("qualitative", 8, category="coding")
OVERALL = Cell("qualitative", 8, category="overall")
THROUGHPUT = Cell("throughput", 4, isl="1k", difficulty="mixed")
PROMPTS = "0123456789abcdef" * 4
GPU = GpuRecord("NVIDIA H100 80GB HBM3", "GPU-1", 0, "580")
ENGINE = EngineRecord(
    profile="vllm",
    engine="vllm",
    version="0.24.0",
    model="org/model",
    method="eagle3",
    draft_model="org/drafter",
    draft_tokens=3,
    gpus=(GPU,),
    resolved={"osl_cap": 64, "temperature": 0.0, "ignore_eos": False, "dtype": "bfloat16"},
)

# Engine start means 2.01, 1.99, 2.00, 2.02, 1.98, 2.00; repeats 0.01 apart.
TABLE = ((2.005, 2.015), (1.985, 1.995), (1.995, 2.005), (2.015, 2.025), (1.975, 1.985), (1.995, 2.005))


def run_info(number: int = 0, engine: EngineRecord = ENGINE, **changes: Any) -> RunInfo:
    facts: dict[str, Any] = {
        "started": f"2026-11-{number + 1:02}T03:00:00+00:00",
        "argv": (),
        "plugin_version": "0",
        "python_version": "3",
        "pytest_version": "9",
        "platform": "",
        "cpu": "EPYC (2 logical)",
        "dataset": "speed-bench-mini@1",
        "dataset_sha256": "d" * 64,
        "engines": (engine,),
    }
    return RunInfo(**(facts | changes))


def cell_result(cell: Cell, table: Sequence[Sequence[float]], metric: str = "acceptance_length") -> CellResult:
    """A measured cell with one row of repeats per engine start."""
    return many_metrics(cell, {metric: table})


def many_metrics(cell: Cell, tables: dict[str, Sequence[Sequence[float]]]) -> CellResult:
    first = next(iter(tables.values()))
    runs = tuple(
        CellRun(start, repeat, {metric: table[start][repeat] for metric, table in tables.items()})
        for start, row in enumerate(first)
        for repeat in range(len(row))
    )
    histogram = {1: 50, 2: 25, 3: 15, 4: 10}
    return CellResult(
        "vllm",
        cell,
        f"vllm-{cell.name}",
        None,
        metrics={metric: Metric(table[0][0]) for metric, table in tables.items()},
        acceptance=Acceptance(histogram, {}, {}, decode_histogram=histogram),
        prompts_sha256=PROMPTS,
        conversations=80,
        conversations_planned=80,
        runs=runs,
    )


def store(folder: Path, number: int, *results: CellResult, run: RunInfo | None = None, complete: bool = True) -> Path:
    path = folder / f"run{number}.json"
    artifact.write(path, run or run_info(number), results, complete=complete, partial=False, measure_only=True)
    return path


def split(folder: Path, *cells: tuple[Cell, Sequence[Sequence[float]]]) -> list[Path]:
    """One artifact per engine start."""
    starts = len(cells[0][1])
    return [store(folder, n, *(cell_result(cell, table[n : n + 1]) for cell, table in cells)) for n in range(starts)]


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


class Calibrate:
    """The command, as the shell runs it."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *words: str | Path) -> Answer:
        parser = argparse.ArgumentParser()
        command.add(parser.add_subparsers())
        arguments = parser.parse_args(["calibrate", *map(str, words)])
        code = arguments.run(arguments)
        out, err = self.capsys.readouterr()
        return Answer(code, out, err)


@pytest.fixture
def calibrate(capsys: pytest.CaptureFixture[str]) -> Calibrate:
    return Calibrate(capsys)


def limits(path: Path) -> dict[str, Limit]:
    (file,) = thresholds.load(path)
    return {f"{gate.cell.category or gate.cell.isl} {own.metric}": own for gate in file.gates for own in gate.limits}


def test_the_file_holds_what_was_measured(tmp_path: Path, calibrate: Calibrate) -> None:
    one = store(tmp_path, 0, cell_result(CODING, TABLE), cell_result(OVERALL, [[3.0, 3.0]] * 6))
    output = tmp_path / "h100.yaml"
    answer = calibrate(one, "-o", output, "--run", "h100-a")
    assert (answer.code, answer.out) == (0, f"{output}\n")
    (file,) = thresholds.load(output)
    match = file.match
    assert (match.engine, match.model, match.method, match.draft_tokens) == ("vllm", "org/model", "eagle3", 3)
    assert (match.draft_model, match.dataset) == ("org/drafter", "speed-bench-mini@1")
    assert (match.osl, match.temperature, match.ignore_eos) == (64, 0.0, False)
    assert (match.gpu, match.gpu_count) == ("NVIDIA H100 80GB HBM3", 1)
    assert match.engine_version is None
    coding, overall = limits(output).values()
    assert (coding.reference, coding.value, coding.margin) == (2.0, 1.92, 0.04)
    assert (overall.reference, overall.value, overall.margin) == (3.0, 2.94, 0.02)
    evidence = coding.evidence
    assert evidence is not None
    # Start means are 0.01, −0.01, 0, 0.02, −0.02, 0 from 2: MS_b = 2 · 0.001 / 5 = 4e-4. Each repeat is 0.005
    # from its mean: MS_w = 12 · 25e-6 / 6 = 5e-5. So σ_b² = (4e-4 − 5e-5) / 2 = 1.75e-4.
    assert evidence.sd_start == pytest.approx(math.sqrt(1.75e-4), rel=1e-3)
    assert evidence.sd_repeat == pytest.approx(math.sqrt(5e-5), rel=1e-3)
    assert (evidence.starts, evidence.repeats, evidence.run) == (6, 2, "h100-a")
    assert (evidence.lowest, evidence.highest) == (1.975, 2.025)
    assert (evidence.engine_version, evidence.gpu) == ("0.24.0", "1 × NVIDIA H100 80GB HBM3")
    assert (evidence.date.isoformat(), evidence.prompts) == ("2026-11-01", PROMPTS[:12])
    # 50 of 100 steps reach length 2, 25 of those 50 length 3, 10 of those 25 length 4.
    assert evidence.conditional == (0.5, 0.5, 0.4)
    # σ² = 1.75e-4 (1 + 1/6) + 5e-5 (1/2 + 1/12) = 2.333e-4, σ = 0.01528; df 5, all of it from MS_b. t is 2.015
    # at 95 %: guard 2.015 σ / 1.92 = 1.6 %. Half of α is for the one overall cell, half for coding.
    # Not passed: (0.08 − 2.015 σ + 0.8416 σ) / 2 = 3.1 %. Failed: (0.08 + 0.8416 σ) / 2 = 4.6 %.
    rows = [line.split() for line in answer.err.splitlines()]
    wanted = "qualitative-coding-c8 AL 2.000 1.920 new 4.0 % 0.66 % 0.35 % 5.0 1.6 % 3.1 % 4.6 %"
    assert wanted.split() in rows
    # No noise at all: whatever is below the limit fails, whatever is above passes.
    quiet = "qualitative-overall-c8 AL 3.000 2.940 new 2.0 % 0.00 % 0.00 % ∞ 0.0 % 2.0 % 2.0 %"
    assert quiet.split() in rows
    assert (
        "every run gave the same value, so there is no guard band: qualitative-overall-c8 acceptance_length."
        in answer.err
    )
    assert '  gpu: "NVIDIA H100 80GB HBM3"\n  gpu_count: 1\n' in output.read_text(encoding="utf-8")


def test_starts_count_over_artifacts(tmp_path: Path, calibrate: Calibrate) -> None:
    together = store(tmp_path, 20, cell_result(CODING, TABLE[:4]))
    rest = [store(tmp_path, n, cell_result(CODING, [TABLE[n]])) for n in (4, 5)]
    calibrate(together, *rest, "-o", tmp_path / "a.yaml")
    calibrate(*split(tmp_path, (CODING, TABLE)), "-o", tmp_path / "b.yaml")
    (one,), (other,) = limits(tmp_path / "a.yaml").values(), limits(tmp_path / "b.yaml").values()
    assert one.evidence is not None
    assert other.evidence is not None
    assert one.evidence.starts == 6
    assert replace(one.evidence, date=other.evidence.date) == other.evidence


def test_artifacts_without_runs_hold_one_each(tmp_path: Path, calibrate: Calibrate) -> None:
    paths = [
        store(tmp_path, n, replace(cell_result(CODING, [[value]]), runs=()))
        for n, value in enumerate((2.0, 2.01, 1.99, 2.0, 2.02, 1.98))
    ]
    answer = calibrate(*paths)
    # The sample variance of the six values is 0.001 / 5.
    assert f"starts: 6, repeats: 1, sd_start: {math.sqrt(0.0002):.4g}, lowest: 1.98, highest: 2.02" in answer.out
    assert "sd_repeat" not in answer.out


def test_five_starts_are_few_and_four_too_few(tmp_path: Path, calibrate: Calibrate) -> None:
    assert "5 engine starts are few" in calibrate(*split(tmp_path, (CODING, TABLE[:5]))).err
    with pytest.raises(ConfigError, match="4 engine starts are too few: at least 5 are needed"):
        calibrate(*split(tmp_path, (CODING, TABLE[:4])))


def test_times_and_rates_are_calibrated_on_the_log_scale(tmp_path: Path, calibrate: Calibrate) -> None:
    factors = (1.005, 0.995, 1.0, 1.01, 0.99, 1.0)
    tables: dict[str, Sequence[Sequence[float]]] = {
        "acceptance_length": TABLE,
        "output_tps": [[1000 * f] for f in factors],
        "steady_output_tps": [[1100 * f] for f in factors],
        "user_tps": [[50 * f] for f in factors],
        "ttft_p50_s": [[0.2 * f] for f in factors],
        "ttft_p95_s": [[0.4 * f] for f in factors],
    }
    tables["acceptance_length"] = [[row[0]] for row in TABLE]
    output = tmp_path / "x.yaml"
    calibrate(store(tmp_path, 0, many_metrics(THROUGHPUT, tables)), "-o", output)
    found = limits(output)
    assert list(found) == [
        f"1k {name}" for name in ("acceptance_length", "steady_output_tps", "user_tps", "ttft_p50_s")
    ]
    logs = [math.log(f) for f in factors]
    mean = sum(logs) / 6
    sd = math.sqrt(sum((own - mean) ** 2 for own in logs) / 5)
    tps, ttft = found["1k steady_output_tps"], found["1k ttft_p50_s"]
    assert tps.reference == pytest.approx(1100 * math.exp(mean), rel=1e-5)
    assert tps.value == pytest.approx(0.95 * 1100 * math.exp(mean), rel=1e-5)
    assert tps.evidence is not None
    assert tps.evidence.sd_start == pytest.approx(sd * 1100 * math.exp(mean), rel=1e-3)
    assert ttft.ceiling
    assert ttft.value == pytest.approx(1.08 * 0.2 * math.exp(mean), rel=1e-5)
    assert tps.evidence.conditional == ()


def test_metrics_and_margins_can_be_chosen(tmp_path: Path, calibrate: Calibrate) -> None:
    tables: dict[str, Sequence[Sequence[float]]] = {
        "acceptance_length": TABLE,
        "acceptance_rate": [[value / 4 for value in row] for row in TABLE],
    }
    one = store(tmp_path, 0, many_metrics(CODING, tables), many_metrics(OVERALL, tables))
    output = tmp_path / "x.yaml"
    words = ("--metric", "acceptance_rate", "--metric", "acceptance_length")
    calibrate(one, "-o", output, *words, "--margin", "10%", "--margin", "acceptance_rate=0.2", "--overall-margin=7%")
    assert {name: own.margin for name, own in limits(output).items()} == {
        "coding acceptance_rate": 0.2,
        "coding acceptance_length": 0.1,
        "overall acceptance_rate": 0.07,
        "overall acceptance_length": 0.07,
    }
    # What the file has stays as long as nothing else is asked for.
    calibrate(one, "-o", output, *words, "--overall-margin=6%")
    assert {own.margin for name, own in limits(output).items() if name.startswith("coding")} == {0.2, 0.1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metric", "osl_mean"], "unknown metric 'osl_mean'; choose from"),
        (["--metric", "user_tps"], "qualitative-coding-c8: not every run has user_tps; choose from acceptance_length"),
        (["--vary", "colour"], "--vary colour: the runs have no such setting; choose from"),
        (["--reason", " "], "--reason is empty"),
        (["--profile", "sglang"], "choose one of its engine profiles with --profile: vllm"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, calibrate: Calibrate, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        calibrate(store(tmp_path, 0, cell_result(CODING, TABLE)), *words)


@pytest.mark.parametrize("word", ["0", "100%", "nan", "-1%", "4 per cent", "osl_mean=4%", "=4%"])
def test_margins_that_cannot_be(tmp_path: Path, calibrate: Calibrate, word: str) -> None:
    with pytest.raises(SystemExit):
        calibrate(store(tmp_path, 0, cell_result(CODING, TABLE)), f"--margin={word}")
    assert "argument --margin" in calibrate.capsys.readouterr().err


def test_without_steps_per_request_the_pooled_length_is_gated(tmp_path: Path, calibrate: Calibrate) -> None:
    one = store(tmp_path, 0, cell_result(CODING, TABLE, "acceptance_length_pooled"))
    calibrate(one, "-o", tmp_path / "x.yaml")
    (limit,) = limits(tmp_path / "x.yaml").values()
    assert (limit.metric, limit.measured_as, limit.reference) == ("acceptance_length", "acceptance_length_pooled", 2.0)


def test_without_pooled_steps_either_the_decode_length_is(tmp_path: Path, calibrate: Calibrate) -> None:
    one = store(tmp_path, 0, cell_result(CODING, TABLE, "decode_acceptance_length"))
    calibrate(one, "-o", tmp_path / "x.yaml")
    assert list(limits(tmp_path / "x.yaml")) == ["coding decode_acceptance_length"]


def test_without_speculation_there_is_no_length_to_gate(tmp_path: Path, calibrate: Calibrate) -> None:
    plain = replace(ENGINE, method=None, draft_model=None, draft_tokens=None)
    one = store(tmp_path, 0, cell_result(CODING, TABLE), run=run_info(engine=plain))
    with pytest.raises(ConfigError, match="without speculation, name a rate or time"):
        calibrate(one)
    with pytest.raises(ConfigError, match="without speculation acceptance_length says nothing"):
        calibrate(one, "--metric=acceptance_length")
    rates = store(tmp_path, 1, cell_result(CODING, [[50.0], [50.3], [49.8], [50.0], [50.5]], "user_tps"))
    assert "user_tps:" in calibrate(rates, "--metric=user_tps").out


# Runs that do not belong together, or are none


def test_one_run_given_twice_is_refused(tmp_path: Path, calibrate: Calibrate) -> None:
    paths = split(tmp_path, (CODING, TABLE))
    copy = tmp_path / "copy.json"
    copy.write_bytes(paths[2].read_bytes())
    with pytest.raises(ConfigError, match=r"run2\.json and .*copy\.json are the same run"):
        calibrate(*paths, copy)


def test_jobs_that_began_in_the_same_second_are_two_runs(tmp_path: Path, calibrate: Calibrate) -> None:
    paths = [
        store(tmp_path, n, replace(cell_result(CODING, [row]), duration_s=60.0 + n / 1e3), run=run_info(0))
        for n, row in enumerate(TABLE)
    ]
    assert "starts: 6," in calibrate(*paths).out


@pytest.mark.parametrize(
    ("engine", "changes", "message"),
    [
        ({"model": "org/other"}, {}, "model org/model and org/other"),
        ({"method": "mtp"}, {}, "method eagle3 and mtp"),
        ({"draft_tokens": 5}, {}, "draft tokens 3 and 5"),
        ({"draft_model": None}, {}, "draft model org/drafter and none"),
        ({"version": "0.25.0"}, {}, "engine version 0.24.0 and 0.25.0"),
        ({"gpus": ()}, {}, "gpu NVIDIA H100 80GB HBM3 and none; gpu count 1 and 0; cpu none and EPYC"),
        ({"resolved": {**ENGINE.resolved, "osl_cap": 128}}, {}, "osl 64 and 128"),
        ({"resolved": {**ENGINE.resolved, "temperature": 1.0}}, {}, "temperature 0.0 and 1.0"),
        ({"resolved": {**ENGINE.resolved, "ignore_eos": True}}, {}, "ignore_eos False and True"),
        ({"resolved": {**ENGINE.resolved, "dtype": "float16"}}, {}, "dtype bfloat16 and float16"),
        ({"resolved": {**ENGINE.resolved, "kv": {"dtype": "fp8"}}}, {}, r"kv\.dtype none and fp8"),
        ({}, {"dataset": "other@1"}, "dataset speed-bench-mini@1 and other@1"),
        ({}, {"dataset_sha256": "e" * 64}, "dataset contents dddddddddddd and eeeeeeeeeeee"),
    ],
)
def test_unlike_runs_are_refused_in_words(
    tmp_path: Path, calibrate: Calibrate, engine: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    paths = split(tmp_path, (CODING, TABLE))
    odd = run_info(9, engine=replace(ENGINE, **engine), **changes)
    paths.append(store(tmp_path, 9, cell_result(CODING, [TABLE[0]]), run=odd))
    with pytest.raises(ConfigError, match=f"are not runs of one system: {message}"):
        calibrate(*paths)


def test_a_difference_can_be_taken_as_noise(tmp_path: Path, calibrate: Calibrate) -> None:
    paths = split(tmp_path, (CODING, TABLE))
    engine = replace(ENGINE, version="0.24.1")
    paths.append(store(tmp_path, 9, cell_result(CODING, [TABLE[0]]), run=run_info(9, engine)))
    with pytest.raises(ConfigError, match="--vary 'engine version'"):
        calibrate(*paths)
    assert "starts: 7," in calibrate(*paths, "--vary", "engine version").out


def test_a_run_that_was_interrupted_is_refused(tmp_path: Path, calibrate: Calibrate) -> None:
    paths = split(tmp_path, (CODING, TABLE))
    paths.append(store(tmp_path, 9, cell_result(CODING, TABLE[:1]), complete=False))
    with pytest.raises(ConfigError, match=r"run9\.json: the run was interrupted"):
        calibrate(*paths)


def test_half_an_artifact_is_refused(tmp_path: Path, calibrate: Calibrate) -> None:
    paths = split(tmp_path, (CODING, TABLE))
    paths[3].write_bytes(paths[3].read_bytes()[:-200])
    with pytest.raises(ConfigError, match=r"run3\.json ends in the middle: it is truncated"):
        calibrate(*paths)


def test_a_value_that_is_no_number_is_refused(tmp_path: Path, calibrate: Calibrate) -> None:
    paths = split(tmp_path, (CODING, TABLE))
    data = json.loads(paths[3].read_text())
    data["cells"][0]["runs"][0]["values"]["acceptance_length"] = math.nan
    paths[3].write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=r"run3\.json is not valid JSON \(NaN is not JSON\)"):
        calibrate(*paths)
    data["cells"][0]["runs"][0]["values"]["acceptance_length"] = None
    paths[3].write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=r"run3\.json start 1: acceptance_length of qualitative-coding-c8 is nan"):
        calibrate(*paths)


def test_a_rate_of_zero_is_refused(tmp_path: Path, calibrate: Calibrate) -> None:
    one = store(tmp_path, 0, cell_result(CODING, [[50.0], [51.0], [0.0], [50.0], [50.5]], "user_tps"))
    with pytest.raises(ConfigError, match=r"run0\.json start 3: user_tps of qualitative-coding-c8 is 0"):
        calibrate(one, "--metric=user_tps")


def test_times_that_never_vary_are_refused(tmp_path: Path, calibrate: Calibrate) -> None:
    one = store(tmp_path, 0, cell_result(CODING, [[0.25]] * 6, "ttft_p50_s"))
    with pytest.raises(ConfigError, match=r"ttft_p50_s is 0\.25 in every run"):
        calibrate(one, "--metric=ttft_p50_s")


def test_invalid_cells_are_refused_by_name(tmp_path: Path, calibrate: Calibrate) -> None:
    paths = split(tmp_path, (CODING, TABLE))
    reason = Reason("counter_mismatch", "the engine counted 3 tokens more\nmore lines")
    broken = replace(cell_result(CODING, TABLE[:1]), verdict=Verdict.INVALID, reasons=(reason,))
    with pytest.raises(ConfigError) as caught:
        calibrate(*paths, store(tmp_path, 9, broken))
    last = str(caught.value).splitlines()[-1]
    assert last.endswith(
        "run9.json: qualitative-coding-c8 is INVALID counter_mismatch: the engine counted 3 tokens more"
    )


@pytest.mark.parametrize("code", ["no_gate", "unreachable", "other_prompts"])
def test_a_sound_measurement_counts_whatever_its_old_limits_said(
    tmp_path: Path, calibrate: Calibrate, code: str
) -> None:
    judged = replace(cell_result(CODING, TABLE), verdict=Verdict.INVALID, reasons=(Reason(code, "about the file"),))
    assert "starts: 6," in calibrate(store(tmp_path, 0, judged)).out


def test_other_prompts_are_refused(tmp_path: Path, calibrate: Calibrate) -> None:
    paths = split(tmp_path, (CODING, TABLE))
    paths.append(store(tmp_path, 9, replace(cell_result(CODING, TABLE[:1]), prompts_sha256="f" * 64)))
    with pytest.raises(
        ConfigError, match=r"run0\.json measured the prompts 0123456789ab, .*run9\.json the prompts ffff"
    ):
        calibrate(*paths)


def test_a_cell_that_not_all_runs_have_is_refused(tmp_path: Path, calibrate: Calibrate) -> None:
    paths = split(tmp_path, (CODING, TABLE))
    paths.append(store(tmp_path, 9, cell_result(CODING, TABLE[:1]), cell_result(OVERALL, TABLE[:1])))
    with pytest.raises(ConfigError, match=r"qualitative-overall-c8: in .*run9\.json, but not in .*run0\.json"):
        calibrate(*paths)
    with pytest.raises(ConfigError, match=r"qualitative-overall-c8: in .*run9\.json, but not in .*run0\.json"):
        calibrate(paths[-1], *paths[:-1])


def test_unequal_repeats_are_refused_by_name(tmp_path: Path, calibrate: Calibrate) -> None:
    paths = split(tmp_path, (CODING, TABLE))
    result = cell_result(CODING, [TABLE[0], TABLE[1]])
    paths.append(store(tmp_path, 9, replace(result, runs=result.runs[:-1])))
    with pytest.raises(ConfigError, match=r"qualitative-coding-c8: .*run9\.json start 2 has 1, the others 2 repeats"):
        calibrate(*paths)


def test_control_cells_have_no_limits(tmp_path: Path, calibrate: Calibrate) -> None:
    control = Cell("throughput", 4, isl="1k", difficulty="random")
    answer = calibrate(store(tmp_path, 0, cell_result(CODING, TABLE), cell_result(control, TABLE)))
    assert "random" not in answer.out


# Gates that tell nothing

NOISY = ((2.0,), (2.2,), (1.8,), (2.1,), (1.9,))


def test_a_margin_that_the_noise_fills_is_refused_with_what_would_help(tmp_path: Path, calibrate: Calibrate) -> None:
    paths = split(tmp_path, (CODING, NOISY))
    with pytest.raises(ConfigError) as caught:
        calibrate(*paths)
    # s² = 0.1 / 4 = 0.025. σ² = 0.025 (1 + 1/5) = 0.03, σ = 0.1732 or 8.66 % of 2; 4.5 σ = 38.97 %.
    # Both calibration and run over b starts: 2 · 0.025 / b ≤ (0.04 · 2 / 4.5)² asks for 159.
    # Prompts: 80 · 0.03 / (0.08 / 4.5)² = 7593, with sd_start as the file has it.
    assert str(caught.value).endswith(
        "qualitative-coding-c8 acceptance_length: noise σ 8.66 % is more than the margin 4 % / 4.5; it needs a margin "
        "of 39 % or 159 engine starts, at calibration and in each run or about 7593 prompts instead of 80"
    )
    with pytest.raises(ConfigError, match="would tell nothing"):
        calibrate(*paths, "--margin=38.9%")
    assert "margin: 39%" in calibrate(*paths, "--margin=39%").out


def test_repeats_or_starts_that_would_help_are_named(tmp_path: Path, calibrate: Calibrate) -> None:
    # Start means are equal, so σ_b = 0. Repeats ±0.05: σ_w² = 12 · 0.0025 / 6 = 0.005.
    # σ² = 0.005 / 12 + 0.005 / n ≤ (0.08 / 4.5)² = 3.16e-4 never: the calibration alone has 4.17e-4.
    one = store(tmp_path, 0, cell_result(CODING, [[1.95, 2.05]] * 6))
    with pytest.raises(
        ConfigError, match=r"it needs a margin of 12\.2 % or 16 engine starts, at calibration and in each"
    ):
        calibrate(one)
    # With 6 %: 7.11e-4 − 4.17e-4 = 2.94e-4, so n ≥ 0.005 / 2.94e-4 = 17.0 repeats, or 0.0025 / 2.94e-4 = 8.5 starts.
    with pytest.raises(
        ConfigError, match=r"or 17 repeats per engine start or 9 engine starts in each run or about 329"
    ):
        calibrate(one, "--margin=6%")


def test_a_gate_that_needs_its_repeats_says_so(tmp_path: Path, calibrate: Calibrate) -> None:
    # σ_b = 0, σ_w² = 0.0018 · … : with n repeats σ² = σ_w² (1/12 + 1/n) against (0.08 / 4.5)² = 3.16e-4.
    one = store(tmp_path, 0, cell_result(CODING, [[1.98, 2.02]] * 6))
    # σ_w² = 12 · 4e-4 / 6 = 8e-4: one repeat has 8.67e-4, two 4.67e-4, too many; at 6 % 7.11e-4 is allowed.
    answer = calibrate(one, "--margin=6%")
    assert "run with --speedbench-repeats=2: a single run is too noisy for qualitative-coding-c8" in answer.err


def test_unreachable_gates_can_be_left_out(tmp_path: Path, calibrate: Calibrate) -> None:
    paths = split(tmp_path, (CODING, NOISY), (OVERALL, [[3.0]] * 5))
    answer = calibrate(*paths, "--skip-unreachable", "-o", tmp_path / "x.yaml")
    assert list(limits(tmp_path / "x.yaml")) == ["overall acceptance_length"]
    assert "left out: qualitative-coding-c8 acceptance_length: noise" in answer.err
    with pytest.raises(ConfigError, match="no gate is left"):
        calibrate(*split(tmp_path, (CODING, NOISY)), "--skip-unreachable")


def test_a_floor_that_nothing_can_miss_is_refused(tmp_path: Path, calibrate: Calibrate) -> None:
    one = store(tmp_path, 0, cell_result(CODING, [[1.03], [1.031], [1.03], [1.029], [1.03]]))
    with pytest.raises(ConfigError, match=r"1\.03 − 4 % is 0\.9888, .*it needs a margin below 2\.9 %"):
        calibrate(one)
    assert "min: 1.0094" in calibrate(one, "--margin=2%").out


def test_a_length_that_is_known_too_badly_is_refused(tmp_path: Path, calibrate: Calibrate) -> None:
    result = cell_result(CODING, TABLE)
    metrics = {"acceptance_length": Metric(2.0, bracket=(2.0, 2.1))}
    with pytest.raises(ConfigError, match="known only within 5 %, more than the margin of 4 %"):
        calibrate(store(tmp_path, 0, replace(result, metrics=metrics)))


def test_a_start_that_would_not_pass_by_itself_is_named(tmp_path: Path, calibrate: Calibrate) -> None:
    # One of 24 starts is lower by d = 0.07: σ = d √(1/24 (1 + 1/24)) = 0.0146 leaves 5.5 σ of margin, but at
    # 0.96 d + t σ = 0.067 + 0.025 below the reference it is nearer to the limit than its noise allows.
    table = [[2.0]] * 23 + [[1.93]]
    answer = calibrate(store(tmp_path, 0, cell_result(CODING, table)))
    assert "start 24 (1.930) would be INCONCLUSIVE by itself" in answer.err


# Promises

values = st.floats(-1, 1, allow_nan=False)
tables = st.integers(5, 9).flatmap(
    lambda starts: st.integers(1, 3).flatmap(
        lambda repeats: st.lists(st.lists(values, min_size=repeats, max_size=repeats), min_size=starts, max_size=starts)
    )
)


def verdict(limit: Limit, value: float, starts: int, repeats: int) -> GateResult:
    return judge(limit.metric, value, limit, alpha=0.025, beta=0.05, starts=starts, repeats=repeats, prompts=PROMPTS)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    table=tables,
    scale=st.floats(0, 0.2),
    metric=st.sampled_from(["acceptance_length", "user_tps", "ttft_p50_s"]),
)
def test_what_calibration_writes_passes_its_own_runs(
    tmp_path: Path, calibrate: Calibrate, table: list[list[float]], scale: float, metric: str
) -> None:
    measured = [[2.5 * math.exp(scale * value) for value in row] for row in table]
    one = store(tmp_path, 0, cell_result(CODING, measured, metric))
    output = tmp_path / "x.yaml"
    output.unlink(missing_ok=True)
    words: list[str | Path] = [one, "-o", output, f"--metric={metric}"]
    try:
        calibrate(*words, "--margin=10%")
    except ConfigError as error:
        # What is refused says which margin would do, and that is so.
        needed = str(error).partition("a margin of ")[2].partition(" %")[0]
        assume(needed != "")
        calibrate(*words, f"--margin={needed}%")
    (limit,) = limits(output).values()
    repeats = len(table[0])
    log = metric != "acceptance_length"

    def mean(numbers: Sequence[float]) -> float:
        if log:
            return math.exp(math.fsum(map(math.log, numbers)) / len(numbers))
        return math.fsum(numbers) / len(numbers)

    means = [mean(row) for row in measured]
    assert verdict(limit, mean(means), len(table), repeats).verdict is Verdict.PASS
    for own in means:
        assert verdict(limit, own, 1, repeats).verdict is Verdict.PASS

"""The self-test on recorded runs: which gates notice, which cannot, and what the command says of it."""

from __future__ import annotations

import argparse
import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_speedbench import selftest_command
from pytest_speedbench.cells import OVERALL, Cell
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates.limits import ThresholdsFile
from pytest_speedbench.gates.thresholds import load
from pytest_speedbench.gates.verdict import Verdict
from pytest_speedbench.report import artifact
from pytest_speedbench.report.requests import RequestLog, read_windows
from pytest_speedbench.selftest import findings, printing, recorded, trials
from pytest_speedbench.selftest.recorded import Recorded
from pytest_speedbench.selftest.trials import GateTrial, Trial

H100 = Path(__file__).parents[2] / "examples" / "h100"
DRAFT = H100 / "artifacts" / "vllm-0.24.0-draft"
CODING = Cell("qualitative", 1, category="coding")
MATH = Cell("qualitative", 1, category="math")
SLOW = Cell("throughput", 1, isl="1k", difficulty="mixed")
HEAD = """\
schema: 1
match: {engine: vllm, method: draft, gpu: "NVIDIA H100*"}
estimator: request_mean
gates:
"""


@pytest.fixture(scope="module")
def whole() -> Recorded:
    return recorded.read(DRAFT)[0]


def part(whole: Recorded, *cells: Cell) -> Recorded:
    """The recorded run with these cells only."""
    kept = {cell: windows for cell, windows in whole.windows.items() if cell in cells}
    return replace(whole, windows=kept, overall=tuple(cell for cell in whole.overall if cell in cells))


def measured(whole: Recorded, cell: Cell, metric: str = "acceptance_length") -> float:
    run = whole.assessed(cell, whole.windows)[0].run
    assert run is not None
    return run.metrics[metric].value


def calibrated(cell: Cell, reference: float, margin: float = 0.04, sd: float = 0.002) -> str:
    """A gate as calibration writes it; its noise of one run is sd × √(1 + 1/6) of the reference."""
    fields = ", ".join(f"{name}: {value}" for name, value in cell.as_dict().items())
    return (
        f"  - cell: {{{fields}}}\n    acceptance_length: {{min: {reference * (1 - margin):.5f}, "
        f"reference: {reference:.5f}, margin: {margin:.0%}, evidence: {{starts: 6, repeats: 1, "
        f"sd_start: {sd * reference:.6f}, date: 2026-11-20}}}}\n"
    )


def hand_written(cell: Cell, metric: str, bound: str) -> str:
    fields = ", ".join(f"{name}: {value}" for name, value in cell.as_dict().items())
    return f"  - cell: {{{fields}}}\n    {metric}: {{{bound}}}\n"


def files(tmp_path: Path, *gates: str) -> tuple[ThresholdsFile, ...]:
    path = tmp_path / "gates.yaml"
    path.write_text(HEAD + "".join(gates))
    return load(path)


def verdicts(gate: GateTrial) -> dict[str, Verdict]:
    assert len(gate.unmutated) == 1
    return {outcome.mutation: outcome.verdict for outcome in gate.whole}


def errors(trial: Trial) -> list[str]:
    return list(findings.errors(trial, warn=False))


def test_a_calibrated_gate_catches_what_is_larger_than_its_margin(whole: Recorded, tmp_path: Path) -> None:
    gate = calibrated(CODING, measured(whole, CODING))
    trial = trials.run(part(whole, CODING), files(tmp_path, gate))
    (tested,) = trial.gates
    found = verdicts(tested)
    assert found["al-2"] is Verdict.PASS
    assert all(found[name] is Verdict.FAIL for name in ("al-6", "al-10", "few", "dead-2", "dead-last", "collapse"))
    assert all(found[name] is Verdict.INVALID for name in ("lost", "duplicate", "counters", "undrafted"))
    assert all(found[name] is Verdict.PASS for name in ("tps-5", "tps-10", "ttft-20", "halt", "spread"))
    assert errors(trial) == []
    assert tested.inverted is True
    assert tested.missing == {CODING: True}
    # 7 regressions of acceptance, of which the two smallest are within the margin and its guard band or at it.
    caught = sum(found[name] is not Verdict.PASS for name in ("al-2", "al-4", "al-6", "al-10", "few"))
    assert findings.gate_score(tested, warn=False) == findings.Score(caught + 2, 5 - caught, 0)
    score = findings.file_score(trial, tested.key.file)
    assert (score.caught, score.small, score.ungated) == (caught + 2, 5 - caught, 3)


def test_the_reasons_of_broken_runs_are_those_of_the_checks(whole: Recorded, tmp_path: Path) -> None:
    gate = calibrated(CODING, measured(whole, CODING))
    (tested,) = trials.run(part(whole, CODING), files(tmp_path, gate)).gates
    assert {o.mutation: o.reason for o in tested.whole if o.reason} == {
        "lost": "lost_requests",
        "duplicate": "duplicated",
        "counters": "counter_mismatch",
        "undrafted": "no_speculation",
    }


def test_a_survivor_is_explained_by_what_the_gate_can_see(whole: Recorded, tmp_path: Path) -> None:
    gate = calibrated(CODING, measured(whole, CODING))
    (tested,) = trials.run(part(whole, CODING), files(tmp_path, gate)).gates
    survivor = next(outcome for outcome in tested.whole if outcome.mutation == "al-2")
    assert survivor.worse == pytest.approx(0.02, abs=0.004)
    text = findings.explained(survivor)
    assert "margin 4.0 %" in text
    assert survivor.result is not None
    assert survivor.result.mde_not_passed is not None
    assert survivor.worse < survivor.result.mde_not_passed


def test_a_loose_hand_written_limit_says_how_far_off_it_is(whole: Recorded, tmp_path: Path) -> None:
    trial = trials.run(part(whole, CODING), files(tmp_path, hand_written(CODING, "acceptance_length", "min: 1.5")))
    (tested,) = trial.gates
    # 2.841 measured: 1.5 lies 47 % below.
    assert measured(whole, CODING) == pytest.approx(2.8414, abs=1e-4)
    assert "the limit 1.5 is 47 % from the 2.841 measured" in (findings.survival(tested, warn=False) or "")
    assert verdicts(tested)["collapse"] is Verdict.FAIL
    assert findings.gate_score(tested, warn=False).caught == 0
    assert errors(trial) == []


def test_rates_and_latencies_are_caught_by_their_gates(whole: Recorded, tmp_path: Path) -> None:
    tps, ttft = measured(whole, SLOW, "output_tps"), measured(whole, SLOW, "ttft_p50_s")
    # The assumed noise is 2 %: a limit 5 % away passes as recorded, and 10 % beyond it is not passed.
    gates = hand_written(SLOW, "output_tps", f"min: {0.95 * tps:.4f}") + f"    ttft_p50_s: {{max: {1.05 * ttft:.6f}}}\n"
    trial = trials.run(part(whole, SLOW), files(tmp_path, gates))
    by_metric = {tested.key.metric: verdicts(tested) for tested in trial.gates}
    assert by_metric["output_tps"]["tps-10"] is Verdict.FAIL
    assert by_metric["output_tps"]["al-10"] is Verdict.PASS
    assert by_metric["ttft_p50_s"]["ttft-20"] is Verdict.FAIL
    assert by_metric["ttft_p50_s"]["halt"] is Verdict.FAIL
    assert errors(trial) == []


def test_a_gate_of_the_wrong_direction_can_never_fail(whole: Recorded, tmp_path: Path) -> None:
    (file,) = files(tmp_path, hand_written(CODING, "acceptance_length", "min: 2.6"))
    limit = replace(file.gates[0].limits[0], ceiling=True, value=3.5)
    wrong = replace(file, gates=(replace(file.gates[0], limits=(limit,)),))
    trial = trials.run(part(whole, CODING), [wrong])
    assert trial.gates[0].never_fails(CODING)
    (error,) = errors(trial)
    assert error.startswith(f"{limit.source}: acceptance_length of qualitative-coding-c1 can never fail")


def test_a_gate_that_does_not_pass_as_recorded_is_an_error(whole: Recorded, tmp_path: Path) -> None:
    above = trials.run(part(whole, CODING), files(tmp_path, hand_written(CODING, "acceptance_length", "min: 3.2")))
    (error,) = errors(above)
    assert "does not pass as recorded: FAIL (2.841 against the limit 3.2)" in error
    assert above.gates[0].whole == ()
    near = trials.run(part(whole, CODING), files(tmp_path, hand_written(CODING, "acceptance_length", "min: 2.84")))
    assert "INCONCLUSIVE" in errors(near)[0]
    assert list(findings.errors(near, warn=True)) == []


def test_a_regression_beyond_a_waiver_is_still_caught(whole: Recorded, tmp_path: Path) -> None:
    # 2.841 was measured: 3.2 is missed, which is waived down to 2.8 × 0.96 = 2.688, some 5 % below.
    until = (dt.datetime.now(dt.timezone.utc).date() + dt.timedelta(days=30)).isoformat()
    waiver = (
        'waivers:\n  - {cell: {category: coding, concurrency: 1}, metric: acceptance_length, issue: "#12", '
        f"level: 2.8, until: {until}, reason: known}}\n"
    )
    path = tmp_path / "gates.yaml"
    path.write_text(HEAD + hand_written(CODING, "acceptance_length", "min: 3.2") + waiver)
    trial = trials.run(part(whole, CODING), load(path))
    found = verdicts(trial.gates[0])
    assert (found["al-2"], found["al-10"]) == (Verdict.PASS, Verdict.FAIL)
    assert errors(trial) == []
    survivor = next(outcome for outcome in trial.gates[0].whole if outcome.mutation == "al-2")
    assert "waived for #12" in findings.explained(survivor)


def test_overall_sees_one_category_diluted(whole: Recorded, tmp_path: Path) -> None:
    overall = Cell("qualitative", 1, category=OVERALL)
    categories = [cell for cell in whole.windows if cell.split == "qualitative" and cell.concurrency == 1]
    gate = calibrated(overall, measured(whole, overall), margin=0.02, sd=0.001)
    trial = trials.run(part(whole, *categories, overall), files(tmp_path, gate))
    (tested,) = trial.gates
    assert verdicts(tested)["al-4"] is Verdict.FAIL
    one = [outcome for outcome in tested.diluted if outcome.mutation == "al-4"]
    assert {outcome.target for outcome in one} == {str(cell.category) for cell in categories}
    # 4 % of one category in 11 is some 0.4 % of the whole.
    assert all(outcome.worse == pytest.approx(0.004, abs=0.002) for outcome in one)
    assert not any(outcome.caught(warn=False) for outcome in one)
    dead = [outcome for outcome in tested.diluted if outcome.mutation == "dead-2"]
    assert any(outcome.caught(warn=False) for outcome in dead)
    # The categories have no gate of their own, so what overall does not see is seen by none.
    score = findings.file_score(trial, tested.key.file)
    assert score.caught == len({(m.mutation, m.cell) for m in trial.mutants if m.caught})
    assert 0 < score.caught < score.total


def test_a_cell_without_a_gate_counts_as_ungated(whole: Recorded, tmp_path: Path) -> None:
    gate = calibrated(CODING, measured(whole, CODING))
    alone = trials.run(part(whole, CODING), files(tmp_path, gate))
    beside = trials.run(part(whole, CODING, MATH), files(tmp_path, gate))
    file = alone.gates[0].key.file
    one, two = findings.file_score(alone, file), findings.file_score(beside, file)
    assert (two.caught, two.small, two.ungated) == (one.caught, one.small, one.ungated + 10)


def test_a_run_that_is_invalid_itself_is_not_tested(whole: Recorded, tmp_path: Path) -> None:
    gate = hand_written(CODING, "acceptance_length", "min: 1.5")
    own = part(whole, CODING)
    (window,) = own.windows[CODING]
    broken = replace(own, windows={CODING: (replace(window, turns=window.turns[:-1]),)})
    trial = trials.run(broken, files(tmp_path, gate))
    assert trial.gates == ()
    assert trial.untestable[CODING].startswith("incomplete: ")
    assert [limit.metric for limit in trial.untested] == ["acceptance_length"]


def test_what_was_recorded_is_judged_as_it_was_when_it_ran() -> None:
    for folder, name in (("vllm-0.24.0-ngram", "vllm-ngram"), ("sglang-0.5.16-draft", "sglang-draft")):
        (own,) = recorded.read(H100 / "artifacts" / folder)
        rules = own.rules(load(H100 / "thresholds"))
        assert [Path(file.path).stem for file in rules.files] == [name]
        _, results, _ = artifact.read(H100 / "artifacts" / folder / artifact.FILE_NAME)
        for result in results[::7]:
            again = own.judged(result.cell, own.assessed(result.cell, own.windows), rules)
            assert again.verdict is result.verdict
            assert [gate.value for gate in again.gates] == [gate.value for gate in result.gates]
            assert [gate.guard for gate in again.gates] == pytest.approx([gate.guard for gate in result.gates])


# The command


def trimmed(folder: Path, cells: Sequence[Cell]) -> Path:
    """A copy of the recorded run that has these cells only."""
    run, results, flags = artifact.read(DRAFT / artifact.FILE_NAME)
    path = folder / artifact.FILE_NAME
    kept = [result for result in results if result.cell in cells]
    artifact.write(path, run, kept, complete=True, partial=flags.partial)
    log = RequestLog(folder / "speedbench-requests.jsonl.gz")
    for profile, window in read_windows(DRAFT / "speedbench-requests.jsonl.gz"):
        if window.cell in cells:
            log.append(profile, window)
    return path


def command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    selftest_command.add(parser.add_subparsers())
    arguments = parser.parse_args(["selftest", *words])
    return int(arguments.run(arguments))


def test_the_command_prints_the_table_and_writes_json(
    whole: Recorded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = trimmed(tmp_path, [CODING])
    gates = tmp_path / "gates.yaml"
    gates.write_text(HEAD + calibrated(CODING, measured(whole, CODING)))
    out = tmp_path / "selftest.json"
    assert command("--thresholds", str(gates), "--artifact", str(path), "--json", str(out)) == 0
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if line.startswith(":6 AL qualitative-coding-c1"))
    assert row.split()[3:4] == ["pass"]
    assert "INV" in row
    assert "if it hit every cell, NOT noticed: AL −2 %" in text
    data = json.loads(out.read_text())
    (gate,) = data["profiles"][0]["gates"]
    assert gate["source"] == f"{gates}:6"
    assert {o["verdict"] for o in gate["outcomes"] if o["mutation"] == "al-10"} == {"FAIL"}
    assert data["profiles"][0]["errors"] == []


def test_the_command_fails_on_errors_and_on_a_low_score(
    whole: Recorded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = trimmed(tmp_path, [CODING])
    gates = tmp_path / "gates.yaml"
    gates.write_text(HEAD + calibrated(CODING, measured(whole, CODING)))
    words = ("--thresholds", str(gates), "--artifact", str(path))
    assert command(*words, "--min-score", "10%") == 0
    assert command(*words, "--min-score", "99%") == 1
    assert "is below 99" in capsys.readouterr().err
    gates.write_text(HEAD + hand_written(CODING, "acceptance_length", "min: 3.2"))
    assert command(*words) == 1
    assert "error: " in capsys.readouterr().err


def test_a_file_that_does_not_apply_is_a_usage_error_that_says_why(tmp_path: Path) -> None:
    path = trimmed(tmp_path, [CODING])
    gates = tmp_path / "gates.yaml"
    gates.write_text(HEAD.replace("H100*", "A100*") + hand_written(CODING, "acceptance_length", "min: 1.5"))
    with pytest.raises(
        ConfigError, match=r"no gate of .* applies to .*gpu: wanted 'NVIDIA A100\*', found 'NVIDIA H100"
    ):
        command("--thresholds", str(gates), "--artifact", str(path))


def test_an_artifact_of_another_name_has_a_log_of_that_name(tmp_path: Path) -> None:
    path = trimmed(tmp_path, [CODING])
    renamed = path.rename(tmp_path / "start-1.json")
    (tmp_path / "speedbench-requests.jsonl.gz").rename(tmp_path / "start-1-requests.jsonl.gz")
    (found,) = recorded.read(renamed)
    assert found.windows.keys() == {CODING}


def test_an_artifact_without_its_request_log_is_a_usage_error(tmp_path: Path) -> None:
    path = trimmed(tmp_path, [CODING])
    (tmp_path / "speedbench-requests.jsonl.gz").unlink()
    with pytest.raises(ConfigError, match="needs the request log"):
        recorded.read(path)


def test_the_table_marks_what_a_gate_does_not_look_at(whole: Recorded, tmp_path: Path) -> None:
    trial = trials.run(part(whole, CODING), files(tmp_path, calibrated(CODING, measured(whole, CODING))))
    head, row = printing.table(trial, trial.files[0], warn=False)
    assert head.split()[-1] == "score"
    assert row.count("·") == 3

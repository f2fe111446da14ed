"""``speedbench compare`` on the runs of the examples: what it says, what it refuses, and how it exits."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_speedbench import compare_command
from pytest_speedbench.comparison.judging import Policy
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates.verdict import Verdict
from pytest_speedbench.measure.checks import Reason
from pytest_speedbench.measure.metrics import METRICS
from pytest_speedbench.measure.samples import Steps, Turn, Window
from pytest_speedbench.report import artifact
from pytest_speedbench.report.requests import RequestLog, read_windows
from pytest_speedbench.results import CellResult, CellRun

EXAMPLES = Path(__file__).parents[2] / "examples"
RUNS = EXAMPLES / "h100" / "artifacts"
SYNTHETIC = EXAMPLES / "known-truth" / "artifacts" / "vllm-0.24.0-synthetic-2.5"
ANOTHER_DRAFTER = ("--allow", "method", "--allow", "drafter", "--allow", "draft tokens")

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def compare(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command; its exit status and output. ConfigError goes through, as to ``cli.main``."""
    monkeypatch.setenv("COLUMNS", "160")

    def run(*words: str | Path) -> tuple[int, str]:
        parser = argparse.ArgumentParser(prog="speedbench")
        compare_command.add(parser.add_subparsers(required=True))
        arguments = parser.parse_args(["compare", *map(str, words)])
        status = int(arguments.run(arguments))
        return status, capsys.readouterr().out

    return run


def path(run: str) -> Path:
    return RUNS / run / "speedbench.json"


def copy_of(
    source: Path,
    folder: Path,
    *,
    cells: Callable[[CellResult], CellResult | None] = lambda result: result,
    windows: Callable[[Window], Window | None] = lambda window: window,
    log: bool = True,
    complete: bool = True,
    profile: str | None = None,
    into: Path | None = None,
    **changes: Any,
) -> Path:
    """A real run with something changed in its artifact, its request log or both."""
    run, results, flags = artifact.read(source / "speedbench.json")
    (engine,) = run.engines
    label = profile or engine.profile
    engine = replace(engine, profile=label, **{k: v for k, v in changes.items() if hasattr(engine, k)})
    run = replace(run, engines=(engine,), **{k: v for k, v in changes.items() if hasattr(run, k)})
    kept = [replace(new, profile=label) for result in results if (new := cells(result)) is not None]
    target = folder / "speedbench.json"
    if into is not None:
        other, others, _ = artifact.read(into)
        run, kept, target = replace(other, engines=(*other.engines, engine)), [*others, *kept], into
    artifact.write(target, run, kept, complete=complete, partial=flags.partial)
    if log:
        requests = RequestLog(target.with_name("speedbench-requests.jsonl.gz"), resume=into is not None)
        for _, window in read_windows(source / "speedbench-requests.jsonl.gz"):
            changed = windows(window)
            if changed is not None:
                requests.append(label, changed)
    return target


def only(*names: str) -> dict[str, Any]:
    """Only these cells, in the artifact and in the log."""

    def keep(item: Any) -> Any:
        return item if item.cell.id(with_concurrency=True) in names else None

    return {"cells": keep, "windows": keep}


# Verdicts on real runs


@pytest.mark.parametrize("run", ["vllm-0.24.0-ngram", "sglang-0.5.16-draft"])
def test_a_run_is_no_worse_than_itself(compare: Run, run: str) -> None:
    status, text = compare(path(run), path(run), "--format", "json")
    data = json.loads(text)
    invalid = [cell for cell in data["cells"] if cell["verdict"] != "PASS"]
    saturated = {reason["code"] for cell in invalid for reason in cell["reasons"]}
    assert saturated <= {"client_saturated"}
    assert status == (1 if invalid else 0)
    assert len(data["cells"]) == 54
    assert "base and new are the same run: nothing was compared" in data["notes"]


def test_a_worse_drafter_fails(compare: Run) -> None:
    status, text = compare(path("vllm-0.24.0-draft"), path("vllm-0.24.0-ngram"), *ANOTHER_DRAFTER)
    assert status == 1
    row = next(line for line in text.splitlines() if line.startswith("qualitative-overall-c1"))
    assert row.split()[:7] == ["qualitative-overall-c1", "88", "AL", "2.525", "1.652", "−34.6", "%"]
    assert row.endswith("2.0 %  FAIL")
    assert "on the same first tokens: drafting got worse" in text
    # The cause is known: it is another drafter.
    assert "template" not in text
    assert text.index("FAIL") < text.index("PASS")


def test_a_better_drafter_passes_in_acceptance(compare: Run) -> None:
    _, text = compare(
        path("vllm-0.24.0-ngram"),
        path("vllm-0.24.0-draft"),
        *(*ANOTHER_DRAFTER, "--metric", "acceptance_length", "--format", "json"),
    )
    overall = [cell for cell in json.loads(text)["cells"] if cell["cell"]["category"] == "overall"]
    assert [cell["verdict"] for cell in overall] == ["PASS"] * 3
    assert all(cell["paired_by_prompt"] and cell["conversations"] == 88 for cell in overall)


def test_the_paired_values_are_those_of_the_request_logs(compare: Run) -> None:
    _, text = compare(path("vllm-0.24.0-draft"), path("vllm-0.24.0-ngram"), *ANOTHER_DRAFTER, "--format", "json")
    data = json.loads(text)
    cell = next(c for c in data["cells"] if c["cell"]["isl"] == "2k" and c["cell"]["difficulty"] == "mixed")
    gate = next(g for g in cell["gates"] if g["metric"] == "acceptance_length")
    _, results, _ = artifact.read(path("vllm-0.24.0-draft"))
    stored = next(r for r in results if r.cell.name == "2k-mixed" and r.cell.concurrency == cell["cell"]["concurrency"])
    # Conversations of one turn are all in the pairs, so it is the value of the whole cell.
    assert gate["base"] == pytest.approx(stored.metrics["acceptance_length"].value)
    # A throughput cell has hundreds of prompts: the narrower margin.
    assert gate["limit"] == pytest.approx(0.98 * gate["base"])


def test_a_known_acceptance_length_on_dummy_models(compare: Run) -> None:
    status, text = compare(SYNTHETIC / "speedbench.json", SYNTHETIC / "speedbench.json", "--format", "json")
    by_concurrency = {cell["cell"]["concurrency"]: cell for cell in json.loads(text)["cells"]}
    assert {gate["metric"] for gate in by_concurrency[1]["gates"]} == {"acceptance_length", "output_tps"}
    # At 512 streams vLLM joins events: steps are known of the cell, not of each request.
    assert by_concurrency[512]["gates"][0]["metric"] == "decode_acceptance_length"
    assert status == 1


# A known regression put into a real run


def test_a_known_acceptance_length_of_2_against_2_5(compare: Run, tmp_path: Path) -> None:
    # With the setting 2.0 every step emits two tokens, as the run at 2.0 showed; its decode length was 1.9583.
    def two_per_step(turn: Turn) -> Turn:
        if turn.steps is None:
            return turn
        tokens = turn.output_tokens - 1
        lengths = (2,) * (tokens // 2) + (1,) * (tokens % 2)
        return replace(turn, steps=Steps(lengths, None, None, 0))

    new = copy_of(
        SYNTHETIC,
        tmp_path,
        windows=lambda window: replace(window, turns=tuple(map(two_per_step, window.turns)), steps=None),
    )
    status, text = compare(SYNTHETIC / "speedbench.json", new, "--metric", "acceptance_length", "--format", "json")
    cells = {cell["cell"]["concurrency"]: cell for cell in json.loads(text)["cells"]}
    assert status == 1
    assert [cells[concurrency]["verdict"] for concurrency in (1, 64)] == ["FAIL", "FAIL"]
    # 48 tokens in 24 decode steps and the prefill's.
    assert cells[64]["gates"][0]["new"] == pytest.approx(48 / 25)
    assert cells[64]["equal_length"]["prefix"]["new"] == pytest.approx(2.0)
    # Steps are not known of each request there, in neither run.
    assert (cells[512]["verdict"], cells[512]["reasons"][0]["code"]) == ("INVALID", "not_measured")


def one_position_dead(window: Window) -> Window:
    """Every step that emitted three tokens or more emits two: the second draft position is dead."""

    def shortened(turn: Turn) -> Turn:
        assert turn.steps is not None
        lengths = [part for length in turn.steps.lengths for part in split(length)]
        return replace(turn, steps=Steps(tuple(lengths), None, None, turn.steps.cut, turn.steps.ordered))

    def split(length: int) -> Sequence[int]:
        return (2,) * (length // 2) + (1,) * (length % 2)

    return replace(window, turns=tuple(map(shortened, window.turns)), steps=None)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """The draft run with a dead second position in coding at concurrency 8, in its request log."""

    def break_coding(window: Window) -> Window:
        return one_position_dead(window) if window.cell.id(with_concurrency=True) == "qualitative-coding-c8" else window

    return copy_of(RUNS / "vllm-0.24.0-draft", tmp_path, windows=break_coding, version="0.25.0")


def test_a_dead_draft_position_fails_where_it_is_and_nowhere_else(compare: Run, broken: Path) -> None:
    status, text = compare(path("vllm-0.24.0-draft"), broken, "--metric", "acceptance_length", "--format", "json")
    verdicts = {}
    for cell in json.loads(text)["cells"]:
        name = cell["cell"]["category"] or f"{cell['cell']['isl']}-{cell['cell']['difficulty']}"
        verdicts[f"{name}-c{cell['cell']['concurrency']}"] = cell["verdict"]
    assert status == 1
    assert verdicts["coding-c8"] == "FAIL"
    assert {name for name, verdict in verdicts.items() if verdict != "PASS"} <= {"coding-c8", "overall-c8"}


def test_the_versions_are_told_beside(compare: Run, broken: Path) -> None:
    text = compare(path("vllm-0.24.0-draft"), broken)[1]
    assert "differ  engine version: 0.24.0 against 0.25.0" in text


# What cannot be compared


def test_runs_of_another_drafter_are_refused_in_words(compare: Run) -> None:
    with pytest.raises(ConfigError) as error:
        compare(path("vllm-0.24.0-ngram"), path("vllm-0.24.0-draft"))
    assert "not runs of the same workload:" in str(error.value)
    assert "  method: ngram against draft\n  drafter: none against SmolLM2-28-layers" in str(error.value)
    assert "--allow method --allow drafter --allow 'draft tokens'" in str(error.value)


def test_runs_of_other_data_are_refused(compare: Run) -> None:
    with pytest.raises(ConfigError, match="dataset: speed-bench-mini@1 against random-uniform"):
        compare(path("vllm-0.24.0-draft"), SYNTHETIC / "speedbench.json")


def test_other_prompts_of_the_same_data_are_refused(compare: Run, tmp_path: Path) -> None:
    subset = copy_of(
        RUNS / "vllm-0.24.0-ngram",
        tmp_path,
        cells=lambda r: replace(r, prompts_sha256="77bc" * 16) if r.cell.name == "math" else r,
    )
    with pytest.raises(ConfigError, match=r"qualitative-math-c1: prompts f7c90170\w* against 77bc77bc77bc\n"):
        compare(path("vllm-0.24.0-ngram"), subset)


def test_no_common_cell(compare: Run, tmp_path: Path) -> None:
    one = tmp_path / "one"
    other = tmp_path / "other"
    for folder, cell in ((one, "qualitative-math-c1"), (other, "qualitative-stem-c1")):
        copy_of(RUNS / "vllm-0.24.0-ngram", folder, **only(cell))
    with pytest.raises(ConfigError, match="no common cell: qualitative-math-c1 against qualitative-stem-c1"):
        compare(one / "speedbench.json", other / "speedbench.json")


def test_a_half_written_artifact(compare: Run, tmp_path: Path) -> None:
    whole = path("vllm-0.24.0-ngram").read_bytes()
    half = tmp_path / "speedbench.json"
    half.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=f"{half} .*(truncated|not valid JSON)"):
        compare(path("vllm-0.24.0-ngram"), half)


def test_a_run_that_was_interrupted(compare: Run, tmp_path: Path) -> None:
    cut = copy_of(RUNS / "vllm-0.24.0-ngram", tmp_path, complete=False)
    with pytest.raises(ConfigError, match="interrupted, or is not over yet"):
        compare(path("vllm-0.24.0-ngram"), cut)
    status, text = compare(path("vllm-0.24.0-ngram"), cut, "--allow-missing")
    assert status == 0
    assert f"{cut}: the run was interrupted" in text


def test_cells_of_one_run_only(compare: Run, tmp_path: Path) -> None:
    cells = ("qualitative-math-c1", "qualitative-stem-c1")
    part = copy_of(RUNS / "vllm-0.24.0-ngram", tmp_path / "part", **only(cells[0]))
    more = copy_of(RUNS / "vllm-0.24.0-ngram", tmp_path / "more", **only(*cells))
    for pair in ((part, more), (more, part)):
        status, text = compare(*pair)
        assert status == 1
        assert f"missing_cell: not measured in {part}" in text
        assert "INVALID: 2 cells compared, 1 INVALID, 1 PASS" in text.splitlines()
        status, text = compare(*pair, "--allow-missing")
        assert status == 0
        assert f"qualitative-stem-c1: not measured in {part}, not compared" in text


def test_without_a_request_log_whole_cells_are_compared(compare: Run, tmp_path: Path) -> None:
    bare = copy_of(RUNS / "vllm-0.24.0-ngram", tmp_path, log=False)
    status, text = compare(path("vllm-0.24.0-ngram"), bare)
    assert status == 1
    assert f"no {bare.with_name('speedbench-requests.jsonl.gz')}: whole cells were compared" in text
    assert "without the request logs of both runs prompts cannot be paired" in text
    assert compare(path("vllm-0.24.0-ngram"), bare, "--inconclusive", "warn")[0] == 0


def test_a_run_whose_events_were_joined_is_compared_by_whole_cells(compare: Run) -> None:
    folder = EXAMPLES / "h100" / "calibration"
    # In start 7 the server joined events of coding in one repeat and of reasoning in the other, so that either has a
    # repeat with steps per request, and the overall cell has none.
    for pair in ((1, 7), (7, 1)):
        _, text = compare(*(folder / f"start-{number}.json" for number in pair), "--format", "json")
        gates = {cell["cell"]["category"]: cell["gates"][0] for cell in json.loads(text)["cells"]}
        assert gates["coding"]["metric"] == gates["reasoning"]["metric"] == "acceptance_length"
        overall = gates["overall"]
        assert (overall["metric"], overall["verdict"]) == ("decode_acceptance_length", "INCONCLUSIVE")
        assert overall["reason"] == "too_few_starts"


def test_what_lies_between_two_numbers_is_not_compared(compare: Run, tmp_path: Path) -> None:
    def bracketed(result: CellResult) -> CellResult:
        metric = result.metrics.get("decode_acceptance_length")
        if metric is None:
            return result
        known = {name: value for name, value in result.metrics.items() if name != "acceptance_length"}
        known["decode_acceptance_length"] = replace(metric, bracket=(metric.value, 1.1 * metric.value))
        values = {name: each.value for name, each in known.items()}
        return replace(result, metrics=known, runs=tuple(CellRun(start, 0, values) for start in range(2)))

    sides = [
        copy_of(RUNS / "vllm-0.24.0-ngram", tmp_path / side, log=False, cells=bracketed) for side in ("old", "new")
    ]
    _, text = compare(*sides, "--format", "json")
    for cell in json.loads(text)["cells"]:
        assert (cell["gates"][0]["metric"], cell["gates"][0]["reason"]) == ("decode_acceptance_length", "not_measured")


def test_a_damaged_request_log(compare: Run, tmp_path: Path) -> None:
    copied = copy_of(RUNS / "vllm-0.24.0-ngram", tmp_path)
    log = copied.with_name("speedbench-requests.jsonl.gz")
    content = bytearray(log.read_bytes())
    content[200] ^= 0xFF
    log.write_bytes(content)
    with pytest.raises(ConfigError, match="damaged"):
        compare(path("vllm-0.24.0-ngram"), copied)


def test_a_lost_prompt_is_no_pass(compare: Run, tmp_path: Path) -> None:
    def lose_one(window: Window) -> Window:
        return replace(window, turns=window.turns[1:])

    cells = only("qualitative-qa-c1")
    lost = copy_of(RUNS / "vllm-0.24.0-ngram", tmp_path / "lost", **{**cells, "windows": lambda w: lose_one(w)})
    whole = copy_of(RUNS / "vllm-0.24.0-ngram", tmp_path / "whole", **cells)
    status, text = compare(whole, lost)
    assert status == 1
    assert "other_prompts: only one run has" in text


def test_a_client_that_was_too_slow_times_nothing(compare: Run, tmp_path: Path) -> None:
    def slow(window: Window) -> Window:
        return replace(window, client=replace(window.client, lag_p99_s=0.5))

    cells = only("throughput-2k-mixed-c8")
    new = copy_of(RUNS / "vllm-0.24.0-ngram", tmp_path / "new", cells=cells["cells"], windows=lambda w: slow(w))
    base = copy_of(RUNS / "vllm-0.24.0-ngram", tmp_path / "base", **cells)
    status, text = compare(base, new)
    assert status == 1
    assert "client_saturated" in text
    assert compare(base, new, "--metric", "acceptance_length")[0] == 0


def test_an_invalid_cell_is_not_compared(compare: Run) -> None:
    # Six cells of the plain run have a client that lagged.
    _, text = compare(path("vllm-0.24.0-none"), path("vllm-0.24.0-none"), "--format", "json")
    cells = json.loads(text)["cells"]
    assert sum(cell["verdict"] == "INVALID" for cell in cells) == 6
    assert {cell["cell"]["concurrency"] for cell in cells if cell["verdict"] == "INVALID"} == {32}


def test_a_cell_that_lost_requests_is_not_compared(compare: Run, tmp_path: Path) -> None:
    def lose(result: CellResult) -> CellResult | None:
        if result.cell.id(with_concurrency=True) != "qualitative-math-c1":
            return None
        return replace(result, verdict=Verdict.INVALID, reasons=(Reason("lost_requests", "1 of 8 was cut\n<log>"),))

    base = copy_of(RUNS / "vllm-0.24.0-ngram", tmp_path / "base", **only("qualitative-math-c1"))
    new = copy_of(RUNS / "vllm-0.24.0-ngram", tmp_path / "new", cells=lose)
    for pair in ((base, new), (new, base)):
        status, text = compare(*pair)
        assert status == 1
        assert f"lost_requests: {new}: 1 of 8 was cut\n" in text
        assert "PASS" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--metric", "speed"), "unknown metric 'speed'"),
        (("--margin", "speed=3%"), "unknown metric 'speed'"),
        (("--allow", "temprature"), "--allow temprature: the runs have no such setting"),
        (("--profile", "sglang"), "has no profile sglang; it has vllm"),
        (("--margin", "3%", "--margin", "4%"), "given twice"),
    ],
)
def test_what_cannot_be_asked_for(compare: Run, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare(path("vllm-0.24.0-ngram"), path("vllm-0.24.0-ngram"), *words)


@pytest.mark.parametrize("margin", ["0", "1", "-3%", "x", "=3%", "output_tps=", "150%", "nan"])
def test_what_is_no_margin(compare: Run, margin: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as status:
        compare(path("vllm-0.24.0-ngram"), path("vllm-0.24.0-ngram"), f"--margin={margin}")
    assert status.value.code == 2
    assert "give a share between 0 and 1" in capsys.readouterr().err


def test_a_file_that_is_not_there(compare: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        compare(path("vllm-0.24.0-ngram"), tmp_path / "none.json")


# Margins


def test_margins(tmp_path: Path) -> None:
    _, results, _ = artifact.read(path("vllm-0.24.0-ngram"))
    overall = next(r.cell for r in results if r.cell.is_overall)
    coding = next(r.cell for r in results if r.cell.name == "coding")
    length, rate = METRICS["acceptance_length"], METRICS["output_tps"]
    assert [Policy().margin_of(length, cell) for cell in (overall, coding)] == [0.02, 0.04]
    assert Policy(margin=0.03).margin_of(length, overall) == 0.03
    policy = Policy(margin=0.03, margins={"output_tps": 0.1})
    assert [policy.margin_of(spec, coding) for spec in (length, rate)] == [0.03, 0.1]


def test_a_wide_margin_lets_a_worse_drafter_through(compare: Run) -> None:
    words = (*ANOTHER_DRAFTER, "--metric", "acceptance_length", "--margin", "70%")
    status, text = compare(path("vllm-0.24.0-draft"), path("vllm-0.24.0-ngram"), *words)
    assert status == 0
    assert "FAIL" not in text


# Several engine starts


def three_starts(source: Path, folder: Path, factors: Sequence[float]) -> Path:
    """A run of three engine starts, made of one: the output rate of start i is scaled by ``factors[i]``."""

    def started(result: CellResult) -> CellResult | None:
        if result.cell.id(with_concurrency=True) != "throughput-2k-mixed-c8":
            return None
        values = {name: metric.value for name, metric in result.metrics.items()}
        runs = [
            CellRun(start, 0, {**values, "output_tps": values["output_tps"] * factor})
            for start, factor in enumerate(factors)
        ]
        return replace(result, runs=tuple(runs))

    target = copy_of(source, folder, cells=started, log=False)
    log = RequestLog(target.with_name("speedbench-requests.jsonl.gz"))
    for _, window in read_windows(source / "speedbench-requests.jsonl.gz"):
        if window.cell.id(with_concurrency=True) == "throughput-2k-mixed-c8":
            for start in range(len(factors)):
                log.append("vllm", replace(window, start=start))
    return target


@pytest.mark.parametrize(
    ("factors", "verdict"),
    [((1.0, 1.01, 0.99), "PASS"), ((0.91, 0.90, 0.89), "FAIL"), ((1.1, 0.8, 1.0), "INCONCLUSIVE")],
)
def test_output_rates_are_judged_by_the_spread_of_engine_starts(
    compare: Run, tmp_path: Path, factors: Sequence[float], verdict: str
) -> None:
    base = three_starts(RUNS / "vllm-0.24.0-ngram", tmp_path / "base", (1.0, 1.0, 1.0))
    new = three_starts(RUNS / "vllm-0.24.0-ngram", tmp_path / "new", factors)
    status, text = compare(base, new, "--format", "json")
    gates = {gate["metric"]: gate for gate in json.loads(text)["cells"][0]["gates"]}
    assert gates["output_tps"]["verdict"] == verdict
    assert gates["acceptance_length"]["verdict"] == "PASS"
    assert status == (0 if verdict == "PASS" else 1)


# One artifact with both engines


def test_both_engines_in_one_artifact(compare: Run, tmp_path: Path) -> None:
    both = copy_of(RUNS / "vllm-0.24.0-ngram", tmp_path, version="0.25.0")
    copy_of(RUNS / "vllm-0.24.0-ngram", tmp_path, profile="baseline-vllm", into=both)
    status, text = compare(both)
    assert status == 0
    assert "differ  engine version: 0.24.0 against 0.25.0" in text
    assert f"{both} [baseline-vllm]" in text.replace("\n         ", "")
    assert "same run" not in text


def test_one_artifact_with_one_engine(compare: Run) -> None:
    with pytest.raises(ConfigError, match=r"holds one run only .*--speedbench-baseline"):
        compare(path("vllm-0.24.0-ngram"))
    with pytest.raises(ConfigError, match=r"holds one run only .*--speedbench-speedup"):
        compare(path("vllm-0.24.0-ngram"), "--speedup")


# Formats


def test_markdown(compare: Run) -> None:
    status, text = compare(
        path("vllm-0.24.0-draft"), path("vllm-0.24.0-ngram"), *ANOTHER_DRAFTER, "--format", "markdown"
    )
    assert status == 1
    assert text.startswith("## speedbench compare: FAIL, worse by more than the margin\n")
    assert "| qualitative-overall-c1 | 88 | AL | 2.525 | 1.652 | −34.6 % | ±" in text


def test_ascii(compare: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from pytest_speedbench.comparison import report
    from pytest_speedbench.comparison.comparing import compare as judge
    from pytest_speedbench.comparison.sources import read, sides

    base, new = (read(path(f"vllm-0.24.0-{method}")) for method in ("draft", "ngram"))
    found = judge(*sides(base, new, profile=None, base_profile=None), Policy(), allow=ANOTHER_DRAFTER[1::2])
    assert report.text(found, width=100, encoding="ascii").isascii()


def test_the_noise_that_is_assumed_is_said(compare: Run) -> None:
    text = compare(path("vllm-0.24.0-ngram"), path("vllm-0.24.0-ngram"))[1]
    assert text.count("TPS: assumed noise 2 % between starts") == 1


# Speed-up


def test_speed_ups_of_real_runs(compare: Run) -> None:
    status, text = compare("--speedup", path("sglang-0.5.16-none"), path("sglang-0.5.16-draft"), "--format", "json")
    data = json.loads(text)
    assert status == 0
    _, plain, _ = artifact.read(path("sglang-0.5.16-none"))
    _, fast, _ = artifact.read(path("sglang-0.5.16-draft"))
    rates = [
        next(r for r in results if r.cell.name == "1k-mixed" and r.cell.concurrency == 1).metrics["steady_output_tps"]
        for results in (plain, fast)
    ]
    curve = next(c for c in data["crossovers"] if c["name"] == "1k-mixed")
    assert curve["points"][0]["speedup"] == pytest.approx(rates[1].value / rates[0].value)
    assert {c["possible"] for c in data["crossovers"]} == {0}, "it never pays for a model of 135M parameters"
    assert {tuple(c["missing"]) for c in data["crossovers"]} == {(32,)}, "the client lagged"
    overall = [cell for cell in data["cells"] if cell["cell"]["category"] == "overall"]
    assert all(cell["runs"] == [] and cell["speedup_per_prompt"]["value"] < 1 for cell in overall)
    assert data["notes"] == ["the two runs had other GPUs of the same kind: part of the difference may be the cards'"]


def test_the_map_as_text(compare: Run) -> None:
    text = compare("--speedup", path("vllm-0.24.0-none"), path("vllm-0.24.0-ngram"))[1]
    assert "1k-mixed         0.48 ▼  0.47 ▼  invalid  none" in text.splitlines()


def test_the_first_run_of_a_speed_up_is_without_speculation(compare: Run) -> None:
    with pytest.raises(ConfigError, match=r"speculates .method ngram.; the first run must be without"):
        compare("--speedup", path("vllm-0.24.0-ngram"), path("vllm-0.24.0-draft"))
    with pytest.raises(ConfigError, match="does not speculate"):
        compare("--speedup", path("vllm-0.24.0-none"), path("vllm-0.24.0-none"))
    with pytest.raises(ConfigError, match="engine: vllm against sglang"):
        compare("--speedup", path("vllm-0.24.0-none"), path("sglang-0.5.16-draft"))
    with pytest.raises(ConfigError, match="--metric has no meaning"):
        compare("--speedup", path("vllm-0.24.0-none"), path("vllm-0.24.0-draft"), "--metric", "output_tps")


def test_a_speed_up_within_one_artifact(compare: Run, tmp_path: Path) -> None:
    cells = only("throughput-1k-mixed-c1")
    both = copy_of(RUNS / "vllm-0.24.0-ngram", tmp_path, **cells)
    copy_of(RUNS / "vllm-0.24.0-none", tmp_path, profile="plain-vllm", into=both, **cells)
    assert "1k-mixed  0.48 ▼  none" in compare("--speedup", both)[1]
    words = ("--speedup", "--format", "json")
    (within,) = json.loads(compare(both, *words)[1])["cells"]
    apart = json.loads(compare(path("vllm-0.24.0-none"), path("vllm-0.24.0-ngram"), *words)[1])["cells"]
    assert within in apart
    assert within["speedup_per_prompt"]["value"] < 0.6

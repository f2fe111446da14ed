"""Real measurements, from the engine to every report."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pytest_speedbench.measure.summary import summarise
from pytest_speedbench.report import artifact as artifacts
from pytest_speedbench.report.requests import read_windows
from tests.plugin import project as files
from tests.plugin.conftest import Run
from tests.plugin.project import ENGINE

pytestmark = pytest.mark.real_engine


@dataclass(frozen=True)
class Judged:
    """One run with a cell of each verdict, and the files that CI reads."""

    run: Run
    coding_line: int
    cases: dict[str, ElementTree.Element]
    own_cases: dict[str, ElementTree.Element]
    summary: str
    outputs: dict[str, str]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path, lengths: dict[str, float]) -> Judged:
    """coding misses its floor, math is at it, rag and overall are above it."""
    folder = tmp_path_factory.mktemp("judged")
    limits = {"coding": round(lengths["coding"] * 1.05, 4), "math": lengths["math"], "rag": 1.05, "overall": 1.05}
    files.write_project(folder, limits, tokenizer=tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GITHUB_ACTIONS", "true")
        patch.setenv("GITHUB_WORKSPACE", str(folder))
        for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT"):
            patch.setenv(name, str(folder / name))
        result = files.run_pytest(
            folder, ENGINE, "--speedbench-inconclusive=warn", "--junitxml=pytest.xml", "--speedbench-junit=own.xml"
        )
    lines = (folder / "limits.yaml").read_text(encoding="utf-8").splitlines()
    return Judged(
        Run(folder, result),
        coding_line=next(n for n, line in enumerate(lines, start=1) if "coding" in line) + 1,
        cases=files.junit_cases(folder / "pytest.xml"),
        own_cases=files.junit_cases(folder / "own.xml"),
        summary=(folder / "GITHUB_STEP_SUMMARY").read_text(encoding="utf-8"),
        outputs=dict(
            line.split("=", 1) for line in (folder / "GITHUB_OUTPUT").read_text(encoding="utf-8").splitlines() if line
        ),
    )


def properties(case: ElementTree.Element) -> dict[str, str]:
    return {str(entry.get("name")): str(entry.get("value")) for entry in case.iter("property")}


# One of each


def test_a_missed_floor_is_the_only_failure(judged: Judged) -> None:
    assert judged.run.result.ret == pytest.ExitCode.TESTS_FAILED
    assert files.verdicts(judged.run.folder) == {
        "coding": "FAIL",
        "math": "INCONCLUSIVE",
        "rag": "PASS",
        "overall": "PASS",
    }
    judged.run.result.stdout.fnmatch_lines(["=*= 1 failed, 2 passed, 1 inconclusive in *"])
    assert files.flags(judged.run.folder) == (True, False)


def test_the_failure_text_begins_with_a_line_that_says_it_all(judged: Judged, lengths: dict[str, float]) -> None:
    value, limit = lengths["coding"], lengths["coding"] * 1.05
    engine = files.artifact(judged.run.folder)["run"]["engines"][0]
    judged.run.result.stdout.re_match_lines(
        [
            re.escape(f"FAIL acceptance_length {value:.3f} < limit {limit:.3f} (−4.8 % from the limit, ")
            + r"assumed noise .*\) · coding · "
            + re.escape(f"llamacpp {engine['version']} · limits.yaml:{judged.coding_line}")
        ]
    )
    assert re.search(r"\d", engine["version"])
    assert (
        "reproduce: pytest --speedbench-engine=llamacpp --speedbench-split=qualitative --speedbench-category=coding"
        in judged.run.text
    )
    assert "Traceback" not in judged.run.text


def test_the_junit_report_of_pytest_carries_verdicts_and_values(judged: Judged, lengths: dict[str, float]) -> None:
    assert set(judged.cases) == {f"test_cell[llamacpp-qualitative-{name}]" for name in lengths}
    assert {case.get("classname") for case in judged.cases.values()} == {"speedbench"}
    coding, math, rag = (judged.cases[f"test_cell[llamacpp-qualitative-{name}]"] for name in ("coding", "math", "rag"))
    found = properties(coding)
    assert float(found["speedbench_acceptance_length"]) == lengths["coding"]
    assert found["speedbench_verdict"] == "FAIL"
    assert found["speedbench_gate_acceptance_length_source"] == f"limits.yaml:{judged.coding_line}"
    assert found["speedbench_category"] == "coding"
    assert coding.find("failure") is not None
    assert properties(math)["speedbench_verdict"] == "INCONCLUSIVE"
    assert math.find("skipped") is not None
    assert properties(rag)["speedbench_verdict"] == "PASS"
    assert [child.tag for child in rag] == ["properties"]


def test_the_junit_report_of_the_plugin_has_the_same_verdicts(judged: Judged) -> None:
    tags = {
        name.removeprefix("llamacpp-qualitative-"): sorted({child.tag for child in case} - {"system-out"})
        for name, case in judged.own_cases.items()
    }
    assert tags == {"coding": ["failure"], "math": ["skipped"], "rag": [], "overall": []}


def test_github_gets_annotations_summary_and_outputs(judged: Judged) -> None:
    judged.run.result.stdout.fnmatch_lines_random(
        [
            f"::error file=limits.yaml,line={judged.coding_line},title=speedbench FAIL *",
            "::warning file=limits.yaml,line=*,title=speedbench INCONCLUSIVE *",
        ]
    )
    assert {name: judged.outputs[name] for name in ("verdict", "passed", "failed", "inconclusive", "invalid")} == {
        "verdict": "fail",
        "passed": "2",
        "failed": "1",
        "inconclusive": "1",
        "invalid": "0",
    }
    assert "coding" in judged.summary
    assert "FAIL" in judged.summary


# What is stored


def test_the_artifact_is_valid_and_names_what_ran(judged: Judged, measured: Run) -> None:
    for run in (judged.run, measured):
        data = files.artifact(run.folder)
        artifacts.validate(data)
        assert data["planned"] == len(data["cells"]) == 4
        (engine,) = data["run"]["engines"]
        assert (engine["engine"], engine["method"], engine["draft_tokens"]) == ("llamacpp", "draft", 2)


def test_every_metric_can_be_recomputed_from_the_request_log(measured: Run) -> None:
    stored = {cell["cell"]["category"]: cell for cell in files.artifact(measured.folder)["cells"]}
    windows = {
        str(window.cell.category): window
        for _, window in read_windows(measured.folder / "speedbench-requests.jsonl.gz")
    }
    assert set(windows) == set(files.PROMPTS)
    for name, window in windows.items():
        assert len(window.turns) == sum(len(turns) for turns in files.PROMPTS[name])
        metrics, acceptance = summarise(window, seed_parts=(f"llamacpp-qualitative-{name}",))
        assert {key: metric.value for key, metric in metrics.items()} == {
            key: metric["value"] for key, metric in stored[name]["metrics"].items()
        }
        assert sum(acceptance.histogram.values()) == sum(stored[name]["acceptance"]["histogram"].values())


def test_equal_prompts_and_sampling_give_equal_lengths(judged: Judged, lengths: dict[str, float]) -> None:
    for cell in files.artifact(judged.run.folder)["cells"]:
        assert cell["metrics"]["acceptance_length"]["value"] == lengths[cell["cell"]["category"]]


# One cell at its floor


@pytest.mark.parametrize(
    ("inconclusive", "status", "counted", "tag"),
    [
        ("warn", pytest.ExitCode.OK, "=*= 1 inconclusive in *", "skipped"),
        ("fail", pytest.ExitCode.TESTS_FAILED, "=*= 1 failed in *", "failure"),
    ],
)
def test_an_inconclusive_cell_never_counts_as_passed(
    project: pytest.Pytester,
    lengths: dict[str, float],
    inconclusive: str,
    status: pytest.ExitCode,
    counted: str,
    tag: str,
) -> None:
    files.write_limits(project.path / "limits.yaml", {"math": lengths["math"]})
    result = project.runpytest_subprocess(
        ENGINE, f"--speedbench-inconclusive={inconclusive}", "--junitxml=junit.xml", "--runxfail"
    )
    assert result.ret == status
    result.stdout.fnmatch_lines([counted])
    assert files.verdicts(project.path) == {"math": "INCONCLUSIVE"}
    (case,) = files.junit_cases(project.path / "junit.xml").values()
    assert [child.tag for child in case] == ["properties", tag]
    assert "too close to call" in files.text(result) or inconclusive == "warn"


def test_a_log_of_the_engine_is_kept(judged: Judged) -> None:
    (log,) = Path(judged.run.folder / "tmp").rglob("engine.log")
    assert "listening on" in log.read_text(encoding="utf-8")

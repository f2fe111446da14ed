"""What is measured is what the user asked for: placeholders and templates, and the artifact tells."""

from __future__ import annotations

import pytest

from pytest_speedbench.data.schema import SENTINEL
from pytest_speedbench.report import artifact as artifacts
from pytest_speedbench.report.requests import read_windows
from tests.plugin import project as files
from tests.plugin.project import ENGINE

pytestmark = pytest.mark.real_engine
MASKED = {**files.PROMPTS, "math": [["What is 12 times 7?"], [f"{SENTINEL}\n\n{{question}}"]], "rag": [[SENTINEL]]}


def test_placeholders_are_refused_before_anything_starts(project: pytest.Pytester) -> None:
    files.write_prompts(project.path / "prompts", MASKED)
    result = project.runpytest_subprocess(ENGINE)
    files.refused(result, "placeholders", "qualitative: 2 of 5 (math-1, rag-0)", "--speedbench-allow-partial")


def test_the_rest_is_measured_and_marked_everywhere(project: pytest.Pytester) -> None:
    files.write_prompts(project.path / "prompts", MASKED)
    # Limits for the full set do not hold for a part of it.
    files.refused(
        project.runpytest_subprocess(ENGINE, "--speedbench-allow-partial"),
        "dataset: wanted 'a full one (none is named)', found 'prompts+partial'",
    )
    files.write_limits(project.path / "limits.yaml", files.LOOSE, dataset="prompts+partial")

    result = project.runpytest_subprocess(ENGINE, "--speedbench-allow-partial", "--junitxml=junit.xml")

    text = files.text(result)
    assert result.ret == pytest.ExitCode.OK, text
    assert "prompts+partial" in text
    assert text.count("PASS (partial)") == 2  # math and overall; coding is whole, and rag is not there
    assert "partial data in 2 of 3 cells" in text
    data = files.artifact(project.path)
    artifacts.validate(data)
    assert data["run"]["dataset"]["id"] == "prompts+partial"
    assert {cell["cell"]["category"]: cell["masked"] for cell in data["cells"]} == {
        "coding": 0,
        "math": 1,
        "overall": 2,
    }
    counted = {
        c["cell"]: (c["prompts"], c["masked"], c["multiturn"], c["turns"]) for c in data["run"]["dataset"]["cells"]
    }
    assert counted == {
        "qualitative-coding": (2, 0, 0, 2),
        "qualitative-math": (1, 1, 0, 1),
        "qualitative-rag": (0, 1, 0, 0),
    }
    assert 'name="speedbench_masked" value="1"' in (project.path / "junit.xml").read_text(encoding="utf-8")


def lengths(project: pytest.Pytester, *args: str) -> dict[str, float]:
    result = project.runpytest_subprocess(ENGINE, "--speedbench-measure-only", *args)
    assert result.ret == pytest.ExitCode.OK, files.text(result)
    return {cell["cell"]["category"]: cell["isl"]["mean"] for cell in files.artifact(project.path)["cells"]}


def test_completions_send_the_bare_text(project: pytest.Pytester) -> None:
    chat, bare = lengths(project), lengths(project, "--speedbench-completions")
    # Each prompt is shorter by the same template.
    assert len({round(chat[name] - bare[name], 6) for name in chat}) == 1
    assert chat["coding"] - bare["coding"] > 5


def test_an_argument_that_the_template_does_not_know(project: pytest.Pytester) -> None:
    files.write_profile(project.path, chat_template_args={"enable_thinking": False})
    files.refused(project.runpytest_subprocess(ENGINE), "enable_thinking")


def test_upstreams_order_takes_the_first_rows(project: pytest.Pytester) -> None:
    prompts = {"coding": [[f"Say {number}."] for number in range(6)]}
    files.write_prompts(project.path / "prompts", prompts)
    files.write_profile(project.path, prompts=2, prompt_order="round-robin")
    project.runpytest_subprocess(ENGINE, "--speedbench-measure-only", "--speedbench-category=coding")
    ((_, window),) = read_windows(project.path / "speedbench-requests.jsonl.gz")
    assert {turn.question_id for turn in window.turns} == {"coding-0", "coding-1"}

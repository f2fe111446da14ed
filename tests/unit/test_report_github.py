"""GitHub Actions: markdown, annotations and outputs, and that hostile text stays text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pytest_speedbench.cells import Cell
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.measure.checks import Reason
from pytest_speedbench.report import github
from pytest_speedbench.report.wording import escape
from tests.unit.test_report_samples import EVERY, FAILED, INCONCLUSIVE, INVALID, PASSED, RUN, UNGATED

EVIL = "100%\r\n::set-output name=x::y | <img src=x> `code` @team [a](b) *b*"


def test_annotations_point_at_the_line_of_the_limit_worst_first() -> None:
    assert github.annotations(EVERY, run=RUN) == [
        "::error title=speedbench INVALID vllm-qualitative-multilingual"
        "::INVALID lost_requests: 3 turns failed: 3 × http_500 · multilingual · vllm 0.24.0",
        "::error file=thresholds/h100-eagle3.yaml,line=14,title=speedbench FAIL vllm-qualitative-overall"
        "::FAIL acceptance_length 2.314 < limit 2.382 (−4.8 %25 from 2.431, margin 2 %25, noise ±0.5 %25)"
        " · overall · vllm 0.24.0 · thresholds/h100-eagle3.yaml:14",
        "::warning file=thresholds/h100-eagle3.yaml,line=21,title=speedbench INCONCLUSIVE vllm-throughput-8k-mixed-c128"
        "::INCONCLUSIVE output_tps 5110 tokens/s ≥ limit 5100 tokens/s, too close to call (+0.2 %25 from the limit,"
        " assumed noise 0.5 %25) · 8k-mixed-c128 · vllm 0.24.0 · thresholds/h100-eagle3.yaml:21",
    ]
    assert github.annotations([PASSED, UNGATED]) == []


def test_annotations_escape_what_would_end_them() -> None:
    source = replace(FAILED.gates[0], source="a,b:c%/x.yaml:3")
    (line,) = github.annotations([replace(FAILED, gates=(source,), item_id="t[a:b,c%\n]")])
    assert line.startswith("::error file=a%2Cb%3Ac%25/x.yaml,line=3,title=speedbench FAIL a%3Ab%2Cc%25%0A::")
    (line,) = github.annotations([replace(INVALID, reasons=(Reason("x", EVIL),))])
    assert "\n" not in line
    assert "\r" not in line
    assert "100%25" in line


def test_annotations_are_relative_to_the_checkout() -> None:
    source = replace(FAILED.gates[0], source="/home/ci/repo/t/x.yaml:3")
    (line,) = github.annotations([replace(FAILED, gates=(source,))], root="/home/ci/repo")
    assert "file=t/x.yaml,line=3" in line
    (line,) = github.annotations([replace(FAILED, gates=(source,))], root="/elsewhere")
    assert "file=/home/ci/repo/t/x.yaml,line=3" in line


def test_a_source_without_a_line_has_none() -> None:
    (line,) = github.annotations([replace(FAILED, gates=(replace(FAILED.gates[0], source="command line"),))])
    assert line.startswith("::error file=command line,title=")


def test_many_annotations_are_summed_up() -> None:
    lines = github.annotations([FAILED] * 25 + [INCONCLUSIVE] * 3)
    errors = [line for line in lines if line.startswith("::error")]
    assert len(errors) == github.MOST_ANNOTATIONS
    assert errors[-1] == "::error title=speedbench::and 16 more cells, see the step summary"
    assert len(lines) == len(errors) + 3


@pytest.mark.parametrize(
    ("results", "verdict"),
    [
        ([PASSED, UNGATED], "pass"),
        ([PASSED, INCONCLUSIVE], "inconclusive"),
        ([PASSED, INCONCLUSIVE, INVALID], "invalid"),
        ([INVALID, FAILED, PASSED], "fail"),
        ([], "invalid"),
        ([UNGATED], "ungated"),
    ],
)
def test_the_output_tells_a_regression_from_a_broken_rig(results: list[object], verdict: str) -> None:
    assert github.outputs(results)["verdict"] == verdict  # type: ignore[arg-type]


def test_outputs_count_and_name_the_worst_cell() -> None:
    assert github.outputs(EVERY) == {
        "verdict": "fail",
        "passed": "1",
        "failed": "1",
        "inconclusive": "1",
        "invalid": "1",
        "waived": "0",
        "ungated": "1",
        "worst_cell": "vllm-qualitative-multilingual",
    }


def test_an_output_cannot_start_another_one() -> None:
    text = github.output_lines({"verdict": "pass", "worst_cell": "a\nverdict=fail"})
    first, opened, *middle, closed = text.splitlines()
    assert first == "verdict=pass"
    name, mark = opened.split("<<")
    assert (name, closed) == ("worst_cell", mark)
    assert middle == ["a", "verdict=fail"]


def test_the_summary_has_a_table_and_says_what_did_not_pass() -> None:
    text = github.summary_markdown(RUN, EVERY)
    lines = text.splitlines()
    assert lines[:3] == [
        "## speedbench: FAIL, a floor was missed",
        "",
        "✅ 1 PASS · ❌ 1 FAIL · ⚠️ 1 INCONCLUSIVE · 🚫 1 INVALID · ▫️ 1 UNGATED",
    ]
    rows = [line for line in lines if line.startswith("| ")]
    assert rows[0] == "|  | cell | n | AL | 95 % interval | TPS | limit | headroom | verdict |"
    assert rows[2:5] == [
        "| 🚫 | qualitative-multilingual | 77 | – | – | – | – | – | **INVALID** |",
        "| ❌ | qualitative-overall | 880 | 2.314 | 2.290–2.338 | – | AL ≥ 2.382 | −2.9 % | **FAIL** |",
        "| ⚠️ | throughput-8k-mixed-c128 | 80 | 2.400 | 2.340–2.461 | 4000 | TPS ≥ 5100 | +0.2 % | **INCONCLUSIVE** |",
    ]
    assert rows[-1] == "| ▫️ | qualitative-math | 80 | 2.400 | 2.340–2.461 | 4000 | ungated | – | ungated |"
    assert "- FAIL acceptance\\_length 2.314 &lt; limit 2.382" in text


def test_hostile_text_is_neither_markup_nor_a_second_row() -> None:
    result = replace(INVALID, item_id=f"vllm-{EVIL}", reasons=(Reason("code", EVIL),))
    text = github.summary_markdown(replace(RUN, dataset=EVIL), [result])
    for forbidden in ("<img", "@team", "`code`", "[a](b)", "\r"):
        assert forbidden not in text.replace("\\`", "").replace("\\[", "")
    assert not [line for line in text.splitlines() if line.startswith("::")]
    (row,) = [line for line in text.splitlines() if line.startswith("| 🚫")]
    assert row.replace("\\|", "").count("|") == 10


def test_escape_shows_text_as_it_is() -> None:
    assert escape("a_b|c\\d <x> @me\x1b") == r"a\_b\|c\\d &lt;x\> &#64;me\\x1b"


def test_a_summary_that_would_be_dropped_is_shortened_and_says_so() -> None:
    cells = [
        replace(PASSED, cell=Cell("qualitative", 32, category="coding"), item_id=f"vllm-{i}") for i in range(30_000)
    ]
    text = github.summary_markdown(RUN, [*cells, FAILED], most_bytes=github.MOST_SUMMARY_BYTES)
    assert len(text.encode()) <= github.MOST_SUMMARY_BYTES
    assert "more cells are in the artifact" in text
    assert "**FAIL**" in text
    assert "✅ 30000 PASS" in text


def test_publish_does_nothing_outside_of_actions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = tmp_path / "summary"
    github.publish(RUN, EVERY, {"GITHUB_STEP_SUMMARY": str(summary)})
    assert not summary.exists()
    assert capsys.readouterr().out == ""


def test_publish_appends_and_starts_commands_on_a_line_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary, output = tmp_path / "summary", tmp_path / "output"
    output.write_text("earlier=1\n", encoding="utf-8")
    print("tests/test_a.py ....F", end="")
    environ = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary), "GITHUB_OUTPUT": str(output)}
    github.publish(RUN, EVERY, environ)
    assert output.read_text(encoding="utf-8").splitlines()[:2] == ["earlier=1", "verdict=fail"]
    assert summary.read_text(encoding="utf-8").startswith("## speedbench: FAIL")
    shown = capsys.readouterr().out.splitlines()
    assert [line[:7] for line in shown] == ["tests/t", "::error", "::error", "::warni"]


def test_a_file_of_the_runner_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write"):
        github.publish(RUN, EVERY, {"GITHUB_ACTIONS": "true", "GITHUB_OUTPUT": str(tmp_path / "no" / "file")})

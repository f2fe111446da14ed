"""Item properties for pytest's own JUnit file, and the file of our own."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_speedbench.errors import ConfigError
from pytest_speedbench.measure.checks import Reason
from pytest_speedbench.measure.metrics import Metric
from pytest_speedbench.report import junit
from pytest_speedbench.results import CellResult
from tests.unit.test_report_samples import EVERY, FAILED, INCONCLUSIVE, INVALID, PASSED, RUN, UNGATED

# Everything that XML 1.0 forbids or that the junit-xml package would drop or choke on.
EVIL = "a\x00b\x1b[31mc\x7fd\x85e\ud800f\ufffeg\uffffh\ufdd0i\rj]]>k<l&m\"n'o\U0001f600p"


def written(tmp_path: Path, results: Sequence[CellResult], inconclusive: str = "fail") -> ET.Element:
    path = tmp_path / "junit.xml"
    junit.write(path, RUN, results, inconclusive=inconclusive)
    return ET.parse(path).getroot()


def outcome(case: ET.Element) -> str:
    return next((child.tag for child in case if child.tag in {"failure", "error", "skipped"}), "passed")


def test_each_verdict_has_its_outcome(tmp_path: Path) -> None:
    root = written(tmp_path, EVERY)
    cases = {case.get("name"): case for case in root.iter("testcase")}
    assert {name: outcome(case) for name, case in cases.items()} == {
        "vllm-qualitative-coding": "passed",
        "vllm-qualitative-overall": "failure",
        "vllm-qualitative-multilingual": "error",
        "vllm-throughput-8k-mixed-c128": "failure",
        "vllm-qualitative-math": "skipped",
    }
    assert {case.get("classname") for case in cases.values()} == {"speedbench"}
    suite = root.find("testsuite")
    assert suite is not None
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "5", "failures": "2", "errors": "1", "skipped": "1"}


def test_inconclusive_is_skipped_where_the_policy_is_to_warn(tmp_path: Path) -> None:
    root = written(tmp_path, [INCONCLUSIVE], inconclusive="warn")
    (case,) = root.iter("testcase")
    assert outcome(case) == "skipped"
    (case,) = written(tmp_path, [INCONCLUSIVE], inconclusive="rerun").iter("testcase")
    assert outcome(case) == "failure"


def test_a_failure_says_what_moved_and_how_to_reproduce_it(tmp_path: Path) -> None:
    failure = written(tmp_path, [FAILED]).find("testsuite/testcase/failure")
    assert failure is not None
    assert failure.get("type") == "FAIL"
    assert str(failure.get("message")) == (
        "FAIL acceptance_length 2.314 < limit 2.382 (−4.8 % from 2.431, margin 2 %, noise ±0.5 %)"
        " · overall · vllm 0.24.0 · thresholds/h100-eagle3.yaml:14"
    )
    assert "reproduce: pytest --speedbench-engine=vllm" in str(failure.text)


def test_an_error_carries_the_reason_code(tmp_path: Path) -> None:
    error = written(tmp_path, [INVALID]).find("testsuite/testcase/error")
    assert error is not None
    assert error.get("type") == "lost_requests"
    assert str(error.get("message")).startswith("INVALID lost_requests: 3 turns failed")
    assert "incomplete: 1 turn is missing" in str(error.text)


def test_values_are_in_system_out_and_the_run_in_suite_properties(tmp_path: Path) -> None:
    root = written(tmp_path, [PASSED])
    out = root.find("testsuite/testcase/system-out")
    assert out is not None
    assert "speedbench_acceptance_length = 2.4" in str(out.text).splitlines()
    values = {node.get("name"): node.get("value") for node in root.iter("property")}
    assert values["speedbench_engine_vllm"] == "vllm 0.24.0"
    assert values["speedbench_outcome"] == "pass"
    assert values["speedbench_fingerprint"] == RUN.fingerprint


def test_forbidden_characters_are_shown_and_never_break_the_file(tmp_path: Path) -> None:
    result = replace(INVALID, item_id=f"x[{EVIL}]", reasons=(Reason(f"code{EVIL}", f"server said {EVIL}\nline 2"),))
    run = replace(RUN, dataset=EVIL, engines=(replace(RUN.engines[0], profile=EVIL),))
    path = tmp_path / "junit.xml"
    junit.write(path, run, [result])
    root = ET.parse(path).getroot()
    (case,) = root.iter("testcase")
    error = case.find("error")
    assert error is not None
    shown = r"a\x00b\x1b[31mc\x7fd\x85e\ud800f\ufffeg\uffffh\ufdd0i\rj]]>k<l&m" + "\"n'o\U0001f600p"
    assert case.get("name") == shown
    assert r"\x1b[31mc" in str(error.get("message"))
    assert "\n" not in str(error.get("message"))
    assert {n.get("name"): n.get("value") for n in root.iter("property")}["speedbench_dataset"] == shown


def test_a_file_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot write"):
        junit.write(tmp_path / "file" / "junit.xml", RUN, EVERY)


def test_properties_have_stable_keys() -> None:
    assert junit.properties(PASSED) == [
        ("speedbench_profile", "vllm"),
        ("speedbench_split", "qualitative"),
        ("speedbench_category", "coding"),
        ("speedbench_concurrency", 32),
        ("speedbench_verdict", "PASS"),
        ("speedbench_conversations", 80),
        ("speedbench_conversations_planned", 80),
        ("speedbench_turns", 112),
        ("speedbench_steps_source", "per_step"),
        ("speedbench_prompts_sha256", "ab" * 32),
        ("speedbench_duration_s", 41.5),
        ("speedbench_gate_acceptance_length_verdict", "PASS"),
        ("speedbench_gate_acceptance_length_value", 2.4),
        ("speedbench_gate_acceptance_length_limit", 2.33),
        ("speedbench_gate_acceptance_length_headroom", (2.4 - 2.33) / 2.33),
        ("speedbench_gate_acceptance_length_source", "thresholds/h100-eagle3.yaml:14"),
        ("speedbench_acceptance_length", 2.4),
        ("speedbench_acceptance_length_low", 2.34),
        ("speedbench_acceptance_length_high", 2.461),
        ("speedbench_output_tps", 4000.4),
        ("speedbench_user_tps", 130.25),
        ("speedbench_ttft_p95_s", 0.0453),
    ]


def test_properties_tell_why_a_cell_is_invalid_or_ungated() -> None:
    invalid, ungated = dict(junit.properties(INVALID)), dict(junit.properties(UNGATED))
    assert invalid["speedbench_verdict"] == "INVALID"
    assert invalid["speedbench_reason_codes"] == "lost_requests,incomplete"
    assert ungated["speedbench_verdict"] == "UNGATED"


def test_properties_survive_the_way_from_a_worker() -> None:
    result = replace(PASSED, metrics={"output_tps": Metric(math.nan), "osl_mean": Metric(math.inf)})
    for each in (*EVERY, result):
        found = junit.properties(each)
        assert json.loads(json.dumps(found, allow_nan=False)) == [list(pair) for pair in found]
        assert all(type(value) in (str, int, float) for _, value in found)

"""The message of an item that did not pass."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_speedbench.cells import Cell
from pytest_speedbench.gates.verdict import Verdict
from pytest_speedbench.measure.acceptance import Acceptance
from pytest_speedbench.measure.checks import Reason
from pytest_speedbench.report.failure import failure_text, headline, reproduce
from tests.unit.test_report_samples import CODING, FAILED, INCONCLUSIVE, INVALID, RUN, UNGATED, gate

ENGINE = RUN.engines[0]


def test_a_missed_floor() -> None:
    assert failure_text(FAILED, ENGINE, options=("--speedbench-seed=7",)).splitlines() == [
        "FAIL acceptance_length 2.314 < limit 2.382 (−4.8 % from 2.431, margin 2 %, noise ±0.5 %)"
        " · overall · vllm 0.24.0 · thresholds/h100-eagle3.yaml:14",
        "  reference from 6 starts × 2 repeats on 2026-12-01 · n = 880 conversations"
        " · not passed at a drop of 1.9 %, failed at 2.2 %",
        "  conditional acceptance 0.51 0.58 0.59 (was 0.53 0.62 0.70): drop starts at draft position 2 (0.62 → 0.58)"
        " → drafter state or KV cache, not the template",
        "  reproduce: pytest --speedbench-engine=vllm --speedbench-split=qualitative --speedbench-concurrency=32"
        " --speedbench-seed=7",
    ]


def test_a_second_gate_that_was_missed_is_named_too() -> None:
    second = gate("ttft_p95_s", Verdict.INCONCLUSIVE, 0.201, 0.2, ceiling=True, line=31)
    lines = failure_text(replace(FAILED, gates=(second, *FAILED.gates)), ENGINE).splitlines()
    assert lines[0].startswith("FAIL acceptance_length")
    assert lines[-2].startswith("  also INCONCLUSIVE ttft_p95_s 201.0 ms > limit 200.0 ms")
    assert lines[-1].startswith("  reproduce: ")


def test_an_invalid_cell_says_why_before_anything_else() -> None:
    assert failure_text(INVALID, ENGINE).splitlines() == [
        "INVALID lost_requests: 3 turns failed: 3 × http_500 · multilingual · vllm 0.24.0",
        "  also incomplete: 1 turn is missing",
        "  reproduce: pytest --speedbench-engine=vllm --speedbench-split=qualitative"
        " --speedbench-category=multilingual --speedbench-concurrency=32",
    ]


def test_an_invalid_run_outranks_its_failed_gate() -> None:
    result = replace(FAILED, verdict=Verdict.INVALID, reasons=(Reason("gpu_throttled", "clocks fell\x1b[31m\nto 900"),))
    first, rest, second, _ = failure_text(result, ENGINE).splitlines()
    assert first == r"INVALID gpu_throttled: clocks fell\x1b[31m · overall · vllm 0.24.0"
    assert rest == "  to 900"
    assert second.startswith("  also acceptance_length 2.314 < limit 2.382")


def test_without_an_engine_record_the_profile_stands_in() -> None:
    assert headline(UNGATED) == "UNGATED measured only, no gate · math · vllm"


def test_the_reproduce_line_quotes_what_a_shell_would_take_apart() -> None:
    assert reproduce(INCONCLUSIVE, ENGINE, ["--speedbench-dataset=my data"]) == (
        "pytest --speedbench-engine=vllm --speedbench-split=throughput --speedbench-isl=8k"
        " --speedbench-difficulty=mixed --speedbench-concurrency=128 '--speedbench-dataset=my data'"
    )
    assert "--speedbench-category=coding" in reproduce(replace(FAILED, cell=CODING), ENGINE)


def test_a_draft_position_that_is_never_accepted_any_more_is_named() -> None:
    collapsed = {1: 50, 2: 30, 3: 20}
    acceptance = Acceptance(collapsed, {}, {}, decode_histogram=collapsed)
    gates = (replace(FAILED.gates[0], conditional_reference=(0.5, 0.4, 0.44)),)
    text = failure_text(replace(FAILED, acceptance=acceptance, gates=gates), ENGINE)
    assert "conditional acceptance 0.50 0.40 0.00 (was 0.50 0.40 0.44): drop starts at draft position 3 (" in text


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (Cell("qualitative", 8, category="lossless"), "--speedbench-split=qualitative --speedbench-concurrency=8"),
        (
            Cell("throughput", 512, category="crossover", isl="8k", difficulty="mixed"),
            "--speedbench-split=throughput --speedbench-isl=8k --speedbench-difficulty=mixed",
        ),
        (
            Cell("throughput", 8, isl="8k", difficulty="random"),
            "--speedbench-split=throughput --speedbench-isl=8k --speedbench-concurrency=8",
        ),
    ],
)
def test_the_reproduce_line_has_only_what_the_options_take(cell: Cell, words: str) -> None:
    assert reproduce(replace(FAILED, cell=cell), ENGINE) == f"pytest --speedbench-engine=vllm {words}"

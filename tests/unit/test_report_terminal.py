"""What the terminal shows, to the letter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from pytest_speedbench.cells import Cell
from pytest_speedbench.gates.verdict import Verdict
from pytest_speedbench.measure.checks import Reason
from pytest_speedbench.measure.metrics import Metric
from pytest_speedbench.report.run_info import EngineRecord, OptionRecord
from pytest_speedbench.report.terminal import header_lines, plain, summary_lines
from pytest_speedbench.results import CellResult
from tests.unit.test_report_samples import EVERY, FAILED, INCONCLUSIVE, INVALID, PASSED, RUN, UNGATED, gate

PLAIN_ENGINE = EngineRecord("vllm-plain", "vllm", "0.24.0", "meta-llama/Llama-3.1-8B-Instruct")
SLOW = replace(
    PASSED,
    profile="vllm-plain",
    cell=Cell("throughput", 512, isl="32k", difficulty="high_entropy"),
    verdict=Verdict.FAIL,
    acceptance=None,
    gates=(
        gate("output_tps", Verdict.PASS, 5400.0, 5100.0, line=30),
        gate("ttft_p95_s", Verdict.FAIL, 0.231, 0.2, reference=0.19, ceiling=True, line=31),
    ),
    conversations=2048,
    conversations_planned=2048,
)


def shown(results: Sequence[CellResult], width: int = 80, encoding: str = "utf-8", **flags: bool) -> str:
    run = replace(RUN, engines=(*RUN.engines, PLAIN_ENGINE))
    return plain(summary_lines(results, width=width, run=run, encoding=encoding, **flags))


def test_the_header_has_one_fact_per_line_and_each_option_its_origin() -> None:
    assert header_lines(RUN) == [
        "speedbench 0.1.0",
        "  engine      vllm 0.24.0 on 1 × NVIDIA H100 80GB HBM3",
        "  model       meta-llama/Llama-3.1-8B-Instruct",
        "  speculation eagle3 with org/drafter, k = 3",
        "  dataset     nvidia/SPEED-Bench (sha256 0123456789ab)",
        "  thresholds  thresholds/h100-eagle3.yaml",
        "  option      concurrency = 32 (command line)",
        "              seed = 7 (SPEEDBENCH_SEED)",
    ]


def test_the_header_before_any_engine_has_started() -> None:
    engines = (replace(PLAIN_ENGINE, version=""), replace(RUN.engines[0], profile="b", gpus=()))
    run = replace(RUN, engines=engines, thresholds=(), options=(OptionRecord("x", "a\n\x1b[31m", "ini"),))
    lines = header_lines(run, encoding="latin-1")
    assert lines[1] == "  engine      vllm (version unknown until it starts) [vllm-plain]"
    assert lines[3] == "  speculation no speculation"
    assert lines[-2:] == ["  thresholds  none", r"  option      x = a \x1b[31m (ini)"]


def test_the_summary_at_80_columns() -> None:
    assert shown([PASSED, FAILED, INVALID, UNGATED, SLOW], partial=True) == (
        """\
vllm 0.24.0 · meta-llama/Llama-3.1-8B-Instruct · eagle3 with org/drafter, k = 3
  · 1 × NVIDIA H100 80GB HBM3
cell              n     AL  95 % interval   TPS  limit       headroom  verdict
multilingual  77/80      –              –     –  –                  –  INVALID
    lost_requests: 3 turns failed: 3 × http_500
    incomplete: 1 turn is missing
overall         880  2.314    2.290–2.338     –  AL ≥ 2.382    −2.9 %  FAIL
    acceptance_length 2.314 < limit 2.382 (−4.8 % from 2.431, margin 2 %, noise
      ±0.5 %) · thresholds/h100-eagle3.yaml:14
coding           80  2.400    2.340–2.461  4000  AL ≥ 2.330    +3.0 %  PASS
math             80  2.400    2.340–2.461  4000  –                  –  ungated
ungated: TPS, user TPS, TTFT p95

tokens per decode step · overall · 41203 steps
  tokens    share                                  draft  accepted    was
       1   48.5 %  ██████████████████████████████
       2   21.8 %  █████████████▌                      1     0.515  0.530
       3   12.1 %  ███████▌                            2     0.576  0.620
       4   17.5 %  ██████████▊                         3     0.590  0.700

vllm-plain: vllm 0.24.0 · meta-llama/Llama-3.1-8B-Instruct · no speculation
cell                      n     AL   TPS  limit              headroom  verdict
32k-high_entropy-c512  2048  2.400  4000  TTFT p95 ≤ 200 ms   −15.5 %  FAIL
    ttft_p95_s 231.0 ms > limit 200.0 ms (+21.6 % from 190.0 ms, margin 2 %,
      noise ±0.5 %) · thresholds/h100-eagle3.yaml:31
ungated: AL, user TPS

1 passed, 2 failed, 1 invalid, 1 ungated
least headroom −15.5 %: vllm-plain 32k-high_entropy-c512, TTFT p95
partial: a selection ran, the cells left out have no verdict
limits: thresholds/h100-eagle3.yaml · 4 gates: 3 from 6 starts × 2 repeats on
  2026-12-01, 1 hand-written (assumed noise)"""
    )


def test_wider_terminals_show_more() -> None:
    def header(width: int) -> str:
        return next(line for line in shown([PASSED, FAILED], width).splitlines() if line.startswith("cell"))

    assert header(60) == "cell       n     AL   TPS  limit       headroom  verdict"
    assert header(80) == "cell       n     AL  95 % interval   TPS  limit       headroom  detects  verdict"
    assert header(90) == "cell       n     AL  95 % interval   TPS  TTFT p95  limit       headroom  detects  verdict"
    assert header(100) == (
        "cell       n     AL  95 % interval   TPS  user TPS  TTFT p95  limit       headroom  detects  verdict"
    )


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_no_line_is_wider_than_the_terminal(width: int, encoding: str) -> None:
    text = shown([*EVERY, SLOW], width, encoding)
    too_wide = [line for line in text.splitlines() if len(line) > width and "least headroom" not in line]
    # A column never loses its verdict, and the histogram has a fixed smallest width.
    assert too_wide == [] or width < 60


def test_columns_line_up() -> None:
    lines = shown([*EVERY, SLOW], 100).splitlines()
    start = lines.index(next(line for line in lines if line.startswith("cell")))
    verdict = lines[start].index("verdict")
    words = [line[verdict:] for line in lines[start + 1 :] if len(line) > verdict and not line.startswith(" ")][:5]
    assert words == ["INVALID", "FAIL", "INCONCLUSIVE", "PASS", "ungated"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_other_encodings_get_plain_ascii(encoding: str) -> None:
    text = shown([*EVERY, replace(INVALID, reasons=(Reason("x", "Zeit überschritten ☃"),))], 80, encoding)
    assert text.isascii()
    assert "AL >= 2.382    -2.9 %  FAIL" in text
    assert "##########" in text
    assert r"Zeit \xfcberschritten \u2603" in text


def test_verdicts_carry_their_colour_and_nothing_else_does() -> None:
    lines = summary_lines([PASSED, FAILED, INVALID, INCONCLUSIVE], width=100)
    marked = {text.strip(): markup for line in lines for text, markup in line if markup and markup != {"bold": True}}
    assert marked == {
        "PASS": {"green": True},
        "FAIL": {"red": True, "bold": True},
        "−2.9 %": {"red": True, "bold": True},
        "INCONCLUSIVE": {"yellow": True, "bold": True},
        "+0.2 %": {"yellow": True, "bold": True},
        "INVALID": {"purple": True, "bold": True},
        "–": {"purple": True, "bold": True},
        "1 passed": {"green": True},
        "1 failed": {"red": True, "bold": True},
        "1 inconclusive": {"yellow": True, "bold": True},
        "1 invalid": {"purple": True, "bold": True},
    }


def test_a_server_cannot_write_to_the_terminal() -> None:
    text = shown([replace(INVALID, reasons=(Reason("x", "\x1b]0;evil\x07 \x1b[2J gone\r\n\x1b[2J log"),))])
    assert "\x1b" not in text
    assert r"x: \x1b]0;evil\x07 \x1b[2J gone" in text


def test_measure_only_shows_no_limits_and_says_that_nothing_passed() -> None:
    text = shown([UNGATED], measure_only=True)
    assert text.splitlines()[2] == "cell   n     AL  95 % interval   TPS  user TPS  TTFT p95"
    assert "45.3 ms" in text
    assert text.endswith("1 ungated\nmeasured only: nothing was compared with a limit, so nothing passed")


def test_no_result_is_not_silence() -> None:
    assert shown([]) == "no cell was measured"


def test_several_concurrencies_of_a_category_are_told_apart() -> None:
    strict = replace(PASSED, cell=replace(PASSED.cell, concurrency=1))
    text = shown([PASSED, strict])
    assert "\ncoding-c32 " in text
    assert "\ncoding-c1 " in text


def test_without_an_overall_cell_the_histogram_pools_the_cells() -> None:
    text = shown([PASSED, UNGATED])
    assert "tokens per decode step · 2 cells pooled · 82406 steps" in text
    assert "1     0.515" in text


# Partial data and the control


def test_a_partial_cell_says_so_in_its_row_below_it_and_at_the_end() -> None:
    text = shown([replace(PASSED, masked=46), FAILED])
    assert "PASS (partial)" in text
    assert "partial: 46 prompts are placeholders and were left out; not comparable" in text
    assert "partial data in 1 of 2 cells: their placeholders were left out" in text
    assert "partial data" not in shown([PASSED])


def throughput(difficulty: str, length: float | None, tps: float, **fields: Any) -> CellResult:
    metrics = {"output_tps": Metric(tps)} | ({} if length is None else {"acceptance_length": Metric(length)})
    cell = Cell("throughput", 32, isl="1k", difficulty=difficulty)
    return replace(PASSED, cell=cell, item_id=cell.id(with_concurrency=True), metrics=metrics, **fields)


def test_the_control_beside_the_real_cells() -> None:
    control = throughput("random", 3.44, 5100.0, verdict=None, gates=())
    text = shown([throughput("mixed", 2.0, 4250.0), throughput("low_entropy", 4.0, 6000.0), control, PASSED], width=100)
    table = text[text.index("random tokens (control)") :].splitlines()
    assert [line.split() for line in table[1:4]] == [
        ["cell", "AL", "random", "AL", "off", "by", "TPS", "random", "TPS", "off", "by"],
        ["1k-mixed-c32", "2.000", "3.440", "+72.0", "%", "4250", "5100", "+20.0", "%"],
        ["1k-low_entropy-c32", "4.000", "3.440", "−14.0", "%", "6000", "5100", "−15.0", "%"],
    ]
    assert any(line.startswith("1k-random-c32") and line.endswith("control") for line in text.splitlines())


def test_a_control_that_says_nothing_of_a_length_leaves_it_out() -> None:
    text = shown(
        [throughput("mixed", 2.0, 4250.0), throughput("random", None, 4250.0, verdict=None, gates=())], width=100
    )
    row = text[text.index("random tokens (control)") :].splitlines()[2]
    assert row.split() == ["1k-mixed-c32", "2.000", "–", "4250", "4250", "0.0", "%"]


def test_no_control_no_table() -> None:
    assert "control" not in shown([throughput("mixed", 2.0, 4250.0), PASSED])

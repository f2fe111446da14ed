"""Cells that are worked out from others: the crossover over concurrencies, and losslessness."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_speedbench.cells import Cell
from pytest_speedbench.derived import dtype_of, judge_crossover, judge_losslessness
from pytest_speedbench.engines.base import Profile, Speculation
from pytest_speedbench.gates.limits import CellPattern, Gate, Limit
from pytest_speedbench.gates.verdict import Verdict
from pytest_speedbench.judging import Labels
from pytest_speedbench.measure import acceptance, losslessness
from pytest_speedbench.measure.losslessness import TopTokens, demand
from pytest_speedbench.measure.metrics import Metric
from pytest_speedbench.measure.runs import Run
from pytest_speedbench.measure.samples import Turn
from pytest_speedbench.report.failure import failure_text
from pytest_speedbench.report.wording import reasons
from pytest_speedbench.results import CellResult
from tests.unit.test_judging import file_of, rules
from tests.unit.test_measure_samples import turn

CELL = Cell("throughput", 8, category="crossover", isl="1k", difficulty="mixed")
LABELS = Labels("vllm", "vllm-throughput-1k-mixed-crossover", "", "", 0.0)
LOSSLESS = Cell("qualitative", 1, category="lossless")


def run(speedup: float, start: int = 0) -> Run:
    return Run(start, 0, {"speedup": Metric(speedup)}, acceptance.acceptance([turn("q", [2])]))


def crossed(minimum: float, **speedups: float | None) -> CellResult:
    limit = Limit("crossover", minimum, False, "thresholds/a.yaml:4")
    pattern = CellPattern("throughput", None, "1k", "mixed")
    file = replace(file_of(), gates=(Gate(pattern, (limit,), "thresholds/a.yaml:3"),))
    runs = {int(name[1:]): [] if value is None else [run(value)] for name, value in speedups.items()}
    given = replace(rules(file), points=(Cell("throughput", 1, isl="1k", difficulty="mixed"),))
    return judge_crossover(CELL, runs, given, LABELS)


@pytest.mark.parametrize(
    ("minimum", "speedups", "verdict", "paid"),
    [
        (4, {"c2": 1.8, "c4": 1.5, "c8": 1.0}, Verdict.PASS, 4),
        (8, {"c2": 1.8, "c4": 1.5, "c8": 0.7}, Verdict.FAIL, 4),
        (8, {"c2": 1.8, "c4": 1.5, "c8": 1.0}, Verdict.INCONCLUSIVE, 4),
        (8, {"c2": 1.8, "c4": None, "c8": 1.5}, Verdict.INVALID, 8),
    ],
)
def test_the_crossover_is_gated_by_the_speedups_of_its_cells(
    minimum: float, speedups: dict[str, float | None], verdict: Verdict, paid: int
) -> None:
    result = crossed(minimum, **speedups)
    assert result.verdict is verdict
    assert result.metrics["crossover"].value == paid
    assert [reason.code for reason in result.reasons] == (["not_measured"] if verdict is Verdict.INVALID else [])
    assert "pays up to" in " ".join([failure_text(result), *reasons(result)])


def test_a_crossover_that_nothing_gates_is_invalid() -> None:
    assert [r.code for r in judge_crossover(CELL, {2: [run(2.0)]}, rules(), LABELS).reasons] == ["no_gate"]


def test_a_limit_on_the_crossover_is_not_one_on_its_cells() -> None:
    from pytest_speedbench.gates.selection import gates_for, planned_cells

    limit = Limit("crossover", 4.0, False, "a.yaml:4")
    file = replace(file_of(), gates=(Gate(CellPattern("throughput", None, "1k", "mixed"), (limit,), "a.yaml:3"),))
    assert gates_for((file,), Cell("throughput", 4, isl="1k", difficulty="mixed")) == ()
    assert gates_for((file,), CELL) == (limit,)
    points = [Cell("throughput", 1, isl="1k", difficulty="mixed")]
    assert planned_cells((file,), points, {"throughput": (2, 4, 8), "qualitative": (1,)}) == [CELL]


def answered(*ids: int, question: str = "q") -> Turn:
    return replace(turn(question, [1] * (len(ids) - 1)), output_ids=ids, output_tokens=len(ids))


@pytest.mark.parametrize(
    ("other", "gap", "verdict"),
    [((1, 2, 3), None, "PASS"), ((1, 2, 4), 0.05, "PASS"), ((1, 2, 4), 2.0, "FAIL"), ((1, 2, 4), None, "INCONCLUSIVE")],
)
def test_losslessness_is_a_verdict_with_its_numbers(other: tuple[int, ...], gap: float | None, verdict: str) -> None:
    top = None if gap is None else TopTokens.of([(3, -0.1), (4, -0.1 - gap)])
    found = losslessness.judge(
        [answered(1, 2, 3)], [answered(*other)], lambda *_: top, demand("bfloat16", concurrency=4)
    )
    result = judge_losslessness(LOSSLESS, found, replace(LABELS, item_id="vllm-qualitative-lossless"))
    assert result.verdict is Verdict[verdict]
    text = failure_text(result) if verdict != "PASS" else " ".join(reasons(result))
    assert f"{1 if other == (1, 2, 3) else 0} of 1 turns identical" in text
    assert result.metrics["lossless_mismatches"].value == (1 if verdict == "FAIL" else 0)


def test_nothing_to_compare_is_invalid() -> None:
    found = losslessness.judge([], [], lambda *_: None, demand(None, concurrency=1))
    result = judge_losslessness(LOSSLESS, found, LABELS)
    assert (result.verdict, result.reasons[0].code) == (Verdict.INVALID, "nothing_compared")


@pytest.mark.parametrize(
    ("args", "resolved", "dtype"),
    [
        ([], {}, None),
        (["--dtype", "bfloat16"], {}, "bfloat16"),
        (["--x", "--dtype=float32"], {}, "float32"),
        (["--dtype", "bfloat16"], {"dtype": "torch.float16"}, "torch.float16"),
        (["--kv-cache-dtype", "fp8"], {}, None),
    ],
)
def test_what_the_target_computes_in_is_told_or_launched(
    args: list[str], resolved: dict[str, object], dtype: str | None
) -> None:
    profile = Profile("vllm", "vllm", "org/m", Speculation("ngram", 3), options={"args": args})
    assert dtype_of(profile, resolved) == dtype

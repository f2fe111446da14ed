"""What a waiver makes of a gate: covered, not covered, too close, no longer needed."""

from __future__ import annotations

import datetime as dt
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.cells import Cell
from pytest_speedbench.gates.limits import CellPattern, Limit, ThresholdsFile, Waiver
from pytest_speedbench.gates.selection import gates_for
from pytest_speedbench.gates.thresholds import load
from pytest_speedbench.gates.verdict import GateResult, Verdict, combine, judge
from pytest_speedbench.gates.waivers import apply, waiver_of
from pytest_speedbench.gates.wording import first_line
from pytest_speedbench.measure.student import t_quantile
from pytest_speedbench.results import CellResult

TODAY = dt.date(2026, 12, 5)
ROLEPLAY = Cell("qualitative", 8, category="roleplay")
FILE = """\
schema: 1
match: {draft_tokens: 3}
estimator: request_mean
gates:
  - cell: {split: qualitative, concurrency: 8}
    acceptance_length: {min: 2.5}
  - cell: {category: roleplay, concurrency: 8}
    acceptance_length: {min: 2.4}
    user_tps: {min: 160}
    ttft_p95_s: {max: 0.20}
waivers:
  - cell: {split: qualitative, category: roleplay}
    metric: acceptance_length
    issue: "#123"
    level: 2.3
    until: 2027-01-31
    reason: the drafter is older than the template
  - {cell: {category: roleplay}, metric: user_tps, issue: LLM-7, level: 150, margin: 10%, until: 2026-12-05, reason: x}
  - cell: {category: roleplay}
    metric: ttft_p95_s
    issue: https://example.org/issues/9
    level: 0.25
    until: "2027-06-03"
    reason: prefill
  - {cell: {category: coding}, metric: acceptance_length, issue: a/b#1, level: 2.4, until: 2027-01-01, reason: y}
"""


@pytest.fixture
def file(tmp_path: Path) -> ThresholdsFile:
    path = tmp_path / "h100.yaml"
    path.write_text(FILE)
    return load(path, today=TODAY)[0]


def limit_of(file: ThresholdsFile, metric: str, cell: Cell = ROLEPLAY) -> Limit:
    return next(limit for limit in gates_for([file], cell) if limit.metric == metric)


def judged(file: ThresholdsFile, metric: str, value: float | None) -> GateResult:
    """Under its waiver."""
    limit = limit_of(file, metric)
    waiver = waiver_of([file], ROLEPLAY, limit)
    assert waiver is not None
    return apply(judge(metric, value, limit, alpha=0.05, beta=0.05), waiver)


# What a file says


def test_what_is_loaded(file: ThresholdsFile) -> None:
    first, second, third, fourth = file.waivers
    assert first == Waiver(
        cell=CellPattern("qualitative", "roleplay", concurrency=8),
        metric="acceptance_length",
        issue="#123",
        until=dt.date(2027, 1, 31),
        reason="the drafter is older than the template",
        level=2.3,
        margin=0.04,
        limit=2.3 * (1 - 0.04),
        waives=f"{file.path}:8",
        source=f"{file.path}:12",
    )
    assert (second.limit, second.margin, second.until) == (150 * (1 - 0.1), 0.1, TODAY)
    assert (third.limit, third.margin, third.waives) == (0.25 * (1 + 0.15), 0.15, f"{file.path}:10")
    # A cell that a gate covers only as a default, narrowed to the one that is waived.
    assert (fourth.cell, fourth.waives) == (CellPattern("qualitative", "coding", concurrency=8), f"{file.path}:6")


def test_which_gate_it_is_bound_to(file: ThresholdsFile) -> None:
    default = limit_of(file, "acceptance_length", Cell("qualitative", 8, category="coding"))
    waivers = {
        category: waiver_of([file], Cell("qualitative", 8, category=category), default)
        for category in ("coding", "math", "overall")
    }
    assert waivers == {"coding": file.waivers[3], "math": None, "overall": None}
    limit = limit_of(file, "acceptance_length")
    assert waiver_of([file], ROLEPLAY, limit) == file.waivers[0]
    assert waiver_of([file], Cell("qualitative", 16, category="roleplay"), limit) is None
    assert waiver_of([], ROLEPLAY, limit) is None
    assert waiver_of([file], ROLEPLAY, limit_of(file, "user_tps")) == file.waivers[1]


def test_a_file_without_waivers(tmp_path: Path) -> None:
    path = tmp_path / "h100.yaml"
    path.write_text(FILE.partition("waivers:")[0] + "waivers: []\n")
    assert load(path, today=TODAY)[0].waivers == ()


# What it makes of a gate. The assumed noise of acceptance_length is 0.5 % of the limit: 2.4 × 0.005 × 1.645 = 0.0197.


@pytest.mark.parametrize(
    ("value", "verdict", "covered", "text"),
    [
        (2.5, Verdict.PASS, False, "the waiver for #123 until 2027-01-31 is no longer needed, remove it ("),
        (
            2.41,
            Verdict.INCONCLUSIVE,
            True,
            "waived for #123 until 2027-01-31, down to 2.208: the drafter is older than",
        ),
        (2.3, Verdict.FAIL, True, "waived for #123 until 2027-01-31, down to 2.208: the drafter is older than"),
        (2.228, Verdict.FAIL, True, "waived for #123"),
        (2.227, Verdict.INCONCLUSIVE, False, "too close to the 2.208 that is waived for #123 until 2027-01-31"),
        (2.208, Verdict.INCONCLUSIVE, False, "too close to the 2.208"),
        (2.2079, Verdict.FAIL, False, "worse than the 2.208 that is waived for #123 until 2027-01-31"),
        (1.5, Verdict.FAIL, False, "worse than the 2.208"),
        (None, Verdict.INVALID, False, ""),
        (math.nan, Verdict.INVALID, False, ""),
    ],
)
def test_a_floor(file: ThresholdsFile, value: float | None, verdict: Verdict, covered: bool, text: str) -> None:
    gate = judged(file, "acceptance_length", value)
    assert (gate.verdict, gate.waived) == (verdict, covered)
    assert gate.waiver.startswith(text)
    assert bool(gate.waiver) == bool(text)


# 0.25 × 1.15 = 0.2875; noise 4 % on the log scale: × exp(−0.04 × 1.645) = 0.2692.
@pytest.mark.parametrize(
    ("value", "verdict", "covered"),
    [
        (0.15, Verdict.PASS, False),
        (0.25, Verdict.FAIL, True),
        (0.269, Verdict.FAIL, True),
        (0.270, Verdict.INCONCLUSIVE, False),
        (0.2876, Verdict.FAIL, False),
    ],
)
def test_a_ceiling(file: ThresholdsFile, value: float, verdict: Verdict, covered: bool) -> None:
    gate = judged(file, "ttft_p95_s", value)
    assert (gate.verdict, gate.waived) == (verdict, covered)
    if covered:
        assert gate.waiver == "waived for https://example.org/issues/9 until 2027-06-03, up to 0.2875 s: prefill"


def test_a_waiver_of_another_metric(file: ThresholdsFile) -> None:
    gate = judge("user_tps", 150.0, limit_of(file, "user_tps"), alpha=0.05, beta=0.05)
    with pytest.raises(ValueError, match="a waiver of acceptance_length says nothing of user_tps"):
        apply(gate, file.waivers[0])


@given(st.floats(1.0, 4.0))
def test_a_waiver_never_makes_a_pass_and_never_hides_what_got_worse(value: float) -> None:
    limit = Limit("acceptance_length", 2.4, ceiling=False, source="a:1")
    waiver = Waiver(CellPattern(), "acceptance_length", "#1", TODAY, "r", 2.3, 0.04, 2.208, "a:1", "a:2")
    plain = judge("acceptance_length", value, limit, alpha=0.05, beta=0.05)
    gate = apply(plain, waiver)
    assert (gate.verdict is Verdict.PASS) == (plain.verdict is Verdict.PASS)
    if gate.waived:
        # Clear by the guard band: the share of waived values whose true value is the waived limit is β.
        assert value - t_quantile(0.95, math.inf) * 0.005 * 2.4 >= 2.208 - 1e-9
    if value < 2.208:
        assert (gate.verdict, gate.waived) == (Verdict.FAIL, False)


# A cell


def test_a_cell_is_waived_when_nothing_else_is_missed(file: ThresholdsFile) -> None:
    covered, passed = judged(file, "acceptance_length", 2.3), judged(file, "user_tps", 200.0)
    missed = judged(file, "user_tps", 100.0)
    doubtful = judged(file, "ttft_p95_s", 0.28)
    invalid = judged(file, "ttft_p95_s", None)
    table = {
        (covered,): (True, Verdict.FAIL),
        (covered, passed): (True, Verdict.FAIL),
        (passed,): (False, Verdict.PASS),
        (covered, missed): (False, Verdict.FAIL),
        (covered, doubtful): (False, Verdict.INCONCLUSIVE),
        (covered, invalid): (False, Verdict.INVALID),
    }
    results = {gates: CellResult("vllm", ROLEPLAY, "item", combine(gates), gates=gates) for gates in table}
    assert {gates: (result.is_waived, result.verdict) for gates, result in results.items()} == table


def test_the_first_line_tells_of_the_waiver(file: ThresholdsFile) -> None:
    line = first_line(judged(file, "acceptance_length", 2.3), where="roleplay", engine="vllm 0.24.0")
    assert line == (
        "FAIL acceptance_length 2.300 < limit 2.400 (−4.2 % from the limit, assumed noise 0.5 %) · waived for #123 "
        "until 2027-01-31, down to 2.208: the drafter is older than the template · roleplay · vllm 0.24.0 · "
        f"{file.path}:8"
    )

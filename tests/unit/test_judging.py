"""From a window to a CellResult: every verdict, and every reason that reaches the result."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

from pytest_speedbench.cells import OVERALL, Cell
from pytest_speedbench.engines.base import Speculation
from pytest_speedbench.gates.limits import CellPattern, Evidence, Family, Gate, Limit, ThresholdsFile
from pytest_speedbench.gates.match import Facts, Match
from pytest_speedbench.gates.verdict import Verdict
from pytest_speedbench.judging import (
    Labels,
    Rules,
    assess,
    invalid,
    is_sound,
    judge_overall,
    judge_runs,
    judge_window,
)
from pytest_speedbench.measure.checks import Reason
from pytest_speedbench.measure.metrics import METRICS
from pytest_speedbench.measure.samples import Client, Failure, StepTotal, Turn, Window
from pytest_speedbench.results import CellResult
from pytest_speedbench.versus import Baseline, shared
from tests.unit.test_measure_samples import counters_of, plain, turn, window

CODING = Cell("qualitative", 2, category="coding")
QA = Cell("qualitative", 2, category="qa")
ALL = Cell("qualitative", 2, category=OVERALL)
MIXED = Cell("throughput", 8, isl="1k", difficulty="mixed")
POINTS = (Cell("qualitative", 1, category="coding"), Cell("qualitative", 1, category="qa"))
FACTS = Facts("llamacpp", "org/m", "draft", 3, None, "mini", engine_version="1.5")
LABELS = Labels("llamacpp", "llamacpp-qualitative-coding", "per-step totals", "abcdef", 1.5)
SATURATED = Client(lag_p99_s=0.5, cpu_share=1.0)

# 12 tokens in 6 steps of 2, prefill included 13 tokens in 7 steps: 13 / 7 = 1.857142….
TURNS = tuple(turn(f"q{i}", [2] * 6) for i in range(4))
AL = 13 / 7
# Tokens at 100 ms, then every 10 ms: 12 tokens in 60 ms.
USER_TPS = 200.0


def limit(value: float, metric: str = "acceptance_length", line: int = 4, **fields: Any) -> Limit:
    return Limit(metric, value, metric.startswith("ttft"), f"thresholds/a.yaml:{line}", **fields)


def file_of(
    *limits: Limit, cell: Cell | None = CODING, path: str = "thresholds/a.yaml", match: Match | None = None
) -> ThresholdsFile:
    pattern = CellPattern() if cell is None else CellPattern(cell.split, cell.category, cell.isl, cell.difficulty)
    gates = (Gate(pattern, limits, f"{path}:3"),) if limits else ()
    return ThresholdsFile(path, 1, match or Match(), "request_mean", Family(), gates)


def rules(*files: ThresholdsFile, measure_only: bool = False, others: tuple[str, ...] = (), k: int = 3) -> Rules:
    return Rules(
        files=files,
        others=others,
        facts=FACTS,
        points=POINTS,
        default_concurrency={"qualitative": (2,), "throughput": (8,)},
        speculation=Speculation("draft", k) if k else Speculation(),
        measure_only=measure_only,
    )


def judged(*limits: Limit, measured: Window | None = None, **fields: Any) -> CellResult:
    measured = window(TURNS, cell=CODING) if measured is None else measured
    files = (file_of(*limits, cell=measured.cell),) if limits else ()
    return judge_window(measured, rules(*files, **fields), LABELS)


def codes(result: CellResult) -> list[str]:
    return [reason.code for reason in result.reasons]


# Verdicts. Hand-written limits assume a noise of 0.5 %: PASS from L (1 + 1.64485 × 0.005) = 1.008224 L; the only
# cell of its file spends all of α = 5 %: FAIL below L (1 − 1.64485 × 0.005) = 0.991776 L.


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (1.8, Verdict.PASS),
        (AL / 1.0083, Verdict.PASS),
        (AL / 1.0081, Verdict.INCONCLUSIVE),
        (AL, Verdict.INCONCLUSIVE),
        (AL / 0.9919, Verdict.INCONCLUSIVE),
        (AL / 0.9916, Verdict.FAIL),
        (2.5, Verdict.FAIL),
    ],
)
def test_verdict_by_the_limit(value: float, verdict: Verdict) -> None:
    result = judged(limit(value))
    assert result.verdict is verdict
    assert result.reasons == ()
    (gate,) = result.gates
    assert (gate.verdict, gate.limit, gate.source) == (verdict, value, "thresholds/a.yaml:4")
    assert gate.value == pytest.approx(AL)


def test_the_result_in_full() -> None:
    result = judged(limit(1.8))
    assert (result.profile, result.item_id, result.cell) == ("llamacpp", LABELS.item_id, CODING)
    assert (result.conversations, result.conversations_planned, result.turns) == (4, 4, 4)
    assert (result.prompts_sha256, result.steps_source, result.duration_s) == ("abcdef", "per-step totals", 1.5)
    assert result.metrics["acceptance_length"].value == pytest.approx(AL)
    assert result.metrics["user_tps"].value == pytest.approx(USER_TPS)
    assert result.acceptance is not None
    assert dict(result.acceptance.histogram) == {1: 4, 2: 24}


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((1.8, 150.0), Verdict.PASS),
        ((1.8, 200.0), Verdict.INCONCLUSIVE),
        ((2.5, 200.0), Verdict.FAIL),
        ((1.8, 300.0), Verdict.FAIL),
    ],
)
def test_the_worst_gate_decides(values: tuple[float, float], verdict: Verdict) -> None:
    result = judged(limit(values[0]), limit(values[1], "user_tps", 5))
    assert result.verdict is verdict
    assert [gate.metric for gate in result.gates] == ["acceptance_length", "user_tps"]


def test_measure_only_judges_nothing() -> None:
    result = judged(limit(2.5), measure_only=True)
    assert (result.verdict, result.gates, result.reasons) == (None, (), ())
    assert result.metrics
    result = judged(measured=window((), planned=[("q", 1)]), measure_only=True)
    assert (result.verdict, codes(result)) == (Verdict.INVALID, ["nothing_measured", "incomplete"])


# INVALID by the gates


def test_no_gate() -> None:
    result = judged()
    assert result.verdict is Verdict.INVALID
    assert result.reasons == (
        Reason(
            "no_gate",
            "no thresholds file gates qualitative-coding-c2; add a limit, or use --speedbench-measure-only",
        ),
    )
    # The measurement is there all the same.
    assert result.metrics["acceptance_length"].value == pytest.approx(AL)


def test_no_gate_names_the_near_misses() -> None:
    mismatched = file_of(limit(1.8), path="thresholds/b.yaml", match=Match(engine_version=SpecifierSet(">=2")))
    other_cell = file_of(limit(1.8), cell=QA, path="thresholds/c.yaml")
    result = judge_window(
        window(TURNS, cell=CODING), rules(mismatched, other_cell, others=("d.yaml: method: wanted 'ngram'",)), LABELS
    )
    (reason,) = result.reasons
    assert reason.code == "no_gate"
    assert reason.message == (
        "no thresholds file gates qualitative-coding-c2 (thresholds/b.yaml: engine_version: wanted '>=2', found '1.5' "
        "| d.yaml: method: wanted 'ngram'); add a limit, or use --speedbench-measure-only"
    )


@pytest.mark.parametrize(
    ("match", "line"),
    [
        (Match(engine_version=SpecifierSet("<1.5")), "engine_version: wanted '<1.5', found '1.5'"),
        (Match(gpu="NVIDIA H100*"), "gpu: wanted 'NVIDIA H100*', found none"),
        (Match(gpu_count=2), "gpu_count: wanted 2, found 0"),
    ],
)
def test_a_runtime_mismatch_leaves_no_gate(match: Match, line: str) -> None:
    result = judge_window(window(TURNS, cell=CODING), rules(file_of(limit(1.8), match=match)), LABELS)
    assert result.verdict is Verdict.INVALID
    assert result.gates == ()
    assert line in result.reasons[0].message


def test_a_file_that_fits_is_used_beside_one_that_does_not() -> None:
    fits = file_of(limit(1.8), match=Match(engine_version=SpecifierSet(">=1.5"), gpu_count=0))
    misses = file_of(limit(9.9), path="thresholds/b.yaml", match=Match(gpu="NVIDIA H100*"))
    result = judge_window(window(TURNS, cell=CODING), rules(misses, fits), LABELS)
    assert result.verdict is Verdict.PASS


def test_a_cell_that_supports_overall_needs_no_gate() -> None:
    result = judge_window(window(TURNS, cell=CODING), replace(rules(), gate_required=False), LABELS)
    assert (result.verdict, result.reasons, result.gates) == (None, (), ())
    # A gate that it has counts, and so does a measurement that is not sound.
    gated = replace(rules(file_of(limit(2.5))), gate_required=False)
    assert judge_window(window(TURNS, cell=CODING), gated, LABELS).verdict is Verdict.FAIL
    lost = judge_window(broken("lost_requests"), replace(rules(), gate_required=False), LABELS)
    assert lost.verdict is Verdict.INVALID


def test_soundness_does_not_depend_on_gates() -> None:
    assert is_sound(window(TURNS, cell=CODING), Speculation("draft", 3))
    assert not is_sound(window(TURNS, cell=CODING), Speculation())
    assert not is_sound(broken("counter_mismatch"), Speculation("draft", 3))


def test_an_invalid_gate_makes_the_cell_invalid_with_its_reason() -> None:
    evidence = Evidence(6, 1, 0.05, 0.0, dt.date(2026, 12, 1))
    result = judged(limit(1.8, reference=1.85, margin=0.027, evidence=evidence))
    assert (result.verdict, codes(result)) == (Verdict.INVALID, ["unreachable"])
    assert result.reasons[0].message.endswith("(thresholds/a.yaml:4)")
    pinned = replace(evidence, sd_start=0.0, prompts="123456")
    result = judged(limit(1.8, reference=1.85, margin=0.027, evidence=pinned))
    assert (result.verdict, codes(result)) == (Verdict.INVALID, ["other_prompts"])


def test_a_gated_metric_that_was_not_measured() -> None:
    # All tokens of a turn came at once, so that it has no rate.
    turns = [replace(t, event_ns=t.event_ns[:1], event_tokens=(t.output_tokens,)) for t in TURNS]
    result = judged(limit(10.0, "user_tps"), measured=window(turns, cell=CODING))
    assert (result.verdict, codes(result)) == (Verdict.INVALID, ["not_measured"])


def test_pooled_files_compare_the_pooled_length() -> None:
    # 2 tokens in 2 steps, 13 in 7: mean 1.4286, pooled 15 / 9 = 1.6667.
    turns = (turn("a", [1]), turn("b", [2] * 6))
    pooled = limit(1.6, estimator="pooled")
    assert judged(pooled, measured=window(turns, cell=CODING)).verdict is Verdict.PASS
    assert judged(limit(1.6), measured=window(turns, cell=CODING)).verdict is Verdict.FAIL


# INVALID because the engine does not tell enough


def stepless(*, low: int, high: int) -> Window:
    """The window above without steps per turn: 52 tokens in 4 turns, of 24 steps in truth."""
    turns = [replace(t, steps=None) for t in TURNS]
    counters = replace(counters_of(TURNS), steps=None, drafts=None, accepted=None)
    return window(turns, cell=CODING, counters=counters, total=StepTotal(low, high, "bracket from events and counters"))


@pytest.mark.parametrize("metric", ["acceptance_length", "decode_acceptance_length_uncut"])
@pytest.mark.parametrize("value", [0.5, 1.8, 9.0])
def test_a_limit_per_request_needs_steps_per_request(metric: str, value: float) -> None:
    result = judged(limit(value, metric), measured=stepless(low=24, high=24))
    assert (result.verdict, codes(result)) == (Verdict.INVALID, ["no_per_request_steps"])
    assert result.reasons[0].message == (
        f"{metric} needs decode steps per request, which this engine and version do not tell; gate "
        "decode_acceptance_length, or set `estimator: pooled` (thresholds/a.yaml:4)"
    )


def test_what_the_reason_advises_can_be_judged() -> None:
    exact = stepless(low=24, high=24)
    # 48 tokens after the first in 24 steps; 52 in 28.
    assert judged(limit(1.9, "decode_acceptance_length"), measured=exact).verdict is Verdict.PASS
    assert judged(limit(2.1, "decode_acceptance_length"), measured=exact).verdict is Verdict.FAIL
    pooled = judged(limit(1.8, estimator="pooled"), measured=exact)
    assert pooled.verdict is Verdict.PASS
    assert pooled.gates[0].value == pytest.approx(52 / 28)


def test_a_metric_that_is_missing_for_another_reason_keeps_that_reason() -> None:
    result = judged(limit(1.0, "steady_output_tps"), measured=stepless(low=24, high=24))
    assert codes(result) == ["not_measured"]
    unknown = replace(stepless(low=24, high=24), steps=None)
    assert codes(judged(limit(1.0, "decode_acceptance_length"), measured=unknown)) == ["not_measured"]


BOTTOM = 48 / 25
"""Lower end of the decode acceptance length where S lies in 24 to 25; the bracket is 1/24 = 4.2 % wide."""


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (BOTTOM / 1.0083, Verdict.PASS),
        (BOTTOM / 1.0081, Verdict.INCONCLUSIVE),
        # The upper end, 2, would pass.
        (BOTTOM / 0.9919, Verdict.INCONCLUSIVE),
        # Missed for sure only where the upper end misses too.
        (2.0001, Verdict.FAIL),
    ],
)
def test_a_floor_is_compared_with_the_lower_end_of_a_narrow_bracket(value: float, verdict: Verdict) -> None:
    # A margin of 5 % is wider than the bracket.
    result = judged(limit(value, "decode_acceptance_length", margin=0.05), measured=stepless(low=24, high=25))
    assert (result.verdict, codes(result)) == (verdict, [])
    assert result.gates[0].value == pytest.approx(BOTTOM)


@pytest.mark.parametrize(
    ("margin", "ambiguous"),
    [(0.05, False), (1 / 24 + 1e-9, False), (1 / 24 - 1e-9, True), (0.02, True), (None, True)],
)
@pytest.mark.parametrize("value", [0.5, 9.0])
def test_a_bracket_wider_than_the_margin_decides_nothing(margin: float | None, ambiguous: bool, value: float) -> None:
    # Without a margin of its own a limit has the metric's.
    assert METRICS["decode_acceptance_length"].margin < 1 / 24
    result = judged(limit(value, "decode_acceptance_length", margin=margin), measured=stepless(low=24, high=25))
    if not ambiguous:
        assert result.verdict is (Verdict.PASS if value < 1 else Verdict.FAIL)
        return
    assert (result.verdict, codes(result)) == (Verdict.INVALID, ["ambiguous_steps"])
    shown = METRICS["decode_acceptance_length"].margin if margin is None else margin
    assert result.reasons[0].message == (
        f"decode_acceptance_length lies between 1.9200 and 2.0000, which is 4.2% apart (margin {shown:.1%}, "
        f"limit {value:g}): the server joined events and has no step counter (thresholds/a.yaml:4)"
    )


def test_a_floor_inside_a_bracket_is_not_missed_for_sure() -> None:
    # The lower end would be FAIL from 1.936 on.
    result = judged(limit(1.99, "decode_acceptance_length", margin=0.05), measured=stepless(low=24, high=25))
    assert (result.verdict, codes(result)) == (Verdict.INVALID, ["ambiguous_steps"])


def test_fewer_conversations_than_the_concurrency_void_rates_and_times_alone() -> None:
    measured = window(TURNS, cell=Cell("qualitative", 5, category="coding"))
    result = judged(limit(1.0, "user_tps"), measured=measured)
    assert (result.verdict, codes(result)) == (Verdict.INVALID, ["concurrency_not_held"])
    assert result.reasons[0].message.startswith("coding: 4 conversations cannot hold a concurrency of 5")
    assert judged(limit(1.8), measured=measured).verdict is Verdict.PASS


def test_a_ceiling_cannot_be_compared_with_a_lower_end() -> None:
    ceiling = replace(limit(9.0, "decode_acceptance_length", margin=0.5), ceiling=True)
    narrow = stepless(low=24, high=25)
    assert codes(judged(ceiling, measured=narrow)) == ["ambiguous_steps"]
    assert judged(ceiling, measured=stepless(low=24, high=24)).verdict is Verdict.PASS


def test_a_bracket_does_not_touch_the_gates_on_other_metrics() -> None:
    measured = stepless(low=24, high=48)
    assert judged(limit(150.0, "user_tps"), measured=measured).verdict is Verdict.PASS
    result = judged(limit(150.0, "user_tps"), limit(1.0, "decode_acceptance_length", 5), measured=measured)
    assert (result.verdict, codes(result)) == (Verdict.INVALID, ["ambiguous_steps"])
    assert {gate.metric: gate.verdict for gate in result.gates} == {
        "user_tps": Verdict.PASS,
        "decode_acceptance_length": Verdict.INVALID,
    }


def test_overall_is_in_doubt_where_a_category_is() -> None:
    doubtful = replace(stepless(low=24, high=48), cell=CODING)
    parts: dict[str, Window | None] = {"coding": doubtful, "qa": window([turn("a", [2] * 6, category="qa")], cell=QA)}
    result = judge_overall(ALL, parts, rules(file_of(limit(1.0, "decode_acceptance_length"), cell=ALL)), LABELS)
    assert (result.verdict, codes(result)) == (Verdict.INVALID, ["ambiguous_steps"])


# INVALID by the window


def broken(code: str) -> Window:
    sound = window(TURNS, cell=CODING)
    stray = turn("stray", [2])
    return {
        "nothing_measured": window((), planned=[("q0", 1)], cell=CODING),
        "lost_requests": replace(
            sound, planned=(*sound.planned, ("q9", 1)), failures=(Failure("q9", 0, "stream_cut", "gone"),)
        ),
        "incomplete": replace(sound, planned=(*sound.planned, ("q9", 1))),
        "duplicated": window([*TURNS, TURNS[0]], planned=sound.planned, cell=CODING),
        "unplanned": window([*TURNS, stray], planned=sound.planned, cell=CODING),
        "counter_mismatch": replace(sound, counters=replace(sound.counters, output_tokens=51)),
        "counter_gap": replace(sound, counters=replace(sound.counters, missing=1)),
        "prefix_cache": replace(sound, counters=replace(sound.counters, cached_tokens=1)),
        "server_queued": replace(sound, counters=replace(sound.counters, preemptions=1)),
        "no_speculation": window([plain(f"q{i}", 5) for i in range(3)], cell=CODING),
    }[code]


@pytest.mark.parametrize(
    "code",
    [
        "nothing_measured",
        "lost_requests",
        "incomplete",
        "duplicated",
        "unplanned",
        "counter_mismatch",
        "counter_gap",
        "prefix_cache",
        "server_queued",
        "no_speculation",
    ],
)
def test_a_window_that_cannot_carry_a_verdict(code: str) -> None:
    # A floor that would be met makes no difference.
    result = judged(limit(0.5), measured=broken(code))
    assert result.verdict is Verdict.INVALID
    assert code in codes(result)
    assert judged(limit(0.5), measured=broken(code), measure_only=True).verdict is Verdict.INVALID


def test_speculation_that_nobody_asked_for() -> None:
    plain_turns = [plain(f"q{i}", 5) for i in range(3)]
    sound = window(plain_turns, cell=CODING, counters=counters_of(plain_turns, drafts=0))
    assert judged(limit(0.5), measured=sound, k=0).verdict is Verdict.PASS
    drafting = replace(sound, counters=replace(sound.counters, drafts=3))
    result = judged(limit(0.5), measured=drafting, k=0)
    assert (result.verdict, codes(result)) == (Verdict.INVALID, ["unexpected_speculation"])


def test_reasons_of_window_and_gates_add_up() -> None:
    assert codes(judged(measured=broken("counter_mismatch"))) == ["counter_mismatch", "no_gate"]


# Timing


def test_a_saturated_client_matters_to_timing_gates_only() -> None:
    slow = replace(window(TURNS, cell=CODING), client=SATURATED)
    assert judged(limit(1.8), measured=slow).verdict is Verdict.PASS
    for metric, value in (("user_tps", 1.0), ("output_tps", 1.0), ("ttft_p95_s", 9.0)):
        result = judged(limit(1.8), limit(value, metric, 5), measured=slow)
        assert (result.verdict, codes(result)) == (Verdict.INVALID, ["client_saturated"])
        assert result.reasons[0].message.startswith("coding: the load client was saturated")
        assert judged(limit(1.8), limit(value, metric, 5)).verdict is Verdict.PASS
    assert judged(limit(1.0, "user_tps"), measured=slow, measure_only=True).verdict is None


def test_concurrency_that_was_not_held_voids_a_throughput_cell() -> None:
    turns: tuple[Turn, ...] = TURNS
    held = window(turns, cell=MIXED, steady_ns=(1, 200_000_000))
    assert judged(limit(1.0, "output_tps"), measured=held).verdict is Verdict.PASS
    never = window(turns, cell=MIXED)
    result = judged(limit(1.0, "output_tps"), measured=never)
    assert (result.verdict, codes(result)) == (Verdict.INVALID, ["concurrency_not_held"])
    # Qualitative cells have no steady window to hold.
    assert judged(limit(1.0, "output_tps"), measured=window(turns, cell=CODING)).verdict is Verdict.PASS


# Overall

PARTS = {
    "coding": window(tuple(turn(f"c{i}", [2] * 6, category="coding") for i in range(2)), cell=CODING),
    "qa": window(tuple(turn(f"a{i}", [1] * 6, category="qa") for i in range(2)), cell=QA),
}


def overall(
    *limits: Limit,
    parts: dict[str, Window | None] | None = None,
    others: tuple[ThresholdsFile, ...] = (),
    **fields: Any,
) -> CellResult:
    labels = replace(LABELS, item_id="llamacpp-qualitative-overall")
    given = dict(PARTS) if parts is None else parts
    files = (file_of(*limits, cell=ALL),) if limits else ()
    return judge_overall(ALL, given, rules(*files, **fields), labels)


def test_overall_is_over_all_conversations() -> None:
    # Two conversations at 13 / 7, two at 7 / 7.
    result = overall(limit(1.4))
    assert result.verdict is Verdict.PASS
    assert result.metrics["acceptance_length"].value == pytest.approx((13 / 7 + 1) / 2)
    assert (result.conversations, result.conversations_planned, result.turns) == (4, 4, 4)
    assert "output_tps" not in result.metrics


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"coding": PARTS["coding"], "qa": None}, "its 2 categories, and 1 have no sound measurement: qa"),
        ({"coding": None, "qa": None}, "its 2 categories, and 2 have no sound measurement: coding, qa"),
        ({}, "its 0 categories, and 0 have no sound measurement: "),
    ],
)
def test_an_incomplete_family(parts: dict[str, Window | None], message: str) -> None:
    for measure_only in (False, True):
        result = overall(limit(0.5), parts=parts, measure_only=measure_only)
        assert result.verdict is Verdict.INVALID
        assert result.reasons == (Reason("incomplete_family", f"overall needs all of {message}"),)
        assert result.gates == ()


def test_overall_without_a_gate() -> None:
    result = overall()
    assert (result.verdict, codes(result)) == (Verdict.INVALID, ["no_gate"])
    assert overall(measure_only=True).verdict is None


def test_overall_cannot_gate_what_it_does_not_have() -> None:
    result = overall(limit(1.0, "output_tps"))
    assert (result.verdict, codes(result)) == (Verdict.INVALID, ["not_measured"])


def test_a_client_saturated_in_one_category_voids_overall_timing() -> None:
    # The category itself is sound where only its acceptance is gated.
    parts: dict[str, Window | None] = {**PARTS, "qa": replace(PARTS["qa"], client=SATURATED)}
    assert overall(limit(1.4), parts=parts).verdict is Verdict.PASS
    result = overall(limit(1.0, "user_tps"), parts=parts)
    assert (result.verdict, codes(result)) == (Verdict.INVALID, ["client_saturated"])
    assert result.reasons[0].message.startswith("qa: the load client was saturated")
    assert overall(limit(1.0, "user_tps")).verdict is Verdict.PASS


def test_overall_spends_half_of_alpha() -> None:
    # Two categories share the other half: 1.25 % each, t = 2.2414.
    files = (file_of(limit(9.0), cell=None),)
    both = judge_overall(ALL, dict(PARTS), rules(*files), LABELS)
    one = judge_window(PARTS["coding"], rules(*files), LABELS)
    assert both.gates[0].verdict is one.gates[0].verdict is Verdict.FAIL
    # α of the overall gate is 2.5 % and not split: FAIL below L (1 − 1.95996 × 0.005).
    mean = (13 / 7 + 1) / 2
    edge = (file_of(limit(mean / (1 - 1.9601 * 0.005)), cell=None),)
    inside = (file_of(limit(mean / (1 - 1.9598 * 0.005)), cell=None),)
    assert judge_overall(ALL, dict(PARTS), rules(*edge), LABELS).verdict is Verdict.FAIL
    assert judge_overall(ALL, dict(PARTS), rules(*inside), LABELS).verdict is Verdict.INCONCLUSIVE


def test_a_cell_that_could_not_be_measured() -> None:
    result = invalid(CODING, Reason("engine_died", "gone"), LABELS)
    assert (result.verdict, result.reasons) == (Verdict.INVALID, (Reason("engine_died", "gone"),))
    assert (result.profile, result.item_id, dict(result.metrics), result.gates) == (
        "llamacpp",
        LABELS.item_id,
        {},
        (),
    )


# Against a baseline


def against(new: Window, old: Window, *, k: int = 3, old_k: int = 3) -> CellResult:
    parts = shared([old], [new])
    runs = (assess(old, Speculation("draft", old_k) if old_k else Speculation(), ("old",)),)
    baseline = Baseline(
        "old.yaml",
        runs=tuple(each.run for each in runs if each.run is not None),
        shared=() if parts is None else (parts,),
        cells=(CODING,),
        reasons=tuple(reason for each in runs for reason in each.reasons),
    )
    given = replace(rules(k=k), gate_required=False)
    return judge_runs(CODING, [assess(new, given.speculation, ("new",))], given, LABELS, baseline)


def test_a_cell_against_what_it_was_before() -> None:
    same = window(TURNS, cell=CODING)
    result = against(same, same)
    assert result.verdict is Verdict.PASS
    (gate,) = result.gates
    assert (gate.kind, gate.metric) == ("paired", "acceptance_length")
    assert gate.value == pytest.approx(AL)
    assert gate.reference == pytest.approx(AL)
    worse = window(tuple(turn(f"q{i}", [1] * 12) for i in range(4)), cell=CODING)
    assert against(worse, same).verdict is Verdict.FAIL


def test_an_upgrade_that_lost_its_speculation_is_not_green() -> None:
    before = window(TURNS, cell=CODING)
    turns = tuple(plain(f"q{i}", 13) for i in range(4))
    after = window(turns, cell=CODING, counters=counters_of(turns, drafts=0))
    result = against(after, before, k=0)
    assert (result.verdict, codes(result)) == (Verdict.INVALID, ["no_gate"])
    assert "does not speculate, so nothing of this cell can be compared" in result.reasons[0].message


def test_a_baseline_that_is_no_measurement_is_none() -> None:
    result = against(window(TURNS, cell=CODING), broken("lost_requests"))
    assert (result.verdict, codes(result)[0]) == (Verdict.INVALID, "baseline_invalid")


def of_cells(new: tuple[tuple[int, int], ...], old: tuple[int, int] = (24, 24)) -> CellResult:
    """One repeat of every engine start, in windows whose steps are known for the cell only, between two numbers."""
    draft = Speculation("draft", 3)
    arms = [
        [
            assess(replace(stepless(low=low, high=high), start=start), draft, (str(start),))
            for start, (low, high) in enumerate(side)
        ]
        for side in (new, (old,) * len(new))
    ]
    baseline = Baseline("old.yaml", tuple(each.run for each in arms[1] if each.run is not None), (), (CODING,))
    return judge_runs(CODING, arms[0], replace(rules(), gate_required=False), LABELS, baseline)


def test_where_no_request_has_steps_whole_cells_are_compared() -> None:
    result = of_cells(((24, 24), (24, 24)))
    (gate,) = result.gates
    assert (result.verdict, gate.metric, gate.value) == (Verdict.PASS, "decode_acceptance_length", 2.0)
    # 48 tokens in 30 steps.
    (gate,) = of_cells(((30, 30), (30, 30))).gates
    assert gate.verdict is Verdict.FAIL
    assert (gate.value, gate.reference) == pytest.approx((1.6, 2.0))


def test_of_one_start_each_whole_cells_say_nothing() -> None:
    result = of_cells(((24, 24),))
    assert (result.verdict, result.gates[0].reason) == (Verdict.INCONCLUSIVE, "too_few_starts")


@pytest.mark.parametrize(("new", "old"), [((24, 25), (24, 24)), ((24, 24), (24, 25))])
def test_what_is_only_known_to_lie_between_two_numbers_is_not_compared(
    new: tuple[int, int], old: tuple[int, int]
) -> None:
    result = of_cells((new, new), old)
    assert (result.verdict, codes(result)) == (Verdict.INVALID, ["not_measured"])


def test_no_engine_start_is_left_out_because_its_events_were_joined() -> None:
    """One start has steps per request and is as before; the two others do not, and are worse."""
    draft = Speculation("draft", 3)
    old = [replace(window(TURNS, cell=CODING), start=start) for start in range(3)]
    new = [old[0], *(replace(stepless(low=30, high=30), start=start) for start in (1, 2))]
    sides = [[assess(own, draft, (str(own.start),)) for own in side] for side in (new, old)]
    parts = shared([old[0]], [new[0]])
    assert parts is not None
    baseline = Baseline("old.yaml", tuple(each.run for each in sides[1] if each.run is not None), (parts,), (CODING,))
    result = judge_runs(CODING, sides[0], replace(rules(), gate_required=False), LABELS, baseline)
    (gate,) = result.gates
    assert gate.metric == "decode_acceptance_length"
    assert gate.value == pytest.approx((2.0 + 1.6 + 1.6) / 3)
    assert gate.verdict is not Verdict.PASS
    assert gate.evidence.startswith("3 starts")
    assert gate.note.startswith("whole cells")

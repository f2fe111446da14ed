"""The text of a verdict, word for word."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pytest_speedbench.gates.verdict import GateResult, Verdict
from pytest_speedbench.gates.wording import failure_text, first_line
from pytest_speedbench.measure.diagnosis import Cause

DROPPED = GateResult(
    metric="acceptance_length",
    verdict=Verdict.FAIL,
    value=2.314,
    limit=2.382,
    ceiling=False,
    reference=2.431,
    margin=0.02,
    sigma=0.0024,
    guard=0.005,
    headroom=-0.0285,
    mde_not_passed=0.019,
    mde_failed=0.022,
    source="thresholds/h100-eagle3.yaml:14",
    evidence="6 starts × 2 repeats on 2026-12-01",
    conditional_reference=(0.71, 0.62, 0.44),
)
SLOW = replace(
    DROPPED,
    metric="ttft_p95_s",
    value=0.2311,
    limit=0.2,
    ceiling=True,
    reference=0.174,
    margin=0.15,
    guard=0.0395,
    mde_not_passed=0.123,
    mde_failed=0.17,
    conditional_reference=(),
)
HAND = replace(
    DROPPED,
    metric="user_tps",
    value=150.24,
    limit=160.0,
    reference=None,
    margin=None,
    mde_not_passed=None,
    mde_failed=None,
    source="thresholds/hand.yaml:3",
    note="assumed noise 2 %",
    evidence="",
    conditional_reference=(),
)


CAUSE = Cause("drafter_state", "drop starts there → look there")


def text_of(
    gate: GateResult,
    *,
    conditional: tuple[float, ...] = (),
    conversations: int = 88,
    cause: Cause | None = None,
) -> str:
    return failure_text(
        gate,
        where="overall",
        engine="vllm 0.24.0",
        conversations=conversations,
        conditional=conditional,
        cause=cause,
        reproduce="pytest --speedbench-engine=vllm --speedbench-split=qualitative",
    )


def test_failed_floor() -> None:
    assert text_of(DROPPED, conditional=(0.71, 0.52, 0.31), cause=CAUSE) == (
        "FAIL acceptance_length 2.314 < limit 2.382 (−4.8 % from 2.431, margin 2 %, noise ±0.5 %)"
        " · overall · vllm 0.24.0 · thresholds/h100-eagle3.yaml:14\n"
        "  reference from 6 starts × 2 repeats on 2026-12-01 · n = 88 conversations"
        " · not passed at a drop of 1.9 %, failed at 2.2 %\n"
        "  conditional acceptance 0.71 0.52 0.31 (was 0.71 0.62 0.44): drop starts there → look there\n"
        "  reproduce: pytest --speedbench-engine=vllm --speedbench-split=qualitative"
    )


def test_failed_ceiling_has_no_line_on_acceptance() -> None:
    assert text_of(SLOW, conditional=(0.71, 0.52, 0.31)) == (
        "FAIL ttft_p95_s 231.1 ms > limit 200.0 ms (+32.8 % from 174.0 ms, margin 15 %, noise ±4.0 %)"
        " · overall · vllm 0.24.0 · thresholds/h100-eagle3.yaml:14\n"
        "  reference from 6 starts × 2 repeats on 2026-12-01 · n = 88 conversations"
        " · not passed at a rise of 12.3 %, failed at 17.0 %\n"
        "  reproduce: pytest --speedbench-engine=vllm --speedbench-split=qualitative"
    )


def test_failed_hand_written_limit() -> None:
    assert text_of(HAND, conversations=1) == (
        "FAIL user_tps 150.2 tokens/s < limit 160.0 tokens/s (−6.1 % from the limit, assumed noise 2 %)"
        " · overall · vllm 0.24.0 · thresholds/hand.yaml:3\n"
        "  hand-written limit without a reference · n = 1 conversation\n"
        "  reproduce: pytest --speedbench-engine=vllm --speedbench-split=qualitative"
    )


@pytest.mark.parametrize(
    ("gate", "text"),
    [
        (
            replace(DROPPED, verdict=Verdict.INCONCLUSIVE, value=2.39),
            "INCONCLUSIVE acceptance_length 2.390 ≥ limit 2.382, too close to call "
            "(−1.7 % from 2.431, margin 2 %, noise ±0.5 %)",
        ),
        (
            replace(DROPPED, verdict=Verdict.INCONCLUSIVE, value=2.38),
            "INCONCLUSIVE acceptance_length 2.380 < limit 2.382, too close to call "
            "(−2.1 % from 2.431, margin 2 %, noise ±0.5 %)",
        ),
        (
            replace(SLOW, verdict=Verdict.INCONCLUSIVE, value=0.198),
            "INCONCLUSIVE ttft_p95_s 198.0 ms ≤ limit 200.0 ms, too close to call "
            "(+13.8 % from 174.0 ms, margin 15 %, noise ±4.0 %)",
        ),
        (
            replace(HAND, verdict=Verdict.INCONCLUSIVE, value=161.0),
            "INCONCLUSIVE user_tps 161.0 tokens/s ≥ limit 160.0 tokens/s, too close to call "
            "(+0.6 % from the limit, assumed noise 2 %)",
        ),
        (
            replace(DROPPED, verdict=Verdict.PASS, value=2.5),
            "PASS acceptance_length 2.500 ≥ limit 2.382 (+2.8 % from 2.431, margin 2 %, noise ±0.5 %)",
        ),
        (
            replace(DROPPED, guard=0.0, value=2.38199),
            "FAIL acceptance_length 2.38199 < limit 2.38200 (−2.0 % from 2.431, margin 2 %, no noise at calibration)",
        ),
        (
            replace(DROPPED, guard=0.00004, margin=0.025),
            "FAIL acceptance_length 2.314 < limit 2.382 (−4.8 % from 2.431, margin 2.5 %, noise ±0.004 %)",
        ),
        (
            replace(DROPPED, metric="acceptance_rate", value=0.4, limit=0.48, reference=0.5, margin=0.04),
            "FAIL acceptance_rate 0.400 < limit 0.480 (−20.0 % from 0.500, margin 4 %, noise ±0.5 %)",
        ),
        (
            replace(HAND, metric="output_tps", value=4711.4, limit=5100.0),
            "FAIL output_tps 4711 tokens/s < limit 5100 tokens/s (−7.6 % from the limit, assumed noise 2 %)",
        ),
        (
            replace(HAND, metric="output_tps", value=5099.8, limit=5100.0),
            "FAIL output_tps 5099.8 tokens/s < limit 5100.0 tokens/s (−0.004 % from the limit, assumed noise 2 %)",
        ),
        (
            replace(SLOW, metric="step_p50_s", value=0.00812, limit=0.0075, reference=0.007),
            "FAIL step_p50_s 8.12 ms > limit 7.50 ms (+16.0 % from 7.00 ms, margin 15 %, noise ±4.0 %)",
        ),
        (
            replace(SLOW, metric="e2e_p95_s", value=14.2, limit=12.5, reference=10.9),
            "FAIL e2e_p95_s 14.2 s > limit 12.5 s (+30.3 % from 10.9 s, margin 15 %, noise ±4.0 %)",
        ),
        (
            replace(SLOW, value=11.0, limit=9.5, reference=8.3),
            "FAIL ttft_p95_s 11000 ms > limit 9500 ms (+32.5 % from 8300 ms, margin 15 %, noise ±4.0 %)",
        ),
        (
            replace(
                DROPPED,
                verdict=Verdict.INVALID,
                value=math.nan,
                reason="not_measured",
                note="acceptance_length was not measured",
            ),
            "INVALID acceptance_length not_measured: acceptance_length was not measured",
        ),
    ],
)
def test_first_line(gate: GateResult, text: str) -> None:
    line = first_line(gate, where="coding", engine="sglang 0.5.16")
    assert line == f"{text} · coding · sglang 0.5.16 · {gate.source}"
    assert "\n" not in line


def test_invalid_gate_that_was_not_measured_has_a_text_too() -> None:
    gate = replace(HAND, verdict=Verdict.INVALID, value=math.nan, reason="not_measured", note="user_tps: nothing")
    assert text_of(gate).splitlines()[0].startswith("INVALID user_tps not_measured: user_tps: nothing · overall")


@pytest.mark.parametrize(
    ("reference", "cause", "text"),
    [
        ((), None, "0.71 0.52"),
        ((0.71, 0.62, 0.44), None, "0.71 0.52 (was 0.71 0.62 0.44)"),
        ((0.71, 0.62, 0.44), CAUSE, "0.71 0.52 (was 0.71 0.62 0.44): drop starts there → look there"),
    ],
)
def test_conditional_acceptance_stands_beside_what_it_was(
    reference: tuple[float, ...], cause: Cause | None, text: str
) -> None:
    gate = replace(DROPPED, conditional_reference=reference)
    lines = text_of(gate, conditional=(0.71, 0.52), cause=cause).splitlines()
    assert lines[2] == f"  conditional acceptance {text}"


def test_a_likely_cause_has_a_line_of_its_own_where_no_acceptance_is_shown() -> None:
    assert "  likely cause: drop starts there → look there" in text_of(SLOW, cause=CAUSE).splitlines()
    assert "likely cause" not in text_of(SLOW)


def test_acceptance_gate_without_rates_has_no_line_for_them() -> None:
    assert "conditional" not in text_of(DROPPED)

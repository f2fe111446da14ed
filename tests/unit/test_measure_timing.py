"""Rates and latencies of hand-made turns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.measure import timing
from pytest_speedbench.measure.samples import Turn
from tests.unit.test_measure_samples import MS, turn

# 9 tokens: sent at 0, first token at 100 ms, steps of 4, 3 and 1 tokens at 110, 120 and 130 ms.
FIRST = turn("a", [4, 3, 1], finish="length")
# 3 tokens: sent at 200 ms, first token at 250 ms, one step of 2 tokens at 290 ms.
SECOND = turn("b", [2], start_ms=200, first_ms=50, step_ms=40)
SINGLE = turn("c", [], start_ms=50, first_ms=10)


def test_output_tps_runs_from_the_first_request_to_the_last_token() -> None:
    assert timing.output_tps([SECOND, FIRST]) == pytest.approx(12 / 0.290)


def test_output_tps_of_one_token_is_its_own_wait() -> None:
    assert timing.output_tps([SINGLE]) == pytest.approx(1 / 0.010)


def test_steady_output_tps_counts_events_inside_the_window() -> None:
    # Of FIRST the events at 110 (begin, excluded), 120 and 130 ms; of SECOND that at 250 ms.
    assert timing.steady_output_tps([FIRST, SECOND], (110 * MS, 260 * MS)) == pytest.approx((3 + 1 + 1) / 0.150)
    # The end belongs to the window, the begin does not: adjoining windows share no event.
    assert timing.steady_output_tps([FIRST], (105 * MS, 110 * MS)) == pytest.approx(4 / 0.005)
    assert timing.steady_output_tps([FIRST], (130 * MS, 140 * MS)) == 0


def test_steady_output_tps_needs_a_window() -> None:
    assert timing.steady_output_tps([FIRST], None) is None
    assert timing.steady_output_tps([FIRST], (5, 5)) is None


def test_tokens_held_back_to_the_end_count_with_the_last_event() -> None:
    held = replace(FIRST, event_tokens=(1, 4, 1, 1))
    assert timing.steady_output_tps([held], (0, 130 * MS)) == pytest.approx(9 / 0.130)
    assert timing.steady_output_tps([held], (0, 125 * MS)) == pytest.approx(6 / 0.125)


def test_user_tps_and_tpot_start_at_the_first_token() -> None:
    assert timing.user_tps([FIRST, SECOND]) == pytest.approx([8 / 0.030, 2 / 0.040])
    assert timing.tpot_s([FIRST, SECOND]) == pytest.approx([0.030 / 8, 0.040 / 2])


def test_a_turn_whose_tokens_came_at_once_has_no_rate() -> None:
    burst = replace(FIRST, event_ns=(100 * MS,), event_tokens=(9,), step_ns=(100 * MS, -1, -1, -1))
    for turns in ([burst], [SINGLE], []):
        assert timing.user_tps(turns).size == 0
        assert timing.tpot_s(turns).size == 0


def test_ttft_and_e2e_start_when_the_request_is_sent() -> None:
    turns = [FIRST, SECOND, SINGLE]
    assert timing.ttft_s(turns) == pytest.approx([0.100, 0.050, 0.010])
    assert timing.e2e_s(turns) == pytest.approx([0.130, 0.090, 0.010])


def test_the_wait_for_the_first_token_is_no_step() -> None:
    assert timing.step_s([FIRST, SECOND, SINGLE]) == pytest.approx([0.010, 0.010, 0.010, 0.040])


def test_no_gap_is_formed_across_steps_that_were_not_seen() -> None:
    blind = replace(FIRST, step_ns=(100 * MS, 110 * MS, -1, -1, 150 * MS, 165 * MS, -1))
    assert timing.step_s([blind]) == pytest.approx([0.010, 0.015])
    assert timing.step_s([replace(FIRST, step_ns=(-1, 5 * MS))]).size == 0
    assert timing.step_s([replace(FIRST, step_ns=())]).size == 0


def test_steps_keep_their_precision_at_any_reading_of_the_clock() -> None:
    late = 10**18
    assert timing.step_s([replace(FIRST, step_ns=(late, late + 7))]).tolist() == [7e-9]


def test_output_lengths() -> None:
    assert timing.osl_mean([FIRST, SECOND, SINGLE]) == 13 / 3
    assert timing.osl_capped_share([FIRST, SECOND, SINGLE]) == 1 / 3


def test_nothing_measured() -> None:
    assert timing.output_tps([]) is None
    assert timing.osl_mean([]) is None
    assert timing.osl_capped_share([]) is None
    for values in (timing.ttft_s([]), timing.e2e_s([]), timing.step_s([])):
        assert values.size == 0
    # A window was held, and nothing came in it: that is a rate, and it is 0.
    assert timing.steady_output_tps([], (0, MS)) == 0


def test_a_turn_without_a_token_has_no_times() -> None:
    empty = replace(SINGLE, output_tokens=0, event_ns=(), event_tokens=(), step_ns=())
    assert timing.output_tps([empty]) is None
    assert timing.ttft_s([empty]).size == 0
    assert timing.steady_output_tps([empty], (0, MS)) == 0


def test_percentiles_interpolate_between_neighbours() -> None:
    values = np.array([4.0, 1.0, 3.0, 2.0])
    assert timing.percentile(values, 50) == 2.5
    assert timing.percentile(values, 95) == pytest.approx(3.85)
    assert timing.mean(values) == 2.5
    assert timing.percentile(np.array([7.0]), 99) == 7


@given(st.lists(st.lists(st.integers(1, 5), max_size=6), min_size=1, max_size=5), st.integers(1, 50))
def test_a_window_around_everything_holds_every_token(cell: list[list[int]], step_ms: int) -> None:
    turns = [turn(f"q{i}", lengths, step_ms=step_ms, start_ms=i) for i, lengths in enumerate(cell)]
    last = max(t.event_ns[-1] for t in turns)
    assert timing.steady_output_tps(turns, (0, last)) == pytest.approx(timing.output_tps(turns))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(1, 500))
def test_times_of_a_turn_add_up(lengths: list[int], step_ms: int) -> None:
    turns: list[Turn] = [turn("q", lengths, step_ms=step_ms)]
    [ttft], [e2e], [tpot] = timing.ttft_s(turns), timing.e2e_s(turns), timing.tpot_s(turns)
    assert ttft + timing.step_s(turns).sum() == pytest.approx(e2e)
    assert ttft + tpot * sum(lengths) == pytest.approx(e2e)
    assert timing.user_tps(turns) == pytest.approx([1 / tpot])

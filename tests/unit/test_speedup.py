"""Speed-ups: hand-computed values, what holds for any pair of runs, and real runs without and with speculation."""

from __future__ import annotations

import gzip
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_speedbench.cells import Cell
from pytest_speedbench.measure.pairing import pair_turns
from pytest_speedbench.measure.samples import Client, Counters, Turn, Window
from pytest_speedbench.measure.speedup import (
    PER_PROMPT,
    SPEEDUP,
    TOTAL_TIME,
    decode_speedups,
    decodings,
    speedups,
    tps_speedup,
)
from pytest_speedbench.report.requests import read_windows

ARTIFACTS = Path(__file__).parents[2] / "examples" / "h100" / "artifacts"
MS = 1_000_000


def turn(
    question_id: str,
    tokens: int,
    decode_ms: float,
    *,
    index: int = 0,
    ids: Sequence[int] | None = None,
    category: str = "math",
    start_ms: float = 0,
) -> Turn:
    """A turn whose first token comes 10 ms after its start, and its last ``decode_ms`` later."""
    first = round((start_ms + 10) * MS)
    last = first + round(decode_ms * MS)
    return Turn(
        question_id,
        category,
        index,
        prompt_tokens=5,
        output_tokens=tokens,
        finish="length",
        start_ns=round(start_ms * MS),
        event_ns=(first, last) if tokens > 1 else (first,),
        event_tokens=(1, tokens - 1) if tokens > 1 else (1,),
        step_ns=(),
        steps=None,
        text=None,
        output_ids=None if ids is None else tuple(ids),
    )


def window(turns: Sequence[Turn], *, concurrency: int = 1, steady_ms: tuple[float, float] | None = None) -> Window:
    steady = None if steady_ms is None else (round(steady_ms[0] * MS), round(steady_ms[1] * MS))
    cell = Cell("qualitative", concurrency, category="math")
    planned = tuple((t.question_id, 1) for t in turns)
    return Window(cell, planned, tuple(turns), (), Counters(), Client(0.0, 0.1), steady_ns=steady)


# Pairing


def test_first_turns_are_paired_and_later_ones_only_while_replies_agree() -> None:
    base = [turn("a", 3, 9, ids=[1, 2, 3]), turn("a", 2, 9, index=1, ids=[4, 5]), turn("a", 2, 9, index=2, ids=[6, 7])]
    new = [turn("a", 3, 9, ids=[1, 2, 3]), turn("a", 2, 9, index=1, ids=[4, 9]), turn("a", 2, 9, index=2, ids=[6, 7])]
    found = pair_turns(base, new)
    assert [[t.index for t in pair.base] for pair in found.pairs] == [[0, 1]]
    assert [[t.index for t in pair.new] for pair in found.pairs] == [[0, 1]]
    assert found.left_out == 1


def test_replies_without_ids_are_not_taken_for_equal() -> None:
    turns = [turn("a", 3, 9), turn("a", 2, 9, index=1)]
    found = pair_turns(turns, turns)
    assert [len(pair.base) for pair in found.pairs] == [1]
    assert found.left_out == 1


def test_repeated_conversations_are_paired_by_their_first_turns() -> None:
    once = [turn("a", 3, 9, ids=[1, 2, 3]), turn("a", 2, 9, index=1, ids=[4, 5])]
    (pair,) = pair_turns(once * 2, once).pairs
    assert [t.index for t in pair.base] == [0, 0]
    assert [t.index for t in pair.new] == [0]


def test_conversations_of_one_run_only_are_named() -> None:
    found = pair_turns([turn("b", 3, 9), turn("a", 3, 9)], [turn("a", 3, 9), turn("c", 3, 9)])
    assert [pair.question_id for pair in found.pairs] == ["a"]
    assert (found.only_base, found.only_new) == (("b",), ("c",))


def test_the_order_of_arrival_does_not_matter() -> None:
    turns = [turn("b", 3, 9), turn("a", 3, 9, category="stem"), turn("a", 4, 9)]
    assert [(p.category, p.question_id) for p in pair_turns(turns, turns[::-1]).pairs] == [
        ("math", "a"),
        ("math", "b"),
        ("stem", "a"),
    ]


# Hand-computed values


def test_time_per_token_is_compared_and_not_time() -> None:
    # a: 100 ms for 10 tokens against 25 ms for 5: 10 ms against 5 ms per token, though it took a quarter of the time.
    # b: 80 ms for 4 tokens against 20 ms for 8: 20 ms against 2.5 ms.
    plain = [turn("a", 11, 100), turn("b", 5, 80)]
    fast = [turn("a", 6, 25), turn("b", 9, 20)]
    assert [pair.speedup for pair in decodings(plain, fast)] == pytest.approx([2.0, 8.0])
    found = decode_speedups(plain, fast, seed_parts=("x",))
    assert found[PER_PROMPT].value == pytest.approx(4.0)  # √(2 · 8)
    # At the mean lengths 7.5 and 6: 75 + 120 ms against 37.5 + 15 ms.
    assert found[TOTAL_TIME].value == pytest.approx(195 / 52.5)


def test_two_turns_of_a_conversation_are_one_rate() -> None:
    plain = [turn("a", 3, 20, ids=[1, 2, 3]), turn("a", 9, 40, index=1, ids=[0] * 9)]
    fast = [turn("a", 3, 10, ids=[1, 2, 3]), turn("a", 9, 50, index=1, ids=[0] * 9)]
    (pair,) = decodings(plain, fast)
    assert (pair.plain_tokens, pair.fast_tokens) == (10, 10)
    assert [pair.plain_s, pair.fast_s] == pytest.approx([0.06, 0.06])


def test_a_turn_in_one_event_has_no_rate() -> None:
    assert decodings([turn("a", 1, 0)], [turn("a", 5, 10)]) == ()
    assert decode_speedups([turn("a", 1, 0)], [turn("a", 5, 10)], seed_parts=()) == {}


def test_one_prompt_has_no_interval() -> None:
    found = decode_speedups([turn("a", 11, 100)], [turn("a", 11, 50)], seed_parts=())
    assert (found[PER_PROMPT].low, found[TOTAL_TIME].high) == (None, None)


def test_equal_prompts_have_an_interval_of_no_width() -> None:
    plain, fast = ([turn(name, 11, ms) for name in "abcd"] for ms in (100, 50))
    metric = decode_speedups(plain, fast, seed_parts=())[PER_PROMPT]
    assert metric.low == pytest.approx(2.0)
    assert metric.high == pytest.approx(2.0)


def test_output_rates_are_compared_over_the_whole_window() -> None:
    # 11 tokens in 110 ms against 11 in 60 ms.
    found = speedups(window([turn("a", 11, 100)]), window([turn("a", 11, 50)]), seed_parts=())
    assert found[SPEEDUP].value == pytest.approx(110 / 60)
    assert found[SPEEDUP].low is None


def test_the_steady_window_counts_where_there_are_prompts_enough() -> None:
    turns = [turn(name, 11, 100) for name in "abcd"]
    plain, fast = window(turns, steady_ms=(0, 110)), window(turns, steady_ms=(0, 55))
    # In the steady windows: all 44 tokens in 110 ms; only the 4 first ones in 55 ms.
    assert speedups(plain, fast, seed_parts=())[SPEEDUP].value == pytest.approx((4 / 55) / (44 / 110))
    few = [replace(w, cell=replace(w.cell, concurrency=2)) for w in (plain, fast)]
    assert speedups(few[0], few[1], seed_parts=())[SPEEDUP].value == pytest.approx(1.0)


def test_a_steady_rate_in_one_run_only_is_not_compared_with_another_rate() -> None:
    plain = {"steady_output_tps": 100.0, "output_tps": 80.0}
    assert tps_speedup(plain, {"output_tps": 160.0}, steady=True) == 2.0
    assert tps_speedup(plain, {"steady_output_tps": 300.0, "output_tps": 160.0}, steady=True) == 3.0
    assert tps_speedup(plain, {"steady_output_tps": 300.0, "output_tps": 160.0}, steady=False) == 2.0
    assert tps_speedup(plain, {}, steady=True) is None
    assert tps_speedup({"output_tps": 0.0}, {"output_tps": 1.0}, steady=True) is None


# What holds for any pair of runs

answers = st.lists(
    st.tuples(st.integers(2, 200), st.floats(1, 1e4), st.integers(2, 200), st.floats(1, 1e4)), min_size=2, max_size=12
)


def both(rows: Sequence[tuple[int, float, int, float]]) -> tuple[list[Turn], list[Turn]]:
    return (
        [turn(f"{i:02}", n, ms) for i, (n, ms, _, _) in enumerate(rows)],
        [turn(f"{i:02}", n, ms) for i, (_, _, n, ms) in enumerate(rows)],
    )


@settings(max_examples=25, deadline=None)
@given(answers)
def test_exchanging_the_runs_inverts_the_speed_up(rows: list[tuple[int, float, int, float]]) -> None:
    plain, fast = both(rows)
    there, back = (decode_speedups(*pair, seed_parts=("x",)) for pair in ((plain, fast), (fast, plain)))
    for name in (PER_PROMPT, TOTAL_TIME):
        assert there[name].value * back[name].value == pytest.approx(1.0)


@settings(max_examples=25, deadline=None)
@given(answers)
def test_the_speed_up_lies_within_those_of_the_prompts(rows: list[tuple[int, float, int, float]]) -> None:
    plain, fast = both(rows)
    own = [pair.speedup for pair in decodings(plain, fast)]
    for metric in decode_speedups(plain, fast, seed_parts=("x",)).values():
        assert min(own) * (1 - 1e-9) <= metric.value <= max(own) * (1 + 1e-9)
        assert metric.low is not None
        assert metric.high is not None
        assert min(own) * (1 - 1e-9) <= metric.low <= metric.high <= max(own) * (1 + 1e-9)


@settings(max_examples=25, deadline=None)
@given(answers, st.floats(0.2, 5))
def test_a_run_that_is_slower_by_a_factor_throughout(rows: list[tuple[int, float, int, float]], factor: float) -> None:
    plain, fast = both(rows)
    slower = both([(n, ms * factor, m, other) for n, ms, m, other in rows])[0]
    before, after = (decode_speedups(run, fast, seed_parts=("x",)) for run in (plain, slower))
    for name in (PER_PROMPT, TOTAL_TIME):
        assert after[name].value == pytest.approx(before[name].value * factor, rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(answers)
def test_equal_samples_give_equal_intervals(rows: list[tuple[int, float, int, float]]) -> None:
    plain, fast = both(rows)
    assert decode_speedups(plain, fast, seed_parts=("x",)) == decode_speedups(plain[::-1], fast, seed_parts=("x",))


# Real runs


@pytest.mark.parametrize("engine", ["vllm-0.24.0", "sglang-0.5.16"])
def test_real_speed_ups_are_what_the_request_logs_say(engine: str) -> None:
    cell = Cell("throughput", 8, isl="2k", difficulty="mixed")
    plain, fast = (one_window(f"{engine}-{method}", cell) for method in ("none", "draft"))
    found = speedups(plain, fast, seed_parts=("x",))
    per_token = [seconds_per_token(f"{engine}-{method}") for method in ("none", "draft")]
    logs = [math.log(per_token[0][question_id] / per_token[1][question_id]) for question_id in per_token[0]]
    assert len(logs) == 16
    assert found[PER_PROMPT].value == pytest.approx(math.exp(sum(logs) / len(logs)))
    low, high = found[PER_PROMPT].low, found[PER_PROMPT].high
    assert low is not None
    assert high is not None
    assert low < found[PER_PROMPT].value < high < 1, "a model of 135M parameters is its own best drafter"


def one_window(run: str, cell: Cell) -> Window:
    return next(w for _, w in read_windows(ARTIFACTS / run / "speedbench-requests.jsonl.gz") if w.cell == cell)


def seconds_per_token(run: str) -> dict[str, float]:
    """Decode seconds per token of each prompt of the 2k-mixed bucket at concurrency 8, read without the package."""
    tokens, spans = defaultdict[str, int](int), defaultdict[str, float](float)
    with gzip.open(ARTIFACTS / run / "speedbench-requests.jsonl.gz", "rt") as stream:
        wanted = False
        for line in stream:
            record = json.loads(line)
            if "cell" in record:
                cell = record["cell"]
                wanted = (cell["isl"], cell["difficulty"], cell["concurrency"]) == ("2k", "mixed", 8)
            if wanted and "event_ns" in record:
                tokens[record["question_id"]] += record["output_tokens"] - 1
                spans[record["question_id"]] += (record["event_ns"][-1] - record["event_ns"][0]) / 1e9
    return {question_id: spans[question_id] / tokens[question_id] for question_id in tokens}

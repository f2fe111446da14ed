"""The metrics of a cell under their names."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from pytest_speedbench.measure.metrics import METRICS, Metric
from pytest_speedbench.measure.samples import Counters, StepTotal, Told, Turn
from pytest_speedbench.measure.statistics import bootstrap_mean, bootstrap_ratio, seed_of
from pytest_speedbench.measure.summary import summarise, summarise_overall
from tests.unit.test_measure_samples import MS, counters_of, known, plain, steps_of, turn, window

# N output tokens, S decode steps, A of D drafts accepted; the last event of each turn.
TURNS = (
    turn("a", [4, 4, 4], cut=1),  # N 12, S 3, A 9, D 9; 130 ms
    turn("a", [2], index=1, start_ms=200, finish="length"),  # N 3, S 1, A 1, D 3; to 310 ms
    turn("b", [1, 1, 1], start_ms=50),  # N 4, S 3, A 0, D 9; to 180 ms
)


def test_drafted_length_from_what_turns_tell_where_the_server_counts_no_accepted_drafts() -> None:
    # As SGLang: 10 accepted drafts in 4 steps that drafted, and 0 in 3.
    told = [Told(drafts=n, accepted=a) for n, a in ((3, 9), (1, 1), (3, 0))]
    turns = tuple(replace(t, told=said) for t, said in zip(TURNS, told, strict=True))
    metrics, _ = summarise(window(turns, counters=Counters(drafts=7)), seed_parts=("cell",))
    assert metrics["drafted_acceptance_length"].value == 1 + 10 / 7
    metrics, _ = summarise(window(TURNS, counters=Counters(drafts=7)), seed_parts=("cell",))
    assert "drafted_acceptance_length" not in metrics


def test_every_metric_by_hand() -> None:
    measured = window(TURNS, counters=counters_of(TURNS, drafts=5), steady_ns=(100 * MS, 200 * MS))
    metrics, acceptance = summarise(measured, seed_parts=("cell",))
    assert {name: metric.value for name, metric in metrics.items()} == pytest.approx(
        {
            "acceptance_length": (15 / 6 + 4 / 4) / 2,
            "acceptance_length_pooled": 19 / 10,
            "decode_acceptance_length": 16 / 7,
            "decode_acceptance_length_uncut": 10 / 4,
            "drafted_acceptance_length": 1 + 10 / 5,
            "acceptance_rate": 10 / 21,
            "output_tps": 19 / 0.310,
            # Of a the steps after 100 ms, 4 + 4 + 3 tokens, and all 4 events of b.
            "steady_output_tps": 15 / 0.100,
            "user_tps": (11 / 0.030 + 2 / 0.010 + 3 / 0.030) / 3,
            "user_tps_p50": 200,
            "user_tps_p5": 100 + 0.1 * 100,
            "ttft_mean_s": 0.100,
            "ttft_p50_s": 0.100,
            "ttft_p95_s": 0.100,
            "ttft_p99_s": 0.100,
            "e2e_mean_s": 0.370 / 3,
            "e2e_p50_s": 0.130,
            "e2e_p95_s": 0.130,
            "e2e_p99_s": 0.130,
            "step_mean_s": 0.010,
            "step_p50_s": 0.010,
            "step_p95_s": 0.010,
            "step_p99_s": 0.010,
            "tpot_mean_s": (0.030 / 11 + 0.010 / 2 + 0.030 / 3) / 3,
            "tpot_p50_s": 0.005,
            "tpot_p95_s": 0.005 + 0.9 * 0.005,
            "tpot_p99_s": 0.005 + 0.98 * 0.005,
            "osl_mean": 19 / 3,
            "osl_capped_share": 1 / 3,
        }
    )
    # What compares two runs is no metric of one.
    assert list(metrics) == [n for n, spec in METRICS.items() if spec.unit not in ("×", "streams", "turns")]
    assert acceptance.histogram == {1: 6, 2: 1, 3: 1, 4: 2}


def test_intervals_resample_conversations_with_the_items_seed() -> None:
    # Unequal numbers of steps, so that the ratios are fine-grained and another seed shows.
    turns = tuple(turn(f"q{i:02}", [1 + (i * j) % 4 for j in range(1, 5 + i * 7 % 17)]) for i in range(20))
    metrics, _ = summarise(window(turns, counters=Counters()), seed_parts=("vllm", "coding"))

    def seed(name: str) -> int:
        return seed_of("vllm", "coding", name)

    tokens = [t.output_tokens for t in turns]
    steps = [steps_of(t).count for t in turns]
    with_prefill = [s + 1 for s in steps]
    expected = {
        "acceptance_length": bootstrap_mean(
            [n / s for n, s in zip(tokens, with_prefill, strict=True)], seed=seed("acceptance_length")
        ),
        "acceptance_length_pooled": bootstrap_ratio(tokens, with_prefill, seed=seed("acceptance_length_pooled")),
        "decode_acceptance_length": bootstrap_ratio(
            [n - 1 for n in tokens], steps, seed=seed("decode_acceptance_length")
        ),
        "acceptance_rate": bootstrap_ratio(
            [known(steps_of(t).accepted) for t in turns],
            [known(steps_of(t).drafted) for t in turns],
            seed=seed("acceptance_rate"),
        ),
    }
    with_interval = {name: (m.low, m.high) for name, m in metrics.items() if m.low is not None}
    assert with_interval == expected
    for name in expected:
        low, high = with_interval[name]
        assert low is not None
        assert high is not None
        assert low < metrics[name].value < high


def test_turns_of_one_conversation_are_resampled_together() -> None:
    # One conversation, two turns: there is nothing to resample, however many turns it has.
    metrics, _ = summarise(window(TURNS[:2], counters=Counters()), seed_parts=("cell",))
    assert metrics["acceptance_length"] == Metric(15 / 6)


def test_what_is_not_defined_is_absent() -> None:
    single = (turn("a", []),)
    metrics, _ = summarise(window(single, counters=Counters()), seed_parts=("cell",))
    assert set(metrics) == {
        "acceptance_length",
        "acceptance_length_pooled",
        "output_tps",
        *(f"{quantity}_{s}_s" for quantity in ("ttft", "e2e") for s in ("mean", "p50", "p95", "p99")),
        "osl_mean",
        "osl_capped_share",
    }


def test_nothing_measured_has_no_metric() -> None:
    metrics, acceptance = summarise(window([], counters=Counters()), seed_parts=())
    assert metrics == {}
    assert acceptance.histogram == {}


def test_without_speculation_acceptance_lengths_are_one_and_rates_are_absent() -> None:
    turns = (plain("a", 9), plain("b", 4))
    metrics, _ = summarise(window(turns, counters=counters_of(turns, drafts=0)), seed_parts=("cell",))
    one = Metric(1.0, 1.0, 1.0)
    assert metrics["acceptance_length"] == metrics["acceptance_length_pooled"] == one
    assert metrics["decode_acceptance_length"] == one
    assert metrics["decode_acceptance_length_uncut"] == Metric(1.0)
    assert not {"acceptance_rate", "drafted_acceptance_length"} & set(metrics)


def test_the_order_of_arrival_changes_no_number() -> None:
    turns = [turn(f"q{i}", [1 + (i * j) % 4 for j in range(1, 6)], step_ms=7 + i) for i in range(12)]
    shuffled = random.Random(3).sample(turns, len(turns))
    first, second = (window(order, steady_ns=(0, 130 * MS)) for order in (turns, shuffled))
    assert summarise(first, seed_parts=("cell",)) == summarise(second, seed_parts=("cell",))


# Steps that are known for the cell only


def stepless(turns: Sequence[Turn]) -> list[Turn]:
    return [replace(t, steps=None) for t in turns]


def test_a_bracket_of_steps_is_a_bracket_of_lengths_and_the_value_its_lower_end() -> None:
    # 19 tokens in 3 turns: S lies in 7 to 8.
    measured = window(stepless(TURNS), counters=Counters(accepted=10), total=StepTotal(7, 8, "bracket"))
    metrics, acceptance = summarise(measured, seed_parts=("cell",))
    assert metrics["acceptance_length_pooled"] == Metric(19 / 11, bracket=(19 / 11, 19 / 10))
    assert metrics["decode_acceptance_length"] == Metric(16 / 8, bracket=(16 / 8, 16 / 7))
    assert not {"acceptance_length", "decode_acceptance_length_uncut", "acceptance_rate"} & set(metrics)
    assert {name for name, metric in metrics.items() if metric.bracket} == {
        "acceptance_length_pooled",
        "decode_acceptance_length",
    }
    assert acceptance.histogram == {}


def test_an_exact_total_has_no_bracket_and_no_interval() -> None:
    counters = Counters(steps=7, drafts=5, drafted=21, accepted=10)
    measured = window(stepless(TURNS), counters=counters, total=StepTotal(7, 7, "counter"))
    metrics, _ = summarise(measured, seed_parts=("cell",))
    assert metrics["acceptance_length_pooled"] == Metric(19 / 10)
    assert metrics["decode_acceptance_length"] == Metric(16 / 7)
    assert metrics["acceptance_rate"] == Metric(10 / 21)
    assert metrics["drafted_acceptance_length"] == Metric(1 + 10 / 5)


def test_steps_that_add_up_give_the_same_with_a_total_and_without() -> None:
    with_total = replace(window(TURNS), steps=StepTotal(7, 7, "per step"))
    assert summarise(with_total, seed_parts=("cell",)) == summarise(window(TURNS), seed_parts=("cell",))


def test_neither_steps_nor_a_total_is_no_length_at_all() -> None:
    metrics, _ = summarise(window(stepless(TURNS), counters=Counters()), seed_parts=("cell",))
    assert not [name for name in metrics if "acceptance" in name]
    assert metrics["output_tps"].value > 0


def test_overall_adds_up_what_the_categories_know() -> None:
    coding = window(stepless(TURNS), counters=Counters(accepted=10), total=StepTotal(7, 8, "bracket"))
    maths = window([turn("z", [2, 2], category="math")])
    metrics, _ = summarise_overall([coding, maths], seed_parts=("overall",))
    # 5 more tokens in 2 more steps.
    assert metrics["acceptance_length_pooled"] == Metric(24 / 14, bracket=(24 / 14, 24 / 13))
    assert metrics["decode_acceptance_length"] == Metric(20 / 10, bracket=(20 / 10, 20 / 9))
    assert "acceptance_length" not in metrics
    unknown = window(stepless(TURNS), counters=Counters())
    metrics, _ = summarise_overall([unknown, maths], seed_parts=("overall",))
    assert not {"acceptance_length_pooled", "decode_acceptance_length"} & set(metrics)


def test_a_prompt_that_was_repeated_is_one_conversation() -> None:
    once = [turn("a", [4, 4]), turn("b", [1, 1])]
    metrics, _ = summarise(window(once), seed_parts=("cell",))
    repeated, _ = summarise(window([*once, *once]), seed_parts=("cell",))
    assert repeated["acceptance_length"] == metrics["acceptance_length"]
    assert repeated["osl_mean"] == metrics["osl_mean"]


# Overall


def test_overall_is_the_mean_over_the_conversations_of_all_categories() -> None:
    coding = window(TURNS, counters=counters_of(TURNS, drafts=5), steady_ns=(0, 100 * MS))
    math_turns = (turn("a", [2, 2], category="math"),)
    maths = window(math_turns, counters=counters_of(math_turns))
    metrics, acceptance = summarise_overall([coding, maths], seed_parts=("overall",))
    # "a" is in both categories; these are two conversations.
    assert metrics["acceptance_length"].value == pytest.approx((15 / 6 + 4 / 4 + 5 / 3) / 3)
    assert metrics["acceptance_length_pooled"].value == 24 / 13
    assert metrics["drafted_acceptance_length"].value == 1 + 12 / 7
    assert metrics["osl_mean"].value == 24 / 4
    assert metrics["user_tps"].value > 0
    assert acceptance.histogram == {1: 7, 2: 3, 3: 1, 4: 2}


def test_overall_has_no_output_rate_since_its_windows_did_not_run_side_by_side() -> None:
    windows = [window(TURNS, steady_ns=(0, 100 * MS)), window([turn("z", [2], category="math")])]
    metrics, _ = summarise_overall(windows, seed_parts=("overall",))
    assert not {"output_tps", "steady_output_tps"} & set(metrics)


def test_overall_has_no_counter_that_one_window_lacks() -> None:
    windows = [window(TURNS), window([turn("z", [2])], counters=Counters(accepted=1))]
    metrics, _ = summarise_overall(windows, seed_parts=("overall",))
    assert "drafted_acceptance_length" not in metrics
    assert summarise_overall([], seed_parts=())[0] == {}

"""Where speculation stops paying: hand-made curves, error rates in simulation, and the map in every format."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.cells import Cell
from pytest_speedbench.gates.crossover import (
    METRIC,
    Answer,
    Point,
    crossover,
    judge_crossover,
    point,
)
from pytest_speedbench.gates.limits import Limit
from pytest_speedbench.gates.verdict import GateResult, Verdict
from pytest_speedbench.measure.metrics import Metric
from pytest_speedbench.measure.student import t_quantile
from pytest_speedbench.report.crossover import CellSpeedup, SpeedupMap, lines, markdown, to_json
from pytest_speedbench.report.table import plain

CONCURRENCIES = (2, 4, 8, 16, 32, 64, 128, 256, 512)


def curve(speedups: dict[int, float], sigma: float = 0.01) -> list[Point]:
    return [Point(concurrency, speedup, sigma) for concurrency, speedup in speedups.items()]


def gate(points: Sequence[Point], least: float, *, missing: Sequence[int] = (), pays: float = 1.0) -> GateResult:
    limit = Limit(METRIC, least, False, "thresholds/x.yaml:3")
    return judge_crossover(points, limit, missing=missing, pays=pays)


# Points


def test_a_start_counts_once_however_often_it_was_repeated() -> None:
    runs = [(0, 2.0), (0, 2.0), (0, 2.0), (1, 1.0), (2, 4.0)]
    found = point(8, runs, assumed=0.5)
    assert found.speedup == pytest.approx(2.0)  # ∛(2 · 1 · 4)
    assert found.sigma == pytest.approx(math.log(2) / math.sqrt(3))
    assert found.df == 2


def test_two_starts_do_not_show_how_starts_differ() -> None:
    found = point(8, [(0, 1.5), (1, 1.5)], assumed=0.03)
    assert found.sigma == pytest.approx(0.03 / math.sqrt(2))
    assert found.df == math.inf


@pytest.mark.parametrize("runs", [[], [(0, 0.0)], [(0, math.nan)], [(0, math.inf)]])
def test_what_is_no_speed_up_is_refused(runs: list[tuple[int, float]]) -> None:
    with pytest.raises(ValueError, match="speed-ups above 0"):
        point(8, runs, assumed=0.03)


# The crossover


def test_bounds_are_one_sided_and_the_upper_one_is_shared_by_all_points() -> None:
    found = crossover(curve({1: 2.0, 2: 0.5}, sigma=0.1), alpha=0.05, beta=0.05)
    assert found.bounds[0].low == pytest.approx(2 * math.exp(-0.1 * t_quantile(0.95, math.inf)))
    assert found.bounds[0].high == pytest.approx(2 * math.exp(0.1 * t_quantile(0.975, math.inf)))


@pytest.mark.parametrize(
    ("speedups", "paid", "possible", "words"),
    [
        ({1: 1.8, 8: 1.4, 64: 0.8}, 8, 8, "pays up to 8"),
        ({1: 1.8, 8: 1.01, 64: 0.8}, 1, 8, "pays up to 1, open up to 8"),
        ({1: 1.8, 8: 1.4, 64: 1.3}, 64, 64, "pays up to 64 or more"),
        ({1: 0.4, 8: 0.4}, 0, 0, "never pays"),
        ({1: 1.0, 8: 0.4}, 0, 1, "open up to 1"),
        ({1: 0.8, 8: 1.4, 64: 0.8}, 0, 8, "open up to 8"),
        ({}, 0, 0, "not measured"),
    ],
)
def test_the_crossover(speedups: dict[int, float], paid: int, possible: int, words: str) -> None:
    found = crossover(curve(speedups))
    assert (found.paid, found.possible, str(found)) == (paid, possible, words)


def test_a_speed_up_that_must_exceed_more_than_one() -> None:
    points = curve({1: 1.5, 8: 1.05})
    assert (crossover(points).paid, crossover(points, pays=1.1).paid) == (8, 1)


def test_one_concurrency_has_one_speed_up() -> None:
    with pytest.raises(ValueError, match="two speed-ups"):
        crossover([Point(1, 2.0, 0.1), Point(1, 2.0, 0.1)])


@given(
    st.dictionaries(st.sampled_from(CONCURRENCIES), st.floats(0.1, 10), min_size=1),
    st.floats(0, 0.5),
)
def test_what_is_paid_is_possible(speedups: dict[int, float], sigma: float) -> None:
    found = crossover(curve(speedups, sigma))
    assert found.paid <= found.possible or found.contradicted
    assert {b.concurrency for b in found.bounds if b.concurrency <= found.paid} == {
        b.concurrency for b in found.bounds if b.concurrency <= found.paid and b.answer is Answer.PAYS
    }
    assert not [b for b in found.bounds if b.concurrency > found.possible and b.answer is not Answer.COSTS]


@pytest.mark.parametrize("crossing", [6.0, 24.0, 96.0, 300.0])
def test_a_known_crossover_is_found_within_one_step(crossing: float) -> None:
    # Speed-up falls by 10 % with every doubling, as draft cost grows; noise is 2 %.
    draws = random.Random(f"crossing {crossing}")
    last = max(c for c in CONCURRENCIES if c < crossing)
    steps = []
    for _ in range(200):
        points = [Point(c, (crossing / c) ** 0.15 * math.exp(draws.gauss(0, 0.02)), 0.02) for c in CONCURRENCIES]
        found = crossover(points)
        steps.append(CONCURRENCIES.index(last) - (CONCURRENCIES.index(found.paid) if found.paid else -1))
        assert abs(CONCURRENCIES.index(found.possible) - CONCURRENCIES.index(last)) <= 1
    assert max(map(abs, steps)) <= 1


# The gate


@pytest.mark.parametrize(
    ("speedups", "verdict", "reason"),
    [
        ({8: 1.5, 64: 1.2, 256: 0.8}, Verdict.PASS, None),
        ({8: 1.5, 64: 0.9, 256: 0.8}, Verdict.FAIL, None),
        # Lost at a small batch already, and nothing above says otherwise.
        ({8: 0.9, 64: 1.0, 256: 0.9}, Verdict.FAIL, None),
        ({8: 1.5, 64: 1.01, 256: 0.8}, Verdict.INCONCLUSIVE, None),
        # One cell contradicts a larger one: noise, or a curve that is not what is thought.
        ({8: 0.8, 64: 1.2, 256: 0.8}, Verdict.INCONCLUSIVE, None),
        # Not measured at 64, but at 128 it still pays.
        ({8: 1.5, 128: 1.2}, Verdict.PASS, None),
        ({8: 1.5, 128: 0.8}, Verdict.INVALID, "not_measured"),
        ({8: 1.5, 32: 1.4}, Verdict.INVALID, "not_measured"),
        ({8: 0.7, 32: 0.6}, Verdict.FAIL, None),
        ({}, Verdict.INVALID, "not_measured"),
    ],
)
def test_a_gate_at_64(speedups: dict[int, float], verdict: Verdict, reason: str | None) -> None:
    found = gate(curve(speedups), 64)
    assert (found.verdict, found.reason) == (verdict, reason)
    assert (found.metric, found.limit, found.source) == (METRIC, 64, "thresholds/x.yaml:3")


def test_the_value_is_what_was_shown() -> None:
    found = gate(curve({8: 1.5, 64: 1.01, 256: 0.8}), 64)
    assert found.value == 8
    assert found.headroom == pytest.approx(-0.875)
    assert found.note == (
        "pays up to 8, open up to 64: speed-up 1.01 (0.99–1.03) at 64: too close to call; measure again"
    )


def test_the_cell_that_contradicts_is_named() -> None:
    note = gate(curve({8: 0.8, 64: 1.2, 256: 0.8}), 64).note
    assert "0.80 (0.79–0.82) at 8" in note
    assert "at a larger concurrency it does; measure again" in note


def test_a_missing_cell_below_the_limit_is_no_pass() -> None:
    points = curve({8: 1.5, 64: 1.2})
    assert gate(points, 64, missing=[256]).verdict is Verdict.PASS
    found = gate(points, 64, missing=[32])
    assert (found.verdict, found.reason) == (Verdict.INVALID, "not_measured")
    assert "no valid speed-up at 32" in found.note
    # That it does not pay at 8 is known whatever 32 would have been.
    assert gate(curve({8: 0.5, 64: 0.5}), 64, missing=[32]).verdict is Verdict.FAIL


def test_what_must_be_exceeded_is_said() -> None:
    found = gate(curve({8: 1.5, 64: 1.05}), 64, pays=1.1)
    assert found.verdict is Verdict.FAIL
    assert found.note.endswith("counted from a speed-up of 1.1")


def test_a_limit_on_something_else_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="output_tps"):
        judge_crossover([], Limit("output_tps", 1.0, False, "x"))


def rate(
    truth: dict[int, float], verdict: Verdict, *, starts: int = 4, sigma: float = 0.03, times: int = 2000
) -> float:
    """How often the gate at 64 gives this verdict, from ``starts`` engine starts each, their spread measured."""
    draws = random.Random(f"{truth} {starts}")
    hits = 0
    for _ in range(times):
        points = [
            point(c, [(start, value * math.exp(draws.gauss(0, sigma))) for start in range(starts)], assumed=sigma)
            for c, value in truth.items()
        ]
        hits += gate(points, 64).verdict is verdict
    return hits / times


def test_a_batch_that_does_not_pay_passes_in_at_most_five_percent() -> None:
    # At the limit exactly, once at its own concurrency and once below it. 5 % and three standard errors.
    most = 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)
    assert rate({8: 1.5, 64: 1.0}, Verdict.PASS) <= most
    assert rate({8: 1.5, 16: 1.0, 32: 1.4, 64: 1.3}, Verdict.PASS) <= most
    assert rate({2: 1.0, 8: 1.0, 64: 1.0}, Verdict.PASS) <= most


def test_batches_that_pay_fail_in_at_most_five_percent() -> None:
    most = 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)
    assert rate({8: 1.0, 16: 1.0, 32: 1.0, 64: 1.0}, Verdict.FAIL) <= most


def test_a_clear_loss_fails_and_a_clear_gain_passes() -> None:
    assert rate({8: 1.5, 32: 1.2, 64: 0.8}, Verdict.FAIL, times=300) > 0.9
    assert rate({8: 1.6, 32: 1.4, 64: 1.3}, Verdict.PASS, times=300) > 0.9


# The map


def example() -> SpeedupMap:
    def cell(difficulty: str, concurrency: int) -> Cell:
        return Cell("throughput", concurrency, isl="8k", difficulty=difficulty)

    return SpeedupMap.of(
        "vllm",
        [
            CellSpeedup(cell("mixed", 8), ((0, 1.8),), Metric(2.0, 1.9, 2.1), Metric(1.95, 1.8, 2.0)),
            CellSpeedup(cell("mixed", 64), ((0, 1.01),), Metric(1.2), Metric(1.1)),
            CellSpeedup(cell("mixed", 512), ((0, 0.7),)),
            CellSpeedup(cell("high_entropy", 8), ((0, 1.4),)),
            CellSpeedup(cell("high_entropy", 64), invalid="client_saturated"),
            CellSpeedup(Cell("qualitative", 8, category="math"), per_prompt=Metric(1.5, 1.4, 1.6)),
        ],
    )


def test_the_map_in_a_terminal() -> None:
    assert plain(lines(example(), width=100, encoding="utf-8")).splitlines() == [
        "speed-up of output tokens per second, by concurrency: ▲ pays, ○ open, ▼ costs",
        "cell                  8       64     512  crossover",
        "8k-mixed         1.80 ▲   1.01 ○  0.70 ▼  8–64",
        "8k-high_entropy  1.40 ▲  invalid       –  8+",
        "assumed noise 2.8 % of each speed-up: fewer than 3 engine starts do not show how starts differ",
        "invalid, client_saturated: 8k-high_entropy-c64",
        "",
        "speed-up of decoding the same prompts, 95 % intervals",
        "cell                     per prompt   interval  total time   interval",
        "throughput-8k-mixed-c8         2.00  1.90–2.10        1.95  1.80–2.00",
        "throughput-8k-mixed-c64        1.20          –        1.10          –",
        "qualitative-math-c8            1.50  1.40–1.60           –          –",
    ]


def test_the_map_in_ascii() -> None:
    text = plain(lines(example(), width=100, encoding="ascii"))
    assert text.isascii()
    assert "8k-mixed         1.80 +   1.01 ?  0.70 -  8-64" in text


def test_cells_are_coloured_by_what_they_say() -> None:
    row = lines(example(), width=100, encoding="utf-8")[2]
    assert [markup for text, markup in row if "▲" in text or "○" in text or "▼" in text] == [
        {"green": True},
        {"yellow": True},
        {"red": True},
    ]


def test_the_map_in_markdown() -> None:
    text = markdown(example()).splitlines()
    assert text[2:6] == [
        "| cell | 8 | 64 | 512 | crossover |",
        "| :- | -: | -: | -: | -: |",
        "| 8k-mixed | 1.80 ▲ | 1.01 ○ | 0.70 ▼ | 8–64 |",
        "| 8k-high\\_entropy | 1.40 ▲ | invalid | – | 8+ |",
    ]


def test_the_map_in_json() -> None:
    data = to_json(example())
    assert data["crossovers"][0] | {"points": None} == {  # type: ignore[index]
        "name": "8k-mixed",
        "paid": 8,
        "possible": 64,
        "missing": [],
        "points": None,
    }
    assert data["crossovers"][1]["missing"] == [64]  # type: ignore[index]
    assert data["cells"][4]["invalid"] == "client_saturated"  # type: ignore[index]


def test_a_map_without_throughput_cells_has_no_crossover() -> None:
    found = SpeedupMap.of("vllm", [CellSpeedup(Cell("qualitative", 1, category="math"), per_prompt=Metric(1.5))])
    assert plain(lines(found, width=80, encoding="utf-8")).startswith("speed-up of decoding")
    assert "crossover" not in markdown(found)


def test_an_empty_map_is_empty() -> None:
    assert lines(SpeedupMap.of("vllm", []), width=80, encoding="utf-8") == []
    assert markdown(SpeedupMap.of("vllm", [])) == ""

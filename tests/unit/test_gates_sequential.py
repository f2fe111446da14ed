"""Send orders, early verdicts, and the prompts that a concentrated regression needs, counted by hand."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.gates.limits import Evidence, Limit
from pytest_speedbench.gates.sequential import (
    blocks,
    concentrated,
    early_floor,
    early_pair,
    last_rate,
    look_sizes,
    prompts_to_see,
    seen_at_most,
)
from pytest_speedbench.gates.spending import levels
from pytest_speedbench.gates.verdict import GateResult, Verdict

EVIDENCE = Evidence(6, 2, 0.002, 0.002, dt.date(2026, 12, 1))
FLOOR = Limit("acceptance_length", 2.4, False, "a.yaml:3", 2.5, 0.04, EVIDENCE)
SIZES = (26, 40, 53, 66, 80)

strata = st.dictionaries(
    st.text(st.characters(codec="ascii", categories=["L"]), min_size=1, max_size=3), st.integers(1, 40), min_size=1
)


def named(sizes: dict[str, int]) -> dict[str, list[str]]:
    return {name: [f"{name}/{i}" for i in range(size)] for name, size in sizes.items()}


@given(strata, st.integers(0, 2**40), st.integers(1, 12))
def test_blocks_are_the_prompts_in_nearly_equal_parts(sizes: dict[str, int], seed: int, number: int) -> None:
    ids = named(sizes)
    parts = blocks(ids, seed, number)
    order = [name for part in parts for name in part]
    assert sorted(order) == sorted(name for members in ids.values() for name in members)
    assert len(parts) == min(number, len(order))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts == blocks({name: members[::-1] for name, members in reversed(ids.items())}, seed, number)


@given(strata, st.integers(0, 2**40))
def test_every_prefix_has_each_stratum_s_share(sizes: dict[str, int], seed: int) -> None:
    order = [name for part in blocks(named(sizes), seed, 3) for name in part]
    total = len(order)
    for stratum, size in sizes.items():
        places = [place for place, name in enumerate(order) if name.startswith(f"{stratum}/")]
        for rank, place in enumerate(places):
            # Two random starts, each worth at most one prompt per stratum, separate ideal and real places.
            assert abs(place / total - rank / size) <= 1 / size + len(sizes) / total


def test_the_seed_changes_the_order() -> None:
    ids = named({"a": 40})
    assert blocks(ids, 1, 4) != blocks(ids, 2, 4)
    assert blocks(ids, 1, 4) == blocks(ids, 1, 4)


def test_impossible_blocks() -> None:
    with pytest.raises(ValueError, match="twice"):
        blocks({"a": ["x", "y"], "b": ["x"]}, 0, 2)
    with pytest.raises(ValueError, match="at least one block"):
        blocks({"a": ["x"]}, 0, 0)


@pytest.mark.parametrize(
    ("prompts", "number", "sizes"),
    [
        (80, 6, SIZES),
        (512, 6, (170, 256, 341, 426, 512)),
        (80, 1, (80,)),
        # A third of 30 is fewer than 16 prompts.
        (30, 6, (20, 25, 30)),
        (8, 6, (8,)),
    ],
)
def test_looks_begin_at_a_third_of_the_prompts(prompts: int, number: int, sizes: tuple[int, ...]) -> None:
    assert look_sizes(blocks(named({"a": prompts}), 5, number)) == sizes


def test_the_last_look_pays_for_the_others() -> None:
    assert last_rate(0.05, (80,)) == pytest.approx(0.05)
    assert last_rate(0.025, (27, 54, 81)) == pytest.approx(levels(0.025, (1 / 3, 2 / 3, 1.0))[-1])
    # Published: 1.9930 for three looks.
    assert last_rate(0.025, (27, 54, 81)) == pytest.approx(0.02313, abs=1e-5)


def floor(
    values: dict[str, float], limit: Limit = FLOOR, reference: dict[str, float] | None = None
) -> GateResult | None:
    return early_floor("acceptance_length", values, limit, sizes=SIZES, alpha=0.025, beta=0.05, reference=reference)


def prompts(mean: float, n: int, spread: float) -> dict[str, float]:
    """Values ``spread`` above and below the mean in turn."""
    return {f"q{i}": mean + spread * (-1) ** i for i in range(n)}


def test_early_failure_by_hand() -> None:
    # Of 40 prompts: variance 0.04 × 40 / 39 over what is still to come, 1/40 − 1/80, is 0.00051282; run noise
    # (1 + 1/6) 0.002² + (1 + 1/12) 0.002² = 0.000009. So σ = 0.022844.
    result = floor(prompts(2.3, 40, 0.2))
    assert result is not None
    assert (result.verdict, result.looks, result.kind) == (Verdict.FAIL, 2, "floor")
    assert result.sigma == pytest.approx(0.022844 / 2.5, rel=1e-4)
    assert result.value == pytest.approx(2.3)
    assert result.limit == 2.4
    assert result.note == "decided after 40 of 80 prompts (look 2 of 5)"
    # Nominal level of the second look 0.0015, t about 3.18: 2.42 is above the limit, 2.39 under both bounds.
    assert floor(prompts(2.42, 40, 0.2)) is None
    assert floor(prompts(2.39, 40, 0.2)) is not None
    # Three times the spread leaves 2.5 within reach.
    assert floor(prompts(2.39, 40, 0.6)) is None


def test_a_known_prompt_is_compared_with_itself() -> None:
    values = prompts(2.5, 40, 1.0)
    fallen = {name: value - 0.15 for name, value in values.items()}
    assert floor(fallen) is None
    result = floor(fallen, reference=values)
    assert result is not None
    assert result.value == pytest.approx(2.35)
    # Without the value of every prompt there is nothing to compare with.
    assert floor(fallen, reference={"q0": 2.5}) is None


def test_a_floor_never_passes_early() -> None:
    for mean in (2.45, 2.5, 9.0):
        assert floor(prompts(mean, 66, 0.01)) is None


def test_what_judge_calls_invalid_is_not_decided_early() -> None:
    noisy = replace(FLOOR, evidence=replace(EVIDENCE, sd_start=0.05))
    assert floor(prompts(1.0, 40, 0.0), noisy) is None


def test_pinned_prompts_do_not_hinder() -> None:
    assert floor(prompts(2.2, 40, 0.1), replace(FLOOR, evidence=replace(EVIDENCE, prompts="ab12"))) is not None


def test_hand_written_limit_fails_early_by_its_assumed_noise() -> None:
    result = floor(prompts(2.0, 40, 0.1), Limit("acceptance_length", 2.4, False, "a.yaml:3"))
    assert result is not None
    assert result.note == "decided after 40 of 80 prompts (look 2 of 5); assumed noise 0.5 %"


@pytest.mark.parametrize("number", [27, 80, 81])
def test_looks_come_when_planned(number: int) -> None:
    with pytest.raises(ValueError, match=f"no early look was planned at {number} prompts, only at 26, 40, 53, 66"):
        floor(prompts(2.5, number, 0.1))


def pair(new: dict[str, float], old: dict[str, float], sizes: tuple[int, ...] = SIZES) -> GateResult | None:
    return early_pair(
        "acceptance_length", new, old, sizes=sizes, margin=0.04, alpha=0.025, beta=0.05, source="old.yaml"
    )


def test_paired_gates_may_pass_and_fail_early() -> None:
    old = prompts(2.5, 40, 0.5)
    for drop, wanted in ((0.0, Verdict.PASS), (-0.3, Verdict.PASS), (0.2, Verdict.FAIL)):
        new = {name: value - drop + 0.02 * (-1) ** (i // 2) for i, (name, value) in enumerate(old.items())}
        result = pair(new, old)
        assert result is not None
        assert (result.verdict, result.kind, result.looks) == (wanted, "paired", 2)
        assert result.source == "old.yaml"
    undecided = {name: value - 0.09 + 0.1 * (-1) ** (i // 2) for i, (name, value) in enumerate(old.items())}
    assert pair(undecided, old) is None


def test_no_early_pass_where_a_few_fallen_prompts_could_hide() -> None:
    # 4 % of 2.5 over 80 prompts are 8 tokens per step, which 6 prompts lose that fall to 1. Of 26 prompts none
    # of them is seen with P = (54 53 52 51 50 49) / (80 79 78 77 76 75) = 8.6 %, of 40 with 1.3 %.
    for number, wanted in ((26, None), (40, Verdict.PASS)):
        old = prompts(2.5, number, 0.5)
        result = pair(dict(old), old)
        assert (result and result.verdict) == wanted
    # One that did fall, among 40, widens the band beyond the margin.
    old = prompts(2.5, 40, 0.001)
    assert pair({**old, "q0": 1.0}, old) is None


def test_other_metrics_are_decided_at_the_end() -> None:
    old = prompts(0.5, 40, 0.01)
    arguments = {"sizes": SIZES, "margin": 0.04, "alpha": 0.025, "beta": 0.05, "source": "o"}
    assert early_pair("acceptance_rate", old, old, **arguments) is None  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 prompts were measured with one engine only"):
        pair(old, {**old, "more": 1.0})


def test_concentrated_by_hand() -> None:
    # 0.02 × 2.5 × 512 = 25.6 lost tokens per step at 1.5 each: 17.07.
    assert concentrated(512, 2.5, 0.02) == 18
    assert concentrated(80, 2.0, 0.05) == 8
    assert concentrated(80, 1.01, 0.04) == 80
    with pytest.raises(ValueError, match="length of 1"):
        concentrated(80, 0.9, 0.04)


def test_seen_by_hand() -> None:
    # Of 5 prompts with 2 fallen, 2 drawn: none with 3/10, at most one with 9/10.
    assert seen_at_most(0, 2, 5, 2) == pytest.approx(0.3)
    assert seen_at_most(1, 2, 5, 2) == pytest.approx(0.9)
    assert seen_at_most(2, 2, 5, 2) == 1
    # P(none of 2 | n drawn): 0.6, 0.3, 0.1, 0.
    assert [prompts_to_see(5, 2, beta) for beta in (0.6, 0.3, 0.29, 0.05)] == [1, 2, 3, 4]
    assert prompts_to_see(5, 2, 0.05, seen=1) == 5
    with pytest.raises(ValueError, match="never more than 2"):
        prompts_to_see(5, 2, 0.05, seen=2)


@given(st.integers(2, 200), st.data())
def test_drawing_more_shows_more(planned: int, data: st.DataObject) -> None:
    fallen = data.draw(st.integers(1, planned))
    drawn = data.draw(st.integers(0, planned - 1))
    assert seen_at_most(0, drawn + 1, planned, fallen) <= seen_at_most(0, drawn, planned, fallen)
    assert seen_at_most(fallen, drawn, planned, fallen) == pytest.approx(1)


@pytest.mark.parametrize("shape", ["uniform", "concentrated"])
def test_early_looks_of_a_pair_at_the_limit_pass_no_more_than_beta(shape: str) -> None:
    random, trials, passed = np.random.default_rng(3), 1500, 0
    for _ in range(trials):
        old = random.normal(2.5, 0.3, 80)
        new = old + random.normal(0, 0.1, 80)
        if shape == "uniform":
            new *= 0.96
        else:
            new[random.permutation(80)[: concentrated(80, 2.5, 0.04)]] = 1.0
        for size in SIZES[:-1]:
            first, second = ({str(i): float(v) for i, v in enumerate(arm[:size])} for arm in (new, old))
            result = pair(first, second)
            if result is not None:
                passed += result.verdict is Verdict.PASS
                break
    # Three standard errors of 1500 draws at 5 % are 1.7 %.
    assert passed / trials <= 0.05 + 0.017


def test_early_looks_of_a_floor_at_its_reference_fail_no_more_than_alpha() -> None:
    random, trials, failed = np.random.default_rng(4), 1500, 0
    exact = replace(FLOOR, evidence=Evidence(6, 2, 0.0, 0.0, dt.date(2026, 12, 1)))
    for _ in range(trials):
        cell = random.normal(0, 0.6, 80)
        values = 2.5 + cell - cell.mean()
        for size in SIZES[:-1]:
            if floor({str(i): float(v) for i, v in enumerate(values[:size])}, exact) is not None:
                failed += 1
                break
    assert 0 < failed / trials <= 0.025 + 0.012
    assert math.isclose(values.mean(), 2.5)

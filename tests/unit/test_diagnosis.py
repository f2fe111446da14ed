"""A cause is named where its evidence is there, and none where it is not."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.measure.acceptance import uncut_histogram
from pytest_speedbench.measure.diagnosis import (
    Change,
    Label,
    Symptoms,
    change,
    conditional_changes,
    diagnose,
)
from pytest_speedbench.measure.equal_length import equal_length
from pytest_speedbench.measure.metrics import METRICS
from pytest_speedbench.report.requests import read_windows

ARTIFACTS = Path(__file__).parents[2] / "examples" / "h100" / "artifacts"


def by(percent: float, *, was: float = 1.0, band: float = 0.02) -> Change:
    """A change of so many per cent, with a noise of 2 % by default."""
    return Change(was * (1 + percent / 100), was, band)


def accepted(percent: float) -> Change:
    return by(percent, was=2.5, band=0.014)


def positions(*percents: float) -> tuple[Change, ...]:
    return tuple(by(p, was=was, band=0.05) for p, was in zip(percents, (0.71, 0.62, 0.44), strict=False))


def categories(**percents: float) -> dict[str, Change]:
    return {name: by(percent, was=2.5) for name, percent in percents.items()}


ALL_FELL = categories(coding=-8, math=-7, qa=-9, writing=-8)
ONE_FELL = categories(coding=-20, math=0.5, qa=-1, writing=0)
SLOWER: dict[str, Any] = {"step_s": by(12), "ttft_s": by(11), "output_tps": by(-10)}

# Traces of known causes: (symptoms, metric that missed, label).
TRACES: dict[str, tuple[Symptoms, str, str]] = {
    "template": (
        Symptoms(positions(-15, -14, -15), accepted(-12), categories=ALL_FELL),
        "acceptance_length",
        "template_or_sampling",
    ),
    "template, one category measured": (
        Symptoms(positions(-15, 0, 0), accepted(-6)),
        "acceptance_length",
        "template_or_sampling",
    ),
    "state at position 2": (
        Symptoms(positions(-1, -16, -30), accepted(-5), categories=ALL_FELL),
        "acceptance_length",
        "drafter_state",
    ),
    "last position dead": (Symptoms(positions(0, 1, -100), accepted(-6)), "acceptance_rate", "drafter_state"),
    "one category, at position 1": (
        Symptoms(positions(-6, -5, -6), accepted(-4), categories=ONE_FELL),
        "acceptance_length",
        "domain",
    ),
    "one category, at position 2": (
        Symptoms(positions(0, -7, -8), accepted(-4), categories=ONE_FELL),
        "acceptance_length",
        "domain",
    ),
    "shorter answers": (
        Symptoms(positions(-12, -13, -14), accepted(-18), by(-0.5, was=5.3), by(-62, was=2048)),
        "acceptance_length",
        "length_shift",
    ),
    "longer answers": (
        Symptoms((), accepted(-8), by(0.4, was=5.3), by(60, was=400)),
        "decode_acceptance_length",
        "length_shift",
    ),
    "speculation skipped": (
        Symptoms(positions(-40, 0, 0), accepted(-20), drafting=by(-40, was=1.0)),
        "acceptance_length",
        "drafts_skipped",
    ),
    "clock down": (
        Symptoms((), accepted(0), sm_clock=by(-20, was=1980), throttled=True, gpu_utilisation=by(1), **SLOWER),
        "output_tps",
        "throttled",
    ),
    "reason without a clock": (Symptoms(throttled=True, output_tps=by(-9)), "output_tps", "throttled"),
    "host": (
        Symptoms((), accepted(0), gpu_utilisation=by(-40, was=0.98), client_cpu=0.2, sm_clock=by(0), **SLOWER),
        "step_p50_s",
        "host_bound",
    ),
    "target": (
        Symptoms((), accepted(0), step_s=by(12), plain_step_s=by(11), output_tps=by(-10)),
        "output_tps",
        "slower_target",
    ),
    "drafts cost more": (
        Symptoms((), accepted(0.5), step_s=by(12), plain_step_s=by(0.3), ttft_s=by(0), output_tps=by(-10)),
        "output_tps",
        "draft_overhead",
    ),
    "drafts cost more and more are accepted": (
        Symptoms((), accepted(4), step_s=by(12)),
        "tpot_p50_s",
        "draft_overhead",
    ),
    "prefill": (
        Symptoms((), accepted(0), step_s=by(0.5), ttft_s=by(40), output_tps=by(-6)),
        "ttft_p95_s",
        "prefill",
    ),
    "rate fell with acceptance": (
        Symptoms(positions(0, -16, -30), accepted(-9), step_s=by(0.2), output_tps=by(-9)),
        "output_tps",
        "drafter_state",
    ),
    "rate fell with acceptance, nobody knows why": (
        Symptoms((), accepted(-9), step_s=by(0.2), output_tps=by(-9)),
        "user_tps",
        "lower_acceptance",
    ),
}


@pytest.mark.parametrize("trace", TRACES)
def test_a_known_cause_is_named(trace: str) -> None:
    symptoms, metric, label = TRACES[trace]
    cause = diagnose(symptoms, metric)
    assert cause is not None
    assert cause.label == label
    assert "\n" not in cause.text
    assert " → " in cause.text


def test_every_label_has_a_trace() -> None:
    assert {label for _, _, label in TRACES.values()} == set(get_args(Label))


UNKNOWN: dict[str, tuple[Symptoms, str]] = {
    "nothing known": (Symptoms(), "acceptance_length"),
    "nothing known of speed": (Symptoms(), "output_tps"),
    "nothing moved": (Symptoms(positions(0, -2, 1), accepted(-1), categories=ONE_FELL), "acceptance_length"),
    "position 1, and some categories held": (
        Symptoms(positions(-9, -9, -9), accepted(-5), categories=categories(a=-10, b=-11, c=0.1, d=0.2)),
        "acceptance_length",
    ),
    "position 1, and hardly any category shows it": (
        Symptoms(
            positions(-9, -9, -9), accepted(-5), categories={"a": by(-10)} | dict.fromkeys("bcd", by(-6, band=0.12))
        ),
        "acceptance_length",
    ),
    "position 1, and all categories but one": (
        Symptoms(positions(-9, -9, -9), accepted(-5), categories=categories(a=-10, b=-11, c=-9, d=0.2)),
        "acceptance_length",
    ),
    "more gets past position 1, so weaker drafts reach position 2": (
        Symptoms(positions(30, -16, 0), accepted(-5)),
        "acceptance_length",
    ),
    "one category of two": (Symptoms((), accepted(-5), categories=categories(a=-10, b=0)), "acceptance_length"),
    "shorter answers, but the same tokens are too few to tell": (
        Symptoms((), accepted(-8), by(-1, was=5.3, band=0.09), by(-50, was=800)),
        "acceptance_length",
    ),
    "shorter answers, and the same tokens fell half as much": (
        Symptoms((), accepted(-8), by(-4.5, was=5.3), by(-50, was=800)),
        "acceptance_length",
    ),
    "same length": (Symptoms((), accepted(-8), by(0, was=5.3), by(0, was=800)), "acceptance_length"),
    "clock down without effect": (Symptoms(sm_clock=by(-20), step_s=by(0)), "output_tps"),
    "throttled, says one flag, and the clock held": (
        Symptoms(sm_clock=by(0), throttled=True, step_s=by(9)),
        "tpot_p50_s",
    ),
    "idle GPU behind a busy client": (
        Symptoms(gpu_utilisation=by(-40), client_cpu=0.97, step_s=by(12), ttft_s=by(12)),
        "step_p50_s",
    ),
    "slower steps without speculation": (Symptoms((), by(0, was=1.0), step_s=by(12)), "step_p50_s"),
    "slower steps and less accepted": (Symptoms(positions(0, -9), accepted(-6), step_s=by(12)), "output_tps"),
    "a first token that decoding cannot explain": (
        Symptoms((), accepted(0), step_s=by(12), ttft_s=by(12)),
        "ttft_p50_s",
    ),
    "throttling does not lower acceptance": (
        Symptoms((), accepted(-6), sm_clock=by(-20), throttled=True, **SLOWER),
        "acceptance_length",
    ),
}


@pytest.mark.parametrize("trace", UNKNOWN)
def test_what_fits_nothing_has_no_cause(trace: str) -> None:
    assert diagnose(*UNKNOWN[trace]) is None


@pytest.mark.parametrize(
    ("trace", "text"),
    [
        (
            "state at position 2",
            "drop starts at draft position 2 (0.62 → 0.52) → drafter state or KV cache, not the template",
        ),
        (
            "template",
            "drop starts at draft position 1 (0.71 → 0.60), and 4 of 4 categories fell → "
            "weights, chat template or sampling",
        ),
        (
            "shorter answers",
            "on the same first tokens acceptance held (−0.5 %), and outputs got shorter (2048 → 778 tokens) → "
            "output length, not the drafter",
        ),
        (
            "clock down",
            "the GPU's clock was lower (1980 → 1584 MHz) → power, temperature or another tenant, not the software",
        ),
        (
            "rate fell with acceptance",
            "steps as fast as before (+0.2 %), acceptance length −9.0 %: drop starts at draft position 2 "
            "(0.62 → 0.52) → drafter state or KV cache, not the template",
        ),
    ],
)
def test_the_text(trace: str, text: str) -> None:
    symptoms, metric, _ = TRACES[trace]
    cause = diagnose(symptoms, metric)
    assert cause is not None
    assert cause.text == text


# The evidence that a cause cannot do without, besides the miss itself.
NEEDED = {
    "template_or_sampling": ("conditional",),
    "drafter_state": ("conditional",),
    "domain": ("categories",),
    "length_shift": ("acceptance_length", "equal_length", "output_tokens"),
    "drafts_skipped": ("drafting",),
    "host_bound": ("step_s", "ttft_s", "gpu_utilisation", "client_cpu"),
    "slower_target": ("step_s", "plain_step_s"),
    "draft_overhead": ("step_s", "acceptance_length"),
    "prefill": ("step_s", "ttft_s"),
    "lower_acceptance": ("step_s", "acceptance_length"),
    "throttled": (),
}
EMPTY = {f.name: getattr(Symptoms(), f.name) for f in fields(Symptoms)}


def test_the_needs_of_every_label_are_stated() -> None:
    assert set(NEEDED) == set(get_args(Label))


@pytest.mark.parametrize("trace", TRACES)
def test_without_its_evidence_the_cause_is_not_named(trace: str) -> None:
    symptoms, metric, label = TRACES[trace]
    for name in NEEDED[label]:
        cause = diagnose(replace(symptoms, **{name: EMPTY[name]}), metric)
        assert cause is None or cause.label != label, name


numbers = st.floats() | st.sampled_from([0.0, 1.0, 0.9, 1.1, 2.5])
anything = st.builds(Change, numbers, numbers, numbers)
maybe = st.none() | anything
symptoms_of_any_kind = st.builds(
    Symptoms,
    conditional=st.lists(anything, max_size=4).map(tuple),
    categories=st.dictionaries(st.text(max_size=3), anything, max_size=5),
    throttled=st.none() | st.booleans(),
    client_cpu=st.none() | numbers,
    **{name: maybe for name in EMPTY if name not in ("conditional", "categories", "throttled", "client_cpu")},
)


@given(symptoms_of_any_kind, st.sampled_from([*METRICS, "unheard_of"]))
def test_no_numbers_break_it_and_no_label_goes_without_its_evidence(symptoms: Symptoms, metric: str) -> None:
    cause = diagnose(symptoms, metric)
    if cause is None:
        return
    assert all(getattr(symptoms, name) not in (None, (), {}) for name in NEEDED[cause.label])
    assert cause.text
    if metric in METRICS and METRICS[metric].unit in ("tokens/step", "share"):
        moved = [symptoms.acceptance_length, symptoms.drafting, *symptoms.conditional, *symptoms.categories.values()]
        assert any(one is not None and one.fell for one in moved)


@given(st.builds(Change, *[st.floats(0.1, 10)] * 2, st.floats(0, 0.5)), st.floats(-1, 1))
def test_a_change_is_one_of_three(one: Change, drop: float) -> None:
    assert [one.fell, one.rose, one.held].count(True) == 1
    if one.held_against(drop):
        assert abs(one.relative) < abs(drop)


def test_a_change_of_a_metric_has_the_metrics_noise() -> None:
    # Two values with an assumed noise of 0.5 % each: 2 · 0.5 % · √2.
    assert change("acceptance_length", 2.45, 2.5).band == pytest.approx(0.01414, abs=1e-5)
    assert change("acceptance_length", 2.45, 2.5).fell
    assert not change("acceptance_length", 2.47, 2.5).fell
    assert change("ttft_p95_s", 0.1, 0.1, sigma=0.03).band == 0.06


# Conditional acceptance from histograms


def histogram(*reached: int) -> dict[int, int]:
    """Steps by length, from how many reached lengths 1, 2, …"""
    return {
        length: n - after for length, (n, after) in enumerate(zip(reached, (*reached[1:], 0), strict=True), start=1)
    }


def test_conditional_changes_from_two_histograms() -> None:
    found = conditional_changes(histogram(1000, 700, 350), histogram(1000, 710, 440))
    assert [(round(one.now, 3), round(one.was, 3)) for one in found] == [(0.7, 0.71), (0.5, 0.62)]
    # 2 · √(0.71 · 0.29 · (1/1000 + 1/1000)) / 0.71 = 5.7 %; 2 · √(0.6197 · 0.3803 · (1/700 + 1/710)) / 0.6197 = 8.3 %
    assert [one.band for one in found] == pytest.approx([0.0572, 0.0834], abs=1e-4)
    assert [one.fell for one in found] == [False, True]


def test_few_steps_have_a_wide_band_and_many_no_less_than_five_per_cent() -> None:
    (few,) = conditional_changes(histogram(20, 11), [0.71])
    assert not few.fell
    (many,) = conditional_changes(histogram(10**7, 5 * 10**6), [0.52])
    assert (many.band, many.fell) == (0.05, False)


def test_a_dead_position_is_a_drop_and_those_after_it_are_unknown() -> None:
    found = conditional_changes(histogram(1000, 700), [0.71, 0.62, 0.44])
    assert [one.now for one in found] == [0.7, 0.0]
    cause = diagnose(Symptoms(found), "acceptance_length")
    assert cause is not None
    assert cause.text.startswith("drop starts at draft position 2 (0.62 → 0.00)")


@pytest.mark.parametrize(("now", "was"), [({}, [0.7]), ({1: 5}, []), ({}, {}), ({1: 5}, {1: 5}), ({1: 5}, [0.0])])
def test_nothing_to_compare(now: dict[int, int], was: Any) -> None:
    assert conditional_changes(now, was) == ()


# What was recorded


@pytest.mark.parametrize("run", ["vllm-0.24.0-draft", "sglang-0.5.16-draft"])
def test_the_same_engine_at_another_concurrency_gives_no_cause(run: str) -> None:
    windows = {
        (window.cell.concurrency, window.cell.category): window
        for _, window in read_windows(ARTIFACTS / run / "speedbench-requests.jsonl.gz")
        if window.cell.category is not None
    }
    categories = [category for concurrency, category in windows if concurrency == 1]
    assert len(categories) == 11
    for category in categories:
        was, now = windows[1, category].turns, windows[8, category].turns
        moved = conditional_changes(uncut_histogram(now), uncut_histogram(was))
        assert len(moved) == 3
        assert diagnose(Symptoms(moved), "acceptance_length") is None, category
        equal = equal_length(now, was)
        assert equal is not None
        assert (equal.conversations, equal.left_out, equal.shift) == (8, 0, "none")


def test_a_drafter_that_loses_a_position_is_found_in_recorded_steps() -> None:
    (window, *_) = (
        window
        for _, window in read_windows(ARTIFACTS / "vllm-0.24.0-draft" / "speedbench-requests.jsonl.gz")
        if window.cell.category == "coding"
    )
    was = uncut_histogram(window.turns)
    # The third draft is never right any more: what reached length 4 ends at 3.
    now = {**was, 3: was[3] + was[4], 4: 0}
    cause = diagnose(Symptoms(conditional_changes(now, was)), "acceptance_length")
    assert cause is not None
    assert cause.label == "drafter_state"
    assert cause.text.startswith("drop starts at draft position 3 (0.79 → 0.00)")

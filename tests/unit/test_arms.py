"""The order of engine starts: mirrored blocks that end with the engine whose items are judged."""

from __future__ import annotations

import pytest

from pytest_speedbench.arms import order
from pytest_speedbench.engines.base import Profile, Speculation

NEW, OLD, PLAIN = (
    Profile(label, "vllm", "org/m", Speculation("ngram", 3)) for label in ("vllm", "baseline-vllm", "plain-vllm")
)


def words(companions: tuple[Profile, ...], starts: int) -> str:
    short = {"vllm": "new", "baseline-vllm": "old", "plain-vllm": "plain"}
    return " ".join(f"{short[arm.profile.label]}{arm.start}" for arm in order(NEW, companions, range(starts)))


@pytest.mark.parametrize(
    ("companions", "starts", "expected"),
    [
        ((), 1, "new0"),
        ((), 3, "new0 new1 new2"),
        ((OLD,), 1, "old0 new0"),
        ((OLD,), 2, "new0 old0 old1 new1"),
        ((OLD,), 3, "old0 new0 new1 old1 old2 new2"),
        ((PLAIN, OLD), 2, "new0 old0 plain0 plain1 old1 new1"),
    ],
)
def test_blocks_are_mirrored_and_the_last_ends_with_the_new_engine(
    companions: tuple[Profile, ...], starts: int, expected: str
) -> None:
    assert words(companions, starts) == expected


def test_further_starts_go_on_counting() -> None:
    arms = order(NEW, (OLD,), range(3, 5))
    assert [(arm.profile.label, arm.start) for arm in arms] == [
        ("vllm", 3),
        (OLD.label, 3),
        (OLD.label, 4),
        ("vllm", 4),
    ]


def test_a_steady_drift_cancels_out_of_an_even_number_of_starts() -> None:
    # The sum of positions is that of every arm: what grows linearly with time hits both alike.
    arms = order(NEW, (OLD,), range(4))
    places = {
        label: sum(i for i, arm in enumerate(arms) if arm.profile.label == label) for label in ("vllm", OLD.label)
    }
    assert places["vllm"] == places[OLD.label]

"""Cells, their ids, and the expansion of axes."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.cells import (
    CATEGORIES,
    DEFAULT_CONCURRENCY,
    DIFFICULTIES,
    ISLS,
    OVERALL,
    SPLITS,
    Axes,
    Cell,
    expand,
    isl_tokens,
)
from pytest_speedbench.errors import ConfigError

POINTS = [Cell("qualitative", 1, category=c) for c in CATEGORIES] + [
    Cell("throughput", 1, isl=i, difficulty=d) for i in ISLS for d in DIFFICULTIES
]
FEW = [
    Cell("qualitative", 1, category="coding"),
    Cell("qualitative", 1, category="qa"),
    Cell("throughput", 1, isl="1k", difficulty="mixed"),
    Cell("throughput", 1, isl="8k", difficulty="low_entropy"),
    Cell("throughput", 1, isl="8k", difficulty="mixed"),
]
DEFAULTS = {"qualitative": (32,), "throughput": (2, 4)}


def ids(axes: Axes, points: list[Cell] = FEW) -> list[str]:
    return [cell.id(with_concurrency=True) for cell in expand(axes, points, DEFAULTS)]


def test_ids() -> None:
    coding = Cell("qualitative", 32, category="coding")
    mixed = Cell("throughput", 4, isl="8k", difficulty="mixed")
    assert coding.id(with_concurrency=False) == "qualitative-coding"
    assert coding.id(with_concurrency=True) == "qualitative-coding-c32"
    assert mixed.id(with_concurrency=False) == "throughput-8k-mixed"
    assert mixed.id(with_concurrency=True) == "throughput-8k-mixed-c4"
    assert (coding.name, mixed.name) == ("coding", "8k-mixed")


def test_only_overall_is_overall() -> None:
    assert Cell("qualitative", 1, category=OVERALL).is_overall
    assert not any(point.is_overall for point in POINTS)


def test_as_dict_has_the_set_fields_in_the_order_of_a_thresholds_file() -> None:
    assert list(Cell("qualitative", 3, category="qa").as_dict().items()) == [
        ("split", "qualitative"),
        ("category", "qa"),
        ("concurrency", 3),
    ]
    assert list(Cell("throughput", 3, isl="1k", difficulty="mixed").as_dict()) == [
        "split",
        "isl",
        "difficulty",
        "concurrency",
    ]


def test_the_canonical_names_are_upstreams() -> None:
    assert (len(CATEGORIES), len(DIFFICULTIES), len(ISLS), SPLITS) == (11, 3, 5, ("qualitative", "throughput"))
    assert DEFAULT_CONCURRENCY == {"qualitative": (32,), "throughput": (2, 4, 8, 16, 32, 64, 128, 256, 512)}


@pytest.mark.parametrize(("isl", "tokens"), [("1k", 1000), ("2k", 2000), ("8k", 8000), ("16k", 16000), ("32k", 32000)])
def test_isl_tokens(isl: str, tokens: int) -> None:
    assert isl_tokens(isl) == tokens


@pytest.mark.parametrize("isl", ["", "k", "8", "8K", "8k ", "-1k", "1.5k", "8kk"])
def test_isl_tokens_refuses(isl: str) -> None:
    with pytest.raises(ConfigError, match=f"^unknown ISL {re.escape(repr(isl))}; choose from 1k, 2k, 8k, 16k, 32k$"):
        isl_tokens(isl)


# Expansion, by hand


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        (
            Axes(splits=("qualitative",)),
            ["qualitative-coding-c32", "qualitative-qa-c32", "qualitative-overall-c32"],
        ),
        (
            Axes(splits=("throughput",)),
            [
                "throughput-1k-mixed-c2",
                "throughput-1k-mixed-c4",
                "throughput-8k-low_entropy-c2",
                "throughput-8k-low_entropy-c4",
                "throughput-8k-mixed-c2",
                "throughput-8k-mixed-c4",
            ],
        ),
        (Axes(categories=("qa",)), ["qualitative-qa-c32"]),
        (
            Axes(categories=("qa", "coding")),
            ["qualitative-coding-c32", "qualitative-qa-c32", "qualitative-overall-c32"],
        ),
        (
            Axes(categories=(OVERALL,)),
            ["qualitative-coding-c32", "qualitative-qa-c32", "qualitative-overall-c32"],
        ),
        (Axes(categories=("qa", OVERALL)), ["qualitative-qa-c32", "qualitative-overall-c32"]),
        (Axes(categories=("qa",), concurrencies=(1, 8)), ["qualitative-qa-c1", "qualitative-qa-c8"]),
        (Axes(isls=("8k",), concurrencies=(2,)), ["throughput-8k-low_entropy-c2", "throughput-8k-mixed-c2"]),
        (Axes(difficulties=("mixed",), concurrencies=(2,)), ["throughput-1k-mixed-c2", "throughput-8k-mixed-c2"]),
        (Axes(isls=("1k",), difficulties=("mixed",), concurrencies=(2,)), ["throughput-1k-mixed-c2"]),
        (Axes(splits=("throughput", "qualitative"), concurrencies=(2, 2)), ids(Axes(concurrencies=(2,)))),
    ],
)
def test_expansion(axes: Axes, expected: list[str]) -> None:
    assert ids(axes) == expected


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (
            Axes(splits=("qualitative",), isls=("8k",)),
            "the qualitative split has no isl; drop --speedbench-isl or use --speedbench-split=throughput",
        ),
        (
            Axes(splits=SPLITS, difficulties=("mixed",)),
            "the qualitative split has no difficulty; "
            "drop --speedbench-difficulty or use --speedbench-split=throughput",
        ),
        (
            Axes(splits=("throughput",), categories=("qa",)),
            "the throughput split has no category; drop --speedbench-category or use --speedbench-split=qualitative",
        ),
        (
            Axes(categories=("qa",), isls=("8k",)),
            "the qualitative split has no isl; drop --speedbench-isl or use --speedbench-split=throughput",
        ),
        (
            Axes(categories=("coding", "stem", "rag")),
            "the dataset has no prompts in category stem, rag; it has coding, qa",
        ),
        (Axes(isls=("2k", "8k", "32k")), "the dataset has no ISL 2k, 32k; it has 1k, 8k"),
        (
            Axes(difficulties=("mixed", "high_entropy")),
            "the dataset has no difficulty high_entropy; it has low_entropy, mixed",
        ),
        (
            Axes(isls=("1k",), difficulties=("low_entropy",)),
            "no cell is left to measure: the dataset has none of what was asked for",
        ),
    ],
)
def test_what_cannot_be_expanded_says_what_can(axes: Axes, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        ids(axes)


def test_an_empty_dataset_has_nothing() -> None:
    with pytest.raises(ConfigError, match="no cell is left to measure"):
        ids(Axes(), [])
    with pytest.raises(ConfigError, match="no prompts in category qa; it has none"):
        ids(Axes(categories=("qa",)), [])
    with pytest.raises(ConfigError, match="no ISL 1k; it has none"):
        ids(Axes(isls=("1k",)), [])


def test_only_concurrency_is_not_explicit() -> None:
    assert not Axes(concurrencies=(1,)).explicit
    assert Axes(splits=("throughput",)).explicit
    assert Axes(categories=("qa",)).explicit
    assert Axes(isls=("1k",)).explicit
    assert Axes(difficulties=("mixed",)).explicit


# Invariants


def some(choices: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(choices), max_size=4).map(tuple)


AXES = st.builds(
    Axes,
    splits=some(SPLITS),
    categories=some((*CATEGORIES, OVERALL)),
    isls=some(ISLS),
    difficulties=some(DIFFICULTIES),
    concurrencies=st.lists(st.integers(1, 512), max_size=3).map(tuple),
)
AVAILABLE = st.lists(st.sampled_from(POINTS), unique=True)


@given(AXES, AVAILABLE, st.randoms(use_true_random=False))
def test_expansion_keeps_its_promises(axes: Axes, available: list[Cell], random: object) -> None:
    try:
        cells = expand(axes, available, DEFAULTS)
    except ConfigError as error:
        # An error is the same in whatever order the data lists its cells.
        with pytest.raises(ConfigError, match=f"^{re.escape(str(error))}$"):
            expand(axes, available[::-1], DEFAULTS)
        return
    assert cells
    assert len(set(cells)) == len(cells)
    names = [cell.id(with_concurrency=True) for cell in cells]
    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch(r"[a-z0-9_]+(-[a-z0-9_]+)*", name)
    # Stable: neither the order of the data nor repeats in it change the plan.
    assert expand(axes, [*available[::-1], *available], DEFAULTS) == cells
    # Nothing that was not asked for, nothing that the data does not have, nothing asked for left out.
    points = {(p.split, p.category, p.isl, p.difficulty) for p in available}
    for cell in cells:
        assert cell.is_overall or (cell.split, cell.category, cell.isl, cell.difficulty) in points
        assert cell.concurrency in (axes.concurrencies or DEFAULTS[cell.split])
        assert not axes.splits or cell.split in axes.splits
    assert set(axes.categories) - {OVERALL} <= {cell.category for cell in cells}
    assert set(axes.concurrencies) <= {cell.concurrency for cell in cells}
    # Every concurrency has the same cells.
    by_concurrency = {n: {(c.split, c.name) for c in cells if c.concurrency == n} for n in axes.concurrencies}
    assert len({frozenset(cells) for cells in by_concurrency.values()}) <= 1
    # Overall sums up the whole split, so it stands after its categories.
    for n in {cell.concurrency for cell in cells}:
        qualitative = [cell.category for cell in cells if cell.split == "qualitative" and cell.concurrency == n]
        assert OVERALL not in qualitative[:-1]
    # The splits come one after the other, throughput last.
    splits = [cell.split for cell in cells]
    assert splits == sorted(splits)

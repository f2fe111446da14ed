"""Which limit gates which cell, what is planned, and how errors are shared out."""

from __future__ import annotations

import re

import pytest

from pytest_speedbench.cells import CATEGORIES, DEFAULT_CONCURRENCY, DIFFICULTIES, ISLS, OVERALL, Cell
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates.limits import CellPattern, Family, Gate, Limit, ThresholdsFile
from pytest_speedbench.gates.match import Match
from pytest_speedbench.gates.selection import assigned, gates_for, planned_cells, unmatched_gates

POINTS = [Cell("qualitative", 1, category=c) for c in CATEGORIES] + [
    Cell("throughput", 1, isl=i, difficulty=d) for i in ISLS for d in DIFFICULTIES
]
CONCURRENCY = {"qualitative": (32,), "throughput": (8, 64)}
CODING = Cell("qualitative", 8, category="coding")
MIXED = Cell("throughput", 8, isl="1k", difficulty="mixed")


def gate(line: int, pattern: CellPattern, *metrics: str, path: str = "a.yaml") -> Gate:
    names = metrics or ("user_tps",)
    limits = tuple(Limit(m, 100.0 + line, m.startswith("ttft"), f"{path}:{line + i}") for i, m in enumerate(names))
    return Gate(pattern, limits, f"{path}:{line}")


def file_of(*gates: Gate, path: str = "a.yaml") -> ThresholdsFile:
    return ThresholdsFile(path, 1, Match(), "pooled", Family(), gates)


def sources(files: list[ThresholdsFile], cell: Cell) -> list[str]:
    return [limit.source for limit in gates_for(files, cell)]


@pytest.mark.parametrize(
    ("pattern", "cell", "applies"),
    [
        (CellPattern(), CODING, True),
        (CellPattern("qualitative"), CODING, True),
        (CellPattern("qualitative", concurrency=8), CODING, True),
        (CellPattern("qualitative", concurrency=9), CODING, False),
        (CellPattern("qualitative", "coding", concurrency=8), CODING, True),
        (CellPattern("qualitative", "qa"), CODING, False),
        (CellPattern("qualitative"), Cell("qualitative", 8, category=OVERALL), True),
        (CellPattern("throughput"), CODING, False),
        (CellPattern("throughput", isl="1k"), MIXED, True),
        (CellPattern("throughput", isl="2k"), MIXED, False),
        (CellPattern("throughput", difficulty="mixed", concurrency=8), MIXED, True),
        (CellPattern("throughput", difficulty="low_entropy"), MIXED, False),
    ],
)
def test_omitted_fields_match_all(pattern: CellPattern, cell: Cell, applies: bool) -> None:
    assert bool(gates_for([file_of(gate(1, pattern))], cell)) is applies


def test_narrower_pattern_overrides_per_metric() -> None:
    default = gate(10, CellPattern("qualitative"), "user_tps", "ttft_p50_s")
    specific = gate(20, CellPattern("qualitative", "coding", concurrency=8), "user_tps", "output_tps")
    for order in ((default, specific), (specific, default)):
        assert sources([file_of(*order)], CODING) == ["a.yaml:21", "a.yaml:11", "a.yaml:20"]
    assert sources([file_of(default, specific)], Cell("qualitative", 8, category="qa")) == ["a.yaml:11", "a.yaml:10"]


def test_patterns_that_cross_are_a_contradiction() -> None:
    crossing = file_of(
        gate(10, CellPattern("throughput", isl="1k")), gate(20, CellPattern("throughput", concurrency=8))
    )
    message = (
        "a.yaml:20: user_tps of throughput-1k-mixed-c8 is also gated in a.yaml:10, and neither cell pattern is "
        "narrower; keep one, or match different runs"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        gates_for([crossing], MIXED)
    assert sources([crossing], Cell("throughput", 64, isl="1k", difficulty="mixed")) == ["a.yaml:10"]


def test_narrowest_pattern_settles_what_would_cross() -> None:
    settled = file_of(
        gate(10, CellPattern("throughput", isl="1k")),
        gate(20, CellPattern("throughput", concurrency=8)),
        gate(30, CellPattern("throughput", isl="1k", concurrency=8)),
    )
    assert sources([settled], MIXED) == ["a.yaml:30"]


def test_same_cell_in_two_matching_files_is_a_contradiction() -> None:
    pattern = CellPattern("qualitative", "coding", concurrency=8)
    files = [file_of(gate(3, pattern)), file_of(gate(7, pattern, path="b.yaml"), path="b.yaml")]
    with pytest.raises(ConfigError, match=r"^b\.yaml:7: user_tps of qualitative-coding-c8 is also gated in a\.yaml:3"):
        gates_for(files, CODING)


def test_two_files_may_gate_different_metrics_of_a_cell() -> None:
    pattern = CellPattern("qualitative", "coding")
    files = [
        file_of(gate(3, pattern)),
        file_of(gate(7, pattern, "output_tps", path="b.yaml"), path="b.yaml"),
    ]
    assert sources(files, CODING) == ["b.yaml:7", "a.yaml:3"]


def test_no_file_no_limit() -> None:
    assert gates_for([], CODING) == ()


def test_plan_takes_the_concurrency_of_the_gate_or_the_default() -> None:
    file = file_of(
        gate(1, CellPattern("qualitative", "qa")),
        gate(2, CellPattern("qualitative", "coding", concurrency=8)),
        gate(3, CellPattern("throughput", isl="2k", difficulty="mixed")),
    )
    assert [c.id(with_concurrency=True) for c in planned_cells([file], POINTS, CONCURRENCY)] == [
        "qualitative-coding-c8",
        "qualitative-qa-c32",
        "throughput-2k-mixed-c8",
        "throughput-2k-mixed-c64",
    ]


def test_plan_of_a_whole_split_is_in_canonical_order_with_overall_last() -> None:
    file = file_of(gate(1, CellPattern("qualitative")))
    names = [c.name for c in planned_cells([file], list(reversed(POINTS)), CONCURRENCY)]
    assert names == [*CATEGORIES, OVERALL]


def test_plan_sorts_isls_by_tokens_not_by_name() -> None:
    file = file_of(gate(1, CellPattern("throughput", difficulty="mixed", concurrency=1)))
    names = [c.name for c in planned_cells([file], POINTS, CONCURRENCY)]
    assert names == ["1k-mixed", "2k-mixed", "8k-mixed", "16k-mixed", "32k-mixed"]


def test_overall_exists_where_the_dataset_has_categories() -> None:
    file = file_of(gate(1, CellPattern("qualitative", OVERALL)))
    assert [c.name for c in planned_cells([file], POINTS, CONCURRENCY)] == [OVERALL]
    assert planned_cells([file], [MIXED], CONCURRENCY) == []


def test_plan_holds_each_cell_once() -> None:
    file = file_of(gate(1, CellPattern()), gate(2, CellPattern("qualitative", "qa")))
    cells = planned_cells([file, file], POINTS, CONCURRENCY)
    assert len(cells) == len(set(cells)) == 12 + 15 * 2


def test_files_for_different_gpus_may_plan_the_same_cell() -> None:
    pattern = CellPattern("qualitative", "coding", concurrency=8)
    files = [file_of(gate(3, pattern)), file_of(gate(7, pattern, path="b.yaml"), path="b.yaml")]
    assert planned_cells(files, POINTS, CONCURRENCY) == [CODING]


def test_plan_finds_contradictions_within_a_file() -> None:
    crossing = file_of(
        gate(10, CellPattern("throughput", isl="1k")), gate(20, CellPattern("throughput", concurrency=8))
    )
    with pytest.raises(ConfigError, match=r"^a\.yaml:20: "):
        planned_cells([crossing], POINTS, CONCURRENCY)


def test_gates_without_a_cell_in_the_dataset_are_named() -> None:
    file = file_of(
        gate(1, CellPattern("qualitative", "coding", concurrency=8)),
        gate(2, CellPattern("throughput", isl="4k", concurrency=8)),
        gate(3, CellPattern("qualitative", OVERALL)),
    )
    assert unmatched_gates([file], POINTS) == (
        "a.yaml:2: the dataset has no cell {split: throughput, isl: 4k, concurrency: 8}",
    )
    assert unmatched_gates([file], [MIXED]) == (
        "a.yaml:1: the dataset has no cell {split: qualitative, category: coding, concurrency: 8}",
        "a.yaml:2: the dataset has no cell {split: throughput, isl: 4k, concurrency: 8}",
        "a.yaml:3: the dataset has no cell {split: qualitative, category: overall}",
    )


def test_family_alpha_is_spent_exactly_once() -> None:
    file = file_of(
        gate(1, CellPattern("qualitative"), "user_tps", "output_tps"),
        gate(10, CellPattern("throughput", isl="8k"), "ttft_p50_s"),
    )
    cells = planned_cells([file], POINTS, CONCURRENCY)
    shares = [a.alpha for cell in cells for a in assigned([file], cell, POINTS, CONCURRENCY)]
    # The overall cell has no output_tps, and a pattern over all cells does not ask it for one.
    assert len(shares) == 11 * 2 + 1 + 3 * 2
    assert sum(shares) == pytest.approx(0.05)


def test_half_of_alpha_goes_to_overall() -> None:
    file = file_of(gate(1, CellPattern("qualitative", concurrency=8)))
    (overall,) = assigned([file], Cell("qualitative", 8, category=OVERALL), POINTS, CONCURRENCY)
    (coding,) = assigned([file], CODING, POINTS, CONCURRENCY)
    assert overall.alpha == 0.025
    assert coding.alpha == pytest.approx(0.025 / 11)
    assert overall.beta == coding.beta == 0.05


def test_each_file_is_a_family_of_its_own() -> None:
    first = file_of(gate(1, CellPattern("qualitative", "coding", concurrency=8), "user_tps", "output_tps"))
    second = file_of(gate(1, CellPattern(concurrency=8), "ttft_p50_s", path="b.yaml"), path="b.yaml")
    shares = {a.limit.metric: a.alpha for a in assigned([first, second], CODING, POINTS, DEFAULT_CONCURRENCY)}
    assert shares == {
        "user_tps": pytest.approx(0.05 / 2),
        "output_tps": pytest.approx(0.05 / 2),
        "ttft_p50_s": pytest.approx(0.05 / 2 / (11 + 15)),
    }


def test_cell_without_gate_is_assigned_nothing() -> None:
    file = file_of(gate(1, CellPattern("qualitative", "qa")))
    assert assigned([file], CODING, POINTS, CONCURRENCY) == ()

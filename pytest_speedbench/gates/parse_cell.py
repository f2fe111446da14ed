"""The cells that a gate or a waiver of a thresholds file names."""

from __future__ import annotations

from pytest_speedbench.cells import CATEGORIES, DIFFICULTIES, OVERALL, SPLITS, isl_tokens
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates.limits import CellPattern
from pytest_speedbench.gates.yaml_nodes import Value

_KEYS = ("split", "category", "isl", "difficulty", "concurrency")


def cell_pattern(value: Value) -> CellPattern:
    """The pattern that ``value`` holds. Raises ConfigError with file and line."""
    entries = value.mapping(allowed=_KEYS)
    split = entries["split"].choice(SPLITS) if "split" in entries else None
    category = entries["category"].choice((*CATEGORIES, OVERALL)) if "category" in entries else None
    isl = entries["isl"].text() if "isl" in entries else None
    if isl is not None:
        try:
            isl_tokens(isl)
        except ConfigError as error:
            raise entries["isl"].error(str(error)) from None
    difficulty = entries["difficulty"].choice(DIFFICULTIES) if "difficulty" in entries else None
    throughput_key = "isl" if isl is not None else "difficulty" if difficulty is not None else None
    if category is not None and throughput_key is not None:
        raise entries[throughput_key].error(f"no cell has both category and {throughput_key}")
    if split == "qualitative" and throughput_key is not None:
        raise entries[throughput_key].error(f"the qualitative split has no {throughput_key}")
    if split == "throughput" and category is not None:
        raise entries["category"].error("the throughput split has no category")
    # A category or an ISL implies its split; set, it makes patterns comparable.
    implied = "qualitative" if category is not None else "throughput" if throughput_key is not None else None
    concurrency = entries["concurrency"].count() if "concurrency" in entries else None
    return CellPattern(split or implied, category, isl, difficulty, concurrency)

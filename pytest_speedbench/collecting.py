"""The suite as pytest items."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_speedbench import takeover
from pytest_speedbench.names import CATEGORIES, CONTROL, CROSSOVER, DIFFICULTIES, ISLS, LOSSLESS, OVERALL, SPLITS
from pytest_speedbench.session import BENCH

if TYPE_CHECKING:
    from pytest_speedbench.cells import Cell


class SuiteModule(pytest.Module):
    """The suite's module; its one test function is collected whatever ``python_functions`` says."""

    def funcnamefilter(self, name: str) -> bool:
        """Whether ``name`` is the suite's test function."""
        return name == "test_cell"


def register_marks(config: pytest.Config) -> None:
    """Make the marks known, for ``-m`` and ``--strict-markers``."""
    config.addinivalue_line("markers", "speedbench: an item that measures speculative decoding")
    if takeover.in_suite(config):
        derived = (OVERALL, LOSSLESS, CROSSOVER)
        for name in (*SPLITS, *CATEGORIES, *derived, *DIFFICULTIES, CONTROL, *(f"isl_{isl}" for isl in ISLS)):
            config.addinivalue_line("markers", f"{name}: cells of pytest-speedbench")


def parametrise(metafunc: pytest.Metafunc) -> None:
    """Give the suite its cells, and a user's test one run per named engine.

    One joint parametrisation in session scope: separate ones would multiply, and a narrower scope
    would start the engine anew for every cell.
    """
    if "speedbench_cell" in metafunc.fixturenames:
        metafunc.parametrize(
            ("speedbench_engine", "speedbench_cell"),
            [
                pytest.param(planned.profile.label, planned, id=planned.item_id, marks=_marks(planned.cell))
                for planned in metafunc.config.stash[BENCH].plan.cells
            ],
            indirect=["speedbench_engine"],
            scope="session",
        )
    elif "speedbench_engine" in metafunc.fixturenames:
        named = takeover.named_engines(metafunc.config)
        if named:
            labels = list(dict.fromkeys(part.strip() for part in named.split(",") if part.strip()))
            metafunc.parametrize("speedbench_engine", labels, indirect=True, scope="session")


def _marks(cell: Cell) -> list[pytest.MarkDecorator]:
    names = ["speedbench", cell.split, cell.category, cell.difficulty, cell.isl and f"isl_{cell.isl}"]
    return [getattr(pytest.mark, name) for name in names if name]

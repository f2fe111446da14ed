"""The items of ``pytest --speedbench-engine=…``: one per planned cell."""

from __future__ import annotations

from collections.abc import Callable

from pytest_speedbench.results import CellResult


def test_cell(speedbench_result: CellResult, speedbench_enforce: Callable[[CellResult], None]) -> None:
    """The verdict on one cell; it was measured while this item was set up."""
    speedbench_enforce(speedbench_result)

"""What the ``speedbench`` fixture gives to a user's own tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pytest_speedbench.bench import Bench
from pytest_speedbench.campaign import CellProgress, EngineSlot
from pytest_speedbench.cells import Axes, Cell, expand
from pytest_speedbench.errors import ConfigError, InvalidRun
from pytest_speedbench.gates.verdict import Verdict
from pytest_speedbench.measure.acceptance import Acceptance
from pytest_speedbench.planning import PlannedCell
from pytest_speedbench.results import CellResult


@dataclass(frozen=True, slots=True, repr=False)
class Measured:
    """One measured cell. Every metric of the README is an attribute: ``measured.output_tps``."""

    result: CellResult

    def __getattr__(self, name: str) -> float:
        metric = self.result.metrics.get(name)
        if metric is None:
            has = ", ".join(self.result.metrics)
            raise AttributeError(f"this cell has no metric {name!r}; it has {has}")
        return metric.value

    def __repr__(self) -> str:
        # What an assertion that failed shows of it.
        metrics = self.result.metrics
        shown = [f"{name}={metrics[name].value:.4g}" for name in ("acceptance_length", "output_tps") if name in metrics]
        return f"<{', '.join([f'Measured {self.result.cell.id(with_concurrency=True)}', *shown])}>"

    @property
    def acceptance(self) -> Acceptance:
        """Histogram, conditional and joint acceptance."""
        assert self.result.acceptance is not None
        return self.result.acceptance


class Speedbench:
    """A started engine, and the cells that may be measured on it."""

    def __init__(
        self,
        bench: Bench,
        slot: EngineSlot,
        node_id: str,
        progress: CellProgress,
        attach: Callable[[CellResult], None],
    ) -> None:
        self._bench = bench
        self._slot = slot
        self._node_id = node_id
        self._progress = progress
        self._attach = attach

    @property
    def engine(self) -> str:
        """Label of the engine's profile."""
        return self._slot.profile.label

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells of the dataset, at the default concurrency of their split."""
        settings, points = self._bench.plan.settings, self._bench.plan.dataset.points()
        return tuple(expand(Axes(), points, {k: v[:1] for k, v in settings.default_concurrency.items()}))

    def run(
        self,
        *,
        category: str | None = None,
        isl: str | None = None,
        difficulty: str | None = None,
        concurrency: int | None = None,
    ) -> Measured:
        """Measure one cell, without comparing it with any threshold.

        Raises InvalidRun, shown as an error and not as a failure, when the run cannot carry a
        verdict; ConfigError when the dataset has no such cell.
        """
        settings = self._bench.plan.settings
        split = "qualitative" if category is not None else "throughput"
        asked = (concurrency,) if concurrency is not None else settings.axes.concurrencies
        axes = Axes(
            (split,),
            () if category is None else (category,),
            () if isl is None else (isl,),
            () if difficulty is None else (difficulty,),
            asked or settings.default_concurrency[split][:1],
        )
        cells = expand(axes, self._bench.plan.dataset.points(), dict(settings.default_concurrency))
        if len(cells) != 1 or cells[0].is_overall:
            names = ", ".join(cell.id(with_concurrency=True) for cell in cells[:4])
            raise ConfigError(f"name one cell, by category or by isl and difficulty; this names {names}")
        planned = PlannedCell(self._slot.profile, cells[0], self._node_id)
        result = self._bench.measure(self._slot, planned, self._progress, judged=False)
        self._attach(result)
        if result.verdict is Verdict.INVALID:
            raise InvalidRun(result.reasons[0].code, result.reasons[0].message)
        return Measured(result)

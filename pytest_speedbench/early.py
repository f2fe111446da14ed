"""Looking at a cell while it is measured: one that has failed for sure needs no more GPU time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_speedbench.cells import Cell
from pytest_speedbench.gates import prompt_reference
from pytest_speedbench.gates.limits import Limit
from pytest_speedbench.gates.selection import AssignedLimit
from pytest_speedbench.gates.sequential import NUMBER_OF_BLOCKS, blocks, early_floor, look_sizes
from pytest_speedbench.gates.verdict import GateResult
from pytest_speedbench.load.driver import Conversation
from pytest_speedbench.measure.metrics import METRICS
from pytest_speedbench.measure.runs import prompt_lengths
from pytest_speedbench.measure.samples import Client, Counters, StepTotal, Turn, Window

METRIC = "acceptance_length"
PER_STREAM = 2
"""Prompts of a block per stream at least: a block is drained before the next, and much of a small one is its end."""


@dataclass(frozen=True, slots=True)
class Looks:
    """When to look at a cell, and by what to judge it. ``reference`` is each prompt's length at calibration."""

    parts: tuple[tuple[str, ...], ...]
    limit: AssignedLimit
    reference: Mapping[str, float] | None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of prompts at which to look; the last has all."""
        return look_sizes(self.parts)

    @classmethod
    def plan(cls, cell: Cell, strata: Mapping[str, Sequence[str]], floor: AssignedLimit, seed: int) -> Looks | None:
        """Looks at a cell with a ``floor_of``; None where it has too few prompts to gain anything.

        Raises ConfigError for a prompt reference that is damaged or of another calibration.
        """
        reference = _reference(cell, floor.limit)
        prompts = sum(len(ids) for ids in strata.values())
        number = min(NUMBER_OF_BLOCKS, prompts // (PER_STREAM * cell.concurrency))
        if number < 2:
            return None
        looks = cls(blocks(strata, seed, number), floor, reference)
        return looks if len(looks.sizes) > 1 else None

    def split(self, conversations: Sequence[Conversation]) -> list[tuple[Conversation, ...]]:
        """The conversations in the blocks in which they are sent."""
        named = {conversation.question_id: conversation for conversation in conversations}
        return [tuple(named[name] for name in part) for part in self.parts]

    def look(self, turns: Sequence[Turn]) -> GateResult | None:
        """FAIL if the prompts so far are enough for it, None to go on."""
        lengths = prompt_lengths(turns)
        if len(lengths) not in self.sizes[:-1]:
            return None
        return early_floor(
            METRIC,
            lengths,
            self.limit.limit,
            sizes=self.sizes,
            alpha=self.limit.alpha,
            beta=self.limit.beta,
            reference=self.reference,
        )


def floor_of(cell: Cell, limits: Sequence[AssignedLimit]) -> AssignedLimit | None:
    """The calibrated floor on the acceptance length by which a cell may fail early; None where it has none.

    A cell with a limit on a rate or a latency is measured in one piece, since draining changes these.
    """
    if cell.split != "qualitative" or any(METRICS[each.limit.metric].log_scale for each in limits):
        return None
    return next((e for e in limits if e.limit.measured_as == METRIC and e.limit.evidence is not None), None)


def _reference(cell: Cell, limit: Limit) -> dict[str, float] | None:
    """Each prompt's acceptance length at calibration, from the file beside the limit's; None where there is none."""
    path, _, _ = limit.source.rpartition(":")
    found = prompt_reference.read(Path(path))
    prompts = None if found is None else found.of(cell, limit)
    return None if prompts is None else {name: prompt.length for name, prompt in prompts.items()}


def joined(windows: Sequence[Window]) -> Window:
    """Blocks of one cell that were measured one after the other, as one window without a steady part."""
    steps = [window.steps for window in windows if window.steps is not None]
    return Window(
        cell=windows[0].cell,
        planned=tuple(planned for window in windows for planned in window.planned),
        turns=tuple(turn for window in windows for turn in window.turns),
        failures=tuple(failure for window in windows for failure in window.failures),
        counters=Counters.total(window.counters for window in windows),
        gpus=tuple(gpu for window in windows for gpu in window.gpus),
        client=_worst([window.client for window in windows]),
        steps=StepTotal(sum(s.low for s in steps), sum(s.high for s in steps), steps[0].source)
        if len(steps) == len(windows)
        else None,
        start=windows[0].start,
        repeat=windows[0].repeat,
    )


def _worst(clients: Sequence[Client]) -> Client:
    return max(clients, key=lambda client: (client.lag_p99_s, client.cpu_share))

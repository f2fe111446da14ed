"""Looking at a cell while it is measured: one that has failed for sure needs no more GPU time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_speedbench.cells import Cell
from pytest_speedbench.gates import prompt_reference
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
    def plan(
        cls,
        cell: Cell,
        strata: Mapping[str, Sequence[str]],
        limits: Sequence[AssignedLimit],
        reference: Mapping[str, float] | None,
        seed: int,
    ) -> Looks | None:
        """Looks at a cell whose acceptance length has a calibrated floor; None where there is nothing to gain.

        A cell with a limit on a rate or a latency is measured in one piece, since draining changes these.
        """
        if cell.split != "qualitative" or any(METRICS[each.limit.metric].log_scale for each in limits):
            return None
        floor = next((each for each in limits if each.limit.measured_as == METRIC), None)
        if floor is None or floor.limit.evidence is None:
            return None
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


def reference_lengths(cell: Cell, limits: Sequence[AssignedLimit]) -> dict[str, float] | None:
    """Each prompt's acceptance length at calibration, from the file beside the limit's; None where there is none.

    Raises ConfigError for a file that is damaged or of another calibration.
    """
    for each in limits:
        path, _, _ = each.limit.source.rpartition(":")
        found = prompt_reference.read(Path(path)) if each.limit.measured_as == METRIC else None
        prompts = None if found is None else found.of(cell, each.limit)
        if prompts is not None:
            return {name: prompt.length for name, prompt in prompts.items()}
    return None


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

"""What goes into the cells of a plan: prepared profiles, conversations, and the capacity that they need."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from pytest_speedbench.cells import Cell, isl_tokens
from pytest_speedbench.data import control
from pytest_speedbench.data.schema import Row
from pytest_speedbench.engines.base import Capacity, Profile
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.load.driver import Conversation
from pytest_speedbench.measure.checks import Reason
from pytest_speedbench.planning import Plan
from pytest_speedbench.running import Prepared


@dataclass(slots=True)
class Inputs:
    """The inputs of one plan. Tokenizers and random prompts are made once."""

    plan: Plan
    _prepared: dict[str, Prepared] = field(default_factory=dict)
    _random: dict[tuple[str, str], tuple[Row, ...]] = field(default_factory=dict)

    def prepared(self, profile: Profile) -> Prepared:
        """The profile, checked, with its tokenizer. Raises ConfigError."""
        if profile.label not in self._prepared:
            self._prepared[profile.label] = Prepared.of(profile)
        return self._prepared[profile.label]

    def planned(self, profile: Profile) -> list[Cell]:
        """The cells that are measured with ``profile``."""
        return [p.cell for p in self.plan.cells if p.profile is profile and not p.cell.is_derived]

    def everything(self, profile: Profile) -> list[Cell]:
        """All cells of the dataset at their first concurrency, for user's tests that ask for cells of their own."""
        settings = self.plan.settings
        axes = settings.axes
        return [
            replace(p, concurrency=max(axes.concurrencies or settings.default_concurrency[p.split][:1]))
            for p in self.plan.dataset.points()
            if axes.takes(p)
        ]

    def capacity(self, prepared: Prepared, cells: Sequence[Cell]) -> Capacity:
        """What the engine must hold for ``cells``. Raises ConfigError for prompts that do not fit."""
        osl_cap = self.plan.settings.sampling.osl_cap
        needs: dict[str, int] = {}
        # One cell at a time: the texts of all of them can be some 400 MB.
        for cell in dict.fromkeys(replace(cell, concurrency=1) for cell in cells):
            for name, need in prepared.needs(self.conversations(prepared, cell), osl_cap).items():
                needs[name] = max(need, needs.get(name, 0))
        concurrency = max((cell.concurrency for cell in cells), default=1)
        return prepared.capacity(needs, concurrency=concurrency, osl_cap=osl_cap)

    def conversations(self, prepared: Prepared, cell: Cell) -> tuple[Conversation, ...]:
        """The conversations of a cell, first prompts tokenised."""
        if cell.is_control:
            return prepared.conversations(self._random_rows(prepared, cell))
        return prepared.conversations(self.plan.dataset.rows(self.plan.entries(cell)))

    def all_conversations(self, prepared: Prepared, cell: Cell) -> tuple[Conversation, ...]:
        """The conversations of a cell; of the overall cell those of all categories."""
        cells = self.categories(cell) if cell.is_overall else [cell]
        return tuple(conversation for each in cells for conversation in self.conversations(prepared, each))

    def categories(self, cell: Cell) -> list[Cell]:
        """The cells that an overall cell sums up."""
        return [
            replace(point, concurrency=cell.concurrency)
            for point in self.plan.dataset.points()
            if point.split == cell.split
        ]

    def _random_rows(self, prepared: Prepared, cell: Cell) -> tuple[Row, ...]:
        """The prompts of a control cell. Made once per ISL: 512 of 32k tokens take more than a minute."""
        settings, key = self.plan.settings, (prepared.profile.label, str(cell.isl))
        assert settings.control is not None
        if key not in self._random:
            self._random[key] = control.rows(
                settings.control, isl_tokens(str(cell.isl)), self.plan.number(cell), settings.seed, prepared.tokenizer
            )
        return self._random[key]

    def refuse_remembered(self, prepared: Prepared, cells: Sequence[Cell]) -> None:
        """Raise ConfigError for planned cells whose drafts would come from answers to the same prompts."""
        seen: set[str] = set()
        for cell in cells:
            reason = self.remembered(prepared, cell, seen)
            if reason is not None:
                raise ConfigError(f"{prepared.profile.label}: {reason.message}")
            seen |= self._ids(prepared, cell)

    def remembered(self, prepared: Prepared, cell: Cell, seen: Collection[str]) -> Reason | None:
        """Why a drafter that learns from what was generated would know this cell's answers, None if it does not.

        ``seen`` are prompts that the engine has answered since it was started.
        """
        if not prepared.engine.remembers:
            return None
        method = prepared.profile.speculation.method
        forgets = prepared.engine.flush_path is not None
        why = None
        again = self.plan.settings.repeats > 1 or self.plan.settings.inconclusive == "rerun"
        if again and not forgets:
            why = f"{cell.id(with_concurrency=True)} cannot be measured again within one engine start"
        elif self.plan.repeats(cell) > 1:
            why = f"prompts cannot be repeated to fill {cell.id(with_concurrency=True)}; lower the concurrency"
        elif not forgets and prepared.profile.base_url is not None:
            why = "a server that was running before may have answered these prompts already; start one"
        elif not forgets and not self._ids(prepared, cell).isdisjoint(seen):
            why = f"the prompts of {cell.id(with_concurrency=True)} cannot be measured twice; name one concurrency"
        if why is None:
            return None
        return Reason("prompts_remembered", f"method {method} drafts from what it has generated before, so {why}")

    def _ids(self, prepared: Prepared, cell: Cell) -> set[str]:
        rows = self._random_rows(prepared, cell) if cell.is_control else self.plan.entries(cell)
        return {row.question_id for row in rows}

"""One profile's cells over all its engine starts, beside what it is compared with: measured, then judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from pytest_speedbench.cells import Cell
from pytest_speedbench.data.lengths import Lengths
from pytest_speedbench.derived import dtype_of, judge_crossover, judge_losslessness
from pytest_speedbench.early import Looks, floor_of, joined
from pytest_speedbench.engines.base import Profile
from pytest_speedbench.engines.gpus import Gpu
from pytest_speedbench.errors import EngineDied, EngineError
from pytest_speedbench.gates.selection import gates_for
from pytest_speedbench.gates.verdict import GateResult, Verdict
from pytest_speedbench.gates.waivers import waiver_of
from pytest_speedbench.inputs import Inputs
from pytest_speedbench.judging import (
    Assessed,
    Labels,
    Rules,
    assess,
    assess_overall,
    invalid,
    is_sound,
    judge_runs,
    limits_of,
    stopped,
    without_rates,
)
from pytest_speedbench.load.driver import Conversation
from pytest_speedbench.measure import losslessness
from pytest_speedbench.measure.checks import Reason
from pytest_speedbench.measure.gpu_record import GpuWindow
from pytest_speedbench.measure.losslessness import TopTokens, demand
from pytest_speedbench.measure.runs import Run
from pytest_speedbench.measure.samples import Turn, Window
from pytest_speedbench.measure.speedup import PER_PROMPT
from pytest_speedbench.names import BASELINE, PLAIN
from pytest_speedbench.planning import PlannedCell, static_facts
from pytest_speedbench.report.redact import Redactor
from pytest_speedbench.report.requests import RequestLog
from pytest_speedbench.results import CellResult
from pytest_speedbench.running import RunningEngine, prompts_sha256
from pytest_speedbench.versus import Baseline, shared, speedups_of
from pytest_speedbench.window_store import WindowStore

CellProgress = Callable[[str, int, int], None]
"""Called with (item id, conversations done, conversations in all)."""


@dataclass(slots=True)
class EngineSlot:
    """The engine of one profile while its fixture lives: running, or why it is not."""

    profile: Profile
    start: int = 0
    running: RunningEngine | None = None
    gpus: tuple[Gpu, ...] = ()
    broken: Reason | None = None
    told: bool = False
    seen: set[str] = field(default_factory=set)
    """Ids of the prompts that it has answered."""
    watched: list[GpuWindow] = field(default_factory=list)
    """What was seen of its GPUs."""

    def why_broken(self) -> Reason:
        """The reason in full the first time, one line after that."""
        assert self.broken is not None
        if self.told:
            first = self.broken.message.splitlines()[0]
            return Reason("engine_unavailable", f"{first} (reported in full above)")
        self.told = True
        return self.broken


@dataclass(slots=True)
class Measured:
    """What was measured of one cell of one profile so far."""

    runs: list[Assessed] = field(default_factory=list)
    seconds: float = 0.0
    sources: dict[str, None] = field(default_factory=dict)
    """Where step counts came from, in order."""
    starts: set[int] = field(default_factory=set)
    """Engine starts whose planned repeats are done."""
    looks: Looks | None = None
    stopped: GateResult | None = None
    """The verdict of a look before the end."""


@dataclass(slots=True)
class Campaign:
    """The measurements of one profile. ``log`` is where windows are written, ``notes`` what the user should know.

    ``own_cells``: every result is a measurement of its own, since a user's tests ask for cells by themselves.
    """

    inputs: Inputs
    windows: WindowStore
    redactor: Redactor
    log: Callable[[], RequestLog]
    notes: list[str]
    own_cells: bool
    unlike: Callable[[str, str], tuple[str, ...]] = lambda one, other: ()
    """What forbids to compare two profiles by label, in words."""
    beside: list[CellResult] = field(default_factory=list)
    """Cells of what the profile is compared with, which are not judged."""
    measured: dict[tuple[str, Cell], Measured] = field(default_factory=dict)
    decided: set[Cell] = field(default_factory=set)
    """Cells that the last engine starts were not for: they had their verdict."""

    def measure_all(self, slot: EngineSlot, cells: Sequence[Cell], progress: CellProgress) -> None:
        """All cells on an engine start that no item waits for, until it breaks."""
        repeats = range(self.inputs.plan.settings.repeats)
        for cell in sorted(cells, key=lambda cell: cell.is_derived):
            if slot.broken is None and (cell.is_overall or not cell.is_derived):
                name = f"{slot.profile.label}-{cell.id(with_concurrency=True)}, start {slot.start + 1}"
                self._measure_repeats(slot, cell, repeats, name, progress)
        # No item has shown yet what went wrong.
        slot.told = False

    def left_open(self, slot: EngineSlot, planned: Sequence[PlannedCell]) -> list[PlannedCell]:
        """The cells that more engine starts could decide, with those that they are worked out from."""
        assert slot.running is not None
        undecided = [each for each in planned if self._is_open(slot, slot.running, each)]
        needed = {each.cell for each in undecided}
        for each in undecided:
            if each.cell.is_overall:
                needed |= set(self.inputs.categories(each.cell))
            elif each.cell.is_crossover:
                needed |= set(self._parts(each))
        return [each for each in planned if each.cell in needed]

    def _is_open(self, slot: EngineSlot, running: RunningEngine, planned: PlannedCell) -> bool:
        cell = planned.cell
        if cell.is_crossover:
            return self._crossover(slot, planned, judged=True).verdict is Verdict.INCONCLUSIVE
        if cell.is_lossless or slot.start not in self.measured[planned.profile.label, cell].starts:
            return False
        labels = Labels(planned.profile.label, planned.item_id, "", "", 0.0)
        labels = self._of_prompts(labels, cell, self.inputs.all_conversations(running.prepared, cell))
        result = self._judge(slot, planned, self._rules(planned, slot, judged=not cell.is_control), labels)
        # Noise beyond the margin is what more starts are for.
        few = bool(result.reasons) and all(reason.code == "unreachable" for reason in result.reasons)
        return few or (result.verdict is Verdict.INCONCLUSIVE and not result.is_waived)

    def _crossover(self, slot: EngineSlot, planned: PlannedCell, *, judged: bool) -> CellResult:
        labels = Labels(planned.profile.label, planned.item_id, "", "", 0.0)
        rules = self._rules(planned, slot, judged=judged)
        return judge_crossover(planned.cell, self._over_concurrencies(planned), rules, labels)

    def result(self, slot: EngineSlot, planned: PlannedCell, progress: CellProgress, *, judged: bool) -> CellResult:
        """Measure what is left to measure of one cell, and judge it."""
        profile, cell = planned.profile, planned.cell
        labels = Labels(profile.label, planned.item_id, "", "", 0.0)
        if slot.running is None or (slot.broken is not None and not cell.is_derived):
            return invalid(cell, slot.why_broken(), labels)
        if cell.is_lossless:
            return self._losslessness(slot, slot.running, planned, labels)
        if cell.is_crossover:
            return self._crossover(slot, planned, judged=judged)
        settings = self.inputs.plan.settings
        rules = self._rules(planned, slot, judged=judged and not cell.is_control)
        if self.own_cells:
            # Two tests that measure the same cell are two measurements, not runs of one.
            self.measured.pop((profile.label, cell), None)
        elif not cell.is_overall:
            self.measured.setdefault((profile.label, cell), Measured()).looks = self._looks(
                slot.running, planned, rules
            )
        self._measure_repeats(slot, cell, range(settings.repeats), planned.item_id, progress)
        labels = self._of_prompts(labels, cell, self.inputs.all_conversations(slot.running.prepared, cell))
        for companion in settings.companions(profile):
            self.beside.append(self._of_companion(companion, planned, labels))
        result = self._judge(slot, planned, rules, labels)
        if result.verdict is Verdict.INCONCLUSIVE and not result.is_waived and settings.inconclusive == "rerun":
            again = range(settings.repeats, 2 * settings.repeats)
            self._measure_repeats(slot, cell, again, planned.item_id, progress)
            result = self._judge(slot, planned, replace(rules, look=2), labels)
        return result

    def _judge(self, slot: EngineSlot, planned: PlannedCell, rules: Rules, labels: Labels) -> CellResult:
        measured = self.measured[planned.profile.label, planned.cell]
        self._add_speedups(planned, measured)
        labels = replace(labels, steps_source=", ".join(measured.sources), duration_s=measured.seconds)
        if measured.stopped is not None:
            return stopped(
                planned.cell, measured.runs, measured.stopped, rules, labels, self.inputs.plan.number(planned.cell)
            )
        if measured.looks is not None:
            rules = replace(rules, sizes=measured.looks.sizes)
        return judge_runs(planned.cell, measured.runs, rules, labels, self._baseline(slot, planned))

    def _looks(self, running: RunningEngine, planned: PlannedCell, rules: Rules) -> Looks | None:
        """When to look at a cell that is measured once and by itself, on the prompts of its calibration."""
        settings, cell = self.inputs.plan.settings, planned.cell
        once = settings.starts == (1,) and settings.repeats == 1 and settings.inconclusive != "rerun"
        limits = limits_of(cell, rules)
        floor = floor_of(cell, limits)
        if not once or settings.companions(planned.profile) or floor is None:
            return None
        prompts = prompts_sha256(self.inputs.conversations(running.prepared, cell))
        if any(not prompts.startswith(each.limit.evidence.prompts or "") for each in limits if each.limit.evidence):
            return None
        if any(waiver_of(rules.files, cell, each.limit) for each in limits):
            # What is waived is known to be low; how low, only the whole cell says.
            return None
        strata: dict[str, list[str]] = {}
        for entry in self.inputs.plan.entries(cell):
            strata.setdefault(entry.sub_category, []).append(entry.question_id)
        return Looks.plan(cell, strata, floor, settings.seed)

    def _add_speedups(self, planned: PlannedCell, measured: Measured) -> None:
        """Give each run its speed-up over the same run without speculation, where that was timed well."""
        plain = self.inputs.plan.settings.plain.get(planned.profile.label)
        if plain is None:
            return
        # Few conversations do not spoil what is compared per prompt; a slow GPU or client does.
        few = {"concurrency_not_held"} if planned.cell.split == "qualitative" else set()
        runs = self.measured[plain.label, planned.cell].runs
        slow = [r for each in runs for r in (*each.reasons, *each.timing) if r.code not in few]
        if slow:
            note = f"{plain.label}: no speed-up of {planned.item_id}: {slow[0].code}: {slow[0].message}"
            self.notes += [note] if note not in self.notes else []
            return
        for place, each in enumerate(measured.runs):
            if each.run is not None and PER_PROMPT not in each.run.metrics:
                key = (planned.cell, each.run.start, each.run.repeat)
                both = self._windows(plain.label, *key), self._windows(planned.profile.label, *key)
                found = speedups_of(*both, seed_parts=(planned.item_id,))
                run = replace(each.run, metrics={**each.run.metrics, **found})
                measured.runs[place] = replace(each, run=run)

    def _baseline(self, slot: EngineSlot, planned: PlannedCell) -> Baseline | None:
        """The cell as the engine before the upgrade did it, None without one."""
        settings, cell = self.inputs.plan.settings, planned.cell
        old = settings.baselines.get(planned.profile.label)
        if old is None:
            return None
        shares = [
            shared(*(self._windows(label, cell, start, repeat) for label in (old.label, planned.profile.label)))
            for start in range(slot.start + 1)
            for repeat in range(settings.repeats)
        ]
        runs = self.measured[old.label, cell].runs
        return Baseline(
            settings.baseline_source,
            runs=tuple(each.run for each in runs if each.run is not None),
            shared=tuple(share for share in shares if share is not None),
            cells=tuple(
                p.cell for p in self.inputs.plan.cells if p.profile is planned.profile and not p.cell.is_control
            ),
            reasons=(
                *(reason for each in runs for reason in each.reasons),
                *(Reason("unlike", words) for words in self.unlike(old.label, planned.profile.label)),
            ),
            timing=tuple(reason for each in runs for reason in each.timing),
        )

    def _measure_repeats(self, slot: EngineSlot, cell: Cell, repeats: range, name: str, progress: CellProgress) -> None:
        """Some repeats of a cell within one engine start; those of the overall cell are its categories'.

        Nothing is done again for a start that was measured before its items came.
        """
        measured = self.measured.setdefault((slot.profile.label, cell), Measured())
        if repeats.start == 0 and (slot.start in measured.starts or cell in self.decided):
            return
        measured.starts.add(slot.start)
        if not cell.is_overall:
            self._measure_runs(slot, cell, repeats, name, progress)
            return
        for part in self.inputs.categories(cell):
            # A category whose own verdict was inconclusive has been measured again already.
            left = [n for n in repeats if self._window(slot.profile.label, part, slot.start, n) is None]
            if left and repeats.start > 0:
                own = f"{slot.profile.label}-{part.id(with_concurrency=True)}"
                self._measure_runs(slot, part, range(left[0], repeats.stop), own, progress)
        self._assess_overall(slot, cell, repeats, name)

    def _measure_runs(self, slot: EngineSlot, cell: Cell, repeats: range, name: str, progress: CellProgress) -> None:
        """Some repeats of one cell. What goes wrong is one of its runs, without a metric."""
        measured = self.measured.setdefault((slot.profile.label, cell), Measured())
        for repeat in repeats:
            began = time.monotonic()
            run = self._measure_run(slot, cell, repeat, name, progress, measured)
            measured.seconds += time.monotonic() - began
            if isinstance(run, Reason):
                measured.runs.append(Assessed(None, (run,)))
                return
            source = run.steps.source if run.steps is not None else ""
            measured.sources.setdefault(source)
            assessed = assess(run, slot.profile.speculation, (name,))
            measured.runs.append(assessed if measured.looks is None else without_rates(assessed))

    def _measure_run(
        self, slot: EngineSlot, cell: Cell, repeat: int, name: str, progress: CellProgress, measured: Measured
    ) -> Window | Reason:
        """Measure a cell once, or until a look has decided; the window, or why there is none."""
        running, profile = slot.running, slot.profile
        assert running is not None
        reason = self.inputs.remembered(running.prepared, cell, slot.seen)
        if reason is not None:
            return reason
        conversations = self.inputs.conversations(running.prepared, cell)
        slot.seen |= {conversation.question_id for conversation in conversations}
        windows: list[Window] = []
        for block in [conversations] if measured.looks is None else measured.looks.split(conversations):
            try:
                window = running.measure(
                    cell,
                    block,
                    self.inputs.plan.settings.sampling,
                    lambda done, total: progress(name, done, total),
                    repeats=self.inputs.plan.repeats(cell),
                )
            except EngineError as error:
                return self._lost(slot, running, error)
            windows.append(replace(window, start=slot.start, repeat=repeat))
            if measured.looks is not None and is_sound(window, profile.speculation):
                measured.stopped = measured.looks.look([turn for each in windows for turn in each.turns])
            if measured.stopped is not None:
                break
        window = windows[0] if len(windows) == 1 else joined(windows)
        slot.watched += window.gpus
        self.log().append(profile.label, window)
        self.notes += [f"{profile.label}: {note}" for note in running.take_notes()]
        # Whether a cell has a gate of its own, or a fit one, does not matter to the overall cell.
        if measured.stopped is None and is_sound(window, profile.speculation):
            self.windows.put(profile.label, window)
        return window

    def _over_concurrencies(self, planned: PlannedCell) -> dict[int, list[Run]]:
        """The sound runs of the cells that a crossover is over, by concurrency; empty for one without."""
        found: dict[int, list[Run]] = {}
        for part in self._parts(planned):
            measured = self.measured.get((planned.profile.label, part), Measured())
            sound = not any(each.reasons or each.timing for each in measured.runs)
            found[part.concurrency] = [each.run for each in measured.runs if each.run is not None] if sound else []
        return found

    def _losslessness(
        self, slot: EngineSlot, running: RunningEngine, planned: PlannedCell, labels: Labels
    ) -> CellResult:
        """Greedy output of first turns with and without speculation, differences held against the engine's own odds.

        Of later turns the input differs once a reply does.
        """
        plain, sampling = self.inputs.plan.settings.plain[planned.profile.label], self.inputs.plan.settings.sampling
        turns: tuple[list[Turn], list[Turn]] = ([], [])
        ids: dict[str, Sequence[int]] = {}
        for part in self._parts(planned):
            for side, label in zip(turns, (plain.label, planned.profile.label), strict=True):
                window = self._window(label, part, slot.start, 0)
                if window is None:
                    message = f"{label} has no sound measurement of {part.name} to compare"
                    return invalid(planned.cell, Reason("incomplete_family", message), labels)
                side += [turn for turn in window.turns if turn.index == 0]
            ids |= {c.question_id: c.first_ids for c in self.inputs.conversations(running.prepared, part)}

        def ask(turn: Turn, at: int) -> TopTokens | None:
            return running.top_tokens((*ids[turn.question_id], *(turn.output_ids or ())[:at]), sampling)

        dtype = dtype_of(planned.profile, running.description.resolved)
        held_to = demand(dtype, concurrency=planned.cell.concurrency)
        found = losslessness.judge(*turns, ask, held_to, temperature=sampling.temperature)
        self.notes += dict.fromkeys(f"{planned.profile.label}: {note}" for note in running.take_notes())
        return judge_losslessness(planned.cell, found, labels)

    def _parts(self, planned: PlannedCell) -> list[Cell]:
        """The planned cells that a derived one is worked out from, without those of ``overall``."""
        cell = planned.cell
        own = [p.cell for p in self.inputs.plan.cells if p.profile is planned.profile and not p.cell.is_derived]
        if cell.is_lossless:
            return [c for c in own if (c.split, c.concurrency) == (cell.split, cell.concurrency)]
        return [c for c in own if (c.isl, c.difficulty) == (cell.isl, cell.difficulty)]

    def _of_companion(self, companion: Profile, planned: PlannedCell, labels: Labels) -> CellResult:
        """The cell as it was measured with what its profile is compared with."""
        measured = self.measured.get((companion.label, planned.cell), Measured())
        own = replace(
            labels,
            profile=companion.label,
            item_id=companion.label + planned.item_id.removeprefix(planned.profile.label),
            steps_source=", ".join(measured.sources),
            duration_s=measured.seconds,
        )
        return judge_runs(planned.cell, measured.runs, self._unjudged(companion), own)

    def _lost(self, slot: EngineSlot, running: RunningEngine, error: EngineError) -> Reason:
        """Why a cell broke off: the engine died, or it lives and does not answer."""
        try:
            running.server.require_alive()
        except EngineDied as death:
            # Of the two engines of a comparison it must be said which.
            companion = slot.profile.label.startswith((BASELINE, PLAIN))
            text = f"{slot.profile.label}: {death}" if companion else str(death)
            slot.broken, slot.told = Reason("engine_died", self.redactor.text(text)), True
            return slot.broken
        return Reason("engine_unreachable", self.redactor.text(str(error)))

    def _assess_overall(self, slot: EngineSlot, cell: Cell, repeats: range, name: str) -> None:
        """The overall cell of some repeats of one engine start, from what was measured of its categories."""
        label = slot.profile.label
        measured = self.measured.setdefault((label, cell), Measured())
        for repeat in repeats:
            parts = {
                str(part.category): self._window(label, part, slot.start, repeat)
                for part in self.inputs.categories(cell)
            }
            for window in parts.values():
                if window is not None and window.steps is not None:
                    measured.sources.setdefault(window.steps.source)
            measured.runs.append(assess_overall(parts, (name,)))

    def _windows(self, label: str, cell: Cell, start: int, repeat: int) -> list[Window]:
        """The window of one run; of the overall cell those of all categories. Empty where any is missing."""
        parts = self.inputs.categories(cell) if cell.is_overall else [cell]
        windows = [self._window(label, part, start, repeat) for part in parts]
        return [window for window in windows if window is not None] if None not in windows else []

    def _window(self, label: str, cell: Cell, start: int, repeat: int) -> Window | None:
        return self.windows.get(label, cell, start, repeat)

    def _of_prompts(self, labels: Labels, cell: Cell, conversations: Sequence[Conversation]) -> Labels:
        """Labels with what the prompts of a cell are."""
        return replace(
            labels,
            prompts_sha256=prompts_sha256(conversations),
            isl=Lengths.of([len(conversation.first_ids) for conversation in conversations]),
            masked=self.inputs.plan.dataset.masked_prompts(cell),
        )

    def _rules(self, planned: PlannedCell, slot: EngineSlot, *, judged: bool) -> Rules:
        plan, profile = self.inputs.plan, planned.profile
        assert slot.running is not None
        targets = plan.settings.starts
        own = self.measured.get((profile.label, planned.cell), Measured()).starts
        last = max(own, default=slot.start) if planned.cell in self.decided else slot.start
        return Rules(
            files=plan.matching[profile.label],
            others=plan.others[profile.label],
            facts=replace(
                static_facts(profile, plan.settings, plan.dataset.id),
                engine_version=slot.running.description.version,
                gpus=tuple(gpu.name for gpu in slot.gpus),
            ),
            points=tuple(plan.dataset.all_points()),
            default_concurrency=plan.settings.default_concurrency,
            look=1 + sum(target <= last for target in targets),
            looks=2 if plan.settings.inconclusive == "rerun" else len(targets),
            starts=targets,
            speculation=profile.speculation,
            measure_only=plan.settings.measure_only or not judged,
            gate_required=(plan.settings.needs_limits and not planned.supporting)
            or bool(plan.settings.baselines and gates_for(plan.matching[profile.label], planned.cell)),
        )

    def _unjudged(self, profile: Profile) -> Rules:
        """Rules of a profile that is only compared with."""
        return Rules(
            files=(),
            others=(),
            facts=static_facts(profile, self.inputs.plan.settings, self.inputs.plan.dataset.id),
            points=(),
            default_concurrency={},
            speculation=profile.speculation,
            measure_only=True,
        )

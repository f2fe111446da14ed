"""The run: engines by profile, measured cells, results, and the artifact that grows with them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

from pytest_speedbench.arms import Arm, order
from pytest_speedbench.cells import Cell, isl_tokens
from pytest_speedbench.data import control
from pytest_speedbench.data.lengths import Lengths
from pytest_speedbench.data.schema import Row
from pytest_speedbench.derived import judge_crossover, judge_losslessness
from pytest_speedbench.early import Looks, joined, reference_lengths
from pytest_speedbench.engines.base import Capacity, Profile, model_name
from pytest_speedbench.engines.gpus import Gpu, Nvml
from pytest_speedbench.engines.leases import leases_folder, reap
from pytest_speedbench.errors import ConfigError, EngineDied, EngineError
from pytest_speedbench.gates.verdict import GateResult, Verdict
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
)
from pytest_speedbench.load.driver import Conversation
from pytest_speedbench.measure import losslessness
from pytest_speedbench.measure.checks import Reason
from pytest_speedbench.measure.losslessness import TopTokens, demand
from pytest_speedbench.measure.runs import Run
from pytest_speedbench.measure.samples import Turn, Window
from pytest_speedbench.measure.speedup import PER_PROMPT
from pytest_speedbench.planning import Plan, PlannedCell, static_facts
from pytest_speedbench.report import artifact, run_info
from pytest_speedbench.report.redact import Redactor
from pytest_speedbench.report.requests import RequestLog
from pytest_speedbench.report.result_json import redacted
from pytest_speedbench.results import CellResult
from pytest_speedbench.running import Prepared, RunningEngine, prompts_sha256
from pytest_speedbench.starting import started
from pytest_speedbench.versus import Baseline, shared, speedups_of
from pytest_speedbench.window_store import WindowStore

CellProgress = Callable[[str, int, int], None]
"""Called with (item id, conversations done, conversations in all)."""


def _silent(name: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


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
    looks: Looks | None = None
    stopped: GateResult | None = None
    """The verdict of a look before the end."""


@dataclass(slots=True)
class Bench:
    """State of one pytest session in the process that measures."""

    plan: Plan
    run: run_info.RunInfo
    redactor: Redactor
    suite: bool
    results: list[CellResult] = field(default_factory=list)
    beside: list[CellResult] = field(default_factory=list)
    """Cells of what a profile is compared with, which are not judged."""
    notes: list[str] = field(default_factory=list)
    """What the user should know beside the results, one sentence each."""
    _prepared: dict[str, Prepared] = field(default_factory=dict)
    _measured: dict[tuple[str, Cell], Measured] = field(default_factory=dict)
    _sound: WindowStore | None = None
    """Windows of the profile at hand that can be compared or summed up."""
    _random: dict[tuple[str, str], tuple[Row, ...]] = field(default_factory=dict)
    _requests: RequestLog | None = None

    @classmethod
    def of(cls, plan: Plan, *, argv: Sequence[str], environ: Mapping[str, str], suite: bool) -> Bench:
        """A bench for ``plan``. ``suite``: its cells are the items, not cells that a user's test asks for."""
        settings = plan.settings
        files = dict.fromkeys(file.path for group in plan.matching.values() for file in group)
        run = run_info.collect(
            started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            argv=argv,
            environ=environ,
            dataset=plan.dataset.id,
            dataset_cells=[
                run_info.CellData(
                    i.point.id(with_concurrency=False), i.prompts, i.masked, i.multiturn, i.turns, i.sha256
                )
                for i in plan.dataset.inventory()
            ],
            thresholds=list(files),
            options=[(o.name, o.value, o.origin) for o in settings.origins],
            engines=[
                _record(each) for profile in settings.profiles for each in (profile, *settings.companions(profile))
            ],
        )
        return cls(plan, run, Redactor.from_environ(environ), suite)

    def prepare(self) -> None:
        """Check every profile, and that every planned prompt fits its context, before any engine starts.

        Raises ConfigError with all that is wrong.
        """
        problems: list[str] = []
        for profile in self.plan.settings.profiles:
            try:
                prepared, cells = self._prepare(profile), self._planned(profile)
                self._capacity(prepared, cells)
                self._refuse_remembered(prepared, cells)
                for companion in self.plan.settings.companions(profile):
                    self._capacity(self._prepare(companion), cells)
                    self._refuse_remembered(self._prepare(companion), cells)
            except ConfigError as error:
                problems += str(error).splitlines()
        if problems:
            raise ConfigError("\n".join(dict.fromkeys(problems)))
        self._open_log()

    @contextlib.contextmanager
    def engine(
        self, profile: Profile, folder: Path, ahead: Sequence[PlannedCell] = (), progress: CellProgress = _silent
    ) -> Iterator[EngineSlot]:
        """Start the engine of ``profile``; a failed start is in the slot, not raised.

        Where cells are measured over several starts, or beside another engine, everything but the last start is
        done before, with the cells in ``ahead``.
        """
        settings = self.plan.settings
        *before, last = order(profile, settings.companions(profile), settings.starts)
        if before and not ahead:
            raise ConfigError(
                "--speedbench-starts, --speedbench-baseline and --speedbench-speedup need to know the cells before the "
                "first start; they work with the suite, not with a test that asks for cells by itself"
            )
        self._sound = WindowStore(folder / "windows")
        try:
            broken: Reason | None = None
            for arm in before:
                broken = broken or self._measure_ahead(arm, ahead, folder, progress)
            if broken is not None:
                yield EngineSlot(profile, last.start, broken=broken)
                return
            with self._started(last, folder, self._planned(profile) or self._everything(profile)) as slot:
                yield slot
        finally:
            self._sound.clear()

    @contextlib.contextmanager
    def _started(self, arm: Arm, folder: Path, cells: Sequence[Cell]) -> Iterator[EngineSlot]:
        profile, slot = arm.profile, EngineSlot(arm.profile, arm.start)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._stop_noted(profile))
            try:
                self.notes += [str(reaped) for reaped in reap(leases_folder(os.environ))]
                prepared = self._prepare(profile)
                own = folder / f"{profile.label}-{arm.start}"
                own.mkdir()
                slot.running, slot.gpus = stack.enter_context(
                    started(prepared, self._capacity(prepared, cells), self.plan.settings, own, Nvml())
                )
                self._note_started(profile, slot.running, slot.gpus)
            except (ConfigError, EngineError) as error:
                slot.broken = Reason("engine_start_failed", f"{profile.label}: {self.redactor.text(str(error))}")
            yield slot

    def _measure_ahead(
        self, arm: Arm, planned: Sequence[PlannedCell], folder: Path, progress: CellProgress
    ) -> Reason | None:
        """One start that no item waits for, with all cells; why it broke off, None if it did not."""
        cells, repeats = [each.cell for each in planned], range(self.plan.settings.repeats)
        with self._started(arm, folder, [cell for cell in cells if not cell.is_derived]) as slot:
            for cell in cells:
                if slot.broken is not None:
                    return slot.why_broken()
                if not cell.is_derived:
                    name = f"{arm.profile.label}-{cell.id(with_concurrency=True)}, start {arm.start + 1}"
                    self._measure_runs(slot, cell, repeats, name, progress)
            for cell in cells:
                if cell.is_overall:
                    self._assess_overall(slot, cell, repeats, f"{arm.profile.label}-{cell.id(with_concurrency=True)}")
        return slot.broken and slot.why_broken()

    @contextlib.contextmanager
    def _stop_noted(self, profile: Profile) -> Iterator[None]:
        """An engine that does not go away does not change what was measured on it, but must be known."""
        try:
            yield
        except EngineError as error:
            self.notes.append(self.redactor.text(f"{profile.label}: {error}"))

    def measure(
        self, slot: EngineSlot, planned: PlannedCell, progress: CellProgress, *, judged: bool = True
    ) -> CellResult:
        """Measure one cell and judge it. The result is recorded before this returns.

        A run that cannot carry a verdict is a result too: INVALID, with its reasons.
        """
        result = redacted(self._measure(slot, planned, progress, judged=judged), self.redactor)
        self.results.append(result)
        self.write(complete=False)
        return result

    def write(self, *, complete: bool) -> None:
        """Write the artifact as it stands."""
        settings = self.plan.settings
        artifact.write(
            settings.artifact,
            self.run,
            [*self.results, *self.beside],
            complete=complete,
            partial=self.partial,
            measure_only=settings.measure_only,
            planned=len(self.plan.cells) if self.suite else None,
            redactor=self.redactor,
        )

    @property
    def partial(self) -> bool:
        """Whether planned cells have no result."""
        return self.suite and len(self.results) < len(self.plan.cells)

    def _measure(self, slot: EngineSlot, planned: PlannedCell, progress: CellProgress, *, judged: bool) -> CellResult:
        profile, cell = planned.profile, planned.cell
        labels = Labels(profile.label, planned.item_id, "", "", 0.0)
        if slot.running is None or (slot.broken is not None and not cell.is_derived):
            return invalid(cell, slot.why_broken(), labels)
        if cell.is_lossless:
            return self._losslessness(slot, slot.running, planned, labels)
        if cell.is_crossover:
            return judge_crossover(
                cell, self._over_concurrencies(planned), self._rules(planned, slot, judged=judged), labels
            )
        settings = self.plan.settings
        rules = self._rules(planned, slot, judged=judged and not cell.is_control)
        if not self.suite:
            # Two tests that measure the same cell are two measurements, not runs of one.
            self._measured.pop((profile.label, cell), None)
        elif not cell.is_overall:
            self._measured.setdefault((profile.label, cell), Measured()).looks = self._looks(planned, rules)
        self._measure_repeats(slot, cell, range(settings.repeats), planned.item_id, progress)
        labels = self._of_prompts(labels, cell, self._all_conversations(slot.running.prepared, cell))
        for companion in settings.companions(profile):
            self.beside.append(self._of_companion(companion, planned, labels))
        result = self._judge(planned, rules, labels)
        if result.verdict is Verdict.INCONCLUSIVE and not result.is_waived and settings.inconclusive == "rerun":
            again = range(settings.repeats, 2 * settings.repeats)
            self._measure_repeats(slot, cell, again, planned.item_id, progress)
            result = self._judge(planned, replace(rules, look=2), labels)
        return result

    def _judge(self, planned: PlannedCell, rules: Rules, labels: Labels) -> CellResult:
        measured = self._measured[planned.profile.label, planned.cell]
        self._add_speedups(planned, measured)
        labels = replace(labels, steps_source=", ".join(measured.sources), duration_s=measured.seconds)
        if measured.stopped is not None:
            return stopped(planned.cell, measured.runs, measured.stopped, rules, labels, self.plan.number(planned.cell))
        if measured.looks is not None:
            rules = replace(rules, sizes=measured.looks.sizes)
        return judge_runs(planned.cell, measured.runs, rules, labels, self._baseline(planned))

    def _looks(self, planned: PlannedCell, rules: Rules) -> Looks | None:
        """When to look at a cell that is measured once and by itself."""
        settings, cell = self.plan.settings, planned.cell
        once = settings.starts == settings.repeats == 1 and settings.inconclusive != "rerun"
        limits = limits_of(cell, rules)
        if not once or settings.companions(planned.profile) or not limits:
            return None
        strata: dict[str, list[str]] = {}
        for entry in self.plan.entries(cell):
            strata.setdefault(entry.sub_category, []).append(entry.question_id)
        return Looks.plan(cell, strata, limits, reference_lengths(cell, limits), settings.seed)

    def _add_speedups(self, planned: PlannedCell, measured: Measured) -> None:
        """Give each run its speed-up over the same run without speculation, where there is one."""
        plain = self.plan.settings.plain.get(planned.profile.label)
        if plain is None:
            return
        for place, each in enumerate(measured.runs):
            if each.run is not None and PER_PROMPT not in each.run.metrics:
                key = (planned.cell, each.run.start, each.run.repeat)
                both = self._windows(plain.label, *key), self._windows(planned.profile.label, *key)
                found = speedups_of(*both, seed_parts=(planned.item_id,))
                run = replace(each.run, metrics={**each.run.metrics, **found})
                measured.runs[place] = replace(each, run=run)

    def _baseline(self, planned: PlannedCell) -> Baseline | None:
        """The cell as the engine before the upgrade did it, None without one."""
        settings, cell = self.plan.settings, planned.cell
        old = settings.baselines.get(planned.profile.label)
        if old is None:
            return None
        shares = [
            shared(*(self._windows(label, cell, start, repeat) for label in (old.label, planned.profile.label)))
            for start in range(settings.starts)
            for repeat in range(settings.repeats)
        ]
        runs = self._measured[old.label, cell].runs
        return Baseline(
            settings.baseline_source,
            runs=tuple(each.run for each in runs if each.run is not None),
            shared=tuple(share for share in shares if share is not None),
            cells=tuple(p.cell for p in self.plan.cells if p.profile is planned.profile and not p.cell.is_control),
            reasons=tuple(reason for each in runs for reason in each.reasons),
            timing=tuple(reason for each in runs for reason in each.timing),
        )

    def _measure_repeats(self, slot: EngineSlot, cell: Cell, repeats: range, name: str, progress: CellProgress) -> None:
        """Some repeats of a cell within one engine start; those of the overall cell are its categories'."""
        if not cell.is_overall:
            self._measure_runs(slot, cell, repeats, name, progress)
            return
        for part in self._categories(cell):
            # A category whose own verdict was inconclusive has been measured again already.
            left = [n for n in repeats if self._window(slot.profile.label, part, slot.start, n) is None]
            if left and repeats.start > 0:
                own = f"{slot.profile.label}-{part.id(with_concurrency=True)}"
                self._measure_runs(slot, part, range(left[0], repeats.stop), own, progress)
        self._assess_overall(slot, cell, repeats, name)

    def _measure_runs(self, slot: EngineSlot, cell: Cell, repeats: range, name: str, progress: CellProgress) -> None:
        """Some repeats of one cell. What goes wrong is one of its runs, without a metric."""
        measured = self._measured.setdefault((slot.profile.label, cell), Measured())
        for repeat in repeats:
            began = time.monotonic()
            run = self._measure_run(slot, cell, repeat, name, progress, measured)
            measured.seconds += time.monotonic() - began
            if isinstance(run, Reason):
                measured.runs.append(Assessed(None, (run,)))
                return
            source = run.steps.source if run.steps is not None else ""
            measured.sources.setdefault(source)
            measured.runs.append(assess(run, slot.profile.speculation, (name,)))

    def _measure_run(
        self, slot: EngineSlot, cell: Cell, repeat: int, name: str, progress: CellProgress, measured: Measured
    ) -> Window | Reason:
        """Measure a cell once, or until a look has decided; the window, or why there is none."""
        running, profile = slot.running, slot.profile
        assert running is not None
        reason = self._remembered(running.prepared, cell, slot.seen)
        if reason is not None:
            return reason
        conversations = self._conversations(running.prepared, cell)
        slot.seen |= {conversation.question_id for conversation in conversations}
        windows: list[Window] = []
        for block in [conversations] if measured.looks is None else measured.looks.split(conversations):
            try:
                window = running.measure(
                    cell,
                    block,
                    self.plan.settings.sampling,
                    lambda done, total: progress(name, done, total),
                    repeats=self.plan.repeats(cell),
                )
            except EngineError as error:
                return self._lost(slot, running, error)
            windows.append(replace(window, start=slot.start, repeat=repeat))
            if measured.looks is not None and is_sound(window, profile.speculation):
                measured.stopped = measured.looks.look([turn for each in windows for turn in each.turns])
            if measured.stopped is not None:
                break
        window = windows[0] if len(windows) == 1 else joined(windows)
        self._open_log().append(profile.label, window)
        self.notes += [f"{profile.label}: {note}" for note in running.take_notes()]
        # Whether a cell has a gate of its own, or a fit one, does not matter to the overall cell.
        if self._sound is not None and measured.stopped is None and is_sound(window, profile.speculation):
            self._sound.put(profile.label, window)
        return window

    def _over_concurrencies(self, planned: PlannedCell) -> dict[int, list[Run]]:
        """The sound runs of the cells that a crossover is over, by concurrency; empty for one without."""
        found: dict[int, list[Run]] = {}
        for part in self._parts(planned):
            measured = self._measured.get((planned.profile.label, part), Measured())
            found[part.concurrency] = [each.run for each in measured.runs if each.run is not None and not each.reasons]
        return found

    def _losslessness(
        self, slot: EngineSlot, running: RunningEngine, planned: PlannedCell, labels: Labels
    ) -> CellResult:
        """Greedy output of first turns with and without speculation, differences held against the engine's own odds.

        Of later turns the input differs once a reply does.
        """
        plain, sampling = self.plan.settings.plain[planned.profile.label], self.plan.settings.sampling
        turns: tuple[list[Turn], list[Turn]] = ([], [])
        ids: dict[str, Sequence[int]] = {}
        for part in self._parts(planned):
            for side, label in zip(turns, (plain.label, planned.profile.label), strict=True):
                window = self._window(label, part, slot.start, 0)
                if window is None:
                    message = f"{label} has no sound measurement of {part.name} to compare"
                    return invalid(planned.cell, Reason("incomplete_family", message), labels)
                side += [turn for turn in window.turns if turn.index == 0]
            ids |= {c.question_id: c.first_ids for c in self._conversations(running.prepared, part)}

        def ask(turn: Turn, at: int) -> TopTokens | None:
            return running.top_tokens((*ids[turn.question_id], *(turn.output_ids or ())[:at]), sampling)

        dtype = running.description.resolved.get("dtype")
        held_to = demand(None if dtype is None else str(dtype), concurrency=planned.cell.concurrency)
        found = losslessness.judge(*turns, ask, held_to, temperature=sampling.temperature)
        self.notes += dict.fromkeys(f"{planned.profile.label}: {note}" for note in running.take_notes())
        return judge_losslessness(planned.cell, found, labels)

    def _parts(self, planned: PlannedCell) -> list[Cell]:
        """The planned cells that a derived one is worked out from, without those of ``overall``."""
        cell = planned.cell
        own = [p.cell for p in self.plan.cells if p.profile is planned.profile and not p.cell.is_derived]
        if cell.is_lossless:
            return [c for c in own if (c.split, c.concurrency) == (cell.split, cell.concurrency)]
        return [c for c in own if (c.isl, c.difficulty) == (cell.isl, cell.difficulty)]

    def _of_companion(self, companion: Profile, planned: PlannedCell, labels: Labels) -> CellResult:
        """The cell as it was measured with what its profile is compared with."""
        measured = self._measured.get((companion.label, planned.cell), Measured())
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
            slot.broken, slot.told = Reason("engine_died", self.redactor.text(str(death))), True
            return slot.broken
        return Reason("engine_unreachable", self.redactor.text(str(error)))

    def _assess_overall(self, slot: EngineSlot, cell: Cell, repeats: range, name: str) -> None:
        """The overall cell of some repeats of one engine start, from what was measured of its categories."""
        label = slot.profile.label
        measured = self._measured.setdefault((label, cell), Measured())
        for repeat in repeats:
            parts = {
                str(part.category): self._window(label, part, slot.start, repeat) for part in self._categories(cell)
            }
            for window in parts.values():
                if window is not None and window.steps is not None:
                    measured.sources.setdefault(window.steps.source)
            measured.runs.append(assess_overall(parts, (name,)))

    def _windows(self, label: str, cell: Cell, start: int, repeat: int) -> list[Window]:
        """The window of one run; of the overall cell those of all categories. Empty where any is missing."""
        parts = self._categories(cell) if cell.is_overall else [cell]
        windows = [self._window(label, part, start, repeat) for part in parts]
        return [window for window in windows if window is not None] if None not in windows else []

    def _window(self, label: str, cell: Cell, start: int, repeat: int) -> Window | None:
        return None if self._sound is None else self._sound.get(label, cell, start, repeat)

    def _categories(self, cell: Cell) -> list[Cell]:
        """The cells that an overall cell sums up."""
        return [
            replace(point, concurrency=cell.concurrency)
            for point in self.plan.dataset.points()
            if point.split == cell.split
        ]

    def _all_conversations(self, prepared: Prepared, cell: Cell) -> tuple[Conversation, ...]:
        """The conversations of a cell; of the overall cell those of all categories."""
        cells = self._categories(cell) if cell.is_overall else [cell]
        return tuple(conversation for each in cells for conversation in self._conversations(prepared, each))

    def _rules(self, planned: PlannedCell, slot: EngineSlot, *, judged: bool) -> Rules:
        plan, profile = self.plan, planned.profile
        assert slot.running is not None
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
            looks=2 if plan.settings.inconclusive == "rerun" else 1,
            speculation=profile.speculation,
            measure_only=plan.settings.measure_only or not judged,
            gate_required=plan.settings.needs_limits and not planned.supporting,
        )

    def _unjudged(self, profile: Profile) -> Rules:
        """Rules of a profile that is only compared with."""
        return Rules(
            files=(),
            others=(),
            facts=static_facts(profile, self.plan.settings, self.plan.dataset.id),
            points=(),
            default_concurrency={},
            speculation=profile.speculation,
            measure_only=True,
        )

    def _prepare(self, profile: Profile) -> Prepared:
        if profile.label not in self._prepared:
            self._prepared[profile.label] = Prepared.of(profile)
        return self._prepared[profile.label]

    def _planned(self, profile: Profile) -> list[Cell]:
        return [p.cell for p in self.plan.cells if p.profile is profile and not p.cell.is_derived]

    def _everything(self, profile: Profile) -> list[Cell]:
        """All cells of the dataset at their first concurrency, for user's tests that ask for cells of their own."""
        settings = self.plan.settings
        axes = settings.axes
        return [
            replace(p, concurrency=max(axes.concurrencies or settings.default_concurrency[p.split][:1]))
            for p in self.plan.dataset.points()
            if axes.takes(p)
        ]

    def _capacity(self, prepared: Prepared, cells: Sequence[Cell]) -> Capacity:
        osl_cap = self.plan.settings.sampling.osl_cap
        needs: dict[str, int] = {}
        # One cell at a time: the texts of all of them can be some 400 MB.
        for cell in dict.fromkeys(replace(cell, concurrency=1) for cell in cells):
            for name, need in prepared.needs(self._conversations(prepared, cell), osl_cap).items():
                needs[name] = max(need, needs.get(name, 0))
        concurrency = max((cell.concurrency for cell in cells), default=1)
        return prepared.capacity(needs, concurrency=concurrency, osl_cap=osl_cap)

    def _conversations(self, prepared: Prepared, cell: Cell) -> tuple[Conversation, ...]:
        """The conversations of a cell, first prompts tokenised."""
        if cell.is_control:
            return prepared.conversations(self._random_rows(prepared, cell))
        return prepared.conversations(self.plan.dataset.rows(self.plan.entries(cell)))

    def _of_prompts(self, labels: Labels, cell: Cell, conversations: Sequence[Conversation]) -> Labels:
        """Labels with what the prompts of a cell are."""
        return replace(
            labels,
            prompts_sha256=prompts_sha256(conversations),
            isl=Lengths.of([len(conversation.first_ids) for conversation in conversations]),
            masked=self.plan.dataset.masked_prompts(cell),
        )

    def _random_rows(self, prepared: Prepared, cell: Cell) -> tuple[Row, ...]:
        """The prompts of a control cell. Made once per ISL: 512 of 32k tokens take more than a minute."""
        settings, key = self.plan.settings, (prepared.profile.label, str(cell.isl))
        assert settings.control is not None
        if key not in self._random:
            self._random[key] = control.rows(
                settings.control, isl_tokens(str(cell.isl)), self.plan.number(cell), settings.seed, prepared.tokenizer
            )
        return self._random[key]

    def _refuse_remembered(self, prepared: Prepared, cells: Sequence[Cell]) -> None:
        """Raise ConfigError for planned cells whose drafts would come from answers to the same prompts."""
        seen: set[str] = set()
        for cell in cells:
            reason = self._remembered(prepared, cell, seen)
            if reason is not None:
                raise ConfigError(f"{prepared.profile.label}: {reason.message}")
            seen |= self._ids(prepared, cell)

    def _remembered(self, prepared: Prepared, cell: Cell, seen: Collection[str]) -> Reason | None:
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

    def _note_started(self, profile: Profile, running: RunningEngine, gpus: Sequence[Gpu]) -> None:
        if profile.base_url is not None:
            self.notes.append(
                f"{profile.label}: attached to {profile.base_url}, which someone else runs: its flags, its GPUs and "
                "whether others use it cannot be verified, and limits that ask for a GPU do not apply"
            )
        record = replace(
            _record(profile),
            version=running.description.version,
            resolved={
                **dataclasses.asdict(self.plan.settings.sampling),
                **({} if profile.base_url is not None else dataclasses.asdict(running.capacity)),
                **running.description.resolved,
                "chat_template_and_tokenizer_sha256": running.prepared.tokenizer.sha256,
                "machine": platform.machine(),
            },
            gpus=tuple(run_info.GpuRecord(gpu.name, gpu.uuid, gpu.index, gpu.driver) for gpu in gpus),
            start_s=None if running.start_s is None else round(running.start_s, 2),
        )
        engines = tuple(record if e.profile == profile.label else e for e in self.run.engines)
        self.run = replace(self.run, engines=engines)

    def _open_log(self) -> RequestLog:
        """The request log beside the artifact; that of an earlier run is replaced."""
        if self._requests is None:
            path = self.plan.settings.artifact
            self._requests = RequestLog(path.with_name(f"{path.stem}-requests.jsonl.gz"), redactor=self.redactor)
        return self._requests


def _record(profile: Profile) -> run_info.EngineRecord:
    speculation = profile.speculation
    return run_info.EngineRecord(
        profile=profile.label,
        engine=profile.engine,
        version="",
        model=model_name(profile.model),
        method=speculation.method if speculation.active else None,
        draft_model=None if speculation.draft_model is None else model_name(speculation.draft_model),
        draft_tokens=speculation.draft_tokens if speculation.active else None,
        base_url=profile.base_url,
    )


def reached_a_verdict(results: Sequence[CellResult], *, judged: bool) -> bool:
    """Whether any cell was compared with a limit or, where nothing is to be ``judged``, measured soundly."""
    without = (Verdict.INVALID, None) if judged else (Verdict.INVALID,)
    return any(result.verdict not in without for result in results)

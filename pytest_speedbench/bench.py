"""The run: engines by profile, measured cells, results, and the artifact that grows with them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

from pytest_speedbench.arms import Arm, order
from pytest_speedbench.campaign import Campaign, CellProgress, EngineSlot
from pytest_speedbench.cells import Cell
from pytest_speedbench.engines.base import Profile, model_name
from pytest_speedbench.engines.gpus import Gpu, Nvml
from pytest_speedbench.engines.leases import leases_folder, reap
from pytest_speedbench.errors import ConfigError, EngineError
from pytest_speedbench.gates.verdict import Verdict
from pytest_speedbench.inputs import Inputs
from pytest_speedbench.measure import gpu_validity
from pytest_speedbench.measure.checks import Reason
from pytest_speedbench.planning import Plan, PlannedCell
from pytest_speedbench.report import artifact, fingerprint, run_info
from pytest_speedbench.report.redact import Redactor
from pytest_speedbench.report.requests import RequestLog, log_path
from pytest_speedbench.report.result_json import redacted
from pytest_speedbench.results import CellResult
from pytest_speedbench.running import RunningEngine
from pytest_speedbench.starting import started
from pytest_speedbench.window_store import WindowStore


def _silent(name: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


@dataclass(slots=True)
class Bench:
    """State of one pytest session in the process that measures."""

    plan: Plan
    run: run_info.RunInfo
    redactor: Redactor
    suite: bool
    inputs: Inputs
    results: list[CellResult] = field(default_factory=list)
    beside: list[CellResult] = field(default_factory=list)
    """Cells of what a profile is compared with, which are not judged."""
    notes: list[str] = field(default_factory=list)
    """What the user should know beside the results, one sentence each."""
    _campaign: Campaign | None = None
    """That of the profile whose engine is up."""
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
        return cls(plan, run, Redactor.from_environ(environ), suite, Inputs(plan))

    def prepare(self) -> None:
        """Check every profile, and that every planned prompt fits its context, before any engine starts.

        Raises ConfigError with all that is wrong.
        """
        problems: list[str] = []
        for profile in self.plan.settings.profiles:
            try:
                prepared, cells = self.inputs.prepared(profile), self.inputs.planned(profile)
                self.inputs.capacity(prepared, cells)
                self.inputs.refuse_remembered(prepared, cells)
                for companion in self.plan.settings.companions(profile):
                    self.inputs.capacity(self.inputs.prepared(companion), cells)
                    self.inputs.refuse_remembered(self.inputs.prepared(companion), cells)
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
        companions = settings.companions(profile)
        if (companions or settings.starts != (1,)) and not ahead:
            raise ConfigError(
                "--speedbench-starts, --speedbench-baseline and --speedbench-speedup need to know the cells before the "
                "first start; they work with the suite, not with a test that asks for cells by itself"
            )
        windows = WindowStore(folder / "windows")
        campaign = Campaign(
            self.inputs,
            windows,
            self.redactor,
            self._open_log,
            self.notes,
            own_cells=not self.suite,
            unlike=self._unlike,
            beside=self.beside,
        )
        self._campaign = campaign
        try:
            with self._last_start(campaign, profile, ahead, folder, progress) as slot:
                yield slot
        finally:
            windows.clear()

    @contextlib.contextmanager
    def _last_start(
        self,
        campaign: Campaign,
        profile: Profile,
        ahead: Sequence[PlannedCell],
        folder: Path,
        progress: CellProgress,
    ) -> Iterator[EngineSlot]:
        """The last start of ``profile``, after all others; that is the one after which no cell is open."""
        settings = self.plan.settings
        cells = self.inputs.planned(profile) or self.inputs.everything(profile)
        done = 0
        for target in settings.starts:
            *before, last = order(profile, settings.companions(profile), range(done, target))
            done = target
            for arm in before:
                broken = self._measure_ahead(campaign, arm, ahead, cells, folder, progress)
                if broken is not None:
                    yield EngineSlot(profile, last.start, broken=broken)
                    return
            with self._started(last, folder, cells) as slot:
                if target != settings.starts[-1] and slot.broken is None:
                    campaign.measure_all(slot, [each.cell for each in ahead], progress)
                    left = campaign.left_open(slot, ahead) if slot.broken is None else []
                    campaign.decided |= {each.cell for each in ahead if each not in left}
                    ahead = left
                    if left:
                        continue
                yield slot
                return

    @contextlib.contextmanager
    def _started(self, arm: Arm, folder: Path, cells: Sequence[Cell]) -> Iterator[EngineSlot]:
        profile, slot = arm.profile, EngineSlot(arm.profile, arm.start)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._stop_noted(profile))
            try:
                self.notes += [str(reaped) for reaped in reap(leases_folder(os.environ))]
                prepared = self.inputs.prepared(profile)
                own = folder / f"{profile.label}-{arm.start}"
                own.mkdir()
                slot.running, slot.gpus = stack.enter_context(
                    started(prepared, self.inputs.capacity(prepared, cells), self.plan.settings, own, Nvml())
                )
                self._note_started(profile, slot.running, slot.gpus)
            except (ConfigError, EngineError) as error:
                slot.broken = Reason("engine_start_failed", f"{profile.label}: {self.redactor.text(str(error))}")
            yield slot
            self.notes += [f"{profile.label}: {note}" for note in gpu_validity.notes(slot.watched)]

    def _measure_ahead(
        self,
        campaign: Campaign,
        arm: Arm,
        planned: Sequence[PlannedCell],
        held: Sequence[Cell],
        folder: Path,
        progress: CellProgress,
    ) -> Reason | None:
        """One start that no item waits for; why it broke off, None if it did not.

        Every start is made for the same ``held`` cells, whatever is selected: its size changes rates.
        """
        with self._started(arm, folder, held) as slot:
            if slot.broken is None:
                campaign.measure_all(slot, [each.cell for each in planned], progress)
        return slot.broken

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
        assert self._campaign is not None
        result = redacted(self._campaign.result(slot, planned, progress, judged=judged), self.redactor)
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

    def _unlike(self, one: str, other: str) -> tuple[str, ...]:
        """What two engines of this run differ in that no upgrade changes; how they draft may be what is upgraded."""
        before, after = self.run.engine(one), self.run.engine(other)
        if before is None or after is None:
            return ()
        found = fingerprint.differences(self.run, before, self.run, after)
        return tuple(str(difference) for difference in fingerprint.unlike(found, speculation=True))

    def _note_started(self, profile: Profile, running: RunningEngine, gpus: Sequence[Gpu]) -> None:
        if profile.base_url is not None:
            self.notes.append(
                f"{profile.label}: attached to {profile.base_url}, which someone else runs: its flags, its GPUs and "
                "whether others use it cannot be verified, and limits that ask for a GPU do not apply"
            )
        arrivals = self.plan.settings.arrivals
        record = replace(
            _record(profile),
            version=running.description.version,
            resolved={
                **dataclasses.asdict(self.plan.settings.sampling),
                **({} if arrivals is None else {"arrival_rate": arrivals.rate, "arrivals": arrivals.kind}),
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
            self._requests = RequestLog(log_path(self.plan.settings.artifact), redactor=self.redactor)
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

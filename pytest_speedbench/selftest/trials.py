"""Judging mutated runs: which gates notice which regression, and why the others do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pytest_speedbench.cells import Cell
from pytest_speedbench.gates.limits import Gate, Limit, ThresholdsFile
from pytest_speedbench.gates.verdict import GateResult, Verdict
from pytest_speedbench.judging import Assessed, Rules
from pytest_speedbench.measure.samples import Window
from pytest_speedbench.results import CellResult
from pytest_speedbench.selftest.mutations import MUTATIONS, Kind, Mutation
from pytest_speedbench.selftest.recorded import Recorded, Windows

NEGLIGIBLE = 0.01
"""A metric that a mutation makes worse by less than this is not what the mutation is about."""
INVERTED = 2.0
"""Where the limit of an inverted gate stands: this many times what was measured, on the good side."""


@dataclass(frozen=True, slots=True)
class Key:
    """A gate: one metric at one place of a thresholds file."""

    source: str
    metric: str

    @property
    def file(self) -> str:
        """The file, without the line."""
        return self.source.rpartition(":")[0]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one gate says of one mutated cell.

    ``target`` is the only category that was mutated, None where all were. ``worse`` is by how much the metric
    became worse, relative to what was measured. ``verdict`` is the gate's, or INVALID where the cell is.
    ``reason`` is the code behind INVALID.
    """

    gate: Key
    mutation: str
    cell: Cell
    target: str | None
    before: float
    after: float
    worse: float
    verdict: Verdict
    reason: str | None
    result: GateResult | None

    def caught(self, *, warn: bool) -> bool:
        """Whether a run would not be green; with ``warn``, INCONCLUSIVE is only a warning."""
        return self.verdict in (Verdict.FAIL, Verdict.INVALID) or (self.verdict is Verdict.INCONCLUSIVE and not warn)


@dataclass(frozen=True, slots=True)
class GateTrial:
    """One gate and everything that was tried on it.

    ``whole`` are mutations of all cells, ``diluted`` those of one category as the overall cell sees them.
    ``unmutated`` are its results on the run as recorded. ``inverted`` is whether a gate of the wrong direction
    was found out, None where that could not be tried; ``missing`` counts cells that are INVALID without the gate.
    """

    key: Key
    pattern: str
    limit: Limit
    unmutated: Mapping[Cell, GateResult]
    whole: tuple[Outcome, ...] = ()
    diluted: tuple[Outcome, ...] = ()
    inverted: bool | None = None
    missing: Mapping[Cell, bool] = field(default_factory=dict)

    def never_fails(self, cell: Cell) -> bool:
        """Whether even the extreme mutations leave the gate of ``cell`` green."""
        return _never_fails((outcome.mutation, outcome.verdict) for outcome in self.whole if outcome.cell == cell)


def verdict_of(gate: GateResult) -> Verdict:
    """A gate's verdict; PASS where what it misses is waived, since the run is not red for it."""
    return Verdict.PASS if gate.waived else gate.verdict


def _never_fails(verdicts: Iterable[tuple[str, Verdict]]) -> bool:
    """Whether a gate passes whatever is done to its metric: extreme mutations were tried, and all of them PASS."""
    extreme = [verdict for mutation, verdict in verdicts if MUTATIONS[mutation].kind is Kind.EXTREME]
    return bool(extreme) and all(verdict is Verdict.PASS for verdict in extreme)


@dataclass(frozen=True, slots=True)
class Mutant:
    """A regression of one cell, and what the files make of it.

    ``looked`` are the files with a gate that compares what became worse, ``caught`` those with one that noticed.
    """

    mutation: str
    cell: Cell
    looked: frozenset[str]
    caught: frozenset[str]


@dataclass(frozen=True, slots=True)
class Trial:
    """One profile of a run against the thresholds files that fit it.

    ``untestable`` says why a cell could not be tested; ``others`` why files do not fit.
    ``unnoticed`` are broken runs that no check noticed: a fault of the checks, not of a limit. ``skipped`` counts,
    per mutation, the cells in which it could not be made.
    """

    profile: str
    draft_tokens: int
    gates: tuple[GateTrial, ...]
    mutants: tuple[Mutant, ...]
    untestable: Mapping[Cell, str]
    untested: tuple[Limit, ...]
    others: tuple[str, ...]
    unnoticed: tuple[str, ...]
    skipped: Mapping[str, int]

    @property
    def files(self) -> tuple[str, ...]:
        """The files with a gate that was tested."""
        return tuple(dict.fromkeys(gate.key.file for gate in self.gates))

    def of(self, file: str) -> tuple[GateTrial, ...]:
        """The tested gates of one file."""
        return tuple(gate for gate in self.gates if gate.key.file == file)


Progress = Callable[[str], None]


def run(
    recorded: Recorded,
    files: Sequence[ThresholdsFile],
    *,
    seed: int = 0,
    warn: bool = False,
    progress: Progress = lambda _: None,
) -> Trial:
    """Judge the run as recorded and after every mutation.

    ``warn``: INCONCLUSIVE is a warning, as with ``--speedbench-inconclusive=warn``. ``progress`` is told what is
    tried. Raises ConfigError where limits contradict each other.
    """
    return _Judge(recorded, recorded.rules(files), seed, warn=warn).trial(progress)


class _Judge:
    """One profile: windows are mutated once, and judged once per cell and mutation."""

    def __init__(self, recorded: Recorded, rules: Rules, seed: int, *, warn: bool) -> None:
        self.recorded, self.rules, self.seed, self.warn = recorded, rules, seed, warn
        self.cells = [*recorded.windows, *recorded.overall]
        self.assessed = {cell: recorded.assessed(cell, recorded.windows) for cell in self.cells}
        self.unmutated = {cell: self._judged(cell, self.assessed[cell], rules) for cell in self.cells}
        self.untestable = {
            cell: why for cell, result in self.unmutated.items() if (why := _untestable(result)) is not None
        }

    def _judged(self, cell: Cell, runs: Sequence[Assessed], rules: Rules) -> CellResult:
        return self.recorded.judged(cell, runs, rules)

    def trial(self, progress: Progress) -> Trial:
        limits = {Key(limit.source, limit.metric): (gate, limit) for gate, limit in _limits(self.rules.files)}
        whole: dict[Key, list[Outcome]] = {key: [] for key in limits}
        diluted: dict[Key, list[Outcome]] = {key: [] for key in limits}
        mutants: list[Mutant] = []
        unnoticed: list[str] = []
        skipped: dict[str, int] = {}
        extreme: dict[Cell, list[tuple[str, tuple[Assessed, ...]]]] = {}
        for mutation in MUTATIONS.values():
            progress(mutation.text)
            mutated = self._mutated(mutation)
            skipped[mutation.name] = len(self.recorded.windows) - len(mutated)
            if not mutated:
                continue
            everywhere: Windows = {**self.recorded.windows, **mutated}
            own: dict[Cell, list[Outcome]] = {}
            for cell in self._affected(mutated):
                runs = self.recorded.assessed(cell, everywhere)
                result = self._judged(cell, runs, self.rules)
                if mutation.kind is Kind.EXTREME:
                    extreme.setdefault(cell, []).append((mutation.name, runs))
                own[cell] = self._outcomes(mutation, cell, None, result)
                for outcome in own[cell]:
                    whole[outcome.gate].append(outcome)
                if mutation.kind is Kind.BROKEN and not cell.is_overall and result.verdict is not Verdict.INVALID:
                    unnoticed.append(f"{mutation.text} in {cell.id(with_concurrency=True)}")
            if mutation.kind is Kind.WORSE:
                for cell, windows in mutated.items():
                    if cell in self.untestable:
                        continue
                    above = self._of_overall(mutation, cell, windows, own)
                    for outcome in above:
                        diluted[outcome.gate].append(outcome)
                    mutants.append(_mutant(mutation, cell, [*own[cell], *above], warn=self.warn))
        inverted, missing = self._inverted(extreme), self._missing()
        tested = tuple(
            GateTrial(
                key=key,
                pattern=_name(gate),
                limit=limit,
                unmutated=results,
                whole=tuple(whole[key]),
                diluted=tuple(diluted[key]),
                inverted=inverted.get(key),
                missing=missing.get(key, {}),
            )
            for key, (gate, limit) in limits.items()
            if (results := self._results(key))
        )
        # Of a gate that never fails the inverse is a sound one, which proves nothing.
        tested = tuple(
            replace(each, inverted=None) if any(map(each.never_fails, each.unmutated)) else each for each in tested
        )
        seen = {each.key for each in tested}
        return Trial(
            profile=self.recorded.profile,
            draft_tokens=self.recorded.draft_tokens,
            gates=tested,
            mutants=tuple(mutants),
            untestable=self.untestable,
            untested=tuple(limit for key, (_, limit) in limits.items() if key not in seen),
            others=(*self.rules.others, *self._misfits()),
            unnoticed=tuple(unnoticed),
            skipped=skipped,
        )

    def _misfits(self) -> Iterator[str]:
        """Files that fit what is known before the start, and not what the engine then turned out to be."""
        for file in self.rules.files:
            lines = file.match.runtime_mismatches(self.rules.facts)
            if lines:
                yield f"{file.path}: {'; '.join(lines)}"

    def _mutated(self, mutation: Mutation) -> dict[Cell, tuple[Window, ...]]:
        """The cells that can be changed so in every run of theirs."""
        found = {}
        for cell, windows in self.recorded.windows.items():
            changed = [mutation.applied(window, self.recorded.draft_tokens, self.seed) for window in windows]
            whole = tuple(window for window in changed if window is not None)
            if len(whole) == len(windows):
                found[cell] = whole
        return found

    def _affected(self, mutated: Mapping[Cell, object]) -> list[Cell]:
        overall = [
            cell
            for cell in self.recorded.overall
            if self.unmutated[cell].gates and any(part in mutated for part in self.recorded.parts(cell))
        ]
        return [*mutated, *overall]

    def _of_overall(
        self, mutation: Mutation, cell: Cell, windows: tuple[Window, ...], whole: Mapping[Cell, Sequence[Outcome]]
    ) -> list[Outcome]:
        """What the overall cell says where only ``cell`` was mutated, if it notices that at all in ``whole``."""
        outcomes = []
        for overall in self.recorded.overall:
            moved = any(outcome.worse or outcome.verdict is not Verdict.PASS for outcome in whole.get(overall, ()))
            if moved and cell in self.recorded.parts(overall):
                runs = self.recorded.assessed(overall, {**self.recorded.windows, cell: windows})
                outcomes += self._outcomes(mutation, overall, cell.category, self._judged(overall, runs, self.rules))
        return outcomes

    def _outcomes(self, mutation: Mutation, cell: Cell, target: str | None, result: CellResult) -> list[Outcome]:
        """What each gate of a cell says; nothing of cells that could not be tested."""
        if cell in self.untestable:
            return []
        after = {Key(gate.source, gate.metric): gate for gate in result.gates}
        invalid = result.reasons[0].code if result.reasons else None
        outcomes = []
        for gate in self.unmutated[cell].gates:
            if verdict_of(gate) is not Verdict.PASS:
                continue
            key = Key(gate.source, gate.metric)
            own = after.get(key)
            now = own.value if own is not None else gate.value
            outcomes.append(
                Outcome(
                    gate=key,
                    mutation=mutation.name,
                    cell=cell,
                    target=target,
                    before=gate.value,
                    after=now,
                    worse=(now - gate.value) / gate.value * (1 if gate.ceiling else -1),
                    verdict=Verdict.INVALID if invalid is not None or own is None else verdict_of(own),
                    reason=invalid,
                    result=own,
                )
            )
        return outcomes

    def _results(self, key: Key) -> dict[Cell, GateResult]:
        return {
            cell: gate
            for cell, result in self.unmutated.items()
            if cell not in self.untestable
            for gate in result.gates
            if Key(gate.source, gate.metric) == key
        }

    def _inverted(self, extreme: Mapping[Cell, Sequence[tuple[str, tuple[Assessed, ...]]]]) -> dict[Key, bool]:
        """Whether a gate of the wrong direction, which nothing bad can miss, is found out as one that never fails."""
        found: dict[Key, bool] = {}
        turned = {key: self._turned(limit, results) for key, limit, results in self._passing()}
        rules = replace(self.rules, files=tuple(_replaced(file, turned) for file in self.rules.files))
        for cell, tries in extreme.items():
            if cell in self.untestable:
                continue
            now = {Key(gate.source, gate.metric): gate for gate in self._judged(cell, self.assessed[cell], rules).gates}
            after = [
                (name, {Key(gate.source, gate.metric): gate for gate in self._judged(cell, runs, rules).gates})
                for name, runs in tries
            ]
            for key, gate in now.items():
                verdicts = [(name, verdict_of(gates[key])) for name, gates in after if key in gates]
                # What cannot be judged, such as a ceiling on a value that is only bounded, is not green either.
                shown = gate.verdict is Verdict.INVALID or (gate.verdict is Verdict.PASS and _never_fails(verdicts))
                found[key] = found.get(key, True) and shown
        return found

    def _passing(self) -> Iterator[tuple[Key, Limit, dict[Cell, GateResult]]]:
        for _, limit in _limits(self.rules.files):
            key = Key(limit.source, limit.metric)
            results = self._results(key)
            if results:
                yield key, limit, results

    def _turned(self, limit: Limit, results: Mapping[Cell, GateResult]) -> Limit:
        values = [gate.value for gate in results.values()]
        value = min(values) / INVERTED if limit.ceiling else max(values) * INVERTED
        return replace(limit, ceiling=not limit.ceiling, value=value)

    def _missing(self) -> dict[Key, dict[Cell, bool]]:
        """Per gate, the cells that have no other one, and whether they are INVALID without it."""
        found: dict[Key, dict[Cell, bool]] = {}
        for cell, result in self.unmutated.items():
            if cell in self.untestable or len(result.gates) != 1:
                continue
            key = Key(result.gates[0].source, result.gates[0].metric)
            rules = replace(self.rules, files=tuple(_replaced(file, {key: None}) for file in self.rules.files))
            left = self._judged(cell, self.assessed[cell], rules)
            found.setdefault(key, {})[cell] = left.verdict is Verdict.INVALID
        return found


def _limits(files: Iterable[ThresholdsFile]) -> Iterator[tuple[Gate, Limit]]:
    return ((gate, limit) for file in files for gate in file.gates for limit in gate.limits)


def _name(gate: Gate) -> str:
    """The cells of a gate, like the id of one: ``qualitative-coding-c8``."""
    fields = gate.cell.fields()
    return "-".join(f"c{value}" if name == "concurrency" else str(value) for name, value in fields.items()) or "all"


def _replaced(file: ThresholdsFile, limits: Mapping[Key, Limit | None]) -> ThresholdsFile:
    """The file with these limits in the place of its own, and without those that are None."""
    gates = []
    for gate in file.gates:
        chosen = (limits.get(Key(limit.source, limit.metric), limit) for limit in gate.limits)
        gates.append(replace(gate, limits=tuple(limit for limit in chosen if limit is not None)))
    return replace(file, gates=tuple(gates))


def _untestable(result: CellResult) -> str | None:
    """Why the run as recorded carries no verdict on a cell, whatever its limits; None where it does."""
    of_gates = {gate.reason for gate in result.gates if gate.verdict is Verdict.INVALID} | {"no_gate"}
    return next((f"{r.code}: {r.message}" for r in result.reasons if r.code not in of_gates), None)


def _mutant(mutation: Mutation, cell: Cell, outcomes: Sequence[Outcome], *, warn: bool) -> Mutant:
    caught = frozenset(outcome.gate.file for outcome in outcomes if outcome.caught(warn=warn))
    worse = frozenset(o.gate.file for o in outcomes if o.cell == cell and o.worse >= NEGLIGIBLE)
    return Mutant(mutation.name, cell, caught | worse, caught)

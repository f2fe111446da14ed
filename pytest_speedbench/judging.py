"""From a measured window to a CellResult: validity first, then metrics, then gates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_speedbench.cells import Cell
from pytest_speedbench.data.lengths import Lengths
from pytest_speedbench.engines.base import Speculation
from pytest_speedbench.gates.limits import Limit, ThresholdsFile
from pytest_speedbench.gates.match import Facts
from pytest_speedbench.gates.selection import AssignedLimit, assigned
from pytest_speedbench.gates.sequential import last_rate
from pytest_speedbench.gates.verdict import GateResult, Verdict, combine, judge
from pytest_speedbench.gates.waivers import apply, waiver_of
from pytest_speedbench.measure import gpu_validity
from pytest_speedbench.measure.acceptance import Acceptance
from pytest_speedbench.measure.checks import Reason, concurrency_problem, load_problem, problems
from pytest_speedbench.measure.gpu_record import GpuWindow
from pytest_speedbench.measure.metrics import METRICS, Metric
from pytest_speedbench.measure.runs import Run, mean_metrics, pooled_acceptance, prompt_lengths
from pytest_speedbench.measure.samples import Window
from pytest_speedbench.measure.summary import summarise, summarise_overall
from pytest_speedbench.results import CellResult, CellRun
from pytest_speedbench.versus import Baseline, paired_gates

_LOOKED_AT = ("acceptance_length",)
_PER_REQUEST = ("acceptance_length", "decode_acceptance_length_uncut")


@dataclass(frozen=True, slots=True)
class Rules:
    """What one profile's cells are judged by.

    ``files`` fit the static facts, ``others`` says why other files do not. ``gate_required``: a cell
    without a gate is INVALID. ``points`` and
    ``default_concurrency`` fix each file's family, whatever is selected. ``look`` is the how-manieth of ``looks``
    at the same gates this is, each with more runs than the one before; with several ``starts`` these are the numbers
    of engine starts at which it is looked. ``sizes`` are the numbers of prompts at
    which the acceptance length was looked at, the last being all of them.
    """

    files: tuple[ThresholdsFile, ...]
    others: tuple[str, ...]
    facts: Facts
    points: tuple[Cell, ...]
    default_concurrency: Mapping[str, tuple[int, ...]]
    speculation: Speculation
    measure_only: bool
    gate_required: bool = True
    look: int = 1
    looks: int = 1
    starts: tuple[int, ...] = (1,)
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Labels:
    """How a result is named."""

    profile: str
    item_id: str
    steps_source: str
    prompts_sha256: str
    duration_s: float
    isl: Lengths | None = None
    masked: int = 0


@dataclass(frozen=True, slots=True)
class Assessed:
    """One run of a cell, checked and reduced to its metrics; None where not a turn was finished.

    ``reasons`` keep it from carrying any verdict, ``timing`` only verdicts on rates and latencies.
    """

    run: Run | None
    reasons: tuple[Reason, ...]
    timing: tuple[Reason, ...] = ()
    measured: frozenset[str] = frozenset()
    planned: frozenset[str] = frozenset()
    turns: int = 0
    gpus: tuple[GpuWindow, ...] = ()


def assess(window: Window, speculation: Speculation, seed_parts: Sequence[str]) -> Assessed:
    """Check and reduce one measured window. ``seed_parts`` (the item's id, say) seed the intervals."""
    reasons = list(problems(window, speculation=speculation.active, draft_tokens=speculation.draft_tokens))
    concurrency = concurrency_problem(window, open_loop=window.arrival_rate is not None)
    if concurrency is not None:
        reasons.append(concurrency)
    reasons += gpu_validity.problems(window.gpus)
    reduced = summarise(window, seed_parts=seed_parts) if window.turns else None
    return _assessed([window], reduced, reasons)


def assess_overall(parts: Mapping[str, Window | None], seed_parts: Sequence[str]) -> Assessed:
    """The same over all categories of one run. ``parts`` has None for one that was not measured soundly."""
    missing = [name for name, window in parts.items() if window is None]
    windows = [window for window in parts.values() if window is not None]
    if missing or not windows:
        reason = Reason(
            "incomplete_family",
            f"overall needs all of its {len(parts)} categories, and {len(missing)} have no sound measurement: "
            f"{', '.join(missing)}",
        )
        return _assessed(windows, None, [reason])
    return _assessed(windows, summarise_overall(windows, seed_parts=seed_parts), [])


def _assessed(
    windows: Sequence[Window], reduced: tuple[dict[str, Metric], Acceptance] | None, reasons: Sequence[Reason]
) -> Assessed:
    turns = [turn for window in windows for turn in window.turns]
    return Assessed(
        run=None
        if reduced is None
        else Run(windows[0].start, windows[0].repeat, *reduced, prompts=prompt_lengths(turns)),
        reasons=tuple(reasons),
        timing=tuple(_timing(windows, _saturated) + _not_held(windows) + _timing(windows, _throttled)),
        measured=frozenset(turn.question_id for turn in turns),
        planned=frozenset(question_id for window in windows for question_id, _ in window.planned),
        turns=len(turns),
        gpus=windows[0].gpus if len(windows) == 1 else (),
    )


def without_rates(assessed: Assessed) -> Assessed:
    """The run without rates and latencies: those of blocks that are drained one by one are no cell's."""
    if assessed.run is None:
        return assessed
    kept = {name: metric for name, metric in assessed.run.metrics.items() if not METRICS[name].log_scale}
    return replace(assessed, run=replace(assessed.run, metrics=kept))


def judge_window(window: Window, rules: Rules, labels: Labels) -> CellResult:
    """The result of a cell that was measured once."""
    return judge_runs(window.cell, [assess(window, rules.speculation, (labels.item_id,))], rules, labels)


def judge_overall(cell: Cell, parts: Mapping[str, Window | None], rules: Rules, labels: Labels) -> CellResult:
    """The result over all categories of one run; see ``assess_overall``."""
    return judge_runs(cell, [assess_overall(parts, (labels.item_id,))], rules, labels)


def judge_runs(
    cell: Cell, runs: Sequence[Assessed], rules: Rules, labels: Labels, baseline: Baseline | None = None
) -> CellResult:
    """The result of a cell from all its runs: what keeps one of them from a verdict keeps the cell from it.

    With a ``baseline`` it is gated against that, beside the limits of files.
    """
    reasons = list(dict.fromkeys(reason for run in runs for reason in run.reasons))
    reduced = [run.run for run in runs if run.run is not None]
    if not reduced:
        return _result(cell, runs, {}, None, reasons, (), labels)
    metrics = mean_metrics(reduced)
    gates, gate_reasons = _gates(cell, metrics, reduced, rules, labels)
    if baseline is not None and not rules.measure_only and not reasons:
        paired, paired_reasons = _paired(cell, reduced, baseline, rules)
        gates += paired
        gate_reasons += paired_reasons
        if not gates and not gate_reasons:
            gate_reasons.append(
                Reason(
                    "no_gate",
                    f"{baseline.source}: {labels.profile} does not speculate, so nothing of this cell can be compared; "
                    "give `speculation:` in the profile, or cells of the throughput split only",
                )
            )
    if any(METRICS[gate.metric].log_scale for gate in gates):
        gate_reasons += list(dict.fromkeys(reason for run in runs for reason in run.timing))[:1]
    return _result(cell, runs, metrics, pooled_acceptance(reduced), reasons + gate_reasons, gates, labels)


def is_sound(window: Window, speculation: Speculation) -> bool:
    """Whether the window's counts can be trusted, whatever its gates say."""
    found = problems(window, speculation=speculation.active, draft_tokens=speculation.draft_tokens)
    return not found and not gpu_validity.problems(window.gpus)


def invalid(cell: Cell, reason: Reason, labels: Labels) -> CellResult:
    """The result of a cell that could not be measured at all."""
    return CellResult(labels.profile, cell, labels.item_id, Verdict.INVALID, (reason,))


def _timing(windows: Sequence[Window], problem: Callable[[Window], Reason | None]) -> list[Reason]:
    """The first window's problem with its times, if any has one."""
    found = {window.cell.name: problem(window) for window in windows}
    return [Reason(p.code, f"{name}: {p.message}") for name, p in found.items() if p is not None][:1]


def _saturated(window: Window) -> Reason | None:
    """A client too slow to time anything."""
    return load_problem(window, open_loop=window.arrival_rate is not None)


def _throttled(window: Window) -> Reason | None:
    """A GPU that was slowed down while it was measured."""
    return gpu_validity.timing_problem(window.gpus)


def _not_held(windows: Sequence[Window]) -> list[Reason]:
    """Fewer conversations than the concurrency say nothing of rates and latencies at it."""
    closed = [w for w in windows if w.arrival_rate is None]
    short = [w for w in closed if w.cell.split == "qualitative" and len(w.planned) < w.cell.concurrency]
    return [
        Reason(
            "concurrency_not_held",
            f"{w.cell.name}: {len(w.planned)} conversations cannot hold a concurrency of {w.cell.concurrency}; gate "
            "rates and latencies at a lower one, or give more prompts",
        )
        for w in short[:1]
    ]


def stopped(
    cell: Cell, runs: Sequence[Assessed], gate: GateResult, rules: Rules, labels: Labels, planned: int
) -> CellResult:
    """The result of a cell that a look at its first prompts decided; ``planned`` is how many it has."""
    result = judge_runs(cell, runs, replace(rules, measure_only=True), labels)
    if result.reasons:
        return result
    return replace(result, verdict=gate.verdict, gates=(gate,), conversations_planned=planned)


def limits_of(cell: Cell, rules: Rules) -> tuple[AssignedLimit, ...]:
    """The limits of files that apply to ``cell`` as it was run, with the error rates that each may spend."""
    if rules.measure_only:
        return ()
    return assigned(_fitting(rules), cell, rules.points, rules.default_concurrency)


def without_gate(cell: Cell, rules: Rules) -> list[Reason]:
    """Why a cell without any limit is INVALID; nothing where it needs none."""
    if rules.measure_only or not rules.gate_required:
        return []
    mismatches = {file.path: file.match.runtime_mismatches(rules.facts) for file in rules.files}
    wrong = [f"{path}: {'; '.join(lines)}" for path, lines in mismatches.items() if lines] + list(rules.others)
    why = f" ({' | '.join(wrong[:3])})" if wrong else ""
    return [
        Reason(
            "no_gate",
            f"no thresholds file gates {cell.id(with_concurrency=True)}{why}; "
            "add a limit, or use --speedbench-measure-only",
        )
    ]


def _fitting(rules: Rules) -> list[ThresholdsFile]:
    return [file for file in rules.files if not file.match.runtime_mismatches(rules.facts)]


def _gates(
    cell: Cell, metrics: Mapping[str, Metric], runs: Sequence[Run], rules: Rules, labels: Labels
) -> tuple[tuple[GateResult, ...], list[Reason]]:
    repeats = Counter(run.start for run in runs)
    gates = []
    for each in limits_of(cell, rules):
        limit = each.limit
        gate = judge(
            limit.metric,
            metrics[limit.measured_as].value if limit.measured_as in metrics else None,
            limit,
            alpha=last_rate(each.alpha, rules.sizes) if rules.sizes and limit.measured_as in _LOOKED_AT else each.alpha,
            beta=each.beta,
            starts=len(repeats),
            # Of unequal numbers the least: the noise is then not taken for smaller than it is.
            repeats=min(repeats.values()),
            prompts=labels.prompts_sha256,
            look=rules.look,
            looks=rules.looks,
            planned=rules.starts,
        )
        gate = _in_doubt(gate, metrics, limit, cell)
        waiver = waiver_of(_fitting(rules), cell, limit)
        gates.append(gate if waiver is None else apply(gate, waiver))
    if not gates:
        return (), without_gate(cell, rules)
    return tuple(gates), invalid_gates(gates)


def _paired(
    cell: Cell, runs: Sequence[Run], baseline: Baseline, rules: Rules
) -> tuple[tuple[GateResult, ...], list[Reason]]:
    wrong = baseline.reasons
    gates: tuple[GateResult, ...] = ()
    if not wrong:
        gates = paired_gates(
            cell,
            runs,
            baseline,
            speculates=rules.speculation.active,
            look=rules.look,
            looks=rules.looks,
            starts=rules.starts,
        )
        wrong = baseline.timing if any(METRICS[gate.metric].log_scale for gate in gates) else ()
    broken = [Reason("baseline_invalid", f"{baseline.source}: {r.code}: {r.message}") for r in wrong[:1]]
    return gates, broken or invalid_gates(gates)


def invalid_gates(gates: Sequence[GateResult]) -> list[Reason]:
    """Why gates are INVALID, one reason each."""
    return [
        Reason(gate.reason, f"{gate.note} ({gate.source})")
        for gate in gates
        if gate.verdict is Verdict.INVALID and gate.reason is not None
    ]


def _in_doubt(gate: GateResult, metrics: Mapping[str, Metric], limit: Limit, cell: Cell) -> GateResult:
    """The gate, or INVALID where the engine does not tell enough for it.

    A floor is compared with the lower end of what the acceptance length can be. A bracket wider than
    the margin decides nothing.
    """
    metric = metrics.get(limit.measured_as)
    if metric is None and limit.measured_as in _PER_REQUEST and "acceptance_length" not in metrics:
        return replace(
            gate,
            reason="no_per_request_steps",
            note=f"{gate.metric} needs decode steps per request, which this engine and version do not tell; gate "
            "decode_acceptance_length, or set `estimator: pooled`",
        )
    if metric is None or metric.bracket is None:
        return gate
    low, high = metric.bracket
    spec = METRICS[gate.metric]
    width, margin = (high - low) / low, gate.margin or (spec.overall_margin if cell.is_overall else spec.margin)
    missed_for_sure = gate.verdict is not Verdict.FAIL or high < gate.limit
    if width <= margin and missed_for_sure and not gate.ceiling:
        return gate
    return replace(
        gate,
        verdict=Verdict.INVALID,
        reason="ambiguous_steps",
        note=f"{gate.metric} lies between {low:.4f} and {high:.4f}, which is {width:.1%} apart (margin {margin:.1%}, "
        f"limit {gate.limit:.4g}): the server joined events and has no step counter",
    )


def _result(
    cell: Cell,
    runs: Sequence[Assessed],
    metrics: Mapping[str, Metric],
    acceptance: Acceptance | None,
    reasons: Sequence[Reason],
    gates: tuple[GateResult, ...],
    labels: Labels,
) -> CellResult:
    if reasons:
        verdict: Verdict | None = Verdict.INVALID
    elif not gates:
        verdict = None
    else:
        verdict = combine(gates)
    return CellResult(
        profile=labels.profile,
        cell=cell,
        item_id=labels.item_id,
        verdict=verdict,
        reasons=tuple(reasons),
        metrics=metrics,
        acceptance=acceptance,
        gates=gates,
        conversations=min((len(run.measured) for run in runs), default=0),
        conversations_planned=max((len(run.planned) for run in runs), default=0),
        turns=sum(run.turns for run in runs),
        prompts_sha256=labels.prompts_sha256,
        steps_source=labels.steps_source,
        duration_s=labels.duration_s,
        isl=labels.isl,
        masked=labels.masked,
        runs=tuple(
            CellRun(
                each.run.start,
                each.run.repeat,
                {name: metric.value for name, metric in each.run.metrics.items()},
                each.gpus,
            )
            for each in runs
            if each.run is not None
        ),
    )

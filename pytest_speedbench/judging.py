"""From a measured window to a CellResult: validity first, then metrics, then gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_speedbench.cells import Cell
from pytest_speedbench.data.lengths import Lengths
from pytest_speedbench.engines.base import Speculation
from pytest_speedbench.gates.limits import Limit, ThresholdsFile
from pytest_speedbench.gates.match import Facts
from pytest_speedbench.gates.selection import assigned
from pytest_speedbench.gates.verdict import GateResult, Verdict, combine, judge
from pytest_speedbench.measure.acceptance import Acceptance
from pytest_speedbench.measure.checks import Reason, client_problem, concurrency_problem, problems
from pytest_speedbench.measure.metrics import METRICS, Metric
from pytest_speedbench.measure.samples import Window
from pytest_speedbench.measure.summary import summarise, summarise_overall
from pytest_speedbench.results import CellResult

_PER_REQUEST = ("acceptance_length", "decode_acceptance_length_uncut")


@dataclass(frozen=True, slots=True)
class Rules:
    """What one profile's cells are judged by.

    ``files`` fit the static facts, ``others`` says why other files do not. ``gate_required``: a cell
    without a gate is INVALID. ``points`` and
    ``default_concurrency`` fix each file's family, whatever is selected.
    """

    files: tuple[ThresholdsFile, ...]
    others: tuple[str, ...]
    facts: Facts
    points: tuple[Cell, ...]
    default_concurrency: Mapping[str, tuple[int, ...]]
    speculation: Speculation
    measure_only: bool
    gate_required: bool = True


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


def judge_window(window: Window, rules: Rules, labels: Labels) -> CellResult:
    """The result of one measured cell."""
    reasons = list(problems(window, speculation=rules.speculation.active, draft_tokens=rules.speculation.draft_tokens))
    concurrency = concurrency_problem(window)
    if concurrency is not None:
        reasons.append(concurrency)
    if not window.turns:
        return _result(window.cell, [window], {}, None, reasons, (), rules, labels)
    metrics, acceptance = summarise(window, seed_parts=(labels.item_id,))
    gates, gate_reasons = _gates(window.cell, metrics, rules, labels)
    gate_reasons += _timing_problems([window], gates)
    return _result(window.cell, [window], metrics, acceptance, reasons + gate_reasons, gates, rules, labels)


def judge_overall(cell: Cell, parts: Mapping[str, Window | None], rules: Rules, labels: Labels) -> CellResult:
    """The result over all categories. ``parts`` has None for a category that was not measured soundly."""
    missing = [name for name, window in parts.items() if window is None]
    windows = [window for window in parts.values() if window is not None]
    if missing or not windows:
        reason = Reason(
            "incomplete_family",
            f"overall needs all of its {len(parts)} categories, and {len(missing)} have no sound measurement: "
            f"{', '.join(missing)}",
        )
        return _result(cell, windows, {}, None, [reason], (), rules, labels)
    metrics, acceptance = summarise_overall(windows, seed_parts=(labels.item_id,))
    gates, reasons = _gates(cell, metrics, rules, labels)
    reasons += _timing_problems(windows, gates)
    return _result(cell, windows, metrics, acceptance, reasons, gates, rules, labels)


def is_sound(window: Window, speculation: Speculation) -> bool:
    """Whether the window's counts can be trusted, whatever its gates say."""
    return not problems(window, speculation=speculation.active, draft_tokens=speculation.draft_tokens)


def invalid(cell: Cell, reason: Reason, labels: Labels) -> CellResult:
    """The result of a cell that could not be measured at all."""
    return CellResult(labels.profile, cell, labels.item_id, Verdict.INVALID, (reason,))


def _timing_problems(windows: Sequence[Window], gates: Sequence[GateResult]) -> list[Reason]:
    """What only matters where a rate or a latency is gated."""
    if not any(METRICS[gate.metric].log_scale for gate in gates):
        return []
    return _saturated(windows) + _not_held(windows)


def _saturated(windows: Sequence[Window]) -> list[Reason]:
    """A client too slow to time anything."""
    problems = {window.cell.name: client_problem(window.client) for window in windows}
    return [Reason(p.code, f"{name}: {p.message}") for name, p in problems.items() if p is not None][:1]


def _not_held(windows: Sequence[Window]) -> list[Reason]:
    """Fewer conversations than the concurrency say nothing of rates and latencies at it."""
    short = [w for w in windows if w.cell.split == "qualitative" and len(w.planned) < w.cell.concurrency]
    return [
        Reason(
            "concurrency_not_held",
            f"{w.cell.name}: {len(w.planned)} conversations cannot hold a concurrency of {w.cell.concurrency}; gate "
            "rates and latencies at a lower one, or give more prompts",
        )
        for w in short[:1]
    ]


def _gates(
    cell: Cell, metrics: Mapping[str, Metric], rules: Rules, labels: Labels
) -> tuple[tuple[GateResult, ...], list[Reason]]:
    if rules.measure_only:
        return (), []
    mismatches = {file.path: file.match.runtime_mismatches(rules.facts) for file in rules.files}
    fitting = [file for file in rules.files if not mismatches[file.path]]
    gates = tuple(
        _in_doubt(
            judge(
                each.limit.metric,
                metrics[each.limit.measured_as].value if each.limit.measured_as in metrics else None,
                each.limit,
                alpha=each.alpha,
                beta=each.beta,
                prompts=labels.prompts_sha256,
            ),
            metrics,
            each.limit,
            cell,
        )
        for each in assigned(fitting, cell, rules.points, rules.default_concurrency)
    )
    if not gates and rules.gate_required:
        wrong = [f"{path}: {'; '.join(lines)}" for path, lines in mismatches.items() if lines] + list(rules.others)
        why = f" ({' | '.join(wrong[:3])})" if wrong else ""
        return (), [
            Reason(
                "no_gate",
                f"no thresholds file gates {cell.id(with_concurrency=True)}{why}; "
                "add a limit, or use --speedbench-measure-only",
            )
        ]
    return gates, [
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
    windows: Sequence[Window],
    metrics: Mapping[str, Metric],
    acceptance: Acceptance | None,
    reasons: Sequence[Reason],
    gates: tuple[GateResult, ...],
    rules: Rules,
    labels: Labels,
) -> CellResult:
    if reasons:
        verdict: Verdict | None = Verdict.INVALID
    elif not gates:
        verdict = None
    else:
        verdict = combine(gates)
    turns = [turn for window in windows for turn in window.turns]
    return CellResult(
        profile=labels.profile,
        cell=cell,
        item_id=labels.item_id,
        verdict=verdict,
        reasons=tuple(reasons),
        metrics=metrics,
        acceptance=acceptance,
        gates=gates,
        conversations=len({turn.question_id for turn in turns}),
        conversations_planned=len({question_id for window in windows for question_id, _ in window.planned}),
        turns=len(turns),
        prompts_sha256=labels.prompts_sha256,
        steps_source=labels.steps_source,
        duration_s=labels.duration_s,
        isl=labels.isl,
        masked=labels.masked,
    )

"""Waivers: a limit that one cell misses for a known cause is accepted for a while, and no further.

A waiver holds the value that was measured when it was granted, its level. What stays within a margin of that is an
expected failure; what gets worse fails as before. It ends by itself: a file whose waiver has expired does not load.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable
from dataclasses import replace

from pytest_speedbench.cells import OVERALL, Cell
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates.limits import CellPattern, Limit, ThresholdsFile, Waiver
from pytest_speedbench.gates.parse_cell import cell_pattern
from pytest_speedbench.gates.selection import gates_for
from pytest_speedbench.gates.verdict import GateResult, Verdict
from pytest_speedbench.gates.yaml_nodes import Value
from pytest_speedbench.measure.metrics import METRICS, MetricSpec, gateable

LONGEST_DAYS = 180
"""A waiver for longer than this is a new limit, and should be calibrated as one."""
_KEYS = ("cell", "metric", "issue", "level", "margin", "until", "reason")
_ISSUE = re.compile(r"([\w.-]+/[\w.-]+)?#\d+|[A-Z][A-Z0-9_]*-\d+|https?://\S+")


# Loading


def parse(value: Value, file: ThresholdsFile, today: dt.date) -> tuple[Waiver, ...]:
    """The waivers of ``file``, of which everything else has been read. Raises ConfigError with file and line."""
    waivers = tuple(_waiver(item, file, today) for item in value.items())
    first: dict[tuple[CellPattern, str], Waiver] = {}
    for waiver in waivers:
        other = first.setdefault((waiver.cell, waiver.metric), waiver)
        if other is not waiver:
            raise ConfigError(
                f"{waiver.source}: {waiver.metric} of {waiver.cell} is waived twice, first in {other.source}; keep one"
            )
    return waivers


def _waiver(value: Value, file: ThresholdsFile, today: dt.date) -> Waiver:
    entries = value.mapping(allowed=_KEYS, required=("cell", "metric", "issue", "until", "reason"))
    metric = entries["metric"].text()
    try:
        spec = gateable(metric)
    except ConfigError as error:
        raise entries["metric"].error(str(error)) from None
    issue = _issue(entries["issue"])
    if "level" not in entries:
        raise value.error(
            f"{value.name} has no 'level'; write the {metric} that was measured when it was granted, so that a further "
            "regression still fails"
        )
    cell, limit = _waived(entries["cell"], spec, file)
    overall = cell.category == OVERALL
    margin = entries["margin"].share() if "margin" in entries else spec.overall_margin if overall else spec.margin
    return Waiver(
        cell=cell,
        metric=metric,
        issue=issue,
        until=_until(entries["until"], issue, today),
        reason=entries["reason"].text(),
        level=entries["level"].positive(),
        margin=margin,
        limit=_covered(entries["level"], margin, spec, limit),
        waives=limit.source,
        source=value.source,
    )


def _issue(value: Value) -> str:
    try:
        issue = value.text()
    except ConfigError as error:
        raise ConfigError(f'{error}; quote it, as in "#123": unquoted, # begins a comment') from None
    if not _ISSUE.fullmatch(issue):
        raise value.error(
            f'{value.name} must say where the cause is followed up ("#123", "owner/repo#123", "ABC-123" or a link), '
            f"but is {issue!r}"
        )
    return issue


def _until(value: Value, issue: str, today: dt.date) -> dt.date:
    until = value.date()
    if until < today:
        raise value.error(
            f"the waiver for {issue} expired on {until} (today is {today}); remove it, so that the limit holds "
            "again, or extend it on purpose"
        )
    if until > today + dt.timedelta(days=LONGEST_DAYS):
        raise value.error(
            f"{value.name} {until} is more than {LONGEST_DAYS} days ahead (today is {today}); choose a day until "
            f"{today + dt.timedelta(days=LONGEST_DAYS)}, or calibrate the limit anew"
        )
    return until


def _waived(value: Value, spec: MetricSpec, file: ThresholdsFile) -> tuple[CellPattern, Limit]:
    """The one cell that is waived, and its limit: a level is that of one cell."""
    asked = cell_pattern(value)
    gated = [gate.cell for gate in file.gates if any(limit.metric == spec.name for limit in gate.limits)]
    named = dict.fromkeys(both for both in (_both(asked, other) for other in gated) if both is not None)
    narrow = [one for one in named if not any(other.narrower(one) for other in named)]
    if len(narrow) > 1:
        raise value.error(
            f"{value.name} {asked} takes in {len(narrow)} cells with a gate on {spec.name}: "
            f"{', '.join(map(str, narrow))}; a level is that of one cell, so write one waiver for each"
        )
    if narrow and not narrow[0].names_one_cell:
        raise value.error(
            f"{value.name} must name one cell with its concurrency, since a level is that of one cell, "
            f"but is {narrow[0]}"
        )
    limits = [limit for limit in gates_for((file,), _cell(narrow[0])) if limit.metric == spec.name] if narrow else []
    if not limits:
        raise value.error(
            f"{value.name} {asked} names no cell of this file with a gate on {spec.name}; "
            + (f"it has them on {', '.join(map(str, gated))}" if gated else "it has none")
        )
    return narrow[0], limits[0]


def _both(one: CellPattern, other: CellPattern) -> CellPattern | None:
    """The cells of both patterns, None where there are none."""
    mine, theirs = one.fields(), other.fields()
    if any(theirs.get(name, value) != value for name, value in mine.items()):
        return None
    return CellPattern(
        split=one.split or other.split,
        category=one.category or other.category,
        isl=one.isl or other.isl,
        difficulty=one.difficulty or other.difficulty,
        concurrency=one.concurrency or other.concurrency,
    )


def _cell(pattern: CellPattern) -> Cell:
    assert pattern.split is not None
    assert pattern.concurrency is not None
    return Cell(pattern.split, pattern.concurrency, pattern.category, pattern.isl, pattern.difficulty)


def _covered(value: Value, margin: float, spec: MetricSpec, limit: Limit) -> float:
    """The worst value that is still covered."""
    level = value.positive()
    if not (level > limit.value if spec.ceiling else level < limit.value):
        kind = "max" if spec.ceiling else "min"
        raise value.error(
            f"{value.name} {level:g} meets the {kind} {limit.value:g} in {limit.source}, so there is nothing to waive; "
            f"write the {spec.name} that was measured, or remove the waiver"
        )
    covered = level * (1 + margin if spec.ceiling else 1 - margin)
    if spec.unit == "tokens/step" and covered <= 1:
        raise value.error(
            f"{spec.name} is never below 1, so a waiver of {level:g} with a margin of {100 * margin:g} % can never "
            "fail; give a smaller margin, or leave the gate out of the file"
        )
    return covered


# Judging


def waiver_of(files: Iterable[ThresholdsFile], cell: Cell, limit: Limit) -> Waiver | None:
    """The waiver of ``limit`` in ``cell``, if there is one."""
    for file in files:
        for waiver in file.waivers:
            if (waiver.metric, waiver.waives) == (limit.metric, limit.source) and waiver.cell.matches(cell):
                return waiver
    return None


def apply(gate: GateResult, waiver: Waiver) -> GateResult:
    """The gate, with what a waiver of its limit makes of it.

    It covers a gate that is missed, or inconclusive, where the value is clear of ``waiver.limit`` by the gate's guard
    band: P(covered | true value at or beyond that limit) ≤ β, as for a PASS. A value beyond it is not covered, one
    within the band is INCONCLUSIVE. INVALID stays what it is. Raises ValueError for a waiver of another metric.
    """
    if gate.metric != waiver.metric:
        raise ValueError(f"a waiver of {waiver.metric} says nothing of {gate.metric}")
    if gate.verdict is Verdict.INVALID:
        return gate
    where = f"{waiver.issue} until {waiver.until}"
    if gate.verdict is Verdict.PASS:
        return replace(gate, waiver=f"the waiver for {where} is no longer needed, remove it ({waiver.source})")
    unit = METRICS[gate.metric].unit
    covered = f"{waiver.limit:.4g}" + (f" {unit}" if unit in ("s", "tokens/s") else "")
    better = -1 if gate.ceiling else 1
    if better * (gate.value - waiver.limit) < 0:
        return replace(gate, waiver=f"worse than the {covered} that is waived for {where}")
    if better * (gate.value - _clear(gate, waiver)) < 0:
        return replace(
            gate,
            verdict=Verdict.INCONCLUSIVE,
            waiver=f"too close to the {covered} that is waived for {where}",
        )
    reach = "up" if gate.ceiling else "down"
    return replace(gate, waived=True, waiver=f"waived for {where}, {reach} to {covered}: {waiver.reason}")


def _clear(gate: GateResult, waiver: Waiver) -> float:
    """The value from which on noise cannot have hidden that ``waiver.limit`` was missed."""
    guard = -gate.guard if gate.ceiling else gate.guard
    # The guard is relative to the gate's limit; noise of a logarithm is relative to any value.
    return waiver.limit + guard * (waiver.limit if METRICS[gate.metric].log_scale else gate.limit)

"""A comparison as text, markdown and JSON: the same facts, the worst cell first."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_speedbench.comparison.judging import Compared
from pytest_speedbench.comparison.sources import Side
from pytest_speedbench.gates.verdict import GateResult, Verdict
from pytest_speedbench.report.fingerprint import Difference
from pytest_speedbench.report.result_json import cell_to_json, number
from pytest_speedbench.report.run_info import plain_json
from pytest_speedbench.report.table import Column, Row, plain, table, wrap
from pytest_speedbench.report.wording import MISSING, escape, one_line, percent, quantity, short_name

COLUMNS = (
    Column("cell", left=True),
    Column("n", drop=2),
    Column("metric", left=True),
    Column("base"),
    Column("new"),
    Column("change"),
    Column("noise", drop=3),
    Column("margin", drop=1),
    Column("verdict", left=True),
)
_ORDER = (Verdict.INVALID, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)
_WORDS = {
    Verdict.FAIL: "worse by more than the margin",
    Verdict.INVALID: "a run cannot carry the comparison",
    Verdict.INCONCLUSIVE: "too close to call",
    Verdict.PASS: "not worse",
}
_INDENT = " " * 8
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs compared. ``differences`` are those that did not forbid it; ``notes`` is what to know beside."""

    base: Side
    new: Side
    cells: tuple[Compared, ...]
    differences: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def outcome(self) -> Verdict:
        """One word for all cells: a proven regression outranks a broken cell beside it."""
        verdicts = {cell.verdict for cell in self.cells}
        for verdict in (Verdict.FAIL, Verdict.INVALID, Verdict.INCONCLUSIVE):
            if verdict in verdicts:
                return verdict
        return Verdict.PASS if verdicts else Verdict.INVALID


def text(comparison: Comparison, *, width: int, encoding: str) -> str:
    """For a terminal."""
    shown = [line for label, fact in _facts(comparison) for line in _fact_lines(label, fact, width, encoding)]
    rows = [
        Row(cells, {}, tuple(map(one_line, details)))
        for cells, details in (_row(compared, gate) for compared, gate in _worst_first(comparison.cells))
    ]
    body = plain(table(COLUMNS, rows, width=width, encoding=encoding)) if rows else "no cell was compared"
    end = [
        line for each in (_count(comparison), *_notes(comparison)) for line in wrap(one_line(each), width, "", encoding)
    ]
    return "\n".join([*shown, "", body, "", *end])


def markdown(comparison: Comparison) -> str:
    """For a pull request or a step summary."""
    word = comparison.outcome
    lines = [f"## speedbench compare: {word.value}, {_WORDS[word]}", ""]
    lines += [f"- {label} {escape(fact)}" for label, fact in _facts(comparison)]
    titles = [column.title for column in COLUMNS]
    lines += ["", f"| {' | '.join(titles)} |", f"| {' | '.join(':-' if c.left else '-:' for c in COLUMNS)} |"]
    details = []
    for compared, gate in _worst_first(comparison.cells):
        cells, own = _row(compared, gate)
        lines.append(f"| {' | '.join(map(escape, cells))} |")
        details += [f"- {escape(cells[0])}: {escape(line)}" for line in own]
    lines += ["", *details, *([""] if details else []), escape(_count(comparison))]
    lines += [f"\n{escape(note)}" for note in _notes(comparison)]
    return "\n".join(lines) + "\n"


def to_json(comparison: Comparison) -> dict[str, object]:
    """For machines: strict JSON, numbers unrounded."""
    counts = Counter(cell.verdict for cell in comparison.cells)
    data = {
        "schema_version": SCHEMA_VERSION,
        "outcome": comparison.outcome.value.lower(),
        "counts": {verdict.value.lower(): counts[verdict] for verdict in Verdict},
        "base": _side_json(comparison.base),
        "new": _side_json(comparison.new),
        "differences": [
            {"name": each.name, "base": each.base, "new": each.new, "kind": each.kind.value}
            for each in comparison.differences
        ],
        "cells": [_cell_json(cell) for cell in comparison.cells],
        "notes": list(comparison.notes),
    }
    clean = plain_json(data)
    assert isinstance(clean, dict)
    return clean


def _facts(comparison: Comparison) -> Iterator[tuple[str, str]]:
    for label, side in (("base", comparison.base), ("new", comparison.new)):
        engine = side.engine
        speculation = "no speculation"
        if engine.method:
            drafter = f" with {engine.draft_model}" if engine.draft_model else ""
            speculation = f"{engine.method}{drafter}, k = {engine.draft_tokens}"
        started = side.source.run.started[:16].replace("T", " ")
        yield label, f"{engine.engine} {engine.version} · {engine.model} · {speculation} · {started} · {side.name}"
    for difference in comparison.differences:
        yield "differ", str(difference)


def _fact_lines(label: str, fact: str, width: int, encoding: str) -> Iterator[str]:
    for line in wrap(one_line(fact), width - len(_INDENT), "", encoding):
        yield f"{label:<{len(_INDENT)}}{line}"
        label = ""


def _worst_first(cells: Sequence[Compared]) -> list[tuple[Compared, GateResult | None]]:
    """A row per gate, and one for what keeps a cell from having any; INVALID on top, then the least headroom."""
    rows: list[tuple[Compared, GateResult | None]] = []
    for cell in cells:
        rows += [(cell, gate) for gate in cell.gates]
        if not cell.gates or _of_the_cell(cell):
            rows.append((cell, None))
    return sorted(rows, key=_badness)


def _of_the_cell(cell: Compared) -> tuple[str, ...]:
    """The reasons that are not those of a gate."""
    of_gates = {gate.reason for gate in cell.gates}
    return tuple(f"{reason.code}: {reason.message}" for reason in cell.reasons if reason.code not in of_gates)


def _badness(row: tuple[Compared, GateResult | None]) -> tuple[int, float]:
    compared, gate = row
    if gate is None:
        return _ORDER.index(compared.verdict), -math.inf
    # Rounded, so that cells that are equal keep their order.
    return _ORDER.index(gate.verdict), round(gate.headroom, 6) if math.isfinite(gate.headroom) else -math.inf


def _row(compared: Compared, gate: GateResult | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The texts of one row, and the lines below it."""
    cell, n = compared.cell.id(with_concurrency=True), str(compared.conversations or MISSING)
    if gate is None:
        return (cell, n, *[MISSING] * 6, compared.verdict.value), _of_the_cell(compared)
    change = None
    if gate.reference and math.isfinite(gate.value):
        change = (gate.value - gate.reference) / gate.reference
    cells = (
        cell,
        n,
        short_name(gate.metric),
        quantity(gate.metric, gate.reference),
        quantity(gate.metric, gate.value),
        percent(change, signed=True),
        f"±{percent(gate.guard)}" if math.isfinite(gate.guard) else MISSING,
        percent(gate.margin),
        gate.verdict.value,
    )
    if gate.verdict is Verdict.PASS:
        return cells, ()
    own = (f"{gate.reason}: {gate.note}",) if gate.reason else ()
    return cells, (*own, *compared.explanation.of(gate.metric))


def _notes(comparison: Comparison) -> list[str]:
    """What verdicts rest on beside the measurements, and what else to know."""
    assumed: dict[str, set[str]] = {}
    for gate in (gate for cell in comparison.cells for gate in cell.gates):
        if gate.note and not gate.reason:
            assumed.setdefault(gate.note, set()).add(short_name(gate.metric))
    return [f"{', '.join(sorted(metrics))}: {note}" for note, metrics in assumed.items()] + list(comparison.notes)


def _count(comparison: Comparison) -> str:
    counts = Counter(cell.verdict for cell in comparison.cells)
    counted = ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in _ORDER if counts[verdict])
    return f"{comparison.outcome.value}: {len(comparison.cells)} cells compared, {counted or 'none'}"


def _side_json(side: Side) -> dict[str, object]:
    engine = side.engine
    return {
        "artifact": side.source.path.as_posix(),
        "profile": engine.profile,
        "engine": engine.engine,
        "version": engine.version,
        "model": engine.model,
        "started": side.source.run.started,
        "fingerprint": engine.fingerprint,
    }


def _cell_json(compared: Compared) -> dict[str, object]:
    length = compared.explanation.length
    return {
        "cell": cell_to_json(compared.cell),
        "verdict": compared.verdict.value,
        "reasons": [{"code": reason.code, "message": reason.message} for reason in compared.reasons],
        "conversations": compared.conversations,
        "later_turns_left_out": compared.left_out,
        "paired_by_prompt": compared.paired,
        "gates": [_gate_json(gate, compared) for gate in compared.gates],
        "equal_length": None if length is None else length.to_json(),
    }


def _gate_json(gate: GateResult, compared: Compared) -> dict[str, object]:
    causes = compared.explanation.causes
    return {
        "metric": gate.metric,
        "verdict": gate.verdict.value,
        "base": number(gate.reference),
        "new": number(gate.value),
        "limit": number(gate.limit),
        "margin": number(gate.margin),
        "sigma": number(gate.sigma),
        "guard": number(gate.guard),
        "headroom": number(gate.headroom),
        "reason": gate.reason,
        "note": gate.note,
        "cause": causes.get(gate.metric),
    }

"""CellResult as a JSON object and back, exact to the last digit.

Numbers that are not finite are written as null, since JSON has no NaN.
"""

from __future__ import annotations

import math
from dataclasses import replace

from pytest_speedbench.cells import Cell
from pytest_speedbench.data.lengths import Lengths
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates.verdict import GateResult, Verdict
from pytest_speedbench.measure.acceptance import Acceptance
from pytest_speedbench.measure.checks import Reason
from pytest_speedbench.measure.metrics import METRICS, Metric
from pytest_speedbench.report.decode import Fields
from pytest_speedbench.report.gpu_json import gpu_from_json, gpu_to_json
from pytest_speedbench.report.redact import Redactor
from pytest_speedbench.results import CellResult, CellRun

JSONObject = dict[str, object]


def result_to_json(result: CellResult) -> JSONObject:
    """One cell, for the artifact and for the way from a worker to the controller."""
    return {
        "profile": result.profile,
        "cell": cell_to_json(result.cell),
        "item_id": result.item_id,
        "verdict": result.verdict and result.verdict.value,
        "reasons": [{"code": reason.code, "message": reason.message} for reason in result.reasons],
        "metrics": {
            name: {
                "value": number(metric.value),
                "low": number(metric.low),
                "high": number(metric.high),
                "bracket": metric.bracket and [number(end) for end in metric.bracket],
            }
            for name, metric in result.metrics.items()
        },
        "acceptance": result.acceptance and _acceptance_to_json(result.acceptance),
        "gates": [_gate_to_json(gate) for gate in result.gates],
        "conversations": int(result.conversations),
        "conversations_planned": int(result.conversations_planned),
        "turns": int(result.turns),
        "prompts_sha256": result.prompts_sha256,
        "steps_source": result.steps_source,
        "duration_s": number(result.duration_s),
        "isl": result.isl and {"min": result.isl.min, "mean": number(result.isl.mean), "max": result.isl.max},
        "masked": result.masked,
        "runs": [
            {
                "start": run.start,
                "repeat": run.repeat,
                "values": {name: number(value) for name, value in run.values.items()},
                "gpus": [gpu_to_json(gpu) for gpu in run.gpus],
            }
            for run in result.runs
        ],
    }


def result_from_json(data: object, where: str = "cell") -> CellResult:
    """What ``result_to_json`` wrote. Raises ConfigError for anything else."""
    read = data if isinstance(data, Fields) else Fields(data, where)
    verdict, acceptance, metrics, isl = (
        read.optional_text("verdict"),
        read.optional_child("acceptance"),
        read.child("metrics"),
        read.optional_child("isl") if read.has("isl") else None,
    )
    return CellResult(
        profile=read.text("profile"),
        cell=cell_from_json(read.child("cell")),
        item_id=read.text("item_id"),
        verdict=None if verdict is None else _verdict(verdict, read.where),
        reasons=tuple(Reason(reason.text("code"), reason.text("message")) for reason in read.children("reasons")),
        metrics={name: _metric_from_json(metrics.child(name)) for name in metrics.data},
        acceptance=None if acceptance is None else _acceptance_from_json(acceptance),
        gates=tuple(_gate_from_json(gate) for gate in read.children("gates")),
        conversations=read.integer("conversations"),
        conversations_planned=read.integer("conversations_planned"),
        turns=read.integer("turns"),
        prompts_sha256=read.text("prompts_sha256"),
        steps_source=read.text("steps_source"),
        duration_s=read.number("duration_s"),
        isl=None if isl is None else Lengths(isl.integer("min"), isl.number("mean"), isl.integer("max")),
        masked=read.integer("masked") if read.has("masked") else 0,
        runs=tuple(map(_run_from_json, read.children("runs"))) if read.has("runs") else (),
    )


def _run_from_json(read: Fields) -> CellRun:
    values = read.child("values")
    return CellRun(
        read.integer("start"),
        read.integer("repeat"),
        {name: values.number(name) for name in values.data},
        tuple(map(gpu_from_json, read.children("gpus"))) if read.has("gpus") else (),
    )


def redacted(result: CellResult, redactor: Redactor) -> CellResult:
    """The result without secrets in what an engine or server said, for reports that people read."""
    return replace(
        result,
        reasons=tuple(replace(reason, message=redactor.text(reason.message)) for reason in result.reasons),
        gates=tuple(replace(gate, note=redactor.text(gate.note)) for gate in result.gates),
    )


def cell_to_json(cell: Cell) -> JSONObject:
    """All fields of a cell, null where a split has no such axis."""
    return {
        "split": cell.split,
        "category": cell.category,
        "isl": cell.isl,
        "difficulty": cell.difficulty,
        "concurrency": cell.concurrency,
    }


def cell_from_json(read: Fields) -> Cell:
    """What ``cell_to_json`` wrote."""
    return Cell(
        read.text("split"),
        read.integer("concurrency"),
        category=read.optional_text("category"),
        isl=read.optional_text("isl"),
        difficulty=read.optional_text("difficulty"),
    )


def _acceptance_to_json(acceptance: Acceptance) -> JSONObject:
    return {
        "histogram": {str(int(length)): int(steps) for length, steps in acceptance.histogram.items()},
        "conditional": {str(int(length)): number(rate) for length, rate in acceptance.conditional.items()},
        "joint": {str(int(length)): number(rate) for length, rate in acceptance.joint.items()},
        "decode_histogram": {str(int(length)): int(steps) for length, steps in acceptance.decode_histogram.items()},
        "unresolved_steps": int(acceptance.unresolved_steps),
    }


def _acceptance_from_json(read: Fields) -> Acceptance:
    return Acceptance(
        histogram=read.counts_by_length("histogram"),
        conditional=read.numbers_by_length("conditional"),
        joint=read.numbers_by_length("joint"),
        decode_histogram=read.counts_by_length("decode_histogram"),
        unresolved_steps=read.integer("unresolved_steps"),
    )


def _metric_from_json(read: Fields) -> Metric:
    bracket = None if read.data.get("bracket") is None else read.numbers("bracket")
    if bracket is not None and len(bracket) != 2:
        raise ConfigError(f"{read.where}.bracket: expected two numbers")
    return Metric(
        read.number("value"),
        read.optional_number("low"),
        read.optional_number("high"),
        None if bracket is None else (bracket[0], bracket[1]),
    )


_GATE_NUMBERS = ("value", "limit", "sigma", "guard", "headroom")
_GATE_OPTIONAL = ("reference", "margin", "mde_not_passed", "mde_failed")


def _gate_to_json(gate: GateResult) -> JSONObject:
    return {
        "metric": gate.metric,
        "verdict": gate.verdict.value,
        "ceiling": gate.ceiling,
        **{name: number(getattr(gate, name)) for name in _GATE_NUMBERS + _GATE_OPTIONAL},
        "source": gate.source,
        "reason": gate.reason,
        "note": gate.note,
        "evidence": gate.evidence,
        "conditional_reference": [number(rate) for rate in gate.conditional_reference],
        "kind": gate.kind,
        "looks": gate.looks,
        "waiver": gate.waiver,
        "waived": gate.waived,
    }


def _gate_from_json(read: Fields) -> GateResult:
    metric = read.text("metric")
    if metric not in METRICS:
        raise ConfigError(f"{read.where}: unknown metric {metric!r}; was this written by a newer version?")
    return GateResult(
        metric=metric,
        verdict=_verdict(read.text("verdict"), read.where),
        value=read.number("value"),
        limit=read.number("limit"),
        ceiling=read.flag("ceiling"),
        reference=read.optional_number("reference"),
        margin=read.optional_number("margin"),
        sigma=read.number("sigma"),
        guard=read.number("guard"),
        headroom=read.number("headroom"),
        mde_not_passed=read.optional_number("mde_not_passed"),
        mde_failed=read.optional_number("mde_failed"),
        source=read.text("source"),
        reason=read.optional_text("reason"),
        note=read.text("note"),
        evidence=read.text("evidence"),
        conditional_reference=read.numbers("conditional_reference"),
        kind=read.text("kind") if read.has("kind") else "floor",
        looks=read.integer("looks") if read.has("looks") else 1,
        waiver=read.text("waiver") if read.has("waiver") else "",
        waived=read.flag("waived") if read.has("waived") else False,
    )


def number(value: float | None) -> float | None:
    """A float that JSON can hold, None for what is missing or not finite."""
    # float() also turns the scalars of numpy into what json can write.
    return None if value is None or not math.isfinite(value) else float(value)


def _verdict(word: str, where: str) -> Verdict:
    try:
        return Verdict(word)
    except ValueError:
        raise ConfigError(f"{where}: unknown verdict {word!r}; choose from {', '.join(Verdict)}") from None

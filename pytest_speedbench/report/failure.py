"""The message of an item that did not pass: its deciding gate, what else is wrong, how to reproduce it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from pytest_speedbench.gates import wording as gate_wording
from pytest_speedbench.gates.verdict import GateResult, Verdict
from pytest_speedbench.measure.diagnosis import Cause, Change, Symptoms, change, conditional_changes, diagnose
from pytest_speedbench.report.ranking import deciding_gate, verdict_word
from pytest_speedbench.report.run_info import EngineRecord
from pytest_speedbench.report.wording import cell_name, draft_positions, first_line, one_line, reasons
from pytest_speedbench.results import CellResult


def headline(result: CellResult, engine: EngineRecord | None = None) -> str:
    """``FAIL acceptance_length 2.314 < limit 2.382 (…) · overall · vllm 0.24.0 · thresholds/x.yaml:14``."""
    gate = deciding_gate(result)
    if result.verdict is Verdict.INVALID and result.reasons:
        reason = result.reasons[0]
        what = f"INVALID {reason.code}: {first_line(reason.message)}"
    elif gate is None:
        what = f"{verdict_word(result)} measured only, no gate"
    else:
        return one_line(gate_wording.first_line(gate, where=cell_name(result), engine=_name(result, engine)))
    return " · ".join((what, cell_name(result), _name(result, engine)))


def failure_text(result: CellResult, engine: EngineRecord | None = None, *, options: Sequence[str] = ()) -> str:
    """The whole message, its first line complete in itself. ``options`` go to the reproduce line."""
    gate, again = deciding_gate(result), reproduce(result, engine, options)
    if gate is None or (result.verdict is Verdict.INVALID and result.reasons):
        lines = [headline(result, engine)]
        if result.reasons:
            # Log lines of an engine keep their breaks here, and only here.
            lines += [one_line(line) for line in result.reasons[0].message.splitlines()[1:]]
        lines += [f"also {line}" for line in reasons(result)[1:]]
        return "\n  ".join([*lines, f"reproduce: {again}"])
    text = gate_wording.failure_text(
        gate,
        where=cell_name(result),
        engine=_name(result, engine),
        conversations=result.conversations,
        conditional=draft_positions(result),
        cause=_cause(result, gate),
        reproduce=again,
    )
    others = [other for other in result.gates if other is not gate and other.verdict is not Verdict.PASS]
    also = [
        f"  also {gate_wording.first_line(other, where=cell_name(result), engine=_name(result, engine))}"
        for other in others
    ]
    *head, last = text.splitlines()
    return "\n".join([*head, *also, last])


def reproduce(result: CellResult, engine: EngineRecord | None, options: Sequence[str] = ()) -> str:
    """The command that measures this cell again. Ids of the suite cannot be typed back, options can."""
    cell = result.cell
    words = ["pytest", f"--speedbench-engine={engine.engine if engine else result.profile}"]
    words.append(f"--speedbench-split={cell.split}")
    if cell.split == "throughput":
        words.append(f"--speedbench-isl={cell.isl}")
        words += [] if cell.is_control else [f"--speedbench-difficulty={cell.difficulty}"]
    elif not cell.is_derived:
        words.append(f"--speedbench-category={cell.category}")
    # A crossover is over all concurrencies.
    words += [] if cell.is_crossover else [f"--speedbench-concurrency={cell.concurrency}"]
    return shlex.join([*words, *options])


def _cause(result: CellResult, gate: GateResult) -> Cause | None:
    """What is likely behind a miss, from what the limit's evidence tells of before."""
    if gate.reference is None or gate.verdict is Verdict.PASS:
        return None
    conditional: tuple[Change, ...] = ()
    if result.acceptance is not None and gate.conditional_reference:
        conditional = conditional_changes(result.acceptance.decode_histogram, gate.conditional_reference)
    moved = {
        f"{each.metric.removesuffix('_s')}": change(each.metric, each.value, each.reference)
        for each in result.gates
        if each.reference and each.value > 0
    }
    return diagnose(
        Symptoms(
            conditional=conditional,
            acceptance_length=moved.get("acceptance_length"),
            step_s=moved.get("step_p50"),
            ttft_s=moved.get("ttft_p50"),
            output_tps=moved.get("output_tps") or moved.get("steady_output_tps"),
            throttled=any(reason.code == "gpu_throttled" for reason in result.reasons) or None,
        ),
        gate.metric,
    )


def _name(result: CellResult, engine: EngineRecord | None) -> str:
    return f"{engine.engine} {engine.version}".strip() if engine else result.profile

"""The text of a gate's verdict. Its first line is complete in itself: it is all that some readers see."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_speedbench.gates.verdict import GateResult, Verdict
from pytest_speedbench.measure.diagnosis import Cause
from pytest_speedbench.measure.metrics import METRICS
from pytest_speedbench.names import CROSSOVER, LOSSLESS

_MOST_DECIMALS = 9


def failure_text(
    gate: GateResult,
    *,
    where: str,
    engine: str,
    conversations: int,
    conditional: Sequence[float],
    cause: Cause | None = None,
    reproduce: str,
) -> str:
    """Everything about one gate that did not pass, the first line complete in itself.

    ``conditional`` is the measured conditional acceptance per draft position, empty if unknown; ``cause`` what is
    likely behind the miss.
    """
    lines = [first_line(gate, where=where, engine=engine)]
    if gate.kind != LOSSLESS and gate.metric != CROSSOVER:
        lines.append(_evidence_line(gate, conversations))
    if conditional and _is_acceptance(gate):
        lines.append(_conditional_line(conditional, gate.conditional_reference, cause))
    elif cause is not None:
        lines.append(f"likely cause: {cause.text}")
    lines.append(f"reproduce: {reproduce}")
    return "\n  ".join(lines)


def first_line(gate: GateResult, *, where: str, engine: str) -> str:
    """What was compared with what, and where to look, in one line; for every verdict."""
    waiver = (gate.waiver,) if gate.waiver else ()
    return " · ".join((f"{gate.verdict.value} {comparison(gate)}", *waiver, where, engine, gate.source))


def _conditional_line(measured: Sequence[float], reference: Sequence[float], cause: Cause | None) -> str:
    text = f"conditional acceptance {_shares(measured)}"
    if reference:
        text += f" (was {_shares(reference)})"
    return text if cause is None else f"{text}: {cause.text}"


def comparison(gate: GateResult) -> str:
    """``acceptance_length 2.314 < limit 2.382 (−4.8 % from 2.431, margin 2 %, noise ±0.5 %)``."""
    if gate.verdict is Verdict.INVALID:
        return f"{gate.metric} {gate.reason}: {gate.note}"
    if gate.kind == LOSSLESS:
        return f"lossless: {gate.note}"
    if gate.metric == CROSSOVER:
        return f"crossover {gate.value:.0f}, limit {gate.limit:.0f}: {gate.note}"
    value, limit = _quantities(gate)
    met = gate.value <= gate.limit if gate.ceiling else gate.value >= gate.limit
    relation = {(True, True): "≤", (True, False): ">", (False, True): "≥", (False, False): "<"}[gate.ceiling, met]
    text = f"{gate.metric} {value} {relation} limit {limit}"
    if gate.verdict is Verdict.INCONCLUSIVE:
        text += ", too close to call"
    return f"{text} ({_context(gate)})"


def _context(gate: GateResult) -> str:
    if gate.reference is None:
        return f"{_change(gate.value, gate.limit)} from the limit, {gate.note}"
    noise = f"noise ±{_percent(gate.guard)}" if gate.guard else "no noise at calibration"
    reference = _quantity(gate.metric, gate.reference, _decimals(gate.metric, gate.limit), gate.limit)
    margin = f"margin {_percent(gate.margin, plain=True)}" if gate.margin is not None else "no margin"
    return f"{_change(gate.value, gate.reference)} from {reference}, {margin}, {noise}"


def _evidence_line(gate: GateResult, conversations: int) -> str:
    if gate.kind == "paired":
        parts = [f"reference measured beside it{f', {gate.note}' if gate.note else ''}"]
    else:
        parts = [f"reference from {gate.evidence}" if gate.evidence else "hand-written limit without a reference"]
        if gate.evidence and gate.note:
            parts.append(gate.note)
    parts.append(f"n = {conversations} conversation{'' if conversations == 1 else 's'}")
    if gate.mde_not_passed is not None and gate.mde_failed is not None:
        effect = "rise" if gate.ceiling else "drop"
        parts.append(
            f"not passed at a {effect} of {_percent(gate.mde_not_passed)}, failed at {_percent(gate.mde_failed)}"
        )
    return " · ".join(parts)


def _is_acceptance(gate: GateResult) -> bool:
    return METRICS[gate.metric].unit in ("tokens/step", "share")


def _quantities(gate: GateResult) -> tuple[str, str]:
    """Value and limit, with as many decimals as it takes to tell them apart."""
    decimals = _decimals(gate.metric, gate.limit)
    while True:
        value, limit = (_quantity(gate.metric, number, decimals, gate.limit) for number in (gate.value, gate.limit))
        if value != limit or gate.value == gate.limit or decimals >= _MOST_DECIMALS:
            return value, limit
        decimals += 1


def _decimals(metric: str, around: float) -> int:
    """Decimals that show about four digits of a value ``around`` this one."""
    unit = METRICS[metric].unit
    if unit not in ("s", "tokens/s"):
        return 3
    size = around * 1000 if unit == "s" and around < 10 else around
    return 0 if size >= 1000 else 1 if size >= 10 else 2


def _quantity(metric: str, number: float, decimals: int, around: float) -> str:
    """A number with its unit; seconds as ms where the value ``around`` it is below 10 s."""
    unit = METRICS[metric].unit
    if unit == "s" and around < 10:
        return f"{number * 1000:.{decimals}f} ms"
    return f"{number:.{decimals}f}" + (f" {unit}" if unit in ("s", "tokens/s") else "")


def _change(number: float, base: float) -> str:
    change = (number - base) / base
    return ("+" if change >= 0 else "−") + _percent(abs(change))


def _percent(share: float, *, plain: bool = False) -> str:
    """``4.8 %``; ``plain`` drops a zero decimal, and what would round to 0.0 keeps one digit."""
    percent = 100 * share
    if plain:
        return f"{percent:.3g} %"
    if 0 < percent < 0.05:
        return f"{percent:.1g} %" if percent >= 0.001 else "0.001 %"
    return f"{percent:.1f} %"


def _shares(values: Sequence[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)

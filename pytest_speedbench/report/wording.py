"""Words for numbers, gates and cells, the same in every report."""

from __future__ import annotations

import math
import re

from pytest_speedbench.gates.verdict import GateResult, Verdict
from pytest_speedbench.gates.wording import comparison
from pytest_speedbench.measure.acceptance import conditional_by_position
from pytest_speedbench.measure.metrics import METRICS
from pytest_speedbench.names import LOSSLESS
from pytest_speedbench.results import CellResult

MISSING = "–"
_SHORT = {
    "acceptance_length": "AL",
    "acceptance_length_pooled": "pooled AL",
    "decode_acceptance_length": "decode AL",
    "decode_acceptance_length_uncut": "uncut AL",
    "drafted_acceptance_length": "drafted AL",
    "acceptance_rate": "accept rate",
    "output_tps": "TPS",
    "steady_output_tps": "steady TPS",
    "user_tps": "user TPS",
    "user_tps_p50": "user TPS p50",
    "user_tps_p5": "user TPS p5",
    "speedup": "speed-up",
    "speedup_per_prompt": "speed-up per prompt",
    "speedup_total_time": "speed-up of all",
}
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$&@])")
_ASCII = str.maketrans(
    {
        "–": "-",
        "−": "-",
        "·": "|",
        "≥": ">=",
        "≤": "<=",
        "±": "+-",
        "×": "x",
        "→": "->",
        "…": "...",
        "─": "-",
        "\N{NO-BREAK SPACE}": " ",
    }
)


def short_name(metric: str) -> str:
    """A metric's name for a column: ``AL``, ``TPS``, ``TTFT p95``."""
    if metric in _SHORT:
        return _SHORT[metric]
    quantity, _, statistic = metric.removesuffix("_s").partition("_")
    quantity = quantity.upper() if quantity in {"ttft", "tpot"} else quantity
    return f"{quantity} {statistic}".replace("_", " ").strip()


def number(metric: str, value: float | None) -> str:
    """A value without its unit, seconds as milliseconds: ``2.314``, ``5104``, ``187``."""
    if value is None or not math.isfinite(value):
        return MISSING
    unit = _unit(metric)
    if unit in ("streams", "turns"):
        return f"{value:.0f}"
    if unit == "s":
        value *= 1000
    elif unit != "tokens/s":
        return f"{value:.3f}"
    size = abs(value)
    return _signed(f"{value:.{0 if size >= 100 else 1 if size >= 10 else 2}f}")


def quantity(metric: str, value: float | None) -> str:
    """A value with ``ms`` where the metric is a time: ``2.314``, ``187 ms``."""
    text = number(metric, value)
    return f"{text} ms" if _unit(metric) == "s" and text != MISSING else text


def percent(share: float | None, *, signed: bool = False) -> str:
    """A share in per cent with one digit, such as ``4.8 %`` or, signed, ``−4.8 %``."""
    if share is None or not math.isfinite(share):
        return MISSING
    return _signed(f"{share * 100:{'+' if signed else ''}.1f}") + " %"


def limit(gate: GateResult) -> str:
    """``AL ≥ 2.382``, ``TTFT p95 ≤ 200 ms``."""
    if gate.kind == LOSSLESS:
        return "no mismatch"
    sign = "≤" if gate.ceiling else "≥"
    return f"{short_name(gate.metric)} {sign} {quantity(gate.metric, gate.limit)}"


def draft_positions(result: CellResult) -> tuple[float, ...]:
    """Conditional acceptance per draft position of decode steps, as far as any step got.

    Or as far as steps got at calibration: a position that is never accepted any more is 0, not absent.
    """
    histogram = result.acceptance.decode_histogram if result.acceptance else {}
    reached = [max(histogram, default=1) - 1, *(len(gate.conditional_reference) for gate in result.gates)]
    return conditional_by_position(histogram, max(reached)) if histogram else ()


def cell_name(result: CellResult) -> str:
    """``coding``, or ``8k-mixed-c32`` where concurrency is part of the cell's name."""
    cell = result.cell
    has_concurrency = cell.split == "throughput" and not cell.is_crossover
    return f"{cell.name}-c{cell.concurrency}" if has_concurrency else cell.name


def item_name(result: CellResult) -> str:
    """The bracket part of the item id, or profile and cell for an item without one."""
    match = re.search(r"(?s)\[(.+)\]$", result.item_id)
    if match:
        return match[1]
    if "::" in result.item_id or not result.item_id:
        return f"{result.profile}-{result.cell.id(with_concurrency=True)}"
    return result.item_id


def gate_source(source: str) -> tuple[str, int | None]:
    """(file, line) of a gate's ``source``; the line is None where there is none."""
    file, colon, line = source.rpartition(":")
    return (file, int(line)) if colon and line.isascii() and line.isdigit() else (source, None)


def one_line(text: str) -> str:
    """Text of an engine or server made safe for a terminal: one line, control characters visible."""
    return "".join(c if c.isprintable() else _escape(c) for c in " ".join(text.split()))


def first_line(text: str) -> str:
    """What an error says before it shows a log."""
    return one_line((text.splitlines() or [""])[0])


def escape(text: str) -> str:
    """Text that markdown and a table cell show as it is: no markup, no HTML, no mention, one line."""
    return _SPECIAL.sub(r"\\\1", one_line(text)).replace("\\@", "&#64;").replace("\\<", "&lt;")


def ascii_only(text: str) -> str:
    """The same words without any glyph that a terminal in another encoding could not show."""
    return text.translate(_ASCII).encode("ascii", "backslashreplace").decode("ascii")


def partial_data(result: CellResult) -> str:
    """That prompts of a cell are placeholders and were left out."""
    return f"partial: {result.masked} prompts are placeholders and were left out; not comparable with the full cell"


def reasons(result: CellResult) -> list[str]:
    """What to know of a cell beside its numbers: left-out prompts, INVALID reasons, each gate that was not met."""
    lines = [partial_data(result)] if result.masked else []
    lines += [f"{reason.code}: {first_line(reason.message)}" for reason in result.reasons]
    told = {reason.code for reason in result.reasons}
    for verdict in (Verdict.INVALID, Verdict.FAIL, Verdict.INCONCLUSIVE):
        for gate in result.gates:
            if gate.verdict is verdict and gate.reason not in told:
                lines.append(f"{one_line(comparison(gate))} · {one_line(gate.source)}")
    # Of what is worked out from other cells the number alone says little.
    passed = [gate for gate in result.gates if gate.verdict is Verdict.PASS and result.cell.is_derived]
    return lines + [one_line(comparison(gate)) for gate in passed if not result.cell.is_overall]


def _unit(metric: str) -> str:
    spec = METRICS.get(metric)
    return spec.unit if spec else ""


def _signed(text: str) -> str:
    # −0.0 would look like a drop.
    if float(text) == 0:
        return text.lstrip("+-")
    return text.replace("-", "−")


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")

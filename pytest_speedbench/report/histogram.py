"""How many tokens a decode step emitted, as text bars, with conditional acceptance per draft position."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from pytest_speedbench.measure.acceptance import conditional_by_position
from pytest_speedbench.report.table import BOLD, Line, fit_encoding, is_utf8
from pytest_speedbench.report.wording import MISSING, percent
from pytest_speedbench.results import CellResult

_EIGHTHS = " ▏▎▍▌▋▊▉"


def histogram_lines(results: Sequence[CellResult], *, width: int, encoding: str) -> list[Line]:
    """The histogram of one profile: its one overall cell, or else all its cells pooled.

    Empty where no cell knows the length of a step.
    """
    overall = [result for result in results if result.cell.is_overall and _steps(result)]
    cells = [result for result in results if not result.cell.is_overall and _steps(result)]
    if len(overall) == 1:
        pooled, title = overall, "overall"
    elif cells:
        pooled, title = cells, f"{len(cells)} cells pooled" if len(cells) > 1 else cells[0].cell.name
    else:
        return []
    acceptances = [result.acceptance for result in pooled if result.acceptance]
    histogram = sum((Counter(dict(one.decode_histogram)) for one in acceptances), Counter[int]())
    reference = next((gate.conditional_reference for r in pooled for gate in r.gates if gate.conditional_reference), ())
    unresolved = sum(one.unresolved_steps for one in acceptances)
    return _lines(title, histogram, unresolved, reference, width, encoding)


def _lines(
    title: str, histogram: Counter[int], unresolved: int, reference: Sequence[float], width: int, encoding: str
) -> list[Line]:
    steps, longest = histogram.total(), max(*histogram, len(reference) + 1)
    conditional = conditional_by_position(histogram, longest - 1)
    bar_width = max(8, min(40, width - 50))
    peak = max(histogram.values()) / steps

    def text(words: str) -> str:
        return fit_encoding(words, encoding)

    was = f"{'was':>7}" if reference else ""
    unknown = f", {unresolved} of unknown length left out" if unresolved else ""
    lines: list[Line] = [
        [(text(f"tokens per decode step · {title} · {steps} steps{unknown}"), BOLD)],
        [(f"  tokens    share  {'':{bar_width}}  draft  accepted{was}", {})],
    ]
    for length in range(1, longest + 1):
        share = histogram[length] / steps
        words = f"  {length:>6}  {percent(share):>7}  {_bar(share / peak, bar_width, encoding):{bar_width}}"
        if length >= 2:
            words += f"  {length - 1:>5}  {_rate(conditional[length - 2]):>8}"
            if reference:
                words += f"{_rate(reference[length - 2] if length - 2 < len(reference) else None):>7}"
        lines.append([(text(words.rstrip()), {})])
    return lines


def _bar(share: float, size: int, encoding: str) -> str:
    if not is_utf8(encoding):
        return "#" * round(share * size)
    eighths = round(share * size * 8)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def _rate(value: float | None) -> str:
    return MISSING if value is None or not math.isfinite(value) else f"{value:.3f}"


def _steps(result: CellResult) -> bool:
    return result.acceptance is not None and sum(result.acceptance.decode_histogram.values()) > 0

"""The summary as GitHub-flavoured markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pytest_speedbench.report import crossover
from pytest_speedbench.report.control import COLUMNS, NOTE, TITLE, pairs
from pytest_speedbench.report.failure import headline
from pytest_speedbench.report.ranking import by_profile, deciding_gate, outcome, verdict_word, worst_first
from pytest_speedbench.report.run_info import RunInfo
from pytest_speedbench.report.terminal import header_lines
from pytest_speedbench.report.wording import MISSING, escape, item_name, limit, number, percent
from pytest_speedbench.results import CellResult

_ICONS = {"PASS": "✅", "FAIL": "❌", "INCONCLUSIVE": "⚠️", "INVALID": "🚫", "WAIVED": "🩹", "UNGATED": "▫️"}
_MEANING = {
    "pass": "every gate passed",
    "fail": "a floor was missed",
    "inconclusive": "too close to call",
    "invalid": "the run cannot carry a verdict",
    "ungated": "measured only, nothing was gated",
}
_HEAD = ("", "cell", "n", "AL", "95 % interval", "TPS", "limit", "headroom", "verdict")
_ALIGN = (":-", ":-", "-:", "-:", "-:", "-:", ":-", "-:", ":-")


def summary_markdown(run: RunInfo, results: Sequence[CellResult], *, most_bytes: int | None = None) -> str:
    """A heading with the outcome, one table per profile, then the cells that did not pass in words.

    Above ``most_bytes`` the best cells are left out, and the text says so.
    """
    text, kept = _markdown(run, results, len(results)), len(results)
    while most_bytes is not None and len(text.encode("utf-8", "backslashreplace")) > most_bytes and kept > 0:
        kept //= 2
        text = _markdown(run, results, kept)
    return text


def _markdown(run: RunInfo, results: Sequence[CellResult], most_cells: int) -> str:
    word = outcome(results)
    counts = Counter(verdict_word(result) for result in results)
    counted = " · ".join(f"{icon} {counts[verdict]} {verdict}" for verdict, icon in _ICONS.items() if counts[verdict])
    lines = [f"## speedbench: {word.upper()}, {_MEANING[word]}", "", counted or "No cell was measured.", ""]
    shown = worst_first(results)[:most_cells]
    for profile, group in by_profile(shown).items():
        engine = run.engine(profile)
        version = f": {escape(engine.engine)} {escape(engine.version)}, {escape(engine.model)}" if engine else ""
        lines += [f"### {escape(profile)}{version}", "", _table_row(_HEAD), _table_row(_ALIGN)]
        lines += [_table_row(_cells(result)) for result in group]
        lines.append("")
        lines += _control(group)
        speedups = crossover.markdown(crossover.from_results(group, profile))
        lines += [speedups, ""] if speedups else []
    if len(shown) < len(results):
        lines += [f"{len(results) - len(shown)} more cells are in the artifact; this page is limited in size.", ""]
    open_cells = [result for result in shown if verdict_word(result) not in ("PASS", "UNGATED")]
    if open_cells:
        lines += ["<details open><summary>What did not pass</summary>", ""]
        lines += [f"- {escape(headline(result, run.engine(result.profile)))}" for result in open_cells]
        lines += ["", "</details>", ""]
    lines += ["<details><summary>Run</summary>", ""]
    lines += [f"- {escape(line)}" for line in header_lines(run)]
    lines += [f"- fingerprint {run.fingerprint[:12]}", "", "</details>", ""]
    return "\n".join(lines)


def _control(group: Sequence[CellResult]) -> list[str]:
    found = pairs(group)
    if not found:
        return []
    head = [_table_row([column.title for column in COLUMNS]), _table_row([":-", *["-:"] * (len(COLUMNS) - 1)])]
    return [f"**{TITLE}**: {NOTE}.", "", *head, *(_table_row([escape(c) for c in pair.cells]) for pair in found), ""]


def _cells(result: CellResult) -> tuple[str, ...]:
    gate, word = deciding_gate(result), verdict_word(result)
    length, speed = result.metrics.get("acceptance_length"), result.metrics.get("output_tps")
    bounds = (length.low, length.high) if length else (None, None)
    interval = "–".join(number("acceptance_length", bound) for bound in bounds) if None not in bounds else MISSING
    return (
        _ICONS[word],
        escape(item_name(result).removeprefix(f"{result.profile}-")),
        f"{result.conversations} (partial)" if result.masked else str(result.conversations),
        number("acceptance_length", length.value if length else None),
        interval,
        number("output_tps", speed.value if speed else None),
        escape(limit(gate)) if gate else "ungated" if result.verdict is None else MISSING,
        percent(gate.headroom, signed=True) if gate else MISSING,
        f"**{word}**" if word not in ("PASS", "UNGATED") else word.lower() if word == "UNGATED" else word,
    )


def _table_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"

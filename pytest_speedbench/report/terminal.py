"""What pytest's terminal shows: header lines, and the summary as lines of (text, markup) segments.

Pure functions: the hook owns the terminal and applies the markup.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from pytest_speedbench.gates.verdict import Verdict
from pytest_speedbench.names import LOSSLESS
from pytest_speedbench.report import crossover
from pytest_speedbench.report.control import control_lines
from pytest_speedbench.report.histogram import histogram_lines
from pytest_speedbench.report.ranking import UNGATED, WAIVED, by_profile, deciding_gate, verdict_word, worst_first
from pytest_speedbench.report.run_info import EngineRecord, RunInfo
from pytest_speedbench.report.table import BOLD, Column, Line, Markup, Row, fit_encoding, plain, table, wrap
from pytest_speedbench.report.wording import (
    MISSING,
    cell_name,
    gate_source,
    limit,
    one_line,
    percent,
    quantity,
    reasons,
    short_name,
)
from pytest_speedbench.results import CellResult

__all__ = ["header_lines", "plain", "summary_lines"]

COLUMNS = (
    Column("cell", left=True),
    Column("n", drop=3),
    Column("AL", drop=1),
    Column("95 % interval", drop=4),
    Column("TPS", drop=2),
    Column("user TPS", drop=7),
    Column("TTFT p95", drop=6),
    Column("limit", left=True),
    Column("headroom"),
    Column("detects", drop=5),
    Column("verdict", left=True),
)
_COLUMN_METRICS = {"acceptance_length": "AL", "output_tps": "TPS", "user_tps": "user TPS", "ttft_p95_s": "TTFT p95"}
_MARKUP: dict[str, Markup] = {
    "PASS": {"green": True},
    "FAIL": {"red": True, "bold": True},
    "INCONCLUSIVE": {"yellow": True, "bold": True},
    "INVALID": {"purple": True, "bold": True},
    WAIVED: {"yellow": True},
    UNGATED: {"yellow": True},
}
_COUNTED = {
    "PASS": "passed",
    "FAIL": "failed",
    "INCONCLUSIVE": "inconclusive",
    "INVALID": "invalid",
    WAIVED: WAIVED.lower(),
    UNGATED: UNGATED.lower(),
}
_MOST_EVIDENCE = 3


def header_lines(run: RunInfo, *, encoding: str = "utf-8") -> list[str]:
    """The facts of a run, one per line: engines, dataset, thresholds, options that are not at their default."""
    rows: list[tuple[str, str]] = []
    for engine in run.engines:
        rows += _engine_facts(engine, with_profile=len(run.engines) > 1)
    rows.append(("dataset", run.dataset + (f" (sha256 {run.dataset_sha256[:12]})" if run.dataset_sha256 else "")))
    rows += [("thresholds", path) for path in run.thresholds or ("none",)]
    rows += [("option", f"{option.name} = {option.value} ({option.origin})") for option in run.options]
    lines, before = [f"speedbench {run.plugin_version}"], ""
    for label, fact in rows:
        lines.append(f"  {'' if label == before else label:<11} {one_line(fact)}")
        before = label
    return [fit_encoding(line, encoding) for line in lines]


def summary_lines(
    results: Sequence[CellResult],
    *,
    width: int,
    measure_only: bool = False,
    partial: bool = False,
    run: RunInfo | None = None,
    encoding: str = "utf-8",
) -> list[Line]:
    """The summary: a table per profile with the worst cell first, histograms, counts, the limits' origin."""
    lines: list[Line] = []
    for profile, group in by_profile(results).items():
        engine = run.engine(profile) if run else None
        lines += [[(text, BOLD)] for text in wrap(_title(profile, engine), width, "", encoding)]
        lines += _cells(group, width=width, measure_only=measure_only, encoding=encoding)
        ungated = _ungated(group)
        if ungated and not measure_only:
            lines += [[(text, {})] for text in wrap(ungated, width, "", encoding)]
        histogram = histogram_lines(group, width=width, encoding=encoding)
        lines += [[("", {})], *histogram] if histogram else []
        lines.append([("", {})])
        lines += control_lines(group, width=width, encoding=encoding)
        lines += crossover.lines(crossover.from_results(group, profile), width=width, encoding=encoding)
    lines += _counts(results, width, encoding)
    for notice in _notices(results, measure_only=measure_only, partial=partial):
        lines += [[(text, _MARKUP["INCONCLUSIVE"])] for text in wrap(notice, width, "", encoding)]
    for origin in _limits(results):
        lines += [[(text, {})] for text in wrap(origin, width, "", encoding)]
    return lines


def _engine_facts(engine: EngineRecord, *, with_profile: bool) -> list[tuple[str, str]]:
    label = f" [{engine.profile}]" if with_profile else ""
    version = engine.version or "(version unknown until it starts)"
    return [
        ("engine", f"{engine.engine} {version}{label}" + (f" on {_gpus(engine)}" if engine.gpus else "")),
        ("model", engine.model),
        ("speculation", _speculation(engine)),
    ]


def _speculation(engine: EngineRecord) -> str:
    if not engine.method:
        return "no speculation"
    drafter = f" with {engine.draft_model}" if engine.draft_model else ""
    return f"{engine.method}{drafter}" + (f", k = {engine.draft_tokens}" if engine.draft_tokens is not None else "")


def _gpus(engine: EngineRecord) -> str:
    return ", ".join(f"{count} × {name}" for name, count in Counter(gpu.name for gpu in engine.gpus).items())


def _title(profile: str, engine: EngineRecord | None) -> str:
    if engine is None:
        return profile
    name = f"{engine.engine} {engine.version}".strip()
    facts = [
        name if profile == engine.engine else f"{profile}: {name}",
        engine.model,
        _speculation(engine),
        _gpus(engine),
    ]
    return " · ".join(one_line(fact) for fact in facts if fact)


def _cells(group: Sequence[CellResult], *, width: int, measure_only: bool, encoding: str) -> list[Line]:
    # A qualitative cell is named with its concurrency only where that tells two cells apart.
    several = len({r.cell.concurrency for r in group if r.cell.split == "qualitative"}) > 1
    rows = [_row(result, with_concurrency=several) for result in worst_first(group)]
    columns = list(COLUMNS)
    if measure_only and all(result.verdict is None for result in group):
        kept = [i for i, column in enumerate(columns) if column.title not in {"limit", "headroom", "verdict"}]
        columns = [columns[i] for i in kept]
        rows = [Row(tuple(row.cells[i] for i in kept), row.markup, row.details) for row in rows]
    return table(columns, rows, width=width, encoding=encoding)


def _row(result: CellResult, *, with_concurrency: bool) -> Row:
    gate, word = deciding_gate(result), verdict_word(result)
    length = result.metrics.get("acceptance_length")
    interval = (
        f"{length.low:.3f}–{length.high:.3f}"
        if length and length.low is not None and length.high is not None
        else MISSING
    )
    name = cell_name(result)
    if with_concurrency and result.cell.split == "qualitative":
        name += f"-c{result.cell.concurrency}"
    lost = result.conversations_planned > result.conversations
    values = {
        title: quantity(m, result.metrics[m].value) for m, title in _COLUMN_METRICS.items() if m in result.metrics
    }
    cells = {
        "cell": name,
        "n": f"{result.conversations}/{result.conversations_planned}" if lost else str(result.conversations),
        "95 % interval": interval,
        "limit": limit(gate) if gate else MISSING,
        "headroom": percent(gate.headroom, signed=True) if gate else MISSING,
        "detects": percent(gate.mde_not_passed) if gate else MISSING,
        "verdict": _verdict(result),
        **values,
    }
    markup = {"verdict": _MARKUP[word]}
    if result.verdict is not Verdict.PASS:
        markup["headroom"] = _MARKUP[word]
    return Row(tuple(cells.get(column.title, MISSING) for column in COLUMNS), markup, tuple(reasons(result)))


def _verdict(result: CellResult) -> str:
    word = verdict_word(result)
    if result.cell.is_control:
        word = "control" if result.verdict is None else f"{word} (control)"
    elif result.verdict is None:
        word = word.lower()
    return f"{word} (partial)" if result.masked else word


def _ungated(group: Sequence[CellResult]) -> str:
    """Which of the shown metrics no limit holds, and in how many cells."""
    parts = []
    for metric in _COLUMN_METRICS:
        shown = [result for result in group if metric in result.metrics and result.verdict is not None]
        free = [result for result in shown if all(gate.metric != metric for gate in result.gates)]
        if free:
            parts.append(
                short_name(metric) + (f" in {len(free)} of {len(shown)} cells" if len(free) < len(shown) else "")
            )
    return f"ungated: {', '.join(parts)}" if parts else ""


def _counts(results: Sequence[CellResult], width: int, encoding: str) -> list[Line]:
    counts = Counter(verdict_word(result) for result in results)
    line: Line = []
    for word, name in _COUNTED.items():
        if counts[word]:
            line += [(", ", {})] if line else []
            line.append((f"{counts[word]} {name}", _MARKUP[word]))
    if not line:
        return [[("no cell was measured", _MARKUP["INVALID"])]]
    gated = [(gate, result) for result in results for gate in result.gates if math.isfinite(gate.headroom)]
    if not gated:
        return [line]
    gate, result = min(gated, key=lambda pair: pair[0].headroom)
    name = cell_name(result) if len({r.profile for r in results}) == 1 else f"{result.profile} {cell_name(result)}"
    words = f"least headroom {percent(gate.headroom, signed=True)}: {name}, {short_name(gate.metric)}"
    joined = fit_encoding(f" · {words}", encoding)
    if len(plain([line])) + len(joined) <= width:
        return [[*line, (joined, {})]]
    return [line, [(fit_encoding(words, encoding), {})]]


def _notices(results: Sequence[CellResult], *, measure_only: bool, partial: bool) -> Iterable[str]:
    if measure_only:
        gated = any(result.gates for result in results)
        yield "measured only: nothing was compared with a limit" + ("" if gated else ", so nothing passed")
    if partial:
        yield "partial: a selection ran, the cells left out have no verdict"
    masked = [result for result in results if result.masked]
    if masked:
        yield (
            f"partial data in {len(masked)} of {len(results)} cells: their placeholders were left out, so their values "
            "are not comparable with those of the full dataset"
        )


def _limits(results: Sequence[CellResult]) -> Iterable[str]:
    """Per thresholds file, how many gates it held and what they rest on."""
    files: dict[str, Counter[str]] = {}
    for result in results:
        for gate in result.gates:
            if gate.source and gate.kind != LOSSLESS:
                files.setdefault(gate_source(gate.source)[0], Counter())[gate.evidence] += 1
    for file, evidence in files.items():
        parts = [
            f"{count} from {one_line(words)}" if words else f"{count} hand-written (assumed noise)"
            for words, count in evidence.most_common(_MOST_EVIDENCE)
        ]
        more = len(evidence) - _MOST_EVIDENCE
        parts += [f"and {more} other calibrations"] if more > 0 else []
        yield f"limits: {one_line(file)} · {sum(evidence.values())} gates: {', '.join(parts)}"

"""An artifact of one engine from the request logs of several sessions, an interrupted one among them.

    python assemble.py OUT.json SESSION.json:PROFILE [SESSION.json:PROFILE ...]

The engine starts of all sessions are counted through in the order given; one that was cut counts for nothing.
Nothing is judged here: `speedbench compare` gives the verdict.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pytest_speedbench.cells import Cell
from pytest_speedbench.engines.base import Speculation
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates.match import Facts
from pytest_speedbench.judging import Labels, Rules, assess, assess_overall, judge_runs
from pytest_speedbench.measure.samples import Window
from pytest_speedbench.report import artifact
from pytest_speedbench.report.requests import RequestLog, RequestsCutWarning, read_windows
from pytest_speedbench.report.run_info import EngineRecord, RunInfo
from pytest_speedbench.results import CellResult

NS = 1e9


def assemble(out: Path, sources: Sequence[tuple[Path, str]]) -> str:
    """Write ``out`` and its request log from (artifact, profile) pairs of one engine; one line of what is in it."""
    runs = [artifact.read(path)[0] for path, _ in sources]
    engine = _the_engine(runs, sources)
    windows = _whole_starts([_windows(path, label) for path, label in sources])
    if not windows:
        raise ConfigError("every engine start was cut, so nothing is left; measure again")
    log = out.with_name(f"{out.stem}-requests.jsonl.gz")
    log.unlink(missing_ok=True)
    requests = RequestLog(log)
    for window in windows:
        # A log has the hash of a reply and not its text, and so cannot hand it on.
        requests.append(engine.profile, replace(window, turns=tuple(replace(t, text=None) for t in window.turns)))
    results = _results(engine, windows, _categories(runs[0]))
    artifact.write(out, replace(runs[0], engines=(engine,)), results, complete=True, partial=False, measure_only=True)
    starts = sorted({window.start for window in windows})
    return f"{out.name}: {engine.engine} {engine.version}, {len(results)} cells, {len(starts)} whole engine starts"


def _the_engine(runs: Sequence[RunInfo], sources: Sequence[tuple[Path, str]]) -> EngineRecord:
    """The record of the engine that all sources must have in common, under the engine's own name."""
    records = [run.engine(label) for run, (_, label) in zip(runs, sources, strict=True)]
    for record, run, (path, label) in zip(records, runs, sources, strict=True):
        first = records[0]
        if record is None or first is None:
            raise ConfigError(f"{path} has no profile {label}")
        if (record.version, record.fingerprint) != (first.version, first.fingerprint):
            raise ConfigError(f"{path}: {label} is another engine or setting than {sources[0][1]} of {sources[0][0]}")
        if run.dataset_cells != runs[0].dataset_cells:
            raise ConfigError(f"{path} was measured on other data than {sources[0][0]}")
    assert records[0] is not None
    return replace(records[0], profile=records[0].engine)


def _windows(path: Path, label: str) -> list[Window]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RequestsCutWarning)
        log = path.with_name(f"{path.stem}-requests.jsonl.gz")
        return [window for profile, window in read_windows(log) if profile == label]


def _whole_starts(sessions: Sequence[Sequence[Window]]) -> list[Window]:
    """The windows of the starts that have every cell in every repeat, starts counted from 0 over all sessions."""
    cells = {window.cell for session in sessions for window in session}
    found: list[list[Window]] = []
    for session in sessions:
        for start in sorted({window.start for window in session}):
            own = [window for window in session if window.start == start]
            repeats = {window.repeat for window in own}
            if {(window.cell, window.repeat) for window in own} == {(cell, n) for cell in cells for n in repeats}:
                found.append(own)
    return [replace(window, start=number) for number, own in enumerate(found) for window in own]


def _categories(run: RunInfo) -> list[str]:
    """All categories of the dataset, which an overall cell must have."""
    names = [cell.cell.partition("-") for cell in run.dataset_cells]
    return [category for split, _, category in names if split == "qualitative"]


def _results(engine: EngineRecord, windows: Sequence[Window], categories: Sequence[str]) -> list[CellResult]:
    speculation = Speculation(engine.method or "none", engine.draft_tokens or 0, engine.draft_model)
    facts = Facts(engine.engine, engine.model, engine.method, engine.draft_tokens, engine.draft_model, "")
    rules = Rules((), (), facts, (), {}, speculation, measure_only=True)
    cells: dict[Cell, list[Window]] = {}
    for window in windows:
        cells.setdefault(window.cell, []).append(window)

    def labels(cell: Cell, own: Sequence[Window]) -> Labels:
        sources = ", ".join(dict.fromkeys(window.steps.source for window in own if window.steps is not None))
        name = f"{engine.profile}-{cell.id(with_concurrency=True)}"
        # The hash of a cell's prompts is not in the log; that the data are the same was checked.
        return Labels(engine.profile, name, sources, prompts_sha256="", duration_s=_seconds(own))

    found = []
    for cell, own in cells.items():
        named = labels(cell, own)
        found.append(judge_runs(cell, [assess(each, speculation, (named.item_id,)) for each in own], rules, named))
    for concurrency in sorted({cell.concurrency for cell in cells if cell.split == "qualitative"}):
        overall = Cell("qualitative", concurrency, category="overall")
        named = labels(overall, [])
        parts = [w for cell, own in cells.items() for w in own if _is_part(cell, overall)]
        runs = []
        for run in sorted({(window.start, window.repeat) for window in parts}):
            known = {window.cell.category: window for window in parts if (window.start, window.repeat) == run}
            runs.append(assess_overall({name: known.get(name) for name in categories}, (named.item_id,)))
        found.append(judge_runs(overall, runs, rules, named))
    return found


def _is_part(cell: Cell, overall: Cell) -> bool:
    return (cell.split, cell.concurrency) == (overall.split, overall.concurrency)


def _seconds(windows: Sequence[Window]) -> float:
    """From the first request to the last token, summed over the windows."""
    spans = [
        max(t.event_ns[-1] for t in w.turns if t.event_ns) - min(t.start_ns for t in w.turns)
        for w in windows
        if w.turns
    ]
    return sum(spans) / NS


def main() -> None:
    parser = argparse.ArgumentParser(description="an artifact of one engine from several sessions")
    parser.add_argument("out", type=Path, metavar="OUT.json")
    parser.add_argument("sources", nargs="+", metavar="SESSION.json:PROFILE")
    arguments = parser.parse_args()
    pairs = [source.rpartition(":") for source in arguments.sources]
    try:
        print(assemble(arguments.out, [(Path(path), label) for path, _, label in pairs]))
    except ConfigError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

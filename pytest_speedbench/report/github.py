"""GitHub Actions: step summary, annotations at the line of the limit, and job outputs."""

# Without "from __future__ import annotations": that would take the name of a function below.

import secrets
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates.verdict import Verdict
from pytest_speedbench.report.failure import headline
from pytest_speedbench.report.markdown import summary_markdown
from pytest_speedbench.report.ranking import deciding_gate, outcome, verdict_word, worst_first
from pytest_speedbench.report.run_info import RunInfo
from pytest_speedbench.report.wording import gate_source, item_name
from pytest_speedbench.results import CellResult

__all__ = ["active", "annotations", "outputs", "publish", "summary_markdown"]

MOST_ANNOTATIONS = 10
"""GitHub shows this many per level and step; what goes beyond is summed up in the last one."""
MOST_SUMMARY_BYTES = 1_000_000
"""GitHub drops a step summary above 1 MiB as a whole."""


def active(environ: Mapping[str, str]) -> bool:
    """Whether this is a step of GitHub Actions."""
    return environ.get("GITHUB_ACTIONS") == "true"


def publish(run: RunInfo, results: Sequence[CellResult], environ: Mapping[str, str]) -> None:
    """Print annotations and append the step summary and the job outputs. Nothing outside of Actions.

    Raises ConfigError when a file that the runner named cannot be written.
    """
    if not active(environ):
        return
    commands = annotations(results, run=run, root=environ.get("GITHUB_WORKSPACE"))
    # pytest's progress line may be open, and a command counts only at the start of a line.
    sys.stdout.write("".join(f"{line}\n" for line in ["", *commands]) if commands else "")
    sys.stdout.flush()
    if environ.get("GITHUB_STEP_SUMMARY"):
        _append(environ["GITHUB_STEP_SUMMARY"], summary_markdown(run, results, most_bytes=MOST_SUMMARY_BYTES))
    if environ.get("GITHUB_OUTPUT"):
        _append(environ["GITHUB_OUTPUT"], output_lines(outputs(results)))


def annotations(results: Sequence[CellResult], *, run: RunInfo | None = None, root: str | None = None) -> list[str]:
    """Workflow commands, the worst cell first: errors for FAIL and INVALID, warnings for INCONCLUSIVE.

    They point at the line of the limit. ``root`` is the checkout, to which paths are made relative.
    """
    errors, warnings = [], []
    for result in worst_first(results):
        if result.verdict is Verdict.INCONCLUSIVE or result.is_waived:
            warnings.append(_annotation("warning", result, run, root))
        elif result.verdict in (Verdict.FAIL, Verdict.INVALID):
            errors.append(_annotation("error", result, run, root))
    return [*_capped("error", errors), *_capped("warning", warnings)]


def outputs(results: Sequence[CellResult]) -> dict[str, str]:
    """Job outputs. ``verdict`` tells a regression (``fail``) from a broken rig (``invalid``)."""
    counts = Counter(verdict_word(result) for result in results)
    worst = next(iter(worst_first(results)), None)
    return {
        "verdict": outcome(results),
        "passed": str(counts["PASS"]),
        "failed": str(counts["FAIL"]),
        "inconclusive": str(counts["INCONCLUSIVE"]),
        "invalid": str(counts["INVALID"]),
        "waived": str(counts["WAIVED"]),
        "ungated": str(counts["UNGATED"]),
        "worst_cell": item_name(worst) if worst else "",
    }


def output_lines(values: Mapping[str, str]) -> str:
    """``name=value`` lines for ``$GITHUB_OUTPUT``; a value with a line break cannot start another output."""
    lines = []
    for name, value in values.items():
        if "\n" in value or "\r" in value:
            end = f"end-{secrets.token_hex(8)}"
            lines.append(f"{name}<<{end}\n{value}\n{end}\n")
        else:
            lines.append(f"{name}={value}\n")
    return "".join(lines)


def escape_message(text: str) -> str:
    """The message of a workflow command: ``%``, CR and LF encoded."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def escape_property(text: str) -> str:
    """The value of a workflow command's property: as a message, and ``:`` and ``,`` encoded."""
    return escape_message(text).replace(":", "%3A").replace(",", "%2C")


def _annotation(level: str, result: CellResult, run: RunInfo | None, root: str | None) -> str:
    gate = deciding_gate(result)
    place: dict[str, str] = {}
    if gate is not None and gate.source:
        file, line = gate_source(gate.source)
        place["file"] = _relative(file, root)
        if line is not None:
            place["line"] = str(line)
    place["title"] = f"speedbench {verdict_word(result)} {item_name(result)}"
    written = ",".join(f"{name}={escape_property(value)}" for name, value in place.items())
    message = headline(result, run.engine(result.profile) if run else None)
    return f"::{level} {written}::{escape_message(message)}"


def _capped(level: str, lines: Sequence[str]) -> list[str]:
    if len(lines) <= MOST_ANNOTATIONS:
        return list(lines)
    left = len(lines) - (MOST_ANNOTATIONS - 1)
    return [*lines[: MOST_ANNOTATIONS - 1], f"::{level} title=speedbench::and {left} more cells, see the step summary"]


def _relative(file: str, root: str | None) -> str:
    path = Path(file)
    if root and path.is_absolute() and path.is_relative_to(root):
        return path.relative_to(root).as_posix()
    return path.as_posix()


def _append(path: str, text: str) -> None:
    try:
        with Path(path).open("a", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(text)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from None

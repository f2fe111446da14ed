"""``speedbench.json``: one run and its cells, versioned by ``speedbench.schema.json``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import NoReturn

from pytest_speedbench.errors import ConfigError
from pytest_speedbench.files import write_atomic
from pytest_speedbench.report.decode import Fields
from pytest_speedbench.report.ranking import outcome, verdict_word
from pytest_speedbench.report.redact import Redactor
from pytest_speedbench.report.result_json import result_from_json, result_to_json
from pytest_speedbench.report.run_info import RunInfo, plain_json
from pytest_speedbench.report.run_json import run_from_json, run_to_json
from pytest_speedbench.results import CellResult

SCHEMA_VERSION = 1
FILE_NAME = "speedbench.json"


@dataclass(frozen=True, slots=True)
class Flags:
    """How much of what was planned the artifact holds.

    ``complete``: the session came to its end. ``partial``: a selection (``-k``, ``--lf``, ``-x``, a
    shard) left planned cells out. ``measure_only``: no cell was compared with a limit. ``planned``:
    how many cells the plan had, before any selection.
    """

    complete: bool
    partial: bool
    measure_only: bool = False
    planned: int | None = None


def to_json(
    run: RunInfo,
    results: Sequence[CellResult],
    *,
    complete: bool,
    partial: bool,
    measure_only: bool = False,
    planned: int | None = None,
    redactor: Redactor | None = None,
) -> dict[str, object]:
    """The artifact as a JSON object. ``redactor`` scrubs every string, engine messages included."""
    judged = [result for result in results if not result.is_companion]
    counts = Counter(verdict_word(result).lower() for result in judged)
    data: dict[str, object] = {
        "schema_version": SCHEMA_VERSION,
        "complete": complete,
        "partial": partial,
        "measure_only": measure_only,
        "planned": planned,
        "outcome": outcome(judged),
        "counts": {word: counts[word] for word in ("pass", "fail", "inconclusive", "invalid", "waived", "ungated")},
        "run": run_to_json(run),
        "cells": [result_to_json(result) for result in results],
    }
    clean = plain_json((redactor or Redactor()).strings(data))
    assert isinstance(clean, dict)
    return clean


def from_json(data: object) -> tuple[RunInfo, tuple[CellResult, ...], Flags]:
    """What ``to_json`` wrote. Raises ConfigError, naming the place, for anything else."""
    read = Fields(data, "artifact")
    found = read.data.get("schema_version")
    if found != SCHEMA_VERSION or isinstance(found, bool):
        raise ConfigError(_other_version(found))
    results = tuple(result_from_json(cell) for cell in read.children("cells"))
    flags = Flags(
        complete=read.flag("complete"),
        partial=read.flag("partial"),
        measure_only=read.flag("measure_only"),
        planned=read.optional_integer("planned"),
    )
    return run_from_json(read.child("run")), results, flags


def write(
    path: Path,
    run: RunInfo,
    results: Sequence[CellResult],
    *,
    complete: bool,
    partial: bool,
    measure_only: bool = False,
    planned: int | None = None,
    redactor: Redactor | None = None,
) -> None:
    """Write the artifact so that a reader sees the old file or the new one, never a part.

    Raises ConfigError when it cannot be written.
    """
    data = to_json(
        run,
        results,
        complete=complete,
        partial=partial,
        measure_only=measure_only,
        planned=planned,
        redactor=redactor,
    )
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(path, (text + "\n").encode("utf-8"))


def read(path: Path) -> tuple[RunInfo, tuple[CellResult, ...], Flags]:
    """A stored artifact. Raises ConfigError for a missing, truncated, foreign or newer file."""
    try:
        return from_json(load(path))
    except ConfigError as error:
        message = str(error)
        raise ConfigError(message if str(path) in message else f"{path}: {message}") from None


def load(path: Path) -> object:
    """The JSON of a file, nothing checked beyond its syntax. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a speedbench artifact: it is not UTF-8 text") from None
    try:
        data: object = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "nesting or a number"
        cut = isinstance(error, json.JSONDecodeError) and not text[error.pos :].strip()
        state = "ends in the middle: it is truncated" if cut else f"is not valid JSON ({error})"
        raise ConfigError(f"{path} {state} ({where}); run again or restore it from CI") from None
    return data


def validate(data: object) -> None:
    """Check a JSON object against the shipped schema.

    Raises ConfigError with the first problems, or naming the extra when jsonschema is missing.
    """
    try:
        import jsonschema
    except ImportError:
        raise ConfigError("validating an artifact needs jsonschema: pip install 'pytest-speedbench[report]'") from None
    validator = jsonschema.Draft202012Validator(schema())
    problems = sorted(validator.iter_errors(data), key=lambda problem: [str(part) for part in problem.absolute_path])
    if problems:
        lines = [f"  {problem.json_path}: {_shortened(problem.message)}" for problem in problems[:5]]
        more = [f"  and {len(problems) - 5} more"] if len(problems) > 5 else []
        raise ConfigError("\n".join(["the artifact does not match speedbench.schema.json:", *lines, *more]))


@lru_cache(maxsize=1)
def schema() -> dict[str, object]:
    """The JSON Schema of the artifact, as it ships in the package."""
    text = files("pytest_speedbench.report").joinpath("speedbench.schema.json").read_text(encoding="utf-8")
    data: dict[str, object] = json.loads(text)
    return data


def _other_version(found: object) -> str:
    if found is None:
        return "this is not a speedbench artifact: it has no schema_version"
    if isinstance(found, int) and found > SCHEMA_VERSION:
        return (
            f"schema_version {found} is newer than this plugin, which reads {SCHEMA_VERSION}; "
            "upgrade: pip install -U pytest-speedbench"
        )
    return f"schema_version {found!r} is not supported; this plugin reads {SCHEMA_VERSION}"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _shortened(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"

"""The acceptance length of every single prompt at calibration, in a file beside the thresholds file.

``x.yaml`` has its prompts in ``x.prompts.jsonl.gz``: a line that names the format, then for each cell
a line that says which limits it belongs to, followed by one line per prompt. Paired with it, a run is
compared prompt by prompt, so that a drop shows early and by name.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_speedbench.cells import Cell
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates.limits import Limit

SCHEMA = 1
_SUFFIX = ".prompts.jsonl.gz"
_FORMAT = "prompt_reference"
_CELL_KINDS: Mapping[str, type] = {"split": str, "category": str, "isl": str, "difficulty": str, "concurrency": int}
_NOISE = 3.0
"""A prompt has fallen when it lies this many standard deviations below its mean."""


@dataclass(frozen=True, slots=True)
class PromptReference:
    """One prompt over all calibration runs.

    ``length`` is its mean acceptance length, the prefill step counted, and ``sd`` the standard deviation
    over the ``runs``; ``tokens`` is the mean number of output tokens per turn.
    """

    length: float
    sd: float
    runs: int
    tokens: float


@dataclass(frozen=True, slots=True)
class CellReference:
    """The prompts of one cell. ``references`` are those of the limits, by metric, that came from the same runs."""

    cell: Cell
    prompts_sha256: str
    references: Mapping[str, float]
    prompts: Mapping[str, PromptReference]


@dataclass(frozen=True, slots=True)
class PromptReferences:
    """All cells of one file. ``path`` is for messages."""

    path: str
    cells: Mapping[Cell, CellReference]

    def of(self, cell: Cell, limit: Limit) -> Mapping[str, PromptReference] | None:
        """The prompts behind ``limit`` by question id, None where the file has none for this gate.

        Raises ConfigError when they come from another calibration than the limit.
        """
        found = self.cells.get(cell)
        if found is None or limit.metric not in found.references or limit.reference is None:
            return None
        was, prompts = found.references[limit.metric], limit.evidence.prompts if limit.evidence else None
        if not math.isclose(was, limit.reference, rel_tol=1e-6):
            what = f"its {limit.metric} was {was:g}, but the limit's reference is {limit.reference:g}"
        elif prompts is not None and not found.prompts_sha256.startswith(prompts):
            what = f"it has the prompts {found.prompts_sha256[:12]}, but the limit {prompts[:12]}"
        else:
            return found.prompts
        raise ConfigError(
            f"{limit.source}: {self.path} is of another calibration: {what}; "
            "write both anew with speedbench calibrate, or delete the file"
        )


@dataclass(frozen=True, slots=True)
class Fallen:
    """A prompt whose acceptance length is below what its own noise explains."""

    question_id: str
    reference: float
    length: float

    def __str__(self) -> str:
        return f"{self.question_id} {self.length:.2f} (was {self.reference:.2f})"


def fallen(reference: Mapping[str, PromptReference], lengths: Mapping[str, float]) -> tuple[Fallen, ...]:
    """The measured prompts that fell, the deepest fall (relative to its reference) first.

    A prompt that did not vary at calibration has fallen when it is lower at all.
    """
    found = [
        Fallen(name, was.length, lengths[name])
        for name, was in reference.items()
        # The noise is that of one run against the mean of those at calibration.
        if name in lengths and was.length - lengths[name] > max(_NOISE * was.sd * math.sqrt(1 + 1 / was.runs), 1e-6)
    ]
    return tuple(sorted(found, key=lambda each: (each.length / each.reference, each.question_id)))


def path_of(thresholds: Path) -> Path:
    """Where the prompts of a thresholds file are kept."""
    return thresholds.with_name(thresholds.stem + _SUFFIX)


def read(thresholds: Path) -> PromptReferences | None:
    """The prompts beside a thresholds file, None where there are none.

    Raises ConfigError, with file and line, for a file that is damaged or that a newer version wrote.
    """
    path = path_of(thresholds)
    if not path.exists():
        return None
    name = path.as_posix()
    try:
        with gzip.open(path) as stream:
            lines = stream.read().decode().splitlines()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: damaged: {error}; {_REMEDY}") from None
    rows = iter([_Row(line, f"{name}:{number}") for number, line in enumerate(lines, start=1)])
    head = next(rows, None)
    if head is None or head.data.get("format") != _FORMAT:
        raise ConfigError(f"{name}:1: not a prompt reference; {_REMEDY}")
    if head.data.get("schema") != SCHEMA:
        raise ConfigError(f"{name}:1: schema {head.data.get('schema')!r} is not {SCHEMA}; {_REMEDY}")
    cells = list(_cells(rows))
    if len({each.cell for each in cells}) < len(cells) or len(cells) != head.number("cells"):
        raise ConfigError(f"{name}: damaged: cells are missing, or there are some twice; {_REMEDY}")
    return PromptReferences(name, {each.cell: each for each in cells})


def encoded(cells: Iterable[CellReference]) -> bytes:
    """The content of a file; equal cells give equal bytes."""
    cells = list(cells)
    lines: list[dict[str, object]] = [{"format": _FORMAT, "schema": SCHEMA, "cells": len(cells)}]
    for each in cells:
        lines.append(
            {
                "cell": each.cell.as_dict(),
                "prompts_sha256": each.prompts_sha256,
                "references": dict(sorted(each.references.items())),
                "prompts": len(each.prompts),
            }
        )
        for name, own in sorted(each.prompts.items()):
            numbers = {"length": own.length, "sd": own.sd, "runs": own.runs, "tokens": own.tokens}
            lines.append({"question_id": name, **numbers})
    text = "".join(
        json.dumps(line, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n" for line in lines
    )
    buffer = io.BytesIO()
    # gzip.compress writes headers that differ between versions of Python.
    with gzip.GzipFile("", "wb", compresslevel=9, fileobj=buffer, mtime=0) as stream:
        stream.write(text.encode())
    return buffer.getvalue()


_REMEDY = "restore it, write it anew with speedbench calibrate, or delete it"


class _Row:
    """One line, read strictly. ``where`` is ``file:line``."""

    def __init__(self, line: str, where: str) -> None:
        self.where = where
        try:
            data = json.loads(line)
        except (ValueError, RecursionError):
            data = None
        if not isinstance(data, dict):
            raise ConfigError(f"{where}: damaged: not a JSON object; {_REMEDY}")
        self.data: dict[str, object] = data

    def wrong(self, key: str) -> ConfigError:
        return ConfigError(f"{self.where}: damaged: {key} is {self.data.get(key)!r}; {_REMEDY}")

    def text(self, key: str) -> str:
        value = self.data.get(key)
        if not isinstance(value, str):
            raise self.wrong(key)
        return value

    def number(self, key: str) -> float:
        value = self.data.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise self.wrong(key)
        return value

    def count(self, key: str) -> int:
        value = self.number(key)
        if not isinstance(value, int) or value < 1:
            raise self.wrong(key)
        return value


def _cells(rows: Iterator[_Row]) -> Iterator[CellReference]:
    for row in rows:
        references = row.data.get("references")
        if not (isinstance(references, dict) and all(isinstance(value, float | int) for value in references.values())):
            raise row.wrong("references")
        prompts: dict[str, PromptReference] = {}
        for _ in range(row.count("prompts")):
            own = next(rows, None)
            if own is None:
                raise ConfigError(f"{row.where}: damaged: the prompts of this cell are cut off; {_REMEDY}")
            name = own.text("question_id")
            if name in prompts:
                raise ConfigError(f"{own.where}: damaged: {name} is there twice; {_REMEDY}")
            prompts[name] = PromptReference(
                own.number("length"), own.number("sd"), own.count("runs"), own.number("tokens")
            )
        yield CellReference(_cell(row), row.text("prompts_sha256"), references, prompts)


def _cell(row: _Row) -> Cell:
    fields = row.data.get("cell")
    if not isinstance(fields, dict) or not {"split", "concurrency"} <= fields.keys() <= _CELL_KINDS.keys():
        raise row.wrong("cell")
    if any(type(value) is not _CELL_KINDS[name] for name, value in fields.items()):
        raise row.wrong("cell")
    return Cell(**fields)

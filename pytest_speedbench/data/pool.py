"""A pool of candidate prompts in JSON lines, from which ``curate`` chooses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_speedbench.data.reading import json_lines
from pytest_speedbench.data.schema import Row, parse_row
from pytest_speedbench.errors import ConfigError

CONFIG = "qualitative"
_ID_CHARS = 32


@dataclass(frozen=True, slots=True)
class Pool:
    """The candidates of a file in its order, with unique ids. ``repeated`` counts the lines left out."""

    path: Path
    candidates: tuple[Row, ...]
    repeated: int

    def by_category(self) -> dict[str, tuple[Row, ...]]:
        """The candidates of each category; categories in alphabetical order, candidates in that of their ids."""
        found: dict[str, list[Row]] = {}
        for row in sorted(self.candidates, key=lambda row: (row.category, row.question_id)):
            found.setdefault(row.category, []).append(row)
        return {category: tuple(rows) for category, rows in found.items()}


def read_pool(path: Path) -> Pool:
    """The candidates in the JSON lines file ``path``.

    A line has the columns of a SPEED-Bench row; only ``category`` and the text are required. The text
    is in ``turns``, ``messages`` or ``prompt`` (a string). Without a ``question_id`` it is derived from
    the text, so that the same text has the same id in any file; a line that repeats such a text in the
    same category is left out.

    Raises ConfigError with file and line for what is not UTF-8, JSON or a candidate, for a placeholder,
    for an id that is there twice, and for a file without candidates.
    """
    seen: dict[str, tuple[str, Row, bool]] = {}
    repeated = 0
    for _, where, raw in json_lines(path):
        row, derived = _candidate(raw, where)
        if row.is_placeholder:
            raise ConfigError(f"{where}: a placeholder of SPEED-Bench, not a prompt; run upstream's prepare step first")
        first, other, other_derived = seen.setdefault(row.question_id, (where, row, derived))
        if first == where:
            continue
        line = first.removeprefix(f"{path}, ")
        if not (derived and other_derived):
            raise ConfigError(f"{where}: question_id {row.question_id!r} is taken by {line}; ids must be unique")
        if row.category != other.category:
            raise ConfigError(
                f"{where}: the text of {line} again, there in category {other.category!r} and here in "
                f"{row.category!r}; keep one of them, or give each a question_id"
            )
        repeated += 1
    if not seen:
        raise ConfigError(f"{path}: no candidates; expected one JSON object a line with a category and a prompt")
    return Pool(path, tuple(row for _, row, _ in seen.values()), repeated)


def text_of(row: Row) -> str:
    """What stands for a candidate when it is embedded: its user turns, a blank line between them."""
    return "\n\n".join(row.turns)


def record(row: Row) -> dict[str, object]:
    """A row as one object of a SPEED-Bench file."""
    return {
        "question_id": row.question_id,
        "category": row.category,
        "sub_category": row.sub_category,
        "turns": list(row.turns),
        "source": row.source,
        "src_id": row.src_id,
        "difficulty": row.difficulty,
        "multiturn": len(row.turns) > 1,
    }


def _candidate(raw: object, where: str) -> tuple[Row, bool]:
    """The row of one record, and whether its id is derived."""
    if not isinstance(raw, Mapping):
        return parse_row(raw, config=CONFIG, where=where), False
    columns = dict(raw)
    if "prompt" in columns:
        if columns.get("turns") is not None or columns.get("messages") is not None:
            raise ConfigError(f"{where}: 'prompt' beside 'turns' or 'messages'; keep one of them")
        columns["turns"] = [columns.pop("prompt")]
    if columns.get("question_id") is not None:
        return parse_row(columns, config=CONFIG, where=where), False
    # The text has to be valid before an id can be made of it.
    row = parse_row(columns | {"question_id": "-"}, config=CONFIG, where=where)
    return parse_row(columns | {"question_id": _derived_id(row.turns)}, config=CONFIG, where=where), True


def _derived_id(turns: tuple[str, ...]) -> str:
    """32 hex digits of sha256 over the turns as a JSON list, which keeps the borders between them."""
    text = json.dumps(turns, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_ID_CHARS]

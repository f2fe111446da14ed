"""Every row of the bundled mini dataset, as its files have it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest_speedbench.data

FOLDER = Path(pytest_speedbench.data.__file__).parent / "mini"


def mini_rows() -> list[tuple[str, tuple[str, ...]]]:
    """File and id of a row, and its turns."""
    return [
        (f"{path.stem} {row['question_id']}", tuple(row["turns"]))
        for path in sorted(FOLDER.glob("*.jsonl"))
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())
    ]

"""Rows from JSON lines and Parquet files, with errors that name file and row."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from pytest_speedbench.data.schema import Row, parse_row
from pytest_speedbench.errors import ConfigError


def read_jsonl(path: Path, config: str) -> tuple[Row, ...]:
    """The rows of a ``.jsonl`` file, in file order; blank lines are skipped.

    Raises ConfigError with file and line for bytes that are not UTF-8, for a line that is not JSON and
    for a record that is not a row.
    """
    rows = []
    # Bytes are split, not text: str.splitlines also splits at U+2028, which is legal inside a JSON string.
    for number, line in enumerate(read_bytes(path).split(b"\n"), start=1):
        where = f"{path}, line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{where}: not UTF-8 ({error.reason} at byte {error.start} of the line)") from None
        if not text.strip():
            continue
        try:
            raw = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{where}: not JSON ({error.msg} at column {error.colno}); is the file cut?") from None
        except RecursionError:
            raise ConfigError(f"{where}: not a row (nested too deeply)") from None
        rows.append(parse_row(raw, config=config, where=where))
    return tuple(rows)


def read_parquet(path: Path, config: str) -> tuple[Row, ...]:
    """The rows of a Parquet file, in file order.

    Raises ConfigError when pyarrow is missing, for a file that pyarrow cannot read (named, with
    pyarrow's reason), and for a record that is not a row.
    """
    return tuple(
        parse_row(raw, config=config, where=f"{path}, row {number}")
        for number, raw in enumerate(_records(path), start=1)
    )


def read_bytes(path: Path) -> bytes:
    """The content of ``path``. Raises ConfigError with the system's reason."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def _records(path: Path) -> Iterable[object]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ConfigError(f"{path}: reading Parquet needs pyarrow: pip install 'pytest-speedbench[parquet]'") from None
    try:
        # partitioning=None: a folder named like category=coding must not add a column.
        records: list[object] = pq.read_table(path, partitioning=None).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(f"{path}: not a readable Parquet file ({reason}); is it cut?") from None
    return records

"""Rows from JSON lines and Parquet files, one at a time, with errors that name file and row.

Both readers are lazy: a full SPEED-Bench has some 400 MB of text, and a plan needs none of it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from pytest_speedbench.data.schema import Row, parse_row
from pytest_speedbench.errors import ConfigError

MAX_ROW_BYTES = 16 * 2**20
"""The longest row that is read; SPEED-Bench's longest are below 0.3 MB."""
_MAX_GROUP_BYTES = 4 * 2**30
_BATCH_BYTES = 2**28
_BUFFER_BYTES = 2**16
_BATCH_ROWS = 64
_SUSPICIOUS_BYTES, _SUSPICIOUS_RATIO = 2**26, 200
"""Text shrinks by 3 to 10 in Parquet; only what was made to blow up shrinks by more than this."""


def read_rows(path: Path, config: str) -> Iterator[tuple[int, Row]]:
    """The rows of a ``.jsonl`` or Parquet file, each with its position, as the reader for it gives them."""
    return read_jsonl(path, config) if path.suffix == ".jsonl" else read_parquet(path, config)


def read_jsonl(path: Path, config: str) -> Iterator[tuple[int, Row]]:
    """The rows of a ``.jsonl`` file in file order, each with its byte offset; blank lines are skipped.

    Raises ConfigError with file and line for bytes that are not UTF-8, for a line that is not JSON or
    longer than MAX_ROW_BYTES, and for a record that is not a row.
    """
    for offset, where, record in json_lines(path):
        yield offset, parse_row(record, config=config, where=where)


def json_lines(path: Path) -> Iterator[tuple[int, str, object]]:
    """Byte offset, place in words and decoded value of every line of ``path`` that is not blank.

    Raises ConfigError as ``read_jsonl`` does.
    """
    with _opened(path) as file:
        number = offset = 0
        # Bytes are split, not text: str.splitlines also splits at U+2028, which is legal inside a JSON string.
        while line := file.readline(MAX_ROW_BYTES + 1):
            number += 1
            where = f"{path}, line {number}"
            text = _text(line, where, first=number == 1)
            if text.strip():
                yield offset, where, _decoded(text, where)
            offset += len(line)


def read_jsonl_at(path: Path, config: str, offsets: Collection[int]) -> Iterator[tuple[int, Row]]:
    """The rows that start at ``offsets``, as ``read_jsonl`` gave them, in the order of the file."""
    with _opened(path) as file:
        for offset in sorted(offsets):
            file.seek(offset)
            where = f"{path}, byte {offset}"
            text = _text(file.readline(MAX_ROW_BYTES + 1), where, first=offset == 0)
            yield offset, parse_row(_decoded(text, where), config=config, where=where)


def read_parquet(path: Path, config: str, positions: Collection[int] | None = None) -> Iterator[tuple[int, Row]]:
    """The rows of a Parquet file in file order, each with its number from 0; only those at ``positions`` if given.

    Raises ConfigError when pyarrow is missing, for a file that pyarrow cannot read (named, with
    pyarrow's reason), for one that would blow up in memory, and for a record that is not a row.
    """
    wanted = None if positions is None else set(positions)
    for position, record in _records(path, wanted):
        where = f"{path}, row {position + 1}"
        row = parse_row(record, config=config, where=where)
        if sum(map(len, row.turns)) > MAX_ROW_BYTES:
            raise _too_long(where)
        yield position, row


def read_bytes(path: Path) -> bytes:
    """The content of ``path``. Raises ConfigError with the system's reason."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def _text(line: bytes, where: str, *, first: bool) -> str:
    if len(line) > MAX_ROW_BYTES:
        raise _too_long(where)
    try:
        return line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not UTF-8 ({error.reason} at byte {error.start} of the line)") from None


def _decoded(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: not JSON ({error.msg} at column {error.colno}); is the file cut?") from None
    except RecursionError:
        raise ConfigError(f"{where}: not a row (nested too deeply)") from None
    except ValueError as error:
        # Whole numbers of thousands of digits, which Python refuses to convert.
        raise ConfigError(f"{where}: not a row ({error})") from None


def _too_long(where: str) -> ConfigError:
    return ConfigError(
        f"{where}: longer than {MAX_ROW_BYTES // 2**20} MiB, which no prompt is; is this the right file?"
    )


def _records(path: Path, wanted: set[int] | None) -> Iterator[tuple[int, object]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ConfigError(f"{path}: reading Parquet needs pyarrow: pip install 'pytest-speedbench[parquet]'") from None
    try:
        # Opened here: pyarrow takes no name that is not UTF-8.
        with _opened(path) as source, pq.ParquetFile(source, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            packed = path.stat().st_size
            first = 0
            for group in range(file.num_row_groups):
                shape = file.metadata.row_group(group)
                rows = range(first, first + shape.num_rows)
                first = rows.stop
                if wanted is not None and wanted.isdisjoint(rows):
                    continue
                position = rows.start
                for batch in file.iter_batches(
                    _batch_rows(path, shape.total_byte_size, packed), row_groups=[group], use_threads=False
                ):
                    for index in range(batch.num_rows):
                        if wanted is None or position + index in wanted:
                            yield position + index, batch.slice(index, 1).to_pylist()[0]
                    position += batch.num_rows
                # A group of the 32k bucket takes some 270 MB, and the pool would keep it.
                pa.default_memory_pool().release_unused()
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        # ValueError also covers UTF-8 that is broken and times that Python cannot hold.
        reason = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(f"{path}: not a readable Parquet file ({reason}); is it cut?") from None


def _batch_rows(path: Path, unpacked: int, packed: int) -> int:
    """How many rows of a group of ``unpacked`` bytes, in a file of ``packed``, to decode at once.

    A value in a dictionary page can be repeated by every row, so a batch may take its number of rows
    times what the whole group takes. Raises ConfigError for a file that was made to exhaust memory.
    """
    # Of the footer only this figure is asked for: on a damaged one pyarrow 26 aborts the process when it is
    # asked about a column.
    if unpacked > _MAX_GROUP_BYTES or (unpacked > _SUSPICIOUS_BYTES and unpacked > _SUSPICIOUS_RATIO * packed):
        raise ConfigError(
            f"{path}: a row group unpacks from at most {packed} to {unpacked} bytes, which no SPEED-Bench file does"
        )
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(unpacked, 1)))

"""``speedbench-requests.jsonl.gz``: the samples behind the artifact, one line per turn.

Each cell is one complete gzip member, written in one piece. A killed run leaves all members but
possibly the last one whole; any gzip tool reads the file.

Neither prompts nor output text are kept, since both may be confidential. Output ids are kept unless
told otherwise; the text's SHA-256 always is, so that two runs can be told equal or not.
"""

from __future__ import annotations

import gzip
import json
import os
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pytest_speedbench.cells import Cell
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.measure.samples import Failure, Turn, Window
from pytest_speedbench.report.redact import Redactor
from pytest_speedbench.report.request_json import Lines, window_lines

_CHUNK = 1 << 20


def log_path(artifact: Path) -> Path:
    """Where a run keeps the request log of an artifact."""
    return artifact.with_name(f"{artifact.stem}-requests.jsonl.gz")


class RequestsCutWarning(UserWarning):
    """The last member of a request log is incomplete: the run was killed while it wrote."""


class RequestLog:
    """Appends measured windows to a request log.

    ``resume`` keeps what is there and removes an incomplete last member; otherwise an old file is
    replaced. Raises ConfigError when the file cannot be written.
    """

    def __init__(
        self, path: Path, *, resume: bool = False, keep_output_ids: bool = True, redactor: Redactor | None = None
    ) -> None:
        self.path = path
        self.keep_output_ids = keep_output_ids
        self._redactor = redactor or Redactor()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            end = _complete_bytes(path) if resume and path.exists() else 0
            with path.open("ab") as stream:
                # Whatever follows a half member could never be decompressed.
                stream.truncate(end)
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error

    def append(self, profile: str, window: Window) -> None:
        """Write one window so that it is on the disk when this returns."""
        lines = window_lines(profile, window, keep_output_ids=self.keep_output_ids, redactor=self._redactor)
        text = "".join(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n" for line in lines)
        member = gzip.compress(text.encode("ascii"), mtime=0)
        try:
            with self.path.open("ab") as stream:
                end = stream.tell()
                try:
                    stream.write(member)
                    stream.flush()
                    os.fsync(stream.fileno())
                except OSError:
                    # A full disk leaves half a member, and what a later cell appends would be lost with it.
                    os.truncate(self.path, end)
                    raise
        except OSError as error:
            raise ConfigError(f"cannot write {self.path}: {error.strerror or error}") from error


def read_windows(path: Path) -> Iterator[tuple[str, Window]]:
    """The (profile, window) pairs of a log, as measured, bar the text.

    Warns with RequestsCutWarning when the last member is incomplete and leaves that one out.
    Raises ConfigError for a file that cannot be read, is damaged or is no request log.
    """
    for number, (member, _) in enumerate(_members(path, warn=True), start=1):
        yield Lines(f"{path}, member {number}").window(member)


def read_requests(path: Path) -> Iterator[tuple[str, Cell, Turn | Failure]]:
    """The (profile, cell, turn or failure) triples of a log; see ``read_windows``."""
    for profile, window in read_windows(path):
        requests: tuple[Turn | Failure, ...] = window.turns + window.failures
        for request in requests:
            yield profile, window.cell, request


def _complete_bytes(path: Path) -> int:
    return max((end for _, end in _members(path, warn=False)), default=0)


def _members(path: Path, *, warn: bool) -> Iterator[tuple[bytes, int]]:
    """Each complete gzip member's content and where it ends in the file."""
    try:
        with path.open("rb") as stream:
            yield from _decompressed(stream, path, warn=warn)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None


def _decompressed(stream: IO[bytes], path: Path, *, warn: bool) -> Iterator[tuple[bytes, int]]:
    end, rest = 0, stream.read(_CHUNK)
    while rest:
        decoder, content = zlib.decompressobj(wbits=31), bytearray()
        begin = end
        while rest and not decoder.eof:
            try:
                content += decoder.decompress(rest)
            except zlib.error as error:
                raise ConfigError(f"{path} is damaged in the member at byte {begin}: {error}") from None
            end += len(rest) - len(decoder.unused_data)
            rest = decoder.unused_data or stream.read(_CHUNK)
        if not decoder.eof:
            if warn:
                warnings.warn(
                    f"{path} is cut at byte {end}: the last cell is incomplete and left out",
                    RequestsCutWarning,
                    stacklevel=2,
                )
            return
        yield bytes(content), end

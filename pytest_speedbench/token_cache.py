"""Token ids on disk, so that the prompts of a cell are encoded once and not in every run.

One file per group of prompts, named after a hash of all that the ids depend on:

    offset  bytes  content (integers little-endian)
    0       8      magic and format version
    8       32     the key again, so that a renamed file is not taken for another
    40      8      n, number of prompts
    48      8      number of ids of all prompts together
    56      32     sha256 of all that follows
    88      8n     ids of each prompt
    88+8n   4      each id, prompt after prompt

The cache can only save time: whatever is wrong with it, the ids are computed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

ENVIRONMENT = "SPEEDBENCH_CACHE_DIR"
MAX_BYTES = 1 << 30
"""1 GiB: the six configs of SPEED-Bench take 0.4 GB for one tokenizer."""

_MAGIC = b"SBIDS\x00\x00\x01"
_HEADER = struct.Struct("<8s32sQQ32s")
_SUFFIX = ".ids"
_ABANDONED_S = 3600.0
"""Age at which a temporary file is one whose process was killed."""


def folder_of(environ: Mapping[str, str], name: str = "token-ids") -> Path | None:
    """The folder ``name`` in SPEEDBENCH_CACHE_DIR, else in the user's cache folder; None where it is set to nothing."""
    named = environ.get(ENVIRONMENT)
    if named is None:
        import platformdirs

        named = platformdirs.user_cache_dir("pytest-speedbench")
    return Path(named).absolute() / name if named.strip() else None


class TokenCache:
    """Ids of groups of prompts under ``folder``, at most ``max_bytes`` in all; no folder, no cache.

    Several processes may use one folder at once: files appear whole, under their final name.
    """

    def __init__(self, folder: Path | None, max_bytes: int = MAX_BYTES) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    def ids(self, key: Iterable[str], count: int, compute: Callable[[], Sequence[array[int]]]) -> list[array[int]]:
        """The ids (``array("I")``) of ``count`` prompts that ``key`` stands for, from disk or from ``compute``.

        ``key`` must name everything that the ids depend on, in order. Raises only what ``compute``
        raises.
        """
        if self.folder is None:
            return list(compute())
        digest = _digest(key)
        path = self.folder / f"{digest.hex()}{_SUFFIX}"
        known = _load(path, digest, count)
        if known is not None:
            return known
        made = list(compute())
        if len(made) != count:
            raise AssertionError(f"{len(made)} prompts were encoded of {count}")
        # A full or read-only disk costs the next run its time, and nothing else.
        with contextlib.suppress(OSError):
            self._store(path, digest, made)
        return made

    def _store(self, path: Path, digest: bytes, made: Sequence[array[int]]) -> None:
        if _HEADER.size + sum(8 + 4 * len(ids) for ids in made) > self.max_bytes:
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                _write(stream, digest, made)
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
        self._trim(path)

    def _trim(self, newest: Path) -> None:
        """Delete what was used longest ago until the rest fits, and what killed processes left."""
        kept: list[tuple[float, int, Path]] = []
        for path in newest.parent.iterdir():
            with contextlib.suppress(OSError):
                facts = path.stat()
                if path.suffix == _SUFFIX:
                    kept.append((facts.st_mtime, facts.st_size, path))
                elif path.suffix == ".tmp" and time.time() - facts.st_mtime > _ABANDONED_S:
                    path.unlink()
        total = sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):
            if total <= self.max_bytes:
                return
            if path != newest:
                with contextlib.suppress(OSError):
                    path.unlink()
                total -= size


def _digest(key: Iterable[str]) -> bytes:
    """sha256 of the parts; each with its length, so that ("ab", "c") is not ("a", "bc")."""
    digest = hashlib.sha256()
    for part in key:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(struct.pack("<Q", len(data)) + data)
    return digest.digest()


def _little_endian(numbers: array[int]) -> array[int]:
    if sys.byteorder == "little":
        return numbers
    swapped = array(numbers.typecode, numbers)
    swapped.byteswap()
    return swapped


def _write(stream: BinaryIO, digest: bytes, made: Sequence[array[int]]) -> None:
    parts = [array("Q", (len(ids) for ids in made)), *made]
    checksum = hashlib.sha256()
    for part in parts:
        checksum.update(_little_endian(part))
    total = sum(len(ids) for ids in made)
    stream.write(_HEADER.pack(_MAGIC, digest, len(made), total, checksum.digest()))
    for part in parts:
        stream.write(_little_endian(part))


def _load(path: Path, digest: bytes, count: int) -> list[array[int]] | None:
    """The ids in a file, or None. A file that is not as it was written is deleted."""
    try:
        with path.open("rb") as stream:
            found = _read(stream, digest, count)
    except OSError:
        return None
    except ValueError:  # it became shorter while it was read
        found = None
    with contextlib.suppress(OSError):
        if found is None:
            path.unlink()
        else:
            os.utime(path)  # what was used last is deleted last
    return found


def _read(stream: BinaryIO, digest: bytes, count: int) -> list[array[int]] | None:
    header = stream.read(_HEADER.size)
    if len(header) != _HEADER.size:
        return None
    magic, written_digest, written_count, total, checksum = _HEADER.unpack(header)
    if (magic, written_digest, written_count) != (_MAGIC, digest, count):
        return None
    # Before anything is read by these numbers: a damaged one could ask for more memory than there is.
    if os.fstat(stream.fileno()).st_size != _HEADER.size + 8 * count + 4 * total:
        return None
    found = hashlib.sha256()

    def numbers(typecode: str, length: int) -> array[int]:
        data = stream.read(length * array(typecode).itemsize)
        found.update(data)
        return _little_endian(array(typecode, data))

    lengths = numbers("Q", count)
    if sum(lengths) != total:
        return None
    ids = [numbers("I", length) for length in lengths]
    return ids if found.digest() == checksum else None

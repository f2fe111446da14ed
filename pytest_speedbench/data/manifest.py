"""``manifest.json``: what a dataset folder must hold, so that a damaged file is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pytest_speedbench.data.reading import read_bytes
from pytest_speedbench.errors import ConfigError

NAME = "manifest.json"
_BLOCK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Manifest:
    """The identity of a dataset folder.

    ``id`` is what a thresholds file matches, ``sha256`` and ``rows`` hold one entry per file,
    named relative to the folder.
    """

    id: str
    path: Path
    sha256: Mapping[str, str]
    rows: Mapping[str, int]

    def verify(self, path: Path) -> None:
        """Raise ConfigError unless the file at ``path`` is byte for byte what the manifest says."""
        expected = self.sha256.get(self._name(path))
        if expected is None:
            listed = ", ".join(self.sha256) or "none"
            raise ConfigError(f"{path}: not listed in {NAME} (which lists {listed}); remove the file or list it")
        found = sha256_of(path)
        if found != expected:
            raise ConfigError(
                f"{path}: not the file of {self.id}: sha256 {found}, but {NAME} says {expected}; "
                "install or copy the dataset again"
            )

    def verify_rows(self, path: Path, found: int) -> None:
        """Raise ConfigError unless the file at ``path`` has as many rows as the manifest says."""
        expected = self.rows[self._name(path)]
        if found != expected:
            raise ConfigError(f"{path}: {found} rows, but {NAME} says {expected}")

    def _name(self, path: Path) -> str:
        return path.relative_to(self.path.parent).as_posix()


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of ``folder``, or None where there is none.

    Raises ConfigError when it is there and is not ``{id, files: {name: {sha256, rows}}}``, or when it
    lists a file that is missing.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        raw = json.loads(read_bytes(path))
        files = {str(name): (_text(entry["sha256"]), _count(entry["rows"])) for name, entry in raw["files"].items()}
        manifest = Manifest(
            id=_text(raw["id"]),
            path=path,
            sha256={name: sha256 for name, (sha256, _) in files.items()},
            rows={name: rows for name, (_, rows) in files.items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # ValueError covers broken JSON and broken UTF-8.
        raise ConfigError(
            f"{path}: not a dataset manifest of the form {{id, files: {{name: {{sha256, rows}}}}}} "
            f"({type(error).__name__}: {error})"
        ) from None
    outside = [
        name for name in manifest.sha256 if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts
    ]
    if outside:
        raise ConfigError(f"{path}: lists {', '.join(outside)}, which lies outside the folder")
    try:
        missing = [name for name in manifest.sha256 if not (folder / name).is_file()]
    except (OSError, ValueError) as error:
        # A name too long for the file system, or with a NUL.
        raise ConfigError(f"{path}: lists a file that cannot be there ({error})") from None
    if missing:
        raise ConfigError(f"{path}: lists {', '.join(missing)}, which the folder does not have")
    return manifest


def sha256_of(path: Path) -> str:
    """sha256 of a file, in hex digits. Raises ConfigError where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"expected a text, found {value!r}")
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"expected a number of rows, found {value!r}")
    return value

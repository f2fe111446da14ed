"""Loading each thresholds file by itself, so that one that is broken does not hide the others' faults."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates.limits import ThresholdsFile
from pytest_speedbench.gates.thresholds import load
from pytest_speedbench.lint.findings import Finding


def load_each(paths: Sequence[Path], today: dt.date) -> tuple[list[ThresholdsFile], list[Finding]]:
    """The files that load, and why the others do not. Raises ConfigError for a path that is not there."""
    files: list[ThresholdsFile] = []
    findings: list[Finding] = []
    for path in dict.fromkeys(file for given in paths for file in _files(given)):
        try:
            files += load(path, today=today)
        except ConfigError as error:
            findings.append(Finding.of_error("load", error, path.as_posix()))
    return files, findings


def _files(path: Path) -> list[Path]:
    """The file, or those below a folder that a run would load."""
    if not path.is_dir():
        if not path.exists():
            raise ConfigError(f"{path.as_posix()}: no such thresholds file or folder")
        return [path]
    found = sorted(
        file
        for file in path.rglob("*.y*ml")
        if file.suffix in (".yaml", ".yml") and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not found:
        raise ConfigError(f"{path.as_posix()}: the folder has no *.yaml or *.yml file")
    return found

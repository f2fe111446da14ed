"""Loading each thresholds file by itself, so that one that is broken does not hide the others' faults."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates.limits import ThresholdsFile
from pytest_speedbench.gates.thresholds import files_of, load
from pytest_speedbench.lint.findings import Finding


def load_each(paths: Sequence[Path], today: dt.date) -> tuple[list[ThresholdsFile], list[Finding]]:
    """The files that load, and why the others do not. Raises ConfigError for a path that is not there."""
    files: list[ThresholdsFile] = []
    findings: list[Finding] = []
    for path in dict.fromkeys(file for given in paths for file in files_of(given)):
        try:
            files += load(path, today=today)
        except ConfigError as error:
            findings.append(Finding.of_error("load", error, path.as_posix()))
    return files, findings

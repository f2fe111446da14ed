"""What lint found: a level, a stable code, the place and a sentence; and how it is written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from pytest_speedbench.errors import ConfigError
from pytest_speedbench.report.github import escape_message, escape_property

_PLACE = re.compile(r"(?P<file>.+?):(?P<line>\d+): (?P<message>.*)", re.DOTALL)


class Level(str, Enum):
    """How bad. GitHub calls an info a notice."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to look at. ``line`` is None for what concerns a file as a whole."""

    level: Level
    code: str
    file: str
    line: int | None
    message: str

    @classmethod
    def at(cls, level: Level, code: str, source: str, message: str) -> Finding:
        """A finding at ``source``, which is ``file:line``, or a file alone."""
        file, _, line = source.rpartition(":")
        if file and line.isdigit():
            return cls(level, code, file, int(line), message)
        return cls(level, code, source, None, message)

    @classmethod
    def of_error(cls, code: str, error: ConfigError, file: str) -> Finding:
        """An error of the loader: its message begins with ``file:line`` where it has a line."""
        match = _PLACE.fullmatch(str(error))
        if match is None:
            return cls(Level.ERROR, code, file, None, str(error).removeprefix(f"{file}: "))
        return cls(Level.ERROR, code, match["file"], int(match["line"]), match["message"])

    @property
    def place(self) -> str:
        """``file:line``, or the file."""
        return self.file if self.line is None else f"{self.file}:{self.line}"


def ordered(findings: Sequence[Finding]) -> list[Finding]:
    """By file and line, errors first within a line; what was found twice once."""
    levels = list(Level)

    def place(finding: Finding) -> tuple[str, int, int, str, str]:
        return finding.file, finding.line or 0, levels.index(finding.level), finding.code, finding.message

    return sorted(dict.fromkeys(findings), key=place)


def text(findings: Sequence[Finding]) -> Iterator[str]:
    """One line per finding, and a last one that counts them."""
    for finding in findings:
        yield f"{finding.place}: {finding.level.value}: {finding.message} [{finding.code}]"
    yield summary(findings)


def summary(findings: Sequence[Finding]) -> str:
    """``2 errors, 1 warning, 0 infos``."""
    counts = Counter(finding.level for finding in findings)
    return ", ".join(f"{counts[level]} {level.value}{'' if counts[level] == 1 else 's'}" for level in Level)


def github(findings: Sequence[Finding]) -> Iterator[str]:
    """One workflow command per finding."""
    for finding in findings:
        level = "notice" if finding.level is Level.INFO else finding.level.value
        place = {"file": finding.file, "title": f"speedbench lint: {finding.code}"}
        if finding.line is not None:
            place["line"] = str(finding.line)
        written = ",".join(f"{name}={escape_property(value)}" for name, value in place.items())
        yield f"::{level} {written}::{escape_message(finding.message)}"


def to_json(findings: Sequence[Finding]) -> list[dict[str, object]]:
    """One object per finding."""
    return [
        {"level": f.level.value, "code": f.code, "file": f.file, "line": f.line, "message": f.message} for f in findings
    ]

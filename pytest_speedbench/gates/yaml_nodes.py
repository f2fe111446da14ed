"""YAML whose every value knows its file and line, read strictly.

PyYAML's constructors drop positions, take the last of two equal keys, and turn ``010`` into 8 and
``1:30`` into 90. A limit that a release rests on is therefore read from the nodes themselves.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from pytest_speedbench.errors import ConfigError

_TAG = "tag:yaml.org,2002:"
_KINDS = {
    "str": "a string",
    "int": "a number",
    "float": "a number",
    "bool": "a truth value",
    "null": "nothing",
    "timestamp": "a date",
    "map": "a mapping",
    "seq": "a list",
}
_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d*)?([eE][+-]?\d+)?")
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")


@dataclass(frozen=True, slots=True)
class Value:
    """One YAML value: what it is called (``gates[2].cell.isl``), and where it stands."""

    node: yaml.Node
    path: str
    name: str
    line: int

    @property
    def source(self) -> str:
        """``file:line``."""
        return f"{self.path}:{self.line}"

    @property
    def kind(self) -> str:
        """What the file has here, in words."""
        tag = self.node.tag.removeprefix(_TAG)
        return _KINDS.get(tag, f"a value with the tag {self.node.tag}")

    def error(self, message: str) -> ConfigError:
        """The error to raise about this value."""
        return ConfigError(f"{self.source}: {message}")

    def wrong_kind(self, wanted: str) -> ConfigError:
        """The error for a value of another type than ``wanted``."""
        text = f" ({self.node.value})" if isinstance(self.node, yaml.ScalarNode) and self.node.value else ""
        return self.error(f"{self.name} must be {wanted}, but is {self.kind}{text}")

    def mapping(self, allowed: Sequence[str] | None = None, required: Sequence[str] = ()) -> dict[str, Value]:
        """The entries by key, in file order. ``allowed=None`` leaves the check of keys to the caller."""
        if not isinstance(self.node, yaml.MappingNode) or self.node.tag != _TAG + "map":
            raise self.wrong_kind("a mapping")
        entries: dict[str, Value] = {}
        for key, node in self.node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{self.path}:{line}: a key of {self.name} must be a plain word")
            entry = Value(node, self.path, self._child(key.value), line)
            if key.value in entries:
                raise entry.error(f"{entry.name} is given twice, first in line {entries[key.value].line}")
            if allowed is not None and key.value not in allowed:
                raise entry.error(f"unknown key {key.value!r} in {self.name}; choose from {', '.join(allowed)}")
            entries[key.value] = entry
        for name in required:
            if name not in entries:
                raise self.error(f"{self.name} has no {name!r}")
        return entries

    def _child(self, key: str) -> str:
        return key if self.name == _TOP else f"{self.name}.{key}"

    def items(self) -> list[Value]:
        """The entries of a list."""
        if not isinstance(self.node, yaml.SequenceNode) or self.node.tag != _TAG + "seq":
            raise self.wrong_kind("a list")
        return [
            Value(node, self.path, f"{self.name}[{i}]", node.start_mark.line + 1)
            for i, node in enumerate(self.node.value)
        ]

    def text(self) -> str:
        """A string that is not empty. Numbers and dates must be quoted to be one."""
        if not isinstance(self.node, yaml.ScalarNode) or self.node.tag != _TAG + "str":
            raise self.wrong_kind("a string")
        if not self.node.value.strip():
            raise self.error(f"{self.name} is empty")
        return str(self.node.value)

    def choice(self, choices: Sequence[str]) -> str:
        """A string out of ``choices``."""
        text = self.text()
        if text not in choices:
            raise self.error(f"unknown {self.name} {text!r}; choose from {', '.join(choices)}")
        return text

    def number(self) -> float:
        """A finite decimal number."""
        plain = isinstance(self.node, yaml.ScalarNode) and self.node.style is None
        if not plain or not _NUMBER.fullmatch(self.node.value):
            raise self.wrong_kind("a finite decimal number")
        number = float(self.node.value)
        if not math.isfinite(number):
            raise self.wrong_kind("a finite decimal number")
        return number

    def not_negative(self) -> float:
        """A number that is 0 or more."""
        number = self.number()
        if number < 0:
            raise self.error(f"{self.name} must not be negative, but is {self.node.value}")
        return number

    def positive(self) -> float:
        """A number above 0."""
        number = self.number()
        if number <= 0:
            raise self.error(f"{self.name} must be above 0, but is {self.node.value}")
        return number

    def count(self, minimum: int = 1) -> int:
        """A whole number of at least ``minimum``."""
        plain = isinstance(self.node, yaml.ScalarNode) and self.node.style is None
        if not plain or not re.fullmatch(r"[+-]?(0|[1-9]\d*)", self.node.value):
            raise self.wrong_kind("a whole number")
        count = int(self.node.value)
        if count < minimum:
            raise self.error(f"{self.name} must be at least {minimum}, but is {count}")
        return count

    def truth(self) -> bool:
        """``true`` or ``false``; YAML's other words for them (``yes``, ``off``) are not taken."""
        plain = isinstance(self.node, yaml.ScalarNode) and self.node.style is None
        if not plain or self.node.value not in ("true", "false"):
            raise self.wrong_kind("true or false")
        return bool(self.node.value == "true")

    def share(self) -> float:
        """A fraction strictly between 0 and 1, written ``0.04`` or ``4%``."""
        text = self.node.value if isinstance(self.node, yaml.ScalarNode) else ""
        percent = _PERCENT.fullmatch(text)
        share = float(percent.group(1)) / 100 if percent else self.number()
        if not 0 < share < 1:
            raise self.error(f"{self.name} must lie between 0 and 1 (0.04 or 4%), but is {text}")
        return share

    def date(self) -> dt.date:
        """A calendar date, quoted or not."""
        if not isinstance(self.node, yaml.ScalarNode) or self.node.tag not in (_TAG + "timestamp", _TAG + "str"):
            raise self.wrong_kind("a date such as 2026-12-01")
        try:
            # Python 3.11 and later also read 20261201 and week dates; a thresholds file has one form.
            if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", self.node.value):
                raise ValueError
            return dt.date.fromisoformat(self.node.value)
        except ValueError:
            raise self.error(f"{self.name} must be a date such as 2026-12-01, but is {self.node.value!r}") from None


_TOP = "the file"


def read(path: Path) -> Value:
    """The top value of a YAML file with one document.

    Raises ConfigError, with the line, for a file that cannot be read or is not YAML.
    """
    name = path.as_posix()
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror or error}") from None
    try:
        node = yaml.compose(raw.decode("utf-8-sig"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{name}:{line}: not UTF-8 text") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ConfigError(f"{name}:{line}: not valid YAML: {_problem(error)}") from None
    except yaml.reader.ReaderError as error:
        line = raw.decode("utf-8-sig").count("\n", 0, error.position) + 1
        raise ConfigError(f"{name}:{line}: not valid YAML: a control character") from None
    except RecursionError:
        raise ConfigError(f"{name}:1: not a thresholds file: nested too deeply") from None
    if node is None:
        raise ConfigError(f"{name}:1: the file is empty")
    return Value(node, name, _TOP, node.start_mark.line + 1)


def _problem(error: yaml.MarkedYAMLError) -> str:
    problem = str(error.problem or error.context or "syntax error")
    return f"{problem}; indent with spaces, not tabs" if r"\t" in problem else problem

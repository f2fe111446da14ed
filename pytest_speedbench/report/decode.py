"""Reading stored JSON with types checked: every surprise is a ConfigError that names the place."""

from __future__ import annotations

import math
from typing import TypeVar

from pytest_speedbench.errors import ConfigError

T = TypeVar("T")


class Fields:
    """A JSON object at a place such as ``cells[3].gates[0]``, read field by field."""

    def __init__(self, data: object, where: str) -> None:
        if not isinstance(data, dict):
            raise ConfigError(f"{where}: expected an object, found {_kind(data)}")
        self.data: dict[str, object] = data
        self.where = where

    def _get(self, name: str, *types: type) -> object:
        if name not in self.data:
            raise ConfigError(f"{self.where}: field {name!r} is missing")
        value = self.data[name]
        # bool is an int to Python, not to JSON.
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ConfigError(f"{self.where}.{name}: unexpected {_kind(value)}")
        return value

    def _typed(self, name: str, kind: type[T]) -> T:
        value = self._get(name, kind)
        assert isinstance(value, kind)
        return value

    def has(self, name: str) -> bool:
        """Whether a field is there, for those that artifacts of earlier versions lack."""
        return name in self.data

    def text(self, name: str) -> str:
        """A string."""
        return self._typed(name, str)

    def optional_text(self, name: str) -> str | None:
        """A string or null."""
        return None if self._null(name) else self.text(name)

    def integer(self, name: str) -> int:
        """An integer."""
        return self._typed(name, int)

    def optional_integer(self, name: str) -> int | None:
        """An integer or null."""
        return None if self._null(name) else self.integer(name)

    def flag(self, name: str) -> bool:
        """True or false."""
        return self._typed(name, bool)

    def number(self, name: str) -> float:
        """A number; null stands for a value that is not a finite number and reads as NaN."""
        value = self.optional_number(name)
        return math.nan if value is None else value

    def optional_number(self, name: str) -> float | None:
        """A number or null."""
        value = self._get(name, int, float, type(None))
        if value is None:
            return None
        assert isinstance(value, (int, float))
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{self.where}.{name}: the number is too large") from None

    def child(self, name: str) -> Fields:
        """A nested object."""
        return Fields(self._get(name, dict), f"{self.where}.{name}")

    def optional_child(self, name: str) -> Fields | None:
        """A nested object or null."""
        return None if self._null(name) else self.child(name)

    def array(self, name: str) -> list[object]:
        """An array of anything."""
        return list(self._typed(name, list))

    def children(self, name: str) -> list[Fields]:
        """An array of objects."""
        return [Fields(item, f"{self.where}.{name}[{i}]") for i, item in enumerate(self.array(name))]

    def texts(self, name: str) -> tuple[str, ...]:
        """An array of strings."""
        return self._items(name, str)

    def integers(self, name: str) -> tuple[int, ...]:
        """An array of integers."""
        return self._items(name, int)

    def numbers(self, name: str) -> tuple[float, ...]:
        """An array of numbers."""
        items = self.array(name)
        return tuple(Fields({"": item}, f"{self.where}.{name}[{i}]").number("") for i, item in enumerate(items))

    def numbers_by_length(self, name: str) -> dict[int, float]:
        """An object whose keys are step lengths."""
        child = self.child(name)
        return {child.key(key): child.number(key) for key in child.data}

    def counts_by_length(self, name: str) -> dict[int, int]:
        """An object whose keys are step lengths and whose values are counts."""
        child = self.child(name)
        return {child.key(key): child.integer(key) for key in child.data}

    def key(self, name: str) -> int:
        """A key that is a whole number in words."""
        if not name.isascii() or not name.isdigit():
            raise ConfigError(f"{self.where}: key {name!r} is not a number")
        return int(name)

    def _items(self, name: str, kind: type[T]) -> tuple[T, ...]:
        items = self.array(name)
        found = tuple(item for item in items if isinstance(item, kind) and not (kind is int and isinstance(item, bool)))
        if len(found) != len(items):
            raise ConfigError(f"{self.where}.{name}: expected only {kind.__name__} items")
        return found

    def _null(self, name: str) -> bool:
        if name not in self.data:
            raise ConfigError(f"{self.where}: field {name!r} is missing")
        return self.data[name] is None


def _kind(value: object) -> str:
    if value is None:
        return "null"
    return {"dict": "object", "list": "array", "str": "string", "bool": "boolean"}.get(
        type(value).__name__, type(value).__name__
    )

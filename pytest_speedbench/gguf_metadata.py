"""What a .gguf file says of its model, without its tensors.

GGUF (versions 2 and 3, little-endian): ``GGUF``, version (u32), number of tensors (u64), number of
keys (u64), and the keys. A key is a string, the type of its value (u32) and the value. A string is its
length (u64) and UTF-8; an array is the type of its elements (u32), their number (u64), and they.

The package gguf reads the same, and takes ten seconds for a vocabulary of 128,000 tokens.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def read(path: Path) -> dict[str, Any]:
    """Values by key. Raises OSError, or ValueError that says what is wrong with the file."""
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _Cursor(data).metadata()
            except struct.error:
                raise ValueError("it ends within its metadata") from None


class _Cursor:
    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, len(b"GGUF")

    def metadata(self) -> dict[str, Any]:
        version = self._number("I")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}; 2 and 3 are supported, little-endian")
        self._number("Q")
        return {self._string(): self._value(self._number("I")) for _ in range(self._number("Q"))}

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            element, length = self._number("I"), self._number("Q")
            if element == _STRING:
                return [self._string() for _ in range(length)]
            return list(self._numbers(self._code(element), length))
        return self._number(self._code(kind))

    def _code(self, kind: int) -> str:
        if kind not in _NUMBERS:
            raise ValueError(f"it has a value of the unknown type {kind}")
        return _NUMBERS[kind]

    def _number(self, code: str) -> Any:
        return self._numbers(code, 1)[0]

    def _numbers(self, code: str, length: int) -> tuple[Any, ...]:
        size = struct.calcsize(f"<{code}") * length
        if size > len(self._data) - self._at:
            raise struct.error
        self._at += size
        return struct.unpack_from(f"<{length}{code}", self._data, self._at - size)

    def _string(self) -> str:
        (length,) = struct.unpack_from("<Q", self._data, self._at)
        begin = self._at + 8
        end = begin + length
        if end > len(self._data):
            raise struct.error
        self._at = end
        return self._data[begin:end].decode("utf-8")

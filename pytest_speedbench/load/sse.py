"""Server-sent events from bytes, incrementally."""

from __future__ import annotations

from collections.abc import Iterator


class EventParser:
    """Splits a byte stream into the data payloads of its events.

    Handles ``\\n`` and ``\\r\\n`` line ends, comment lines, other fields, several ``data:`` lines
    per event, and chunks that end anywhere, also inside a UTF-8 sequence.
    """

    def __init__(self) -> None:
        self._buffer = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the payload of each event that ``chunk`` completes."""
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if not line:
                if self._data:
                    yield b"\n".join(self._data)
                    self._data = []
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))

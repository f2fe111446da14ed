"""Server-sent events from bytes, incrementally."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_speedbench.errors import RequestError

MAX_EVENT_BYTES = 32 << 20
"""The largest known event repeats the ids of the prompt: 8 MB for a context of a million tokens."""


class EventParser:
    """Splits a byte stream into the data payloads of its events.

    Handles ``\\n`` and ``\\r\\n`` line ends, comment lines, other fields, several ``data:`` lines
    per event, and chunks that end anywhere, also inside a UTF-8 sequence. Never holds more than
    ``limit`` bytes: an event, or a stretch without one, that is longer is RequestError (``event_too_long``).
    """

    def __init__(self, limit: int = MAX_EVENT_BYTES) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._data: list[bytes] = []
        self._since = 0

    def feed(self, chunk: bytes) -> Sequence[bytes]:
        """The payload of each event that ``chunk`` completes."""
        if (
            chunk.find(b"\n") == len(chunk) - 2
            and chunk.endswith(b"\n")
            and chunk.startswith(b"data: ")
            and not (self._parts or self._data)
        ):
            # As almost always: one event.
            self._since = 0
            return (chunk[6:-2].removesuffix(b"\r"),)
        self._since += len(chunk)
        events: list[bytes] = []
        *lines, rest = chunk.split(b"\n")
        if lines and self._parts:
            # Joined once per line: adding every chunk to the rest would take quadratic time.
            lines[0] = b"".join((*self._parts, lines[0]))
            self._parts = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if not line:
                if self._data:
                    events.append(b"\n".join(self._data))
                    self._data, self._since = [], len(rest)
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
        if rest:
            self._parts.append(rest)
        if self._since > self._limit:
            raise RequestError("event_too_long", f"{self._since} bytes without the end of an event")
        return events

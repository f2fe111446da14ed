"""Whether a window can carry a verdict at all: completeness, counters, invariants."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a cell is INVALID: a stable code and a sentence with the numbers."""

    code: str
    message: str

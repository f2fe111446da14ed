"""Lengths of prompts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lengths:
    """Least, mean and greatest of some numbers of tokens."""

    min: int
    mean: float
    max: int

    @classmethod
    def of(cls, lengths: Collection[int]) -> Lengths:
        """Over at least one length."""
        return cls(min(lengths), sum(lengths) / len(lengths), max(lengths))

    def __str__(self) -> str:
        return f"{self.min}/{self.mean:.0f}/{self.max}"

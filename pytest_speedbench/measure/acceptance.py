"""Acceptance of drafts: lengths per step, conditional and joint rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Step lengths pooled over a cell; keys are lengths and include the bonus token."""

    histogram: Mapping[int, int]
    conditional: Mapping[int, float]
    joint: Mapping[int, float]
    unresolved_steps: int = 0

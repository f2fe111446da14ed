"""The verdict on one gate: pure functions from a value, a limit and a noise model."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(str, Enum):
    """The four answers of a gate."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    INVALID = "INVALID"


@dataclass(frozen=True, slots=True)
class GateResult:
    """One metric of one cell compared with one limit.

    ``headroom`` is (value - limit) / limit, sign-corrected for ceilings, so positive is good.
    ``guard`` is the relative half-width t*sigma that separates PASS from the limit. The two minimum
    detectable effects are relative drops: not passed, and failed, with 80 % power.
    ``source`` is ``file:line`` of the limit.
    """

    metric: str
    verdict: Verdict
    value: float
    limit: float
    ceiling: bool
    reference: float | None
    margin: float | None
    sigma: float
    guard: float
    headroom: float
    mde_not_passed: float | None
    mde_failed: float | None
    source: str
    reason: str | None = None
    note: str = ""
    evidence: str = ""
    """One line on where the reference comes from, e.g. ``6 starts × 2 repeats on 2026-12-01``."""
    conditional_reference: tuple[float, ...] = ()
    """Conditional acceptance per draft position at calibration, where the file has it."""

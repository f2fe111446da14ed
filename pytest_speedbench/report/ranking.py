"""Which cell and which gate come first, and what a whole run amounts to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from pytest_speedbench.gates.verdict import GateResult, Verdict
from pytest_speedbench.results import CellResult

UNGATED = "UNGATED"
WAIVED = "WAIVED"
_ORDER = (Verdict.INVALID, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS, None)


def verdict_word(result: CellResult) -> str:
    """``PASS`` … ``INVALID``, ``UNGATED`` for a cell that was measured only, ``WAIVED`` where a waiver covers it."""
    if result.is_waived:
        return WAIVED
    return UNGATED if result.verdict is None else result.verdict.value


def deciding_gate(result: CellResult) -> GateResult | None:
    """The gate that the verdict hangs on: the worst verdict that is not waived, then the least headroom."""

    def rank(gate: GateResult) -> tuple[bool, bool, int, float]:
        passed = gate.verdict is Verdict.PASS
        return passed, gate.waived, _ORDER.index(gate.verdict), _finite(gate.headroom, -math.inf)

    return min(result.gates, key=rank, default=None)


def worst_first(results: Iterable[CellResult]) -> list[CellResult]:
    """INVALID, FAIL and INCONCLUSIVE on top, then the least headroom; equals keep their order."""
    return sorted(results, key=_badness)


def by_profile(results: Iterable[CellResult]) -> dict[str, list[CellResult]]:
    """Results per engine profile, profiles in order of first appearance."""
    groups: dict[str, list[CellResult]] = {}
    for result in results:
        groups.setdefault(result.profile, []).append(result)
    return groups


def outcome(results: Sequence[CellResult]) -> str:
    """One word for a workflow: ``fail`` (a regression), ``invalid`` (a broken rig), ``inconclusive``, ``pass``.

    A proven regression outranks a broken cell beside it. Nothing measured is ``invalid``, and a run
    that only measured is ``ungated``: neither may look like a pass. What is waived decides nothing, and is
    ``inconclusive`` where there is nothing else.
    """
    verdicts = {result.verdict for result in results if not result.is_waived}
    for verdict in (Verdict.FAIL, Verdict.INVALID, Verdict.INCONCLUSIVE, Verdict.PASS):
        if verdict in verdicts:
            return str(verdict.value).lower()
    if any(result.is_waived for result in results):
        return "inconclusive"
    return "ungated" if results else "invalid"


def _badness(result: CellResult) -> tuple[int, float]:
    gate = deciding_gate(result)
    return _ORDER.index(result.verdict), _finite(gate.headroom, -math.inf) if gate else 0.0


def _finite(value: float, otherwise: float) -> float:
    return value if math.isfinite(value) else otherwise

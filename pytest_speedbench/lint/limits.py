"""What a limit says of itself: its slack, the age of its evidence, whether it can be reached at all."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pytest_speedbench.cells import DEFAULT_CONCURRENCY, OVERALL, Cell
from pytest_speedbench.gates.limits import Gate, Limit, ThresholdsFile
from pytest_speedbench.gates.selection import gates_for, planned_cells
from pytest_speedbench.gates.verdict import UNREACHABLE, allocate, judge
from pytest_speedbench.lint.findings import Finding, Level
from pytest_speedbench.measure.metrics import METRICS

SLACK_SIGMAS = 3.0
"""How far beyond what margin and noise need a limit may lie."""
_ROUNDING = 1e-5
"""Limits and references are written with six digits."""
MIN_ALPHA = 1e-4
"""With less than this for a gate, only a value far beyond its limit is still a FAIL."""
WAIVER_NOTICE_DAYS = 14


@dataclass(frozen=True, slots=True)
class Policy:
    """What lint holds limits to. Ages are in days; ``starts`` and ``repeats`` are those of the runs to be judged."""

    today: dt.date
    warn_age: int = 90
    max_age: int = 365
    starts: int = 1
    repeats: int = 1


def check(file: ThresholdsFile, points: Sequence[Cell], policy: Policy) -> Iterator[Finding]:
    """Everything that can be said of the limits of one file by themselves."""
    for gate in file.gates:
        for limit in gate.limits:
            if limit.evidence is not None:
                yield from _age(limit, policy)
                yield from _noise(file, gate, limit, policy)
    yield from _hand_written(file)
    yield from _alpha(file, points, DEFAULT_CONCURRENCY)
    yield from _waivers(file, policy)


def _age(limit: Limit, policy: Policy) -> Iterator[Finding]:
    assert limit.evidence is not None
    days = (policy.today - limit.evidence.date).days
    level = Level.ERROR if days > policy.max_age else Level.WARNING if days > policy.warn_age else None
    if level is not None:
        yield Finding.at(
            level,
            "age",
            limit.source,
            f"the evidence of {limit.metric} is {days} days old ({limit.evidence.date}; warning from "
            f"{policy.warn_age}, error from {policy.max_age}); calibrate again",
        )


def _noise(file: ThresholdsFile, gate: Gate, limit: Limit, policy: Policy) -> Iterator[Finding]:
    """A margin that noise swallows, or one far wider than noise and policy ask for."""
    evidence, reference, margin = limit.evidence, limit.reference, limit.margin
    assert evidence is not None
    assert reference is not None
    assert margin is not None
    result = judge(
        limit.metric,
        reference,
        limit,
        alpha=file.family.alpha,
        beta=file.family.beta,
        starts=policy.starts,
        repeats=policy.repeats,
        prompts=evidence.prompts,
    )
    if result.reason == "unreachable":
        yield Finding.at(
            Level.ERROR, "unreachable", limit.source, f"{limit.metric} would be INVALID in every run: {result.note}"
        )
        return
    spec = METRICS[limit.metric]
    policy_margin = spec.overall_margin if gate.cell.category == OVERALL else spec.margin
    need = max(policy_margin, UNREACHABLE * result.sigma)
    extreme = evidence.highest if limit.ceiling else evidence.lowest
    start, what = (reference, "reference") if extreme is None else (extreme, "worst run of the calibration")
    distance = abs(start - limit.value) / reference
    if distance > need + SLACK_SIGMAS * result.sigma + _ROUNDING:
        yield Finding.at(
            Level.WARNING,
            "slack",
            limit.source,
            f"{limit.metric} {limit.value:g} lies {_percent(distance)} from the {what} {start:g}, and lets that much "
            f"through; {_percent(need)} would do (policy {_percent(policy_margin)}, {UNREACHABLE:g} × noise σ "
            f"{_percent(result.sigma)})",
        )


def _hand_written(file: ThresholdsFile) -> Iterator[Finding]:
    limits = [limit for gate in file.gates for limit in gate.limits]
    plain = [limit for limit in limits if limit.evidence is None]
    if plain:
        lines = ", ".join(limit.source.rpartition(":")[2] for limit in plain[:6]) + (" …" if len(plain) > 6 else "")
        yield Finding.at(
            Level.INFO,
            "no-evidence",
            file.path,
            f"hand-written, without evidence: {len(plain)} of {len(limits)} limits (line {lines}); their noise is "
            "assumed, `speedbench calibrate` measures it",
        )


def _alpha(
    file: ThresholdsFile, points: Sequence[Cell], default_concurrency: Mapping[str, Sequence[int]]
) -> Iterator[Finding]:
    cells = planned_cells((file,), points, default_concurrency)
    shares = [allocate(file.family, cells, cell, metrics=len(gates_for((file,), cell)))[0] for cell in cells]
    low = [share for share in shares if share < MIN_ALPHA]
    if low:
        yield Finding.at(
            Level.WARNING,
            "alpha",
            file.gates[0].source,
            f"α {file.family.alpha:g} is split over so many gates that those of {len(low)} of {len(cells)} cells have "
            f"less than {MIN_ALPHA:g} each ({min(low):.1g}): only what lies far beyond its limit FAILs; gate fewer "
            "cells in a file",
        )


def _waivers(file: ThresholdsFile, policy: Policy) -> Iterator[Finding]:
    """Waivers that end soon; a file with one that has expired does not load."""
    for waiver in file.waivers:
        left = (waiver.until - policy.today).days
        if left <= WAIVER_NOTICE_DAYS:
            yield Finding.at(
                Level.WARNING,
                "waiver",
                waiver.source,
                f"the waiver of {waiver.metric} of {waiver.cell} for {waiver.issue} ends in {left} "
                f"day{'' if left == 1 else 's'} ({waiver.until}); after that the file does not load",
            )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"

"""What may become of a limit that was there before: raising is free, lowering is explained and logged."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_speedbench.calibration.proposal import Proposal
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates.limits import Change, Limit

MAX_DRIFT = 0.03
"""A limit that is looser than its first logged value by more than this share needs to be accepted as such."""


@dataclass(frozen=True, slots=True)
class Permission:
    """What the user said about limits that become looser."""

    reason: str | None = None
    accept_drift: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """A proposal and the limit that it replaces, None for a new gate."""

    proposal: Proposal
    old: Limit | None

    @property
    def other_prompts(self) -> bool:
        """Whether the old limit was for other prompts, so that the two do not compare."""
        pinned = self.old.evidence.prompts if self.old is not None and self.old.evidence is not None else None
        return pinned is not None and not self.proposal.measured.prompts_sha256.startswith(pinned)

    @property
    def loosened(self) -> bool:
        """Whether the new limit lets more through than the old one."""
        old, new = self.old, self.proposal.limit.value
        return old is not None and old.loosened(old.value, new) and not self.other_prompts

    @property
    def drift(self) -> float:
        """How much looser, relatively, the new limit is than the first value that was logged."""
        if self.old is None or self.other_prompts:
            return 0.0
        first = self.old.first_logged or self.old.value
        sign = 1 if self.old.ceiling else -1
        return sign * (self.proposal.limit.value - first) / first


def changes(steps: Sequence[Step], permission: Permission, today: dt.date) -> list[Change | None]:
    """The entry for each limit's history, None where none is due.

    Raises ConfigError, naming all limits, where one is lowered without a reason, or has drifted too
    far without that being accepted.
    """
    lowered = [step for step in steps if step.loosened]
    if lowered and permission.reason is None:
        raise ConfigError(
            f"{len(lowered)} limit{'s' * (len(lowered) != 1)} would become looser, which needs a reason "
            f"(--reason TEXT, kept in the file):{_listed(lowered)}"
        )
    drifted = [step for step in lowered if step.drift > MAX_DRIFT]
    if drifted and not permission.accept_drift:
        raise ConfigError(
            f"{len(drifted)} limit{'s' * (len(drifted) != 1)} would be more than {MAX_DRIFT:.0%} looser than at first; "
            f"look at what became slower step by step, or accept it with --accept-drift:{_listed(drifted)}"
        )
    return [_change(step, permission, today) for step in steps]


def _change(step: Step, permission: Permission, today: dt.date) -> Change | None:
    if step.old is None or not (step.loosened or step.other_prompts):
        return None
    reason = permission.reason or "other prompts"
    # A clock that is behind does not break the order of the log.
    date = max([today, *(change.date for change in step.old.history)])
    prompts = step.proposal.evidence.prompts if step.other_prompts else None
    return Change(date, step.old.value, step.proposal.limit.value, reason, prompts)


def _listed(steps: Sequence[Step]) -> str:
    return "".join(f"\n  {_line(step)}" for step in steps)


def _line(step: Step) -> str:
    assert step.old is not None
    old, new = step.old.value, step.proposal.limit.value
    first = step.old.first_logged
    since = f", {abs(first - new) / first:.1%} since {first:g}" if first is not None else ""
    return f"{step.old.source}: {step.proposal.name} {old:g} → {new:g} ({abs(new - old) / old:.1%}{since})"

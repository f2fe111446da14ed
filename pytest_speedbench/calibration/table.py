"""What calibration found, for a person: each gate with its noise and what it will detect."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pytest_speedbench.calibration.proposal import Proposal, needed_repeats
from pytest_speedbench.calibration.ratchet import Step
from pytest_speedbench.columns import aligned
from pytest_speedbench.gates.limits import ThresholdsFile
from pytest_speedbench.gates.selection import AssignedLimit, assigned
from pytest_speedbench.gates.verdict import Verdict
from pytest_speedbench.measure.metrics import METRICS
from pytest_speedbench.report.wording import percent, quantity, short_name

_HEAD = (
    "gate",
    "reference",
    "limit",
    "was",
    "margin",
    "σ start",
    "σ repeat",
    "df",
    "guard",
    "not passed at",
    "failed at",
)


def lines(file: ThresholdsFile, steps: Sequence[Step]) -> Iterator[str]:
    """The table of all calibrated gates of ``file``, the file as it was written."""
    rates = [_rates(file, step.proposal, [other.proposal for other in steps]) for step in steps]
    yield from aligned([_HEAD, *(_row(step, own) for step, own in zip(steps, rates, strict=True))])
    yield (
        "σ: relative, of one run; df: its degrees of freedom in a run of one engine start; guard: how far above the "
        "limit a value must be to pass. A drop (rise, for times) of the last two columns is not passed, or failed, "
        "with 80 % power."
    )
    yield from _warnings(steps, rates)


def _rates(file: ThresholdsFile, proposal: Proposal, every: Sequence[Proposal]) -> AssignedLimit:
    points = tuple(dict.fromkeys(other.cell for other in every))
    concurrencies = {
        split: tuple(dict.fromkeys(cell.concurrency for cell in points if cell.split == split)) or (1,)
        for split in ("qualitative", "throughput")
    }
    limits = assigned((file,), proposal.cell, points, concurrencies)
    return next(each for each in limits if each.limit.metric == proposal.limit.metric)


def _row(step: Step, rates: AssignedLimit) -> tuple[str, ...]:
    proposal, limit, evidence = step.proposal, step.proposal.limit, step.proposal.evidence
    reference = limit.reference or math.nan
    result = proposal.judged(reference, alpha=rates.alpha, beta=rates.beta)
    noise = proposal.noise
    return (
        f"{proposal.cell.id(with_concurrency=True)} {short_name(limit.metric)}",
        quantity(limit.metric, reference),
        quantity(limit.metric, limit.value),
        "new" if step.old is None else quantity(limit.metric, step.old.value),
        percent(limit.margin),
        f"{100 * evidence.sd_start / reference:.2f} %",
        f"{100 * evidence.sd_repeat / reference:.2f} %" if evidence.repeats > 1 else "–",
        "∞" if math.isinf(noise.df) else f"{noise.df:.1f}",
        percent(result.guard),
        percent(result.mde_not_passed),
        percent(result.mde_failed),
    )


def _warnings(steps: Sequence[Step], rates: Sequence[AssignedLimit]) -> Iterator[str]:
    few = {step.proposal.name: needed_repeats(step.proposal) for step in steps}
    repeats = max((number for number in few.values() if number is not None), default=1)
    if repeats > 1:
        names = ", ".join(name for name, number in few.items() if number is not None)
        yield f"run with --speedbench-repeats={repeats}: a single run is too noisy for {names}"
    same = [step.proposal.name for step in steps if step.proposal.noise.sigma == 0]
    if same:
        yield (
            f"every run gave the same value, so there is no guard band: {', '.join(same)}. These limits hold for this "
            "machine and build; another CPU or batch size may round differently, and should be among the runs"
        )
    for step, own in zip(steps, rates, strict=True):
        yield from _outside(step.proposal, own)
    for step in steps:
        if step.other_prompts and step.old is not None and step.old.evidence is not None:
            yield (
                f"{step.proposal.name}: other prompts than before ({step.old.evidence.prompts} → "
                f"{step.proposal.evidence.prompts}), so this is a new reference"
            )


def _outside(proposal: Proposal, rates: AssignedLimit) -> Iterator[str]:
    """Engine starts that would not have passed by themselves."""
    spec = METRICS[proposal.limit.metric]
    table = proposal.measured.tables[proposal.limit.measured_as]
    for name, row in zip(proposal.measured.starts, table, strict=True):
        mean = math.exp(math.fsum(map(math.log, row)) / len(row)) if spec.log_scale else math.fsum(row) / len(row)
        verdict = proposal.judged(mean, alpha=rates.alpha, beta=rates.beta).verdict
        if verdict is not Verdict.PASS:
            yield (
                f"{proposal.name}: {name} ({quantity(spec.name, mean)}) would be {verdict.value} by itself; "
                "look at that run before you trust this limit"
            )

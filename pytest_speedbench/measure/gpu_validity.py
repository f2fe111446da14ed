"""Whether the GPUs let a run carry a verdict: rules over what was sampled while it was measured.

``problems`` holds for every metric, ``timing_problem`` for rates and latencies only: a slow card accepts the same
drafts. What the driver does not tell, or what is normal for a card at its load, is in ``notes`` and voids
nothing.

Where the rules come from:

- A clock that lies more than 7 % below its reference in three samples in a row: TensorRT-LLM's performance tests
  (``validate_gpu_monitoring_data(deviation_perc=0.07, num_entries=3)``).
- Thermal slowdown, hardware slowdown and power brake: NVML's own words for a card that cannot do what it is
  asked (nvml.h, ``nvmlClocksEventReasons``).
- The software power cap at the card's own limit is no breach. L4, A10 and T4 meet it at every load, H100 in
  prefill: it is what the card does, and what a limit was calibrated with. Below that limit someone has lowered
  it, and the card is another one.
- There is no general reference for clocks. GeForce cards never reach the maximum that NVML names, and whether clocks
  are locked is not told everywhere. So where no application clock is set, a fall without a stated cause is seen
  against the clock that the card itself held in the same window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import TypeVar

from pytest_speedbench.measure.checks import Reason
from pytest_speedbench.measure.gpu_record import (
    Card,
    ClockEvent,
    GpuErrors,
    GpuProcess,
    GpuSample,
    GpuWindow,
    Spread,
)

MAX_FALL = 0.07
"""How far a clock may lie below its reference (TensorRT-LLM)."""
MIN_RUN = 3
"""Samples in a row that make a breach (TensorRT-LLM): clocks and utilisation are not read at the same instant."""
BUSY = 0.5
"""Utilisation from which a low clock means something; the driver lowers the clocks of a card with little to do."""
FOREIGN_BYTES = 256 * 2**20
"""Half of a bare CUDA context (518 MiB on an H100, driver 580): who holds more can start kernels."""
HIDDEN_BYTES = 2 * 2**30
"""More than this without an owner is another program's: the driver's own is 489 MiB on an H100 (driver 580)."""
LIMIT_ROUNDING = 0.01
SLOWDOWNS = (ClockEvent.HW_THERMAL, ClockEvent.HW_POWER_BRAKE, ClockEvent.SW_THERMAL, ClockEvent.HW_SLOWDOWN)
"""The most telling first: the last is set beside either of the first two."""
_NO_CAUSE = ClockEvent.SYNC_BOOST | ClockEvent.APPLICATION_CLOCKS
"""What explains no fall: the one passes on what slows another card, the other a setting, changed under the run."""
_GIB = 2**30
_NAMED = 3

T = TypeVar("T", int, float)


# From samples to what is kept


def summarise(
    samples: Sequence[GpuSample],
    card: Card,
    errors: GpuErrors = GpuErrors(),  # noqa: B008 (frozen)
    refused: Mapping[str, str] | None = None,
) -> GpuWindow:
    """One GPU over one window, from its ``samples`` in order."""
    working = [sample for sample in samples if _works(sample)]
    causes = _slowed(samples, card)
    start, length = _longest_run(causes)
    during = [s.sm_mhz for s in samples[start : start + length] if s.sm_mhz is not None]
    told = [sample.events for sample in samples if sample.events is not None]
    foreign, hidden = _others(samples)
    return GpuWindow(
        card=card,
        seconds=samples[-1].at_s - samples[0].at_s if samples else 0.0,
        samples=len(samples),
        working=len(working),
        sm_mhz=_spread(sample.sm_mhz for sample in working),
        memory_mhz=_spread(sample.memory_mhz for sample in working),
        events={_name(event): sum(event in each for each in told) / len(told) for event in _seen(told)}
        if told
        else None,
        reference_mhz=_reference(samples, card),
        slowed=dict(Counter(cause for cause in causes if cause is not None)),
        slowed_run=length,
        slowed_mhz=median(during) if during else None,
        power_w=_over(fmean, (sample.power_w for sample in samples)),
        power_limit_w=_over(min, (sample.power_limit_w for sample in samples)),
        temperature_c=_over(max, (sample.temperature_c for sample in samples)),
        utilisation=_over(fmean, (sample.utilisation for sample in samples)),
        memory_used_bytes=_over(max, (sample.memory_used_bytes for sample in samples)),
        foreign=foreign,
        hidden_bytes=hidden,
        errors=errors,
        refused=dict(refused or {}),
    )


def _works(sample: GpuSample) -> bool:
    """Whether it may be doing something; before the traffic it is not."""
    idle = sample.events is not None and ClockEvent.IDLE in sample.events
    return not idle and (sample.utilisation is None or sample.utilisation > 0)


def _busy(sample: GpuSample) -> bool:
    """Whether it surely has enough to do for its clocks to be high."""
    return _works(sample) and sample.utilisation is not None and sample.utilisation >= BUSY


def _slowed(samples: Sequence[GpuSample], card: Card) -> list[str | None]:
    """What slowed the card at each sample."""
    reference = _reference(samples, card)
    return [_cause(sample, card, reference) for sample in samples]


def _cause(sample: GpuSample, card: Card, reference: int | None) -> str | None:
    events = sample.events
    if events is None or not _works(sample):
        return None
    for slowdown in SLOWDOWNS:
        if slowdown in events:
            return _name(slowdown)
    if not _busy(sample):
        return None
    if ClockEvent.SW_POWER_CAP in events:
        lowered = _lowered(sample.power_limit_w, card)
        expected = reference if card.sm_max_mhz is None else card.sm_application_mhz or card.sm_max_mhz
        return "lowered_power_limit" if lowered and _fell(sample, expected) else None
    return "clock_fell" if not events & ~_NO_CAUSE and _fell(sample, reference) else None


def _lowered(limit_w: float | None, card: Card) -> bool:
    """Whether a power limit is below the card's own."""
    default = card.power_default_w
    return limit_w is not None and default is not None and limit_w < default * (1 - LIMIT_ROUNDING)


def _fell(sample: GpuSample, reference: int | None) -> bool:
    return sample.sm_mhz is not None and reference is not None and sample.sm_mhz < reference * (1 - MAX_FALL)


def _reference(samples: Sequence[GpuSample], card: Card) -> int | None:
    """The SM clock to expect: one that is set, else the highest that was held for three busy samples in a row."""
    clocks = [sample.sm_mhz if _busy(sample) else None for sample in samples]
    held = [
        min(known)
        for known in (
            [clock for clock in clocks[first : first + MIN_RUN] if clock is not None]
            for first in range(len(clocks) - MIN_RUN + 1)
        )
        if len(known) == MIN_RUN
    ]
    application, most = card.sm_application_mhz, card.sm_max_mhz
    if application is not None and most is not None and application < most:
        held.append(application)
    return max(held, default=None)


def _longest_run(causes: Sequence[str | None]) -> tuple[int, int]:
    """Where the longest row of samples with a cause begins, and its length."""
    best, first = (0, 0), 0
    for position, cause in enumerate(causes):
        if cause is None:
            first = position + 1
        elif position + 1 - first > best[1]:
            best = (first, position + 1 - first)
    return best


def _others(samples: Sequence[GpuSample]) -> tuple[tuple[GpuProcess, ...] | None, int | None]:
    """The processes of others, each with the most it had, and memory without an owner; None where nothing follows."""
    shown = [sample for sample in samples if sample.processes is not None]
    every = [process for sample in shown for process in sample.processes or ()]
    # The engine has memory on the card. A list without it is that of another PID namespace, or cut.
    if not any(process.own for process in every):
        return None, None
    foreign = {
        pid: GpuProcess(
            pid,
            own=False,
            memory_bytes=_over(max, (process.memory_bytes for process in every if process.pid == pid)),
            utilisation=_over(max, (process.utilisation for process in every if process.pid == pid)),
        )
        for pid in sorted({process.pid for process in every if not process.own})
    }
    hidden = []
    for sample in shown:
        memory = [process.memory_bytes for process in sample.processes or ()]
        if sample.memory_used_bytes is not None and memory and None not in memory:
            hidden.append(max(0, sample.memory_used_bytes - sum(known for known in memory if known is not None)))
    return tuple(foreign.values()), min(hidden, default=None)


def _over(how: Callable[[list[T]], T], values: Iterable[T | None]) -> T | None:
    known = [value for value in values if value is not None]
    return how(known) if known else None


def _spread(values: Iterable[int | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return Spread(min(known), median(known), max(known)) if known else None


def _seen(told: Iterable[ClockEvent]) -> list[ClockEvent]:
    return [event for event in ClockEvent if any(event in each for each in told)]


def _name(event: ClockEvent) -> str:
    return str(event.name).lower()


# Rules


def problems(gpus: Sequence[GpuWindow]) -> tuple[Reason, ...]:
    """What keeps any verdict away: ``gpu_shared``, ``gpu_error``; at most one each, over all GPUs of a window."""
    found = {
        "gpu_shared": [line for gpu in gpus for line in _shared(gpu)],
        "gpu_error": [line for gpu in gpus for line in _errors(gpu)],
    }
    return tuple(Reason(code, _some(lines)) for code, lines in found.items() if lines)


def timing_problem(gpus: Sequence[GpuWindow]) -> Reason | None:
    """``gpu_throttled`` where a GPU was slowed, else None. For gates on rates and latencies only."""
    lines = [_throttled(gpu) for gpu in gpus if gpu.slowed_run >= MIN_RUN]
    return Reason("gpu_throttled", _some(lines)) if lines else None


def _shared(gpu: GpuWindow) -> Iterator[str]:
    for process in gpu.foreign or ():
        memory, utilisation = process.memory_bytes or 0, process.utilisation or 0
        if memory > FOREIGN_BYTES or utilisation > 0:
            had = [f"held {memory / _GIB:.1f} GiB"] if process.memory_bytes is not None else []
            had += [f"used up to {utilisation:.0%} of it"] if utilisation else []
            yield f"{_gpu(gpu)}: pid {process.pid}, which is not of the engine, {' and '.join(had)}"


def _errors(gpu: GpuWindow) -> Iterator[str]:
    ecc, xids = gpu.errors.ecc, gpu.errors.xids
    if ecc:
        yield f"{_gpu(gpu)}: {ecc} new uncorrected memory error{'' if ecc == 1 else 's'} (see nvidia-smi -q -d ECC)"
    if xids:
        numbers = ", ".join(map(str, dict.fromkeys(xids)))
        yield f"{_gpu(gpu)}: the driver reported Xid {numbers} (see dmesg)"


def _throttled(gpu: GpuWindow) -> str:
    causes = ", ".join(
        f"{_WORDS[cause]} in {number} of {gpu.samples} samples"
        for cause, number in sorted(gpu.slowed.items(), key=lambda each: (-each[1], each[0]))
    )
    text = f"{_gpu(gpu)}: {causes}"
    facts = []
    if gpu.slowed_mhz is not None:
        of = f" of {gpu.reference_mhz}" if gpu.reference_mhz is not None else ""
        facts.append(f"SM clock {gpu.slowed_mhz:.0f}{of} MHz")
    if gpu.temperature_c is not None:
        facts.append(f"up to {gpu.temperature_c} °C")
    if gpu.power_w is not None and gpu.power_limit_w is not None:
        facts.append(f"{gpu.power_w:.0f} W on average, limit {gpu.power_limit_w:.0f} W")
    return f"{text} ({', '.join(facts)})" if facts else text


_WORDS = {
    "hw_slowdown": "hardware slowdown",
    "sw_thermal": "thermal slowdown",
    "hw_thermal": "hardware thermal slowdown",
    "hw_power_brake": "power brake",
    "lowered_power_limit": "power cap below the card's own limit",
    "clock_fell": "clock below its reference without a stated cause",
}


def _gpu(gpu: GpuWindow) -> str:
    return f"GPU {gpu.card.index}"


def _some(lines: Sequence[str]) -> str:
    more = len(lines) - _NAMED
    return "; ".join(lines[:_NAMED]) + (f"; and {more} more" if more > 0 else "")


# Notes


def notes(gpus: Iterable[GpuWindow]) -> tuple[str, ...]:
    """What the user should know, or cannot be known, of these windows: one sentence per GPU and matter."""
    found: dict[tuple[str, str], list[str]] = {}
    for gpu in gpus:
        for matter, text in _notes(gpu):
            found.setdefault((gpu.card.uuid, matter), []).append(f"{_gpu(gpu)}: {text}")
    return tuple(
        texts[0] + (f" (and in {len(texts) - 1} more windows)" if len(texts) > 1 else "") for texts in found.values()
    )


def _notes(gpu: GpuWindow) -> Iterator[tuple[str, str]]:
    if gpu.foreign is None:
        yield (
            "processes",
            "the driver shows no process of the engine (as in a container with process ids of its own), so whether "
            "others used the card is not known",
        )
    for process in gpu.foreign or ():
        if process.memory_bytes is None and process.utilisation is None:
            yield "foreign", f"pid {process.pid} is not of the engine, and what it does there is not told"
    if gpu.hidden_bytes is not None and gpu.hidden_bytes > HIDDEN_BYTES:
        yield (
            "hidden",
            f"{gpu.hidden_bytes / _GIB:.1f} GiB were in use all the time that no visible process accounts for; "
            "another container may share the card",
        )
    capped = (gpu.events or {}).get("sw_power_cap", 0.0)
    if capped and gpu.sm_mhz is not None:
        limit = f" of {gpu.power_limit_w:.0f} W" if gpu.power_limit_w is not None else ""
        yield (
            "power_cap",
            f"the power limit{limit} held the clocks down in {capped:.0%} of the samples (SM clock "
            f"{gpu.sm_mhz.low:.0f} to {gpu.sm_mhz.high:.0f} MHz); rates then differ by card and temperature, and "
            "locked clocks repeat better",
        )
    most = gpu.card.sm_max_mhz
    if most is not None and gpu.reference_mhz is not None and gpu.reference_mhz < most * (1 - MAX_FALL) and not capped:
        yield "clocks", f"the SM clock was held at {gpu.reference_mhz} MHz, and the card can have {most} MHz"
    if gpu.working < MIN_RUN:
        yield "short", f"at work in {gpu.working} of {gpu.samples} samples, too few to see whether it was slowed"
    if gpu.refused:
        told = ", ".join(f"{what} ({why})" for what, why in gpu.refused.items())
        yield "refused", f"the driver does not tell {told}"

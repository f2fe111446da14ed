"""The likely cause of a miss, in one line, from what else moved with it; None where nothing fits.

A cause is named only if all the evidence that it needs is there and lies beyond noise; that something did *not* move
counts only where it was measured finely enough to show. It is a hint to where to look first, never a verdict.

Causes are tried in a fixed order, and the first that fits is named. For acceptance:

1. ``length_shift``: lower over whole outputs, and not on the same first tokens.
2. ``drafts_skipped``: fewer steps drafted at all. It lowers every position, so it comes before them.
3. ``domain``: one category fell and the others held, whatever the position.
4. ``template_or_sampling``: the first draft position fell, in every category.
5. ``drafter_state``: a later position fell, and those before it held. (Where they rose, weaker drafts reach it.)

For speed, first what lies outside of the engine:

1. ``throttled``: slower, and the clock was lower or the card says that it held back.
2. ``host_bound``: slower steps and a later first token, on a GPU that idled more than before, and a client with time to
   spare: the engine's own Python or scheduler is what waits.
3. ``slower_target``: steps are slower without speculation too.
4. ``prefill``: a later first token, and steps as fast as before.
5. ``draft_overhead``: slower steps, and as much accepted as before: drafting or verifying costs more.
6. One of the causes for acceptance, or plainly ``lower_acceptance``, where steps are as fast as before: the rate fell
   with the acceptance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from pytest_speedbench.measure.acceptance import conditional_by_position
from pytest_speedbench.measure.metrics import METRICS

Label = Literal[
    "length_shift",
    "drafts_skipped",
    "domain",
    "template_or_sampling",
    "drafter_state",
    "throttled",
    "host_bound",
    "slower_target",
    "prefill",
    "draft_overhead",
    "lower_acceptance",
]

SIGMAS = 2.0
"""Standard deviations that noise is taken to reach."""
CONDITIONAL_FLOOR = 0.05
"""The least relative band of a share of steps. Steps of one text are alike, so counting them
as independent, as the binomial band does, promises too much."""
CLOCK_BAND = 0.02
"""For ``Symptoms.sm_clock``: clocks of a card that is not held back vary by less."""
UTILISATION_BAND = 0.1
"""For ``Symptoms.gpu_utilisation``, which the driver averages over up to a second, and which is read twice a second."""
IDLE_GPU = 0.9
"""A GPU that was busy for less of the time waited for its host."""
BUSY_CLIENT = 0.8
"""A client that used more of a core than this may itself be what the engine waited for."""


@dataclass(frozen=True, slots=True)
class Change:
    """A quantity now and as it was, both positive. ``band`` is the relative change that noise alone reaches."""

    now: float
    was: float
    band: float

    @property
    def relative(self) -> float:
        """The change as a share of what was; NaN where that is no number."""
        return self.now / self.was - 1 if self.was > 0 else math.nan

    @property
    def fell(self) -> bool:
        """Whether it is lower, beyond noise."""
        return self.relative < -self.band

    @property
    def rose(self) -> bool:
        """Whether it is higher, beyond noise."""
        return self.relative > self.band

    @property
    def held(self) -> bool:
        """Whether it is the same within noise."""
        return abs(self.relative) <= self.band

    def held_against(self, drop: float) -> bool:
        """Whether it would have shown a relative drop of that size and did not; a change by half of it is in doubt."""
        return self.band < abs(drop) and abs(self.relative) < abs(drop) / 2


@dataclass(frozen=True, slots=True)
class Symptoms:
    """What is known of a cell now and before. None, or empty: not known, and nothing is concluded from it.

    ``conditional`` is the conditional acceptance by draft position, the first position first; ``equal_length`` the
    acceptance length on the same first tokens, ``output_tokens`` the mean output length, ``drafting`` the
    share of decode steps that drafted, ``categories`` the acceptance length by category. ``step_s`` is the time
    of a decode step, ``plain_step_s`` the same without speculation. ``throttled`` is whether the card named a reason
    to hold its clock back, ``sm_clock`` its clock, ``gpu_utilisation`` the share of the time in which it was busy,
    ``client_cpu`` that of a core which this client took.
    """

    conditional: tuple[Change, ...] = ()
    acceptance_length: Change | None = None
    equal_length: Change | None = None
    output_tokens: Change | None = None
    drafting: Change | None = None
    categories: Mapping[str, Change] = field(default_factory=dict)
    step_s: Change | None = None
    plain_step_s: Change | None = None
    ttft_s: Change | None = None
    output_tps: Change | None = None
    sm_clock: Change | None = None
    throttled: bool | None = None
    gpu_utilisation: Change | None = None
    client_cpu: float | None = None


@dataclass(frozen=True, slots=True)
class Cause:
    """A likely cause. ``text`` is one line: what was seen → where to look."""

    label: Label
    text: str


def diagnose(symptoms: Symptoms, metric: str) -> Cause | None:
    """The likely cause of a miss of ``metric``, None where nothing fits. Never raises for any numbers.

    A miss of acceptance is explained by acceptance only, one of the first token by what comes before decoding, and
    one of decoding by anything but prefill.
    """
    return _first(_causes(metric), symptoms)


# What moved


def change(metric: str, now: float, was: float, sigma: float | None = None) -> Change:
    """A metric's change, with a band of two standard deviations of whole-cell values.

    ``sigma`` is relative; without one it is the noise that the metric is assumed to have, in both values.
    """
    noise = METRICS[metric].assumed_noise * math.sqrt(2) if sigma is None else sigma
    return Change(now, was, SIGMAS * noise)


def conditional_changes(now: Mapping[int, int], was: Mapping[int, int] | Sequence[float]) -> tuple[Change, ...]:
    """Conditional acceptance by draft position, from histograms of decode steps ({length: steps}).

    ``was`` may also be the conditional acceptances themselves. Positions that were never tried in either are left
    out, with all after them. The band is that of two binomial shares, of the steps that reached the position,
    and at least 5 %.
    """
    reference = was if isinstance(was, Mapping) else {}
    shares = conditional_by_position(reference, max(reference, default=1) - 1) if reference else tuple(was)
    measured = conditional_by_position(now, len(shares))
    found = []
    for position, (share, before) in enumerate(zip(measured, shares, strict=False), start=1):
        tried = [_reached(histogram, position) for histogram in (now, reference) if histogram]
        if not before > 0 or not all(tried):
            break
        found.append(Change(share, before, _binomial_band(before, tried)))
    return tuple(found)


def drafting_change(now: tuple[int, int], was: tuple[int, int]) -> Change | None:
    """The share of decode steps that drafted, from (drafts, steps) of both sides; None where a side has none."""
    shares = [drafts / steps for drafts, steps in (now, was) if drafts > 0 and steps > 0]
    if len(shares) < 2:
        return None
    # A server may count the steps of a cut last turn on one side only.
    share, before = (min(1.0, each) for each in shares)
    return Change(share, before, _binomial_band(before, (now[1], was[1])))


def _binomial_band(share: float, tried: Sequence[int]) -> float:
    """The relative band of a share that was counted over ``tried`` steps, one number per side."""
    variance = sum(share * max(1 - share, 0.0) / steps for steps in tried)
    return max(CONDITIONAL_FLOOR, SIGMAS * math.sqrt(variance) / share)


def _reached(histogram: Mapping[int, int], position: int) -> int:
    """Steps in which all drafts before this position were accepted."""
    return sum(count for length, count in histogram.items() if length >= position)


# Causes of a lower acceptance


def _length_shift(symptoms: Symptoms) -> Cause | None:
    whole, same, tokens = symptoms.acceptance_length, symptoms.equal_length, symptoms.output_tokens
    if whole is None or same is None or tokens is None or not whole.fell or tokens.held:
        return None
    if not (tokens.fell or tokens.rose) or not same.held_against(whole.relative):
        return None
    words = "shorter" if tokens.fell else "longer"
    return Cause(
        "length_shift",
        f"on the same first tokens acceptance held ({_percent(same)}), and outputs got {words} "
        f"({tokens.was:.0f} → {tokens.now:.0f} tokens) → output length, not the drafter",
    )


def _drafts_skipped(symptoms: Symptoms) -> Cause | None:
    drafting = symptoms.drafting
    if _acceptance_held(symptoms) or drafting is None or not drafting.fell:
        return None
    return Cause(
        "drafts_skipped",
        f"{100 * drafting.now:.0f} % of the steps drafted (was {100 * drafting.was:.0f} %) → "
        "speculation is skipped: batch-size limits, n-gram look-up or fallback",
    )


def _domain(symptoms: Symptoms) -> Cause | None:
    categories = symptoms.categories
    fell, held = _fallen(categories), _held(categories)
    if _acceptance_held(symptoms) or len(fell) != 1 or len(held) < max(2, len(categories) - 1):
        return None
    (name,) = fell
    return Cause(
        "domain",
        f"only {name} fell ({_percent(categories[name])}), {len(held)} other categories held → "
        f"what is special about {name}: its prompts, language or format",
    )


def _template_or_sampling(symptoms: Symptoms) -> Cause | None:
    categories, positions = symptoms.categories, symptoms.conditional
    if _acceptance_held(symptoms) or not positions or not positions[0].fell:
        return None
    if categories and (_held(categories) or 2 * len(_fallen(categories)) <= len(categories)):
        return None
    where = f", and {len(_fallen(categories))} of {len(categories)} categories fell" if categories else ""
    return Cause("template_or_sampling", f"{_drop_starts(positions, 1)}{where} → weights, chat template or sampling")


def _drafter_state(symptoms: Symptoms) -> Cause | None:
    positions = symptoms.conditional
    position = next((i for i, one in enumerate(positions, start=1) if one.fell), 1)
    # Where more gets past the first positions, it is the weaker drafts that reach the later ones.
    if _acceptance_held(symptoms) or position == 1 or any(one.rose for one in positions[: position - 1]):
        return None
    return Cause("drafter_state", f"{_drop_starts(positions, position)} → drafter state or KV cache, not the template")


def _acceptance_held(symptoms: Symptoms) -> bool:
    """Whether the acceptance length is known not to have fallen: then there is nothing to explain."""
    return symptoms.acceptance_length is not None and not symptoms.acceptance_length.fell


def _fallen(categories: Mapping[str, Change]) -> list[str]:
    return [name for name, one in categories.items() if one.fell]


def _held(categories: Mapping[str, Change]) -> list[str]:
    """The categories that would have shown what the typical fallen one lost, and did not."""
    fell = _fallen(categories)
    if not fell:
        return []
    drop = median(categories[name].relative for name in fell)
    return [name for name, one in categories.items() if not one.fell and one.held_against(drop)]


def _drop_starts(positions: Sequence[Change], position: int) -> str:
    one = positions[position - 1]
    return f"drop starts at draft position {position} ({one.was:.2f} → {one.now:.2f})"


# Causes of lower speed


def _throttled(symptoms: Symptoms) -> Cause | None:
    clock = symptoms.sm_clock
    slowed = clock.fell if clock is not None else symptoms.throttled
    if not slowed or not _slower(symptoms):
        return None
    seen = "the card held its clock back" if clock is None else f"the GPU's clock was lower ({_numbers(clock, 'MHz')})"
    return Cause("throttled", f"{seen} → power, temperature or another tenant, not the software")


def _slower(symptoms: Symptoms) -> bool:
    times = (symptoms.step_s, symptoms.ttft_s)
    rate = symptoms.output_tps
    return any(one is not None and one.rose for one in times) or (rate is not None and rate.fell)


def _host_bound(symptoms: Symptoms) -> Cause | None:
    step, ttft, busy, client = symptoms.step_s, symptoms.ttft_s, symptoms.gpu_utilisation, symptoms.client_cpu
    if step is None or ttft is None or busy is None or client is None:
        return None
    if not (step.rose and ttft.rose and busy.fell) or busy.now >= IDLE_GPU or not client < BUSY_CLIENT:
        return None
    return Cause(
        "host_bound",
        f"steps {_percent(step)}, first token {_percent(ttft)}, and the GPU busy {100 * busy.now:.0f} % of the time "
        f"(was {100 * busy.was:.0f} %) → the engine's host side: Python, scheduler, CPU cores",
    )


def _slower_target(symptoms: Symptoms) -> Cause | None:
    step, plain = symptoms.step_s, symptoms.plain_step_s
    if step is None or plain is None or not (step.rose and plain.rose):
        return None
    return Cause(
        "slower_target",
        f"steps {_percent(step)}, and {_percent(plain)} without speculation → the target's kernels or backend, "
        "not speculation",
    )


def _prefill(symptoms: Symptoms) -> Cause | None:
    step, ttft = symptoms.step_s, symptoms.ttft_s
    if step is None or ttft is None or not (ttft.rose and step.held_against(ttft.relative)):
        return None
    return Cause(
        "prefill", f"first token {_percent(ttft)}, steps {_percent(step)} → prefill, queueing or chunking, not decoding"
    )


def _draft_overhead(symptoms: Symptoms) -> Cause | None:
    step, accepted = symptoms.step_s, symptoms.acceptance_length
    if step is None or accepted is None or not step.rose:
        return None
    # One token per step is no speculation.
    if accepted.now <= 1 or not (accepted.rose or accepted.held_against(step.relative)):
        return None
    return Cause(
        "draft_overhead",
        f"steps {_percent(step)}, acceptance length {_percent(accepted)} → drafting or verifying costs more per step",
    )


def _lower_acceptance(symptoms: Symptoms) -> Cause | None:
    step, accepted = symptoms.step_s, symptoms.acceptance_length
    if step is None or accepted is None or not (accepted.fell and step.held_against(accepted.relative)):
        return None
    seen = f"steps as fast as before ({_percent(step)}), acceptance length {_percent(accepted)}"
    cause = _first(_ACCEPTANCE, symptoms)
    if cause is None:
        return Cause("lower_acceptance", f"{seen} → fewer tokens per step, not slower steps")
    return Cause(cause.label, f"{seen}: {cause.text}")


_ACCEPTANCE = (_length_shift, _drafts_skipped, _domain, _template_or_sampling, _drafter_state)
_SPEED = (_throttled, _host_bound, _slower_target, _prefill, _draft_overhead, _lower_acceptance)
_FIRST_TOKEN = (_throttled, _host_bound, _prefill)
_DECODING = tuple(find for find in _SPEED if find is not _prefill)


def _causes(metric: str) -> tuple[Callable[[Symptoms], Cause | None], ...]:
    if metric in METRICS and METRICS[metric].unit in ("tokens/step", "share"):
        return _ACCEPTANCE
    if metric.startswith("ttft"):
        return _FIRST_TOKEN
    return _DECODING if metric.startswith(("step", "tpot", "user")) else _SPEED


def _first(causes: Sequence[Callable[[Symptoms], Cause | None]], symptoms: Symptoms) -> Cause | None:
    return next((cause for find in causes if (cause := find(symptoms)) is not None), None)


def _percent(one: Change) -> str:
    return f"{'−' if one.relative < 0 else '+'}{abs(100 * one.relative):.1f} %"


def _numbers(one: Change, unit: str) -> str:
    return f"{one.was:.0f} → {one.now:.0f} {unit}"

"""How much faster a cell is with speculation than the same cell without, on the same GPUs.

Two questions, two kinds of numbers. ``speedup`` is the ratio of output rates of the whole cell: what a
server gains, prefill, queueing and client included. ``speedup_per_prompt`` and ``speedup_total_time`` compare
the decoding of the same prompts: what a user sees once the first token is there.

Outputs may differ in length, since rounding in bfloat16 differs between batches of one and of k + 1 tokens. A shorter
answer is not a faster one, so decoding is compared by time per output token (DESIGN §5).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pytest_speedbench.cells import STEADY_PROMPTS_PER_STREAM
from pytest_speedbench.measure.metrics import METRICS, Metric
from pytest_speedbench.measure.pairing import pair_turns
from pytest_speedbench.measure.samples import Turn, Window

SPEEDUP = "speedup"
PER_PROMPT = "speedup_per_prompt"
TOTAL_TIME = "speedup_total_time"

ASSUMED_NOISE = math.sqrt(2) * METRICS["output_tps"].assumed_noise
"""The relative standard deviation of a speed-up over restarted runs, where it was not measured: that of two rates."""

_RATES = ("steady_output_tps", "output_tps")


@dataclass(frozen=True, slots=True)
class Decoding:
    """One conversation in both runs: ``tokens`` after the first of their turn, and the ``seconds`` that these took."""

    plain_tokens: int
    plain_s: float
    fast_tokens: int
    fast_s: float

    @property
    def speedup(self) -> float:
        """Time per output token without speculation over that with."""
        return (self.plain_s / self.plain_tokens) / (self.fast_s / self.fast_tokens)

    @property
    def seconds_at_equal_length(self) -> tuple[float, float]:
        """Seconds without and with speculation, if both answers had the mean of the two lengths."""
        length = (self.plain_tokens + self.fast_tokens) / 2
        return self.plain_s / self.plain_tokens * length, self.fast_s / self.fast_tokens * length


def speedups(plain: Window, fast: Window, *, seed_parts: Sequence[str]) -> dict[str, Metric]:
    """All speed-ups of one cell, ``fast`` with and ``plain`` without speculation. What is not defined is absent.

    ``speedup`` has no interval of its own: how a rate spreads is known from other engine starts, not from
    other prompts of the same run.
    """
    ratio = tps_speedup(_rates(plain), _rates(fast), steady=holds_steady(fast))
    found = {} if ratio is None else {SPEEDUP: Metric(ratio)}
    return found | decode_speedups(plain.turns, fast.turns, seed_parts=seed_parts)


def holds_steady(window: Window) -> bool:
    """Whether there are turns enough per stream for a steady window that is more than a chance event."""
    return len(window.turns) >= STEADY_PROMPTS_PER_STREAM * window.cell.concurrency


def tps_speedup(plain: Mapping[str, float], fast: Mapping[str, float], *, steady: bool) -> float | None:
    """The ratio of output tokens per second, from the metrics of both runs by name.

    With ``steady`` that in the steady window, where both have one: else one would be taken with its ramp
    and tail. None where no rate is in both, as in ``overall``, whose categories do not run side by side.
    """
    for name in _RATES if steady else _RATES[1:]:
        if plain.get(name, 0.0) > 0 and fast.get(name, 0.0) > 0:
            return fast[name] / plain[name]
    return None


def _rates(window: Window) -> dict[str, float]:
    from pytest_speedbench.measure import timing

    rates = {
        "steady_output_tps": timing.steady_output_tps(window.turns, window.steady_ns),
        "output_tps": timing.output_tps(window.turns),
    }
    return {name: rate for name, rate in rates.items() if rate is not None}


def decode_speedups(plain: Iterable[Turn], fast: Iterable[Turn], *, seed_parts: Sequence[str]) -> dict[str, Metric]:
    """Speed-ups of decoding the same prompts, with 95 % intervals from a bootstrap over conversations.

    ``speedup_per_prompt`` is the geometric mean over conversations of time per output token without speculation
    over that with; every prompt counts alike. ``speedup_total_time`` is the ratio of the sums of decode time,
    each prompt at the mean of its two lengths; slow and long answers count more. Both sides of a conversation are
    drawn together, so that what makes a prompt slow in both cancels. Only turns with the same input count.
    Empty where no conversation has a rate in both runs.
    """
    # Imported here because it needs numpy, and every report knows the names of this module.
    from pytest_speedbench.measure.statistics import bootstrap_mean, bootstrap_ratio, seed_of

    pairs = decodings(plain, fast)
    if not pairs:
        return {}
    logs = [math.log(pair.speedup) for pair in pairs]
    seconds = [pair.seconds_at_equal_length for pair in pairs]
    without, with_ = ([pair[side] for pair in seconds] for side in (0, 1))
    low, high = bootstrap_mean(logs, seed=seed_of(*seed_parts, PER_PROMPT)) or (None, None)
    mean = Metric(
        math.exp(math.fsum(logs) / len(logs)),
        None if low is None else math.exp(low),
        None if high is None else math.exp(high),
    )
    ends = bootstrap_ratio(without, with_, seed=seed_of(*seed_parts, TOTAL_TIME)) or (None, None)
    return {PER_PROMPT: mean, TOTAL_TIME: Metric(math.fsum(without) / math.fsum(with_), *ends)}


def decodings(plain: Iterable[Turn], fast: Iterable[Turn]) -> tuple[Decoding, ...]:
    """The conversations whose decode rate is known in both runs, in the order of ``pair_turns``."""
    found = []
    for pair in pair_turns(plain, fast).pairs:
        (plain_tokens, plain_s), (fast_tokens, fast_s) = (_decoding(turns) for turns in (pair.base, pair.new))
        if plain_tokens and fast_tokens:
            found.append(Decoding(plain_tokens, plain_s, fast_tokens, fast_s))
    return tuple(found)


def _decoding(turns: Iterable[Turn]) -> tuple[int, float]:
    """Tokens after the first of each turn, and their seconds. A turn in one event says nothing about its rate."""
    rated = [t for t in turns if t.output_tokens > 1 and t.event_ns and t.event_ns[-1] > t.event_ns[0]]
    span_ns = sum(t.event_ns[-1] - t.event_ns[0] for t in rated)
    return sum(t.output_tokens - 1 for t in rated), span_ns / 1e9

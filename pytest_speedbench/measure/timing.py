"""Rates and latencies of turns, from the times at which their events reached the client.

Per turn: t0 is when the request was sent, t1 the first and tn the last event that carried tokens,
N the number of output tokens. The formulas are those of SPEED-Bench's reference implementation,
with one deliberate difference: the gap before the first token is not a step.

Times come in as integer nanoseconds and go out as seconds or tokens per second. A turn for which a
quantity is not defined is left out of that quantity, and a cell without any such turn has None or
an empty array.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pytest_speedbench.measure.samples import Turn

Values = NDArray[np.float64]
NS = 1e9


def output_tps(turns: Sequence[Turn]) -> float | None:
    """ΣN / (max tn - min t0), in tokens per second."""
    finished = [t for t in turns if t.event_ns]
    if not finished:
        return None
    span = max(t.event_ns[-1] for t in finished) - min(t.start_ns for t in turns)
    return sum(t.output_tokens for t in turns) / (span / NS) if span > 0 else None


def steady_output_tps(turns: Sequence[Turn], steady_ns: tuple[int, int] | None) -> float | None:
    """Tokens per second in the window (begin, end] in which the asked concurrency was held.

    Tokens count where their event arrived; an event at the very begin carries what was produced
    before. Tokens that the engine held back until the stream ended count with the last event, so
    that a window around everything contains every token.
    """
    if steady_ns is None or steady_ns[1] <= steady_ns[0]:
        return None
    begin, end = steady_ns
    tokens = 0
    for turn in turns:
        if not turn.event_ns:
            continue
        tokens += sum(n for at, n in zip(turn.event_ns, turn.event_tokens, strict=True) if begin < at <= end)
        if begin < turn.event_ns[-1] <= end:
            tokens += turn.output_tokens - sum(turn.event_tokens)
    return tokens / ((end - begin) / NS)


def user_tps(turns: Sequence[Turn]) -> Values:
    """(N - 1) / (tn - t1) of each turn that has at least two tokens at two different times."""
    return np.array([tokens / seconds for tokens, seconds in _decoding(turns)])


def tpot_s(turns: Sequence[Turn]) -> Values:
    """(tn - t1) / (N - 1), time per output token, of the same turns as ``user_tps``."""
    return np.array([seconds / tokens for tokens, seconds in _decoding(turns)])


def _decoding(turns: Sequence[Turn]) -> list[tuple[int, float]]:
    """Tokens after the first, and the seconds that they took.

    A turn whose tokens all came in one event says nothing about its rate.
    """
    return [
        (t.output_tokens - 1, (t.event_ns[-1] - t.event_ns[0]) / NS)
        for t in turns
        if t.output_tokens > 1 and t.event_ns and t.event_ns[-1] > t.event_ns[0]
    ]


def ttft_s(turns: Sequence[Turn]) -> Values:
    """t1 - t0 of each turn: time to first token, queueing in the engine included."""
    return np.array([(t.event_ns[0] - t.start_ns) / NS for t in turns if t.event_ns])


def e2e_s(turns: Sequence[Turn]) -> Values:
    """tn - t0 of each turn."""
    return np.array([(t.event_ns[-1] - t.start_ns) / NS for t in turns if t.event_ns])


def step_s(turns: Sequence[Turn]) -> Values:
    """Gaps between consecutive engine steps, the prefill's token being the first arrival.

    The wait for that token is no gap. No gap is formed across a negative entry, which marks steps
    whose arrival was not seen: it would be too long by the steps in it.
    """
    gaps = []
    for turn in turns:
        arrivals = np.asarray(turn.step_ns, dtype=np.int64)
        seen = (arrivals[1:] >= 0) & (arrivals[:-1] >= 0)
        gaps.append(np.diff(arrivals)[seen] / NS)
    return np.concatenate(gaps) if gaps else np.array([])


def mean(values: Values) -> float:
    """The arithmetic mean, independent of the order of a non-empty array."""
    return math.fsum(values) / len(values)


def percentile(values: Values, percent: float) -> float:
    """The percentile of a non-empty array, interpolated linearly between neighbours."""
    return float(np.percentile(values, percent))


def osl_mean(turns: Sequence[Turn]) -> float | None:
    """Mean output tokens per turn."""
    return sum(t.output_tokens for t in turns) / len(turns) if turns else None


def osl_capped_share(turns: Sequence[Turn]) -> float | None:
    """Share of turns that stopped at the length cap."""
    return sum(t.finish == "length" for t in turns) / len(turns) if turns else None

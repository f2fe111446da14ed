"""How the load client itself does: kept out of its own way, and measured."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import sys
import time
from collections.abc import Iterator, Sequence

from pytest_speedbench.measure.samples import Turn

LAG_PROBE_S = 0.005
SWITCH_S = 0.0001
"""For how long another thread may keep the event loop waiting for the interpreter; Python's own 5 ms are long here."""


@contextlib.contextmanager
def at_rest() -> Iterator[None]:
    """Keep the garbage collector and other threads from holding up the event loop for tens of ms.

    What is there already is not looked at, and of what is new only the youngest two generations are:
    turns make no cycles, so that the third would only walk through what has been measured.
    """
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*thresholds[:2], 1 << 30)
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)
        gc.unfreeze()


async def probe_lag(lags: list[float]) -> None:
    """Record how late the event loop wakes a sleeper; that is how late a read can be."""
    while True:
        before = time.perf_counter()
        await asyncio.sleep(LAG_PROBE_S)
        lags += sustained(time.perf_counter() - before - LAG_PROBE_S)


def sustained(lag_s: float) -> list[float]:
    """A lag as all the probes would have seen it that it has kept from being made.

    Otherwise a stall of half a second would be one late probe, like one of 6 ms, and hundreds of punctual
    ones would make up for it (coordinated omission; G. Tene, "How NOT to Measure Latency", 2013).
    """
    return [max(0.0, lag_s), *(lag_s - LAG_PROBE_S * i for i in range(1, math.ceil(lag_s / LAG_PROBE_S)))]


def p99(values: Sequence[float]) -> float:
    """The smallest value that at least 99 % do not exceed; 0 without any."""
    if not values:
        return 0.0
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


def achieved(turns: Sequence[Turn], span: tuple[int, int] | None) -> tuple[float | None, int | None]:
    """(mean, least) number of turns in flight over ``span``, from first byte out to last event; None without a span.

    Turns that failed are not seen.
    """
    if span is None:
        return None, None
    begin, end = span
    changes: list[tuple[int, int]] = []
    for turn in turns:
        first, last = max(turn.start_ns, begin), min(turn.event_ns[-1] if turn.event_ns else turn.start_ns, end)
        if first < last:
            changes += ((first, 1), (last, -1))
    # A stream that is replaced at once is not missing: what begins counts before what ends.
    changes.sort(key=lambda change: (change[0], -change[1]))
    in_flight, least, area, since = 0, None, 0, begin
    for at, change in (*changes, (end, 0)):
        if at > since:
            area += in_flight * (at - since)
            least = in_flight if least is None else min(least, in_flight)
            since = at
        in_flight += change
    return area / (end - begin), least


def arrival_rate(turns: Sequence[Turn]) -> float | None:
    """First turns that were sent per second, from the first to the last of them; None for fewer than two."""
    sent = [turn.start_ns for turn in turns if turn.index == 0]
    span = max(sent) - min(sent) if sent else 0
    return (len(sent) - 1) / span * 1e9 if span > 0 else None

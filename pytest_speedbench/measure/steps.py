"""Working out decode steps from what an engine tells: its own counts, its events, its counters.

An event of the stream is not a step: servers join what piles up, and cut the last step at EOS or the
cap. Per turn N - 1 + cut = A + S holds for N output tokens, A accepted drafts and S steps, with
0 <= cut <= k for k draft tokens. What is known best is used first:

1. the engine's own counts of a turn;
2. its step counter over the window: if the turns cannot have taken fewer steps than it counted, then
   each took that few, and where that is one per event, no event joined two;
3. else a bracket: S is at least max(events - turns, ΣN - turns - A, K), and at most what the same
   identity gives with every last step cut by k.

A number that cannot be known is left out; nothing is estimated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pytest_speedbench.measure.samples import Counters, Steps, StepTotal, Told, Turn, Window

NO_SPECULATION = "no speculation"
STEP_COUNTER = "step counter of the server"
BRACKET = "bracket from events and counters"


@dataclass(frozen=True, slots=True)
class Drafting:
    """How a profile drafts: at most ``draft_tokens`` per step (0: no speculation), and whether at every step."""

    draft_tokens: int
    always: bool
    told: str
    """What the engine's own per-turn counts are called, for the artifact."""


def settle(turns: Sequence[Turn], counters: Counters, drafting: Drafting) -> tuple[tuple[Turn, ...], StepTotal]:
    """The turns with their steps where these are certain, and S over all of them.

    Turns whose decoder has listed the steps stay as they are.
    """
    if drafting.draft_tokens == 0:
        plain = tuple(t if t.steps is not None else _plain(t) for t in turns)
        steps = sum(t.steps.count for t in plain if t.steps is not None)
        return plain, StepTotal(steps, steps, NO_SPECULATION)
    settled = tuple(_from_told(t, drafting) for t in turns)
    known = [t.steps.count for t in settled if t.steps is not None]
    if len(known) == len(settled):
        return tuple(map(_with_step_times, settled)), StepTotal(sum(known), sum(known), drafting.told)
    settled, total = _from_window(settled, counters, drafting)
    return tuple(map(_with_step_times, settled)), total


def _plain(turn: Turn) -> Turn:
    """Without drafts every token after the first is a step. An event of several hides when they came."""
    lengths = (1,) * (turn.output_tokens - 1)
    arrivals = tuple(at if tokens == 1 else -at for at, tokens in zip(turn.event_ns, turn.event_tokens, strict=True))
    return replace(turn, steps=Steps(lengths, accepted=0, drafted=0), step_ns=arrivals)


def step_total(window: Window) -> StepTotal | None:
    """S of a settled window; None where it is unknown."""
    if window.steps is not None:
        return window.steps
    known = [t.steps.count for t in window.turns if t.steps is not None]
    return StepTotal(sum(known), sum(known), "") if len(known) == len(window.turns) else None


# What the engine tells of a turn


def _from_told(turn: Turn, drafting: Drafting) -> Turn:
    told = turn.told
    if turn.steps is not None or told is None:
        return turn
    steps = told.steps
    if steps is None and told.drafts is not None and told.accepted is not None:
        steps = _steps_from_drafts(turn, told, told.drafts, told.accepted, drafting)
    return turn if steps is None else _with_steps(turn, steps, drafting)


def _steps_from_drafts(turn: Turn, told: Told, drafts: int, accepted: int, drafting: Drafting) -> int | None:
    """S = K + U, or None where it is in doubt how far the last step was cut, and with it U.

    A drafter that always drafts stops at the end of the context alone: then the last step was not cut.
    """
    uncut = turn.output_tokens - 1 - accepted
    if drafting.always:
        return max(drafts, uncut)
    return uncut if _longest_last(told, drafting) == 1 else None


def _longest_last(told: Told, drafting: Drafting) -> int:
    """The most that the last step can have produced: it may have been cut by one less."""
    if told.accepted == 0:
        return 1
    if told.lengths:
        return told.lengths[-1] if told.ordered else max(told.lengths)
    return drafting.draft_tokens + 1


def _each_event_is_a_step(turn: Turn, steps: int, drafting: Drafting) -> bool:
    first, *later = turn.event_tokens
    return first == 1 and len(later) == steps and all(1 <= n <= drafting.draft_tokens + 1 for n in later)


def _lengths(turn: Turn, steps: int, cut: int, drafting: Drafting) -> tuple[tuple[int, ...], bool]:
    """Uncut lengths and whether they are in order: from the events if each is a step, else as told."""
    told = turn.told.lengths if turn.told is not None else None
    padded = None if told is None else (*told, *(1,) * (steps - len(told)))
    if steps and _each_event_is_a_step(turn, steps, drafting):
        by_events = (*turn.event_tokens[1:-1], turn.event_tokens[-1] + cut)
        if padded is None or Counter(padded) == Counter(by_events):
            return by_events, True
    if padded is None or len(padded) != steps:
        return (0,) * steps, True
    # Undrafted steps were added at the end: the order is that of the engine only where there are none.
    in_order = turn.told is not None and turn.told.ordered and told is not None and len(told) == steps
    if in_order or len(set(padded)) <= 1:
        return padded, True
    return tuple(sorted(padded)), False


# What the whole window tells


def _from_window(turns: tuple[Turn, ...], counters: Counters, drafting: Drafting) -> tuple[tuple[Turn, ...], StepTotal]:
    least = [_least_steps(t, drafting) for t in turns]
    if counters.steps is not None:
        total = StepTotal(counters.steps, counters.steps, STEP_COUNTER)
        if counters.steps != sum(least):
            return turns, total
        # No turn can have fewer, so none has more.
        return tuple(_with_steps(t, number, drafting) for t, number in zip(turns, least, strict=True)), total
    decoded = sum(t.output_tokens - 1 for t in turns)
    accepted = counters.accepted
    if accepted is None and all(t.told is not None and t.told.accepted is not None for t in turns):
        accepted = sum(t.told.accepted or 0 for t in turns if t.told is not None)
    if accepted is None:
        return turns, StepTotal(sum(least), max(sum(least), decoded), BRACKET)
    low = max(sum(least), decoded - accepted, counters.drafts or 0)
    high = decoded - accepted + drafting.draft_tokens * len(turns)
    return turns, StepTotal(low, max(low, min(high, decoded)), BRACKET)


def _least_steps(turn: Turn, drafting: Drafting) -> int:
    """The fewest steps that the turn can have taken: at least one per event, and what is told must fit in."""
    if turn.steps is not None:
        return turn.steps.count
    longest = drafting.draft_tokens + 1
    first, *later = turn.event_tokens or (1,)
    by_events = -(-(first - 1) // longest) + sum(-(-n // longest) for n in later)
    told = turn.told
    if told is None or told.accepted is None:
        return by_events
    uncut = turn.output_tokens - 1 - told.accepted
    if told.lengths is None or not told.ordered:
        return max(by_events, uncut, told.drafts or 0)
    for cut in range(max(0, by_events - uncut), _longest_last(told, drafting)):
        if _fit([first - 1, *later], told.lengths, cut):
            return uncut + cut
    return max(by_events, uncut, told.drafts or 0)


def _fit(events: Sequence[int], lengths: Sequence[int], cut: int) -> bool:
    """Whether steps of ``lengths``, in order and with steps of 1 between them, can fill the events.

    A step's tokens come in one event; the last event misses the ``cut`` tokens of the last step.
    """
    reached = {0}
    for number, size in enumerate(events):
        room = size + (cut if number == len(events) - 1 else 0)
        onward = set()
        for start in reached:
            used, end = 0, start
            while used <= room:
                onward.add(end)
                if end == len(lengths):
                    break
                used += lengths[end]
                end += 1
        reached = onward
    return len(lengths) in reached


def _with_steps(turn: Turn, count: int, drafting: Drafting) -> Turn:
    """The turn with that many steps; how far the last was cut is not known unless the turn's drafts are."""
    if turn.steps is not None:
        return turn
    told = turn.told or Told()
    if told.accepted is not None:
        cut = told.accepted + count - (turn.output_tokens - 1)
        lengths, ordered = _lengths(turn, count, cut, drafting)
        return replace(turn, steps=Steps(lengths, told.accepted, told.drafted, cut, ordered))
    each = _each_event_is_a_step(turn, count, drafting)
    lengths = tuple(turn.event_tokens[1:]) if each else (0,) * count
    return replace(turn, steps=Steps(lengths, None, told.drafted, None))


def _with_step_times(turn: Turn) -> Turn:
    """Arrivals of steps where every event is one; none where some were joined and it is not known which."""
    if turn.step_ns or turn.steps is None or len(turn.event_ns) != turn.steps.count + 1:
        return turn
    return replace(turn, step_ns=turn.event_ns)

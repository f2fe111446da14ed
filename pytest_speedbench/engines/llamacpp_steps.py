"""Decode steps from llama-server's per-token timings.

llama-server sends one event per token, and none for a token that ends inside an incomplete UTF-8
sequence. Each event carries running totals: tokens predicted (n), tokens drafted (D), drafts
accepted (A). All tokens of one step show the totals after that step. From this follows:

* a step that drafted starts where D rises; it emits accepted + 1 tokens, so while D stands still
  the tokens beyond those are steps of their own that did not draft;
* where no token is hidden, all step lengths are known;
* hidden or not, a stretch of T tokens with A accepted drafts took exactly T - A steps, so the
  number of steps is always exact. Only how a stretch divides can stay unknown, namely where D
  rose across hidden tokens and more than one drafting step may hide there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_speedbench.measure.samples import Steps

UNOBSERVED = -1


@dataclass(frozen=True, slots=True)
class Seen:
    """The running totals of one event that carried a token."""

    predicted: int
    drafted: int
    accepted: int
    at_ns: int


@dataclass(frozen=True, slots=True)
class Window:
    """How far drafts reach: the cap on output tokens, and the size that every draft has.

    ``draft_size`` is None for methods that draft as much as they find, ``draft_max`` at most. A
    drafter that fills its window still drafts less when fewer tokens are left before the cap.
    """

    cap: int
    draft_size: int | None = None
    draft_max: int | None = None


@dataclass(frozen=True, slots=True)
class _Rise:
    """Where D rose: the first token that shows it, and how many hidden tokens came just before."""

    token: int
    hidden: int
    drafted: int
    accepted: int


def reconstruct(
    seen: Sequence[Seen], *, output_tokens: int, drafted: int, accepted: int, stopped: bool, window: Window
) -> tuple[Steps, tuple[int, ...]]:
    """The steps of a turn, and the arrival time of each (-1 where it was not observed).

    ``seen`` are the events with a token, in order; the other totals come from the closing event.
    ``stopped`` says that the turn ended at EOS: only then can the last step have been cut, since
    the server never drafts past the cap. The first arrival is the prefill's token.
    """
    rises = list(_rises(seen, output_tokens, drafted, accepted))
    stretches = list(_stretches(rises, output_tokens))
    at = {event.predicted: event.at_ns for event in seen}
    lengths: list[int] = []
    arrivals = [at.get(1, UNOBSERVED)]
    cut = 0
    for first, end, inside in stretches:
        if stopped and end == output_tokens + 1:
            cut = _cut(inside, first, end, window)
        divided = _lengths(end - first, inside, window, cut=cut if end == output_tokens + 1 else 0)
        lengths += divided
        arrivals += _arrivals(divided, first, inside, at)
    return Steps(tuple(lengths), accepted=accepted, drafted=drafted, cut=cut), tuple(arrivals)


def _rises(seen: Sequence[Seen], output_tokens: int, drafted: int, accepted: int) -> Iterator[_Rise]:
    # The prefill's token is number 1 and precedes every draft.
    last = Seen(1, 0, 0, 0)
    for event in [*seen, Seen(output_tokens, drafted, accepted, UNOBSERVED)]:
        if event.drafted != last.drafted:
            hidden = max(0, event.predicted - last.predicted - 1)
            yield _Rise(event.predicted, hidden, event.drafted - last.drafted, event.accepted - last.accepted)
        last = event


def _stretches(rises: Sequence[_Rise], output_tokens: int) -> Iterator[tuple[int, int, list[_Rise]]]:
    """Divide tokens 2..N where a drafting step provably starts: (first token, end, rises inside)."""
    first, inside = 2, list[_Rise]()
    for rise in rises:
        if rise.hidden == 0 and rise.token > first:
            yield first, rise.token, inside
            first, inside = rise.token, []
        inside.append(rise)
    if output_tokens >= first:
        yield first, output_tokens + 1, inside


def _cut(inside: Sequence[_Rise], first: int, end: int, window: Window) -> int:
    """Tokens that the last drafting step produced beyond the last output token.

    With hidden tokens in front its start is not known. Where every draft fills its window, the number
    of steps follows from the number of drafts; else the latest start is taken, which gives the most
    steps and so the lowest acceptance length.
    """
    if not inside:
        return 0
    last = inside[-1]
    accepted = last.accepted if window.draft_max is None else min(last.accepted, window.draft_max)
    most = max(0, last.token + accepted + 1 - end)
    size = window.draft_size
    if last.hidden and size and window.cap - last.token >= size:
        steps = sum(rise.drafted for rise in inside) // size
        return min(most, max(0, steps + sum(rise.accepted for rise in inside) - (end - first)))
    return most


def _lengths(tokens: int, inside: Sequence[_Rise], window: Window, *, cut: int) -> list[int]:
    """Lengths of the steps of one stretch: those of drafting steps, then of undrafted ones (1).

    A drafting step whose length cannot be told is 0. Only as many zeros as steps are left. What was
    cut is a drafting step, which then comes last.
    """
    steps = tokens + cut - sum(rise.accepted for rise in inside)
    drafting = [length for rise in inside for length in _divide(rise, window)]
    known = [length for length in drafting if length]
    unknown = min(len(drafting) - len(known), steps - len(known))
    undrafted = [1] * (steps - len(known) - unknown)
    if not cut:
        return known + [0] * unknown + undrafted
    if drafting[-1]:
        return undrafted + [0] * unknown + known
    return undrafted + known + [0] * unknown


def _divide(rise: _Rise, window: Window) -> list[int]:
    """Lengths of the drafting steps behind one rise of D, 0 for each that cannot be told."""
    if rise.hidden == 0 or rise.accepted == 0 or rise.drafted == 1:
        return [rise.accepted + 1]
    size = window.draft_size
    if size and window.cap - rise.token >= size:
        # Far from the cap every draft had this size, so their number is known.
        number = rise.drafted // size
        if number and (number == 1 or rise.accepted == rise.drafted):
            return [rise.accepted // number + 1] * number
        if number:
            return [0] * number
    # A drafting step drafts at least one token and emits at least one.
    return [0] * min(rise.drafted, rise.hidden + 1)


def _arrivals(lengths: Sequence[int], first: int, inside: Sequence[_Rise], at: dict[int, int]) -> list[int]:
    if any(rise.hidden for rise in inside):
        return [UNOBSERVED] * len(lengths)
    arrivals, token = [], first
    for length in lengths:
        arrivals.append(at.get(token, UNOBSERVED))
        token += length
    return arrivals

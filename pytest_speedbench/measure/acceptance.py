"""Acceptance of drafts: lengths per step, conditional and joint rates, acceptance lengths.

A step's length is what it emitted: accepted drafts + 1. The formulas are those of SPEED-Bench's
reference implementation, so that its published figures come out to the last digit:

* the prefill counts as one step of length 1 per turn, the last step counts as cut by EOS or cap;
* a conversation's length is the sum of its tokens over the sum of its steps, all turns together;
* a cell is the mean over its conversations (``request_mean``), or tokens over steps (``pooled``);
* rates are keyed by length, bonus token included, over the lengths that were observed.

Everything here is exact integer counting until the last division. A figure that is not defined,
such as a length without a single step, is None and never NaN.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pytest_speedbench.measure.samples import Counters, Steps, Told, Turn, known_steps, known_sum


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Step lengths pooled over a cell; keys are lengths and include the bonus token.

    ``histogram`` and the rates that follow from it are upstream's: the prefill is a step of length
    1, and the last step counts as cut. ``decode_histogram`` has decode steps only, the last of each
    turn left out: what the drafter achieved, whatever the output length.
    """

    histogram: Mapping[int, int]
    conditional: Mapping[int, float]
    joint: Mapping[int, float]
    decode_histogram: Mapping[int, int] = field(default_factory=dict)
    unresolved_steps: int = 0


@dataclass(frozen=True, slots=True)
class Conversation:
    """The sums over all turns of one conversation, which is also the resampling unit.

    ``steps`` are decode steps; the prefill adds one more per turn where upstream counts it. Draft
    tokens are None where the engine does not count them per turn.
    """

    category: str
    question_id: str
    turns: int
    tokens: int
    steps: int
    accepted: int | None
    drafted: int | None

    @property
    def steps_with_prefill(self) -> int:
        """Steps as upstream counts them: at least one, since there is at least one turn."""
        return self.steps + self.turns

    @property
    def acceptance_length(self) -> float:
        """Tokens per step, the prefill step counted (upstream's ``Request_AL``)."""
        return self.tokens / self.steps_with_prefill


def conversations(turns: Iterable[Turn]) -> tuple[Conversation, ...]:
    """Turns summed up per conversation, sorted by category and id.

    The order does not depend on the order of arrival, which changes from run to run. A prompt that
    was measured more than once (recycled) is one conversation: its repetitions are not independent.
    Empty where any turn's steps are unknown: per-request figures do not exist then.
    """
    turns = tuple(turns)
    if any(turn.steps is None for turn in turns):
        return ()
    groups: dict[tuple[str, str], list[Turn]] = {}
    for turn in turns:
        groups.setdefault((turn.category, turn.question_id), []).append(turn)
    return tuple(
        Conversation(
            category=category,
            question_id=question_id,
            turns=len(group),
            tokens=sum(t.output_tokens for t in group),
            steps=sum(s.count for s in known_steps(group)),
            accepted=known_sum(s.accepted for s in known_steps(group)),
            drafted=known_sum(s.drafted for s in known_steps(group)),
        )
        for (category, question_id), group in sorted(groups.items())
    )


# Lengths of steps


def histogram(turns: Iterable[Turn]) -> dict[int, int]:
    """Upstream's histogram: {length: steps}, prefill counted, last step as cut, ascending keys.

    Steps of unknown length are left out, so the values sum up to all steps, prefills included,
    minus ``unresolved_steps(turns)``.
    """
    counts: Counter[int] = Counter()
    for steps in known_steps(turns):
        counts[1] += 1
        if not steps.lengths:
            continue
        last = _last(steps)
        if last is None and steps.cut != 0:
            continue
        counts.update(steps.lengths)
        if last:
            counts[last] -= 1
            counts[last - (steps.cut or 0)] += 1
    return _observed(counts)


def uncut_histogram(turns: Iterable[Turn]) -> dict[int, int]:
    """{length: steps} of decode steps only, the last step of every turn left out.

    Neither the prefill nor the cut at the end dilutes these lengths, so that what is left does not
    depend on how long the outputs are. Steps of unknown length are left out, and turns of which it
    is not known which length was the last.
    """
    counts: Counter[int] = Counter()
    for steps in known_steps(turns):
        last = _last(steps)
        if steps.lengths and last is not None:
            counts.update(steps.lengths)
            counts[last] -= 1
    return _observed(counts)


def unresolved_steps(turns: Iterable[Turn]) -> int:
    """Number of steps that are known to exist but whose own length, as cut, is not."""
    return sum(
        steps.count if steps.lengths and _last(steps) is None and steps.cut != 0 else steps.unresolved
        for steps in known_steps(turns)
    )


def _last(steps: Steps) -> int | None:
    """Length of the last step (0: unresolved), None where it is not known which of the lengths it is.

    Without an order it is known if only one length was long enough to be cut as it was.
    """
    if steps.ordered:
        return steps.lengths[-1] if steps.lengths else None
    able = {length for length in steps.lengths if length > (steps.cut or 0)}
    return able.pop() if len(able) == 1 and steps.cut is not None else None


def _observed(counts: Mapping[int, int]) -> dict[int, int]:
    return {length: counts[length] for length in sorted(counts) if length != 0 and counts[length] > 0}


# Rates from a histogram


def joint(histogram: Mapping[int, int]) -> dict[int, float]:
    """P(len >= k) for every observed length k, ascending; empty for an empty histogram."""
    reached = _reached(histogram)
    total = _total(histogram)
    return {length: count / total for length, count in reached.items()}


def conditional(histogram: Mapping[int, int]) -> dict[int, float]:
    """P(len >= k) / P(len >= previous observed key), ascending; the first key has 1.0.

    Key k >= 2 answers for draft position k - 2, counted from 0, if all lengths below were seen.
    """
    rates = {}
    previous = _total(histogram)
    for length, count in _reached(histogram).items():
        rates[length] = count / previous
        previous = count
    return rates


def joint_by_position(histogram: Mapping[int, int], draft_tokens: int) -> tuple[float, ...]:
    """P(draft i and all before it were accepted) for i = 0 … draft_tokens - 1, zeros included.

    Upstream's ``marginal_accept_rates``; 1 + their sum is the mean length of the histogram. Empty
    for an empty histogram. Lengths above draft_tokens + 1 count as accepted at every position.
    """
    total = _total(histogram)
    if total == 0:
        return ()
    return tuple(_at_least(histogram, i + 2) / total for i in range(draft_tokens))


def conditional_by_position(histogram: Mapping[int, int], draft_tokens: int) -> tuple[float, ...]:
    """P(draft i was accepted, given that all before it were) for i = 0 … draft_tokens - 1.

    Upstream's ``conditional_accept_rates``: a position that was never reached has 0.0. Empty for
    an empty histogram.
    """
    if _total(histogram) == 0:
        return ()
    rates = []
    for i in range(draft_tokens):
        tried = _at_least(histogram, i + 1)
        rates.append(_at_least(histogram, i + 2) / tried if tried else 0.0)
    return tuple(rates)


def mean_length(histogram: Mapping[int, int]) -> float | None:
    """Tokens per step of a histogram: the pooled acceptance length."""
    return _ratio(sum(length * count for length, count in histogram.items()), _total(histogram))


def _total(histogram: Mapping[int, int]) -> int:
    return sum(histogram.values())


def _at_least(histogram: Mapping[int, int], length: int) -> int:
    return sum(count for key, count in histogram.items() if key >= length)


def _reached(histogram: Mapping[int, int]) -> dict[int, int]:
    """Steps that emitted at least k tokens, for every observed k, ascending."""
    reached = {}
    left = _total(histogram)
    for length in sorted(histogram):
        if histogram[length] == 0:
            continue
        reached[length] = left
        left -= histogram[length]
    return reached


def acceptance(turns: Sequence[Turn]) -> Acceptance:
    """Upstream's histogram of a cell with the rates that follow from it, and that of decode steps."""
    lengths = histogram(turns)
    return Acceptance(
        histogram=lengths,
        conditional=conditional(lengths),
        joint=joint(lengths),
        decode_histogram=uncut_histogram(turns),
        unresolved_steps=unresolved_steps(turns),
    )


# Acceptance lengths of a cell


def acceptance_length(turns: Iterable[Turn]) -> float | None:
    """``request_mean``: mean over conversations of tokens per step, prefill step counted."""
    lengths = [c.acceptance_length for c in conversations(turns)]
    return math.fsum(lengths) / len(lengths) if lengths else None


def acceptance_length_pooled(turns: Sequence[Turn], steps: int | None = None) -> float | None:
    """``pooled``: tokens of the cell per step of the cell, prefill step counted.

    ``steps`` is S where it is known for the whole cell only; by default the turns' own add up.
    """
    steps = total_steps(turns) if steps is None else steps
    return None if steps is None else _ratio(sum(t.output_tokens for t in turns), steps + len(turns))


def decode_acceptance_length(turns: Sequence[Turn], steps: int | None = None) -> float | None:
    """(ΣN - turns) / ΣS: without the prefill step and its token, the last step as cut. ``steps`` as above."""
    steps = total_steps(turns) if steps is None else steps
    return None if steps is None else _ratio(sum(t.output_tokens - 1 for t in turns), steps)


def total_steps(turns: Sequence[Turn]) -> int | None:
    """S over all turns, None where that of any is unknown."""
    return known_sum(None if turn.steps is None else turn.steps.count for turn in turns)


def decode_acceptance_length_uncut(turns: Iterable[Turn]) -> float | None:
    """Like ``decode_acceptance_length``, with the last step of every turn left out of both sums.

    Turns whose last step is of unknown length cannot be used and are left out whole. Unknown
    lengths before it do no harm, since only their sum is needed.
    """
    tokens = count = 0
    for turn in turns:
        steps = turn.steps
        last = None if steps is None else _last(steps)
        if steps is None or not last:
            continue
        # What all decode steps produced, the cut included, is N - 1 + cut.
        tokens += turn.output_tokens - 1 + (steps.cut or 0) - last
        count += steps.count - 1
    return _ratio(tokens, count)


def drafted_acceptance_length(counters: Counters, turns: Sequence[Turn] = ()) -> float | None:
    """1 + ΣA / ΣK: only steps that drafted, cut tokens included.

    From the server's counters or, where it has none of accepted drafts, from what it told of each turn.
    """
    accepted, drafts = counters.accepted, counters.drafts
    if accepted is None:
        told = [turn.told or Told() for turn in turns]
        accepted, drafts = known_sum(t.accepted for t in told), known_sum(t.drafts for t in told)
    return None if accepted is None or not drafts else 1 + accepted / drafts


def acceptance_rate(turns: Sequence[Turn]) -> float | None:
    """ΣA / ΣD, accepted over drafted tokens; None where nothing was drafted or it is not counted per turn."""
    if any(turn.steps is None for turn in turns):
        return None
    accepted, drafted = (
        known_sum(s.accepted for s in known_steps(turns)),
        known_sum(s.drafted for s in known_steps(turns)),
    )
    return None if accepted is None or drafted is None else _ratio(accepted, drafted)


def _ratio(numerator: int, denominator: int) -> float | None:
    return numerator / denominator if denominator else None

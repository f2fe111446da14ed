"""Acceptance length of two runs on the same first tokens of every prompt.

Acceptance drifts along an output: text that repeats itself is easier to draft the longer it gets. So when an
upgrade makes answers shorter or longer, the acceptance length of whole outputs moves although no token
is drafted any worse (one prompt of SGLang's tests had 5.3 tokens per step where it stopped after 775 tokens, and
more than 6.6 where it went on to 2048). On the tokens that both runs have, length cannot move it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean, stdev
from typing import Any, Literal

from pytest_speedbench.measure.acceptance import uncut_histogram
from pytest_speedbench.measure.pairing import Pair, pair_turns
from pytest_speedbench.measure.samples import Turn
from pytest_speedbench.measure.student import t_quantile

CONFIDENCE = 0.95
FLOOR = 0.005
"""A relative change that is smaller than this is none, however surely it is there."""

Shift = Literal["none", "length", "acceptance", "both", "unclear"]


@dataclass(frozen=True, slots=True)
class Paired:
    """A quantity of the same conversations in two runs: means, and the standard error of the mean of new − old.

    ``error`` is infinite for a single conversation, which cannot tell how conversations differ.
    """

    new: float
    old: float
    error: float
    band: float
    """Half the 95 % interval of new − old, by Student's t over conversations."""

    @property
    def change(self) -> float:
        """Relative to old."""
        return self.new / self.old - 1

    def moved(self, floor: float = 0.0) -> bool:
        """Whether new differs from old by more than ``floor``, and beyond what conversations differ by."""
        return abs(self.new - self.old) > max(self.band, floor)


@dataclass(frozen=True, slots=True)
class EqualLength:
    """Decode acceptance length with and without the effect of output length, and the output lengths.

    Every one is a mean over the same ``conversations``: ``prefix`` on the first min(n_new, n_old) tokens of every
    turn, ``whole`` on all of them, in both cases without prefill and without the step that reaches the end.
    ``rest`` is what the part beyond the common tokens adds (whole − prefix). ``tokens`` is output tokens per turn,
    ``capped_new`` and ``capped_old`` the share of turns that stopped at the cap. ``left_out`` conversations were in
    both runs, but the order of their steps is not known, or no step ends within the common tokens.
    """

    conversations: int
    left_out: int
    prefix: Paired
    whole: Paired
    rest: Paired
    tokens: Paired
    capped_new: float
    capped_old: float

    @property
    def shift(self) -> Shift:
        """What moved: ``unclear`` if whole outputs did, and it cannot be told through what."""
        floor = FLOOR * self.whole.old
        prefix, rest, whole = (paired.moved(floor) for paired in (self.prefix, self.rest, self.whole))
        if prefix:
            return "both" if rest else "acceptance"
        if rest:
            return "length"
        alone = self.conversations == 1 and abs(self.whole.new - self.whole.old) > floor
        return "unclear" if whole or alone else "none"

    @property
    def text(self) -> str:
        """The whole in one line, with its numbers."""
        percent = _percent(self.prefix.band / self.prefix.old) if math.isfinite(self.prefix.band) else "?"
        numbers = (
            f"decode acceptance length {_signed(self.whole.change)} over whole outputs, "
            f"{_signed(self.prefix.change)} ± {percent} on the same first tokens"
        )
        lengths = f"{self._length_words} ({self.tokens.old:.0f} → {self.tokens.new:.0f} tokens"
        if round(100 * self.capped_new) != round(100 * self.capped_old):
            lengths += f", {100 * self.capped_old:.0f} → {100 * self.capped_new:.0f} % at the cap"
        lengths += ")"
        drafting = "worse" if self.prefix.new < self.prefix.old else "better"
        conclusion = {
            "none": "no change beyond noise",
            "length": f"{lengths}, drafting is as good as before",
            "acceptance": f"drafting got {drafting}",
            "both": f"drafting got {drafting}, and {lengths}",
            "unclear": "too few prompts to tell length from drafting",
        }[self.shift]
        return f"{numbers}: {conclusion}"

    @property
    def _length_words(self) -> str:
        if not self.tokens.moved():
            return "outputs are of other lengths"
        return f"outputs got {'shorter' if self.tokens.new < self.tokens.old else 'longer'}"

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON; an error that is not known is null."""
        quantities = {"prefix": self.prefix, "whole": self.whole, "rest": self.rest, "tokens": self.tokens}
        return {
            "conversations": self.conversations,
            "left_out": self.left_out,
            "shift": self.shift,
            "text": self.text,
            "capped": {"new": self.capped_new, "old": self.capped_old},
            **{
                name: {
                    "new": paired.new,
                    "old": paired.old,
                    "error": paired.error if math.isfinite(paired.error) else None,
                }
                for name, paired in quantities.items()
            },
        }


def equal_length(new: Iterable[Turn], old: Iterable[Turn]) -> EqualLength | None:
    """Compare two runs over the same prompts; None where no conversation can be compared.

    Only turns with the same input are: first ones, and later ones while the replies before them agree. The
    conversation is the unit. A prompt that was measured several times counts once, with all its outputs cut to the
    shortest of them.
    """
    pairs = pair_turns(base=old, new=new).pairs
    measured = [_measured(pair) for pair in pairs]
    usable = [(pair, one) for pair, one in zip(pairs, measured, strict=True) if one is not None]
    if not usable:
        return None
    lengths = [one for _, one in usable]

    def paired(of: Callable[[_Lengths], float]) -> Paired:
        return _paired([of(one[0]) for one in lengths], [of(one[1]) for one in lengths])

    capped_new, capped_old = (
        fmean(turn.finish == "length" for turns in side for turn in turns)
        for side in ([pair.new for pair, _ in usable], [pair.base for pair, _ in usable])
    )
    return EqualLength(
        conversations=len(usable),
        left_out=len(pairs) - len(usable),
        prefix=paired(lambda one: one.prefix),
        whole=paired(lambda one: one.whole),
        rest=paired(lambda one: one.whole - one.prefix),
        tokens=paired(lambda one: one.tokens),
        capped_new=capped_new,
        capped_old=capped_old,
    )


@dataclass(frozen=True, slots=True)
class _Lengths:
    """One conversation in one run: its acceptance lengths, and its output tokens per turn."""

    prefix: float
    whole: float
    tokens: float


def _measured(pair: Pair) -> tuple[_Lengths, _Lengths] | None:
    """A conversation in the new run and in the old."""
    common: dict[int, int] = {}
    for turn in (*pair.new, *pair.base):
        common[turn.index] = min(common.get(turn.index, turn.output_tokens), turn.output_tokens)
    new, old = _lengths(pair.new, common), _lengths(pair.base, common)
    return None if new is None or old is None else (new, old)


def _lengths(turns: Sequence[Turn], common: Mapping[int, int]) -> _Lengths | None:
    prefix = _acceptance_length(steps_within(turn, common[turn.index]) for turn in turns)
    whole = _acceptance_length(steps_within(turn, turn.output_tokens) for turn in turns)
    if prefix is None or whole is None:
        return None
    return _Lengths(prefix, whole, fmean(turn.output_tokens for turn in turns))


def _acceptance_length(sums: Iterable[tuple[int, int] | None]) -> float | None:
    tokens = steps = 0
    for one in sums:
        if one is None:
            return None
        tokens, steps = tokens + one[0], steps + one[1]
    return tokens / steps if steps else None


def steps_within(turn: Turn, tokens: int) -> tuple[int, int] | None:
    """(tokens, steps) of the decode steps that end before output token ``tokens``, counted from 1 with the prefill's.

    The step that reaches it is left out: of the last step of a turn that ends there, it is not known or not
    relevant how far it would have gone, and the other run's step there must be treated alike. None where the
    lengths of the steps or, if ``tokens`` are not all, their order are not known.
    """
    steps = turn.steps
    if steps is None or steps.unresolved:
        return None
    if steps.ordered:
        ends = accumulate(steps.lengths, initial=1)
        next(ends)
        kept = [length for length, end in zip(steps.lengths, ends, strict=True) if end < tokens]
        return sum(kept), len(kept)
    if tokens < turn.output_tokens:
        return None
    uncut = uncut_histogram([turn])
    # All but the last step, unless it is not known which of the lengths was the last.
    known = sum(uncut.values()) == steps.count - 1
    return (sum(length * count for length, count in uncut.items()), steps.count - 1) if known else None


def _paired(new: Sequence[float], old: Sequence[float]) -> Paired:
    if len(new) < 2:
        return Paired(new[0], old[0], math.inf, math.inf)
    error = stdev(a - b for a, b in zip(new, old, strict=True)) / math.sqrt(len(new))
    return Paired(fmean(new), fmean(old), error, t_quantile((1 + CONFIDENCE) / 2, len(new) - 1) * error)


def _signed(share: float) -> str:
    return f"{'−' if share < 0 else '+'}{_percent(abs(share))}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"

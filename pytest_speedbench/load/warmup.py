"""Warm-up: traffic like the cell's, of prompts that are in no dataset, until its pace is steady.

Engines compile kernels during their first seconds of traffic, anew for other shapes, and keep tries
and caches of what they have seen. So warm-up has the cell's concurrency and prompt length, and never
its prompts.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_speedbench.load.driver import Conversation
from pytest_speedbench.measure.samples import Turn
from pytest_speedbench.tokenize import ChatTokenizer

OUTPUT_TOKENS = 16
MIN_ROUNDS, MAX_ROUNDS = 2, 8
MAX_S = 120.0
STEADY_RATIO = 1.25
"""Two rounds of equal work whose durations differ by no more than this factor are steady."""

SHORTEST = 128
_FILLER = " zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"


@dataclass(frozen=True, slots=True)
class Warmup:
    """How a warm-up went. ``seconds`` has the duration of each round."""

    seconds: tuple[float, ...]

    @property
    def steady(self) -> bool:
        """Whether the last two rounds took about as long as each other."""
        if len(self.seconds) < MIN_ROUNDS:
            return False
        before, last = self.seconds[-2:]
        return abs(math.log(last / before)) <= math.log(STEADY_RATIO) if last > 0 < before else False

    @property
    def over(self) -> bool:
        """Whether to stop: steady, or as long as is reasonable."""
        return self.steady or len(self.seconds) >= MAX_ROUNDS or sum(self.seconds) >= MAX_S


def round_s(turns: Sequence[Turn]) -> float:
    """How long a round took: from its first request to its last token, without what comes before (worker processes)."""
    if not turns:
        return 0.0
    return (max(turn.event_ns[-1] for turn in turns) - min(turn.start_ns for turn in turns)) / 1e9


def rough_length(tokens: int) -> int:
    """The next power of two: engines compile kernels for sizes in such steps, not for each length."""
    return max(SHORTEST, 1 << max(0, tokens - 1).bit_length())


def conversations(tokenizer: ChatTokenizer, *, number: int, length: int, round_index: int) -> tuple[Conversation, ...]:
    """``number`` one-turn conversations of about ``length`` prompt tokens, other ones in every round."""
    filler = tokenizer.encode(_FILLER)
    made = []
    for i in range(number):
        name = f"warm-up-{round_index}-{i}"
        ids = tokenizer.ids([{"role": "user", "content": f"Request {round_index}.{i}: go on counting."}])
        made.append(Conversation(name, "warm-up", (name,), _padded(ids, filler, length, seed=name)))
    return tuple(made)


def _padded(ids: Sequence[int], filler: Sequence[int], length: int, *, seed: str) -> tuple[int, ...]:
    """``ids`` with filler in its middle, in an order of its own for every prompt, so that none shares a long prefix."""
    middle = len(ids) // 2
    extra = random.Random(seed).choices(filler, k=max(0, length - len(ids)))
    return (*ids[:middle], *extra, *ids[middle:])

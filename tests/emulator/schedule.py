"""A scripted answer with known truth: which tokens, in which steps, joined into which events."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """One answer. ``steps`` holds (drafted, accepted) per decode step; the prefill gives the first token.

    The identity must hold: output tokens - 1 + cut = Σ (accepted + 1). ``joins`` are decode steps (from 0)
    whose tokens the server puts into the event of the step before (step 0: into that of the prefill).
    ``stopped``: the last token is EOS.
    """

    ids: tuple[int, ...]
    steps: tuple[tuple[int, int], ...]
    stopped: bool = False
    joins: frozenset[int] = frozenset()
    fault: str | None = None
    """Protocol modules say which faults they know."""
    fault_after: int = 2
    """Events that are sent before the fault."""

    def __post_init__(self) -> None:
        assert 0 <= self.cut <= (self.steps[-1][1] if self.steps else 0), self.cut
        assert all(a <= d for d, a in self.steps)

    @classmethod
    def of(
        cls,
        output_tokens: int,
        *,
        draft: int,
        accept: Sequence[int] = (0,),
        miss: int = 0,
        seed: int = 0,
        vocabulary: int = 256,
        **fields: object,
    ) -> Schedule:
        """``draft`` tokens per step, accepted by the pattern ``accept``; every ``miss``-th step drafts nothing."""
        left, steps = output_tokens - 1, list[tuple[int, int]]()
        while left > 0:
            drafted = 0 if miss and len(steps) % miss == miss - 1 else draft
            steps.append((drafted, min(accept[len(steps) % len(accept)], drafted)))
            left -= steps[-1][1] + 1
        ids = random.Random(seed).choices(range(32, min(127, vocabulary)), k=output_tokens)
        return cls(tuple(ids), tuple(steps), **fields)  # type: ignore[arg-type]

    @classmethod
    def drawn(cls, output_tokens: int, *, draft: int, rate: float, seed: int, **fields: object) -> Schedule:
        """Each draft is accepted with probability ``rate``, given that all before it in its step were."""
        law, left, steps = random.Random(seed), output_tokens - 1, list[tuple[int, int]]()
        while left > 0:
            accepted = 0
            while accepted < draft and law.random() < rate:
                accepted += 1
            steps.append((draft, accepted))
            left -= accepted + 1
        return cls(tuple(law.choices(range(32, 127), k=output_tokens)), tuple(steps), **fields)  # type: ignore[arg-type]

    @property
    def output_tokens(self) -> int:
        """N, EOS included."""
        return len(self.ids)

    @property
    def cut(self) -> int:
        """Tokens that the last step produced beyond the last output token."""
        return sum(self.lengths) - (self.output_tokens - 1)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Accepted + 1 of every decode step, uncut."""
        return tuple(a + 1 for _, a in self.steps)

    @property
    def drafted(self) -> int:
        """D, draft tokens."""
        return sum(d for d, _ in self.steps)

    @property
    def accepted(self) -> int:
        """A, accepted draft tokens, those beyond the end included."""
        return sum(a for _, a in self.steps)

    @property
    def drafts(self) -> int:
        """K, steps that drafted."""
        return sum(1 for d, _ in self.steps if d)

    @property
    def histogram(self) -> dict[int, int]:
        """Upstream's: {length: steps}, the prefill counted as a step of 1, the last step as cut."""
        lengths = [1, *self.lengths]
        lengths[-1] -= self.cut
        return dict(sorted(Counter(lengths).items()))

    @property
    def accepted_histogram(self) -> list[int]:
        """Index j: steps that drafted and accepted j drafts, uncut; as long as needed."""
        counts = Counter(a for d, a in self.steps if d)
        return [counts[j] for j in range(max(counts, default=-1) + 1)]

    @property
    def events(self) -> list[tuple[int, ...]]:
        """The ids of each event, prefill first, joined as ``joins`` says."""
        groups, at = [[self.ids[0]]], 1
        for number, length in enumerate(self.lengths):
            ids = self.ids[at : at + length]
            at += length
            if number in self.joins:
                groups[-1] += ids
            else:
                groups.append(list(ids))
        return [tuple(group) for group in groups]

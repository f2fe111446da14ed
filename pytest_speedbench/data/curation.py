"""SPEED-Bench's selection: k prompts whose embeddings are as unlike one another as possible.

For unit vectors x and a set S the objective is L(S) = sum of x_i·x_j over the unordered pairs of S; for
a fixed |S| = k its minimum is that of the mean pairwise cosine similarity, which is L(S) / (k(k-1)/2).
The search is the published one, greedy with local search: a random start, then always the candidate
with the least similarity to what was chosen, then swaps until none improves. Ours are best-improvement
swaps: of all (chosen, candidate) pairs the one with the greatest gain.

With s the sum over S, replacing ``out`` by ``in`` changes L by

    delta = (x_in - x_out)·(s - x_out) = g_in - g_out - x_in·x_out + x_out·x_out,   g = X s

so the dot products of all candidates with the chosen (k x n) are all that is ever kept, never n x n.
A swap replaces one row of them: one matrix-vector product.

It ends. A swap is made only if delta, worked out again in float64, is below -TOLERANCE; so L falls with
every swap by more than TOLERANCE less float64's rounding (1e-12), and L cannot fall below -k/2, since
2L = |s|^2 - k. What is left is swap-optimal: no single swap lowers L by more than TOLERANCE plus the
rounding of a float32 product (about 1e-6).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from pytest_speedbench.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors: TypeAlias = NDArray[np.float32]

TOLERANCE = 1e-5
"""The least decrease of L that a swap is made for; far below what a prompt changes, far above rounding."""
_TIE = 1e-6
"""Values this close are equal but for float32's rounding, which depends on where a vector stands in memory."""
_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Selection:
    """What was chosen: positions in the candidates as they were given, in the order of their ids.

    ``greedy`` is the set before the swaps. ``trace`` is L after the greedy start and after each swap.
    """

    chosen: tuple[int, ...]
    greedy: tuple[int, ...]
    trace: tuple[float, ...]

    @property
    def swaps(self) -> int:
        """How many swaps improved the greedy set."""
        return len(self.trace) - 1


def unit_vectors(raw: NDArray[np.floating], ids: Sequence[str]) -> Vectors:
    """The rows of ``raw`` (n x d) at length 1.

    Raises ConfigError that names the candidates whose vector has no direction: zero, infinite or NaN.
    """
    import numpy as np

    # One row at a time would be slow, and all at once in float64 takes three times the memory.
    result = np.empty(raw.shape, np.float32)
    for start in range(0, len(raw), _ROWS):
        block = raw[start : start + _ROWS].astype(np.float64)
        lengths = np.linalg.norm(block, axis=1)
        bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
        if bad.size:
            raise ConfigError(f"the embedding of candidate {ids[start + int(bad[0])]!r} is zero or not finite")
        result[start : start + _ROWS] = block / lengths[:, None]
    return result


def mean_similarity(vectors: Vectors) -> float | None:
    """Mean cosine similarity over all pairs of unit ``vectors`` (n x d), in time n·d; None for fewer than two."""
    import numpy as np

    n = len(vectors)
    if n < 2:
        return None
    total = vectors.sum(axis=0, dtype=np.float64)
    squares = float(np.einsum("ij,ij->", vectors, vectors, dtype=np.float64))
    return (float(total @ total) - squares) / (n * (n - 1))


def random_sample(ids: Sequence[str], k: int, seed: int | str) -> tuple[int, ...]:
    """The positions of ``k`` ids drawn at random; depends on seed and ids, not on their order."""
    # Hashes and not a generator: numpy may change a generator's stream from one release to the next.
    ranked = sorted(range(len(ids)), key=lambda i: hashlib.sha256(f"{seed}\n{ids[i]}".encode()).digest())
    return tuple(sorted(ranked[:k], key=ids.__getitem__))


def select(vectors: Vectors, ids: Sequence[str], k: int, seed: int) -> Selection:
    """Choose ``k`` of the candidates, whose unit ``vectors`` (n x d) are given with unique ``ids``.

    The result depends on the candidates and the seed, not on their order; between equal candidates the
    smaller id wins. Memory: one copy of the vectors unless ids are sorted, and 4·k·n bytes.
    Raises ConfigError for k below 1 or above n.
    """
    n = len(ids)
    if not 1 <= k <= n:
        raise ConfigError(f"cannot choose {k} of {n} candidates")
    order = sorted(range(n), key=ids.__getitem__)
    if order != list(range(n)):
        vectors = vectors[order]
    search = _Search(vectors, k)
    search.start(random_sample([ids[i] for i in order], 1, seed)[0])
    greedy = sorted(search.members)
    trace = [search.objective()]
    while search.swap():
        trace.append(search.objective())
    return Selection(
        chosen=tuple(order[i] for i in sorted(search.members)),
        greedy=tuple(order[i] for i in greedy),
        trace=tuple(trace),
    )


class _Search:
    """The state of one search over candidates in the order of their ids.

    ``dots[j]`` holds the products of all candidates with the j-th member, ``to_set`` their sum over
    the members (in float64, so that replaced rows leave no rounding behind), with infinity for members.
    """

    def __init__(self, vectors: Vectors, k: int) -> None:
        import numpy as np

        self.vectors = vectors
        self.k = k
        self.members: list[int] = []
        self.dots = np.empty((k, len(vectors)), np.float32)
        self.to_set = np.zeros(len(vectors), np.float64)

    def start(self, first: int) -> None:
        """Choose ``first``, then k - 1 times the candidate that is least similar to the chosen."""
        self._add(first)
        while len(self.members) < self.k:
            self._add(_first_smallest(self.to_set)[0])

    def swap(self) -> bool:
        """Make the swap that improves most; False when none improves."""
        import numpy as np

        best, best_in, best_slot = np.inf, -1, -1
        for slot in sorted(range(self.k), key=self.members.__getitem__):
            candidate, to_rest = _first_smallest(self.to_set - self.dots[slot])
            # With the member's product with itself, which is 1 for every member and so changes no order.
            own = float(self.dots[:, self.members[slot]].sum(dtype=np.float64))
            if to_rest - own < best - _TIE:
                best, best_in, best_slot = to_rest - own, candidate, slot
        if best_slot < 0 or self._delta(best_slot, best_in) >= -TOLERANCE:
            return False
        self._replace(best_slot, best_in)
        return True

    def objective(self) -> float:
        """L in float64."""
        import numpy as np

        chosen = self.vectors[self.members].astype(np.float64)
        total = chosen.sum(axis=0)
        return float(total @ total - np.einsum("ij,ij->", chosen, chosen)) / 2

    def _delta(self, slot: int, candidate: int) -> float:
        import numpy as np

        others = [member for j, member in enumerate(self.members) if j != slot]
        rest = self.vectors[others].astype(np.float64).sum(axis=0)
        new, old = self.vectors[[candidate, self.members[slot]]].astype(np.float64)
        return float((new - old) @ rest)

    def _add(self, candidate: int) -> None:
        import numpy as np

        slot = len(self.members)
        self.members.append(candidate)
        np.matmul(self.vectors, self.vectors[candidate], out=self.dots[slot])
        self.to_set += self.dots[slot]
        self.to_set[candidate] = np.inf

    def _replace(self, slot: int, candidate: int) -> None:
        import numpy as np

        out = self.members[slot]
        self.to_set -= self.dots[slot]
        np.matmul(self.vectors, self.vectors[candidate], out=self.dots[slot])
        self.to_set += self.dots[slot]
        self.members[slot] = candidate
        self.to_set[candidate] = np.inf
        self.to_set[out] = self.dots[:, out].sum(dtype=np.float64)


def _first_smallest(values: NDArray[np.float64]) -> tuple[int, float]:
    """The smallest of ``values`` and the first position that has it but for rounding."""
    import numpy as np

    smallest = float(values.min())
    return int(np.argmax(values <= smallest + _TIE)), smallest

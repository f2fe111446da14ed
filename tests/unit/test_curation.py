"""The selection: hand-computed examples, brute force, and what holds for any pool."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_speedbench.data.curation import (
    TOLERANCE,
    Selection,
    mean_similarity,
    random_sample,
    select,
    unit_vectors,
)
from pytest_speedbench.errors import ConfigError

if TYPE_CHECKING:
    from pytest_speedbench.data.curation import Vectors


def names(n: int) -> list[str]:
    return [f"q{i:04d}" for i in range(n)]


def at_degrees(*angles: float) -> Vectors:
    radians = np.radians(angles)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def pair_sum(vectors: Vectors, members: Sequence[int]) -> float:
    """L the long way: one product for each pair."""
    exact = vectors.astype(np.float64)
    return sum(float(exact[i] @ exact[j]) for i, j in itertools.combinations(members, 2))


def seed_that_starts_at(ids: Sequence[str], position: int) -> int:
    return next(seed for seed in itertools.count() if random_sample(ids, 1, seed) == (position,))


# Small whole numbers make equal and opposite directions, and ties, common.
RAW = st.lists(st.tuples(*[st.integers(-2, 2)] * 3).filter(any), min_size=1, max_size=9)


@st.composite
def instances(draw: st.DrawFn) -> tuple[Vectors, list[str], int, int]:
    raw = draw(RAW)
    ids = names(len(raw))
    return unit_vectors(np.array(raw, float), ids), ids, draw(st.integers(1, len(raw))), draw(st.integers(0, 5))


class TestMeanSimilarity:
    def test_by_hand(self) -> None:
        # Pairs: 0° and 60°, 0° and 180°, 60° and 180°: 1/2 - 1 - 1/2.
        assert mean_similarity(at_degrees(0, 60, 180)) == pytest.approx(-1 / 3, abs=1e-6)

    def test_of_one_is_none(self) -> None:
        assert mean_similarity(at_degrees(0)) is None

    @given(instances())
    def test_is_the_mean_over_pairs(self, instance: tuple[Vectors, list[str], int, int]) -> None:
        vectors, ids, _, _ = instance
        pairs = math.comb(len(ids), 2)
        expected = pair_sum(vectors, range(len(ids))) / pairs if pairs else None
        assert mean_similarity(vectors) == (None if expected is None else pytest.approx(expected, abs=1e-6))


class TestUnitVectors:
    def test_have_length_one_and_keep_their_direction(self) -> None:
        found = unit_vectors(np.array([[3.0, 4.0], [0.0, -1e-30]]), names(2))
        assert found.dtype == np.float32
        assert found.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, -1.0]]

    @pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
    def test_no_direction_is_named(self, bad: float) -> None:
        raw = np.ones((5000, 2), np.float32)
        raw[4500] = bad
        with pytest.raises(ConfigError, match="'q4500' is zero or not finite"):
            unit_vectors(raw, names(5000))


class TestRandomSample:
    def test_does_not_depend_on_the_order_and_is_nested(self) -> None:
        ids = names(50)
        few = {ids[i] for i in random_sample(ids, 5, 3)}
        many = {ids[i] for i in random_sample(ids, 20, 3)}
        backwards = ids[::-1]
        assert len(few) == 5
        assert few < many
        assert few == {backwards[i] for i in random_sample(backwards, 5, 3)}

    def test_depends_on_the_seed(self) -> None:
        assert len({random_sample(names(50), 5, seed) for seed in range(10)}) == 10

    def test_every_id_is_drawn_about_equally_often(self) -> None:
        ids = names(10)
        counts = np.bincount([i for seed in range(1000) for i in random_sample(ids, 3, seed)], minlength=10)
        # 300 expected, standard deviation 14.5.
        assert counts.min() > 240
        assert counts.max() < 360


class TestSelect:
    def test_greedy_then_one_swap_by_hand(self) -> None:
        # From 90° greedy takes 240° (cos 150° = -0.866) and then 0° (0 - 0.5): L = -0.866 + 0 - 0.5.
        # Three at distances of 120° have L = -1.5, so 90° goes and 120° comes.
        vectors, ids = at_degrees(0, 90, 120, 240), names(4)
        found = select(vectors, ids, 3, seed_that_starts_at(ids, 1))
        assert found.greedy == (0, 1, 3)
        assert found.chosen == (0, 2, 3)
        assert list(found.trace) == pytest.approx([-1.3660254, -1.5], abs=1e-6)
        assert found.swaps == 1

    def test_the_swap_with_the_greatest_gain_comes_first(self) -> None:
        # The start, 45°, is in every greedy set. 45° -> 90° gains more than 45° -> 80°, which has the smaller id.
        vectors, ids = at_degrees(45, 80, 90, 210, 330), names(5)
        found = select(vectors, ids, 3, seed_that_starts_at(ids, 0))
        assert found.greedy == (0, 3, 4)
        assert found.chosen == (2, 3, 4)
        assert found.swaps == 1

    def test_equal_candidates_the_smaller_id_wins(self) -> None:
        vectors = at_degrees(0, 180, 180, 180)
        ids = ["start", "c", "a", "b"]
        found = select(vectors, ids, 2, seed_that_starts_at(ids, 0))
        assert {ids[i] for i in found.chosen} == {"start", "a"}

    @pytest.mark.parametrize("k", [0, 5])
    def test_k_out_of_range(self, k: int) -> None:
        with pytest.raises(ConfigError, match=f"cannot choose {k} of 4"):
            select(at_degrees(0, 1, 2, 3), names(4), k, 0)

    @settings(max_examples=300)
    @given(instances())
    def test_against_brute_force(self, instance: tuple[Vectors, list[str], int, int]) -> None:
        vectors, ids, k, seed = instance
        found = select(vectors, ids, k, seed)
        assert len(set(found.chosen)) == len(set(found.greedy)) == k
        reached = pair_sum(vectors, found.chosen)
        least = min(pair_sum(vectors, subset) for subset in itertools.combinations(range(len(ids)), k))
        assert reached >= least - 1e-5
        # Swap-optimal: what TestSelect promises beyond "not worse than greedy".
        others = set(range(len(ids))) - set(found.chosen)
        for out, candidate in itertools.product(found.chosen, others):
            swapped = [i for i in found.chosen if i != out] + [candidate]
            assert pair_sum(vectors, swapped) > reached - TOLERANCE - 1e-5

    @given(instances())
    def test_the_trace_is_the_objective_and_falls(self, instance: tuple[Vectors, list[str], int, int]) -> None:
        vectors, ids, k, seed = instance
        found = select(vectors, ids, k, seed)
        assert found.trace[0] == pytest.approx(pair_sum(vectors, found.greedy), abs=1e-5)
        assert found.trace[-1] == pytest.approx(pair_sum(vectors, found.chosen), abs=1e-5)
        assert all(after < before - TOLERANCE / 2 for before, after in itertools.pairwise(found.trace))

    @given(instances(), st.randoms(use_true_random=False))
    def test_the_order_of_the_pool_does_not_matter(
        self, instance: tuple[Vectors, list[str], int, int], random: object
    ) -> None:
        vectors, ids, k, seed = instance
        order = list(range(len(ids)))
        random.shuffle(order)  # type: ignore[attr-defined]
        found = select(vectors, ids, k, seed)
        shuffled = select(vectors[order], [ids[i] for i in order], k, seed)
        assert [order[i] for i in shuffled.chosen] == list(found.chosen)
        assert [order[i] for i in shuffled.greedy] == list(found.greedy)
        assert shuffled.trace == found.trace

    @given(instances())
    def test_all_of_them_is_all_of_them(self, instance: tuple[Vectors, list[str], int, int]) -> None:
        vectors, ids, _, seed = instance
        everything = tuple(range(len(ids)))
        found = select(vectors, ids, len(ids), seed)
        assert found == Selection(everything, everything, found.trace)
        assert found.swaps == 0

    @given(instances())
    def test_one_is_the_start(self, instance: tuple[Vectors, list[str], int, int]) -> None:
        vectors, ids, _, seed = instance
        assert select(vectors, ids, 1, seed).chosen == random_sample(ids, 1, seed)

    @given(st.integers(2, 12), st.integers(0, 20))
    def test_no_direction_twice_while_there_are_others(self, d: int, seed: int) -> None:
        # Every axis three times; d orthogonal ones have L = 0, and a repeated one would add 1.
        vectors = np.tile(np.eye(d, dtype=np.float32), (3, 1))
        found = select(vectors, names(3 * d), d, seed)
        assert sorted(i % d for i in found.chosen) == list(range(d))

    # In two dimensions swaps undo one another: with these seeds, candidates that left come back.
    @pytest.mark.parametrize(("d", "seed"), [*((3, seed) for seed in range(20)), (2, 9), (2, 49), (2, 53), (2, 84)])
    def test_against_the_same_search_written_plainly(self, d: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        ids = names(40)
        vectors = unit_vectors(rng.standard_normal((40, d)), ids)
        members = list(random_sample(ids, 1, seed))
        while len(members) < 10:
            members.append(min(set(range(40)) - set(members), key=lambda i: pair_sum(vectors, [*members, i])))
        greedy = sorted(members)
        trace = [pair_sum(vectors, members)]
        while True:
            neighbours = [
                [i for i in members if i != out] + [new]
                for out, new in itertools.product(members, set(range(40)) - set(members))
            ]
            best = min(neighbours, key=lambda members: pair_sum(vectors, members))
            if pair_sum(vectors, best) > trace[-1] - TOLERANCE:
                break
            members = best
            trace.append(pair_sum(vectors, members))
        found = select(vectors, ids, 10, seed)
        assert list(found.greedy) == greedy
        assert list(found.trace) == pytest.approx(trace, abs=1e-5)
        assert list(found.chosen) == sorted(members)

    def test_a_pool_of_the_usual_size_is_swap_optimal(self) -> None:
        # Clusters in 64 dimensions, a tenth of the candidates twice; checked with the whole matrix in float64.
        rng = np.random.default_rng(5)
        raw = rng.standard_normal((30, 64))[rng.integers(30, size=1800)] + rng.standard_normal((1800, 64))
        raw = np.concatenate([raw, raw[:200]])
        vectors = unit_vectors(raw, names(2000))
        found = select(vectors, names(2000), 40, 1)
        exact = vectors.astype(np.float64)
        gram = exact @ exact.T
        chosen = np.array(found.chosen)
        others = np.setdiff1d(np.arange(2000), chosen)
        to_set = gram[:, chosen].sum(axis=1)
        own = to_set[chosen] - gram[chosen, chosen]
        gains = to_set[others][:, None] - gram[np.ix_(others, chosen)] - own[None, :]
        assert gains.min() > -TOLERANCE - 1e-5
        assert found.swaps > 0
        assert found.trace[-1] == pytest.approx(own.sum() / 2, abs=1e-4)

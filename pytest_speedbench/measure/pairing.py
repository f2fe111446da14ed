"""Which turns of two runs over the same prompts can be compared one to one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pytest_speedbench.measure.samples import Turn

_ByIndex = Mapping[int, list[Turn]]


@dataclass(frozen=True, slots=True)
class Pair:
    """One conversation as two runs answered it: only turns whose input was the same in both.

    A prompt that was measured more than once has more than one turn on a side; these are not
    independent, so the conversation is the unit of every statistic.
    """

    category: str
    question_id: str
    base: tuple[Turn, ...]
    new: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Pairs:
    """The conversations that both runs have, sorted by category and id.

    ``only_base`` and ``only_new`` are ids of conversations that the other run lacks. ``left_out`` counts
    the later turns of the base run that are in no pair, because replies before them differ.
    """

    pairs: tuple[Pair, ...]
    only_base: tuple[str, ...] = ()
    only_new: tuple[str, ...] = ()
    left_out: int = 0


def pair_turns(base: Iterable[Turn], new: Iterable[Turn]) -> Pairs:
    """Pair the turns of two runs over the same prompts.

    First turns have the same input by construction. A later one has the replies before it in its
    input, so it is paired only while all of these agree token by token, and only where neither run
    repeated the conversation: repetitions cannot be told apart.
    """
    left, right = _conversations(base), _conversations(new)
    found: list[Pair] = []
    left_out = 0
    for category, question_id in sorted(left.keys() & right.keys()):
        a, b = left[category, question_id], right[category, question_id]
        shared = _same_inputs(a, b)
        left_out += sum(len(turns) for index, turns in a.items() if index not in shared)
        if shared:
            one, other = (tuple(turn for index in shared for turn in side[index]) for side in (a, b))
            found.append(Pair(category, question_id, one, other))
    return Pairs(
        tuple(found),
        tuple(sorted(question_id for _, question_id in left.keys() - right.keys())),
        tuple(sorted(question_id for _, question_id in right.keys() - left.keys())),
        left_out,
    )


def _conversations(turns: Iterable[Turn]) -> dict[tuple[str, str], dict[int, list[Turn]]]:
    found: dict[tuple[str, str], dict[int, list[Turn]]] = {}
    for turn in turns:
        found.setdefault((turn.category, turn.question_id), {}).setdefault(turn.index, []).append(turn)
    return found


def _same_inputs(a: _ByIndex, b: _ByIndex) -> tuple[int, ...]:
    """The indices of turns whose input was the same on both sides."""
    shared: list[int] = []
    while (index := len(shared)) in a and index in b:
        shared.append(index)
        if len(a[index]) > 1 or len(b[index]) > 1 or not _same_reply(a[index][0], b[index][0]):
            break
    return tuple(shared)


def _same_reply(a: Turn, b: Turn) -> bool:
    """Whether two replies are known to be equal. Without every token id that is not known."""
    return a.output_ids is not None and a.output_ids == b.output_ids

"""The regressions that are injected: each a pure, seeded function from a recorded window to a worse one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from operator import truediv
from random import Random

from pytest_speedbench.measure.samples import Failure, Turn, Window
from pytest_speedbench.measure.steps import step_total
from pytest_speedbench.selftest import edits

FEW = 0.05
"""The share of prompts that a concentrated drop hits; at least one prompt."""
SPREAD = 0.1
"""By how much the prompts of one half fall, and those of the other rise, where only the spread grows."""
HALT = 20.0
"""How many times slower everything is where the question is whether a gate can fail at all."""

Change = Callable[[Window, int, Random], Window | None]
"""(window, draft tokens of a step, random numbers) to the changed window, None where it cannot be changed so."""


class Kind(str, Enum):
    """What is expected of a gate."""

    WORSE = "worse"
    """The system is worse: not passed, unless the effect is smaller than the gate can see."""
    BROKEN = "broken"
    """The run is broken: INVALID."""
    SPREAD = "spread"
    """Nothing is worse on average: reported, not counted."""
    EXTREME = "extreme"
    """So bad that a gate which passes it can never fail."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """One regression. ``title`` heads a column, ``text`` says what was done."""

    name: str
    title: str
    kind: Kind
    text: str
    change: Change

    def applied(self, window: Window, draft_tokens: int, seed: int) -> Window | None:
        """The changed window; equal arguments give equal windows."""
        random = Random(f"{seed} {self.name} {window.cell} {window.start} {window.repeat}")
        return self.change(window, draft_tokens, random)


# Acceptance


def _conversations(turns: Sequence[Turn]) -> dict[tuple[str, str], list[int]]:
    """Indices of the turns of each conversation, sorted as ``measure.acceptance`` sorts them."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, turn in enumerate(turns):
        groups.setdefault((turn.category, turn.question_id), []).append(index)
    return dict(sorted(groups.items()))


def _per_request(window: Window) -> bool:
    return bool(window.turns) and all(turn.steps is not None for turn in window.turns)


def _steps(turns: Sequence[Turn]) -> int:
    """Steps as the acceptance length counts them: one more per turn for the prefill."""
    return sum(1 + (0 if turn.steps is None else turn.steps.count) for turn in turns)


def lower_acceptance(share: float, window: Window, draft_tokens: int, random: Random) -> Window | None:
    """The acceptance length of every conversation lower by ``share``: its steps grow by 1 / (1 - share).

    Steps are whole, so each conversation gets the whole part of what it needs, and those that miss most one more,
    until the mean is as near to the drop as it gets. None where too few drafts were accepted for it.
    """
    growth = share / (1 - share)
    if not _per_request(window):
        return _lower_hidden(growth, window, draft_tokens)
    groups = list(_conversations(window.turns).values())
    places = [[(index, joint) for index in group for joint in edits.joints(window.turns[index])] for group in groups]
    tokens = [sum(window.turns[index].output_tokens for index in group) for group in groups]
    steps = [_steps([window.turns[index] for index in group]) for group in groups]
    numbers = _more_steps(share, tokens, steps, [len(each) for each in places])
    if numbers is None:
        return None
    chosen = [place for each, number in zip(places, numbers, strict=True) for place in random.sample(each, number)]
    return _divided(window, chosen, draft_tokens)


def _more_steps(share: float, tokens: Sequence[int], steps: Sequence[int], most: Sequence[int]) -> list[int] | None:
    """How many steps each conversation gets, at most ``most``, to lower the mean of tokens / steps by ``share``."""
    wanted = [number * share / (1 - share) for number in steps]
    numbers = [min(math.floor(want), limit) for want, limit in zip(wanted, most, strict=True)]
    target = math.fsum(map(truediv, tokens, steps)) * (1 - share)
    missed = math.fsum(n / (s + more) for n, s, more in zip(tokens, steps, numbers, strict=True)) - target
    while missed > 0:
        free = [i for i, limit in enumerate(most) if numbers[i] < limit]
        if not free:
            return None
        i = max(free, key=lambda i: (wanted[i] - numbers[i]) / wanted[i])
        now = steps[i] + numbers[i]
        fall = tokens[i] / now - tokens[i] / (now + 1)
        if fall > 2 * missed and any(numbers):
            break
        numbers[i] += 1
        missed -= fall
    return numbers


def _lower_hidden(growth: float, window: Window, draft_tokens: int) -> Window | None:
    """The same where only the totals of the window tell of steps."""
    total = step_total(window)
    if total is None or window.counters.accepted is None:
        return None
    more = round(growth * (total.low + len(window.turns)))
    room = sum(turn.output_tokens - 1 for turn in window.turns) - total.high
    return edits.with_steps_hidden(window, more, draft_tokens) if 0 < more <= room else None


def _divided(window: Window, places: Sequence[tuple[int, edits.Joint]], draft_tokens: int) -> Window | None:
    by_turn: dict[int, list[edits.Joint]] = {}
    for index, joint in places:
        by_turn.setdefault(index, []).append(joint)
    if not by_turn:
        return None
    turns = [edits.divided(turn, by_turn.get(i, ()), draft_tokens) for i, turn in enumerate(window.turns)]
    return edits.with_turns(window, turns, draft_tokens)


def concentrated(window: Window, draft_tokens: int, random: Random) -> Window | None:
    """A few conversations fall to an acceptance length of 1, the others stay."""
    if not _per_request(window):
        return None
    groups = [
        group
        for group in _conversations(window.turns).values()
        if any(edits.joints(window.turns[index]) for index in group)
    ]
    if not groups:
        return None
    number = max(1, round(FEW * len(_conversations(window.turns))))
    hit = [index for group in random.sample(groups, min(number, len(groups))) for index in group]
    return _divided(window, [(i, joint) for i in hit for joint in edits.joints(window.turns[i])], draft_tokens)


def dead_position(position: int, window: Window, draft_tokens: int, random: Random) -> Window | None:
    """No step accepts the draft at ``position`` (from 1; 0: the last one) or any after it.

    What one step emitted comes in steps of at most ``position`` tokens then.
    """
    position = position or draft_tokens
    if not 2 <= position <= draft_tokens or not _per_request(window):
        return None
    places = [
        (index, joint)
        for index, turn in enumerate(window.turns)
        for joint in edits.joints(turn)
        if turn.steps is not None and turn.steps.lengths[joint[0]] and joint[1] % position == 0
    ]
    return _divided(window, places, draft_tokens)


def collapse(window: Window, draft_tokens: int, random: Random) -> Window | None:
    """Hardly a draft is accepted: every step that can be divided is."""
    if _per_request(window):
        places = [(index, joint) for index, turn in enumerate(window.turns) for joint in edits.joints(turn)]
        return _divided(window, places, draft_tokens)
    total = step_total(window)
    if total is None or window.counters.accepted is None:
        return None
    more = sum(turn.output_tokens - 1 for turn in window.turns) - total.high
    return edits.with_steps_hidden(window, more, draft_tokens) if more > 0 else None


def wider_spread(window: Window, draft_tokens: int, random: Random) -> Window | None:
    """The acceptance length of one half of the conversations falls, that of the other rises; the mean stays.

    One step is divided or joined at a time, whichever brings the mean back. None where there is nothing to join.
    """
    if not _per_request(window):
        return None
    groups = list(_conversations(window.turns).values())
    random.shuffle(groups)
    half = len(groups) // 2
    tokens = [sum(window.turns[index].output_tokens for index in group) for group in groups]
    steps = [_steps([window.turns[index] for index in group]) for group in groups]
    places = [
        [(index, joint) for index in group for joint in edits.joints(window.turns[index])] for group in groups[:half]
    ]
    pairs = [
        [(index, step) for index in group for step in edits.joinable(window.turns[index], draft_tokens)]
        for group in groups[half:]
    ]
    for group_places in places:
        random.shuffle(group_places)
    for group_pairs in pairs:
        random.shuffle(group_pairs)
    room = [*map(len, places), *map(len, pairs)]
    wanted = [round(SPREAD * number) for number in steps]
    change, drift = [0] * len(groups), 0.0
    while True:
        side = range(half) if drift >= 0 else range(half, len(groups))
        free = [i for i in side if abs(change[i]) < min(wanted[i], room[i])]
        if not free:
            break
        i = max(free, key=lambda i: wanted[i] - abs(change[i]))
        before = tokens[i] / (steps[i] + change[i])
        change[i] += 1 if i < half else -1
        drift += tokens[i] / (steps[i] + change[i]) - before
    if not any(change[half:]):
        return None
    split = [place for i in range(half) for place in places[i][: change[i]]]
    merged = [pair for i in range(half, len(groups)) for pair in pairs[i - half][: -change[i]]]
    return _spread(window, split, merged, draft_tokens)


def _spread(
    window: Window, split: Sequence[tuple[int, edits.Joint]], merged: Sequence[tuple[int, int]], draft_tokens: int
) -> Window:
    turns = []
    for index, turn in enumerate(window.turns):
        turn = edits.divided(turn, [joint for i, joint in split if i == index], draft_tokens)
        turns.append(edits.joined(turn, [step for i, step in merged if i == index], draft_tokens))
    return edits.with_turns(window, turns, draft_tokens)


def no_speculation(window: Window, draft_tokens: int, random: Random) -> Window | None:
    """The engine was asked to speculate and never drafts."""
    return edits.undrafted(window) if draft_tokens and window.turns else None


# Time


def slower(share: float, window: Window, draft_tokens: int, random: Random) -> Window | None:
    """Rates lower by ``share``: all takes 1 / (1 - share) times as long."""
    return edits.stretched(window, 1 / (1 - share)) if window.turns else None


def later_first_token(share: float, window: Window, draft_tokens: int, random: Random) -> Window | None:
    """Times to first token longer by ``share``, the gaps after it as they were."""
    return edits.first_token_later(window, share) if window.turns else None


def halt(window: Window, draft_tokens: int, random: Random) -> Window | None:
    """Everything many times slower."""
    return edits.stretched(window, HALT) if window.turns else None


# Requests and counters


def lost_request(window: Window, draft_tokens: int, random: Random) -> Window | None:
    """The last turn of one conversation did not finish."""
    if not window.turns:
        return None
    turn = window.turns[random.choice([group[-1] for group in _conversations(window.turns).values()])]
    failure = Failure(turn.question_id, turn.index, "stream_cut", "the stream ended without its end mark")
    left = edits.without(window, turn)
    return replace(left, failures=(*left.failures, failure))


def duplicated_request(window: Window, draft_tokens: int, random: Random) -> Window | None:
    """One turn was measured twice."""
    return edits.again(window, random.choice(window.turns)) if window.turns else None


def counter_mismatch(window: Window, draft_tokens: int, random: Random) -> Window | None:
    """The server counted one token more than the client."""
    return edits.miscounted(window) if window.turns else None


def _lower(percent: int) -> Mutation:
    text = f"acceptance length {percent} % lower in every conversation"
    return Mutation(f"al-{percent}", f"AL −{percent} %", Kind.WORSE, text, partial(lower_acceptance, percent / 100))


def _slow(percent: int) -> Mutation:
    text = f"everything slower, so that rates are {percent} % lower"
    return Mutation(f"tps-{percent}", f"TPS −{percent} %", Kind.WORSE, text, partial(slower, percent / 100))


_COLLAPSE = Mutation("collapse", "AL → 1", Kind.EXTREME, "hardly a draft accepted", collapse)
_HALT = Mutation("halt", "20 × slower", Kind.EXTREME, "everything 20 times slower", halt)

MUTATIONS: Mapping[str, Mutation] = {
    mutation.name: mutation
    for mutation in (
        *map(_lower, (2, 4, 6, 10)),
        Mutation("few", "few → 1", Kind.WORSE, "5 % of the conversations, at least one, at AL 1", concentrated),
        Mutation("dead-2", "pos. 2", Kind.WORSE, "draft position 2 dead", partial(dead_position, 2)),
        Mutation("dead-last", "last pos.", Kind.WORSE, "last draft position dead", partial(dead_position, 0)),
        *map(_slow, (5, 10)),
        Mutation("ttft-20", "TTFT +20 %", Kind.WORSE, "first tokens 20 % later", partial(later_first_token, 0.2)),
        Mutation("lost", "lost", Kind.BROKEN, "one request lost", lost_request),
        Mutation("duplicate", "twice", Kind.BROKEN, "one request measured twice", duplicated_request),
        Mutation("counters", "counters", Kind.BROKEN, "one token more by the server's counters", counter_mismatch),
        Mutation("undrafted", "no drafts", Kind.BROKEN, "nothing drafted", no_speculation),
        Mutation(
            "spread", "spread", Kind.SPREAD, "half of the conversations 10 % lower, the others higher", wider_spread
        ),
        _COLLAPSE,
        _HALT,
    )
}
"""In the order of the columns."""

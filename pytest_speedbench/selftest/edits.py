"""Edits of recorded turns that keep every identity of ``measure.checks``.

A turn's tokens lie in a row of decode steps. Dividing a step in two is what one draft fewer accepted does: the
tokens stay, S grows by one and A falls by one, so N - 1 + cut = A + S still holds; the new step drafts too, so
K grows by one and D by the draft tokens of a step. Joining two steps is the reverse. Times stay, and a step that
is new arrives between its neighbours: what a slower machine does is an edit of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from pytest_speedbench.measure.samples import Steps, StepTotal, Turn, Window
from pytest_speedbench.measure.steps import step_total

Joint = tuple[int, int]
"""A place where a step can be divided: its index, and after how many of its tokens."""

_UNSEEN = -1


def joints(turn: Turn) -> list[Joint]:
    """Every place where a step of the turn can be divided, so that each part emits a token of the output.

    Of a step whose own length is unknown, only how many places there are is known. Empty where steps are.
    """
    steps = turn.steps
    if steps is None:
        return []
    cut, last, found = steps.cut or 0, steps.count - 1, list[Joint]()
    for index, length in enumerate(steps.lengths):
        # What was cut belongs to the last step, and without an order any step that is long enough may be the last.
        kept = cut if length > cut and (index == last or not steps.ordered) else 0
        found += [(index, after) for after in range(1, length - kept)]
    hidden = _hidden_drafts(turn, steps)
    if hidden:
        found += [(steps.lengths.index(0), number) for number in range(1, hidden + 1)]
    return found


def _hidden_drafts(turn: Turn, steps: Steps) -> int:
    """Accepted drafts that reached the output in steps of unknown length."""
    if not steps.unresolved:
        return 0
    resolved = sum(steps.lengths)
    if steps.accepted is None or steps.cut is None:
        return turn.output_tokens - 1 - resolved - steps.unresolved
    of_last = 0 if steps.ordered and steps.lengths[-1] else steps.cut
    return steps.accepted - (resolved - (steps.count - steps.unresolved)) - of_last


def divided(turn: Turn, at: Collection[Joint], draft_tokens: int) -> Turn:
    """The turn with its steps divided at these joints."""
    steps = turn.steps
    if steps is None or not at:
        return turn
    by_step: dict[int, list[int]] = defaultdict(list)
    for index, after in at:
        by_step[index].append(after)
    lengths: list[int] = []
    arrivals = list(turn.step_ns[:1])
    timed = len(turn.step_ns) == steps.count + 1
    for index, length in enumerate(steps.lengths):
        parts = _parts(length, sorted(by_step[index]))
        lengths += parts
        if timed:
            arrivals += _between(turn.step_ns[index], turn.step_ns[index + 1], len(parts))
    return _with_lengths(turn, steps, lengths, arrivals if timed else turn.step_ns, draft_tokens)


def _parts(length: int, after: Sequence[int]) -> list[int]:
    if length == 0:
        return [0] * (len(after) + 1)
    return [end - begin for begin, end in zip((0, *after), (*after, length), strict=True)]


def _between(begin: int, end: int, parts: int) -> list[int]:
    """Arrivals of ``parts`` steps, the last at ``end``; unseen where that is not known of either neighbour."""
    if begin < 0 or end < 0:
        return [_UNSEEN] * (parts - 1) + [end]
    return [begin + (end - begin) * part // parts for part in range(1, parts + 1)]


def joinable(turn: Turn, draft_tokens: int) -> list[int]:
    """Indices of steps that one step could have emitted together with the step after it; no two overlap.

    Not where an event can be more than a step: a server cannot send more events than there are steps.
    """
    steps = turn.steps
    if steps is None or not steps.ordered or len(turn.event_tokens) < steps.count + 1:
        return []
    found: list[int] = []
    for index, (one, two) in enumerate(zip(steps.lengths, steps.lengths[1:], strict=False)):
        free = not found or found[-1] < index - 1
        if free and one and two and one + two <= draft_tokens + 1:
            found.append(index)
    return found


def joined(turn: Turn, at: Collection[int], draft_tokens: int) -> Turn:
    """The turn with each of these steps joined with the step after it."""
    steps = turn.steps
    if steps is None or not at:
        return turn
    lengths, arrivals = list(steps.lengths), list(turn.step_ns)
    moments, tokens = list(turn.event_ns), list(turn.event_tokens)
    timed = len(arrivals) == steps.count + 1
    each_event_is_a_step = len(tokens) == steps.count + 1
    for index in sorted(at, reverse=True):
        lengths[index : index + 2] = [lengths[index] + lengths[index + 1]]
        if each_event_is_a_step:
            tokens[index + 1 : index + 3] = [tokens[index + 1] + tokens[index + 2]]
            del moments[index + 1]
        if timed:
            del arrivals[index + 1]
    turn = replace(turn, event_ns=tuple(moments), event_tokens=tuple(tokens))
    return _with_lengths(turn, steps, lengths, arrivals, draft_tokens)


def _with_lengths(turn: Turn, steps: Steps, lengths: Sequence[int], arrivals: Sequence[int], draft_tokens: int) -> Turn:
    more = len(lengths) - steps.count
    accepted = None if steps.accepted is None else steps.accepted - more
    told = turn.told
    if told is not None:
        told = replace(
            told,
            steps=_plus(told.steps, more),
            drafts=_plus(told.drafts, more),
            accepted=_plus(told.accepted, -more),
            drafted=_drafted(told.drafted, _plus(told.accepted, -more), more, draft_tokens),
            lengths=None,
        )
    edited = replace(
        steps,
        lengths=tuple(lengths if steps.ordered else sorted(lengths)),
        accepted=accepted,
        drafted=_drafted(steps.drafted, accepted, more, draft_tokens),
    )
    return replace(turn, steps=edited, step_ns=tuple(arrivals), told=told)


def _plus(number: int | None, more: int) -> int | None:
    return None if number is None else max(0, number + more)


def _drafted(drafted: int | None, accepted: int | None, more: int, draft_tokens: int) -> int | None:
    """D after ``more`` steps: never fewer than were accepted."""
    return None if drafted is None else max(accepted or 0, drafted + more * draft_tokens)


def with_turns(window: Window, turns: Sequence[Turn], draft_tokens: int) -> Window:
    """The window with edited turns, one for each of its own, and totals that agree with them."""
    pairs = list(zip(window.turns, turns, strict=True))
    more = sum(_count(new) - _count(old) for old, new in pairs)
    drafted = [(_drafts_of(new), _drafts_of(old)) for old, new in pairs]
    known = [new - old for new, old in drafted if new is not None and old is not None]
    extra = sum(known) if len(known) == len(pairs) else more * draft_tokens
    return replace(_with_more_steps(window, more, extra), turns=tuple(turns))


def with_steps_hidden(window: Window, more: int, draft_tokens: int) -> Window:
    """The window with ``more`` steps, where only totals say how many there were."""
    return _with_more_steps(window, more, more * draft_tokens)


def _with_more_steps(window: Window, more: int, drafted: int) -> Window:
    counters, total = window.counters, window.steps
    accepted, steps = _plus(counters.accepted, -more), _plus(counters.steps, more)
    return replace(
        window,
        counters=replace(
            counters,
            steps=steps,
            drafts=None if counters.drafts is None else max(0, counters.drafts + more),
            accepted=accepted,
            drafted=None if counters.drafted is None else max(accepted or 0, counters.drafted + drafted),
        ),
        steps=None if total is None else StepTotal(total.low + more, total.high + more, total.source),
    )


def _count(turn: Turn) -> int:
    return 0 if turn.steps is None else turn.steps.count


def _drafts_of(turn: Turn) -> int | None:
    return None if turn.steps is None else turn.steps.drafted


def undrafted(window: Window) -> Window:
    """The window as a server gives it that was asked to speculate and does not."""
    turns = tuple(_plain(turn) for turn in window.turns)
    steps = sum(turn.output_tokens - 1 for turn in turns)
    counters, total = window.counters, window.steps

    def told(number: int | None, now: int = 0) -> int | None:
        return None if number is None else now

    return replace(
        window,
        turns=turns,
        counters=replace(
            counters,
            steps=told(counters.steps, steps),
            drafts=told(counters.drafts),
            drafted=told(counters.drafted),
            accepted=told(counters.accepted),
        ),
        steps=None if total is None else StepTotal(steps, steps, total.source),
    )


def _plain(turn: Turn) -> Turn:
    count = turn.output_tokens - 1
    if turn.steps is not None:
        every = divided(turn, joints(turn), 0)
        # Only a turn that was cut has steps left that are longer than one token.
        arrivals = every.step_ns if _count(every) == count else ()
        cut = None if turn.steps.cut is None else 0
        accepted, drafted = (None if n is None else 0 for n in (turn.steps.accepted, turn.steps.drafted))
        turn = replace(turn, steps=Steps((1,) * count, accepted, drafted, cut), step_ns=arrivals)
    told = turn.told
    return (
        turn
        if told is None
        else replace(turn, told=replace(told, steps=count, drafts=0, drafted=0, accepted=0, lengths=()))
    )


# Requests


def without(window: Window, turn: Turn) -> Window:
    """The window without this turn, and totals as if the server had never finished it."""
    turns = tuple(other for other in window.turns if other is not turn)
    return replace(_counted(window, turn, -1), turns=turns)


def again(window: Window, turn: Turn) -> Window:
    """The window with this turn measured once more."""
    return replace(_counted(window, turn, 1), turns=(*window.turns, turn))


def _counted(window: Window, turn: Turn, sign: int) -> Window:
    """Totals with one turn more (1) or less (-1). Unknown steps are as many as its events, a cut is the mean."""
    counters, total, steps = window.counters, window.steps, turn.steps
    count = max(0, len(turn.event_tokens) - 1) if steps is None else steps.count
    accepted = steps.accepted if steps is not None else None
    if accepted is None:
        accepted = turn.output_tokens - 1 - count + _mean_cut(window)
    drafted = accepted if steps is None or steps.drafted is None else steps.drafted
    every = step_total(window)
    drafts = counters.drafts
    if drafts is not None and every is not None:
        # No more steps drafted than there are left.
        drafts = min(drafts, every.high + sign * count)
    return replace(
        window,
        counters=replace(
            counters,
            prompt_tokens=_plus(counters.prompt_tokens, sign * turn.prompt_tokens),
            output_tokens=_plus(counters.output_tokens, sign * turn.output_tokens),
            steps=_plus(counters.steps, sign * count),
            drafts=drafts,
            accepted=_plus(counters.accepted, sign * accepted),
            drafted=_plus(counters.drafted, sign * drafted),
        ),
        steps=None if total is None else StepTotal(total.low + sign * count, total.high + sign * count, total.source),
    )


def _mean_cut(window: Window) -> int:
    """Tokens beyond the output per turn, by N - 1 + cut = A + S over the window; 0 where that is unknown."""
    total, accepted = step_total(window), window.counters.accepted
    if total is None or accepted is None:
        return 0
    return max(0, accepted + total.low - sum(turn.output_tokens - 1 for turn in window.turns)) // len(window.turns)


def miscounted(window: Window) -> Window | None:
    """The window with one output token more by the server's counters; None where it counts neither kind of token."""
    counters = window.counters
    wrong = counters.slack + 1
    if counters.output_tokens is not None:
        return replace(window, counters=replace(counters, output_tokens=counters.output_tokens + wrong))
    if counters.prompt_tokens is not None:
        return replace(window, counters=replace(counters, prompt_tokens=counters.prompt_tokens + wrong))
    return None


# Times


def stretched(window: Window, factor: float) -> Window:
    """Everything takes ``factor`` times as long, counted from the first request."""
    begin = min((turn.start_ns for turn in window.turns), default=0)

    def at(moment: int) -> int:
        return moment if moment < 0 else begin + round((moment - begin) * factor)

    steady = window.steady_ns
    return replace(
        window,
        turns=tuple(
            replace(
                turn,
                start_ns=at(turn.start_ns),
                event_ns=tuple(map(at, turn.event_ns)),
                step_ns=tuple(map(at, turn.step_ns)),
            )
            for turn in window.turns
        ),
        steady_ns=steady and (at(steady[0]), at(steady[1])),
    )


def first_token_later(window: Window, share: float) -> Window:
    """Each turn's first token later by this share of its time to first token, and with it all that follows.

    The loop is closed: a stream's next request is sent when its turn before ended, so delays add up in a stream.
    """
    delays = _stream_delays(window.turns, share)

    def at_moment(moment: int) -> int:
        """How late the streams are on average."""
        late = [
            before + (delay if turn.event_ns[0] <= moment else 0)
            for turn, (before, delay) in zip(window.turns, delays, strict=True)
            if turn.event_ns and turn.start_ns <= moment <= turn.event_ns[-1]
        ]
        return sum(late) // len(late) if late else 0

    steady = window.steady_ns
    return replace(
        window,
        turns=tuple(_delayed(turn, *delay) for turn, delay in zip(window.turns, delays, strict=True)),
        steady_ns=steady and (steady[0] + at_moment(steady[0]), steady[1] + at_moment(steady[1])),
    )


def _stream_delays(turns: Sequence[Turn], share: float) -> list[tuple[int, int]]:
    """Per turn, how late it is sent and how much later than that its tokens come."""
    delays = [(0, 0)] * len(turns)
    ended: list[tuple[int, int]] = []
    for index in sorted(range(len(turns)), key=lambda index: turns[index].start_ns):
        turn = turns[index]
        # Whoever ended last before it is taken for the stream that sent it.
        previous = max((each for each in ended if each[0] <= turn.start_ns), default=None)
        if previous is not None:
            ended.remove(previous)
        before = previous[1] if previous else 0
        delay = round((turn.event_ns[0] - turn.start_ns) * share) if turn.event_ns else 0
        delays[index] = (before, delay)
        ended.append((turn.event_ns[-1] if turn.event_ns else turn.start_ns, before + delay))
    return delays


def _delayed(turn: Turn, before: int, delay: int) -> Turn:
    def later(moments: Iterable[int]) -> tuple[int, ...]:
        return tuple(moment if moment < 0 else moment + before + delay for moment in moments)

    return replace(turn, start_ns=turn.start_ns + before, event_ns=later(turn.event_ns), step_ns=later(turn.step_ns))

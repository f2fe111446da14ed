"""Whether a window can carry a verdict at all: completeness, counters, invariants.

``problems`` looks at what every metric rests on. What only timing rests on is apart, so that a busy
client does not void acceptance lengths: ``load_problem`` and ``concurrency_problem``.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pytest_speedbench.measure.acceptance import (
    acceptance_length,
    acceptance_length_pooled,
    decode_acceptance_length,
)
from pytest_speedbench.measure.samples import Client, Failure, Turn, Window, known_steps, known_sum
from pytest_speedbench.measure.steps import step_total

MAX_CLIENT_LAG_S = 0.010
MIN_KERNEL_STAMPED = 0.99
MAX_MERGED_SHARE = 0.01
"""Of events that were read together with the next one of their stream, and so have its time stamp.

Stamps of the kernel do not depend on the lag, but gaps are formed over what is read together. On a machine that
others used too, at lags of 32 to 670 ms, rates were right to 0.001 %. With 0.4 % of the events read together TTFT and
steps were right to 0.06 ms, p99 included; with 1.6 % the step p99 was 4 to 14 ms too long, and with 3.7 %, first
events among them, the TTFT p50 11 ms (docs/load.md). Some servers send the tokens of one step in
several events, which always come together: there the lag alone decides.
"""
MAX_CLIENT_CPU_SHARE = 0.9
MAX_SEND_DELAY_S = 0.25
"""At p99. Where 512 streams end on one step the last is replaced 0.15 s later, and engines have long been busy then."""
MAX_ARRIVAL_DELAY_S = 0.025
"""The same in an open loop, where streams do not end together: the longest step of an engine. What is sent later
comes in another batch than it was to."""
MAX_CLOCK_ERROR_S = 0.001
MIN_CONCURRENCY_SHARE = 0.95
"""Of the streams asked for, how many were in flight on average."""
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a cell is INVALID: a stable code and a sentence with the numbers."""

    code: str
    message: str


def problems(window: Window, *, speculation: bool, draft_tokens: int) -> tuple[Reason, ...]:
    """Every reason why the window cannot carry a verdict, at most one per code; empty when sound.

    ``speculation`` is whether the profile asks for it, ``draft_tokens`` the most drafts per step.
    Codes, in this order: ``nothing_measured``, ``lost_requests``, ``incomplete``, ``duplicated``,
    ``unplanned``, ``counter_gap``, ``prefix_cache``, ``server_queued``, ``counter_mismatch``,
    ``identity``, ``acceptance_out_of_range``, ``rate_above_one``, ``no_speculation``,
    ``unexpected_speculation``.
    """
    longest = draft_tokens + 1 if speculation else 1
    found = {
        "nothing_measured": _nothing(window),
        "lost_requests": _lost(window.failures),
        "incomplete": _incomplete(window),
        "duplicated": _duplicated(window),
        "unplanned": _unplanned(window),
    }
    if window.turns:
        counters = window.counters
        found |= {
            "counter_gap": _some(counters.missing, "records of the server were dropped before they were read"),
            "prefix_cache": _some(counters.cached_tokens, "prompt tokens came from a cache that is to be off"),
            "server_queued": _some(
                counters.preemptions,
                "times a running request was put back for want of memory; lower the concurrency or the lengths",
            ),
            "counter_mismatch": [*_mismatched_totals(window), *_mismatched_turns(window.turns)],
            "identity": [*_broken_identities(window.turns, longest), *_undrafted(window, longest)],
            "acceptance_out_of_range": _out_of_range(window.turns, longest),
            "rate_above_one": _rate_above_one(window),
            "no_speculation": _no_speculation(window) if speculation else [],
            "unexpected_speculation": [] if speculation else _unexpected_speculation(window),
        }
    return tuple(Reason(code, "; ".join(messages)) for code, messages in found.items() if messages)


def load_problem(window: Window, *, open_loop: bool = False) -> Reason | None:
    """``client_saturated`` when the load client was too slow to time this window, else None.

    For gates on rates and latencies only: token and step counts do not depend on the client's pace.
    In an open loop no concurrency is to be held, but the times of the arrivals.
    """
    return client_problem(
        window.client,
        concurrency=None if open_loop else window.cell.concurrency,
        merged=merged_share(window.turns),
        max_send_delay_s=MAX_ARRIVAL_DELAY_S if open_loop else MAX_SEND_DELAY_S,
    )


def merged_share(turns: Sequence[Turn]) -> float:
    """Of the events that another of the same stream follows, how many were read together with it.

    Of all such events or of first ones alone, which are few, whichever share is higher; 0 without any.
    """
    same = [[one == other for one, other in itertools.pairwise(turn.event_ns)] for turn in turns]
    followed = sum(map(len, same))
    if not followed:
        return 0.0
    firsts = [one[0] for one in same if one]
    return max(sum(map(sum, same)) / followed, sum(firsts) / len(firsts))


def client_problem(
    client: Client,
    *,
    concurrency: int | None = None,
    merged: float | None = None,
    max_lag_s: float = MAX_CLIENT_LAG_S,
    max_cpu_share: float = MAX_CLIENT_CPU_SHARE,
    max_send_delay_s: float = MAX_SEND_DELAY_S,
) -> Reason | None:
    """``load_problem`` by what the client says of itself.

    A value that is not a number counts as too slow, one that was not measured (None) does not. ``concurrency`` is
    what was asked for, ``merged`` the ``merged_share``: a small one excuses the lag where the stamps are the kernel's.
    """
    slow = []
    excused = merged is not None and merged <= MAX_MERGED_SHARE and (client.kernel_stamped or 0) >= MIN_KERNEL_STAMPED
    if not client.lag_p99_s <= (math.inf if excused else max_lag_s):
        slow.append(f"its event loop lagged {client.lag_p99_s * 1e3:.1f} ms at p99 (limit {max_lag_s * 1e3:.1f} ms)")
    if not client.cpu_share <= max_cpu_share:
        slow.append(f"it used {client.cpu_share:.0%} of a CPU (limit {max_cpu_share:.0%})")
    delay, error, mean = client.send_delay_p99_s, client.clock_error_s, client.concurrency_mean
    if delay is not None and not delay <= max_send_delay_s:
        slow.append(f"it sent {delay * 1e3:.0f} ms late at p99 (limit {max_send_delay_s * 1e3:.0f} ms)")
    if error is not None and not error <= MAX_CLOCK_ERROR_S:
        limit = MAX_CLOCK_ERROR_S * 1e3
        slow.append(f"the clocks of its processes differ by up to {error * 1e3:.1f} ms (limit {limit:.1f} ms)")
    if concurrency is not None and mean is not None and not mean >= MIN_CONCURRENCY_SHARE * concurrency:
        slow.append(f"it kept {mean:.1f} of {concurrency} streams in flight (at least {MIN_CONCURRENCY_SHARE:.0%})")
    return Reason("client_saturated", f"the load client was saturated: {' and '.join(slow)}") if slow else None


def concurrency_problem(window: Window, *, open_loop: bool = False) -> Reason | None:
    """``concurrency_not_held`` when a throughput cell never reached a steady window, else None."""
    if window.cell.split != "throughput":
        return None
    steady = window.steady_ns
    if steady is not None and steady[1] > steady[0]:
        return None
    planned = len(window.planned)
    if open_loop:
        message = f"all of {planned} conversations had arrived before the first was over; give more, or a lower rate"
    else:
        message = f"{window.cell.concurrency} conversations were never in flight together, out of {planned} planned"
    return Reason("concurrency_not_held", message)


def _some(number: int | None, what: str) -> list[str]:
    return [f"{number} {what}"] if number else []


# Completeness


def _nothing(window: Window) -> list[str]:
    return [] if window.turns else [f"none of {_turns(_planned_turns(window), 'planned ')} was measured"]


def _lost(failures: Sequence[Failure]) -> list[str]:
    if not failures:
        return []
    causes = Counter(f.reason for f in failures)
    counted = ", ".join(f"{count} × {cause}" for cause, count in sorted(causes.items(), key=lambda c: (-c[1], c[0])))
    named = _named(f"{_name(f.question_id, f.index)} ({f.message})" for f in failures)
    return [f"{_turns(len(failures))} failed: {counted}; {named}"]


def _planned(window: Window) -> Counter[tuple[str, int]]:
    return Counter((question_id, index) for question_id, turns in window.planned for index in range(turns))


def _planned_turns(window: Window) -> int:
    return sum(turns for _, turns in window.planned)


def _measured(window: Window) -> Counter[tuple[str, int]]:
    return Counter((turn.question_id, turn.index) for turn in window.turns)


def _incomplete(window: Window) -> list[str]:
    """Planned turns that are missing although nothing failed at them or before them."""
    failed: dict[str, int] = {}
    for failure in window.failures:
        failed[failure.question_id] = min(failure.index, failed.get(failure.question_id, failure.index))
    missing = _planned(window) - _measured(window)
    silent = [
        (question_id, index)
        for question_id, index in missing.elements()
        if question_id not in failed or index < failed[question_id]
    ]
    if not silent:
        return []
    where = _named(_name(*turn) for turn in silent)
    return [f"{len(silent)} of {_turns(_planned_turns(window), 'planned ')} not measured, without a failure: {where}"]


def _duplicated(window: Window) -> list[str]:
    planned, measured = _planned(window), _measured(window)
    extra = {turn: count for turn, count in measured.items() if 0 < planned[turn] < count}
    if not extra:
        return []
    named = _named(f"{_name(*turn)} ({count}×)" for turn, count in extra.items())
    return [f"{_turns(len(extra))} measured more often than planned: {named}"]


def _unplanned(window: Window) -> list[str]:
    planned = _planned(window)
    stray = [turn for turn in _measured(window) if planned[turn] == 0]
    if not stray:
        return []
    return [f"{_turns(len(stray))} measured that nobody planned: {_named(_name(*turn) for turn in stray)}"]


# Totals


def _mismatched_totals(window: Window) -> list[str]:
    counters, turns = window.counters, window.turns
    steps = known_steps(turns)
    own = len(steps) == len(turns)
    pairs = (
        ("output tokens", sum(t.output_tokens for t in turns), counters.output_tokens),
        ("prompt tokens", sum(t.prompt_tokens for t in turns), counters.prompt_tokens),
        ("decode steps", sum(s.count for s in steps) if own else None, counters.steps),
        ("drafted tokens", known_sum(s.drafted for s in steps) if own else None, counters.drafted),
        ("accepted tokens", known_sum(s.accepted for s in steps) if own else None, counters.accepted),
    )
    return [
        f"{what}: client {client}, server {server}"
        for what, client, server in pairs
        if server is not None and client is not None and abs(server - client) > counters.slack
    ]


def _mismatched_turns(turns: Sequence[Turn]) -> list[str]:
    """Turns whose stream and whose reported number of tokens disagree."""
    wrong = []
    for turn in turns:
        streamed = sum(turn.event_tokens)
        if turn.output_ids is not None and len(turn.output_ids) != turn.output_tokens:
            wrong.append(f"{_turn(turn)} has {len(turn.output_ids)} token ids for {turn.output_tokens} output tokens")
        elif streamed > turn.output_tokens:
            wrong.append(f"{_turn(turn)} streamed {streamed} tokens of {turn.output_tokens} output tokens")
    return [f"{_turns(len(wrong))} with two totals: {_named(wrong)}"] if wrong else []


# Invariants


def _broken_identities(turns: Sequence[Turn], longest: int) -> list[str]:
    wrong = [f"{_turn(turn)}: {fault}" for turn in turns for fault in _faults(turn, longest)]
    return [f"step counts contradict each other ({len(wrong)}×): {_named(wrong)}"] if wrong else []


def _faults(turn: Turn, longest: int) -> Iterator[str]:
    steps, tokens = turn.steps, turn.output_tokens
    if tokens < 1:
        yield f"it has {tokens} output tokens"
        return
    if steps is None:
        return
    if steps.cut is None or steps.accepted is None:
        # Every step gave at least a token of the output, also one that was cut.
        if not steps.count <= tokens - 1 <= longest * steps.count:
            yield f"{tokens} output tokens cannot come from {steps.count} steps of 1 to {longest} tokens"
        return
    if tokens - 1 + steps.cut != steps.accepted + steps.count:
        yield (
            f"N − 1 + cut = {tokens} − 1 + {steps.cut} is not A + S = {steps.accepted} + {steps.count} "
            f"(output tokens, drafts accepted, steps)"
        )
    if not 0 <= steps.cut < longest:
        yield f"its last step was cut by {steps.cut}, which must lie in 0 to {longest - 1}"
    elif steps.ordered and steps.lengths and 0 < steps.lengths[-1] <= steps.cut:
        yield f"its last step produced {steps.lengths[-1]} tokens and was cut by {steps.cut}"
    resolved = sum(length - 1 for length in steps.lengths if length)
    if resolved > steps.accepted or (resolved < steps.accepted and not steps.unresolved):
        yield f"its steps accepted {resolved} drafts by their lengths and {steps.accepted} by their sum"


def _undrafted(window: Window, longest: int) -> list[str]:
    """What the totals of the window say of steps, drafts and tokens together."""
    total, counters = step_total(window), window.counters
    if total is None:
        return []
    if counters.drafts is not None and counters.drafts > total.high + counters.slack:
        return [f"the server drafted in {counters.drafts} steps, but there were only {total.high} decode steps"]
    decoded = sum(t.output_tokens - 1 for t in window.turns)
    if not total.low <= decoded <= total.high * longest:
        return [f"{decoded} tokens after the first cannot come from {total.high} steps of 1 to {longest} tokens"]
    by_events = sum(len(t.event_tokens) - 1 for t in window.turns)
    if counters.steps is not None and total.high < by_events:
        return [f"the server counted {total.high} decode steps, but {by_events} events carried their tokens"]
    if total.exact and counters.accepted is not None:
        cut = counters.accepted + total.low - decoded
        most = (longest - 1) * len(window.turns)
        if not -counters.slack <= cut <= most + counters.slack:
            return [
                f"A + S = {counters.accepted} + {total.low} exceeds the {decoded} tokens after the first by {cut}, "
                f"which must lie in 0 to {most} (draft tokens × turns)"
            ]
    return []


def _out_of_range(turns: Sequence[Turn], longest: int) -> list[str]:
    return [*_lengths_out_of_range(turns, longest), *_means_out_of_range(turns, longest)]


def _lengths_out_of_range(turns: Sequence[Turn], longest: int) -> Iterator[str]:
    wrong = []
    for turn in turns:
        if turn.steps is None:
            continue
        bad = sorted({length for length in turn.steps.lengths if length < 0 or length > longest})
        hidden = (turn.steps.accepted or 0) - sum(length - 1 for length in turn.steps.lengths if length)
        if bad:
            wrong.append(f"{_turn(turn)} has {', '.join(map(str, bad))}")
        elif turn.steps.unresolved and hidden > turn.steps.unresolved * (longest - 1):
            wrong.append(f"{_turn(turn)} accepted {hidden} drafts in {turn.steps.unresolved} steps of unknown length")
    if wrong:
        yield f"a step emits 1 to {longest} tokens, but not in {_turns(len(wrong))}: {_named(wrong)}"


def _means_out_of_range(turns: Sequence[Turn], longest: int) -> Iterator[str]:
    if any(turn.steps is None for turn in turns):
        return
    for what, value in (
        ("request mean", acceptance_length(turns)),
        ("pooled", acceptance_length_pooled(turns)),
        ("decode", decode_acceptance_length(turns)),
    ):
        if value is not None and not 1 <= value <= longest:
            yield f"the acceptance length of the cell must lie in 1 to {longest}, but is {value:.4f} ({what})"


def _rate_above_one(window: Window) -> list[str]:
    counters = window.counters
    messages = []
    if counters.accepted is not None and counters.drafted is not None and counters.accepted > counters.drafted:
        messages.append(f"the server accepted {counters.accepted} of {counters.drafted} drafted tokens")
    wrong = [
        f"{_turn(t)} {t.steps.accepted} of {t.steps.drafted}"
        for t in window.turns
        if t.steps is not None and t.steps.drafted is not None and (t.steps.accepted or 0) > t.steps.drafted
    ]
    if wrong:
        messages.append(f"{_turns(len(wrong))} accepted more tokens than were drafted: {_named(wrong)}")
    return messages


def _no_speculation(window: Window) -> list[str]:
    counters = window.counters
    drafted = _drafted(window)
    if (drafted if counters.drafted is None else counters.drafted) > 0 and counters.drafts != 0:
        return []
    steps = sum(s.count for s in known_steps(window.turns))
    return [f"the profile asks for speculation, but nothing was drafted in {steps} decode steps"]


def _unexpected_speculation(window: Window) -> list[str]:
    counters = window.counters
    drafted = max(_drafted(window), counters.drafted or 0)
    told = (turn.told.accepted or 0 for turn in window.turns if turn.told is not None)
    accepted = max(sum(s.accepted or 0 for s in known_steps(window.turns)), sum(told), counters.accepted or 0)
    drafts = counters.drafts or 0
    if not (drafted or accepted or drafts):
        return []
    return [f"the profile asks for no speculation, but {drafted} tokens were drafted and {accepted} accepted"]


def _drafted(window: Window) -> int:
    """Draft tokens by the turns' own account."""
    own = sum(s.drafted or 0 for s in known_steps(window.turns))
    return max(own, sum(t.told.drafted or 0 for t in window.turns if t.told is not None))


# Wording


def _name(question_id: str, index: int) -> str:
    return f"{question_id} turn {index + 1}"


def _turn(turn: Turn) -> str:
    return _name(turn.question_id, turn.index)


def _turns(number: int, what: str = "") -> str:
    return f"{number} {what}turn{'' if number == 1 else 's'}"


def _named(items: Iterable[str]) -> str:
    """The first few, and how many there are beyond."""
    every = list(items)
    more = len(every) - _NAMED
    return ", ".join(every[:_NAMED]) + (f" and {more} more" if more > 0 else "")

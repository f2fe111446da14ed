"""Every reason why a window cannot carry a verdict, provoked one at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.cells import Cell
from pytest_speedbench.measure.checks import (
    Reason,
    client_problem,
    concurrency_problem,
    load_problem,
    merged_share,
    problems,
)
from pytest_speedbench.measure.samples import Client, Counters, Failure, Steps, StepTotal, Told, Turn, Window
from tests.unit.test_measure_samples import counters_of, plain, turn, window

TURNS = (
    turn("a", [4, 2, 3], cut=1),
    turn("a", [], index=1),
    turn("b", [4, 0, 1, 0, 2], hidden=3),
)
PLAIN = (plain("a", 8), plain("b", 1))
THROUGHPUT = Cell("throughput", 16, isl="8k", difficulty="mixed")


def found(measured: Window, *, speculation: bool = True, draft_tokens: int = 3) -> dict[str, str]:
    reasons = problems(measured, speculation=speculation, draft_tokens=draft_tokens)
    assert len({reason.code for reason in reasons}) == len(reasons)
    return {reason.code: reason.message for reason in reasons}


def only(measured: Window, code: str, *, speculation: bool = True, draft_tokens: int = 3) -> str:
    """The message of the one problem that there is."""
    reasons = found(measured, speculation=speculation, draft_tokens=draft_tokens)
    assert list(reasons) == [code]
    return reasons[code]


def with_steps(decoded: Steps, *, output_tokens: int, counters: Counters | None = None) -> Window:
    """A window around one turn of these steps, with counters that agree."""
    broken = replace(TURNS[0], steps=decoded, output_tokens=output_tokens, event_tokens=(output_tokens,))
    broken = replace(broken, event_ns=(1,))
    return window([broken], counters=counters)


# Sound windows


def test_a_sound_window_has_no_problem() -> None:
    assert found(window(TURNS)) == {}


def test_a_sound_window_without_speculation_has_no_problem() -> None:
    assert found(window(PLAIN, counters=counters_of(PLAIN, drafts=0)), speculation=False, draft_tokens=0) == {}
    # The profile's draft tokens do not matter while speculation is off.
    assert found(window(PLAIN, counters=Counters()), speculation=False, draft_tokens=3) == {}


def test_counters_that_the_engine_lacks_are_not_compared() -> None:
    assert found(window(TURNS, counters=Counters())) == {}


def test_steps_that_did_not_draft_are_allowed() -> None:
    assert found(window(TURNS, counters=counters_of(TURNS, drafts=5))) == {}


@given(st.lists(st.lists(st.integers(1, 4), max_size=8), min_size=1, max_size=6), st.data())
def test_whatever_keeps_the_identities_is_sound(cell: list[list[int]], data: st.DataObject) -> None:
    turns = []
    for i, lengths in enumerate(cell):
        cut = data.draw(st.integers(0, lengths[-1] - 1)) if lengths else 0
        turns.append(turn(f"q{i}", lengths, cut=cut))
    reasons = found(window(turns))
    assert set(reasons) <= ({"no_speculation"} if not any(cell) else set())


# Completeness


def test_nothing_measured() -> None:
    reasons = found(window([], planned=[("a", 2), ("b", 1)]))
    assert reasons["nothing_measured"] == "none of 3 planned turns was measured"
    assert list(reasons) == ["nothing_measured", "incomplete"]


def test_nothing_measured_because_all_failed() -> None:
    failed = window([], planned=[("a", 2)], failures=[Failure("a", 0, "http_500", "out of memory")])
    assert list(found(failed)) == ["nothing_measured", "lost_requests"]


def test_lost_requests_are_counted_by_reason() -> None:
    failures = [
        Failure("c", 0, "stream_cut", "no end mark"),
        Failure("d", 0, "http_400", "too long"),
        Failure("e", 1, "stream_cut", "no end mark"),
        Failure("f", 0, "timeout", "600 s"),
    ]
    planned = [("a", 2), ("b", 1), ("c", 3), ("d", 1), ("e", 2), ("f", 1)]
    message = only(
        window([*TURNS, turn("e", [2])], planned=planned, failures=failures),
        "lost_requests",
    )
    assert message == (
        "4 turns failed: 2 × stream_cut, 1 × http_400, 1 × timeout; "
        "c turn 1 (no end mark), d turn 1 (too long), e turn 2 (no end mark) and 1 more"
    )


def test_turns_after_a_failed_one_are_explained_and_those_before_are_not() -> None:
    planned = [("a", 2), ("b", 1), ("c", 4)]
    lost = window([*TURNS], planned=planned, failures=[Failure("c", 1, "timeout", "600 s")])
    reasons = found(lost)
    assert list(reasons) == ["lost_requests", "incomplete"]
    assert reasons["incomplete"] == "1 of 7 planned turns not measured, without a failure: c turn 1"


def test_incomplete_names_what_is_missing() -> None:
    message = only(window(TURNS, planned=[("a", 3), ("b", 1), ("c", 1)]), "incomplete")
    assert message == "2 of 5 planned turns not measured, without a failure: a turn 3, c turn 1"


def test_measured_twice() -> None:
    message = only(window([*TURNS, TURNS[1]], planned=[("a", 2), ("b", 1)]), "duplicated")
    assert message == "1 turn measured more often than planned: a turn 2 (2×)"


def test_a_prompt_that_is_planned_twice_may_be_measured_twice() -> None:
    planned = [("a", 2), ("b", 1), ("b", 1)]
    assert found(window([*TURNS, TURNS[2]], planned=planned)) == {}
    assert only(window(TURNS, planned=planned), "incomplete").endswith("b turn 1")


def test_measured_without_a_plan() -> None:
    message = only(window(TURNS, planned=[("a", 1), ("b", 1)]), "unplanned")
    assert message == "1 turn measured that nobody planned: a turn 2"


# Totals


@pytest.mark.parametrize(
    ("counter", "what", "client"),
    [
        ("output_tokens", "output tokens", 9 + 1 + 13),
        ("prompt_tokens", "prompt tokens", 30),
        ("drafted", "drafted tokens", 24),
        ("accepted", "accepted tokens", 13),
        ("steps", "decode steps", 8),
    ],
)
@pytest.mark.parametrize("off", [-1, 1])
def test_counter_mismatch_says_both_numbers(counter: str, what: str, client: int, off: int) -> None:
    counters = replace(counters_of(TURNS), **{counter: client + off})
    message = only(window(TURNS, counters=counters), "counter_mismatch")
    assert message == f"{what}: client {client}, server {client + off}"


@pytest.mark.parametrize("counter", ["output_tokens", "prompt_tokens", "drafted", "accepted", "steps"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_totals_that_a_server_prints_rounded_may_be_off_by_that_much(counter: str, sign: int) -> None:
    exact = replace(counters_of(TURNS), steps=8, slack=10)
    within = replace(exact, **{counter: getattr(exact, counter) + 10 * sign})
    assert found(window(TURNS, counters=within)) == {}
    beyond = replace(exact, **{counter: getattr(exact, counter) + 11 * sign})
    assert "counter_mismatch" in found(window(TURNS, counters=beyond))


def test_slack_applies_to_totals_alone() -> None:
    turns = [replace(TURNS[0], output_ids=(1, 2, 3)), *TURNS[1:]]
    assert list(found(window(turns, counters=replace(counters_of(TURNS), slack=100)))) == ["counter_mismatch"]


def test_totals_of_what_some_turns_do_not_tell_are_not_compared() -> None:
    unknown = [replace(TURNS[0], steps=None), *TURNS[1:]]
    counters = replace(counters_of(TURNS), steps=8)
    measured = window(unknown, counters=counters, total=StepTotal(8, 8, "step counter"))
    assert found(measured) == {}
    # Tokens are known all the same.
    lying = replace(counters, output_tokens=22)
    assert only(replace(measured, counters=lying), "counter_mismatch") == "output tokens: client 23, server 22"
    # The engine tells the steps of every turn, but the drafts of one it does not.
    silent = replace(TURNS[0], steps=Steps((4, 2, 3), accepted=None, drafted=None, cut=None))
    turns = [silent, *TURNS[1:]]
    assert found(window(turns, counters=counters)) == {}
    lying = replace(counters, steps=9)
    assert only(window(turns, counters=lying), "counter_mismatch") == "decode steps: client 8, server 9"


# What the server says went wrong


@pytest.mark.parametrize(
    ("counter", "code", "message"),
    [
        ("missing", "counter_gap", "3 records of the server were dropped before they were read"),
        ("cached_tokens", "prefix_cache", "3 prompt tokens came from a cache that is to be off"),
        (
            "preemptions",
            "server_queued",
            "3 times a running request was put back for want of memory; lower the concurrency or the lengths",
        ),
    ],
)
def test_what_the_server_did_and_should_not_have(counter: str, code: str, message: str) -> None:
    assert only(window(TURNS, counters=replace(counters_of(TURNS), **{counter: 3})), code) == message
    # Rounding does not excuse it, and neither does a run without speculation.
    assert only(window(TURNS, counters=replace(counters_of(TURNS), **{counter: 3}, slack=10)), code) == message
    plain_counters = replace(counters_of(PLAIN, drafts=0), **{counter: 3})
    assert only(window(PLAIN, counters=plain_counters), code, speculation=False) == message
    assert found(window(TURNS, counters=replace(counters_of(TURNS), **{counter: 0}))) == {}


def test_the_servers_troubles_come_before_the_sums_that_they_explain() -> None:
    counters = replace(counters_of(TURNS), missing=1, cached_tokens=2, preemptions=3, output_tokens=22)
    assert list(found(window(TURNS, counters=counters))) == [
        "counter_gap",
        "prefix_cache",
        "server_queued",
        "counter_mismatch",
    ]


# Repeats


def test_a_plan_that_is_repeated_is_measured_as_often() -> None:
    planned = [("a", 2), ("b", 1)]
    assert found(window([*TURNS] * 3, planned=planned * 3)) == {}
    assert only(window([*TURNS] * 3, planned=planned * 2), "duplicated") == (
        "3 turns measured more often than planned: a turn 1 (3×), a turn 2 (3×), b turn 1 (3×)"
    )
    missing = [*TURNS, *TURNS, *TURNS[:2]]
    assert only(window(missing, planned=planned * 3), "incomplete") == (
        "1 of 9 planned turns not measured, without a failure: b turn 1"
    )


def test_counter_mismatch_lists_every_total() -> None:
    counters = replace(counters_of(TURNS), output_tokens=1000, prompt_tokens=999)
    message = only(window(TURNS, counters=counters), "counter_mismatch")
    assert message == "output tokens: client 23, server 1000; prompt tokens: client 30, server 999"


def test_token_ids_and_reported_tokens_must_agree() -> None:
    short = replace(TURNS[0], output_ids=(1, 2, 3))
    message = only(window([short]), "counter_mismatch")
    assert message == "1 turn with two totals: a turn 1 has 3 token ids for 9 output tokens"
    assert found(window([replace(TURNS[0], output_ids=tuple(range(9)))])) == {}


def test_more_tokens_in_the_stream_than_reported() -> None:
    long = replace(TURNS[0], event_tokens=(1, 4, 2, 3))
    message = only(window([long]), "counter_mismatch")
    assert message == "1 turn with two totals: a turn 1 streamed 10 tokens of 9 output tokens"


def test_tokens_held_back_at_the_end_are_no_mismatch() -> None:
    assert found(window([replace(TURNS[0], event_tokens=(1, 4, 2, 1))])) == {}


# Invariants


def test_identity_of_tokens_and_steps() -> None:
    message = only(with_steps(Steps((4, 2, 3), accepted=6, drafted=9, cut=1), output_tokens=8), "identity")
    assert message == (
        "step counts contradict each other (1×): a turn 1: "
        "N − 1 + cut = 8 − 1 + 1 is not A + S = 6 + 3 (output tokens, drafts accepted, steps)"
    )


def test_identity_of_lengths_and_accepted_drafts() -> None:
    # One draft too many in the sum, which the number of tokens confirms: the lengths are wrong.
    message = only(with_steps(Steps((4, 2, 2), accepted=6, drafted=9), output_tokens=10), "identity")
    assert message.endswith("its steps accepted 5 drafts by their lengths and 6 by their sum")


def test_known_lengths_may_not_accept_more_than_the_sum() -> None:
    # 3 + 3 by the two known lengths, so the unknown step would have accepted -1.
    broken = with_steps(Steps((4, 0, 4), accepted=5, drafted=9), output_tokens=9)
    assert "6 drafts by their lengths and 5 by their sum" in only(broken, "identity")


def test_a_turn_has_at_least_the_prefills_token() -> None:
    empty = replace(TURNS[1], output_tokens=0, event_ns=(), event_tokens=())
    assert "a turn 2: it has 0 output tokens" in found(window([empty, TURNS[2]]))["identity"]


@pytest.mark.parametrize(("cut", "output_tokens"), [(4, 6), (-1, 11)])
def test_the_cut_lies_between_none_and_all_drafts(cut: int, output_tokens: int) -> None:
    broken = with_steps(Steps((4, 2, 3), accepted=6, drafted=9, cut=cut), output_tokens=output_tokens)
    assert f"was cut by {cut}, which must lie in 0 to 3" in only(broken, "identity")


def test_the_last_step_emits_at_least_one_token() -> None:
    broken = with_steps(Steps((4, 2, 3), accepted=6, drafted=9, cut=3), output_tokens=7)
    assert "its last step produced 3 tokens and was cut by 3" in only(broken, "identity")


def test_no_more_steps_draft_than_there_are() -> None:
    message = only(window(TURNS, counters=counters_of(TURNS, drafts=9)), "identity")
    assert message == "the server drafted in 9 steps, but there were only 8 decode steps"


def stepless(*turns: Turn, counters: Counters, total: StepTotal | None = None) -> Window:
    """A window of which the steps are known as a whole only."""
    return window([replace(t, steps=None) for t in turns], counters=counters, total=total)


# N 9, 1 and 13: 20 tokens after the first, in 8 steps that accepted 13 and were cut by 1.
SUMS = counters_of(TURNS)


@pytest.mark.parametrize(
    ("total", "counters", "message"),
    [
        (StepTotal(8, 8, ""), SUMS, None),
        (StepTotal(5, 8, ""), replace(SUMS, accepted=None), None),
        (
            StepTotal(4, 4, ""),
            replace(SUMS, drafts=4, accepted=None),
            "20 tokens after the first cannot come from 4 steps of 1 to 4 tokens",
        ),
        (
            StepTotal(21, 21, ""),
            replace(SUMS, accepted=None),
            "20 tokens after the first cannot come from 21 steps of 1 to 4 tokens",
        ),
        (StepTotal(7, 7, ""), SUMS, "the server drafted in 8 steps, but there were only 7 decode steps"),
        (StepTotal(7, 7, ""), replace(SUMS, slack=1), None),
        (
            StepTotal(7, 7, ""),
            replace(SUMS, drafts=7, steps=7, accepted=None),
            "the server counted 7 decode steps, but 8 events carried their tokens",
        ),
        # The cut of all three last steps together is at most 9, and at least nothing.
        (StepTotal(16, 16, ""), SUMS, None),
        (
            StepTotal(17, 17, ""),
            SUMS,
            "A + S = 13 + 17 exceeds the 20 tokens after the first by 10, "
            "which must lie in 0 to 9 (draft tokens × turns)",
        ),
        (StepTotal(17, 17, ""), replace(SUMS, slack=1), None),
        (
            StepTotal(8, 8, ""),
            replace(SUMS, accepted=11),
            "A + S = 11 + 8 exceeds the 20 tokens after the first by -1, "
            "which must lie in 0 to 9 (draft tokens × turns)",
        ),
        # Nothing follows for the cut where S is not exact.
        (StepTotal(8, 17, ""), replace(SUMS, accepted=24), None),
    ],
)
def test_sums_of_the_window_alone(total: StepTotal, counters: Counters, message: str | None) -> None:
    measured = stepless(*TURNS, counters=counters, total=total)
    if message is None:
        assert found(measured) == {}
    else:
        assert only(measured, "identity") == message


def test_an_engine_that_lists_its_steps_may_send_more_events_than_steps() -> None:
    # One event per token, as llama.cpp has it.
    every = replace(TURNS[0], event_tokens=(1,) * 9, event_ns=tuple(range(9)))
    assert found(window([every])) == {}
    assert found(replace(window([every]), steps=StepTotal(3, 3, "per-step totals"))) == {}


def test_without_steps_and_without_a_total_only_tokens_are_compared() -> None:
    assert found(stepless(*TURNS, counters=replace(SUMS, drafts=99))) == {}


@pytest.mark.parametrize("cut", [None, 0])
@pytest.mark.parametrize(("output_tokens", "sound"), [(3, False), (4, True), (13, True), (14, False)])
def test_steps_without_their_drafts_emit_one_to_all_of_them(cut: int | None, output_tokens: int, sound: bool) -> None:
    # 3 steps of 1 to 4 tokens. That some last step may have been cut does not lower the least: it emits one.
    decoded = Steps((0, 0, 0), accepted=None, drafted=None, cut=cut)
    measured = with_steps(decoded, output_tokens=output_tokens, counters=Counters())
    if sound:
        assert list(found(measured)) == ["no_speculation"]
    else:
        assert "cannot come from 3 steps of 1 to 4 tokens" in found(measured)["identity"]


def test_an_order_that_is_unknown_does_not_say_which_step_was_cut() -> None:
    # 3 + 4 + 1 emitted, cut by 2: not of the step of one token, which stands last here for want of an order.
    decoded = Steps((1, 3, 4), accepted=5, drafted=9, cut=2, ordered=False)
    assert found(with_steps(decoded, output_tokens=7)) == {}
    decoded = Steps((3, 4, 1), accepted=5, drafted=9, cut=2, ordered=False)
    assert found(with_steps(decoded, output_tokens=7)) == {}
    assert "and was cut by 2" in only(with_steps(replace(decoded, ordered=True), output_tokens=7), "identity")


def test_many_offenders_are_counted_and_a_few_are_named() -> None:
    # One token fewer than the steps emitted, and nothing cut; the totals would allow a cut of 15.
    broken = [replace(turn(f"q{i}", [2, 2]), output_tokens=4, event_tokens=(1, 2, 1)) for i in range(5)]
    message = only(window(broken), "identity")
    assert "(5×): q0 turn 1" in message
    assert message.endswith("and 2 more")
    assert "q3" not in message


@pytest.mark.parametrize("length", [5, -1])
def test_a_step_longer_than_its_draft(length: int) -> None:
    broken = with_steps(Steps((4, length, 3), accepted=length + 4, drafted=9), output_tokens=length + 8)
    message = found(broken)["acceptance_out_of_range"]
    assert message.startswith("a step emits 1 to 4 tokens, but not in 1 turn: a turn 1 has")
    assert str(length) in message


def test_unknown_steps_cannot_have_accepted_more_than_they_drafted() -> None:
    # Two steps of at most 3 accepted drafts each.
    assert found(window([turn("a", [0, 0], hidden=6)])) == {}
    reasons = found(window([turn("a", [0, 0], hidden=7, drafted=9)]))
    assert list(reasons) == ["identity", "acceptance_out_of_range"]
    assert reasons["identity"] == "9 tokens after the first cannot come from 2 steps of 1 to 4 tokens"
    message = reasons["acceptance_out_of_range"]
    assert "a turn 1 accepted 7 drafts in 2 steps of unknown length" in message
    assert "must lie in 1 to 4, but is 4.5000 (decode)" in message
    # Another turn may hide it from the sum of the window, and not from its own.
    both = [turn("a", [0, 0], hidden=7, drafted=9), turn("b", [1, 1, 1])]
    assert "a turn 1 accepted 7 drafts" in only(window(both), "acceptance_out_of_range")


def test_merged_steps_without_speculation_are_out_of_range() -> None:
    merged = [turn("a", [1, 2, 1], drafted=0)]
    assert "acceptance_out_of_range" in found(window(merged), speculation=False)


def test_more_accepted_than_drafted_by_a_turn() -> None:
    turns = [turn("a", [4, 4], drafted=5), turn("b", [1, 1])]
    message = only(window(turns), "rate_above_one")
    assert message == "1 turn accepted more tokens than were drafted: a turn 1 6 of 5"


def test_more_accepted_than_drafted_by_the_counters() -> None:
    reasons = found(window(TURNS, counters=replace(counters_of(TURNS), accepted=25)))
    assert reasons["rate_above_one"] == "the server accepted 25 of 24 drafted tokens"


# Speculation


def test_speculation_that_drafted_nothing() -> None:
    message = only(window(PLAIN, counters=counters_of(PLAIN, drafts=0)), "no_speculation")
    assert message == "the profile asks for speculation, but nothing was drafted in 7 decode steps"
    assert list(found(window(PLAIN, counters=Counters()))) == ["no_speculation"]


@pytest.mark.parametrize("counters", [Counters(drafted=0), Counters(drafts=0)])
def test_the_servers_word_on_speculation_counts(counters: Counters) -> None:
    assert "no_speculation" in found(window(TURNS, counters=counters))


def test_drafts_that_were_all_rejected_are_speculation() -> None:
    assert found(window([turn("a", [1, 1, 1])])) == {}


def test_speculation_that_nobody_asked_for() -> None:
    rejected = [turn("a", [1, 1, 1])]
    message = only(window(rejected), "unexpected_speculation", speculation=False)
    assert message == "the profile asks for no speculation, but 9 tokens were drafted and 0 accepted"


@pytest.mark.parametrize("counters", [Counters(drafts=1), Counters(drafted=1), Counters(drafted=1, accepted=1)])
def test_unexpected_speculation_is_seen_by_the_counters(counters: Counters) -> None:
    assert "unexpected_speculation" in found(window(PLAIN, counters=counters), speculation=False)


def test_drafts_that_only_the_turns_tell_are_speculation() -> None:
    told = [replace(turn("a", [4, 2]), steps=None, told=Told(drafted=6, accepted=4)), replace(TURNS[2], steps=None)]
    total = StepTotal(7, 7, "")
    assert found(window(told, counters=Counters(), total=total)) == {}
    message = only(
        window([replace(PLAIN[0], told=Told(drafted=6, accepted=4))], counters=Counters()),
        "unexpected_speculation",
        speculation=False,
    )
    assert message == "the profile asks for no speculation, but 6 tokens were drafted and 4 accepted"


# What only timing rests on


@pytest.mark.parametrize("client", [Client(0.010, 0.9), Client(0.0, 0.0)])
def test_a_client_within_its_limits(client: Client) -> None:
    assert client_problem(client) is None


@pytest.mark.parametrize(
    ("client", "message"),
    [
        (Client(0.0123, 0.5), "its event loop lagged 12.3 ms at p99 (limit 10.0 ms)"),
        (Client(0.001, 0.95), "it used 95% of a CPU (limit 90%)"),
        (
            Client(0.02, 1.0),
            "its event loop lagged 20.0 ms at p99 (limit 10.0 ms) and it used 100% of a CPU (limit 90%)",
        ),
    ],
)
def test_a_saturated_client(client: Client, message: str) -> None:
    assert client_problem(client) == Reason("client_saturated", f"the load client was saturated: {message}")


def test_a_client_that_could_not_measure_itself_is_saturated() -> None:
    assert client_problem(Client(math.nan, 0.1)) is not None
    assert client_problem(Client(0.001, math.nan)) is not None


def test_client_limits_can_be_changed() -> None:
    assert client_problem(Client(0.05, 0.5), max_lag_s=0.1) is None


KERNEL = Client(lag_p99_s=0.05, cpu_share=0.5, kernel_stamped=1.0)


def test_lag_is_excused_where_the_kernel_stamps_and_nothing_was_read_together() -> None:
    assert client_problem(KERNEL, merged=0.01) is None
    late = "its event loop lagged 50.0 ms at p99 (limit 10.0 ms)"
    assert client_problem(KERNEL, merged=0.0101) == Reason("client_saturated", f"the load client was saturated: {late}")
    for client in (replace(KERNEL, kernel_stamped=0.98), replace(KERNEL, kernel_stamped=None)):
        assert client_problem(client, merged=0.0) is not None
    assert client_problem(KERNEL) is not None
    assert client_problem(replace(KERNEL, lag_p99_s=math.nan), merged=0.0) is not None
    assert client_problem(replace(KERNEL, cpu_share=0.95), merged=0.0) is not None


def arriving(*event_ns: int) -> Turn:
    return replace(TURNS[0], event_ns=event_ns, event_tokens=(1,) * len(event_ns))


def test_share_of_events_that_were_read_together() -> None:
    # Of four that are followed by another, two have its time; of one, none.
    assert merged_share([arriving(4, 5, 5, 5, 9), arriving(1, 2)]) == 2 / 5
    # One of two first events is more than one of four events.
    assert merged_share([arriving(5, 5, 6, 9), arriving(1, 2)]) == 1 / 2
    assert merged_share([arriving(7), arriving()]) == 0.0
    assert merged_share([]) == 0.0


def test_timing_of_a_window() -> None:
    held = replace(window([arriving(1, 2)], cell=THROUGHPUT), client=replace(KERNEL, concurrency_mean=16.0))
    assert load_problem(held) is None
    missed = load_problem(replace(held, client=replace(held.client, concurrency_mean=15.0)))
    assert missed is not None
    assert "kept 15.0 of 16 streams in flight" in missed.message
    merged = load_problem(replace(held, turns=(arriving(2, 2),)))
    assert merged is not None
    assert "lagged 50.0 ms" in merged.message


def test_an_open_loop_holds_times_and_no_concurrency() -> None:
    client = replace(KERNEL, concurrency_mean=3.0, send_delay_p99_s=0.025)
    sent = replace(window([arriving(1, 2)], cell=THROUGHPUT), client=client)
    assert load_problem(sent, open_loop=True) is None
    late = load_problem(replace(sent, client=replace(client, send_delay_p99_s=0.026)), open_loop=True)
    assert late is not None
    assert late.message == "the load client was saturated: it sent 26 ms late at p99 (limit 25 ms)"
    assert concurrency_problem(replace(sent, steady_ns=None), open_loop=True) == Reason(
        "concurrency_not_held",
        "all of 1 conversations had arrived before the first was over; give more, or a lower rate",
    )


def test_a_busy_client_does_not_void_acceptance() -> None:
    assert found(replace(window(TURNS), client=Client(1.0, 1.0))) == {}


@pytest.mark.parametrize("steady_ns", [None, (7, 7), (8, 7)])
def test_a_throughput_cell_needs_a_steady_window(steady_ns: tuple[int, int] | None) -> None:
    missed = window(TURNS, cell=THROUGHPUT, steady_ns=steady_ns)
    assert concurrency_problem(missed) == Reason(
        "concurrency_not_held", "16 conversations were never in flight together, out of 2 planned"
    )


def test_concurrency_that_was_held_or_does_not_matter() -> None:
    assert concurrency_problem(window(TURNS, cell=THROUGHPUT, steady_ns=(7, 8))) is None
    assert concurrency_problem(window(TURNS)) is None


def test_order_of_turns_does_not_matter() -> None:
    def codes(turns: Sequence[Turn]) -> list[str]:
        return list(found(window(turns, planned=[("a", 2), ("b", 1)])))

    assert codes(TURNS) == codes(TURNS[::-1]) == []

"""Open loop: a schedule that is known beforehand, kept whatever is in flight."""

from __future__ import annotations

import itertools
import math
import statistics
import sys
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.engines.base import Sampling
from pytest_speedbench.load.arrivals import Arrivals, schedule
from pytest_speedbench.load.driver import Conversation, Load, Sent, shares
from pytest_speedbench.load.own_state import arrival_rate
from pytest_speedbench.load.spread import send
from tests.emulator.llamacpp import Emulator, Script, serving, text_of
from tests.unit.test_driver import ENGINE, REPLY, conversations, measured, tokenizer
from tests.unit.test_load_spread import run, turn


def play(
    url: str,
    what: Sequence[Conversation],
    arrivals: Arrivals | None,
    *,
    workers: int = 1,
    concurrency: int = 2,
    seed: int = 0,
) -> Sent:
    load = Load(tuple(what), concurrency, Sampling(64), 30.0, seed, arrivals=arrivals)
    return send(ENGINE, url, tokenizer(), load, progress=lambda *_: None, workers=workers)


# The schedule


def test_fixed_arrivals_are_evenly_apart() -> None:
    assert schedule(Arrivals(8.0, "fixed"), 4, seed=1) == (0, 125_000_000, 250_000_000, 375_000_000)
    # No error adds up where the gap is no whole number of ns.
    assert schedule(Arrivals(3.0, "fixed"), 3001, seed=1)[3000] == 1000 * 10**9


def test_poisson_arrivals_are_the_same_on_every_machine() -> None:
    # u = 0.50195, 0.91700, 0.22107: gaps of -ln(1 - u) / 10 s.
    assert schedule(Arrivals(10.0), 4, seed=7) == (0, 69_705_939, 318_596_223, 343_579_894)


def test_poisson_gaps_are_exponential() -> None:
    times = schedule(Arrivals(50.0), 20_001, seed=3)
    gaps = [(after - before) / 1e9 for before, after in itertools.pairwise(times)]
    # 20,000 gaps: the mean is known to 0.7 %, the share beyond a mean (1 / e) to 0.0034.
    assert statistics.fmean(gaps) == pytest.approx(0.02, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(0.02, rel=0.05)
    assert sum(gap > 0.02 for gap in gaps) / len(gaps) == pytest.approx(math.exp(-1), abs=0.015)


@given(st.sampled_from(["poisson", "fixed"]), st.floats(0.01, 1e6), st.integers(0, 60), st.integers(0, 2**63))
def test_a_schedule_begins_at_0_never_goes_back_and_grows_at_its_end(
    kind: str, rate: float, number: int, seed: int
) -> None:
    times = schedule(Arrivals(rate, kind), number, seed)
    assert len(times) == number
    assert times[:1] == (0,)[:number]
    assert list(times) == sorted(times)
    assert schedule(Arrivals(rate, kind), number + 5, seed)[:number] == times


def test_seeds_give_other_schedules() -> None:
    assert schedule(Arrivals(5.0), 20, seed=1) != schedule(Arrivals(5.0), 20, seed=2)


@pytest.mark.parametrize(
    ("rate", "kind", "message"),
    [
        (0.0, "poisson", "a rate above 0 per second, not 0.0"),
        (-1.0, "fixed", "a rate above 0 per second, not -1.0"),
        (math.nan, "poisson", "not nan"),
        (math.inf, "poisson", "not inf"),
        (1.0, "uniform", "poisson or fixed, not 'uniform'"),
    ],
)
def test_impossible_arrivals_are_refused(rate: float, kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Arrivals(rate, kind)


@given(st.integers(1, 40), st.integers(1, 6))
def test_workers_share_one_schedule(number: int, workers: int) -> None:
    what = tuple(Conversation(f"q{i}", "x", ("x",), (i,)) for i in range(number))
    load = Load(what, 4, Sampling(1), 1.0, 7, arrivals=Arrivals(9.0))
    (whole,) = shares(load)
    assert whole.due_ns == schedule(Arrivals(9.0), number, 7)
    dealt = sorted(
        (due_ns, conversation.question_id)
        for part in shares(load, workers)
        for due_ns, conversation in zip(part.due_ns or (), part.conversations, strict=True)
    )
    assert dealt == [(due, c.question_id) for due, c in zip(whole.due_ns or (), whole.conversations, strict=True)]


# The loop


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", ["poisson", "fixed"])
def test_conversations_begin_at_their_time_whatever_is_in_flight(workers: int, kind: str) -> None:
    what, arrivals = conversations(12), Arrivals(20.0, kind)
    # No answer before the last has begun, which a closed loop of two streams would wait for in vain.
    with serving(REPLY, hold=lambda in_flight, begun: begun == 12) as emulator:
        sent = play(emulator.base_url, what, arrivals, workers=workers)
        assert emulator.peak == 12
    assert sent.failures == ()
    assert measured(sent) == sorted((f"q{i}", 0) for i in range(12))
    # None is sent before its time, after the first of its process, which was late by at most what the latest was.
    started = {one.question_id: one.start_ns for one in sent.turns}
    assert sent.client.send_delay_p99_s is not None
    latest_ns = sent.client.send_delay_p99_s * 1e9
    for share in shares(Load(tuple(what), 2, Sampling(64), 30.0, 0, arrivals=arrivals), workers):
        assert share.due_ns is not None
        starts = [started[c.question_id] for c in share.conversations]
        for start_ns, due_ns in zip(starts, share.due_ns, strict=True):
            assert start_ns - starts[0] >= due_ns - share.due_ns[0] - latest_ns - 1
    assert sent.arrival_rate == arrival_rate(sent.turns)
    # Nothing was over when the last began, so that nothing was steady.
    assert (sent.steady_ns, sent.client.concurrency_mean) == (None, None)


def test_the_steady_span_lasts_from_the_first_end_to_the_last_arrival() -> None:
    # The first is answered at once, and the others when all have begun.
    with serving(REPLY, hold=lambda in_flight, begun: begun in (1, 12)) as emulator:
        sent = play(emulator.base_url, conversations(12), Arrivals(20.0, "fixed"))
    assert sent.steady_ns is not None
    begin, end = sent.steady_ns
    first = min(sent.turns, key=lambda one: one.start_ns)
    last = max(sent.turns, key=lambda one: one.start_ns)
    assert first.event_ns[-1] <= begin
    assert begin < end <= last.start_ns
    assert sent.client.concurrency_mean is not None


def test_later_turns_follow_when_the_one_before_is_over() -> None:
    with serving(REPLY) as emulator:
        sent = play(emulator.base_url, conversations(5, "One", "Two"), Arrivals(50.0))
    assert sent.failures == ()
    assert measured(sent) == sorted((f"q{i}", turn) for i in range(5) for turn in range(2))
    by_name = {(one.question_id, one.index): one for one in sent.turns}
    for i in range(5):
        assert by_name[f"q{i}", 1].start_ns >= by_name[f"q{i}", 0].event_ns[-1]
    # Arrivals are of conversations.
    assert sent.arrival_rate == arrival_rate([one for one in sent.turns if one.index == 0])


def test_what_cannot_be_sent_in_time_is_late_by_what_it_is_late() -> None:
    # All are due at once; they go out one after the other.
    with serving(REPLY) as emulator:
        sent = play(emulator.base_url, conversations(30), Arrivals(1e9, "fixed"))
    starts = sorted(one.start_ns for one in sent.turns)
    assert sent.client.send_delay_p99_s is not None
    assert sent.client.send_delay_p99_s >= (starts[-1] - starts[0] - 30) / 1e9


def test_failures_do_not_stop_arrivals() -> None:
    bad = Script.of("never finished", fault="cut")
    with Emulator(lambda request: bad if "Question 3" in text_of(request.ids) else REPLY) as emulator:
        sent = play(emulator.base_url, conversations(6), Arrivals(100.0), workers=2)
    assert [(f.question_id, f.reason) for f in sent.failures] == [("q3", "stream_cut")]
    assert len(sent.turns) == 5


def test_a_closed_loop_has_no_arrival_rate() -> None:
    with serving(REPLY) as emulator:
        assert play(emulator.base_url, conversations(4), None).arrival_rate is None


def test_open_files_for_all_that_may_pile_up_are_asked_for_beforehand() -> None:
    code = """
import resource
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.load.arrivals import Arrivals
from tests.unit.test_driver import conversations
from tests.unit.test_load_arrivals import play
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
try:
    play("http://127.0.0.1:9", conversations(300), Arrivals(1000.0))
except ConfigError as error:
    print(error)
"""
    said = run(f"import sys; sys.path[:] = {sys.path!r}\n{code}")
    assert said.startswith("300 streams at once need 3")
    assert said.endswith("or lower --speedbench-prompts (arrivals do not wait)")


def test_achieved_arrival_rate() -> None:
    def sent(*starts_s: float) -> float | None:
        return arrival_rate([turn(round(at * 1e9), round(at * 1e9) + 1) for at in starts_s])

    assert sent(10.0, 10.5, 12.0) == 1.0
    assert (sent(), sent(1.0), sent(1.0, 1.0)) == (None, None, None)

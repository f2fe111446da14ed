"""The closed loop against a real HTTP server of known truth."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from pytest_speedbench.cells import Cell
from pytest_speedbench.engines.base import Profile, Sampling, Speculation, StreamDecoder, TurnRequest
from pytest_speedbench.engines.llamacpp import LlamaCpp
from pytest_speedbench.errors import EngineError
from pytest_speedbench.load.client import StreamingClient, fetcher, is_ready, post
from pytest_speedbench.load.driver import Conversation, Load, Sent, drive
from pytest_speedbench.measure.checks import problems
from pytest_speedbench.measure.samples import Window
from pytest_speedbench.tokenize import ChatTokenizer, Message
from tests.emulator.llamacpp import Emulator, Script, byte_tokenizer, serving, text_of
from tests.unit.test_measure_samples import steps_of

K = 4
ENGINE = LlamaCpp(Profile("llamacpp", "llamacpp", "model.gguf", Speculation("draft", K)))
REPLY = Script.of("All work and no play.", draft=K, accept=(4, 0, 2))
tokenizer = cache(byte_tokenizer)


def conversations(number: int, *turns: str) -> tuple[Conversation, ...]:
    made = []
    for i in range(number):
        user = tuple(f"{text} {i}" for text in turns or ("Question",))
        ids = tokenizer().ids([{"role": "user", "content": user[0]}])
        made.append(Conversation(f"q{i}", "coding", user, ids))
    return tuple(made)


def play(
    base_url: str,
    what: Sequence[Conversation],
    *,
    concurrency: int = 1,
    deadline_s: float = 30.0,
    seed: int = 0,
    chat: ChatTokenizer | None = None,
    progress: Any = lambda done, total: None,
    osl_cap: int = 64,
    repeats: int = 1,
    vocabulary: int | None = None,
    engine: LlamaCpp = ENGINE,
) -> Sent:
    load = Load(
        tuple(what),
        concurrency,
        Sampling(osl_cap=osl_cap),
        deadline_s,
        seed,
        repeats=repeats,
        vocabulary=vocabulary,
    )

    async def run() -> Sent:
        async with StreamingClient(engine, base_url, concurrency=concurrency) as client:
            return await drive(client, chat or tokenizer(), load, progress=progress)

    return asyncio.run(run())


def window_of(sent: Sent, what: Sequence[Conversation], emulator: Emulator, *, repeats: int = 1) -> Window:
    return Window(
        cell=Cell("qualitative", 1, category="coding"),
        planned=tuple((c.question_id, len(c.user_turns)) for c in what) * repeats,
        turns=sent.turns,
        failures=sent.failures,
        counters=ENGINE.counters(fetcher(emulator.base_url)),
        client=sent.client,
        steady_ns=sent.steady_ns,
    )


def measured(sent: Sent) -> list[tuple[str, int]]:
    return sorted((turn.question_id, turn.index) for turn in sent.turns)


# The loop


@pytest.mark.parametrize(("concurrency", "number"), [(1, 5), (3, 20), (8, 64), (64, 200)])
def test_exactly_the_asked_concurrency_is_held(concurrency: int, number: int) -> None:
    # No answer before the asked number is in flight, or everything that is left: a loop that holds
    # fewer never gets an answer, one that holds more is seen in the peak.
    def full(in_flight: int, begun: int) -> bool:
        return in_flight >= concurrency or begun == number

    what = conversations(number)
    with serving(REPLY, hold=full) as emulator:
        sent = play(emulator.base_url, what, concurrency=concurrency, deadline_s=20.0)
        assert emulator.peak == concurrency
    assert sent.failures == ()
    assert measured(sent) == sorted((f"q{i}", 0) for i in range(number))


def test_every_conversation_is_sent_exactly_once_and_counted() -> None:
    what = conversations(30, "First", "Second", "Third")
    seen: list[tuple[int, int]] = []
    with serving(REPLY) as emulator:
        sent = play(emulator.base_url, what, concurrency=4, progress=lambda *done: seen.append(done))
        assert len(emulator.requests) == 90
        assert problems(window_of(sent, what, emulator), speculation=True, draft_tokens=K) == ()
    assert measured(sent) == sorted((f"q{i}", turn) for i in range(30) for turn in range(3))
    assert sorted(seen) == [(i, 30) for i in range(1, 31)]


def test_fewer_conversations_than_concurrency_have_no_steady_window() -> None:
    with serving(REPLY) as emulator:
        sent = play(emulator.base_url, conversations(3), concurrency=4)
        assert emulator.peak <= 3
    assert len(sent.turns) == 3
    assert sent.steady_ns is None


def test_later_turns_carry_the_models_own_reply() -> None:
    replies = ["Zürich, naturally. 🚀", "Because of the 湖."]
    with Emulator(lambda request: Script.of(replies[request.number % 2], draft=K, accept=(1,))) as emulator:
        sent = play(emulator.base_url, conversations(1, "Where", "Why"))
        first, second = emulator.requests
    assert text_of(first.ids) == "<|im_start|>user\nWhere 0<|im_end|>\n<|im_start|>assistant\n"
    assert text_of(second.ids) == (
        "<|im_start|>user\nWhere 0<|im_end|>\n"
        f"<|im_start|>assistant\n{replies[0]}<|im_end|>\n"
        "<|im_start|>user\nWhy 0<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [turn.text for turn in sent.turns] == replies
    assert [turn.prompt_tokens for turn in sent.turns] == [len(first.ids), len(second.ids)]


class Mute(LlamaCpp):
    """An engine whose stream carries ids only."""

    def decoder(self, request: TurnRequest) -> StreamDecoder:
        decoder = super().decoder(request)
        finish = decoder.finish
        decoder.finish = lambda start_ns: replace(finish(start_ns), text=None)  # type: ignore[method-assign]
        return decoder


def test_a_reply_of_ids_alone_is_decoded_for_the_next_turn() -> None:
    mute = Mute(Profile("llamacpp", "llamacpp", "model.gguf", Speculation("draft", K)))
    with serving(Script.of("By ids.", draft=K, accept=(1,), eos=True)) as emulator:
        sent = play(emulator.base_url, conversations(1, "One", "Two"), engine=mute)
        _, second = emulator.requests
    assert [turn.text for turn in sent.turns] == [None, None]
    assert "<|im_start|>assistant\nBy ids.<|im_end|>\n<|im_start|>user\nTwo 0<|im_end|>" in text_of(second.ids)


def test_what_is_sent_is_what_was_asked() -> None:
    with serving(REPLY) as emulator:
        play(emulator.base_url, conversations(1), osl_cap=77)
        (request,) = emulator.requests
    assert request.body == {
        "prompt": list(conversations(1)[0].first_ids),
        "n_predict": 77,
        "temperature": 0.0,
        "top_k": 1,
        "top_p": 1.0,
        "min_p": 0.0,
        "seed": 0,
        "ignore_eos": False,
        "stream": True,
        "return_tokens": True,
        "cache_prompt": False,
        "timings_per_token": True,
    }


def order_of(seed: int, *, number: int = 20, repeats: int = 1) -> list[str]:
    with serving(Script.of("Hi")) as emulator:
        play(emulator.base_url, conversations(number), seed=seed, repeats=repeats)
        return [text_of(request.ids).splitlines()[1].removesuffix("<|im_end|>") for request in emulator.requests]


def test_send_order_follows_the_seed_alone() -> None:
    first = order_of(1)
    assert order_of(1) == first
    assert order_of(2) != first
    assert sorted(order_of(2)) == sorted(first)
    assert first != [f"Question {i}" for i in range(20)]


def test_repeats_send_all_once_before_any_twice() -> None:
    order = order_of(1, number=10, repeats=3)
    rounds = [order[:10], order[10:20], order[20:]]
    assert all(sorted(sent) == sorted(f"Question {i}" for i in range(10)) for sent in rounds)
    # Each round has an order of its own, the first that of a load without repeats; all follow the seed.
    assert len(set(map(tuple, rounds))) == 3
    assert rounds[0] == order_of(1, number=10)
    assert order_of(1, number=10, repeats=3) == order
    assert order_of(2, number=10, repeats=3) != order


def test_repeated_conversations_are_sound_and_counted_one_by_one() -> None:
    what = conversations(6, "First", "Second")
    seen: list[tuple[int, int]] = []
    with serving(REPLY) as emulator:
        sent = play(emulator.base_url, what, concurrency=4, repeats=3, progress=lambda *done: seen.append(done))
        assert len(emulator.requests) == 36
        window = window_of(sent, what, emulator, repeats=3)
    assert problems(window, speculation=True, draft_tokens=K) == ()
    assert measured(sent) == sorted([(f"q{i}", turn) for i in range(6) for turn in range(2)] * 3)
    assert sorted(seen) == [(i, 18) for i in range(1, 19)]
    # Planned once, the same turns are too many; planned once more, too few.
    for repeats, code in ((1, "duplicated"), (4, "incomplete")):
        other = replace(window, planned=window.planned[: len(what)] * repeats)
        assert [reason.code for reason in problems(other, speculation=True, draft_tokens=K)] == [code]


def test_repeats_hold_the_concurrency_of_more_conversations_than_there_are() -> None:
    with serving(REPLY, hold=lambda in_flight, begun: in_flight >= 8 or begun == 32) as emulator:
        sent = play(emulator.base_url, conversations(4), concurrency=8, repeats=8)
        assert emulator.peak == 8
    assert sent.failures == ()
    assert len(sent.turns) == 32
    assert sent.steady_ns is not None


def test_steady_window_spans_from_full_to_the_first_that_is_not_replaced() -> None:
    # Eight at once, all held until eight are in flight: no reply can come before the window begins.
    with serving(REPLY, hold=lambda in_flight, begun: in_flight >= 8 or begun == 40) as emulator:
        sent = play(emulator.base_url, conversations(40), concurrency=8)
    assert sent.steady_ns is not None
    begin, end = sent.steady_ns
    assert begin < min(turn.event_ns[0] for turn in sent.turns)
    assert end <= max(turn.event_ns[-1] for turn in sent.turns) + 10**9
    # When the window closes all but the seven others have ended, and these were started by then.
    assert sum(turn.event_ns[-1] <= end for turn in sent.turns) >= 40 - 7
    assert all(turn.start_ns <= end for turn in sent.turns)


def test_times_of_a_turn_are_in_order() -> None:
    with serving(REPLY) as emulator:
        sent = play(emulator.base_url, conversations(4), concurrency=2)
    for turn in sent.turns:
        assert turn.start_ns < turn.event_ns[0]
        assert list(turn.event_ns) == sorted(turn.event_ns)
        assert turn.step_ns[0] == turn.event_ns[0]
    assert sent.client.lag_p99_s >= 0
    assert 0 <= sent.client.cpu_share < 2


# What comes back is the server's truth


@pytest.mark.parametrize("piece", [None, 1, 7, 4096])
def test_truth_survives_any_fragmentation(piece: int | None) -> None:
    script = Script.of("Grüße, 日本 👩‍🚀!", draft=K, accept=(4, 0, 2, 1), eos=True)
    assert script.hidden > 0
    with serving(script, piece=piece) as emulator:
        (turn,) = play(emulator.base_url, conversations(1)).turns
    assert turn.text == "Grüße, 日本 👩‍🚀!"
    assert turn.output_tokens == script.output_tokens
    assert turn.output_ids is None
    steps = steps_of(turn)
    assert (steps.count, steps.accepted, steps.drafted) == (
        len(script.steps),
        script.accepted,
        script.drafted,
    )
    assert turn.finish == "stop"


def test_step_lengths_are_exact_where_nothing_is_hidden() -> None:
    with serving(REPLY) as emulator:
        (turn,) = play(emulator.base_url, conversations(1)).turns
    assert steps_of(turn).lengths == REPLY.lengths
    assert turn.output_ids == tuple(REPLY.reply)


@pytest.mark.parametrize(
    ("counter", "what"),
    [
        ("prompt_tokens_total", "prompt tokens"),
        ("tokens_predicted_total", "output tokens"),
        ("spec_decode_num_draft_tokens_total", "drafted tokens"),
        ("spec_decode_num_accepted_tokens_total", "accepted tokens"),
    ],
)
def test_counters_that_lie_are_found_out(counter: str, what: str) -> None:
    chats = conversations(3)
    with serving(REPLY, lies={counter: -1}) as emulator:
        window = window_of(play(emulator.base_url, chats), chats, emulator)
    found = {reason.code: reason.message for reason in problems(window, speculation=True, draft_tokens=K)}
    assert what in found["counter_mismatch"]


# Failures


@pytest.mark.parametrize(
    ("fault", "reason", "message"),
    [
        ("http_400", "http_400", "the request is bad"),
        ("cut", "stream_cut", "without its closing event"),
        ("error_event", "error_event", "slot exploded"),
        ("garbage", "bad_event", "cannot make sense of [DONE] (JSONDecodeError"),
        ("odd_event", "bad_event", "KeyError: 'tokens'"),
    ],
)
def test_a_failed_turn_is_recorded_and_the_others_go_on(fault: str, reason: str, message: str) -> None:
    bad = Script.of("never finished", fault=fault)
    chats = conversations(6, "One", "Two")
    # The second turn of q3 fails; nothing else does.
    with Emulator(lambda request: bad if "Two 3" in text_of(request.ids) else REPLY) as emulator:
        sent = play(emulator.base_url, chats, concurrency=2)
    (failure,) = sent.failures
    assert (failure.question_id, failure.index, failure.reason) == ("q3", 1, reason)
    assert message in failure.message
    assert measured(sent) == sorted((f"q{i}", turn) for i in range(6) for turn in range(2) if (i, turn) != (3, 1))


def test_a_failed_turn_ends_its_conversation() -> None:
    with serving(Script.of("never finished", fault="cut")) as emulator:
        sent = play(emulator.base_url, conversations(1, "One", "Two", "Three"))
        assert len(emulator.requests) == 1
    assert [(f.index, f.reason) for f in sent.failures] == [(0, "stream_cut")]


def test_a_turn_that_never_ends_meets_its_deadline() -> None:
    with serving(Script.of("never finished", fault="stall")) as emulator:
        sent = play(emulator.base_url, conversations(1), deadline_s=0.2)
    (failure,) = sent.failures
    assert failure.reason == "deadline"
    assert sent.turns == ()


def test_the_deadline_is_per_turn_and_slow_answers_within_it_count() -> None:
    slow = Script.of("slow reply", fault="slow", fault_after=99)
    with serving(slow) as emulator:
        # Each turn takes 0.2 s at least; together they take longer than one deadline.
        sent = play(emulator.base_url, conversations(1, *"abcdef"), deadline_s=1.1)
    assert sent.failures == ()
    assert len(sent.turns) == 6


def test_a_server_that_crashes_costs_every_turn_after_it() -> None:
    crash = Script.of("never finished", fault="crash")
    with Emulator(lambda request: crash if request.number == 3 else REPLY) as emulator:
        sent = play(emulator.base_url, conversations(6))
    assert len(sent.turns) == 3
    assert sorted(failure.reason for failure in sent.failures) == ["connection_refused"] * 2 + ["stream_cut"]
    assert len({turn.question_id for turn in sent.turns} | {f.question_id for f in sent.failures}) == 6


@pytest.mark.parametrize(
    ("final", "reason"),
    [
        ({"truncated": True}, "truncated"),
        ({"stop_type": "word"}, "unknown_stop"),
        ({"timings.cache_n": 5}, "prefix_cache"),
        ({"timings.prompt_n": 3}, "prompt_changed"),
    ],
)
def test_an_answer_to_another_question_is_a_failure(final: dict[str, Any], reason: str) -> None:
    with serving(Script.of("Hello", final=final)) as emulator:
        sent = play(emulator.base_url, conversations(1))
    assert [failure.reason for failure in sent.failures] == [reason]


def test_a_prompt_with_an_id_that_the_model_lacks_is_not_sent() -> None:
    chats = conversations(3)
    highest = max(chats[1].first_ids)
    bad = replace(chats[1], first_ids=(*chats[1].first_ids, highest + 1))
    with serving(REPLY) as emulator:
        sent = play(emulator.base_url, [chats[0], bad, chats[2]], vocabulary=highest + 1)
        assert len(emulator.requests) == 2
    (failure,) = sent.failures
    assert (failure.question_id, failure.index, failure.reason) == ("q1", 0, "bad_id")
    assert failure.message == f"the prompt has id {highest + 1}, and the vocabulary ends at {highest}"
    assert measured(sent) == [("q0", 0), ("q2", 0)]


class Rambling(ChatTokenizer):
    """Puts an id that is in no vocabulary at the end of every chat."""

    def ids(self, messages: Sequence[Message], *, row: str | None = None) -> tuple[int, ...]:
        return (*super().ids(messages, row=row), 10**6)


def test_later_turns_are_checked_for_bad_ids_too() -> None:
    chat = Rambling(tokenizer()._tokenizer, source="bytes", max_context=None)
    with serving(REPLY) as emulator:
        sent = play(emulator.base_url, conversations(1, "One", "Two", "Three"), chat=chat, vocabulary=10**6)
        assert len(emulator.requests) == 1
    assert [(f.index, f.reason) for f in sent.failures] == [(1, "bad_id")]
    assert measured(sent) == [("q0", 0)]


def test_without_a_vocabulary_every_id_is_sent() -> None:
    with serving(REPLY) as emulator:
        (chat,) = conversations(1)
        sent = play(emulator.base_url, [replace(chat, first_ids=(10**6,))])
    assert len(sent.turns) == 1


# Plain GETs


def test_fetch_gives_the_body_or_says_what_went_wrong() -> None:
    with serving(REPLY) as emulator:
        fetch = fetcher(emulator.base_url)
        assert json.loads(fetch("/health")) == {"status": "ok"}
        assert is_ready(emulator.base_url, ("/health",))
        assert not is_ready(emulator.base_url, ("/nothing",))
        with pytest.raises(EngineError, match="GET /nothing of the engine answered HTTP 404"):
            fetch("/nothing")
    assert not is_ready(emulator.base_url, ("/health",))
    with pytest.raises(EngineError, match="GET /metrics of the engine failed"):
        fetch("/metrics")


def test_ready_is_the_first_path_that_the_server_has() -> None:
    with serving(REPLY) as emulator:
        assert is_ready(emulator.base_url, ("/ready", "/nothing", "/health"))
        assert not is_ready(emulator.base_url, ("/ready", "/nothing"))
        assert not is_ready(emulator.base_url, ())


@contextlib.contextmanager
def flushing(*statuses: int) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """A server that answers POSTs with these statuses in turn, the last of them for ever, and what it was sent."""
    seen: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append((self.path, self.rfile.read(int(self.headers.get("content-length") or 0))))
            self.send_response(statuses[min(len(seen), len(statuses)) - 1])
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", seen
        finally:
            server.shutdown()
            thread.join()


def test_a_post_is_repeated_until_it_succeeds() -> None:
    with flushing(400, 503, 200) as (base_url, seen):
        assert post(base_url, "/flush", timeout_s=30.0)
        assert seen == [("/flush", b"")] * 3


def test_a_post_that_never_succeeds_is_told_and_one_that_nobody_hears_is_an_error() -> None:
    with flushing(400) as (base_url, seen):
        assert not post(base_url, "/flush", timeout_s=0.15)
        assert len(seen) >= 2
    with pytest.raises(EngineError, match="POST /flush of the engine failed"):
        post(base_url, "/flush", timeout_s=30.0)


def test_proxies_of_the_environment_are_not_for_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(REPLY) as emulator:
        assert is_ready(emulator.base_url, ("/health",))
        assert fetcher(emulator.base_url)("/health")
        assert len(play(emulator.base_url, conversations(1)).turns) == 1

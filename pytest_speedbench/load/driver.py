"""Closed loop: keep exactly ``concurrency`` conversations in flight until all are done."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from pytest_speedbench.engines.base import Sampling, TurnRequest
from pytest_speedbench.errors import RequestError
from pytest_speedbench.load.client import StreamingClient
from pytest_speedbench.measure.samples import Client, Failure, Turn
from pytest_speedbench.tokenize import ChatTokenizer, Message

LAG_PROBE_S = 0.005
Progress = Callable[[int, int], None]
"""Called with (conversations done, conversations in all)."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """User turns to play, with the first prompt already tokenised."""

    question_id: str
    category: str
    user_turns: tuple[str, ...]
    first_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Load:
    """What one window sends. ``deadline_s`` is per turn.

    Each conversation is played ``repeats`` times: all of them once before any a second time. Prompts
    with an id that is not below ``vocabulary`` are not sent, since one such id kills some servers.
    """

    conversations: tuple[Conversation, ...]
    concurrency: int
    sampling: Sampling
    deadline_s: float
    seed: int
    repeats: int = 1
    vocabulary: int | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """What came back: finished turns, failures, the span at full concurrency, the client's own state."""

    turns: tuple[Turn, ...]
    failures: tuple[Failure, ...]
    steady_ns: tuple[int, int] | None
    client: Client


@dataclass(slots=True)
class _Tally:
    turns: list[Turn] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    in_flight: int = 0
    full_ns: int | None = None
    drained_ns: int | None = None
    done: int = 0


async def drive(client: StreamingClient, tokenizer: ChatTokenizer, load: Load, *, progress: Progress) -> Sent:
    """Play all conversations. Each turn feeds the model's own reply back.

    A failed turn ends its conversation and is recorded; the others go on.
    """
    queue = _order(load)
    total = len(queue)
    tally = _Tally()

    async def worker() -> None:
        while queue:
            conversation = queue.pop()
            tally.in_flight += 1
            if tally.in_flight == load.concurrency and tally.full_ns is None:
                tally.full_ns = time.perf_counter_ns()
            try:
                await _play(client, tokenizer, conversation, load, tally)
            finally:
                tally.in_flight -= 1
                tally.done += 1
                if not queue and tally.drained_ns is None:
                    tally.drained_ns = time.perf_counter_ns()
            progress(tally.done, total)

    lags: list[float] = []
    probe = asyncio.create_task(_probe_lag(lags))
    workers: list[asyncio.Task[None]] = []
    try:
        with _heap_at_rest():
            cpu_began, began = time.process_time(), time.perf_counter()
            for _ in range(min(load.concurrency, total)):
                workers.append(asyncio.create_task(worker()))
                # One send at a time: otherwise the first events wait until the last request is out.
                await asyncio.sleep(0)
            await asyncio.gather(*workers)
    finally:
        for task in [probe, *workers]:
            task.cancel()
        await asyncio.gather(probe, *workers, return_exceptions=True)
    # A burst of a fraction of a second is no load.
    elapsed = max(time.perf_counter() - began, 1.0)
    steady = (tally.full_ns, tally.drained_ns) if tally.full_ns and tally.drained_ns else None
    return Sent(
        turns=tuple(tally.turns),
        failures=tuple(tally.failures),
        steady_ns=steady if steady and steady[1] > steady[0] else None,
        client=Client(lag_p99_s=_p99(lags), cpu_share=(time.process_time() - cpu_began) / elapsed),
    )


def _order(load: Load) -> list[Conversation]:
    """What is left to send, the next one last."""
    rounds: list[Conversation] = []
    for number in reversed(range(load.repeats)):
        ordered = list(load.conversations)
        random.Random(load.seed + number).shuffle(ordered)
        rounds += ordered
    return rounds


def _refuse_unknown_ids(ids: Sequence[int], vocabulary: int | None) -> None:
    highest = max(ids, default=0)
    if vocabulary is not None and highest >= vocabulary:
        raise RequestError("bad_id", f"the prompt has id {highest}, and the vocabulary ends at {vocabulary - 1}")


async def _play(
    client: StreamingClient,
    tokenizer: ChatTokenizer,
    conversation: Conversation,
    load: Load,
    tally: _Tally,
) -> None:
    messages: list[Message] = []
    for index, text in enumerate(conversation.user_turns):
        messages.append({"role": "user", "content": text})
        # In a thread: rendering and encoding a long chat would hold up the events of all other streams.
        ids = conversation.first_ids if index == 0 else await asyncio.to_thread(tokenizer.ids, list(messages))
        request = TurnRequest(conversation.question_id, conversation.category, index, ids, load.sampling)
        try:
            _refuse_unknown_ids(ids, load.vocabulary)
            turn = await client.turn(request, deadline_s=load.deadline_s)
        except RequestError as error:
            tally.failures.append(Failure(conversation.question_id, index, error.reason, str(error)))
            return
        tally.turns.append(turn)
        reply = tokenizer.decode(turn.output_ids or ()) if turn.text is None else turn.text
        messages.append({"role": "assistant", "content": reply})


@contextlib.contextmanager
def _heap_at_rest() -> Iterator[None]:
    """Keep the garbage collector from walking through everything that was there before: that takes tens of ms."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def _probe_lag(lags: list[float]) -> None:
    """Record how late the event loop wakes a sleeper; that is how late a time stamp can be."""
    while True:
        before = time.perf_counter()
        await asyncio.sleep(LAG_PROBE_S)
        lags.append(max(0.0, time.perf_counter() - before - LAG_PROBE_S))


def _p99(values: list[float]) -> float:
    if not values:
        return 0.0
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]

"""Closed loop: keep exactly ``concurrency`` conversations in flight until all are done."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pytest_speedbench.engines.base import Sampling, TurnRequest
from pytest_speedbench.errors import RequestError
from pytest_speedbench.load.client import StreamingClient
from pytest_speedbench.measure.samples import Client, Failure, Turn
from pytest_speedbench.tokenize import ChatTokenizer, Message

LAG_PROBE_S = 0.005
SWITCH_S = 0.0001
"""For how long another thread may keep the event loop waiting for the interpreter; Python's own 5 ms are long here."""
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


@dataclass(frozen=True, slots=True)
class Share:
    """What one event loop plays: conversations in the order in which they are sent, ``concurrency`` at once."""

    conversations: tuple[Conversation, ...]
    concurrency: int
    sampling: Sampling
    deadline_s: float
    vocabulary: int | None

    @property
    def streams(self) -> int:
        """How many there can be at once."""
        return min(self.concurrency, len(self.conversations))


@dataclass(frozen=True, slots=True)
class Ended:
    """A conversation is over."""


Item = Turn | Failure | Ended
Report = Callable[[int, Item], None]
"""Called with each turn as it finishes or fails, and when a conversation is over; first its place in the share."""


class Chat(Protocol):
    """What later turns of a conversation need."""

    async def ids(self, messages: Sequence[Message]) -> Sequence[int]:
        """The prompt."""

    async def decode(self, ids: Sequence[int]) -> str:
        """The text of a reply."""


class LocalChat:
    """A tokenizer in this process, in threads: a long chat would hold up the events of all other streams."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer

    async def ids(self, messages: Sequence[Message]) -> Sequence[int]:
        """The prompt."""
        return await asyncio.to_thread(self._tokenizer.ids, messages)

    async def decode(self, ids: Sequence[int]) -> str:
        """The text of a reply."""
        return await asyncio.to_thread(self._tokenizer.decode, ids)


@dataclass(frozen=True, slots=True)
class Played:
    """How a share went.

    ``full_ns`` is when all its streams were in flight, ``drained_ns`` when the first was not replaced.
    """

    full_ns: int | None
    drained_ns: int | None
    lag_p99_s: float
    cpu_share: float
    send_delay_p99_s: float
    kernel_stamped: float


def shares(load: Load, number: int = 1) -> list[Share]:
    """The load split over ``number`` event loops: each its part of the one order that the seed gives.

    Numbers of conversations and of streams differ by at most one.
    """
    ordered = _order(load)
    base, more = divmod(load.concurrency, number)
    return [
        Share(tuple(ordered[part::number]), base + (part < more), load.sampling, load.deadline_s, load.vocabulary)
        for part in range(number)
    ]


class Tally:
    """Collects what is reported."""

    def __init__(self, total: int, progress: Progress) -> None:
        self.turns: list[Turn] = []
        self.failures: list[Failure] = []
        self._done, self._total, self._progress = 0, total, progress

    def add(self, place: int, item: Item) -> None:
        """A ``Report``."""
        if isinstance(item, Turn):
            self.turns.append(item)
        elif isinstance(item, Failure):
            self.failures.append(item)
        else:
            self._done += 1
            self._progress(self._done, self._total)

    def sent(self, played: Sequence[Played], *, workers: int, clock_error_s: float = 0.0) -> Sent:
        """What came of it all; of the event loops' own states the worst. ``played`` lacks workers that died."""
        full = [one.full_ns for one in played if one.full_ns is not None]
        drained = [one.drained_ns for one in played if one.drained_ns is not None]
        steady = None
        if len(full) == len(drained) == workers and max(full) < min(drained):
            steady = (max(full), min(drained))
        mean, least = achieved(self.turns, steady)
        return Sent(
            turns=tuple(self.turns),
            failures=tuple(self.failures),
            steady_ns=steady,
            client=Client(
                lag_p99_s=max((one.lag_p99_s for one in played), default=math.nan),
                cpu_share=max((one.cpu_share for one in played), default=math.nan),
                workers=workers,
                concurrency_mean=mean,
                concurrency_min=least,
                send_delay_p99_s=max((one.send_delay_p99_s for one in played), default=math.nan),
                clock_error_s=clock_error_s,
                kernel_stamped=min((one.kernel_stamped for one in played), default=0.0),
            ),
        )


def achieved(turns: Sequence[Turn], span: tuple[int, int] | None) -> tuple[float | None, int | None]:
    """(mean, least) number of turns in flight over ``span``, from first byte out to last event; None without a span.

    Turns that failed are not seen.
    """
    if span is None:
        return None, None
    begin, end = span
    changes: list[tuple[int, int]] = []
    for turn in turns:
        first, last = max(turn.start_ns, begin), min(turn.event_ns[-1] if turn.event_ns else turn.start_ns, end)
        if first < last:
            changes += ((first, 1), (last, -1))
    # A stream that is replaced at once is not missing: what begins counts before what ends.
    changes.sort(key=lambda change: (change[0], -change[1]))
    in_flight, least, area, since = 0, None, 0, begin
    for at, change in (*changes, (end, 0)):
        if at > since:
            area += in_flight * (at - since)
            least = in_flight if least is None else min(least, in_flight)
            since = at
        in_flight += change
    return area / (end - begin), least


async def drive(client: StreamingClient, tokenizer: ChatTokenizer, load: Load, *, progress: Progress) -> Sent:
    """Play all conversations in this process. Each turn feeds the model's own reply back.

    A failed turn ends its conversation and is recorded; the others go on.
    """
    (share,) = shares(load)
    tally = Tally(len(share.conversations), progress)
    ready = await prepare(client, share)
    return tally.sent([await play(client, LocalChat(tokenizer), share, ready, tally.add)], workers=1)


@dataclass(frozen=True, slots=True)
class _Ready:
    """A conversation whose first request is made, or cannot be sent. ``place`` is that in the share."""

    place: int
    conversation: Conversation
    request: TurnRequest
    payload: bytes | RequestError


async def prepare(client: StreamingClient, share: Share) -> deque[_Ready]:
    """Everything that can be done before the clock starts: requests made, first connections opened."""
    made: dict[int, tuple[TurnRequest, bytes | RequestError]] = {}
    ready: deque[_Ready] = deque()
    for place, conversation in enumerate(share.conversations):
        # One that is played again has the same first request.
        if id(conversation) not in made:
            request = TurnRequest(
                conversation.question_id, conversation.category, 0, conversation.first_ids, share.sampling
            )
            try:
                _refuse_unknown_ids(request.ids, share.vocabulary)
                made[id(conversation)] = request, client.payload(request)
            except RequestError as error:
                made[id(conversation)] = request, error
        ready.append(_Ready(place, conversation, *made[id(conversation)]))
    await client.connect_ahead(share.streams)
    return ready


async def play(client: StreamingClient, chat: Chat, share: Share, queue: deque[_Ready], report: Report) -> Played:
    """Play a share that is prepared."""
    in_flight = 0
    full_ns: int | None = None
    drained_ns: int | None = None

    delays: list[float] = []

    async def stream() -> None:
        nonlocal in_flight, full_ns, drained_ns
        due_ns = began_ns
        while queue:
            ready = queue.popleft()
            in_flight += 1
            if in_flight == share.concurrency and full_ns is None:
                full_ns = time.perf_counter_ns()
            try:
                due_ns = await _converse(client, chat, ready, share, report, due_ns, delays)
            finally:
                in_flight -= 1
                if not queue and drained_ns is None:
                    drained_ns = time.perf_counter_ns()
            report(ready.place, Ended())

    lags: list[float] = []
    streams: list[asyncio.Task[None]] = []
    with _at_rest():
        probe = asyncio.create_task(_probe_lag(lags))
        cpu_began, began_ns = time.process_time(), time.perf_counter_ns()
        try:
            for _ in range(share.streams):
                streams.append(asyncio.create_task(stream()))
                # One send at a time: otherwise the first events wait until the last request is out.
                await asyncio.sleep(0)
            await asyncio.gather(*streams)
        finally:
            for task in [probe, *streams]:
                task.cancel()
            await asyncio.gather(probe, *streams, return_exceptions=True)
    # A burst of a fraction of a second is no load.
    elapsed = max((time.perf_counter_ns() - began_ns) / 1e9, 1.0)
    return Played(
        full_ns=full_ns,
        drained_ns=drained_ns,
        lag_p99_s=_p99(lags),
        cpu_share=(time.process_time() - cpu_began) / elapsed,
        send_delay_p99_s=_p99(delays),
        kernel_stamped=client.kernel_stamped,
    )


def _order(load: Load) -> list[Conversation]:
    """What is to be sent, the first first."""
    rounds: list[Conversation] = []
    for number in range(load.repeats):
        ordered = list(load.conversations)
        random.Random(load.seed + number).shuffle(ordered)
        rounds += reversed(ordered)
    return rounds


def _refuse_unknown_ids(ids: Sequence[int], vocabulary: int | None) -> None:
    highest = max(ids, default=0)
    if vocabulary is not None and highest >= vocabulary:
        raise RequestError("bad_id", f"the prompt has id {highest}, and the vocabulary ends at {vocabulary - 1}")


async def _converse(
    client: StreamingClient,
    chat: Chat,
    ready: _Ready,
    share: Share,
    report: Report,
    due_ns: int,
    delays: list[float],
) -> int:
    """Play one conversation. Each turn is due when the one before had its last event, the first at ``due_ns``.

    Adds how late each was sent (s) to ``delays``; returns when the next conversation is due.
    """
    conversation, request, payload = ready.conversation, ready.request, ready.payload
    messages: list[Message] = []
    for index, text in enumerate(conversation.user_turns):
        messages.append({"role": "user", "content": text})
        try:
            if index:
                ids = await chat.ids(list(messages))
                request = TurnRequest(conversation.question_id, conversation.category, index, ids, share.sampling)
                _refuse_unknown_ids(ids, share.vocabulary)
                payload = await asyncio.to_thread(client.payload, request)
            if isinstance(payload, RequestError):
                raise payload
            turn = await client.turn(request, deadline_s=share.deadline_s, payload=payload)
        except RequestError as error:
            report(ready.place, Failure(conversation.question_id, index, error.reason, str(error)))
            return time.perf_counter_ns()
        report(ready.place, turn)
        delays.append((turn.start_ns - due_ns) / 1e9)
        due_ns = turn.event_ns[-1]
        if index + 1 < len(conversation.user_turns):
            reply = await chat.decode(turn.output_ids or ()) if turn.text is None else turn.text
            messages.append({"role": "assistant", "content": reply})
    return due_ns


@contextlib.contextmanager
def _at_rest() -> Iterator[None]:
    """Keep the garbage collector and other threads from holding up the event loop for tens of ms.

    What is there already is not looked at, and of what is new only the youngest two generations are:
    turns make no cycles, so that the third would only walk through what has been measured.
    """
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*thresholds[:2], 1 << 30)
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)
        gc.unfreeze()


async def _probe_lag(lags: list[float]) -> None:
    """Record how late the event loop wakes a sleeper; that is how late a read can be."""
    while True:
        before = time.perf_counter()
        await asyncio.sleep(LAG_PROBE_S)
        lags.append(max(0.0, time.perf_counter() - before - LAG_PROBE_S))


def _p99(values: Sequence[float]) -> float:
    if not values:
        return 0.0
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]

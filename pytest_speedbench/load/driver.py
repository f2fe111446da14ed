"""Closed loop: keep exactly ``concurrency`` conversations in flight until all are done.

Or open loop: begin each at its time, whatever is in flight.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pytest_speedbench.engines.base import Sampling, TurnRequest
from pytest_speedbench.errors import RequestError
from pytest_speedbench.load.arrivals import Arrivals, schedule
from pytest_speedbench.load.client import StreamingClient
from pytest_speedbench.load.own_state import achieved, arrival_rate, at_rest, p99, probe_lag
from pytest_speedbench.measure.samples import Client, Failure, Turn
from pytest_speedbench.tokenize import ChatTokenizer, Message

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
    With ``arrivals`` the loop is open: they say when conversations begin, and ``concurrency`` is only
    what the client gets ready for.
    """

    conversations: tuple[Conversation, ...]
    concurrency: int
    sampling: Sampling
    deadline_s: float
    seed: int
    repeats: int = 1
    vocabulary: int | None = None
    arrivals: Arrivals | None = None

    @property
    def streams(self) -> int:
        """How many there can be at once: in an open loop all of them."""
        number = len(self.conversations) * self.repeats
        return number if self.arrivals is not None else min(self.concurrency, number)


@dataclass(frozen=True, slots=True)
class Sent:
    """What came back: finished turns, failures, the steady span, the client's own state.

    ``steady_ns`` is the span at full concurrency; in an open loop it lasts from when the first conversation was
    over, since it fills up until then, to the last arrival. ``arrival_rate`` is how many conversations
    per second began in an open loop, None for a closed one.
    """

    turns: tuple[Turn, ...]
    failures: tuple[Failure, ...]
    steady_ns: tuple[int, int] | None
    client: Client
    arrival_rate: float | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """What one event loop plays: conversations in the order in which they are sent, ``concurrency`` at once.

    In an open loop ``due_ns`` is when each begins, in ns after the beginning.
    """

    conversations: tuple[Conversation, ...]
    concurrency: int
    sampling: Sampling
    deadline_s: float
    vocabulary: int | None
    due_ns: tuple[int, ...] | None = None

    @property
    def streams(self) -> int:
        """How many to get ready for; in a closed loop there are never more at once."""
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

    ``full_ns`` is when all its streams were in flight, ``drained_ns`` when the first was not replaced; in an open
    loop when the first conversation was over, and when the last one began.
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
    due_ns = None if load.arrivals is None else schedule(load.arrivals, len(ordered), load.seed)
    base, more = divmod(load.concurrency, number)
    return [
        Share(
            tuple(ordered[part::number]),
            base + (part < more),
            load.sampling,
            load.deadline_s,
            load.vocabulary,
            None if due_ns is None else due_ns[part::number],
        )
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

    def sent(
        self, played: Sequence[Played], *, workers: int, open_loop: bool = False, clock_error_s: float = 0.0
    ) -> Sent:
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
            arrival_rate=arrival_rate(self.turns) if open_loop else None,
        )


async def drive(client: StreamingClient, tokenizer: ChatTokenizer, load: Load, *, progress: Progress) -> Sent:
    """Play all conversations in this process. Each turn feeds the model's own reply back.

    A failed turn ends its conversation and is recorded; the others go on.
    """
    (share,) = shares(load)
    tally = Tally(len(share.conversations), progress)
    ready = await prepare(client, share)
    played = await play(client, LocalChat(tokenizer), share, ready, tally.add)
    return tally.sent([played], workers=1, open_loop=load.arrivals is not None)


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
    delays: list[float] = []
    lags: list[float] = []

    async def converse(ready: _Ready, due_ns: int) -> int:
        next_ns = await _converse(client, chat, ready, share, report, due_ns, delays)
        report(ready.place, Ended())
        return next_ns

    loop = _ClosedLoop(converse, share.concurrency) if share.due_ns is None else _OpenLoop(converse, share.due_ns)
    with at_rest():
        probe = asyncio.create_task(probe_lag(lags))
        cpu_began, began_ns = time.process_time(), time.perf_counter_ns()
        try:
            await loop.run(queue, began_ns)
        finally:
            for task in [probe, *loop.tasks]:
                task.cancel()
            await asyncio.gather(probe, *loop.tasks, return_exceptions=True)
    # A burst of a fraction of a second is no load.
    elapsed = max((time.perf_counter_ns() - began_ns) / 1e9, 1.0)
    return Played(
        full_ns=loop.full_ns,
        drained_ns=loop.drained_ns,
        lag_p99_s=p99(lags),
        cpu_share=(time.process_time() - cpu_began) / elapsed,
        send_delay_p99_s=p99(delays),
        kernel_stamped=client.kernel_stamped,
    )


_Converse = Callable[[_Ready, int], Awaitable[int]]
"""Plays a conversation that is due at a time; gives when it was over."""


class _ClosedLoop:
    """``concurrency`` streams, each of which begins a conversation when the one before is over."""

    def __init__(self, converse: _Converse, concurrency: int) -> None:
        self.tasks: list[asyncio.Task[None]] = []
        self.full_ns: int | None = None
        self.drained_ns: int | None = None
        self._converse, self._concurrency, self._in_flight = converse, concurrency, 0

    async def run(self, queue: deque[_Ready], began_ns: int) -> None:
        """Until the queue is empty and all that it held is over."""
        for _ in range(min(self._concurrency, len(queue))):
            self.tasks.append(asyncio.create_task(self._stream(queue, began_ns)))
            # One send at a time: otherwise the first events wait until the last request is out.
            await asyncio.sleep(0)
        await asyncio.gather(*self.tasks)

    async def _stream(self, queue: deque[_Ready], due_ns: int) -> None:
        while queue:
            ready = queue.popleft()
            self._in_flight += 1
            if self._in_flight == self._concurrency and self.full_ns is None:
                self.full_ns = time.perf_counter_ns()
            try:
                due_ns = await self._converse(ready, due_ns)
            finally:
                self._in_flight -= 1
                if not queue and self.drained_ns is None:
                    self.drained_ns = time.perf_counter_ns()


class _OpenLoop:
    """Conversations that begin at their times, in ns after the beginning, whatever is in flight."""

    def __init__(self, converse: _Converse, due_ns: Sequence[int]) -> None:
        self.tasks: list[asyncio.Task[None]] = []
        self.full_ns: int | None = None
        self.drained_ns: int | None = None
        self._converse, self._due_ns = converse, due_ns

    async def run(self, queue: deque[_Ready], began_ns: int) -> None:
        """Until the queue is empty and all that it held is over."""
        for after_ns in self._due_ns:
            due_ns = began_ns + after_ns
            await asyncio.sleep(max(0.0, (due_ns - time.perf_counter_ns()) / 1e9))
            self.tasks.append(asyncio.create_task(self._conversation(queue.popleft(), due_ns)))
        self.drained_ns = time.perf_counter_ns()
        await asyncio.gather(*self.tasks)

    async def _conversation(self, ready: _Ready, due_ns: int) -> None:
        await self._converse(ready, due_ns)
        if self.full_ns is None:
            self.full_ns = time.perf_counter_ns()


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

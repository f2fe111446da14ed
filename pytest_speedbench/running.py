"""One engine, started: warm it, measure windows on it, stop it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pytest_speedbench.cells import Cell
from pytest_speedbench.data.schema import Row
from pytest_speedbench.engines import registry
from pytest_speedbench.engines.base import Capacity, Description, Engine, Fetch, Profile, Sampling
from pytest_speedbench.engines.process import ServerProcess, free_port, require_free, uninterrupted
from pytest_speedbench.errors import ConfigError, EngineError
from pytest_speedbench.load.client import StreamingClient, fetcher, is_ready
from pytest_speedbench.load.driver import Conversation, Load, Progress, Sent, drive
from pytest_speedbench.measure.samples import Counters, Window
from pytest_speedbench.settings import Settings
from pytest_speedbench.tokenize import ChatTokenizer, Message
from pytest_speedbench.tokenize import load as load_tokenizer

SETTLE_S = 5.0
CONTEXT_STEP = 256
_CHAT_SLACK = 16
"""Template tokens around one reply that is fed back, and tokens by which re-encoding may differ."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A profile that passed its checks, with its tokenizer. Nothing runs yet."""

    profile: Profile
    engine: Engine
    tokenizer: ChatTokenizer

    @classmethod
    def of(cls, profile: Profile) -> Prepared:
        """Check the engine and load the tokenizer. Raises ConfigError."""
        engine = registry.create(profile)
        engine.check()
        port = engine.port()
        if port is not None:
            require_free(port)
        return cls(profile, engine, load_tokenizer(profile.tokenizer or engine.tokenizer_source()))

    def conversations(self, rows: Sequence[Row]) -> tuple[Conversation, ...]:
        """The conversations of a cell, first prompts tokenised."""
        return tuple(
            Conversation(
                row.question_id,
                row.category,
                row.turns,
                self.tokenizer.ids([{"role": "user", "content": row.turns[0]}]),
            )
            for row in rows
        )

    def context_needed(self, conversation: Conversation, osl_cap: int) -> int:
        """Tokens that the conversation can grow to: its prompts, and every reply at its cap."""
        messages: list[Message] = []
        for text in conversation.user_turns:
            messages += [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]
        replies = len(conversation.user_turns) * (osl_cap + _CHAT_SLACK)
        if len(conversation.user_turns) == 1:
            return len(conversation.first_ids) + osl_cap
        return len(self.tokenizer.ids(messages[:-1])) + replies

    def capacity(self, conversations: Sequence[Conversation], *, concurrency: int, osl_cap: int) -> Capacity:
        """What the server must hold. Raises ConfigError that names the conversations that do not fit."""
        needs = {c.question_id: self.context_needed(c, osl_cap) for c in conversations}
        limits = [n for n in (self.profile.max_model_len, self.tokenizer.max_context) if n is not None]
        limit = min(limits, default=None)
        longest = max(needs.values(), default=osl_cap)
        if limit is not None and longest > limit:
            over = {name: need for name, need in needs.items() if need > limit}
            listed = ", ".join(f"{name} ({need} tokens)" for name, need in list(over.items())[:3])
            more = f" and {len(over) - 3} more" if len(over) > 3 else ""
            raise ConfigError(
                f"{len(over)} of {len(needs)} prompts do not fit the context of {limit} tokens with up to {osl_cap} "
                f"output tokens per turn: {listed}{more}; lower --speedbench-osl, raise max_model_len, "
                "or leave these cells out"
            )
        rounded = -(-longest // CONTEXT_STEP) * CONTEXT_STEP
        return Capacity(concurrency, self.profile.max_model_len or min(rounded, limit or rounded))


def prompts_sha256(conversations: Sequence[Conversation]) -> str:
    """Hash of a cell's input: ids of first turns, text of later ones, whatever their order."""
    digest = hashlib.sha256()
    for conversation in sorted(conversations, key=lambda c: c.question_id):
        digest.update(repr((conversation.question_id, conversation.first_ids, conversation.user_turns[1:])).encode())
    return digest.hexdigest()


@dataclass(slots=True)
class RunningEngine:
    """A started engine."""

    prepared: Prepared
    capacity: Capacity
    process: ServerProcess
    base_url: str
    fetch: Fetch
    description: Description
    start_s: float
    settings: Settings
    _warmed: set[int] = field(default_factory=set)

    @property
    def steps_source(self) -> str:
        """Where step counts come from, for the artifact."""
        prepared = self.prepared
        return prepared.engine.steps_source if prepared.profile.speculation.active else "no speculation"

    def measure(
        self, cell: Cell, conversations: Sequence[Conversation], sampling: Sampling, progress: Progress
    ) -> Window:
        """Measure one cell.

        Raises EngineDied when the engine is gone afterwards, ConfigError for a cell beyond the
        capacity that it was started with.
        """
        if cell.concurrency > self.capacity.max_batch_size:
            raise ConfigError(
                f"concurrency {cell.concurrency} is above the {self.capacity.max_batch_size} that the engine was "
                "started for; name it in --speedbench-concurrency"
            )
        longest = max(self.prepared.context_needed(c, sampling.osl_cap) for c in conversations)
        if longest > self.capacity.max_model_len:
            raise ConfigError(
                f"{cell.id(with_concurrency=True)} needs a context of {longest} tokens, and the engine was started "
                f"with {self.capacity.max_model_len}; set max_model_len in the profile"
            )
        self.process.require_alive()
        if cell.concurrency not in self._warmed:
            self._send(_warmup(self.prepared, cell.concurrency), cell.concurrency, Sampling(osl_cap=8), lambda *_: None)
            self._warmed.add(cell.concurrency)
        before = self._settled_counters()
        sent = self._send(tuple(conversations), cell.concurrency, sampling, progress)
        if sent.failures:
            # A process that was killed needs a moment until its end can be seen.
            time.sleep(0.5)
            self.process.require_alive()
        return Window(
            cell=cell,
            planned=tuple((c.question_id, len(c.user_turns)) for c in conversations),
            turns=sent.turns,
            failures=sent.failures,
            counters=self._settled_counters() - before,
            client=sent.client,
            steady_ns=sent.steady_ns,
        )

    def _send(
        self, conversations: tuple[Conversation, ...], concurrency: int, sampling: Sampling, progress: Progress
    ) -> Sent:
        load = Load(conversations, concurrency, sampling, self.settings.turn_timeout_s, self.settings.seed)

        async def run() -> Sent:
            async with StreamingClient(self.prepared.engine, self.base_url, concurrency=concurrency) as client:
                return await drive(client, self.prepared.tokenizer, load, progress=progress)

        return asyncio.run(run())

    def _settled_counters(self) -> Counters:
        """Counters once the server is idle: some advance only when a request has ended."""
        deadline = time.monotonic() + SETTLE_S
        with _understood():
            while not self.prepared.engine.idle(self.fetch) and time.monotonic() < deadline:
                time.sleep(0.02)
            return self.prepared.engine.counters(self.fetch)


def _warmup(prepared: Prepared, number: int) -> tuple[Conversation, ...]:
    """Prompts that are in no dataset: engines keep tries and caches of what they have seen."""
    texts = [f"Warm-up request {i + 1}: count from {i} to {i + 9} in words." for i in range(number)]
    rows = [Row(f"warm-up-{i}", "warm-up", "", (t,), "", "", "", False) for i, t in enumerate(texts)]
    return prepared.conversations(rows)


@contextlib.contextmanager
def started(prepared: Prepared, capacity: Capacity, settings: Settings, folder: Path) -> Iterator[RunningEngine]:
    """Start the engine in ``folder`` and stop it again. Raises EngineStartError."""
    engine = prepared.engine
    port = engine.port() or free_port()
    base_url = f"http://127.0.0.1:{port}"
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(ServerProcess(engine.launch(capacity, port), folder))
        stack.enter_context(_stopping(process))
        start_s = process.wait_ready(lambda: is_ready(base_url, engine.ready_path), timeout_s=settings.start_timeout_s)
        fetch = fetcher(base_url)
        with _understood():
            description = engine.describe(fetch)
        yield RunningEngine(prepared, capacity, process, base_url, fetch, description, start_s, settings)


@contextlib.contextmanager
def _understood() -> Iterator[None]:
    """An upgraded engine may say things of itself in another form; that is an error of the engine."""
    try:
        yield
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise EngineError(
            f"cannot make sense of what the engine says of itself ({type(error).__name__}: {error}); "
            "this version of the plugin may not know this version of the engine"
        ) from error


@contextlib.contextmanager
def _stopping(process: ServerProcess) -> Iterator[None]:
    try:
        yield
    finally:
        with uninterrupted():
            process.stop()

"""One engine, running: warm it, measure windows on it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import statistics
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from pytest_speedbench.cells import Cell
from pytest_speedbench.data.schema import Row
from pytest_speedbench.engines import registry
from pytest_speedbench.engines.base import (
    Capacity,
    Description,
    Engine,
    Fetch,
    Profile,
    Sampling,
    TurnRequest,
    model_name,
)
from pytest_speedbench.engines.gpu_watch import watched
from pytest_speedbench.engines.gpus import Gpu, Gpus
from pytest_speedbench.engines.process import require_free
from pytest_speedbench.errors import ConfigError, EngineError
from pytest_speedbench.load import warmup
from pytest_speedbench.load.arrivals import Arrivals
from pytest_speedbench.load.client import post, post_json
from pytest_speedbench.load.driver import Conversation, Load, Progress, Sent
from pytest_speedbench.load.spread import send
from pytest_speedbench.measure.losslessness import TopTokens
from pytest_speedbench.measure.samples import Counters, Window
from pytest_speedbench.measure.steps import Drafting, settle
from pytest_speedbench.settings import Settings
from pytest_speedbench.token_cache import TokenCache, folder_of
from pytest_speedbench.tokenize import ChatTokenizer, Message, vocabulary
from pytest_speedbench.tokenize import load as load_tokenizer

SETTLE_S = 5.0
FLUSH_S = 30.0
CONTEXT_STEP = 256
_WINDOW_SLACK = 3
_CHAT_SLACK = 16
"""Template tokens around one reply that is fed back, and tokens by which re-encoding may differ."""


@dataclass(frozen=True)
class Prepared:
    """A profile that passed its checks, with its tokenizer. Nothing runs yet."""

    profile: Profile
    engine: Engine
    tokenizer: ChatTokenizer
    cache: TokenCache

    @classmethod
    def of(cls, profile: Profile) -> Prepared:
        """Check the engine and load the tokenizer. Raises ConfigError."""
        engine = registry.create(profile)
        engine.check()
        port = profile.port
        if port is not None and profile.base_url is None:
            require_free(port)
        tokenizer = load_tokenizer(
            profile.tokenizer or engine.tokenizer_source(),
            template_args=profile.chat_template_args,
            completions=profile.completions,
        )
        return cls(profile, engine, tokenizer, TokenCache(folder_of(os.environ)))

    @property
    def drafting(self) -> Drafting:
        """How the profile drafts, for working out steps."""
        return Drafting(self.profile.speculation.draft_tokens, self.engine.drafts_always, self.engine.steps_source)

    @cached_property
    def vocabulary(self) -> int:
        """Number of ids that may be sent: those of the model where it tells, else of its tokenizer."""
        return vocabulary(self.profile.model) or self.tokenizer.vocab_size

    def conversations(self, rows: Sequence[Row]) -> tuple[Conversation, ...]:
        """The conversations of a cell, first prompts tokenised."""
        first_ids = self.tokenizer.first_ids([(row.question_id, row.turns[0]) for row in rows], self.cache)
        return tuple(
            Conversation(row.question_id, row.category, row.turns, ids)
            for row, ids in zip(rows, first_ids, strict=True)
        )

    def context_needed(self, conversation: Conversation, osl_cap: int) -> int:
        """Tokens that the conversation can grow to: its prompts, and every reply at its cap."""
        if len(conversation.user_turns) == 1:
            return len(conversation.first_ids) + osl_cap
        if self.tokenizer.completions:
            # Each turn is sent alone.
            return max(len(self.tokenizer.encode(text)) for text in conversation.user_turns) + osl_cap
        messages: list[Message] = []
        for text in conversation.user_turns:
            messages += [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]
        replies = len(conversation.user_turns) * (osl_cap + _CHAT_SLACK)
        return len(self.tokenizer.ids(messages[:-1], row=conversation.question_id)) + replies

    def needs(self, conversations: Iterable[Conversation], osl_cap: int) -> dict[str, int]:
        """Tokens of context that each conversation needs, by its id. Raises ConfigError for ids that do not exist."""
        needs, unknown = {}, []
        for conversation in conversations:
            needs[conversation.question_id] = self.context_needed(conversation, osl_cap)
            if max(conversation.first_ids, default=0) >= self.vocabulary:
                unknown.append(conversation.question_id)
        if unknown:
            raise ConfigError(
                f"{len(unknown)} prompts have ids beyond the {self.vocabulary} of {model_name(self.profile.model)}: "
                f"{', '.join(unknown[:3])}; the tokenizer {self.tokenizer.source} is not that of the model"
            )
        return needs

    def capacity(self, needs: Mapping[str, int], *, concurrency: int, osl_cap: int) -> Capacity:
        """What the server must hold. Raises ConfigError that names the conversations that do not fit."""
        limit = self.profile.max_model_len or self.tokenizer.max_context
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
        # Engines keep room for a whole draft window, and near the end of the context stop drafting.
        window = self.profile.speculation.draft_tokens + _WINDOW_SLACK
        rounded = -(-(longest + window) // CONTEXT_STEP) * CONTEXT_STEP
        return Capacity(concurrency, self.profile.max_model_len or min(rounded, limit or rounded))


def prompts_sha256(conversations: Sequence[Conversation]) -> str:
    """Hash of a cell's input: ids of first turns, text of later ones, whatever their order."""
    digest = hashlib.sha256()
    for conversation in sorted(conversations, key=lambda c: c.question_id):
        own = (conversation.question_id, tuple(conversation.first_ids), conversation.user_turns[1:])
        digest.update(repr(own).encode())
    return digest.hexdigest()


class Server(Protocol):
    """The process behind an engine, or a server that someone else runs."""

    def owns(self, pid: int) -> bool:
        """Whether a process belongs to the engine."""

    def require_alive(self) -> None:
        """Raise EngineDied if it is known to have ended."""


@dataclass(slots=True)
class RunningEngine:
    """An engine that answers. ``start_s`` is None for one that was running already."""

    prepared: Prepared
    capacity: Capacity
    server: Server
    base_url: str
    fetch: Fetch
    description: Description
    start_s: float | None
    settings: Settings
    border: Gpus | None = None
    gpus: tuple[Gpu, ...] = ()
    _notes: list[str] = field(default_factory=list)
    _warmed: set[tuple[int, int]] = field(default_factory=set)
    _reading: threading.Lock = field(default_factory=threading.Lock)

    def measure(
        self,
        cell: Cell,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        progress: Progress,
        *,
        repeats: int = 1,
    ) -> Window:
        """Measure one cell, each conversation ``repeats`` times.

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
        self.server.require_alive()
        self._warm(cell, conversations, streams=min(cell.concurrency, len(conversations) * repeats))
        self._flush()
        before = self._settled_counters()
        # New sensors for every window, since they tell what is new in it.
        sensors = () if self.border is None else self.border.sensors(self.gpus)
        with self._counters_read(), watched(sensors, self.server.owns) as watch:
            sent = self._send(
                tuple(conversations),
                cell.concurrency,
                sampling,
                progress,
                repeats=repeats,
                arrivals=self.settings.arrivals,
            )
        if sent.failures:
            # A process that was killed needs a moment until its end can be seen.
            time.sleep(0.5)
            self.server.require_alive()
        counters = self._settled_counters() - before
        turns, steps = settle(sent.turns, counters, self.prepared.drafting)
        return Window(
            cell=cell,
            planned=tuple((c.question_id, len(c.user_turns)) for c in conversations) * repeats,
            turns=turns,
            failures=sent.failures,
            counters=counters,
            client=sent.client,
            steady_ns=sent.steady_ns,
            steps=steps,
            gpus=watch.windows(),
            arrival_rate=sent.arrival_rate,
        )

    def _warm(self, cell: Cell, conversations: Sequence[Conversation], *, streams: int) -> None:
        """Traffic like the cell's until its pace is steady, once per number of streams and rough input length.

        ``streams`` is how many the cell can have at once: a small one never reaches its concurrency.
        """
        length = int(statistics.median(len(c.first_ids) for c in conversations))
        length = min(warmup.rough_length(length), self.capacity.max_model_len - warmup.OUTPUT_TOKENS - _WINDOW_SLACK)
        key = (streams, length)
        if key in self._warmed:
            return
        self._warmed.add(key)
        sampling = Sampling(osl_cap=warmup.OUTPUT_TOKENS, ignore_eos=True)
        done = warmup.Warmup(())
        while not done.over:
            requests = warmup.conversations(
                self.prepared.tokenizer, number=streams, length=length, round_index=len(done.seconds)
            )
            sent = self._send(requests, streams, sampling, lambda *_: None)
            if sent.failures:
                failure = sent.failures[0]
                self._notes.append(f"{cell.id(with_concurrency=True)} was not warmed up ({failure.message})")
                return
            done = warmup.Warmup((*done.seconds, warmup.round_s(sent.turns)))
        if not done.steady:
            rounds = ", ".join(f"{seconds:.2f}" for seconds in done.seconds[-4:])
            self._notes.append(
                f"{cell.id(with_concurrency=True)}: the pace was not steady after {len(done.seconds)} rounds of "
                f"warm-up (the last took {rounds} s); its rates and times may be off"
            )

    def top_tokens(self, ids: Sequence[int], sampling: Sampling) -> TopTokens | None:
        """The likeliest tokens after ``ids``: after a prompt alone nothing is drafted yet.

        None where the engine's protocol cannot tell them, or this server did not.
        """
        engine = self.prepared.engine
        asked = engine.top_tokens(TurnRequest("", "", 0, tuple(ids), sampling))
        if asked is None:
            return None
        try:
            self._flush()
            answer = post_json(self.base_url, asked.path, asked.body, engine.error_text, timeout_s=FLUSH_S)
            return asked.read(answer)
        except (EngineError, LookupError, ValueError, TypeError) as error:
            self._notes.append(f"the likeliest tokens could not be asked for ({error}), so differences are not graded")
            return None

    def take_notes(self) -> list[str]:
        """What the user should know of the measurements since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def _flush(self) -> None:
        path = self.prepared.engine.flush_path
        if path is not None and not post(self.base_url, path, timeout_s=FLUSH_S):
            raise EngineError(
                f"POST {path} did not succeed within {FLUSH_S:.0f} s, so earlier prompts may help later ones"
            )

    def _send(
        self,
        conversations: tuple[Conversation, ...],
        concurrency: int,
        sampling: Sampling,
        progress: Progress,
        *,
        repeats: int = 1,
        arrivals: Arrivals | None = None,
    ) -> Sent:
        settings = self.settings
        load = Load(
            conversations,
            concurrency,
            sampling,
            settings.turn_timeout_s,
            settings.seed,
            repeats=repeats,
            vocabulary=self.prepared.vocabulary,
            arrivals=arrivals,
        )
        return send(self.prepared.engine, self.base_url, self.prepared.tokenizer, load, progress=progress)

    @contextlib.contextmanager
    def _counters_read(self) -> Iterator[None]:
        """Keep reading counters that the server drops when nobody does."""
        every_s = self.prepared.engine.counters_poll_s
        if every_s is None:
            yield
            return
        done = threading.Event()

        def read() -> None:
            while not done.wait(every_s):
                # What is wrong shows when the window is closed; a reading that fails now may work then.
                with contextlib.suppress(EngineError):
                    self._counters()

        reader = threading.Thread(target=read, name="counters", daemon=True)
        reader.start()
        try:
            yield
        finally:
            done.set()
            reader.join()

    def _counters(self) -> Counters:
        with self._reading, understood():
            return self.prepared.engine.counters(self.fetch)

    def _settled_counters(self) -> Counters:
        """Counters once the server is idle: some advance only when a request has ended."""
        deadline = time.monotonic() + SETTLE_S
        while not self._idle() and time.monotonic() < deadline:
            time.sleep(0.02)
        return self._counters()

    def _idle(self) -> bool:
        with self._reading, understood():
            return self.prepared.engine.idle(self.fetch)


@contextlib.contextmanager
def understood() -> Iterator[None]:
    """An upgraded engine may say things of itself in another form; that is an error of the engine."""
    try:
        yield
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise EngineError(
            f"cannot make sense of what the engine says of itself ({type(error).__name__}: {error}); "
            "this version of the plugin may not know this version of the engine"
        ) from error

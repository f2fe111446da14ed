"""The border to an inference engine.

An engine module does no I/O of its own: it says how to launch the server, which HTTP requests to
make, and decodes what comes back. Processes live in ``process``, HTTP in ``pytest_speedbench.load``.
That keeps every protocol testable against recorded bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pytest_speedbench.measure.losslessness import TopTokens
from pytest_speedbench.measure.samples import Counters, Turn

Fetch = Callable[[str], bytes]
"""GET a path of the running server and return the body; raises EngineError."""


@dataclass(frozen=True, slots=True)
class Speculation:
    """How drafts are made. ``draft_tokens`` is k, the most drafts of one step (0 for ``none``)."""

    method: str = "none"
    draft_tokens: int = 0
    draft_model: str | None = None

    @property
    def active(self) -> bool:
        """Whether the engine is asked to speculate."""
        return self.method != "none"


@dataclass(frozen=True, slots=True)
class Profile:
    """One way to launch one engine. ``label`` is what item ids show.

    ``gpus`` is the number of GPUs that one replica takes, at least ``tensor_parallel``. ``base_url`` is that of
    a server that someone else runs; nothing is launched then. ``completions`` and ``chat_template_args`` say
    how a chat becomes a prompt. ``options`` is the engine's own part of
    the profile file. Which keys it may have is the engine module's business.
    """

    label: str
    engine: str
    model: str
    speculation: Speculation
    tokenizer: str | None = None
    max_model_len: int | None = None
    tensor_parallel: int = 1
    gpus: int = 1
    base_url: str | None = None
    completions: bool = False
    chat_template_args: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def port(self) -> int | None:
        """The port that the profile fixes for the engine, None for any free one."""
        port = self.options.get("port")
        return None if port is None else int(port)


def local_path(path: str) -> str:
    """A file or folder made absolute, since engines run in a folder of their own; an id stays as it is."""
    return str(Path(path).absolute()) if Path(path).exists() else path


def model_name(model: str) -> str:
    """What thresholds and artifacts call a model: an id as it is, a file or folder by its name."""
    return Path(model).name if Path(model).exists() else model


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the plan needs of the server: conversations at once, and tokens per conversation."""

    max_batch_size: int
    max_model_len: int


@dataclass(frozen=True, slots=True)
class Launch:
    """A process to start: ``files`` (name to content) are written to its folder first."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Description:
    """What the running server says of itself.

    ``resolved`` is JSON-serialisable. ``served`` are the names and paths that it has for its model,
    ``max_batch_size`` is its own limit on requests at once; both may be unknown.
    """

    version: str
    resolved: Mapping[str, Any]
    served: tuple[str, ...] = ()
    max_batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """Decoding parameters of a turn. ``osl_cap`` is the most output tokens."""

    osl_cap: int
    temperature: float = 0.0
    seed: int = 0
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """One turn to generate: prompt token ids, complete with history and chat template."""

    question_id: str
    category: str
    index: int
    ids: Sequence[int]
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class TopTokensRequest:
    """A POST of ``body`` as JSON to ``path``, and how to read its answer.

    ``read`` raises ValueError, LookupError or TypeError for an answer that it cannot understand.
    """

    path: str
    body: Mapping[str, Any]
    read: Callable[[bytes], TopTokens]


class StreamDecoder(Protocol):
    """Turns the server-sent events of one request into a Turn."""

    def event(self, data: bytes, at_ns: int) -> None:
        """Take one event's payload, which arrived at ``at_ns``. Raises RequestError."""

    def finish(self, start_ns: int) -> Turn:
        """Close the turn that was sent at ``start_ns``; RequestError if no end mark was seen."""


class Engine(Protocol):
    """What every engine module provides, made for one profile.

    ``ready_paths`` are tried in turn until one is not 404. ``flush_path`` is POSTed to between cells,
    so that nothing that the server remembers of one cell helps the next. ``counters_poll_s``: counters
    are lost unless they are read that often while requests run. ``steps_source`` says what a
    decoder's step counts rest on, for the artifact.
    """

    name: ClassVar[str]
    methods: ClassVar[tuple[str, ...]]
    steps_source: ClassVar[str]
    ready_paths: ClassVar[tuple[str, ...]]
    stream_path: ClassVar[str]
    flush_path: ClassVar[str | None]
    counters_poll_s: ClassVar[float | None]

    def __init__(self, profile: Profile) -> None: ...

    @property
    def drafts_always(self) -> bool:
        """Whether every decode step drafts, so that steps and drafts are one number."""

    @property
    def remembers(self) -> bool:
        """Whether what one request generated helps to draft for another in the same window."""

    def check(self) -> None:
        """Refuse, before anything starts, what cannot work. Raises ConfigError.

        With ``base_url`` in the profile nothing is launched, so nothing need be installed.
        """

    def tokenizer_source(self) -> str:
        """Where the tokenizer is when the profile names none."""

    def launch(self, capacity: Capacity, port: int) -> Launch:
        """The process that serves the profile on 127.0.0.1:``port``."""

    def describe(self, fetch: Fetch) -> Description:
        """Version and effective configuration of the running server.

        Asked once, before any request. Raises EngineError for a server that speaks another engine's
        protocol or is of a version that this module does not know.
        """

    def counters(self, fetch: Fetch) -> Counters:
        """Totals since the server started, or since the first call. Called from one thread at a time."""

    def idle(self, fetch: Fetch) -> bool:
        """Whether no request is being processed or waiting, so that counters are final."""

    def body(self, request: TurnRequest) -> dict[str, Any]:
        """The JSON body to POST to ``stream_path``."""

    def decoder(self, request: TurnRequest) -> StreamDecoder:
        """A fresh decoder for the answer to ``request``."""

    def top_tokens(self, request: TurnRequest) -> TopTokensRequest | None:
        """How to ask for the likeliest tokens after ``request.ids``; None where the protocol cannot tell them.

        Of the sampling only ``ignore_eos`` matters: some engines then never choose EOS.
        """

    def error_text(self, body: bytes) -> str:
        """The message inside an HTTP error body."""

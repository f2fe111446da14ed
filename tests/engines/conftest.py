"""Real llama-servers, one per method, started when first asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_speedbench.cells import Cell
from pytest_speedbench.engines import embedded
from pytest_speedbench.engines.base import Capacity, Sampling
from pytest_speedbench.engines.gpus import Nvml
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.load.driver import Conversation
from pytest_speedbench.measure.samples import Window
from pytest_speedbench.running import Prepared, RunningEngine
from pytest_speedbench.settings import Settings, build
from pytest_speedbench.starting import started
from pytest_speedbench.tokenize import ChatTokenizer, load

CAPACITY = Capacity(max_batch_size=2, max_model_len=1024)
Engines = Callable[[str], RunningEngine]


def settings_of(folder: Path, profile: str = "", **typed: str) -> Settings:
    """Settings as the command line would give them, with ``profile`` as the profile file."""
    (folder / "speedbench.yaml").write_text(profile or "start_timeout: 120\n")
    line: dict[str, Any] = {"engine": "llamacpp"} | typed
    return build(
        command_line=lambda option: line.get(option.key),
        ini=lambda option: None,
        environ={},
        rootdir=folder,
        invocation_dir=folder,
    )


@contextlib.contextmanager
def serving(folder: Path, profile: str = "", **typed: str) -> Iterator[RunningEngine]:
    """A server of its own."""
    settings = settings_of(folder, profile, **typed)
    with started(Prepared.of(settings.profiles[0]), CAPACITY, settings, folder, Nvml()) as (engine, _):
        yield engine


@pytest.fixture(scope="session")
def model() -> Path:
    try:
        return embedded.find_model()
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tokenizer(model: Path) -> ChatTokenizer:
    return load(str(model))


@pytest.fixture(scope="session")
def engines(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    running: dict[str, RunningEngine] = {}
    with contextlib.ExitStack() as stack:

        def engine(method: str) -> RunningEngine:
            if method not in running:
                running[method] = stack.enter_context(serving(tmp_path_factory.mktemp(method), method=method))
            return running[method]

        yield engine


def conversations(engine: RunningEngine, texts: Sequence[str | tuple[str, ...]]) -> tuple[Conversation, ...]:
    """One conversation per text, or per tuple of texts for several turns."""
    turns = [(text,) if isinstance(text, str) else text for text in texts]
    tokenizer = engine.prepared.tokenizer
    return tuple(
        Conversation(f"q{i}", "coding", texts, tokenizer.ids([{"role": "user", "content": texts[0]}]))
        for i, texts in enumerate(turns)
    )


def measure(
    engine: RunningEngine,
    texts: Sequence[str | tuple[str, ...]],
    *,
    concurrency: int = 1,
    osl_cap: int = 32,
    ignore_eos: bool = False,
) -> Window:
    """Measure the texts as one cell."""
    cell = Cell("qualitative", concurrency, category="coding")
    sampling = Sampling(osl_cap=osl_cap, ignore_eos=ignore_eos)
    return engine.measure(cell, conversations(engine, texts), sampling, lambda done, total: None)

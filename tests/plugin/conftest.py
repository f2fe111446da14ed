"""Projects for the plugin to work on, and measurements that several tests look at."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_speedbench import tokenize
from pytest_speedbench.engines import embedded
from tests.emulator.schedule import Schedule
from tests.emulator.server import Server
from tests.emulator.vllm import Vllm
from tests.plugin import project as files


@pytest.fixture(autouse=True, scope="session")
def clean_environment() -> Iterator[None]:
    """Nothing of the CI or the shell that runs these tests reaches the pytest that they run."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            foreign = name.startswith(("SPEEDBENCH_", "GITHUB_", "PYTEST_ADDOPTS", "PYTEST_XDIST"))
            if name not in ("SPEEDBENCH_STATE_DIR", "SPEEDBENCH_CACHE_DIR") and (
                foreign or name in ("CI", "BUILD_NUMBER")
            ):
                patch.delenv(name)
        patch.setenv("COLUMNS", "200")
        patch.setenv("PYTHONUTF8", "1")
        yield


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenize.load(str(embedded.find_model()))._tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def project(pytester: pytest.Pytester, tokenizer: Path) -> pytest.Pytester:
    """A project with three categories of two prompts, a limit for every cell, and a profile."""
    files.write_project(pytester.path, tokenizer=tokenizer)
    return pytester


@dataclass(frozen=True)
class Run:
    """A finished run of pytest in ``folder``."""

    folder: Path
    result: pytest.RunResult

    @property
    def text(self) -> str:
        return files.text(self.result)


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All cells measured and none judged, as a first run would, with warnings as errors and the model's tokenizer."""
    folder = tmp_path_factory.mktemp("measured")
    files.write_project(folder)
    result = files.run_pytest(folder, files.ENGINE, "--speedbench-measure-only", "-W", "error", "-rA")
    assert result.ret == pytest.ExitCode.OK, files.text(result)
    return Run(folder, result)


@pytest.fixture(scope="session")
def lengths(measured: Run) -> dict[str, float]:
    """Acceptance length by category. Decoding is greedy, so every run has the same."""
    return {
        str(cell["cell"]["category"]): cell["metrics"]["acceptance_length"]["value"]
        for cell in files.artifact(measured.folder)["cells"]
    }


ServeDrafts = Callable[..., str]


@pytest.fixture
def serve_drafts() -> Iterator[ServeDrafts]:
    """``serve_drafts(rate, tokens=…, draft=…, seed=0)``: a vLLM server whose drafts are accepted with that probability.

    Every request draws anew; ``seed`` tells servers of one rate apart. Returns the address.
    """
    with ExitStack() as stack:

        def start(rate: float, *, tokens: int, draft: int, seed: int = 0) -> str:
            app = Vllm(
                lambda r: Schedule.drawn(tokens, draft=draft, rate=rate, seed=r.number + seed),
                draft_tokens=draft,
                metrics="detailed",
                served="someone/model",
            )
            return stack.enter_context(Server(app)).base_url

        yield start

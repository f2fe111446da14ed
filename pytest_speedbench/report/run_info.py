"""What a run was: versions, engines, options, provenance. Frozen, and free of secrets."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from pytest_speedbench import __version__
from pytest_speedbench.report.redact import Redactor, redact

__all__ = ["CellData", "EngineRecord", "GpuRecord", "OptionRecord", "RunInfo", "collect", "plain_json", "redact"]


class CellData(NamedTuple):
    """What a dataset has for one cell, whatever the concurrency.

    ``masked`` prompts are placeholders and left out of the other counts; ``multiturn`` ones have more than
    one turn. ``sha256`` is the identity of the prompts, whatever their order.
    """

    cell: str
    prompts: int
    masked: int
    multiturn: int
    turns: int
    sha256: str


class OptionRecord(NamedTuple):
    """One option that is not at its default, and where its value comes from."""

    name: str
    value: str
    origin: str


@dataclass(frozen=True, slots=True)
class GpuRecord:
    """One GPU that an engine ran on. ``facts`` holds what else was read, such as locked clocks."""

    name: str
    uuid: str = ""
    index: int | None = None
    driver: str = ""
    cuda: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """One started engine. ``resolved`` is the configuration as the engine itself reports it.

    ``profile`` is the label in item ids. ``method`` and ``draft_tokens`` are None without speculation.
    ``start_s`` is how long the engine took to be ready. ``base_url`` is that of a server that was
    running already: what it was launched with and who else uses it cannot be known.
    """

    profile: str
    engine: str
    version: str
    model: str
    method: str | None = None
    draft_model: str | None = None
    draft_tokens: int | None = None
    gpus: tuple[GpuRecord, ...] = ()
    resolved: Mapping[str, object] = field(default_factory=dict)
    start_s: float | None = None
    base_url: str | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 over what must be equal for two runs to be comparable.

        Versions and GPUs are left out: they are what an upgrade gate compares.
        """
        return _sha256(
            {
                "engine": self.engine,
                "model": self.model,
                "method": self.method,
                "draft_model": self.draft_model,
                "draft_tokens": self.draft_tokens,
                "resolved": self.resolved,
            }
        )


@dataclass(frozen=True, slots=True)
class RunInfo:
    """Everything about a run that is not a cell. ``started`` is UTC in ISO 8601.

    ``dataset_cells`` is all that the dataset has, measured or not.
    """

    started: str
    argv: tuple[str, ...]
    plugin_version: str
    python_version: str
    pytest_version: str
    platform: str
    cpu: str
    dataset: str
    dataset_sha256: str = ""
    dataset_cells: tuple[CellData, ...] = ()
    thresholds: tuple[str, ...] = ()
    options: tuple[OptionRecord, ...] = ()
    engines: tuple[EngineRecord, ...] = ()
    git_commit: str | None = None
    ci_url: str | None = None
    ci_id: str | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the dataset and the fingerprints of all engines."""
        engines = sorted((engine.profile, engine.fingerprint) for engine in self.engines)
        return _sha256({"dataset": self.dataset_sha256 or self.dataset, "engines": [list(pair) for pair in engines]})

    def engine(self, profile: str) -> EngineRecord | None:
        """The engine of a profile, None if it never started."""
        return next((engine for engine in self.engines if engine.profile == profile), None)


def collect(
    *,
    started: str,
    argv: Sequence[str],
    environ: Mapping[str, str],
    dataset: str,
    dataset_sha256: str = "",
    dataset_cells: Iterable[CellData] = (),
    thresholds: Iterable[str] = (),
    options: Iterable[tuple[str, object, str]] = (),
    engines: Iterable[EngineRecord] = (),
    git_commit: str | None = None,
) -> RunInfo:
    """A RunInfo of this machine. ``environ`` is read for CI facts and for the secrets to scrub.

    ``options`` are (name, value, origin) of what is not at its default.
    """
    redactor = Redactor.from_environ(environ)
    ci_url, ci_id, commit = _ci(environ)
    return RunInfo(
        started=started,
        argv=redactor.argv([_valid_text(word) for word in argv]),
        plugin_version=__version__,
        python_version=platform.python_version(),
        pytest_version=version("pytest"),
        platform=platform.platform(),
        cpu=_cpu(),
        dataset=redactor.text(dataset),
        dataset_sha256=dataset_sha256,
        dataset_cells=tuple(dataset_cells),
        thresholds=tuple(redactor.value(path) for path in thresholds),
        options=tuple(_option(redactor, *option) for option in options),
        engines=tuple(clean_engine(engine, redactor) for engine in engines),
        git_commit=git_commit or commit,
        ci_url=ci_url and redactor.value(ci_url),
        ci_id=ci_id,
    )


def clean_engine(engine: EngineRecord, redactor: Redactor) -> EngineRecord:
    """The record with JSON values only and without secrets, as ``collect`` keeps it."""
    return replace(
        engine,
        model=redactor.value(engine.model),
        draft_model=engine.draft_model and redactor.value(engine.draft_model),
        base_url=engine.base_url and redactor.value(engine.base_url),
        gpus=tuple(replace(gpu, facts=_mapping(gpu.facts, redactor)) for gpu in engine.gpus),
        resolved=_mapping(engine.resolved, redactor),
    )


def plain_json(data: object) -> object:
    """``data`` as strict JSON: no NaN or infinity, string keys, valid Unicode; the rest as text."""
    if data is None or isinstance(data, (bool, int)):
        return data
    if isinstance(data, str):
        return _valid_text(data)
    if isinstance(data, float):
        return data if math.isfinite(data) else str(data)
    if isinstance(data, Mapping):
        return {_valid_text(str(key)): plain_json(item) for key, item in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain_json(item) for item in data]
    if isinstance(data, (set, frozenset)):
        return [plain_json(item) for item in sorted(data, key=str)]
    return _valid_text(str(data))


def _mapping(data: Mapping[str, object], redactor: Redactor) -> dict[str, object]:
    return redactor.mapping({_valid_text(str(key)): plain_json(item) for key, item in data.items()})


def _option(redactor: Redactor, name: str, value: object, origin: str) -> OptionRecord:
    # The pair is cleaned as a word of a command line, so that a secret name masks its value.
    text = value if isinstance(value, str) else json.dumps(plain_json(value), ensure_ascii=False)
    flag = f"--{name}="
    return OptionRecord(name, redactor.argv([flag + _valid_text(text)])[0].removeprefix(flag), redactor.value(origin))


def _ci(environ: Mapping[str, str]) -> tuple[str | None, str | None, str | None]:
    """(url, id, commit) of the CI run, from the variables that the common systems set."""
    github = [environ.get(name) for name in ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_RUN_ID")]
    url = f"{github[0]}/{github[1]}/actions/runs/{github[2]}" if all(github) else None

    def first(*names: str) -> str | None:
        return next((environ[name] for name in names if environ.get(name)), None)

    return (
        url or first("CI_JOB_URL", "BUILDKITE_BUILD_URL", "BUILD_URL"),
        first("GITHUB_RUN_ID", "CI_JOB_ID", "BUILDKITE_BUILD_ID", "BUILD_ID"),
        first("GITHUB_SHA", "CI_COMMIT_SHA", "BUILDKITE_COMMIT", "GIT_COMMIT"),
    )


def _cpu() -> str:
    """The CPU's model name and the number of logical CPUs."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    return f"{name} ({os.cpu_count() or 1} logical)"


def _valid_text(text: str) -> str:
    """Text that UTF-8 can encode: undecodable bytes of a command line become ``\\udcXX`` in words."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _sha256(data: object) -> str:
    canonical = json.dumps(plain_json(data), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()

"""Datasets on the Hugging Face hub, by a pinned revision, through its own cache."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pytest_speedbench.errors import ConfigError

SPEED_BENCH = "nvidia/SPEED-Bench"
SPEED_BENCH_REVISION = "454f88454792dfa3ccfd7ef15fff248efde44cd1"
_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^@]*))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
_SHOWN_DIGITS = 12


@dataclass(frozen=True, slots=True)
class HubId:
    """A dataset repository at one commit."""

    repo: str
    revision: str

    @property
    def id(self) -> str:
        """What a thresholds file matches: the repository and the start of the commit."""
        return f"{self.repo}@{self.revision[:_SHOWN_DIGITS]}"


def parse(spec: str) -> HubId | None:
    """``org/name@commit``, or None where ``spec`` is no hub id.

    SPEED-Bench itself needs no commit: the one that this version was made with is taken. Raises
    ConfigError for another dataset without one, since a branch may hold other prompts tomorrow.
    """
    match = _ID.fullmatch(spec)
    if match is None or spec.startswith("."):
        return None
    repo, revision = match["repo"], match["revision"]
    if revision is None and repo == SPEED_BENCH:
        revision = SPEED_BENCH_REVISION
    if revision is None or not COMMIT.fullmatch(revision):
        raise ConfigError(
            f"dataset {spec!r}: there is no such folder, and a hub id needs a pinned revision, 40 hex digits: "
            f"{repo}@COMMIT (a branch or tag may hold other prompts tomorrow)"
        )
    return HubId(repo, revision)


def folder(hub: HubId, configs: Collection[str], *, offline: bool) -> Path:
    """The folder with the Parquet files of ``configs``, downloaded if the cache lacks them.

    ``offline`` takes what is in the cache. Raises ConfigError that says what to download and where to put it.
    """
    from huggingface_hub import snapshot_download

    patterns = [f"{config}/*.parquet" for config in configs]
    try:
        return Path(
            snapshot_download(
                hub.repo,
                repo_type="dataset",
                revision=hub.revision,
                allow_patterns=patterns,
                local_files_only=offline,
            )
        )
    except Exception as error:
        # Which errors a broken transfer raises depends on the HTTP library that the hub's version uses. Its
        # own are several paragraphs; the first line says what it was.
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        why = "not in the cache, and nothing is downloaded now" if offline else f"the hub did not give it ({first})"
        raise ConfigError(
            f"dataset {hub.repo} at {hub.revision}: {why}. Where there is network, run `hf download {hub.repo} "
            f"--repo-type dataset --revision {hub.revision} --local-dir DIR` (log in first if access is "
            "restricted), copy DIR here and pass --speedbench-dataset=DIR"
        ) from None

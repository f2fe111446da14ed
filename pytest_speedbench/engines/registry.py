"""Engine names, and the module behind each."""

from __future__ import annotations

from pytest_speedbench.engines.base import Engine, Profile
from pytest_speedbench.engines.llamacpp import LlamaCpp
from pytest_speedbench.engines.sglang import Sglang
from pytest_speedbench.engines.trtllm import TrtLlm
from pytest_speedbench.engines.vllm import Vllm
from pytest_speedbench.errors import ConfigError

_ENGINES: dict[str, type[Engine]] = {engine.name: engine for engine in (TrtLlm, Vllm, Sglang, LlamaCpp)}
NAMES = tuple(_ENGINES)


def require(name: str) -> None:
    """Raise ConfigError, listing the choices, unless ``name`` is an engine."""
    if name not in _ENGINES:
        raise ConfigError(f"unknown engine {name!r}; choose from {', '.join(NAMES)}")


def methods(name: str) -> tuple[str, ...]:
    """The speculation methods of an engine."""
    return _ENGINES[name].methods


def create(profile: Profile) -> Engine:
    """The engine module for ``profile``."""
    return _ENGINES[profile.engine](profile)

"""Engine names, and the module behind each."""

from __future__ import annotations

from pytest_speedbench.engines.base import Engine, Profile
from pytest_speedbench.engines.llamacpp import LlamaCpp
from pytest_speedbench.errors import ConfigError

_ENGINES: dict[str, type[Engine]] = {LlamaCpp.name: LlamaCpp}
NAMES = tuple(_ENGINES)
PLANNED = ("vllm", "sglang", "trtllm")


def require(name: str) -> None:
    """Raise ConfigError, listing the choices, unless ``name`` is an engine of this version."""
    if name in PLANNED:
        raise ConfigError(f"engine {name!r} is not in this version yet; choose from {', '.join(NAMES)}")
    if name not in _ENGINES:
        raise ConfigError(f"unknown engine {name!r}; choose from {', '.join(NAMES)}")


def methods(name: str) -> tuple[str, ...]:
    """The speculation methods of an engine."""
    return _ENGINES[name].methods


def create(profile: Profile) -> Engine:
    """The engine module for ``profile``."""
    return _ENGINES[profile.engine](profile)

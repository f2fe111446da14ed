"""Checking the options that a profile gives to one engine: unknown keys and values of the wrong kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_KINDS = {
    "python": (str, "a path"),
    "executable": (str, "a path"),
    "served_model": (str, "a name"),
    "args": (list, "a list"),
    "env": (dict, "a mapping"),
    "params": (dict, "a mapping"),
    "config": (dict, "a mapping"),
    "speculation": (dict, "a mapping"),
}
"""Kinds of the options that several engines have."""
_HIGHEST_PORT = 65535


def wrong_options(
    engine: str, options: Mapping[str, Any], allowed: Sequence[str], numbers: Mapping[str, int] | None = None
) -> list[str]:
    """One line per option that is unknown or has a value of the wrong kind.

    ``numbers`` are options that are whole numbers from 1, and the highest value of each; ``port`` is
    one of them.
    """
    wrong = []
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        wrong.append(f"{engine} has no option {', '.join(unknown)}; it has {', '.join(allowed)}")
    for name, highest in {"port": _HIGHEST_PORT, **(numbers or {})}.items():
        number = options.get(name)
        if number is not None and not (type(number) is int and 1 <= number <= highest):
            wrong.append(f"{engine}: option {name} must be a whole number from 1 to {highest}, but is {number!r}")
    for name, (kind, what) in _KINDS.items():
        if name in allowed and not isinstance(options.get(name, kind()), kind):
            wrong.append(f"{engine}: option {name} must be {what}, but is {options[name]!r}")
    return wrong


def environment(options: Mapping[str, Any]) -> dict[str, str]:
    """The environment that the profile adds to the engine's; nothing where ``wrong_options`` refuses it."""
    own = options.get("env", {})
    return {str(name): str(value) for name, value in own.items()} if isinstance(own, Mapping) else {}

"""Which difficulty, SPEED-Bench's entropy tier, a prompt of a pool belongs to."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_speedbench.data.schema import Row, some_ids
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.names import CATEGORIES, DIFFICULTIES

SKIP = "skip"
"""In the place of a difficulty: prompts to leave out."""


@dataclass(frozen=True, slots=True)
class Tiers:
    """The difficulty of each prompt by its question_id, without those to leave out; ``rule`` says why."""

    by_id: Mapping[str, str]
    rule: str


Rule = Callable[[Sequence[Row]], Tiers]
"""What gives the prompts of a pool their difficulty. Raises ConfigError where it cannot."""


def by_name(names: Mapping[str, str]) -> Rule:
    """A difficulty for each category, or question_id, in ``names``; an id goes before its category.

    A category that is a difficulty already stays what it is unless it is named. ConfigError for a value
    that is neither a difficulty nor ``skip``, for a name that is no category and no id of the pool, and
    for categories of the pool that get no difficulty.
    """

    def assign(rows: Sequence[Row]) -> Tiers:
        wrong = {name: value for name, value in names.items() if value not in (*DIFFICULTIES, SKIP)}
        if wrong:
            shown = ", ".join(f"{name}={value}" for name, value in wrong.items())
            raise ConfigError(f"no difficulty: {shown}; there are {', '.join(DIFFICULTIES)}, and {SKIP} to leave out")
        unknown = sorted(set(names) - {*CATEGORIES, *DIFFICULTIES} - {row.question_id for row in rows})
        if unknown:
            raise ConfigError(
                f"difficulty given for {some_ids(unknown)}, which is no category and no question_id of the pool; "
                f"the categories are {', '.join(CATEGORIES)}"
            )
        known = {tier: tier for tier in DIFFICULTIES} | dict(names)
        found = {row.question_id: known.get(row.question_id, known.get(row.category)) for row in rows}
        open_ = sorted({row.category for row in rows if found[row.question_id] is None})
        if open_:
            raise ConfigError(
                f"no difficulty for {', '.join(open_)}: give each one, or {SKIP} to leave it out, as in "
                f"--tier coding=low_entropy,writing=high_entropy,qa={SKIP}; or measure it (--entropy)"
            )
        rule = ", ".join(f"{name} = {value}" for name, value in sorted(names.items()) if name in CATEGORIES)
        ids = sum(name not in (*CATEGORIES, *DIFFICULTIES) for name in names)
        parts = [rule or "the pool's own", *([f"{ids} by question_id"] if ids else [])]
        return Tiers({name: tier for name, tier in found.items() if tier not in (None, SKIP)}, "; ".join(parts))

    return assign


def by_entropy(path: Path, cuts: tuple[float, float] | None = None) -> Rule:
    """A difficulty by measured entropy: the JSON lines ``path`` have ``question_id`` and ``entropy`` per token.

    Up to the first cut is low, above the second is high. Without ``cuts`` they are the tertiles of the
    pool's prompts, and prompts with the same value stay together. The unit, nats or bits per token, is
    that of the file. ConfigError with file and line for what is no measurement, and with the ids of
    prompts that have none.
    """
    if cuts is not None and not 0 <= cuts[0] < cuts[1] < math.inf:
        raise ConfigError(f"entropy cuts {cuts[0]:g} and {cuts[1]:g}: give two numbers from 0 up, the lower one first")

    def assign(rows: Sequence[Row]) -> Tiers:
        measured = _measured(path)
        missing = [row.question_id for row in rows if row.question_id not in measured]
        if missing:
            raise ConfigError(
                f"{path}: no entropy for {some_ids(missing)} ({len(missing)} of {len(rows)} prompts of the pool); "
                "measure them, or take them out of the pool"
            )
        own = cuts or _tertiles([measured[row.question_id] for row in rows])
        # bisect_left: a value on a cut belongs below it.
        by_id = {row.question_id: DIFFICULTIES[bisect_left(own, measured[row.question_id])] for row in rows}
        return Tiers(by_id, f"entropy of {path.name}, cuts at {own[0]:g} and {own[1]:g}")

    return assign


def read_names(path: Path) -> dict[str, str]:
    """A map for ``by_name`` from a YAML or JSON file. Raises ConfigError for anything but texts by texts."""
    import yaml

    try:
        raw = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: neither YAML nor JSON ({' '.join(str(error).split())})") from None
    if not isinstance(raw, dict) or not raw:
        raise ConfigError(f"{path}: expected 'category: difficulty' lines, found {type(raw).__name__}")
    for name, value in raw.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise ConfigError(f"{path}: expected a text for a text, found {name!r}: {value!r}; put it in quotes")
    return raw


def _measured(path: Path) -> dict[str, float]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    found: dict[str, float] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            raw = json.loads(line.decode("utf-8-sig"))
            name, entropy = raw["question_id"], raw["entropy"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"{where}: expected an object with question_id and entropy ({type(error).__name__}: {error})"
            ) from None
        if not isinstance(name, str) or isinstance(entropy, bool) or not isinstance(entropy, int | float):
            raise ConfigError(f"{where}: expected a text and a number, found {name!r} and {entropy!r}")
        if not 0 <= entropy < math.inf:
            raise ConfigError(f"{where}: an entropy is a number from 0 up, not {entropy}")
        if name in found:
            raise ConfigError(f"{where}: question_id {name!r} is measured twice")
        found[name] = float(entropy)
    if not found:
        raise ConfigError(f"{path}: no measurement; expected one JSON object a line with question_id and entropy")
    return found


def _tertiles(values: Sequence[float]) -> tuple[float, float]:
    """The values below which, themselves included, a third and two thirds of all lie."""
    ordered = sorted(values)
    first, second = (ordered[max(-(-len(ordered) * share // 3) - 1, 0)] for share in (1, 2))
    return first, second

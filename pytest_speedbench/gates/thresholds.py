"""Load thresholds files: every mistake is a ConfigError with file and line."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates import match as matching
from pytest_speedbench.gates import waivers
from pytest_speedbench.gates.limits import CellPattern, Family, Gate, ThresholdsFile
from pytest_speedbench.gates.match import Match
from pytest_speedbench.gates.parse_cell import cell_pattern
from pytest_speedbench.gates.parse_limit import Context, parse_limit
from pytest_speedbench.gates.yaml_nodes import Value, read
from pytest_speedbench.measure.metrics import ESTIMATORS

SCHEMA = 1
_KEYS = ("schema", "match", "estimator", "family", "gates", "waivers")


def load(path: Path, *, today: dt.date | None = None) -> tuple[ThresholdsFile, ...]:
    """The thresholds file ``path``, or all ``*.yaml`` and ``*.yml`` files below it, sorted.

    Names that begin with a dot are left out. ``today`` is for tests: evidence cannot be younger, and a
    waiver not have expired.
    """
    today = today or dt.datetime.now(dt.timezone.utc).date()
    return tuple(_parse(read(file), today) for file in files_of(path))


def files_of(path: Path) -> list[Path]:
    """The file, or those below a folder that are loaded, sorted. Raises ConfigError where there are none."""
    if not path.is_dir():
        if not path.exists():
            raise ConfigError(f"{path.as_posix()}: no such thresholds file or folder")
        return [path]
    files = sorted(p for p in path.rglob("*.y*ml") if _is_thresholds(p.relative_to(path)))
    if not files:
        raise ConfigError(f"{path.as_posix()}: the folder has no *.yaml or *.yml file")
    return files


def _is_thresholds(relative: Path) -> bool:
    return relative.suffix in (".yaml", ".yml") and not any(part.startswith(".") for part in relative.parts)


def _parse(top: Value, today: dt.date) -> ThresholdsFile:
    entries = top.mapping()
    if "schema" in entries and entries["schema"].count() != SCHEMA:
        raise entries["schema"].error(f"schema must be {SCHEMA}, but is {entries['schema'].count()}")
    entries = top.mapping(allowed=_KEYS, required=("schema", "gates"))
    match = _match(entries["match"]) if "match" in entries else Match()
    estimator = entries["estimator"].choice(ESTIMATORS) if "estimator" in entries else None
    context = Context(estimator, match.draft_tokens, today)
    gates = tuple(_gate(item, context) for item in entries["gates"].items())
    if not gates:
        raise entries["gates"].error("gates is empty: a thresholds file must gate something")
    _refuse_duplicates(gates)
    file = ThresholdsFile(
        path=top.path,
        schema=SCHEMA,
        match=match,
        estimator=estimator or ESTIMATORS[0],
        family=_family(entries["family"]) if "family" in entries else Family(),
        gates=gates,
    )
    return replace(file, waivers=waivers.parse(entries["waivers"], file, today)) if "waivers" in entries else file


def _match(value: Value) -> Match:
    entries = value.mapping(allowed=matching.FIELDS)
    texts = {
        name: entry.text()
        for name, entry in entries.items()
        if name in ("engine", "model", "method", "draft_model", "gpu", "dataset")
    }
    counts = {
        name: entries[name].count(minimum=minimum)
        for name, minimum in (("draft_tokens", 0), ("gpu_count", 0), ("osl", 1))
        if name in entries
    }
    version = _specifier(entries["engine_version"]) if "engine_version" in entries else None
    return Match(
        engine=texts.get("engine"),
        engine_version=version,
        model=texts.get("model"),
        method=texts.get("method"),
        draft_tokens=counts.get("draft_tokens"),
        draft_model=texts.get("draft_model"),
        gpu=texts.get("gpu"),
        gpu_count=counts.get("gpu_count"),
        dataset=texts.get("dataset"),
        osl=counts.get("osl"),
        temperature=entries["temperature"].not_negative() if "temperature" in entries else None,
        ignore_eos=entries["ignore_eos"].truth() if "ignore_eos" in entries else None,
    )


def _specifier(value: Value) -> SpecifierSet:
    hint = 'write it as in ">=0.24" or "==0.24.*", quoted'
    try:
        return SpecifierSet(value.text())
    except InvalidSpecifier:
        raise value.error(f"{value.name} {value.text()!r} is not a version specifier; {hint}") from None
    except ConfigError as error:
        raise ConfigError(f"{error}; {hint}") from None


def _family(value: Value) -> Family:
    entries = value.mapping(allowed=("alpha", "beta"))
    rates = {name: entry.share() for name, entry in entries.items()}
    for name, rate in rates.items():
        if rate >= 0.5:
            raise entries[name].error(f"{entries[name].name} must be below 0.5: it is a rate of wrong answers")
    return Family(**rates)


def _gate(value: Value, context: Context) -> Gate:
    entries = value.mapping(required=("cell",))
    pattern = cell_pattern(entries["cell"])
    limits = tuple(
        parse_limit(metric, entry, pattern, context) for metric, entry in entries.items() if metric != "cell"
    )
    if not limits:
        raise value.error(f"{value.name} has a cell but no metric, so it gates nothing")
    return Gate(pattern, limits, value.source)


def _refuse_duplicates(gates: tuple[Gate, ...]) -> None:
    seen: dict[tuple[CellPattern, str], str] = {}
    for gate in gates:
        for limit in gate.limits:
            first = seen.setdefault((gate.cell, limit.metric), limit.source)
            if first != limit.source:
                raise ConfigError(f"{limit.source}: {limit.metric} of {gate.cell} is gated twice, first in {first}")

"""Datasets: the bundled mini set, a folder of JSON lines or prepared Parquet files, or a hub id."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from pytest_speedbench.cells import ISLS
from pytest_speedbench.data import hub
from pytest_speedbench.data.dataset import Dataset, Entry
from pytest_speedbench.data.manifest import Manifest, read_manifest
from pytest_speedbench.data.reading import read_rows
from pytest_speedbench.data.schema import CONFIGS, Row, some_ids
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.names import PARTIAL

MINI = "mini"
_MINI_FOLDER = Path(__file__).parent / "mini"
_PREPARE = "prepare_data.py --config {config} --output_dir DIR (from specdec_bench)"


def load(
    spec: str, needed: Collection[str] = CONFIGS, *, allow_partial: bool = False, offline: bool = False
) -> Dataset:
    """The dataset that ``spec`` names: ``mini``, a folder, or a hub id with its commit (``org/name@commit``).

    A folder holds ``<config>.jsonl``, or Parquet files in ``speed/<config>/`` (what upstream's prepare
    step writes) or in ``<config>/``; with a ``manifest.json`` each file is checked against it.
    Every row is read and checked; its text is not kept. Placeholders in ``needed`` configs are refused, or
    left out with ``allow_partial``; those in others do no harm. ``offline`` downloads nothing.

    Raises ConfigError for a hub id that cannot be had, a folder without data, a damaged or unresolved
    file, a repeated question_id, sources in two revisions, and anything that is not a row.
    """
    folder, name = _located(spec, offline=offline)
    manifest = read_manifest(folder)
    if spec == MINI and manifest is None:
        raise ConfigError(f"{folder}: the bundled dataset is incomplete; install pytest-speedbench again")
    _refuse_unknown_isl(folder)
    revisions: dict[str, tuple[str, Path]] = {}
    by_config = {
        config: entries
        for config in CONFIGS
        if (entries := _read_config(folder, config, manifest, revisions)) is not None
    }
    if not by_config:
        raise ConfigError(
            f"{folder}: no data; expected <config>.jsonl, speed/<config>/*.parquet or <config>/*.parquet, where config "
            f"is one of {', '.join(CONFIGS)}"
        )
    masked = {
        config: found
        for config, entries in by_config.items()
        if (found := tuple(entry for entry in entries if entry.is_placeholder))
    }
    missed = {config: entries for config, entries in masked.items() if config in needed}
    if missed and not allow_partial:
        raise _unresolved(folder, missed, by_config)
    own = manifest.id if manifest else name
    return Dataset(
        id=own + PARTIAL if missed else own,
        entries_by_config={
            config: tuple(entry for entry in entries if not entry.is_placeholder)
            for config, entries in by_config.items()
        },
        path=folder,
        masked=masked,
    )


def prepare_command(configs: Collection[str]) -> str:
    """Upstream's command that fetches the texts behind placeholders."""
    return _PREPARE.format(config=next(iter(configs)) if len(configs) == 1 else "all")


def _located(spec: str, *, offline: bool) -> tuple[Path, str]:
    """The folder of the data, and the name it goes by."""
    if spec == MINI:
        return _MINI_FOLDER, MINI
    path = Path(spec).expanduser()
    if spec and path.is_dir():
        return path, path.resolve().name
    if spec and path.exists():
        unpack = "unpack it and pass the folder" if path.suffix not in (".jsonl", ".parquet") else "pass the folder"
        raise ConfigError(
            f"dataset {spec!r} is a file; {unpack} that holds <config>.jsonl, speed/<config>/*.parquet or "
            "<config>/*.parquet"
        )
    hub_id = hub.parse(spec)
    if hub_id is None:
        raise ConfigError(
            f"dataset {spec!r}: no such folder; pass a folder, {MINI} for the bundled prompts, or a hub id"
        )
    return hub.folder(hub_id, CONFIGS, offline=offline), hub_id.id


def _read_config(
    folder: Path, config: str, manifest: Manifest | None, revisions: dict[str, tuple[str, Path]]
) -> tuple[Entry, ...] | None:
    layouts = {
        "jsonl": [path for path in [folder / f"{config}.jsonl"] if path.is_file()],
        "prepared": _parquet_files(folder / "speed" / config),
        "parquet": _parquet_files(folder / config),
    }
    found = {kind: paths for kind, paths in layouts.items() if paths}
    if not found:
        return None
    if len(found) > 1:
        # Which one was meant decides what is measured, so it is not for us to guess.
        places = " and ".join(str(paths[0]) for paths in found.values())
        raise ConfigError(f"{folder}: {config} is there more than once ({places}); keep one")
    (paths,) = found.values()
    entries = tuple(entry for path in paths for entry in _read_file(path, config, manifest, revisions))
    if not entries:
        raise ConfigError(f"{folder}: {config} has no rows")
    _refuse_duplicates(folder, config, entries)
    return entries


def _parquet_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.parquet") if path.is_file())


def _read_file(
    path: Path, config: str, manifest: Manifest | None, revisions: dict[str, tuple[str, Path]]
) -> Iterator[Entry]:
    if manifest:
        manifest.verify(path)
    number = 0
    sources: set[str] = set()
    for position, row in read_rows(path, config):
        number += 1
        if row.source not in sources:
            sources.add(row.source)
            _refuse_mixed_revisions(row, path, revisions)
        yield Entry.of(row, path, position)
    if manifest:
        manifest.verify_rows(path, number)


def _refuse_mixed_revisions(row: Row, path: Path, revisions: dict[str, tuple[str, Path]]) -> None:
    """A ``source`` names its commit; two commits of one source mean that two releases of the data were mixed."""
    before, commit = _pinned(row.source)
    if commit is None:
        return
    other, place = revisions.setdefault(before, (commit, path))
    if other != commit:
        raise ConfigError(
            f"{path}: question {row.question_id} comes from {before} at {commit}, but others ({place}) at {other}: "
            "two revisions of the dataset are mixed; prepare it again in one go"
        )


def _pinned(source: str) -> tuple[str, str | None]:
    """What stands before the commit in the address of a source, and the commit."""
    parts = source.replace("@", "/").split("/")
    place = next((i for i, part in enumerate(parts) if hub.COMMIT.fullmatch(part)), None)
    return (source, None) if place is None else ("/".join(parts[:place]), parts[place])


def _refuse_duplicates(folder: Path, config: str, entries: tuple[Entry, ...]) -> None:
    repeated = [name for name, count in Counter(entry.question_id for entry in entries).items() if count > 1]
    if repeated:
        raise ConfigError(f"{folder}: {config} has the same question_id more than once: {some_ids(repeated)}")


def _unresolved(
    folder: Path, masked: Mapping[str, tuple[Entry, ...]], by_config: Mapping[str, tuple[Entry, ...]]
) -> ConfigError:
    lines = [
        f"{config}: {len(entries)} of {len(by_config[config])} ({some_ids([entry.question_id for entry in entries])})"
        for config, entries in masked.items()
    ]
    return ConfigError(
        f"{folder}: prompts that are still placeholders, which would be measured instead of the real text: "
        f"{'; '.join(lines)}. Run {prepare_command(masked)}, which fetches them, and pass its output folder; or "
        "measure the rest with --speedbench-allow-partial"
    )


def _refuse_unknown_isl(folder: Path) -> None:
    unknown = sorted(
        entry.name
        for place in (folder, folder / "speed")
        if place.is_dir()
        for entry in place.iterdir()
        if re.fullmatch(r"throughput_\d+k", entry.stem) and entry.stem not in CONFIGS
        if entry.is_dir() or entry.suffix == ".jsonl"
    )
    if unknown:
        raise ConfigError(f"{folder}: no ISL bucket for {', '.join(unknown)}; the buckets are {', '.join(ISLS)}")

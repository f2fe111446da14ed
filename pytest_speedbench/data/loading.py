"""Datasets: the bundled mini set, or a folder of JSON lines or prepared Parquet files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_speedbench.cells import ISLS, Cell
from pytest_speedbench.data.manifest import Manifest, read_manifest
from pytest_speedbench.data.reading import read_jsonl, read_parquet
from pytest_speedbench.data.schema import CONFIGS, Row, categories_of
from pytest_speedbench.data.selection import content_sha256, select
from pytest_speedbench.errors import ConfigError

__all__ = ["CONFIGS", "MINI", "Dataset", "config_of", "content_sha256", "load", "select"]

MINI = "mini"
_MINI_FOLDER = Path(__file__).parent / "mini"
_SHOWN_IDS = 3
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PREPARE = "prepare_data.py --config {config} --output_dir DIR (from specdec_bench)"


@dataclass(frozen=True, slots=True)
class Dataset:
    """Prompts by config (``qualitative``, ``throughput_1k`` … ``throughput_32k``), in file order.

    ``id`` is what a thresholds file matches: the manifest's, or else the folder's name. The identity
    of the prompts themselves is ``content_sha256``.
    """

    id: str
    rows_by_config: Mapping[str, tuple[Row, ...]]
    path: Path

    def points(self) -> list[Cell]:
        """The cells that have prompts, in canonical order, with a concurrency of 1.

        One per category of the qualitative split and per ISL and difficulty of the throughput split;
        ``overall`` is not among them.
        """
        points = []
        for config in CONFIGS:
            present = {row.category for row in self.rows_by_config.get(config, ())}
            points += [_point(config, name) for name in categories_of(config) if name in present]
        return points

    def prompts(self, cell: Cell) -> tuple[Row, ...]:
        """All rows of ``cell``, in file order; those of every category for ``overall``.

        Raises ConfigError when the dataset has none, naming what it has.
        """
        config = config_of(cell)
        rows = self.rows_by_config.get(config, ())
        if not cell.is_overall:
            wanted = cell.category if cell.split == "qualitative" else cell.difficulty
            rows = tuple(row for row in rows if row.category == wanted)
        if not rows:
            has = ", ".join(point.id(with_concurrency=False) for point in self.points()) or "nothing"
            raise ConfigError(f"dataset {self.id} has no prompts for {cell.id(with_concurrency=False)}; it has {has}")
        return rows

    def content_sha256(self, cell: Cell) -> str:
        """sha256 over the ids and turns of all rows of ``cell``. Raises ConfigError as ``prompts`` does."""
        return content_sha256(self.prompts(cell))


def config_of(cell: Cell) -> str:
    """The dataset config that holds the prompts of ``cell``."""
    return "qualitative" if cell.split == "qualitative" else f"throughput_{cell.isl}"


def load(spec: str, configs: Collection[str] | None = None) -> Dataset:
    """The dataset that ``spec`` names: ``mini``, or a folder.

    A folder holds ``<config>.jsonl``, or Parquet files in ``speed/<config>/`` (what upstream's prepare
    step writes) or in ``<config>/``; with a ``manifest.json`` each file is checked against it.
    ``configs`` limits what is read; by default that is everything there.

    Raises ConfigError for a hub id, a folder without data, a damaged or unresolved file, a repeated
    question_id, and anything that is not a row.
    """
    folder = _MINI_FOLDER if spec == MINI else _folder(spec)
    manifest = read_manifest(folder)
    if spec == MINI and manifest is None:
        raise ConfigError(f"{folder}: the bundled dataset is incomplete; install pytest-speedbench again")
    _refuse_unknown_isl(folder)
    rows_by_config = {}
    for config in CONFIGS:
        if configs is None or config in configs:
            rows = _read_config(folder, config, manifest)
            if rows is not None:
                rows_by_config[config] = rows
    if not rows_by_config:
        raise ConfigError(
            f"{folder}: no data for {', '.join(configs or CONFIGS)}; expected <config>.jsonl, "
            f"speed/<config>/*.parquet or <config>/*.parquet, where config is one of {', '.join(CONFIGS)}"
        )
    _refuse_placeholders(folder, rows_by_config)
    return Dataset(manifest.id if manifest else folder.resolve().name, rows_by_config, folder)


def _folder(spec: str) -> Path:
    path = Path(spec).expanduser()
    if spec and path.is_dir():
        return path
    if spec and path.exists():
        raise ConfigError(f"dataset {spec!r} is a file; pass the folder that holds <config>.jsonl or Parquet files")
    if _HUB_ID.fullmatch(spec) and not spec.startswith("."):
        raise ConfigError(
            f"dataset {spec!r}: there is no such folder, and this version does not download datasets from a hub. "
            f"Run {_PREPARE.format(config='all')} where there is network, "
            f"then pass --speedbench-dataset=DIR; or pass --speedbench-dataset={MINI} for the bundled prompts"
        )
    raise ConfigError(f"dataset {spec!r}: no such folder; pass a folder, or {MINI} for the bundled prompts")


def _read_config(folder: Path, config: str, manifest: Manifest | None) -> tuple[Row, ...] | None:
    layouts = {
        "jsonl": [path for path in [folder / f"{config}.jsonl"] if path.is_file()],
        "prepared": sorted((folder / "speed" / config).rglob("*.parquet")),
        "parquet": sorted((folder / config).rglob("*.parquet")),
    }
    found = {kind: paths for kind, paths in layouts.items() if paths}
    if not found:
        return None
    if len(found) > 1:
        # Which one was meant decides what is measured, so it is not for us to guess.
        places = " and ".join(str(paths[0]) for paths in found.values())
        raise ConfigError(f"{folder}: {config} is there more than once ({places}); keep one")
    (paths,) = found.values()
    rows = tuple(row for path in paths for row in _read_file(path, config, manifest))
    if not rows:
        raise ConfigError(f"{folder}: {config} has no rows")
    _refuse_duplicates(folder, config, rows)
    return rows


def _read_file(path: Path, config: str, manifest: Manifest | None) -> tuple[Row, ...]:
    if manifest:
        manifest.verify(path)
    rows = (read_jsonl if path.suffix == ".jsonl" else read_parquet)(path, config)
    if manifest:
        manifest.verify_rows(path, len(rows))
    return rows


def _refuse_duplicates(folder: Path, config: str, rows: tuple[Row, ...]) -> None:
    repeated = [name for name, count in Counter(row.question_id for row in rows).items() if count > 1]
    if repeated:
        raise ConfigError(f"{folder}: {config} has the same question_id more than once: {_first(repeated)}")


def _refuse_placeholders(folder: Path, rows_by_config: Mapping[str, tuple[Row, ...]]) -> None:
    masked = {
        config: [row.question_id for row in rows if row.is_placeholder] for config, rows in rows_by_config.items()
    }
    masked = {config: ids for config, ids in masked.items() if ids}
    if not masked:
        return
    lines = [f"{config}: {len(ids)} of {len(rows_by_config[config])} ({_first(ids)})" for config, ids in masked.items()]
    config = next(iter(masked)) if len(masked) == 1 else "all"
    raise ConfigError(
        f"{folder}: prompts that are still placeholders, which would be measured instead of the real text: "
        f"{'; '.join(lines)}. Run {_PREPARE.format(config=config)}, which fetches them, and pass its output folder"
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


def _first(ids: list[str]) -> str:
    shown = ", ".join(ids[:_SHOWN_IDS])
    return shown if len(ids) <= _SHOWN_IDS else f"{shown}, … {len(ids)} in all"


def _point(config: str, name: str) -> Cell:
    if config == "qualitative":
        return Cell("qualitative", 1, category=name)
    return Cell("throughput", 1, isl=config.removeprefix("throughput_"), difficulty=name)

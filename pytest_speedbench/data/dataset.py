"""A dataset: what is known of its prompts without their text, and the text on demand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_speedbench.cells import Cell
from pytest_speedbench.data.reading import read_jsonl_at, read_parquet
from pytest_speedbench.data.schema import CONFIGS, Row, categories_of, content_sha256
from pytest_speedbench.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Entry:
    """One prompt without its text. ``position`` is its byte offset in a ``.jsonl`` file, its row number in Parquet."""

    question_id: str
    category: str
    sub_category: str
    turns: int
    characters: int
    sha256: bytes
    is_placeholder: bool
    path: Path
    position: int

    @classmethod
    def of(cls, row: Row, path: Path, position: int) -> Entry:
        """What is kept of ``row``."""
        return cls(
            row.question_id,
            row.category,
            row.sub_category,
            len(row.turns),
            sum(map(len, row.turns)),
            row.digest(),
            row.is_placeholder,
            path,
            position,
        )


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a dataset has for one cell.

    ``masked`` prompts are placeholders and left out of the other counts. ``multiturn`` counts the prompts
    with more than one turn, whatever the column of that name says. ``sha256`` is the identity of the
    prompts, whatever their order.
    """

    point: Cell
    prompts: int
    masked: int
    multiturn: int
    turns: int
    characters: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """Prompts by config (``qualitative``, ``throughput_1k`` … ``throughput_32k``), in file order.

    ``id`` is what a thresholds file matches: the manifest's, a hub id with its revision, or else the
    folder's name. ``masked`` are the placeholders that are left out; where there are any, the id ends
    with PARTIAL.
    """

    id: str
    entries_by_config: Mapping[str, tuple[Entry, ...]]
    path: Path
    masked: Mapping[str, tuple[Entry, ...]]

    def points(self) -> list[Cell]:
        """The cells that have prompts, in canonical order, with a concurrency of 1.

        One per category of the qualitative split and per ISL and difficulty of the throughput split;
        ``overall`` is not among them.
        """
        return [point for point in self.all_points() if _of_cell(self.entries_by_config, point)]

    def all_points(self) -> list[Cell]:
        """Like ``points``, with the cells that have only placeholders."""
        found = []
        for config in CONFIGS:
            rows = (*self.entries_by_config.get(config, ()), *self.masked.get(config, ()))
            present = {row.category for row in rows}
            found += [_point(config, name) for name in categories_of(config) if name in present]
        return found

    def inventory(self) -> list[Inventory]:
        """What there is per cell, in canonical order, cells that have only placeholders included."""
        return [
            _inventory(point, _of_cell(self.entries_by_config, point), self.masked_prompts(point))
            for point in self.all_points()
        ]

    def prompts(self, cell: Cell) -> tuple[Entry, ...]:
        """All prompts of ``cell``, in file order; those of every category for ``overall``.

        Raises ConfigError when the dataset has none, naming what it has.
        """
        entries = _of_cell(self.entries_by_config, cell)
        if not entries:
            name, masked = cell.id(with_concurrency=False), self.masked_prompts(cell)
            if masked:
                raise ConfigError(f"dataset {self.id} has no prompts for {name}: all {masked} are placeholders")
            has = ", ".join(point.id(with_concurrency=False) for point in self.points()) or "nothing"
            raise ConfigError(f"dataset {self.id} has no prompts for {name}; it has {has}")
        return entries

    def masked_prompts(self, cell: Cell) -> int:
        """How many prompts of ``cell`` are placeholders and left out."""
        return len(_of_cell(self.masked, cell))

    def content_sha256(self, cell: Cell) -> str:
        """The identity of all prompts of ``cell``. Raises ConfigError as ``prompts`` does."""
        return _content_sha256(self.prompts(cell))

    def rows(self, entries: Iterable[Entry]) -> tuple[Row, ...]:
        """The text of ``entries``, in their order.

        Raises ConfigError when a file has changed since the dataset was loaded.
        """
        wanted = list(entries)
        by_path: dict[Path, dict[int, Entry]] = {}
        for entry in wanted:
            by_path.setdefault(entry.path, {})[entry.position] = entry
        found = {
            (path, position): row
            for path, places in by_path.items()
            for position, row in _read(path, self._config(path), places)
        }
        for entry in wanted:
            row = found.get((entry.path, entry.position))
            if row is None or row.digest() != entry.sha256:
                raise ConfigError(f"{entry.path}: has changed since it was read; start again")
        return tuple(found[entry.path, entry.position] for entry in wanted)

    def _config(self, path: Path) -> str:
        parts = path.relative_to(self.path).with_suffix("").parts
        return next(part for part in parts if part in CONFIGS)


def config_of(cell: Cell) -> str:
    """The dataset config that holds the prompts of ``cell``."""
    return "qualitative" if cell.split == "qualitative" else f"throughput_{cell.isl}"


def _read(path: Path, config: str, places: Mapping[int, Entry]) -> Iterator[tuple[int, Row]]:
    return (read_jsonl_at if path.suffix == ".jsonl" else read_parquet)(path, config, places)


def _of_cell(by_config: Mapping[str, tuple[Entry, ...]], cell: Cell) -> tuple[Entry, ...]:
    entries = by_config.get(config_of(cell), ())
    if cell.is_overall:
        return entries
    wanted = cell.category if cell.split == "qualitative" else cell.difficulty
    return tuple(entry for entry in entries if entry.category == wanted)


def _inventory(point: Cell, entries: Sequence[Entry], masked: int) -> Inventory:
    return Inventory(
        point,
        prompts=len(entries),
        masked=masked,
        multiturn=sum(entry.turns > 1 for entry in entries),
        turns=sum(entry.turns for entry in entries),
        characters=sum(entry.characters for entry in entries),
        sha256=_content_sha256(entries),
    )


def _content_sha256(entries: Iterable[Entry]) -> str:
    return content_sha256((entry.question_id, entry.sha256) for entry in entries)


def _point(config: str, name: str) -> Cell:
    if config == "qualitative":
        return Cell("qualitative", 1, category=name)
    return Cell("throughput", 1, isl=config.removeprefix("throughput_"), difficulty=name)

"""Measured windows on the disk, for what is judged from several of them.

A window of a large cell takes hundreds of megabytes in memory; there may be dozens before the last verdict.
"""

from __future__ import annotations

import pickle
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from pytest_speedbench.cells import Cell
from pytest_speedbench.measure.samples import Window

Key = tuple[str, Cell, int, int]
"""Label of the profile, cell, engine start, repeat."""


@dataclass(slots=True)
class WindowStore:
    """Windows below ``folder``, by profile, cell, start and repeat."""

    folder: Path
    _paths: dict[Key, Path] = field(default_factory=dict)

    def put(self, label: str, window: Window) -> None:
        """Keep one window; one with the same key takes its place."""
        self.folder.mkdir(parents=True, exist_ok=True)
        key = (label, window.cell, window.start, window.repeat)
        path = self._paths.setdefault(key, self.folder / f"{len(self._paths)}.pickle")
        path.write_bytes(pickle.dumps(window, protocol=pickle.HIGHEST_PROTOCOL))

    def get(self, label: str, cell: Cell, start: int, repeat: int) -> Window | None:
        """The window, None where none was kept."""
        path = self._paths.get((label, cell, start, repeat))
        if path is None:
            return None
        window = pickle.loads(path.read_bytes())
        assert isinstance(window, Window)
        return window

    def clear(self) -> None:
        """Remove them all: they hold what the model answered."""
        self._paths.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

"""``speedbench init``: the files that a project starts with."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from pytest_speedbench.engines import registry
from pytest_speedbench.errors import ConfigError

_FILES = {
    "speedbench.yaml": "speedbench.yaml",
    "thresholds.yaml": "thresholds/@ENGINE@.yaml",
    "speedbench.yml": ".github/workflows/speedbench.yml",
}
"""Template to destination; @ENGINE@ and @MODEL@ are filled in, the latter quoted."""


def write(folder: Path, *, engine: str, model: str) -> list[Path]:
    """Write profile, thresholds stub and workflow into ``folder``; return their paths.

    Nothing is written, and ConfigError raised, when one of them is there already.
    """
    registry.require(engine)
    templates = files("pytest_speedbench") / "templates"
    contents = {
        folder / target.replace("@ENGINE@", engine): templates.joinpath(source)
        .read_text(encoding="utf-8")
        .replace("@ENGINE@", engine)
        .replace("@MODEL@", json.dumps(model))
        for source, target in _FILES.items()
    }
    present = [str(path) for path in contents if path.exists()]
    if present:
        raise ConfigError(f"{', '.join(present)} exists already; move it away or choose another folder")
    for path, content in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return list(contents)

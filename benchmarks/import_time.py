"""What the installed but unused plugin adds to every pytest start.

    python benchmarks/import_time.py [RUNS]

Two figures: the time that importing the plugin takes by ``-X importtime``, pytest's own modules
not counted; and the median wall time of ``pytest --version`` with and without ``-p no:speedbench``,
taken in turns.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def import_ms() -> float:
    """Self times of this package's modules when the plugin is imported after pytest."""
    code = "import pytest; import pytest_speedbench.plugin"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
    rows = re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", done.stderr)
    after_pytest = [name for _, name in rows].index("pytest") + 1
    return sum(int(us) for us, _ in rows[after_pytest:]) / 1000


def collect_ms(folder: Path, *extra: str) -> float:
    """Wall time of collecting one empty test."""
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", *extra]
    began = time.perf_counter()
    subprocess.run(command, cwd=folder, capture_output=True, check=True, env=os.environ | {"PYTHONWARNINGS": "error"})
    return 1000 * (time.perf_counter() - began)


def main(runs: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "test_nothing.py").write_text("def test_nothing():\n    pass\n")
        imports = [import_ms() for _ in range(runs)]
        pairs = [(collect_ms(folder), collect_ms(folder, "-p", "no:speedbench")) for _ in range(runs)]
    on, off = (statistics.median(side) for side in zip(*pairs, strict=True))
    difference = statistics.median(a - b for a, b in pairs)
    print(f"{dt.date.today()} · {platform.python_implementation()} {platform.python_version()} · {os.cpu_count()} CPUs")
    print(
        f"import of the plugin: median {statistics.median(imports):.1f} ms of {runs} runs, most {max(imports):.1f} ms"
    )
    print(
        f"pytest --collect-only: {on:.0f} ms with the plugin, {off:.0f} ms without; paired difference {difference:.1f}"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)

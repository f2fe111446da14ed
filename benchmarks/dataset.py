"""Loading, checking and planning a full-size dataset: seconds and peak memory, each in a process of its own.

    python tools/speedbench_replica.py REPLICA && python benchmarks/dataset.py REPLICA

Needs what the replica needs (pyarrow). Nothing is tokenised: a plan does not need it.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

THRESHOLDS = """schema: 1
match: {engine: vllm}
estimator: request_mean
gates:
  - cell: {split: qualitative}
    acceptance_length: {min: 1.5}
  - cell: {split: throughput}
    output_tps: {min: 1}
"""
CHILD = """
import json, resource, sys, time
began = time.perf_counter()
from pathlib import Path
from pytest_speedbench import planning, settings
def nothing(option): return None
options = {"engine": "vllm", "model": "org/model", "dataset": sys.argv[1], "thresholds": sys.argv[2]}
built = settings.build(command_line=lambda option: options.get(option.key), ini=nothing, environ={},
                       rootdir=Path(sys.argv[2]), invocation_dir=Path(sys.argv[2]))
plan = planning.make(built)
inventory = plan.dataset.inventory()
print(json.dumps({
    "seconds": time.perf_counter() - began,
    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "cells": len(plan.cells),
    "prompts": sum(item.prompts for item in inventory),
    "characters": sum(item.characters for item in inventory),
}))
"""


def main() -> None:
    (dataset,) = sys.argv[1:]
    print(
        f"{date.today()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, pyarrow {version('pyarrow')}, "
        f"pytest-speedbench {version('pytest-speedbench')}"
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "limits.yaml").write_text(THRESHOLDS, encoding="utf-8")
        for attempt in range(5):
            command = [sys.executable, "-c", CHILD, str(Path(dataset).resolve()), folder]
            began = time.perf_counter()
            done = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            print(
                f"run {attempt + 1}: {done['prompts']} prompts, {done['characters'] / 1e6:.0f} M characters, "
                f"{done['cells']} cells planned in {done['seconds']:.2f} s ({time.perf_counter() - began:.2f} s with "
                f"the interpreter), peak {done['peak_mb']:.0f} MB"
            )


if __name__ == "__main__":
    main()

"""The README's table of options is the code's, and its commands are what .ci/run finds."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from pytest_speedbench.measure.metrics import METRICS
from pytest_speedbench.options import OPTIONS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def options_table() -> str:
    """Markdown, one row per option in the order of the code."""
    rows = ["| option | default | |", "| --- | --- | --- |"]
    for option in OPTIONS:
        names = ", ".join(f"`--speedbench-{name}`" for name in (option.name, *option.aliases))
        default = "" if option.default in (None, ()) else f"`{str(option.default).lower()}`"
        if isinstance(option.default, str):
            default = f"`{option.default}`"
        rows.append(f"| {names} | {default} | {option.help} |")
    return "\n".join(rows)


def test_the_options_table_is_the_code_s() -> None:
    assert options_table() in README


def test_every_gateable_metric_is_defined() -> None:
    for spec in METRICS.values():
        family = re.sub(r"_(mean|p50|p95|p99)_s$", "_*_s", spec.name)
        family = re.sub(r"^user_tps_(p50|p5)$", "user_tps", family)
        if spec.name != "acceptance_length_pooled":
            assert f"`{family}`" in README, spec.name


def test_both_commands_are_found() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    function = script[script.index("readme_command()") : script.index("run() {")]
    for marker, part in (("quickstart", "--speedbench-engine=llamacpp"), ("tests", ".venv/bin/pytest")):
        done = subprocess.run(
            ["bash", "-c", f"{function}\nreadme_command {marker}"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert part in done.stdout
        assert done.stdout.startswith("python3 -m venv .venv")

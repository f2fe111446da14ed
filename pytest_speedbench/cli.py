"""The ``speedbench`` command."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_speedbench import __version__, compare_command, data_command, lint_command, selftest_command
from pytest_speedbench.calibration import command as calibrate_command
from pytest_speedbench.errors import ConfigError

if TYPE_CHECKING:
    from pytest_speedbench.results import CellResult

_EXAMPLE_MODEL = "meta-llama/Llama-3.3-70B-Instruct"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; return 0, or 4 with one line on standard error for a usage problem."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except ConfigError as error:
        print(f"speedbench: {error}", file=sys.stderr)
        return 4


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="speedbench", description="Companion of the pytest plugin pytest-speedbench.")
    parser.add_argument("--version", action="version", version=f"pytest-speedbench {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    init = commands.add_parser("init", help="write a profile, a thresholds stub and a GitHub workflow")
    init.add_argument("--engine", default="llamacpp", help="engine to gate (default: %(default)s)")
    init.add_argument("--model", default=_EXAMPLE_MODEL, help="target model (default: %(default)s)")
    init.add_argument("folder", nargs="?", default=".", type=Path, help="where to write (default: here)")
    init.set_defaults(run=_init)

    report = commands.add_parser("report", help="print the summary of a stored artifact")
    report.add_argument("artifact", type=Path)
    report.add_argument("--control", metavar="ARTIFACT", type=Path, help="a run on random tokens, shown beside it")
    report.set_defaults(run=_report)

    junit = commands.add_parser("junit", help="write JUnit XML from a stored artifact")
    junit.add_argument("artifact", type=Path)
    junit.add_argument("output", type=Path)
    junit.set_defaults(run=_junit)

    for module in (calibrate_command, compare_command, selftest_command, lint_command, data_command):
        module.add(commands)
    return parser


def _init(arguments: argparse.Namespace) -> int:
    from pytest_speedbench import init

    for path in init.write(arguments.folder, engine=arguments.engine, model=arguments.model):
        print(path)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from pytest_speedbench.report import artifact
    from pytest_speedbench.report.table import plain
    from pytest_speedbench.report.terminal import header_lines, summary_lines

    artifact.validate(artifact.load(arguments.artifact))
    run, results, flags = artifact.read(arguments.artifact)
    results = tuple(result for result in results if not result.is_companion)
    if arguments.control is not None:
        results += _controls(arguments.control)
    encoding = sys.stdout.encoding or "utf-8"
    print("\n".join(header_lines(run, encoding=encoding)))
    lines = summary_lines(
        results,
        width=shutil.get_terminal_size().columns,
        measure_only=flags.measure_only,
        partial=flags.partial,
        run=run,
        encoding=encoding,
    )
    print(plain(lines))
    if not flags.complete:
        print(f"incomplete: the run that wrote {arguments.artifact} was interrupted")
    return 0


def _controls(path: Path) -> tuple[CellResult, ...]:
    """The control cells of another run."""
    from pytest_speedbench.report import artifact

    controls = tuple(result for result in artifact.read(path)[1] if result.cell.is_control)
    if not controls:
        raise ConfigError(f"{path} has no control cells; run with --speedbench-dataset=random")
    return controls


def _junit(arguments: argparse.Namespace) -> int:
    from pytest_speedbench.report import artifact, junit

    artifact.validate(artifact.load(arguments.artifact))
    run, results, _ = artifact.read(arguments.artifact)
    junit.write(arguments.output, run, [result for result in results if not result.is_companion])
    print(arguments.output)
    return 0

"""``speedbench lint``: thresholds files that load and yet are wrong, stale or missing something."""

from __future__ import annotations

import argparse
import datetime as dt
import json
from pathlib import Path

_CODES = """\
codes: load contradiction no-cell unreachable never-met age waiver slack overlap uncovered no-overall alpha
no-evidence other-dataset. Exit: 0 clean or warnings, 1 errors (with --strict also warnings), 4 usage."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Make ``lint`` known."""
    command = commands.add_parser("lint", help="check thresholds files for slack, age, overlap and gaps", epilog=_CODES)
    command.add_argument("paths", metavar="PATH", nargs="*", type=Path, help="files or folders (default: thresholds)")
    command.add_argument(
        "--dataset", default="mini", help="whose cells are to be covered: mini or a folder (default: mini)"
    )
    command.add_argument(
        "--artifact",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="compare with this run; repeatable",
    )
    command.add_argument("--today", metavar="DATE", type=_date, help="the day to judge ages by (default: today, UTC)")
    command.add_argument(
        "--warn-age", metavar="DAYS", type=int, default=90, help="older evidence is a warning (default: 90)"
    )
    command.add_argument(
        "--max-age", metavar="DAYS", type=int, default=365, help="older evidence is an error (default: 365)"
    )
    command.add_argument("--starts", metavar="N", type=_count, default=1, help="engine starts of the runs to be judged")
    command.add_argument("--repeats", metavar="N", type=_count, default=1, help="repeats per engine start of those")
    command.add_argument("--format", choices=("text", "github", "json"), default="text", help="default: text")
    command.add_argument("--strict", action="store_true", help="warnings fail too")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    """Print what was found; 1 for errors, with ``--strict`` for warnings too."""
    from pytest_speedbench.data.loading import load
    from pytest_speedbench.lint import coverage, files, findings, limits, measured, overlap
    from pytest_speedbench.names import PARTIAL

    today = arguments.today or dt.datetime.now(dt.timezone.utc).date()
    policy = limits.Policy(today, arguments.warn_age, arguments.max_age, arguments.starts, arguments.repeats)
    loaded, found = files.load_each(arguments.paths or [Path("thresholds")], today)
    dataset = load(arguments.dataset, allow_partial=True, offline=True)
    points = dataset.all_points()
    found += overlap.check(loaded)
    contradictory = {finding.file for finding in found if finding.code == "contradiction"}
    name = dataset.id.removesuffix(PARTIAL)
    for file in loaded:
        family = points if file.match.dataset in (None, name) else overlap.GRID
        found += limits.check(file, () if file.path in contradictory else family, policy)
    found += coverage.check(loaded, points, name)
    found += measured.check(loaded, [profile for path in arguments.artifact for profile in measured.read(path)])
    ordered = findings.ordered(found)
    if arguments.format == "json":
        print(json.dumps(findings.to_json(ordered), indent=1, ensure_ascii=False))
    else:
        for line in findings.github(ordered) if arguments.format == "github" else findings.text(ordered):
            print(line)
    failing = {findings.Level.ERROR, findings.Level.WARNING} if arguments.strict else {findings.Level.ERROR}
    return 1 if any(finding.level in failing for finding in ordered) else 0


def _date(text: str) -> dt.date:
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: give a date such as 2026-12-01") from None


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number of at least 1")
    return int(text)

"""``speedbench compare``: an upgrade judged from two stored runs, or speculation from the run without."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_speedbench.errors import ConfigError
from pytest_speedbench.names import BASELINE, PLAIN

if TYPE_CHECKING:
    from pytest_speedbench.comparison.judging import Policy
    from pytest_speedbench.comparison.sources import Side

_EPILOG = """\
exit status: 0 every cell passed, 1 a cell is FAIL or INVALID (or INCONCLUSIVE, unless --inconclusive=warn),
4 the runs cannot be compared"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Make ``compare`` known."""
    compare = commands.add_parser(
        "compare",
        help="judge an upgrade from two stored runs",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.add_argument("base", type=Path, metavar="BASE.json", help="the run before; with one file, both in it")
    compare.add_argument("new", type=Path, metavar="NEW.json", nargs="?", help="the run after")
    compare.add_argument("--speedup", action="store_true", help="BASE is without speculation: show speed-ups instead")
    compare.add_argument("--profile", metavar="LABEL", help="which engine, where an artifact has several")
    compare.add_argument("--base-profile", metavar="LABEL", help="the same for BASE, where its label is another")
    compare.add_argument(
        "--metric", action="append", default=[], help="what to judge, repeatable (default: AL and TPS)"
    )
    compare.add_argument(
        "--margin",
        action="append",
        default=[],
        type=_margin,
        metavar="[METRIC=]SHARE",
        help="what change for the worse is too much, such as 3%% or ttft_p50_s=10%% (default: each metric's own)",
    )
    compare.add_argument("--allow", action="append", default=[], metavar="SETTING", help="may differ all the same")
    compare.add_argument("--allow-missing", action="store_true", help="cells that only one run has are no problem")
    compare.add_argument("--inconclusive", choices=("fail", "warn"), default="fail", help="what INCONCLUSIVE does")
    compare.add_argument("--format", choices=("text", "markdown", "json"), default="text")
    compare.set_defaults(run=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    """Print the comparison; 1 where something is worse, cannot be judged, or is too close to call."""
    if arguments.speedup:
        return _speedup(arguments)
    from pytest_speedbench.comparison import report
    from pytest_speedbench.comparison.comparing import compare
    from pytest_speedbench.gates.verdict import Verdict

    policy = _policy(arguments)
    base, new = _sides(arguments, BASELINE)
    found = compare(base, new, policy, allow=arguments.allow, allow_missing=arguments.allow_missing)
    if arguments.format == "json":
        print(json.dumps(report.to_json(found), indent=1, ensure_ascii=False, allow_nan=False))
    elif arguments.format == "markdown":
        print(report.markdown(found), end="")
    else:
        print(report.text(found, width=shutil.get_terminal_size().columns, encoding=sys.stdout.encoding or "utf-8"))
    good = {Verdict.PASS} | ({Verdict.INCONCLUSIVE} if arguments.inconclusive == "warn" else set())
    return 0 if found.outcome in good else 1


def _speedup(arguments: argparse.Namespace) -> int:
    """Print the speed-up of every cell, and where speculation stops paying."""
    from pytest_speedbench.comparison.accelerating import measure
    from pytest_speedbench.report import crossover

    given = [name for name in ("metric", "margin", "allow_missing") if getattr(arguments, name)]
    if given:
        raise ConfigError(f"--speedup judges nothing, so --{given[0].replace('_', '-')} has no meaning beside it")
    plain, fast = _sides(arguments, PLAIN)
    found, notes = measure(plain, fast, allow=arguments.allow)
    if arguments.format == "json":
        print(json.dumps({**crossover.to_json(found), "notes": notes}, indent=1, ensure_ascii=False, allow_nan=False))
        return 0
    if arguments.format == "markdown":
        print(crossover.markdown(found), *(f"\n{note}" for note in notes), sep="\n")
        return 0
    encoding = sys.stdout.encoding or "utf-8"
    lines = crossover.lines(found, width=shutil.get_terminal_size().columns, encoding=encoding)
    print("\n".join(["".join(text for text, _ in line) for line in lines] + notes))
    return 0


def _sides(arguments: argparse.Namespace, prefix: str) -> tuple[Side, Side]:
    from pytest_speedbench.comparison.sources import read, sides, sides_within

    base = read(arguments.base)
    if arguments.new is None:
        if arguments.base_profile is not None:
            raise ConfigError("--base-profile needs two artifacts; within one, --profile names the pair")
        return sides_within(base, prefix, profile=arguments.profile)
    return sides(base, read(arguments.new), profile=arguments.profile, base_profile=arguments.base_profile)


def _policy(arguments: argparse.Namespace) -> Policy:
    from pytest_speedbench.comparison.judging import Policy
    from pytest_speedbench.measure.metrics import gateable

    named = {metric: share for metric, share in arguments.margin if metric is not None}
    for metric in (*arguments.metric, *named):
        gateable(metric)
    shares = [share for metric, share in arguments.margin if metric is None]
    if len(shares) > 1:
        raise ConfigError("--margin without a metric was given twice")
    return Policy(tuple(dict.fromkeys(arguments.metric)), shares[0] if shares else None, named)


def _margin(text: str) -> tuple[str | None, float]:
    """``3%``, ``0.03`` or ``output_tps=3%``."""
    metric, equals, share = text.rpartition("=")
    try:
        value = float(share.removesuffix("%")) / (100 if share.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value < 1 or (equals and not metric):
        raise argparse.ArgumentTypeError(f"{text}: give a share between 0 and 1, such as 4% or output_tps=4%")
    return metric or None, value

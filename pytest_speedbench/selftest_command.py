"""``speedbench selftest``: which regressions would the gates of a thresholds file catch?"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pytest_speedbench.errors import ConfigError


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Make ``selftest`` known."""
    command = commands.add_parser(
        "selftest", help="inject known regressions into a recorded run and see which gates notice"
    )
    command.add_argument(
        "--thresholds", metavar="PATH", type=Path, required=True, help="a thresholds file, or a folder"
    )
    command.add_argument(
        "--artifact", metavar="FILE", type=Path, required=True, help="speedbench.json with its request log beside it"
    )
    command.add_argument("--json", metavar="FILE", type=Path, help="also write everything as JSON")
    command.add_argument(
        "--seed", metavar="N", type=int, default=0, help="where the regressions hit (default: %(default)s)"
    )
    command.add_argument(
        "--inconclusive",
        choices=("fail", "warn"),
        default="fail",
        help="whether INCONCLUSIVE counts as caught (default: fail)",
    )
    command.add_argument(
        "--min-score", metavar="SHARE", type=_share, help="also fail below this mutation score, e.g. 60%%"
    )
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    """Print the table; 1 when a gate can never fail or does not pass as recorded, or the score is too low."""
    from pytest_speedbench.files import write_atomic
    from pytest_speedbench.gates.thresholds import load
    from pytest_speedbench.selftest import findings, printing, recorded, trials

    files = load(arguments.thresholds)
    warn = arguments.inconclusive == "warn"
    done = [
        trials.run(each, files, seed=arguments.seed, warn=warn, progress=_progress)
        for each in recorded.read(arguments.artifact)
    ]
    _progress("")
    if not any(trial.gates for trial in done):
        why = dict.fromkeys(line for trial in done for line in (*trial.others, *map(str, trial.untestable.values())))
        raise ConfigError(f"no gate of {arguments.thresholds} applies to {arguments.artifact}: {' | '.join(why)}")
    errors: list[str] = []
    for trial in done:
        for line in printing.lines(trial, warn=warn):
            print(line)
        errors += findings.errors(trial, warn=warn)
        for file in trial.files:
            share = findings.file_score(trial, file).share or 0.0
            if arguments.min_score is not None and share < arguments.min_score:
                errors.append(f"{file}: mutation score {share:.0%} is below {arguments.min_score:.0%}")
    for line in printing.LEGEND:
        print(line)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if arguments.json is not None:
        data = printing.to_json(done, artifact=arguments.artifact.as_posix(), seed=arguments.seed, warn=warn)
        write_atomic(arguments.json, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))
    return 1 if errors else 0


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _share(text: str) -> float:
    """``60%`` or ``0.6``."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text}: give a share between 0 and 1, such as 60%")
    return share

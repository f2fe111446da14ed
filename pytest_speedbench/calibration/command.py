"""``speedbench calibrate``: what can be asked for."""

from __future__ import annotations

import argparse
from pathlib import Path

from pytest_speedbench.errors import ConfigError
from pytest_speedbench.measure.metrics import gateable

_DESCRIPTION = """\
Write calibrated limits into a thresholds file, from artifacts of runs with --speedbench-measure-only: the mean as
reference, the spread between and within engine starts as noise, and a limit that lies a margin away. An existing
file is edited in place. The table of what each gate will detect goes to standard error."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Make ``calibrate`` known."""
    parser = commands.add_parser(
        "calibrate", help="calibrate limits from measure-only artifacts", description=_DESCRIPTION
    )
    parser.add_argument(
        "artifacts", nargs="+", type=Path, metavar="ARTIFACT", help="together at least 5 engine starts, better 6"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="thresholds file to write or to edit (default: print a new one)",
    )
    parser.add_argument(
        "--metric", action="append", default=[], metavar="NAME", help="what to gate, repeatable (default: by split)"
    )
    for name, cells, default in (("margin", "", "4%%"), ("overall-margin", " of the overall cell", "2%%")):
        parser.add_argument(
            f"--{name}",
            action="append",
            default=[],
            type=_margin,
            metavar="[METRIC=]SHARE",
            help=f"how far a limit{cells} lies from its reference (default: the file's, else the metric's, {default} "
            "for acceptance length)",
        )
    parser.add_argument("--skip-unreachable", action="store_true", help="leave out gates that noise makes useless")
    parser.add_argument("--reason", metavar="TEXT", help="why limits may become looser; kept in the file")
    parser.add_argument(
        "--accept-drift", action="store_true", help="a limit may be more than 3%% looser than its first value"
    )
    parser.add_argument("--run", dest="label", metavar="NAME", help="name of the calibration, kept as evidence")
    parser.add_argument("--profile", metavar="NAME", help="engine profile, where artifacts have several")
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="SETTING",
        help="setting that may differ between runs, repeatable",
    )
    parser.set_defaults(run=_command)


def _command(arguments: argparse.Namespace) -> int:
    # Imported here because it needs numpy, and every command imports this module.
    from pytest_speedbench.calibration.calibrate import Choices, calibrate
    from pytest_speedbench.calibration.choice import Margins
    from pytest_speedbench.calibration.ratchet import Permission

    if arguments.reason is not None and not arguments.reason.strip():
        raise ConfigError("--reason is empty; say why limits may become looser")
    calibrate(
        arguments.artifacts,
        arguments.output,
        Choices(
            metrics=tuple(gateable(name).name for name in arguments.metric),
            margins=Margins(dict(arguments.margin), dict(arguments.overall_margin)),
            skip_unreachable=arguments.skip_unreachable,
            label=arguments.label,
            profile=arguments.profile,
            vary=tuple(arguments.vary),
        ),
        Permission(arguments.reason, arguments.accept_drift),
    )
    return 0


def _margin(text: str) -> tuple[str | None, float]:
    """``5%``, ``0.05`` or ``ttft_p50_s=5%``."""
    metric, equals, share = text.rpartition("=")
    number = share.strip()
    try:
        value = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a share between 0 and 1, such as 4% or ttft_p50_s=4%")
    if not equals:
        return None, value
    try:
        return gateable(metric.strip()).name, value
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None

"""When the command line names an engine, the run consists of the suite's cells and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_speedbench.options import BY_KEY

SUITE = Path(__file__).with_name("suite.py")
_ENGINE = BY_KEY["engine"]


def named_engines(config: pytest.Config) -> str | None:
    """The engine option as text, from any of its places."""
    return config.getoption(_ENGINE.ini) or os.environ.get(_ENGINE.env) or config.getini(_ENGINE.ini) or None


def asked_for(config: pytest.Config) -> bool:
    """Whether a measurement was asked for: on the command line or through addopts.

    The environment and ini twins only choose the engine for tests that use the fixture.
    """
    return bool(config.getoption(_ENGINE.ini))


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is an xdist worker."""
    return hasattr(config, "workerinput")


def workers(config: pytest.Config) -> int:
    """How many xdist workers this run has, 0 without xdist. A worker knows it too."""
    if is_worker(config):
        return int(getattr(config, "workerinput")["workercount"])  # noqa: B009
    if getattr(config.option, "dist", "no") == "no":
        return 0
    return sum(_copies(spec) for spec in config.option.tx or ())


def _copies(spec: str) -> int:
    """How many workers an xdist spec starts: ``popen`` one, ``3*popen`` three."""
    number, star, _ = spec.partition("*")
    return int(number) if star and number.isdigit() else 1


def too_many_workers(config: pytest.Config) -> str:
    """Why more than one worker cannot measure."""
    return f"{workers(config)} xdist workers would each start the same engine on the same hardware; use -n 0 or -n 1"


def in_suite(config: pytest.Config) -> bool:
    """Whether the suite's cells are what runs."""
    return str(SUITE) in config.args


def only_looking(config: pytest.Config) -> bool:
    """Whether this run is not meant to measure: --collect-only, --setup-only, --fixtures and the like."""
    option = config.option
    looking = ("collectonly", "setuponly", "setupplan", "showfixtures", "show_fixtures_per_test", "cacheshow")
    return any(getattr(option, name, None) for name in looking)


def take_over(config: pytest.Config) -> None:
    """Put the suite in the place of the rootdir's tests, if the user typed an engine and no path.

    Options in addopts, ini or the environment do not: a repo's own tests must stay reachable.
    An xdist worker is given the words that its controller was given, and comes to the same answer.
    """
    flag = f"--speedbench-{_ENGINE.name}"
    typed = any(str(arg) == flag or str(arg).startswith(f"{flag}=") for arg in config.invocation_params.args)
    if typed and config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = [str(SUITE)]


def refuse_false_greens(config: pytest.Config) -> None:
    """Raise UsageError for plugins and options under which a missed floor could end up green."""
    if not in_suite(config):
        return
    option = config.option
    if getattr(option, "reruns", None) or _ini_number(config, "reruns"):
        raise pytest.UsageError(
            "--reruns turns a missed floor into a pass: a cell is measured again until noise lets it through. "
            "Drop it (or give -p no:rerunfailures)"
        )
    if getattr(option, "retries", None) or _ini_number(config, "retries"):
        raise pytest.UsageError("--retries turns a missed floor into a pass; drop it (or give -p no:pytest-retry)")
    if getattr(option, "force_flaky", None):
        raise pytest.UsageError("--force-flaky turns a missed floor into a pass; drop it (or give -p no:flaky)")
    if workers(config) > 1:
        raise pytest.UsageError(too_many_workers(config))


def refuse_marks(items: list[pytest.Item]) -> None:
    """Raise UsageError for cells that a conftest marked so that they could end up green whatever they measure."""
    for name in ("flaky", "xfail", "skip", "skipif"):
        if any(item.get_closest_marker(name) for item in items):
            raise pytest.UsageError(
                f"a conftest marks cells as {name}, and a missed floor would not be red; "
                "leave out items with the marker speedbench"
            )


def _ini_number(config: pytest.Config, name: str) -> int:
    try:
        return int(config.getini(name) or 0)
    except (KeyError, ValueError):
        return 0

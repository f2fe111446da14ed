"""The state of one pytest session: its settings, its bench, its progress line."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from pytest_speedbench import takeover
from pytest_speedbench.options import Option

if TYPE_CHECKING:
    from pytest_speedbench.bench import Bench
    from pytest_speedbench.campaign import CellProgress
    from pytest_speedbench.settings import Settings

BENCH: pytest.StashKey[Bench] = pytest.StashKey()
PROGRESS: pytest.StashKey[CellProgress] = pytest.StashKey()
PROGRESS_EVERY_S = 20.0


def settings_of(config: pytest.Config) -> Settings:
    """Resolve all options. Raises ConfigError."""
    from pytest_speedbench import settings

    def ini(option: Option) -> Any:
        return config.getini(option.ini)

    def command_line(option: Option) -> Any:
        return config.getoption(option.ini)

    return settings.build(
        command_line=command_line,
        ini=ini,
        environ=os.environ,
        rootdir=config.rootpath,
        invocation_dir=config.invocation_params.dir,
    )


def bench_of(config: pytest.Config) -> Bench:
    """The bench of this session, made at first use. Raises ConfigError."""
    if BENCH not in config.stash:
        from pytest_speedbench import planning
        from pytest_speedbench.bench import Bench

        settings, suite = settings_of(config), takeover.in_suite(config)
        plan = (
            planning.make(settings, offline=takeover.only_looking(config))
            if suite
            else planning.without_cells(settings)
        )
        argv = ("pytest", *(str(arg) for arg in config.invocation_params.args))
        config.stash[BENCH] = Bench.of(plan, argv=argv, environ=os.environ, suite=suite)
        progress: CellProgress = _Progress(config)
        config.stash[PROGRESS] = progress
    return config.stash[BENCH]


class _Progress:
    """A line now and then while a long cell runs, so that a CI log is never silent for minutes."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._last = time.monotonic()

    def __call__(self, item_id: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total:
            self._last = now
            return
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        capture = self._config.pluginmanager.get_plugin("capturemanager")
        if terminal is None or capture is None or now - self._last < PROGRESS_EVERY_S:
            return
        self._last = now
        with capture.global_and_fixture_disabled():
            terminal.ensure_newline()
            terminal.write_line(f"  {item_id}: {done} of {total} conversations")

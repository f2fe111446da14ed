"""pytest hooks. Each delegates; importing this module imports nothing heavy."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from pytest_speedbench import lifecycle, takeover
from pytest_speedbench.collecting import SuiteModule, parametrise, register_marks
from pytest_speedbench.fixtures import (
    speedbench,
    speedbench_enforce,
    speedbench_engine,
    speedbench_result,
)
from pytest_speedbench.options import OPTIONS
from pytest_speedbench.outcomes import as_outcome, status_of

__all__ = ["speedbench", "speedbench_enforce", "speedbench_engine", "speedbench_result"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Every option of the table, on the command line and as ini."""
    group = parser.getgroup("speedbench", "speculative decoding gates (pytest-speedbench)")
    for option in OPTIONS:
        flags = [f"--speedbench-{name}" for name in (option.name, *option.aliases)]
        if option.is_flag:
            group.addoption(*flags, dest=option.ini, action="store_const", const="true", default=None, help=option.help)
        else:
            action = "append" if option.repeatable else "store"
            group.addoption(*flags, dest=option.ini, action=action, metavar=option.metavar, help=option.help)
        if option.repeatable:
            parser.addini(option.ini, option.help, type="linelist", default=None)
        else:
            parser.addini(option.ini, option.help, type="string", default=None)


def pytest_configure(config: pytest.Config) -> None:
    """Put the suite in place, and refuse what could turn a missed floor green."""
    takeover.take_over(config)
    takeover.refuse_false_greens(config)
    register_marks(config)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Plan before the header is printed."""
    lifecycle.start(session.config)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """What will run."""
    return lifecycle.header(config)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """The suite under a node id that is the same on every machine."""
    if module_path != takeover.SUITE:
        return None
    return SuiteModule.from_parent(parent, path=module_path, nodeid="speedbench")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One item per planned cell; a user's test that uses the fixture once per engine."""
    parametrise(metafunc)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Last, so that no shuffling plugin restarts engines."""
    lifecycle.sort_items(config, items)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Check engines and prompts before anything starts."""
    lifecycle.prepare(session)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A run that cannot carry a verdict is an error, also in a user's own test."""
    return as_outcome((yield), call)


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(report: pytest.TestReport | pytest.CollectReport) -> Any:
    """INCONCLUSIVE that only warns is counted as such."""
    return status_of(report)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int | pytest.ExitCode) -> Generator[None, object, object]:
    """Reports after the engines are down, before the terminal's summary; no exit 0 without a measurement.

    The summary is another wrapper: only the innermost one is done before it.
    """
    result = yield
    session.exitstatus = lifecycle.finish(session.config, int(exitstatus))
    return result


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table of cells."""
    lines = lifecycle.summary(config)
    if lines:
        terminalreporter.section("speedbench")
        lifecycle.lines_of(terminalreporter, lines)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Results of an xdist worker."""
    lifecycle.receive_results(node.config, getattr(node, "workeroutput", {}))

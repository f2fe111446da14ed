"""How verdicts appear as pytest outcomes."""

from __future__ import annotations

import pytest

from pytest_speedbench.errors import ConfigError, InvalidRun


def as_error(report: pytest.TestReport, call: pytest.CallInfo[None]) -> pytest.TestReport:
    """Show an InvalidRun or ConfigError raised by ``speedbench.run()`` as an error, without traceback.

    pytest tells errors from failures by the phase, so the report is moved to the set-up phase.
    """
    if call.when == "call" and call.excinfo is not None and call.excinfo.errisinstance((InvalidRun, ConfigError)):
        report.when = "setup"
        report.longrepr = str(call.excinfo.value)
    return report


def status_of(report: pytest.TestReport | pytest.CollectReport) -> tuple[str, str, str] | None:
    """Category, letter and word for an INCONCLUSIVE cell under ``--speedbench-inconclusive=warn``."""
    properties = dict(getattr(report, "user_properties", ()))
    if hasattr(report, "wasxfail") and properties.get("speedbench_verdict") == "INCONCLUSIVE":
        return "inconclusive", "i", "INCONCLUSIVE"
    return None

"""How verdicts appear as pytest outcomes."""

from __future__ import annotations

import pytest

from pytest_speedbench.errors import ConfigError, InvalidRun


def as_outcome(report: pytest.TestReport, call: pytest.CallInfo[None]) -> pytest.TestReport:
    """Show an InvalidRun or ConfigError raised by ``speedbench.run()`` as an error, without traceback.

    pytest tells errors from failures by the phase, so the report is moved to the set-up phase.
    An INCONCLUSIVE that only warns, and what a waiver covers, is an expected failure, under ``--runxfail`` too.
    """
    if call.when != "call" or call.excinfo is None:
        return report
    if call.excinfo.errisinstance((InvalidRun, ConfigError)):
        report.when = "setup"
        report.longrepr = str(call.excinfo.value)
    elif call.excinfo.errisinstance(pytest.xfail.Exception) and _verdict(report) in ("INCONCLUSIVE", "WAIVED"):
        report.outcome = "skipped"
        report.wasxfail = f"reason: {call.excinfo.value}"
    return report


def _verdict(report: pytest.TestReport | pytest.CollectReport) -> object:
    return dict(getattr(report, "user_properties", ())).get("speedbench_verdict")


def status_of(report: pytest.TestReport | pytest.CollectReport) -> tuple[str, str, str] | None:
    """Category, letter and word for a cell that is waived, or INCONCLUSIVE under ``--speedbench-inconclusive=warn``."""
    if hasattr(report, "wasxfail") and _verdict(report) == "INCONCLUSIVE":
        return "inconclusive", "i", "INCONCLUSIVE"
    if hasattr(report, "wasxfail") and _verdict(report) == "WAIVED":
        return "waived", "w", "WAIVED"
    return None

"""Verdicts for JUnit readers: item properties for pytest's own report, and a report of our own."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from pytest_speedbench.files import write_atomic
from pytest_speedbench.gates.verdict import Verdict
from pytest_speedbench.measure.metrics import METRICS
from pytest_speedbench.report.failure import failure_text, headline
from pytest_speedbench.report.ranking import outcome, verdict_word
from pytest_speedbench.report.run_info import RunInfo
from pytest_speedbench.report.wording import item_name, one_line
from pytest_speedbench.results import CellResult

Property = tuple[str, str | int | float]

PREFIX = "speedbench_"
CLASSNAME = "speedbench"
WITH_INTERVAL = ("acceptance_length", "decode_acceptance_length")
# XML 1.0 forbids these or discourages them, and the junit-xml package drops some and dies of others.
_NOT_IN_XML = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def properties(result: CellResult) -> list[Property]:
    """What pytest's ``--junitxml`` shows of a cell: stable keys, JSON-safe values.

    ``speedbench_verdict``, the cell's fields, ``speedbench_<metric>`` and, per gate,
    ``speedbench_gate_<metric>_{verdict,value,limit,headroom,source}``. What is undefined is absent.
    """
    found: list[tuple[str, object]] = [
        ("profile", result.profile),
        *result.cell.as_dict().items(),
        ("verdict", verdict_word(result)),
        ("reason_codes", ",".join(reason.code for reason in result.reasons)),
        ("conversations", result.conversations),
        ("conversations_planned", result.conversations_planned),
        ("turns", result.turns),
        ("steps_source", result.steps_source),
        ("prompts_sha256", result.prompts_sha256),
        ("isl_mean", None if result.isl is None else result.isl.mean),
        ("masked", result.masked or None),
        ("duration_s", result.duration_s),
    ]
    for gate in result.gates:
        key = f"gate_{gate.metric}"
        found += [
            (f"{key}_verdict", gate.verdict.value),
            (f"{key}_value", gate.value),
            (f"{key}_limit", gate.limit),
            (f"{key}_headroom", gate.headroom),
            (f"{key}_source", gate.source),
        ]
    for name in METRICS:
        if name in result.metrics:
            metric = result.metrics[name]
            found.append((name, metric.value))
            if name in WITH_INTERVAL:
                found += [(f"{name}_low", metric.low), (f"{name}_high", metric.high)]
    return [(PREFIX + name, value) for name, raw in found if (value := _value(raw)) is not None]


def write(path: Path, run: RunInfo, results: Sequence[CellResult], *, inconclusive: str = "fail") -> None:
    """Write a JUnit file with one test case per cell.

    FAIL is a failure, INVALID an error. INCONCLUSIVE is a failure, or skipped when ``inconclusive``
    is ``warn``; what a waiver covers is skipped too. A cell without a gate is skipped, since it did not
    pass. Raises ConfigError when the file cannot be written.
    """
    from junit_xml import TestSuite, to_xml_report_string

    suite = TestSuite(
        "speedbench",
        [_case(result, run, inconclusive) for result in results],
        timestamp=xml_text(run.started),
        properties={name: xml_text(value) for name, value in _suite_properties(run, results)},
    )
    write_atomic(path, str(to_xml_report_string([suite])).encode("utf-8"))


def xml_text(text: str) -> str:
    """Text that XML can carry, with what it forbids written as ``\\x1b``."""
    text = text.replace("\r\n", "\n")
    return _NOT_IN_XML.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def _case(result: CellResult, run: RunInfo, inconclusive: str) -> object:
    from junit_xml import TestCase

    engine = run.engine(result.profile)
    values = "\n".join(f"{name} = {value}" for name, value in properties(result))
    case = TestCase(xml_text(item_name(result)), CLASSNAME, result.duration_s, stdout=xml_text(values))
    if result.verdict is Verdict.PASS:
        return case
    # An attribute loses its line breaks, so the message is one line and the rest is the content.
    message = xml_text(one_line(headline(result, engine)))
    if result.verdict is None:
        case.add_skipped_info(message)
        return case
    content = xml_text(failure_text(result, engine))
    if result.verdict is Verdict.INVALID:
        code = result.reasons[0].code if result.reasons else "invalid"
        case.add_error_info(message, content, xml_text(one_line(code)))
    elif result.is_waived or (result.verdict is Verdict.INCONCLUSIVE and inconclusive == "warn"):
        case.add_skipped_info(message, content)
    else:
        case.add_failure_info(message, content, result.verdict.value)
    return case


def _suite_properties(run: RunInfo, results: Sequence[CellResult]) -> list[tuple[str, str]]:
    facts: list[tuple[str, str | None]] = [
        ("outcome", outcome(results)),
        ("plugin_version", run.plugin_version),
        ("dataset", run.dataset),
        ("dataset_sha256", run.dataset_sha256),
        ("thresholds", ",".join(run.thresholds)),
        ("fingerprint", run.fingerprint),
        ("git_commit", run.git_commit),
        ("ci_url", run.ci_url),
    ]
    for engine in run.engines:
        key = f"engine_{engine.profile}"
        facts += [
            (key, f"{engine.engine} {engine.version}".strip()),
            (f"{key}_model", engine.model),
            (f"{key}_method", engine.method),
            (f"{key}_draft_tokens", None if engine.draft_tokens is None else str(engine.draft_tokens)),
            (f"{key}_gpus", ", ".join(gpu.name for gpu in engine.gpus)),
        ]
    return [(xml_text(PREFIX + name), value) for name, value in facts if value]


def _value(raw: object) -> str | int | float | None:
    if isinstance(raw, float):
        return float(raw) if math.isfinite(raw) else None
    return raw if isinstance(raw, (str, int)) and raw != "" else None

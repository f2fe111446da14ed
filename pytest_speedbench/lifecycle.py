"""From session start to exit code: plan, checks, reports."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from pytest_speedbench import takeover
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.session import BENCH, bench_of, settings_of

if TYPE_CHECKING:
    from pytest_speedbench.bench import Bench

NOTHING_MEASURED: pytest.StashKey[str] = pytest.StashKey()
NOT_WRITTEN: pytest.StashKey[list[str]] = pytest.StashKey()


def start(config: pytest.Config) -> None:
    """Make the plan of the suite before anything is collected. Raises UsageError with all that is missing.

    With tests of the project instead, a typed option that cannot work is refused here as well.
    """
    suite = takeover.in_suite(config)
    if not suite and not takeover.asked_for(config):
        return
    try:
        if suite:
            bench_of(config)
        else:
            settings_of(config)
    except ConfigError as error:
        problems = [str(error)]
        if suite and not takeover.only_looking(config):
            problems += _engine_problems(config)
        raise pytest.UsageError("\n".join(dict.fromkeys(problems))) from None


def _engine_problems(config: pytest.Config) -> list[str]:
    """What else is missing, so that a newcomer hears of everything at once."""
    from pytest_speedbench.engines import registry

    problems = []
    try:
        for profile in settings_of(config).profiles:
            registry.create(profile).check()
    except ConfigError as error:
        problems.append(str(error))
    return problems


def prepare(session: pytest.Session) -> None:
    """Check engines, prompts and the place of the artifact before the first engine starts. Raises UsageError."""
    config = session.config
    if not takeover.in_suite(config) or takeover.only_looking(config) or takeover.is_worker(config):
        return
    if session.items or takeover.workers(config):
        try:
            config.stash[BENCH].prepare()
            # Also, so that a run that dies at its first cell does not leave the artifact of an earlier one.
            config.stash[BENCH].write(complete=False)
        except ConfigError as error:
            raise pytest.UsageError(str(error)) from None


def header(config: pytest.Config) -> list[str]:
    """What will be measured, with what, and where each option came from."""
    if not takeover.in_suite(config):
        return []
    from pytest_speedbench.gates.selection import unmatched_gates
    from pytest_speedbench.report.terminal import header_lines

    bench = config.stash[BENCH]
    lines = header_lines(bench.run, encoding=_encoding())
    settings, points = bench.plan.settings, bench.plan.dataset.points()
    for files in bench.plan.matching.values():
        lines += [f"  unmatched   {line}" for line in unmatched_gates(files, points)]
    if settings.embedded:
        bundled = ["model (its own drafter)" if settings.profiles[0].speculation.method == "draft" else "model"]
        bundled += ["prompts"] if settings.dataset == "mini" else []
        bundled += ["limits"] if settings.thresholds_origin == "shipped with the plugin" else []
        lines.insert(1, f"  quick start bundled {', '.join(bundled)}; name --speedbench-model for your own")
    return lines


def finish(config: pytest.Config, exit_status: int) -> int:
    """Write the reports and return the exit status, which is never 0 when nothing was measured."""
    bench = config.stash.get(BENCH, None)
    if takeover.only_looking(config) or exit_status in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERNAL_ERROR):
        return exit_status
    complete = exit_status != pytest.ExitCode.INTERRUPTED
    if takeover.is_worker(config):
        if bench is not None and (bench.results or bench.suite):
            _problems_of(lambda: bench.write(complete=complete))
            _send_results(config, bench)
        return exit_status
    not_written: list[str] = []
    if bench is not None and takeover.workers(config) == 0 and (bench.results or bench.suite):
        not_written += _problems_of(lambda: bench.write(complete=complete))
    if bench is not None and bench.results:
        not_written += _write_reports(bench)
    config.stash[NOT_WRITTEN] = not_written
    reason = _nothing_measured(config, bench)
    if reason:
        config.stash[NOTHING_MEASURED] = reason
    if exit_status == pytest.ExitCode.OK and (not_written or (reason and takeover.asked_for(config))):
        return int(pytest.ExitCode.TESTS_FAILED)
    return exit_status


def summary(config: pytest.Config) -> list[list[tuple[str, dict[str, bool]]]]:
    """The lines after the test session: table, histogram, counts, artifact."""
    lines: list[list[tuple[str, dict[str, bool]]]] = []
    bench = config.stash.get(BENCH, None)
    if bench is not None and bench.results:
        from pytest_speedbench.report.terminal import summary_lines

        reporter = config.pluginmanager.get_plugin("terminalreporter")
        lines += summary_lines(
            bench.results,
            width=reporter._tw.fullwidth if reporter else 80,
            measure_only=bench.plan.settings.measure_only,
            partial=bench.partial,
            run=bench.run,
            encoding=_encoding(),
        )
        lines += [[(f"speedbench: {note}", {"yellow": True})] for note in bench.notes]
        lines.append([(f"artifact: {os.path.relpath(bench.plan.settings.artifact)}", {})])
    lines += [
        [(f"speedbench: {problem}", {"red": True, "bold": True})] for problem in config.stash.get(NOT_WRITTEN, ())
    ]
    reason = config.stash.get(NOTHING_MEASURED, None)
    if reason:
        lines.append([(reason, {"red": takeover.asked_for(config), "bold": True})])
    return lines


def _nothing_measured(config: pytest.Config, bench: Bench | None) -> str | None:
    if not takeover.named_engines(config):
        return None
    if bench is not None:
        from pytest_speedbench.bench import reached_a_verdict

        if reached_a_verdict(bench.results, judged=bench.suite and not bench.plan.settings.measure_only):
            return None
        if bench.results:
            return "speedbench: no cell reached a verdict"
    if takeover.in_suite(config):
        return "speedbench: nothing was measured: no cell was left to run"
    if not takeover.asked_for(config):
        return (
            "speedbench: an engine is configured (ini or environment), but nothing was measured; "
            "name it on the command line, as --speedbench-engine=NAME without a path, to run the cells"
        )
    return (
        "speedbench: nothing was measured: only the tests of this project ran, and none of them measured a cell; "
        "give --speedbench-engine on the command line without a path to run the cells, "
        "or use the speedbench fixture in a test"
    )


def _write_reports(bench: Bench) -> list[str]:
    """What could not be written."""
    from pytest_speedbench.report import github, junit

    settings, path = bench.plan.settings, bench.plan.settings.junit
    problems = []
    if path is not None:
        problems += _problems_of(
            lambda: junit.write(path, bench.run, bench.results, inconclusive=settings.inconclusive)
        )
    return problems + _problems_of(lambda: github.publish(bench.run, bench.results, os.environ))


def _problems_of(write: Callable[[], None]) -> list[str]:
    """What a report that cannot be written says: the others are still to come, and the run is not green."""
    try:
        write()
    except ConfigError as error:
        return [str(error)]
    return []


def _send_results(config: pytest.Config, bench: Bench) -> None:
    from pytest_speedbench.report.result_json import result_to_json
    from pytest_speedbench.report.run_json import engine_to_json

    config.workeroutput["speedbench"] = {  # type: ignore[attr-defined]
        "results": [result_to_json(result) for result in bench.results],
        "beside": [result_to_json(result) for result in bench.beside],
        "engines": [engine_to_json(engine) for engine in bench.run.engines],
        "notes": bench.notes,
    }


def receive_results(config: pytest.Config, output: dict[str, Any]) -> None:
    """Take over what an xdist worker measured."""
    from dataclasses import replace

    from pytest_speedbench.report.result_json import result_from_json
    from pytest_speedbench.report.run_json import engine_from_json

    sent = output.get("speedbench")
    if sent is None:
        return
    bench = bench_of(config)
    bench.results += [result_from_json(data) for data in sent["results"]]
    bench.beside += [result_from_json(data) for data in sent["beside"]]
    bench.notes += sent["notes"]
    bench.run = replace(bench.run, engines=tuple(engine_from_json(data) for data in sent["engines"]))


def sort_items(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Cells in the order of the plan, so that engines start once and ``overall`` comes last."""
    bench = config.stash.get(BENCH, None)
    if bench is not None and bench.suite:
        takeover.refuse_marks(items)
        order = {f"[{planned.item_id}]": number for number, planned in enumerate(bench.plan.cells)}
        items.sort(key=lambda item: order.get(item.name.removeprefix("test_cell"), len(order)))


def lines_of(terminal: Any, lines: Sequence[Sequence[tuple[str, dict[str, bool]]]]) -> None:
    """Write marked-up lines to pytest's terminal."""
    for line in lines:
        for text, markup in line:
            terminal.write(text, **markup)
        terminal.write("\n")


def _encoding() -> str:
    return getattr(sys.stdout, "encoding", None) or "utf-8"

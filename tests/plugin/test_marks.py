"""A conftest cannot make a missed floor anything but red; nothing judged is not green."""

from __future__ import annotations

import pytest

CONFTEST = """
import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.{mark})
"""


@pytest.mark.parametrize("mark", ["xfail", "skip", "flaky"])
def test_marks_that_hide_a_missed_floor_are_refused(pytester: pytest.Pytester, mark: str) -> None:
    pytester.makeconftest(CONFTEST.format(mark=mark))
    done = pytester.runpytest_subprocess("--speedbench-engine=llamacpp", "--speedbench-category=qa")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines([f"ERROR: a conftest marks cells as {mark}, and a missed floor would not be red*"])


def test_an_engine_argument_does_not_take_the_run_over(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nspeedbench_engine = llamacpp\n")
    pytester.makepyfile("def test_own():\n    pass\n")
    done = pytester.runpytest_subprocess("--speedbench-engine-arg=n_batch=64")
    done.assert_outcomes(passed=1)


@pytest.mark.real_engine
def test_a_supporting_cell_alone_is_not_green(pytester: pytest.Pytester) -> None:
    limits = (
        "schema: 1\nestimator: request_mean\ngates:\n"
        "  - cell: {split: qualitative, category: overall, concurrency: 1}\n    acceptance_length: {min: 1.5}\n"
    )
    pytester.makefile(".yaml", limits=limits)
    done = pytester.runpytest_subprocess(
        "--speedbench-engine=llamacpp",
        "--speedbench-thresholds=limits.yaml",
        "--speedbench-prompts=1",
        "--speedbench-osl=8",
        "-k",
        "qa",
    )
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    done.stdout.fnmatch_lines(["*no cell reached a verdict*"])


def test_contradicting_files_are_refused_before_anything_starts(pytester: pytest.Pytester) -> None:
    text = (
        "schema: 1\nestimator: request_mean\ngates:\n"
        "  - cell: {split: qualitative, category: qa, concurrency: 1}\n    acceptance_length: {min: 1.5}\n"
    )
    folder = pytester.mkdir("thresholds")
    (folder / "a.yaml").write_text(text)
    (folder / "b.yaml").write_text(text)
    done = pytester.runpytest_subprocess("--speedbench-engine=llamacpp")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["ERROR: *b.yaml:5: acceptance_length * is also gated in *a.yaml:5*"])

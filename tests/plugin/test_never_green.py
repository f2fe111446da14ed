"""A run that measured nothing, or that could hide a missed floor, is never green."""

from __future__ import annotations

import pytest

from tests.plugin import project as files
from tests.plugin.conftest import Run
from tests.plugin.project import ENGINE, node_ids

NOTHING = "nothing was measured"


@pytest.fixture
def plain(project: pytest.Pytester) -> pytest.Pytester:
    """A project whose own test passes and measures nothing."""
    project.makepyfile(test_plain="def test_plain(): pass")
    return project


# An engine, and other tests


@pytest.mark.parametrize("path", [["test_plain.py"], ["test_plain.py::test_plain"], ["."]], ids=" ".join)
def test_a_typed_engine_beside_a_path_runs_that_path_and_is_not_green(plain: pytest.Pytester, path: list[str]) -> None:
    result = plain.runpytest_subprocess(ENGINE, *path)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"speedbench: {NOTHING}: only the tests of this project ran*"])


def test_an_engine_in_addopts_does_not_hijack_the_project_and_is_not_green(plain: pytest.Pytester) -> None:
    plain.makeini(f"[pytest]\naddopts = {ENGINE}\n")
    result = plain.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"speedbench: {NOTHING}*"])


@pytest.mark.parametrize("place", ["ini", "environment"])
def test_an_engine_in_ini_or_environment_leaves_the_project_alone(
    plain: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    if place == "ini":
        plain.makeini("[pytest]\nspeedbench_engine = llamacpp\n")
    else:
        monkeypatch.setenv("SPEEDBENCH_ENGINE", "llamacpp")
    result = plain.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["speedbench: an engine is configured (ini or environment), but nothing was measured*"])
    assert not (plain.path / "speedbench.json").exists()


# An empty selection or plan


@pytest.mark.parametrize("selection", [["-k", "nomatch"], ["-m", "humanities"]], ids=" ".join)
def test_deselecting_everything_is_not_green(project: pytest.Pytester, selection: list[str]) -> None:
    result = project.runpytest_subprocess(ENGINE, *selection)
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result.stdout.fnmatch_lines([f"speedbench: {NOTHING}: no cell was left to run"])
    assert files.artifact(project.path)["cells"] == []
    assert files.flags(project.path)[1]


def test_limits_for_another_run_plan_nothing_and_say_what_differs(project: pytest.Pytester) -> None:
    files.write_limits(project.path / "limits.yaml", files.LOOSE, method="ngram", draft_tokens=5)
    files.refused(
        project.runpytest_subprocess(ENGINE),
        "nothing is planned",
        "limits.yaml",
        "method: wanted 'ngram', found 'draft'",
        "draft_tokens: wanted 5, found 2",
    )


def test_limits_for_cells_that_the_dataset_lacks_plan_nothing(project: pytest.Pytester) -> None:
    files.write_limits(project.path / "limits.yaml", {"writing": 1.05})
    files.refused(project.runpytest_subprocess(ENGINE), "limits.yaml", "prompts", "--speedbench-split")


def test_skipping_every_cell_is_not_green(project: pytest.Pytester) -> None:
    project.makeconftest(
        "import pytest\n@pytest.fixture(autouse=True)\ndef not_today():\n    pytest.skip('not today')\n"
    )
    result = project.runpytest_subprocess(ENGINE)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([f"speedbench: {NOTHING}*"])
    assert files.flags(project.path)[1]


# What could turn a missed floor green


@pytest.mark.parametrize(
    ("options", "ini", "fragment"),
    [
        (["--reruns", "1"], "", "--reruns"),
        ([], "reruns = 1", "--reruns"),
        (["-n", "2"], "", "2 xdist workers"),
        (["--dist=load", "--tx", "2*popen"], "", "2 xdist workers"),
    ],
)
def test_reruns_and_several_workers_are_refused(
    project: pytest.Pytester, options: list[str], ini: str, fragment: str
) -> None:
    project.makeini(f"[pytest]\n{ini}\n")
    files.refused(project.runpytest_subprocess(ENGINE, *options), fragment)


def test_a_conftest_that_marks_cells_as_flaky_is_refused(project: pytest.Pytester) -> None:
    project.makeconftest(
        "import pytest\n"
        "def pytest_collection_modifyitems(items):\n"
        "    for item in items: item.add_marker(pytest.mark.flaky(reruns=2))\n"
    )
    files.refused(project.runpytest_subprocess(ENGINE), "flaky", "speedbench")


def test_reruns_of_the_projects_own_tests_are_not_our_business(plain: pytest.Pytester) -> None:
    assert plain.runpytest_subprocess("--reruns", "1", "-n", "2").ret == pytest.ExitCode.OK


# Cells without a verdict


@pytest.mark.real_engine
def test_measuring_only_is_green_and_says_that_nothing_passed(measured: Run) -> None:
    assert measured.result.ret == pytest.ExitCode.OK
    measured.result.stdout.fnmatch_lines(["*coding*ungated*" if "verdict" in measured.text else "*coding*"])
    measured.result.stdout.fnmatch_lines(["4 ungated*", "measured only: nothing was compared with a limit*"])
    assert set(files.verdicts(measured.folder).values()) == {None}
    assert files.flags(measured.folder) == (True, False)


@pytest.mark.real_engine
def test_one_worker_measures_and_the_controller_reports(project: pytest.Pytester) -> None:
    """With a cell that no file gates among them, which is an error and not a pass."""
    files.write_limits(project.path / "limits.yaml", {"rag": 1.05})
    result = project.runpytest_subprocess(
        ENGINE, "-n", "1", "--speedbench-category=math,rag", "--speedbench-junit=own.xml"
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["*INVALID no_gate: no thresholds file gates qualitative-math-c1*", "rag*PASS", "1 passed, 1 invalid*"]
    )
    assert files.verdicts(project.path) == {"math": "INVALID", "rag": "PASS"}
    assert files.flags(project.path) == (True, False)
    assert len(files.junit_cases(project.path / "own.xml")) == 2
    assert files.artifact(project.path)["run"]["engines"][0]["version"]


# Parts of the plan


@pytest.mark.real_engine
def test_overall_needs_all_categories(project: pytest.Pytester) -> None:
    result = project.runpytest_subprocess(ENGINE, "-k", "rag or overall")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1, errors=1, deselected=2)
    result.stdout.fnmatch_lines(
        ["*INVALID incomplete_family: overall needs all of its 3 categories, and 2 *coding, math*", "partial: *"]
    )
    assert files.verdicts(project.path) == {"rag": "PASS", "overall": "INVALID"}
    assert files.flags(project.path) == (True, True)


@pytest.mark.real_engine
def test_stopping_early_and_rerunning_the_failed_one_are_partial(project: pytest.Pytester) -> None:
    files.write_limits(project.path / "limits.yaml", {"coding": 2.99, "math": 1.05})
    first = project.runpytest_subprocess(ENGINE, "-x")
    first.assert_outcomes(failed=1)
    first.stdout.fnmatch_lines(["*stopping after 1 failures*"])
    assert files.verdicts(project.path) == {"coding": "FAIL"}
    assert files.flags(project.path)[1]
    files.write_limits(project.path / "limits.yaml", {"coding": 1.05, "math": 1.05})
    again = project.runpytest_subprocess(ENGINE, "--lf", "-v")
    again.assert_outcomes(passed=1, deselected=1)
    again.stdout.fnmatch_lines([f"{node_ids('coding')[0].replace('[', '[[]')} PASSED*", "partial: *"])
    assert again.ret == pytest.ExitCode.OK
    assert files.flags(project.path) == (True, True)

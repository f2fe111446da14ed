"""A project that gates: prompts, limits and a profile in a folder, and pytest run on it in a process of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest

ENGINE = "--speedbench-engine=llamacpp"
PREFIX = "speedbench::test_cell[llamacpp-qualitative-"
SPECULATION = {"method": "draft", "draft_tokens": 2}
PROMPTS: Mapping[str, Sequence[Sequence[str]]] = {
    "coding": [["Write a Python function that reverses a string."], ["Sort a list in Rust."]],
    "math": [["What is 12 times 7?"], ["Add 3 and 4."]],
    "rag": [["The cat sat on the mat. Where did it sit?", "And why?"], ["Who wrote Hamlet?"]],
}
LOOSE = {"qualitative": 1.05}
"""A limit that the model drafting for itself is far above, for every qualitative cell."""


def node_ids(*names: str) -> list[str]:
    return [f"{PREFIX}{name}]" for name in names]


def write_prompts(folder: Path, prompts: Mapping[str, Sequence[Sequence[str]]], config: str = "qualitative") -> None:
    folder.mkdir(exist_ok=True)
    rows = [
        {"question_id": f"{category}-{number}", "category": category, "turns": list(turns)}
        for category, conversations in prompts.items()
        for number, turns in enumerate(conversations)
    ]
    (folder / f"{config}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_limits(path: Path, limits: Mapping[str, float], **match: object) -> None:
    """``limits``: smallest acceptance length by category, or by ``qualitative`` for all of them."""
    lines = ["schema: 1", f"match: {json.dumps({'engine': 'llamacpp', **match})}", "estimator: request_mean", "gates:"]
    for name, limit in limits.items():
        cell = {"split": "qualitative"} if name == "qualitative" else {"split": "qualitative", "category": name}
        lines += [f"  - cell: {json.dumps(cell)}", f"    acceptance_length: {{min: {limit}}}"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_profile(folder: Path, *, engine: Mapping[str, object] | None = None, **options: object) -> None:
    """``speedbench.yaml``: JSON is YAML too. One thread, since two of them wait for each other on a busy machine."""
    profile = {
        "dataset": "prompts",
        "thresholds": "limits.yaml",
        "osl": 8,
        "prompts": 8,
        "tokenizer": "tokenizer" if (folder / "tokenizer").exists() else None,
        "speculation": SPECULATION,
        "engines": {"llamacpp": {"threads": 1, **(engine or {})}},
        **options,
    }
    kept = {name: value for name, value in profile.items() if value is not None}
    (folder / "speedbench.yaml").write_text(json.dumps(kept, indent=1), encoding="utf-8")


def write_project(folder: Path, limits: Mapping[str, float] = LOOSE, *, tokenizer: Path | None = None) -> None:
    """``tokenizer``: a folder with the model's own, which is loaded faster than out of the model file."""
    if tokenizer is not None:
        (folder / "tokenizer").symlink_to(tokenizer)
    write_prompts(folder / "prompts", PROMPTS)
    write_limits(folder / "limits.yaml", limits)
    write_profile(folder)


def write_attached(folder: Path, tokenizer: Path, *, osl: int, draft_tokens: int, **options: object) -> None:
    """A profile for a vLLM server of someone else that serves ``someone/model``, drafting always."""
    (folder / "tokenizer").symlink_to(tokenizer)
    profile = {
        "dataset": "prompts",
        "osl": osl,
        "ignore_eos": True,
        "model": "tokenizer",
        "speculation": {"method": "draft", "draft_tokens": draft_tokens, "draft_model": "someone/drafter"},
        "max_model_len": 2048,
        "engines": {"vllm": {"served_model": "someone/model"}},
        **options,
    }
    (folder / "speedbench.yaml").write_text(json.dumps(profile), encoding="utf-8")


def command(folder: Path, *args: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-p", "no:randomly", f"--basetemp={folder / 'tmp'}", *args]


def run_pytest(folder: Path, *args: str, timeout_s: float = 120.0) -> pytest.RunResult:
    """As ``pytester.runpytest_subprocess``, for runs that several tests look at."""
    began = time.monotonic()
    done = subprocess.run(
        command(folder, *args),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        encoding="utf-8",
    )
    return pytest.RunResult(
        done.returncode, done.stdout.splitlines(), done.stderr.splitlines(), time.monotonic() - began
    )


@contextlib.contextmanager
def background(folder: Path, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    """pytest while it runs, with its output in ``output.txt``; it and its engine are gone afterwards."""
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            command(folder, *args), cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    children: list[psutil.Process] = []
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            children = engines_of(process)
        process.kill()
        process.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def engines_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(part.endswith("llamacpp_server.py") for part in child.cmdline()):
                found.append(child)
    return found


def wait_until(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.05)


def text(result: pytest.RunResult) -> str:
    return "\n".join([*result.outlines, *result.errlines])


def artifact(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "speedbench.json").read_text(encoding="utf-8"))
    return data


def flags(folder: Path) -> tuple[bool, bool]:
    """(complete, partial) of the artifact."""
    data = artifact(folder)
    return data["complete"], data["partial"]


def verdicts(folder: Path) -> dict[str, str | None]:
    return {str(cell["cell"]["category"]): cell["verdict"] for cell in artifact(folder)["cells"]}


def junit_cases(path: Path) -> dict[str, ElementTree.Element]:
    return {str(case.get("name")): case for case in ElementTree.parse(path).getroot().iter("testcase")}


def refused(result: pytest.RunResult, *fragments: str) -> None:
    """Exit 4 with each of ``fragments`` in the message, and nothing that only a developer can read."""
    shown = text(result)
    assert result.ret == pytest.ExitCode.USAGE_ERROR, shown
    for word in ("Traceback", "INTERNALERROR", "errors.ConfigError"):
        assert word not in shown, shown
    for fragment in fragments:
        assert fragment in shown, f"{fragment!r} is not in:\n{shown}"

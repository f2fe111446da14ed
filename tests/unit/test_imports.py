"""Imports go one way, heavy packages stay where they belong, and a pytest start costs next to nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pytest_speedbench

PACKAGE = Path(pytest_speedbench.__file__).parent

# Lowest first. A module may import from lower layers and from its own.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("names", "errors", "__init__"),
    ("options", "cells", "files", "columns", "strata"),
    ("measure",),
    ("gates",),
    ("engines.base", "data", "tokenize", "token_cache", "gguf_tokenizer", "gguf_metadata"),
    ("engines",),
    ("load",),
    ("results",),
    ("report",),
    ("settings",),
    ("arms", "window_store", "versus", "early"),
    ("planning", "running", "judging"),
    ("derived", "inputs"),
    ("campaign",),
    ("starting",),
    ("bench",),
    ("takeover",),
    ("session",),
    ("custom", "outcomes", "collecting"),
    ("fixtures",),
    ("lifecycle",),
    ("suite", "plugin", "init", "calibration", "selftest", "lint", "comparison"),
    ("data_command", "selftest_command", "lint_command", "compare_command"),
    ("cli",),
)
FREE = ("custom", "outcomes", "collecting", "arms", "planning", "running", "judging", "options", "cells", "errors")
"""Modules of one file each: within their layer they do not import one another."""

ALLOWED = {
    "httpx": ("data/embedding.py", "load/client.py"),
    "prometheus_client": ("engines/prometheus.py",),
    "psutil": ("engines/leases.py", "engines/process.py"),
    "pynvml": ("engines/gpus.py",),
    "yaml": ("calibration/yaml_edit.py", "data/tiers.py", "gates/yaml_nodes.py", "settings.py"),
    "subprocess": ("engines/installed.py", "engines/process.py", "load/spread.py"),
    "transformers": ("tokenize.py",),
    "tokenizers": ("data/embedding.py", "gguf_tokenizer.py"),
    "matplotlib": ("data/curate.py",),
    "xllamacpp": ("engines/llamacpp_server.py",),
    "numpy": ("data/curation.py", "data/embedding.py", "measure/statistics.py", "measure/timing.py"),
    "pyarrow": ("data/reading.py",),
    "junit_xml": ("report/junit.py",),
    "jsonschema": ("report/artifact.py",),
    "orjson": ("engines/event_json.py",),
}
FORBIDDEN = ("gguf", "vllm", "sglang", "tensorrt_llm", "torch")


def modules() -> dict[str, Path]:
    """Dotted name below the package to file."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
        if "templates" not in path.parts
    }


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or inside functions, type checking included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(path: Path) -> set[str]:
    """The modules of this package that a file imports."""
    names = {name.removeprefix("pytest_speedbench.") for name in imports(path) if name.startswith("pytest_speedbench")}
    found = {name for name in names if name in MODULES}
    # ``from pytest_speedbench.gates import wording`` names a package and a module in it.
    return found | ({"__init__"} if "pytest_speedbench.__version__" in set(imports(path)) else set())


def layer(module: str) -> int:
    """The layer of a module: by its own name, else by its folder's."""
    for name in (module, module.partition(".")[0]):
        for number, members in enumerate(LAYERS):
            if name in members:
                return number
    raise AssertionError(f"{module} is in no layer; add it to LAYERS")


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_go_down(module: str) -> None:
    up = {other for other in own(MODULES[module]) if layer(other) > layer(module)}
    assert not up, f"{module} imports {', '.join(sorted(up))} from a higher layer"
    if module in FREE:
        beside = {other for other in own(MODULES[module]) if layer(other) == layer(module)} - {module}
        assert beside <= {"errors"} - {module}, f"{module} imports {', '.join(sorted(beside))} from its own layer"


def test_no_import_cycles() -> None:
    graph = {module: own(path) - {module} for module, path in MODULES.items()}
    while graph:
        leaves = {module for module, needs in graph.items() if not needs & graph.keys()}
        assert leaves, f"a cycle among {', '.join(sorted(graph))}"
        graph = {module: needs for module, needs in graph.items() if module not in leaves}


@pytest.mark.parametrize("package", [*ALLOWED, *FORBIDDEN])
def test_packages_stay_where_they_belong(package: str) -> None:
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in MODULES.values()
        if any(name == package or name.startswith(f"{package}.") for name in imports(path))
    }
    assert users == set(ALLOWED.get(package, ()))


def test_the_server_script_needs_nothing_but_its_engine() -> None:
    # Another Python runs it by path.
    needed = {name.partition(".")[0] for name in imports(MODULES["engines.llamacpp_server"])}
    assert needed - {"xllamacpp"} <= set(sys.stdlib_module_names)


HEAVY = (
    "aiohttp",
    "httpx",
    "numpy",
    "orjson",
    "yaml",
    "transformers",
    "tokenizers",
    "gguf",
    "xllamacpp",
    "pyarrow",
    "jsonschema",
)


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(*sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_the_plugin_imports_nothing_heavy() -> None:
    # pytest itself may bring some of these in; the plugin must add none.
    added = loaded_by("import pytest, pytest_speedbench.plugin") - loaded_by("import pytest")
    assert not added & set(HEAVY)


def test_the_plugin_imports_few_modules_of_its_own() -> None:
    code = "import sys, pytest_speedbench.plugin\nprint(*(m for m in sys.modules if m.startswith('pytest_speedbench')))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    own_modules = {name.removeprefix("pytest_speedbench.") for name in done.stdout.split()}
    assert not {name for name in own_modules if name.startswith(("measure", "gates", "engines", "load", "report"))}
    assert not own_modules & {"settings", "planning", "running", "judging", "bench", "cells"}


def test_a_pytest_run_that_does_not_use_it_loads_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        f"import sys\n\ndef test_it():\n    assert not set({HEAVY!r}) & set(sys.modules)\n"
    )
    plugins = ["-p", "no:hypothesispytest", "-p", "no:randomly", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout

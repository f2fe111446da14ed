"""The plugin on a real GPU, launched as a user would: every category and bucket of the bundled data, gated.

Opt-in, with ``tests/gpu/run.sh`` or by hand:

    SPEEDBENCH_TEST_GPU=vllm:none,vllm:ngram   engine:method pairs to run, in this order
    SPEEDBENCH_TEST_GPU_MODELS=FOLDER          what tools/smollm2_models.py made
    SPEEDBENCH_TEST_GPU_PYTHON=PYTHON          the Python that has the engine (default: the engine on PATH)
    SPEEDBENCH_TEST_GPU_SITE=FOLDER            added to PYTHONPATH of the engine, if set
    SPEEDBENCH_TEST_GPU_OUT=FOLDER             artifacts, request logs, JUnit files and terminal output are kept here
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_speedbench.report import artifact as artifacts
from pytest_speedbench.report.requests import read_windows
from tests.plugin import project as files

EXAMPLE = Path(__file__).parents[2] / "examples" / "h100"
NAMED = [pair.partition(":") for pair in os.environ.get("SPEEDBENCH_TEST_GPU", "").split(",") if pair]
PAIRS = [(engine, method) for engine, _, method in NAMED if method != "memory"]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not PAIRS, reason="SPEEDBENCH_TEST_GPU names nothing to run")]
TIMEOUT_S = 1200


def write_project(folder: Path, engine: str, method: str) -> None:
    """The example, with what depends on this machine filled in."""
    shutil.copytree(EXAMPLE / "thresholds", folder / "thresholds")
    (folder / "models").symlink_to(Path(os.environ["SPEEDBENCH_TEST_GPU_MODELS"]).resolve())
    profile: dict[str, Any] = yaml.safe_load((EXAMPLE / f"{method}.yaml").read_text(encoding="utf-8"))
    own = profile["engines"][engine]
    if "SPEEDBENCH_TEST_GPU_PYTHON" in os.environ:
        own["python"] = os.environ["SPEEDBENCH_TEST_GPU_PYTHON"]
    if "SPEEDBENCH_TEST_GPU_SITE" in os.environ:
        own["env"]["PYTHONPATH"] = os.environ["SPEEDBENCH_TEST_GPU_SITE"]
    (folder / f"{method}.yaml").write_text(json.dumps(profile, indent=1), encoding="utf-8")


@pytest.mark.parametrize(("engine", "method"), PAIRS)
def test_every_cell_is_gated_and_passes(tmp_path: Path, engine: str, method: str) -> None:
    write_project(tmp_path, engine, method)
    own = (f"--speedbench-engine={engine}", f"--speedbench-profile={method}.yaml", "--speedbench-junit=junit.xml")
    try:
        result = files.run_pytest(tmp_path, *own, timeout_s=TIMEOUT_S)
    except subprocess.TimeoutExpired as late:
        # GPU time is dear: what was measured until then is worth keeping.
        shown = late.stdout or b""
        keep(tmp_path, f"{engine}-{method}", shown if isinstance(shown, str) else shown.decode("utf-8", "replace"))
        raise
    keep(tmp_path, f"{engine}-{method}", files.text(result))
    assert result.ret == pytest.ExitCode.OK, files.text(result)[-6000:]
    data = files.artifact(tmp_path)
    artifacts.validate(data)
    (record,) = data["run"]["engines"]
    assert [gpu["name"].startswith("NVIDIA H100") for gpu in record["gpus"]] == [True]
    assert all(cell["verdict"] == "PASS" for cell in data["cells"])
    qualitative = [cell for cell in data["cells"] if cell["cell"]["split"] == "qualitative"]
    # Eight prompts cannot hold 32 streams, so no rate is gated there; without speculation nothing else can be.
    assert len(qualitative) == 12 * (2 if method == "none" else 3)
    throughput = [cell for cell in data["cells"] if cell["cell"]["split"] == "throughput"]
    # SGLang's n-grams come from all that it has generated, so prompts may not be repeated to fill c8 and c32.
    assert len(throughput) == 2 * 3 * (1 if (engine, method) == ("sglang", "ngram") else 3)
    for _, window in read_windows(tmp_path / "speedbench-requests.jsonl.gz"):
        assert window.steps is not None
        assert window.steps.exact, window.cell


def keep(folder: Path, name: str, output: str) -> None:
    """What is worth looking at afterwards, engine log included."""
    if "SPEEDBENCH_TEST_GPU_OUT" not in os.environ:
        return
    target = Path(os.environ["SPEEDBENCH_TEST_GPU_OUT"]) / name
    target.mkdir(parents=True, exist_ok=True)
    (target / "terminal.txt").write_text(output, encoding="utf-8")
    for pattern in ("speedbench.json", "speedbench-requests.jsonl.gz", "junit.xml", "tmp/**/engine.log"):
        for path in folder.glob(pattern):
            shutil.copy(path, target / path.name)

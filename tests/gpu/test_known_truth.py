"""Known acceptance on a real GPU: vLLM's synthetic rejection sampling, measured by the plugin as a user runs it.

Opt-in, like the rest of this folder: SPEEDBENCH_TEST_GPU names ``vllm:synthetic-2.5`` and the like, and the models
are those of tools/dummy_models.py. vLLM accepts drafts at random so that a step emits that many tokens on average.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from pytest_speedbench.report import artifact as artifacts
from tests.gpu.test_h100 import keep
from tests.plugin import project as files

NAMED = os.environ.get("SPEEDBENCH_TEST_GPU", "").split(",")
SETTINGS = [float(name.rpartition("-")[2]) for name in NAMED if name.startswith("vllm:synthetic-")]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not SETTINGS, reason="SPEEDBENCH_TEST_GPU does not name it")]
CONCURRENCY, DRAFT_TOKENS = (1, 64, 512), 3
TIMEOUT_S = 560


def profile(length: float) -> dict[str, object]:
    models = Path(os.environ["SPEEDBENCH_TEST_GPU_MODELS"]).resolve()
    engine: dict[str, object] = {
        "args": [
            "--dtype",
            "bfloat16",
            "--attention-backend",
            "TRITON_ATTN",
            "--load-format",
            "dummy",
            "--enforce-eager",
        ],
        "env": {"VLLM_USE_FLASHINFER_SAMPLER": "0", "HF_HUB_OFFLINE": "1"},
        "speculation": {"rejection_sample_method": "synthetic", "synthetic_acceptance_length": length},
    }
    if "SPEEDBENCH_TEST_GPU_PYTHON" in os.environ:
        engine["python"] = os.environ["SPEEDBENCH_TEST_GPU_PYTHON"]
    if "SPEEDBENCH_TEST_GPU_SITE" in os.environ:
        engine["env"] = {**engine["env"], "PYTHONPATH": os.environ["SPEEDBENCH_TEST_GPU_SITE"]}  # type: ignore[dict-item]
    return {
        "model": str(models / "dummy-1b"),
        "speculation": {
            "method": "draft",
            "draft_model": str(models / "dummy-1b-1-layer"),
            "draft_tokens": DRAFT_TOKENS,
        },
        "dataset": "random-uniform",
        "isl": "1k",
        "concurrency": list(CONCURRENCY),
        "prompts": 256,
        "osl": 48,
        "ignore_eos": True,
        "engines": {"vllm": engine},
    }


@pytest.mark.parametrize("length", SETTINGS)
def test_the_length_that_was_set_is_measured(tmp_path: Path, length: float) -> None:
    (tmp_path / "speedbench.yaml").write_text(json.dumps(profile(length), indent=1), encoding="utf-8")
    result = files.run_pytest(tmp_path, "--speedbench-engine=vllm", timeout_s=TIMEOUT_S)
    keep(tmp_path, f"vllm-synthetic-{length}", files.text(result))
    assert result.ret == pytest.ExitCode.OK, files.text(result)[-6000:]
    data = files.artifact(tmp_path)
    artifacts.validate(data)
    assert [cell["cell"]["concurrency"] for cell in data["cells"]] == list(CONCURRENCY)
    for cell in data["cells"]:
        # Where the server joins events, steps are known for the cell only: what is left is the drafted length,
        # which is free of the cut as well, since this method drafts at every step.
        known = "decode_acceptance_length_uncut" in cell["metrics"]
        name = "decode_acceptance_length_uncut" if known else "drafted_acceptance_length"
        assert cell["metrics"][name]["value"] == pytest.approx(length, rel=0.01), cell["item_id"]
        if known:
            found = shares(cell["acceptance"]["decode_histogram"])
            assert found == pytest.approx(law(length), abs=0.02), cell["item_id"]


def law(length: float) -> list[float]:
    """Share of steps that emit 1 … k + 1 tokens: all up to the whole part, and the next one for the rest of the time.

    So the counters showed it for 2.5: the first draft always accepted, the second half of the time, the third never.
    """
    whole, rest = math.floor(length), length % 1
    return [(1 - rest) * (n == whole) + rest * (n == whole + 1) for n in range(1, DRAFT_TOKENS + 2)]


def shares(histogram: dict[str, int]) -> list[float]:
    steps = sum(histogram.values())
    return [histogram.get(str(n), 0) / steps for n in range(1, DRAFT_TOKENS + 2)]

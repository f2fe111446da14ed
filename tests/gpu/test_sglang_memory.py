"""SGLang's n-grams come from everything it has generated; a flush between cells makes it forget.

Opt-in, like the rest of this folder: SPEEDBENCH_TEST_GPU must name ``sglang:memory``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_speedbench.engines.base import Capacity
from pytest_speedbench.engines.gpus import Nvml
from pytest_speedbench.engines.sglang import Sglang
from pytest_speedbench.measure.acceptance import decode_acceptance_length
from pytest_speedbench.measure.samples import Window
from pytest_speedbench.running import Prepared
from pytest_speedbench.starting import started
from tests.engines.conftest import measure, settings_of
from tests.gpu.test_h100 import keep, write_project

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        "sglang:memory" not in os.environ.get("SPEEDBENCH_TEST_GPU", ""), reason="SPEEDBENCH_TEST_GPU does not name it"
    ),
]
TEXTS = tuple(f"Write a Python function that {what}." for what in ("sorts a list", "adds two numbers", "reads a file"))


def length(window: Window) -> float:
    found = decode_acceptance_length(window.turns)
    assert found is not None
    return found


def test_a_flush_restores_the_first_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_project(tmp_path, "sglang", "ngram")
    settings = settings_of(tmp_path, (tmp_path / "ngram.yaml").read_text(encoding="utf-8"), engine="sglang")
    prepared = Prepared.of(settings.profiles[0])
    with started(prepared, Capacity(8, 2048), settings, tmp_path, Nvml()) as (engine, gpus):
        assert len(gpus) == 1
        first = length(measure(engine, TEXTS, osl_cap=96, ignore_eos=True))
        with monkeypatch.context() as patch:
            patch.setattr(Sglang, "flush_path", None)
            remembered = [length(measure(engine, TEXTS, osl_cap=96, ignore_eos=True)) for _ in range(2)]
        again = length(measure(engine, TEXTS, osl_cap=96, ignore_eos=True))
    keep(tmp_path, "sglang-memory", f"first {first:.4f}, without a flush {remembered}, after a flush {again:.4f}\n")
    assert min(remembered) > 1.2 * first
    assert again == pytest.approx(first, rel=0.1)

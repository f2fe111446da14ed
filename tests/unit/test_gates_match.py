"""Which runs a thresholds file applies to, and what is said when it does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from packaging.specifiers import SpecifierSet

from pytest_speedbench.gates.match import Facts, Match

FACTS = Facts(
    engine="vllm",
    model="org/target",
    method="eagle3",
    draft_tokens=3,
    draft_model="org/drafter",
    dataset="speed-bench-mini@1",
    osl=256,
    temperature=0.0,
    ignore_eos=False,
    engine_version="0.24.1",
    gpus=("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3"),
)
MATCH = Match(
    engine="vllm",
    engine_version=SpecifierSet(">=0.24"),
    model="org/target",
    method="eagle3",
    draft_tokens=3,
    draft_model="org/drafter",
    gpu="NVIDIA H100*",
    gpu_count=2,
    dataset="speed-bench-mini@1",
    osl=256,
    temperature=0,
    ignore_eos=False,
)


def test_all_fields_fit() -> None:
    assert MATCH.static_mismatches(FACTS) == ()
    assert MATCH.runtime_mismatches(FACTS) == ()


def test_fields_that_are_not_given_accept_anything() -> None:
    assert Match().static_mismatches(FACTS) == ()
    assert Match().runtime_mismatches(replace(FACTS, engine_version=None, gpus=())) == ()


def test_a_partial_dataset_has_to_be_named() -> None:
    facts = replace(FACTS, dataset="own@1+partial")
    assert Match().static_mismatches(facts) == ("dataset: wanted 'a full one (none is named)', found 'own@1+partial'",)
    assert Match(dataset="own@1").static_mismatches(facts) == ("dataset: wanted 'own@1', found 'own@1+partial'",)
    assert Match(dataset="own@1+partial").static_mismatches(facts) == ()


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"engine": "sglang"}, "engine: wanted 'vllm', found 'sglang'"),
        ({"model": "org/Target"}, "model: wanted 'org/target', found 'org/Target'"),
        ({"method": None}, "method: wanted 'eagle3', found none"),
        ({"draft_tokens": 5}, "draft_tokens: wanted 3, found 5"),
        ({"draft_tokens": None}, "draft_tokens: wanted 3, found none"),
        ({"draft_model": None}, "draft_model: wanted 'org/drafter', found none"),
        ({"dataset": "mini@2"}, "dataset: wanted 'speed-bench-mini@1', found 'mini@2'"),
        ({"osl": 1024}, "osl: wanted 256, found 1024"),
        ({"osl": None}, "osl: wanted 256, found none"),
        ({"temperature": 0.7}, "temperature: wanted 0, found 0.7"),
        ({"ignore_eos": True}, "ignore_eos: wanted false, found true"),
    ],
)
def test_static_mismatch_says_what_was_wanted_and_found(changed: dict[str, str | int | None], line: str) -> None:
    facts = replace(FACTS, **changed)  # type: ignore[arg-type]
    assert MATCH.static_mismatches(facts) == (line,)
    assert MATCH.runtime_mismatches(facts) == ()


def test_no_draft_tokens_is_a_value_not_anything() -> None:
    assert Match(draft_tokens=0).static_mismatches(FACTS) == ("draft_tokens: wanted 0, found 3",)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"engine_version": "0.23.9"}, "engine_version: wanted '>=0.24', found '0.23.9'"),
        ({"engine_version": None}, "engine_version: wanted '>=0.24', found none"),
        ({"engine_version": "nightly"}, "engine_version: wanted '>=0.24', found 'nightly'"),
        ({"gpus": ("NVIDIA A100",) * 2}, "gpu: wanted 'NVIDIA H100*', found 'NVIDIA A100'"),
        ({"gpus": ("NVIDIA H100 PCIe", "NVIDIA A100")}, "gpu: wanted 'NVIDIA H100*', found 'NVIDIA A100'"),
        ({"gpus": ("NVIDIA H100 NVL",)}, "gpu_count: wanted 2, found 1"),
    ],
)
def test_runtime_mismatch_says_what_was_wanted_and_found(changed: dict[str, object], line: str) -> None:
    facts = replace(FACTS, **changed)  # type: ignore[arg-type]
    assert MATCH.runtime_mismatches(facts) == (line,)
    assert MATCH.static_mismatches(facts) == ()


def test_run_without_gpu_fits_no_gpu_pattern() -> None:
    assert Match(gpu="*", gpu_count=1).runtime_mismatches(replace(FACTS, gpus=())) == (
        "gpu: wanted '*', found none",
        "gpu_count: wanted 1, found 0",
    )


@pytest.mark.parametrize("version", ["0.24", "0.24.0+cu128", "0.25.0rc1", "0.25.1.dev7+g1a2b3c4", "1.0"])
def test_release_candidates_and_nightlies_count_by_their_order(version: str) -> None:
    assert MATCH.runtime_mismatches(replace(FACTS, engine_version=version)) == ()


def test_several_wrong_fields_are_all_named() -> None:
    facts = replace(FACTS, engine="sglang", draft_tokens=1)
    assert len(MATCH.static_mismatches(facts)) == 2

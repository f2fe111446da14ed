"""How two runs differ, in words: the real runs of the examples, and records made for each kind of difference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_speedbench.errors import ConfigError
from pytest_speedbench.report import artifact
from pytest_speedbench.report.fingerprint import (
    Difference,
    Kind,
    check_allowed,
    differences,
    facts,
    kind_of,
    unlike,
)
from pytest_speedbench.report.run_info import EngineRecord, GpuRecord, OptionRecord, RunInfo

EXAMPLES = Path(__file__).parents[2] / "examples"
GPU = GpuRecord("NVIDIA H100 80GB HBM3", "GPU-1", 0, "580.1", "13.0")
RESOLVED: Mapping[str, object] = {
    "osl_cap": 48,
    "temperature": 0.0,
    "max_batch_size": 32,
    "dtype": "bfloat16",
    "speculative_config": {"method": "ngram", "num_speculative_tokens": 5},
    "chat_template_and_tokenizer_sha256": "3fa2" * 16,
}
ENGINE = EngineRecord("vllm", "vllm", "0.22.1", "org/m", "ngram", None, 5, (GPU,), RESOLVED)
RUN = RunInfo("2026-11-25T10:00:00+00:00", (), "0.5", "3.12", "8.4", "Linux", "Xeon (8 logical)", "mini@1", "ab" * 32)


def between(**changes: object) -> tuple[Difference, ...]:
    return differences(RUN, ENGINE, RUN, replace(ENGINE, **changes))  # type: ignore[arg-type]


def resolved(**settings: object) -> tuple[Difference, ...]:
    return between(resolved={**RESOLVED, **settings})


def real(name: str) -> tuple[RunInfo, EngineRecord]:
    run, _, _ = artifact.read(EXAMPLES / name / "speedbench.json")
    return run, run.engines[0]


def test_a_run_does_not_differ_from_itself() -> None:
    assert differences(RUN, ENGINE, RUN, ENGINE) == ()
    run, engine = real("h100/artifacts/sglang-0.5.16-draft")
    assert differences(run, engine, run, engine) == ()


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (resolved(temperature=1.0), "temperature: 0.0 against 1.0"),
        (resolved(osl_cap=96), "osl: 48 against 96"),
        (resolved(ignore_eos=True), ""),
        (
            resolved(chat_template_and_tokenizer_sha256="77bc" * 16),
            "tokenizer and chat template: 3fa23fa23fa2… against 77bc77bc77bc…",
        ),
        (between(model="org/other"), "model: org/m against org/other"),
        (between(method=None, draft_tokens=None), "method: ngram against none"),
        (between(gpus=(GPU, replace(GPU, uuid="GPU-2"))), "gpu count: 1 against 2"),
        (between(gpus=(replace(GPU, name="NVIDIA L4"),)), "gpu: NVIDIA H100 80GB HBM3 against NVIDIA L4"),
    ],
)
def test_unlike_runs_in_words(found: tuple[Difference, ...], words: str) -> None:
    shown = [str(difference) for difference in unlike(found)]
    assert words in shown if words else not shown


@pytest.mark.parametrize(
    "found",
    [
        between(version="0.24.0"),
        between(gpus=(replace(GPU, driver="590.0", cuda="13.1", uuid="GPU-9"),)),
        between(gpus=(replace(GPU, facts={"clocks": {"sm": 1980}}),)),
        resolved(max_batch_size=64),
        resolved(attention_backend="FLASHINFER"),
        resolved(speculative_config={"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_min": 3}),
    ],
)
def test_what_an_upgrade_may_change(found: tuple[Difference, ...]) -> None:
    assert found
    assert {difference.kind for difference in found} == {Kind.UPGRADE}
    assert unlike(found) == ()


def test_what_a_new_version_tells_more_is_not_a_difference_in_kind() -> None:
    assert unlike(resolved(quantization="fp8", speculative_accept_threshold_acc=1.0)) == ()
    assert unlike(differences(RUN, replace(ENGINE, resolved={}), RUN, ENGINE)) == ()


def test_which_drafts_count_as_accepted_is_no_upgrade() -> None:
    config = {"method": "ngram", "num_speculative_tokens": 5, "rejection_sample_method": "synthetic"}
    (difference,) = unlike(resolved(speculative_config=config))
    assert str(difference) == "speculative_config.rejection_sample_method: none against synthetic"


def test_what_a_synthetic_law_is_set_to_stands_for_a_drafter() -> None:
    assert kind_of("speculative_config.synthetic_acceptance_length") is Kind.UPGRADE


def test_draft_tokens_are_told_once() -> None:
    config = {"method": "ngram", "num_speculative_tokens": 3}
    found = between(draft_tokens=3, resolved={**RESOLVED, "speculative_config": config, "draft_tokens": 3})
    assert [str(difference) for difference in found] == ["draft tokens: 5 against 3"]


def test_other_data_and_other_requests() -> None:
    other = replace(RUN, dataset_sha256="cd" * 32, options=(OptionRecord("completions", "true", "command line"),))
    found = unlike(differences(RUN, ENGINE, other, ENGINE))
    assert [str(d) for d in found] == [
        "dataset contents: abababababab… against cdcdcdcdcdcd…",
        "completions: none against true",
    ]


def test_without_a_gpu_the_cpu_counts() -> None:
    other = replace(RUN, cpu="EPYC (96 logical)")
    assert unlike(differences(RUN, ENGINE, other, ENGINE)) == ()
    bare = replace(ENGINE, gpus=())
    assert [str(d) for d in unlike(differences(RUN, bare, other, bare))] == [
        "cpu: Xeon (8 logical) against EPYC (96 logical)"
    ]


def test_what_is_allowed_is_the_users_business() -> None:
    found = between(draft_model="org/d", method="draft")
    assert [d.name for d in unlike(found)] == ["method", "drafter"]
    assert unlike(found, allow=("drafter", "method")) == ()


def test_allowing_what_does_not_exist_is_a_mistake() -> None:
    one = facts(RUN, ENGINE)
    with pytest.raises(ConfigError, match=r"--allow temprature: .* choose from .*temperature"):
        check_allowed(["temprature"], one, one)
    check_allowed(["temperature"], one, one)


def test_real_engines_are_unlike() -> None:
    found = unlike(differences(*real("h100/artifacts/vllm-0.24.0-none"), *real("h100/artifacts/sglang-0.5.16-none")))
    assert [str(d) for d in found] == ["engine: vllm against sglang"]


@pytest.mark.parametrize("engine", ["vllm-0.24.0", "sglang-0.5.16"])
@pytest.mark.parametrize("method", ["ngram", "draft"])
def test_real_runs_without_and_with_speculation(engine: str, method: str) -> None:
    found = differences(*real(f"h100/artifacts/{engine}-none"), *real(f"h100/artifacts/{engine}-{method}"))
    assert "method" in {d.name for d in unlike(found)}
    assert unlike(found, speculation=True) == ()


def test_real_runs_of_other_models() -> None:
    synthetic = real("known-truth/artifacts/vllm-0.24.0-synthetic-2.5")
    found = unlike(differences(*real("h100/artifacts/vllm-0.24.0-draft"), *synthetic))
    assert {"model", "dataset", "tokenizer and chat template", "drafter"} <= {d.name for d in found}

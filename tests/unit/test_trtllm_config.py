"""What the TensorRT-LLM adapter launches: the generated file, by version, and what profiles may not ask for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.version import Version

from pytest_speedbench.engines import trtllm_config
from pytest_speedbench.engines.base import Capacity, Launch, Profile, Speculation
from pytest_speedbench.engines.trtllm import OPTIONS, TrtLlm
from pytest_speedbench.errors import ConfigError

Python = Callable[[str], str]
K = 3
SMALL = Capacity(max_batch_size=8, max_model_len=2048)


@pytest.fixture
def python(tmp_path: Path) -> Python:
    """A Python that has TensorRT-LLM of a given version."""

    def make(version: str) -> str:
        path = tmp_path / f"python-{version}"
        path.write_text(f"#!/bin/sh\necho {version}\n")
        path.chmod(0o755)
        return str(path)

    return make


def profile_of(
    method: str, draft_model: str | None = "org/drafter", *, model: str = "org/target", **fields: Any
) -> Profile:
    speculation = Speculation() if method == "none" else Speculation(method, K, draft_model)
    return Profile("trtllm", "trtllm", model, speculation, **fields)


def launched(profile: Profile, capacity: Capacity = SMALL) -> Launch:
    return TrtLlm(profile).launch(capacity, 8123)


def content(profile: Profile, capacity: Capacity = SMALL) -> dict[str, Any]:
    config = json.loads(launched(profile, capacity).files["config.yaml"])
    assert isinstance(config, dict)
    return config


def value_of(launch: Launch, flag: str) -> str:
    return launch.argv[launch.argv.index(flag) + 1]


# Launch


def test_command_line_and_file(python: Python) -> None:
    options = {"python": python("1.2.1"), "args": ["--log_level", "info"], "env": {"A": 1}}
    launch = launched(profile_of("none", options=options, tokenizer="org/tokenizer", tensor_parallel=4))
    assert launch.argv[1:] == (
        *("-m", "tensorrt_llm.commands.serve", "org/target", "--host", "127.0.0.1", "--port", "8123"),
        *("--backend", "pytorch", "--tokenizer", "org/tokenizer", "--tp_size", "4", "--max_batch_size", "8"),
        *("--max_num_tokens", "8192", "--max_seq_len", "2048", "--extra_llm_api_options", "config.yaml"),
        *("--log_level", "info"),
    )
    assert launch.env == {"A": "1"}
    assert yaml.safe_load(launch.files["config.yaml"]) == {
        "kv_cache_config": {"enable_block_reuse": False},
        "stream_interval": 1,
        "enable_iter_perf_stats": True,
        "max_stats_len": 100_000,
    }


@pytest.mark.parametrize(
    ("version", "flag"),
    [
        ("1.2.0", "--extra_llm_api_options"),
        ("1.3.0rc14", "--extra_llm_api_options"),
        ("1.3.0", "--config"),
        ("1.4.0rc1", "--config"),
    ],
)
def test_the_flag_of_the_file(python: Python, version: str, flag: str) -> None:
    launch = launched(profile_of("none", options={"python": python(version)}))
    assert value_of(launch, flag) == "config.yaml"


@pytest.mark.parametrize(
    ("method", "version", "expected"),
    [
        ("eagle3", "1.2.1", {"decoding_type": "Eagle", "speculative_model_dir": "org/drafter"}),
        ("eagle3", "1.3.0rc1", {"decoding_type": "Eagle3", "speculative_model": "org/drafter"}),
        ("draft", "1.2.1", {"decoding_type": "DraftTarget", "speculative_model_dir": "org/drafter"}),
        ("draft", "1.3.0", {"decoding_type": "Draft_Target", "speculative_model": "org/drafter"}),
        ("ngram", "1.2.1", {"decoding_type": "NGram", "is_public_pool": False}),
        ("mtp", "1.2.1", {"decoding_type": "MTP", "num_nextn_predict_layers": K}),
        ("mtp", "1.3.0", {"decoding_type": "MTP"}),
        ("pard", "1.3.0", {"decoding_type": "PARD", "speculative_model": "org/drafter"}),
        ("dflash", "1.3.0", {"decoding_type": "DFlash", "speculative_model": "org/drafter"}),
        ("sa", "1.3.0", {"decoding_type": "SA", "enable_global_pool": False}),
        ("dspark", "1.4.0rc1", {"decoding_type": "DSpark", "speculative_model": "org/drafter"}),
    ],
)
def test_methods(python: Python, method: str, version: str, expected: dict[str, Any]) -> None:
    drafter = "org/drafter" if method in trtllm_config.NEED_DRAFTER else None
    config = content(profile_of(method, drafter, options={"python": python(version)}))
    assert config["speculative_config"] == {"max_draft_len": K, **expected}
    assert config.get("disable_overlap_scheduler", False) is (method in ("ngram", "draft"))


def test_the_profile_has_the_last_word(python: Python) -> None:
    options = {
        "python": python("1.3.0"),
        "config": {"kv_cache_config": {"free_gpu_memory_fraction": 0.8}, "disable_overlap_scheduler": False, "a": [1]},
        "speculation": {"decoding_type": "DraftTarget", "load_format": "dummy"},
    }
    config = content(profile_of("draft", options=options))
    assert config["kv_cache_config"] == {"enable_block_reuse": False, "free_gpu_memory_fraction": 0.8}
    assert (config["disable_overlap_scheduler"], config["a"]) == (False, [1])
    assert config["speculative_config"] == {
        "decoding_type": "DraftTarget",
        "max_draft_len": K,
        "speculative_model": "org/drafter",
        "load_format": "dummy",
    }


def test_long_prompts_go_in_pieces(python: Python) -> None:
    options = {"python": python("1.2.1")}
    assert content(profile_of("none", options=options), Capacity(8, 32768))["enable_chunked_prefill"] is True
    for over in ({"enable_chunked_prefill": False}, {"max_num_tokens": 32768}):
        config = content(profile_of("none", options={**options, "config": over}), Capacity(8, 32768))
        assert config.get("enable_chunked_prefill", False) is False


def test_an_iteration_holds_a_full_batch(python: Python) -> None:
    options: dict[str, Any] = {"python": python("1.2.1")}
    launch = launched(profile_of("eagle3", options=options), Capacity(4096, 1024))
    assert value_of(launch, "--max_num_tokens") == str(4096 * (K + 1))
    launch = launched(profile_of("none", options={**options, "config": {"max_num_tokens": 16384}}))
    assert value_of(launch, "--max_num_tokens") == "16384"
    # Either place may win, so it stands in one only.
    assert "max_num_tokens" not in json.loads(launch.files["config.yaml"])


def test_the_server_gets_absolute_paths(python: Python, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "drafter").mkdir()
    monkeypatch.chdir(tmp_path)
    profile = profile_of("eagle3", "drafter", model="target", options={"python": python("1.3.0")})
    launch = launched(profile)
    assert str(tmp_path / "target") in launch.argv
    assert content(profile)["speculative_config"]["speculative_model"] == str(tmp_path / "drafter")


def test_port_and_tokenizer() -> None:
    engine = TrtLlm(profile_of("none", options={"port": 8000}))
    assert (engine._profile.port, engine.tokenizer_source()) == (8000, "org/target")
    assert profile_of("none").port is None


def test_who_drafts_always_and_who_remembers() -> None:
    always = {method for method in TrtLlm.methods if TrtLlm(profile_of(method)).drafts_always}
    assert always == {"draft", "eagle3", "mtp", "pard", "dflash", "dspark"}
    assert not any(TrtLlm(profile_of(method)).remembers for method in TrtLlm.methods)
    for method, own in (
        ("ngram", {"is_public_pool": True}),
        ("sa", {"enable_global_pool": True}),
        ("mtp", {"sa_config": {"enable_global_pool": True}}),
    ):
        assert TrtLlm(profile_of(method, options={"speculation": own})).remembers


@pytest.mark.parametrize(
    ("method", "config", "overlaps"),
    [
        ("eagle3", {}, True),
        ("none", {}, True),
        ("ngram", {}, False),
        ("draft", {}, False),
        ("draft", {"disable_overlap_scheduler": False}, True),
        ("eagle3", {"disable_overlap_scheduler": True}, False),
        ("eagle3", {"disable_overlap_scheduler": True, "pipeline_parallel_size": 2}, True),
    ],
)
def test_where_iterations_overlap(method: str, config: dict[str, Any], overlaps: bool) -> None:
    assert trtllm_config.overlaps(profile_of(method, options={"config": config})) is overlaps
    assert trtllm_config.overlaps(profile_of(method, options={"config": config}, base_url="http://x"))


def test_a_tree_drafts_more_than_its_depth() -> None:
    assert trtllm_config.most_drafts(profile_of("eagle3")) == K
    own = {"use_dynamic_tree": True, "max_total_draft_tokens": 16}
    assert trtllm_config.most_drafts(profile_of("eagle3", options={"speculation": own})) == 16


# Checks


def problems_of(profile: Profile) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        TrtLlm(profile).check()
    return str(caught.value).splitlines()


@pytest.mark.parametrize("method", TrtLlm.methods)
def test_check_accepts_what_works(python: Python, method: str) -> None:
    TrtLlm(profile_of(method, options={"python": python("1.4.0"), "args": ["--log_level=info", "info"]})).check()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"colour": 1}, f"trtllm has no option colour; it has {', '.join(OPTIONS)}"),
        ({"config": [1]}, "trtllm: option config must be a mapping, but is [1]"),
        ({"speculation": "x"}, "trtllm: option speculation must be a mapping, but is 'x'"),
        (
            {"config": {"return_perf_metrics": True}},
            "trtllm: option config: return_perf_metrics starts a collector that empties the queue of /metrics, "
            "from which drafts are counted; leave it out",
        ),
        (
            {"config": {"enable_iter_perf_stats": False}},
            "trtllm: option config: enable_iter_perf_stats must stay on: drafts are counted from /metrics",
        ),
        (
            {"config": {"stream_interval": 4}},
            "trtllm: option config: stream_interval must stay 1, but is 4: iterations would go unseen",
        ),
        (
            {"config": {"iter_perf_stats_interval": 2}},
            "trtllm: option config: iter_perf_stats_interval must stay 1, but is 2: iterations would go unseen",
        ),
        (
            {"config": {"kv_cache_config": {"enable_block_reuse": True}}},
            "trtllm: option config: kv_cache_config.enable_block_reuse must stay off: prompts would come from the "
            "cache",
        ),
        ({"config": {"kv_cache_config": 1}}, "trtllm: option config: kv_cache_config must be a mapping, but is 1"),
        (
            {"config": {"enable_attention_dp": True}},
            "trtllm: option config: enable_attention_dp: each rank repeats the drafts of rank 0 in /metrics, "
            "so they cannot be counted",
        ),
        ({"config": {"max_seq_len": 9}}, "trtllm: option config: max_seq_len is set by max_model_len"),
        (
            {"config": {"speculative_config": {}}},
            "trtllm: option config: speculative_config is set by speculation, of the profile and of its engine part",
        ),
        (
            {"speculation": {"acceptance_rate_threshold": 0.5}},
            "trtllm: option speculation: acceptance_rate_threshold: it switches speculation off while the server runs, "
            "without a word",
        ),
        (
            {"speculation": {"max_concurrency": 4}},
            "trtllm: option speculation: max_concurrency: it switches speculation off while the server runs, "
            "without a word",
        ),
        (
            {"speculation": {"draft_len_schedule": {"1": 0}}},
            "trtllm: option speculation: draft_len_schedule: the number of drafts would follow the load instead of "
            "draft_tokens",
        ),
        ({"speculation": {"max_draft_len": 5}}, "trtllm: option speculation: max_draft_len is set by draft_tokens"),
        (
            {"speculation": {"speculative_model": "x"}},
            "trtllm: option speculation: speculative_model is set by draft_model",
        ),
        (
            {"args": ["--port", "1"]},
            "trtllm: option args: --port is set by the plugin: give the option port",
        ),
        (
            {"args": ["--config=x.yaml"]},
            "trtllm: option args: --config is set by the plugin: give the option config, which is merged into the "
            "generated file",
        ),
        (
            {"args": ["--tp-size", 2]},
            "trtllm: option args: --tp-size is set by the plugin: give tensor_parallel in the profile",
        ),
    ],
)
@pytest.mark.parametrize("attached", [False, True])
def test_options_that_are_refused(python: Python, options: dict[str, Any], problem: str, attached: bool) -> None:
    options = {"python": python("1.3.0"), **options}
    base_url = "http://127.0.0.1:1" if attached else None
    assert problems_of(profile_of("eagle3", options=options, base_url=base_url)) == [problem]


def test_check_names_all_that_is_wrong_at_once(python: Python) -> None:
    options = {"python": python("1.1.0"), "args": ["--port", "1"], "config": {"model": "x"}}
    assert problems_of(profile_of("eagle3", None, options=options)) == [
        "trtllm: option config: model is set by model",
        "trtllm: option args: --port is set by the plugin: give the option port",
        "trtllm: method eagle3 needs a draft model; give draft_model",
        "trtllm: version 1.1.0 is not supported; it must be at least 1.2 and below 2",
    ]


@pytest.mark.parametrize(
    ("version", "supported"),
    [
        ("1.1.0", False),
        ("1.2.0rc6", False),
        ("1.2.0", True),
        ("1.3.0rc1", True),
        ("1.99", True),
        ("2.0.0rc1", False),
        ("2.0", False),
    ],
)
def test_versions(python: Python, version: str, supported: bool) -> None:
    profile = profile_of("none", options={"python": python(version)})
    if supported:
        TrtLlm(profile).check()
    else:
        expected = f"trtllm: version {Version(version)} is not supported; it must be at least 1.2 and below 2"
        assert problems_of(profile) == [expected]


def test_a_method_that_the_version_lacks(python: Python) -> None:
    assert problems_of(profile_of("pard", options={"python": python("1.2.1")})) == [
        "trtllm: version 1.2.1 has no method pard; it has none, ngram, draft, eagle3, mtp"
    ]
    assert "has no method dspark" in problems_of(profile_of("dspark", options={"python": python("1.3.0")}))[0]
    assert problems_of(profile_of("medusa", options={"python": python("1.2.1")})) == [
        f"trtllm has no method medusa; choose from {', '.join(TrtLlm.methods)}"
    ]


def test_another_ones_server_needs_no_installation() -> None:
    TrtLlm(profile_of("eagle3", None, base_url="http://127.0.0.1:1", options={"python": "/none"})).check()


def test_check_says_where_to_point_to() -> None:
    problems = problems_of(profile_of("none", options={"executable": "no-such-trtllm-serve"}))
    assert problems == [
        "trtllm: there is no executable no-such-trtllm-serve; install tensorrt-llm, or point engines.trtllm.executable "
        "or engines.trtllm.python of the profile to where it is"
    ]


@pytest.mark.parametrize("nested", [False, True])
def test_drafters_of_another_vocabulary(python: Python, tmp_path: Path, nested: bool) -> None:
    for name, size in (("target", 100), ("drafter", 200), ("twin", 100)):
        own = {"vocab_size": size}
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"text_config": own} if nested else own))
    target, options = str(tmp_path / "target"), {"python": python("1.3.0")}

    def of(method: str, drafter: str) -> Profile:
        return profile_of(method, str(tmp_path / drafter), model=target, options=options)

    assert problems_of(of("draft", "drafter")) == [
        f"trtllm: method draft needs one vocabulary, but {target} has 100 tokens and {tmp_path / 'drafter'} has 200"
    ]
    TrtLlm(of("draft", "twin")).check()
    TrtLlm(of("eagle3", "drafter")).check()
    TrtLlm(of("draft", "gone")).check()

"""The SGLang adapter outside its streams: launch, checks, bodies, description, counters."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from pytest_speedbench.engines import sglang
from pytest_speedbench.engines.base import Capacity, Fetch, Profile, Sampling, Speculation, TurnRequest
from pytest_speedbench.engines.installed import Installed
from pytest_speedbench.engines.sglang import OPTIONS, Sglang
from pytest_speedbench.errors import ConfigError, EngineError
from pytest_speedbench.measure.samples import Counters

NONE = Speculation()
DRAFT = Speculation("draft", 3, "org/drafter")
NGRAM = Speculation("ngram", 5)
ALL_SPECULATION = (
    NONE,
    NGRAM,
    DRAFT,
    Speculation("eagle", 3, "org/head"),
    Speculation("eagle3", 3, "org/head"),
    Speculation("mtp", 1),
    Speculation("dflash", 15, "org/head"),
    Speculation("dspark", 7),
)


def profile_of(
    method: Speculation = DRAFT, *, model: str = "org/model", base_url: str | None = None, **options: Any
) -> Profile:
    return Profile("sglang", "sglang", model, method, base_url=base_url, options=options)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang 0.5.16 in some Python."""
    found = Installed(("python", "-m", "sglang.launch_server"), Version("0.5.16"))
    monkeypatch.setattr(sglang, "find", lambda *_, **__: found)


def argv_of(method: Speculation, **options: Any) -> list[str]:
    engine = Sglang(profile_of(method, **options))
    return list(engine.launch(Capacity(max_batch_size=8, max_model_len=1024), 8123).argv)


def speculative(argv: list[str]) -> list[str]:
    return argv[argv.index("openai") + 1 :]


# Launch


@pytest.mark.usefixtures("installed")
def test_everything_that_is_measured_is_set_by_a_flag() -> None:
    assert argv_of(NONE) == [
        *("python", "-m", "sglang.launch_server"),
        *("--model-path", "org/model"),
        *("--served-model-name", "speedbench", "--host", "127.0.0.1", "--port", "8123"),
        *("--tp-size", "1", "--context-length", "1024", "--max-running-requests", "8"),
        *("--disable-radix-cache", "--enable-metrics", "--random-seed", "0"),
        *("--stream-interval", "1", "--incremental-streaming-output", "--sampling-defaults", "openai"),
    ]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("speculation", "flags"),
    [
        (NGRAM, "--speculative-algorithm NGRAM --speculative-num-draft-tokens 6"),
        (
            DRAFT,
            "--speculative-algorithm STANDALONE --speculative-draft-model-path org/drafter --speculative-num-steps 3 "
            "--speculative-eagle-topk 1 --speculative-num-draft-tokens 4",
        ),
        (
            Speculation("eagle", 2, "org/head"),
            "--speculative-algorithm EAGLE --speculative-draft-model-path org/head --speculative-num-steps 2 "
            "--speculative-eagle-topk 1 --speculative-num-draft-tokens 3",
        ),
        (
            Speculation("eagle3", 2, "org/head"),
            "--speculative-algorithm EAGLE3 --speculative-draft-model-path org/head --speculative-num-steps 2 "
            "--speculative-eagle-topk 1 --speculative-num-draft-tokens 3",
        ),
        (
            Speculation("mtp", 1),
            "--speculative-algorithm NEXTN --speculative-num-steps 1 --speculative-eagle-topk 1 "
            "--speculative-num-draft-tokens 2",
        ),
        (
            Speculation("dflash", 15, "org/head"),
            "--speculative-algorithm DFLASH --speculative-draft-model-path org/head --speculative-num-draft-tokens 16",
        ),
        (
            Speculation("dspark", 7),
            "--speculative-algorithm DSPARK --speculative-dspark-block-size 7 --speculative-num-draft-tokens 8",
        ),
    ],
)
def test_draft_tokens_are_one_less_than_the_verify_window(speculation: Speculation, flags: str) -> None:
    assert speculative(argv_of(speculation)) == flags.split()


@pytest.mark.usefixtures("installed")
def test_settings_of_the_profile_are_merged_and_its_args_come_last() -> None:
    own = {"ngram-max-bfs-breadth": 1, "speculative_ngram_match_type": "PROB", "token_map": None, "some_switch": True}
    argv = argv_of(NGRAM, speculation=own, args=["--attention-backend", "triton", "--random-seed", 7])
    assert speculative(argv)[4:] == [
        *("--speculative-ngram-max-bfs-breadth", "1", "--speculative-ngram-match-type", "PROB"),
        *("--speculative-some-switch", "--attention-backend", "triton", "--random-seed", "7"),
    ]
    tree = speculative(argv_of(DRAFT, speculation={"eagle_topk": 4, "num_draft_tokens": 16}))
    assert tree[4:] == [
        *("--speculative-num-steps", "3", "--speculative-eagle-topk", "4"),
        *("--speculative-num-draft-tokens", "16"),
    ]


@pytest.mark.usefixtures("installed")
def test_parallelism_tokenizer_and_environment() -> None:
    profile = Profile(
        "sglang", "sglang", "org/model", NONE, tokenizer="org/tokenizer", tensor_parallel=4, options={"env": {"A": 1}}
    )
    launch = Sglang(profile).launch(Capacity(8, 1024), 1)
    argv = list(launch.argv)
    assert argv[argv.index("--tokenizer-path") + 1] == "org/tokenizer"
    assert argv[argv.index("--tp-size") + 1] == "4"
    assert launch.env == {
        "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0",
        "SGLANG_SIMULATE_ACC_LEN": "-1",
        "A": "1",
    }
    assert launch.files == {}
    made_up = profile_of(env={"SGLANG_SIMULATE_ACC_LEN": 2.5})
    assert Sglang(made_up).launch(Capacity(8, 1024), 1).env["SGLANG_SIMULATE_ACC_LEN"] == "2.5"


def model_folder(folder: Path, **config: Any) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.usefixtures("installed")
def test_the_server_gets_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # It runs in a folder of its own.
    model_folder(tmp_path / "target", vocab_size=8)
    model_folder(tmp_path / "drafter", vocab_size=8)
    monkeypatch.chdir(tmp_path)
    profile = profile_of(Speculation("draft", 3, "drafter"), model="target")
    argv = list(Sglang(profile).launch(Capacity(8, 1024), 1).argv)
    assert argv[argv.index("--model-path") + 1] == str(tmp_path / "target")
    assert argv[argv.index("--speculative-draft-model-path") + 1] == str(tmp_path / "drafter")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("limit", "draft_limit", "length"),
    [
        (8192, 8192, 1024 + 4 + 2),  # the window of 4, and the scheduler's own 2
        (1027, 8192, 1027),
        (8192, 1027, 1027),
        (1024, 8192, 1024),
        (512, 8192, 1024),  # SGLang refuses that with a message of its own
        (8192, None, 1024),
    ],
)
def test_room_that_sglang_keeps_free_is_added_where_the_models_have_it(
    tmp_path: Path, limit: int, draft_limit: int | None, length: int
) -> None:
    target = model_folder(tmp_path / "target", text_config={"max_position_embeddings": limit})
    drafter = "org/drafter"
    if draft_limit is not None:
        drafter = model_folder(tmp_path / "drafter", max_position_embeddings=draft_limit)
    profile = profile_of(Speculation("draft", 3, drafter), model=target)
    argv = list(Sglang(profile).launch(Capacity(8, 1024), 1).argv)
    assert argv[argv.index("--context-length") + 1] == str(length)


# Where it is installed


def test_sglang_is_run_as_a_module_of_the_python_behind_its_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\necho 0.5.23\n")
    script = tmp_path / "sglang"
    script.write_text(f"#!{python}\n")
    for file in (python, script):
        file.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    argv = argv_of(NONE)
    assert argv[:3] == [str(python), "-m", "sglang.launch_server"]
    assert argv_of(NONE, python=str(python))[:3] == [str(python), "-m", "sglang.launch_server"]


def test_a_script_of_no_python_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "sglang"
    script.write_text("#!/bin/sh\necho sglang 0.5.23\n")
    script.chmod(0o755)
    assert problems_of(profile_of(NONE, executable=str(script))) == [
        f"sglang: {script} is no script of a Python; point engines.sglang.python of the profile to the Python that "
        "has sglang"
    ]


def test_a_version_below_the_oldest_is_refused(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\necho 0.5.15.post2\n")
    python.chmod(0o755)
    assert problems_of(profile_of(NONE, python=str(python))) == [
        "sglang: version 0.5.15.post2 is installed, but 0.5.16 is the oldest supported"
    ]


def test_a_python_without_sglang_is_refused() -> None:
    (problem,) = problems_of(profile_of(NONE, python=sys.executable))
    assert problem.startswith(f"sglang: {sys.executable} has no package sglang; install it there")


# Checks


def problems_of(profile: Profile) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Sglang(profile).check()
    return str(caught.value).splitlines()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("speculation", ALL_SPECULATION, ids=lambda s: s.method)
def test_check_accepts_every_method(speculation: Speculation) -> None:
    assert speculation.method in Sglang.methods
    Sglang(profile_of(speculation, port=8080, args=["--attention-backend", "triton", "--dtype=bfloat16"])).check()


def test_methods() -> None:
    assert Sglang.methods == tuple(s.method for s in ALL_SPECULATION)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("method", ["draft", "eagle", "eagle3", "dflash"])
def test_check_refuses_a_method_without_its_drafter(method: str) -> None:
    assert problems_of(profile_of(Speculation(method, 3))) == [f"sglang: method {method} needs a draft_model"]


@pytest.mark.usefixtures("installed")
def test_check_refuses_speculation_without_draft_tokens() -> None:
    assert problems_of(profile_of(Speculation("ngram", 0))) == ["sglang: method ngram needs draft_tokens of 1 or more"]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"threads": 3}, f"sglang has no option threads; it has {', '.join(OPTIONS)}"),
        ({"port": 0}, "sglang: option port must be a whole number from 1 to 65535, but is 0"),
        ({"args": "--dtype"}, "sglang: option args must be a list, but is '--dtype'"),
        ({"speculation": ["a"]}, "sglang: option speculation must be a mapping, but is ['a']"),
        ({"args": ["--port", 1]}, "sglang: args must not have --port: set the option port"),
        ({"args": ["--model=m"]}, "sglang: args must not have --model: set model of the profile"),
        ({"args": ["--max-run", 1]}, "sglang: args must not have --max-run: it follows from the highest concurrency"),
        (
            {"args": ["--stream-interval=8"]},
            "sglang: args must not have --stream-interval: several steps would come as one event",
        ),
        (
            {"args": ["--speculative-num-draft-tokens", 9]},
            "sglang: args must not have --speculative-num-draft-tokens: set draft_tokens of the profile",
        ),
        (
            {"speculation": {"num_steps": 2}},
            "sglang: option speculation must not have num_steps; set draft_tokens of the profile",
        ),
        (
            {"speculation": {"speculative-draft-model": "m"}},
            "sglang: option speculation must not have draft_model; set draft_model of the profile",
        ),
        (
            {"speculation": {"adaptive": True}},
            "sglang: option speculation must not have adaptive; it changes the draft tokens while running",
        ),
        (
            {"speculation": {"eagle_topk": 4}},
            "sglang: eagle_topk above 1 needs num_draft_tokens, the nodes of the tree and one",
        ),
        (
            {"speculation": {"num_draft_tokens": 9}},
            "sglang: option speculation must not have num_draft_tokens, which follows from draft_tokens of the "
            "profile; it is free only beside an eagle_topk above 1",
        ),
    ],
)
def test_check_refuses_options_that_cannot_be_used(options: dict[str, Any], problem: str) -> None:
    assert problems_of(profile_of(DRAFT, **options)) == [problem]
    # Options are checked for a server that someone else runs, too.
    assert problems_of(profile_of(DRAFT, base_url="http://host", **options)) == [problem]


@pytest.mark.usefixtures("installed")
def test_check_refuses_speculative_settings_without_speculation() -> None:
    assert problems_of(profile_of(NONE, speculation={"eagle_topk": 1})) == [
        "sglang: option speculation has settings, but the profile's method is none"
    ]


@pytest.mark.usefixtures("installed")
def test_flags_that_only_begin_alike_are_free() -> None:
    args = ["--enable-metrics-for-all-schedulers", "--speculative-draft-attention-backend", "fa3", "--", "--host-x"]
    Sglang(profile_of(DRAFT, args=args)).check()


def test_nothing_need_be_installed_for_a_server_that_runs() -> None:
    Sglang(profile_of(Speculation("draft", 3), base_url="http://host", python="/nowhere/python")).check()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("nested", [True, False])
def test_drafters_of_another_vocabulary_are_refused(tmp_path: Path, nested: bool) -> None:
    target = model_folder(
        tmp_path / "target", **({"text_config": {"vocab_size": 100}} if nested else {"vocab_size": 100})
    )
    drafter = model_folder(tmp_path / "drafter", vocab_size=101)
    assert problems_of(profile_of(Speculation("draft", 3, drafter), model=target)) == [
        "sglang: the model has a vocabulary of 100 and the draft model one of 101; method draft needs the same for both"
    ]
    # A head may have a smaller one; what is not here cannot be compared.
    Sglang(profile_of(Speculation("eagle3", 3, drafter), model=target)).check()
    Sglang(profile_of(Speculation("draft", 3, "org/drafter"), model=target)).check()
    same = model_folder(tmp_path / "same", vocab_size=100)
    Sglang(profile_of(Speculation("draft", 3, same), model=target)).check()


# What is constant, and what depends on the method


def test_ngram_remembers_other_requests() -> None:
    assert [s.method for s in ALL_SPECULATION if Sglang(profile_of(s)).remembers] == ["ngram"]
    assert all(Sglang(profile_of(s)).drafts_always for s in ALL_SPECULATION)


def test_port_and_tokenizer() -> None:
    assert profile_of().port is None
    assert profile_of(port=8080).port == 8080
    assert Sglang(profile_of()).tokenizer_source() == "org/model"


def test_sampling_is_spelled_out() -> None:
    sampling = Sampling(osl_cap=9, temperature=0.7, seed=5, ignore_eos=True)
    assert Sglang(profile_of()).body(TurnRequest("q", "c", 0, (7, 8), sampling)) == {
        "input_ids": [7, 8],
        "stream": True,
        "sampling_params": {
            "max_new_tokens": 9,
            "min_new_tokens": 0,
            "temperature": 0.7,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
            "repetition_penalty": 1.0,
            "ignore_eos": True,
            "skip_special_tokens": True,
            "sampling_seed": 5,
        },
    }


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error":{"message":"too long"}}', "too long"),
        (b'{"object":"error","message":"too long","code":400}', "too long"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b'{"detail":[{"loc":1}]}', '{"detail":[{"loc":1}]}'),
        (b'{"error":"too long"}', "too long"),
        (b"[1]", "[1]"),
        (b"<html>Bad Gateway</html>\n", "<html>Bad Gateway</html>"),
        (b"\xff" * 3, "\ufffd" * 3),
        (b"", ""),
        (b"x" * 900, "x" * 500),
    ],
)
def test_error_text(body: bytes, text: str) -> None:
    assert Sglang(profile_of()).error_text(body) == text


# The running server

INFO: dict[str, Any] = {
    "model_path": "org/model",
    "served_model_name": "speedbench",
    "host": "127.0.0.1",
    "port": 8123,
    "random_seed": 0,
    "dtype": "bfloat16",
    "context_length": 1030,
    "tp_size": 1,
    "attention_backend": "triton",
    "disable_radix_cache": True,
    "enable_metrics": True,
    "speculative_algorithm": "STANDALONE",
    "speculative_draft_model_path": "org/drafter",
    "speculative_num_steps": 3,
    "speculative_eagle_topk": 1,
    "speculative_num_draft_tokens": 4,
    "speculative_token_map": None,
    "speculative_adaptive": False,
    "internal_states": [{"last_gen_throughput": 123.4}],
    "max_total_num_tokens": 1449117,
    "version": "0.5.16",
}
MODEL = {"model_path": "org/model", "architectures": ["LlamaForCausalLM"], "is_generation": True}


def answering(answers: Mapping[str, object]) -> Fetch:
    def fetch(path: str) -> bytes:
        if path not in answers:
            raise EngineError(f"GET {path} of the engine answered HTTP 404")
        body = answers[path]
        return body if isinstance(body, bytes) else json.dumps(body).encode()

    return fetch


def server(**changed: Any) -> Fetch:
    return answering({"/server_info": {**INFO, **changed}, "/model_info": MODEL})


def test_describe() -> None:
    described = Sglang(profile_of()).describe(server())
    assert described.version == "0.5.16"
    assert described.resolved == {
        "model": "org/model",
        "draft_model": "org/drafter",
        "architectures": ["LlamaForCausalLM"],
        "dtype": "bfloat16",
        "context_length": 1030,
        "tp_size": 1,
        "attention_backend": "triton",
        "disable_radix_cache": True,
        "speculative_algorithm": "STANDALONE",
        "speculative_num_steps": 3,
        "speculative_eagle_topk": 1,
        "speculative_num_draft_tokens": 4,
        "speculative_adaptive": False,
    }
    json.dumps(described.resolved)


def test_equal_launches_are_described_alike() -> None:
    again = server(port=9999, random_seed=5, internal_states=[{}], max_total_num_tokens=1449000)
    assert Sglang(profile_of()).describe(again) == Sglang(profile_of()).describe(server())
    assert Sglang(profile_of()).describe(server(dtype="float16")) != Sglang(profile_of()).describe(server())


def test_older_names_of_the_routes_are_tried() -> None:
    older = answering({"/get_server_info": INFO, "/get_model_info": MODEL})
    assert Sglang(profile_of()).describe(older) == Sglang(profile_of()).describe(server())


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (
            {"/version": {"version": "0.24.0"}},
            "the server does not answer like SGLang: GET /server_info of the engine answered HTTP 404; "
            "GET /get_server_info of the engine answered HTTP 404",
        ),
        ({"/server_info": b"<html>"}, "does not answer like SGLang: /server_info is no JSON"),
        ({"/server_info": []}, "does not answer like SGLang: /server_info is no JSON object"),
        ({"/server_info": {"vllm_config": "x"}}, "does not answer like SGLang: its server info has no version"),
        ({"/server_info": INFO}, "GET /model_info of the engine answered HTTP 404"),
    ],
)
def test_servers_of_another_kind_are_named(answers: dict[str, object], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        Sglang(profile_of()).describe(answering(answers))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"version": "0.5.15"}, "^the server is SGLang 0.5.15, but 0.5.16 is the oldest supported$"),
        ({"version": "unknown"}, "^cannot read the server's version, 'unknown'$"),
        ({"served_model_name": "other"}, "serves 'other', not 'speedbench'; it is not the one that was started"),
        ({"disable_radix_cache": False}, "its prefix cache is on; start it with --disable-radix-cache"),
        ({"enable_metrics": False}, "it keeps no counters; start it with --enable-metrics"),
        (
            {"speculative_algorithm": None},
            r"the profile's method is draft \(STANDALONE\), but the server runs without speculation",
        ),
        (
            {"speculative_algorithm": "EAGLE3"},
            r"the profile's method is draft \(STANDALONE\), but the server runs EAGLE3",
        ),
        ({"speculative_num_steps": 5}, "the profile has 3 draft tokens, but the server drafts 5"),
        ({"speculative_adaptive": True}, "changes the number of draft tokens while running"),
    ],
)
def test_servers_that_cannot_be_measured_as_the_profile_says(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        Sglang(profile_of()).describe(server(**changed))


def test_a_server_that_someone_else_runs_may_have_any_name() -> None:
    Sglang(profile_of(base_url="http://host")).describe(server(served_model_name="other"))


def test_a_window_counts_the_known_token() -> None:
    ngram = {"speculative_algorithm": "NGRAM", "speculative_num_steps": 0, "speculative_num_draft_tokens": 6}
    Sglang(profile_of(NGRAM)).describe(server(**ngram))
    with pytest.raises(EngineError, match="the profile has 5 draft tokens, but the server drafts 4"):
        Sglang(profile_of(NGRAM)).describe(server(**{**ngram, "speculative_num_draft_tokens": 5}))
    with pytest.raises(EngineError, match="the profile has 5 draft tokens, but the server drafts None"):
        Sglang(profile_of(NGRAM)).describe(server(**{**ngram, "speculative_num_draft_tokens": None}))


def test_a_baseline_must_not_speculate() -> None:
    with pytest.raises(EngineError, match="the profile's method is none, but the server runs STANDALONE"):
        Sglang(profile_of(NONE)).describe(server())
    plain = {name: None for name in INFO if name.startswith("speculative_")}
    assert Sglang(profile_of(NONE)).describe(server(**plain)).resolved["draft_model"] is None


@pytest.mark.parametrize("reported", ["NEXTN", "EAGLE", "FROZEN_KV_MTP"])
def test_mtp_has_several_names(reported: str) -> None:
    speculation = Speculation("mtp", 3)
    Sglang(profile_of(speculation)).describe(server(speculative_algorithm=reported))


LABELS = 'engine_type="unified",model_name="speedbench"'
METRICS = f"""# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{{{LABELS},tp_rank="0"}} 0.0
sglang:num_running_reqs{{{LABELS},tp_rank="1"}} 0.0
sglang:num_queue_reqs{{{LABELS},tp_rank="0"}} 0.0
sglang:fwd_occupancy{{{LABELS},tp_rank="0"}} NaN
# TYPE sglang:prompt_tokens_total counter
sglang:prompt_tokens_total{{{LABELS},is_streaming="true"}} 9000.0
sglang:prompt_tokens_total{{{LABELS},is_streaming="false"}} 417.0
# TYPE sglang:generation_tokens_total counter
sglang:generation_tokens_total{{{LABELS}}} 1.6296e+04
# TYPE sglang:spec_verify_calls_total counter
sglang:spec_verify_calls_total{{{LABELS}}} 4357.0
"""


def metrics(text: str) -> Fetch:
    return answering({"/metrics": text.encode()})


def test_counters() -> None:
    expected = Counters(9417, 16296, steps=4357, drafts=4357, cached_tokens=0, preemptions=0)
    assert Sglang(profile_of()).counters(metrics(METRICS)) == expected
    plain = Counters(9417, 16296, cached_tokens=0, preemptions=0)
    assert Sglang(profile_of(NONE)).counters(metrics(METRICS)) == plain


def test_ranks_of_one_replica_count_once_and_cache_sources_add_up() -> None:
    more = METRICS + "".join(
        f'sglang:num_retracted_requests_total{{{LABELS},tp_rank="{rank}"}} 3.0\n' for rank in range(4)
    )
    more += "".join(f'sglang:cached_tokens_total{{{LABELS},cache_source="{s}"}} 5.0\n' for s in ("device", "host"))
    counters = Sglang(profile_of()).counters(metrics(more))
    assert (counters.preemptions, counters.cached_tokens) == (3, 10)


def test_nothing_was_counted_before_the_first_request() -> None:
    only_gauges = "\n".join(line for line in METRICS.splitlines() if "_total" not in line)
    assert Sglang(profile_of()).counters(metrics(only_gauges)) == Counters(
        0, 0, steps=0, drafts=0, cached_tokens=0, preemptions=0
    )


@pytest.mark.parametrize("ask", ["counters", "idle"])
def test_counters_that_are_off_are_not_zero(ask: str) -> None:
    engine = Sglang(profile_of())
    with pytest.raises(EngineError, match="HTTP 404; SGLang has counters only if started with --enable-metrics"):
        getattr(engine, ask)(answering({}))
    with pytest.raises(EngineError, match="no series of SGLang; was the server started with --enable-metrics"):
        getattr(engine, ask)(metrics("vllm:num_requests_running 0\n"))


@pytest.mark.parametrize(("line", "busy"), [(1, 2), (2, 1), (3, 4)])
def test_any_rank_or_queue_that_has_requests_is_not_idle(line: int, busy: int) -> None:
    engine, lines = Sglang(profile_of()), METRICS.splitlines()
    assert engine.idle(metrics(METRICS)) is True
    lines[line] = lines[line].replace(" 0.0", f" {busy}.0")
    assert engine.idle(metrics("\n".join(lines))) is False

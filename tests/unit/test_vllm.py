"""The vLLM adapter without a stream: launch, checks, request bodies, description, counters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.engines.base import Capacity, Profile, Sampling, Speculation, TurnRequest
from pytest_speedbench.engines.vllm import OPTIONS, Vllm
from pytest_speedbench.engines.vllm_speculation import VLLM_METHOD
from pytest_speedbench.errors import ConfigError, EngineError
from pytest_speedbench.measure.samples import Counters
from tests.emulator import vllm as emulator
from tests.emulator.schedule import Schedule
from tests.emulator.server import Request

Python = Callable[[str], str]


@pytest.fixture
def python(tmp_path: Path) -> Python:
    """A Python that has vLLM of a given version."""

    def make(version: str) -> str:
        path = tmp_path / f"python-{version}"
        path.write_text(f"#!/bin/sh\necho {version}\n")
        path.chmod(0o755)
        return str(path)

    return make


def engine_of(
    method: str = "none", k: int = 3, *, draft_model: str | None = None, base_url: str | None = None, **options: Any
) -> Vllm:
    speculation = Speculation() if method == "none" else Speculation(method, k, draft_model)
    return Vllm(Profile("vllm", "vllm", "org/target", speculation, base_url=base_url, options=options))


def argv_of(engine: Vllm) -> list[str]:
    return list(engine.launch(Capacity(max_batch_size=8, max_model_len=2048), 8123).argv)


def value_of(argv: list[str], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def spec_config(engine: Vllm) -> dict[str, Any]:
    config = json.loads(value_of(argv_of(engine), "--speculative-config"))
    assert isinstance(config, dict)
    return config


# Launch


def test_the_whole_command_line(python: Python) -> None:
    program = python("0.32.0")
    engine = engine_of("ngram", 5, python=program, args=["--dtype", "float32", "--seed", 7])
    engine.check()
    launch = engine.launch(Capacity(max_batch_size=8, max_model_len=2048), 8123)
    assert launch.argv == (
        *(program, "-m", "vllm.entrypoints.cli.main", "serve", "org/target"),
        *("--host", "127.0.0.1", "--port", "8123", "--served-model-name", "speedbench"),
        *("--max-num-seqs", "8", "--max-model-len", "2048", "--tensor-parallel-size", "1"),
        *("--no-enable-prefix-caching", "--generation-config", "vllm", "--seed", "0", "--stream-interval", "1"),
        "--disable-uvicorn-access-log",
        "--speculative-config",
        '{"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_min": 2, "prompt_lookup_max": 4}',
        *("--per-request-spec-decode-metrics", "detailed"),
        *("--dtype", "float32", "--seed", "7"),
    )
    assert launch.env == {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    assert launch.files == {}


def test_the_profiles_environment_wins(python: Python) -> None:
    engine = engine_of(python=python("0.24.0"), env={"DO_NOT_TRACK": 0, "VLLM_CPU_KVCACHE_SPACE": 1})
    launch = engine.launch(Capacity(1, 256), 8123)
    assert launch.env == {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}


def test_tensor_parallel_is_the_profiles(python: Python) -> None:
    profile = Profile("v", "vllm", "m", Speculation(), tensor_parallel=4, options={"python": python("0.24.0")})
    assert value_of(argv_of(Vllm(profile)), "--tensor-parallel-size") == "4"


@pytest.mark.parametrize(
    ("version", "method", "asked"),
    [
        ("0.24.0", "draft", False),
        ("0.31.9", "draft", False),
        ("0.32.0", "draft", True),
        ("0.32.0+cpu", "ngram", True),
        ("0.33.1", "eagle3", True),
        # vLLM refuses to start with the flag and without speculation.
        ("0.33.1", "none", False),
    ],
)
def test_metrics_per_request_are_asked_of_servers_that_have_them(
    python: Python, version: str, method: str, asked: bool
) -> None:
    draft_model = None if method in ("none", "ngram") else "org/draft"
    argv = argv_of(engine_of(method, draft_model=draft_model, python=python(version)))
    assert ("--per-request-spec-decode-metrics" in argv) is asked
    assert ("--speculative-config" in argv) is (method != "none")


@pytest.mark.parametrize(
    ("method", "draft_model", "config"),
    [
        ("draft", "org/d", {"method": "draft_model", "model": "org/d"}),
        ("pard", "org/d", {"method": "draft_model", "model": "org/d", "parallel_drafting": True}),
        ("eagle3", "org/d", {"method": "eagle3", "model": "org/d"}),
        ("mtp", None, {"method": "mtp"}),
        ("mtp", "org/d", {"method": "mtp", "model": "org/d"}),
        ("ngram_gpu", None, {"method": "ngram_gpu", "prompt_lookup_min": 2, "prompt_lookup_max": 4}),
        ("suffix", None, {"method": "suffix", "suffix_decoding_max_cached_requests": 0}),
    ],
)
def test_speculative_config(python: Python, method: str, draft_model: str | None, config: dict[str, Any]) -> None:
    engine = engine_of(method, 3, draft_model=draft_model, python=python("0.32.0"))
    assert spec_config(engine) == {**config, "num_speculative_tokens": 3}


def test_the_profiles_speculation_is_merged_and_wins(python: Python) -> None:
    engine = engine_of("suffix", 8, python=python("0.32.0"), speculation={"suffix_decoding_max_cached_requests": 50})
    assert spec_config(engine)["suffix_decoding_max_cached_requests"] == 50
    # vLLM takes the one that is missing from the other: a default beside it could contradict.
    engine = engine_of("ngram", 8, python=python("0.32.0"), speculation={"prompt_lookup_max": 1})
    assert spec_config(engine) == {"method": "ngram", "num_speculative_tokens": 8, "prompt_lookup_max": 1}


def test_local_folders_become_absolute(python: Python, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The server runs in a folder of its own.
    for name in ("target", "draft"):
        (tmp_path / name).mkdir()
    program = Path(python("0.32.0")).name
    monkeypatch.chdir(tmp_path)
    profile = Profile("v", "vllm", "target", Speculation("draft", 3, "draft"), options={"python": f"./{program}"})
    engine = Vllm(profile)
    argv = argv_of(engine)
    assert argv[0] == str(tmp_path / program)
    assert value_of(argv, "serve") == str(tmp_path / "target")
    assert spec_config(engine)["model"] == str(tmp_path / "draft")


@pytest.mark.parametrize(
    ("method", "speculation", "base_url", "always", "remembers"),
    [
        ("none", {}, None, False, False),
        ("ngram", {}, None, False, False),
        ("ngram_gpu", {}, None, False, False),
        *((method, {}, None, True, False) for method in VLLM_METHOD if method not in ("ngram", "ngram_gpu", "suffix")),
        ("draft", {"num_speculative_tokens_per_batch_size": [[1, 4, 3], [5, 64, 0]]}, None, False, False),
        ("draft", {"max_model_len": 512}, None, False, False),
        ("dspark", {"enable_adaptive_verification": True}, None, False, False),
        ("suffix", {}, None, False, False),
        ("suffix", {"suffix_decoding_max_cached_requests": 0}, None, False, False),
        ("suffix", {"suffix_decoding_max_cached_requests": 1}, None, False, True),
        # What someone else started has vLLM's default of 10000.
        ("suffix", {}, "http://host:1", False, True),
        ("suffix", {"suffix_decoding_max_cached_requests": 0}, "http://host:1", False, False),
    ],
)
def test_what_the_drafter_does(
    method: str, speculation: dict[str, Any], base_url: str | None, always: bool, remembers: bool
) -> None:
    engine = engine_of(method, base_url=base_url, speculation=speculation)
    assert engine.drafts_always is always
    assert engine.remembers is remembers


def test_port_and_tokenizer() -> None:
    assert engine_of()._profile.port is None
    assert engine_of(port=8080)._profile.port == 8080
    assert engine_of().tokenizer_source() == "org/target"


# Checks


def problems_of(engine: Vllm) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        engine.check()
    return str(caught.value).splitlines()


@pytest.mark.parametrize("version", ["0.22.1", "0.24.0", "0.32.0+cpu", "0.33.1", "1.0.0", "0.25.0rc1"])
def test_check_accepts_what_works(python: Python, version: str) -> None:
    engine_of(python=python(version), port=8080, args=["--dtype", "float32", "--model-impl", "vllm"]).check()


@pytest.mark.parametrize("version", ["0.22.0", "0.9.2"])
def test_check_refuses_an_old_version(python: Python, version: str) -> None:
    program = python(version)
    assert problems_of(engine_of(python=program)) == [
        f"vllm: {program} has version {version}; the oldest that is supported is 0.22.1"
    ]


@pytest.mark.parametrize("method", ["medusa", "mlp_speculator"])
def test_check_refuses_what_a_version_no_longer_has(python: Python, method: str) -> None:
    engine_of(method, draft_model="org/d", python=python("0.32.0")).check()
    assert problems_of(engine_of(method, draft_model="org/d", python=python("0.33.0"))) == [
        f"vllm: method {method} was removed in 0.33, and 0.33.0 is installed"
    ]


@pytest.mark.parametrize("method", ["draft", "pard", "eagle", "eagle3", "dflash", "medusa", "mlp_speculator"])
def test_check_wants_a_drafter(python: Python, method: str) -> None:
    assert problems_of(engine_of(method, python=python("0.32.0"))) == [f"vllm: method {method} needs a draft_model"]


@pytest.mark.parametrize("method", ["mtp", "dspark", "suffix", "ngram", "ngram_gpu"])
def test_check_wants_no_drafter_where_there_may_be_none(python: Python, method: str) -> None:
    engine_of(method, python=python("0.32.0")).check()


@pytest.mark.parametrize(
    ("args", "name", "reason"),
    [
        (["--enable-prefix-caching"], "--enable-prefix-caching", "a prompt from the cache is not measured"),
        (["--enable_prefix_caching"], "--enable-prefix-caching", "a prompt from the cache is not measured"),
        # argparse takes unique beginnings.
        (["--enable-prefix"], "--enable-prefix", "a prompt from the cache is not measured"),
        (["--disable-log-stats"], "--disable-log-stats", "without the counters no measurement can be checked"),
        (["--port=1"], "--port", "give engines.vllm.port instead"),
        (["-tp", "2"], "-tp", "give tensor_parallel of the profile instead"),
        (["--dtype", "half", "--stream-interval", "4"], "--stream-interval", "it joins the tokens of several steps"),
        (
            ["--speculative-config.method", "ngram"],
            "--speculative-config",
            "speculation of the profile and engines.vllm.speculation say how to speculate",
        ),
    ],
)
def test_check_refuses_contradicting_flags(python: Python, args: list[str], name: str, reason: str) -> None:
    assert problems_of(engine_of(python=python("0.32.0"), args=args)) == [f"vllm: args must not give {name}: {reason}"]
    attached = engine_of(base_url="http://host:1", args=args)
    assert problems_of(attached) == [f"vllm: args must not give {name}: {reason}"]


@pytest.mark.parametrize(
    "args", [["--per-request-spec-decode-metrics", "none"], ["--per_request_spec_decode_metrics=none"]]
)
def test_check_refuses_to_turn_the_metrics_off(python: Python, args: list[str]) -> None:
    (problem,) = problems_of(engine_of("ngram", python=python("0.32.0"), args=args))
    assert problem == "vllm: args must not turn --per-request-spec-decode-metrics off: steps are taken from it"
    engine_of("ngram", python=python("0.32.0"), args=["--per-request-spec-decode-metrics", "summary"]).check()


@pytest.mark.parametrize(
    ("method", "speculation", "problem"),
    [
        ("none", {"prompt_lookup_max": 4}, "option speculation is given, but the profile's method is none"),
        (
            "ngram",
            {"num_speculative_tokens": 4, "method": "suffix"},
            "option speculation must not set method, num_speculative_tokens: "
            "method, draft_model and draft_tokens of the profile do that",
        ),
        ("magic", {}, f"vllm has no method magic; it has none, {', '.join(VLLM_METHOD)}"),
    ],
)
def test_check_refuses_speculation_that_contradicts_the_profile(
    python: Python, method: str, speculation: dict[str, Any], problem: str
) -> None:
    (found,) = problems_of(engine_of(method, python=python("0.32.0"), speculation=speculation))
    assert found.removeprefix("vllm: ") == problem


@pytest.mark.parametrize("method", ["ngram", "ngram_gpu", "suffix"])
def test_check_refuses_a_drafter_that_nothing_uses(python: Python, method: str) -> None:
    engine = engine_of(method, draft_model="org/d", python=python("0.32.0"))
    assert problems_of(engine) == [f"vllm: method {method} takes no draft_model"]


def test_check_names_all_that_is_wrong_at_once(tmp_path: Path) -> None:
    problems = problems_of(engine_of(python=str(tmp_path / "gone"), colour="red", port="x"))
    assert problems[0] == f"vllm has no option colour; it has {', '.join(OPTIONS)}"
    assert problems[1] == "vllm: option port must be a whole number from 1 to 65535, but is 'x'"
    assert problems[2].startswith(f"vllm: cannot run the Python of the profile, {tmp_path / 'gone'}")
    assert len(problems) == 3


def test_an_attached_server_needs_no_installation(tmp_path: Path) -> None:
    engine_of("eagle3", base_url="http://host:1", python=str(tmp_path / "gone")).check()
    with pytest.raises(ConfigError, match="vllm has no option colour"):
        engine_of(base_url="http://host:1", colour="red").check()


def write_config(folder: Path, **config: Any) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_check_refuses_a_drafter_of_another_vocabulary(python: Python, tmp_path: Path) -> None:
    target = write_config(tmp_path / "t", text_config={"vocab_size": 49152})
    same = write_config(tmp_path / "s", vocab_size=49152)
    other = write_config(tmp_path / "o", vocab_size=32000)
    options = {"python": python("0.32.0")}

    def with_drafter(drafter: str, method: str = "draft", **more: Any) -> Vllm:
        return Vllm(Profile("v", "vllm", target, Speculation(method, 3, drafter), options={**options, **more}))

    with_drafter(same).check()
    with_drafter("org/unknown").check()
    with_drafter(other, speculation={"use_heterogeneous_vocab": True}).check()
    # Heads of the EAGLE family have vocabularies of their own.
    with_drafter(other, "eagle3").check()
    assert problems_of(with_drafter(other)) == [
        "vllm: the target has a vocabulary of 49152 tokens and the draft model one of 32000; "
        "a draft model must share the target's"
    ]


# Bodies


def test_sampling_is_spelled_out() -> None:
    sampling = Sampling(osl_cap=9, temperature=0.7, seed=5, ignore_eos=True)
    assert engine_of().body(TurnRequest("q", "c", 0, (7, 8), sampling)) == {
        "model": "speedbench",
        "prompt": [7, 8],
        "add_special_tokens": False,
        "n": 1,
        "max_tokens": 9,
        "ignore_eos": True,
        "temperature": 0.7,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "seed": 5,
        "skip_special_tokens": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }


# The running server


def fetcher(app: emulator.Vllm) -> Callable[[str], bytes]:
    def fetch(path: str) -> bytes:
        response = app.plain(Request(-1, "GET", path, {}))
        if response.status != 200:
            raise EngineError(f"GET {path} of the engine answered HTTP {response.status}")
        return response.body

    return fetch


def server(**options: Any) -> emulator.Vllm:
    return emulator.Vllm(lambda request: Schedule.of(4, draft=0), **options)


def test_describe() -> None:
    engine = engine_of("draft", 3, draft_model="org/d")
    description = engine.describe(fetcher(server(version="0.24.0", draft_tokens=3)))
    assert description.version == "0.24.0"
    assert description.resolved == {
        "model": "m",
        "max_model_len": 4096,
        "prefix_caching": "False",
        "kv_cache_dtype": "auto",
        "block_size": None,
        "draft_tokens": 3,
        "speculative_config": {"method": "draft_model", "num_speculative_tokens": 3, "model": "org/d"},
    }
    assert json.loads(json.dumps(description.resolved)) == description.resolved


def test_describe_is_the_same_for_equal_launches() -> None:
    busy = server()
    busy.totals[0].output = busy.running = 17
    assert engine_of().describe(fetcher(busy)) == engine_of().describe(fetcher(server()))


def test_an_attached_servers_model_is_asked_for() -> None:
    engine = engine_of(base_url="http://host:1")
    engine.describe(fetcher(server(served="smol")))
    assert engine.body(TurnRequest("q", "c", 0, (1,), Sampling(osl_cap=1)))["model"] == "smol"


def test_of_several_names_the_profiles_is_taken() -> None:
    cards = [{"id": name, "owned_by": "vllm"} for name in ("lora", "org/target")]
    pages = {"/version": {"version": "0.33.0"}, "/v1/models": {"data": cards}}

    def fetch(path: str) -> bytes:
        return json.dumps(pages[path]).encode() if path in pages else b""

    engine = engine_of(base_url="http://host:1")
    assert engine.describe(fetch).resolved["model"] == "org/target"
    assert engine.body(TurnRequest("q", "c", 0, (1,), Sampling(osl_cap=1)))["model"] == "org/target"


@pytest.mark.parametrize(
    ("options", "method", "message"),
    [
        (
            {"served": "other"},
            "none",
            "another server answers on the port: it serves other, but speedbench was started",
        ),
        (
            {"owned_by": "sglang"},
            "none",
            "the server that was started is not vLLM: GET /v1/models says that its models are owned by sglang",
        ),
        (
            {"version": "0.19.1"},
            "none",
            "vllm: the server that was started is version 0.19.1; the oldest that is supported is 0.22.1",
        ),
        ({"version": "main"}, "none", "the server that was started has a version that cannot be read: 'main'"),
        (
            {"prefix_caching": True},
            "none",
            "the server that was started has prefix caching on, which hides work; "
            "start it with --no-enable-prefix-caching",
        ),
        (
            {"draft_tokens": 5},
            "ngram",
            "the server that was started drafts up to 5 tokens per step, but the profile says 3",
        ),
    ],
)
def test_describe_refuses(options: dict[str, Any], method: str, message: str) -> None:
    with pytest.raises(EngineError) as caught:
        engine_of(method).describe(fetcher(server(**options)))
    assert str(caught.value) == message


def test_describe_names_a_server_of_another_engine() -> None:
    def missing(path: str) -> bytes:
        raise EngineError(f"GET {path} of the engine answered HTTP 404")

    engine = engine_of(base_url="http://host:1")
    with pytest.raises(EngineError) as caught:
        engine.describe(missing)
    assert str(caught.value) == (
        "the server at http://host:1 does not answer like vLLM: GET /version of the engine answered HTTP 404"
    )
    with pytest.raises(EngineError, match=r"does not answer like vLLM: GET /version gave something else \(JSON"):
        engine.describe(lambda path: b"<html>")
    with pytest.raises(EngineError, match=r"does not answer like vLLM: GET /version gave something else \(KeyError"):
        engine.describe(lambda path: b"{}")


def counted(app: emulator.Vllm, method: str = "draft") -> Counters:
    return engine_of(method).counters(fetcher(app))


def test_counters_are_summed_over_engines() -> None:
    app = server(draft_tokens=3, engines=2)
    app.totals[0] = emulator.Totals(prompt=10, output=20, steps=7, drafts=6, drafted=18, accepted=11)
    app.totals[1] = emulator.Totals(prompt=100, output=200, steps=70, drafts=60, drafted=180, accepted=110)
    assert counted(app) == Counters(110, 220, 77, 66, 198, 121, cached_tokens=0, preemptions=0)


def test_series_that_are_not_there_yet_are_zero_only_with_speculation() -> None:
    assert counted(server()) == Counters(0, 0, 0, 0, 0, 0, 0, 0)
    assert counted(server(draft_tokens=3, series_late=True)) == Counters(0, 0, 0, 0, 0, 0, 0, 0)
    assert counted(server(), "none") == Counters(0, 0, 0, None, None, None, 0, 0)
    assert counted(server(draft_tokens=3), "none") == Counters(0, 0, 0, None, None, None, 0, 0)


def test_drafts_that_nobody_asked_for_are_told() -> None:
    app = server(draft_tokens=3, lies={"spec_decode_num_drafts_total": 2, "spec_decode_num_draft_tokens_total": 6})
    assert counted(app, "none") == Counters(0, 0, 0, 2, 6, 0, 0, 0)


@pytest.mark.parametrize(
    ("step_counter", "steps"),
    [(emulator.STEP_COUNTER, 5), ("time_per_output_token_seconds_count", 5), (None, None)],
)
def test_the_step_counter_has_two_names_and_may_be_missing(step_counter: str | None, steps: int | None) -> None:
    app = server(step_counter=step_counter)
    app.totals[0].steps = 5
    assert counted(app).steps == steps


def test_counters_say_which_flag_hides_them() -> None:
    app = server(log_stats=False)
    with pytest.raises(EngineError) as caught:
        counted(app)
    assert str(caught.value) == (
        "the server that was started has no vllm:prompt_tokens_total and no vllm:generation_tokens_total in /metrics; "
        "it must not be started with --disable-log-stats"
    )
    with pytest.raises(EngineError, match="no vllm:num_requests_running and no vllm:num_requests_waiting"):
        engine_of().idle(fetcher(app))


def test_cached_tokens_and_preemptions_are_told() -> None:
    counters = counted(server(lies={"prefix_cache_hits_total": 16, "num_preemptions_total": 1}))
    assert (counters.cached_tokens, counters.preemptions) == (16, 1)


@given(st.integers(0, 3), st.integers(0, 3))
def test_idle(running: int, waiting: int) -> None:
    app = server(lies={"num_requests_waiting": waiting})
    app.running = running
    assert engine_of().idle(fetcher(app)) is (running + waiting == 0)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}', "too long"),
        (b'{"error":"too long"}', "too long"),
        (b"<html>Bad Gateway</html>\n", "<html>Bad Gateway</html>"),
        (b"x" * 900, "x" * 500),
    ],
)
def test_error_text(body: bytes, text: str) -> None:
    assert engine_of().error_text(body) == text

"""Events of ``/completion`` to turns, against scripts of known truth; and the rest of the adapter."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_speedbench.engines import embedded, registry
from pytest_speedbench.engines.base import Capacity, Profile, Sampling, Speculation, TurnRequest
from pytest_speedbench.engines.llamacpp import OPTIONS, LlamaCpp
from pytest_speedbench.errors import ConfigError, EngineError, RequestError
from pytest_speedbench.measure.checks import problems
from pytest_speedbench.measure.samples import Client, Counters, Turn, Window
from tests.emulator.llamacpp import EOS, Script
from tests.unit.test_measure_samples import CODING, known, steps_of

K = 4
PROMPT = [1, 2, 3]


def engine_of(method: str = "draft", **options: Any) -> LlamaCpp:
    k = 0 if method == "none" else K
    return LlamaCpp(Profile("llamacpp", "llamacpp", "m.gguf", Speculation(method, k), options=options))


def request(cap: int = 256, ids: list[int] = PROMPT) -> TurnRequest:
    return TurnRequest("q1", "coding", 1, ids, Sampling(osl_cap=cap))


def decode(script: Script, *, method: str = "draft", cap: int | None = None) -> Turn:
    """The turn of a script. A reply without EOS ends at its cap, as with the real server."""
    if cap is None:
        cap = script.output_tokens + 64 if script.eos else script.output_tokens
    decoder = engine_of(method).decoder(request(cap))
    for number, event in enumerate(script.events(PROMPT)):
        decoder.event(json.dumps(event).encode(), 1000 + number)
    return decoder.finish(500)


def truth(script: Script) -> tuple[int, int, int]:
    return len(script.steps), script.accepted, script.drafted


def found(turn: Turn) -> tuple[int, int, int]:
    steps = steps_of(turn)
    return steps.count, known(steps.accepted), known(steps.drafted)


def test_a_turn_in_full() -> None:
    # 1 prefill token, steps of 5, 1 and 3 tokens, EOS as the last of them.
    script = Script(b"abcdefghi", ((4, 4), (4, 0), (4, 2)), eos=True)
    turn = decode(script)
    assert (turn.question_id, turn.category, turn.index) == ("q1", "coding", 1)
    assert (turn.prompt_tokens, turn.output_tokens, turn.finish) == (3, 10, "stop")
    assert steps_of(turn).lengths == (5, 1, 3)
    assert (steps_of(turn).accepted, steps_of(turn).drafted, steps_of(turn).cut) == (6, 12, 0)
    assert turn.text == "abcdefghi"
    assert turn.output_ids == (*b"abcdefghi", EOS)
    assert turn.start_ns == 500
    assert turn.event_ns == tuple(range(1000, 1010))
    assert turn.event_tokens == (1,) * 10
    assert turn.step_ns == (1000, 1001, 1006, 1007)


def test_hidden_tokens_are_counted_with_the_event_that_shows_them() -> None:
    # é is two bytes, 湖 three: tokens 1, 3 and 4 are never sent.
    script = Script("é湖!".encode(), ((4, 4),))
    turn = decode(script)
    assert script.hidden == 3
    assert turn.text == "é湖!"
    assert turn.output_tokens == 6
    assert turn.event_tokens == (2, 3, 1)
    assert turn.output_ids is None
    assert found(turn) == truth(script)


def test_cut_at_eos() -> None:
    turn = decode(Script(b"ab", ((4, 0), (4, 4)), eos=True, cut=4))
    assert turn.output_tokens == 3
    assert steps_of(turn).lengths == (1, 5)
    assert steps_of(turn).cut == 4


def test_a_cut_behind_hidden_tokens_is_no_longer_than_a_draft() -> None:
    # Tokens 2 to 4 are hidden; two steps start among them, which accepted 6 drafts together.
    turn = decode(Script("a😀".encode(), ((4, 2), (4, 4)), eos=True, cut=3), method="ngram")
    assert steps_of(turn).cut == 3
    assert steps_of(turn).count == 2


def test_what_was_cut_is_the_last_step() -> None:
    # Where the draft that reaches EOS starts is hidden. A step of one token cannot have been cut.
    turn = decode(Script("👩‍🚀".encode(), ((4, 0),) * 8 + ((4, 2),), eos=True), method="ngram")
    assert steps_of(turn).cut == 1
    assert steps_of(turn).lengths[-1] == 0


@st.composite
def scripts(draw: st.DrawFn) -> tuple[Script, str]:
    """A script as the real server can produce it, and the method."""
    method = draw(st.sampled_from(["draft", "ngram", "none"]))
    alphabet = st.sampled_from(["a", "b", " ", "é", "湖", "😀", "👩‍🚀"])
    reply = "".join(draw(st.lists(alphabet, min_size=1, max_size=12))).encode()
    eos = draw(st.booleans())
    left, steps = len(reply) + eos - 1, list[tuple[int, int]]()
    while left > 0:
        most = K if eos else min(K, left - 1)
        drafted = {"draft": most, "none": 0}.get(method)
        if drafted is None:
            drafted = draw(st.integers(0, most))
        steps.append((drafted, draw(st.integers(0, drafted))))
        left -= steps[-1][1] + 1
    return Script(reply, tuple(steps), eos=eos, cut=-left), method


@settings(max_examples=400)
@given(scripts())
def test_truth_is_recovered(case: tuple[Script, str]) -> None:
    script, method = case
    turn = decode(script, method=method)
    assert (turn.text or "").encode() == script.reply
    assert (turn.output_tokens, steps_of(turn).accepted, steps_of(turn).drafted) == (
        script.output_tokens,
        script.accepted,
        script.drafted,
    )
    assert turn.finish == ("stop" if script.eos else "length")
    assert sum(turn.event_tokens) == turn.output_tokens
    if script.hidden == 0:
        assert steps_of(turn).lengths == script.lengths
        assert steps_of(turn).cut == script.cut
        assert turn.output_ids == (*script.reply, *([EOS] if script.eos else []))
        assert -1 not in turn.step_ns
    else:
        assert turn.output_ids is None
    if method == "draft" or not script.eos or not script.hidden:
        assert steps_of(turn).count == len(script.steps)
        claimed = Counter(length for length in steps_of(turn).lengths if length)
        assert not claimed - Counter(script.lengths)
    else:
        # An n-gram draft of unknown start that was cut at EOS: never fewer steps than there were.
        assert steps_of(turn).count >= len(script.steps)


@settings(max_examples=100)
@given(st.lists(scripts().map(lambda case: case[0]), min_size=1, max_size=4))
def test_decoded_turns_pass_every_check(several: list[Script]) -> None:
    turns = [decode(script, method="ngram") for script in several]
    window = Window(
        cell=CODING,
        planned=tuple((f"q{i}", 1) for i in range(len(turns))),
        turns=tuple(
            Turn(**{f: getattr(t, f) for f in Turn.__dataclass_fields__} | {"question_id": f"q{i}", "index": 0})
            for i, t in enumerate(turns)
        ),
        failures=(),
        counters=Counters(
            prompt_tokens=3 * len(turns),
            output_tokens=sum(s.output_tokens for s in several),
            drafts=sum(s.drafts for s in several),
            drafted=sum(s.drafted for s in several),
            accepted=sum(s.accepted for s in several),
        ),
        client=Client(0.0, 0.1),
    )
    codes = {reason.code for reason in problems(window, speculation=True, draft_tokens=K)}
    assert codes <= {"no_speculation"}


# Refusals


@pytest.mark.parametrize(
    ("final", "reason", "message"),
    [
        ({"truncated": True}, "truncated", "truncated the prompt"),
        ({"stop_type": "word"}, "unknown_stop", "stopped for 'word'"),
        ({"stop_type": "none"}, "unknown_stop", "stopped for 'none'"),
        ({"timings.cache_n": 2}, "prefix_cache", "2 of 3 prompt tokens came from a cache"),
        ({"timings.prompt_n": 4}, "prompt_changed", "3 prompt tokens were sent and 4 were processed"),
    ],
)
def test_refused_answers(final: dict[str, Any], reason: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        decode(Script(b"ab", ((0, 0),), final=final))
    assert caught.value.reason == reason


def test_a_stream_without_its_end_is_cut() -> None:
    decoder = engine_of().decoder(request())
    for event in Script(b"ab", ((0, 0),)).events(PROMPT)[:-1]:
        decoder.event(json.dumps(event).encode(), 1)
    with pytest.raises(RequestError, match="without its closing event") as caught:
        decoder.finish(0)
    assert caught.value.reason == "stream_cut"


def test_a_reply_of_hidden_tokens_alone_cannot_be_timed() -> None:
    with pytest.raises(RequestError, match="3 tokens were generated but none was streamed") as caught:
        decode(Script("😀".encode()[:3], ((0, 0), (0, 0))))
    assert caught.value.reason == "no_tokens"


def test_an_error_event_carries_the_servers_message() -> None:
    decoder = engine_of().decoder(request())
    with pytest.raises(RequestError, match=r"^slot exploded$") as caught:
        decoder.event(b'{"error":{"code":500,"message":"slot exploded"}}', 1)
    assert caught.value.reason == "error_event"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error":{"code":400,"message":"too long"}}', "too long"),
        (b'{"error":"too long"}', "too long"),
        (b"<html>Bad Gateway</html>\n", "<html>Bad Gateway</html>"),
        (b"\xff" * 3, "\ufffd" * 3),
        (b"", ""),
        (b"x" * 900, "x" * 500),
    ],
)
def test_error_text(body: bytes, text: str) -> None:
    assert engine_of().error_text(body) == text


# Requests, counters, description


def test_sampling_is_spelled_out() -> None:
    sampling = Sampling(osl_cap=9, temperature=0.7, seed=5, ignore_eos=True)
    body = engine_of().body(TurnRequest("q", "c", 0, (7, 8), sampling))
    assert (body["prompt"], body["n_predict"], body["temperature"], body["seed"]) == ([7, 8], 9, 0.7, 5)
    assert (body["top_k"], body["top_p"], body["min_p"], body["ignore_eos"]) == (0, 1.0, 0.0, True)
    assert (body["stream"], body["return_tokens"], body["timings_per_token"]) == (True, True, True)
    assert body["cache_prompt"] is False
    assert engine_of().body(request())["top_k"] == 1


METRICS = b"""# HELP llamacpp:prompt_tokens_total x
llamacpp:prompt_tokens_total 30
llamacpp:tokens_predicted_total 80
llamacpp:spec_decode_num_drafts_total 20
llamacpp:spec_decode_num_draft_tokens_total 80
llamacpp:spec_decode_num_accepted_tokens_total 50
llamacpp:spec_decode_num_accepted_tokens_per_pos_total{position="0"} 30
llamacpp:spec_decode_num_accepted_tokens_per_pos_total{position="1"} 20
"""


def test_counters() -> None:
    assert engine_of().counters(lambda path: METRICS) == Counters(
        prompt_tokens=30, output_tokens=80, drafts=20, drafted=80, accepted=50
    )
    assert engine_of().counters(lambda path: b"llamacpp:prompt_tokens_total 30\n") == Counters(
        prompt_tokens=30, output_tokens=0, drafts=0, drafted=0, accepted=0
    )


@pytest.mark.parametrize(
    ("printed", "slack"),
    [
        ("999999", 0),
        ("1e+06", 10),
        ("1.23457e+06", 10),
        ("9.99999e+06", 10),
        ("1e+07", 100),
        ("4.5e+08", 1000),
    ],
)
def test_totals_beyond_a_million_are_printed_rounded(printed: str, slack: int) -> None:
    text = f"llamacpp:prompt_tokens_total 30\nllamacpp:tokens_predicted_total {printed}\n".encode()
    counters = engine_of().counters(lambda path: text)
    assert (counters.output_tokens, counters.slack) == (int(float(printed)), slack)


@given(st.integers(0, 10**10))
def test_no_total_is_off_by_more_than_the_slack(total: int) -> None:
    # The server prints as C++ streams do by default: "%g".
    text = f"llamacpp:tokens_predicted_total {total:g}\n".encode()
    counters = engine_of().counters(lambda path: text)
    assert abs(known(counters.output_tokens) - total) <= counters.slack


def test_the_engine_as_the_rest_of_the_plugin_sees_it() -> None:
    for method in ("none", "ngram", "draft"):
        engine = engine_of(method)
        # Only a draft model drafts at every step; neither drafter knows other requests.
        assert engine.drafts_always == (method == "draft")
        assert not engine.remembers
    # One pool for all requests.
    assert engine_of("ngram_mod").remembers
    assert LlamaCpp.ready_paths == ("/health",)
    assert LlamaCpp.flush_path is None
    assert LlamaCpp.counters_poll_s is None


@pytest.mark.parametrize(("processing", "deferred", "idle"), [(0, 0, True), (1, 0, False), (0, 1, False)])
def test_idle(processing: int, deferred: int, idle: bool) -> None:
    text = f"llamacpp:requests_processing {processing}\nllamacpp:requests_deferred {deferred}\n".encode()
    assert engine_of().idle(lambda path: text) is idle


# Launch and checks


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "some.gguf"
    path.write_bytes(b"GGUF" + bytes(12))
    return path


def profile_of(model: Path, *, draft_model: Path | None = None, **options: Any) -> Profile:
    speculation = Speculation("draft", K, None if draft_model is None else str(draft_model))
    return Profile("llamacpp", "llamacpp", str(model), speculation, options=options)


def test_launch_writes_one_config_file(model: Path) -> None:
    options: dict[str, Any] = {
        "threads": 3,
        "params": {"n_batch": 64},
        "args": ["n_ubatch=32", "log=a=b"],
        "env": {"A": 1},
    }
    engine = registry.create(profile_of(model, **options))
    launch = engine.launch(Capacity(max_batch_size=8, max_model_len=1024), 8123)
    config = json.loads(launch.files["server.json"])
    assert launch.argv[1:] == (str(Path(embedded.__file__).with_name("llamacpp_server.py")), "server.json")
    assert launch.env == {"A": "1"}
    assert (config["model"], config["draft_model"]) == (str(model), str(model))
    assert (config["host"], config["port"], config["threads"]) == ("127.0.0.1", 8123, 3)
    assert (config["max_batch_size"], config["max_model_len"]) == (8, 1024)
    assert (config["method"], config["draft_tokens"]) == ("draft", K)
    assert config["params"] == {"n_batch": 64, "n_ubatch": 32, "log": "a=b"}


def test_the_server_gets_absolute_paths(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # It runs in a folder of its own.
    monkeypatch.chdir(model.parent)
    launch = registry.create(profile_of(Path(model.name))).launch(Capacity(1, 256), 8123)
    assert json.loads(launch.files["server.json"])["model"] == str(model)


@pytest.mark.parametrize(
    ("method", "drafter"),
    [("none", None), ("ngram", None), ("ngram_mod", None), ("mtp", None), ("dspark", None), ("draft", "itself")],
)
def test_only_a_draft_model_that_is_not_named_is_the_target_itself(
    model: Path, method: str, drafter: str | None
) -> None:
    profile = Profile("llamacpp", "llamacpp", str(model), Speculation(method, 0 if method == "none" else K))
    config = json.loads(LlamaCpp(profile).launch(Capacity(1, 256), 8123).files["server.json"])
    assert config["draft_model"] == (str(model) if drafter else None)


@pytest.mark.parametrize("method", ["eagle3", "dflash"])
def test_methods_that_need_a_drafter_say_so(model: Path, method: str) -> None:
    profile = Profile("llamacpp", "llamacpp", str(model), Speculation(method, K))
    assert problems_of(profile) == [f"llamacpp: method {method} needs a drafter; give --speedbench-draft-model"]
    LlamaCpp(replace(profile, speculation=Speculation(method, K, str(model)))).check()


def problems_of(profile: Profile) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        LlamaCpp(profile).check()
    return str(caught.value).splitlines()


def test_check_names_all_that_is_wrong_at_once(tmp_path: Path) -> None:
    profile = profile_of(tmp_path / "gone.gguf", python=str(tmp_path / "python"), colour="red")
    unknown, python, model = problems_of(profile)
    assert unknown == f"llamacpp has no option colour; it has {', '.join(OPTIONS)}"
    assert python.startswith(f"llamacpp: cannot run the Python of the profile, {tmp_path / 'python'}")
    assert model == f"llamacpp: model {tmp_path / 'gone.gguf'} does not exist; give a .gguf file"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"port": "8080"}, "option port must be a whole number from 1 to 65535, but is '8080'"),
        ({"port": 70000}, "option port must be a whole number from 1 to 65535, but is 70000"),
        ({"port": True}, "option port must be a whole number from 1 to 65535, but is True"),
        ({"threads": 0}, "option threads must be a whole number from 1 to 1024, but is 0"),
        ({"ngram_lookup": 2.5}, "option ngram_lookup must be a whole number from 1 to 1024, but is 2.5"),
        ({"params": ["a"]}, "option params must be a mapping, but is ['a']"),
        ({"env": "A=1"}, "option env must be a mapping, but is 'A=1'"),
        ({"args": "a=1"}, "option args must be a list, but is 'a=1'"),
        ({"args": ["n_batch"]}, "engine argument 'n_batch': give FIELD=VALUE, a field of CommonParams"),
    ],
)
def test_check_refuses_values_that_cannot_be_used(model: Path, options: dict[str, Any], problem: str) -> None:
    assert problems_of(profile_of(model, **options)) == [f"llamacpp: {problem}"]


def test_check_refuses_damaged_models(model: Path) -> None:
    text = model.with_name("text.gguf")
    text.write_text("version https://git-lfs")
    assert problems_of(profile_of(text)) == [
        f"llamacpp: model {text} is no GGUF file: it begins with b'vers' instead of b'GGUF'"
    ]
    assert problems_of(profile_of(model, draft_model=text))[0].startswith(f"llamacpp: draft model {text} is no GGUF")
    damaged = model.with_name(embedded.MODEL_FILE)
    damaged.write_bytes(b"GGUF" + bytes(100))
    assert "is damaged: sha256" in problems_of(profile_of(damaged))[0]


def test_check_refuses_a_python_without_xllamacpp(model: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)
    assert problems_of(profile_of(model, python=str(python))) == [
        f"llamacpp: {python} has no package xllamacpp; run pip install 'pytest-speedbench[llamacpp]', "
        "or point engines.llamacpp.python of the profile to a Python that has it"
    ]
    python.write_text("#!/bin/sh\necho broken >&2\necho libpython is gone >&2\nexit 1\n")
    assert problems_of(profile_of(model, python=str(python))) == [
        f"llamacpp: the Python of the profile, {python}, exited with code 1: libpython is gone"
    ]


def test_check_of_a_server_that_someone_else_runs_needs_nothing_here(tmp_path: Path) -> None:
    attached = replace(profile_of(tmp_path / "gone.gguf", python="/no/python"), base_url="http://127.0.0.1:8080")
    LlamaCpp(attached).check()
    wrong = replace(attached, options={"threads": 0, "colour": "red"})
    assert problems_of(wrong) == [
        f"llamacpp has no option colour; it has {', '.join(OPTIONS)}",
        "llamacpp: option threads must be a whole number from 1 to 1024, but is 0",
    ]


def test_a_server_that_someone_else_runs_tells_its_own_version() -> None:
    props = b'{"total_slots": 4, "default_generation_settings": {"n_ctx": 4096}, "build_info": "b6000-abc"}'
    assert engine_of().describe(lambda path: props).version == "b6000-abc"


def test_check_accepts_what_works(model: Path) -> None:
    LlamaCpp(profile_of(model, port=8080, threads=2, args=["n_batch=64"])).check()


def test_port_is_the_profiles_or_any() -> None:
    assert engine_of()._profile.port is None
    assert engine_of(port=8080)._profile.port == 8080


def test_registry_lists_the_choices() -> None:
    registry.require("llamacpp")
    assert set(registry.NAMES) == {"llamacpp", "sglang", "trtllm", "vllm"}
    with pytest.raises(ConfigError, match=f"^unknown engine 'llama'; choose from {', '.join(registry.NAMES)}$"):
        registry.require("llama")
    for name in registry.NAMES:
        registry.require(name)
        assert registry.methods(name)[0] == "none"
    assert registry.methods("llamacpp") == (
        *("none", "ngram", "ngram_map_k", "ngram_map_k4v", "ngram_mod"),
        *("draft", "eagle3", "mtp", "dflash", "dspark"),
    )


def test_fetch_errors_reach_the_caller() -> None:
    def fetch(path: str) -> bytes:
        raise EngineError(f"GET {path} failed")

    with pytest.raises(EngineError, match="GET /metrics failed"):
        engine_of().counters(fetch)
    with pytest.raises(EngineError, match="GET /props failed"):
        engine_of().describe(fetch)

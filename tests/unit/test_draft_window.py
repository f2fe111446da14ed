"""k draft tokens of a profile are k drafts for every engine, whatever its flag counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.engines import registry
from pytest_speedbench.engines.base import Capacity, Launch, Profile, Speculation
from pytest_speedbench.engines.draft_window import EXTRA_SLOTS, drafts_of, flag_value
from pytest_speedbench.engines.sglang_speculation import METHODS as SGLANG_METHODS
from pytest_speedbench.engines.sglang_speculation import mismatch

Python = Callable[[str], str]
CHAIN = [name for name, method in SGLANG_METHODS.items() if method.chain]
WINDOW = [name for name, method in SGLANG_METHODS.items() if not method.chain]


@pytest.fixture
def python(tmp_path: Path) -> Python:
    """A Python that has a given version of whatever it is asked for."""

    def make(version: str) -> str:
        path = tmp_path / f"python-{version}"
        path.write_text(f"#!/bin/sh\necho {version}\n")
        path.chmod(0o755)
        return str(path)

    return make


def launch_of(engine: str, method: str, k: int, **options: Any) -> Launch:
    speculation = Speculation(method, k, "org/drafter" if method != "ngram" else None)
    profile = Profile(engine, engine, "org/model", speculation, options=options)
    return registry.create(profile).launch(Capacity(max_batch_size=8, max_model_len=1024), 8123)


def value_of(launch: Launch, flag: str) -> str:
    assert launch.argv.count(flag) == 1
    return launch.argv[launch.argv.index(flag) + 1]


def active(engine: str) -> list[str]:
    return [method for method in registry.methods(engine) if method != "none"]


# The table


def test_every_engine_is_in_the_table() -> None:
    assert set(EXTRA_SLOTS) == set(registry.NAMES)


@pytest.mark.parametrize(
    ("engine", "draft_tokens", "flag"),
    [
        *(("vllm", 1, 1), ("vllm", 5, 5)),
        *(("trtllm", 1, 1), ("trtllm", 5, 5)),
        *(("llamacpp", 1, 1), ("llamacpp", 5, 5)),
        *(("sglang", 1, 2), ("sglang", 5, 6)),
    ],
)
def test_the_flag_of_an_engine(engine: str, draft_tokens: int, flag: int) -> None:
    assert flag_value(engine, draft_tokens) == flag
    assert drafts_of(engine, flag) == draft_tokens


@given(st.sampled_from(registry.NAMES), st.integers(0, 1000))
def test_back_again(engine: str, draft_tokens: int) -> None:
    assert drafts_of(engine, flag_value(engine, draft_tokens)) == draft_tokens


# What is launched


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("method", active("vllm"))
def test_vllm(python: Python, method: str, k: int) -> None:
    launch = launch_of("vllm", method, k, python=python("0.24.0"))
    assert json.loads(value_of(launch, "--speculative-config"))["num_speculative_tokens"] == k


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("method", CHAIN)
def test_sglang_with_a_chain(python: Python, method: str, k: int) -> None:
    launch = launch_of("sglang", method, k, python=python("0.5.23"))
    assert value_of(launch, "--speculative-num-draft-tokens") == str(k + 1)
    # The steps of the drafter are k: the slot for the known token is no draft.
    assert value_of(launch, "--speculative-num-steps") == str(k)
    assert value_of(launch, "--speculative-eagle-topk") == "1"


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("method", WINDOW)
def test_sglang_with_a_whole_window(python: Python, method: str, k: int) -> None:
    launch = launch_of("sglang", method, k, python=python("0.5.23"))
    assert value_of(launch, "--speculative-num-draft-tokens") == str(k + 1)
    assert "--speculative-num-steps" not in launch.argv


def test_sglang_methods_are_all_here() -> None:
    assert sorted([*CHAIN, *WINDOW]) == sorted(active("sglang"))
    assert CHAIN
    assert WINDOW


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("version", ["1.2.1", "1.4.0"])
@pytest.mark.parametrize("method", active("trtllm"))
def test_trtllm(python: Python, method: str, version: str, k: int) -> None:
    launch = launch_of("trtllm", method, k, python=python(version))
    assert json.loads(launch.files["config.yaml"])["speculative_config"]["max_draft_len"] == k


def test_trtllm_has_room_for_the_known_token_of_every_request(python: Python) -> None:
    # 8 requests with 2000 drafts each are more than an iteration holds by default.
    launch = launch_of("trtllm", "ngram", 2000, python=python("1.4.0"))
    assert value_of(launch, "--max_num_tokens") == str(8 * 2001)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("method", active("llamacpp"))
def test_llamacpp(method: str, k: int) -> None:
    launch = launch_of("llamacpp", method, k)
    assert json.loads(launch.files["server.json"])["draft_tokens"] == k


@pytest.mark.parametrize("engine", registry.NAMES)
def test_without_speculation_no_number_is_sent(python: Python, engine: str) -> None:
    version = {"vllm": "0.24.0", "sglang": "0.5.23", "trtllm": "1.4.0", "llamacpp": "0"}[engine]
    profile = Profile(engine, engine, "org/model", Speculation(), options={"python": python(version)})
    launch = registry.create(profile).launch(Capacity(8, 1024), 8123)
    assert not [word for word in launch.argv if word.startswith("--spec")]
    assert "speculative_config" not in launch.files.get("config.yaml", "")
    assert json.loads(launch.files.get("server.json", '{"draft_tokens": 0}'))["draft_tokens"] == 0


# What a running SGLang says of its window


@pytest.mark.parametrize("method", WINDOW)
def test_the_window_of_a_running_sglang_is_read_back(method: str) -> None:
    info = {"speculative_algorithm": SGLANG_METHODS[method].reported[0], "speculative_num_draft_tokens": 5}
    assert mismatch(Speculation(method, 4), info) is None
    assert mismatch(Speculation(method, 5), info) == "the profile has 5 draft tokens, but the server drafts 4"


@pytest.mark.parametrize("method", CHAIN)
def test_the_steps_of_a_running_sglang_are_read_back(method: str) -> None:
    info = {
        "speculative_algorithm": SGLANG_METHODS[method].reported[0],
        "speculative_num_draft_tokens": 5,
        "speculative_num_steps": 4,
    }
    assert mismatch(Speculation(method, 4), info) is None
    assert mismatch(Speculation(method, 5), info) == "the profile has 5 draft tokens, but the server drafts 4"

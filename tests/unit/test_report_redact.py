"""Secrets by key, by value and by shape; the words of this domain stay."""

from __future__ import annotations

import json

import pytest

from pytest_speedbench.report.redact import Redactor, is_secret_key, redact

CANARY = "canary-7f3a9b2c"


@pytest.mark.parametrize(
    "key",
    [
        "token", "HF_TOKEN", "hf-token", "api_key", "apiKey", "X-Api-Key", "OPENAI_API_KEY", "api_keys", "password",
        "db-password", "Authorization", "secret", "AWS_SECRET_ACCESS_KEY", "access_token", "refresh_tokens", "cookie",
        "client_secret", "passphrase", "HUGGING_FACE_HUB_TOKEN", "INPUT_TOKEN", "ACTIONS_RUNTIME_TOKEN", "--hf-token",
    ],
)  # fmt: skip
def test_secret_keys(key: str) -> None:
    assert is_secret_key(key)


@pytest.mark.parametrize(
    "key",
    [
        "tokenizer", "tokenizer_revision", "draft-tokens", "draft_tokens", "max_tokens", "num_speculative_tokens",
        "eos_token", "bos_token_id", "pad_token", "return_token_ids", "output_tokens", "num_key_value_heads", "keys",
        "TOKENIZERS_PARALLELISM", "monkey", "author", "HF_TOKEN_PATH", "SSH_AUTH_SOCK", "timings_per_token", "tokens",
        "speedbench-draft-tokens", "max_num_batched_tokens", "skip_special_tokens", "kv_cache_dtype", "model",
    ],
)  # fmt: skip
def test_keys_of_this_domain_are_no_secrets(key: str) -> None:
    assert not is_secret_key(key)


@pytest.mark.parametrize(
    "argv",
    [
        [f"--hf-token={CANARY}"],
        ["--hf-token", CANARY],
        [f"--speedbench-engine-arg=--api-key={CANARY}"],
        ["--speedbench-engine-arg", f"--api-key={CANARY}"],
        ["--speedbench-engine-arg=--api-key", f"--speedbench-engine-arg={CANARY}"],
        ["--speedbench-engine-arg", "--api-key", "--speedbench-engine-arg", CANARY],
        [f"HF_TOKEN={CANARY}"],
        ["-H", f"Authorization: Bearer {CANARY}"],
        ["-H", f"authorization:{CANARY}"],
        [f"--password={CANARY}&more,{CANARY}"],
        [f"--speedbench-base-url=https://user:{CANARY}@host/v1"],
        [f"--speedbench-base-url=https://host/v1?api_key={CANARY}&x=1"],
        [json.dumps({"headers": {"Authorization": CANARY}, "api_key": CANARY})],
        [json.dumps(json.dumps({"api_key": CANARY}))],
        [f"text in front api-key: {CANARY}"],
    ],
)
def test_a_canary_by_key_appears_nowhere(argv: list[str]) -> None:
    clean = redact(argv)
    assert CANARY not in " ".join(clean)
    assert len(clean) == len(argv)


def test_a_canary_by_value_appears_nowhere() -> None:
    redactor = Redactor.from_environ({"MY_API_KEY": CANARY, "HOME": "/home/ci-user", "SHORT_TOKEN": "abc"})
    log = [f"loading with {CANARY}", {"nested": [f"x{CANARY}y", 3, None]}]
    assert CANARY not in json.dumps(redactor.json(log))
    assert redactor.value("abc in /home/ci-user") == "abc in /home/ci-user"


def test_a_value_is_also_found_url_encoded_and_line_by_line() -> None:
    redactor = Redactor.from_environ({"A_SECRET": "p@ss/word+1", "KEY": "-----BEGIN KEY-----\nabcdefghijklmnop1234\n"})
    assert redactor.value("https://h/?q=p%40ss%2Fword%2B1") == "https://h/?q=***"
    assert "abcdefghijklmnop1234" not in redactor.value("line abcdefghijklmnop1234 of it")


def test_well_known_shapes_go_without_any_key() -> None:
    text = "got hf_abcdefghijklmnopqrstuvwxyz and ghp_abcdefghijklmnopqrstuvwxyz0123"
    assert Redactor().value(text) == "got *** and ***"


def test_what_is_no_secret_stays_to_the_letter() -> None:
    argv = [
        "pytest", "--speedbench-draft-tokens=5", "--speedbench-tokenizer", "org/name", "-k", "not token", "--maxfail=1",
        '--speedbench-engine-arg=--override={"eos_token_id": 2, "max_tokens": 96, "stop_token": "</s>"}',
        "thresholds/a.yaml:14", "https://host:8000/v1",
    ]  # fmt: skip
    assert list(redact(argv)) == argv


def test_mappings_are_masked_by_key_whatever_the_value_is() -> None:
    data = {
        "token": CANARY,
        "auth": {"user": "me", "pass": CANARY},
        "password": 12345678,
        "token_id": 7,
        "eos_token": "</s>",
        "api_key": None,
        "args": ["--api-key", CANARY],
    }
    assert redact(data) == {
        "token": "***",
        "auth": "***",
        "password": "***",
        "token_id": 7,
        "eos_token": "</s>",
        "api_key": None,
        "args": ["--api-key", "***"],
    }

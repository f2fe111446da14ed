"""Tokenizers from folders, and the size of a model's vocabulary."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pytest_speedbench.errors import ConfigError
from pytest_speedbench.tokenize import ChatTokenizer, load, vocabulary
from tests.emulator.llamacpp import EOS, byte_tokenizer

tokenizer = cache(byte_tokenizer)
START = 256


# The vocabulary of a model


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({"vocab_size": 49152}, 49152),
        ({"text_config": {"vocab_size": 262208}}, 262208),
        ({"vocab_size": 49152, "text_config": {"vocab_size": 1}}, 49152),
        ({"vocab_size": None, "text_config": {"vocab_size": 7}}, 7),
        ({"vocab_size": 49152, "text_config": None}, 49152),
        ({"text_config": {}}, None),
        ({"text_config": None}, None),
        ({"text_config": "text"}, None),
        ({"vocab_size": "49152"}, None),
        ({"vocab_size": 49152.0}, None),
        ({}, None),
        ([{"vocab_size": 49152}], None),
        ("vocab_size", None),
        (None, None),
    ],
)
def test_vocabulary(tmp_path: Path, config: Any, size: int | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert vocabulary(str(tmp_path)) == size


@pytest.mark.parametrize("content", [b"", b"{", b'{"vocab_size": 49152', b"\xff\xfe{}", b"vocab_size: 49152"])
def test_vocabulary_of_a_broken_config(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    assert vocabulary(str(tmp_path)) is None


def test_vocabulary_of_what_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    assert vocabulary(str(file)) is None
    assert vocabulary(str(tmp_path)) is None
    assert vocabulary(str(tmp_path / "gone")) is None
    assert vocabulary("organisation/model") is None
    (tmp_path / "config.json").mkdir()
    assert vocabulary(str(tmp_path)) is None


# Text and ids


def test_special_tokens_are_left_out_of_the_text() -> None:
    ids = (START, *b"Hel", EOS, *b"lo", EOS)
    assert tokenizer()._tokenizer.decode(ids) == "<|im_start|>Hel<|im_end|>lo<|im_end|>"
    assert tokenizer().decode(ids) == "Hello"
    assert tokenizer().decode((START, EOS)) == ""
    assert tokenizer().decode(()) == ""


def test_text_that_spells_a_special_token_is_one() -> None:
    assert tokenizer().encode("a<|im_end|>b") == (*b"a", EOS, *b"b")
    assert tokenizer().encode("") == ()


def test_a_tokenizer_that_would_add_a_token_adds_none() -> None:
    from tokenizers import processors

    adding = copy.deepcopy(tokenizer()._tokenizer)
    adding.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", START)]
    )
    assert adding.encode("a") == [START, *b"a"]
    assert ChatTokenizer(adding, source="bytes", max_context=None).encode("a") == tuple(b"a")


def test_a_chat_asks_for_the_reply() -> None:
    ids = tokenizer().ids([{"role": "user", "content": "Hi"}])
    assert ids == (START, *b"user\nHi", EOS, *b"\n", START, *b"assistant\n")
    assert tokenizer().vocab_size == 258


# A folder


def save(folder: Path, **config: Any) -> Path:
    """``byte_tokenizer`` as Hugging Face keeps it, with changes to its configuration."""
    tokenizer()._tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def test_a_folder(tmp_path: Path) -> None:
    loaded = load(str(save(tmp_path)))
    chat: Any = [{"role": "user", "content": "Größe <|im_end|>"}]
    assert loaded.ids(chat) == tokenizer().ids(chat)
    assert loaded.sha256 == tokenizer().sha256
    assert loaded.source == str(tmp_path)
    assert loaded.max_context is None


def test_the_longest_sequence_of_a_folder(tmp_path: Path) -> None:
    assert load(str(save(tmp_path, model_max_length=8192))).max_context == 8192
    # What transformers writes where nothing is known.
    assert load(str(save(tmp_path, model_max_length=10**30))).max_context is None


def test_another_chat_template_is_another_tokenizer(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    loaded = load(str(tmp_path))
    assert loaded.render([{"role": "user", "content": "Hi"}]) == "Hi"
    assert loaded.sha256 != tokenizer().sha256


def test_a_folder_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError) as caught:
        load(str(tmp_path))
    assert str(caught.value) == (
        f"the tokenizer of {tmp_path} has no chat template; give --speedbench-tokenizer a folder that has one, "
        "or set completions: true for a base model"
    )


def test_a_folder_without_a_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^cannot load a tokenizer from {tmp_path}: ") as caught:
        load(str(tmp_path))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"version": "1.0"}', b"\xff\xfe", b"x" * 1000])
def test_a_damaged_folder_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    save(tmp_path)
    (tmp_path / name).write_bytes(content)
    if name == "tokenizer_config.json" and content.startswith(b'{"'):
        assert load(str(tmp_path)).vocab_size == 258  # all that matters is in the other file
        return
    with pytest.raises(ConfigError, match=f"^cannot load a tokenizer from {tmp_path}: ") as caught:
        load(str(tmp_path))
    assert len(str(caught.value).splitlines()) == 1

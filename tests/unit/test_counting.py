"""The tokenizers that lengths are counted with."""

import json
import sys
import warnings
from pathlib import Path

import pytest

from pytest_speedbench.data.counting import O200K, load
from pytest_speedbench.engines.embedded import find_model
from pytest_speedbench.errors import ConfigError


def test_o200k_base_gives_its_known_ids() -> None:
    count = load()

    # From the published vocabulary of o200k_base.
    assert list(count.encode("hello world")) == [24912, 2375]
    assert count.decode([24912, 2375]) == "hello world"
    assert count.name.startswith("o200k_base (bpe-openai ")


def test_what_looks_like_a_control_token_counts_as_text() -> None:
    count = load(O200K)

    assert len(count.encode("<|endoftext|>")) == 7
    assert count.decode(count.encode("a<|endoftext|>b")) == "a<|endoftext|>b"


def test_o200k_base_comes_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bpe_openai", None)

    with pytest.raises(ConfigError, match=r"needs the package bpe-openai: pip install 'pytest-speedbench\[buckets\]'"):
        load()


def test_the_tokenizer_of_a_model_file() -> None:
    count = load(str(find_model()))

    assert count.name == find_model().name
    assert list(count.encode("<|im_end|>")) == [2]  # its end of a turn
    assert count.decode(count.encode("hello world")) == "hello world"


def test_the_tokenizer_of_a_base_model_needs_no_chat_template(tmp_path: Path) -> None:
    vocabulary = {letter: i for i, letter in enumerate("abcdefgh")}
    (tmp_path / "tokenizer.json").write_text(
        json.dumps(
            {
                "version": "1.0",
                "added_tokens": [],
                "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
                "decoder": {"type": "Fuse"},
            }
        )
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    count = load(str(tmp_path))

    assert list(count.encode("bad")) == [1, 0, 3]
    assert (count.decode([1, 0, 3]), count.name) == ("bad", tmp_path.name)


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot load a tokenizer"):
        load(str(tmp_path))

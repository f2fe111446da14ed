"""What a .gguf file says: read as the package gguf reads it, and refused in one line where it is damaged."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_speedbench import gguf_metadata
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.tokenize import load

ALPHABET = [*"abcd", "\u0120", "ab", "<s>", "</s>", "<unk>"]
BPE: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.context_length": 77,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ALPHABET,
    "tokenizer.ggml.token_type": [1] * 6 + [3, 3, 2],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 6,
    "tokenizer.ggml.eos_token_id": 7,
    "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
}
SENTENCEPIECE: dict[str, Any] = {
    **{key: value for key, value in BPE.items() if key not in ("tokenizer.ggml.pre", "tokenizer.ggml.merges")},
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a", "b", "c", "\u2581", "ab", "bc", "\u2581a", "abc"],
    "tokenizer.ggml.token_type": [2, 3, 3] + [1] * 8,
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -9.0, -2.0, -1.0, -3.0, -4.0],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
}


def write(path: Path, values: dict[str, Any]) -> Path:
    from gguf import GGUFWriter

    writer = GGUFWriter(str(path), "llama")
    for key, value in values.items():
        if key == "general.architecture":
            continue  # the writer has it
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


# The file


def test_every_type_is_read_as_the_package_reads_it(path: Path) -> None:
    from gguf import GGUFReader, GGUFWriter

    writer = GGUFWriter(str(path), "llama")
    for kind, value in {
        "uint8": 255,
        "int8": -128,
        "uint16": 65535,
        "int16": -32768,
        "uint32": 2**32 - 1,
        "int32": -(2**31),
        "float32": 0.5,
        "bool": True,
        "string": "日本 🚀",
        "uint64": 2**64 - 1,
        "int64": -(2**63),
        "float64": 0.1,
    }.items():
        getattr(writer, f"add_{kind}")(f"a.{kind}", value)
    for name, values in {"i": [1, -2], "f": [0.5, 1.5], "s": ["", "é"], "b": [True, False]}.items():
        writer.add_array(f"array.{name}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    fields = GGUFReader(path).fields.items()
    theirs = {key: field.contents() for key, field in fields if not key.startswith("GGUF.")}
    assert gguf_metadata.read(path) == theirs
    assert theirs["a.float64"] == 0.1
    assert theirs["array.s"] == ["", "é"]
    assert len(theirs) == 17


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_other_versions_and_types_are_refused(path: Path) -> None:
    data = bytearray(write(path, BPE).read_bytes())
    for version, shown in ((1, "1"), (4, "4"), (3 << 24, "50331648")):
        path.write_bytes(data[:4] + version.to_bytes(4, "little") + data[8:])
        assert refusal(path) == (
            f"cannot read {path} as GGUF: its version is {shown}; 2 and 3 are supported, little-endian"
        )
    at = data.index(b"general.architecture") + len("general.architecture")
    path.write_bytes(data[:at] + (13).to_bytes(4, "little") + data[at + 4 :])
    assert refusal(path) == f"cannot read {path} as GGUF: it has a value of the unknown type 13"


def test_every_cut_is_refused(path: Path) -> None:
    data = write(path, BPE).read_bytes()
    end = data.index(b"{{ eos_token }}") + len("{{ eos_token }}")
    for length in range(end):
        path.write_bytes(data[:length])
        assert refusal(path).startswith(f"cannot read {path} as GGUF: it ")
    path.write_bytes(data[:end])
    assert load(str(path)).max_context == 77


@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=4), kind=st.booleans()
)
def test_damage_is_refused_or_harmless(changes: list[tuple[int, int]], kind: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.gguf"
        data = bytearray(write(path, BPE if kind else SENTENCEPIECE).read_bytes())
        for at, byte in changes:
            data[at % len(data)] = byte
        path.write_bytes(data)
        try:
            tokenizer = load(str(path))
        except ConfigError:
            return
        assert all(0 <= i < tokenizer.vocab_size for i in tokenizer.encode("ab c"))


# The tokenizer in it


def test_a_byte_level_one(path: Path) -> None:
    chat = load(str(write(path, BPE)))
    assert chat.ids([{"role": "user", "content": "ab c"}]) == (6, 5, 4, 2, 7)
    assert chat.encode("xaby<unk>") == (5, 8)  # what has no token is dropped
    assert chat.decode((6, 5, 4, 2, 7)) == "ab c"
    assert chat.max_context == 77
    assert chat.vocab_size == 9


def test_a_sentencepiece_one(path: Path) -> None:
    # bc before ab, by their scores; then nothing makes a and bc one piece but abc.
    chat = load(str(write(path, SENTENCEPIECE)))
    assert chat.encode("abc") == (9, 8)
    assert chat.encode("babc") == (6, 4, 10)
    assert chat.encode("<s>a") == (1, 9)
    assert chat.decode(chat.encode("abc a")) == "abc a"
    other = SENTENCEPIECE | {"tokenizer.ggml.tokens": [*SENTENCEPIECE["tokenizer.ggml.tokens"][:-1], "cb"]}
    assert load(str(write(path, other))).encode("abcb") == (9, 8, 4)  # not ab and cb
    without = load(str(write(path, SENTENCEPIECE | {"tokenizer.ggml.add_space_prefix": False})))
    assert without.encode("abc") == (10,)
    assert without.encode(" a") == (9,)


@pytest.mark.parametrize("name", ["Phi-3-mini", "phi3"])
def test_phi_3_takes_white_space_along(path: Path, name: str) -> None:
    for values, following in ((SENTENCEPIECE, (2, 6, 9)), (SENTENCEPIECE | {"general.name": name}, (2, 9))):
        assert load(str(write(path, values))).encode("</s> a") == following
        assert load(str(path)).encode("<s> a") == (1, 6, 9)


def test_several_templates_in_a_file(path: Path) -> None:
    values = BPE | {
        "tokenizer.chat_templates": ["rag", "tool_use"],
        "tokenizer.chat_template.rag": "R",
        "tokenizer.chat_template.tool_use": "T",
    }
    assert load(str(write(path, values))).render([{"role": "user", "content": "a"}]) == "<s>a</s>"
    del values["tokenizer.chat_template"]
    assert "several chat templates and none is named default: rag, tool_use" in refusal(write(path, values))


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no merges": ({"tokenizer.ggml.merges": None}, "is incomplete: it has no tokenizer.ggml.merges"),
    "no types": ({"tokenizer.ggml.token_type": None}, "is incomplete: it has no tokenizer.ggml.token_type"),
    "no tokens": ({"tokenizer.ggml.tokens": None}, "is incomplete: it has no tokenizer.ggml.tokens"),
    "fewer types": ({"tokenizer.ggml.token_type": [1] * 8}, "contradicts itself (zip() argument 2 is shorter"),
    "a merge without a space": ({"tokenizer.ggml.merges": ["ab"]}, "contradicts itself (substring not found"),
    "a merge of nothing": (
        {"tokenizer.ggml.merges": ["a x"]},
        "contradicts itself (Error while initializing BPE: Token",
    ),
    "a far BOS": ({"tokenizer.ggml.bos_token_id": 9}, "contradicts itself (list index out of range"),
    "twice the same": ({"tokenizer.ggml.tokens": [*ALPHABET[:-1], "a"]}, "contradicts itself (two tokens have"),
    "another kind": ({"tokenizer.ggml.model": "t5"}, "is of kind t5/smollm; supported from GGUF: "),
    "another pre-tokeniser": ({"tokenizer.ggml.pre": "command-r"}, "is of kind gpt2/command-r; supported from GGUF: "),
    "no kind": ({"tokenizer.ggml.model": None}, "is of kind None/smollm; supported from GGUF: "),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_what_contradicts_itself(path: Path, case: str) -> None:
    change, message = CONTRADICTIONS[case]
    values = {key: value for key, value in (BPE | change).items() if value is not None}
    said = refusal(write(path, values))
    assert said.startswith(f"the tokenizer inside model.gguf {message}")
    assert "--speedbench-tokenizer the model's Hugging Face folder" in said


def test_scores_are_needed_where_they_order_the_merges(path: Path) -> None:
    values = {key: value for key, value in SENTENCEPIECE.items() if key != "tokenizer.ggml.scores"}
    assert "it has no tokenizer.ggml.scores" in refusal(write(path, values))

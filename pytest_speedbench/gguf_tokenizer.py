"""The tokenizer that a .gguf file carries, rebuilt so that it encodes as llama.cpp does.

llama.cpp has its own code for every kind, which differs here and there from the tokenizer that the
model came with (it never normalises Unicode, for one). A kind is supported once it was compared with
the server's own result on hard text; see tests/engines/test_tokenizers.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_speedbench import gguf_metadata
from pytest_speedbench.errors import ConfigError

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # values of tokenizer.ggml.token_type
_SPACE = "\u2581"  # what SentencePiece writes for a space

# The regular expressions of GPT-2, Llama 3 and Qwen 2, each as its authors published it.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN35 = _QWEN2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
_DIGITS = r"\p{N}"

_PRE_TOKENIZERS: Mapping[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "mpt": (_GPT2,),
    "smollm": (_DIGITS, _GPT2),
    "starcoder": (_DIGITS, _GPT2),
    "refact": (_DIGITS, _GPT2),
    "llama-bpe": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "qwen35": (_QWEN35,),
}
"""Regular expressions that cut the text, one after the other, by ``tokenizer.ggml.pre``."""

_WHOLE_WORDS = frozenset({"llama-bpe"})
"""Where a piece that is in the vocabulary is one token, whatever the merges make of it."""


_PHI3_KEEP = ("<unk>", "<s>", "<|endoftext|>")
"""Special tokens of Phi-3 that leave the white space after them alone."""


@dataclass(frozen=True)
class GgufTokenizer:
    """What a file says of its tokenizer. ``names`` has ``bos_token``, ``eos_token`` and ``unk_token`` where known."""

    backend: Any
    names: Mapping[str, str]
    chat_template: str | dict[str, str] | None
    max_context: int | None


def load(path: Path) -> GgufTokenizer:
    """The tokenizer of the file; ``backend`` is a ``tokenizers.Tokenizer``.

    Raises ConfigError when the file cannot be read or its tokenizer is of a kind that was not verified.
    """
    try:
        value: Callable[[str], Any] = gguf_metadata.read(path).get
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path} as GGUF: {error}") from error
    kind, pre = value("tokenizer.ggml.model"), value("tokenizer.ggml.pre")
    needed = {"gpt2": ("tokens", "token_type", "merges"), "llama": ("tokens", "token_type", "scores")}.get(kind)
    if needed is None or (kind == "gpt2" and pre not in _PRE_TOKENIZERS):
        supported = [*(f"gpt2/{name}" for name in _PRE_TOKENIZERS), "llama"]
        raise ConfigError(
            f"the tokenizer inside {path.name} is of kind {kind}/{pre}; supported from GGUF: {', '.join(supported)}. "
            "Give --speedbench-tokenizer the model's Hugging Face folder"
        )
    missing = [name for name in needed if not value(f"tokenizer.ggml.{name}")]
    if missing:
        raise ConfigError(
            f"the tokenizer inside {path.name} is incomplete: it has no tokenizer.ggml.{missing[0]}; "
            "convert the model again, or give --speedbench-tokenizer the model's Hugging Face folder"
        )
    try:
        return _build(value, pre)
    except Exception as error:  # tokenizers raises nothing more special
        raise ConfigError(
            f"the tokenizer inside {path.name} contradicts itself ({error}); "
            "convert the model again, or give --speedbench-tokenizer the model's Hugging Face folder"
        ) from error


def _build(value: Callable[[str], Any], pre: str) -> GgufTokenizer:
    tokens: list[str] = value("tokenizer.ggml.tokens")
    if len(set(tokens)) < len(tokens):
        raise ValueError("two tokens have the same text")
    backend = _sentencepiece_bpe(value) if value("tokenizer.ggml.model") == "llama" else _byte_level_bpe(value, pre)
    _add_specials(backend, value)
    indices = {name: value(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "unknown")}
    return GgufTokenizer(
        backend,
        {f"{name[:3]}_token": tokens[index] for name, index in indices.items() if index is not None},
        _templates(value),
        value(f"{value('general.architecture')}.context_length"),
    )


def _templates(value: Callable[[str], Any]) -> str | dict[str, str] | None:
    """The chat template; where there are several, by name, as in a Hugging Face folder."""
    unnamed: str | None = value("tokenizer.chat_template")
    named = {name: value(f"tokenizer.chat_template.{name}") for name in value("tokenizer.chat_templates") or ()}
    return {**named, **({} if unnamed is None else {"default": unnamed})} if named else unnamed


def _byte_level_bpe(value: Callable[[str], Any], pre: str) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = value("tokenizer.ggml.tokens")
    merges = [_pair(merge) for merge in value("tokenizer.ggml.merges")]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in _WHOLE_WORDS))
    steps: list[Any] = [
        *(pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in _PRE_TOKENIZERS[pre]),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    # Some control characters may have no token. Both sides drop them, but llama.cpp merges nothing across.
    missing = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(tokens))
    if missing:
        steps.append(pre_tokenizers.Split(Regex(f"[{re.escape(''.join(missing))}]"), behavior="isolated"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend


def _pair(merge: str) -> tuple[str, str]:
    at = merge.index(" ", 1)  # the first character may be a space itself
    return merge[:at], merge[at + 1 :]


def _sentencepiece_bpe(value: Callable[[str], Any]) -> Any:
    """Pairs are merged in the order of the scores of what they make; what has no piece is its bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens: list[str] = value("tokenizer.ggml.tokens")
    scores: list[float] = value("tokenizer.ggml.scores")
    numbers = {token: number for number, token in enumerate(tokens)}
    pairs = [
        (-scores[number], len(token[:at]), number, token[:at], token[at:])
        for token, number in numbers.items()
        for at in range(1, len(token))
        if token[:at] in numbers and token[at:] in numbers
    ]
    merges = [(left, right) for *_, left, right in sorted(pairs)]
    unknown = value("tokenizer.ggml.unknown_token_id")
    backend = Tokenizer(
        models.BPE(
            vocab=numbers,
            merges=merges,
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = value("tokenizer.ggml.add_space_prefix") is not False
    backend.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend(_SPACE)] if prefix else []), normalizers.Replace(" ", _SPACE)]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if prefix else []),
        ]
    )
    return backend


def _add_specials(backend: Any, value: Callable[[str], Any]) -> None:
    from tokenizers import AddedToken

    # GGUF does not say which tokens take the white space after them along; llama.cpp knows it of one family.
    phi3 = re.search("phi-?3", str(value("general.name")).lower()) is not None
    special, other = [], []
    for token, kind in zip(value("tokenizer.ggml.tokens"), value("tokenizer.ggml.token_type"), strict=True):
        rstrip = phi3 and token not in _PHI3_KEEP
        if kind in (_CONTROL, _UNKNOWN):
            special.append(AddedToken(token, special=True, normalized=False, rstrip=rstrip))
        elif kind == _USER_DEFINED:
            other.append(AddedToken(token, normalized=False, rstrip=rstrip))
    backend.add_special_tokens(special)
    backend.add_tokens(other)

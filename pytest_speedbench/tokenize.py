"""Chat template and token ids, outside every engine, so that all engines get the same input."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

from pytest_speedbench.errors import ConfigError

# Pre-tokenisers of llama.cpp (tokenizer.ggml.pre) that were compared with the server's own result.
_PRE_TOKENIZERS = ("smollm",)
_CONTROL, _USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type


class Message(TypedDict):
    """One message of a chat."""

    role: str
    content: str


class ChatTokenizer:
    """Renders a chat and encodes it.

    ``max_context`` is the longest sequence that the model file states, or None.
    """

    def __init__(self, tokenizer: Any, *, source: str, max_context: int | None) -> None:
        if not tokenizer.chat_template:
            raise ConfigError(
                f"the tokenizer of {source} has no chat template; give --speedbench-tokenizer a folder that has one"
            )
        self._tokenizer = tokenizer
        self.source = source
        self.max_context = max_context

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return len(self._tokenizer)

    def render(self, messages: Sequence[Message]) -> str:
        """The chat as text, ready for the assistant's reply."""
        return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of ``text``. Nothing is added: a BOS is there only if ``text`` spells it out."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids of the rendered chat."""
        return self.encode(self.render(messages))

    @cached_property
    def sha256(self) -> str:
        """Hash over vocabulary, merges and chat template."""
        content = self._tokenizer.backend_tokenizer.to_str() + json.dumps(self._tokenizer.chat_template)
        return hashlib.sha256(content.encode()).hexdigest()


def load(source: str) -> ChatTokenizer:
    """The tokenizer of a .gguf file or of a Hugging Face folder or id.

    Raises ConfigError when it is missing, unreadable or of an unsupported kind.
    """
    path = Path(source)
    if path.suffix == ".gguf":
        return _from_gguf(path)
    return _from_hugging_face(source)


def vocabulary(model: str) -> int | None:
    """Number of ids that the model in a folder knows, by its config.json; None where that cannot be read."""
    try:
        config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
        text = config.get("text_config")
        sizes = [place.get("vocab_size") for place in (config, text) if isinstance(place, dict)]
    except (OSError, ValueError, AttributeError):
        return None
    return next((size for size in sizes if type(size) is int), None)


def _transformers() -> Any:
    # transformers says on import that no deep-learning framework is there; none is needed here.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    return transformers


def _from_hugging_face(source: str) -> ChatTokenizer:
    try:
        tokenizer = _transformers().AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot load a tokenizer from {source}: {str(error).splitlines()[0]}") from error
    limit = tokenizer.model_max_length
    return ChatTokenizer(tokenizer, source=source, max_context=limit if limit < 10**9 else None)


def _from_gguf(path: Path) -> ChatTokenizer:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ConfigError(
            "reading a tokenizer from a .gguf file needs the package gguf; "
            "run pip install 'pytest-speedbench[llamacpp]', or give --speedbench-tokenizer a Hugging Face folder"
        ) from error
    try:
        reader = GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise ConfigError(f"cannot read {path} as GGUF: {error}") from error

    def value(key: str) -> Any:
        field = reader.get_field(key)
        return None if field is None else field.contents()

    kind, pre = value("tokenizer.ggml.model"), value("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in _PRE_TOKENIZERS:
        raise ConfigError(
            f"the tokenizer inside {path.name} is of kind {kind}/{pre}; "
            f"supported from GGUF: {', '.join(f'gpt2/{p}' for p in _PRE_TOKENIZERS)}. "
            "Give --speedbench-tokenizer the model's Hugging Face folder"
        )
    tokens: list[str] = value("tokenizer.ggml.tokens")
    types: list[int] = value("tokenizer.ggml.token_type")
    backend = _byte_level_bpe(tokens, types, value("tokenizer.ggml.merges"))

    def special(name: str) -> str | None:
        index = value(f"tokenizer.ggml.{name}_token_id")
        return None if index is None else tokens[index]

    tokenizer = _transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=special("bos"),
        eos_token=special("eos"),
        unk_token=special("unknown"),
        chat_template=value("tokenizer.chat_template"),
    )
    context = value(f"{value('general.architecture')}.context_length")
    return ChatTokenizer(tokenizer, source=str(path), max_context=context)


def _byte_level_bpe(tokens: Sequence[str], types: Sequence[int], merges: Sequence[str]) -> Any:
    """The ``smollm`` pre-tokeniser: single digits, then the regular expression of GPT-2."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    backend = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=pairs))
    steps: list[Any] = [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ]
    # Some control characters have no token. Both sides drop them, but llama.cpp merges nothing across.
    missing = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(tokens))
    if missing:
        steps.append(pre_tokenizers.Split(Regex(f"[{re.escape(''.join(missing))}]"), behavior="isolated"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [
            AddedToken(t, special=True, normalized=False)
            for t, kind in zip(tokens, types, strict=True)
            if kind == _CONTROL
        ]
    )
    backend.add_tokens(
        [AddedToken(t, normalized=False) for t, kind in zip(tokens, types, strict=True) if kind == _USER_DEFINED]
    )
    return backend

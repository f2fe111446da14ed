"""Chat template and token ids, outside every engine, so that all engines get the same input."""

from __future__ import annotations

import datetime
import hashlib
import inspect
import json
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypedDict

from pytest_speedbench import gguf_tokenizer
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.token_cache import TokenCache

TODAY = datetime.datetime(2026, 1, 1)
"""The day that templates are told: prompts that change every night cannot be compared with calibrated ones."""
_DATE_CODES = [f"%{letter}" for letter in ("-d", "-m", "-H", "-I", *"aAbBcdDeFHIjmMpSTuUwxXyYZz")]

_NO_ARGS: Mapping[str, Any] = MappingProxyType({})
_NO_CACHE = TokenCache(None)
_BATCH_CHARACTERS = 1 << 22
"""Characters encoded at a time: an encoding takes some 100 bytes per token until its ids are taken out."""


class Message(TypedDict):
    """One message of a chat."""

    role: str
    content: str


class ChatTokenizer:
    """Renders a chat and encodes it.

    ``max_context`` is the longest sequence that the model file states, or None. ``template_args`` are
    variables for the chat template, such as ``enable_thinking``. With ``completions`` there is no
    template and no history: the prompt is the text of the last user message.

    Raises ConfigError for a tokenizer without a usable template, for arguments that the template does
    not have, and for a tokenizer that is no ``tokenizer.json``.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        source: str,
        max_context: int | None,
        template_args: Mapping[str, Any] = _NO_ARGS,
        completions: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._backend = _backend(tokenizer, source)
        self.source = source
        self.max_context = max_context
        self.template_args = MappingProxyType(dict(template_args))
        self.completions = completions
        if completions:
            if template_args:
                raise ConfigError(
                    f"chat_template_args ({', '.join(template_args)}) have no effect with completions, "
                    "which use no chat template; leave one of them out"
                )
        else:
            _check_args(tokenizer, source, template_args)

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return len(self._tokenizer)

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of special and added tokens."""
        return frozenset(self._backend.get_added_tokens_decoder())

    def render(self, messages: Sequence[Message], *, row: str | None = None) -> str:
        """The chat as text, ready for the assistant's reply.

        Raises ConfigError, with ``row`` in it, when the template refuses the chat.
        """
        if self.completions:
            return next(m["content"] for m in reversed(messages) if m["role"] == "user")
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages),
                    chat_template=_undated(_template(self._tokenizer.chat_template)),
                    tokenize=False,
                    add_generation_prompt=True,
                    **self.template_args,
                )
            )
        except Exception as error:  # a template is a program, and can fail in any way
            raise ConfigError(
                f"{_prefix(row)}the chat template of {self.source} does not take this chat of "
                f"{len(messages)} messages: {_first_line(error)}; leave the row out, or set chat_template_args "
                "or another tokenizer in the profile"
            ) from error

    def encode(self, text: str, *, row: str | None = None) -> tuple[int, ...]:
        """Ids of ``text``. Nothing is added: a BOS is there only if ``text`` spells it out.

        Text that spells a special token is that token, wherever it comes from.
        """
        return tuple(self._encode([text], [row])[0])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, special tokens left out."""
        return str(self._backend.decode(list(ids), skip_special_tokens=True))

    def ids(self, messages: Sequence[Message], *, row: str | None = None) -> tuple[int, ...]:
        """Ids of the rendered chat."""
        return self.encode(self.render(messages, row=row), row=row)

    def first_ids(self, rows: Sequence[tuple[str, str]], cache: TokenCache = _NO_CACHE) -> list[array[int]]:
        """Ids of each row's first prompt, as ``array("I")``: 4 bytes per token, where a tuple takes 32.

        A row is its id and the text of its first user turn. Raises ConfigError that names the row which
        the template refuses.
        """

        def compute() -> list[array[int]]:
            made: list[array[int]] = []
            for batch in _batches(rows):
                names = [name for name, _ in batch]
                chats = [self.render([{"role": "user", "content": text}], row=name) for name, text in batch]
                made += (array("I", ids) for ids in self._encode(chats, names))
            return made

        # An upgrade of what renders and encodes may change ids.
        versions = [f"{name} {metadata.version(name)}" for name in ("transformers", "tokenizers", "jinja2")]
        return cache.ids([self.sha256, *versions, *(text for _, text in rows)], len(rows), compute)

    def spelled_specials(self, text: str) -> tuple[str, ...]:
        """Special tokens that ``text`` spells, such as ``<|im_end|>`` typed by a user."""
        return tuple(token for token in self._specials if token in text)

    @cached_property
    def sha256(self) -> str:
        """Hash over all that ids depend on: vocabulary, merges, special tokens, chat template with arguments, mode."""
        facts = {
            "template": self._tokenizer.chat_template,
            "names": self._tokenizer.special_tokens_map,
            "args": dict(self.template_args),
            "completions": self.completions,
            "today": TODAY,
        }
        content = self._backend.to_str() + json.dumps(facts, sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()

    @cached_property
    def _specials(self) -> tuple[str, ...]:
        added = self._backend.get_added_tokens_decoder()
        return tuple(token.content for _, token in sorted(added.items()) if token.special)

    def _encode(self, texts: Sequence[str], rows: Sequence[str | None]) -> list[list[int]]:
        try:
            return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        except (TypeError, UnicodeError) as error:
            for text, row in zip(texts, rows, strict=True):
                lone = next((c for c in text if "\ud800" <= c <= "\udfff"), None)
                if lone is not None:
                    raise ConfigError(
                        f"{_prefix(row)}the text has half of a surrogate pair (U+{ord(lone):04X}), "
                        "which no tokenizer can encode; correct the text"
                    ) from error
            raise


def load(source: str, *, template_args: Mapping[str, Any] = _NO_ARGS, completions: bool = False) -> ChatTokenizer:
    """The tokenizer of a .gguf file or of a Hugging Face folder or id; the rest as for ``ChatTokenizer``.

    Raises ConfigError when it is missing, unreadable or of an unsupported kind.
    """
    path = Path(source)
    tokenizer, max_context = _from_gguf(path) if path.suffix == ".gguf" else _from_hugging_face(source)
    return ChatTokenizer(
        tokenizer, source=source, max_context=max_context, template_args=template_args, completions=completions
    )


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


def _from_gguf(path: Path) -> tuple[Any, int | None]:
    found = gguf_tokenizer.load(path)
    tokenizer = _transformers().PreTrainedTokenizerFast(
        tokenizer_object=found.backend, chat_template=found.chat_template, **found.names
    )
    return tokenizer, found.max_context


def _from_hugging_face(source: str) -> tuple[Any, int | None]:
    try:
        tokenizer = _transformers().AutoTokenizer.from_pretrained(source)
    except Exception as error:  # tokenizers raises nothing more special for a damaged tokenizer.json
        raise ConfigError(f"cannot load a tokenizer from {source}: {_first_line(error)}") from error
    limit = tokenizer.model_max_length
    return tokenizer, limit if limit < 10**9 else None


def _backend(tokenizer: Any, source: str) -> Any:
    """The ``tokenizers.Tokenizer`` inside, set to encode whole texts as they are."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(
            f"the tokenizer of {source} is a {type(tokenizer).__name__}, which runs in Python; "
            "give --speedbench-tokenizer a folder with a tokenizer.json"
        )
    # A tokenizer.json can carry the limits of some earlier use.
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = bool(getattr(tokenizer, "split_special_tokens", False))
    return backend


def _check_args(tokenizer: Any, source: str, args: Mapping[str, Any]) -> None:
    """Refuse a tokenizer without a template to use, and arguments that the template does not look at."""
    template = tokenizer.chat_template
    if not template:
        raise ConfigError(
            f"the tokenizer of {source} has no chat template; give --speedbench-tokenizer a folder that has one, "
            "or set completions: true for a base model"
        )
    if not isinstance(template, str) and "default" not in template:
        raise ConfigError(
            f"the tokenizer of {source} has several chat templates and none is named default: "
            f"{', '.join(sorted(template))}; give --speedbench-tokenizer a folder whose chat_template.jinja "
            "is the one to use"
        )
    free = _free_variables(_template(template), source)
    reserved = set(inspect.signature(tokenizer.apply_chat_template).parameters) - {"tools", "documents"}
    known = sorted(free - reserved - {"messages", "raise_exception", "strftime_now", *tokenizer.special_tokens_map})
    unknown = [name for name in args if name not in known]
    if unknown:
        has = f"it looks at {', '.join(known)}" if known else "it takes none"
        raise ConfigError(
            f"the chat template of {source} does not look at {', '.join(unknown)} of chat_template_args; {has}"
        )


def _template(templates: str | Mapping[str, str]) -> str:
    return templates if isinstance(templates, str) else templates["default"]


def _undated(template: str) -> str:
    """The template with a ``strftime_now`` of its own, which always tells the time ``TODAY``."""
    if "strftime_now" not in template:
        return template
    replaced = "".join(f".replace('{code}', '{TODAY.strftime(code)}')" for code in _DATE_CODES)
    # The end of the line belongs to the block, and so does not show.
    return "{% macro strftime_now(format) %}{{ format" + replaced + " }}{% endmacro %}\n" + template


def _free_variables(template: str, source: str) -> set[str]:
    """Names that a chat template takes from outside."""
    from jinja2 import Environment, TemplateSyntaxError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.meta import find_undeclared_variables
    from jinja2.parser import Parser

    class Generation(Extension):
        """``{% generation %}`` of transformers marks what the assistant says, and changes nothing else."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    try:
        return find_undeclared_variables(Environment(extensions=[Generation, loopcontrols]).parse(template))
    except TemplateSyntaxError as error:
        raise ConfigError(
            f"the chat template of {source} is not valid: line {error.lineno}: {error.message}; "
            "give --speedbench-tokenizer a folder with one that is"
        ) from error


def _batches(rows: Sequence[tuple[str, str]]) -> Iterator[Sequence[tuple[str, str]]]:
    begin, characters = 0, 0
    for end, (_, text) in enumerate(rows):
        characters += len(text)
        if characters > _BATCH_CHARACTERS and end > begin:
            yield rows[begin:end]
            begin, characters = end, len(text)
    if begin < len(rows):
        yield rows[begin:]


def _prefix(row: str | None) -> str:
    return "" if row is None else f"row {row}: "


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)

"""One prompt: the eight columns of a SPEED-Bench row, validated."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pytest_speedbench.cells import CATEGORIES, DIFFICULTIES, ISLS
from pytest_speedbench.errors import ConfigError

CONFIGS = ("qualitative", *(f"throughput_{isl}" for isl in ISLS))
SENTINEL = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH"
_SHOWN_CHARS = 60
_SHOWN_IDS = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation of the dataset.

    ``turns`` are the user's messages, at least one, none of them blank. ``category`` is a SPEED-Bench
    category, or the difficulty (entropy tier) in a throughput config; ``difficulty`` is the difficulty
    of the question, if the source grades it. ``multiturn`` is what the file says and is not reliable
    upstream: count ``turns``.
    """

    question_id: str
    category: str
    sub_category: str
    turns: tuple[str, ...]
    source: str
    src_id: str
    difficulty: str
    multiturn: bool

    @property
    def is_placeholder(self) -> bool:
        """Whether a turn is upstream's stand-in for text that its prepare step has yet to fetch."""
        return any(turn.startswith(SENTINEL) for turn in self.turns)

    def digest(self) -> bytes:
        """The identity of the prompt: sha256 over id and turns, each as 8 bytes of length and UTF-8."""
        digest = hashlib.sha256()
        for text in (self.question_id, *self.turns):
            data = text.encode()
            # Lengths keep the borders between turns, so moving text from one to the next changes the hash.
            digest.update(len(data).to_bytes(8, "big"))
            digest.update(data)
        return digest.digest()


def content_sha256(prompts: Iterable[tuple[str, bytes]]) -> str:
    """The identity of a set of prompts, given as (question_id, digest): sha256 over the digests by id."""
    return hashlib.sha256(b"".join(digest for _, digest in sorted(prompts))).hexdigest()


def some_ids(ids: Sequence[str]) -> str:
    """The first few of ``ids`` for a message, and how many there are."""
    shown = ", ".join(ids[:_SHOWN_IDS])
    return shown if len(ids) <= _SHOWN_IDS else f"{shown}, … {len(ids)} in all"


def categories_of(config: str) -> tuple[str, ...]:
    """What the ``category`` column of ``config`` may hold: the categories, or the difficulties."""
    return CATEGORIES if config == "qualitative" else DIFFICULTIES


def parse_row(raw: object, *, config: str, where: str) -> Row:
    """A Row from one decoded record of ``config``.

    Text is in ``turns`` (strings) or, as in the JSONL variant, in ``messages`` (``{role: user,
    content}``). ``question_id``, ``category`` and the text are required; a column that nothing
    measured depends on may be null or absent, and columns that are not known here are ignored, since
    dataset revisions add some (the mini set has ``licence``).

    Raises ConfigError that begins with ``where`` (file and row) and names the column and what it held.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where}: expected an object with the columns of SPEED-Bench, found {_shown(raw)}")
    category = _required(raw, "category", where)
    valid = categories_of(config)
    if category not in valid:
        raise ConfigError(f"{where}: column 'category': {category!r} is not one of {', '.join(valid)}")
    turns = _turns(raw, where)
    multiturn = raw.get("multiturn")
    if not isinstance(multiturn, bool | None):
        raise _mismatch(where, "multiturn", "true or false", multiturn)
    return Row(
        question_id=_required(raw, "question_id", where),
        category=category,
        sub_category=_optional(raw, "sub_category", where),
        turns=turns,
        source=_optional(raw, "source", where),
        src_id=_optional(raw, "src_id", where),
        difficulty=_optional(raw, "difficulty", where),
        multiturn=len(turns) > 1 if multiturn is None else multiturn,
    )


def _turns(raw: Mapping[object, object], where: str) -> tuple[str, ...]:
    turns, messages = raw.get("turns"), raw.get("messages")
    if turns is None and messages is None:
        raise ConfigError(f"{where}: no prompt; expected a column 'turns' or 'messages', found {_names(raw)}")
    if turns is not None and messages is not None:
        raise ConfigError(f"{where}: both 'turns' and 'messages' are set; keep one of them")
    if turns is not None:
        texts = _list(turns, "turns", "a list of strings", where)
        column = "turns"
    else:
        column = "messages"
        items = _list(messages, column, "a list of {role, content}", where)
        texts = [_content(item, f"{column}[{i}]", where) for i, item in enumerate(items)]
    if not texts:
        raise ConfigError(f"{where}: column '{column}' is empty; a row needs at least one user turn")
    return tuple(_text(text, f"{column}[{i}]", where) for i, text in enumerate(texts))


def _content(message: object, column: str, where: str) -> object:
    if not isinstance(message, Mapping):
        raise _mismatch(where, column, "an object with role and content", message)
    if message.get("role") != "user":
        # The model's own replies fill the gaps between user turns, so a stored reply or a system
        # prompt would silently make this another benchmark.
        raise _mismatch(where, f"{column}.role", "'user'", message.get("role"))
    return message.get("content")


def _list(value: object, column: str, expected: str, where: str) -> Sequence[object]:
    if not isinstance(value, list | tuple):
        raise _mismatch(where, column, expected, value)
    return value


def _text(value: object, column: str, where: str) -> str:
    if not isinstance(value, str):
        raise _mismatch(where, column, "a string", value)
    if not value.strip():
        raise _mismatch(where, column, "some text", value)
    return _encodable(value, column, where)


def _required(raw: Mapping[object, object], column: str, where: str) -> str:
    if column not in raw:
        raise ConfigError(f"{where}: column '{column}' is missing; found {_names(raw)}")
    return _text(raw[column], column, where)


def _optional(raw: Mapping[object, object], column: str, where: str) -> str:
    value = raw.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _mismatch(where, column, "a string or null", value)
    return _encodable(value, column, where)


def _encodable(value: str, column: str, where: str) -> str:
    # JSON can spell half of a surrogate pair, which no tokenizer and no hash can take.
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{where}: column '{column}': half of a surrogate pair at character {error.start}; the text is damaged"
        ) from None
    return value


def _mismatch(where: str, column: str, expected: str, found: object) -> ConfigError:
    return ConfigError(f"{where}: column '{column}': expected {expected}, found {_shown(found)}")


def _names(raw: Mapping[object, object]) -> str:
    return ", ".join(map(str, raw)) or "no columns"


def _shown(value: object) -> str:
    if value is None:
        return "null"
    text = repr(value)
    short = text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"
    return f"{type(value).__name__} {short}"

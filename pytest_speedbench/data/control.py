"""The control: prompts of random tokens, to show beside real ones what they do to acceptance and throughput."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

from pytest_speedbench.data.schema import Row
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.names import CONTROL, CONTROL_KINDS

CONSECUTIVE, UNIFORM = CONTROL_KINDS
_ID_CHARS = 32
_WORD_BYTES = 8
_MAX_RAW_PER_TOKEN = 16


class Vocabulary(Protocol):
    """What the control needs of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""

    @property
    def special_ids(self) -> Collection[int]:
        """Ids that ordinary text must not contain: special and added tokens."""

    def encode(self, text: str) -> Sequence[int]:
        """Ids of ``text``, nothing added."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, with U+FFFD for bytes that are no character."""


def rows(kind: str, isl: int, number: int, seed: int, tokenizer: Vocabulary) -> tuple[Row, ...]:
    """``number`` single-turn prompts of ``isl`` tokens, the chat template not counted.

    - ``random`` is the construction of SPEED-Bench's framework: a run of consecutive ids from a random
      start, wrapping at the end of the vocabulary, decoded, encoded, cut to ``isl`` tokens and decoded.
    - ``random-uniform`` draws every id independently and uniformly, and is decoded and cut likewise.

    Both leave special and added tokens out, since a control token spelled out in a prompt would end a
    turn or open a tool call. What is sent is text, and encoding it again merges some neighbours and
    splits others, so the ids of the prompt are close to those drawn and not the same. Random ids
    usually encode to more tokens than were drawn; where they give fewer, more are drawn until there are
    enough to cut, which upstream does not do. Length as ``buckets.fit`` has it: ``isl`` ± 2.

    A prompt depends on ``kind``, ``isl``, ``seed``, its index and the tokenizer: the first 8 of 16 are those of 8.

    Raises ConfigError for an unknown kind, for an ``isl`` or ``number`` below 1, and for a vocabulary
    without ordinary tokens or whose ids give hardly any text.
    """
    if kind not in CONTROL_KINDS:
        raise ConfigError(f"no control {kind!r}; there are {', '.join(CONTROL_KINDS)}")
    if isl < 1 or number < 1:
        raise ConfigError(f"a control needs at least one prompt of one token, not {number} of {isl}")
    special = frozenset(tokenizer.special_ids)
    ordinary = [token for token in range(tokenizer.vocab_size) if token not in special]
    if not ordinary:
        raise ConfigError(f"the tokenizer has no ordinary token: all {tokenizer.vocab_size} ids are special")
    return tuple(_row(kind, isl, f"{kind}/{isl}/{seed}/{index}", ordinary, tokenizer) for index in range(number))


def _row(kind: str, isl: int, name: str, ordinary: Sequence[int], tokenizer: Vocabulary) -> Row:
    return Row(
        question_id=hashlib.sha256(name.encode()).hexdigest()[:_ID_CHARS],
        category=CONTROL,
        sub_category=kind,
        turns=(_prompt(kind, isl, name, ordinary, tokenizer),),
        source="pytest-speedbench control",
        src_id=name,
        difficulty="",
        multiturn=False,
    )


def _prompt(kind: str, isl: int, name: str, ordinary: Sequence[int], tokenizer: Vocabulary) -> str:
    draw = _consecutive if kind == CONSECUTIVE else _uniform
    drawn = isl
    while drawn <= isl * _MAX_RAW_PER_TOKEN:
        ids = tokenizer.encode(tokenizer.decode(draw(name, drawn, ordinary)))
        if len(ids) >= isl:
            return tokenizer.decode(ids[:isl])
        drawn *= 2
    raise ConfigError(
        f"control {kind}: {isl * _MAX_RAW_PER_TOKEN} ids of this tokenizer give fewer than {isl} tokens of text; "
        "does it decode what it encodes?"
    )


def _consecutive(name: str, count: int, ordinary: Sequence[int]) -> list[int]:
    (start,) = _words(name, 1)
    return [ordinary[(start + step) % len(ordinary)] for step in range(count)]


def _uniform(name: str, count: int, ordinary: Sequence[int]) -> list[int]:
    # 64 bits against some 10^5 ids: the remainder favours none by more than one part in 10^14.
    return [ordinary[word % len(ordinary)] for word in _words(name, count)]


def _words(name: str, count: int) -> Iterator[int]:
    """``count`` whole numbers of 64 bits; a longer sequence begins with the shorter one.

    An extendable hash, since the streams of Python's and numpy's generators may change with their version.
    """
    stream = hashlib.shake_256(name.encode()).digest(count * _WORD_BYTES)
    return (word for (word,) in struct.iter_unpack("<Q", stream))

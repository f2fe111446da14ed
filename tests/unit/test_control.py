"""Random-token controls, with the tokenizer of the bundled model and with o200k_base."""

import hashlib
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_speedbench import tokenize
from pytest_speedbench.data import counting
from pytest_speedbench.data.control import Vocabulary, rows
from pytest_speedbench.engines.embedded import find_model
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.names import CONTROL, CONTROL_KINDS

RANDOM, UNIFORM = CONTROL_KINDS
O200K_ORDINARY = 199998


@dataclass(frozen=True)
class Words:
    """A vocabulary that can be followed by hand: id n is a letter, ids 26 and 27 are special."""

    vocab_size: int = 28
    special_ids: Collection[int] = (26, 27)

    def encode(self, text: str) -> Sequence[int]:
        return [ord(letter) - ord("a") for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join("abcdefghijklmnopqrstuvwxyz<>"[token] for token in ids)


@dataclass(frozen=True)
class Pairs(Words):
    """Two neighbours are one token when they are encoded, so that ids drawn give half as many."""

    def encode(self, text: str) -> Sequence[int]:
        return [ord(letter) - ord("a") for letter in text[::2]]


@dataclass(frozen=True)
class Silent(Words):
    """Ids without text."""

    def decode(self, ids: Sequence[int]) -> str:
        return ""


@dataclass(frozen=True)
class Real:
    """A real tokenizer with the ids that ordinary text has not."""

    tokenizer: Any
    vocab_size: int
    special_ids: Collection[int]

    def encode(self, text: str) -> Sequence[int]:
        return list(self.tokenizer.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids))


@cache
def smollm2() -> Vocabulary:
    tokenizer = tokenize.load(str(find_model()))
    special = tokenizer._tokenizer.added_tokens_decoder  # 17 of 49152
    return Real(tokenizer, tokenizer.vocab_size, frozenset(special))


@cache
def o200k() -> Vocabulary:
    return Real(counting.load(), O200K_ORDINARY, frozenset())


REAL = [pytest.param(smollm2, id="smollm2"), pytest.param(o200k, id="o200k_base")]


def first_word(name: str) -> int:
    """The first 64 bits of the stream that a prompt is drawn from, as its docstring says."""
    return int(struct.unpack("<Q", hashlib.shake_256(name.encode()).digest(8))[0])


def test_consecutive_ids_from_a_random_start_wrap_at_the_end_of_the_ordinary_ones() -> None:
    (row,) = rows(RANDOM, 30, 1, 7, Words())
    start = first_word("random/30/7/0") % 26

    assert row.turns[0] == (26 * "abcdefghijklmnopqrstuvwxyz")[start : start + 30]


def test_uniform_ids_are_drawn_one_by_one() -> None:
    (row,) = rows(UNIFORM, 5, 1, 7, Words())
    words = struct.unpack("<5Q", hashlib.shake_256(b"random-uniform/5/7/0").digest(40))

    assert Words().encode(row.turns[0]) == [word % 26 for word in words]


def test_what_a_row_says() -> None:
    (row,) = rows(UNIFORM, 5, 1, 7, Words())

    assert (row.category, row.sub_category, row.src_id) == (CONTROL, UNIFORM, "random-uniform/5/7/0")
    assert row.question_id == hashlib.sha256(b"random-uniform/5/7/0").hexdigest()[:32]
    assert (len(row.turns), row.multiturn, row.difficulty, row.is_placeholder) == (1, False, "", False)
    assert row.source == "pytest-speedbench control"


def test_more_is_drawn_where_ids_encode_to_fewer_tokens() -> None:
    tokenizer = Pairs()
    (row,) = rows(RANDOM, 9, 1, 0, tokenizer)
    start = first_word("random/9/0/0") % 26

    # Every second letter of 18 was one token each.
    assert row.turns[0] == tokenizer.decode([(start + 2 * step) % 26 for step in range(9)])


def test_another_length_is_another_prompt_with_another_id() -> None:
    (short,), (long,) = rows(UNIFORM, 5, 1, 7, Words()), rows(UNIFORM, 6, 1, 7, Words())

    assert short.question_id != long.question_id
    assert not long.turns[0].startswith(short.turns[0])


@pytest.mark.parametrize("kind", CONTROL_KINDS)
def test_the_first_prompts_of_more_are_those_of_fewer(kind: str) -> None:
    assert rows(kind, 20, 16, 3, Words())[:8] == rows(kind, 20, 8, 3, Words())


@pytest.mark.parametrize("kind", CONTROL_KINDS)
def test_kind_seed_and_index_make_other_prompts(kind: str) -> None:
    texts = {row.turns for seed in (0, 1) for row in rows(kind, 40, 20, seed, o200k())}
    ids = {row.question_id for other in CONTROL_KINDS for seed in (0, 1) for row in rows(other, 1, 20, seed, Words())}

    assert len(texts) == 40
    assert len(ids) == 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("shuffled", 5, 1, 0, Words()), "no control 'shuffled'; there are random, random-uniform"),
        ((RANDOM, 0, 1, 0, Words()), "at least one prompt of one token, not 1 of 0"),
        ((RANDOM, 5, 0, 0, Words()), "at least one prompt of one token, not 0 of 5"),
        ((RANDOM, 5, 1, 0, Words(2, (0, 1))), "no ordinary token: all 2 ids are special"),
        ((UNIFORM, 5, 1, 0, Silent()), "80 ids of this tokenizer give fewer than 5 tokens"),
    ],
)
def test_what_cannot_be_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rows(*arguments)


@pytest.mark.parametrize("tokenizer", REAL)
@pytest.mark.parametrize("kind", CONTROL_KINDS)
@settings(max_examples=60, deadline=None)
@given(isl=st.integers(1, 600), seed=st.integers(0, 2**32))
def test_real_tokenizers_give_the_length_that_was_asked_for(tokenizer: Any, kind: str, isl: int, seed: int) -> None:
    for row in rows(kind, isl, 2, seed, tokenizer()):
        (text,) = row.turns
        ids = tokenizer().encode(text)

        assert abs(len(ids) - isl) <= 2
        assert text.encode().decode() == text
        assert not set(ids) & set(tokenizer().special_ids)


@pytest.mark.parametrize("tokenizer", REAL)
@pytest.mark.parametrize("kind", CONTROL_KINDS)
def test_prompts_of_a_bucket_are_exact(tokenizer: Any, kind: str) -> None:
    assert {len(tokenizer().encode(row.turns[0])) for row in rows(kind, 1000, 8, 0, tokenizer())} == {1000}


@pytest.mark.parametrize("tokenizer", REAL)
def test_uniform_prompts_are_spread_over_the_vocabulary(tokenizer: Any) -> None:
    vocabulary = tokenizer()
    ids = [token for row in rows(UNIFORM, 2000, 4, 0, vocabulary) for token in vocabulary.encode(row.turns[0])]

    # 8000 draws of 49152 ids hit 7384 different ones on average, of 199998 ids 7842; encoding again costs some.
    assert len(set(ids)) > 4000
    assert abs(sum(token > vocabulary.vocab_size / 2 for token in ids) / len(ids) - 0.5) < 0.15

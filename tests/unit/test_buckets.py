"""Prompts brought to length: an oracle by hand, a toy tokenizer, and the real o200k_base."""

import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_speedbench.data.buckets import FILLER, fit
from pytest_speedbench.errors import ConfigError


def encode_bytes(text: str) -> list[int]:
    return list(text.encode())


def decode_bytes(ids: Sequence[int]) -> str:
    return bytes(ids).decode(errors="replace")


def test_longer_text_loses_its_tail() -> None:
    assert fit("abcdef", 4, encode_bytes, decode_bytes) == "abcd"


def test_shorter_text_is_padded_with_the_filler_sentence_and_cut() -> None:
    assert fit("abc", 8, encode_bytes, decode_bytes) == "abcAnswe"
    assert fit("", 40, encode_bytes, decode_bytes) == "Answer now please.\nAnswer now please.\nAn"


def test_exact_text_is_returned_unchanged() -> None:
    def decode(ids: Sequence[int]) -> str:
        raise AssertionError("an exact text must not take a round trip through the tokenizer")

    assert fit("abcd", 4, encode_bytes, decode) == "abcd"


def test_padding_is_enough_when_the_gap_is_a_whole_number_of_fillers() -> None:
    gap = 3 * len(encode_bytes(FILLER))

    assert fit("ab", 2 + gap, encode_bytes, decode_bytes) == "ab" + 3 * FILLER


@pytest.mark.parametrize("target", [0, -1])
def test_a_bucket_without_room_is_refused(target: int) -> None:
    with pytest.raises(ConfigError, match="at least one token"):
        fit("abc", target, encode_bytes, decode_bytes)


@given(text=st.text(st.characters(max_codepoint=127)), target=st.integers(1, 400))
def test_is_exact_and_keeps_the_front_for_a_tokenizer_without_merges(text: str, target: int) -> None:
    fitted = fit(text, target, encode_bytes, decode_bytes)

    assert len(encode_bytes(fitted)) == target
    assert (text + FILLER * 400).startswith(fitted)


def _o200k() -> Any:
    with warnings.catch_warnings():
        # bpe-openai opens its tables by a function that Python 3.11 and 3.12 deprecate.
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module("bpe_openai").get_encoding("o200k_base")


O200K = _o200k()


def encode_o200k(text: str) -> list[int]:
    return list(O200K.encode(text, disallowed_special=()))


def decode_o200k(ids: Sequence[int]) -> str:
    return str(O200K.decode(list(ids)))


# Words, numbers, punctuation and white space of several scripts. Arbitrary code points would mostly test cuts
# inside a character, which the next test is for.
PIECES = (
    *(
        "the ",
        "Speculative",
        " decoding",
        "\n\n",
        "  ",
        "\t",
        "12345",
        "3.14",
        "don't ",
        "!!!",
        "...",
        "Answer",
        " please",
    ),
    *("été ", "straße ", "これは", "数学", "مدينة ", "स्टेशन ", "город "),
    *("def f(x):\n    return x\n", "https://example.org/a?b=c ", "<|endoftext|>"),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=120), target=st.integers(1, 200))
def test_o200k_prompts_are_within_two_tokens_of_the_bucket(pieces: list[str], target: int) -> None:
    fitted = fit("".join(pieces), target, encode_o200k, decode_o200k)

    if "\ufffd" not in fitted:
        assert abs(len(encode_o200k(fitted)) - target) <= 2


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=300), target=st.integers(1, 300))
def test_o200k_takes_any_text_and_keeps_its_front(text: str, target: int) -> None:
    fitted = fit(text, target, encode_o200k, decode_o200k)

    assert (text + FILLER * target).startswith(fitted.split("\ufffd")[0])

"""Prompts brought to length: an oracle by hand, a toy tokenizer, and the real o200k_base."""

import re
from collections.abc import Callable, Sequence
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_speedbench.data import counting
from pytest_speedbench.data.buckets import FILLER, TOLERANCE, fit
from pytest_speedbench.engines.embedded import find_model
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


O200K = counting.load()
encode_o200k, decode_o200k = O200K.encode, O200K.decode


@cache
def smollm2() -> counting.Counting:
    """The tokenizer of the bundled model, which knows control tokens and has none for some control characters."""
    return counting.load(str(find_model()))


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


# Several code points and many bytes that are one sign to the eye, and characters that have no sign.
SIGNS = (
    "👩‍👩‍👧‍👦",
    "🏳️‍🌈",
    "👍🏽",
    "é",
    "क्षि",
    "한국",
    "𝔘",
    "\u200d",
    "\u202e",
    "\x00",
    "\x1b[0m",
    "\x7f",
    "\ufeff",
    "\u2028",
)
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")

texts = st.lists(st.sampled_from(PIECES), max_size=120).map("".join)
hard_texts = st.one_of(
    st.lists(st.sampled_from((*PIECES, *SIGNS, *SPECIAL)), max_size=80).map("".join), st.text(max_size=300)
)

Tokenizer = Callable[[], counting.Counting]
both = pytest.mark.parametrize(
    "tokenizer", [pytest.param(lambda: O200K, id="o200k_base"), pytest.param(smollm2, id="smollm2")]
)
thorough = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@both
@thorough
@given(text=texts, target=st.integers(1, 200))
def test_text_whole_at_the_cut_is_within_two_tokens_of_the_bucket(tokenizer: Tokenizer, text: str, target: int) -> None:
    count = tokenizer()
    fitted = fit(text, target, count.encode, count.decode)

    if "\ufffd" not in fitted:
        assert abs(len(count.encode(fitted)) - target) <= TOLERANCE


@both
@thorough
@given(text=hard_texts, target=st.integers(1, 300))
def test_any_text_keeps_its_front(tokenizer: Tokenizer, text: str, target: int) -> None:
    count = tokenizer()
    fitted = fit(text, target, count.encode, count.decode)

    assert (text + FILLER * (target + 1)).startswith(fitted.rstrip("\ufffd"))


@both
@thorough
@given(text=hard_texts, target=st.integers(1, 300))
def test_any_text_comes_near_its_bucket(tokenizer: Tokenizer, text: str, target: int) -> None:
    count = tokenizer()

    # What a cut leaves of one character may be up to 4 bytes, each a token, or nothing.
    assert abs(len(count.encode(fit(text, target, count.encode, count.decode))) - target) <= TOLERANCE + 4


@both
@thorough
@given(text=hard_texts, target=st.integers(1, 300))
def test_padding_only_appends_filler(tokenizer: Tokenizer, text: str, target: int) -> None:
    count = tokenizer()
    if len(count.encode(text)) >= target - TOLERANCE:
        return
    fitted = fit(text, target, count.encode, count.decode)

    assert fitted.startswith(text)
    assert (FILLER * target).startswith(fitted[len(text) :])


@both
@thorough
@given(text=hard_texts, target=st.integers(1, 300))
def test_a_bucket_of_its_own_length_changes_nothing(tokenizer: Tokenizer, text: str, target: int) -> None:
    count = tokenizer()
    own = len(count.encode(text))

    assert fit(text, own, count.encode, count.decode) == text if own else True
    fitted = fit(text, target, count.encode, count.decode)
    if len(count.encode(fitted)) == target:
        assert fit(fitted, target, count.encode, count.decode) == fitted


@both
@thorough
@given(text=texts, target=st.integers(8, 200))
def test_fitting_again_changes_the_last_tokens_only(tokenizer: Tokenizer, text: str, target: int) -> None:
    count = tokenizer()
    once = fit(text, target, count.encode, count.decode)
    twice = fit(once, target, count.encode, count.decode)
    kept = fit(once, target - 2 * TOLERANCE, count.encode, count.decode).rstrip("\ufffd")

    assert twice.startswith(kept)
    assert abs(len(count.encode(twice)) - target) <= TOLERANCE + once.count("\ufffd")


def test_ids_that_the_caller_has_are_not_computed_again() -> None:
    def encode(text: str) -> list[int]:
        raise AssertionError("the text is encoded already")

    assert fit("abcdef", 4, encode, decode_bytes, ids=encode_bytes("abcdef")) == "abcd"


# Tokenizers that do not give back what they took


def test_control_tokens_in_a_text_stay_where_decoding_drops_them() -> None:
    count = smollm2()
    text = "one two <|im_end|> three four five six seven"
    assert "<|im_end|>" not in count.decode(count.encode(text))

    # One token for each word and for the control token, and one for the space before it.
    assert fit(text, 6, count.encode, count.decode) == "one two <|im_end|> three four"


def test_tidied_spaces_stay() -> None:
    def decode(ids: Sequence[int]) -> str:
        return decode_bytes(ids).replace(" .", ".")

    assert fit("ab . cdef", 6, encode_bytes, decode) == "ab . c"


def test_a_token_at_the_start_of_every_text_does_not_leave_the_padding_short() -> None:
    def encode(text: str) -> list[int]:
        return [0, *encode_bytes(text)]

    def decode(ids: Sequence[int]) -> str:
        return decode_bytes([token for token in ids if token])

    # The filler alone counts 20 for 19 letters: ten copies are 191 tokens, and the text has four.
    fitted = fit("abc", 204, encode, decode)

    assert len(encode(fitted)) == 204


def test_a_tokenizer_without_tokens_for_the_filler_is_refused() -> None:
    def encode(text: str) -> list[str]:
        return re.findall("[xy]", text)

    with pytest.raises(ConfigError, match="cannot pad to 5 tokens: 3 copies of 'Answer now please"):
        fit("xy", 5, encode, "".join)  # type: ignore[arg-type]

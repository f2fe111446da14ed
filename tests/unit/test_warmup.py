"""Warm-up prompts and the rule that ends a warm-up."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_speedbench.load.driver import Conversation
from pytest_speedbench.load.warmup import MAX_ROUNDS, Warmup, conversations, rough_length
from pytest_speedbench.tokenize import ChatTokenizer
from tests.emulator.llamacpp import byte_tokenizer, text_of

tokenizer = cache(byte_tokenizer)
TEMPLATE = 47
"""Tokens of a warm-up prompt with nothing added; a token of this tokenizer is a byte."""
ROUNDS = range(MAX_ROUNDS)


def made(number: int, length: int, round_index: int) -> tuple[Conversation, ...]:
    return conversations(tokenizer(), number=number, length=length, round_index=round_index)


def shared_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def longest_shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    return max(shared_prefix(a, b) for a, b in pairwise(sorted(map(tuple, prompts))))


# Prompts


def test_a_prompt_in_full() -> None:
    (conversation,) = made(1, TEMPLATE + 9, 0)
    assert (conversation.question_id, conversation.category) == ("warm-up-0-0", "warm-up")
    assert conversation.user_turns == ("warm-up-0-0",)
    begin, end = "<|im_start|>user\nRequest 0.0: go o", "n counting.<|im_end|>\n<|im_start|>assistant\n"
    text = text_of(list(conversation.first_ids))
    assert (text[: len(begin)], text[-len(end) :]) == (begin, end)
    assert set(text[len(begin) : -len(end)]) <= set(" zeronethwufivsxg")
    assert len(text) == len(begin) + 9 + len(end)


@pytest.mark.parametrize("length", [TEMPLATE, TEMPLATE + 1, 1000, 2048])
@pytest.mark.parametrize("number", [1, 7])
def test_the_length_is_reached_exactly(number: int, length: int) -> None:
    prompts = [c.first_ids for c in made(number, length, 0)]
    assert [len(ids) for ids in prompts] == [length] * number


@pytest.mark.parametrize("length", [-5, 0, 1, TEMPLATE - 1])
def test_below_the_template_a_prompt_is_the_template(length: int) -> None:
    (conversation,) = made(1, length, 3)
    assert conversation.first_ids == tokenizer().ids([{"role": "user", "content": "Request 3.0: go on counting."}])


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 400), st.integers(0, MAX_ROUNDS - 1))
def test_a_prompt_is_a_whole_chat(number: int, length: int, round_index: int) -> None:
    for conversation in made(number, length, round_index):
        text = text_of(list(conversation.first_ids))
        assert text.startswith(f"<|im_start|>user\nRequest {round_index}.")
        assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert text.count("<|im_end|>") == 1


@pytest.mark.parametrize("number", [1, 2, 16, 33])
@pytest.mark.parametrize("length", [0, 300])
def test_no_prompt_and_no_name_comes_twice(number: int, length: int) -> None:
    every = [conversation for round_index in ROUNDS for conversation in made(number, length, round_index)]
    assert len(every) == MAX_ROUNDS * number
    assert len({c.first_ids for c in every}) == len({c.question_id for c in every}) == len(every)


def test_a_round_is_the_same_every_time() -> None:
    assert made(3, 200, 4) == made(3, 200, 4)


def with_system_prompt() -> ChatTokenizer:
    """Many templates begin with a text of their own: here the middle of the prompt comes before the user's text."""
    template = "<|im_start|>system\n" + "You are a helpful assistant. " * 4 + "<|im_end|>\n"
    template += "<|im_start|>user\n{{ messages[0]['content'] }}<|im_end|>\n<|im_start|>assistant\n"
    chat = ChatTokenizer(copy.deepcopy(tokenizer()._tokenizer), source="bytes", max_context=None)
    chat._tokenizer.chat_template = template
    return chat


@pytest.mark.parametrize(
    ("number", "system"),
    [
        *((number, False) for number in (1, 7, 16, 33)),
        *((number, True) for number in (1, 7, 16, 33)),
    ],
)
def test_no_two_prompts_share_a_long_prefix(number: int, system: bool) -> None:
    chat = with_system_prompt() if system else tokenizer()
    shortest = len(conversations(chat, number=1, length=0, round_index=0)[0].first_ids)
    prompts = [
        c.first_ids
        for round_index in ROUNDS
        for c in conversations(chat, number=number, length=1000, round_index=round_index)
    ]
    # What they share is the beginning of the template.
    assert longest_shared_prefix(prompts) < shortest


@pytest.mark.parametrize(
    ("tokens", "rough"),
    [(0, 128), (1, 128), (128, 128), (129, 256), (256, 256), (257, 512), (1000, 1024), (1024, 1024), (1025, 2048)],
)
def test_lengths_are_warmed_in_powers_of_two(tokens: int, rough: int) -> None:
    assert rough_length(tokens) == rough


@given(st.integers(129, 10**6))
def test_a_rough_length_is_less_than_twice_the_length(tokens: int) -> None:
    assert tokens <= rough_length(tokens) < 2 * tokens


# Until the pace is steady


@pytest.mark.parametrize(
    ("seconds", "steady"),
    [
        ((), False),
        ((1.0,), False),
        ((1.0, 1.0), True),
        ((1.0, 1.249), True),
        ((1.0, 1.251), False),
        ((1.249, 1.0), True),
        ((1.251, 1.0), False),
        ((30.0, 2.0), False),
        ((30.0, 2.0, 2.1), True),
        ((2.0, 2.0, 30.0), False),
        ((0.001, 0.001), True),
        ((0.0, 1.0), False),
        ((1.0, 0.0), False),
        ((0.0, 0.0), False),
    ],
)
def test_steady(seconds: tuple[float, ...], steady: bool) -> None:
    assert Warmup(seconds).steady is steady


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_steady_is_about_the_ratio_either_way(before: float, last: float) -> None:
    assert Warmup((before, last)).steady == Warmup((last, before)).steady


@pytest.mark.parametrize(
    ("seconds", "over"),
    [
        ((), False),
        ((5.0,), False),
        ((5.0, 2.0), False),
        ((5.0, 2.0, 2.0), True),
        # Never steady: 8 rounds are enough.
        ((1.0, 2.0) * 3 + (1.0,), False),
        ((1.0, 2.0) * 4, True),
        # Two minutes are, after the first round as well.
        ((119.9,), False),
        ((120.0,), True),
        ((90.0, 29.9), False),
        ((90.0, 30.0), True),
    ],
)
def test_over(seconds: tuple[float, ...], over: bool) -> None:
    assert Warmup(seconds).over is over

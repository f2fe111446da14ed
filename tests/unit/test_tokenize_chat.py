"""Chat templates and their arguments, completion mode, ids of many prompts at once, the cache of them."""

from __future__ import annotations

import copy
import json
from array import array
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_speedbench.errors import ConfigError
from pytest_speedbench.token_cache import TokenCache
from pytest_speedbench.tokenize import TODAY, ChatTokenizer, Message, load
from tests.emulator.llamacpp import EOS, byte_tokenizer

START = 256
HELLO: list[Message] = [{"role": "user", "content": "Hi"}]
LONG: list[Message] = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
]


plain = cache(byte_tokenizer)


def of(template: Any, *, source: str = "bytes", **options: Any) -> ChatTokenizer:
    """``byte_tokenizer`` with another chat template. BOS and EOS are those of ChatML."""
    tokenizer = copy.deepcopy(plain()._tokenizer)
    tokenizer.chat_template = template
    tokenizer.bos_token, tokenizer.eos_token = "<|im_start|>", "<|im_end|>"
    return ChatTokenizer(tokenizer, source=source, max_context=None, **options)


def refused(template: Any, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        of(template, **options)
    return str(caught.value)


# BOS


def test_a_bos_that_the_template_emits_is_there_once() -> None:
    assert of("{{ bos_token }}{{ messages[0].content }}").ids(HELLO) == (START, *b"Hi")


def test_a_bos_that_the_template_does_not_emit_is_not_there() -> None:
    assert of("{{ messages[0].content }}").ids(HELLO) == tuple(b"Hi")


def adding_bos() -> Any:
    from tokenizers import processors

    tokenizer = copy.deepcopy(plain()._tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", START)]
    )
    tokenizer.bos_token = "<|im_start|>"
    return tokenizer


def test_a_tokenizer_that_adds_a_bos_does_not_add_a_second_one() -> None:
    tokenizer = adding_bos()
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0].content }}"
    chat = ChatTokenizer(tokenizer, source="bytes", max_context=None)
    assert tokenizer.encode(chat.render(HELLO)) == [START, START, *b"Hi"]  # what would be sent as text
    assert chat.ids(HELLO) == (START, *b"Hi")
    assert chat.first_ids([("q", "Hi")]) == [array("I", [START, *b"Hi"])]


# Limits of some earlier use


def test_truncation_and_padding_in_the_file_are_not_applied(tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(plain()._tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=8)
    tokenizer.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "tokenizer.json").read_text())
    assert written["truncation"]["max_length"] == 5
    assert written["padding"]["strategy"] == {"Fixed": 8}
    chat = load(str(tmp_path))
    for text in ("123456789", "12"):
        assert chat.encode(text) == tuple(text.encode())
    assert [list(ids) for ids in chat.first_ids([("a", "1234"), ("b", "12345678")])] == [
        list(chat.ids([{"role": "user", "content": text}])) for text in ("1234", "12345678")
    ]


def test_the_spaces_of_a_reply_are_kept(tmp_path: Path) -> None:
    plain()._tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    clean_up = (
        "clean_up_tokenization_spaces",
        "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
    )
    path.write_text(json.dumps(json.loads(path.read_text()) | dict.fromkeys(clean_up, True)))
    reply = "Hi , you . I 'm n't  here !"
    chat = load(str(tmp_path))
    assert chat._tokenizer.decode([*reply.encode()]) != reply
    assert chat.decode(tuple(reply.encode())) == reply


# Special tokens in what a user typed


def test_special_tokens_that_a_user_typed_are_special_and_reported() -> None:
    # As upstream and every engine that gets the rendered chat as text.
    chat = plain()
    assert chat.ids([{"role": "user", "content": "a<|im_end|>b"}]).count(EOS) == 2
    assert chat.ids([{"role": "user", "content": "a<|im_end |>b"}]).count(EOS) == 1
    assert chat.spelled_specials("a<|im_end|>b<|im_end|><|im_start|>") == ("<|im_start|>", "<|im_end|>")
    assert chat.spelled_specials("<|im_end |> <|IM_END|> im_end") == ()


# Arguments of the template

THINKING = (
    "{% if enable_thinking is defined and enable_thinking is false %}<no>{% endif %}"
    "{% for m in messages %}{{ m.content }}{% endfor %}{{ budget }}{{ eos_token }}"
    "{% if add_generation_prompt %}:{% endif %}{% if tools %}T{% endif %}"
)


def test_arguments_reach_the_template() -> None:
    assert of(THINKING).render(HELLO) == "Hi<|im_end|>:"
    off = of(THINKING, template_args={"enable_thinking": False, "budget": 7})
    assert off.render(HELLO) == "<no>Hi7<|im_end|>:"
    assert off.ids(HELLO) == off.encode(off.render(HELLO))
    assert of(THINKING, template_args={"enable_thinking": True}).render(HELLO) == of(THINKING).render(HELLO)
    assert of(THINKING, template_args={"tools": [{"name": "f"}]}).render(HELLO).endswith("T")


def test_arguments_that_the_template_does_not_look_at_are_refused() -> None:
    assert refused(THINKING, source="org/model", template_args={"thinking": False, "budget": 1}) == (
        "the chat template of org/model does not look at thinking of chat_template_args; "
        "it looks at budget, enable_thinking, tools"
    )
    assert refused("{{ messages[0].content }}", template_args={"a": 1, "b": 2}) == (
        "the chat template of bytes does not look at a, b of chat_template_args; it takes none"
    )


@pytest.mark.parametrize(
    "name", ["messages", "add_generation_prompt", "bos_token", "eos_token", "raise_exception", "strftime_now"]
)
def test_what_is_not_the_users_to_set_is_refused(name: str) -> None:
    template = "{{ bos_token }}{{ strftime_now('%Y') }}{% if a %}{{ raise_exception('x') }}{% endif %}" + THINKING
    assert f"does not look at {name} of chat_template_args; it looks at a, budget" in refused(
        template, template_args={name: 1}
    )


@pytest.mark.parametrize("name", ["tokenize", "chat_template", "conversation", "kwargs", "return_dict"])
def test_arguments_of_the_renderer_are_no_arguments_of_the_template(name: str) -> None:
    assert "it takes none" in refused("{{ messages }}{{ " + name + " }}", template_args={name: 1})


def test_tags_of_transformers_are_understood() -> None:
    template = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{% generation %}{{ m.content }}{{ x }}"
        "{% endgeneration %}{% endfor %}"
    )
    assert of(template, template_args={"x": "!"}).render(LONG) == "one!"


def test_the_date_is_the_same_every_day() -> None:
    template = "{{ strftime_now('%d %b %Y') if not date_string is defined else date_string }}"
    assert of(template).render(HELLO) == "01 Jan 2026"
    assert of(template, template_args={"date_string": "26 Jul 2024"}).render(HELLO) == "26 Jul 2024"
    inside = "{% macro head() %}{{ 'on ' + strftime_now('%Y-%m-%d') }}{% endmacro %}{{ head() }}"
    assert of(inside).render(HELLO) == "on 2026-01-01"
    every = "%A %B %-d %Y, %H:%M:%S; %F %T %y %j"
    assert of("{{ strftime_now('" + every + "') }}").render(HELLO) == TODAY.strftime(every)


@pytest.mark.parametrize(
    "start", ["", "\n", "\n\n", "  ", "  {% if true %}x{% endif %}", "{%- if true %}\n  x{% endif %}"]
)
def test_a_date_in_the_template_changes_nothing_else(start: str) -> None:
    template = start + "{{ messages[0].content }}\n."
    assert of(template + "{% set now = strftime_now('%Y') %}").render(HELLO) == of(template).render(HELLO)


# Templates that cannot be used


@pytest.mark.parametrize("template", [None, "", {}])
def test_no_template(template: Any) -> None:
    assert refused(template) == (
        "the tokenizer of bytes has no chat template; give --speedbench-tokenizer a folder that has one, "
        "or set completions: true for a base model"
    )


def test_several_templates() -> None:
    two = {"default": "D{{ messages[0].content }}{{ mood }}", "tool_use": "T"}
    assert of(two, template_args={"mood": "!"}).render(HELLO) == "DHi!"
    assert refused({"tool_use": "T", "rag": "R"}) == (
        "the tokenizer of bytes has several chat templates and none is named default: rag, tool_use; "
        "give --speedbench-tokenizer a folder whose chat_template.jinja is the one to use"
    )


def test_several_templates_in_a_folder(tmp_path: Path) -> None:
    plain()._tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    path = tmp_path / "tokenizer_config.json"
    named = [{"name": "rag", "template": "R"}, {"name": "tool_use", "template": "T"}]
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"chat_template": named}))
    with pytest.raises(ConfigError, match="none is named default: rag, tool_use"):
        load(str(tmp_path))
    named.append({"name": "default", "template": "D{{ messages[0].content }}"})
    path.write_text(json.dumps(config | {"chat_template": named}))
    assert load(str(tmp_path)).render(HELLO) == "DHi"


def test_a_template_with_an_error() -> None:
    assert refused("line one\n{% if messages %}\n{% endfor %}").startswith(
        "the chat template of bytes is not valid: line 3: "
    )


FAILING: Mapping[str, tuple[str, str]] = {
    "raise_exception": (
        "{{ raise_exception('Conversation roles must alternate\nuser/assistant') }}",
        "Conversation roles must alternate",
    ),
    "undefined": ("{{ messages[0].nothing.more }}", "'dict object' has no attribute 'nothing'"),
    "type": ("{{ messages[0].content + 1 }}", 'can only concatenate str (not "int") to str'),
    "arithmetic": ("{{ 1 // 0 }}", "integer division or modulo by zero"),
    "without a message": ("{{ raise_exception('') }}", "TemplateError"),
}


@pytest.mark.parametrize("failure", FAILING)
def test_a_template_that_fails_names_the_row(failure: str) -> None:
    template, message = FAILING[failure]
    chat = of("{% if messages[0].content == 'bad' %}" + template + "{% endif %}ok")
    expected = f"the chat template of bytes does not take this chat of 1 messages: {message}; leave the row out"
    with pytest.raises(ConfigError) as caught:
        chat.first_ids([("q-1", "good"), ("q-2", "bad"), ("q-3", "good")])
    assert str(caught.value).startswith(f"row q-2: {expected}")
    with pytest.raises(ConfigError) as caught:
        chat.ids([{"role": "user", "content": "bad"}])
    assert str(caught.value).startswith(expected)
    with pytest.raises(ConfigError) as caught:
        chat.ids([{"role": "user", "content": "bad"}], row="q-9")
    assert str(caught.value).startswith(f"row q-9: {expected}")


def test_a_tokenizer_in_python_is_refused() -> None:
    from transformers import ByT5Tokenizer

    with pytest.raises(ConfigError, match=r"^the tokenizer of org/model is a ByT5Tokenizer, which runs in Python; "):
        ChatTokenizer(ByT5Tokenizer(), source="org/model", max_context=None, completions=True)


def test_half_a_surrogate_pair_names_the_row() -> None:
    with pytest.raises(ConfigError) as caught:
        plain().first_ids([("q-1", "fine"), ("q-2", "a\ud83d")])
    assert str(caught.value) == (
        "row q-2: the text has half of a surrogate pair (U+D83D), which no tokenizer can encode; correct the text"
    )


# Completion mode


def test_completions_are_the_last_text_of_the_user_and_nothing_else() -> None:
    for template in (None, THINKING):
        chat = of(template, completions=True)
        assert chat.ids(LONG) == tuple(b"three")
        assert chat.ids([*LONG, {"role": "assistant", "content": "four"}]) == tuple(b"three")
        assert chat.first_ids([("q", "one")]) == [array("I", [*b"one"])]
    adding = ChatTokenizer(adding_bos(), source="bytes", max_context=None, completions=True)
    assert adding.ids(LONG) == tuple(b"three")


def test_completions_take_no_template_arguments() -> None:
    assert refused(THINKING, completions=True, template_args={"enable_thinking": False}) == (
        "chat_template_args (enable_thinking) have no effect with completions, which use no chat template; "
        "leave one of them out"
    )


def test_load_passes_them_on(tmp_path: Path) -> None:
    plain()._tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(THINKING)
    assert load(str(tmp_path), template_args={"budget": 5}).render(HELLO) == "Hi5:"
    (tmp_path / "chat_template.jinja").unlink()
    assert load(str(tmp_path), completions=True).ids(LONG) == tuple(b"three")


# The hash


def test_all_that_ids_depend_on_is_in_the_hash() -> None:
    other_names = of(THINKING)
    other_names._tokenizer.eos_token = "<|im_start|>"
    every = [
        of(THINKING),
        of(THINKING + " "),
        of(THINKING, template_args={"budget": 1}),
        of(THINKING, template_args={"budget": "1"}),
        of(THINKING, template_args={"budget": 1, "enable_thinking": False}),
        of(THINKING, completions=True),
        of({"default": THINKING}),
        other_names,
    ]
    assert len({chat.sha256 for chat in every}) == len(every)


def test_the_hash_is_that_of_the_content() -> None:
    one = of(THINKING, source="here", template_args={"budget": 1, "enable_thinking": False})
    two = of(THINKING, source="there", template_args={"enable_thinking": False, "budget": 1})
    assert one.sha256 == two.sha256


# Many prompts at once

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXT, max_size=12), characters=st.integers(1, 60))
def test_many_at_once_are_as_one_by_one(texts: list[str], characters: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pytest_speedbench.tokenize._BATCH_CHARACTERS", characters)
        found = plain().first_ids([(f"q{i}", text) for i, text in enumerate(texts)])
    assert {ids.typecode for ids in found} <= {"I"}
    assert [tuple(ids) for ids in found] == [plain().ids([{"role": "user", "content": text}]) for text in texts]


def test_ids_come_from_the_cache_the_second_time(tmp_path: Path) -> None:
    rows = [("q1", "one"), ("q2", "日本 👩‍🚀"), ("q3", "")]
    tokens = TokenCache(tmp_path)
    found = of(THINKING).first_ids(rows, tokens)
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns, file.read_bytes()
    # Another object, other row ids: the content is the key. The template would fail if it were rendered.
    again = of(THINKING)
    again._tokenizer.apply_chat_template = None
    assert again.first_ids([(f"x{name}", text) for name, text in rows], tokens) == found == of(THINKING).first_ids(rows)
    assert (*tmp_path.iterdir(),) == (file,)
    assert file.read_bytes() == written[1]


@pytest.mark.parametrize("change", ["template", "args", "completions", "order", "text", "fewer"])
def test_what_changes_ids_is_not_taken_from_the_cache(tmp_path: Path, change: str) -> None:
    rows = [("q1", "one"), ("q2", "two")]
    of(THINKING).first_ids(rows, TokenCache(tmp_path))
    chat = {
        "template": of(THINKING + "!"),
        "args": of(THINKING, template_args={"budget": 3}),
        "completions": of(THINKING, completions=True),
    }.get(change, of(THINKING))
    rows = {"order": rows[::-1], "text": [("q1", "one"), ("q2", "twO")], "fewer": rows[:1]}.get(change, rows)
    assert chat.first_ids(rows, TokenCache(tmp_path)) == chat.first_ids(rows)
    assert len([*tmp_path.iterdir()]) == 2


def test_another_version_of_what_encodes_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("q1", "one")]
    of(THINKING).first_ids(rows, TokenCache(tmp_path))
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99" if name == "tokenizers" else "1")
    of(THINKING).first_ids(rows, TokenCache(tmp_path))
    assert len([*tmp_path.iterdir()]) == 2


def test_a_refused_row_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        of("{{ raise_exception('no') }}").first_ids([("q", "x")], TokenCache(tmp_path))
    assert [*tmp_path.iterdir()] == []

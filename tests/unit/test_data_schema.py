"""Rows: what is accepted, and what an error says."""

from typing import Any

import pytest

from pytest_speedbench.cells import CATEGORIES, DIFFICULTIES
from pytest_speedbench.data.schema import CONFIGS, SENTINEL, Row, parse_row
from pytest_speedbench.errors import ConfigError

WHERE = "data/qualitative.jsonl, line 7"


def raw(**changes: object) -> dict[str, Any]:
    row: dict[str, Any] = {
        "question_id": "0f" * 16,
        "category": "coding",
        "sub_category": "python",
        "turns": ["Write a queue.", "Now without a list."],
        "source": "https://example.org/set@1",
        "src_id": "12",
        "difficulty": "easy",
        "multiturn": True,
    }
    row.update(changes)
    return row


def without(*columns: str) -> dict[str, Any]:
    return {name: value for name, value in raw().items() if name not in columns}


def parse(value: object, config: str = "qualitative") -> Row:
    return parse_row(value, config=config, where=WHERE)


def test_configs_are_those_of_speed_bench() -> None:
    assert CONFIGS == (
        "qualitative",
        "throughput_1k",
        "throughput_2k",
        "throughput_8k",
        "throughput_16k",
        "throughput_32k",
    )


def test_all_eight_columns_are_kept() -> None:
    assert parse(raw()) == Row(
        question_id="0f" * 16,
        category="coding",
        sub_category="python",
        turns=("Write a queue.", "Now without a list."),
        source="https://example.org/set@1",
        src_id="12",
        difficulty="easy",
        multiturn=True,
    )


def test_messages_stand_in_for_turns() -> None:
    messages = [{"role": "user", "content": "Write a queue."}, {"role": "user", "content": "Now without a list."}]

    assert parse({**without("turns"), "messages": messages}) == parse(raw())


def test_null_and_absent_are_the_same_for_columns_that_nothing_measured_depends_on() -> None:
    optional = ("sub_category", "source", "src_id", "difficulty", "multiturn")

    absent = parse(without(*optional))
    null = parse(raw(**dict.fromkeys(optional)))

    assert absent == null
    assert (absent.sub_category, absent.source, absent.src_id, absent.difficulty) == ("", "", "", "")


@pytest.mark.parametrize(("turns", "expected"), [(["a"], False), (["a", "b"], True)])
def test_multiturn_follows_the_turns_where_the_file_does_not_say(turns: list[str], expected: bool) -> None:
    assert parse({**without("multiturn"), "turns": turns}).multiturn is expected


def test_the_files_own_multiturn_is_kept_even_where_it_is_wrong() -> None:
    assert parse(raw(multiturn=False)).multiturn is False


def test_unknown_columns_are_ignored() -> None:
    assert parse(raw(licence="MIT", extras="{}")) == parse(raw())


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_category_is_valid_in_the_qualitative_config(category: str) -> None:
    assert parse(raw(category=category)).category == category


@pytest.mark.parametrize("config", CONFIGS[1:])
@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_the_category_of_a_throughput_row_is_its_difficulty(config: str, difficulty: str) -> None:
    assert parse(raw(category=difficulty), config).category == difficulty


@pytest.mark.parametrize(
    ("config", "category", "valid"),
    [("qualitative", "mixed", CATEGORIES), ("throughput_8k", "coding", DIFFICULTIES)],
)
def test_an_unknown_category_lists_the_valid_ones(config: str, category: str, valid: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(raw(category=category), config)

    assert str(caught.value) == f"{WHERE}: column 'category': '{category}' is not one of {', '.join(valid)}"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["turns"], "expected an object with the columns of SPEED-Bench, found list ['turns']"),
        (without("question_id"), "column 'question_id' is missing; found category, sub_category, turns"),
        (raw(question_id=12), "column 'question_id': expected a string, found int 12"),
        (raw(question_id=" "), "column 'question_id': expected some text, found str ' '"),
        (raw(category=None), "column 'category': expected a string, found null"),
        (raw(turns="Write a queue."), "column 'turns': expected a list of strings, found str 'Write a queue.'"),
        (raw(turns=["a", 3]), "column 'turns[1]': expected a string, found int 3"),
        (raw(turns=["a", "\n"]), "column 'turns[1]': expected some text, found str '\\n'"),
        (raw(turns=[]), "column 'turns' is empty; a row needs at least one user turn"),
        (without("turns"), "no prompt; expected a column 'turns' or 'messages', found question_id"),
        (raw(messages=[{"role": "user", "content": "a"}]), "both 'turns' and 'messages' are set"),
        (raw(sub_category=3), "column 'sub_category': expected a string or null, found int 3"),
        (raw(multiturn="yes"), "column 'multiturn': expected true or false, found str 'yes'"),
        (raw(multiturn=1), "column 'multiturn': expected true or false, found int 1"),
        (raw(turns=["a \ud83d b"]), "column 'turns[0]': half of a surrogate pair at character 2"),
    ],
)
def test_an_error_names_place_column_and_what_was_found(value: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(value)

    assert str(caught.value).startswith(f"{WHERE}: {message}")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (["hello"], "column 'messages[0]': expected an object with role and content, found str 'hello'"),
        ([{"role": "assistant", "content": "x"}], "column 'messages[0].role': expected 'user', found str 'assistant'"),
        ([{"content": "x"}], "column 'messages[0].role': expected 'user', found null"),
        ([{"role": "user"}], "column 'messages[0]': expected a string, found null"),
        ({"role": "user"}, "column 'messages': expected a list of {role, content}, found dict"),
    ],
)
def test_messages_other_than_the_users_are_refused(messages: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse({**without("turns"), "messages": messages})

    assert str(caught.value).startswith(f"{WHERE}: {message}")


def test_a_long_value_is_shortened_in_the_error() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(raw(turns="x" * 10_000))

    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([SENTINEL], True),
        ([f"{SENTINEL}\n\n{{question}}"], True),
        (["Hello", SENTINEL], True),
        (["Hello"], False),
        ([f"Explain the line: {SENTINEL}"], False),
    ],
)
def test_placeholders_are_told_by_how_a_turn_begins(turns: list[str], expected: bool) -> None:
    assert parse(raw(turns=turns)).is_placeholder is expected


def test_the_sentinel_is_upstreams() -> None:
    assert SENTINEL == "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH"

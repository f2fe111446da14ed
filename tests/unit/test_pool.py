"""Reading a pool of candidates: what a line may be, derived ids, and errors that name the line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pytest_speedbench.data.pool import read_pool, record, text_of
from pytest_speedbench.data.schema import SENTINEL, parse_row
from pytest_speedbench.errors import ConfigError


def write(folder: Path, *lines: dict[str, Any] | str | bytes) -> Path:
    path = folder / "pool.jsonl"
    encoded = (
        line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
        for line in lines
    )
    path.write_bytes(b"".join(line + b"\n" for line in encoded))
    return path


def candidate(text: str = "Why?", **columns: object) -> dict[str, Any]:
    return {"category": "qa", "prompt": text, **columns}


class TestRead:
    def test_the_three_forms_of_a_prompt(self, tmp_path: Path) -> None:
        path = write(
            tmp_path,
            {"question_id": "a", "category": "qa", "prompt": "One?"},
            {"question_id": "b", "category": "math", "turns": ["Two?", "And?"], "source": "mine", "unknown": 1},
            {"question_id": "c", "category": "qa", "messages": [{"role": "user", "content": "Three?"}]},
        )
        found = read_pool(path)
        assert [(row.question_id, row.turns) for row in found.candidates] == [
            ("a", ("One?",)),
            ("b", ("Two?", "And?")),
            ("c", ("Three?",)),
        ]
        assert found.candidates[1].source == "mine"
        assert found.repeated == 0

    def test_categories_and_their_candidates_are_in_order(self, tmp_path: Path) -> None:
        path = write(
            tmp_path,
            candidate("1", question_id="z"),
            candidate("2", question_id="b", category="coding"),
            candidate("3", question_id="a"),
        )
        by_category = read_pool(path).by_category()
        assert {name: [row.question_id for row in rows] for name, rows in by_category.items()} == {
            "coding": ["b"],
            "qa": ["a", "z"],
        }
        assert list(by_category) == ["coding", "qa"]

    def test_a_derived_id_is_sha256_over_the_turns(self, tmp_path: Path) -> None:
        (row,) = read_pool(write(tmp_path, candidate("Grüße"))).candidates
        assert row.question_id == hashlib.sha256(b'["Gr\\u00fc\\u00dfe"]').hexdigest()[:32]

    def test_the_border_between_turns_counts(self, tmp_path: Path) -> None:
        path = write(
            tmp_path,
            {"category": "qa", "turns": ["a b"]},
            {"category": "qa", "turns": ["a", "b"]},
            {"category": "qa", "turns": ["a\n\nb"]},
        )
        assert len({row.question_id for row in read_pool(path).candidates}) == 3

    def test_a_repeated_text_without_ids_is_left_out(self, tmp_path: Path) -> None:
        found = read_pool(write(tmp_path, candidate("a"), candidate("b"), candidate("a"), candidate("a")))
        assert [row.turns for row in found.candidates] == [("a",), ("b",)]
        assert found.repeated == 2

    def test_a_repeated_text_with_ids_of_its_own_stays(self, tmp_path: Path) -> None:
        found = read_pool(write(tmp_path, candidate(question_id="a"), candidate(question_id="b"), candidate()))
        assert len(found.candidates) == 3

    def test_blank_lines_a_byte_order_mark_and_line_separators(self, tmp_path: Path) -> None:
        text = json.dumps(candidate("a\u2028b"), ensure_ascii=False).encode()
        path = write(tmp_path, b"\xef\xbb\xbf" + text, b"", b"  ", candidate("c"))
        assert [row.turns for row in read_pool(path).candidates] == [("a\u2028b",), ("c",)]


class TestErrors:
    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (b'{"category": "qa", "prompt": "\xff"}', r"line 2: not UTF-8 \(invalid start byte at byte 30"),
            ('{"category": "qa", "prom', r"line 2: not JSON \(.* at column 25"),
            ("[" * 100_000, "line 2: not a row"),
            ("[]", "line 2: expected an object"),
            (candidate(category="poetry"), "line 2: column 'category': 'poetry' is not one of coding"),
            ({"prompt": "no category"}, "line 2: column 'category' is missing"),
            ({"category": "qa"}, "line 2: no prompt"),
            (candidate("  "), "line 2: .*expected some text"),
            (candidate(question_id=7), "line 2: column 'question_id': expected a string"),
            ({"category": "qa", "prompt": ["a"]}, r"line 2: column 'turns\[0\]': expected a string"),
            (candidate("a", turns=["b"]), "line 2: 'prompt' beside 'turns' or 'messages'"),
            (candidate(SENTINEL), "line 2: a placeholder of SPEED-Bench"),
            (candidate(question_id="first"), "line 2: question_id 'first' is taken by line 1"),
        ],
    )
    def test_name_the_line(self, tmp_path: Path, line: dict[str, Any] | str | bytes, message: str) -> None:
        path = write(tmp_path, candidate("First.", question_id="first"), line)
        with pytest.raises(ConfigError, match=message) as caught:
            read_pool(path)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("given_first", [False, True])
    def test_a_given_id_may_not_be_a_derived_one(self, tmp_path: Path, given_first: bool) -> None:
        (row,) = read_pool(write(tmp_path, candidate("a"))).candidates
        lines = [candidate("a"), candidate("b", question_id=row.question_id)]
        path = write(tmp_path, *(lines[::-1] if given_first else lines))
        with pytest.raises(ConfigError, match=r"line 2: question_id .* is taken by line 1"):
            read_pool(path)

    def test_one_text_in_two_categories(self, tmp_path: Path) -> None:
        path = write(tmp_path, candidate("a"), candidate("a", category="math"))
        with pytest.raises(ConfigError, match="line 2: the text of line 1 again, there in category 'qa' and here in"):
            read_pool(path)

    def test_an_empty_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no candidates"):
            read_pool(write(tmp_path, ""))

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot be read"):
            read_pool(tmp_path / "none.jsonl")


class TestRecord:
    def test_is_read_back_as_the_same_row(self, tmp_path: Path) -> None:
        path = write(
            tmp_path, {"category": "qa", "turns": ["a", "b"], "source": "s", "src_id": "3", "difficulty": "hard"}
        )
        (row,) = read_pool(path).candidates
        assert parse_row(json.loads(json.dumps(record(row))), config="qualitative", where="") == row
        assert row.multiturn

    def test_text_has_all_turns(self, tmp_path: Path) -> None:
        (row,) = read_pool(write(tmp_path, {"category": "qa", "turns": ["a", "b"]})).candidates
        assert text_of(row) == "a\n\nb"

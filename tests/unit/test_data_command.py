"""``speedbench data check``: what a dataset has, and whether it can be measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_speedbench.cli import main
from pytest_speedbench.data.schema import SENTINEL
from pytest_speedbench.engines import embedded
from pytest_speedbench.tokenize import load


def write(folder: Path, *rows: dict[str, object]) -> None:
    (folder / "qualitative.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def row(number: int, category: str, *turns: str) -> dict[str, object]:
    return {"question_id": f"{number:032x}", "category": category, "turns": turns, "multiturn": True}


def test_the_inventory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, row(1, "qa", "Who?"), row(2, "qa", "Where?", "Why?"), row(3, "coding", "Sort."))

    assert main(["data", "check", str(tmp_path)]) == 0

    first, head, coding, qa = capsys.readouterr().out.splitlines()
    assert first == f"{tmp_path.name}  {tmp_path}"
    assert head.split() == ["cell", "prompts", "masked", "multi-turn", "turns", "characters", "sha256"]
    assert coding.split()[:-1] == ["qualitative-coding", "1", "0", "0", "1", "5"]
    assert qa.split()[:-1] == ["qualitative-qa", "2", "0", "1", "3", "14"]
    assert len(qa.split()[-1]) == 12


def test_placeholders_are_no_success_unless_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, row(1, "qa", SENTINEL), row(2, "qa", "Where?"), row(3, "math", SENTINEL))

    assert main(["data", "check", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0].startswith(f"{tmp_path.name}+partial")
    assert [line.split()[:3] for line in shown.out.splitlines()[2:]] == [
        ["qualitative-math", "0", "1"],
        ["qualitative-qa", "1", "1"],
    ]
    assert shown.err.startswith("2 prompts are placeholders; prepare_data.py --config qualitative --output_dir DIR")
    assert main(["data", "check", str(tmp_path), "--allow-partial"]) == 0


def test_with_a_tokenizer_lengths_and_special_tokens_that_a_user_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, row(1, "qa", "Who?"), row(2, "qa", "What is <|im_end|> for?"))
    model = str(embedded.find_model())

    assert main(["data", "check", str(tmp_path), "--tokenizer", model]) == 0

    *_, qa, spelled = capsys.readouterr().out.splitlines()
    lengths = [
        len(load(model).ids([{"role": "user", "content": text}])) for text in ("Who?", "What is <|im_end|> for?")
    ]
    assert f"{min(lengths)}/{sum(lengths) / 2:.0f}/{max(lengths)}" in qa.split()
    assert spelled == f"{2:032x} spells special tokens: <|im_end|>"


def test_a_damaged_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "qualitative.jsonl").write_text("{")

    assert main(["data", "check", str(tmp_path)]) == 4
    assert capsys.readouterr().err.startswith(f"speedbench: {tmp_path / 'qualitative.jsonl'}, line 1: not JSON")

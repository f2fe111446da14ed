"""``speedbench data buckets``: difficulties, lengths, what is written and what is refused."""

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench import tokenize
from pytest_speedbench.data import counting, make_buckets, tiers
from pytest_speedbench.data.buckets import FILLER
from pytest_speedbench.data.lengths import Lengths
from pytest_speedbench.data.loading import load
from pytest_speedbench.data.make_buckets import BucketsReport, run
from pytest_speedbench.data.schema import SENTINEL, Row
from pytest_speedbench.engines.embedded import find_model
from pytest_speedbench.errors import ConfigError

LOW, MIXED, HIGH = "low_entropy", "mixed", "high_entropy"
NAMES = {"coding": LOW, "stem": MIXED, "writing": HIGH}
counted = cache(counting.load)


def words(count: int, word: str = " token") -> str:
    """Text of as many o200k_base tokens."""
    return (word * count).strip()


def record(number: int, category: str = "coding", tokens: int = 1000, **columns: Any) -> dict[str, Any]:
    return {
        "question_id": f"{number:032x}",
        "category": category,
        "sub_category": "inner",
        "turns": [words(tokens)],
        "source": "https://example.org/data",
        "src_id": str(number),
        "difficulty": "easy",
        "multiturn": False,
    } | columns


def pool_of(path: Path, records: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in records))
    return path


def three(per_category: int, **columns: Any) -> list[dict[str, Any]]:
    return [
        record(100 * place + number, category, **columns)
        for place, category in enumerate(NAMES)
        for number in range(per_category)
    ]


def written(output: Path, isl: str = "1k") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / f"throughput_{isl}.jsonl").read_text().splitlines()]


def make(pool: Path, output: Path, **options: Any) -> BucketsReport:
    defaults: dict[str, Any] = {"isls": ["1k"], "rule": tiers.by_name(NAMES), "per_cell": None}
    return run(pool, output, **(defaults | options))


# What is written


def test_prompts_are_padded_cut_or_left(tmp_path: Path) -> None:
    short, long_, exact = (record(i, tokens=n) for i, n in enumerate((800, 1500, 1000)))
    pool = pool_of(tmp_path / "pool.jsonl", [short, long_, exact, record(3, "stem"), record(4, "writing")])
    report = make(pool, tmp_path / "out")
    texts = {row["question_id"]: row["turns"][0] for row in written(tmp_path / "out")}

    # The filler is four tokens: 50 copies for 200.
    assert texts[short["question_id"]] == words(800) + FILLER * 50
    assert texts[long_["question_id"]] == words(1000)
    assert texts[exact["question_id"]] == words(1000)
    low = report.cells[0]
    assert (low.isl, low.difficulty, low.prompts, low.padded, low.cut, low.exact) == ("1k", LOW, 3, 1, 1, 1)
    assert low.filler_share == pytest.approx(200 / 3000)
    assert low.tokens == Lengths(1000, 1000.0, 1000)


def test_a_row_keeps_what_it_was_beside_its_difficulty(tmp_path: Path) -> None:
    make(pool_of(tmp_path / "pool.jsonl", three(1)), tmp_path / "out")

    assert written(tmp_path / "out")[0] == record(0) | {"category": LOW, "sub_category": "coding"}


def test_the_output_is_a_dataset(tmp_path: Path) -> None:
    report = make(pool_of(tmp_path / "pool.jsonl", three(2)), tmp_path / "out", isls=["2k", "1k"], dataset_id="own@1")
    dataset = load(str(tmp_path / "out"))

    assert dataset.id == "own@1"
    assert {point.name for point in dataset.points()} == {
        f"{isl}-{tier}" for isl in ("1k", "2k") for tier in NAMES.values()
    }
    assert [(cell.isl, cell.difficulty) for cell in report.cells] == [
        (isl, tier) for isl in ("1k", "2k") for tier in (LOW, MIXED, HIGH)
    ]
    content = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert content["tokenizer"] == report.tokenizer == counted().name
    assert content["buckets"] == json.loads(json.dumps(asdict(report)))
    data = (tmp_path / "out" / "throughput_1k.jsonl").read_bytes()
    assert content["files"]["throughput_1k.jsonl"] == {"sha256": hashlib.sha256(data).hexdigest(), "rows": 6}


def test_the_folder_gives_its_name(tmp_path: Path) -> None:
    make(pool_of(tmp_path / "pool.jsonl", three(1)), tmp_path / "deeper" / "own-traffic")

    assert load(str(tmp_path / "deeper" / "own-traffic")).id == "own-traffic"


def test_a_pool_with_difficulties_needs_no_names(tmp_path: Path) -> None:
    records = [record(i, tier, sub_category="chat") for i, tier in enumerate((HIGH, LOW, MIXED))]
    report = make(pool_of(tmp_path / "pool.jsonl", records), tmp_path / "out", rule=tiers.by_name({}))

    assert [(row["category"], row["sub_category"]) for row in written(tmp_path / "out")] == [
        (LOW, "chat"),
        (MIXED, "chat"),
        (HIGH, "chat"),
    ]
    assert report.tiers == "the pool's own"


def test_a_folder_of_files_is_one_pool(tmp_path: Path) -> None:
    folder = tmp_path / "pool"
    (folder / "more").mkdir(parents=True)
    pool_of(folder / "b.jsonl", [record(0), record(1, "stem")])
    pool_of(folder / "a.jsonl", [record(2, HIGH)])
    pq.write_table(pa.Table.from_pylist([record(3, "writing")]), folder / "more" / "c.parquet")
    (folder / "manifest.json").write_text("{}")
    make(folder, tmp_path / "out")

    assert [row["question_id"][-1] for row in written(tmp_path / "out")] == ["0", "1", "2", "3"]


def test_the_same_prompts_are_taken_in_whatever_order_they_stand(tmp_path: Path) -> None:
    records = three(12)
    make(pool_of(tmp_path / "a.jsonl", records), tmp_path / "a", per_cell=5, seed=3)
    make(pool_of(tmp_path / "b.jsonl", records[::-1]), tmp_path / "b", per_cell=5, seed=3)
    make(pool_of(tmp_path / "c.jsonl", records), tmp_path / "c", per_cell=5, seed=4)
    make(tmp_path / "a.jsonl", tmp_path / "d", per_cell=7, seed=3)
    taken = {name: {row["question_id"] for row in written(tmp_path / name)} for name in "abcd"}

    assert len(taken["a"]) == 15
    assert taken["a"] == taken["b"] != taken["c"]
    assert taken["a"] < taken["d"]


def test_the_target_says_what_its_template_makes_of_a_prompt(tmp_path: Path) -> None:
    records = [*three(1, tokens=700), record(9, tokens=5)]
    report = make(pool_of(tmp_path / "pool.jsonl", records), tmp_path / "out", target=str(find_model()))
    chat = tokenize.load(str(find_model()))
    lengths = [
        len(chat.ids([{"role": "user", "content": row["turns"][0]}]))
        for row in written(tmp_path / "out")
        if row["category"] == LOW
    ]

    assert report.cells[0].templated == Lengths(min(lengths), sum(lengths) / 2, max(lengths))
    assert 1000 < min(lengths) < max(lengths)  # another tokenizer and a template
    assert report.target == find_model().name


def test_lengths_in_tokens_of_the_target(tmp_path: Path) -> None:
    source = str(find_model())
    report = make(pool_of(tmp_path / "pool.jsonl", three(1)), tmp_path / "out", tokenizer=source)
    count = counting.load(source)

    assert {len(count.encode(row["turns"][0])) for row in written(tmp_path / "out")} == {1000}
    assert report.tokenizer == find_model().name
    assert report.cells[0].tokens == Lengths(1000, 1000.0, 1000)


# Which prompts


def test_prompts_that_would_be_mostly_filler_are_not_taken(tmp_path: Path) -> None:
    records = [*three(1), record(10, tokens=800), record(11, tokens=799), record(12, tokens=5000)]
    pool = pool_of(tmp_path / "pool.jsonl", records)
    report = make(pool, tmp_path / "out", max_padding=0.2)
    taken = {row["src_id"] for row in written(tmp_path / "out")}

    assert {"0", "10", "12"} <= taken
    assert "11" not in taken
    assert report.cells[0].filler_share == pytest.approx(200 / 3000)


def test_too_few_prompts_are_refused_by_cell(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool.jsonl", [record(0), record(1), record(2, "stem")])

    with pytest.raises(ConfigError, match=r"fewer than 2 prompts for 1k-mixed \(1\), 1k-high_entropy \(0\)"):
        make(pool, tmp_path / "out", per_cell=2)
    assert [path.name for path in tmp_path.iterdir()] == ["pool.jsonl"]


def test_an_empty_cell_is_refused_also_where_all_are_taken(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool.jsonl", [record(0), record(2, "stem")])

    with pytest.raises(ConfigError, match=r"fewer than 1 prompts for 1k-high_entropy \(0\)"):
        make(pool, tmp_path / "out")


def test_allow_short_takes_what_there_is(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool.jsonl", [record(0), record(1), record(2, "stem")])
    report = make(pool, tmp_path / "out", per_cell=2, allow_short=True)

    assert [(cell.difficulty, cell.prompts) for cell in report.cells] == [(LOW, 2), (MIXED, 1)]
    assert Counter(row["category"] for row in written(tmp_path / "out")) == {LOW: 2, MIXED: 1}


def test_a_bucket_without_prompts_is_refused_also_with_allow_short(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool.jsonl", three(1))

    with pytest.raises(ConfigError, match="no prompt for 32k; allow more filler"):
        make(pool, tmp_path / "out", isls=["1k", "32k"], max_padding=0.5, allow_short=True)


# Refusals


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([record(0), record(1, turns=["a", "b"])], r"1 of 2 prompts have several turns \(0{31}1\)"),
        ([record(0), record(1, turns=[SENTINEL + " x"])], r"1 of 2 prompts are placeholders of SPEED-Bench \(0{31}1\)"),
        ([record(0), record(0)], r"the same question_id more than once: 0{32}"),
        ([record(0), record(1, LOW)], "line 2: column 'category': 'low_entropy' is not one of coding"),
        ([record(0, LOW), record(1)], "line 2: column 'category': 'coding' is not one of low_entropy"),
        ([record(0, "chat")], "line 1: column 'category': 'chat' is not one of coding"),
        ([record(0, turns=[" " * 300_000 + "a"])], r"question 0{32}: its first 1000 tokens are blank"),
        (["text"], "line 1: expected an object"),
        ([], "no prompts; expected"),
    ],
)
def test_pools_that_cannot_be_used(tmp_path: Path, records: list[object], message: str) -> None:
    pool = pool_of(tmp_path / "pool.jsonl", records)

    with pytest.raises(ConfigError, match=message):
        make(pool, tmp_path / "out", allow_short=True)
    assert [path.name for path in tmp_path.iterdir()] == ["pool.jsonl"]


@pytest.mark.parametrize("name", ["gone.jsonl", "gone", "pool.csv"])
def test_a_pool_that_is_no_pool(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        make(tmp_path / name, tmp_path / "out")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool.jsonl", three(1))
    output = tmp_path / "out"
    output.mkdir()
    for place in (output, pool):
        with pytest.raises(ConfigError, match="exists; name a new folder"):
            make(pool, place)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool.jsonl", three(1))

    with pytest.raises(ConfigError, match=r"cannot write .*out: Not a directory"):
        make(pool, pool / "out")


@pytest.mark.parametrize("isls", [[], ["4k"], ["1k", "1K"]])
def test_buckets_that_there_are_not(tmp_path: Path, isls: list[str]) -> None:
    with pytest.raises(ConfigError, match="the buckets are 1k, 2k, 8k, 16k, 32k"):
        make(pool_of(tmp_path / "pool.jsonl", three(1)), tmp_path / "out", isls=isls)


# Difficulties


def row(number: int, category: str) -> Row:
    return Row(str(number), category, "", ("text",), "", "", "", False)


def test_an_id_goes_before_its_category_and_skip_leaves_out() -> None:
    found = tiers.by_name({"coding": LOW, "1": HIGH, "2": tiers.SKIP, "qa": tiers.SKIP})(
        [row(0, "coding"), row(1, "coding"), row(2, "coding"), row(3, "qa"), row(4, MIXED)]
    )

    assert found.by_id == {"0": LOW, "1": HIGH, "4": MIXED}
    assert found.rule == "coding = low_entropy, qa = skip; 2 by question_id"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"coding": "easy"}, "no difficulty: coding=easy; there are low_entropy, mixed, high_entropy"),
        ({"code": LOW, "coding": LOW}, "difficulty given for code, which is no category"),
        ({"qa": LOW}, "no difficulty for coding, math: give each one, or skip"),
    ],
)
def test_names_that_do_not_fit_the_pool(names: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiers.by_name(names)([row(0, "coding"), row(1, "math")])


def measured(path: Path, values: Sequence[float]) -> Path:
    return pool_of(path, [{"question_id": str(i), "entropy": value} for i, value in enumerate(values)])


def test_thirds_by_entropy(tmp_path: Path) -> None:
    path = measured(tmp_path / "entropy.jsonl", [0.9, 0.1, 2.5, 0.2, 1.1, 3.0, 99.0])
    found = tiers.by_entropy(path)([row(i, "qa") for i in range(6)])  # the seventh is not in the pool

    assert found.by_id == {"1": LOW, "3": LOW, "0": MIXED, "4": MIXED, "2": HIGH, "5": HIGH}
    assert found.rule == "entropy of entropy.jsonl, cuts at 0.2 and 1.1"


def test_a_value_on_a_cut_belongs_below_it(tmp_path: Path) -> None:
    path = measured(tmp_path / "entropy.jsonl", [0.8, 0.81, 1.6, 1.61])
    found = tiers.by_entropy(path, (0.8, 1.6))([row(i, "qa") for i in range(4)])

    assert list(found.by_id.values()) == [LOW, MIXED, MIXED, HIGH]


@given(values=st.lists(st.floats(0, 10), min_size=1, max_size=60))
def test_thirds_are_in_order_and_equal_values_stay_together(values: list[float]) -> None:
    first, second = tiers._tertiles(values)
    low, up_to_mixed = (sum(value <= cut for value in values) for cut in (first, second))

    assert first <= second
    assert low * 3 >= len(values)
    assert up_to_mixed * 3 >= 2 * len(values)
    if len(set(values)) == len(values):
        assert low == -(-len(values) // 3)
        assert up_to_mixed == -(-2 * len(values) // 3)


def test_prompts_without_a_measurement_are_named(tmp_path: Path) -> None:
    path = measured(tmp_path / "entropy.jsonl", [0.5])

    with pytest.raises(ConfigError, match=r"no entropy for 1, 2, 3, … 4 in all \(4 of 5 prompts of the pool\)"):
        tiers.by_entropy(path)([row(i, "qa") for i in range(5)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question_id": "0"}', "line 1: expected an object with question_id and entropy"),
        ('{"question_id": "0", "entropy": 1}\n\n[1]', "line 3: expected an object with question_id and entropy"),
        ('{"question_id": "0", "entropy": "1"}', "line 1: expected a text and a number, found '0' and '1'"),
        ('{"question_id": 0, "entropy": 1}', "line 1: expected a text and a number, found 0 and 1"),
        ('{"question_id": "0", "entropy": true}', "line 1: expected a text and a number"),
        ('{"question_id": "0", "entropy": NaN}', "line 1: an entropy is a number from 0 up, not nan"),
        ('{"question_id": "0", "entropy": -0.1}', "line 1: an entropy is a number from 0 up, not -0.1"),
        ('{"question_id": "0", "entropy": 1}\n{"question_id": "0", "entropy": 1}', "line 2: .* measured twice"),
        ("[" * 100_000, "line 1: expected an object"),
        ("\xff", "line 1: expected an object"),
        ("\n", "no measurement; expected"),
    ],
)
def test_measurements_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "entropy.jsonl"
    path.write_bytes(text.encode("latin-1"))

    with pytest.raises(ConfigError, match=message):
        tiers.by_entropy(path)([row(0, "qa")])


@pytest.mark.parametrize("cuts", [(1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (1.0, float("inf")), (float("nan"), 1.0)])
def test_cuts_that_do_not_part(tmp_path: Path, cuts: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="give two numbers from 0 up, the lower one first"):
        tiers.by_entropy(tmp_path / "entropy.jsonl", cuts)


@pytest.mark.parametrize(
    ("content", "names"),
    [("coding: low_entropy\nqa: skip\n", {"coding": LOW, "qa": "skip"}), ('{"coding": "mixed"}', {"coding": MIXED})],
)
def test_names_from_a_file(tmp_path: Path, content: str, names: dict[str, str]) -> None:
    path = tmp_path / "tiers.yaml"
    path.write_text(content)

    assert tiers.read_names(path) == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- coding", "expected 'category: difficulty' lines, found list"),
        (b"", "found NoneType"),
        (b"coding: 1", "expected a text for a text, found 'coding': 1; put it in quotes"),
        (b"1: mixed", "found 1: 'mixed'"),
        (b"a: [", "neither YAML nor JSON"),
        (b"\xff\xfe\xff", "neither YAML nor JSON"),
        (b"a: &a [*a]", "expected a text for a text"),
        (b"[" * 20_000, "neither YAML nor JSON"),
    ],
)
def test_files_without_names(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "tiers.yaml"
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=message):
        tiers.read_names(path)


# The command


def command(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    make_buckets.add_arguments(parser)
    return make_buckets.command(parser.parse_args([str(argument) for argument in arguments]))


def test_the_command_prints_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = pool_of(tmp_path / "pool.jsonl", [record(0, tokens=500), record(1, "stem"), record(2, "writing")])
    tier = "coding=low_entropy,stem=mixed"
    code = command(
        *(pool, tmp_path / "out", "--isl", "1k,2k", "--tier", tier, "--tier", "writing=high_entropy"),
        *("--per-cell", "all", "--id", "own@2", "--target", find_model()),
    )
    lines = capsys.readouterr().out.splitlines()

    assert code == 0
    assert lines[0] == (
        f"own@2: lengths in tokens of {counted().name}; "
        "difficulty: coding = low_entropy, stem = mixed, writing = high_entropy"
    )
    assert lines[1].split()[:7] == ["cell", "prompts", "padded", "cut", "exact", "filler", "tokens"]
    assert lines[2].split()[:7] == ["1k-low_entropy", "1", "1", "0", "0", "50.0%", "1000/1000"]
    assert lines[7].split()[:7] == ["2k-high_entropy", "1", "1", "0", "0", "50.0%", "2000/2000"]
    assert len(lines) == 9
    assert "--speedbench-dataset=" in lines[8]


def test_the_command_takes_measurements_and_a_file_of_names(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool.jsonl", three(1))
    ids = [item["question_id"] for item in three(1)]
    entropy = pool_of(
        tmp_path / "entropy.jsonl", [{"question_id": name, "entropy": i} for i, name in enumerate(ids[::-1])]
    )
    names = tmp_path / "tiers.yaml"
    names.write_text("coding: high_entropy\nstem: mixed\nwriting: skip\n")
    common = ("--isl", "1k", "--per-cell", "1")
    command(pool, tmp_path / "a", *common, "--entropy", entropy)
    command(pool, tmp_path / "b", *common, "--entropy", entropy, "--entropy-cuts", "0,1.5")
    command(pool, tmp_path / "c", *common, "--tier-file", names, "--tier", "writing=low_entropy")

    for name in "abc":
        assert [item["sub_category"] for item in written(tmp_path / name)] == ["writing", "stem", "coding"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--entropy-cuts", "1,2"], "--entropy-cuts needs --entropy"),
        (["--entropy", "e", "--tier", "qa=mixed"], "measured or given, not both"),
        (["--entropy", "e", "--tier-file", "f"], "measured or given, not both"),
    ],
)
def test_options_that_exclude_each_other(tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        command("pool.jsonl", tmp_path / "out", *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tier", "coding"], "expected category=difficulty"),
        (["--tier", ""], "expected category=difficulty"),
        (["--tier", "=mixed"], "expected category=difficulty"),
        (["--entropy-cuts", "1"], "expected two numbers"),
        (["--entropy-cuts", "a,b"], "expected two numbers"),
        (["--per-cell", "0"], "expected a number from 1 up, or all"),
        (["--per-cell", "-1"], "expected"),
        (["--per-cell", "many"], "expected a number from 1 up, or all"),
        (["--max-padding", "120%"], "give a share from 0 to 1"),
        (["--max-padding", "nan"], "give a share from 0 to 1"),
        (["--max-padding", "little"], "give a share from 0 to 1"),
    ],
)
def test_options_that_do_not_parse(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit):
        command("pool.jsonl", "out", *arguments)
    assert message in capsys.readouterr().err


def test_a_share_of_filler_in_per_cent(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool.jsonl", [*three(1), record(9, tokens=799)])
    tier = [item for name, value in NAMES.items() for item in ("--tier", f"{name}={value}")]
    command(pool, tmp_path / "out", "--isl", "1k", "--per-cell", "all", "--max-padding", "20%", *tier)

    assert len(written(tmp_path / "out")) == 3

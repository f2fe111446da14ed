"""The bundled dataset: what its data card promises, and that damage is refused."""

import hashlib
import json
import re
import shutil
import time
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import pytest_speedbench.data.loading as loading
from pytest_speedbench.cells import CATEGORIES, DIFFICULTIES, SPLITS, Axes, Cell, expand, isl_tokens
from pytest_speedbench.data.buckets import FILLER
from pytest_speedbench.data.dataset import Dataset, config_of
from pytest_speedbench.data.loading import load
from pytest_speedbench.data.schema import Row
from pytest_speedbench.errors import ConfigError
from tests.unit.test_buckets import encode_o200k

MINI = Path(loading.__file__).parent / "mini"
CONFIGS = ("qualitative", "throughput_1k", "throughput_2k")


@pytest.fixture(scope="module")
def mini() -> Dataset:
    return load("mini")


def rows_of(dataset: Dataset, config: str) -> tuple[Row, ...]:
    return dataset.rows(dataset.entries_by_config[config])


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((MINI / "manifest.json").read_text(encoding="utf-8"))
    return parsed


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for config in CONFIGS
        for line in (MINI / f"{config}.jsonl").read_text(encoding="utf-8").split("\n")
        if line
    ]


def test_its_name_says_that_it_is_not_speed_bench(mini: Dataset) -> None:
    assert mini.id == "speed-bench-mini@1"


def test_eleven_categories_of_eight_prompts(mini: Dataset) -> None:
    rows = rows_of(mini, "qualitative")

    assert Counter(row.category for row in rows) == dict.fromkeys(CATEGORIES, 8)


@pytest.mark.parametrize("config", CONFIGS[1:])
def test_three_difficulties_of_sixteen_prompts(mini: Dataset, config: str) -> None:
    rows = rows_of(mini, config)

    assert Counter(row.category for row in rows) == dict.fromkeys(DIFFICULTIES, 16)
    assert all(len(row.turns) == 1 for row in rows)


def test_it_plans_every_category_and_both_buckets(mini: Dataset) -> None:
    cells = expand(Axes(splits=SPLITS), mini.points(), {"qualitative": (1,), "throughput": (4,)})

    assert len(cells) == 12 + 6
    assert cells[11] == Cell("qualitative", 1, category="overall")


def test_many_conversations_have_more_than_one_turn(mini: Dataset) -> None:
    rows = [row for row in rows_of(mini, "qualitative") if len(row.turns) > 1]

    assert len(rows) >= 12
    assert {row.category for row in rows} == set(CATEGORIES) - {"qa", "summarization"}
    assert all(row.multiturn == (len(row.turns) > 1) for config in CONFIGS for row in rows_of(mini, config))


def test_ids_are_32_hex_characters_and_unique_in_the_whole_set(records: list[dict[str, Any]]) -> None:
    ids = [record["question_id"] for record in records]

    assert len(ids) == len(set(ids)) == 88 + 48 + 48
    assert all(re.fullmatch(r"[0-9a-f]{32}", question_id) for question_id in ids)


def test_no_prompt_comes_twice(records: list[dict[str, Any]]) -> None:
    assert len({json.dumps(record["turns"]) for record in records}) == len(records)


def test_every_row_has_a_source_and_a_licence_that_the_data_card_lists(records: list[dict[str, Any]]) -> None:
    card = (MINI / "README.md").read_text(encoding="utf-8")
    notices = {path.stem for path in (MINI / "licences").iterdir()}
    spdx = r"(MIT|Apache-2\.0|BSD-3-Clause|LicenseRef-Public-Domain)"

    for record in records:
        assert re.fullmatch(rf"{spdx}( AND {spdx})*", record["licence"]), record["question_id"]
        for source in record["source"].split():
            if source == "pytest-speedbench-own-prompts":
                assert "Apache-2.0" in record["licence"]
                continue
            package, version = re.fullmatch(r"pkg:pypi/([a-z0-9-]+)@([0-9.]+)#\S+", source).groups()  # type: ignore[union-attr]
            assert re.search(rf"`{package}`[^|]* {re.escape(version)}", card), source
            if "Public-Domain" not in record["licence"]:
                assert package in notices, source


def test_the_data_card_says_what_it_is_not() -> None:
    card = (MINI / "README.md").read_text(encoding="utf-8")

    assert "It is not SPEED-Bench" in card
    assert "speed-bench-mini@1" in card


def test_throughput_prompts_fit_their_bucket_within_two_tokens(mini: Dataset, manifest: dict[str, Any]) -> None:
    for config in CONFIGS[1:]:
        target = isl_tokens(config.removeprefix("throughput_"))
        for row in rows_of(mini, config):
            tokens = len(encode_o200k(row.turns[0]))
            assert abs(tokens - target) <= 2
            assert tokens == manifest["tokens"][config][row.question_id]


def test_throughput_prompts_are_hardly_padded(mini: Dataset) -> None:
    rows = [row for config in CONFIGS[1:] for row in rows_of(mini, config)]

    assert max(row.turns[0].count(FILLER) for row in rows) <= 30


def test_qualitative_prompts_are_cheap(mini: Dataset) -> None:
    lengths = [len(encode_o200k(row.turns[0])) for row in rows_of(mini, "qualitative")]

    assert max(lengths) <= 604
    assert sum(lengths) / len(lengths) == pytest.approx(112, abs=0.5)


SCRIPTS = {"ja": "HIRAGANA", "zh": "CJK", "ar": "ARABIC", "hi": "DEVANAGARI", "ru": "CYRILLIC"}
LETTERS = {"de": "äöüß", "fr": "éèêç", "es": "áéíóúñ"}


def test_multilingual_prompts_are_in_eight_languages(mini: Dataset) -> None:
    rows = mini.rows(mini.prompts(Cell("qualitative", 1, category="multilingual")))
    languages = {re.split("[-_]", row.sub_category)[0]: row.turns[0] for row in rows}

    assert languages.keys() == SCRIPTS.keys() | LETTERS.keys()
    for language, script in SCRIPTS.items():
        letters = [c for c in languages[language] if c.isalpha()]
        assert sum(unicodedata.name(c).startswith((script, "CJK")) for c in letters) > len(letters) * 0.6, language
    for language, special in LETTERS.items():
        assert any(c in special for c in languages[language]), language


def test_text_is_clean(records: list[dict[str, Any]]) -> None:
    for record in records:
        for turn in record["turns"]:
            assert "\ufffd" not in turn
            assert "\r" not in turn
            assert "{factbook" not in turn
            assert not re.search(r"</?(p|br|em|strong)\b", turn), record["src_id"]
            assert unicodedata.is_normalized("NFC", turn)


def test_the_manifest_describes_every_cell(mini: Dataset, manifest: dict[str, Any]) -> None:
    for point in mini.points():
        rows = mini.rows(mini.prompts(point))
        cell = manifest["cells"][config_of(point)][point.category or point.difficulty]
        assert cell["prompts"] == len(rows)
        assert cell["turns"] == sum(len(row.turns) for row in rows)
        assert cell["sha256"] == mini.content_sha256(point)
        assert cell["first_turn_tokens"] == sum(len(encode_o200k(row.turns[0])) for row in rows)


def test_the_prompts_are_those_that_thresholds_were_calibrated_for(mini: Dataset) -> None:
    """If this fails on purpose, the dataset needs a new number after the @, and thresholds new references."""
    digest = hashlib.sha256("".join(mini.content_sha256(point) for point in mini.points()).encode()).hexdigest()

    assert (mini.id, digest) == ("speed-bench-mini@1", PINNED)


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in MINI.rglob("*") if path.is_file()) < 2_000_000


def test_it_loads_quickly() -> None:
    load("mini")

    fastest = min(_seconds_to_load() for _ in range(5))

    assert fastest < 0.1


def _seconds_to_load() -> float:
    start = time.perf_counter()
    load("mini")
    return time.perf_counter() - start


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the bundled folder that ``load("mini")`` reads."""
    folder = tmp_path / "mini"
    shutil.copytree(MINI, folder)
    monkeypatch.setattr(loading, "_MINI_FOLDER", folder)
    assert load("mini").path == folder
    return folder


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("damage", ["flip", "cut", "append", "windows"])
def test_a_damaged_file_is_refused_with_both_hashes(copy: Path, config: str, damage: str) -> None:
    path = copy / f"{config}.jsonl"
    good = path.read_bytes()
    path.write_bytes(
        {
            "flip": good[:1000] + bytes([good[1000] ^ 1]) + good[1001:],
            "cut": good[: len(good) // 2],
            "append": good + b"\n",
            "windows": good.replace(b"\n", b"\r\n"),
        }[damage]
    )

    with pytest.raises(ConfigError) as caught:
        load("mini")

    assert hashlib.sha256(good).hexdigest() in str(caught.value)
    assert hashlib.sha256(path.read_bytes()).hexdigest() in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_manifest_is_refused(copy: Path) -> None:
    (copy / "manifest.json").unlink()

    with pytest.raises(ConfigError, match="the bundled dataset is incomplete; install pytest-speedbench again"):
        load("mini")


def test_a_missing_file_is_refused(copy: Path) -> None:
    (copy / "throughput_1k.jsonl").unlink()

    with pytest.raises(ConfigError, match=r"lists throughput_1k\.jsonl, which the folder does not have"):
        load("mini")


def test_a_folder_named_mini_in_the_current_directory_does_not_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mini").mkdir()
    monkeypatch.chdir(tmp_path)

    assert load("mini").path == MINI


PINNED = "0159a960234407b377d28797db654cfd4ad7896d713ea3c79de75dfa1bb723a4"

"""Datasets from folders: JSON lines, Parquet, manifests, and everything that must be refused."""

import builtins
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pytest_speedbench.cells import CATEGORIES, Axes, Cell, expand
from pytest_speedbench.data.dataset import Dataset, config_of
from pytest_speedbench.data.loading import load
from pytest_speedbench.data.reading import MAX_ROW_BYTES
from pytest_speedbench.data.schema import SENTINEL, Row
from pytest_speedbench.errors import ConfigError


def raw(number: int, category: str = "coding", **changes: object) -> dict[str, Any]:
    row: dict[str, Any] = {
        "question_id": f"{number:032x}",
        "category": category,
        "sub_category": None,
        "turns": [f"Prompt {number}"],
        "source": "https://example.org/set@1",
        "src_id": str(number),
        "difficulty": None,
        "multiturn": False,
    }
    row.update(changes)
    return row


def write_jsonl(path: Path, rows: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_manifest(folder: Path, **changes: object) -> None:
    files = {
        path.relative_to(folder).as_posix(): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "rows": len(path.read_bytes().splitlines()),
        }
        for path in sorted(folder.rglob("*.jsonl"))
    }
    (folder / "manifest.json").write_text(json.dumps({"id": "own@3", "files": files, **changes}))


def message(folder: Path | str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(str(folder))
    return str(caught.value)


def rows_of(dataset: Dataset, config: str) -> tuple[Row, ...]:
    return dataset.rows(dataset.entries_by_config[config])


def sources(dataset: Dataset, cell: Cell) -> list[str]:
    return [row.src_id for row in dataset.rows(dataset.prompts(cell))]


# what can be read


def test_a_folder_of_jsonl_files(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "qualitative.jsonl", [raw(2), raw(1, "math"), raw(3)])
    write_jsonl(tmp_path / "throughput_16k.jsonl", [raw(1, "mixed")])

    dataset = load(str(tmp_path))

    assert dataset.id == tmp_path.name
    assert dataset.path == tmp_path
    assert list(dataset.entries_by_config) == ["qualitative", "throughput_16k"]
    assert [row.turns for row in rows_of(dataset, "qualitative")] == [("Prompt 2",), ("Prompt 1",), ("Prompt 3",)]


def test_the_jsonl_variant_with_messages(tmp_path: Path) -> None:
    row = {**raw(1), "messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}
    del row["turns"]
    write_jsonl(tmp_path / "qualitative.jsonl", [row])

    assert rows_of(load(str(tmp_path)), "qualitative")[0].turns == ("a", "b")


@pytest.mark.parametrize("layout", ["speed/{}", "{}", "{}/nested"])
def test_parquet_as_upstream_prepares_it(tmp_path: Path, layout: str) -> None:
    write_parquet(tmp_path / layout.format("qualitative") / "test.parquet", [raw(2, turns=["a", "b"]), raw(1)])
    write_parquet(tmp_path / layout.format("throughput_8k") / "test.parquet", [raw(1, "high_entropy")])
    write_jsonl(tmp_path / "reference.jsonl", [raw(2, turns=["a", "b"]), raw(1)])
    (tmp_path / "copy").mkdir()
    (tmp_path / "reference.jsonl").rename(tmp_path / "copy" / "qualitative.jsonl")

    dataset = load(str(tmp_path))

    assert rows_of(dataset, "qualitative") == rows_of(load(str(tmp_path / "copy")), "qualitative")
    assert dataset.points() == [
        Cell("qualitative", 1, category="coding"),
        Cell("throughput", 1, isl="8k", difficulty="high_entropy"),
    ]


def test_parquet_in_several_files_is_read_in_order_of_name(tmp_path: Path) -> None:
    write_parquet(tmp_path / "qualitative" / "test-00001-of-00002.parquet", [raw(3)])
    write_parquet(tmp_path / "qualitative" / "test-00000-of-00002.parquet", [raw(2), raw(1)])

    ids = [row.src_id for row in rows_of(load(str(tmp_path)), "qualitative")]

    assert ids == ["2", "1", "3"]


def test_blank_lines_a_byte_order_mark_and_line_separators_inside_text(tmp_path: Path) -> None:
    line = json.dumps(raw(1, turns=["one\u2028two\x85three"]), ensure_ascii=False).encode()
    (tmp_path / "qualitative.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\n  \n" + json.dumps(raw(2)).encode())

    rows = rows_of(load(str(tmp_path)), "qualitative")

    assert [row.turns for row in rows] == [("one\u2028two\x85three",), ("Prompt 2",)]


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "qualitative.jsonl", [raw(1)])

    assert load("~/data").id == "data"


# cells and prompts


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    write_jsonl(tmp_path / "qualitative.jsonl", [raw(1, "writing"), raw(2, "coding"), raw(3, "writing")])
    write_jsonl(tmp_path / "throughput_2k.jsonl", [raw(4, "high_entropy"), raw(5, "low_entropy")])
    write_jsonl(tmp_path / "throughput_32k.jsonl", [raw(4, "mixed")])
    return load(str(tmp_path))


def test_points_are_the_cells_present_in_canonical_order(dataset: Dataset) -> None:
    assert [(p.id(with_concurrency=True)) for p in dataset.points()] == [
        "qualitative-coding-c1",
        "qualitative-writing-c1",
        "throughput-2k-low_entropy-c1",
        "throughput-2k-high_entropy-c1",
        "throughput-32k-mixed-c1",
    ]


def test_points_feed_the_plan(dataset: Dataset) -> None:
    cells = expand(Axes(isls=("2k",)), dataset.points(), {"throughput": (4,)})

    assert [cell.id(with_concurrency=True) for cell in cells] == [
        "throughput-2k-low_entropy-c4",
        "throughput-2k-high_entropy-c4",
    ]


def test_prompts_of_a_cell_whatever_its_concurrency(dataset: Dataset) -> None:
    assert sources(dataset, Cell("qualitative", 32, category="writing")) == ["1", "3"]
    assert sources(dataset, Cell("throughput", 8, isl="2k", difficulty="high_entropy")) == ["4"]


def test_overall_has_the_prompts_of_all_categories(dataset: Dataset) -> None:
    assert sources(dataset, Cell("qualitative", 1, category="overall")) == ["1", "2", "3"]


def test_every_point_has_prompts_and_every_prompt_a_point(dataset: Dataset) -> None:
    counted = sum(len(dataset.prompts(point)) for point in dataset.points())

    assert counted == sum(len(rows) for rows in dataset.entries_by_config.values())


@pytest.mark.parametrize(
    "cell",
    [
        Cell("qualitative", 1, category="math"),
        Cell("throughput", 1, isl="8k", difficulty="mixed"),
        Cell("throughput", 1, isl="2k", difficulty="mixed"),
    ],
)
def test_a_cell_without_prompts_names_those_that_have_some(dataset: Dataset, cell: Cell) -> None:
    with pytest.raises(ConfigError) as caught:
        dataset.prompts(cell)

    assert f"has no prompts for {cell.id(with_concurrency=False)}; it has qualitative-coding" in str(caught.value)


def test_the_content_hash_of_a_cell(dataset: Dataset, tmp_path: Path) -> None:
    cell = Cell("qualitative", 1, category="writing")
    before = dataset.content_sha256(cell)
    rows = [raw(3, "writing"), raw(1, "writing"), raw(2, "coding", turns=["changed"])]

    write_jsonl(tmp_path / "qualitative.jsonl", rows)
    assert load(str(tmp_path)).content_sha256(cell) == before
    write_jsonl(tmp_path / "qualitative.jsonl", [raw(1, "writing"), raw(3, "writing", turns=["Prompt 3 "])])
    assert load(str(tmp_path)).content_sha256(cell) != before


def test_config_of() -> None:
    assert config_of(Cell("qualitative", 1, category="overall")) == "qualitative"
    assert config_of(Cell("throughput", 1, isl="16k", difficulty="mixed")) == "throughput_16k"


# specs that cannot work


@pytest.mark.parametrize("spec", ["", "no-such", "./no/such", "../SPEED-Bench", "/no/such/folder"])
def test_a_path_that_is_not_there_is_not_taken_for_a_hub_id(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        message(spec) == f"dataset '{spec}': no such folder; pass a folder, mini for the bundled prompts, or a hub id"
    )


def test_a_folder_that_looks_like_a_hub_id_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nvidia" / "SPEED-Bench").mkdir(parents=True)
    write_jsonl(tmp_path / "nvidia" / "SPEED-Bench" / "qualitative.jsonl", [raw(1)])

    assert load("nvidia/SPEED-Bench").id == "SPEED-Bench"


def test_a_file_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "qualitative.jsonl", [raw(1)])

    assert message(path).startswith(f"dataset '{path}' is a file; pass the folder that holds <config>.jsonl")


def test_an_empty_folder_says_what_is_expected(tmp_path: Path) -> None:
    text = message(tmp_path)

    assert "<config>.jsonl, speed/<config>/*.parquet or <config>/*.parquet" in text
    assert "throughput_32k" in text


@pytest.mark.parametrize("name", ["throughput_4k.jsonl", "speed/throughput_4k/test.parquet"])
def test_an_unknown_isl_bucket_is_not_passed_over(tmp_path: Path, name: str) -> None:
    write_jsonl(tmp_path / "qualitative.jsonl", [raw(1)])
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("")

    assert "no ISL bucket for throughput_4k" in message(tmp_path)


def test_the_same_config_twice_is_ambiguous(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "qualitative.jsonl", [raw(1)])
    write_parquet(tmp_path / "speed" / "qualitative" / "test.parquet", [raw(2)])

    text = message(tmp_path)

    assert "qualitative is there more than once" in text
    assert "qualitative.jsonl" in text
    assert "test.parquet" in text


# damaged files


def test_a_line_that_is_not_json_is_named_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "qualitative.jsonl"
    good = json.dumps(raw(1))
    path.write_text(f"{good}\n\n{good[:40]}\n")

    assert message(tmp_path).startswith(f"{path}, line 3: not JSON (")


def test_a_line_that_is_not_utf8_is_named_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "qualitative.jsonl"
    path.write_bytes(json.dumps(raw(1)).encode() + b'\n{"question_id": "\xff"}\n')

    assert message(tmp_path).startswith(f"{path}, line 2: not UTF-8 (invalid start byte at byte 17")


def test_a_hostile_line_is_an_error_and_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "qualitative.jsonl"
    path.write_text("[" * 200_000)

    assert message(tmp_path).startswith(f"{path}, line 1: not ")


def test_a_wrong_column_is_named_with_file_and_line(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "qualitative.jsonl", [raw(1), raw(2, turns="text")])

    assert message(tmp_path) == f"{path}, line 2: column 'turns': expected a list of strings, found str 'text'"


def test_an_unknown_category_is_named_with_file_and_line(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "qualitative.jsonl", [raw(1), raw(2, "poetry")])

    assert message(tmp_path) == (f"{path}, line 2: column 'category': 'poetry' is not one of {', '.join(CATEGORIES)}")


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "qualitative.jsonl").write_text("\n\n")

    assert message(tmp_path) == f"{tmp_path}: qualitative has no rows"


def test_a_cut_parquet_file_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "qualitative" / "test.parquet", [raw(i) for i in range(100)])
    path.write_bytes(path.read_bytes()[:-50])

    assert message(tmp_path).startswith(f"{path}: not a readable Parquet file (")


def test_a_wrong_parquet_column_is_named_with_file_and_row(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "qualitative" / "test.parquet", [raw(1, turns="a"), raw(2, turns="b")])

    assert message(tmp_path) == f"{path}, row 1: column 'turns': expected a list of strings, found str 'a'"


def test_without_pyarrow_parquet_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "qualitative" / "test.parquet", [raw(1)])
    real_import = builtins.__import__

    def without_pyarrow(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "pyarrow":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pyarrow)

    assert message(tmp_path) == f"{path}: reading Parquet needs pyarrow: pip install 'pytest-speedbench[parquet]'"


def test_repeated_ids_are_named(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "qualitative.jsonl", [raw(1), raw(2), raw(1, "math"), raw(3)])

    assert message(tmp_path) == (f"{tmp_path}: qualitative has the same question_id more than once: {1:032x}")


def test_the_same_id_in_two_configs_is_fine(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "throughput_1k.jsonl", [raw(1, "mixed")])
    write_jsonl(tmp_path / "throughput_2k.jsonl", [raw(1, "mixed")])

    assert len(load(str(tmp_path)).points()) == 2


# placeholders


def test_placeholders_are_counted_per_config_and_the_way_out_is_named(tmp_path: Path) -> None:
    masked = [raw(i, "mixed", turns=[f"{SENTINEL}\n\n{{question}}"]) for i in range(5)]
    write_jsonl(tmp_path / "qualitative.jsonl", [raw(1), raw(2, turns=["Hello", SENTINEL])])
    write_jsonl(tmp_path / "throughput_1k.jsonl", [*masked, raw(9, "low_entropy")])

    text = message(tmp_path)

    assert f"qualitative: 1 of 2 ({2:032x}); throughput_1k: 5 of 6 ({0:032x}, {1:032x}, {2:032x}, … 5 in all)" in text
    assert "prepare_data.py --config all --output_dir DIR (from specdec_bench)" in text


def test_placeholders_of_one_config_name_that_config(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "throughput_1k.jsonl", [raw(1, "mixed", turns=[SENTINEL])])

    assert "prepare_data.py --config throughput_1k --output_dir" in message(tmp_path)


def test_placeholders_of_a_config_that_is_not_needed_do_no_harm(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "qualitative.jsonl", [raw(1)])
    write_jsonl(tmp_path / "throughput_1k.jsonl", [raw(1, "mixed", turns=[SENTINEL])])

    dataset = load(str(tmp_path), needed=["qualitative"])

    assert dataset.id == tmp_path.name
    assert dataset.points() == [Cell("qualitative", 1, category="coding")]
    # What a limit may be missed by depends on all cells that a file gates, so these are known all the same.
    assert dataset.all_points() == [*dataset.points(), Cell("throughput", 1, isl="1k", difficulty="mixed")]


@pytest.fixture
def masked(tmp_path: Path) -> Dataset:
    write_jsonl(
        tmp_path / "qualitative.jsonl",
        [raw(1), raw(2, turns=["Hello", SENTINEL]), raw(3, turns=["a", "bc"], multiturn=False), raw(4, "math")],
    )
    write_jsonl(tmp_path / "throughput_1k.jsonl", [raw(5, "mixed", turns=[SENTINEL]), raw(6, "low_entropy")])
    return load(str(tmp_path), allow_partial=True)


def test_the_rest_of_a_masked_dataset_is_measured_under_another_name(masked: Dataset, tmp_path: Path) -> None:
    coding, mixed = Cell("qualitative", 1, category="coding"), Cell("throughput", 1, isl="1k", difficulty="mixed")

    assert masked.id == f"{tmp_path.name}+partial"
    assert sources(masked, coding) == ["1", "3"]
    assert [masked.masked_prompts(cell) for cell in (coding, mixed)] == [1, 1]
    assert mixed not in masked.points()
    with pytest.raises(ConfigError, match="no prompts for throughput-1k-mixed: all 1 are placeholders"):
        masked.prompts(mixed)


def test_the_inventory_counts_what_there_is(masked: Dataset) -> None:
    counted = {
        i.point.id(with_concurrency=False): (i.prompts, i.masked, i.multiturn, i.turns, i.characters)
        for i in masked.inventory()
    }

    assert counted == {
        "qualitative-coding": (2, 1, 1, 3, 11),
        "qualitative-math": (1, 0, 0, 1, 8),
        "throughput-1k-low_entropy": (1, 0, 0, 1, 8),
        "throughput-1k-mixed": (0, 1, 0, 0, 0),
    }
    assert len({i.sha256 for i in masked.inventory()}) == 4


def test_a_full_dataset_is_not_called_partial(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "qualitative.jsonl", [raw(1)])

    assert load(str(tmp_path), allow_partial=True).id == tmp_path.name


# two releases in one


def at(number: int, commit: str, kind: str = "blob") -> dict[str, Any]:
    return raw(number, source=f"https://example.org/datasets/cais/hle/{kind}/{commit}/data/test.parquet")


@pytest.mark.parametrize("second", ["qualitative", "throughput_1k"])
def test_sources_at_two_revisions_are_two_releases(tmp_path: Path, second: str) -> None:
    rows = [at(1, "a" * 40), at(2, "a" * 40)]
    other = {**at(3, "b" * 40), "category": "coding" if second == "qualitative" else "mixed"}
    write_jsonl(tmp_path / "qualitative.jsonl", [*rows, other] if second == "qualitative" else rows)
    if second != "qualitative":
        write_jsonl(tmp_path / f"{second}.jsonl", [other])

    text = message(tmp_path)

    assert f"question {3:032x} comes from https://example.org/datasets/cais/hle/blob at {'b' * 40}" in text
    assert f"others ({tmp_path / 'qualitative.jsonl'}) at {'a' * 40}" in text


def test_one_revision_per_source_is_one_release(tmp_path: Path) -> None:
    other = raw(3, source=f"https://example.org/datasets/other/blob/{'b' * 40}/x.jsonl")
    write_jsonl(tmp_path / "qualitative.jsonl", [at(1, "a" * 40), at(2, "a" * 40), other])

    assert load(str(tmp_path)).id == tmp_path.name


# text on demand


def test_a_file_that_changes_after_loading_is_noticed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "qualitative.jsonl", [raw(1), raw(2)])
    dataset = load(str(tmp_path))
    write_jsonl(path, [raw(1), raw(2, turns=["Prompt 3"])])

    with pytest.raises(ConfigError, match="has changed since it was read"):
        rows_of(dataset, "qualitative")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("order", [(3, 0, 2), (1,), (199, 100, 0)])
def test_rows_come_in_the_order_asked_for(tmp_path: Path, kind: str, order: tuple[int, ...]) -> None:
    rows = [raw(i, turns=[f"Prompt {i}"] * (i % 3 + 1)) for i in range(200)]
    if kind == "jsonl":
        write_jsonl(tmp_path / "qualitative.jsonl", rows)
    else:
        path = tmp_path / "qualitative" / "test.parquet"
        path.parent.mkdir()
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=70)
    dataset = load(str(tmp_path))
    entries = dataset.entries_by_config["qualitative"]

    found = dataset.rows([entries[i] for i in order])

    assert [row.src_id for row in found] == [str(i) for i in order]
    assert [len(row.turns) for row in found] == [i % 3 + 1 for i in order]


def test_a_row_that_no_prompt_can_be(tmp_path: Path) -> None:
    huge = "x" * (MAX_ROW_BYTES + 1)
    path = write_jsonl(tmp_path / "qualitative.jsonl", [raw(1), raw(2, turns=[huge])])

    assert message(tmp_path).startswith(f"{path}, line 2: longer than 16 MiB, which no prompt is")

    path.unlink()
    path = write_parquet(tmp_path / "qualitative" / "test.parquet", [raw(1), raw(2, turns=[huge])])
    assert message(tmp_path).startswith(f"{path}, row 2: longer than 16 MiB, which no prompt is")


def test_a_parquet_file_that_was_made_to_blow_up(tmp_path: Path) -> None:
    path = tmp_path / "qualitative" / "test.parquet"
    path.parent.mkdir()
    rows = [raw(i, turns=["x" * 2**20 + str(i)]) for i in range(100)]
    pq.write_table(pa.Table.from_pylist(rows), path, use_dictionary=False, compression="zstd")

    assert re.match(rf"{re.escape(str(path))}: a row group unpacks from at most \d+ to \d+ bytes", message(tmp_path))


def test_a_pipe_is_no_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "qualitative").mkdir()
    os.mkfifo(tmp_path / "qualitative" / "test.parquet")

    assert "no data; expected <config>.jsonl" in message(tmp_path)


def test_a_time_that_python_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "qualitative" / "test.parquet"
    path.parent.mkdir()
    times = pa.array([2**60 + 1], pa.timestamp("ns"))
    pq.write_table(pa.table({"question_id": ["a"], "category": ["qa"], "turns": [["x"]], "at": times}), path)

    assert message(tmp_path).startswith(f"{path}: not a readable Parquet file (")


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "qualitative" / "test.parquet", [raw(1)])
    path.rename(path.with_name("caf\udce9.parquet"))

    assert load(str(tmp_path)).points() == [Cell("qualitative", 1, category="coding")]


def test_a_long_source_takes_no_longer_than_it_is(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "qualitative.jsonl", [raw(1, source="x" * 10**6)])

    assert load(str(tmp_path)).points()


@pytest.mark.parametrize("name", ["../outside.jsonl", "/etc/passwd", "x" * 5000, "nul\0.jsonl"])
def test_a_manifest_that_lists_what_cannot_be_in_the_folder(tmp_path: Path, name: str) -> None:
    write_jsonl(tmp_path / "qualitative.jsonl", [raw(1)])
    write_manifest(tmp_path, files={name: {"sha256": "0" * 64, "rows": 1}})

    assert re.search(
        "lies outside the folder|lists a file that cannot be there|lists .*, which the folder", message(tmp_path)
    )


def test_an_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "data.zip"
    path.write_bytes(b"PK")

    assert message(path).startswith(f"dataset '{path}' is a file; unpack it and pass the folder")


# manifests


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "qualitative.jsonl", [raw(1), raw(2)])
    write_manifest(tmp_path)
    return tmp_path


def test_a_manifest_names_the_dataset(listed: Path) -> None:
    assert load(str(listed)).id == "own@3"


def test_a_file_that_differs_from_the_manifest_is_refused_with_both_hashes(listed: Path) -> None:
    path = listed / "qualitative.jsonl"
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    write_jsonl(path, [raw(1), raw(2, turns=["Prompt 2 "])])
    found = hashlib.sha256(path.read_bytes()).hexdigest()

    assert message(listed).startswith(
        f"{path}: not the file of own@3: sha256 {found}, but manifest.json says {expected}; "
    )


def test_a_wrong_number_of_rows_is_refused(listed: Path) -> None:
    manifest = json.loads((listed / "manifest.json").read_text())
    manifest["files"]["qualitative.jsonl"]["rows"] = 3
    (listed / "manifest.json").write_text(json.dumps(manifest))

    assert message(listed) == f"{listed / 'qualitative.jsonl'}: 2 rows, but manifest.json says 3"


def test_a_data_file_that_is_not_listed_is_refused(listed: Path) -> None:
    path = write_jsonl(listed / "throughput_1k.jsonl", [raw(1, "mixed")])

    assert message(listed).startswith(f"{path}: not listed in manifest.json (which lists qualitative.jsonl)")


def test_a_listed_file_that_is_missing_is_refused(listed: Path) -> None:
    (listed / "qualitative.jsonl").unlink()

    assert message(listed) == (f"{listed / 'manifest.json'}: lists qualitative.jsonl, which the folder does not have")


def test_parquet_is_checked_against_a_manifest_too(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "speed" / "qualitative" / "test.parquet", [raw(1)])
    entry = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "rows": 1}
    write_manifest(tmp_path, files={"speed/qualitative/test.parquet": entry})
    assert load(str(tmp_path)).id == "own@3"

    write_parquet(path, [raw(2)])
    assert "manifest.json says" in message(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b"[]", b"{}", b'{"id": "x"}', b'{"id": 1, "files": {}}', b'{"id": "", "files": {}}',
     b'{"id": "x", "files": {"qualitative.jsonl": {"sha256": "00"}}}',
     b'{"id": "x", "files": {"qualitative.jsonl": {"sha256": 0, "rows": 2}}}',
     b'{"id": "x", "files": {"qualitative.jsonl": {"sha256": "00", "rows": true}}}',
     b'{"id": "x", "files": {"qualitative.jsonl": "00"}}'],
)  # fmt: skip
def test_a_broken_manifest_is_refused(listed: Path, content: bytes) -> None:
    (listed / "manifest.json").write_bytes(content)

    assert message(listed).startswith(f"{listed / 'manifest.json'}: not a dataset manifest of the form")


def test_importing_the_stage_imports_nothing_heavy() -> None:
    code = (
        "import sys, pytest_speedbench.data.loading; pytest_speedbench.data.loading.load('mini');"
        "heavy = {'pyarrow', 'numpy', 'transformers', 'yaml', 'httpx'} & set(sys.modules);"
        "assert not heavy, heavy"
    )

    subprocess.run([sys.executable, "-c", code], check=True)

"""Editing a thresholds file in place: what changes, what is logged, and that no other byte moves."""

from __future__ import annotations

import difflib
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.calibration.yaml_edit import Items, Place, edited, flow, scalar
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates import thresholds
from pytest_speedbench.names import CATEGORIES
from tests.unit.test_calibration import (
    CODING,
    OVERALL,
    TABLE,
    Calibrate,
    calibrate,
    cell_result,
    limits,
    many_metrics,
    store,
)

__all__ = ["calibrate"]

# All that a careful round trip through a YAML library would still tidy up.
ODD = """\
# How we got here: see the wiki.   \n\
schema:   1

match: {engine: vllm,model: 'org/model' , "method": eagle3,   # EAGLE
          draft_tokens: 3}
estimator:  request_mean   # not pooled!
family: { alpha: 5%, beta: 0.05 }   # policy of 2026
gates:
- cell: { category: coding, concurrency: 8 }   # the one that counts
  acceptance_length:   # AL
      # hand-written on 2026-01-01
      min:    1.90     # generous
- cell: {category: math,concurrency: 8}

  acceptance_length: {min: 2.5  ,reference: 2.6041667, margin: 0.04, # keep
      evidence: {starts: 5, repeats: 1, sd_start: 0.001, date: '2026-01-01', run: old}}   # last
  user_tps: {min: 16.0}
-   cell:   {split: qualitative,   concurrency: 8}
    "user_tps":
        {
          min: 3.0,
        }
    # belongs to the gate above

# The end.
"""


def measured(folder: Path, **tables: tuple[tuple[float, ...], ...]) -> Path:
    cells = [cell_result(replace(CODING, category=name), table) for name, table in tables.items()]
    return store(folder, 0, *cells)


def changed_lines(before: str, after: str) -> list[str]:
    lines = difflib.ndiff(before.splitlines(keepends=True), after.splitlines(keepends=True))
    return [line for line in lines if line[0] in "+-"]


def test_only_what_is_calibrated_changes(tmp_path: Path, calibrate: Calibrate) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(ODD)
    calibrate(measured(tmp_path, coding=TABLE), "-o", path, "--margin=4%")
    after = path.read_text()
    assert changed_lines(ODD, after) == [
        "-       min:    1.90     # generous\n",
        "+       min:    1.92     # generous\n",
        "+       reference: 2\n",
        "+       margin: 4%\n",
        "+       evidence: {starts: 6, repeats: 2, sd_start: 0.01323, sd_repeat: 0.007071, lowest: 1.975, "
        'highest: 2.025, date: 2026-11-01, engine_version: "0.24.0", gpu: "1 × NVIDIA H100 80GB HBM3", '
        'prompts: "0123456789ab", conditional: [0.500, 0.500, 0.400]}\n',
    ]


def test_flow_style_stays_flow_style_and_what_is_stale_goes(tmp_path: Path, calibrate: Calibrate) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(ODD)
    table = tuple(tuple(value + 0.65 for value in row) for row in TABLE)
    calibrate(measured(tmp_path, math=table), "-o", path)
    after = path.read_text()
    assert changed_lines(ODD, after) == [
        "-   acceptance_length: {min: 2.5  ,reference: 2.6041667, margin: 0.04, # keep\n",
        "+   acceptance_length: {min: 2.544  ,reference: 2.65, margin: 0.04, # keep\n",
        "-       evidence: {starts: 5, repeats: 1, sd_start: 0.001, date: '2026-01-01', run: old}}   # last\n",
        "+       evidence: {starts: 6, repeats: 2, sd_start: 0.01323, date: 2026-11-01, sd_repeat: 0.007071, "
        'lowest: 2.625, highest: 2.675, engine_version: "0.24.0", gpu: "1 × NVIDIA H100 80GB HBM3", '
        'prompts: "0123456789ab", conditional: [0.500, 0.500, 0.400]}}   # last\n',
    ]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["", "\n"])
def test_new_gates_come_after_the_others(
    tmp_path: Path, calibrate: Calibrate, newline: str, mark: str, end: str
) -> None:
    path = tmp_path / "odd.yaml"
    before = (mark + ODD.rstrip("\n") + end).replace("\n", newline).encode()
    path.write_bytes(before)
    calibrate(measured(tmp_path, qa=TABLE, stem=TABLE), "-o", path)
    after = path.read_bytes()
    added = [line for line in after.split(newline.encode()) if line not in before.split(newline.encode())]
    assert b"".join(added).startswith(b"- cell: {split: qualitative, category: qa, concurrency: 8}")
    text = newline.encode().join(
        after.split(newline.encode())[: before.count(newline.encode(), 0, before.index(b"# belongs")) + 1]
    )
    assert before.startswith(text)
    assert after.endswith(before[before.index(b"# The end") :])
    assert after.count(b"\r\n") == (after.count(b"\n") if newline == "\r\n" else 0)
    assert {"qa acceptance_length", "stem acceptance_length"} <= limits(path).keys()


def test_nothing_changes_when_nothing_changed(tmp_path: Path, calibrate: Calibrate) -> None:
    path = tmp_path / "x.yaml"
    one = store(tmp_path, 0, cell_result(CODING, TABLE), cell_result(OVERALL, [[3.0, 3.0]] * 6))
    calibrate(one, "-o", path)
    before = path.read_bytes()
    calibrate(one, "-o", path)
    assert path.read_bytes() == before


def test_gates_of_cells_that_were_not_measured_stay(tmp_path: Path, calibrate: Calibrate) -> None:
    path = tmp_path / "x.yaml"
    calibrate(measured(tmp_path, coding=TABLE, qa=TABLE), "-o", path)
    before = limits(path)
    calibrate(measured(tmp_path, coding=tuple(tuple(v + 0.1 for v in row) for row in TABLE)), "-o", path)
    after = limits(path)
    assert after["qa acceptance_length"] == before["qa acceptance_length"]
    assert after["coding acceptance_length"].reference == 2.1


def test_another_metric_joins_the_gate_of_its_cell(tmp_path: Path, calibrate: Calibrate) -> None:
    path = tmp_path / "x.yaml"
    calibrate(measured(tmp_path, coding=TABLE), "-o", path)
    before = path.read_text()
    rates = [[50.0, 50.1], [50.3, 50.2], [49.8, 49.9], [50.0, 50.1], [50.2, 50.0], [49.9, 50.0]]
    both = store(tmp_path, 1, many_metrics(CODING, {"acceptance_length": TABLE, "user_tps": rates}))
    calibrate(both, "-o", path, "--metric=user_tps")
    after = path.read_text()
    assert after.startswith(before.rstrip("\n"))
    assert after.count("- cell:") == 1
    assert list(limits(path)) == ["coding acceptance_length", "coding user_tps"]


def test_a_file_all_in_flow_style(tmp_path: Path, calibrate: Calibrate) -> None:
    path = tmp_path / "x.json"
    text = '{"schema":1,"gates":[{"cell":{"category":"coding","concurrency":8},"user_tps":{"min":5}}]}'
    path.write_text(text)
    calibrate(measured(tmp_path, coding=TABLE, qa=TABLE), "-o", path)
    after = path.read_text()
    assert after.startswith(text[:-4])
    assert after.endswith("}], estimator: request_mean}")
    assert list(limits(path)) == ["coding user_tps", "coding acceptance_length", "qa acceptance_length"]


def test_a_file_for_something_else_is_refused(tmp_path: Path, calibrate: Calibrate) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(ODD.replace("eagle3", "ngram"))
    with pytest.raises(ConfigError, match=r"x\.yaml is not for these runs: method: wanted 'ngram', found 'eagle3'"):
        calibrate(measured(tmp_path, coding=TABLE), "-o", path)


def test_a_file_that_names_no_gpu_is_pointed_out(tmp_path: Path, calibrate: Calibrate) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(ODD)
    answer = calibrate(measured(tmp_path, coding=TABLE), "-o", path, "--margin=4%")
    assert "matches any GPU, but was calibrated on NVIDIA H100 80GB HBM3" in answer.err


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ("min:    1.90", "min: &low  1.90", 12, "a value with an anchor or a tag"),
        ("min:    1.90", "min: !!float  1.90", 12, "a value with an anchor or a tag"),
    ],
)
def test_what_cannot_be_edited_is_left_alone(
    tmp_path: Path, calibrate: Calibrate, old: str, new: str, line: int, what: str
) -> None:
    path = tmp_path / "x.yaml"
    text = ODD.replace(old, new)
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"x\.yaml:{line}: {what}"):
        calibrate(measured(tmp_path, coding=TABLE), "-o", path, "--margin=4%")
    assert path.read_text() == text


def test_aliases_are_refused(tmp_path: Path, calibrate: Calibrate) -> None:
    path = tmp_path / "x.yaml"
    text = "schema: 1\ngates:\n- cell: {category: qa, concurrency: 8}\n  user_tps: &a {min: 1}\n  user_tps_p5: *a\n"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"x\.yaml:5: an alias"):
        calibrate(measured(tmp_path, coding=TABLE), "-o", path)
    assert path.read_text() == text


# The ratchet


def lower(by: float) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(value * (1 - by) for value in row) for row in TABLE)


def test_raising_is_free_and_lowering_needs_a_reason(tmp_path: Path, calibrate: Calibrate) -> None:
    path = tmp_path / "x.yaml"
    calibrate(measured(tmp_path, coding=TABLE), "-o", path)
    calibrate(measured(tmp_path, coding=lower(-0.05)), "-o", path)
    assert limits(path)["coding acceptance_length"].history == ()
    before = path.read_bytes()
    with pytest.raises(
        ConfigError, match=r"1 limit would become looser, .*--reason.*\n.*x\.yaml:\d+: .* 2\.016 → 1\.99"
    ):
        calibrate(measured(tmp_path, coding=lower(-0.04)), "-o", path)
    assert path.read_bytes() == before
    calibrate(measured(tmp_path, coding=lower(-0.04)), "-o", path, "--reason", 'drafter: smaller "v2", as agreed')
    limit = limits(path)["coding acceptance_length"]
    assert [(c.before, c.after, c.reason) for c in limit.history] == [
        (2.016, 1.9968, 'drafter: smaller "v2", as agreed')
    ]


def test_a_wider_margin_lowers_the_limit_too(tmp_path: Path, calibrate: Calibrate) -> None:
    path = tmp_path / "x.yaml"
    calibrate(measured(tmp_path, coding=TABLE), "-o", path)
    with pytest.raises(ConfigError, match="would become looser"):
        calibrate(measured(tmp_path, coding=TABLE), "-o", path, "--margin=5%")


def test_a_ceiling_is_loosened_upwards(tmp_path: Path, calibrate: Calibrate) -> None:
    path = tmp_path / "x.yaml"

    def times(factor: float) -> Path:
        rows = [[0.2 * factor * value / 2] for (value, _) in TABLE]
        return store(tmp_path, 0, cell_result(CODING, rows, "ttft_p50_s"))

    calibrate(times(1), "-o", path, "--metric=ttft_p50_s")
    calibrate(times(0.98), "-o", path, "--metric=ttft_p50_s")
    with pytest.raises(ConfigError, match="1 limit would become looser"):
        calibrate(times(1), "-o", path, "--metric=ttft_p50_s")
    calibrate(times(1), "-o", path, "--metric=ttft_p50_s", "--reason=new router")
    (change,) = limits(path)["coding ttft_p50_s"].history
    assert change.after > change.before


def test_drift_adds_up(tmp_path: Path, calibrate: Calibrate) -> None:
    path = tmp_path / "x.yaml"
    calibrate(measured(tmp_path, coding=TABLE), "-o", path)
    calibrate(measured(tmp_path, coding=lower(0.015)), "-o", path, "--reason=one")
    calibrate(measured(tmp_path, coding=lower(0.029)), "-o", path, "--reason=two")
    third = measured(tmp_path, coding=lower(0.032))
    # Only 0.3 % below the limit of before, but 3.2 % below the first.
    with pytest.raises(ConfigError, match=r"more than 3% looser than at first; .*\n.*\(0\.3%, 3\.2% since 1\.92\)"):
        calibrate(third, "-o", path, "--reason=three")
    calibrate(third, "-o", path, "--reason=three", "--accept-drift")
    history = limits(path)["coding acceptance_length"].history
    assert [change.reason for change in history] == ["one", "two", "three"]
    assert [change.before for change in history[1:]] == [change.after for change in history[:-1]]


def test_one_deep_drop_is_drift_too(tmp_path: Path, calibrate: Calibrate) -> None:
    path = tmp_path / "x.yaml"
    calibrate(measured(tmp_path, coding=TABLE), "-o", path)
    with pytest.raises(ConfigError, match="--accept-drift"):
        calibrate(measured(tmp_path, coding=lower(0.04)), "-o", path, "--reason=slower")


def test_other_prompts_are_a_new_reference(tmp_path: Path, calibrate: Calibrate) -> None:
    path = tmp_path / "x.yaml"
    calibrate(measured(tmp_path, coding=TABLE), "-o", path)
    other = store(tmp_path, 1, replace(cell_result(CODING, lower(0.2)), prompts_sha256="f" * 64))
    answer = calibrate(other, "-o", path)
    assert "other prompts than before (0123456789ab → ffffffffffff), so this is a new reference" in answer.err
    limit = limits(path)["coding acceptance_length"]
    assert [(c.before, c.after, c.reason, c.prompts) for c in limit.history] == [
        (1.92, 1.536, "other prompts", "f" * 12)
    ]
    # Drift is counted from there.
    assert limit.first_logged == 1.536
    deeper = store(tmp_path, 2, replace(cell_result(CODING, lower(0.22)), prompts_sha256="f" * 64))
    calibrate(deeper, "-o", path, "--reason=slower")


# The editor by itself

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


@given(texts)
def test_scalars_read_back(text: str) -> None:
    assert yaml.safe_load(f"key: {scalar(text)}\n") == {"key": text}
    assert yaml.safe_load(flow({"a": scalar(text), "b": Items((scalar(text),))})) == {"a": text, "b": [text]}


@given(st.floats(0, 1e9, allow_nan=False).filter(lambda number: number == 0 or number > 1e-12))
def test_numbers_read_back(number: float) -> None:
    text = scalar(number)
    assert re.fullmatch(r"(0|[1-9]\d*)(\.\d+)?", text)
    assert float(text) == number


keys = st.sampled_from(CATEGORIES)
wanted = st.dictionaries(keys, st.one_of(st.none(), st.integers(0, 9).map(str)))


@given(
    st.dictionaries(keys, st.integers(10, 99), min_size=1),
    wanted,
    st.booleans(),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_any_change_of_a_mapping(
    before: dict[str, int], change: dict[str, str | None], in_flow: bool, newline: str, comma: bool
) -> None:
    # A mapping in block style without any key left is no mapping.
    change = {"kept": "1", **change}
    body = {"kept": 0, **before}
    if in_flow:
        inner = ", ".join(f"{key}:   {value}" for key, value in body.items())
        text = f"top: {{ {inner}{' ,' * comma} }}  # end{newline}after: 1{newline}"
    else:
        inner = newline.join(f"    {key}:   {value}  # of {key}" for key, value in body.items())
        text = f"top:{newline}{inner}{newline}after: 1{newline}"
    result = edited(text.encode(), "x.yaml", {}, [Place(("top",), change)]).decode()
    expected = {key: value for key, value in body.items() if key not in change}
    expected |= {key: int(value) for key, value in change.items() if value is not None}
    assert yaml.safe_load(result) == {"top": expected, "after": 1}
    assert result.endswith(f"after: 1{newline}")
    assert ("  # end" in result) == in_flow
    if not in_flow:
        assert all(f"  # of {key}" in result for key in expected if key in body)


def test_the_shipped_files_can_be_edited(tmp_path: Path) -> None:
    for source in Path("thresholds").glob("*.yaml"):
        raw = source.read_bytes()
        assert edited(raw, "x", {"schema": "1"}) == raw
        (tmp_path / source.name).write_bytes(edited(raw, "x", {}, [Place(("gates", 0, "cell"), {"concurrency": "7"})]))
        (file,) = thresholds.load(tmp_path / source.name)
        assert file.gates[0].cell.concurrency == 7

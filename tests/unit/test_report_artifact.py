"""speedbench.json: its schema, the way there and back, and that it is never half a file."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.cells import Cell
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates.verdict import GateResult, Verdict
from pytest_speedbench.measure.acceptance import Acceptance
from pytest_speedbench.measure.checks import Reason
from pytest_speedbench.measure.gpu_record import Card, GpuWindow
from pytest_speedbench.measure.metrics import METRICS, Metric
from pytest_speedbench.report import artifact
from pytest_speedbench.report.redact import Redactor
from pytest_speedbench.report.result_json import redacted
from pytest_speedbench.report.run_info import EngineRecord, GpuRecord, OptionRecord, RunInfo
from pytest_speedbench.results import CellResult, CellRun
from tests.unit.test_report_samples import EVERY, FAILED, INVALID, PASSED, RUN

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
MAYBE = st.none() | NUMBERS
COUNTS = st.integers(0, 2**60)
LENGTHS = st.integers(1, 20)
JSON: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
GATES = st.builds(
    GateResult,
    metric=st.sampled_from(sorted(METRICS)),
    verdict=st.sampled_from(Verdict),
    value=NUMBERS,
    limit=NUMBERS,
    ceiling=st.booleans(),
    reference=MAYBE,
    margin=MAYBE,
    sigma=NUMBERS,
    guard=NUMBERS,
    headroom=NUMBERS,
    mde_not_passed=MAYBE,
    mde_failed=MAYBE,
    source=st.text(),
    reason=st.none() | st.text(),
    note=st.text(),
    evidence=st.text(),
    conditional_reference=st.lists(NUMBERS, max_size=4).map(tuple),
)
RESULTS = st.builds(
    CellResult,
    profile=st.text(),
    cell=st.builds(
        Cell,
        split=st.sampled_from(["qualitative", "throughput"]),
        concurrency=st.integers(1, 4096),
        category=st.none() | st.text(),
        isl=st.none() | st.text(),
        difficulty=st.none() | st.text(),
    ),
    item_id=st.text(),
    verdict=st.none() | st.sampled_from(Verdict),
    reasons=st.lists(st.builds(Reason, st.text(), st.text()), max_size=3).map(tuple),
    metrics=st.dictionaries(
        st.sampled_from(sorted(METRICS)),
        st.builds(Metric, NUMBERS, MAYBE, MAYBE, st.none() | st.tuples(NUMBERS, NUMBERS)),
        max_size=4,
    ),
    acceptance=st.none()
    | st.builds(
        Acceptance,
        histogram=st.dictionaries(LENGTHS, COUNTS),
        conditional=st.dictionaries(LENGTHS, NUMBERS),
        joint=st.dictionaries(LENGTHS, NUMBERS),
        decode_histogram=st.dictionaries(LENGTHS, COUNTS),
        unresolved_steps=COUNTS,
    ),
    gates=st.lists(GATES, max_size=3).map(tuple),
    conversations=COUNTS,
    conversations_planned=COUNTS,
    turns=COUNTS,
    prompts_sha256=st.sampled_from(["", "ab" * 32]),
    steps_source=st.text(),
    duration_s=NUMBERS,
)
RUNS = st.builds(
    RunInfo,
    started=st.text(),
    argv=st.lists(st.text(), max_size=3).map(tuple),
    plugin_version=st.text(),
    python_version=st.text(),
    pytest_version=st.text(),
    platform=st.text(),
    cpu=st.text(),
    dataset=st.text(),
    dataset_sha256=st.sampled_from(["", "cd" * 32]),
    thresholds=st.lists(st.text(), max_size=2).map(tuple),
    options=st.lists(st.builds(OptionRecord, st.text(), st.text(), st.text()), max_size=2).map(tuple),
    engines=st.lists(
        st.builds(
            EngineRecord,
            profile=st.text(),
            engine=st.text(),
            version=st.text(),
            model=st.text(),
            method=st.none() | st.text(),
            draft_model=st.none() | st.text(),
            draft_tokens=st.none() | st.integers(0, 99),
            gpus=st.lists(
                st.builds(GpuRecord, st.text(), index=st.none() | COUNTS, facts=st.dictionaries(st.text(), JSON)),
                max_size=2,
            ).map(tuple),
            resolved=st.dictionaries(st.text(), JSON, max_size=3),
            start_s=st.none() | st.floats(0, 1e6),
            base_url=st.none() | st.text(),
        ),
        max_size=2,
    ).map(tuple),
    git_commit=st.none() | st.text(),
    ci_url=st.none() | st.text(),
    ci_id=st.none() | st.text(),
)


def sample() -> dict[str, Any]:
    return artifact.to_json(RUN, EVERY, complete=True, partial=False, planned=12)


class NoSecrets(Redactor):
    """Leaves every string as it is, so that generated text may look like a secret."""

    def value(self, text: str) -> str:
        return text


# The schema


def test_the_schema_is_a_valid_schema_and_describes_every_field() -> None:
    jsonschema.Draft202012Validator.check_schema(artifact.schema())

    def objects(node: object, where: str = "$") -> Iterator[tuple[str, dict[str, Any]]]:
        if isinstance(node, dict):
            if node.get("type") == "object":
                yield where, node
            for name, child in node.items():
                yield from objects(child, f"{where}.{name}")

    found = dict(objects(artifact.schema()))
    assert len(found) > 10
    for where, node in found.items():
        assert "additionalProperties" in node, where
        for name, field in node.get("properties", {}).items():
            assert field.get("description"), f"{where}.{name}"


@pytest.mark.parametrize(
    ("kind", "definition"),
    [(GateResult, "gate"), (CellResult, "result"), (Acceptance, "acceptance"), (Metric, "metric"), (Cell, "cell")],
)
def test_the_schema_has_every_field_of_the_dataclass(kind: type, definition: str) -> None:
    schema: dict[str, Any] = artifact.schema()
    assert set(schema["$defs"][definition]["properties"]) == {field.name for field in dataclasses.fields(kind)}


def test_a_produced_artifact_is_valid() -> None:
    artifact.validate(sample())
    artifact.validate(artifact.to_json(RUN, (), complete=False, partial=True))


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda data: data.update(extra=1), "extra"),
        (lambda data: data.pop("complete"), "complete"),
        (lambda data: data["cells"][0].update(verdict="GREEN"), "$.cells[0].verdict"),
        (lambda data: data["cells"][0]["gates"][0].update(limit="2"), "$.cells[0].gates[0].limit"),
        (lambda data: data["cells"][0]["acceptance"]["histogram"].update(one=1), "histogram"),
        (lambda data: data["run"].update(fingerprint="x"), "$.run.fingerprint"),
        (lambda data: data["run"]["engines"][0].update(start_s=-1), "$.run.engines[0].start_s"),
        (lambda data: data["run"]["engines"][0].pop("base_url"), "$.run.engines[0]"),
        (lambda data: data["cells"][0]["metrics"]["output_tps"].update(bracket=[1]), "$.cells[0].metrics"),
        (lambda data: data["cells"][0]["metrics"]["output_tps"].update(bracket=[1, 2, 3]), "$.cells[0].metrics"),
        (lambda data: data["cells"][0]["metrics"]["output_tps"].pop("bracket"), "$.cells[0].metrics"),
    ],
)
def test_validation_names_the_place(change: Callable[[dict[str, Any]], object], place: str) -> None:
    data = copy.deepcopy(sample())
    change(data)
    with pytest.raises(ConfigError) as error:
        artifact.validate(data)
    assert place in str(error.value)


def test_validation_without_jsonschema_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(ConfigError, match=r"pip install 'pytest-speedbench\[report\]'"):
        artifact.validate(sample())


# There and back


@given(run=RUNS, results=st.lists(RESULTS, max_size=3), complete=st.booleans(), planned=st.none() | COUNTS)
def test_any_run_comes_back_as_it_went_and_is_valid(
    run: RunInfo, results: list[CellResult], complete: bool, planned: int | None
) -> None:
    data = artifact.to_json(
        run, results, complete=complete, partial=not complete, planned=planned, redactor=NoSecrets()
    )
    artifact.validate(data)
    text = json.dumps(data, allow_nan=False)
    assert artifact.from_json(json.loads(text)) == (
        run,
        tuple(results),
        artifact.Flags(complete, not complete, False, planned),
    )


def test_a_file_comes_back_as_it_went(tmp_path: Path) -> None:
    path = tmp_path / "new" / "speedbench.json"
    artifact.write(path, RUN, EVERY, complete=True, partial=True, measure_only=True, planned=4)
    assert artifact.read(path) == (RUN, EVERY, artifact.Flags(True, True, True, 4))
    assert "6 starts × 2 repeats" in path.read_text(encoding="utf-8")


def test_a_bracket_and_an_attached_server_come_back_and_are_valid() -> None:
    bracket = dataclasses.replace(PASSED, metrics={"decode_acceptance_length": Metric(2.0, bracket=(2.0, 2.25))})
    (engine,) = RUN.engines
    attached = dataclasses.replace(engine, base_url="http://10.0.0.1:8000", start_s=None)
    started = dataclasses.replace(engine, start_s=41.25)
    run = dataclasses.replace(RUN, engines=(attached, started))
    data = json.loads(json.dumps(artifact.to_json(run, [bracket], complete=True, partial=False)))
    artifact.validate(data)
    assert data["cells"][0]["metrics"]["decode_acceptance_length"]["bracket"] == [2.0, 2.25]
    assert [(e["start_s"], e["base_url"]) for e in data["run"]["engines"]] == [
        (None, "http://10.0.0.1:8000"),
        (41.25, None),
    ]
    assert artifact.from_json(data)[:2] == (run, (bracket,))


@pytest.mark.parametrize("bracket", [[], [1.0], [1.0, 2.0, 3.0]])
def test_a_bracket_of_another_size_is_a_clear_error(bracket: list[float]) -> None:
    data = sample()
    data["cells"][0]["metrics"]["output_tps"]["bracket"] = bracket
    with pytest.raises(ConfigError, match="bracket"):
        artifact.from_json(data)


def test_counts_and_outcome_are_there_for_other_readers() -> None:
    data = sample()
    assert data["outcome"] == "fail"
    assert data["counts"] == {"pass": 1, "fail": 1, "inconclusive": 1, "invalid": 1, "waived": 0, "ungated": 1}
    assert artifact.to_json(RUN, [PASSED], complete=True, partial=False)["outcome"] == "pass"
    assert artifact.to_json(RUN, [PASSED, INVALID], complete=True, partial=False)["outcome"] == "invalid"
    assert artifact.to_json(RUN, [INVALID, FAILED], complete=True, partial=False)["outcome"] == "fail"
    assert artifact.to_json(RUN, [], complete=True, partial=False)["outcome"] == "invalid"


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    gate = dataclasses.replace(PASSED.gates[0], value=math.nan, headroom=math.inf)
    result = dataclasses.replace(PASSED, gates=(gate,), metrics={"output_tps": Metric(math.nan, math.inf)})
    path = tmp_path / "a.json"
    artifact.write(path, RUN, [result], complete=True, partial=False)
    assert "NaN" not in path.read_text(encoding="utf-8")
    assert "Infinity" not in path.read_text(encoding="utf-8")
    (read,) = artifact.read(path)[1]
    assert math.isnan(read.gates[0].value)
    assert math.isnan(read.metrics["output_tps"].value)
    assert read.metrics["output_tps"].low is None


def test_numbers_of_numpy_are_written_as_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    result = dataclasses.replace(PASSED, metrics={"output_tps": Metric(numpy.float32(1.5))}, turns=numpy.int64(3))
    text = json.dumps(artifact.to_json(RUN, [result], complete=True, partial=False))
    (read,) = artifact.from_json(json.loads(text))[1]
    assert (read.metrics["output_tps"].value, read.turns) == (1.5, 3)


def test_secrets_are_scrubbed_from_whatever_an_engine_said(tmp_path: Path) -> None:
    canary = "canary-7f3a9b2c"
    result = dataclasses.replace(INVALID, reasons=(Reason("http_401", f"rejected {canary} by /v1"),))
    path = tmp_path / "a.json"
    redactor = Redactor.from_environ({"ENGINE_API_KEY": canary})
    artifact.write(path, RUN, [result], complete=True, partial=False, redactor=redactor)
    assert canary not in path.read_text(encoding="utf-8")
    assert artifact.read(path)[1][0].reasons[0].message == "rejected *** by /v1"
    assert redacted(result, redactor).reasons[0].message == "rejected *** by /v1"


# What cannot be read


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "truncated"),
        (b'{"schema_version": 1, "cells": [', "truncated"),
        (b'{"schema_version": 1} x', "not valid JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[]", "expected an object, found array"),
        (b"{}", "no schema_version"),
        (b'{"schema_version": 2}', "newer than this plugin"),
        (b'{"schema_version": 0}', "not supported"),
        (b'{"schema_version": "1"}', "not supported"),
        (b'{"schema_version": true}', "not supported"),
        (b'{"schema_version": 1}', "'cells' is missing"),
        (b'{"schema_version": 1, "cells": [{}]}', r"artifact\.cells\[0\]: field 'verdict' is missing"),
        (b'{"schema_version": NaN}', "NaN is not JSON"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_an_unreadable_file_is_a_clear_error(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "speedbench.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as error:
        artifact.read(path)
    assert str(error.value).count(str(path)) == 1


def test_every_prefix_of_an_artifact_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "speedbench.json"
    artifact.write(path, RUN, [FAILED], complete=True, partial=False)
    whole = path.read_bytes()
    for size in range(0, len(whole.rstrip()), 61):
        path.write_bytes(whole[:size])
        with pytest.raises(ConfigError):
            artifact.read(path)


def test_any_field_of_a_wrong_type_is_a_clear_error() -> None:
    def places(node: object) -> Iterator[tuple[Any, Any]]:
        if isinstance(node, dict):
            for name, child in node.items():
                yield node, name
                yield from places(child)
        elif isinstance(node, list):
            for child in node:
                yield from places(child)

    ignored = {"outcome", "counts", "pass", "fail", "inconclusive", "invalid", "waived", "ungated", "fingerprint"}
    free = {"facts", "resolved", "sm_clock_mhz", "temperature", "dtype", "stop", "limits", "max_num_seqs"}
    data = sample()
    tried = 0
    for owner, name in list(places(data)):
        if name in ignored | free:
            continue
        good = owner[name]
        owner[name] = object()
        with pytest.raises(ConfigError):
            artifact.from_json(data)
        owner[name] = good
        tried += 1
    assert tried > 200
    artifact.from_json(data)


def test_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        artifact.read(tmp_path / "nothing.json")


# Never half a file

FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.report import artifact
from tests.unit.test_report_samples import EVERY, RUN
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    artifact.write(Path(sys.argv[1]), RUN, EVERY * 20, complete=True, partial=False)
except ConfigError as error:
    print(error)
"""
ENDLESS = """
import sys
from pathlib import Path
from pytest_speedbench.report import artifact
from tests.unit.test_report_samples import EVERY, RUN
for number in range(1, 10**9):
    artifact.write(Path(sys.argv[1]), RUN, EVERY * (1 + number % 40), complete=False, partial=False, planned=number)
"""
ROOT = Path(__file__).parents[2]


def test_a_write_that_the_disk_refuses_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "speedbench.json"
    artifact.write(path, RUN, [PASSED], complete=True, partial=False)
    before = path.read_bytes()
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == f"cannot write {path}: File too large"
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot write"):
        artifact.write(tmp_path / "file" / "a.json", RUN, [], complete=True, partial=False)


def test_a_killed_writer_never_leaves_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "speedbench.json"
    reads, seen = 0, set()
    for round_ in range(8):
        writer = subprocess.Popen([sys.executable, "-c", ENDLESS, str(path)], cwd=ROOT)
        try:
            begun = path.stat().st_mtime_ns if path.exists() else None
            deadline = time.monotonic() + 30
            while (path.stat().st_mtime_ns if path.exists() else None) == begun:
                assert time.monotonic() < deadline, "the writer never wrote"
                time.sleep(0.002)
            until = time.monotonic() + 0.02 + 0.013 * round_
            while time.monotonic() < until:
                seen.add(artifact.read(path)[2].planned)
                reads += 1
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        _, results, flags = artifact.read(path)
        assert len(results) == len(EVERY) * (1 + (flags.planned or 0) % 40)
    assert reads > 8
    assert len(seen) > 2


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    link.symlink_to(real)
    artifact.write(link, RUN, [], complete=True, partial=False)
    assert link.is_symlink()
    assert artifact.read(real)[1] == ()


def test_what_was_seen_of_gpus_is_in_the_file_and_comes_back(tmp_path: Path) -> None:
    window = GpuWindow(Card(0, "GPU-1", sm_max_mhz=1980), 2.0, 5, 4, power_w=300.5, slowed={"thermal": 3}, slowed_run=3)
    runs = (CellRun(1, 2, {"output_tps": 5.0}, (window,)),)
    path = tmp_path / "a.json"
    artifact.write(path, RUN, [dataclasses.replace(PASSED, runs=runs)], complete=True, partial=False)
    artifact.validate(artifact.load(path))
    assert artifact.read(path)[1][0].runs == runs

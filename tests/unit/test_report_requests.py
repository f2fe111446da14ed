"""The request log: what is kept, what survives a kill, and that metrics can be recomputed from it."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_speedbench.errors import ConfigError
from pytest_speedbench.measure.samples import (
    COUNTERS,
    Client,
    Counters,
    Failure,
    Steps,
    StepTotal,
    Told,
    Turn,
    Window,
)
from pytest_speedbench.measure.summary import summarise
from pytest_speedbench.report.redact import Redactor
from pytest_speedbench.report.requests import RequestLog, RequestsCutWarning, read_requests, read_windows
from tests.unit.test_report_samples import THROUGHPUT, window

FIRST, SECOND = window(4), window(6, THROUGHPUT)


def without_text(measured: Window) -> Window:
    return replace(measured, turns=tuple(replace(turn, text="") for turn in measured.turns))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "sub" / "speedbench-requests.jsonl.gz"
    writer = RequestLog(path)
    writer.append("vllm", FIRST)
    writer.append("vllm-plain", SECOND)
    return path


def test_windows_come_back_as_measured_bar_the_text(log: Path) -> None:
    assert list(read_windows(log)) == [("vllm", without_text(FIRST)), ("vllm-plain", without_text(SECOND))]


STEPS = (
    None,
    Steps((3, 2, 4), accepted=6, drafted=9, cut=2),
    Steps((1, 2, 4), accepted=4, drafted=None, cut=0, ordered=False),
    Steps((3, 2, 2), accepted=None, drafted=9, cut=None),
    Steps((0, 0), accepted=None, drafted=None, cut=None, ordered=False),
    Steps((), accepted=0, drafted=0),
)
TOLD = (
    None,
    Told(),
    Told(steps=3, drafts=2, drafted=9, accepted=6, lengths=(3, 2, 4), ordered=False),
    Told(lengths=()),
)


def test_what_is_known_and_what_is_not_of_steps_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "r.gz"
    turns = tuple(
        replace(FIRST.turns[0], question_id=f"q{i}-{j}", steps=steps, told=told)
        for i, steps in enumerate(STEPS)
        for j, told in enumerate(TOLD)
    )
    measured = replace(FIRST, turns=turns)
    RequestLog(path).append("vllm", measured)
    ((_, stored),) = read_windows(path)
    assert stored == without_text(measured)


@pytest.mark.parametrize("total", [None, StepTotal(3, 3, "step counter of the server"), StepTotal(3, 7, "bracket")])
def test_steps_of_the_window_come_back(tmp_path: Path, total: StepTotal | None) -> None:
    path = tmp_path / "r.gz"
    RequestLog(path).append("vllm", replace(FIRST, steps=total))
    ((_, stored),) = read_windows(path)
    assert stored.steps == total


@pytest.mark.parametrize(
    "counters",
    [
        Counters(),
        Counters(slack=7),
        Counters(**{name: 10 + i for i, name in enumerate(COUNTERS)}, slack=1),
        Counters(steps=0, missing=0),
    ],
)
def test_counters_come_back(tmp_path: Path, counters: Counters) -> None:
    path = tmp_path / "r.gz"
    RequestLog(path).append("vllm", replace(FIRST, counters=counters))
    ((_, stored),) = read_windows(path)
    assert stored.counters == counters


def test_a_stream_of_ids_alone_has_no_text_and_no_hash_of_it(tmp_path: Path) -> None:
    path = tmp_path / "r.gz"
    first, *others = FIRST.turns
    RequestLog(path).append("trtllm", replace(FIRST, turns=(replace(first, text=None), replace(others[0], text=""))))
    ((_, stored),) = read_windows(path)
    assert [turn.text for turn in stored.turns] == [None, ""]
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert [row["text_sha256"] for row in rows if row["type"] == "turn"] == [None, hashlib.sha256(b"").hexdigest()]


def test_a_repeated_plan_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "r.gz"
    repeated = replace(FIRST, planned=FIRST.planned * 3, turns=FIRST.turns * 3)
    RequestLog(path).append("vllm", repeated)
    assert list(read_windows(path)) == [("vllm", without_text(repeated))]


def test_requests_come_back_one_by_one(log: Path) -> None:
    found = list(read_requests(log))
    assert len(found) == 4 + 1 + 6 + 1
    assert found[0] == ("vllm", FIRST.cell, replace(FIRST.turns[0], text=""))
    assert found[4] == ("vllm", FIRST.cell, Failure("q9", 1, "http_500", "Internal Server Error"))


def test_metrics_recomputed_from_the_log_equal_those_of_the_run(log: Path) -> None:
    for measured, (_, stored) in zip((FIRST, SECOND), read_windows(log), strict=True):

        def summary(of: Window) -> object:
            return summarise(of, seed_parts=("cell",))

        assert summary(stored) == summary(measured)


def test_metrics_from_single_requests_equal_those_of_the_run(log: Path) -> None:
    turns = [request for profile, _, request in read_requests(log) if profile == "vllm" and isinstance(request, Turn)]
    single = replace(FIRST, turns=tuple(turns), failures=(), planned=(), steady_ns=None)
    want = summarise(replace(FIRST, steady_ns=None), seed_parts=("cell",))
    assert summarise(single, seed_parts=("cell",)) == want


def test_every_line_names_profile_and_cell_and_no_line_holds_the_text(log: Path) -> None:
    text = gzip.decompress(log.read_bytes()).decode("ascii")
    rows = [json.loads(line) for line in text.splitlines()]
    assert {row["type"] for row in rows} == {"window", "turn", "failure"}
    assert {row["profile"] for row in rows} == {"vllm", "vllm-plain"}
    assert {row["cell"]["split"] for row in rows} == {"qualitative", "throughput"}
    turn = next(row for row in rows if row["type"] == "turn")
    assert turn["event_ns"] == [20_000_000, 29_000_000, 38_000_000, 47_000_000]
    assert turn["step_ns"] == [20_000_000, None, 38_000_000, 47_000_000]
    assert "confidential" not in text
    assert len({row["text_sha256"] for row in rows if row["type"] == "turn"}) == 6


def test_output_ids_can_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "r.gz"
    RequestLog(path, keep_output_ids=False).append("vllm", FIRST)
    ((_, stored),) = read_windows(path)
    assert {turn.output_ids for turn in stored.turns} == {None}


def test_secrets_in_failures_are_scrubbed(tmp_path: Path) -> None:
    path = tmp_path / "r.gz"
    failure = Failure("q1", 0, "http_401", "bad key canary-7f3a9b2c")
    redactor = Redactor.from_environ({"API_KEY": "canary-7f3a9b2c"})
    RequestLog(path, redactor=redactor).append("vllm", replace(FIRST, failures=(failure,)))
    assert b"canary" not in gzip.decompress(path.read_bytes())


def test_what_is_not_finite_does_not_break_the_log(tmp_path: Path) -> None:
    path = tmp_path / "r.gz"
    RequestLog(path).append("vllm", replace(FIRST, client=Client(math.nan, math.inf), steady_ns=None))
    ((_, stored),) = read_windows(path)
    assert math.isnan(stored.client.lag_p99_s)
    assert stored.steady_ns is None


def test_any_cut_leaves_the_complete_members_and_says_so(log: Path) -> None:
    whole = log.read_bytes()
    boundary = len(whole) - len(whole[whole.index(b"\x1f\x8b", 2) :])
    while gzip_is_broken(whole[boundary:]):
        boundary = whole.index(b"\x1f\x8b", boundary + 1)
    for size in (1, 9, boundary // 2, boundary - 1, boundary + 1, boundary + 11, len(whole) - 9, len(whole) - 1):
        log.write_bytes(whole[:size])
        with pytest.warns(RequestsCutWarning, match=f"cut at byte {size}: the last cell is incomplete"):
            found = list(read_windows(log))
        assert [profile for profile, _ in found] == (["vllm"] if size > boundary else [])
    log.write_bytes(whole[:boundary])
    assert [profile for profile, _ in read_windows(log)] == ["vllm"]


def gzip_is_broken(data: bytes) -> bool:
    try:
        gzip.decompress(data)
    except Exception:
        return True
    return False


def test_resume_drops_a_cut_tail_and_goes_on(log: Path) -> None:
    log.write_bytes(log.read_bytes()[:-20])
    RequestLog(log, resume=True).append("vllm-new", SECOND)
    assert [profile for profile, _ in read_windows(log)] == ["vllm", "vllm-new"]


def test_resume_keeps_a_whole_file_and_a_fresh_log_does_not(log: Path) -> None:
    RequestLog(log, resume=True)
    assert len(list(read_windows(log))) == 2
    RequestLog(log)
    assert list(read_windows(log)) == []


def test_damage_is_an_error_and_not_a_cut(log: Path) -> None:
    data = bytearray(log.read_bytes())
    data[40] ^= 0xFF
    log.write_bytes(data)
    with pytest.raises(ConfigError, match="damaged in the member at byte 0"):
        list(read_windows(log))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"not json\n", "not JSON lines"),
        (b'{"type": "turn"}\n', "no window"),
        (b"", "no window"),
        (b"[]\n", "expected an object"),
    ],
)
def test_foreign_content_is_a_clear_error(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "r.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(ConfigError, match=words):
        list(read_windows(path))


def test_a_lost_line_is_noticed(log: Path) -> None:
    lines = gzip.decompress(log.read_bytes()).splitlines(keepends=True)[:6]
    log.write_bytes(gzip.compress(b"".join(lines[:2] + lines[3:])))
    with pytest.raises(ConfigError, match="lines are missing"):
        list(read_windows(log))


def test_files_that_cannot_be_used_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        list(read_windows(tmp_path / "nothing.gz"))
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot write"):
        RequestLog(tmp_path / "file" / "r.gz")

"""What a run records about itself."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

from pytest_speedbench.report.run_info import EngineRecord, OptionRecord, RunInfo, collect, plain_json
from tests.unit.test_report_samples import RUN

CANARY = "canary-7f3a9b2c"


def collected(**changes: object) -> RunInfo:
    given: dict[str, object] = {
        "started": "2026-12-02T03:00:00+00:00",
        "argv": ["pytest", f"--speedbench-engine-arg=--api-key={CANARY}", "bad \udcff byte"],
        "environ": {"HF_TOKEN": CANARY, "PATH": "/usr/bin"},
        "dataset": "mini",
        "options": [("seed", 7, "command line"), ("hf-token", "other-secret", "command line")],
        "engines": [EngineRecord("vllm", "vllm", "0.24.0", "m", resolved={"log": f"used {CANARY}", "x": math.nan})],
        **changes,
    }
    return collect(**given)  # type: ignore[arg-type]


def test_collect_reads_the_platform_and_keeps_no_secret() -> None:
    run = collected()
    assert run.python_version == ".".join(map(str, sys.version_info[:3]))
    assert run.cpu
    assert CANARY not in repr(run)
    assert run.options == (OptionRecord("seed", "7", "command line"), OptionRecord("hf-token", "***", "command line"))
    assert run.engines[0].resolved == {"log": "used ***", "x": "nan"}
    assert run.argv[2].encode("utf-8") == b"bad \\udcff byte"


def test_ci_facts_come_from_the_given_environment() -> None:
    github = {
        "GITHUB_SERVER_URL": "https://github.com",
        "GITHUB_REPOSITORY": "o/r",
        "GITHUB_RUN_ID": "12",
        "GITHUB_SHA": "abc",
    }
    run = collected(environ=github)
    assert (run.ci_url, run.ci_id, run.git_commit) == ("https://github.com/o/r/actions/runs/12", "12", "abc")
    run = collected(environ={"CI_JOB_URL": "https://gitlab/j/3", "CI_JOB_ID": "3", "CI_COMMIT_SHA": "def"})
    assert (run.ci_url, run.ci_id, run.git_commit) == ("https://gitlab/j/3", "3", "def")
    assert collected(environ={}).ci_url is None
    assert collected(environ=github, git_commit="given").git_commit == "given"


def test_the_fingerprint_follows_what_must_be_equal_and_nothing_else() -> None:
    (engine,) = RUN.engines
    same = [
        replace(RUN, started="later", argv=(), ci_id="2", git_commit=None),
        replace(RUN, engines=(replace(engine, version="0.25.0", gpus=()),)),
        replace(RUN, engines=(replace(engine, resolved=dict(reversed(list(engine.resolved.items())))),)),
        replace(RUN, engines=(replace(engine, start_s=12.5),)),
    ]
    other = [
        replace(RUN, dataset_sha256="f" * 64),
        replace(RUN, engines=(replace(engine, draft_tokens=4),)),
        replace(RUN, engines=(replace(engine, resolved={**engine.resolved, "temperature": 0.1}),)),
        replace(RUN, engines=()),
    ]
    assert {run.fingerprint for run in same} == {RUN.fingerprint}
    assert RUN.fingerprint not in {run.fingerprint for run in other}


def test_how_long_an_engine_took_to_start_is_not_part_of_its_fingerprint() -> None:
    (engine,) = RUN.engines
    assert {replace(engine, start_s=seconds).fingerprint for seconds in (None, 0.0, 41.5)} == {engine.fingerprint}


def test_the_address_of_an_attached_server_keeps_no_secret() -> None:
    attached = EngineRecord("vllm", "vllm", "0.24.0", "m", base_url=f"http://user:{CANARY}@10.0.0.1:8000")
    run = collected(engines=[attached])
    assert CANARY not in repr(run)
    assert "10.0.0.1:8000" in (run.engines[0].base_url or "")


def test_plain_json_knows_no_nan_and_no_foreign_types() -> None:
    assert plain_json({1: (math.inf, {3, 1}), "p": RUN.__class__, "ok": [True, None, 1.5]}) == {
        "1": ["inf", [1, 3]],
        "p": str(RunInfo),
        "ok": [True, None, 1.5],
    }

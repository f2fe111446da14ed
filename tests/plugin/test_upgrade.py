"""The upgrade gate through the whole plugin: two servers of known acceptance, the new one against the old."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_speedbench.report import artifact as artifacts
from tests.emulator.schedule import Schedule
from tests.emulator.server import Server
from tests.emulator.vllm import Vllm
from tests.plugin import project as files
from tests.plugin.conftest import ServeDrafts

DRAFT, TOKENS, PROMPTS = 3, 256, 12
Serve = Callable[[float], str]


@pytest.fixture
def serve(serve_drafts: ServeDrafts) -> Serve:
    """Start a server whose drafts are accepted with a given probability; its address."""
    return lambda rate: serve_drafts(rate, tokens=TOKENS, draft=DRAFT, seed=int(1e6 * rate))


@pytest.fixture
def upgrade(tmp_path: Path, tokenizer: Path) -> Path:
    """A project without any limit."""
    texts = {name: [[f"Question {n} on {name}"] for n in range(PROMPTS)] for name in ("coding", "math", "qa")}
    files.write_prompts(tmp_path / "prompts", texts)
    files.write_attached(tmp_path, tokenizer, osl=TOKENS, draft_tokens=DRAFT, concurrency=4)
    return tmp_path


def gated(folder: Path, old: str, new: str, *args: str) -> pytest.RunResult:
    return files.run_pytest(
        folder, "--speedbench-engine=vllm", f"--speedbench-base-url={new}", f"--speedbench-baseline={old}", *args
    )


def test_an_engine_that_accepts_as_much_passes_without_any_stored_limit(upgrade: Path, serve: Serve) -> None:
    result = gated(upgrade, serve(0.701), serve(0.702), "--speedbench-repeats=4")
    assert result.ret == pytest.ExitCode.OK, files.text(result)
    data = files.artifact(upgrade)
    artifacts.validate(data)
    assert {c["item_id"]: c["verdict"] for c in data["cells"]} == {
        **{f"vllm-qualitative-{name}": "PASS" for name in ("coding", "math", "qa", "overall")},
        **{f"baseline-vllm-qualitative-{name}": None for name in ("coding", "math", "qa", "overall")},
    }
    assert data["counts"]["pass"] == 4
    assert data["counts"]["ungated"] == 0
    for cell in data["cells"]:
        assert [(run["start"], run["repeat"]) for run in cell["runs"]] == [(0, n) for n in range(4)]


def test_an_engine_that_accepts_less_fails(upgrade: Path, serve: Serve) -> None:
    result = gated(upgrade, serve(0.70), serve(0.60), "--speedbench-repeats=4")
    assert result.ret == pytest.ExitCode.TESTS_FAILED, files.text(result)
    cells = {cell["item_id"]: cell for cell in files.artifact(upgrade)["cells"]}
    overall, old = cells["vllm-qualitative-overall"], cells["baseline-vllm-qualitative-overall"]
    assert overall["verdict"] == "FAIL"
    (gate,) = overall["gates"]
    assert (gate["kind"], gate["metric"], gate["margin"]) == ("paired", "acceptance_length", 0.02)
    # What the baseline was measured at is the reference: no number of it is stored anywhere.
    assert gate["reference"] == pytest.approx(old["metrics"]["acceptance_length"]["value"], rel=1e-9)
    assert gate["limit"] == pytest.approx(gate["reference"] * 0.98)
    assert f"FAIL acceptance_length {gate['value']:.3f} < limit {gate['limit']:.3f}" in files.text(result)
    # Each draft was accepted with a probability of 0.7 by the old engine, and of 0.6 by the new one.
    assert gate["conditional_reference"] == pytest.approx([0.7, 0.7, 0.7], abs=0.03)
    assert "drop starts at draft position 1" in files.text(result)


def test_a_baseline_that_lost_a_request_is_none(upgrade: Path, serve: Serve) -> None:
    with Server(
        Vllm(
            lambda r: Schedule.drawn(
                TOKENS, draft=DRAFT, rate=0.7, seed=r.number, fault="cut" if r.number == 30 else None
            ),
            draft_tokens=DRAFT,
            metrics="detailed",
            served="someone/model",
        )
    ) as old:
        result = gated(upgrade, old.base_url, serve(0.7))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "INVALID baseline_invalid" in files.text(result)


def test_an_address_cannot_be_the_baseline_of_an_engine_that_is_started(upgrade: Path) -> None:
    result = files.run_pytest(upgrade, "--speedbench-engine=vllm", "--speedbench-baseline=http://127.0.0.1:9")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "so the new engine must be one too" in files.text(result)


def test_a_baseline_of_another_workload_is_refused(upgrade: Path) -> None:
    profile = json.loads((upgrade / "speedbench.yaml").read_text(encoding="utf-8"))
    (upgrade / "old.yaml").write_text(json.dumps({**profile, "temperature": 1.0}), encoding="utf-8")
    result = files.run_pytest(upgrade, "--speedbench-engine=vllm", "--speedbench-baseline=old.yaml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "another workload" in files.text(result)

"""The committed upgrade gates: every table of their README follows from the request logs."""

from __future__ import annotations

import itertools
import json
import math
import runpy
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from pytest_speedbench.cells import Cell
from pytest_speedbench.comparison import comparing, sources
from pytest_speedbench.comparison.judging import Compared, Policy
from pytest_speedbench.gates.paired import Arm, judge_pair
from pytest_speedbench.gates.verdict import GateResult, Verdict
from pytest_speedbench.measure.samples import Window
from pytest_speedbench.measure.summary import summarise
from pytest_speedbench.report import artifact as artifacts
from pytest_speedbench.report.requests import read_windows
from pytest_speedbench.versus import Baseline, Shared, paired_gates, shared

FOLDER = Path(__file__).parents[2] / "examples" / "upgrade-gate"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
KNOWN, UPGRADE = FOLDER / "known-change", FOLDER / "vllm-0.22.1-to-0.24.0"
NEW, OLD = "vllm", "baseline-vllm"
REPEATS = range(5)
CODING, MATH, OVERALL = (Cell("qualitative", 64, category=name) for name in ("coding", "math", "overall"))
CELLS = (CODING, MATH, OVERALL)

JOINED = "throughput-1k-mixed-c8"
Run = tuple[str, int, int]
"""Profile, engine start, repeat."""
Windows = dict[tuple[Run, str], Window]


@pytest.fixture(scope="module")
def known() -> Windows:
    log = KNOWN / "speedbench-requests.jsonl.gz"
    return {((label, w.start, w.repeat), str(w.cell.category)): w for label, w in read_windows(log)}


def share(known: Windows, cell: Cell, old: Run, new: Run) -> Shared | None:
    parts = (CODING, MATH) if cell.is_overall else (cell,)
    return shared(*([known[run, str(part.category)] for part in parts] for run in (old, new)))


def judge(cell: Cell, *runs: Shared) -> GateResult:
    """The gate of the session itself, on some of its runs."""
    (gate,) = paired_gates(cell, [], Baseline("old", (), runs, CELLS), speculates=True)
    return gate


def percent(value: float, digits: int = 2, sign: str = "+") -> str:
    # Plus zero, so that nothing is minus zero.
    return f"{round(100 * value, digits) + 0.0:{sign}.{digits}f} %".replace("-", "−")


def row(*words: object) -> str:
    return "| " + " | ".join(map(str, words)) + " |"


def outcome(gate: GateResult) -> tuple[str, str, str, str, str]:
    assert gate.reference is not None
    change = percent(gate.value / gate.reference - 1)
    return f"{gate.value:.4f}", f"{gate.reference:.4f}", change, percent(gate.sigma, sign=""), gate.verdict.value


def counted(gates: list[GateResult]) -> Counter[Verdict]:
    return Counter(gate.verdict for gate in gates)


def judged(known: Windows, cell: Cell, pairs: Iterator[tuple[Run, Run]]) -> list[GateResult]:
    found = (share(known, cell, old, new) for old, new in pairs)
    return [judge(cell, each) for each in found if each is not None]


def test_the_verdicts_of_the_session_follow_from_its_log(known: Windows) -> None:
    data = json.loads((KNOWN / "speedbench.json").read_text(encoding="utf-8"))
    artifacts.validate(data)
    stored = {cell["cell"]["category"]: cell for cell in data["cells"] if cell["profile"] == NEW}
    runs = list(itertools.product((0, 1), REPEATS))
    for cell in CELLS:
        both = [share(known, cell, (OLD, *run), (NEW, *run)) for run in runs]
        gate = judge(cell, *(each for each in both if each is not None))
        (written,) = stored[cell.category]["gates"]
        assert gate.verdict.value == written["verdict"] == stored[cell.category]["verdict"]
        for name in ("value", "reference", "limit", "sigma", "guard"):
            assert getattr(gate, name) == pytest.approx(written[name], rel=1e-9), name
        limit = percent(-(gate.margin or 0), digits=0)
        assert row(cell.category, *outcome(gate)[:3], limit, *outcome(gate)[3:]) in README


def test_every_number_but_step_times_follows_from_the_log(known: Windows) -> None:
    """The log was published without the times between first and last event of a turn."""
    data = json.loads((KNOWN / "speedbench.json").read_text(encoding="utf-8"))
    for cell in data["cells"]:
        if cell["cell"]["category"] == "overall":
            continue
        for run in cell["runs"]:
            window = known[(cell["profile"], run["start"], run["repeat"]), cell["cell"]["category"]]
            metrics, _ = summarise(window, seed_parts=(cell["item_id"],))
            left = {name: v for name, v in run["values"].items() if not name.startswith(("step_", "steady_"))}
            assert {name: metrics[name].value for name in left} == pytest.approx(left, rel=1e-9)
            assert "drafted_acceptance_length" in left


def expected(share: float, tokens: int = 512) -> float:
    """The acceptance length of turns whose steps emit 3 tokens with this probability and else 2.

    One token is the prefill's. A turn has at most s steps where 2 s and the threes among s reach the rest.
    """
    rest = tokens - 1

    def at_most(s: int) -> float:
        threes = range(max(0, rest - 2 * s), s + 1)
        return math.fsum(math.comb(s, n) * share**n * (1 - share) ** (s - n) for n in threes)

    reached = [at_most(s) for s in range(rest // 3, rest // 2 + 2)]
    probabilities = (after - before for before, after in itertools.pairwise(reached))
    return math.fsum(p * tokens / (1 + s) for s, p in enumerate(probabilities, start=rest // 3 + 1))


def test_the_true_lengths_are_known(known: Windows) -> None:
    truth = {OLD: expected(0.5), NEW: expected(0.4)}
    assert f"{truth[OLD]:.4f} and {truth[NEW]:.4f}, a drop of {100 * (1 - truth[NEW] / truth[OLD]):.2f} %" in README
    for label, length in truth.items():
        # All ten runs of a cell: their standard error is below 0.1 %.
        turns = [t for (run, _), window in known.items() if run[0] == label for t in window.turns if t.steps]
        assert fmean(t.output_tokens / (1 + t.steps.count) for t in turns if t.steps) == pytest.approx(length, rel=2e-3)


def test_a_known_drop_is_red_in_every_pair(known: Windows) -> None:
    gates = []
    for start, repeat in itertools.product((0, 1), REPEATS):
        both = share(known, OVERALL, (OLD, start, repeat), (NEW, start, repeat))
        words: tuple[object, ...] = ("–",) * 4 + ("no steps per request",)
        if both is not None:
            gates.append(judge(OVERALL, both))
            words = outcome(gates[-1])
        alone = share(known, MATH, (OLD, start, repeat), (NEW, start, repeat))
        assert alone is not None
        assert row(start, repeat, *words, *outcome(judge(MATH, alone))[2:]) in README
    assert counted(gates) == {Verdict.FAIL: 8}


def test_one_category_is_red_at_the_overall_margin(known: Windows) -> None:
    """All ten runs of math have steps per request."""
    verdicts = []
    for run in itertools.product((0, 1), REPEATS):
        both = share(known, MATH, (OLD, *run), (NEW, *run))
        assert both is not None
        new, old = (Arm([(*run, fmean(side.values()))], side) for side in (both.new, both.old))
        gate = judge_pair("acceptance_length", new, old, margin=0.02, alpha=0.0125, beta=0.05, source="old")
        verdicts.append(gate.verdict)
    assert verdicts == [Verdict.FAIL] * 10


def test_a_known_drop_is_red_whatever_the_draws(known: Windows) -> None:
    """Any repeat of the new engine against any of the old."""
    runs = itertools.product((0, 1), REPEATS, REPEATS)
    pairs = (((OLD, 0, old), (NEW, start, new)) for start, new, old in runs)
    assert counted(judged(known, OVERALL, pairs)) == {Verdict.FAIL: 40}


def test_the_same_engine_is_green_in_every_pair(known: Windows) -> None:
    gates = []
    for one, other in itertools.combinations(REPEATS, 2):
        both = share(known, OVERALL, (OLD, 0, one), (OLD, 1, other))
        assert both is not None
        gates.append(judge(OVERALL, both))
        assert row(one, other, *outcome(gates[-1])) in README
    assert counted(gates) == {Verdict.PASS: 10}
    news = (((NEW, 0, one), (NEW, 1, other)) for one, other in itertools.product(REPEATS, REPEATS))
    assert counted(judged(known, OVERALL, news)) == {Verdict.PASS: 15}


def test_two_starts_with_one_seed_draw_the_same(known: Windows) -> None:
    """Why the pairs of equal repeats show nothing: 2.50 against 2.50 is then a run against its copy."""
    for repeat in REPEATS:
        both = share(known, OVERALL, (OLD, 0, repeat), (OLD, 1, repeat))
        assert both is not None
        assert both.new == both.old


# The upgrade of the engine


@pytest.fixture(scope="module")
def assembled(tmp_path_factory: pytest.TempPathFactory) -> tuple[sources.Side, sources.Side]:
    folder = tmp_path_factory.mktemp("upgrade")
    assemble: Callable[..., str] = runpy.run_path(str(FOLDER / "assemble.py"))["assemble"]
    first, second = UPGRADE / "session-1.json", UPGRADE / "session-2.json"
    old = assemble(folder / "old.json", [(first, OLD)])
    new = assemble(folder / "new.json", [(first, NEW), (second, NEW)])
    assert old in README
    assert new in README
    read = [sources.read(folder / name) for name in ("old.json", "new.json")]
    return sources.sides(*read, profile=None, base_profile=None)


def test_assembled_artifacts_hold_what_the_sessions_measured(assembled: tuple[sources.Side, sources.Side]) -> None:
    """The whole start of the second session is that session's own artifact again."""
    for side in assembled:
        artifacts.validate(artifacts.load(side.source.path))
    data: dict[str, Any] = json.loads((UPGRADE / "session-2.json").read_text(encoding="utf-8"))
    results = {result.cell.id(with_concurrency=True): result for result in assembled[1].cells.values()}
    assert len(data["cells"]) == len(results)
    for cell in data["cells"]:
        name = cell["item_id"].removeprefix("vllm-")
        result = results[name if name in results else f"{name}-c8"]
        runs = [run for run in result.runs if run.start == 1]
        assert len(runs) == len(cell["runs"]) == 2
        for own, stored in zip(runs, cell["runs"], strict=True):
            assert own.values == pytest.approx(stored["values"], rel=1e-9)


def test_the_verdict_on_the_upgrade_follows_from_the_logs(assembled: tuple[sources.Side, sources.Side]) -> None:
    found = comparing.compare(*assembled, Policy(metrics=("acceptance_length",)))
    cells = {each.cell.id(with_concurrency=True): each for each in found.cells}
    assert [str(difference) for difference in found.differences] == ["engine version: 0.22.1 against 0.24.0"]
    joined = cells.pop(JOINED)
    assert joined.verdict is not Verdict.FAIL
    assert (joined.verdict is Verdict.INVALID) == ("calls this cell INVALID" in README)
    shown = {name: each for name, each in cells.items() if of_upgrade(each)[2:4] != ("+0.00 %", "±0.0 %")}
    for name, each in shown.items():
        assert row(name, *of_upgrade(each)) in README, name
    equal = [each for name, each in cells.items() if name not in shown]
    assert {each.verdict for each in equal} == {Verdict.PASS}
    assert {each.gates[0].sigma for each in equal} == {0.0}
    assert f"In {len(equal)} cells nothing changed" in README
    assert {name for name, each in cells.items() if each.verdict is not Verdict.PASS} == {
        "qualitative-roleplay-c8",
        "qualitative-writing-c8",
    }


def test_the_repeat_with_steps_per_request_is_equal(assembled: tuple[sources.Side, sources.Side]) -> None:
    """In the other the old server joined events, and only the cell's steps are known."""
    old, new = (
        {w.repeat: w for w in sources.Windows(side).of(cell) if w.start == 0}
        for side in assembled
        for cell in side.cells
        if cell.id(with_concurrency=True) == JOINED
    )
    both = shared([old[0]], [new[0]])
    assert both is not None
    assert both.old == both.new
    assert shared([old[1]], [new[1]]) is None


def test_rates_of_the_old_engine_differ_between_its_own_starts() -> None:
    """Two GPUs were measured at once beside few cores: why no rate was judged."""
    math_windows = [
        window
        for label, window in read_windows(UPGRADE / "session-1-requests.jsonl.gz")
        if (label, window.cell.category) == (OLD, "math")
    ]
    rates = [summarise(window, seed_parts=("rate",))[0]["output_tps"].value for window in math_windows]
    assert f"{min(rates):.0f} to {max(rates):.0f} tokens/s" in README


def of_upgrade(each: Compared) -> tuple[object, ...]:
    (gate,) = each.gates
    assert gate.reference is not None
    change = percent(gate.value / gate.reference - 1)
    return f"{gate.reference:.3f}", f"{gate.value:.3f}", change, "±" + percent(gate.guard, 1, ""), each.verdict.value


def test_how_far_the_engines_repeat_themselves() -> None:
    """Steps of every cell: the new engine's are the same in all of its runs, the old engine's are not."""
    steps: dict[tuple[str, int, int], dict[str, int]] = {}
    for number, name in enumerate(("session-1", "session-2")):
        for label, window in read_windows(UPGRADE / f"{name}-requests.jsonl.gz"):
            assert window.steps is not None
            own = steps.setdefault((label, number + window.start, window.repeat), {})
            own[window.cell.id(with_concurrency=True)] = window.steps.low
    reference = steps[NEW, 0, 0]
    assert len(reference) == 17
    assert all(steps[NEW, start, repeat] == reference for start in (0, 1) for repeat in (0, 1))
    unlike = [[name for name in reference if steps[OLD, 0, repeat][name] != reference[name]] for repeat in (0, 1)]
    assert [len(names) for names in unlike] == [1, 4]
    for name, number in (steps[OLD, 1, 0] | steps[OLD, 1, 1]).items():
        assert number == reference[name]
    assert (len(steps[OLD, 1, 0]), len(steps[OLD, 1, 1])) == (7, 6)

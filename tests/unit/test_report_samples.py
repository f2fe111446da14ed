"""Hand-made results that the tests of the reports share, and what those tests take for granted about them."""

from __future__ import annotations

from dataclasses import replace

from pytest_speedbench.cells import Cell
from pytest_speedbench.gates.verdict import GateResult, Verdict
from pytest_speedbench.measure.acceptance import Acceptance, conditional, joint
from pytest_speedbench.measure.checks import Reason
from pytest_speedbench.measure.metrics import Metric
from pytest_speedbench.measure.samples import Client, Counters, Failure, Steps, Turn, Window
from pytest_speedbench.report.run_info import EngineRecord, GpuRecord, OptionRecord, RunInfo
from pytest_speedbench.results import CellResult
from tests.unit.test_measure_samples import known, steps_of

HISTOGRAM = {1: 20000, 2: 9000, 3: 5000, 4: 7203}
ACCEPTANCE = Acceptance(HISTOGRAM, conditional(HISTOGRAM), joint(HISTOGRAM), decode_histogram=HISTOGRAM)

CODING = Cell("qualitative", 32, category="coding")
OVERALL = Cell("qualitative", 32, category="overall")
THROUGHPUT = Cell("throughput", 128, isl="8k", difficulty="mixed")

RUN = RunInfo(
    started="2026-12-02T03:00:00+00:00",
    argv=("pytest", "--speedbench-engine=vllm"),
    plugin_version="0.1.0",
    python_version="3.11.7",
    pytest_version="9.2.0",
    platform="Linux-6.1-x86_64-with-glibc2.36",
    cpu="AMD EPYC 9654 (192 logical)",
    dataset="nvidia/SPEED-Bench",
    dataset_sha256="0123456789abcdef" * 4,
    thresholds=("thresholds/h100-eagle3.yaml",),
    options=(OptionRecord("concurrency", "32", "command line"), OptionRecord("seed", "7", "SPEEDBENCH_SEED")),
    engines=(
        EngineRecord(
            "vllm",
            "vllm",
            "0.24.0",
            "meta-llama/Llama-3.1-8B-Instruct",
            "eagle3",
            "org/drafter",
            3,
            (GpuRecord("NVIDIA H100 80GB HBM3", "GPU-1", 0, "570.1", "12.8", {"sm_clock_mhz": 1980}),),
            {"temperature": 0.0, "dtype": "bfloat16", "stop": ["</s>"], "limits": {"max_num_seqs": 512}},
        ),
    ),
    git_commit="d7dea7c",
    ci_url="https://github.com/o/r/actions/runs/1",
    ci_id="1",
)


def gate(
    metric: str,
    verdict: Verdict,
    value: float,
    limit: float,
    *,
    reference: float | None = None,
    ceiling: bool = False,
    line: int = 14,
) -> GateResult:
    """A gate with plausible noise; without a reference it is hand-written."""
    return GateResult(
        metric=metric,
        verdict=verdict,
        value=value,
        limit=limit,
        ceiling=ceiling,
        reference=reference,
        margin=0.02 if reference else None,
        sigma=0.003,
        guard=0.005,
        headroom=(value - limit) / limit * (-1 if ceiling else 1),
        mde_not_passed=0.019,
        mde_failed=0.022,
        source=f"thresholds/h100-eagle3.yaml:{line}",
        note="" if reference else "assumed noise 0.5 %",
        evidence="6 starts × 2 repeats on 2026-12-01" if reference else "",
        conditional_reference=(0.53, 0.62, 0.7) if reference else (),
    )


PASSED = CellResult(
    profile="vllm",
    cell=CODING,
    item_id="vllm-qualitative-coding",
    verdict=Verdict.PASS,
    metrics={
        "acceptance_length": Metric(2.4, 2.34, 2.461),
        "output_tps": Metric(4000.4),
        "user_tps": Metric(130.25),
        "ttft_p95_s": Metric(0.0453),
    },
    acceptance=ACCEPTANCE,
    gates=(gate("acceptance_length", Verdict.PASS, 2.4, 2.33, reference=2.427),),
    conversations=80,
    conversations_planned=80,
    turns=112,
    prompts_sha256="ab" * 32,
    steps_source="per_step",
    duration_s=41.5,
)
FAILED = replace(
    PASSED,
    cell=OVERALL,
    item_id="speedbench::test_cell[vllm-qualitative-overall]",
    verdict=Verdict.FAIL,
    metrics={"acceptance_length": Metric(2.314, 2.29, 2.338)},
    gates=(gate("acceptance_length", Verdict.FAIL, 2.314, 2.382, reference=2.431),),
    conversations=880,
    conversations_planned=880,
)
INVALID = CellResult(
    profile="vllm",
    cell=replace(CODING, category="multilingual"),
    item_id="vllm-qualitative-multilingual",
    verdict=Verdict.INVALID,
    reasons=(Reason("lost_requests", "3 turns failed: 3 × http_500"), Reason("incomplete", "1 turn is missing")),
    conversations=77,
    conversations_planned=80,
)
INCONCLUSIVE = replace(
    PASSED,
    cell=THROUGHPUT,
    item_id="vllm-throughput-8k-mixed-c128",
    verdict=Verdict.INCONCLUSIVE,
    gates=(
        gate("output_tps", Verdict.INCONCLUSIVE, 5110.0, 5100.0, line=21),
        gate("ttft_p95_s", Verdict.PASS, 0.0453, 0.2, ceiling=True, line=22),
    ),
)
UNGATED = replace(
    PASSED, cell=replace(CODING, category="math"), item_id="vllm-qualitative-math", verdict=None, gates=()
)
EVERY = (PASSED, FAILED, INVALID, INCONCLUSIVE, UNGATED)


def window(conversations: int = 4, cell: Cell = CODING) -> Window:
    """A window with drafts, hidden arrivals, a cut last step and one failure."""
    turns = []
    for number in range(conversations):
        start = 1_000_000_000 + number * 7_000_000
        arrivals = tuple(start + 20_000_000 + 9_000_000 * i for i in range(4))
        turns.append(
            Turn(
                question_id=f"q{number}",
                category="coding",
                index=0,
                prompt_tokens=31 + number,
                output_tokens=8,
                finish="length",
                start_ns=start,
                event_ns=arrivals,
                event_tokens=(1, 3, 2, 2),
                step_ns=(arrivals[0], -1, arrivals[2], arrivals[3]),
                steps=Steps((3, 2 + number % 2, 4 - number % 2), 6, 9, 2),
                text=f"the confidential answer {number}",
                output_ids=tuple(range(8)) if number % 2 else None,
            )
        )
    return Window(
        cell=cell,
        planned=tuple((turn.question_id, 1) for turn in turns),
        turns=tuple(turns),
        failures=(Failure("q9", 1, "http_500", "Internal Server Error"),),
        counters=Counters(
            output_tokens=8 * conversations,
            drafts=3 * conversations,
            drafted=9 * conversations,
            accepted=6 * conversations,
        ),
        client=Client(0.0012, 0.31),
        steady_ns=(1_010_000_000, 1_050_000_000),
    )


def test_every_verdict_is_there() -> None:
    assert {result.verdict for result in EVERY} == {*Verdict, None}


def test_the_turns_keep_the_identity_of_step_counts() -> None:
    for turn in window().turns:
        steps = steps_of(turn)
        assert turn.output_tokens - 1 + known(steps.cut) == known(steps.accepted) + steps.count
        assert steps.accepted == sum(steps.lengths) - steps.count

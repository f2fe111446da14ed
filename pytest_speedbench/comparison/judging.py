"""The verdict on every cell that two runs share: paired per prompt and engine start, by the gates of an upgrade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from pytest_speedbench.cells import Cell
from pytest_speedbench.comparison.explaining import Explanation, explain
from pytest_speedbench.comparison.sources import Side
from pytest_speedbench.gates.limits import Family
from pytest_speedbench.gates.paired import Arm, judge_pair, margin_of
from pytest_speedbench.gates.verdict import GateResult, Verdict, allocate, combine
from pytest_speedbench.measure import acceptance as acc
from pytest_speedbench.measure import gpu_validity
from pytest_speedbench.measure.checks import Reason, client_problem
from pytest_speedbench.measure.metrics import METRICS, MetricSpec
from pytest_speedbench.measure.pairing import Pairs, pair_turns
from pytest_speedbench.measure.samples import Turn, Window
from pytest_speedbench.results import CellResult, runs_of

_ABOUT_LIMITS = frozenset({"no_gate", "unreachable", "other_prompts", "no_per_request_steps", "ambiguous_steps"})
"""Reasons that speak of the limits which a run was judged by, and not of its measurement."""
_ABOUT_TIME = frozenset({"client_saturated", "concurrency_not_held"})
"""Reasons that leave token and step counts sound."""

_NO_PROMPTS = "without the request logs of both runs prompts cannot be paired, and one engine start each shows no noise"


@dataclass(frozen=True, slots=True)
class Policy:
    """What is judged, and how strictly.

    ``metrics`` empty: acceptance length and output rate, as far as both runs can have them. ``margins`` by metric
    override ``margin``, and that the metric's own. ``alpha`` is the probability of any wrong FAIL, ``beta`` that of
    a wrong PASS per gate.
    """

    metrics: tuple[str, ...] = ()
    margin: float | None = None
    margins: Mapping[str, float] = field(default_factory=dict)
    alpha: float = 0.05
    beta: float = 0.05

    def margin_of(self, spec: MetricSpec, cell: Cell) -> float:
        """The relative change for the worse that is too much."""
        own = margin_of(spec, cell) if self.margin is None else self.margin
        return self.margins.get(spec.name, own)


@dataclass(frozen=True, slots=True)
class Compared:
    """One cell of both runs.

    ``conversations`` were paired, and ``left_out`` later turns in them were not, since replies before them differ.
    ``paired`` is False where there is no request log, and whole cells were compared.
    """

    cell: Cell
    verdict: Verdict
    gates: tuple[GateResult, ...] = ()
    reasons: tuple[Reason, ...] = ()
    conversations: int = 0
    left_out: int = 0
    paired: bool = True
    explanation: Explanation = field(default_factory=Explanation)


def missing(cell: Cell, where: str) -> Compared:
    """A cell that only one run has."""
    return Compared(cell, Verdict.INVALID, reasons=(Reason("missing_cell", f"not measured in {where}"),))


def judge_cell(
    cell: Cell,
    base: Side,
    new: Side,
    windows: tuple[Sequence[Window], Sequence[Window]],
    cells: Sequence[Cell],
    policy: Policy,
) -> Compared:
    """Compare one cell. ``windows`` are those of both runs, empty without a log; ``cells`` is the whole family."""
    old, now = base.cells[cell], new.cells[cell]
    problems = unsound(base, old) + unsound(new, now)
    if problems:
        return Compared(cell, Verdict.INVALID, reasons=tuple(problems))
    pairs = _pairs(*windows)
    lost = [f"{base.name}: {found.only_base[0]}" for found in pairs.values() if found.only_base]
    lost += [f"{new.name}: {found.only_new[0]}" for found in pairs.values() if found.only_new]
    if lost:
        return Compared(cell, Verdict.INVALID, reasons=(Reason("other_prompts", f"only one run has {lost[0]}"),))
    metrics = policy.metrics or _usual(base, new, cell)
    if not metrics:
        reason = Reason(
            "nothing_compared",
            f"without speculation there are rates only, and {now.conversations} conversations cannot hold a "
            f"concurrency of {cell.concurrency}",
        )
        return Compared(cell, Verdict.INVALID, reasons=(reason,))
    alpha, beta = allocate(Family(policy.alpha, policy.beta), cells, cell, metrics=len(metrics))
    timing = timing_problem(base, old, windows[0]) + timing_problem(new, now, windows[1])
    gates, reasons = [], list[Reason]()
    one, other = base.engine, new.engine
    same_drafting = (one.method, one.draft_model, one.draft_tokens) == (
        other.method,
        other.draft_model,
        other.draft_tokens,
    )
    for metric in metrics:
        spec = METRICS[metric]
        if spec.log_scale and timing:
            reasons += timing[:1]
            continue
        known = _known(metric, pairs)
        gate = judge_pair(
            metric,
            _arm(metric, now, {key: [pair.new for pair in found.pairs] for key, found in known.items()}),
            _arm(metric, old, {key: [pair.base for pair in found.pairs] for key, found in known.items()}),
            margin=policy.margin_of(spec, cell),
            alpha=alpha,
            beta=beta,
            source=base.name,
            assumed_noise=spec.assumed_noise,
        )
        if not pairs and gate.reason == "too_few_starts" and not spec.log_scale:
            gate = replace(gate, note=_NO_PROMPTS)
        gates.append(gate)
        if gate.verdict is Verdict.INVALID:
            reasons.append(Reason(gate.reason or "not_measured", gate.note))
    first = next(iter(pairs.values()), None)
    return Compared(
        cell=cell,
        verdict=Verdict.INVALID if reasons else combine(gates),
        gates=tuple(gates),
        reasons=tuple(dict.fromkeys(reasons)),
        conversations=len(first.pairs) if first else 0,
        left_out=first.left_out if first else 0,
        paired=first is not None,
        explanation=explain(old, now, gates, windows, _categories(base, new, cell), same_drafting=same_drafting),
    )


# What can be compared


def _usual(base: Side, new: Side, cell: Cell) -> tuple[str, ...]:
    """Acceptance length where there is speculation, and the output rate where the concurrency was held.

    An overall cell has no output rate; without speculation that of a user stands for it.
    """
    old, now = base.cells[cell], new.cells[cell]
    known = old.metrics.keys() | now.metrics.keys()
    found = []
    if base.engine.method or new.engine.method:
        by_request = _of_every_start("acceptance_length", old) and _of_every_start("acceptance_length", now)
        found.append("acceptance_length" if by_request else "decode_acceptance_length")
    if all(_held(side, cell) for side in (base, new)):
        if "output_tps" in known:
            found.append("output_tps")
        elif not found and "user_tps" in known:
            found.append("user_tps")
    return tuple(found)


def _of_every_start(metric: str, result: CellResult) -> bool:
    runs = runs_of(result)
    return {run.start for run in runs if metric in run.values} == {run.start for run in runs}


def _held(side: Side, cell: Cell) -> bool:
    """Whether there are conversations enough to have as many in flight as asked for; a throughput cell is told."""
    parts = [c for c in side.cells if _is_part(c, cell)] if cell.is_overall else [cell]
    return cell.split == "throughput" or all(side.cells[c].conversations >= cell.concurrency for c in parts)


def _is_part(cell: Cell, overall: Cell) -> bool:
    return cell.split == overall.split and cell.concurrency == overall.concurrency and not cell.is_overall


def _categories(base: Side, new: Side, cell: Cell) -> list[tuple[CellResult, CellResult]]:
    """The cells that an overall cell sums up, in both runs."""
    if not cell.is_overall:
        return []
    return [(base.cells[c], new.cells[c]) for c in new.cells if c in base.cells and _is_part(c, cell)]


def unsound(side: Side, result: CellResult) -> list[Reason]:
    """Why a run's cell cannot be compared at all; empty where it can."""
    harmless = _ABOUT_LIMITS | (_ABOUT_TIME if result.cell.split == "qualitative" else {"client_saturated"})
    if result.verdict is not Verdict.INVALID:
        return []
    reasons = [
        Reason(r.code, f"{side.name}: {_first_line(r.message)}") for r in result.reasons if r.code not in harmless
    ]
    return reasons or ([] if result.reasons else [Reason("invalid", f"{side.name}: INVALID without a reason")])


def timing_problem(side: Side, result: CellResult, windows: Sequence[Window]) -> list[Reason]:
    """Why a run's rates and latencies cannot be compared. A run that was only measured has not been told so."""
    found = [reason for reason in result.reasons if reason.code in _ABOUT_TIME]
    found += [problem for window in windows if (problem := client_problem(window.client)) is not None]
    found += [problem for run in result.runs if (problem := gpu_validity.timing_problem(run.gpus)) is not None]
    return [Reason(reason.code, f"{side.name}: {_first_line(reason.message)}") for reason in found[:1]]


def _first_line(text: str) -> str:
    return (text.splitlines() or [""])[0]


# Values


def _pairs(base: Sequence[Window], new: Sequence[Window]) -> dict[tuple[int, int], Pairs]:
    """The paired turns of every (start, repeat) that both runs have."""
    one, other = ({(window.start, window.repeat): window for window in side} for side in (base, new))
    return {key: pair_turns(one[key].turns, other[key].turns) for key in one if key in other}


def _known(metric: str, pairs: Mapping[tuple[int, int], Pairs]) -> dict[tuple[int, int], Pairs]:
    """The runs with a value per prompt in both arms: where a server joins events, one of them can lack it.

    Empty where an engine start has no such run: it would be left out, and it may be the one that is worse.
    """
    known = {
        key: found
        for key, found in pairs.items()
        if all(_per_prompt(metric, turns) for turns in ([p.base for p in found.pairs], [p.new for p in found.pairs]))
    }
    return known if {start for start, _ in known} == {start for start, _ in pairs} else {}


def _arm(metric: str, result: CellResult, turns: Mapping[tuple[int, int], Sequence[Sequence[Turn]]]) -> Arm:
    """One run's side: its paired turns where the metric has a value per prompt, else whole cells."""
    per_run = {key: _per_prompt(metric, conversations) for key, conversations in turns.items()}
    if per_run and all(per_run.values()):
        return _arm_of_prompts(per_run)
    bracketed = metric in result.metrics and result.metrics[metric].bracket is not None
    if bracketed or not _of_every_start(metric, result):
        # Between two numbers, or not known of every engine start: no number to compare.
        return Arm(())
    return Arm(
        runs=tuple((run.start, run.repeat, run.values[metric]) for run in runs_of(result) if metric in run.values)
    )


def _arm_of_prompts(per_run: Mapping[tuple[int, int], Mapping[str, tuple[float, float]]]) -> Arm:
    runs, prompts, weights = [], dict[str, list[float]](), dict[str, list[float]]()
    for (start, repeat), values in sorted(per_run.items()):
        total = sum(weight for _, weight in values.values())
        runs.append((start, repeat, sum(value * weight for value, weight in values.values()) / total))
        for question_id, (value, weight) in values.items():
            prompts.setdefault(question_id, []).append(value)
            weights.setdefault(question_id, []).append(weight)
    pooled = any(weight != 1 for own in weights.values() for weight in own)
    return Arm(
        runs=tuple(runs),
        prompts={question_id: fmean(own) for question_id, own in prompts.items()},
        weights={question_id: fmean(own) for question_id, own in weights.items()} if pooled else {},
    )


def _per_prompt(metric: str, conversations: Sequence[Sequence[Turn]]) -> dict[str, tuple[float, float]]:
    """Per conversation the metric and its weight in the cell's; empty where it has none per conversation."""
    if metric not in ("acceptance_length", "decode_acceptance_length"):
        return {}
    values = {}
    for turns in conversations:
        conversation = next(iter(acc.conversations(turns)), None)
        if conversation is None:
            return {}
        if metric == "acceptance_length":
            values[conversation.question_id] = (conversation.acceptance_length, 1.0)
        elif conversation.steps:
            steps = conversation.steps
            values[conversation.question_id] = ((conversation.tokens - conversation.turns) / steps, float(steps))
    return values

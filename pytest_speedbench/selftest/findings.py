"""What a trial amounts to: errors, mutation scores, and why survivors survived."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_speedbench.gates.verdict import GateResult, Verdict
from pytest_speedbench.selftest.mutations import MUTATIONS, Kind
from pytest_speedbench.selftest.trials import NEGLIGIBLE, GateTrial, Outcome, Trial, verdict_of


@dataclass(frozen=True, slots=True)
class Score:
    """How many regressions were caught. ``small`` were too small for their gates, of ``ungated`` no gate compares
    what became worse."""

    caught: int
    small: int
    ungated: int

    @property
    def total(self) -> int:
        """All that were injected."""
        return self.caught + self.small + self.ungated

    @property
    def share(self) -> float | None:
        """The mutation score, None where nothing could be injected."""
        return self.caught / self.total if self.total else None


def file_score(trial: Trial, file: str) -> Score:
    """Regressions of single cells, each mutation of each measured cell, as the gates of one file see them."""
    counts = Counter(
        "caught" if file in m.caught else "small" if file in m.looked else "ungated" for m in trial.mutants
    )
    return Score(counts["caught"], counts["small"], counts["ungated"])


def everywhere(trial: Trial, file: str, *, warn: bool) -> dict[str, bool]:
    """Per mutation, whether any gate of a file notices when every cell is hit."""
    found: dict[str, bool] = {}
    for outcome in (outcome for gate in trial.of(file) for outcome in gate.whole):
        if MUTATIONS[outcome.mutation].kind is Kind.WORSE:
            found[outcome.mutation] = found.get(outcome.mutation, False) or outcome.caught(warn=warn)
    return found


def gate_score(gate: GateTrial, *, warn: bool) -> Score:
    """Regressions that make the gate's own metric worse."""
    relevant = [outcome for outcome in gate.whole if counts(outcome)]
    caught = sum(outcome.caught(warn=warn) for outcome in relevant)
    return Score(caught, len(relevant) - caught, 0)


def counts(outcome: Outcome) -> bool:
    """Whether a gate can be expected to notice: its metric is worse, or its verdict shows that it did."""
    of_kind = MUTATIONS[outcome.mutation].kind is Kind.WORSE
    return of_kind and (outcome.worse >= NEGLIGIBLE or outcome.verdict is not Verdict.PASS)


def errors(trial: Trial, *, warn: bool) -> Iterator[str]:
    """What makes the self-test fail, one line each."""
    for gate in trial.gates:
        name = f"{gate.key.source}: {gate.key.metric}"
        for cell, result in gate.unmutated.items():
            where = cell.id(with_concurrency=True)
            if verdict_of(result) is Verdict.PASS:
                if gate.never_fails(cell):
                    yield f"{name} of {where} can never fail: even {_extremes(gate)} it passes"
            elif not (warn and result.verdict is Verdict.INCONCLUSIVE):
                yield f"{name} of {where} does not pass as recorded: {result.verdict.value} {_numbers(result)}"
        if gate.inverted is False:
            yield f"{name}: with its direction inverted it was not found out as never failing; report this as a bug"
        for cell, noticed in gate.missing.items():
            if not noticed:
                yield f"{name} of {cell.id(with_concurrency=True)}: without it the cell is not INVALID; report a bug"
    for text in trial.unnoticed:
        yield f"{text} did not make it INVALID; report this as a bug"


def _extremes(gate: GateTrial) -> str:
    tried = dict.fromkeys(o.mutation for o in gate.whole if MUTATIONS[o.mutation].kind is Kind.EXTREME)
    return " and ".join(f"with {MUTATIONS[name].text}" for name in tried)


def _numbers(result: GateResult) -> str:
    if result.reason is not None:
        return f"({result.reason}: {result.note})"
    return f"({result.value:.4g} against the limit {result.limit:.4g})"


def survival(gate: GateTrial, *, warn: bool) -> str | None:
    """Why some regressions passed the gate, in one line; None where none did."""
    passed = [outcome for outcome in gate.whole if counts(outcome) and not outcome.caught(warn=warn)]
    if not passed:
        return None
    worst = max(passed, key=lambda outcome: outcome.worse)
    names = ", ".join(dict.fromkeys(MUTATIONS[outcome.mutation].title for outcome in passed))
    return f"{names}: {explained(worst)}"


def explained(outcome: Outcome) -> str:
    """Why one mutated value passes: what the gate can see, and where the value stands."""
    result = outcome.result
    effect = "rise" if result is not None and result.ceiling else "drop"
    moved = f"a {effect} of {_percent(outcome.worse)} passes"
    if result is None:
        return moved
    if result.waived:
        return f"{moved}: {result.waiver}"
    if result.reference is None or result.mde_not_passed is None:
        room = abs(outcome.before - result.limit) / outcome.before
        return f"{moved}: the limit {result.limit:.4g} is {room * 100:.0f} % from the {outcome.before:.4g} measured"
    sign = 1 if result.ceiling else -1
    from_reference = sign * (outcome.after - result.reference) / result.reference
    stands = f"{_percent(abs(from_reference))} {'worse' if from_reference > 0 else 'better'} than"
    return (
        f"{moved}: {outcome.after:.4g} is {stands} the reference {result.reference:.4g}, and this gate does not pass "
        f"(with 80 % power) only from {_percent(result.mde_not_passed)} on (margin {_percent(result.margin or 0)}, "
        f"noise σ {_percent(result.sigma)})"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"

"""The self-test's table, explanations and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pytest_speedbench.columns import aligned
from pytest_speedbench.gates.verdict import Verdict
from pytest_speedbench.report.result_json import number
from pytest_speedbench.report.wording import short_name
from pytest_speedbench.selftest import findings
from pytest_speedbench.selftest.mutations import MUTATIONS, Kind, Mutation
from pytest_speedbench.selftest.trials import GateTrial, Outcome, Trial

_WORD = {Verdict.FAIL: "FAIL", Verdict.INVALID: "INV", Verdict.INCONCLUSIVE: "INC", Verdict.PASS: "pass"}
_NOTHING = "·"

LEGEND = (
    "FAIL, INV(ALID), INC(ONCLUSIVE): caught. pass: not caught. n/m: caught in n of the gate's m cells.",
    "·: nothing that the gate compares became worse. inverted: the same gate the wrong way round was found out.",
    "gone: the cell is INVALID without the gate. spread is for information: a gate on a mean does not see it.",
)


def table(trial: Trial, file: str, *, warn: bool) -> Iterator[str]:
    """One row per gate, one column per mutation; a second row where the overall cell sees one category only."""
    tried = {outcome.mutation for gate in trial.of(file) for outcome in gate.whole}
    columns = [m for m in MUTATIONS.values() if m.kind is not Kind.EXTREME and m.name in tried]
    rows = [("line", *(m.title for m in columns), "inverted", "gone", "score")]
    for gate in trial.of(file):
        rows.append(_row(gate, gate.whole, columns, warn=warn))
        if any(findings.counts(outcome) for outcome in gate.diluted):
            cells = [_cell([o for o in gate.diluted if o.mutation == m.name], warn=warn) for m in columns]
            rows.append(("  overall, one category hit", *cells, _NOTHING, _NOTHING, _NOTHING))
    yield from aligned(rows)


def _row(gate: GateTrial, outcomes: Sequence[Outcome], columns: Sequence[Mutation], *, warn: bool) -> tuple[str, ...]:
    cells = [_cell([o for o in outcomes if o.mutation == m.name], warn=warn) for m in columns]
    score = findings.gate_score(gate, warn=warn).share
    return (
        f"{gate.key.source.removeprefix(gate.key.file)} {short_name(gate.key.metric)} {gate.pattern}",
        *cells,
        {True: "shown", False: "HIDDEN", None: _NOTHING}[gate.inverted],
        _of(sum(gate.missing.values()), len(gate.missing)) if gate.missing else _NOTHING,
        _NOTHING if score is None else _percent(score),
    )


def _cell(outcomes: Sequence[Outcome], *, warn: bool) -> str:
    shown = [o for o in outcomes if MUTATIONS[o.mutation].kind is not Kind.WORSE or findings.counts(o)]
    if not shown:
        return _NOTHING
    if len(shown) == 1:
        return _WORD[shown[0].verdict]
    return _of(sum(outcome.caught(warn=warn) for outcome in shown), len(shown))


def _of(number: int, total: int) -> str:
    return f"{number}/{total}"


def lines(trial: Trial, *, warn: bool) -> Iterator[str]:
    """Everything about one profile."""
    for file in trial.files:
        yield f"{trial.profile} · {file}"
        yield ""
        yield from table(trial, file, warn=warn)
        yield ""
        yield from _survivors(trial, file, warn=warn)
        yield _score_line(findings.file_score(trial, file))
        yield ""
    for limit in trial.untested:
        yield f"not tested: {limit.source} {limit.metric}: the run has no sound cell of it"
    for cell, why in trial.untestable.items():
        yield f"not tested: {cell.id(with_concurrency=True)}: the run itself is INVALID ({why})"
    if trial.draft_tokens:
        gone = [
            f"{MUTATIONS[name].title} ({number} cell{'' if number == 1 else 's'})"
            for name, number in trial.skipped.items()
            if number
        ]
        if gone:
            yield f"not injected where the recorded steps do not allow it: {', '.join(gone)}"


def _survivors(trial: Trial, file: str, *, warn: bool) -> Iterator[str]:
    whole = findings.everywhere(trial, file, warn=warn)
    for noticed, words in ((True, "noticed"), (False, "NOT noticed")):
        names = [MUTATIONS[name].title for name, caught in whole.items() if caught is noticed]
        if names:
            yield f"if it hit every cell, {words}: {', '.join(names)}"
    why = [(gate, text) for gate in trial.of(file) if (text := findings.survival(gate, warn=warn)) is not None]
    if why:
        yield "what passed, and why (the largest effect that passed each gate):"
        yield from (f"  {gate.key.source} {gate.key.metric}: {text}" for gate, text in why)


def _score_line(score: findings.Score) -> str:
    share = "–" if score.share is None else _percent(score.share)
    return (
        f"mutation score {share}: of {score.total} regressions of one cell {score.caught} are caught, "
        f"{score.small} are too small for their gate, {score.ungated} are in what no gate of the cell compares"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def to_json(trials: Sequence[Trial], *, artifact: str, seed: int, warn: bool) -> dict[str, object]:
    """The same as a JSON object."""
    return {
        "artifact": artifact,
        "seed": seed,
        "inconclusive": "warn" if warn else "fail",
        "mutations": [{"name": m.name, "kind": m.kind.value, "text": m.text} for m in MUTATIONS.values()],
        "profiles": [
            {
                "profile": trial.profile,
                "files": {
                    file: {
                        "score": _score(findings.file_score(trial, file)),
                        "everywhere": findings.everywhere(trial, file, warn=warn),
                    }
                    for file in trial.files
                },
                "errors": list(findings.errors(trial, warn=warn)),
                "not_applied": dict(trial.skipped),
                "untestable": {cell.id(with_concurrency=True): why for cell, why in trial.untestable.items()},
                "untested": [f"{limit.source} {limit.metric}" for limit in trial.untested],
                "gates": [_gate(gate, warn=warn) for gate in trial.gates],
            }
            for trial in trials
        ],
    }


def _score(score: findings.Score) -> dict[str, object]:
    return {"share": score.share, "caught": score.caught, "small": score.small, "ungated": score.ungated}


def _gate(gate: GateTrial, *, warn: bool) -> dict[str, object]:
    return {
        "source": gate.key.source,
        "metric": gate.key.metric,
        "cells": [cell.id(with_concurrency=True) for cell in gate.unmutated],
        "score": _score(findings.gate_score(gate, warn=warn)),
        "never_fails": [cell.id(with_concurrency=True) for cell in gate.unmutated if gate.never_fails(cell)],
        "inverted_found_out": gate.inverted,
        "invalid_without": {cell.id(with_concurrency=True): noticed for cell, noticed in gate.missing.items()},
        "outcomes": [_outcome(outcome, warn=warn) for outcome in (*gate.whole, *gate.diluted)],
    }


def _outcome(outcome: Outcome, *, warn: bool) -> dict[str, object]:
    caught = outcome.caught(warn=warn)
    return {
        "mutation": outcome.mutation,
        "cell": outcome.cell.id(with_concurrency=True),
        "only": outcome.target,
        "before": number(outcome.before),
        "after": number(outcome.after),
        "worse": number(outcome.worse),
        "verdict": outcome.verdict.value,
        "reason": outcome.reason,
        "caught": caught,
        "why": findings.explained(outcome) if findings.counts(outcome) and not caught else None,
    }

"""Whether speculation leaves greedy output as it is: a grade for every place where two outputs part.

Verification lets a draft through only where the target would have chosen it, so greedy output must not depend on
speculation. But verifying several tokens at once takes other kernels than decoding one, sums are rounded in another
order, and where two tokens are almost equally likely the choice can flip. So a difference is held against
what the engine itself thinks of the two tokens, asked without speculation: within rounding of one another
they are a *near-tie*, else it is a *mismatch*, which no rounding explains.

After the first difference a conversation goes on with other inputs and is not compared further, so the result
also says how many tokens were compared at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pytest_speedbench.measure.divergence import Divergence, compare
from pytest_speedbench.measure.samples import Turn

TOP_TOKENS = 5
"""Alternatives to ask for. Two do not do: of three that tie, the third can be the one that was chosen."""
TOLERANCES = {"bfloat16": 0.5, "float16": 0.1, "float32": 1e-3}
"""Nats within which two tokens tie, by the type in which the target computes; see docs/losslessness.md for how far
ties were measured to flip."""
_ROUNDING = 1e-3
"""How far above 0 a log-probability can come out."""
_NAMES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "f16": "float16"} | dict.fromkeys(
    ("fp32", "f32", "float"), "float32"
)


@dataclass(frozen=True, slots=True)
class TopTokens:
    """The likeliest next tokens and their log-probabilities (natural), the likeliest first, at least two."""

    tokens: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, tokens: Iterable[tuple[int, float]]) -> TopTokens:
        """In whatever order; those that are impossible are left out.

        Raises ValueError if fewer than two are left, or for a log-probability that cannot be one.
        """
        named = tuple((token, logprob) for token, logprob in tokens if logprob != -math.inf)
        if len({token for token, _ in named}) < 2 or not all(logprob <= _ROUNDING for _, logprob in named):
            raise ValueError(f"not the log-probabilities of two or more tokens: {named}")
        # Stable, so that of two that are equal the one that the engine names first stays first.
        return cls(tuple(sorted(named, key=lambda token: -token[1])))

    def deficit(self, token: int) -> float | None:
        """How far below the likeliest a token is, in nats; None for one that is not among them."""
        best = self.tokens[0][1]
        return next((best - logprob for other, logprob in self.tokens if other == token), None)

    @property
    def reach(self) -> float:
        """How far below the likeliest the last of them is, in nats: any other token is at least as far."""
        return self.tokens[0][1] - self.tokens[-1][1]


Ask = Callable[[Turn, int], "TopTokens | None"]
"""``ask(turn, at)``: the top tokens after the prompt of ``turn`` and ``turn.output_ids[:at]``, from the engine
without speculation. None where they are not to be had."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What is demanded: two tokens tie within ``tolerance`` nats; with ``exact`` nothing may differ at all."""

    tolerance: float
    exact: bool


def demand(dtype: str | None, *, concurrency: int, batch_invariant: bool = False) -> Demand:
    """What a target that computes in ``dtype`` (``torch.bfloat16``, ``half``; None: unknown) can be held to.

    Logits of 16 to 32 are 1/8 apart in bfloat16, so that ties are flipped by one or two such steps; what is not known
    is held to that. Exact equality is attainable in float32 for one stream alone, and where an engine computes a row in
    the same way whatever the batch.
    """
    name = (dtype or "").removeprefix("torch.").lower()
    name = _NAMES.get(name, name)
    exact = batch_invariant or (name == "float32" and concurrency == 1)
    return Demand(TOLERANCES.get(name, TOLERANCES["bfloat16"]), exact)


class Grade(str, Enum):
    """What a difference is. The worst comes first."""

    MISMATCH = "mismatch"
    UNREPEATABLE = "unrepeatable"
    """The engine without speculation does not stand by its own token either, so it is no yardstick."""
    UNKNOWN = "unknown"
    NEAR_TIE = "near_tie"


_OTHER_GRADES = (
    (Grade.UNREPEATABLE, "where the engine does not repeat itself without speculation"),
    (Grade.UNKNOWN, "not graded"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """The first difference of one conversation.

    ``plain_id`` and ``speculating_id`` are the two tokens there, None where an output was over or its ids are not
    known. ``gap`` is how far, in nats, the less likely of them is below the likeliest token; with ``beyond`` it is
    at least that. None: unknown.
    """

    where: Divergence
    grade: Grade
    plain_id: int | None = None
    speculating_id: int | None = None
    gap: float | None = None
    beyond: bool = False

    def __str__(self) -> str:
        gap = "" if self.gap is None else f", {'more than ' if self.beyond else ''}{self.gap:.3g} nats apart"
        return f"{self.grade.value.replace('_', '-')}{gap}: {self.where}"


@dataclass(frozen=True, slots=True)
class Losslessness:
    """The comparison of one cell, with and without speculation.

    ``compared`` and ``identical`` count turns, ``tokens_compared`` the tokens up to the first difference out of
    ``tokens`` of the run without speculation (of turns whose ids are known). ``missing`` are the turns that one
    run lacks, as (question_id, index).
    """

    compared: int
    identical: int
    tokens: int
    tokens_compared: int
    findings: tuple[Finding, ...]
    missing: tuple[tuple[str, int], ...]
    demand: Demand
    temperature: float = 0.0

    def count(self, grade: Grade) -> int:
        """Differences of this grade."""
        return sum(finding.grade is grade for finding in self.findings)

    @property
    def largest_gap(self) -> float | None:
        """Of the near-ties, in nats; None where there are none."""
        return max((f.gap for f in self.findings if f.grade is Grade.NEAR_TIE and f.gap is not None), default=None)

    @property
    def reason(self) -> str:
        """Why there is neither a pass nor a failure, as a code; empty where there is one of them."""
        if self.temperature != 0:
            return "not_greedy"
        if not self.compared:
            return "nothing_compared"
        if self.missing:
            return "missing_turns"
        if self._failed:
            return ""
        if self.count(Grade.UNREPEATABLE):
            return "plain_engine_disagrees"
        return "no_logprobs" if self.count(Grade.UNKNOWN) else ""

    @property
    def verdict(self) -> str:
        """``PASS``, ``FAIL``, ``INCONCLUSIVE`` or ``INVALID``."""
        if self.reason in ("not_greedy", "nothing_compared", "missing_turns"):
            return "INVALID"
        if self._failed:
            return "FAIL"
        return "INCONCLUSIVE" if self.reason else "PASS"

    @property
    def _failed(self) -> bool:
        return bool(self.count(Grade.MISMATCH)) or (self.demand.exact and bool(self.findings))

    @property
    def text(self) -> str:
        """The whole in one line, with its numbers."""
        if self.reason == "not_greedy":
            return f"output at temperature {self.temperature:g} is random; only greedy output can be compared"
        if self.reason == "nothing_compared":
            return "no turn was measured both with and without speculation"
        parts = [f"{self.identical} of {self.compared} turns identical"]
        near, gap, mismatches = self.count(Grade.NEAR_TIE), self.largest_gap, self.count(Grade.MISMATCH)
        largest = "" if gap is None else f" ({'largest ' if near > 1 else ''}gap {gap:.2g} nats)"
        parts.append(f"{near} near-tie{'' if near == 1 else 's'}{largest}")
        parts.append(f"{mismatches} mismatch{'' if mismatches == 1 else 'es'}")
        for grade, words in _OTHER_GRADES:
            if self.count(grade):
                parts.append(f"{self.count(grade)} {words}")
        if self.missing:
            parts.append(f"{len(self.missing)} turn{'' if len(self.missing) == 1 else 's'} in one run only")
        text = ", ".join(parts)
        if self.tokens:
            text += f" · {self.tokens_compared} of {self.tokens} tokens compared"
        return f"{text} · equality is exact here, any difference fails" if self.demand.exact and self.findings else text

    @property
    def lines(self) -> list[str]:
        """One line per difference, the worst first."""
        grades = list(Grade)
        ranked = sorted(self.findings, key=lambda f: (grades.index(f.grade), -(f.gap or 0.0)))
        return list(map(str, ranked))

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "text": self.text,
            "compared": self.compared,
            "identical": self.identical,
            "tokens": self.tokens,
            "tokens_compared": self.tokens_compared,
            "tolerance": self.demand.tolerance,
            "exact": self.demand.exact,
            "temperature": self.temperature,
            "findings": [
                {
                    "question_id": f.where.question_id,
                    "index": f.where.index,
                    "unit": f.where.unit,
                    "at": f.where.at,
                    "grade": f.grade.value,
                    "plain_id": f.plain_id,
                    "speculating_id": f.speculating_id,
                    "gap": f.gap,
                    "beyond": f.beyond,
                }
                for f in self.findings
            ],
            "missing": [list(turn) for turn in self.missing],
        }


def judge(
    plain: Sequence[Turn],
    speculating: Sequence[Turn],
    ask: Ask,
    demand: Demand,
    *,
    temperature: float = 0.0,
) -> Losslessness:
    """Compare two runs over the same prompts, and grade the first difference of each conversation.

    ``ask`` is called once per conversation that differs where both outputs go on, and not at all for output that
    is not greedy. What it raises is the caller's.
    """
    compared = compare(plain, speculating)
    turns = ({(t.question_id, t.index): t for t in run} for run in (plain, speculating))
    left, right = turns
    graded = []
    for where in compared.divergences:
        key = where.question_id, where.index
        asked = ask if temperature == 0 else None
        graded.append(_graded(where, left[key], right[key], asked, demand))
    return Losslessness(
        compared=compared.compared,
        identical=compared.compared - len(graded),
        tokens=compared.tokens,
        tokens_compared=compared.common_tokens,
        findings=tuple(graded),
        missing=compared.missing,
        demand=demand,
        temperature=temperature,
    )


def _graded(where: Divergence, plain: Turn, speculating: Turn, ask: Ask | None, demand: Demand) -> Finding:
    left, right = (_token(turn, where) for turn in (plain, speculating))
    unknown = Finding(where, Grade.UNKNOWN, left, right)
    if ask is None or left is None or right is None:
        return unknown
    top = ask(plain, where.at)
    return unknown if top is None else grade(where, left, right, top, demand)


def _token(turn: Turn, where: Divergence) -> int | None:
    ids = turn.output_ids
    return None if where.unit != "token" or ids is None or where.at >= len(ids) else ids[where.at]


def grade(where: Divergence, plain_id: int, speculating_id: int, top: TopTokens, demand: Demand) -> Finding:
    """What the difference is, given the top tokens there.

    A near-tie if both tokens are within the tolerance of the likeliest, which need not be either of them: the
    question is answered by yet another kernel, which may round in a third way.
    """
    own, other = top.deficit(plain_id), top.deficit(speculating_id)
    gap = top.reach if own is None or other is None else max(own, other)
    beyond = own is None or other is None
    if own is None or own > demand.tolerance:
        verdict = Grade.UNREPEATABLE
    elif other is None or other > demand.tolerance:
        verdict = Grade.MISMATCH
    else:
        verdict = Grade.NEAR_TIE
    return Finding(where, verdict, plain_id, speculating_id, gap, beyond)

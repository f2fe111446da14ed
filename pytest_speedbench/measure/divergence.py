"""Where two outputs for the same prompts part.

Greedy output should not depend on speculation. In practice it may: batches of other sizes round
differently, so a divergence is something to report, not by itself an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_speedbench.measure.samples import Turn

_SHOWN_CHARS = 24


@dataclass(frozen=True, slots=True)
class Divergence:
    """One turn whose two outputs differ, from position ``at`` on.

    ``unit`` is ``token``, or ``character`` where a stream did not carry every id and the texts were
    compared instead. ``a`` and ``b`` show what follows there.
    """

    question_id: str
    index: int
    unit: str
    at: int
    a: str
    b: str

    def __str__(self) -> str:
        return f"{self.question_id} turn {self.index + 1}: {self.unit} {self.at}: {self.a} | {self.b}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs, turn by turn. ``missing`` holds (question_id, index) of turns that only one run has.

    ``tokens`` are those of the first run, in the conversations that both have and whose ids are known;
    ``common_tokens`` those of them that were compared and are the same in both.
    """

    compared: int
    divergences: tuple[Divergence, ...]
    missing: tuple[tuple[str, int], ...]
    tokens: int = 0
    common_tokens: int = 0

    @property
    def identical(self) -> bool:
        """Whether both runs have the same turns with the same output, and any at all."""
        return self.compared > 0 and not self.divergences and not self.missing

    def __str__(self) -> str:
        lines = [f"{len(self.divergences)} of {self.compared} turns differ", *map(str, self.divergences)]
        lines += [f"{question_id} turn {index + 1}: only in one run" for question_id, index in self.missing]
        return "\n  ".join(lines)


def first_divergence(a: Sequence[int] | str, b: Sequence[int] | str) -> int | None:
    """The first position at which ``a`` and ``b`` differ, None if they are equal.

    An output that is a beginning of the other differs where it ends.
    """
    for position, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return position
    return None if len(a) == len(b) else min(len(a), len(b))


def compare(a: Iterable[Turn], b: Iterable[Turn]) -> Comparison:
    """Compare the outputs of two runs over the same prompts.

    Only first turns have the same input by construction: a later one has the earlier replies in it,
    so it is compared only while these agree.
    """
    left, right = ({(turn.question_id, turn.index): turn for turn in turns} for turns in (a, b))
    divergences: dict[str, Divergence] = {}
    compared = tokens = common = 0
    for key in sorted(left.keys() & right.keys()):
        one, other = left[key], right[key]
        known = 0 if one.output_ids is None or other.output_ids is None else len(one.output_ids)
        tokens += known
        if key[0] in divergences:
            continue
        compared += 1
        found = _divergence(one, other)
        if found is not None:
            divergences[key[0]] = found
        common += known if found is None or not known else found.at
    return Comparison(compared, tuple(divergences.values()), tuple(sorted(left.keys() ^ right.keys())), tokens, common)


def _divergence(a: Turn, b: Turn) -> Divergence | None:
    if a.output_ids is not None and b.output_ids is not None:
        at = first_divergence(a.output_ids, b.output_ids)
        shown = [str(list(ids[at : at + 4])) for ids in (a.output_ids, b.output_ids)] if at is not None else []
        unit = "token"
    else:
        texts = (a.text or "", b.text or "")
        at = first_divergence(*texts)
        shown = [repr(text[at : at + _SHOWN_CHARS]) for text in texts] if at is not None else []
        unit = "character"
    return None if at is None else Divergence(a.question_id, a.index, unit, at, *shown)

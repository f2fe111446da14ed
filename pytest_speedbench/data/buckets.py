"""ISL buckets: a prompt brought to a token count as SPEED-Bench does it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from pytest_speedbench.errors import ConfigError

FILLER = "Answer now please.\n"
TOLERANCE = 2
"""Tokens by which a text that is whole at the cut may differ from its bucket."""
_NO_CHARACTER = "\ufffd"


def fit(
    text: str,
    target: int,
    encode: Callable[[str], Sequence[int]],
    decode: Callable[[Sequence[int]], str],
    ids: Sequence[int] | None = None,
) -> str:
    """``text`` cut or padded to ``target`` tokens of the given tokenizer (SPEED-Bench: o200k_base).

    A longer text loses its tail, so an instruction belongs at the front; a shorter one gets as many
    copies of FILLER as can be needed, and is then cut; an exact one is returned unchanged. ``ids`` are
    those of ``text`` where the caller has them.

    The result is a string, and encoding it again may give a few tokens more or less than ``target``:
    a cut inside a multi-byte character decodes to U+FFFD, and a seam may tokenise differently. For
    text that is whole at the cut, expect ``target`` ± TOLERANCE. Except for such a last U+FFFD the result
    is the front of the text and its filler, also with tokenizers that do not decode what they encoded
    (they drop control tokens, or tidy spaces): there the cut is found in the text itself.

    Raises ConfigError for a ``target`` below 1, and for a tokenizer that gives no tokens for the filler.
    """
    if target < 1:
        raise ConfigError(f"an ISL bucket needs at least one token, not {target}")
    if ids is None:
        ids = encode(text)
    if len(ids) == target:
        return text
    whole = text
    if len(ids) < target:
        whole, ids = _padded(text, ids, target, encode)
    kept = ids[:target]
    cut = decode(kept)
    if whole.startswith(cut.rstrip(_NO_CHARACTER)):
        return cut
    # The shortest front that has these tokens. Their number would not do for the search: a part of a control
    # token has more of them than the whole of it.
    return whole[: bisect_left(range(len(whole)), True, key=lambda end: encode(whole[:end])[:target] == kept)]


def _padded(
    text: str, ids: Sequence[int], target: int, encode: Callable[[str], Sequence[int]]
) -> tuple[str, Sequence[int]]:
    """``text`` with filler enough for ``target`` tokens, and its ids.

    Upstream adds filler once. That can be a token short, where one merges across the seam, and it is
    left so; a tokenizer with a token of its own at the start of every text needs more.
    """
    per_copy = len(encode(FILLER))
    copies, start = 0, len(ids)
    while len(ids) < target - (TOLERANCE if copies else 0):
        copies += -(-(target - len(ids)) // max(per_copy, 1))
        ids = encode(text + FILLER * copies)
        if len(ids) <= start:
            raise ConfigError(f"cannot pad to {target} tokens: {copies} copies of {FILLER!r} gave no token")
    return text + FILLER * copies, ids

"""ISL buckets: a prompt brought to a token count as SPEED-Bench does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pytest_speedbench.errors import ConfigError

FILLER = "Answer now please.\n"


def fit(
    text: str,
    target: int,
    encode: Callable[[str], Sequence[int]],
    decode: Callable[[Sequence[int]], str],
) -> str:
    """``text`` cut or padded to ``target`` tokens of the given tokenizer (SPEED-Bench: o200k_base).

    A longer text loses its tail, so an instruction belongs at the front; a shorter one gets as many
    copies of FILLER as can be needed, and is then cut; an exact one is returned unchanged.

    The result is a string, and encoding it again may give a few tokens more or less than ``target``:
    a cut inside a multi-byte character decodes to U+FFFD, and a seam may tokenise differently. For
    text that is whole at the cut, expect ``target`` ± 2.

    Raises ConfigError for a ``target`` below 1.
    """
    if target < 1:
        raise ConfigError(f"an ISL bucket needs at least one token, not {target}")
    ids = encode(text)
    missing = target - len(ids)
    if missing == 0:
        return text
    if missing > 0:
        copies = -(-missing // len(encode(FILLER)))
        ids = encode(text + FILLER * copies)
    return decode(ids[:target])

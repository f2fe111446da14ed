"""The JSON of events: what is accepted, and what comes of it, is Python's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.engines import event_json

NUMBERS = st.integers() | st.integers(-(2**66), 2**66) | st.floats() | st.sampled_from([2**63, 2**64, -(2**63) - 1])
TEXTS = st.text(st.characters(exclude_categories=()), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
DOCUMENTS = st.builds(
    lambda value, ascii_only: json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"),
    VALUES,
    st.booleans(),
)
PIECES = st.sampled_from(
    [*(bytes([byte]) for byte in b'0159-+.eE"\\/,:[]{} \t\n\0\x1f\x7f\x80\xc3\xa9'), b"\\ud800", b"NaN"]
)


def outcome(loads: Callable[[bytes], Any], data: bytes) -> str:
    """Also tells 1 from 1.0 and True, and the order of keys; NaN is like NaN."""
    try:
        return repr(loads(data))
    except ValueError as error:
        return f"{type(error).__name__}: {error}"


@given(DOCUMENTS)
def test_json_is_what_it_was(data: bytes) -> None:
    assert outcome(event_json.loads, data) == outcome(json.loads, data)


@given(
    DOCUMENTS, st.lists(st.tuples(st.integers(0, 200), st.integers(0, 3), PIECES | st.binary(max_size=2)), max_size=4)
)
def test_so_is_damaged_json(data: bytes, damages: list[tuple[int, int, bytes]]) -> None:
    for place, length, piece in damages:
        at = place % (len(data) + 1)
        data = data[:at] + piece + data[at + length :]
    assert outcome(event_json.loads, data) == outcome(json.loads, data)


@pytest.mark.parametrize(
    "data",
    [
        b"18446744073709551615",
        b"18446744073709551616",
        b"-9223372036854775808",
        b"-9223372036854775809",
        b"[1%s]" % (b"0" * 400),
        b"9" * 5000,
        b"0.1234567890123456789012345",
        b"[NaN, Infinity, -Infinity, 1e999, -0, -0.0, 5e-324]",
        b'{"a": 1, "b": 2, "a": 3}',
        b'"\\ud800 \\ud83d\\ude80"',
        b'"\xed\xa0\x80"',
        b"\xef\xbb\xbf1",
        "[1]".encode("utf-16"),
        b"",
        b"[1] x",
    ],
)
def test_where_parsers_differ(data: bytes) -> None:
    assert outcome(event_json.loads, data) == outcome(json.loads, data)

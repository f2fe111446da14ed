"""Server-sent events: the same events, however the bytes are cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_speedbench.errors import RequestError
from pytest_speedbench.load.sse import EventParser


def parse(*chunks: bytes) -> list[bytes]:
    parser = EventParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"", []),
        (b"data: a\n\n", [b"a"]),
        (b"data:a\n\n", [b"a"]),
        (b"data:  a\n\n", [b" a"]),
        (b"data: a\r\n\r\n", [b"a"]),
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data: a\r\ndata: b\r\n\r\n", [b"a\nb"]),
        (b"data: a\ndata:\ndata: b\n\n", [b"a\n\nb"]),
        (b": keep-alive\n\ndata: a\n\n", [b"a"]),
        (b": data: no\ndata: a\n\n", [b"a"]),
        (b"event: x\nid: 7\nretry: 10\ndata: a\n\n", [b"a"]),
        (b"\n\n\ndata: a\n\n\n\n", [b"a"]),
        (b"data: data: a\n\n", [b"data: a"]),
        (b"database: a\n\n", []),
        (b"data: caf\xc3\xa9 \xf0\x9f\x9a\x80\n\n", ["café 🚀".encode()]),
        # An event without its closing blank line never happened.
        (b"data: a\n\ndata: b\n", [b"a"]),
        (b"data: a\n\ndata: b", [b"a"]),
        # A carriage return inside a line is part of it.
        (b"data: a\rb\n\n", [b"a\rb"]),
    ],
)
def test_events(stream: bytes, events: list[bytes]) -> None:
    assert parse(stream) == events
    assert parse(*(stream[i : i + 1] for i in range(len(stream)))) == events


PAYLOAD = st.binary(max_size=12).map(lambda raw: raw.replace(b"\n", b"|").replace(b"\r", b"|"))
LINE_END = st.sampled_from([b"\n", b"\r\n"])
NOISE = st.sampled_from([b"", b": ping", b"event: token", b"id: 1", b"retry: 5", b"nonsense"])


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """Bytes of a stream, and the payloads in it."""
    stream, events = b"", list[bytes]()
    for lines in draw(st.lists(st.lists(PAYLOAD, min_size=1, max_size=3), max_size=5)):
        end = draw(LINE_END)
        noise = draw(NOISE)
        if noise:
            stream += noise + end
        for line in lines:
            stream += b"data: " + line + end
        stream += end
        events.append(b"\n".join(lines))
    return stream, events


@settings(max_examples=300)
@given(streams(), st.data())
def test_any_chunking_gives_the_same_events(case: tuple[bytes, list[bytes]], data: st.DataObject) -> None:
    stream, events = case
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert parse(*chunks) == events


def test_an_event_is_given_by_the_chunk_that_completes_it() -> None:
    parser = EventParser()
    assert list(parser.feed(b"data: a\n")) == []
    assert list(parser.feed(b"\ndata: b\n\ndata: c")) == [b"a", b"b"]
    assert list(parser.feed(b"\n\n")) == [b"c"]


@pytest.mark.parametrize("piece", [b"data: " + b"x" * 200, b"data: x\n" * 30, b": ping\n" * 30, b"event: y\n\n" * 30])
def test_what_goes_on_without_an_event_is_an_error(piece: bytes) -> None:
    parser = EventParser(limit=500)
    assert list(parser.feed(b"data: a\n\n" * 100)) == [b"a"] * 100
    with pytest.raises(RequestError, match=r"[0-9]+ bytes without the end of an event") as caught:
        list(itertools.chain.from_iterable(parser.feed(piece) for _ in range(3)))
    assert caught.value.reason == "event_too_long"


def test_an_event_up_to_the_limit_is_given() -> None:
    parser = EventParser(limit=500)
    for _ in range(3):
        assert list(parser.feed(b"data: " + b"x" * 480)) == []
        assert list(parser.feed(b"y\n\n")) == [b"x" * 480 + b"y"]

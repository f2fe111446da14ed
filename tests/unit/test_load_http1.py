"""Answers over HTTP/1.1: the same body however the bytes are cut, and a named error for what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.errors import RequestError
from pytest_speedbench.load.http1 import MAX_HEAD_BYTES, Response

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def read(*pieces: bytes) -> tuple[Response, bytes]:
    response = Response()
    body = b"".join(part for piece in pieces for part in response.feed(piece))
    return response, body


@pytest.mark.parametrize(
    ("stream", "status", "body", "done"),
    [
        (CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", 200, b"abcde", True),
        (CHUNKED + b"A;name=value\r\n0123456789\r\n0\r\n\r\n", 200, b"0123456789", True),
        (CHUNKED + b"3\r\nabc\r\n0\r\nTrailer: x\r\n\r\n", 200, b"abc", True),
        (CHUNKED + b"3\r\nabc\r\n0\r\n\r\nHTTP/1.1 500 and more", 200, b"abc", True),
        (CHUNKED + b"3\r\nabc\r\n", 200, b"abc", False),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}", 404, b"{}", True),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}...", 404, b"{}", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{}", 200, b"{}", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200, b"", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
        # Both given: the length does not count (RFC 9112, 6.3).
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nContent-Length: 0\r\n\r\n1\r\na\r\n0\r\n\r\n",
            200,
            b"a",
            True,
        ),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200\r\nContent-Length: 1\r\n\r\nx", 200, b"x", True),
        (b"HTTP/1.0 200 OK\nServer: old\n\nto the end", 200, b"to the end", False),
        (b"HTTP/1.1 200 OK\r\nX:\r\nContent-Encoding: identity\r\nContent-Length: 1\r\n\r\nx", 200, b"x", True),
        (b"HTTP/1.1 200 OK\r\n", 200, b"", False),
        (b"", 0, b"", False),
    ],
)
def test_answers(stream: bytes, status: int, body: bytes, done: bool) -> None:
    for pieces in ([stream], [stream[i : i + 1] for i in range(len(stream))]):
        response, found = read(*pieces)
        assert (response.status, found, response.done) == (status, body, done)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.data())
def test_any_chunking_and_any_cut_give_the_same_body(chunks: list[bytes], data: st.DataObject) -> None:
    stream = CHUNKED + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    response, body = read(*pieces)
    assert (body, response.done) == (b"".join(chunks), True)
    # Nothing before the last byte says that it is complete.
    assert not read(stream[:-1])[0].done


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    response, body = read(b"HTTP/1.1 200 OK\r\n\r\nabc")
    assert (body, response.done, response.close(), response.done) == (b"abc", False, True, True)
    for cut in (CHUNKED, CHUNKED + b"3\r\nab", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", b"HTTP/1."):
        assert not read(cut)[0].close()


@pytest.mark.parametrize(
    ("stream", "what"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "no HTTP/1 status line but 'SSH-2.0-OpenSSH_9.6'"),
        (b"HTTP/2 200\r\n", "no HTTP/1 status line"),
        (b"HTTP/1.1 2000 OK\r\n", "no HTTP/1 status line"),
        (b"HTTP/1.1 200 OK\r\nnonsense\r\n", "'nonsense' among the headers"),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n", "' folded' among the headers"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n", "a transfer encoding of 'gzip, chunked'"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n", "a content encoding of 'gzip'"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n", "a content length of '-1'"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n", "a content length of '2'"),
        (CHUNKED + b"xyz\r\n", "a chunk of size 'xyz'"),
        (CHUNKED + b"-1\r\n", "a chunk of size '-1'"),
        (CHUNKED + b"\r\n", "a chunk of size ''"),
        (CHUNKED + b"1\r\nabc\r\n", "'bc' after a chunk"),
        (CHUNKED + b"0" * 5000, "a line of more than 4096 bytes between two chunks"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * MAX_HEAD_BYTES, "headers of more than 65536 bytes"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * MAX_HEAD_BYTES, "headers of more than 65536 bytes"),
        (b"x" * (MAX_HEAD_BYTES + 1), "headers of more than 65536 bytes"),
        (CHUNKED + b"0\r\n" + b"A: b\r\n" * MAX_HEAD_BYTES, "headers of more than 65536 bytes"),
    ],
)
def test_what_is_no_answer(stream: bytes, what: str) -> None:
    for size in (len(stream), 1000):
        with pytest.raises(RequestError) as caught:
            read(*(stream[at : at + size] for at in range(0, len(stream), size)))
        assert caught.value.reason == "bad_http"
        assert what in str(caught.value)

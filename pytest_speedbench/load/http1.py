"""The answer to one HTTP/1.1 request, from bytes, incrementally, without any I/O."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum, auto

from pytest_speedbench.errors import RequestError

MAX_HEAD_BYTES = 64 << 10
"""Web servers send below 1 KiB; what goes on for longer is no head."""
MAX_ERROR_BYTES = 64 << 10
"""Of the body of an error, as much as can hold a message."""
_MAX_LINE_BYTES = 4 << 10
_USUAL_SIZE_BYTES = 12
_HEXADECIMAL = frozenset(b"0123456789abcdefABCDEF")
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: |$)")
_LENGTH = re.compile(rb"[0-9]{1,15}")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,12})[ \t]*(?:;.*)?", re.DOTALL)


class _State(Enum):
    HEAD = auto()
    SIZE = auto()
    CHUNK = auto()
    CHUNK_END = auto()
    TRAILER = auto()
    LENGTH = auto()
    UNTIL_CLOSE = auto()
    DONE = auto()


class Response:
    """Takes the bytes of one response and gives those of its body.

    ``status`` is 0 until the head is there. Bodies are chunked, of a stated length, or end with the
    connection. What follows the end is ignored.
    """

    def __init__(self) -> None:
        self.status = 0
        self._state = _State.HEAD
        self._buffer = b""
        self._left = 0
        self._seen = 0

    @property
    def done(self) -> bool:
        """Whether the body is complete."""
        return self._state is _State.DONE

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the pieces of the body in ``data``. Raises RequestError (``bad_http``)."""
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        at, end = 0, len(data)
        while at < end:
            state = self._state
            if state is _State.SIZE:
                # As almost always: a whole chunk is there. The rest of this loop can do it too, in twice the time.
                line_end = data.find(b"\r\n", at, at + _USUAL_SIZE_BYTES)
                digits = data[at:line_end] if line_end > 0 else b""
                if digits.isalnum() and _HEXADECIMAL.issuperset(digits):
                    stop = line_end + 2 + int(digits, 16)
                    if stop > line_end + 2 and data[stop : stop + 2] == b"\r\n":
                        yield data[line_end + 2 : stop]
                        at = stop + 2
                        continue
            if state is _State.CHUNK or state is _State.LENGTH:
                piece = data[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = _State.CHUNK_END if state is _State.CHUNK else _State.DONE
                yield piece
            elif state is _State.UNTIL_CLOSE:
                yield data[at:]
                return
            elif state is _State.DONE:
                return
            else:
                line_end = data.find(b"\n", at)
                if line_end < 0:
                    if end - at > _MAX_LINE_BYTES and state is not _State.HEAD:
                        raise _bad(f"a line of more than {_MAX_LINE_BYTES} bytes between two chunks")
                    self._buffer = data[at:]
                    self._count(end - at, keep=False)
                    return
                line = data[at:line_end]
                at = line_end + 1
                self._line(line[:-1] if line.endswith(b"\r") else line)

    def close(self) -> bool:
        """The connection has ended. Returns whether the body is complete."""
        if self._state is _State.UNTIL_CLOSE:
            self._state = _State.DONE
        return self.done

    def _count(self, size: int, *, keep: bool = True) -> None:
        if self._state not in (_State.HEAD, _State.TRAILER):
            return
        if self._seen + size > MAX_HEAD_BYTES:
            raise _bad(f"headers of more than {MAX_HEAD_BYTES} bytes")
        if keep:
            self._seen += size

    def _line(self, line: bytes) -> None:
        if self._state is _State.SIZE:
            size = _SIZE.fullmatch(line)
            if size is None:
                raise _bad(f"a chunk of size {_shown(line)}")
            self._left = int(size[1], 16)
            self._state = _State.CHUNK if self._left else _State.TRAILER
        elif self._state is _State.CHUNK_END:
            if line:
                raise _bad(f"{_shown(line)} after a chunk")
            self._state = _State.SIZE
        elif self._state is _State.TRAILER:
            self._count(len(line) + 2)
            if not line:
                self._state = _State.DONE
        else:
            self._count(len(line) + 2)
            self._head_line(line)

    def _head_line(self, line: bytes) -> None:
        if not self.status:
            status = _STATUS.match(line)
            if status is None:
                raise _bad(f"no HTTP/1 status line but {_shown(line)}")
            self.status = int(status[2])
            self._chunked, self._length = False, -1
        elif line:
            name, colon, value = line.partition(b":")
            if not colon or not name.strip() or name[:1] in b" \t":
                raise _bad(f"{_shown(line)} among the headers")
            self._header(name.lower(), value.strip())
        elif self.status < 200:
            # An interim answer; the real one follows.
            self.status = 0
        elif self.status in (204, 304) or (self._length == 0 and not self._chunked):
            self._state = _State.DONE
        elif self._chunked:
            self._state = _State.SIZE
        elif self._length > 0:
            self._state, self._left = _State.LENGTH, self._length
        else:
            self._state = _State.UNTIL_CLOSE

    def _header(self, name: bytes, value: bytes) -> None:
        if name == b"transfer-encoding":
            if value.lower() != b"chunked":
                raise _bad(f"a transfer encoding of {_shown(value)}")
            self._chunked = True
        elif name == b"content-length":
            if _LENGTH.fullmatch(value) is None or self._length not in (-1, int(value)):
                raise _bad(f"a content length of {_shown(value)}")
            self._length = int(value)
        elif name == b"content-encoding" and value.lower() not in (b"", b"identity"):
            raise _bad(f"a content encoding of {_shown(value)}, though none was asked for")


def _shown(data: bytes) -> str:
    return repr(data[:60].decode("latin-1"))


def _bad(what: str) -> RequestError:
    return RequestError("bad_http", f"the server does not answer as HTTP/1.1 says: {what}")

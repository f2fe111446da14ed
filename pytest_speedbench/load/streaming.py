"""Streamed exchanges over sockets: every piece is stamped as it arrives and decoded later.

A client of our own, because none of the others tells when bytes arrived: they parse first, and the
streams whose turn comes late are stamped late (with 512 streams at a step of 25 ms on 2 CPUs the median event
by 37 ms with aiohttp below httpx). It also costs less than aiohttp, whose transports take 256 KiB of memory per read,
more than the kernel hands out without a system call; ``benchmarks/load.py`` has the numbers.

On Linux the stamp of a plain connection is the kernel's own (SO_TIMESTAMPNS): it is right even when this process
was late to read. Elsewhere, and with TLS, it is the moment of the read. Where several events were read at once the
stamp is that of the last.

Since the kernel stamps, reading can wait for company: with many streams the sockets are looked at every ms at most, all
that are ready in one go, so that a wake-up of the event loop is paid per look and not per event.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_speedbench.engines.base import StreamDecoder
from pytest_speedbench.errors import RequestError
from pytest_speedbench.load.http1 import MAX_ERROR_BYTES, Response
from pytest_speedbench.load.sse import EventParser

Clock = Callable[[], int]
READ_BYTES = 64 << 10
BATCH_NS = 300_000
"""Decoding goes on for this long before the sockets are looked at again."""
MAX_BACKLOG_BYTES = 1 << 20
"""Bytes of a stream that wait to be decoded; beyond that its socket is left alone until half of them are."""
RESUME_S = 0.001
CROWD = 32
"""With this many sockets, a look at them can wait until there is more to read."""
NAP_S = 0.001
"""How long it waits: far below a usual step of so many streams, and asyncio has no shorter timers."""
SOON_NS = 3_000_000
SOON_SHARE = 0.1
"""Where more reads than this follow within ``SOON_NS`` on the one before of their stream, waiting would join events."""
_SO_TIMESTAMPNS = 35
"""Linux, 64 bits; Python's socket module has no name for it."""
_TIMESPEC = struct.Struct("@qq")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_TIMESPEC.size)
_MAX_AGE_NS = 10**9
_SAME_MOMENT_NS = 20_000
"""Two clocks that are read further apart than this, because something came between, are read again."""
_SHOWN_BYTES = 200
NONSENSE = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What decoders raise for an event that is not as the protocol says."""


class Reception:
    """What all streams of one event loop share: sockets, a buffer to read into, and the queue of what is to be decoded.

    A look first reads and stamps whatever sockets are ready; decoding comes in the next turn of the loop,
    in batches of ``BATCH_NS``, with a turn of the loop after each. ``reads`` counts reads, ``kernel_stamps`` those of
    them whose stamp is the kernel's, ``soon`` those that came soon after the one before of their stream.

    On Linux the sockets are in an epoll of their own, which is the only thing that the loop watches.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock) -> None:
        self.loop, self.clock = loop, clock
        self.buffer = memoryview(bytearray(READ_BYTES))
        self.reads = self.kernel_stamps = self.soon = 0
        self._waiting: deque[tuple[Exchange, int, bytes | Exception]] = deque()
        self._scheduled = False
        self._watched: dict[int, Callable[[], None]] = {}
        self._nap: asyncio.TimerHandle | None = None
        self._epoll: select.epoll | None = None
        if sys.platform == "linux":
            self._epoll = select.epoll()
            loop.add_reader(self._epoll.fileno(), self._look)

    def watch(self, sock: socket.socket, read: Callable[[], None]) -> None:
        """Call ``read`` whenever there is something to read."""
        if self._epoll is None:
            self.loop.add_reader(sock, read)
        else:
            self._epoll.register(sock, select.EPOLLIN)
            self._watched[sock.fileno()] = read

    def unwatch(self, sock: socket.socket) -> None:
        """End ``watch``; to be called before the socket is closed."""
        if self._epoll is None:
            self.loop.remove_reader(sock)
        elif not self._epoll.closed:
            self._epoll.unregister(sock)
            del self._watched[sock.fileno()]

    def close(self) -> None:
        """Watch nothing any more."""
        if self._epoll is None or self._epoll.closed:
            return
        if self._nap is None:
            self.loop.remove_reader(self._epoll.fileno())
        else:
            self._nap.cancel()
        self._epoll.close()

    def _look(self) -> None:
        assert self._epoll is not None
        ready = self._epoll.poll(0)
        for number, _ in ready:
            # An earlier one can have ended the watch. The next socket of the same number would be asked in vain.
            read = self._watched.get(number)
            if read is None:
                continue
            try:
                read()
            except Exception as error:
                # As asyncio does with a reader of its own: the others go on.
                self.loop.call_exception_handler({"message": "reading a stream failed", "exception": error})
        if ready and self._can_wait():
            if self._nap is None:
                self.loop.remove_reader(self._epoll.fileno())
            self._nap = self.loop.call_later(NAP_S, self._look)
        elif self._nap is not None:
            self._nap = None
            self.loop.add_reader(self._epoll.fileno(), self._look)

    def _can_wait(self) -> bool:
        # Without the kernel's stamps waiting would make events late.
        stamped = 0 < self.reads == self.kernel_stamps
        return stamped and len(self._watched) >= CROWD and self.soon <= SOON_SHARE * self.reads

    def stamp(self, ancillary: Sequence[tuple[int, int, bytes]]) -> int:
        """When what has just been read arrived, by the clock of the client."""
        self.reads += 1
        now_ns = self.clock()
        if not ancillary:
            return now_ns
        while True:
            before_ns, wall_ns, now_ns = now_ns, time.time_ns(), self.clock()
            if now_ns - before_ns <= _SAME_MOMENT_NS:
                break
        # The kernel stamps by the wall clock, which can be set; over the age of a stamp it hardly ever is. That clock
        # is read first, so that a stamp can be a little late but never before what it stamps.
        seconds, rest = _TIMESPEC.unpack(ancillary[0][2])
        age_ns = wall_ns - seconds * 10**9 - rest
        if not 0 <= age_ns < _MAX_AGE_NS:
            return now_ns
        self.kernel_stamps += 1
        return now_ns - int(age_ns)

    def arrived(self, exchange: Exchange, at_ns: int, piece: bytes | Exception) -> None:
        """Have ``exchange.decode`` called with what has arrived, after all that arrived before."""
        self._waiting.append((exchange, at_ns, piece))
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._decode)

    def _decode(self) -> None:
        waiting, clock = self._waiting, self.clock
        until = clock() + BATCH_NS
        while waiting:
            exchange, at_ns, piece = waiting.popleft()
            exchange.decode(at_ns, piece)
            if clock() > until:
                break
        self._scheduled = bool(waiting)
        if waiting:
            self.loop.call_soon(self._decode)


class Exchange:
    """One request and its answer. ``finished`` becomes ready when the answer is complete, or has the RequestError."""

    def __init__(self, reception: Reception, decoder: StreamDecoder, error_text: Callable[[bytes], str]) -> None:
        self.finished: asyncio.Future[None] = reception.loop.create_future()
        self.backlog = 0
        self._reception, self._decoder, self._error_text = reception, decoder, error_text
        self._response, self._events = Response(), EventParser()
        self._error_body = b""

    def received(self, at_ns: int, data: bytes) -> None:
        """Bytes that arrived at ``at_ns``."""
        self.backlog += len(data)
        self._reception.arrived(self, at_ns, data)

    def lost(self, error: Exception | None) -> None:
        """The connection has ended, by an error or (None) in order."""
        self._reception.arrived(self, 0, error or EOFError("the server closed it"))

    def fail(self, error: RequestError) -> None:
        """Give up."""
        if not self.finished.done():
            self.finished.set_exception(error)

    def decode(self, at_ns: int, piece: bytes | Exception) -> None:
        """Take what has arrived: bytes, or the end of the connection."""
        if isinstance(piece, bytes):
            self.backlog -= len(piece)
        if self.finished.done():
            return
        try:
            if isinstance(piece, Exception):
                self._ended(piece)
            else:
                self._take(piece, at_ns)
        except RequestError as error:
            self.fail(error)

    def _take(self, data: bytes, at_ns: int) -> None:
        response, decoder = self._response, self._decoder
        for part in response.feed(data):
            if response.status != 200:
                self._error_body += part[:MAX_ERROR_BYTES]
                if len(self._error_body) >= MAX_ERROR_BYTES:
                    raise self._refused()
                continue
            for payload in self._events.feed(part):
                try:
                    decoder.event(payload, at_ns)
                except NONSENSE as error:
                    raise bad_event(payload, error) from error
        if response.done:
            self._complete()

    def _ended(self, error: Exception) -> None:
        if isinstance(error, EOFError) and self._response.close():
            self._complete()
            return
        raise RequestError("stream_cut", f"the connection broke off ({error or type(error).__name__})")

    def _complete(self) -> None:
        if self._response.status != 200:
            raise self._refused()
        self.finished.set_result(None)

    def _refused(self) -> RequestError:
        return RequestError(f"http_{self._response.status}", self._error_text(self._error_body))


def bad_event(data: bytes, error: Exception) -> RequestError:
    """An answer that is not what the engine's protocol says costs its turn, not the whole run."""
    shown = data[:_SHOWN_BYTES].decode("utf-8", "replace")
    return RequestError("bad_event", f"cannot make sense of {shown} ({type(error).__name__}: {error})")


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is, resolved. ``tls`` and ``host`` (to check the certificate for) with https only."""

    family: int
    sockaddr: tuple[Any, ...]
    tls: ssl.SSLContext | None
    host: str

    @property
    def near(self) -> bool:
        """Whether it is this machine, and without TLS."""
        return self.tls is None and str(self.sockaddr[0]).startswith(("127.", "::1"))


async def connect(reception: Reception, address: Address) -> Connection | TlsConnection:
    """Open a connection. Raises OSError."""
    kind = Connection if address.tls is None else TlsConnection
    return await kind.open(reception, address)


class Connection:
    """One connection to the server, for one exchange."""

    def __init__(self, reception: Reception, sock: socket.socket) -> None:
        self._reception, self._socket = reception, sock
        self._exchange: Exchange | None = None
        self._unsent = memoryview(b"")
        self._reading = self._writing = False
        self._read_ns = 0

    @classmethod
    async def open(cls, reception: Reception, address: Address) -> Connection:
        """Connect. Raises OSError."""
        sock = _socket(address)
        try:
            await reception.loop.sock_connect(sock, address.sockaddr)
        except BaseException:
            sock.close()
            raise
        return cls(reception, sock)

    @classmethod
    def open_at_once(cls, reception: Reception, address: Address) -> Connection | None:
        """Connect to this machine, which needs no waiting; None where it does after all, or fails."""
        sock = _socket(address)
        try:
            # Says that it is in progress, and is done when it has said so.
            sock.connect_ex(address.sockaddr)
            sock.getpeername()
        except OSError:
            sock.close()
            return None
        return cls(reception, sock)

    @property
    def open_still(self) -> bool:
        """False once the server has closed it, or has said something unasked."""
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def send(self, payload: bytes, exchange: Exchange) -> int:
        """Send the request; what comes back goes to ``exchange``. Returns the time just before the first byte."""
        reception = self._reception
        self._exchange, self._unsent = exchange, memoryview(payload)
        reception.watch(self._socket, self._read)
        self._reading = True
        at_ns = reception.clock()
        self._write()
        if self._unsent:
            reception.loop.add_writer(self._socket, self._write)
            self._writing = True
        return at_ns

    def close(self) -> None:
        """Close it, whatever its state."""
        self._stop_reading()
        self._stop_writing()
        self._exchange = None
        self._socket.close()

    def _write(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            # The server may have answered all the same (with what is wrong with the request): reading tells.
            self._unsent = memoryview(b"")
        self._stop_writing()

    def _read(self) -> None:
        reception, exchange = self._reception, self._exchange
        assert exchange is not None
        try:
            count, ancillary, _, _ = self._socket.recvmsg_into([reception.buffer], _ANCILLARY_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._stop_reading()
            exchange.lost(error)
            return
        if not count:
            self._stop_reading()
            exchange.lost(None)
            return
        at_ns = reception.stamp(ancillary)
        reception.soon += at_ns - self._read_ns < SOON_NS
        self._read_ns = at_ns
        exchange.received(at_ns, bytes(reception.buffer[:count]))
        if exchange.backlog > MAX_BACKLOG_BYTES:
            self._stop_reading()
            reception.loop.call_later(RESUME_S, self._resume)

    def _resume(self) -> None:
        if self._exchange is None:
            return
        if self._exchange.backlog > MAX_BACKLOG_BYTES // 2:
            self._reception.loop.call_later(RESUME_S, self._resume)
        else:
            self._reception.watch(self._socket, self._read)
            self._reading = True

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._reception.unwatch(self._socket)

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._reception.loop.remove_writer(self._socket)


def _socket(address: Address) -> socket.socket:
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    return sock


class TlsConnection(asyncio.Protocol):
    """As ``Connection``, with TLS: asyncio's transport decrypts, and a piece is stamped when it comes out."""

    def __init__(self, reception: Reception) -> None:
        self._reception = reception
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._ended = False

    @classmethod
    async def open(cls, reception: Reception, address: Address) -> TlsConnection:
        """Connect and shake hands. Raises OSError."""
        host, port = address.sockaddr[:2]
        _, protocol = await reception.loop.create_connection(
            lambda: cls(reception), host, port, ssl=address.tls, server_hostname=address.host
        )
        return protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    @property
    def open_still(self) -> bool:
        """False once the server has closed it, or has said something unasked."""
        return not self._ended

    def send(self, payload: bytes, exchange: Exchange) -> int:
        """Send the request; what comes back goes to ``exchange``. Returns the time just before the first byte."""
        assert self._transport is not None
        self._exchange = exchange
        at_ns = self._reception.clock()
        self._transport.write(payload)
        return at_ns

    def close(self) -> None:
        """Close it, whatever its state."""
        self._exchange = None
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Of asyncio."""
        at_ns, exchange = self._reception.clock(), self._exchange
        self._reception.reads += 1
        if exchange is None:
            self._ended = True
            return
        exchange.received(at_ns, data)
        if exchange.backlog > MAX_BACKLOG_BYTES and self._transport is not None:
            self._transport.pause_reading()
            self._reception.loop.call_later(RESUME_S, self._resume)

    def connection_lost(self, error: Exception | None) -> None:
        """Of asyncio."""
        self._ended = True
        if self._exchange is not None:
            self._exchange.lost(error)

    def _resume(self) -> None:
        if self._exchange is None or self._transport is None:
            return
        if self._exchange.backlog > MAX_BACKLOG_BYTES // 2:
            self._reception.loop.call_later(RESUME_S, self._resume)
        else:
            self._transport.resume_reading()

"""The HTTP side of every emulator: a server on a port of its own, in a thread of its own.

A protocol module gives an ``App``: it answers plain requests, and streams that it yields piece by
piece. Faults of the transport are raised by the app as ``Cut`` or ``Crash``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Request:
    """One request as the server saw it. ``number`` counts POSTs to the stream path from 0."""

    number: int
    method: str
    path: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Response:
    """A plain answer."""

    status: int
    body: bytes
    content_type: str = "application/json"

    @classmethod
    def of(cls, data: Any, status: int = 200) -> Response:
        return cls(status, json.dumps(data).encode())


@dataclass(frozen=True)
class Stream:
    """An answer that is streamed: ``pieces`` are the bytes that go out one after the other."""

    pieces: AsyncIterator[bytes]
    finished: Callable[[], None] = field(default=lambda: None)
    """Called before the last piece goes out: servers count a request before its closing event is seen."""


class Cut(Exception):
    """End the body cleanly here, without whatever the protocol ends with."""


class Crash(Exception):
    """Drop this connection in mid-body, and every later one."""


class Hang(Exception):
    """Send nothing more and keep the connection open."""


class App(Protocol):
    """What a protocol module provides. Called in the server's thread."""

    stream_path: str

    def plain(self, request: Request) -> Response: ...

    def stream(self, request: Request) -> Stream | Response: ...


class Server:
    """Serves an app. Use as a context manager.

    ``hold`` is a predicate of (requests in flight, requests begun): every streamed answer waits until
    it is true, so that a test can ask for a state instead of waiting some time for it. ``piece``
    re-cuts the stream into pieces of that many bytes.
    """

    def __init__(
        self,
        app: App,
        *,
        hold: Callable[[int, int], bool] = lambda in_flight, begun: True,
        piece: int | None = None,
        port: int = 0,
    ) -> None:
        self.app = app
        self.requests: list[Request] = []
        self.plain_requests: list[Request] = []
        self.in_flight = 0
        self.peak = 0
        self.base_url = ""
        self._hold, self._piece, self._port = hold, piece, port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="emulator")
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Server:
        self._thread.start()
        self._changed = asyncio.Event()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._connected, "127.0.0.1", self._port, backlog=1024), self._loop
        ).result()
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                method, path, _ = head.split(" ", 2)
                headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
                content = await reader.readexactly(int(headers.get("content-length", 0)))
                body = json.loads(content) if content else {}
                if method == "POST" and path == self.app.stream_path:
                    request = Request(len(self.requests), method, path, body)
                    self.requests.append(request)
                    await self._streamed(request, reader, writer)
                else:
                    request = Request(-1, method, path, body)
                    self.plain_requests.append(request)
                    _respond(writer, self.app.plain(request))
                    await writer.drain()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _streamed(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._count(+1)
        # A client that hangs up frees its place, as with the real servers.
        hung_up = self._loop.create_task(reader.read(1))
        work = self._loop.create_task(self._generate(request, writer))
        try:
            await asyncio.wait((work, hung_up), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            for task in (work, hung_up):
                task.cancel()
            await asyncio.gather(work, hung_up, return_exceptions=True)

    def _count(self, change: int) -> None:
        self.in_flight += change
        self.peak = max(self.peak, self.in_flight)
        self._changed.set()

    async def _generate(self, request: Request, writer: asyncio.StreamWriter) -> None:
        counted = True
        try:
            while not self._hold(self.in_flight, len(self.requests)):
                self._changed.clear()
                await self._changed.wait()
            answer = self.app.stream(request)
            if isinstance(answer, Response):
                _respond(writer, answer)
                await writer.drain()
                return
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n")
            writer.write(b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
            pending: bytes | None = None
            try:
                async for piece in answer.pieces:
                    if pending is not None:
                        await self._send(writer, pending)
                    pending = piece
                answer.finished()
                self._count(-1)
                counted = False
            except Cut:
                pass
            except (Crash, Hang) as fault:
                if pending is not None:
                    await self._send(writer, pending)
                if isinstance(fault, Hang):
                    await asyncio.Event().wait()
                self._server.close()
                writer.transport.abort()
                return
            if pending is not None:
                await self._send(writer, pending)
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        finally:
            if counted:
                self._count(-1)

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        size = self._piece or len(data) or 1
        for at in range(0, len(data), size):
            piece = data[at : at + size]
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        await writer.drain()


def _respond(writer: asyncio.StreamWriter, response: Response) -> None:
    head = f"HTTP/1.1 {response.status} x\r\nContent-Type: {response.content_type}\r\n"
    head += f"Content-Length: {len(response.body)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + response.body)

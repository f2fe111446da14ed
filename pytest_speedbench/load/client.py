"""HTTP to one engine: streamed turns, and plain GETs for metrics and readiness."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from pytest_speedbench import __version__
from pytest_speedbench.engines.base import Engine, TurnRequest
from pytest_speedbench.errors import EngineError, RequestError
from pytest_speedbench.load.streaming import (
    NONSENSE,
    Address,
    Clock,
    Connection,
    Exchange,
    Reception,
    TlsConnection,
    bad_event,
    connect,
)
from pytest_speedbench.measure.samples import Turn

GET_TIMEOUT_S = 10.0
READY_TIMEOUT_S = 5.0
"""Some servers generate a token before they call themselves ready."""
CONNECT_TIMEOUT_S = 10.0
_CONNECTING_AT_ONCE = 64
"""Far below what any web server lets wait to be accepted."""


def fetcher(base_url: str) -> Callable[[str], bytes]:
    """A function that GETs a path of the server; it raises EngineError when that fails."""
    import httpx  # not at the top: processes that only stream do without

    def fetch(path: str) -> bytes:
        try:
            response = httpx.get(base_url + path, timeout=GET_TIMEOUT_S, trust_env=False)
        except httpx.HTTPError as error:
            raise EngineError(f"GET {path} of the engine failed: {error or type(error).__name__}") from error
        if response.status_code != 200:
            raise EngineError(f"GET {path} of the engine answered HTTP {response.status_code}")
        return response.content

    return fetch


def is_ready(base_url: str, paths: Sequence[str]) -> bool:
    """Whether the server answers 200 on its readiness path: the first of ``paths`` that it has."""
    import httpx

    for path in paths:
        try:
            status = httpx.get(base_url + path, timeout=READY_TIMEOUT_S, trust_env=False).status_code
        except httpx.HTTPError:
            return False
        if status != 404:
            return status == 200
    return False


def post(base_url: str, path: str, *, timeout_s: float) -> bool:
    """POST an empty body until the server answers 200; False when it does not within ``timeout_s``.

    Raises EngineError when the server cannot be reached.
    """
    import httpx

    deadline = time.monotonic() + timeout_s
    while True:
        try:
            status = httpx.post(base_url + path, timeout=GET_TIMEOUT_S, trust_env=False).status_code
        except httpx.HTTPError as error:
            raise EngineError(f"POST {path} of the engine failed: {error or type(error).__name__}") from error
        if status == 200:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def post_json(
    base_url: str, path: str, body: Mapping[str, Any], error_text: Callable[[bytes], str], *, timeout_s: float
) -> bytes:
    """POST ``body`` and return the answer. Raises EngineError when that fails, with the server's own message."""
    import httpx

    try:
        response = httpx.post(base_url + path, json=body, timeout=timeout_s, trust_env=False)
    except httpx.HTTPError as error:
        raise EngineError(f"POST {path} of the engine failed: {error or type(error).__name__}") from error
    if response.status_code != 200:
        raise EngineError(
            f"POST {path} of the engine answered HTTP {response.status_code}: {error_text(response.content)}"
        )
    return response.content


class StreamingClient:
    """Sends turns to one server. Use as an async context manager.

    Every turn has a connection of its own: servers close it after a stream, and a reused one would fail
    the next send.
    """

    def __init__(self, engine: Engine, base_url: str, *, concurrency: int, clock: Clock = time.perf_counter_ns) -> None:
        self._engine, self._clock, self._concurrency = engine, clock, concurrency
        self._url = urlsplit(base_url)
        self._head = (
            f"POST {self._url.path.rstrip('/')}{engine.stream_path} HTTP/1.1\r\n"
            f"host: {self._url.netloc.rpartition('@')[2]}\r\n"
            "accept: */*\r\naccept-encoding: identity\r\nconnection: close\r\n"
            f"user-agent: pytest-speedbench/{__version__}\r\ncontent-type: application/json\r\ncontent-length: "
        ).encode()
        self._addresses: list[Address] = []
        self._reception: Reception | None = None
        self._ahead: deque[Connection | TlsConnection] = deque()

    async def __aenter__(self) -> StreamingClient:
        self._reception = Reception(asyncio.get_running_loop(), self._clock)
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._ahead:
            self._ahead.pop().close()
        if self._reception is not None:
            self._reception.close()

    @property
    def kernel_stamped(self) -> float:
        """Share of reads whose time stamp is the kernel's."""
        reception = self._reception
        return reception.kernel_stamps / reception.reads if reception is not None and reception.reads else 0.0

    def payload(self, request: TurnRequest) -> bytes:
        """The request as it goes out, to be made before the clock starts."""
        body = json.dumps(self._engine.body(request), ensure_ascii=False, separators=(",", ":")).encode()
        return b"%s%d\r\n\r\n%s" % (self._head, len(body), body)

    async def connect_ahead(self, number: int) -> None:
        """Open connections for the next ``number`` turns. What cannot be opened is left to the turn itself."""
        opening = asyncio.Semaphore(_CONNECTING_AT_ONCE)

        async def one() -> None:
            async with opening:
                try:
                    self._ahead.append(await self._connect())
                except RequestError:
                    return

        await asyncio.gather(*(one() for _ in range(number)))

    async def turn(self, request: TurnRequest, *, deadline_s: float, payload: bytes | None = None) -> Turn:
        """Generate one turn. Raises RequestError with a reason code for anything but success.

        ``payload`` is what ``payload(request)`` gave.
        """
        reception = self._reception
        assert reception is not None
        decoder = self._engine.decoder(request)
        exchange = Exchange(reception, decoder, self._engine.error_text)
        sent = self.payload(request) if payload is None else payload
        late = RequestError("deadline", f"not finished after {deadline_s:.0f} s")
        timer = reception.loop.call_later(deadline_s, exchange.fail, late)
        connection = None
        try:
            connection = await self._opened(exchange)
            start_ns = connection.send(sent, exchange)
            await exchange.finished
        finally:
            timer.cancel()
            if connection is not None:
                connection.close()
        try:
            return decoder.finish(start_ns)
        except NONSENSE as error:
            raise bad_event(b"the closing event", error) from error

    async def _opened(self, exchange: Exchange) -> Connection | TlsConnection:
        while self._ahead:
            connection = self._ahead.popleft()
            if connection.open_still:
                return connection
            connection.close()
        reception = self._reception
        if reception is not None and self._addresses and self._addresses[0].near:
            # A stream is to be replaced at once, and with tasks and timers around it that takes ten times as long.
            connected = Connection.open_at_once(reception, self._addresses[0])
            if connected is not None:
                return connected
        opening = asyncio.ensure_future(self._connect())
        try:
            await asyncio.wait((opening, exchange.finished), return_when=asyncio.FIRST_COMPLETED)
            if not opening.done():
                exchange.finished.result()
            return opening.result()
        finally:
            if not opening.done():
                opening.cancel()

    async def _connect(self) -> Connection | TlsConnection:
        reception = self._reception
        assert reception is not None
        try:
            if not self._addresses:
                self._addresses = await self._resolve(reception.loop)
            failed: OSError | None = None
            for address in list(self._addresses):
                try:
                    connection = await asyncio.wait_for(connect(reception, address), CONNECT_TIMEOUT_S)
                except asyncio.TimeoutError:
                    failed = failed or OSError(f"no connection within {CONNECT_TIMEOUT_S:.0f} s")
                    continue
                except OSError as error:
                    failed = failed or error
                    continue
                # localhost is two addresses, and servers often listen on one of them.
                self._addresses.sort(key=lambda known: known is not address)
                return connection
            raise failed or OSError(f"{self._url.hostname} has no address")
        except OSError as error:
            raise RequestError("connection_refused", str(error) or type(error).__name__) from error

    async def _resolve(self, loop: asyncio.AbstractEventLoop) -> list[Address]:
        host, tls = self._url.hostname or "", None
        port = self._url.port or (443 if self._url.scheme == "https" else 80)
        if self._url.scheme == "https":
            import httpx

            tls = httpx.create_ssl_context(trust_env=False)
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [Address(family, sockaddr, tls, host) for family, _, _, _, sockaddr in found]

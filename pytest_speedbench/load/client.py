"""HTTP to one engine: streamed turns, and plain GETs for metrics and readiness."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from pytest_speedbench.engines.base import Engine, TurnRequest
from pytest_speedbench.errors import EngineError, RequestError
from pytest_speedbench.load.sse import EventParser
from pytest_speedbench.measure.samples import Turn

Clock = Callable[[], int]
GET_TIMEOUT_S = 10.0
READY_TIMEOUT_S = 5.0
"""Some servers generate a token before they call themselves ready."""
_SHOWN_BYTES = 200


def fetcher(base_url: str) -> Callable[[str], bytes]:
    """A function that GETs a path of the server; it raises EngineError when that fails."""

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


class StreamingClient:
    """Sends turns to one server. Use as an async context manager."""

    def __init__(self, engine: Engine, base_url: str, *, concurrency: int, clock: Clock = time.perf_counter_ns) -> None:
        self._engine = engine
        self._clock = clock
        # No deadline per read: a long prefill is silent. The driver has a deadline per turn.
        self._http = httpx.AsyncClient(
            base_url=base_url,
            timeout=httpx.Timeout(None, connect=10.0),
            # aiohttp parses HTTP in C: an event costs half of what it costs with httpx's own transport.
            transport=AiohttpTransport(client=lambda: _session(concurrency)),
            # The engine is on this machine: no proxy of the environment, and nothing to compress.
            trust_env=False,
            headers={"accept-encoding": "identity"},
        )

    async def __aenter__(self) -> StreamingClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def turn(self, request: TurnRequest, *, deadline_s: float) -> Turn:
        """Generate one turn. Raises RequestError with a reason code for anything but success."""
        try:
            return await asyncio.wait_for(self._turn(request), deadline_s)
        except asyncio.TimeoutError:
            raise RequestError("deadline", f"not finished after {deadline_s:.0f} s") from None
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise RequestError("connection_refused", str(error) or type(error).__name__) from error
        except (httpx.HTTPError, aiohttp.ClientError) as error:
            raise RequestError("stream_cut", f"the connection broke off ({error or type(error).__name__})") from error

    async def _turn(self, request: TurnRequest) -> Turn:
        decoder, events = self._engine.decoder(request), EventParser()
        body = self._engine.body(request)
        start_ns = self._clock()
        async with self._http.stream("POST", self._engine.stream_path, json=body) as response:
            if response.status_code != 200:
                text = self._engine.error_text(await response.aread())
                raise RequestError(f"http_{response.status_code}", text)
            async for chunk in response.aiter_raw():
                at_ns = self._clock()
                for data in events.feed(chunk):
                    with _readable(data):
                        decoder.event(data, at_ns)
        with _readable(b"the closing event"):
            return decoder.finish(start_ns)


def _session(concurrency: int) -> aiohttp.ClientSession:
    """A connection per turn: servers close it after a stream, and a reused one would fail the next send."""
    connector = aiohttp.TCPConnector(limit=concurrency, force_close=True)
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False)


@contextlib.contextmanager
def _readable(data: bytes) -> Iterator[None]:
    """An answer that is not what the engine's protocol says costs its turn, not the whole run."""
    try:
        yield
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        shown = data[:_SHOWN_BYTES].decode("utf-8", "replace")
        raise RequestError("bad_event", f"cannot make sense of {shown} ({type(error).__name__}: {error})") from error

"""What the streaming client costs, and how late its time stamps can be, with two HTTP transports side by side.

    python benchmarks/streaming_client.py [ROUNDS]

An emulated vLLM in a process of its own sends a token every 8 ms to every stream, at once for all streams
as an engine does. Each round plays the same conversations over aiohttp (what the client uses) and over
httpx's own transport, one after the other. Lag is how late the event loop wakes a sleeper. On two CPUs the
emulator takes part of the machine.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import platform
import sys
import time
from collections.abc import AsyncIterator
from contextlib import contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from pytest_speedbench.engines.base import Profile, Sampling, Speculation
from pytest_speedbench.engines.vllm import Vllm
from pytest_speedbench.load import client
from pytest_speedbench.load.driver import Conversation, Load, Sent, drive
from tests.emulator.llamacpp import byte_tokenizer
from tests.emulator.schedule import Schedule
from tests.emulator.server import Request, Server
from tests.emulator.vllm import Vllm as Emulator

STEP_S = 0.008
TOKENS, PROMPT = 48, 2000
STREAMS = (1, 8, 32)


class Paced(Emulator):
    """Sends the events of all streams on the ticks of one clock."""

    def _pieces(self, request: Request, schedule: Schedule) -> AsyncIterator[bytes]:
        pieces = super()._pieces(request, schedule)

        async def on_ticks() -> AsyncIterator[bytes]:
            loop = asyncio.get_running_loop()
            async for piece in pieces:
                await asyncio.sleep(STEP_S - loop.time() % STEP_S)
                yield piece

        return on_ticks()


def serve(address: Any) -> None:
    with Server(Paced(lambda request: Schedule.of(TOKENS, draft=0, seed=request.number))) as server:
        address.put(server.base_url)
        time.sleep(3600)


@contextmanager
def transport(own: bool) -> Any:
    """``own``: httpx's own transport in place of the client's."""
    kept = client.AiohttpTransport
    if own:
        client.AiohttpTransport = lambda client: httpx.AsyncHTTPTransport(
            limits=httpx.Limits(max_keepalive_connections=0)
        )
    try:
        yield
    finally:
        client.AiohttpTransport = kept


def play(url: str, streams: int) -> Sent:
    engine = Vllm(Profile("vllm", "vllm", "speedbench", Speculation(), base_url=url))
    engine.describe(client.fetcher(url))
    ids = tuple(32 + i % 90 for i in range(PROMPT))
    conversations = tuple(Conversation(f"q{i}", "x", ("x",), ids) for i in range(max(8, 4 * streams)))
    load = Load(conversations, streams, Sampling(TOKENS, ignore_eos=True), 60.0, 0)

    async def run() -> Sent:
        async with client.StreamingClient(engine, url, concurrency=streams) as streaming:
            return await drive(streaming, byte_tokenizer(), load, progress=lambda *_: None)

    return asyncio.run(run())


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    address: Any = multiprocessing.Queue()
    server = multiprocessing.Process(target=serve, args=(address,), daemon=True)
    server.start()
    url = address.get()
    print(f"{date.today()}, {platform.processor() or platform.machine()}, {multiprocessing.cpu_count()} CPUs, CPython")
    print(
        platform.python_version(),
        *(f"{name} {version(name)}" for name in ("httpx", "httpx-aiohttp", "aiohttp", "httpcore")),
    )
    print(f"{'streams':>7} {'transport':>9}  CPU share   lag p99 (ms), each of {rounds} rounds")
    for streams in STREAMS:
        found: dict[str, list[Sent]] = {"aiohttp": [], "httpx": []}
        for _ in range(rounds):
            for name, sent in found.items():
                with transport(own=name == "httpx"):
                    sent.append(play(url, streams))
        for name, sent in found.items():
            assert all(not one.failures for one in sent)
            shares = " ".join(f"{one.client.cpu_share:.2f}" for one in sent)
            lags = " ".join(f"{1e3 * one.client.lag_p99_s:.1f}" for one in sent)
            print(f"{streams:>7} {name:>9}  {shares:<10}  {lags}")
    server.terminate()


if __name__ == "__main__":
    main()

"""What an event costs: the streaming client beside plain aiohttp and plain httpx, on the same streams.

    python benchmarks/streaming_client.py [ROUNDS]

The emulator in C sends to every stream as fast as it is read, or (paced) on the ticks of a clock. Every client
reads each event and parses its JSON; ours also checks and collects what the engine module does. Figures are
microseconds of CPU per event, the median of ROUNDS (default 5) rounds, in which the clients take turns.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import aiohttp
import httpx
from load import TOKENS, conversations, emulator

from pytest_speedbench.engines.base import Profile, Sampling, Speculation, TurnRequest
from pytest_speedbench.engines.vllm import Vllm
from pytest_speedbench.load.client import StreamingClient, fetcher

PACES = (("as fast as it can", "0", (1, 8, 64, 256, 512)), ("every 25 ms", "25000", (64, 256, 512)))
EVENTS = 1 + (TOKENS - 1) * 2 // 5
"""Events per stream at 2 and 3 tokens in turn."""


def engine_of(url: str) -> Vllm:
    engine = Vllm(Profile("vllm", "vllm", "speedbench", Speculation("ngram", 4), base_url=url))
    engine.describe(fetcher(url))
    return engine


def requests(streams: int) -> list[TurnRequest]:
    sampling = Sampling(TOKENS, ignore_eos=True)
    return [TurnRequest(c.question_id, c.category, 0, c.first_ids, sampling) for c in conversations(streams)]


async def ours(url: str, engine: Vllm, asked: Sequence[TurnRequest]) -> None:
    async with StreamingClient(engine, url, concurrency=len(asked)) as client:
        await asyncio.gather(*(client.turn(request, deadline_s=600.0) for request in asked))


async def read_events(chunks: AsyncIterator[bytes]) -> None:
    buffer = b""
    async for chunk in chunks:
        *events, buffer = (buffer + chunk).split(b"\n\n")
        for event in events:
            if event != b"data: [DONE]":
                time.perf_counter_ns()
                json.loads(event[6:])


async def plain_aiohttp(url: str, engine: Vllm, asked: Sequence[TurnRequest]) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as session:

        async def one(request: TurnRequest) -> None:
            async with session.post(url + engine.stream_path, json=engine.body(request)) as response:
                await read_events(response.content.iter_any())

        await asyncio.gather(*map(one, asked))


async def plain_httpx(url: str, engine: Vllm, asked: Sequence[TurnRequest]) -> None:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=None, limits=limits, trust_env=False) as client:

        async def one(request: TurnRequest) -> None:
            async with client.stream("POST", url + engine.stream_path, json=engine.body(request)) as response:
                await read_events(response.aiter_raw())

        await asyncio.gather(*map(one, asked))


Run = Callable[[str, Vllm, Sequence[TurnRequest]], Awaitable[None]]
CLIENTS: dict[str, Run] = {
    "ours": ours,
    "aiohttp": plain_aiohttp,
    "httpx": plain_httpx,
}


async def timed(run: Run, url: str, streams: int) -> float:
    engine, asked = engine_of(url), requests(streams)
    before = time.process_time()
    await run(url, engine, asked)
    return (time.process_time() - before) / (streams * EVENTS) * 1e6


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    print(f"{date.today()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    print(", ".join(f"{name} {version(name)}" for name in ("aiohttp", "httpx")))
    print(f"{'events':<18} {'streams':>7} " + " ".join(f"{name:>8}" for name in CLIENTS) + "   µs of CPU per event")
    for pace, step_us, counts in PACES:
        for streams in counts:
            found: dict[str, list[float]] = {name: [] for name in CLIENTS}
            with tempfile.TemporaryDirectory() as name:
                options = ("-s", step_us, "-f", "50000", "-p", "2,3", "-k", "4")
                with emulator(Path(name), *options) as url:
                    for _ in range(rounds if streams > 1 else 4 * rounds):
                        for client, run in CLIENTS.items():
                            found[client].append(asyncio.run(timed(run, url, streams)))
            figures = " ".join(f"{statistics.median(values):>8.1f}" for values in found.values())
            print(f"{pace:<18} {streams:>7} {figures}")


if __name__ == "__main__":
    main()

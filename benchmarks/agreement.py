"""Rates and latencies of this client beside those of ``vllm bench serve``, on one server, in alternating runs.

    python benchmarks/agreement.py --python VLLM/venv/bin/python --model FOLDER [--packages DIR] [--small]
    python benchmarks/agreement.py --python PYTHON --dummy-8b TOKENIZER_FOLDER --concurrency 64 256
    python benchmarks/agreement.py --python VLLM/venv/bin/python --emulator --concurrency 64 256 --rounds 2

Both clients send the same token ids, with the same bodies, in the same order, at the same concurrency, and each says
by its own formulas and stamps what it measured. Without a tokenizer, which would change the ids, vllm bench serve
prints no latencies: they are taken from its record of each request, which 0.24 has as well as later versions.

--dummy-8b serves a model of the shape of Llama 3.1 8B without weights, with the tokenizer of the folder; --base-url
measures a server that runs already (vllm, prefix caching off). --emulator is the one in C, which has no noise: it
answers 50 ms after a request, at the next of its steps of 25 ms, and so shows whose TTFT is right. --packages are
folders of what that Python lacks, such as what vllm bench serve needs (tools/peers.sh: PEERS/vllm-bench).
Nothing is downloaded. Ratios come with a 95 % interval (Student's t over the rounds, of logarithms); they agree
where all of it is within 1 %, and not where all of it is beyond; else more rounds are needed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
from load import emulator

from pytest_speedbench.engines.base import Capacity, Profile, Sampling, Speculation, TurnRequest
from pytest_speedbench.engines.vllm import Vllm
from pytest_speedbench.load.client import fetcher, is_ready
from pytest_speedbench.load.driver import Conversation, Load, shares
from pytest_speedbench.load.spread import send
from pytest_speedbench.measure import timing
from pytest_speedbench.measure.student import t_quantile

START_S = 900.0
LIMIT = 0.01
LLAMA_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128}
LLAMA_8B |= {"tie_word_embeddings": False, "max_position_embeddings": 8192}
EMULATED = ("-f", "50000", "-s", "25000", "-p", "2,3", "-k", "4")
HELD = ("output_tps", "ttft_mean_s", "ttft_p50_s", "tpot_mean_s", "tpot_p50_s")
"""What is to agree; a p99 of TTFT is that of one or two requests."""
METRICS = (*HELD, "ttft_p99_s")


def dummy_8b(tokenizer: Path, folder: Path) -> Path:
    """A model folder without weights."""
    sys.path.append(str(Path(__file__).parents[1] / "tools"))
    from dummy_models import SHAPE, TOKENIZER_FILES  # type: ignore[import-not-found]

    own = json.loads((tokenizer / "config.json").read_text(encoding="utf-8"))
    ids = {name: own[name] for name in ("vocab_size", "bos_token_id", "eos_token_id") if name in own}
    (folder / "config.json").write_text(json.dumps({**SHAPE, **LLAMA_8B, **ids}), encoding="utf-8")
    for name in TOKENIZER_FILES:
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, folder / name)
    return folder


@contextlib.contextmanager
def serving(asked: argparse.Namespace, folder: Path) -> Iterator[tuple[Vllm, str]]:
    """The engine module and the address of its server, started here unless one was named."""
    model = str(dummy_8b(asked.dummy_8b, folder) if asked.dummy_8b else asked.model or "speedbench")
    extra = ["--load-format", "dummy"] if asked.dummy_8b else []
    options = {"python": str(asked.python), "args": [*extra, *asked.serve], "env": packages(asked)}
    engine = Vllm(Profile("vllm", "vllm", model, Speculation("none", 0), base_url=asked.base_url, options=options))
    engine.check()
    if asked.base_url:
        engine.describe(fetcher(asked.base_url))
        yield engine, asked.base_url
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = engine.launch(Capacity(max(asked.concurrency), asked.isl + asked.osl + 16), port)
    url = f"http://127.0.0.1:{port}"
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(launch.argv, env=environment(asked) | dict(launch.env), stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + START_S
            while not is_ready(url, engine.ready_paths):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit((folder / "server.log").read_text(encoding="utf-8", errors="replace")[-3000:])
                time.sleep(0.5)
            engine.describe(fetcher(url))
            yield engine, url
        finally:
            process.terminate()
            process.wait(60)


def environment(asked: argparse.Namespace) -> dict[str, str]:
    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **quiet, **packages(asked)}


def packages(asked: argparse.Namespace) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(str(folder.resolve()) for folder in asked.packages)} if asked.packages else {}


def conversations(number: int, isl: int) -> tuple[Conversation, ...]:
    """Random ids of words in the middle of the vocabulary, where no tokenizer has its special tokens."""
    ids = random.Random(number * 100_000 + isl)
    return tuple(
        Conversation(f"q{i}", "x", ("x",), tuple(ids.randrange(1000, 30_000) for _ in range(isl)))
        for i in range(number)
    )


def reduced(output_tps: float, ttft_s: timing.Values, tpot_s: timing.Values) -> dict[str, float]:
    return {
        "output_tps": output_tps,
        "ttft_mean_s": timing.mean(ttft_s),
        "ttft_p50_s": timing.percentile(ttft_s, 50),
        "tpot_mean_s": timing.mean(tpot_s),
        "tpot_p50_s": timing.percentile(tpot_s, 50),
        "ttft_p99_s": timing.percentile(ttft_s, 99),
    }


def ours(engine: Vllm, url: str, load: Load) -> tuple[dict[str, float], tuple[int, int]]:
    """What this client measures, and (prompt, output) tokens."""
    # One-turn conversations need no tokenizer.
    sent = send(engine, url, None, load, progress=lambda *_: None)  # type: ignore[arg-type]
    if sent.failures:
        raise SystemExit(f"{len(sent.failures)} turns failed: {sent.failures[0]}")
    values = reduced(timing.output_tps(sent.turns) or math.nan, timing.ttft_s(sent.turns), timing.tpot_s(sent.turns))
    return values, (sum(t.prompt_tokens for t in sent.turns), sum(t.output_tokens for t in sent.turns))


def theirs(
    engine: Vllm, url: str, load: Load, asked: argparse.Namespace, folder: Path
) -> tuple[dict[str, float], tuple[int, int]]:
    """The same of ``vllm bench serve``."""
    (share,) = shares(load)
    prompts = folder / "prompts.jsonl"
    lines = (json.dumps({"prompt": list(c.first_ids)}) + "\n" for c in share.conversations)
    prompts.write_text("".join(lines), encoding="utf-8")
    body = engine.body(TurnRequest("q", "x", 0, (), load.sampling))
    model = str(body.pop("model"))
    del body["prompt"], body["stream"]
    command = [
        *(str(asked.python), "-m", "vllm.entrypoints.cli.main", "bench", "serve", "--backend", "openai"),
        *("--base-url", url, "--model", model, "--dataset-name", "custom", "--dataset-path", str(prompts)),
        # Without a tokenizer ids go out as they are, and the body says how much to generate.
        *("--skip-tokenizer-init", "--disable-shuffle", "--disable-tqdm", "--extra-body", json.dumps(body)),
        *("--num-prompts", str(len(share.conversations)), "--max-concurrency", str(load.concurrency)),
        *("--save-result", "--save-detailed", "--result-dir", str(folder), "--result-filename", "theirs.json"),
    ]
    (folder / "theirs.json").unlink(missing_ok=True)
    done = subprocess.run(command, env=environment(asked), cwd=folder, capture_output=True, text=True)
    if done.returncode or not (folder / "theirs.json").exists():
        raise SystemExit(f"vllm bench serve ended with {done.returncode}:\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
    said = json.loads((folder / "theirs.json").read_text(encoding="utf-8"))
    # As calculate_metrics of vllm/benchmarks/serve.py does: what is not TTFT of a latency are its gaps.
    tpot = [sum(gaps) / (tokens - 1) for gaps, tokens in zip(said["itls"], said["output_lens"], strict=True)]
    values = reduced(float(said["output_throughput"]), np.array(said["ttfts"]), np.array(tpot))
    return values, (int(said["total_input_tokens"]), int(said["total_output_tokens"]))


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high) of ratios, on the logarithmic scale."""
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logs)
    half = math.inf
    if len(logs) > 1:
        half = t_quantile(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def compare(concurrency: int, rounds: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> None:
    for name in METRICS:
        pairs = [(own[name], other[name]) for own, other in rounds]
        ratio, low, high = interval([own / other for own, other in pairs])
        shown = (statistics.geometric_mean(side) for side in zip(*pairs, strict=True))
        agreed = "yes" if max(1 - low, high - 1) <= LIMIT else "**no**" if max(low - 1, 1 - high) > LIMIT else "open"
        values = " | ".join(f"{value:.5g}" for value in shown)
        print(
            f"| {concurrency} | {name} | {values} | {ratio - 1:+.2%} | {low - 1:+.2%} to {high - 1:+.2%} |"
            f" {agreed if name in HELD else ''} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", type=Path, required=True, help="of the environment that has vllm")
    parser.add_argument("--packages", type=Path, nargs="+", default=[], help="further packages of it")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", help="what to serve")
    what.add_argument("--dummy-8b", type=Path, metavar="TOKENIZER_FOLDER")
    what.add_argument("--base-url", help="of a running server")
    what.add_argument("--emulator", action="store_true", help="a server that is emulated")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--requests", type=int, default=4, help="per stream")
    parser.add_argument("--isl", type=int, default=1000)
    parser.add_argument("--osl", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a rehearsal: 4 streams, 2 short requests each, 2 rounds")
    parser.add_argument("--serve", nargs=argparse.REMAINDER, default=[], help="last: further arguments of vllm serve")
    asked = parser.parse_args()
    if asked.small:
        asked.concurrency, asked.requests, asked.isl, asked.osl, asked.rounds = [4], 2, 64, 32, 2
    # So that a server that was started here ends with this script.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    print(f"{date.today()}, {os.cpu_count()} CPUs, Python {platform.python_version()}", end=", ")
    print(f"pytest-speedbench {version('pytest-speedbench')}", end=", ")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if asked.emulator:
            asked.base_url = stack.enter_context(emulator(folder, *EMULATED))
        engine, url = stack.enter_context(serving(asked, folder))
        print(f"vllm {json.loads(fetcher(url)('/version'))['version']}", end=", ")
        print(f"{(asked.dummy_8b and 'Llama-3.1-8B-shaped dummy') or asked.model or asked.base_url}")
        print(f"{asked.isl} prompt and {asked.osl} output tokens, {asked.requests} requests per stream", end=", ")
        print(f"{asked.rounds} rounds of ours, theirs, theirs, ours\n", flush=True)
        print("| streams | metric | ours | vllm bench serve | difference | 95 % interval | within 1 % |")
        print("| ---: | --- | ---: | ---: | ---: | --- | --- |")
        for concurrency in asked.concurrency:
            sampling = Sampling(asked.osl, ignore_eos=True)
            load = Load(conversations(concurrency * asked.requests, asked.isl), concurrency, sampling, 600.0, 0)
            ours(engine, url, load)
            rounds = []
            for _ in range(asked.rounds):
                before = ours(engine, url, load)
                between = [theirs(engine, url, load, asked, folder) for _ in range(2)]
                after = ours(engine, url, load)
                for (own, sizes), (other, their_sizes) in ((before, between[0]), (after, between[1])):
                    if sizes != their_sizes:
                        raise SystemExit(f"other (prompt, output) tokens: ours {sizes}, theirs {their_sizes}")
                    rounds.append((own, other))
            compare(concurrency, rounds)
    print(f"\n{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()

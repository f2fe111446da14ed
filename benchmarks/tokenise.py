"""Time and memory of encoding a cell of 512 prompts of 32,000 tokens, fresh and from the cache.

    python benchmarks/tokenise.py {fresh,cached} [FOLDER]

The text is that of the bundled throughput prompts, in another order for every prompt; the tokenizer is
the bundled model's. ``cached`` keeps its file in FOLDER: the first run writes it, the next one reads it.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import time
from pathlib import Path

import pytest_speedbench.data
from pytest_speedbench.engines import embedded
from pytest_speedbench.token_cache import TokenCache
from pytest_speedbench.tokenize import load

PROMPTS, CHARACTERS = 512, 125_000


def rows() -> list[tuple[str, str]]:
    mini = Path(pytest_speedbench.data.__file__).parent / "mini"
    lines = [line for path in sorted(mini.glob("throughput_*.jsonl")) for line in path.read_text("utf-8").splitlines()]
    texts = [json.loads(line)["turns"][0] for line in lines]
    chance = random.Random(0)
    return [(f"q{i}", f"{i} " + "\n\n".join(chance.sample(texts, len(texts)))[:CHARACTERS]) for i in range(PROMPTS)]


def main() -> None:
    cache = TokenCache(Path(sys.argv[2]) if sys.argv[1] == "cached" else None)
    tokenizer, prompts = load(str(embedded.find_model())), rows()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    ids = tokenizer.first_ids(prompts, cache)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{len(ids)} prompts, {sum(map(len, ids)):,} tokens: {wall:.2f} s ({cpu:.2f} s of CPU), "
        f"memory {before / 1024:.0f} MiB before, {peak / 1024:.0f} MiB at most"
    )


if __name__ == "__main__":
    main()

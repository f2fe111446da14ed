"""How long the selection takes and what it needs, and how much its two steps gain on a real pool.

    python benchmarks/curation.py [CANDIDATES DIMENSIONS K]
    python benchmarks/curation.py POOL.jsonl [--embedder WHICH] [--starts N]

The first measures one category of random vectors in 200 clusters, which is memory and arithmetic as in a
real one: time of the selection alone, peak memory of the whole process. The second repeats the selection of
each category from N starts, since greedy and swaps depend on where they start.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from pytest_speedbench.data import curation, embedding, pool

K = 80


def machine() -> str:
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return (
        f"{dt.date.today()} · Python {platform.python_version()} · numpy {np.__version__} "
        f"({blas['name']} {blas['version']}) · {os.cpu_count()} CPUs"
    )


def scale(n: int, d: int, k: int) -> None:
    rng = np.random.default_rng(0)
    ids = [f"{i:08d}" for i in rng.permutation(n)]
    centres = rng.standard_normal((200, d), np.float32)
    # A direction that all have in common, as embeddings of one category do: it is what leaves swaps to make.
    raw = 1.2 * rng.standard_normal((n, d), np.float32) + np.float32(0.5)
    for start in range(0, n, 4096):
        raw[start : start + 4096] += centres[rng.integers(200, size=len(raw[start : start + 4096]))]
    began = time.perf_counter()
    vectors = curation.unit_vectors(raw, ids)
    found = curation.select(vectors, ids, k, seed=0)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(machine())
    print(
        f"{n} candidates × {d}, k = {k}: {seconds:.1f} s, {found.swaps} swaps, peak memory of the process "
        f"{peak / 2**20:.0f} MiB"
    )


def starts(path: Path, which: str, number: int) -> None:
    by_category = pool.read_pool(path).by_category()
    texts = [pool.text_of(row) for rows in by_category.values() for row in rows]
    source = embedding.embedder_of(which, os.environ)
    vectors = embedding.embed(texts, source, embedding.cache_folder(os.environ), agree=_consent)
    print(f"{machine()} · {source.name} · k = {K} · {number} starts\n")
    print("| category | random | greedy | greedy + swaps | lowest | swaps | starts improved |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    first = 0
    for category, rows in by_category.items():
        ids = [row.question_id for row in rows]
        unit = curation.unit_vectors(vectors[first : first + len(rows)], ids)
        first += len(rows)

        def mean(positions: tuple[int, ...], unit: curation.Vectors = unit) -> float:
            return curation.mean_similarity(unit[list(positions)]) or 0.0

        found = [curation.select(unit, ids, K, seed) for seed in range(number)]
        random = statistics.fmean(mean(curation.random_sample(ids, K, seed)) for seed in range(number))
        greedy = statistics.fmean(mean(s.greedy) for s in found)
        chosen = [mean(s.chosen) for s in found]
        print(
            f"| {category} | {random:.4f} | {greedy:.4f} | {statistics.fmean(chosen):.4f} | {min(chosen):.4f} | "
            f"{min(s.swaps for s in found)}–{max(s.swaps for s in found)} | "
            f"{sum(s.swaps > 0 for s in found)} of {number} |"
        )


def _consent(notice: str) -> None:
    raise SystemExit(f"{notice}. Run speedbench data curate first, which asks and keeps the vectors")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the selection of speedbench data curate.")
    parser.add_argument("what", nargs="*", help="CANDIDATES DIMENSIONS K (default: 100000 384 80), or a pool")
    parser.add_argument("--embedder", default=embedding.MINILM)
    parser.add_argument("--starts", type=int, default=20)
    args = parser.parse_args()
    if len(args.what) == 1:
        starts(Path(args.what[0]), args.embedder, args.starts)
    else:
        scale(*map(int, args.what or (100_000, 384, K)))


if __name__ == "__main__":
    main()

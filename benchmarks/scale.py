"""Reducing what a large run has measured: seconds and peak memory, in a process of its own.

    python benchmarks/scale.py [--conversations 1536] [--tokens 4096] [--cells 15]

First one cell with all of the conversations, then CELLS cells that share them, each reduced to all of its metrics with
intervals from 10,000 resamples over conversations. Steps of 1 to 4 tokens come every 25 ms with some noise.
Making up the turns is not counted, but they are in memory, as they are after a run.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import resource
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version

from pytest_speedbench.cells import Cell
from pytest_speedbench.measure.samples import Client, Counters, Steps, Turn, Window
from pytest_speedbench.measure.summary import summarise

STEP_NS = 25_000_000
DRAFTS = 3


def turn(number: int, tokens: int) -> Turn:
    dice = random.Random(number)
    lengths, left = [], tokens - 1
    while left:
        lengths.append(min(left, dice.randint(1, DRAFTS + 1)))
        left -= lengths[-1]
    now, times = number * 1_000_000, []
    for _ in range(len(lengths) + 1):
        now += STEP_NS + dice.randrange(2_000_000)
        times.append(now)
    events = tuple(times)
    steps = Steps(tuple(lengths), tokens - 1 - len(lengths), DRAFTS * len(lengths))
    ids = tuple(32 + i % 90 for i in range(tokens))
    start = number * 1_000_000
    return Turn(
        f"q{number}", "x", 0, 1000, tokens, "length", start, events, (1, *lengths), events, steps, None, output_ids=ids
    )


def window(first: int, number: int, tokens: int) -> Window:
    turns = tuple(turn(first + i, tokens) for i in range(number))
    ends = [one.event_ns[-1] for one in turns]
    accepted = sum(one.steps.accepted or 0 for one in turns if one.steps)
    drafted = sum(one.steps.drafted or 0 for one in turns if one.steps)
    counters = Counters(accepted=accepted, drafted=drafted)
    cell = Cell("throughput", number, isl="1k", difficulty="mixed")
    planned = tuple((one.question_id, 1) for one in turns)
    return Window(cell, planned, turns, (), counters, Client(0.0, 0.0), (min(ends) // 2, min(ends)))


def measure(number: int, tokens: int, cells: int) -> None:
    share = number // cells
    windows = [window(cell * share, share, tokens) for cell in range(cells)]
    began, cpu = time.perf_counter(), time.process_time()
    metrics = [summarise(one, seed_parts=(str(i),))[0] for i, one in enumerate(windows)]
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    assert all(found["acceptance_length"].low is not None for found in metrics)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    events = sum(len(one.event_ns) for each in windows for one in each.turns)
    print(
        f"{cells} × {share} conversations × {tokens} tokens ({events / 1e6:.1f} M events): {seconds:.1f} s "
        f"({cpu_s:.1f} s of CPU), peak memory of the process {peak / 2**20:.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--conversations", type=int, default=1536)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--cells", type=int, default=15)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.here:
        measure(asked.conversations, asked.tokens, asked.cells)
        return
    print(f"{date.today()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, numpy {version('numpy')}")
    for cells in dict.fromkeys((1, asked.cells)):
        sizes = ["--conversations", str(asked.conversations), "--tokens", str(asked.tokens), "--cells", str(cells)]
        subprocess.run([sys.executable, __file__, *sizes, "--here"], check=True)


if __name__ == "__main__":
    main()

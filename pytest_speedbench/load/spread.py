"""Sending a load from as many processes as it needs: this one for few streams, workers for many."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pytest_speedbench.engines.base import Engine
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.load.client import StreamingClient
from pytest_speedbench.load.driver import Ended, Load, LocalChat, Played, Progress, Sent, Share, Tally, drive, shares
from pytest_speedbench.load.worker import Answer, Asked, ClockAsked, Go, Job, Prepared, Reported, packed, received
from pytest_speedbench.measure.samples import Failure
from pytest_speedbench.tokenize import ChatTokenizer

STREAMS_PER_PROCESS = 128
"""An event takes 20 to 30 µs of a CPU (benchmarks/load.py): at a step of 8 ms, which is fast for such a batch, 128
streams take 0.4 of one."""
RESERVED_DESCRIPTORS = 32
"""For what a process opens beside its streams and what it has open already."""
SILENT_S = 60.0
"""A worker says something at least once per deadline of a turn; when it is silent for this much longer it hangs."""
_END_S = 5.0
_DESCRIPTOR_FOLDERS = (Path("/proc/self/fd"), Path("/dev/fd"))
_CLOCK_ROUNDS = 16
_READ_LIMIT = 1 << 20
_SHOWN_CHARACTERS = 300


def send(
    engine: Engine,
    base_url: str,
    tokenizer: ChatTokenizer,
    load: Load,
    *,
    progress: Progress,
    workers: int | None = None,
) -> Sent:
    """Play a load from ``workers`` processes, by default as many as its streams need and the machine has.

    Raises ConfigError when the limit on open files is too low for its streams, before anything is sent: in an
    open loop for all that may pile up.
    """
    # What a server is sized for is what it streams at once, whatever piles up in front of it.
    number = workers_for(min(load.concurrency, load.streams), _cpus()) if workers is None else workers
    require_descriptors(math.ceil(load.streams / number), open_loop=load.arrivals is not None)

    async def here() -> Sent:
        async with StreamingClient(engine, base_url, concurrency=load.concurrency) as client:
            return await drive(client, tokenizer, load, progress=progress)

    return asyncio.run(here() if number == 1 else spread(engine, base_url, tokenizer, load, number, progress=progress))


def workers_for(streams: int, cpus: int) -> int:
    """Number of processes: one per ``STREAMS_PER_PROCESS``, but no more than half of the CPUs, since engines need some.

    1 is this process alone.
    """
    return max(1, min(math.ceil(streams / STREAMS_PER_PROCESS), cpus // 2))


def require_descriptors(streams: int, *, open_loop: bool = False) -> None:
    """See to it that this process, and each that it starts, can open ``streams`` sockets.

    Raises the soft limit if that does it, else ConfigError.
    """
    needed = streams + RESERVED_DESCRIPTORS + _open_descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError(
            f"{streams} streams at once need {needed} open files, and the limit is {hard}; "
            "raise it (ulimit -n, LimitNOFILE of systemd, --ulimit nofile of docker) or lower "
            + ("--speedbench-prompts (arrivals do not wait)" if open_loop else "--speedbench-concurrency")
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _open_descriptors() -> int:
    return next((len(list(folder.iterdir())) for folder in _DESCRIPTOR_FOLDERS if folder.is_dir()), 256)


def _cpus() -> int:
    with contextlib.suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(slots=True)
class _Worker:
    """A process and what is known of its share. ``reached`` is the turn at which the conversation at a place is."""

    share: Share
    process: subprocess.Popen[bytes]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    errors: IO[bytes]
    silent_s: float
    reached: list[int]
    played: Played | None = None
    clock_error_s: float = 0.0
    over: set[int] = field(default_factory=set)

    async def next(self) -> object:
        """Its next message; None when it has died, or hangs and is killed."""
        try:
            return await asyncio.wait_for(received(self.reader), self.silent_s)
        except asyncio.TimeoutError:
            self.process.kill()
        except (OSError, EOFError):
            pass
        return None

    def unfinished(self) -> Iterator[tuple[int, Failure]]:
        """A failure for each conversation that is not over."""
        try:
            code = self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().decode("utf-8", "replace").strip().splitlines()
        said = f": {lines[-1][:_SHOWN_CHARACTERS]}" if lines else ""
        message = f"the worker process of the load client that played it ended with {code}{said}"
        for place, conversation in enumerate(self.share.conversations):
            if place not in self.over:
                yield place, Failure(conversation.question_id, self.reached[place], "worker_died", message)


async def spread(
    engine: Engine, base_url: str, tokenizer: ChatTokenizer, load: Load, number: int, *, progress: Progress
) -> Sent:
    """Play a load from ``number`` worker processes, which begin together.

    What a worker that dies has not finished is failures (``worker_died``); the others go on. No worker
    outlives this call, nor this process.
    """
    parts = shares(load, number)
    tally = Tally(sum(len(part.conversations) for part in parts), progress)
    async with contextlib.AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(_worker(Job(engine, base_url, part), load.deadline_s)) for part in parts
        ]
        await asyncio.gather(*map(_prepared, workers))
        for worker in workers:
            worker.writer.write(packed(Go()))
        await asyncio.gather(*(_follow(worker, tokenizer, tally) for worker in workers))
    played = [worker.played for worker in workers if worker.played is not None]
    return tally.sent(
        played,
        workers=number,
        open_loop=load.arrivals is not None,
        clock_error_s=max(worker.clock_error_s for worker in workers),
    )


@contextlib.asynccontextmanager
async def _worker(job: Job, deadline_s: float) -> AsyncIterator[_Worker]:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours, limit=_READ_LIMIT)
    # Not by fork: this process has threads. Not by multiprocessing: that would run the caller's main script again.
    code = f"import sys; sys.path[:] = {sys.path!r}; from pytest_speedbench.load.worker import main; main()"
    with tempfile.TemporaryFile() as errors:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", code, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                # Ctrl-C is for this process; it ends its workers.
                start_new_session=True,
            )
        try:
            writer.write(packed(job))
            silent_s = deadline_s + SILENT_S
            yield _Worker(job.share, process, reader, writer, errors, silent_s, [0] * len(job.share.conversations))
        finally:
            process.kill()
            process.wait()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _prepared(worker: _Worker) -> None:
    """Wait until it can begin, and compare clocks: it read its own some time between a question and its answer."""
    if not isinstance(await worker.next(), Prepared):
        return
    errors: list[int] = []
    for _ in range(_CLOCK_ROUNDS):
        before = time.perf_counter_ns()
        worker.writer.write(packed(ClockAsked()))
        theirs = await worker.next()
        after = time.perf_counter_ns()
        if not isinstance(theirs, int):
            return
        middle = (before + after) // 2
        errors.append(max(abs(theirs - middle), (after - before) // 2))
    worker.clock_error_s = min(errors) / 1e9


async def _follow(worker: _Worker, tokenizer: ChatTokenizer, tally: Tally) -> None:
    """Take what a worker reports until it is done or dead."""
    chat = LocalChat(tokenizer)
    while True:
        message = await worker.next()
        if isinstance(message, Reported):
            if isinstance(message.item, Ended):
                worker.over.add(message.place)
            else:
                worker.reached[message.place] += 1
            tally.add(message.place, message.item)
        elif isinstance(message, Asked):
            content = await (chat.decode(message.ids) if message.messages is None else chat.ids(message.messages))
            worker.writer.write(packed(Answer(message.number, content)))
        elif isinstance(message, Played):
            worker.played = message
            return
        else:
            for place, failure in worker.unfinished():
                tally.add(place, failure)
                tally.add(place, Ended())
            return

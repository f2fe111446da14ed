"""Load from several processes: the same requests, exact concurrency, and nothing lost with a process that dies."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.engines.base import Profile, Sampling, Speculation
from pytest_speedbench.engines.vllm import Vllm
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.load import spread
from pytest_speedbench.load.client import fetcher
from pytest_speedbench.load.driver import Conversation, Load, Sent, shares
from pytest_speedbench.load.own_state import achieved
from pytest_speedbench.load.spread import STREAMS_PER_PROCESS, send, workers_for
from pytest_speedbench.measure.samples import Turn
from tests.emulator.llamacpp import Emulator, Script, serving, text_of
from tests.unit import test_load_faults as faults
from tests.unit.test_driver import ENGINE, REPLY, Mute, conversations, measured, tokenizer

SOURCE = Path(__file__).parents[2] / "benchmarks" / "emulator" / "emulator.c"
RECORD = np.dtype([("prompt", "<u4"), ("request", "<u4"), ("kind", "<u4"), ("tokens", "<u4"), ("ns", "<u8")])
TOKENS = 41


def play(
    base_url: str,
    what: Sequence[Conversation],
    *,
    concurrency: int,
    workers: int,
    engine: object = ENGINE,
    osl_cap: int = 64,
    repeats: int = 1,
    deadline_s: float = 30.0,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Sent:
    load = Load(tuple(what), concurrency, Sampling(osl_cap), deadline_s, 0, repeats=repeats)
    return send(engine, base_url, tokenizer(), load, progress=progress, workers=workers)  # type: ignore[arg-type]


# How a load is split


@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 50), st.integers(1, 6))
def test_shares_are_even_and_make_up_the_load(number: int, repeats: int, concurrency: int, workers: int) -> None:
    what = tuple(Conversation(f"q{i}", "x", ("x",), (i,)) for i in range(number))
    load = Load(what, concurrency, Sampling(1), 1.0, 7, repeats=repeats)
    (whole,) = shares(load)
    parts = shares(load, workers)
    assert sum(part.concurrency for part in parts) == concurrency
    for counts in ([part.concurrency for part in parts], [len(part.conversations) for part in parts]):
        assert max(counts) - min(counts) <= 1
    # One order, dealt out like cards: the first that are sent are the same whatever the number of workers.
    dealt = [part.conversations[i] for i in range(number * repeats) for part in parts if i < len(part.conversations)]
    assert tuple(dealt) == whole.conversations


@pytest.mark.parametrize(
    ("streams", "cpus", "workers"),
    [
        (1, 64, 1),
        (STREAMS_PER_PROCESS, 64, 1),
        (STREAMS_PER_PROCESS + 1, 64, 2),
        (4 * STREAMS_PER_PROCESS, 64, 4),
        (4 * STREAMS_PER_PROCESS, 6, 3),
        (4 * STREAMS_PER_PROCESS, 2, 1),
        (4 * STREAMS_PER_PROCESS, 1, 1),
    ],
)
def test_number_of_workers(streams: int, cpus: int, workers: int) -> None:
    assert workers_for(streams, cpus) == workers


# The same load


@contextlib.contextmanager
def streaming(folder: Path, *options: str) -> Iterator[str]:
    """The emulator in C, which logs the truth of every event to ``folder``/log."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) for the emulator")
    program = folder / "emulator"
    subprocess.run([compiler, "-O1", "-o", str(program), str(SOURCE)], check=True)
    process = subprocess.Popen([str(program), "-l", str(folder / "log"), *options], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.terminate()
        process.communicate()


@pytest.mark.parametrize("workers", [1, 3])
def test_every_event_of_many_streams_comes_back_once_and_in_time(workers: int, tmp_path: Path) -> None:
    what = [Conversation(f"q{i}", "x", ("x",), (i, 7, 8)) for i in range(120)]
    with streaming(tmp_path, "-s", "1000", "-f", "2000", "-p", "1,4,2") as url:
        engine = Vllm(Profile("v", "vllm", "speedbench", Speculation("ngram", 4), base_url=url))
        engine.describe(fetcher(url))
        sent = play(url, what, concurrency=60, workers=workers, engine=engine, osl_cap=TOKENS)
        counters = engine.counters(fetcher(url))
    assert sent.failures == ()
    assert measured(sent) == sorted((c.question_id, 0) for c in what)
    assert (counters.output_tokens, counters.prompt_tokens) == (120 * TOKENS, 120 * 3)
    log = np.fromfile(tmp_path / "log", RECORD)
    for turn in sent.turns:
        own = log[log["prompt"] == int(turn.question_id[1:])]
        request, events = own[own["kind"] == 0], own[own["kind"] == 1]
        assert sum(turn.event_tokens) == TOKENS == events["tokens"].sum()
        # Events that wait together are one here; a stamp is never before what it stamps.
        ends = np.cumsum(turn.event_tokens)
        arrived = events["ns"][np.searchsorted(np.cumsum(events["tokens"]), ends)]
        assert (np.asarray(turn.event_ns) >= arrived.astype(np.int64)).all()
        assert turn.start_ns <= int(request["ns"][0])
    assert sent.client.workers == workers
    # On a busy machine one worker can be through before another has begun.
    if workers == 1:
        assert sent.steady_ns is not None
    if sent.steady_ns is not None:
        assert sent.client.concurrency_mean is not None
        assert 0 < sent.client.concurrency_mean <= 60
    if sys.platform == "linux":
        assert sent.client.kernel_stamped is not None
        assert sent.client.kernel_stamped > 0


@pytest.mark.parametrize(("concurrency", "number", "workers"), [(7, 40, 3), (4, 9, 2), (3, 3, 3)])
def test_workers_hold_exactly_the_asked_concurrency_together(concurrency: int, number: int, workers: int) -> None:
    seen: list[tuple[int, int]] = []
    # No answer before the asked number is in flight.
    with serving(REPLY, hold=lambda in_flight, begun: begun >= concurrency) as emulator:
        sent = play(
            emulator.base_url,
            conversations(number),
            concurrency=concurrency,
            workers=workers,
            progress=lambda *done: seen.append(done),
        )
        assert emulator.peak == concurrency
    assert sent.failures == ()
    assert measured(sent) == sorted((f"q{i}", 0) for i in range(number))
    assert seen == [(i, number) for i in range(1, number + 1)]
    assert (sent.client.workers, sent.client.clock_error_s is not None) == (workers, True)


def test_without_enough_conversations_there_is_no_steady_window() -> None:
    with serving(REPLY) as emulator:
        sent = play(emulator.base_url, conversations(5), concurrency=6, workers=2)
    assert len(sent.turns) == 5
    assert (sent.steady_ns, sent.client.concurrency_mean, sent.client.concurrency_min) == (None, None, None)


@pytest.mark.parametrize("engine", [ENGINE, Mute(ENGINE._profile)])
def test_later_turns_are_tokenised_in_the_parent_and_the_same(engine: object) -> None:
    sent_texts = []
    what = conversations(4, "Where", "Why", "How")
    for workers in (1, 2):
        reply = Script.of("Because of the 湖.", draft=4, accept=(1,)) if engine is ENGINE else REPLY
        with serving(reply) as emulator:
            sent = play(emulator.base_url, what, concurrency=2, workers=workers, engine=engine)
            sent_texts.append(sorted(text_of(request.ids) for request in emulator.requests))
        assert sent.failures == ()
        assert measured(sent) == sorted((f"q{i}", turn) for i in range(4) for turn in range(3))
    assert sent_texts[0] == sent_texts[1]


def test_a_failed_turn_in_a_worker_is_recorded_and_the_others_go_on() -> None:
    bad = Script.of("never finished", fault="cut")
    with Emulator(lambda request: bad if "Two 3" in text_of(request.ids) else REPLY) as emulator:
        sent = play(emulator.base_url, conversations(6, "One", "Two"), concurrency=4, workers=2)
    assert [(f.question_id, f.index, f.reason) for f in sent.failures] == [("q3", 1, "stream_cut")]
    assert len(sent.turns) == 11


# Processes that die


def workers_of(parent: int) -> list[psutil.Process]:
    found = psutil.Process(parent).children()
    return [child for child in found if any("pytest_speedbench.load.worker" in word for word in child.cmdline())]


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, "-9"), (signal.SIGSTOP, "-9")])
def test_a_worker_that_dies_or_hangs_costs_what_it_had_not_finished(
    number: signal.Signals, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread, "SILENT_S", 1.0)
    first, held, released = threading.Barrier(4), threading.Semaphore(0), threading.Event()

    # The first two of each worker are answered, the other two held until one worker is gone.
    def before(request: int) -> None:
        if request < 4:
            first.wait()
        else:
            held.release()
            released.wait()

    def end_one() -> None:
        for _ in range(4):
            held.acquire()
        workers_of(os.getpid())[0].send_signal(number)
        released.set()

    with faults.answering(faults.raw(*faults.GOOD), before=before) as url:
        ending = threading.Thread(target=end_one)
        ending.start()
        sent = faults.play(url, number=8, concurrency=4, workers=2, deadline_s=5.0)
        ending.join()
    assert [failure.reason for failure in sent.failures] == ["worker_died"] * len(sent.failures)
    assert all(f"ended with {code}" in failure.message for failure in sent.failures)
    assert (len(sent.turns), len(sent.failures)) == (6, 2)
    names = [turn.question_id for turn in sent.turns] + [failure.question_id for failure in sent.failures]
    assert sorted(names) == [f"q{i}" for i in range(8)]
    assert sent.steady_ns is None
    assert workers_of(os.getpid()) == []


def test_a_worker_that_cannot_begin_says_why() -> None:
    class Local(Mute):
        """Cannot be found by another process."""

    with pytest.raises(Exception, match="Local"):
        play("http://127.0.0.1:9", conversations(2), concurrency=2, workers=2, engine=Local(ENGINE._profile))
    broken = Mute(ENGINE._profile)
    broken.decoder = None  # type: ignore[assignment,method-assign]
    with serving(REPLY) as emulator:
        sent = play(emulator.base_url, conversations(4), concurrency=2, workers=2, engine=broken)
    assert [failure.reason for failure in sent.failures] == ["worker_died"] * 4
    assert "ended with 1: TypeError: 'NoneType' object is not callable" in sent.failures[0].message


PARENT = """
import sys
from tests.unit import test_load_faults as faults
from tests.unit.test_driver import conversations
from tests.unit.test_load_spread import play
play(sys.argv[1], conversations(4), concurrency=4, workers=2, deadline_s=600.0)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(number: signal.Signals) -> None:
    with serving(REPLY, hold=lambda in_flight, begun: False) as emulator:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, emulator.base_url],
            env=environment,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        until(lambda: len(emulator.requests) == 4, "all requests")
        workers = workers_of(parent.pid)
        assert len(workers) == 2
        parent.send_signal(number)
        parent.wait()
        until(lambda: not any(worker.is_running() for worker in workers), "the end of the workers")


# What a process needs


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_soft_limit_on_open_files_is_raised() -> None:
    code = """
import resource
from pytest_speedbench.load.spread import require_descriptors
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
require_descriptors(10)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
require_descriptors(200)
soft, kept = resource.getrlimit(resource.RLIMIT_NOFILE)
print(230 < soft < 300, kept == hard)
"""
    assert run(code).split() == ["64", "True", "True"]


def test_a_hard_limit_that_is_too_low_is_said_before_anything_is_sent() -> None:
    code = """
import resource
from pytest_speedbench.errors import ConfigError
from tests.unit import test_load_faults as faults
from tests.unit.test_driver import conversations
from tests.unit.test_load_spread import play
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
try:
    play("http://127.0.0.1:9", conversations(300), concurrency=300, workers=2)
except ConfigError as error:
    print(error)
"""
    said = run(f"import sys; sys.path[:] = {sys.path!r}\n{code}")
    assert said.startswith("150 streams at once need 1")
    assert "open files, and the limit is 128; raise it (ulimit -n" in said
    assert issubclass(ConfigError, Exception)


def test_a_worker_loads_nothing_heavy() -> None:
    loaded = set(run("import pytest_speedbench.load.worker, sys; print(*sys.modules)").split())
    assert not loaded & {"transformers", "tokenizers", "numpy", "httpx", "aiohttp", "pytest", "multiprocessing"}


# Achieved concurrency


def turn(start_ns: int, end_ns: int) -> Turn:
    return Turn("q", "x", 0, 1, 1, "stop", start_ns, (end_ns,), (1,), (end_ns,), None, "")


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        # Two throughout, the second stream replaced at once.
        ([(0, 100), (0, 50), (50, 100)], (2.0, 2)),
        # 20 of 100 ns with one.
        ([(0, 100), (0, 40), (60, 100)], (1.8, 1)),
        # What is before or after does not count.
        ([(-50, 500), (-90, -10), (100, 200)], (1.0, 1)),
        # Nothing for the last quarter.
        ([(0, 75)], (0.75, 0)),
        ([], (0.0, 0)),
    ],
)
def test_achieved_concurrency(turns: list[tuple[int, int]], expected: tuple[float, int]) -> None:
    assert achieved([turn(*span) for span in turns], (0, 100)) == expected
    assert achieved([turn(*span) for span in turns], None) == (None, None)

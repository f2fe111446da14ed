"""Looks at the engine's GPUs twice a second while a window is measured, in a thread of its own."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from pytest_speedbench.engines.gpu_sensor import NvmlSensor
from pytest_speedbench.measure.gpu_record import Card, GpuErrors, GpuSample, GpuWindow
from pytest_speedbench.measure.gpu_validity import summarise

EVERY_S = 0.5
"""A breach is three samples in a row: 1.5 s of slow clocks are seen, and what is over sooner does not matter."""
STOP_S = 5.0
"""How long the driver may take with its last answer. One that takes longer hangs, and must not hang the run."""


@dataclass(slots=True)
class _Watched:
    """One GPU while it is watched. ``own`` holds what is known of processes, asked once for each."""

    sensor: NvmlSensor
    card: Card
    ecc_before: int | None = None
    listens: bool = False
    errors: GpuErrors = field(default_factory=GpuErrors)
    samples: list[GpuSample] = field(default_factory=list)
    own: dict[int, bool] = field(default_factory=dict)


class GpuWatch:
    """The samples of some GPUs. ``own`` says whether a process belongs to the engine.

    ``begin``, ``sample`` and ``end`` are for one thread at a time; ``watched`` calls them.
    """

    def __init__(
        self, sensors: Sequence[NvmlSensor], own: Callable[[int], bool], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._own = own
        self._clock = clock
        self._gpus = [_Watched(sensor, Card(sensor.index, sensor.uuid)) for sensor in sensors]
        self._stuck = False

    def begin(self) -> None:
        """Read what does not change, and the error counters, and take the first sample."""
        for gpu in self._gpus:
            gpu.card = gpu.sensor.card()
            gpu.ecc_before = gpu.sensor.uncorrected_errors()
            gpu.listens = gpu.sensor.listen()
        self.sample()

    def sample(self) -> None:
        """Look at every GPU once."""
        for gpu in self._gpus:
            gpu.samples.append(gpu.sensor.sample(self._clock(), partial(self._is_own, gpu.own)))

    def end(self) -> None:
        """Take the last sample, and read the error counters again."""
        self.sample()
        for gpu in self._gpus:
            ecc = _new(gpu.ecc_before, gpu.sensor.uncorrected_errors())
            gpu.errors = GpuErrors(ecc, gpu.sensor.xids() if gpu.listens else None)
            gpu.sensor.close()

    def windows(self) -> tuple[GpuWindow, ...]:
        """What was seen, one per GPU, in their order."""
        late = {"an answer in time": f"it took more than {STOP_S:.0f} s"} if self._stuck else {}
        return tuple(
            summarise(tuple(gpu.samples), gpu.card, gpu.errors, {**gpu.sensor.refused, **late}) for gpu in self._gpus
        )

    def give_up(self) -> None:
        """Note that the driver did not answer any more."""
        self._stuck = True

    def _is_own(self, known: dict[int, bool], pid: int) -> bool:
        if pid not in known:
            known[pid] = self._own(pid)
        return known[pid]


def _new(before: int | None, after: int | None) -> int | None:
    """How much was counted between two readings. A counter that went back was reset, and all in it is new."""
    if before is None or after is None:
        return None
    return after - before if after >= before else after


@contextlib.contextmanager
def watched(
    sensors: Sequence[NvmlSensor], own: Callable[[int], bool], *, every_s: float = EVERY_S
) -> Iterator[GpuWatch]:
    """Watch GPUs while the block runs; its ``windows`` are complete after that. Without a GPU nothing is done.

    The first sample is taken before the block begins: to tell whose a process is takes the interpreter for longer than
    a load client should wait. The thread never keeps the process alive: a driver that hangs is waited for 5 s before
    and after the block. It keeps that thread and its ``sensors``, so those are for one block alone.
    """
    watch = GpuWatch(sensors, own)
    if not sensors:
        yield watch
        return
    begun, done = threading.Event(), threading.Event()

    def look() -> None:
        try:
            watch.begin()
        finally:
            begun.set()
        while not done.wait(every_s):
            watch.sample()
        watch.end()

    thread = threading.Thread(target=look, name="gpus", daemon=True)
    thread.start()
    try:
        begun.wait(STOP_S)
        yield watch
    finally:
        done.set()
        thread.join(STOP_S)
        if thread.is_alive():
            watch.give_up()

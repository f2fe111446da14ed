"""The sampler against an emulated NVML, whose card goes through a script: what it did is known, and must be seen."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from pytest_speedbench.engines.gpu_sensor import NvmlSensor
from pytest_speedbench.engines.gpu_watch import GpuWatch, watched
from pytest_speedbench.engines.gpus import Gpu, Nvml
from pytest_speedbench.measure.gpu_record import Card, ClockEvent, GpuErrors, GpuProcess, GpuWindow, Spread
from pytest_speedbench.measure.gpu_validity import notes, problems, timing_problem

GIB = 2**30
UUID = "GPU-4480ec8a-8a33-9c78"
ENGINE, WORKER, OTHER = 431, 432, 977


@dataclass(frozen=True)
class State:
    """A card at a moment, in NVML's units. ``processes`` are (pid, bytes or None, percent of the SMs)."""

    sm: int = 1980
    events: int = 0
    milliwatts: int = 290_000
    limit: int = 700_000
    celsius: int = 40
    percent: int = 75
    used: int = 5 * GIB
    processes: tuple[tuple[int, int | None, int], ...] = ((ENGINE, 4 * GIB, 99),)


IDLE = State(sm=345, events=int(ClockEvent.IDLE), milliwatts=70_000, percent=0, processes=((ENGINE, 4 * GIB, 0),))


@dataclass
class EmulatedNvml:
    """The functions of pynvml that are used, over a script: one state per half second, the last one stays.

    Errors, constants and structures are pynvml's own. ``refuse`` maps functions to the error they end in. ``xids`` and
    ``ecc`` are by half second.
    """

    script: Sequence[State] = (State(),)
    refuse: dict[str, int] = field(default_factory=dict)
    xids: dict[int, int] = field(default_factory=dict)
    ecc: tuple[int, ...] = (0,)
    half_seconds: int = 0
    asked: list[str] = field(default_factory=list)
    event_sets: int = 0
    _pending: list[int] | None = None

    @property
    def state(self) -> State:
        return self.script[min(self.half_seconds, len(self.script) - 1)]

    def advance(self) -> None:
        self.half_seconds += 1
        if self._pending is not None and self.half_seconds in self.xids:
            self._pending.append(self.xids[self.half_seconds])

    def seconds(self) -> float:
        return self.half_seconds / 2

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml") or name.startswith("nvmlEventType"):
            return getattr(pynvml, name)
        answer: Callable[..., Any] = getattr(self, f"_{name}")

        def function(*args: Any) -> Any:
            self.asked.append(name)
            if name in self.refuse:
                raise pynvml.NVMLError(self.refuse[name])
            return answer(*args)

        return function

    def _nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != UUID:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuid

    def _nvmlDeviceGetMaxClockInfo(self, handle: str, kind: int) -> int:
        return {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 2619}[kind]

    _nvmlDeviceGetApplicationsClock = _nvmlDeviceGetMaxClockInfo

    def _nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return {pynvml.NVML_CLOCK_SM: self.state.sm, pynvml.NVML_CLOCK_MEM: 2619}[kind]

    def _nvmlDeviceGetPowerManagementDefaultLimit(self, handle: str) -> int:
        return 700_000

    def _nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:
        return self.state.limit

    def _nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return self.state.milliwatts

    def _nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:
        return self.state.events

    def _nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:
        return self.state.events

    def _nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return self.state.celsius

    def _nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(gpu=self.state.percent)

    def _nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(used=self.state.used)

    def _nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size, _ in self.state.processes]

    def _nvmlDeviceGetProcessUtilization(self, handle: str, since: int) -> list[SimpleNamespace]:
        found = [SimpleNamespace(pid=p, smUtil=u, timeStamp=since + 1) for p, _, u in self.state.processes if u]
        if not found:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return found

    def _nvmlDeviceGetTotalEccErrors(self, handle: str, error: int, counter: int) -> int:
        assert error == pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
        return self.ecc[min(self.half_seconds, len(self.ecc) - 1)]

    def _nvmlEventSetCreate(self) -> str:
        self.event_sets += 1
        return "events"

    def _nvmlDeviceRegisterEvents(self, handle: str, kind: int, events: str) -> None:
        assert kind == pynvml.nvmlEventTypeXidCriticalError
        self._pending = []

    def _nvmlEventSetWait_v2(self, events: str, timeout: int) -> SimpleNamespace:
        if not self._pending:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)
        return SimpleNamespace(eventData=self._pending.pop(0))

    def _nvmlEventSetFree(self, events: str) -> None:
        self.event_sets -= 1


def own(pid: int) -> bool:
    return pid in (ENGINE, WORKER)


def watch(nvml: EmulatedNvml, half_seconds: int, own: Callable[[int], bool] = own) -> GpuWindow:
    """What is kept of so many half seconds."""
    watching = GpuWatch([NvmlSensor(nvml, UUID, 0)], own, clock=nvml.seconds)
    watching.begin()
    for _ in range(half_seconds - 1):
        nvml.advance()
        watching.sample()
    nvml.advance()
    watching.end()
    assert nvml.event_sets == 0
    (window,) = watching.windows()
    return window


def test_a_sound_window() -> None:
    window = watch(EmulatedNvml([IDLE, IDLE, *[State()] * 8]), 10)
    assert window == GpuWindow(
        card=Card(0, UUID, 1980, 1980, 700.0),
        seconds=5.0,
        samples=11,
        working=9,
        sm_mhz=Spread(1980, 1980, 1980),
        memory_mhz=Spread(2619, 2619, 2619),
        events={"idle": 2 / 11},
        reference_mhz=1980,
        power_w=(2 * 70 + 9 * 290) / 11,
        power_limit_w=700.0,
        temperature_c=40,
        utilisation=9 * 0.75 / 11,
        memory_used_bytes=5 * GIB,
        foreign=(),
        hidden_bytes=GIB,
        errors=GpuErrors(ecc=0, xids=()),
    )
    assert problems([window]) == ()
    assert timing_problem([window]) is None
    assert notes([window]) == ()


def test_thermal_slowdown_from_the_third_sample_in_a_row() -> None:
    hot = State(sm=1400, events=int(ClockEvent.SW_THERMAL), celsius=88, milliwatts=500_000)
    for rows, expected in (([hot, hot], None), ([hot, hot, State(), hot, hot], None), ([hot, hot, hot], 3)):
        window = watch(EmulatedNvml([State(), *rows, State()]), 8)
        assert (window.slowed_run if timing_problem([window]) else None) == expected
    reason = timing_problem([window])
    assert reason is not None
    assert reason.code == "gpu_throttled"
    assert reason.message == (
        "GPU 0: thermal slowdown in 3 of 9 samples (SM clock 1400 of 1980 MHz, up to 88 °C, 360 W on average, "
        "limit 700 W)"
    )
    assert problems([window]) == ()


def test_a_process_of_others_is_seen_in_a_single_sample() -> None:
    shared = State(processes=((ENGINE, 4 * GIB, 80), (OTHER, 2 * GIB, 12)))
    window = watch(EmulatedNvml([State(), State(), shared, State()]), 5)
    assert window.foreign == (GpuProcess(OTHER, own=False, memory_bytes=2 * GIB, utilisation=0.12),)
    (reason,) = problems([window])
    assert (reason.code, reason.message) == (
        "gpu_shared",
        "GPU 0: pid 977, which is not of the engine, held 2.0 GiB and used up to 12% of it",
    )


def test_each_process_is_asked_about_once() -> None:
    asked = []

    def counted(pid: int) -> bool:
        asked.append(pid)
        return own(pid)

    watch(EmulatedNvml([State(processes=((ENGINE, GIB, 50), (WORKER, GIB, 50), (OTHER, 1, 0)))]), 6, counted)
    assert sorted(asked) == [ENGINE, WORKER, OTHER]


def test_errors_of_the_card() -> None:
    window = watch(EmulatedNvml(ecc=(4, 4, 6), xids={2: 94, 3: 63}), 5)
    assert window.errors == GpuErrors(ecc=2, xids=(94, 63))
    (reason,) = problems([window])
    assert (reason.code, reason.message) == (
        "gpu_error",
        "GPU 0: 2 new uncorrected memory errors (see nvidia-smi -q -d ECC); GPU 0: the driver reported Xid 94, 63 "
        "(see dmesg)",
    )


def test_errors_before_the_window_are_not_its_own() -> None:
    window = watch(EmulatedNvml(ecc=(7,), xids={-1: 13}), 4)
    assert window.errors == GpuErrors(ecc=0, xids=())


def test_a_counter_that_was_reset() -> None:
    assert watch(EmulatedNvml(ecc=(7, 7, 1)), 4).errors.ecc == 1


def test_a_driver_that_tells_nothing_voids_nothing() -> None:
    functions = [name.removeprefix("_") for name in vars(EmulatedNvml) if name.startswith("_nvmlDevice")]
    nvml = EmulatedNvml(refuse=dict.fromkeys(functions[1:], pynvml.NVML_ERROR_NOT_SUPPORTED))
    window = watch(nvml, 6)
    assert window.card == Card(0, UUID)
    assert (window.samples, window.sm_mhz, window.events, window.errors) == (7, None, None, GpuErrors())
    assert problems([window]) == ()
    assert timing_problem([window]) is None
    assert window.refused.keys() >= {"SM clock", "clock events", "processes", "ECC errors", "Xid events", "power"}
    assert set(window.refused.values()) == {"Not Supported"}
    # What will never be told is not asked for again.
    assert nvml.asked.count("nvmlDeviceGetPowerUsage") == 1
    (note,) = [note for note in notes([window]) if "does not tell" in note]
    assert "ECC errors (Not Supported)" in note


@pytest.mark.parametrize("name", ["nvmlDeviceGetUtilizationRates", "nvmlDeviceGetComputeRunningProcesses"])
def test_a_question_that_failed_once_is_asked_again(name: str) -> None:
    nvml = EmulatedNvml(refuse={name: pynvml.NVML_ERROR_UNKNOWN})
    window = watch(nvml, 4)
    assert nvml.asked.count(name) == 5
    assert set(window.refused.values()) == {"Unknown Error"}


def test_old_drivers_know_clock_events_by_another_name() -> None:
    refuse = {"nvmlDeviceGetCurrentClocksEventReasons": pynvml.NVML_ERROR_FUNCTION_NOT_FOUND}
    window = watch(EmulatedNvml([State(events=int(ClockEvent.HW_SLOWDOWN))], refuse=refuse), 4)
    assert window.events == {"hw_slowdown": 1.0}
    assert timing_problem([window]) is not None


def test_a_gpu_that_is_gone() -> None:
    window = watch(EmulatedNvml(refuse={"nvmlDeviceGetHandleByUUID": pynvml.NVML_ERROR_GPU_IS_LOST}), 3)
    assert window.refused["SM clock"] == "GPU is lost"
    assert problems([window]) == ()


def test_processes_in_another_namespace_are_not_called_foreign() -> None:
    # In a container without the host's process ids the driver shows none, or ids that mean nothing here.
    for processes in ((), ((31337, 4 * GIB, 90),)):
        window = watch(EmulatedNvml([State(processes=processes)]), 4)
        assert window.foreign is None
        assert problems([window]) == ()
        assert notes([window])[0].startswith("GPU 0: the driver shows no process of the engine")


def test_memory_that_nobody_owns_is_noted() -> None:
    window = watch(EmulatedNvml([State(used=9 * GIB)]), 4)
    assert window.hidden_bytes == 5 * GIB
    assert problems([window]) == ()
    assert notes([window]) == (
        "GPU 0: 5.0 GiB were in use all the time that no visible process accounts for; another container may share "
        "the card",
    )


def test_nothing_is_changed_on_the_card() -> None:
    nvml = EmulatedNvml()
    watch(nvml, 4)
    assert nvml.asked
    assert not [name for name in nvml.asked if "Set" in name and not name.startswith("nvmlEventSet")]


# The thread


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "gpus"]


def test_the_thread_samples_and_ends() -> None:
    enough = threading.Event()

    @dataclass
    class Counting(EmulatedNvml):
        def _nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
            if self.asked.count("nvmlDeviceGetMemoryInfo") == 4:
                enough.set()
            return super()._nvmlDeviceGetMemoryInfo(handle)

    nvml = Counting()
    with watched(Nvml(nvml).sensors([Gpu(0, UUID, "", 0, "")]), own, every_s=0.001) as watching:
        assert enough.wait(60)
        assert [thread.daemon for thread in watchers()] == [True]
    (window,) = watching.windows()
    assert not watchers()
    assert window.samples >= 5
    assert nvml.event_sets == 0


def test_whose_the_processes_are_is_known_before_the_block() -> None:
    asked: list[int] = []
    with watched([NvmlSensor(EmulatedNvml(), UUID, 0)], lambda pid: not asked.append(pid), every_s=60):  # type: ignore[func-returns-value]
        assert asked == [ENGINE]


def test_the_thread_ends_when_the_block_fails() -> None:
    def fail() -> None:
        with watched([NvmlSensor(EmulatedNvml(), UUID, 0)], own, every_s=0.001):
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert not watchers()


def test_a_driver_that_hangs_does_not_hang_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    @dataclass
    class Hanging(EmulatedNvml):
        def _nvmlDeviceGetMaxClockInfo(self, handle: str, kind: int) -> int:
            release.wait(60)
            return 1980

    monkeypatch.setattr("pytest_speedbench.engines.gpu_watch.STOP_S", 0.05)
    try:
        with watched([NvmlSensor(Hanging(), UUID, 0)], own) as watching:
            pass
        (window,) = watching.windows()
    finally:
        stuck = watchers()
        release.set()
        for thread in stuck:
            thread.join(60)
    assert len(stuck) == 1
    assert window.samples == 0
    assert "an answer in time" in window.refused
    assert problems([window]) == ()


def test_without_a_gpu_there_is_no_thread() -> None:
    with watched([], own) as watching:
        assert not watchers()
    assert watching.windows() == ()


def test_two_gpus_keep_their_order() -> None:
    busy, quiet = EmulatedNvml(), EmulatedNvml([replace(IDLE, processes=())])
    watching = GpuWatch([NvmlSensor(quiet, UUID, 1), NvmlSensor(busy, UUID, 0)], own)
    watching.begin()
    watching.end()
    assert [(gpu.card.index, gpu.working) for gpu in watching.windows()] == [(1, 0), (0, 2)]

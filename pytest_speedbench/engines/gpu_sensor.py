"""What NVML tells of one GPU while it works. Reads only: no setting of the card is ever changed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, TypeVar

from pytest_speedbench.measure.gpu_record import Card, ClockEvent, GpuProcess, GpuSample

T = TypeVar("T")

_NEVER = ("NotSupported", "NoPermission", "FunctionNotFound", "VgpuEccNotSupported", "Deprecated", "InvalidArgument")
"""Errors that will be the same at the next question."""


class NvmlSensor:
    """One GPU through NVML, whose library is given. What it refuses is None, and noted once in ``refused``.

    ``refused`` maps what was asked for to NVML's own words. A question that will never be answered is not asked
    again. Not for more than one thread at a time.
    """

    def __init__(self, nvml: Any, uuid: str, index: int) -> None:
        self.uuid = uuid
        self.index = index
        self._nvml = nvml
        self._handle: Any = None
        self._events: Any = None
        self._since_us = int(time.time() * 1e6)
        self._given_up: set[str] = set()
        self.refused: dict[str, str] = {}

    def card(self) -> Card:
        """What does not change."""
        nvml = self._nvml
        default = self._ask("default power limit", lambda gpu: nvml.nvmlDeviceGetPowerManagementDefaultLimit(gpu))
        return Card(
            self.index,
            self.uuid,
            sm_max_mhz=self._ask("maximum clock", lambda gpu: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM)),
            sm_application_mhz=self._ask(
                "application clock", lambda gpu: nvml.nvmlDeviceGetApplicationsClock(gpu, nvml.NVML_CLOCK_SM)
            ),
            power_default_w=None if default is None else default / 1000,
        )

    def sample(self, at_s: float, own: Callable[[int], bool]) -> GpuSample:
        """The state now. ``own`` says whether a process belongs to the engine."""
        nvml = self._nvml
        events = self._ask("clock events", self._clock_events)
        power = self._ask("power", lambda gpu: nvml.nvmlDeviceGetPowerUsage(gpu))
        limit = self._ask("power limit", lambda gpu: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu))
        share = self._ask("utilisation", lambda gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu)
        return GpuSample(
            at_s=at_s,
            sm_mhz=self._ask("SM clock", lambda gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)),
            memory_mhz=self._ask("memory clock", lambda gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM)),
            events=None if events is None else ClockEvent(events),
            power_w=None if power is None else power / 1000,
            power_limit_w=None if limit is None else limit / 1000,
            temperature_c=self._ask(
                "temperature", lambda gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)
            ),
            utilisation=None if share is None else share / 100,
            memory_used_bytes=self._ask("memory", lambda gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used),
            processes=self._processes(own),
        )

    def uncorrected_errors(self) -> int | None:
        """Uncorrected ECC errors since the driver was loaded."""
        nvml = self._nvml
        return self._ask(
            "ECC errors",
            lambda gpu: nvml.nvmlDeviceGetTotalEccErrors(
                gpu, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
            ),
        )

    def listen(self) -> bool:
        """Have Xid events kept from now on; whether the driver does that."""
        nvml = self._nvml

        def register(gpu: Any) -> Any:
            events = nvml.nvmlEventSetCreate()
            try:
                nvml.nvmlDeviceRegisterEvents(gpu, nvml.nvmlEventTypeXidCriticalError, events)
            except nvml.NVMLError:
                nvml.nvmlEventSetFree(events)
                raise
            return events

        self._events = self._ask("Xid events", register)
        return self._events is not None

    def xids(self) -> tuple[int, ...]:
        """The numbers of the Xid events since ``listen`` or the last call."""
        found: list[int] = []
        # An event that comes faster than it can be read must not keep this from ending.
        while self._events is not None and len(found) < 100:
            try:
                found.append(int(self._nvml.nvmlEventSetWait_v2(self._events, 0).eventData))
            except self._nvml.NVMLError_Timeout:
                break
            except self._nvml.NVMLError as error:
                self.refused.setdefault("Xid events", str(error))
                self.close()
        return tuple(found)

    def close(self) -> None:
        """Have no more events kept."""
        events, self._events = self._events, None
        if events is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlEventSetFree(events)

    def _clock_events(self, gpu: Any) -> int:
        try:
            return int(self._nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu))
        except self._nvml.NVMLError_FunctionNotFound:
            # Drivers before 535 know them by their old name.
            return int(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu))

    def _processes(self, own: Callable[[int], bool]) -> tuple[GpuProcess, ...] | None:
        nvml = self._nvml
        running = self._ask("processes", lambda gpu: nvml.nvmlDeviceGetComputeRunningProcesses(gpu))
        if running is None:
            return None
        shares = self._ask("utilisation per process", self._shares) if running else None
        return tuple(
            GpuProcess(
                process.pid,
                own=own(process.pid),
                memory_bytes=process.usedGpuMemory,
                utilisation=None if shares is None else shares.get(process.pid, 0.0),
            )
            for process in sorted(running, key=lambda each: int(each.pid))
        )

    def _shares(self, gpu: Any) -> dict[int, float]:
        """The highest share of the SMs that each process had since this was last asked."""
        try:
            found = self._nvml.nvmlDeviceGetProcessUtilization(gpu, self._since_us)
        except self._nvml.NVMLError_NotFound:
            return {}  # nothing has run since
        shares: dict[int, float] = {}
        for sample in found:
            self._since_us = max(self._since_us, int(sample.timeStamp))
            if sample.smUtil <= 100:
                shares[int(sample.pid)] = max(shares.get(int(sample.pid), 0.0), sample.smUtil / 100)
        return shares

    def _ask(self, what: str, question: Callable[[Any], T]) -> T | None:
        if what in self._given_up:
            return None
        nvml = self._nvml
        try:
            if self._handle is None:
                self._handle = nvml.nvmlDeviceGetHandleByUUID(self.uuid)
            return question(self._handle)
        except nvml.NVMLError as error:
            self.refused.setdefault(what, str(error))
            if isinstance(error, tuple(getattr(nvml, f"NVMLError_{name}") for name in _NEVER)):
                self._given_up.add(what)
            return None

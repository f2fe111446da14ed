"""The border to NVML: which GPUs there are, what they hold, and which did not let go of it.

The memory of a GPU is freed by the driver some time after the process that held it has ended, and
sometimes never. The next engine would then start with less memory, or not at all; so memory is seen
to be back before the next start, and a GPU where it does not come back is put into quarantine: a
file that keeps later runs off it until the memory is back.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from pytest_speedbench.engines.gpu_sensor import NvmlSensor
from pytest_speedbench.engines.leases import state_folder
from pytest_speedbench.errors import ConfigError, EngineError

SLACK_BYTES = 256 * 2**20
"""What may stay above the baseline: other processes' contexts and the driver's own bookkeeping move by that."""
POLL_S = 0.2
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU; ``memory_total_bytes`` is 0 where it does not tell.

    ``index`` is NVML's, in the order of the bus, and may differ from CUDA's; ``uuid`` does not.
    """

    index: int
    uuid: str
    name: str
    memory_total_bytes: int
    driver: str


class Gpus(Protocol):
    """What this package wants to know of GPUs."""

    def visible(self, environ: Mapping[str, str]) -> tuple[Gpu, ...]:
        """The GPUs that an engine started with ``environ`` would see, in its order; () without NVML."""

    def memory_used(self, uuid: str) -> int:
        """Bytes in use on a GPU. Raises EngineError when it does not answer."""

    def processes(self, uuid: str) -> tuple[int, ...]:
        """Ids of the processes that compute on it, as far as this user and container may see them."""

    def sensors(self, gpus: Iterable[Gpu]) -> tuple[NvmlSensor, ...]:
        """What to watch each of ``gpus`` with, in their order; () without NVML."""


def select(gpus: Sequence[Gpu], visible: str | None) -> tuple[Gpu, ...]:
    """The GPUs that a value of ``CUDA_VISIBLE_DEVICES`` leaves, in its order; all for None.

    Indices, or UUIDs whole or begun as far as they are unique. As in CUDA the first entry that names
    no GPU ends the list. Instances of a partitioned GPU (``MIG-…``) are none of these.
    """
    if visible is None:
        return tuple(gpus)
    found: list[Gpu] = []
    for word in (part.strip() for part in visible.split(",")):
        if word.isdecimal():
            matching = [gpu for gpu in gpus if gpu.index == int(word)]
        else:
            matching = [gpu for gpu in gpus if word.startswith("GPU-") and gpu.uuid.startswith(word)]
        if len(matching) != 1:
            break
        if matching[0] not in found:
            found.append(matching[0])
    return tuple(found)


class Nvml:
    """``Gpus`` through NVML, which is loaded at the first question.

    Without its library or the driver there are no GPUs; a driver that does not work is an
    EngineError, since nothing could then be said about memory.
    """

    def __init__(self, library: Any = None) -> None:
        """``library``: what to ask instead of NVML, initialised already."""
        self._library: Any = library
        self._missing = False

    def visible(self, environ: Mapping[str, str]) -> tuple[Gpu, ...]:
        """See ``Gpus``."""
        return select(self._all(), environ.get("CUDA_VISIBLE_DEVICES"))

    def memory_used(self, uuid: str) -> int:
        """See ``Gpus``."""
        return int(self._ask(uuid, lambda nvml, handle: nvml.nvmlDeviceGetMemoryInfo(handle).used))

    def processes(self, uuid: str) -> tuple[int, ...]:
        """See ``Gpus``."""
        running = self._ask(uuid, lambda nvml, handle: nvml.nvmlDeviceGetComputeRunningProcesses(handle))
        return tuple(sorted(int(process.pid) for process in running))

    def sensors(self, gpus: Iterable[Gpu]) -> tuple[NvmlSensor, ...]:
        """See ``Gpus``."""
        nvml = self._nvml()
        return () if nvml is None else tuple(NvmlSensor(nvml, gpu.uuid, gpu.index) for gpu in gpus)

    def _nvml(self) -> Any:
        """The library, initialised once; None where there is no driver."""
        if self._library is None and not self._missing:
            import pynvml

            try:
                pynvml.nvmlInit()
            except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
                self._missing = True
            except pynvml.NVMLError as error:
                raise EngineError(f"the NVIDIA driver does not work ({error}); see whether nvidia-smi does") from error
            else:
                self._library = pynvml
        return self._library

    def _all(self) -> tuple[Gpu, ...]:
        nvml = self._nvml()
        if nvml is None:
            return ()
        try:
            driver = _text(nvml.nvmlSystemGetDriverVersion())
            return tuple(_gpu(nvml, index, driver) for index in range(nvml.nvmlDeviceGetCount()))
        except nvml.NVMLError as error:
            raise EngineError(f"the GPUs cannot be listed ({error}); see whether nvidia-smi works") from error

    def _ask(self, uuid: str, question: Callable[[Any, Any], Any]) -> Any:
        nvml = self._nvml()
        if nvml is None:
            raise EngineError(f"GPU {uuid} cannot be asked: there is no NVIDIA driver here")
        try:
            return question(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid))
        except nvml.NVMLError as error:
            raise EngineError(f"GPU {uuid} does not answer ({error}); see whether nvidia-smi works") from error


def _gpu(nvml: Any, index: int, driver: str) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    try:
        total = nvml.nvmlDeviceGetMemoryInfo(handle).total
    except nvml.NVMLError_NotSupported:
        # Parts that share their memory with the CPU have none of their own to tell of.
        total = 0
    return Gpu(index, _text(nvml.nvmlDeviceGetUUID(handle)), _text(nvml.nvmlDeviceGetName(handle)), total, driver)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def wait_released(
    gpus: Gpus,
    uuids: Iterable[str],
    baseline: Mapping[str, int],
    *,
    timeout_s: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> tuple[str, ...]:
    """Wait until each GPU holds at most 256 MiB more than its baseline; return those that do not.

    ``baseline``: bytes in use before the engine was started. All are looked at at least once, also
    with a timeout of 0. Raises EngineError when a GPU does not answer.
    """
    waiting = tuple(uuids)
    deadline = clock() + timeout_s
    while True:
        waiting = tuple(uuid for uuid in waiting if gpus.memory_used(uuid) > baseline[uuid] + SLACK_BYTES)
        left = deadline - clock()
        if not waiting or left <= 0:
            return waiting
        sleep(min(POLL_S, left))


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A GPU that did not release its memory. ``since`` is ISO 8601, UTC; ``log`` the engine's log."""

    uuid: str
    since: str
    memory_used_bytes: int
    baseline_bytes: int
    pids: tuple[int, ...]
    log: str

    @classmethod
    def now(cls, gpus: Gpus, uuid: str, *, since: str, baseline_bytes: int, log: str) -> Quarantined:
        """What a GPU holds now. Raises EngineError when it does not answer."""
        return cls(uuid, since, gpus.memory_used(uuid), baseline_bytes, gpus.processes(uuid), log)


def quarantine_folder(environ: Mapping[str, str]) -> Path:
    """The folder of quarantine files, one per GPU."""
    return state_folder(environ) / "quarantine"


def quarantine(folder: Path, gpu: Quarantined) -> None:
    """Keep later runs off a GPU until its memory is back. Raises ConfigError when it cannot be written."""
    target = _file(folder, gpu.uuid)
    temporary = folder / f".{target.name}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(asdict(gpu)), encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise ConfigError(
            f"cannot write {target} ({error.strerror or error}), which keeps later runs off a GPU that did not release "
            "its memory; set SPEEDBENCH_STATE_DIR to a folder that can be written"
        ) from error


def quarantined(folder: Path, gpus: Gpus) -> tuple[Quarantined, ...]:
    """The GPUs of this machine in quarantine that still hold the memory, by UUID.

    One whose memory is back is taken out, and so is a file that cannot be understood: without a
    baseline nothing can be said of its GPU, and if it is still stuck the next stop sees it again.
    """
    here = {gpu.uuid for gpu in gpus.visible({})}
    found = []
    for path in sorted(folder.glob("*.json")):
        if path.stem not in here:
            continue
        with contextlib.suppress(OSError):
            kept = _read(path)
            if kept is not None and gpus.memory_used(kept.uuid) > kept.baseline_bytes + SLACK_BYTES:
                found.append(kept)
            else:
                path.unlink(missing_ok=True)
    return tuple(found)


def require_usable(folder: Path, gpus: Gpus, uuids: Iterable[str]) -> None:
    """Refuse GPUs in quarantine. Raises ConfigError that says what each still holds and what to do."""
    wanted = set(uuids)
    named = {gpu.uuid: gpu for gpu in gpus.visible({})}
    problems = []
    for kept in quarantined(folder, gpus):
        if kept.uuid in wanted:
            gpu = named[kept.uuid]
            used = gpus.memory_used(kept.uuid)
            pids = ", ".join(map(str, gpus.processes(kept.uuid)))
            problems.append(
                f"GPU {gpu.index} ({gpu.name}, {gpu.uuid}) did not release the memory of an engine that was stopped "
                f"{kept.since}: {used / _GIB:.1f} GiB in use, {kept.baseline_bytes / _GIB:.1f} GiB before it; "
                f"held by {f'pid {pids}' if pids else 'no process that can be seen'}; log {kept.log}"
            )
    if problems:
        raise ConfigError(
            "\n".join(problems)
            + "\nend the processes that hold the memory, or have the GPU reset or the machine restarted; "
            "it is used again once the memory is free. To do without it, leave it out of CUDA_VISIBLE_DEVICES"
        )


def _file(folder: Path, uuid: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9-]+", uuid):
        raise ValueError(f"not a GPU UUID: {uuid!r}")
    return folder / f"{uuid}.json"


def _read(path: Path) -> Quarantined | None:
    """What a file says; None when it cannot be understood. Raises OSError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        kept = Quarantined(
            uuid=str(data["uuid"]),
            since=str(data["since"]),
            memory_used_bytes=int(data["memory_used_bytes"]),
            baseline_bytes=int(data["baseline_bytes"]),
            pids=tuple(int(pid) for pid in data["pids"]),
            log=str(data["log"]),
        )
    except (ValueError, KeyError, TypeError):
        return None
    return kept if kept.uuid == path.stem else None

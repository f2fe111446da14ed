"""From a checked profile to a running engine: started on this machine's GPUs, or attached to."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType

from pytest_speedbench.engines import gpus as gpu_state
from pytest_speedbench.engines.base import Capacity, Description, Fetch, Launch, Profile, model_name
from pytest_speedbench.engines.gpus import Gpu, Gpus
from pytest_speedbench.engines.leases import leases_folder
from pytest_speedbench.engines.process import ServerProcess, free_port, uninterrupted
from pytest_speedbench.errors import ConfigError, EngineError, EngineStartError
from pytest_speedbench.load.client import fetcher, is_ready
from pytest_speedbench.running import Prepared, RunningEngine, Server, understood
from pytest_speedbench.settings import Settings

RELEASE_S = 60.0
"""How long a stopped engine's GPU memory may take to come back."""
ATTACH_S = 10.0
SHARED_BYTES = 2 * 2**30
"""More than this in use on a GPU is another program's work, not the driver's own."""
TERM_GRACE_S = 2.0
"""CI systems kill a cancelled job a few seconds after SIGTERM."""


@dataclass(frozen=True, slots=True)
class Devices:
    """The GPUs that one engine may use, and the bytes in use on each before it was started."""

    border: Gpus
    gpus: tuple[Gpu, ...]
    before: Mapping[str, int]

    @classmethod
    def free(cls, border: Gpus, environ: Mapping[str, str], number: int) -> Devices:
        """The first ``number`` GPUs that ``environ`` leaves visible; none on a machine without.

        Raises ConfigError when there are fewer, or when one still holds an earlier engine's memory.
        """
        visible = border.visible(environ)
        named = environ.get("CUDA_VISIBLE_DEVICES", "")
        if not visible and named not in ("", "-1") and not named.startswith("MIG-") and border.visible({}):
            raise ConfigError(f"CUDA_VISIBLE_DEVICES={named} names none of the {len(border.visible({}))} GPUs here")
        if visible and len(visible) < number:
            raise ConfigError(
                f"the profile spreads the model over {number} GPUs, and {len(visible)} can be seen "
                f"({', '.join(gpu.name for gpu in visible)}); lower --speedbench-gpus or "
                "--speedbench-tensor-parallel, or set CUDA_VISIBLE_DEVICES"
            )
        chosen = visible[:number]
        gpu_state.require_usable(gpu_state.quarantine_folder(os.environ), border, [gpu.uuid for gpu in chosen])
        before = {}
        for gpu in chosen:
            # Some parts share their memory with the CPU and tell nothing of it.
            with contextlib.suppress(EngineError):
                before[gpu.uuid] = border.memory_used(gpu.uuid)
        return cls(border, chosen, before)

    @property
    def uuids(self) -> tuple[str, ...]:
        """UUIDs, in the order of the engine."""
        return tuple(gpu.uuid for gpu in self.gpus)

    def in_use(self) -> tuple[Gpu, ...]:
        """Those whose memory the engine has taken: an engine may run on the CPU beside them."""
        slack = gpu_state.SLACK_BYTES
        return tuple(
            gpu
            for gpu in self.gpus
            if gpu.uuid not in self.before or self.border.memory_used(gpu.uuid) > self.before[gpu.uuid] + slack
        )

    def require_alone(self, used: Sequence[Gpu]) -> None:
        """Refuse GPUs on which something else was running before the engine came. Raises EngineStartError."""
        shared = [
            f"GPU {gpu.index} ({gpu.name}) had {self.before[gpu.uuid] / 2**30:.1f} GiB in use"
            for gpu in used
            if self.before.get(gpu.uuid, 0) > SHARED_BYTES
        ]
        if shared:
            raise EngineStartError(
                f"{'; '.join(shared)} before the engine was started: what else runs there would be measured too; "
                "end it, or choose other GPUs with CUDA_VISIBLE_DEVICES"
            )

    @contextlib.contextmanager
    def released(self, log: Path, used: Sequence[Gpu]) -> Iterator[None]:
        """Wait at the end for the memory that the engine took. EngineError, and quarantine, for what is kept."""
        try:
            yield
        except BaseException as error:
            try:
                self._require_released(log, used or self.gpus)
            except EngineError as late:
                if isinstance(error, EngineError):
                    raise type(error)(f"{error}\n{late}") from error
            raise
        self._require_released(log, used)

    def _require_released(self, log: Path, used: Sequence[Gpu]) -> None:
        known = [gpu.uuid for gpu in used if gpu.uuid in self.before]
        stuck = gpu_state.wait_released(
            self.border, known, self.before, timeout_s=RELEASE_S, clock=time.monotonic, sleep=time.sleep
        )
        since = datetime.now(timezone.utc).isoformat(timespec="seconds")
        for uuid in stuck:
            kept = gpu_state.Quarantined.now(
                self.border, uuid, since=since, baseline_bytes=self.before[uuid], log=str(log)
            )
            gpu_state.quarantine(gpu_state.quarantine_folder(os.environ), kept)
        if stuck:
            raise EngineError(
                f"{', '.join(stuck)} did not release the engine's memory within {RELEASE_S:.0f} s of its end and "
                "will not be used until it has"
            )


@dataclass(frozen=True, slots=True)
class Attached:
    """A server that someone else runs: nothing is known of its process."""

    base_url: str

    def require_alive(self) -> None:
        """Nothing to look at; a server that is gone shows in its answers."""

    def owns(self, pid: int) -> bool:
        """Not known."""
        return False


@contextlib.contextmanager
def started(
    prepared: Prepared, capacity: Capacity, settings: Settings, folder: Path, border: Gpus
) -> Iterator[tuple[RunningEngine, tuple[Gpu, ...]]]:
    """Start the engine in ``folder`` and stop it again; with it come the GPUs that it uses.

    With ``base_url`` in the profile nothing is started. Raises ConfigError, EngineStartError, and
    EngineError when what was started cannot be used or does not go away.
    """
    if prepared.profile.base_url is not None:
        yield attached(prepared, capacity, settings, prepared.profile.base_url), ()
        return
    engine = prepared.engine
    port = prepared.profile.port or free_port()
    launch = engine.launch(capacity, port)
    environ = {**os.environ, **launch.env}
    devices = Devices.free(border, environ, prepared.profile.gpus)
    used: list[Gpu] = []
    base_url = f"http://127.0.0.1:{port}"
    process = ServerProcess(
        _on_devices(launch, environ, devices.gpus),
        folder,
        leases=leases_folder(os.environ),
        port=port,
        gpus=devices.uuids,
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(devices.released(process.log, used))
        stack.enter_context(process)
        stack.enter_context(_ended_with_pytest(process))
        stack.enter_context(_stopping(process))
        start_s = process.wait_ready(lambda: is_ready(base_url, engine.ready_paths), timeout_s=settings.start_timeout_s)
        process.require_alive()
        if process.owns_port(port) is False:
            raise EngineStartError(
                f"another server answers on port {port} of 127.0.0.1, which the engine was started for (a server in a "
                "container is attached to, with --speedbench-base-url)\n"
                f"{process.log_tail()}"
            )
        used += devices.in_use()
        devices.require_alone(used)
        running = _running(prepared, capacity, settings, process, base_url, start_s)
        yield dataclasses.replace(running, border=border, gpus=tuple(used)), tuple(used)


def attached(prepared: Prepared, capacity: Capacity, settings: Settings, base_url: str) -> RunningEngine:
    """The engine at ``base_url``. Raises EngineStartError when it does not answer, EngineError when it is another."""
    deadline = time.monotonic() + ATTACH_S
    while not is_ready(base_url, prepared.engine.ready_paths):
        if time.monotonic() > deadline:
            paths = " and ".join(prepared.engine.ready_paths)
            raise EngineStartError(
                f"no {prepared.profile.engine} answers at {base_url}: {paths} gave no HTTP 200 within "
                f"{ATTACH_S:.0f} s; check --speedbench-base-url, and that the server has started"
            )
        time.sleep(0.2)
    return _running(prepared, capacity, settings, Attached(base_url), base_url, None)


def _running(
    prepared: Prepared, capacity: Capacity, settings: Settings, server: Server, base_url: str, start_s: float | None
) -> RunningEngine:
    fetch: Fetch = fetcher(base_url)
    with understood():
        description: Description = prepared.engine.describe(fetch)
    _require_as_planned(prepared.profile, capacity, description, base_url)
    return RunningEngine(prepared, capacity, server, base_url, fetch, description, start_s, settings)


def _require_as_planned(profile: Profile, capacity: Capacity, description: Description, base_url: str) -> None:
    """Refuse a server that holds fewer requests than are to be measured or, attached, serves another model."""
    most = description.max_batch_size
    if most is not None and most < capacity.max_batch_size:
        raise EngineStartError(
            f"the server takes {most} requests at once, and {capacity.max_batch_size} are to be measured; lower "
            "--speedbench-concurrency, or give the server more room"
        )
    if profile.base_url is None or not description.served:
        return
    alias = profile.options.get("served_model")
    wanted = {profile.model, model_name(profile.model)} if alias is None else {str(alias)}
    if not wanted & {*description.served, *(Path(name).name for name in description.served)}:
        raise EngineStartError(
            f"{base_url} serves {', '.join(dict.fromkeys(description.served))}, and the profile says "
            f"{alias or profile.model}; give the right --speedbench-model, or engines.{profile.engine}.served_model "
            "if it only has another name there"
        )


def _on_devices(launch: Launch, environ: Mapping[str, str], gpus: Sequence[Gpu]) -> Launch:
    """The launch, with no more GPUs in sight than the engine is to use."""
    if not gpus:
        return launch
    named = environ.get("CUDA_VISIBLE_DEVICES")
    chosen = [str(gpu.index) for gpu in gpus] if named is None else list(dict.fromkeys(named.split(",")))[: len(gpus)]
    # NVML counts in the order of the bus, CUDA by default the fastest first.
    env = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", **launch.env, "CUDA_VISIBLE_DEVICES": ",".join(chosen)}
    return Launch(launch.argv, env, launch.files)


@contextlib.contextmanager
def _ended_with_pytest(process: ServerProcess) -> Iterator[None]:
    """SIGTERM and a closed terminal end this process without cleaning up; end the engine first, and quickly."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        try:
            process.stop(grace_s=TERM_GRACE_S)
        finally:
            signal.signal(number, previous[signal.Signals(number)])
            os.kill(os.getpid(), number)

    heeded = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) not in (signal.SIG_IGN, None)]
    previous = {number: signal.signal(number, end) for number in heeded}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _stopping(process: ServerProcess) -> Iterator[None]:
    try:
        yield
    finally:
        with uninterrupted():
            process.stop()

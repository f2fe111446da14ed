"""Engines started on this machine and attached to: real processes, and GPUs whose memory is scripted."""

from __future__ import annotations

import json
import os
import re
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pytest_speedbench import starting
from pytest_speedbench.engines.base import (
    Capacity,
    Description,
    Fetch,
    Launch,
    Profile,
    Speculation,
    StreamDecoder,
    TopTokensRequest,
    TurnRequest,
)
from pytest_speedbench.engines.gpus import SLACK_BYTES, Quarantined, quarantine, quarantine_folder
from pytest_speedbench.engines.process import ServerProcess, free_port
from pytest_speedbench.errors import ConfigError, EngineDied, EngineError, EngineStartError
from pytest_speedbench.measure.samples import Counters
from pytest_speedbench.running import Prepared, RunningEngine
from pytest_speedbench.settings import Settings, build
from pytest_speedbench.starting import Devices, attached, started
from pytest_speedbench.token_cache import TokenCache
from tests.emulator.llamacpp import byte_tokenizer
from tests.unit.test_gpus import GIB, A, B, C, Driver
from tests.unit.test_process import PATIENCE_S, eventually, gone

REPOSITORY = Path(__file__).parents[2]
CAPACITY = Capacity(max_batch_size=2, max_model_len=256)
# Answers like an engine, on the port that is its argument, and tells its environment.
SERVER = """
import http.server, json, os, socketserver, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        answers = {"/health": b"", "/info": json.dumps({"version": "1.2", "environ": dict(os.environ)}).encode()}
        self.send_response(200 if self.path in answers else 404)
        self.end_headers()
        self.wfile.write(answers.get(self.path, b""))
    def log_message(self, *_):
        pass
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SERVER
ENDING = (signal.SIGTERM, signal.SIGHUP)
ASLEEP = "import time; time.sleep(600)"


class Tiny:
    """An engine that is a few lines of Python."""

    name: ClassVar[str] = "tiny"
    methods: ClassVar[tuple[str, ...]] = ("none",)
    steps_source: ClassVar[str] = "nothing"
    # The servers here do not have the first.
    ready_paths: ClassVar[tuple[str, ...]] = ("/ready", "/health")
    stream_path: ClassVar[str] = "/generate"
    flush_path: ClassVar[str | None] = None
    counters_poll_s: ClassVar[float | None] = None

    def __init__(self, code: str = SERVER, *, env: Mapping[str, str] | None = None) -> None:
        self._code = code
        self._env = env or {}

    @property
    def drafts_always(self) -> bool:
        return False

    @property
    def remembers(self) -> bool:
        return False

    def check(self) -> None:
        """Nothing is wrong."""

    def tokenizer_source(self) -> str:
        raise NotImplementedError

    def launch(self, capacity: Capacity, port: int) -> Launch:
        sizes = f"{capacity.max_batch_size} {capacity.max_model_len}"
        return Launch((sys.executable, "-c", self._code, str(port)), self._env, {"sizes": sizes})

    def describe(self, fetch: Fetch) -> Description:
        info = json.loads(fetch("/info"))
        return Description(info["version"], info["environ"], tuple(info.get("served", ())), info.get("most"))

    def counters(self, fetch: Fetch) -> Counters:
        raise NotImplementedError

    def idle(self, fetch: Fetch) -> bool:
        raise NotImplementedError

    def body(self, request: TurnRequest) -> dict[str, Any]:
        raise NotImplementedError

    def decoder(self, request: TurnRequest) -> StreamDecoder:
        raise NotImplementedError

    def top_tokens(self, request: TurnRequest) -> TopTokensRequest | None:
        return None

    def error_text(self, body: bytes) -> str:
        raise NotImplementedError


class Raced(Tiny):
    """An engine whose port another server takes between the choice of the port and the start."""

    def __init__(self, other: Other, code: str) -> None:
        super().__init__(code)
        self._other = other

    def launch(self, capacity: Capacity, port: int) -> Launch:
        self._other.listen(port)
        return super().launch(capacity, port)


class Other:
    """A server of this process, which answers every GET with ``answer``."""

    def __init__(self, status: int = 200, answer: bytes = b"{}") -> None:
        self._status, self._answer = status, answer
        self._server: socketserver.ThreadingTCPServer | None = None

    def listen(self, port: int) -> None:
        status, answer = self._status, self._answer

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self._server = Server(("127.0.0.1", port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


@pytest.fixture
def other() -> Iterator[Other]:
    server = Other()
    yield server
    server.close()


@contextmanager
def answering(answer: bytes, status: int = 200) -> Iterator[str]:
    server, port = Other(status, answer), free_port()
    server.listen(port)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.close()


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leases and quarantine of one test; no GPU is chosen by the shell."""
    folder = tmp_path / "state"
    monkeypatch.setenv("SPEEDBENCH_STATE_DIR", str(folder))
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    return folder


def driver_of(*readings: int, gpus: int = 1) -> Driver:
    """So many GPUs; GiB in use before the start, while the engine runs, and from then on, on each."""
    return Driver({gpu.uuid: [n * GIB for n in readings or (1,)] for gpu in (A, B, C)}, gpus=(A, B, C)[:gpus])


NO_GPUS = Driver({}, gpus=())


def settings_of(folder: Path) -> Settings:
    line = {"engine": "llamacpp", "start_timeout": f"{PATIENCE_S:.0f}"}
    return build(
        command_line=lambda option: line.get(option.key),
        ini=lambda option: None,
        environ={},
        rootdir=folder,
        invocation_dir=folder,
    )


def prepared_of(
    engine: Tiny,
    *,
    gpus: int = 1,
    base_url: str | None = None,
    served_model: str | None = None,
    port: int | None = None,
) -> Prepared:
    options: dict[str, Any] = {} if served_model is None else {"served_model": served_model}
    options |= {} if port is None else {"port": port}
    profile = Profile("tiny", "tiny", "model", Speculation(), gpus=gpus, base_url=base_url, options=options)
    return Prepared(profile, engine, byte_tokenizer(), TokenCache(None))


@contextmanager
def running(
    folder: Path, engine: Tiny, border: Driver = NO_GPUS, *, gpus: int = 1, port: int | None = None
) -> Iterator[tuple[RunningEngine, tuple[Any, ...]]]:
    """An engine with its files in ``folder``/engine."""
    own = folder / "engine"
    own.mkdir()
    prepared = prepared_of(engine, gpus=gpus, port=port)
    with started(prepared, CAPACITY, settings_of(folder), own, border) as found:
        yield found


def process_of(engine: RunningEngine) -> ServerProcess:
    assert isinstance(engine.server, ServerProcess)
    return engine.server


def leases(state: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in (state / "engines").glob("*.json")]


def refused(border: Driver, number: int = 1, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        Devices.free(border, environ, number)
    return str(caught.value)


# Which GPUs


def test_the_first_gpus_that_can_be_seen() -> None:
    border = driver_of(gpus=3)
    assert Devices.free(border, {}, 1).gpus == (A,)
    assert Devices.free(border, {}, 2).gpus == (A, B)
    assert Devices.free(border, {"CUDA_VISIBLE_DEVICES": "2,0"}, 1).gpus == (C,)
    assert Devices.free(border, {"CUDA_VISIBLE_DEVICES": "2,0"}, 2).uuids == (C.uuid, A.uuid)


@pytest.mark.parametrize("border", [NO_GPUS, driver_of(gpus=2)], ids=["none", "hidden"])
def test_without_gpus_the_engine_runs_on_the_cpu(border: Driver) -> None:
    devices = Devices.free(border, {"CUDA_VISIBLE_DEVICES": ""}, 4)
    assert (devices.gpus, devices.uuids, devices.in_use()) == ((), (), ())
    with devices.released(Path("engine.log"), devices.gpus):
        pass


def test_too_few_gpus() -> None:
    assert refused(driver_of(gpus=2), 4) == (
        "the profile spreads the model over 4 GPUs, and 2 can be seen (NVIDIA H100, NVIDIA H100); "
        "lower --speedbench-gpus or --speedbench-tensor-parallel, or set CUDA_VISIBLE_DEVICES"
    )
    assert "over 2 GPUs, and 1 can be seen" in refused(driver_of(gpus=3), 2, CUDA_VISIBLE_DEVICES="1")


def test_nothing_is_started_with_too_few_gpus(tmp_path: Path, state: Path) -> None:
    with pytest.raises(ConfigError), running(tmp_path, Tiny(), driver_of(gpus=1), gpus=2):
        pass
    assert not list((tmp_path / "engine").iterdir())
    assert leases(state) == []


def test_a_gpu_in_quarantine_is_refused_where_it_would_be_used() -> None:
    border = driver_of(20, gpus=3)
    kept = Quarantined(B.uuid, "2026-07-01T10:00:00+00:00", 20 * GIB, GIB, (), "/runs/engine.log")
    quarantine(quarantine_folder(os.environ), kept)
    assert Devices.free(border, {}, 1).gpus == (A,)
    assert Devices.free(border, {"CUDA_VISIBLE_DEVICES": "0,2"}, 2).gpus == (A, C)
    for number, visible in ((2, "0,1,2"), (1, "1"), (1, B.uuid)):
        problem = refused(border, number, CUDA_VISIBLE_DEVICES=visible)
        assert f"GPU 1 (NVIDIA H100, {B.uuid}) did not release the memory" in problem
        assert "20.0 GiB in use, 1.0 GiB before it" in problem
        assert "/runs/engine.log" in problem
    border.used[B.uuid] = [GIB]
    assert Devices.free(border, {}, 2).gpus == (A, B)


# Their memory


@pytest.mark.parametrize(("more", "in_use"), [(-1, ()), (0, ()), (SLACK_BYTES, ()), (SLACK_BYTES + 1, (A,))])
def test_a_gpu_is_in_use_by_what_it_holds_more_than_before(more: int, in_use: tuple[object, ...]) -> None:
    border = Driver({A.uuid: [GIB, GIB + more], B.uuid: [2 * GIB]})
    assert Devices.free(border, {}, 2).in_use() == in_use


def test_memory_that_comes_back_is_waited_for() -> None:
    border = Driver({A.uuid: [GIB, 40 * GIB, 20 * GIB, GIB + SLACK_BYTES]})
    with Devices.free(border, {}, 1).released(Path("engine.log"), (A,)):
        assert border.used[A.uuid][0] == 40 * GIB
    assert border.used[A.uuid] == [GIB + SLACK_BYTES]
    assert not quarantine_folder(os.environ).exists()


def test_memory_that_does_not_come_back_puts_its_gpu_in_quarantine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "RELEASE_S", 0.0)
    border = Driver({A.uuid: [GIB], B.uuid: [2 * GIB, 40 * GIB], C.uuid: [70 * GIB]}, holders={B.uuid: (77, 78)})
    devices = Devices.free(border, {}, 2)
    with pytest.raises(EngineError) as caught, devices.released(Path("/runs/engine.log"), (B,)):
        pass
    assert str(caught.value) == (
        f"{B.uuid} did not release the engine's memory within 0 s of its end and will not be used until it has"
    )
    (file,) = quarantine_folder(os.environ).iterdir()
    kept = json.loads(file.read_text())
    assert kept.pop("since").endswith("+00:00")
    assert kept == {
        "uuid": B.uuid,
        "memory_used_bytes": 40 * GIB,
        "baseline_bytes": 2 * GIB,
        "pids": [77, 78],
        "log": "/runs/engine.log",
    }
    assert "held by pid 77, 78" in refused(border, 2)
    border.used[B.uuid] = [2 * GIB]
    assert Devices.free(border, {}, 2).gpus == (A, B)
    assert not file.exists()


def test_a_gpu_that_the_engine_did_not_use_is_not_waited_for() -> None:
    # Another program came to it meanwhile.
    border = Driver({A.uuid: [GIB], B.uuid: [GIB, 40 * GIB]})
    with Devices.free(border, {}, 2).released(Path("engine.log"), (A,)):
        pass
    assert not quarantine_folder(os.environ).exists()


def test_after_a_failure_every_gpu_is_looked_at_where_it_is_not_known_which_were_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(starting, "RELEASE_S", 0.0)
    border = Driver({A.uuid: [GIB], B.uuid: [GIB, 40 * GIB]})
    with pytest.raises(EngineDied) as caught, Devices.free(border, {}, 2).released(Path("engine.log"), ()):
        raise EngineDied("it is gone")
    first, second = str(caught.value).splitlines()
    assert first == "it is gone"
    assert second.startswith(f"{B.uuid} did not release the engine's memory")
    assert [file.stem for file in quarantine_folder(os.environ).iterdir()] == [B.uuid]


def test_a_failure_stays_as_it_is_where_the_memory_came_back() -> None:
    with (
        pytest.raises(EngineDied, match=r"^it is gone$"),
        Devices.free(driver_of(), {}, 1).released(Path("engine.log"), (A,)),
    ):
        raise EngineDied("it is gone")


class Silent(Driver):
    """Tells nothing of the memory of its GPUs."""

    def memory_used(self, uuid: str) -> int:
        raise EngineError(f"GPU {uuid} does not answer (Not Supported)")


def test_a_gpu_that_tells_nothing_of_its_memory_may_be_in_use() -> None:
    devices = Devices.free(Silent({}), {}, 2)
    assert devices.in_use() == (A, B)
    devices.require_alone((A, B))
    with devices.released(Path("engine.log"), (A, B)):
        pass


def test_a_gpu_on_which_something_else_runs(tmp_path: Path) -> None:
    with running(tmp_path, Tiny(), driver_of(2, 20, 2)) as (_, gpus):
        assert gpus == (A,)
    (tmp_path / "second").mkdir()
    with (
        pytest.raises(
            EngineStartError, match=r"^GPU 0 \(NVIDIA H100\) had 3\.0 GiB in use before the engine was started"
        ),
        running(tmp_path / "second", Tiny(), driver_of(3, 20, 3)),
    ):
        pass


def test_what_runs_on_a_gpu_that_the_engine_leaves_alone_is_nothing_to_it(tmp_path: Path) -> None:
    with running(tmp_path, Tiny(), driver_of(60)) as (_, gpus):
        assert gpus == ()


def test_an_engine_that_leaves_its_memory_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "RELEASE_S", 0.0)
    pids = []
    with (
        pytest.raises(EngineError, match="did not release the engine's memory"),
        running(tmp_path, Tiny(), driver_of(1, 20, 20)) as (engine, _),
    ):
        pids.append(process_of(engine).pid)
    assert gone(pids[0])
    (file,) = quarantine_folder(os.environ).iterdir()
    assert json.loads(file.read_text())["log"] == str(tmp_path / "engine" / "engine.log")


# A running engine


def test_an_engine_from_start_to_end(tmp_path: Path, state: Path) -> None:
    before = [signal.getsignal(number) for number in ENDING]
    with running(tmp_path, Tiny(), driver_of(1, 20, 1)) as (engine, gpus):
        pid = process_of(engine).pid
        assert gpus == (A,)
        assert engine.start_s is not None
        assert (engine.description.version, engine.capacity) == ("1.2", CAPACITY)
        assert json.loads(engine.fetch("/info"))["version"] == "1.2"
        assert (tmp_path / "engine" / "sizes").read_text() == "2 256"
        (lease,) = leases(state)
        assert engine.base_url == f"http://127.0.0.1:{lease['port']}"
        assert (lease["gpus"], lease["engine"]["pid"]) == ([A.uuid], pid)
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert gone(pid)
    assert leases(state) == []
    assert [signal.getsignal(number) for number in ENDING] == before


def test_an_engine_on_the_cpu_beside_a_gpu(tmp_path: Path) -> None:
    with running(tmp_path, Tiny(), driver_of(1)) as (_, gpus):
        assert gpus == ()


def test_the_port_of_the_profile(tmp_path: Path) -> None:
    port = free_port()
    with running(tmp_path, Tiny(), port=port) as (engine, _):
        assert engine.base_url == f"http://127.0.0.1:{port}"


def test_in_a_thread_signals_are_left_alone(tmp_path: Path) -> None:
    def run() -> int:
        with running(tmp_path, Tiny()) as (engine, _):
            return process_of(engine).pid

    with ThreadPoolExecutor(1) as pool:
        assert gone(pool.submit(run).result())


def test_the_engine_ends_when_its_user_fails(tmp_path: Path) -> None:
    code = "import os; print(os.getpid(), flush=True)\n" + SERVER
    with pytest.raises(ZeroDivisionError), running(tmp_path, Tiny(code)):
        raise ZeroDivisionError
    assert gone(int((tmp_path / "engine" / "engine.log").read_text()))


def test_an_engine_that_cannot_describe_itself_is_ended(tmp_path: Path, state: Path) -> None:
    code = SERVER.replace('"version"', '"build"')
    with (
        pytest.raises(EngineError, match=r"cannot make sense of .* \(KeyError: 'version'\)"),
        running(tmp_path, Tiny("import os; print(os.getpid(), flush=True)\n" + code)),
    ):
        pass
    assert gone(int((tmp_path / "engine" / "engine.log").read_text()))
    assert leases(state) == []


def test_an_engine_that_dies_at_its_start(tmp_path: Path, state: Path) -> None:
    code = "import sys; sys.exit('no such model')"
    with (
        pytest.raises(EngineStartError, match=r"(?s)exited with code 1 before it was ready.*\| no such model"),
        running(tmp_path, Tiny(code), driver_of(1)),
    ):
        pass
    assert leases(state) == []


def test_an_engine_that_dies_later(tmp_path: Path) -> None:
    with running(tmp_path, Tiny()) as (engine, _):
        engine.server.require_alive()
        os.kill(process_of(engine).pid, signal.SIGKILL)
        assert eventually(lambda: process_of(engine).exit_code is not None)
        with pytest.raises(EngineDied, match="was ended by SIGKILL"):
            engine.server.require_alive()


# What the engine sees


def seen(engine: RunningEngine) -> tuple[object, object]:
    resolved = engine.description.resolved
    return resolved.get("CUDA_VISIBLE_DEVICES"), resolved.get("CUDA_DEVICE_ORDER")


@pytest.mark.parametrize(
    ("shell", "profile", "number", "visible"),
    [
        (None, None, 1, "0"),
        (None, None, 2, "0,1"),
        ("2,0", None, 1, "2"),
        ("2,0,1", None, 2, "2,0"),
        (f"{C.uuid},{A.uuid}", None, 1, C.uuid),
        ("GPU-2c,GPU-0a", None, 2, "GPU-2c,GPU-0a"),
        # The engine would see what its profile says.
        ("2,0", "1,2", 1, "1"),
        (None, "1", 1, "1"),
        ("0,0,1", None, 2, "0,1"),
    ],
)
def test_an_engine_sees_no_more_gpus_than_it_is_spread_over(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shell: str | None,
    profile: str | None,
    number: int,
    visible: str,
) -> None:
    if shell is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shell)
    own = {"OWN": "kept"} | ({} if profile is None else {"CUDA_VISIBLE_DEVICES": profile})
    with running(tmp_path, Tiny(env=own), driver_of(gpus=3), gpus=number) as (engine, _):
        # Indices are NVML's, whose order is that of the bus.
        assert seen(engine) == (visible, "PCI_BUS_ID")
        assert engine.description.resolved["OWN"] == "kept"


@pytest.mark.parametrize("shell", [None, "", "MIG-1"])
def test_without_gpus_nothing_is_said_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: str | None
) -> None:
    if shell is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shell)
    with running(tmp_path, Tiny(), NO_GPUS if shell is None else driver_of(gpus=3)) as (engine, _):
        assert seen(engine) == (shell, None)


# Another server on the port


def test_another_server_on_the_port_of_the_profile(tmp_path: Path, state: Path, other: Other) -> None:
    port = free_port()
    other.listen(port)
    with (
        pytest.raises(EngineStartError) as caught,
        # It lives and never listens, as an engine does that takes long to start.
        running(tmp_path, Tiny(f"print('loading', flush=True); {ASLEEP}"), port=port),
    ):
        pass
    first, *log = str(caught.value).splitlines()
    assert first == (
        f"another server answers on port {port} of 127.0.0.1, which the engine was started for (a server in a "
        "container is attached to, with --speedbench-base-url)"
    )
    assert log[0] == f"  last lines of {tmp_path / 'engine' / 'engine.log'}:"
    assert leases(state) == []


def test_another_server_takes_the_port_that_was_free(tmp_path: Path, other: Other) -> None:
    with (
        pytest.raises(EngineStartError, match=r"^another server answers on port \d+ of 127\.0\.0\.1"),
        running(tmp_path, Raced(other, ASLEEP)),
    ):
        pass


def test_an_engine_that_cannot_have_its_port(tmp_path: Path, other: Other) -> None:
    # Whether it is seen dead or the other server is seen first is chance.
    with (
        pytest.raises(EngineStartError, match=r"^(another server answers on port|the engine exited with code 1) "),
        running(tmp_path, Raced(other, SERVER)),
    ):
        pass


# SIGTERM, and SIGHUP of a terminal that is closed


def hold(folder: str, code: str, end: str) -> None:
    """Run an engine until SIGTERM comes; with ``end`` leave it instead, and it does not want to go."""
    with running(Path(folder), Tiny(code)) as (engine, _):
        print(process_of(engine).pid, flush=True)
        if not end:
            time.sleep(600)


@contextmanager
def holding(folder: Path, code: str, end: str = "") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that runs an engine, and the engine's id."""
    words = "import sys; from tests.unit.test_starting import hold; hold(*sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", words, str(folder), code, end], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    engine = None
    try:
        assert process.stdout is not None
        engine = int(process.stdout.readline())
        yield process, engine
    finally:
        process.kill()
        process.communicate()
        if engine is not None and not gone(engine):
            # What a failed test has left.
            os.kill(engine, signal.SIGKILL)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, SERVER), (signal.SIGTERM, STUBBORN), (signal.SIGHUP, SERVER)],
    ids=["willing", "stubborn", "hangup"],
)
def test_a_signal_ends_the_engine_and_then_this_process(
    tmp_path: Path, state: Path, number: signal.Signals, code: str
) -> None:
    # An engine that ignores SIGTERM has 30 s at other times; CI systems do not wait as long.
    with holding(tmp_path, code) as (process, engine):
        assert not gone(engine)
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == -number
        assert gone(engine)
        assert leases(state) == []


def test_sigterm_hastens_a_stop(tmp_path: Path, state: Path) -> None:
    told = tmp_path / "told"
    # An engine that says that it was asked to end, and goes on.
    code = f"import pathlib, signal; signal.signal(signal.SIGTERM, lambda *_: pathlib.Path({str(told)!r}).touch())\n"
    with holding(tmp_path, code + SERVER, "end") as (process, engine):
        assert eventually(told.exists)
        process.terminate()
        assert process.wait(PATIENCE_S) == -signal.SIGTERM
        assert gone(engine)
        assert leases(state) == []


def test_with_nohup_a_closed_terminal_ends_nothing(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with running(tmp_path, Tiny()) as (engine, _):
            os.kill(os.getpid(), signal.SIGHUP)
            engine.server.require_alive()
            assert json.loads(engine.fetch("/info"))["version"] == "1.2"
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_handler_of_the_projects_own_comes_after_the_engine(tmp_path: Path) -> None:
    called: list[bool] = []
    before = signal.signal(signal.SIGTERM, lambda *_: called.append(gone(pids[0])))
    pids: list[int] = []
    try:
        with running(tmp_path, Tiny()) as (engine, _):
            pids.append(process_of(engine).pid)
            os.kill(os.getpid(), signal.SIGTERM)
            assert eventually(lambda: bool(called))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert called == [True]


# A server that someone else runs


def test_nobody_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "ATTACH_S", 0.0)
    base_url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(EngineStartError) as caught:
        attached(prepared_of(Tiny(), base_url=base_url), CAPACITY, settings_of(tmp_path), base_url)
    assert str(caught.value) == (
        f"no tiny answers at {base_url}: /ready and /health gave no HTTP 200 within 0 s; "
        "check --speedbench-base-url, and that the server has started"
    )


def test_a_server_that_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "ATTACH_S", 0.0)
    with (
        answering(b"loading", status=503) as base_url,
        pytest.raises(EngineStartError, match=f"^no tiny answers at {base_url}: "),
    ):
        attached(prepared_of(Tiny(), base_url=base_url), CAPACITY, settings_of(tmp_path), base_url)


@pytest.mark.parametrize("answer", [b"{}", b"[]", b"<html>", b"\xff"])
def test_a_server_that_is_another(tmp_path: Path, answer: bytes) -> None:
    with answering(answer) as base_url, pytest.raises(EngineError, match="cannot make sense of what the engine says"):
        attached(prepared_of(Tiny(), base_url=base_url), CAPACITY, settings_of(tmp_path), base_url)


def test_nothing_is_launched_where_a_server_runs(tmp_path: Path, state: Path) -> None:
    info = json.dumps({"version": "3", "environ": {}}).encode()
    with answering(info) as base_url:
        prepared = prepared_of(Tiny("no code"), gpus=64, base_url=base_url)
        # Its GPUs may be anywhere: those of this machine are not looked at.
        with started(prepared, CAPACITY, settings_of(tmp_path), tmp_path / "gone", driver_of(gpus=1)) as (engine, gpus):
            assert gpus == ()
            assert (engine.start_s, engine.base_url, engine.description.version) == (None, base_url, "3")
            engine.server.require_alive()
            assert leases(state) == []
        assert attached(prepared, CAPACITY, settings_of(tmp_path), base_url).description.version == "3"


def information(**more: Any) -> bytes:
    return json.dumps({"version": "3", "environ": {}, **more}).encode()


def attach(folder: Path, answer: bytes, served_model: str | None = None) -> RunningEngine:
    with answering(answer) as base_url:
        prepared = prepared_of(Tiny(), base_url=base_url, served_model=served_model)
        return attached(prepared, CAPACITY, settings_of(folder), base_url)


@pytest.mark.parametrize("served", [[], ["model"], ["other", "model"], ["/models/model"]])
def test_a_server_of_the_model(tmp_path: Path, served: list[str]) -> None:
    assert attach(tmp_path, information(served=served)).description.served == tuple(served)


def test_a_server_of_another_model(tmp_path: Path) -> None:
    with pytest.raises(EngineStartError) as caught:
        attach(tmp_path, information(served=["other", "/models/other", "other"]))
    assert re.sub(r":\d+", ":PORT", str(caught.value)) == (
        "http://127.0.0.1:PORT serves other, /models/other, and the profile says model; give the right "
        "--speedbench-model, or engines.tiny.served_model if it only has another name there"
    )


def test_a_server_that_has_another_name_for_the_model(tmp_path: Path) -> None:
    assert attach(tmp_path, information(served=["other"]), served_model="other").start_s is None
    # The name is then the only one that is right.
    with pytest.raises(EngineStartError, match="serves model, and the profile says other; "):
        attach(tmp_path, information(served=["model"]), served_model="other")


def test_an_engine_that_was_started_may_call_the_model_what_it_likes(tmp_path: Path) -> None:
    code = SERVER.replace('"version": "1.2"', '"version": "1.2", "served": ["speedbench"]')
    with running(tmp_path, Tiny(code)) as (engine, _):
        assert engine.description.served == ("speedbench",)


def test_a_server_with_room_for_fewer_requests_than_are_measured(tmp_path: Path) -> None:
    assert attach(tmp_path, information(most=2)).description.max_batch_size == 2
    with pytest.raises(EngineStartError, match="takes 1 requests at once, and 2 are to be measured"):
        attach(tmp_path, information(most=1))

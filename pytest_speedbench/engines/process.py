"""The life of one engine process: start, ready or dead, stop, nothing left behind."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from pytest_speedbench.engines.base import Launch
from pytest_speedbench.engines.leases import KILL_WAIT_S, MARKER, Kin, Lease, end, identity
from pytest_speedbench.errors import ConfigError, EngineDied, EngineError, EngineStartError

POLL_S = 0.05
POLL_MAX_S = 1.0
POLL_SHARE = 0.1
"""The wait between two questions, as a share of the time since the start."""
LOCAL_ADDRESSES = ("127.0.0.1", "::ffff:127.0.0.1", "0.0.0.0", "::")
"""Where a listener gets what is sent to 127.0.0.1; the first that is there gets it."""
LOG_TAIL_LINES = 20
LOG_CAUSES = 3
LOG_LINE_CHARACTERS = 500
LOG_HEAD_BYTES = 200_000
LOG_TAIL_BYTES = 2_000_000
CAUSES = (
    "out of memory",
    "CUDA error",
    "No space left",
    "Address already in use",
    "ModuleNotFoundError",
    "ImportError:",
    "unrecognized arguments",
    "error: argument",
    "ValueError:",
    "RuntimeError:",
    "Killed",
)
"""What a line of a log says when it tells why the engine failed, the most telling first."""
ADVICE = re.compile(r"\b(avoid|prevent|if|may|might|could)\b.*out of memory", re.IGNORECASE)
"""Engines warn of running out of memory without having done so."""
OUT_OF_MEMORY_HINT = (
    "the GPU ran out of memory; lower the engine's share of it (gpu-memory-utilization, mem-fraction-static, "
    "free_gpu_memory_fraction), the context (max_model_len) or the concurrency"
)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require_free(port: int) -> None:
    """Refuse a port that is taken: a server already there would be measured instead of ours.

    Raises ConfigError.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ConfigError(f"port {port} of 127.0.0.1 cannot be used: {error.strerror}") from error
            raise ConfigError(
                f"port {port} of 127.0.0.1 is in use; leave `port` out of the profile and a free one is chosen"
            ) from error


class ServerProcess:
    """A server in a session of its own, with its output in a log file.

    Use as a context manager: leaving it stops the whole process group, TERM first, KILL after
    ``grace_s``, and whatever else belongs to the engine. ``stdin`` is a pipe held open by this
    process, so that a server that watches it ends when this process is killed. With a folder for
    ``leases`` the next run can end a server that does not. ``port`` and ``gpus`` (UUIDs) are for
    that lease alone.
    """

    def __init__(
        self,
        launch: Launch,
        folder: Path,
        *,
        grace_s: float = 30.0,
        kill_wait_s: float = KILL_WAIT_S,
        leases: Path | None = None,
        port: int | None = None,
        gpus: Sequence[str] = (),
    ) -> None:
        self._launch = launch
        self._folder = folder
        self._grace_s = grace_s
        self._kill_wait_s = kill_wait_s
        self._leases = leases
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self.log = folder / "engine.log"
        self._lease = Lease.new(argv0=launch.argv[0], log=self.log.resolve(), port=port, gpus=gpus)

    def __enter__(self) -> ServerProcess:
        for name, content in self._launch.files.items():
            (self._folder / name).write_text(content, encoding="utf-8")
        # Before the start: killed in between, this process would leave a server that nobody knows of.
        self._write_lease()
        try:
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._launch.argv,
                    cwd=self._folder,
                    env={**os.environ, **self._launch.env, MARKER: self._lease.marker},
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            self._remove_lease()
            raise EngineStartError(f"cannot run {self._launch.argv[0]}: {error.strerror}") from error
        try:
            self._lease = replace(self._lease, engine=identity(self._process.pid))
            self._write_lease()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its group and session."""
        return self._running().pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: ended by that signal."""
        return self._running().poll()

    def wait_ready(self, ready: Callable[[], bool], *, timeout_s: float) -> float:
        """Wait until ``ready`` or dead; return the seconds it took.

        ``ready`` is asked every 0.05 s at first and every second in the end; death is seen at once.
        Raises EngineStartError with the last log lines when the process exits first, or when
        ``timeout_s`` passes.
        """
        began = time.monotonic()
        while True:
            # Asked before it is looked whether it lives: some other server may have answered.
            answered = self.exit_code is None and ready()
            code = self.exit_code
            if code is not None:
                raise EngineStartError(self._with_log(f"the engine {_ended(code)} before it was ready"))
            took = time.monotonic() - began
            if answered:
                return took
            if took >= timeout_s:
                raise EngineStartError(self._with_log(f"the engine was not ready after {timeout_s:.0f} s"))
            pause = min(max(POLL_S, took * POLL_SHARE), POLL_MAX_S, timeout_s - took)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._running().wait(pause)

    def require_alive(self) -> None:
        """Raise EngineDied, with the last log lines, if the process has ended."""
        code = self.exit_code
        if code is not None:
            raise EngineDied(self._with_log(f"the engine {_ended(code)} while it was in use"))

    def owns_port(self, port: int) -> bool | None:
        """Whether it is this engine that answers on ``port`` of 127.0.0.1.

        False: nobody listens there, or a process that is not of this engine does, be it beside it
        (``SO_REUSEPORT`` lets two servers share a port, and the kernel deals connections to both).
        None: someone listens and the system does not tell who, as with a process of another user
        (a container, a setuid program) or without /proc.
        """
        try:
            connections = psutil.net_connections("tcp")
        except (psutil.Error, OSError):
            return None
        for address in LOCAL_ADDRESSES:
            owners = {
                c.pid
                for c in connections
                if c.status == psutil.CONN_LISTEN and c.laddr and (c.laddr.ip, c.laddr.port) == (address, port)
            }
            if owners:
                if owners - {None} - {p.pid for p in self._kin().find()}:
                    return False
                return None if None in owners else True
        return False

    def owns(self, pid: int) -> bool:
        """Whether a process belongs to this engine."""
        return any(process.pid == pid for process in self._kin().find())

    def log_tail(self) -> str:
        """The last lines of the log, indented, and where the rest is.

        Above them up to three earlier lines that tell a cause, with their numbers. Only the
        beginning and the end of a large log are read.
        """
        return _quoted(self.log, _read_log(self.log))

    def stop(self, *, grace_s: float | None = None) -> None:
        """End the process group: TERM, ``grace_s``, KILL; then every other process of the engine.

        Nothing of it runs when this returns. Safe to call more than once. Raises EngineError, and
        leaves the lease file for the next run, when a process is still there ``kill_wait_s`` after
        SIGKILL: the kernel or the GPU driver holds it.
        """
        process = self._process
        if process is None or self._stopped:
            return
        left: tuple[str, ...] = ()
        # Before the first signal, while it shows whose child is whose.
        known = self._kin().find()
        try:
            self._signal_group(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self._grace_s if grace_s is None else grace_s)
        finally:
            # Also when interrupted, and after a clean exit: children may have outlived their parent.
            self._stopped = True  # once reaped, its id may belong to somebody else
            self._signal_group(signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self._kill_wait_s)
            _, left = end(lambda: self._kin().find(known), grace_s=0.0, wait_s=self._kill_wait_s)
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
            if not left:
                self._remove_lease()
        if left:
            raise EngineError(
                f"{len(left)} process{'es' if len(left) > 1 else ''} of the engine still there "
                f"{self._kill_wait_s:.0f} s after SIGKILL: {', '.join(left)}; GPU memory may be held, and only the "
                f"kernel or the GPU driver can let it go (see dmesg). Log: {self.log}"
            )

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the process has not been started")
        return self._process

    def _kin(self) -> Kin:
        return Kin(self._lease.marker, self._lease.engine, Path(self._lease.log), own=True)

    def _signal_group(self, number: signal.Signals) -> None:
        engine = self._lease.engine
        if engine is not None and identity(self.pid) not in (None, engine):
            return  # it ended long ago, and its id was given to another process
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def _with_log(self, what: str) -> str:
        text = _read_log(self.log)
        hint = f"; {OUT_OF_MEMORY_HINT}" if any(_is_out_of_memory(line.text) for line in text) else ""
        return f"{what}{hint}\n{_quoted(self.log, text)}"

    def _write_lease(self) -> None:
        if self._leases is not None:
            self._lease.write(self._leases)

    def _remove_lease(self) -> None:
        if self._leases is not None:
            self._lease.remove(self._leases)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back while an engine is being stopped, so that a second one cannot orphan it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _ended(code: int) -> str:
    if code < 0:
        known = {int(s): s.name for s in signal.Signals}
        return f"was ended by {known.get(-code, f'signal {-code}')}"
    return f"exited with code {code}"


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of a log. ``number`` counts from 1, or back from -1 where what is before it was not read."""

    number: int
    text: str


def _read_log(log: Path) -> tuple[_Line, ...]:
    """The lines of a log; of a large one those of its first and last bytes, cut lines left out."""
    try:
        with log.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            if size <= LOG_HEAD_BYTES + LOG_TAIL_BYTES:
                return tuple(_Line(n, text) for n, text in enumerate(_lines(stream.read()), start=1))
            head = stream.read(LOG_HEAD_BYTES).rpartition(b"\n")[0]
            stream.seek(size - LOG_TAIL_BYTES)
            tail = stream.read(LOG_TAIL_BYTES)
    except OSError:
        return ()
    # Without the line that is cut, unless there is no other.
    last = _lines(tail.partition(b"\n")[2] or tail)
    return (
        *(_Line(n, text) for n, text in enumerate(_lines(head), start=1)),
        *(_Line(n - len(last), text) for n, text in enumerate(last)),
    )


def _lines(data: bytes) -> list[str]:
    """Text lines. Of a progress bar, which returns to the start of its line, only its last state."""
    text = data.decode("utf-8", errors="replace").removesuffix("\n")
    return [line.removesuffix("\r").rpartition("\r")[2] for line in text.split("\n")] if text else []


def _is_out_of_memory(text: str) -> bool:
    return CAUSES[0] in text.lower() and not ADVICE.search(text)


def _rank(text: str) -> int | None:
    """How telling a line is, 0 the most; None: it tells no cause."""
    if _is_out_of_memory(text):
        return 0
    return next((n for n, cause in enumerate(CAUSES) if n > 0 and cause in text), None)


def _causes(lines: Sequence[_Line], tail: Sequence[_Line]) -> list[_Line]:
    """The most telling lines that are not in the tail, in their order.

    Of equally telling ones the first: what follows is often no more than "see above".
    """
    shown = {line.text for line in tail}
    ranked = []
    for position, line in enumerate(lines[: len(lines) - len(tail)]):
        rank = _rank(line.text)
        if rank is not None and line.text not in shown:
            shown.add(line.text)
            ranked.append((rank, position))
    return [lines[position] for position in sorted(position for _, position in sorted(ranked)[:LOG_CAUSES])]


def _quoted(log: Path, lines: Sequence[_Line]) -> str:
    tail = lines[-LOG_TAIL_LINES:]
    quoted = []
    causes = _causes(lines, tail)
    if causes:
        quoted.append(f"  likely cause in {log}:")
        quoted += [f"  | {_where(line)}: {_short(line.text.strip())}" for line in causes]
    quoted.append(f"  last lines of {log}:")
    quoted += [f"  | {_short(line.text)}" for line in tail] or ["  | (the log is empty)"]
    return "\n".join(quoted)


def _where(line: _Line) -> str:
    return f"line {line.number}" if line.number > 0 else f"line {-line.number} from the end"


def _short(text: str) -> str:
    return text if len(text) <= LOG_LINE_CHARACTERS else f"{text[:LOG_LINE_CHARACTERS]}…"

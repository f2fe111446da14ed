"""The life of one engine process: start, ready or dead, stop, nothing left behind."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pytest_speedbench.engines.base import Launch
from pytest_speedbench.errors import ConfigError, EngineDied, EngineStartError

POLL_S = 0.05
LOG_TAIL_LINES = 20


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
    ``grace_s``. ``stdin`` is a pipe held open by this process, so that a server that watches it
    ends when this process is killed.
    """

    def __init__(self, launch: Launch, folder: Path, *, grace_s: float = 30.0) -> None:
        self._launch = launch
        self._folder = folder
        self._grace_s = grace_s
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self.log = folder / "engine.log"

    def __enter__(self) -> ServerProcess:
        for name, content in self._launch.files.items():
            (self._folder / name).write_text(content, encoding="utf-8")
        try:
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._launch.argv,
                    cwd=self._folder,
                    env={**os.environ, **self._launch.env},
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise EngineStartError(f"cannot run {self._launch.argv[0]}: {error.strerror}") from error
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

        Raises EngineStartError with the last log lines when the process exits first, or when
        ``timeout_s`` passes.
        """
        began = time.monotonic()
        while True:
            code = self.exit_code
            if code is not None:
                raise EngineStartError(f"the engine {_ended(code)} before it was ready\n{self.log_tail()}")
            if ready():
                return time.monotonic() - began
            if time.monotonic() - began > timeout_s:
                raise EngineStartError(f"the engine was not ready after {timeout_s:.0f} s\n{self.log_tail()}")
            time.sleep(POLL_S)

    def require_alive(self) -> None:
        """Raise EngineDied, with the last log lines, if the process has ended."""
        code = self.exit_code
        if code is not None:
            raise EngineDied(f"the engine {_ended(code)} while it was in use\n{self.log_tail()}")

    def log_tail(self) -> str:
        """The last lines of the log, indented, and where the rest is."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []
        tail = "\n".join(f"  | {line}" for line in lines[-LOG_TAIL_LINES:]) or "  | (the log is empty)"
        return f"  last lines of {self.log}:\n{tail}"

    def stop(self) -> None:
        """End the process group: TERM, ``grace_s``, KILL. Safe to call more than once."""
        process = self._process
        if process is None or self._stopped:
            return
        self._stopped = True  # once reaped, its id may belong to somebody else
        self._signal_group(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self._grace_s)
        # Also after a clean exit: children may have outlived their parent.
        self._signal_group(signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the process has not been started")
        return self._process

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


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

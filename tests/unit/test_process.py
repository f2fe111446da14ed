"""The life of a server process, with real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pytest_speedbench.engines.base import Launch
from pytest_speedbench.engines.process import ServerProcess, free_port, require_free, uninterrupted
from pytest_speedbench.errors import ConfigError, EngineDied, EngineStartError

PATIENCE_S = 20.0
"""How long a test waits for what must happen; nothing is asserted about how long it takes."""
READ_STDIN = "import sys; print('up', flush=True); sys.stdin.read()"
IGNORE_TERM = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
)
# The parent exits at SIGTERM and leaves a child that ignores it.
ORPHAN = f"""
import signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {IGNORE_TERM!r}], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
time.sleep(60)
"""


def python(code: str) -> Launch:
    return Launch((sys.executable, "-c", code))


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def gone(pid: int) -> bool:
    """Whether a process has ended. One that only waits for its parent to take notice has."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def said(process: ServerProcess, text: str) -> Callable[[], bool]:
    return lambda: text in process.log.read_text()


# Start


def test_ready(tmp_path: Path) -> None:
    with ServerProcess(python(READ_STDIN), tmp_path) as process:
        took = process.wait_ready(said(process, "up"), timeout_s=PATIENCE_S)
        assert 0 <= took < PATIENCE_S
        assert process.exit_code is None
        process.require_alive()
        pid = process.pid
        assert os.getpgid(pid) == os.getsid(pid) == pid
    assert gone(pid)
    assert process.log == tmp_path / "engine.log"


def test_files_folder_and_environment_of_the_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INHERITED", "yes")
    monkeypatch.setenv("REPLACED", "old")
    code = "import os; print(open('server.json').read(), os.getcwd(), os.environ['INHERITED'], os.environ['REPLACED'])"
    launch = Launch((sys.executable, "-c", code), env={"REPLACED": "new"}, files={"server.json": "{'é'}"})
    with ServerProcess(launch, tmp_path) as process:
        assert eventually(lambda: process.exit_code is not None)
    assert process.log.read_text() == f"{{'é'}} {tmp_path} yes new\n"


def test_death_before_ready_shows_exit_code_and_the_end_of_the_log(tmp_path: Path) -> None:
    code = (
        "import sys; print(*range(1, 51), sep='\\n', flush=True)\n"
        "print('CUDA out of memory', file=sys.stderr); sys.exit(3)"
    )
    with (
        ServerProcess(python(code), tmp_path) as process,
        pytest.raises(EngineStartError) as caught,
    ):
        process.wait_ready(lambda: False, timeout_s=PATIENCE_S)
    first, where, *tail = str(caught.value).splitlines()
    assert first == "the engine exited with code 3 before it was ready"
    assert where == f"  last lines of {tmp_path / 'engine.log'}:"
    assert len(tail) == 20
    assert "  | CUDA out of memory" in tail
    assert not any(line in tail for line in ("  | 1", "  | 30"))


def test_death_by_signal_names_it(tmp_path: Path) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with (
        ServerProcess(python(code), tmp_path) as process,
        pytest.raises(EngineStartError, match=r"^the engine was ended by SIGKILL before it was ready") as caught,
    ):
        process.wait_ready(lambda: False, timeout_s=PATIENCE_S)
    assert "(the log is empty)" in str(caught.value)


def test_death_by_a_signal_without_a_name(tmp_path: Path) -> None:
    number = int(signal.SIGRTMIN) + 1
    with (
        ServerProcess(python(f"import os; os.kill(os.getpid(), {number})"), tmp_path) as process,
        pytest.raises(EngineStartError, match=rf"^the engine was ended by signal {number} before"),
    ):
        process.wait_ready(lambda: False, timeout_s=PATIENCE_S)


def test_never_ready_meets_the_deadline_and_is_stopped(tmp_path: Path) -> None:
    with ServerProcess(python(READ_STDIN), tmp_path) as process:
        assert eventually(said(process, "up"))
        pid = process.pid
        with pytest.raises(EngineStartError) as caught:
            process.wait_ready(lambda: False, timeout_s=0.1)
    assert str(caught.value).splitlines()[0] == "the engine was not ready after 0 s"
    assert str(caught.value).splitlines()[2] == "  | up"
    assert gone(pid)


def test_a_dead_engine_is_not_taken_for_ready(tmp_path: Path) -> None:
    # Some other server may answer on the port.
    with ServerProcess(python("raise SystemExit(0)"), tmp_path) as process:
        assert eventually(lambda: process.exit_code is not None)
        with pytest.raises(EngineStartError, match="exited with code 0 before it was ready"):
            process.wait_ready(lambda: True, timeout_s=PATIENCE_S)


def test_missing_program(tmp_path: Path) -> None:
    program = str(tmp_path / "llama-server")
    with (
        pytest.raises(EngineStartError, match=f"^cannot run {program}: No such file or directory$"),
        ServerProcess(Launch((program,)), tmp_path),
    ):
        pass


def test_program_that_may_not_be_run(tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text("")
    with (
        pytest.raises(EngineStartError, match=f"^cannot run {program}: Permission denied$"),
        ServerProcess(Launch((str(program),)), tmp_path),
    ):
        pass


def test_not_started_is_a_programming_error(tmp_path: Path) -> None:
    process = ServerProcess(python(READ_STDIN), tmp_path)
    with pytest.raises(RuntimeError, match="has not been started"):
        _ = process.pid
    process.stop()


# In use


def test_death_in_use(tmp_path: Path) -> None:
    with ServerProcess(python(READ_STDIN), tmp_path) as process:
        process.wait_ready(said(process, "up"), timeout_s=PATIENCE_S)
        os.kill(process.pid, signal.SIGKILL)
        assert eventually(lambda: process.exit_code is not None)
        with pytest.raises(EngineDied) as caught:
            process.require_alive()
    first, where, last = str(caught.value).splitlines()
    assert first == "the engine was ended by SIGKILL while it was in use"
    assert where == f"  last lines of {process.log}:"
    assert last == "  | up"


def test_log_that_is_no_text(tmp_path: Path) -> None:
    code = "import sys; sys.stdout.buffer.write(b'bad \\xff byte\\n')"
    with ServerProcess(python(code), tmp_path) as process:
        assert eventually(lambda: process.exit_code is not None)
    assert "bad \ufffd byte" in process.log_tail()


# Stop


def test_term_is_tried_first(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('bye', flush=True), sys.exit(0)))\n"
        "print('up', flush=True); time.sleep(60)"
    )
    with ServerProcess(python(code), tmp_path) as process:
        process.wait_ready(said(process, "up"), timeout_s=PATIENCE_S)
    assert process.log.read_text() == "up\nbye\n"
    assert process.exit_code == 0


def test_kill_follows_when_term_is_ignored(tmp_path: Path) -> None:
    with ServerProcess(python(IGNORE_TERM), tmp_path, grace_s=0.1) as process:
        process.wait_ready(said(process, "up"), timeout_s=PATIENCE_S)
    assert process.exit_code == -signal.SIGKILL


def test_children_that_outlive_their_parent_are_killed(tmp_path: Path) -> None:
    with ServerProcess(python(ORPHAN), tmp_path) as process:
        process.wait_ready(lambda: process.log.read_text().endswith("\n"), timeout_s=PATIENCE_S)
        child = int(process.log.read_text())
        assert os.getpgid(child) == process.pid
        assert not gone(child)
    assert process.exit_code == 0
    assert eventually(lambda: gone(child))


def test_children_of_a_parent_that_died_are_killed(tmp_path: Path) -> None:
    with ServerProcess(python(ORPHAN), tmp_path) as process:
        process.wait_ready(lambda: process.log.read_text().endswith("\n"), timeout_s=PATIENCE_S)
        child = int(process.log.read_text())
        os.kill(process.pid, signal.SIGKILL)
        assert eventually(lambda: process.exit_code is not None)
    assert eventually(lambda: gone(child))


def test_an_exception_in_the_body_stops_the_server_too(tmp_path: Path) -> None:
    pids = []

    def interrupted() -> None:
        with ServerProcess(python(READ_STDIN), tmp_path) as process:
            pids.append(process.pid)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert gone(pids[0])


def test_stop_twice_signals_once(tmp_path: Path) -> None:
    with ServerProcess(python(READ_STDIN), tmp_path) as process:
        process.wait_ready(said(process, "up"), timeout_s=PATIENCE_S)
        process.stop()
        code = process.exit_code
        assert code is not None
        process.stop()
        assert process.exit_code == code


def test_the_server_sees_its_parent_die(tmp_path: Path) -> None:
    # The parent is killed without a chance to clean up; what is left is the end of the pipe.
    parent = f"""
import sys, time
from pathlib import Path
from pytest_speedbench.engines.base import Launch
from pytest_speedbench.engines.process import ServerProcess
with ServerProcess(Launch((sys.executable, "-c", {READ_STDIN!r})), Path({str(tmp_path)!r})) as process:
    print(process.pid, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        pid = int(killed.stdout.readline())
        try:
            assert eventually(lambda: "up" in (tmp_path / "engine.log").read_text())
            assert not gone(pid)
            killed.kill()
            assert eventually(lambda: gone(pid))
        finally:
            killed.kill()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_ctrl_c_does_not_reach_the_server(tmp_path: Path) -> None:
    with ServerProcess(python(READ_STDIN), tmp_path) as process:
        # A terminal sends SIGINT to its foreground group, which is ours.
        assert os.getpgid(process.pid) != os.getpgid(0)


def test_interrupts_are_held_back_while_stopping() -> None:
    before = signal.getsignal(signal.SIGINT)
    with uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ZeroDivisionError), uninterrupted():
        _ = 1 / 0
    assert signal.getsignal(signal.SIGINT) is before


def test_holding_interrupts_back_works_in_any_thread() -> None:
    entered = []

    def run() -> None:
        with uninterrupted():
            entered.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert entered == [True]


# Ports


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_free_port_can_be_used() -> None:
    port = free_port()
    require_free(port)
    with socket.socket() as server:
        server.bind(("127.0.0.1", port))


def test_a_port_in_use_is_refused(taken: int) -> None:
    with pytest.raises(ConfigError, match=f"^port {taken} of 127.0.0.1 is in use; leave `port` out of the profile"):
        require_free(taken)


def test_a_port_of_a_listener_on_all_addresses_is_refused() -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind(("0.0.0.0", 0))
        server.listen()
        with pytest.raises(ConfigError, match="is in use"):
            require_free(server.getsockname()[1])


def test_a_port_in_time_wait_is_free() -> None:
    # A server that closes its connections first, as llama-server does, leaves them so for a minute.
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = server.accept()
            accepted.close()
            client.recv(1)
    require_free(port)

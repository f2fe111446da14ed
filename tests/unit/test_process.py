"""The life of a server process, with real processes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
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
from pytest_speedbench.engines.leases import MARKER
from pytest_speedbench.engines.process import ServerProcess, free_port, require_free, uninterrupted
from pytest_speedbench.errors import ConfigError, EngineDied, EngineError, EngineStartError

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
        "print('no kernel image', file=sys.stderr); sys.exit(3)"
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
    assert "  | no kernel image" in tail
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


def test_an_engine_that_dies_while_another_server_answers_is_not_ready(tmp_path: Path) -> None:
    with ServerProcess(python(READ_STDIN), tmp_path) as process:

        def another_answers() -> bool:
            os.kill(process.pid, signal.SIGKILL)
            return eventually(lambda: process.exit_code is not None)

        with pytest.raises(EngineStartError, match="was ended by SIGKILL before it was ready"):
            process.wait_ready(another_answers, timeout_s=PATIENCE_S)


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


# Sleepers that ignore SIGTERM and report their ids, told from other processes by less and less.
FAMILY = """
import os, signal, sys, time
def spawn(*how):
    if os.fork():
        return
    if "orphan" in how and os.fork():
        os._exit(0)
    if "session" in how:
        os.setsid()
    if "group" in how:
        os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.write(1, f"{os.getpid()}\\n".encode())
    if "silent" in how:
        for number in (0, 1, 2):
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
    os.execve(SLEEP, ["sleep", "600"], {} if "bare" in how else os.environ)
"""


def family(*members: tuple[str, ...], then: str = "time.sleep(600)") -> Launch:
    """An engine with a child per member."""
    lines = [f"SLEEP = {shutil.which('sleep')!r}", FAMILY, *(f"spawn(*{how!r})" for how in members), then]
    return python("\n".join(lines))


def reported(process: ServerProcess, number: int) -> list[int]:
    """The ids of that many children, all of which run."""

    def words() -> list[str]:
        text = process.log.read_text()
        return text.split() if text.endswith("\n") else []

    process.wait_ready(lambda: len(words()) == number, timeout_s=PATIENCE_S)
    pids = [int(word) for word in words()]
    assert not any(map(gone, pids))
    return pids


@pytest.mark.parametrize(
    "how",
    [
        pytest.param((), id="group"),
        pytest.param(("session", "orphan", "silent"), id="marker-alone"),
        pytest.param(("session", "bare", "silent"), id="parent-alone"),
        pytest.param(("session", "bare", "orphan"), id="log-alone"),
        pytest.param(("group", "bare", "orphan", "silent"), id="session-alone"),
    ],
)
def test_no_descendant_outlives_the_stop(tmp_path: Path, how: tuple[str, ...]) -> None:
    # "bare" stands for a program that overwrites its environment with a process title.
    with ServerProcess(family(how), tmp_path, grace_s=0.0) as process:
        (child,) = reported(process, 1)
    assert gone(child)


def test_descendants_of_an_engine_that_died_are_ended(tmp_path: Path) -> None:
    members = (("session", "silent"), ("group", "bare", "silent"))
    with ServerProcess(family(*members), tmp_path) as process:
        children = reported(process, 2)
        os.kill(process.pid, signal.SIGKILL)
        assert eventually(lambda: process.exit_code is not None)
        assert not any(map(gone, children))
    assert all(map(gone, children))


def test_processes_of_another_engine_and_of_nobody_are_spared(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    with (
        subprocess.Popen(
            [sys.executable, "-c", READ_STDIN], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        ) as nobody,
        ServerProcess(family(("session", "orphan", "silent")), folders[0]) as other,
    ):
        (child,) = reported(other, 1)
        with ServerProcess(family(("session",)), folders[1]) as process:
            reported(process, 1)
        assert not gone(child)
        assert other.exit_code is None
        assert nobody.poll() is None


def test_an_interrupted_stop_still_kills(tmp_path: Path) -> None:
    # The engine answers SIGTERM with a Ctrl-C for us and goes on.
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getppid(), signal.SIGINT))\n"
        "print('up', flush=True)\n"
        "while True: time.sleep(1)"
    )
    process = ServerProcess(python(code), tmp_path, grace_s=600.0)
    with process:
        process.wait_ready(said(process, "up"), timeout_s=PATIENCE_S)
        with pytest.raises(KeyboardInterrupt):
            process.stop()
        assert process.exit_code == -signal.SIGKILL


def test_a_process_that_cannot_be_killed_is_an_error_and_keeps_its_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = tmp_path / "leases"
    process = ServerProcess(family(("session",)), tmp_path, grace_s=0.0, kill_wait_s=0.1, leases=leases)
    with process:
        (child,) = reported(process, 1)
        with monkeypatch.context() as held:
            # As for a process that waits for the GPU driver.
            held.setattr(psutil.Process, "kill", lambda _: None)
            with pytest.raises(EngineError) as caught:
                process.stop()
    message = str(caught.value)
    assert message.startswith("1 process of the engine still there 0 s after SIGKILL: ")
    assert f": {child} sleep (sleeping); GPU memory may be held" in message
    assert str(process.log) in message
    assert len(list(leases.glob("*.json"))) == 1
    psutil.Process(child).kill()


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


# Leases


def test_a_lease_is_there_before_the_engine_and_until_it_is_gone(tmp_path: Path) -> None:
    leases = tmp_path / "state" / "engines"
    # The engine itself looks for the file of its marker.
    code = (
        "import os, sys, time\n"
        f"print(open({str(leases)!r} + '/' + os.environ[{MARKER!r}] + '.json').read(), flush=True)\n"
        "sys.stdin.read()"
    )
    with ServerProcess(python(code), tmp_path, leases=leases, port=8123, gpus=("GPU-1",)) as process:
        process.wait_ready(said(process, "\n"), timeout_s=PATIENCE_S)
        (path,) = leases.glob("*.json")
        lease = json.loads(path.read_text())
    assert lease["marker"] == path.stem
    assert lease["argv0"] == sys.executable
    assert lease["engine"]["pid"] == process.pid
    assert lease["owner"]["pid"] == os.getpid()
    assert (lease["port"], lease["gpus"], lease["log"]) == (8123, ["GPU-1"], str(process.log))
    assert json.loads(process.log.read_text())["marker"] == path.stem
    assert list(leases.iterdir()) == []


def test_an_engine_that_cannot_be_run_leaves_no_lease(tmp_path: Path) -> None:
    leases = tmp_path / "leases"
    with (
        pytest.raises(EngineStartError),
        ServerProcess(Launch((str(tmp_path / "llama-server"),)), tmp_path, leases=leases),
    ):
        pass
    assert list(leases.iterdir()) == []


def test_no_engine_without_its_lease(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    leases = tmp_path / "file" / "engines"
    with (
        pytest.raises(ConfigError, match=rf"^cannot write the lease file {leases}.* set SPEEDBENCH_STATE_DIR"),
        ServerProcess(python(READ_STDIN), tmp_path, leases=leases),
    ):
        pass
    assert not (tmp_path / "engine.log").exists()


def test_the_marker_is_not_to_be_replaced_by_a_profile(tmp_path: Path) -> None:
    launch = Launch((sys.executable, "-c", f"import os; print(os.environ[{MARKER!r}])"), env={MARKER: "mine"})
    with ServerProcess(launch, tmp_path) as process:
        assert eventually(lambda: process.exit_code is not None)
    assert len(process.log.read_text().strip()) == 32


# The log


def log_of(tmp_path: Path, text: str) -> tuple[str, ...]:
    """What the error of an engine shows that died with that log, by line."""
    (tmp_path / "engine.log").write_text(text)
    with ServerProcess(python("raise SystemExit(1)"), tmp_path) as process, pytest.raises(EngineStartError) as caught:
        process.wait_ready(lambda: False, timeout_s=PATIENCE_S)
    return tuple(str(caught.value).splitlines())


def log_of_existing(tmp_path: Path) -> tuple[str, ...]:
    return ("", *ServerProcess(python(""), tmp_path).log_tail().splitlines())


def numbered(count: int) -> str:
    return "".join(f"step {n}\n" for n in range(count))


def test_a_cause_far_above_the_tail_is_quoted_with_its_number(tmp_path: Path) -> None:
    oom = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    shown = log_of(tmp_path, f"{numbered(99)}{oom}\n{numbered(3000)}")
    assert shown[0].startswith(
        "the engine exited with code 1 before it was ready; the GPU ran out of memory; lower the engine's share of it"
    )
    assert shown[1:4] == (
        f"  likely cause in {tmp_path / 'engine.log'}:",
        f"  | line 100: {oom}",
        f"  last lines of {tmp_path / 'engine.log'}:",
    )
    assert shown[4:] == tuple(f"  | step {n}" for n in range(2980, 3000))


def test_a_cause_in_the_tail_is_not_quoted_twice_but_explained(tmp_path: Path) -> None:
    shown = log_of(tmp_path, f"{numbered(99)}cudaMalloc failed: out of memory\n")
    assert "the GPU ran out of memory" in shown[0]
    assert shown[1] == f"  last lines of {tmp_path / 'engine.log'}:"
    assert shown[-1] == "  | cudaMalloc failed: out of memory"


def test_the_most_telling_lines_are_quoted_in_their_order(tmp_path: Path) -> None:
    lines = (
        "ValueError: first",
        "RuntimeError: the engine core failed, see above",
        "ImportError: libcudart.so",
        "ImportError: libcudart.so",
        "vllm serve: error: unrecognized arguments: --fast",
    )
    shown = log_of(tmp_path, "\n".join(lines) + "\n" + numbered(50))
    assert shown[0] == "the engine exited with code 1 before it was ready"
    assert shown[2:5] == (f"  | line 1: {lines[0]}", f"  | line 3: {lines[2]}", f"  | line 5: {lines[4]}")
    assert "last lines" in shown[5]


@pytest.mark.parametrize(
    "cause",
    [
        "RuntimeError: CUDA error: an illegal memory access was encountered",
        "OSError: [Errno 28] No space left on device",
        "OSError: [Errno 98] Address already in use",
        "ModuleNotFoundError: No module named 'flash_attn'",
        "launch_server.py: error: argument --tp: invalid int value: 'x'",
        "run.sh: line 3: 4711 Killed",
    ],
)
def test_what_tells_a_cause(tmp_path: Path, cause: str) -> None:
    assert f"  | line 1: {cause}" in log_of(tmp_path, f"{cause}\n{numbered(50)}")


def test_advice_about_memory_is_no_cause(tmp_path: Path) -> None:
    shown = log_of(tmp_path, f"lower max_num_seqs to avoid running out of memory\n{numbered(50)}")
    assert shown[0] == "the engine exited with code 1 before it was ready"
    assert "last lines" in shown[1]


def test_of_a_huge_log_the_ends_are_read(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    with log.open("wb") as stream:
        stream.write(b"ValueError: at the beginning\n")
        stream.seek(300_000_000)
        stream.write(b"\nRuntimeError: in the middle\n")
        stream.seek(600_000_000)
        stream.write(b"\nImportError: near the end\n" + numbered(30).encode())
    shown = log_of_existing(tmp_path)
    assert shown[2:4] == (
        "  | line 1: ValueError: at the beginning",
        "  | line 31 from the end: ImportError: near the end",
    )
    assert shown[4] == f"  last lines of {log}:"
    assert shown[5:] == tuple(f"  | step {n}" for n in range(10, 30))


def test_of_a_progress_bar_the_last_state_is_shown_and_long_lines_are_cut(tmp_path: Path) -> None:
    (tmp_path / "engine.log").write_text("start\r\n0%\r50%\r100%\n" + "x" * 3000 + "\n", newline="")
    assert log_of_existing(tmp_path)[2:] == ("  | start", "  | 100%", f"  | {'x' * 500}…")


# Whose port


LISTEN = """
import socket, sys, time
server = socket.socket({family})
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
server.bind(({address!r}, {port}))
server.listen()
print(server.getsockname()[1], flush=True)
sys.stdin.read()
"""


def listener(address: str = "127.0.0.1", port: int = 0) -> str:
    return LISTEN.format(address=address, port=port, family="socket.AF_INET6" if ":" in address else "")


def port_of(process: ServerProcess) -> int:
    process.wait_ready(said(process, "\n"), timeout_s=PATIENCE_S)
    return int(process.log.read_text())


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::"])
def test_the_port_is_its_own(tmp_path: Path, address: str) -> None:
    with ServerProcess(python(listener(address)), tmp_path) as process:
        assert process.owns_port(port_of(process)) is True


def test_the_port_is_its_child_s(tmp_path: Path) -> None:
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {listener()!r}], start_new_session=True)"
    with ServerProcess(python(code), tmp_path) as process:
        assert process.owns_port(port_of(process)) is True


def test_the_port_is_nobody_s(tmp_path: Path) -> None:
    with ServerProcess(python(READ_STDIN), tmp_path) as process:
        process.wait_ready(said(process, "up"), timeout_s=PATIENCE_S)
        assert process.owns_port(free_port()) is False


@contextlib.contextmanager
def stranger(code: str) -> Iterator[int]:
    """A server that is not the engine's; gives its port."""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            yield int(server.stdout.readline())
        finally:
            server.kill()


def test_another_server_won_the_port(tmp_path: Path) -> None:
    with stranger(listener()) as port, ServerProcess(python(READ_STDIN), tmp_path) as process:
        process.wait_ready(said(process, "up"), timeout_s=PATIENCE_S)
        assert process.owns_port(port) is False


def test_another_server_shares_the_port(tmp_path: Path) -> None:
    # vLLM listens with SO_REUSEPORT: a second server on the same port gets some of the connections.
    with stranger(listener()) as port, ServerProcess(python(listener(port=port)), tmp_path) as process:
        assert port_of(process) == port
        assert process.owns_port(port) is False


def test_the_more_exact_address_gets_the_connections(tmp_path: Path) -> None:
    with stranger(listener("0.0.0.0")) as port, ServerProcess(python(listener(port=port)), tmp_path) as process:
        assert port_of(process) == port
        assert process.owns_port(port) is True
    other = tmp_path / "other"
    other.mkdir()
    with stranger(listener()) as port, ServerProcess(python(listener("0.0.0.0", port)), other) as process:
        assert port_of(process) == port
        assert process.owns_port(port) is False


def test_a_listener_that_the_system_does_not_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ServerProcess(python(listener()), tmp_path) as process:
        port = port_of(process)
        unnamed = [c._replace(pid=None) for c in psutil.net_connections("tcp")]
        with monkeypatch.context() as hidden:
            hidden.setattr(psutil, "net_connections", lambda _: unnamed)
            assert process.owns_port(port) is None

        def refused(_: str) -> None:
            raise psutil.AccessDenied

        with monkeypatch.context() as hidden:
            hidden.setattr(psutil, "net_connections", refused)
            assert process.owns_port(port) is None

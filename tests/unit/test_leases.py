"""What a killed run left is ended by the next one, and nothing else is. With real processes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from filelock import FileLock, Timeout

from pytest_speedbench.engines import leases
from pytest_speedbench.engines.base import Launch
from pytest_speedbench.engines.leases import (
    MARKER,
    Identity,
    Lease,
    Place,
    Reaped,
    end,
    identity,
    is_running,
    leases_folder,
    reap,
    state_folder,
)
from pytest_speedbench.engines.process import ServerProcess
from pytest_speedbench.errors import ConfigError, EngineError

PATIENCE_S = 30.0
"""How long a test waits for what must happen; nothing is asserted about how long it takes."""
SLEEP = shutil.which("sleep") or "sleep"


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


# An engine with one child; it reports its own id and the child's. HOW says what tells them.
ENGINE = """
import os, signal, time
how = HOW
if "deaf" in how:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
report = os.dup(1)
if os.fork() == 0:
    if "orphan" in how and os.fork():
        os._exit(0)
    if "session" in how:
        os.setsid()
    if "group" in how:
        os.setpgid(0, 0)
    os.write(report, f"{os.getppid() if 'orphan' not in how else 0} {os.getpid()}\\n".encode())
    os.close(report)
    for number in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    os.execve(SLEEP, ["sleep", "600"], {} if "bare" in how else os.environ)
while True:
    time.sleep(600)
"""

# A run that starts an engine and says what it started, then waits to be killed.
OWNER = """
import sys, time
from pathlib import Path
from pytest_speedbench.engines.base import Launch
from pytest_speedbench.engines.process import ServerProcess
folder = Path(FOLDER)
launch = Launch((sys.executable, "-c", ENGINE))
with ServerProcess(launch, folder, leases=folder / "leases", port=8123, gpus=("GPU-1",)) as process:
    process.wait_ready(lambda: process.log.read_text().endswith("\\n"), timeout_s=60)
    print(process.pid, process.log.read_text().split()[1], flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def killed_run(folder: Path, *how: str) -> Iterator[tuple[int, int, int]]:
    """The ids of a run that was killed with its engine running: owner, engine, the engine's child."""
    engine = f"SLEEP = {SLEEP!r}\n" + ENGINE.replace("HOW", repr(how))
    code = f"FOLDER = {str(folder)!r}\nENGINE = {engine!r}\n{OWNER}"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid, child = (int(word) for word in owner.stdout.readline().split())
        owner.kill()
    try:
        assert not gone(pid)
        assert not gone(child)
        yield owner.pid, pid, child
    finally:
        for left in (pid, child):
            with contextlib.suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)


@contextlib.contextmanager
def bystander(environ: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own that has nothing to do with any engine."""
    with subprocess.Popen([SLEEP, "600"], start_new_session=True, env=environ) as process:
        try:
            yield process
        finally:
            process.kill()


def some_lease(**changes: object) -> Lease:
    """A lease whose owner is gone: it has this process's id and another time of creation."""
    lease = Lease.new(argv0="/opt/bin/llama-server", log=Path("/tmp/engine.log"), port=8123)
    owner = Identity(os.getpid(), lease.owner.created - 100)
    return dataclasses.replace(lease, **{"owner": owner, **changes})  # type: ignore[arg-type]


def stored(folder: Path, lease: Lease) -> Path:
    lease.write(folder)
    return lease.path(folder)


# Identity


def test_an_identity_is_an_id_and_a_time_since_boot() -> None:
    me = identity(os.getpid())
    assert me is not None
    assert me.pid == os.getpid()
    assert me.created == pytest.approx(psutil.Process().create_time() - psutil.boot_time(), abs=2)
    assert is_running(me)
    assert not is_running(dataclasses.replace(me, created=me.created - 0.01))


def test_a_process_that_waits_for_its_parent_has_an_identity_and_does_not_run() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        assert eventually(lambda: gone(process.pid))
        zombie = identity(process.pid)
        assert zombie is not None
        assert not is_running(zombie)
    assert identity(process.pid) is None
    assert not is_running(zombie)


# What is reaped


@pytest.mark.parametrize(
    "how",
    [
        pytest.param((), id="plain"),
        pytest.param(("deaf",), id="term-ignored"),
        pytest.param(("session", "orphan"), id="marker-alone"),
        pytest.param(("session", "bare"), id="parent-alone"),
        pytest.param(("group", "bare", "orphan"), id="session-alone"),
    ],
)
def test_the_engine_of_a_killed_run_is_ended(tmp_path: Path, how: tuple[str, ...]) -> None:
    with killed_run(tmp_path, *how) as (owner, pid, child):
        (reaped,) = reap(tmp_path / "leases", grace_s=0.2)
        assert gone(pid)
        assert gone(child)
    assert reaped.ended == tuple(sorted((pid, child)))
    assert reaped.left == ()
    assert reaped.lease is not None
    assert reaped.lease.engine is not None
    assert reaped.lease.engine.pid == pid
    assert reaped.lease.gpus == ("GPU-1",)
    assert reaped.note.startswith(f"ended {Path(sys.executable).name} on port 8123, started 20")
    assert reaped.note.endswith(
        f"(pids {reaped.ended[0]}, {reaped.ended[1]}), left by the run with pid {owner} that was killed"
    )
    assert not list((tmp_path / "leases").glob("*.json"))
    assert reap(tmp_path / "leases") == ()


def test_children_of_an_engine_that_is_gone_too_are_ended(tmp_path: Path) -> None:
    with killed_run(tmp_path, "group", "bare") as (_, pid, child):
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: gone(pid))
        (reaped,) = reap(tmp_path / "leases", grace_s=0.2)
        assert gone(child)
    assert reaped.ended == (child,)


def test_a_run_killed_between_the_lease_and_its_engine_s_id(tmp_path: Path) -> None:
    lease = some_lease()
    path = stored(tmp_path, lease)
    with bystander({MARKER: lease.marker, "PATH": "/bin"}) as engine:
        (reaped,) = reap(tmp_path)
        assert gone(engine.pid)
    assert reaped.ended == (engine.pid,)
    assert not path.exists()


def test_an_engine_that_had_ended_by_itself(tmp_path: Path) -> None:
    path = stored(tmp_path, some_lease(engine=Identity(2**22 + 1, 1.0)))
    (reaped,) = reap(tmp_path)
    assert reaped.note.startswith("removed the lease of llama-server on port 8123, started ")
    assert reaped.note.endswith("that was killed; the engine had ended")
    assert str(reaped) == reaped.note
    assert (reaped.ended, reaped.left) == ((), ())
    assert not path.exists()


def test_what_cannot_be_ended_is_said_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with killed_run(tmp_path, "deaf") as (_, pid, child):
        with monkeypatch.context() as held:
            # As for a process that waits for the GPU driver.
            held.setattr(psutil.Process, "kill", lambda _: None)
            (reaped,) = reap(tmp_path / "leases", grace_s=0.01, wait_s=0.1)
        assert [word.split()[0] for word in reaped.left] == [str(p) for p in sorted((pid, child))]
        assert f"left by the run with pid {reaped.lease.owner.pid if reaped.lease else 0}" in reaped.note
        assert "still there 0 s after SIGKILL; it may hold GPU memory" in reaped.note
        (again,) = reap(tmp_path / "leases", grace_s=0.01)
        assert again.left == ()
        assert gone(pid)
        assert gone(child)


def test_two_reapers_at_once_share_the_work(tmp_path: Path) -> None:
    together = threading.Barrier(2)
    results: list[tuple[Reaped, ...]] = []

    def run() -> None:
        together.wait()
        # Long enough for the other one to come by while this one waits.
        results.append(reap(tmp_path / "leases", grace_s=0.5))

    with killed_run(tmp_path, "deaf") as (_, pid, child):
        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert gone(pid)
        assert gone(child)
    assert sorted(len(result) for result in results) == [0, 1]


def test_a_reaper_that_never_finishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(tmp_path, some_lease())
    monkeypatch.setattr(leases, "LOCK_WAIT_S", 0.0)
    with (
        FileLock(tmp_path / "reap.lock"),
        pytest.raises(EngineError, match="another run has been ending left-over engines for 0 s") as caught,
    ):
        reap(tmp_path)
    assert isinstance(caught.value.__cause__, Timeout)


# What is left alone


def test_the_engine_of_a_run_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    launch = Launch((sys.executable, "-c", "import sys; sys.stdin.read()"))
    with ServerProcess(launch, tmp_path, leases=tmp_path / "leases") as process:
        assert reap(tmp_path / "leases") == ()
        assert process.exit_code is None
        assert len(list((tmp_path / "leases").glob("*.json"))) == 1


def test_another_process_that_got_the_engine_s_id_is_left_alone(tmp_path: Path) -> None:
    with bystander() as other, bystander({}) as bare:
        for process in (other, bare):
            now = identity(process.pid)
            assert now is not None
            stored(tmp_path, some_lease(engine=Identity(now.pid, now.created - 0.01)))
        assert [reaped.ended for reaped in reap(tmp_path)] == [(), ()]
        assert other.poll() is None
        assert bare.poll() is None


@pytest.mark.parametrize("environ", [{"PATH": "/bin"}, {MARKER: "another"}], ids=["ordinary", "another-engine"])
def test_a_stranger_in_a_session_with_that_number_is_left_alone(tmp_path: Path, environ: dict[str, str]) -> None:
    # The engine is gone, its id went to another session's leader, and that is gone as well.
    code = f"import subprocess; print(subprocess.Popen([{SLEEP!r}, '600'], stdout=subprocess.DEVNULL).pid)"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, text=True, env=environ) as leader:
        child = int(leader.communicate()[0])
    try:
        assert os.getsid(child) == leader.pid
        stored(tmp_path, some_lease(engine=Identity(leader.pid, 1.0)))
        (reaped,) = reap(tmp_path)
        assert reaped.ended == ()
        assert not gone(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_run_inside_an_engine_does_not_end_itself(tmp_path: Path) -> None:
    lease = some_lease()
    stored(tmp_path, lease)
    code = (
        "from pathlib import Path\n"
        "from pytest_speedbench.engines.leases import reap\n"
        f"print(reap(Path({str(tmp_path)!r}))[0].ended)"
    )
    environ = {**os.environ, MARKER: lease.marker}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == "()\n"


@pytest.mark.parametrize(
    "elsewhere",
    [
        pytest.param({"pid_namespace": "pid:[1]"}, id="container"),
        pytest.param({"host": "another", "boot": "another"}, id="machine"),
        pytest.param({"uid": os.getuid() + 1}, id="user"),
    ],
)
def test_leases_of_elsewhere_are_left_alone(tmp_path: Path, elsewhere: dict[str, object]) -> None:
    place = dataclasses.replace(Place.here(), **elsewhere)  # type: ignore[arg-type]
    path = stored(tmp_path, some_lease(place=place))
    assert reap(tmp_path) == ()
    assert path.exists()


def test_a_container_that_sees_the_host_s_processes_reaps(tmp_path: Path) -> None:
    path = stored(tmp_path, some_lease(place=dataclasses.replace(Place.here(), host="another")))
    assert len(reap(tmp_path)) == 1
    assert not path.exists()


def test_after_a_restart_of_the_machine_there_is_nothing_to_end(tmp_path: Path) -> None:
    with bystander() as other:
        place = dataclasses.replace(Place.here(), boot="before")
        path = stored(tmp_path, some_lease(place=place, engine=identity(other.pid)))
        (reaped,) = reap(tmp_path)
        assert other.poll() is None
    assert reaped.note.endswith("which ended when the machine was restarted")
    assert not path.exists()


def test_a_lease_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = stored(tmp_path, some_lease())
    path.write_text(json.dumps({"schema": 2, "something": "else"}))
    assert reap(tmp_path) == ()
    assert path.exists()


def test_no_folder_no_leases(tmp_path: Path) -> None:
    assert reap(tmp_path / "nothing") == ()
    assert not (tmp_path / "nothing").exists()


# What cannot be understood


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"{}", b"\xff", b'{"schema": 1, "engine": null, "marker": "m"}'],
)
def test_a_corrupt_lease_is_removed_and_said(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "0123.json"
    path.write_bytes(content)
    good = stored(tmp_path, some_lease())
    by_path = {reaped.path: reaped for reaped in reap(tmp_path)}
    assert by_path.keys() == {path, good}
    assert by_path[path].lease is None
    assert by_path[path].note.startswith(f"removed the lease file {path}, which could not be understood (")
    assert not list(tmp_path.glob("*.json"))


def test_a_lease_under_another_name_ends_nothing(tmp_path: Path) -> None:
    lease = some_lease()
    stored(tmp_path, lease).rename(tmp_path / "copy.json")
    with bystander({MARKER: lease.marker}) as process:
        (reaped,) = reap(tmp_path)
        assert process.poll() is None
    assert "its marker is not its name" in reaped.note


def test_an_engine_id_that_is_no_number(tmp_path: Path) -> None:
    path = stored(tmp_path, some_lease())
    path.write_text(json.dumps({**json.loads(path.read_text()), "engine": {"pid": "x", "created": 1}}))
    (reaped,) = reap(tmp_path)
    assert "could not be understood" in reaped.note


# Ending


def test_processes_that_appear_while_others_are_killed_are_ended() -> None:
    with bystander() as first, bystander() as second:
        rounds = [[psutil.Process(first.pid)], [psutil.Process(second.pid)], []]
        ended, left = end(lambda: rounds.pop(0), grace_s=0.0, wait_s=PATIENCE_S)
        assert gone(first.pid)
        assert gone(second.pid)
    assert ended == tuple(sorted((first.pid, second.pid)))
    assert left == ()


# Folders


def test_the_state_folder(tmp_path: Path) -> None:
    assert leases_folder({"SPEEDBENCH_STATE_DIR": str(tmp_path)}) == tmp_path / "engines"
    assert state_folder({"SPEEDBENCH_STATE_DIR": "here"}) == Path.cwd() / "here"
    assert state_folder({}).name == state_folder({"SPEEDBENCH_STATE_DIR": ""}).name == "pytest-speedbench"


def test_a_lease_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="set SPEEDBENCH_STATE_DIR to a folder that can be written"):
        some_lease().write(tmp_path / "file")

"""Engines started and stopped many times: nothing may be left, however often.

``SPEEDBENCH_SOAK=1`` runs 200 cycles instead of 10.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from pathlib import Path

import psutil
import pytest

from pytest_speedbench.engines.base import Launch
from pytest_speedbench.engines.leases import MARKER, reap
from pytest_speedbench.engines.process import ServerProcess

PATIENCE_S = 60.0
CHILDREN = 4
# Children that ignore SIGTERM: in the engine's group, in sessions of their own, and without a parent.
ENGINE = f"""
import os, signal, time
for session, orphan in ((0, 0), (1, 0), (0, 1), (1, 1)):
    if os.fork():
        continue
    if orphan and os.fork():
        os._exit(0)
    if session:
        os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.write(1, f"{{os.getpid()}}\\n".encode())
    os.execv({shutil.which("sleep")!r}, ["sleep", "600"])
while True:
    time.sleep(600)
"""


def marked() -> set[str]:
    """The markers in the environments of this machine's processes."""
    markers = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE:
                markers.add(process.environ().get(MARKER, ""))
    return markers


def cycle(folder: Path, leases: Path) -> set[psutil.Process]:
    """Start an engine, see its children, stop it. Returns its processes."""
    folder.mkdir()
    with ServerProcess(Launch((sys.executable, "-S", "-c", ENGINE)), folder, leases=leases) as process:
        process.wait_ready(lambda: process.log.read_text().count("\n") == CHILDREN, timeout_s=PATIENCE_S)
        (lease,) = leases.glob("*.json")
        assert lease.stem in marked()
        family = {psutil.Process(pid) for pid in (process.pid, *map(int, process.log.read_text().split()))}
        assert all(map(runs, family))
    assert lease.stem not in marked()
    assert not any(map(runs, family))
    shutil.rmtree(folder)
    return family


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def soak(tmp_path: Path, cycles: int) -> None:
    leases = tmp_path / "leases"
    began = time.monotonic()
    open_before = psutil.Process().num_fds()
    seen: set[psutil.Process] = set()
    for number in range(cycles):
        seen |= cycle(tmp_path / str(number), leases)
    orphans = [process for process in seen if runs(process)]
    print(f"{cycles} cycles, {len(seen)} processes, {time.monotonic() - began:.1f} s, {len(orphans)} orphans")
    assert not orphans
    assert list(leases.iterdir()) == []
    assert reap(leases) == ()
    assert psutil.Process().num_fds() <= open_before


def test_ten_cycles_leave_nothing(tmp_path: Path) -> None:
    soak(tmp_path, 10)


def test_two_hundred_cycles_leave_nothing(tmp_path: Path) -> None:
    if os.environ.get("SPEEDBENCH_SOAK") != "1":
        pytest.skip("set SPEEDBENCH_SOAK=1 to run 200 cycles")
    soak(tmp_path, 200)

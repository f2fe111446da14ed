"""GPUs seen through a small driver whose memory is scripted, and through NVML where there is none."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pytest_speedbench.engines.gpu_sensor import NvmlSensor
from pytest_speedbench.engines.gpu_watch import watched
from pytest_speedbench.engines.gpus import (
    SLACK_BYTES,
    Gpu,
    Gpus,
    Nvml,
    Quarantined,
    quarantine,
    quarantine_folder,
    quarantined,
    require_usable,
    select,
    wait_released,
)
from pytest_speedbench.errors import ConfigError, EngineError

GIB = 2**30
A, B, C = (Gpu(n, f"GPU-{n}{letter * 7}-0000", "NVIDIA H100", 80 * GIB, "580.1") for n, letter in enumerate("abc"))


@dataclass
class Driver:
    """GPUs whose memory goes through given readings; the last one stays."""

    used: dict[str, list[int]]
    holders: dict[str, tuple[int, ...]] = field(default_factory=dict)
    gpus: tuple[Gpu, ...] = (A, B, C)

    def visible(self, environ: Mapping[str, str]) -> tuple[Gpu, ...]:
        return select(self.gpus, environ.get("CUDA_VISIBLE_DEVICES"))

    def memory_used(self, uuid: str) -> int:
        readings = self.used[uuid]
        return readings.pop(0) if len(readings) > 1 else readings[0]

    def processes(self, uuid: str) -> tuple[int, ...]:
        return self.holders.get(uuid, ())

    def sensors(self, gpus: Iterable[Gpu]) -> tuple[NvmlSensor, ...]:
        return ()  # tells nothing but memory


@dataclass
class Clock:
    """Time that passes by sleeping."""

    now: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(seconds)
        self.now += seconds


# Which are visible


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, (A, B, C)),
        ("", ()),
        ("0,1,2", (A, B, C)),
        ("2, 0", (C, A)),
        (B.uuid, (B,)),
        ("GPU-2c,GPU-0a", (C, A)),
        ("1,GPU-0a", (B, A)),
        ("0,0,1", (A, B)),
        ("0,-1,1", (A,)),
        ("0,7,1", (A,)),
        ("GPU-", ()),
        ("GPU-9,0", ()),
        ("MIG-0a,0", ()),
        ("NoDevFiles", ()),
        ("0,,1", (A,)),
    ],
)
def test_visible(value: str | None, expected: tuple[Gpu, ...]) -> None:
    assert select((A, B, C), value) == expected


def test_a_beginning_that_two_gpus_share_names_none() -> None:
    twin = Gpu(3, A.uuid[:9] + "zz-1", "NVIDIA H100", 80 * GIB, "580.1")
    assert select((A, twin), A.uuid[:9]) == ()
    assert select((A, twin), A.uuid) == (A,)


# Release


def released(
    driver: Gpus, uuids: tuple[str, ...], baseline: dict[str, int], timeout_s: float, clock: Clock
) -> set[str]:
    return set(wait_released(driver, uuids, baseline, timeout_s=timeout_s, clock=clock, sleep=clock.sleep))


def test_memory_that_is_back_is_not_waited_for() -> None:
    clock = Clock()
    driver = Driver({A.uuid: [GIB + SLACK_BYTES], B.uuid: [0]})
    assert released(driver, (A.uuid, B.uuid), {A.uuid: GIB, B.uuid: GIB}, 30, clock) == set()
    assert clock.slept == []


def test_memory_that_comes_back_late() -> None:
    clock = Clock()
    driver = Driver({A.uuid: [70 * GIB, 70 * GIB, 30 * GIB, GIB], B.uuid: [GIB]})
    assert released(driver, (A.uuid, B.uuid), {A.uuid: GIB, B.uuid: GIB}, 30, clock) == set()
    assert len(clock.slept) == 3


def test_memory_that_does_not_come_back() -> None:
    clock = Clock()
    driver = Driver({A.uuid: [GIB + SLACK_BYTES + 1], B.uuid: [GIB]})
    assert released(driver, (A.uuid, B.uuid), {A.uuid: GIB, B.uuid: GIB}, 30, clock) == {A.uuid}
    assert sum(clock.slept) == pytest.approx(30)


def test_without_time_it_is_looked_once() -> None:
    clock = Clock()
    driver = Driver({A.uuid: [70 * GIB], B.uuid: [GIB]})
    assert released(driver, (A.uuid, B.uuid), {A.uuid: GIB, B.uuid: GIB}, 0, clock) == {A.uuid}
    assert clock.slept == []


# Quarantine


def kept(gpu: Gpu, *, baseline: int = GIB) -> Quarantined:
    driver = Driver({gpu.uuid: [5 * GIB]}, {gpu.uuid: (41, 42)})
    return Quarantined.now(
        driver, gpu.uuid, since="2026-12-01T10:00:00+00:00", baseline_bytes=baseline, log="/x/engine.log"
    )


def test_a_quarantined_gpu_stays_so_while_it_holds_the_memory(tmp_path: Path) -> None:
    folder = tmp_path / "quarantine"
    driver = Driver({A.uuid: [5 * GIB], B.uuid: [5 * GIB], C.uuid: [GIB]})
    quarantine(folder, kept(A))
    assert quarantined(folder, driver) == quarantined(folder, driver) == (kept(A),)
    assert kept(A) == Quarantined(A.uuid, "2026-12-01T10:00:00+00:00", 5 * GIB, GIB, (41, 42), "/x/engine.log")
    require_usable(folder, driver, (B.uuid, C.uuid))
    assert [path.name for path in folder.iterdir()] == [f"{A.uuid}.json"]


def test_one_whose_memory_is_back_is_taken_out(tmp_path: Path) -> None:
    quarantine(tmp_path, kept(A))
    quarantine(tmp_path, kept(B))
    driver = Driver({A.uuid: [GIB + SLACK_BYTES], B.uuid: [GIB + SLACK_BYTES + 1]})
    assert [gpu.uuid for gpu in quarantined(tmp_path, driver)] == [B.uuid]
    assert [path.stem for path in tmp_path.iterdir()] == [B.uuid]
    require_usable(tmp_path, driver, (A.uuid,))


def test_refusal_says_what_is_held_and_what_to_do(tmp_path: Path) -> None:
    quarantine(tmp_path, kept(A))
    quarantine(tmp_path, kept(B))
    driver = Driver({A.uuid: [4 * GIB], B.uuid: [3 * GIB]}, {A.uuid: (41,)})
    with pytest.raises(ConfigError) as caught:
        require_usable(tmp_path, driver, (A.uuid, B.uuid, C.uuid))
    first, second, advice = str(caught.value).splitlines()
    assert first == (
        f"GPU 0 (NVIDIA H100, {A.uuid}) did not release the memory of an engine that was stopped "
        "2026-12-01T10:00:00+00:00: 4.0 GiB in use, 1.0 GiB before it; held by pid 41; log /x/engine.log"
    )
    assert second.startswith(f"GPU 1 (NVIDIA H100, {B.uuid}) did not release")
    assert "held by no process that can be seen" in second
    assert advice.startswith("end the processes that hold the memory")
    assert advice.endswith("leave it out of CUDA_VISIBLE_DEVICES")


def test_gpus_of_other_machines_are_not_looked_at(tmp_path: Path) -> None:
    quarantine(tmp_path, kept(A))
    driver = Driver({B.uuid: [5 * GIB]}, gpus=(B,))
    assert quarantined(tmp_path, driver) == ()
    require_usable(tmp_path, driver, (B.uuid,))
    assert (tmp_path / f"{A.uuid}.json").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"uuid": A.uuid, "since": 1})])
def test_a_file_that_cannot_be_understood_is_removed(tmp_path: Path, content: str) -> None:
    path = tmp_path / f"{A.uuid}.json"
    path.write_text(content)
    assert quarantined(tmp_path, Driver({A.uuid: [5 * GIB]})) == ()
    assert not path.exists()


def test_a_file_under_another_gpu_s_name_is_removed(tmp_path: Path) -> None:
    quarantine(tmp_path, kept(A))
    (tmp_path / f"{A.uuid}.json").rename(tmp_path / f"{B.uuid}.json")
    assert quarantined(tmp_path, Driver({A.uuid: [5 * GIB], B.uuid: [5 * GIB]})) == ()


def test_a_uuid_is_no_path(tmp_path: Path) -> None:
    gpu = Quarantined("../GPU", "", 0, 0, (), "")
    with pytest.raises(ValueError, match=re.escape("not a GPU UUID: '../GPU'")):
        quarantine(tmp_path, gpu)


def test_a_quarantine_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="set SPEEDBENCH_STATE_DIR to a folder that can be written"):
        quarantine(tmp_path / "file", kept(A))


def test_no_folder_no_quarantine(tmp_path: Path) -> None:
    assert quarantined(tmp_path / "nothing", Driver({})) == ()
    assert quarantine_folder({"SPEEDBENCH_STATE_DIR": str(tmp_path)}) == tmp_path / "quarantine"


# NVML


def has_driver() -> bool:
    return Path("/proc/driver/nvidia").exists()


@pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver")
def test_without_a_driver_there_are_no_gpus(tmp_path: Path) -> None:
    nvml: Gpus = Nvml()
    assert nvml.visible({}) == nvml.visible({"CUDA_VISIBLE_DEVICES": "0"}) == ()
    assert quarantined(tmp_path, nvml) == ()
    require_usable(tmp_path, nvml, ())
    assert Nvml().sensors([A]) == ()
    for ask in (nvml.memory_used, nvml.processes):
        with pytest.raises(EngineError, match=f"^GPU {A.uuid} cannot be asked: there is no NVIDIA driver here$"):
            ask(A.uuid)


@pytest.mark.gpu
@pytest.mark.skipif(not has_driver(), reason="this machine has no NVIDIA driver")
def test_with_a_driver() -> None:
    nvml = Nvml()
    every = nvml.visible({})
    assert every
    for gpu in every:
        assert gpu.uuid.startswith("GPU-")
        assert gpu.name.startswith(("NVIDIA", "Tesla", "Quadro", "GeForce"))
        assert re.match(r"\d+\.\d+", gpu.driver)
        assert 0 <= nvml.memory_used(gpu.uuid) < gpu.memory_total_bytes
        assert all(isinstance(pid, int) for pid in nvml.processes(gpu.uuid))
        assert nvml.visible({"CUDA_VISIBLE_DEVICES": gpu.uuid}) == (gpu,)
    with pytest.raises(EngineError, match=r"^GPU GPU-0 does not answer \("):
        nvml.memory_used("GPU-0")


@pytest.mark.gpu
@pytest.mark.skipif(not has_driver(), reason="this machine has no NVIDIA driver")
def test_a_driver_is_watched() -> None:
    nvml = Nvml()
    every = nvml.visible({})
    with watched(nvml.sensors(every), lambda _: True, every_s=0.01) as watching:
        time.sleep(0.1)
    windows = watching.windows()
    assert [window.card.uuid for window in windows] == [gpu.uuid for gpu in every]
    for window in windows:
        assert window.samples >= 2
        assert window.memory_used_bytes is not None
        # A data-centre card tells everything; others leave some of it out, and say so.
        assert (window.card.sm_max_mhz is None) == ("maximum clock" in window.refused)
        assert (window.errors.xids is None) == ("Xid events" in window.refused)

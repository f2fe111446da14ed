"""What was seen of a GPU over one window, as a JSON object and back.

In the artifact: ``cells[].runs[].gpus``, one object per GPU.
"""

from __future__ import annotations

from pytest_speedbench.measure.gpu_record import Card, GpuErrors, GpuProcess, GpuWindow, Spread
from pytest_speedbench.report.decode import Fields

JSONObject = dict[str, object]


def gpu_to_json(gpu: GpuWindow) -> JSONObject:
    """One GPU over one window; null for what the driver did not tell."""
    card = gpu.card
    return {
        "index": card.index,
        "uuid": card.uuid,
        "sm_max_mhz": card.sm_max_mhz,
        "sm_application_mhz": card.sm_application_mhz,
        "power_default_w": card.power_default_w,
        "seconds": gpu.seconds,
        "samples": gpu.samples,
        "working": gpu.working,
        "sm_mhz": _spread_to_json(gpu.sm_mhz),
        "memory_mhz": _spread_to_json(gpu.memory_mhz),
        "events": None if gpu.events is None else dict(gpu.events),
        "reference_mhz": gpu.reference_mhz,
        "slowed": dict(gpu.slowed),
        "slowed_run": gpu.slowed_run,
        "slowed_mhz": gpu.slowed_mhz,
        "power_w": gpu.power_w,
        "power_limit_w": gpu.power_limit_w,
        "temperature_c": gpu.temperature_c,
        "utilisation": gpu.utilisation,
        "memory_used_bytes": gpu.memory_used_bytes,
        "foreign": None
        if gpu.foreign is None
        else [
            {"pid": process.pid, "memory_bytes": process.memory_bytes, "utilisation": process.utilisation}
            for process in gpu.foreign
        ],
        "hidden_bytes": gpu.hidden_bytes,
        "ecc": gpu.errors.ecc,
        "xids": None if gpu.errors.xids is None else list(gpu.errors.xids),
        "refused": dict(gpu.refused),
    }


def gpu_from_json(read: Fields) -> GpuWindow:
    """What ``gpu_to_json`` wrote. Raises ConfigError for anything else."""
    events, slowed, refused = read.optional_child("events"), read.child("slowed"), read.child("refused")
    return GpuWindow(
        card=Card(
            index=read.integer("index"),
            uuid=read.text("uuid"),
            sm_max_mhz=read.optional_integer("sm_max_mhz"),
            sm_application_mhz=read.optional_integer("sm_application_mhz"),
            power_default_w=read.optional_number("power_default_w"),
        ),
        seconds=read.number("seconds"),
        samples=read.integer("samples"),
        working=read.integer("working"),
        sm_mhz=_spread_from_json(read.optional_child("sm_mhz")),
        memory_mhz=_spread_from_json(read.optional_child("memory_mhz")),
        events=None if events is None else {name: events.number(name) for name in events.data},
        reference_mhz=read.optional_integer("reference_mhz"),
        slowed={name: slowed.integer(name) for name in slowed.data},
        slowed_run=read.integer("slowed_run"),
        slowed_mhz=read.optional_number("slowed_mhz"),
        power_w=read.optional_number("power_w"),
        power_limit_w=read.optional_number("power_limit_w"),
        temperature_c=read.optional_integer("temperature_c"),
        utilisation=read.optional_number("utilisation"),
        memory_used_bytes=read.optional_integer("memory_used_bytes"),
        foreign=None
        if read.data.get("foreign") is None
        else tuple(
            GpuProcess(
                process.integer("pid"),
                own=False,
                memory_bytes=process.optional_integer("memory_bytes"),
                utilisation=process.optional_number("utilisation"),
            )
            for process in read.children("foreign")
        ),
        hidden_bytes=read.optional_integer("hidden_bytes"),
        errors=GpuErrors(
            ecc=read.optional_integer("ecc"), xids=None if read.data.get("xids") is None else read.integers("xids")
        ),
        refused={name: refused.text(name) for name in refused.data},
    )


def _spread_to_json(spread: Spread | None) -> JSONObject | None:
    return None if spread is None else {"low": spread.low, "median": spread.median, "high": spread.high}


def _spread_from_json(read: Fields | None) -> Spread | None:
    return None if read is None else Spread(read.number("low"), read.number("median"), read.number("high"))

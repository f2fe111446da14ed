"""What was seen of the GPUs while a window was measured: single samples, and what is kept of them.

None stands for what the driver does not tell: virtual GPUs, partitioned ones, containers and older cards leave
much out, and none of that is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntFlag


class ClockEvent(IntFlag):
    """Why the clocks are what they are: the bits of NVML's ``nvmlClocksEventReasons`` (nvml.h, driver 580)."""

    IDLE = 0x1
    APPLICATION_CLOCKS = 0x2
    SW_POWER_CAP = 0x4
    HW_SLOWDOWN = 0x8
    SYNC_BOOST = 0x10
    SW_THERMAL = 0x20
    HW_THERMAL = 0x40
    HW_POWER_BRAKE = 0x80
    DISPLAY_CLOCKS = 0x100
    BOARD_LIMIT = 0x200
    RELIABILITY = 0x400


@dataclass(frozen=True, slots=True)
class Card:
    """What does not change while a window is measured.

    ``sm_max_mhz`` is the highest clock that the card can have, ``sm_application_mhz`` the one that it is set to;
    ``power_default_w`` the power limit that it leaves the factory with.
    """

    index: int
    uuid: str
    sm_max_mhz: int | None = None
    sm_application_mhz: int | None = None
    power_default_w: float | None = None


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that computes on a GPU. ``own``: it belongs to the engine. ``utilisation`` is 0 to 1."""

    pid: int
    own: bool
    memory_bytes: int | None = None
    utilisation: float | None = None


@dataclass(frozen=True, slots=True)
class GpuSample:
    """One look at one GPU. ``at_s`` is a monotonic clock; ``utilisation`` the share of time with a kernel running.

    The driver averages the utilisation over up to a second before, the clocks are those of the moment.
    """

    at_s: float
    sm_mhz: int | None = None
    memory_mhz: int | None = None
    events: ClockEvent | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    temperature_c: int | None = None
    utilisation: float | None = None
    memory_used_bytes: int | None = None
    processes: tuple[GpuProcess, ...] | None = None


@dataclass(frozen=True, slots=True)
class GpuErrors:
    """Errors during a window: uncorrected ECC errors, and the numbers of the driver's Xid events."""

    ecc: int | None = None
    xids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """The extremes and the middle of some values."""

    low: float
    median: float
    high: float


@dataclass(frozen=True, slots=True)
class GpuWindow:
    """One GPU over one measured window.

    ``seconds`` lie between the first and the last of ``samples``; in ``working`` of these a kernel ran, and the
    clocks are those of these samples alone. ``events`` holds the share of all samples per reason of the clocks.

    ``slowed`` counts samples by what slowed the card, ``slowed_run`` is the longest row of them, ``slowed_mhz`` the
    median clock in it, ``reference_mhz`` the clock that is expected. ``foreign`` are processes of others, each with the
    most that it had; None where the driver shows no process of the engine itself, so that nothing follows
    from what it shows. ``hidden_bytes`` is the least memory in use that no shown process accounts for.
    ``refused`` says what the driver did not tell, and why.
    """

    card: Card
    seconds: float
    samples: int
    working: int
    sm_mhz: Spread | None = None
    memory_mhz: Spread | None = None
    events: Mapping[str, float] | None = None
    reference_mhz: int | None = None
    slowed: Mapping[str, int] = field(default_factory=dict)
    slowed_run: int = 0
    slowed_mhz: float | None = None
    power_w: float | None = None
    """Mean over the window."""
    power_limit_w: float | None = None
    """The lowest that was in force."""
    temperature_c: int | None = None
    """The highest."""
    utilisation: float | None = None
    """Mean over the window."""
    memory_used_bytes: int | None = None
    """The most."""
    foreign: tuple[GpuProcess, ...] | None = None
    hidden_bytes: int | None = None
    errors: GpuErrors = GpuErrors()
    refused: Mapping[str, str] = field(default_factory=dict)

"""The rules on GPUs: what voids a verdict, what only voids timing, and what is no more than a note."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.measure.gpu_record import Card, ClockEvent, GpuErrors, GpuProcess, GpuSample, GpuWindow, Spread
from pytest_speedbench.measure.gpu_validity import FOREIGN_BYTES, notes, problems, summarise, timing_problem
from pytest_speedbench.report.decode import Fields
from pytest_speedbench.report.gpu_json import gpu_from_json, gpu_to_json

GIB = 2**30
H100 = Card(0, "GPU-a", sm_max_mhz=1980, sm_application_mhz=1980, power_default_w=700.0)
GEFORCE = Card(0, "GPU-b", sm_max_mhz=3105, power_default_w=450.0)
LOCKED = replace(H100, sm_application_mhz=1410)
CAP = ClockEvent.SW_POWER_CAP
FULL, IDLE = 0.99, 0.0
ENGINE = GpuProcess(1, own=True, memory_bytes=4 * GIB, utilisation=0.9)


def sample(
    sm: int | None = 1980,
    events: ClockEvent | None = ClockEvent(0),  # noqa: B008 (frozen)
    utilisation: float | None = FULL,
    limit: float | None = 700.0,
) -> GpuSample:
    return GpuSample(0.0, sm, 2619, events, 300.0, limit, 50, utilisation, 5 * GIB, (ENGINE,))


def throttled(samples: list[GpuSample], card: Card = H100) -> dict[str, int] | None:
    """What slowed the card, None where that voids nothing."""
    window = summarise(samples, card)
    return dict(window.slowed) if timing_problem([window]) else None


# Slowdowns that the driver states


@pytest.mark.parametrize(
    ("events", "cause"),
    [
        (ClockEvent.SW_THERMAL, "sw_thermal"),
        (ClockEvent.HW_SLOWDOWN, "hw_slowdown"),
        (ClockEvent.HW_SLOWDOWN | ClockEvent.HW_THERMAL, "hw_thermal"),
        (ClockEvent.HW_SLOWDOWN | ClockEvent.HW_POWER_BRAKE | CAP, "hw_power_brake"),
    ],
)
def test_stated_slowdown(events: ClockEvent, cause: str) -> None:
    assert throttled([sample(1980, events)] * 3) == {cause: 3}
    assert throttled([sample(1980, events)] * 2 + [sample()] + [sample(1980, events)] * 2) is None


def test_different_causes_make_one_row() -> None:
    row = [sample(1500, ClockEvent.SW_THERMAL), sample(1500, ClockEvent.HW_POWER_BRAKE), sample(1500)]
    assert throttled([*[sample()] * 3, *row]) == {"sw_thermal": 1, "hw_power_brake": 1, "clock_fell": 1}


def test_a_card_at_rest_is_not_slowed() -> None:
    # Before the traffic: low clocks, and slowdowns of a card that does nothing.
    rest = [
        sample(345, ClockEvent.IDLE, IDLE),
        sample(345, ClockEvent.HW_SLOWDOWN, IDLE),
        # The utilisation is that of up to a second before.
        sample(345, ClockEvent.IDLE | ClockEvent.HW_SLOWDOWN, FULL),
    ]
    assert throttled(rest * 4 + [sample()] * 5) is None
    window = summarise(rest * 4 + [sample()] * 5, H100)
    assert window.sm_mhz == Spread(1980, 1980, 1980)
    assert (window.samples, window.working) == (17, 5)


# Clocks


@pytest.mark.parametrize(("clock", "expected"), [(1842, None), (1841, {"clock_fell": 3})])
def test_a_fall_of_more_than_seven_percent(clock: int, expected: dict[str, int] | None) -> None:
    # 1980 × 0.93 = 1841.4
    assert throttled([sample()] * 3 + [sample(clock)] * 3 + [sample()]) == expected


def test_a_fall_counts_only_while_the_card_is_busy() -> None:
    assert throttled([sample()] * 3 + [sample(1200, utilisation=0.49)] * 9) is None
    assert throttled([sample()] * 3 + [sample(1200, utilisation=0.5)] * 3) == {"clock_fell": 3}
    assert throttled([sample()] * 3 + [sample(1200, utilisation=None)] * 9) is None


def test_a_set_clock_is_the_reference() -> None:
    assert throttled([sample(1410, ClockEvent.APPLICATION_CLOCKS)] * 9, LOCKED) is None
    # 1410 × 0.93 = 1311.3; never at the set clock, so only the setting tells.
    assert throttled([sample(1311)] * 3, LOCKED) == {"clock_fell": 3}


def test_clocks_that_someone_changes_under_the_run() -> None:
    assert throttled([sample()] * 3 + [sample(1410, ClockEvent.APPLICATION_CLOCKS)] * 3) == {"clock_fell": 3}


def test_a_card_that_never_reaches_its_maximum_is_not_slowed() -> None:
    # GeForce: 2700 of 3105 MHz is all that it does, and no reason is stated.
    window = summarise([sample(2700, limit=450.0)] * 9, GEFORCE)
    assert timing_problem([window]) is None
    assert notes([window]) == ("GPU 0: the SM clock was held at 2700 MHz, and the card can have 3105 MHz",)


def test_one_high_sample_is_no_reference() -> None:
    assert throttled([sample(1980), sample(1700), sample(1980), *[sample(1700)] * 9]) is None
    assert throttled([sample(1980), *[sample(1980, utilisation=0.1)] * 9, *[sample(1700)] * 9]) is None


def test_the_power_cap_of_the_card_itself_is_a_note() -> None:
    window = summarise([sample()] * 3 + [sample(1300, CAP)] * 6, H100)
    assert timing_problem([window]) is None
    assert notes([window]) == (
        "GPU 0: the power limit of 700 W held the clocks down in 67% of the samples (SM clock 1300 to 1980 MHz); rates "
        "then differ by card and temperature, and locked clocks repeat better",
    )


@pytest.mark.parametrize(
    ("clock", "limit", "expected"),
    [(1300, 500.0, {"lowered_power_limit": 3}), (1900, 500.0, None), (1300, 695.0, None), (1300, None, None)],
)
def test_a_lowered_power_limit_counts_where_clocks_fell(
    clock: int, limit: float | None, expected: dict[str, int] | None
) -> None:
    assert throttled([sample(clock, CAP, limit=limit)] * 3) == expected


def test_without_stated_reasons_nothing_is_concluded() -> None:
    assert throttled([sample(events=None)] * 3 + [sample(1200, None)] * 9) is None


# Others


@pytest.mark.parametrize(
    ("memory", "utilisation", "shared"),
    [
        (FOREIGN_BYTES, 0.0, False),
        (FOREIGN_BYTES + 1, 0.0, True),
        (FOREIGN_BYTES + 1, None, True),
        (0, 0.01, True),
        (None, 0.01, True),
        (None, 0.0, False),
        (None, None, False),
    ],
)
def test_foreign_processes(memory: int | None, utilisation: float | None, shared: bool) -> None:
    other = GpuProcess(2, own=False, memory_bytes=memory, utilisation=utilisation)
    window = summarise([sample(), replace(sample(), processes=(ENGINE, other)), sample()], H100)
    assert [reason.code for reason in problems([window])] == (["gpu_shared"] if shared else [])
    assert any("is not told" in note for note in notes([window])) == (memory is None and utilisation is None)


def test_without_a_process_of_the_engine_nothing_follows() -> None:
    other = GpuProcess(2, own=False, memory_bytes=70 * GIB, utilisation=0.9)
    window = summarise([replace(sample(), processes=(other,))] * 3, H100)
    assert window.foreign is None
    assert problems([window]) == ()


def test_reasons_name_every_gpu_up_to_three() -> None:
    windows = [
        replace(summarise([sample()] * 3, replace(H100, index=index)), errors=GpuErrors(0, (79,))) for index in range(5)
    ]
    (reason,) = problems(windows)
    assert reason.message.startswith("GPU 0: the driver reported Xid 79 (see dmesg); GPU 1: ")
    assert reason.message.endswith("; and 2 more")


def test_the_same_note_of_many_windows_is_said_once() -> None:
    window = summarise([sample(1300, CAP)] * 6, H100)
    assert len(notes([window] * 7)) == 1
    assert notes([window] * 7)[0].endswith("locked clocks repeat better (and in 6 more windows)")


def test_a_window_too_short_to_see_anything() -> None:
    window = summarise([sample(utilisation=IDLE), sample(), sample()], H100)
    assert notes([window]) == ("GPU 0: at work in 2 of 3 samples, too few to see whether it was slowed",)


# Invariants

SAMPLES = st.lists(
    st.builds(
        GpuSample,
        at_s=st.just(0.0),
        sm_mhz=st.none() | st.integers(200, 3200),
        memory_mhz=st.none() | st.integers(200, 12000),
        events=st.none() | st.integers(0, 0x7FF).map(ClockEvent),
        power_w=st.none() | st.floats(0, 1000),
        power_limit_w=st.none() | st.floats(50, 1000),
        temperature_c=st.none() | st.integers(0, 110),
        utilisation=st.none() | st.floats(0, 1),
        memory_used_bytes=st.none() | st.integers(0, 200 * GIB),
        processes=st.none()
        | st.lists(
            st.builds(
                GpuProcess,
                st.integers(1, 4),
                st.booleans(),
                st.none() | st.integers(0, 200 * GIB),
                st.none() | st.floats(0, 1),
            ),
            max_size=3,
        ).map(tuple),
    ),
    max_size=12,
)


@given(SAMPLES)
def test_any_samples(samples: list[GpuSample]) -> None:
    window = summarise(samples, H100, GpuErrors(0, ()), {"power": "Not Supported"})
    assert window.slowed_run <= sum(window.slowed.values()) <= window.working <= window.samples == len(samples)
    assert all(share > 0 for share in (window.events or {}).values())
    assert isinstance(problems([window]), tuple)
    assert bool(timing_problem([window])) == (window.slowed_run >= 3)
    assert any("does not tell power (Not Supported)" in note for note in notes([window]))
    # To JSON and back, exact.
    assert gpu_from_json(Fields(json.loads(json.dumps(gpu_to_json(window))), "gpu")) == window


@given(SAMPLES, st.integers(0, 12))
def test_samples_at_rest_change_no_verdict_on_timing(samples: list[GpuSample], at: int) -> None:
    # At the edges only: in between they would part a row.
    rest = [sample(345, ClockEvent.IDLE, IDLE)] * at
    assert (throttled(rest + samples) is None) == (throttled(samples + rest) is None) == (throttled(samples) is None)


def test_no_sample() -> None:
    window = summarise([], H100)
    assert window == GpuWindow(H100, 0.0, 0, 0)
    assert problems([window]) == ()
    assert timing_problem([window]) is None

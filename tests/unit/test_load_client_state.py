"""What the load client says of itself: limits, and the request log."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_speedbench.load.own_state import LAG_PROBE_S, p99, sustained
from pytest_speedbench.load.warmup import round_s
from pytest_speedbench.measure.checks import client_problem
from pytest_speedbench.measure.samples import Client
from pytest_speedbench.report.requests import RequestLog, read_windows
from tests.unit.test_load_spread import turn
from tests.unit.test_report_samples import window

CLIENT = Client(
    lag_p99_s=0.002,
    cpu_share=0.5,
    workers=4,
    concurrency_mean=509.25,
    concurrency_min=500,
    send_delay_p99_s=0.03,
    clock_error_s=0.00004,
    kernel_stamped=0.998,
)


def test_within_all_limits() -> None:
    assert client_problem(CLIENT, concurrency=512) is None
    edge = replace(CLIENT, send_delay_p99_s=0.25, clock_error_s=0.001, concurrency_mean=0.95 * 512)
    assert client_problem(edge, concurrency=512) is None


@pytest.mark.parametrize(
    ("client", "message"),
    [
        (replace(CLIENT, send_delay_p99_s=0.4), "it sent 400 ms late at p99 (limit 250 ms)"),
        (
            replace(CLIENT, clock_error_s=0.0123),
            "the clocks of its processes differ by up to 12.3 ms (limit 1.0 ms)",
        ),
        (replace(CLIENT, concurrency_mean=400.0), "it kept 400.0 of 512 streams in flight (at least 95%)"),
        (
            replace(CLIENT, cpu_share=0.95, send_delay_p99_s=math.nan),
            "it used 95% of a CPU (limit 90%) and it sent nan ms late at p99 (limit 250 ms)",
        ),
    ],
)
def test_beyond_a_limit(client: Client, message: str) -> None:
    problem = client_problem(client, concurrency=512)
    assert problem is not None
    assert problem.code == "client_saturated"
    assert problem.message == f"the load client was saturated: {message}"


def test_the_number_of_streams_counts_only_where_it_is_given() -> None:
    assert client_problem(replace(CLIENT, concurrency_mean=1.0)) is None
    assert client_problem(replace(CLIENT, concurrency_mean=None), concurrency=512) is None


@pytest.mark.parametrize("client", [CLIENT, Client(0.001, 0.25), replace(CLIENT, concurrency_min=None, workers=1)])
def test_the_request_log_keeps_it(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "r.gz"
    RequestLog(path).append("vllm", replace(window(4), client=client))
    ((_, stored),) = read_windows(path)
    assert stored.client == client


def test_a_log_from_before_there_were_workers_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "r.gz"
    RequestLog(path).append("vllm", replace(window(4), client=CLIENT))
    head, *turns = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    head["client"] = {"lag_p99_s": 0.002, "cpu_share": 0.5}
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in (head, *turns)).encode()))
    ((_, stored),) = read_windows(path)
    assert stored.client == Client(0.002, 0.5)


@pytest.mark.parametrize(
    ("lag_s", "expected"),
    [(-0.001, [0.0]), (0.0, [0.0]), (0.004, [0.004]), (0.012, [0.012, 0.007, 0.002]), (0.010, [0.010, 0.005])],
)
def test_a_stall_counts_for_as_long_as_it_lasts(lag_s: float, expected: list[float]) -> None:
    assert sustained(lag_s) == pytest.approx(expected)


def test_one_stall_is_seen_among_punctual_probes() -> None:
    # One second of 60 in a stall: more than 1 % of the time.
    lags = [0.0] * int(59 / LAG_PROBE_S) + sustained(1.0)
    assert p99(lags) > 0.3
    assert p99([0.0] * int(59 / LAG_PROBE_S) + [1.0]) == 0.0


def test_a_round_of_warm_up_lasts_from_the_first_request_to_the_last_token() -> None:
    assert round_s([turn(3_000_000_000, 4_000_000_000), turn(2_500_000_000, 6_000_000_000)]) == 3.5
    assert round_s([]) == 0.0

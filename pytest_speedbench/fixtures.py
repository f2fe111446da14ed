"""The fixtures: a started engine, the cells of the suite, and ``speedbench`` for a user's own tests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_speedbench import takeover
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.session import BENCH, PROGRESS, bench_of

if TYPE_CHECKING:
    from pytest_speedbench.bench import Bench
    from pytest_speedbench.campaign import EngineSlot
    from pytest_speedbench.custom import Speedbench
    from pytest_speedbench.engines.base import Profile
    from pytest_speedbench.planning import PlannedCell
    from pytest_speedbench.results import CellResult


@pytest.fixture(scope="session")
def speedbench_engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EngineSlot | None]:
    """The engine of one profile, started once and stopped at the end.

    A failed start does not raise here: each cell reports it, the first in full.
    """
    if takeover.named_engines(request.config) is None:
        pytest.skip("no engine was named; run with --speedbench-engine=NAME")
    if request.config.option.setuponly:
        yield None
        return
    if takeover.workers(request.config) > 1:
        pytest.fail(takeover.too_many_workers(request.config), pytrace=False)
    bench = _bench(request.config)
    label = getattr(request, "param", bench.plan.settings.profiles[0].label)
    profile = next(p for p in bench.plan.settings.profiles if p.label == label)
    folder, progress = tmp_path_factory.mktemp(f"speedbench-{label}"), request.config.stash[PROGRESS]
    with _refused(), bench.engine(profile, folder, _selected(request.session, profile), progress) as slot:
        yield slot


def _selected(session: pytest.Session, profile: Profile) -> list[PlannedCell]:
    """The cells of a profile that are left to run, after every selection."""
    specs = [item.callspec for item in session.items if isinstance(item, pytest.Function) and hasattr(item, "callspec")]
    cells: list[Any] = [spec.params["speedbench_cell"] for spec in specs if "speedbench_cell" in spec.params]
    return [planned for planned in cells if planned.profile is profile]


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """A usage problem without a traceback."""
    try:
        yield
    except ConfigError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def speedbench_result(
    request: pytest.FixtureRequest, speedbench_engine: EngineSlot | None, speedbench_cell: PlannedCell
) -> CellResult | None:
    """The measured cell. A run that cannot carry a verdict is an error of this set-up."""
    if speedbench_engine is None:
        return None
    bench = request.config.stash[BENCH]
    try:
        result = bench.measure(speedbench_engine, speedbench_cell, request.config.stash[PROGRESS])
    except ConfigError as error:
        pytest.fail(str(error), pytrace=False)
    _attach(request.node, result)
    from pytest_speedbench.gates.verdict import Verdict

    if result.verdict is Verdict.INVALID:
        pytest.fail(_text(bench, result), pytrace=False)
    return result


@pytest.fixture
def speedbench_enforce(request: pytest.FixtureRequest) -> Callable[[CellResult], None]:
    """Turns a verdict into the item's outcome, by ``--speedbench-inconclusive``."""
    bench = request.config.stash[BENCH]

    def enforce(result: CellResult) -> None:
        from pytest_speedbench.gates.verdict import Verdict

        if result.is_waived:
            raise pytest.xfail.Exception(_text(bench, result))
        if result.verdict is Verdict.FAIL:
            pytest.fail(_text(bench, result), pytrace=False)
        if result.verdict is Verdict.INCONCLUSIVE:
            if bench.plan.settings.inconclusive != "warn":
                pytest.fail(_text(bench, result), pytrace=False)
            # Neither passed nor failed, in every report: pytest's word for that is xfail. Raised, since
            # under --runxfail the function pytest.xfail returns, and the item would pass.
            raise pytest.xfail.Exception(_text(bench, result))

    return enforce


@pytest.fixture
def speedbench(request: pytest.FixtureRequest, speedbench_engine: EngineSlot | None) -> Speedbench | None:
    """Measure cells from a test of your own: ``speedbench.run(category="coding").acceptance_length``."""
    if speedbench_engine is None:
        return None
    from pytest_speedbench.custom import Speedbench

    bench = request.config.stash[BENCH]

    def attach(result: CellResult) -> None:
        _attach(request.node, result)

    return Speedbench(bench, speedbench_engine, request.node.nodeid, request.config.stash[PROGRESS], attach)


def _bench(config: pytest.Config) -> Bench:
    try:
        return bench_of(config)
    except ConfigError as error:
        pytest.fail(str(error), pytrace=False)


def _attach(node: pytest.Item, result: CellResult) -> None:
    from pytest_speedbench.report.junit import properties

    node.user_properties.extend(properties(result))


def _text(bench: Bench, result: CellResult) -> str:
    from pytest_speedbench.report.failure import failure_text

    return failure_text(result, bench.run.engine(result.profile), options=bench.plan.settings.reproduce_options)

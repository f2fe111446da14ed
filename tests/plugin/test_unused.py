"""A project that has the plugin installed and does not use it."""

from __future__ import annotations

import pytest

HEAVY = ("httpx", "numpy", "yaml", "transformers", "jinja2", "junit_xml", "packaging.specifiers", "asyncio")


@pytest.fixture
def plain(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(test_plain="def test_plain(): pass")
    return pytester


def test_nothing_is_printed_warned_of_or_written(plain: pytest.Pytester) -> None:
    options = ("-W", "error", "--strict-markers", "--strict-config", "-p", "no:randomly", "-p", "no:cacheprovider")
    with_plugin = plain.runpytest_subprocess(*options)
    without = plain.runpytest_subprocess(*options, "-p", "no:speedbench")
    assert with_plugin.ret == without.ret == pytest.ExitCode.OK

    def lines(result: pytest.RunResult) -> list[str]:
        return [line for line in result.outlines if not line.startswith("plugins: ") and " passed in " not in line]

    assert lines(with_plugin) == lines(without)
    assert with_plugin.errlines == without.errlines == []
    assert {path.name for path in plain.path.iterdir() if path.is_file()} == {"test_plain.py", "stdout", "stderr"}


def test_nothing_heavy_is_imported(plain: pytest.Pytester) -> None:
    plain.makepyfile(
        test_plain=f"""
        import sys
        def test_plain():
            assert "pytest_speedbench.plugin" in sys.modules
            assert [name for name in {HEAVY!r} if name in sys.modules] == []
            ours = sorted(name for name in sys.modules if name.startswith("pytest_speedbench."))
            assert not {{"pytest_speedbench.bench", "pytest_speedbench.settings"}} & set(ours), ours
        """
    )
    # The other plugins of this environment import some of them.
    others = [
        f"no:{name}" for name in ("randomly", "hypothesispytest", "anyio", "xdist", "xdist.looponfail", "rerunfailures")
    ]
    arguments = [word for other in others for word in ("-p", other)]
    result = plain.runpytest_subprocess(*arguments)
    result.assert_outcomes(passed=1)


def test_the_options_and_fixtures_are_documented(plain: pytest.Pytester) -> None:
    shown = plain.runpytest_subprocess("--help").stdout.str()
    for option in (
        "--speedbench-engine",
        "--speedbench-split",
        "--speedbench-batch-size",
        "speedbench_thresholds (string)",
    ):
        assert option in shown
    fixtures = plain.runpytest_subprocess("--fixtures", "-q")
    fixtures.stdout.fnmatch_lines(["speedbench -- *", "*Measure cells from a test of your own*"])
    markers = plain.runpytest_subprocess("--markers")
    markers.stdout.fnmatch_lines(["@pytest.mark.speedbench: *"])

"""A drafter that learns from what was generated never gets to see a prompt again."""

from __future__ import annotations

import pytest

from tests.plugin import project as files
from tests.plugin.project import ENGINE

pytestmark = pytest.mark.real_engine

REMEMBERING = {"method": "ngram_mod", "draft_tokens": 6}


@pytest.fixture
def remembering(project: pytest.Pytester) -> pytest.Pytester:
    files.write_profile(project.path, speculation=REMEMBERING)
    return project


def test_the_same_prompts_at_two_concurrencies_are_refused(remembering: pytest.Pytester) -> None:
    result = remembering.runpytest_subprocess(ENGINE, "--speedbench-concurrency=1,2", "--speedbench-category=math")
    files.refused(
        result,
        "llamacpp: method ngram_mod drafts from what it has generated before, so the prompts of qualitative-math-c2 "
        "cannot be measured twice; name one concurrency",
    )


def test_prompts_that_would_be_repeated_are_refused(remembering: pytest.Pytester) -> None:
    files.write_prompts(
        remembering.path / "prompts", {"mixed": [["Count to ten."], ["Name a colour."]]}, "throughput_1k"
    )
    result = remembering.runpytest_subprocess(ENGINE, "--speedbench-split=throughput", "--speedbench-concurrency=1")
    files.refused(result, "so prompts cannot be repeated to fill throughput-1k-mixed-c1; lower the concurrency")


def test_a_test_that_measures_a_cell_twice_is_an_error(remembering: pytest.Pytester) -> None:
    remembering.makepyfile(
        """
        def test_once(speedbench):
            assert speedbench.run(category="math", concurrency=1).acceptance_length >= 1

        def test_again(speedbench):
            speedbench.run(category="math", concurrency=1)
        """
    )
    result = remembering.runpytest_subprocess(ENGINE, "-p", "no:randomly", str(remembering.path))
    result.assert_outcomes(passed=1, errors=1)
    assert "prompts_remembered" in files.text(result)


def test_other_methods_may_measure_prompts_again(project: pytest.Pytester) -> None:
    result = project.runpytest_subprocess(ENGINE, "--speedbench-concurrency=1,2", "--speedbench-category=math")
    assert result.ret == pytest.ExitCode.OK, files.text(result)

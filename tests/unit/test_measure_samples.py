"""Sums of samples, and the builders of samples that the other tests of the measure stage share."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_speedbench.cells import Cell
from pytest_speedbench.measure.samples import COUNTERS, Client, Counters, Failure, Steps, StepTotal, Turn, Window

MS = 1_000_000
CODING = Cell("qualitative", 32, category="coding")


def steps(lengths: Sequence[int], *, cut: int = 0, hidden: int = 0, drafted: int | None = None) -> Steps:
    """Steps of these lengths; ``hidden`` drafts were accepted in the steps of unknown length."""
    accepted = sum(length - 1 for length in lengths if length) + hidden
    return Steps(tuple(lengths), accepted=accepted, drafted=3 * len(lengths) if drafted is None else drafted, cut=cut)


def turn(
    question_id: str,
    lengths: Sequence[int],
    *,
    cut: int = 0,
    hidden: int = 0,
    drafted: int | None = None,
    index: int = 0,
    category: str = "coding",
    finish: str = "stop",
    start_ms: int = 0,
    first_ms: int = 100,
    step_ms: int = 10,
) -> Turn:
    """A turn that keeps every identity: first token at ``first_ms``, then one event per step."""
    decoded = steps(lengths, cut=cut, hidden=hidden, drafted=drafted)
    output_tokens = 1 + (decoded.accepted or 0) + decoded.count - cut
    at = tuple((start_ms + first_ms + i * step_ms) * MS for i in range(len(lengths) + 1))
    emitted = [1, *lengths]
    if 0 not in lengths:
        emitted[-1] -= cut
    return Turn(
        question_id=question_id,
        category=category,
        index=index,
        prompt_tokens=10,
        output_tokens=output_tokens,
        finish=finish,
        start_ns=start_ms * MS,
        event_ns=at,
        event_tokens=tuple(emitted),
        step_ns=at,
        steps=decoded,
        text="",
    )


def steps_of(measured: Turn) -> Steps:
    """The steps of a turn of which they are known."""
    assert measured.steps is not None
    return measured.steps


def known(number: int | None) -> int:
    """A number that is not None."""
    assert number is not None
    return number


def plain(question_id: str, tokens: int, *, index: int = 0) -> Turn:
    """A turn without speculation: one token per step, nothing drafted."""
    return turn(question_id, [1] * (tokens - 1), drafted=0, index=index)


def counters_of(turns: Sequence[Turn], *, drafts: int | None = None) -> Counters:
    """What a server would count for these turns; by default every step drafted."""
    return Counters(
        prompt_tokens=sum(t.prompt_tokens for t in turns),
        output_tokens=sum(t.output_tokens for t in turns),
        drafts=sum(steps_of(t).count for t in turns) if drafts is None else drafts,
        drafted=sum(known(steps_of(t).drafted) for t in turns),
        accepted=sum(known(steps_of(t).accepted) for t in turns),
    )


def window(
    turns: Sequence[Turn],
    *,
    planned: Sequence[tuple[str, int]] | None = None,
    failures: Sequence[Failure] = (),
    counters: Counters | None = None,
    cell: Cell = CODING,
    steady_ns: tuple[int, int] | None = None,
    total: StepTotal | None = None,
) -> Window:
    """A window in which everything planned was measured, unless told otherwise."""
    if planned is None:
        ids = dict.fromkeys(t.question_id for t in turns)
        planned = [(q, sum(t.question_id == q for t in turns)) for q in ids]
    return Window(
        cell=cell,
        planned=tuple(planned),
        turns=tuple(turns),
        failures=tuple(failures),
        counters=counters_of(turns) if counters is None else counters,
        client=Client(lag_p99_s=0.001, cpu_share=0.2),
        steady_ns=steady_ns,
        steps=total,
    )


def test_steps_count_those_of_unknown_length() -> None:
    decoded = steps([4, 0, 0, 2], hidden=3)
    assert (decoded.count, decoded.unresolved, decoded.accepted) == (4, 2, 7)


def test_counters_subtract_and_keep_what_the_engine_does_not_count() -> None:
    before = Counters(prompt_tokens=10, output_tokens=20, drafts=None, drafted=None, accepted=5)
    after = Counters(prompt_tokens=110, output_tokens=220, drafts=None, drafted=7, accepted=None)
    assert after - before == Counters(prompt_tokens=100, output_tokens=200, drafts=None, drafted=7, accepted=None)


def test_every_counter_subtracts_and_adds_and_what_rounding_hides_only_grows() -> None:
    assert len(COUNTERS) > 5
    assert "slack" not in COUNTERS
    before = Counters(**{name: 10 + i for i, name in enumerate(COUNTERS)}, slack=2)
    after = Counters(**{name: 100 + 3 * i for i, name in enumerate(COUNTERS)}, slack=3)
    assert after - before == Counters(**{name: 90 + 2 * i for i, name in enumerate(COUNTERS)}, slack=5)
    assert Counters.total([before, after]) == Counters(
        **{name: 110 + 4 * i for i, name in enumerate(COUNTERS)}, slack=5
    )


def test_a_counter_that_one_window_lacks_has_no_sum() -> None:
    windows = [Counters(output_tokens=3, steps=4, slack=1), Counters(output_tokens=5, accepted=6)]
    assert Counters.total(iter(windows)) == Counters(output_tokens=8, slack=1)
    assert Counters.total([]) == Counters()


def test_a_total_of_steps_is_exact_where_its_ends_meet() -> None:
    assert StepTotal(3, 3, "counter").exact
    assert not StepTotal(3, 4, "bracket").exact


def test_a_built_turn_keeps_the_identity() -> None:
    built = turn("q", [4, 0, 3], cut=2, hidden=1)
    decoded = steps_of(built)
    assert built.output_tokens - 1 + known(decoded.cut) == known(decoded.accepted) + decoded.count

"""What the load driver hands to the metrics: turns, failures, server counters, one window.

All times are nanoseconds of one monotonic clock of the client.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from pytest_speedbench.cells import Cell
from pytest_speedbench.measure.gpu_record import GpuWindow


@dataclass(frozen=True, slots=True)
class Steps:
    """The decode steps of one turn, prefill excluded.

    ``lengths[i]`` is what step i produced: accepted drafts + 1, *before* the cut at EOS or at the
    cap. 0 marks a step that is known to exist but whose own length the engine did not let us tell
    apart from its neighbours'; the sum over such steps is still exact. So ``len(lengths)`` is the
    exact number of steps S, and N - 1 + cut = accepted + S holds for N output tokens.

    ``drafted`` and ``accepted`` are draft tokens, the bonus token excluded; None where the engine
    gives no count per turn. ``cut`` is how many tokens the last step produced beyond the last output
    token; None where that is unknown, and then the last length is as cut. ``ordered`` is whether the
    lengths stand in the order of the steps; if not, only which lengths there were is known.
    """

    lengths: tuple[int, ...]
    accepted: int | None
    drafted: int | None
    cut: int | None = 0
    ordered: bool = True

    @property
    def count(self) -> int:
        """S, the number of decode steps."""
        return len(self.lengths)

    @property
    def unresolved(self) -> int:
        """Steps whose own length is unknown."""
        return self.lengths.count(0)


@dataclass(frozen=True, slots=True)
class Told:
    """What an engine says of one turn's decode steps without listing all of them. None: it is silent.

    ``steps`` is S, ``drafts`` K (steps that drafted), ``drafted`` D and ``accepted`` A in draft tokens.
    ``lengths`` are accepted drafts + 1, uncut, of the steps that drafted, in their order if ``ordered``.
    """

    steps: int | None = None
    drafts: int | None = None
    drafted: int | None = None
    accepted: int | None = None
    lengths: tuple[int, ...] | None = None
    ordered: bool = True


@dataclass(frozen=True, slots=True)
class Turn:
    """One finished turn of one conversation.

    ``event_ns[i]`` is when the i-th event that carried tokens arrived, ``event_tokens[i]`` how many
    tokens had been produced since the event before; their sum is ``output_tokens`` unless the
    engine held tokens back at the very end. ``step_ns`` holds arrival times of consecutive engine
    steps, the first being the prefill's token; a negative entry marks a place where the arrival of
    one or more steps could not be observed, so that no gap may be formed across it.
    ``output_ids`` is None where the stream did not carry every id, ``text`` where it carried ids only.

    ``steps`` is None until ``measure.steps.settle`` has worked it out, and after that where it is
    unknown; ``told`` is what it is worked out from, beside the events and the server's counters.
    """

    question_id: str
    category: str
    index: int
    prompt_tokens: int
    output_tokens: int
    finish: str
    """``stop`` (EOS) or ``length`` (the cap)."""
    start_ns: int
    event_ns: tuple[int, ...]
    event_tokens: tuple[int, ...]
    step_ns: tuple[int, ...]
    steps: Steps | None
    text: str | None
    output_ids: tuple[int, ...] | None = None
    told: Told | None = None


def known_steps(turns: Iterable[Turn]) -> list[Steps]:
    """The steps of the turns whose steps are known."""
    return [turn.steps for turn in turns if turn.steps is not None]


def known_sum(numbers: Iterable[int | None]) -> int | None:
    """The sum, None where any part is unknown."""
    total = 0
    for number in numbers:
        if number is None:
            return None
        total += number
    return total


@dataclass(frozen=True, slots=True)
class Failure:
    """A turn that was sent and did not finish, or could not be sent."""

    question_id: str
    index: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Counters:
    """Totals of the server over the window. None: the engine has no such counter.

    ``steps`` counts decode steps, summed over requests (S); ``drafts`` those that drafted (K);
    ``drafted`` and ``accepted`` draft tokens (D, A). ``cached_tokens`` are prompt tokens that came
    from a cache, ``preemptions`` requests that were put back for want of memory. ``missing`` are
    records that the server dropped before they were read. ``slack`` is how far any of these can be
    off because the server rounds what it prints; it applies to totals alone.
    """

    prompt_tokens: int | None = None
    output_tokens: int | None = None
    steps: int | None = None
    drafts: int | None = None
    drafted: int | None = None
    accepted: int | None = None
    cached_tokens: int | None = None
    preemptions: int | None = None
    missing: int | None = None
    slack: int = 0

    def __sub__(self, before: Counters) -> Counters:
        def difference(name: str) -> int | None:
            new, old = getattr(self, name), getattr(before, name)
            return None if new is None else new - (old or 0)

        return Counters(**{name: difference(name) for name in COUNTERS}, slack=self.slack + before.slack)

    @classmethod
    def total(cls, windows: Iterable[Counters]) -> Counters:
        """The sum over several windows; a counter that one of them lacks has no sum."""
        every = list(windows)

        def add(name: str) -> int | None:
            known = [value for value in (getattr(counters, name) for counters in every) if value is not None]
            return sum(known) if known and len(known) == len(every) else None

        return cls(**{name: add(name) for name in COUNTERS}, slack=sum(counters.slack for counters in every))


COUNTERS = tuple(field.name for field in fields(Counters) if field.name != "slack")
"""The names of the totals."""


@dataclass(frozen=True, slots=True)
class StepTotal:
    """S over a window: between ``low`` and ``high``, equal where it is exact. ``source`` says how it is known."""

    low: int
    high: int
    source: str

    @property
    def exact(self) -> bool:
        """Whether there is no doubt."""
        return self.low == self.high


@dataclass(frozen=True, slots=True)
class Client:
    """How the load client itself did; of several worker processes the worst.

    ``lag_p99_s`` is the event loop's lag. ``concurrency_mean`` and ``concurrency_min`` are turns in flight over
    the steady window, None without one. ``send_delay_p99_s`` is from when a turn could be sent to its first byte
    out, ``clock_error_s`` how far clocks of workers can be apart, ``kernel_stamped`` the share of
    reads whose time stamp is the kernel's and so does not depend on the lag. None: not measured.
    """

    lag_p99_s: float
    cpu_share: float
    workers: int = 1
    concurrency_mean: float | None = None
    concurrency_min: int | None = None
    send_delay_p99_s: float | None = None
    clock_error_s: float | None = None
    kernel_stamped: float | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """One measured cell: everything between two readings of the server's counters.

    ``planned`` holds (question_id, number of turns) of every conversation that was to be measured.
    ``steady_ns`` is the span in which the asked concurrency was held, None if it never was.
    ``steps`` is what ``measure.steps.settle`` made of it, None for a window of turns that have their own.
    It is repeat ``repeat`` of engine start ``start``, both from 0. ``gpus`` is what was seen of the engine's GPUs.
    ``arrival_rate`` is how many conversations began per second in an open loop, None in a closed one.
    """

    cell: Cell
    planned: tuple[tuple[str, int], ...]
    turns: tuple[Turn, ...]
    failures: tuple[Failure, ...]
    counters: Counters
    client: Client
    steady_ns: tuple[int, int] | None = None
    steps: StepTotal | None = None
    start: int = 0
    repeat: int = 0
    gpus: tuple[GpuWindow, ...] = ()
    arrival_rate: float | None = None

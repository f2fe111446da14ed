"""What the load driver hands to the metrics: turns, failures, server counters, one window.

All times are nanoseconds of one monotonic clock of the client.
"""

from __future__ import annotations

from dataclasses import dataclass

from pytest_speedbench.cells import Cell


@dataclass(frozen=True, slots=True)
class Steps:
    """The decode steps of one turn, prefill excluded.

    ``lengths[i]`` is what step i produced: accepted drafts + 1, *before* the cut at EOS or at the
    cap. 0 marks a step that is known to exist but whose own length the engine did not let us tell
    apart from its neighbours'; the sum over such steps is still exact. So ``len(lengths)`` is the
    exact number of steps S, and N - 1 + cut = accepted + S holds for N output tokens.

    ``drafted`` and ``accepted`` are draft tokens, the bonus token excluded. ``cut`` is how many
    tokens the last step produced beyond the last output token.
    """

    lengths: tuple[int, ...]
    accepted: int
    drafted: int
    cut: int = 0

    @property
    def count(self) -> int:
        """S, the number of decode steps."""
        return len(self.lengths)

    @property
    def unresolved(self) -> int:
        """Steps whose own length is unknown."""
        return self.lengths.count(0)


@dataclass(frozen=True, slots=True)
class Turn:
    """One finished turn of one conversation.

    ``event_ns[i]`` is when the i-th event that carried tokens arrived, ``event_tokens[i]`` how many
    tokens had been produced since the event before; their sum is ``output_tokens`` unless the
    engine held tokens back at the very end. ``step_ns`` holds arrival times of consecutive engine
    steps, the first being the prefill's token; a negative entry marks a place where the arrival of
    one or more steps could not be observed, so that no gap may be formed across it.
    ``output_ids`` is None where the stream did not carry every id.
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
    steps: Steps
    text: str
    output_ids: tuple[int, ...] | None = None


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

    ``drafts`` counts steps that drafted (K), ``drafted`` and ``accepted`` draft tokens (D, A).
    """

    prompt_tokens: int | None = None
    output_tokens: int | None = None
    drafts: int | None = None
    drafted: int | None = None
    accepted: int | None = None

    def __sub__(self, before: Counters) -> Counters:
        def difference(name: str) -> int | None:
            new, old = getattr(self, name), getattr(before, name)
            return None if new is None else new - (old or 0)

        return Counters(
            difference("prompt_tokens"),
            difference("output_tokens"),
            difference("drafts"),
            difference("drafted"),
            difference("accepted"),
        )


@dataclass(frozen=True, slots=True)
class Client:
    """How the load client itself did. ``lag_p99_s`` is the event loop's lag."""

    lag_p99_s: float
    cpu_share: float


@dataclass(frozen=True, slots=True)
class Window:
    """One measured cell: everything between two readings of the server's counters.

    ``planned`` holds (question_id, number of turns) of every conversation that was to be measured.
    ``steady_ns`` is the span in which the asked concurrency was held, None if it never was.
    """

    cell: Cell
    planned: tuple[tuple[str, int], ...]
    turns: tuple[Turn, ...]
    failures: tuple[Failure, ...]
    counters: Counters
    client: Client
    steady_ns: tuple[int, int] | None = None

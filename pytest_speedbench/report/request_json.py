"""One window as lines of JSON and back: first its frame, then turns, then failures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

from pytest_speedbench.errors import ConfigError
from pytest_speedbench.measure.samples import (
    COUNTERS,
    Client,
    Counters,
    Failure,
    Steps,
    StepTotal,
    Told,
    Turn,
    Window,
)
from pytest_speedbench.report.decode import Fields
from pytest_speedbench.report.redact import Redactor
from pytest_speedbench.report.result_json import JSONObject, cell_from_json, cell_to_json, number

UNSEEN = -1
"""How a ``step_ns`` entry that marks an unobserved arrival reads back; null in the file."""
_TOLD = ("steps", "drafts", "drafted", "accepted")


def window_lines(profile: str, window: Window, *, keep_output_ids: bool, redactor: Redactor) -> Iterator[JSONObject]:
    """The JSON objects of a window, one per line. Every line names the profile and the cell."""
    head: JSONObject = {"profile": profile, "cell": cell_to_json(window.cell)}
    yield {
        "type": "window",
        **head,
        "start": window.start,
        "repeat": window.repeat,
        "arrival_rate": number(window.arrival_rate),
        "planned": [list(pair) for pair in window.planned],
        "counters": {name: getattr(window.counters, name) for name in (*COUNTERS, "slack")},
        "client": _client_to_json(window.client),
        "steady_ns": window.steady_ns and list(window.steady_ns),
        "steps": window.steps and {"low": window.steps.low, "high": window.steps.high, "source": window.steps.source},
        "turns": len(window.turns),
        "failures": len(window.failures),
    }
    for turn in window.turns:
        yield {"type": "turn", **head, **_turn_to_json(turn, keep_output_ids=keep_output_ids)}
    for failure in window.failures:
        yield {
            "type": "failure",
            **head,
            "question_id": failure.question_id,
            "index": failure.index,
            "reason": failure.reason,
            "message": redactor.text(failure.message),
        }


def _client_to_json(client: Client) -> JSONObject:
    return {
        "lag_p99_s": number(client.lag_p99_s),
        "cpu_share": number(client.cpu_share),
        "workers": client.workers,
        "concurrency_mean": number(client.concurrency_mean),
        "concurrency_min": client.concurrency_min,
        "send_delay_p99_s": number(client.send_delay_p99_s),
        "clock_error_s": number(client.clock_error_s),
        "kernel_stamped": number(client.kernel_stamped),
    }


def _turn_to_json(turn: Turn, *, keep_output_ids: bool) -> JSONObject:
    ids = turn.output_ids if keep_output_ids else None
    return {
        "question_id": turn.question_id,
        "category": turn.category,
        "index": turn.index,
        "start_ns": turn.start_ns,
        "event_ns": [moment - turn.start_ns for moment in turn.event_ns],
        "event_tokens": list(turn.event_tokens),
        "step_ns": [None if moment < 0 else moment - turn.start_ns for moment in turn.step_ns],
        "steps": turn.steps and _steps_to_json(turn.steps),
        "told": turn.told and _told_to_json(turn.told),
        "prompt_tokens": turn.prompt_tokens,
        "output_tokens": turn.output_tokens,
        "finish": turn.finish,
        "output_ids": None if ids is None else list(ids),
        "text_sha256": None
        if turn.text is None
        else hashlib.sha256(turn.text.encode("utf-8", "surrogatepass")).hexdigest(),
    }


def _steps_to_json(steps: Steps) -> JSONObject:
    return {
        "lengths": list(steps.lengths),
        "accepted": steps.accepted,
        "drafted": steps.drafted,
        "cut": steps.cut,
        "ordered": steps.ordered,
    }


def _told_to_json(told: Told) -> JSONObject:
    lengths = None if told.lengths is None else list(told.lengths)
    return {**{name: getattr(told, name) for name in _TOLD}, "lengths": lengths, "ordered": told.ordered}


class Lines:
    """Reads the lines of one window. ``where`` is named in errors."""

    def __init__(self, where: str) -> None:
        self.where = where

    def window(self, content: bytes) -> tuple[str, Window]:
        """(profile, window) from the lines of ``window_lines``. Raises ConfigError for anything else."""
        try:
            parsed = [json.loads(line) for line in content.splitlines()]
        except ValueError as error:
            raise ConfigError(f"{self.where}: not JSON lines: {error}") from None
        rows = [Fields(row, f"{self.where}, line {number}") for number, row in enumerate(parsed, start=1)]
        if not rows or rows[0].text("type") != "window":
            raise ConfigError(f"{self.where}: not a request log: the first line is no window")
        head, turns, failures = rows[0], [], []
        for row in rows[1:]:
            kind = row.text("type")
            if kind == "turn":
                turns.append(_turn_from_json(row))
            elif kind == "failure":
                failures.append(_failure_from_json(row))
            else:
                raise ConfigError(f"{row.where}: unknown type {kind!r}")
        if (len(turns), len(failures)) != (head.integer("turns"), head.integer("failures")):
            raise ConfigError(f"{self.where}: lines are missing or too many")
        counters = head.child("counters")
        window = Window(
            cell=cell_from_json(head.child("cell")),
            planned=tuple(_planned(pair, head.where) for pair in head.array("planned")),
            turns=tuple(turns),
            failures=tuple(failures),
            counters=Counters(
                **{name: counters.optional_integer(name) for name in COUNTERS}, slack=counters.integer("slack")
            ),
            client=_client_from_json(head.child("client")),
            steady_ns=_steady(head),
            steps=_step_total(head.optional_child("steps")),
            # Logs written before there were several starts and repeats have neither.
            start=head.integer("start") if head.has("start") else 0,
            repeat=head.integer("repeat") if head.has("repeat") else 0,
            arrival_rate=head.optional_number("arrival_rate") if head.has("arrival_rate") else None,
        )
        return head.text("profile"), window


def _client_from_json(read: Fields) -> Client:
    lag_p99_s, cpu_share = read.number("lag_p99_s"), read.number("cpu_share")
    if "workers" not in read.data:
        # Written before there were workers.
        return Client(lag_p99_s, cpu_share)
    return Client(
        lag_p99_s,
        cpu_share,
        workers=read.integer("workers"),
        concurrency_mean=read.optional_number("concurrency_mean"),
        concurrency_min=read.optional_integer("concurrency_min"),
        send_delay_p99_s=read.optional_number("send_delay_p99_s"),
        clock_error_s=read.optional_number("clock_error_s"),
        kernel_stamped=read.optional_number("kernel_stamped"),
    )


def _turn_from_json(read: Fields) -> Turn:
    start = read.integer("start_ns")
    offsets = (None if item is None else item for item in read.array("step_ns"))
    return Turn(
        question_id=read.text("question_id"),
        category=read.text("category"),
        index=read.integer("index"),
        prompt_tokens=read.integer("prompt_tokens"),
        output_tokens=read.integer("output_tokens"),
        finish=read.text("finish"),
        start_ns=start,
        event_ns=tuple(start + offset for offset in read.integers("event_ns")),
        event_tokens=read.integers("event_tokens"),
        step_ns=tuple(start + offset if isinstance(offset, int) else UNSEEN for offset in offsets),
        steps=_steps_from_json(read.optional_child("steps")),
        text=None if read.optional_text("text_sha256") is None else "",
        output_ids=None if read.data.get("output_ids") is None else read.integers("output_ids"),
        told=_told_from_json(read.optional_child("told")),
    )


def _steps_from_json(read: Fields | None) -> Steps | None:
    if read is None:
        return None
    return Steps(
        read.integers("lengths"),
        read.optional_integer("accepted"),
        read.optional_integer("drafted"),
        read.optional_integer("cut"),
        read.flag("ordered"),
    )


def _told_from_json(read: Fields | None) -> Told | None:
    if read is None:
        return None
    lengths = None if read.data.get("lengths") is None else read.integers("lengths")
    return Told(**{name: read.optional_integer(name) for name in _TOLD}, lengths=lengths, ordered=read.flag("ordered"))


def _step_total(read: Fields | None) -> StepTotal | None:
    return None if read is None else StepTotal(read.integer("low"), read.integer("high"), read.text("source"))


def _failure_from_json(read: Fields) -> Failure:
    return Failure(read.text("question_id"), read.integer("index"), read.text("reason"), read.text("message"))


def _planned(pair: object, where: str) -> tuple[str, int]:
    match pair:
        case [str(question), int(turns)]:
            return question, turns
    raise ConfigError(f"{where}.planned: expected [question id, number of turns], found {pair!r}")


def _steady(head: Fields) -> tuple[int, int] | None:
    if head.data.get("steady_ns") is None:
        return None
    match head.integers("steady_ns"):
        case (begin, end):
            return begin, end
    raise ConfigError(f"{head.where}.steady_ns: expected two numbers")

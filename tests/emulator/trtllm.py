"""A server that speaks ``trtllm-serve``'s ``/v1/completions`` protocol with schedules of known truth.

An executor runs behind it: each iteration takes every active request one step further, and leaves a row
for ``GET /metrics``, which reading empties and which drops the oldest row when full. With the overlap
scheduler a request that has ended takes part in one iteration more, whose row comes when the executor
works again.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.emulator.schedule import Schedule
from tests.emulator.server import Crash, Cut, Hang, Request, Response, Stream

FIELDS = frozenset(
    (
        *("model", "prompt", "max_tokens", "n", "seed", "stream", "stream_options", "detokenize"),
        *("temperature", "top_p", "top_k", "top_p_min", "min_p", "repetition_penalty"),
        *("ignore_eos", "min_tokens", "stop", "stop_token_ids", "truncate_prompt_tokens", "priority"),
    )
)
"""What a request may have: the schema forbids anything else."""
STREAM_FAULTS = ("cut", "crash", "hang", "error_event", "garbage", "no_ids")
"""Faults that come after ``fault_after`` events."""
END_FAULTS = (
    "no_done",
    "no_usage",
    "no_cached",
    "cached",
    "more_usage",
    "other_prompt",
    "no_finish",
    "cancelled",
    "no_mean",
    "odd_mean",
)
OTHER_FAULTS = ("http_400", "http_flat", "no_tokens")


@dataclass
class _Running:
    """A request in the executor. ``at`` counts its iterations; ``events`` are ids and ``at`` then."""

    schedule: Schedule
    at: int = 0
    events: asyncio.Queue[tuple[tuple[int, ...], int]] = field(default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        self._groups = deque(self.schedule.events)
        ends, last = [], 0
        for step in range(1, len(self.schedule.steps) + 1):
            if step - 1 not in self.schedule.joins:
                ends.append(last)
            last = step
        self._ends = {*ends, last}

    def advance(self) -> tuple[int, int] | None:
        """Run one iteration: its (drafted, accepted), None for the prefill."""
        step = self.schedule.steps[self.at - 1] if self.at else None
        self.at += 1
        if self.at - 1 in self._ends:
            self.events.put_nowait((self._groups.popleft(), self.at))
        return step

    @property
    def ended(self) -> bool:
        return self.at > len(self.schedule.steps)


class TrtLlm:
    """The app for ``tests.emulator.server.Server``.

    ``answer`` gives the schedule of a request. ``draft_tokens`` 0 is a server without speculation.
    ``overlap``: the overlap scheduler is on. ``sequence``: rows carry the fields that 1.4 added.
    ``context_counted``: the mean of decoded tokens counts the iteration of the prompt. ``trim_stop``: EOS
    is a stop token that is taken off. ``stats_len`` rows are kept; ``paced``: the executor works no faster
    than they are read. ``stats``: ``enable_iter_perf_stats``.
    ``thief`` reads all rows first. ``late`` rows are held back until the next reading. ``lies`` are added
    to ``specDecodingStats`` of the first row. ``not_ready`` health checks are answered 503.
    """

    stream_path = "/v1/completions"

    def __init__(
        self,
        answer: Callable[[Request], Schedule],
        *,
        version: str = "1.2.1",
        draft_tokens: int = 0,
        overlap: bool = False,
        sequence: bool = False,
        context_counted: bool = True,
        trim_stop: bool = False,
        max_batch_size: int = 64,
        stats_len: int = 100_000,
        paced: bool = False,
        stats: bool = True,
        thief: bool = False,
        late: int = 0,
        lies: Mapping[str, int] | None = None,
        not_ready: int = 0,
        served: str = "target",
        owned_by: str = "tensorrt_llm",
        perf_event: bool = False,
        paused: int = 0,
    ) -> None:
        self.rows: deque[dict[str, Any]] = deque()
        self.not_ready = not_ready
        self.readings = 0
        self._answer, self._version, self._k, self._overlap = answer, version, draft_tokens, overlap
        self._sequence, self._context_counted, self._trim_stop = sequence, context_counted, trim_stop
        self._max_batch_size, self._stats_len, self._paced = max_batch_size, stats_len, paced
        self._stats = stats
        self._thief, self._late, self._lies, self._paused = thief, late, dict(lies or {}), paused
        self._served, self._owned_by, self._perf_event = served, owned_by, perf_event
        self._active: list[_Running] = []
        self._queue: deque[_Running] = deque()
        self._stale: list[tuple[int, int]] = []
        self._executor: asyncio.Task[None] | None = None
        self._iteration = self._sequence_number = self._dropped = 0

    # Plain requests

    def plain(self, request: Request) -> Response:
        if request.path == "/health":
            self.not_ready -= 1
            return Response(503 if self.not_ready >= 0 else 200, b"", "text/plain")
        if request.path == "/version":
            return Response.of({"version": self._version})
        if request.path == "/v1/models":
            card = {"id": self._served, "object": "model", "created": 1, "owned_by": self._owned_by}
            return Response.of({"object": "list", "data": [card]})
        if request.path == "/metrics":
            self.readings += 1
            return Response.of(self._taken())
        return Response.of({"detail": "Not Found"}, 404)

    def _taken(self) -> list[dict[str, Any]]:
        if not self._stats:
            return []
        if self._thief:
            self.rows.clear()
        taken = list(self.rows)[: len(self.rows) - self._late]
        for _ in taken:
            self.rows.popleft()
        self._late = 0
        return taken

    # The executor

    async def _run(self) -> None:
        while self._active or self._queue:
            await asyncio.sleep(0)
            while self._paced and len(self.rows) >= self._stats_len:
                await asyncio.sleep(0.001)
            if self._stale and not self._active:
                self._iterate([])
            while self._queue and len(self._active) < self._max_batch_size:
                self._active.append(self._queue.popleft())
            self._iterate(self._active)
        self._executor = None

    def _iterate(self, batch: list[_Running]) -> None:
        """One iteration over ``batch``, and over what overlapped with the end of a request."""
        stale, self._stale = self._stale, []
        prompts = sum(not r.at for r in batch)
        steps = [step for r in batch if (step := r.advance()) is not None]
        ended = [r for r in batch if r.ended]
        self._record(prompts, [*steps, *stale], len(batch) + len(stale), len(ended))
        if self._overlap:
            self._stale = [r.schedule.steps[-1] if r.schedule.steps else (self._k, 0) for r in ended]
        self._active = [r for r in self._active if not r.ended]

    def _record(self, prompts: int, steps: list[tuple[int, int]], active: int, ended: int) -> None:
        self._iteration += 1
        drafting = [step for step in steps if step[0]]
        row: dict[str, Any] = {
            "timestamp": "11-24-2026 12:00:00.000000",
            "iter": self._iteration,
            "iterLatencyMS": 5.0,
            "numActiveRequests": active,
            "numQueuedRequests": len(self._queue),
            "numCompletedRequests": ended,
            "kvCacheStats": {"reusedBlocks": 0, "cacheHitRate": 0.0},
            "inflightBatchingStats": {
                "numScheduledRequests": prompts + len(steps),
                "numContextRequests": prompts,
                "numGenRequests": len(steps),
                "numPausedRequests": self._paused,
                "avgNumDecodedTokensPerIter": 0,
            },
        }
        self._paused = 0
        if self._k:
            accepted = sum(a for _, a in drafting)
            row["specDecodingStats"] = {
                "numDraftTokens": sum(d for d, _ in drafting) + self._lies.pop("numDraftTokens", 0),
                "numAcceptedTokens": accepted + self._lies.pop("numAcceptedTokens", 0),
                "numRequestsWithDraftTokens": len(drafting) + self._lies.pop("numRequestsWithDraftTokens", 0),
                "acceptanceLength": (accepted + len(drafting)) / len(drafting) if drafting else 0.0,
                "iterLatencyMS": 0.0,
                "draftOverhead": 0.0,
            }
        self._sequence_number += 1
        self.rows.append(row)
        if len(self.rows) > self._stats_len:
            self.rows.popleft()
            self._dropped += 1
        if self._sequence:
            row["attentionDpRank"] = None
            row["schedulerMode"] = "overlap" if self._overlap else "non_overlap"
            row["statsSequence"] = self._sequence_number
            row["statsDroppedFrames"] = self._dropped

    # Streams

    def stream(self, request: Request) -> Stream | Response:
        unknown = sorted(set(request.body) - FIELDS)
        if unknown or "model" not in request.body:
            wrong = f"Extra inputs are not permitted: {', '.join(unknown)}" if unknown else "model: Field required"
            return Response.of({"error": wrong}, 400)
        schedule = self._answer(request)
        if schedule.fault == "http_400":
            return Response.of({"error": "the request is bad"}, 400)
        if schedule.fault == "http_flat":
            flat = {"object": "error", "message": "the prompt is too long", "type": "BadRequestError", "code": 400}
            return Response.of({**flat, "param": None}, 400)
        running = _Running(schedule)
        self._queue.append(running)
        return Stream(self._pieces(request, running))

    async def _pieces(self, request: Request, running: _Running) -> AsyncIterator[bytes]:
        if self._executor is None:
            self._executor = asyncio.get_running_loop().create_task(self._run())
        schedule = running.schedule
        number = len(schedule.events)
        sent = 0
        for index in range(number):
            ids, iterations = await running.events.get()
            if schedule.fault in STREAM_FAULTS and index == schedule.fault_after:
                if schedule.fault == "cut":
                    raise Cut
                if schedule.fault == "crash":
                    raise Crash
                if schedule.fault == "hang":
                    raise Hang
                if schedule.fault == "error_event":
                    yield _event({"object": "error", "message": "the executor died", "type": "InternalServerError"})
                    raise Cut
                if schedule.fault == "garbage":
                    yield b"data: {]\n\n"
                    raise Cut
            sent += len(ids)
            yield _event(self._chunk(request, schedule, ids, sent, iterations=iterations, last=index == number - 1))
        if schedule.fault != "no_usage":
            yield _event({**_common(self._served), "choices": [], "usage": self._usage(request, schedule)})
        if schedule.fault == "no_done":
            raise Cut
        yield b"data: [DONE]\n\n"
        if self._perf_event:
            yield b'event: trtllm.perf_metrics\ndata: {"step_metrics": []}\n\n'

    def _chunk(
        self, request: Request, schedule: Schedule, ids: tuple[int, ...], sent: int, *, iterations: int, last: bool
    ) -> dict[str, Any]:
        finish = ("stop" if schedule.stopped else "length") if last else None
        trimmed = last and schedule.stopped and self._trim_stop
        shown = [] if schedule.fault == "no_tokens" else list(ids[:-1] if trimmed else ids)
        detokenized = request.body.get("detokenize", True) or (schedule.fault == "no_ids" and last)
        choice: dict[str, Any] = {
            "index": 0,
            "text": bytes(ids).decode() if detokenized else "",
            "token_ids": None if detokenized else shown,
            "logprobs": None,
            "finish_reason": {"no_finish": None, "cancelled": "cancelled"}.get(schedule.fault or "", finish),
            "stop_reason": ids[-1] if trimmed else None,
            "avg_decoded_tokens_per_iter": self._mean(schedule, sent, iterations),
        }
        if not last:
            choice["finish_reason"] = None
        return {**_common(self._served), "choices": [choice], "usage": None}

    def _mean(self, schedule: Schedule, sent: int, iterations: int) -> float | None:
        """Single precision, as the executor keeps it."""
        counted = iterations if self._context_counted else iterations - 1
        if schedule.fault == "no_mean":
            return None
        if not counted:
            return 0.0
        mean = sent / counted * (1.001 if schedule.fault == "odd_mean" else 1)
        return float(struct.unpack("f", struct.pack("f", mean))[0])

    def _usage(self, request: Request, schedule: Schedule) -> dict[str, Any]:
        prompt = len(request.body["prompt"]) + (schedule.fault == "other_prompt")
        output = schedule.output_tokens + (schedule.fault == "more_usage")
        output = 0 if schedule.fault == "no_tokens" else output - (schedule.stopped and self._trim_stop)
        details = {"cached_tokens": 16 if schedule.fault == "cached" else 0}
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + output,
            "completion_tokens": output,
            "prompt_tokens_details": None if schedule.fault == "no_cached" else details,
        }


def _common(served: str) -> dict[str, Any]:
    return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": served}


def _event(payload: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload, separators=(",", ":")).encode() + b"\n\n"

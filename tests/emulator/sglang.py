"""SGLang's ``/generate`` protocol with a script of known truth.

Ids are characters of the reply, so that text and ids tell the same. As with the real server every
decode step is a verify step: the drafts proposed are the steps times the slots of the window, whatever
a script says of a step's own drafts.

Faults of a schedule: ``cut``, ``crash``, ``until_crash`` (wait until another request has killed the
server), ``hang``, ``error_event``, ``abort``, ``garbage``, ``no_meta``; and, instead of all events,
``http_400`` and ``too_long``.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.emulator.schedule import Schedule
from tests.emulator.server import Crash, Cut, Request, Response, Stream

DONE = b"data: [DONE]\n\n"
VOCABULARY = 256


def spec_fields(schedule: Schedule, window: int) -> dict[str, Any]:
    """What the closing event says of speculation; nothing where nothing was verified."""
    verified, correct = len(schedule.steps), schedule.accepted
    if not verified:
        return {}
    proposed = verified * (window - 1)
    counts = Counter(accepted for _, accepted in schedule.steps)
    histogram = [counts[j] for j in range(max(counts) + 1)]
    return {
        "spec_accept_rate": correct / proposed,
        "spec_accept_length": schedule.output_tokens / verified,
        "spec_num_correct_drafts": correct,
        "spec_num_proposed_drafts": proposed,
        "spec_verify_ct": verified,
        "spec_accepted_drafts": correct,
        "spec_proposed_drafts": proposed,
        "spec_correct_drafts_histogram": histogram,
        "spec_accept_histogram": histogram,
    }


def events(
    schedule: Schedule,
    prompt_tokens: int,
    *,
    window: int | None = None,
    incremental: bool = True,
    meta: Mapping[str, Any] | None = None,
    drop: frozenset[str] = frozenset(),
) -> list[dict[str, Any]]:
    """The data of every event up to the closing one. ``meta`` is put over each meta_info, ``drop`` is not in any.

    Events that the schedule joins come as one: all their ids with incremental streaming, else the newest
    state alone.
    """
    made, sent, groups = list[dict[str, Any]](), 0, schedule.events
    for number, ids in enumerate(groups):
        last, produced = number == len(groups) - 1, sent + len(ids)
        info: dict[str, Any] = {
            "id": "r",
            "finish_reason": None,
            "prompt_tokens": prompt_tokens,
            "weight_version": "default",
            "num_retractions": 0,
            "queue_time": 0.0,
            "reasoning_tokens": 0,
            "completion_tokens": produced,
            "cached_tokens": 0,
            "cached_tokens_details": None,
            "dp_rank": None,
        }
        if last:
            stop = {"type": "stop", "matched": schedule.ids[-1]}
            info["finish_reason"] = stop if schedule.stopped else {"type": "length", "length": produced}
            info["e2e_latency"] = 0.1
            info |= {} if window is None else spec_fields(schedule, window)
        info |= meta or {}
        first = sent if incremental else 0
        spoken = schedule.ids[first : produced - 1 if last and schedule.stopped else produced]
        made.append(
            {
                "text": "".join(map(chr, spoken)),
                "output_ids": list(schedule.ids[first:produced]),
                "meta_info": {name: value for name, value in info.items() if name not in drop},
            }
        )
        sent = produced
    return made


@dataclass
class SglangApp:
    """``answer`` gives the script for a request and how often its prompt was answered since the last flush.

    ``window`` is the verify window, None without speculation. ``starting`` is how many readiness probes
    find the server not ready yet, ``lies`` are added to counters, ``info`` is put over the server info.
    ``top`` are the (id, log-probability) pairs with which a request for log-probabilities is answered.
    """

    answer: Callable[[Request, int], Schedule]
    window: int | None = None
    algorithm: str = "STANDALONE"
    incremental: bool = True
    meta: Mapping[str, Any] = field(default_factory=dict)
    drop: frozenset[str] = frozenset()
    lies: Mapping[str, int] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    starting: int = 0
    ready_route: bool = True
    old_routes_only: bool = False
    metrics: bool = True
    tensor_parallel: int = 1
    vocabulary: int = VOCABULARY
    top: Callable[[Request], Sequence[tuple[int, float]]] = lambda request: ()
    stream_path: str = "/generate"
    pending: int = 0
    flushes: int = 0
    totals: Counter[str] = field(default_factory=Counter)
    _memory: Counter[tuple[int, ...]] = field(default_factory=Counter)
    _crashed: asyncio.Event = field(default_factory=asyncio.Event)

    def plain(self, request: Request) -> Response:
        path, new = request.path, not self.old_routes_only
        if path == "/health" or (path == "/ready" and self.ready_route):
            self.starting -= 1
            return Response(503 if self.starting >= 0 else 200, b"")
        if path == "/flush_cache":
            return self._flush()
        if path == "/get_server_info" or (path == "/server_info" and new):
            return Response.of(self._server_info())
        if path == "/get_model_info" or (path == "/model_info" and new):
            return Response.of({"model_path": "model", "is_generation": True, "architectures": ["LlamaForCausalLM"]})
        if path == "/metrics" and self.metrics:
            return Response(200, self._metrics().encode(), "text/plain; version=0.0.4")
        return Response.of({"detail": "Not Found"}, 404)

    def stream(self, request: Request) -> Stream | Response:
        if request.body.get("return_logprob"):
            return Response.of(self._with_logprobs(request))
        ids = tuple(request.body["input_ids"])
        schedule = self.answer(request, self._memory[ids])
        if schedule.fault == "http_400":
            return Response.of({"error": {"message": "the request is bad"}}, 400)
        if not all(0 <= i < self.vocabulary for i in ids):
            self._crashed.set()
        self.pending += 1
        return Stream(self._pieces(schedule, len(ids)), lambda: self._account(schedule, ids))

    def _with_logprobs(self, request: Request) -> dict[str, Any]:
        """One more token and its alternatives; their texts are null unless asked for."""
        top = [[logprob, token, None] for token, logprob in self.top(request)[: request.body["top_logprobs_num"]]]
        meta = {
            "finish_reason": {"type": "length", "length": 1},
            "prompt_tokens": len(request.body["input_ids"]),
            "input_token_logprobs": [],
            "output_token_logprobs": top[:1],
            "output_top_logprobs": [top],
            "completion_tokens": 1,
        }
        return {"text": "", "output_ids": [top[0][1]], "meta_info": meta}

    async def _pieces(self, schedule: Schedule, prompt_tokens: int) -> AsyncIterator[bytes]:
        try:
            if schedule.fault == "too_long":
                yield _data(_error("The input is longer than the model's context length."))
                yield DONE
                raise Cut
            made = events(
                schedule,
                prompt_tokens,
                window=self.window,
                incremental=self.incremental,
                meta=self.meta,
                drop=self.drop,
            )
            for number, event in enumerate(made):
                if self._crashed.is_set():
                    raise Crash
                if schedule.fault is not None and number == schedule.fault_after:
                    async for piece in self._break(schedule.fault, event):
                        yield piece
                yield _data(event)
            if schedule.fault is not None and schedule.fault_after >= len(made):
                async for piece in self._break(schedule.fault, made[-1]):
                    yield piece
            yield DONE
        finally:
            self.pending -= 1

    async def _break(self, fault: str, event: dict[str, Any]) -> AsyncIterator[bytes]:
        """What goes wrong instead of ``event``; always ends with an exception of the transport, or with [DONE]."""
        if fault == "hang":
            await asyncio.Event().wait()
        if fault == "until_crash":
            await self._crashed.wait()
        if fault in ("crash", "until_crash"):
            raise Crash
        if fault == "cut":
            raise Cut
        if fault == "error_event":
            yield _data(_error("the scheduler refused"))
        elif fault == "abort":
            reason = {"type": "abort", "message": "The request queue is full.", "status_code": 503, "err_type": None}
            yield _data({**event, "meta_info": {**event["meta_info"], "finish_reason": reason}})
        elif fault == "garbage":
            yield b"data: {not json\n\n"
        elif fault == "no_meta":
            yield _data({"text": "x", "output_ids": [1]})
        else:
            raise AssertionError(fault)
        yield DONE
        raise Cut

    def _account(self, schedule: Schedule, ids: tuple[int, ...]) -> None:
        self._memory[ids] += 1
        self.totals["prompt_tokens_total"] += len(ids)
        self.totals["generation_tokens_total"] += schedule.output_tokens
        self.totals["num_requests_total"] += 1
        if self.window is not None and schedule.steps:
            self.totals["spec_verify_calls_total"] += len(schedule.steps)

    def _flush(self) -> Response:
        if self.pending:
            return Response(400, b"Flush cache failed.\n", "text/plain")
        self._memory.clear()
        self.flushes += 1
        return Response(200, b"Cache flushed.\n", "text/plain")

    def _server_info(self) -> dict[str, Any]:
        speculates = self.window is not None
        return {
            "model_path": "model",
            "served_model_name": "speedbench",
            "host": "127.0.0.1",
            "port": 30000,
            "random_seed": 0,
            "dtype": "auto",
            "context_length": 4096,
            "tp_size": self.tensor_parallel,
            "disable_radix_cache": True,
            "enable_metrics": True,
            "stream_interval": 1,
            "incremental_streaming_output": self.incremental,
            "speculative_algorithm": self.algorithm if speculates else None,
            "speculative_num_steps": self.window - 1 if self.window is not None else None,
            "speculative_eagle_topk": 1 if speculates else None,
            "speculative_num_draft_tokens": self.window,
            "speculative_draft_model_path": "/models/drafter" if speculates else None,
            "speculative_adaptive": False,
            "max_total_num_tokens": 100_000,
            "internal_states": [{"last_gen_throughput": 1.5}],
            "version": "0.5.16",
            **self.info,
        }

    def _metrics(self) -> str:
        labels = 'engine_type="unified",model_name="speedbench"'
        lines = ["# TYPE sglang:num_running_reqs gauge"]
        for rank in range(self.tensor_parallel):
            scheduler = f'{labels},moe_ep_rank="0",pp_rank="0",tp_rank="{rank}"'
            lines.append(f"sglang:num_running_reqs{{{scheduler}}} {float(self.pending)}")
            lines.append(f"sglang:num_queue_reqs{{{scheduler}}} 0.0")
            lines.append(f"sglang:fwd_occupancy{{{scheduler}}} NaN")
            retracted = self.lies.get("num_retracted_requests_total", 0)
            if retracted:
                lines.append(f"sglang:num_retracted_requests_total{{{scheduler}}} {float(retracted)}")
        for name, value in self.totals.items():
            lines += [
                f"# TYPE sglang:{name} counter",
                f"sglang:{name}{{{labels}}} {float(value + self.lies.get(name, 0))}",
            ]
        cached = self.lies.get("cached_tokens_total", 0)
        if cached:
            for source in ("device", "host"):
                lines.append(f'sglang:cached_tokens_total{{cache_source="{source}",{labels}}} {float(cached)}')
        return "\n".join(lines) + "\n"


def _data(event: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "code": 400, "retryable": False}}

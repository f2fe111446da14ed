"""A server that speaks vLLM's ``/v1/completions`` protocol with schedules of known truth.

Tokens are bytes of the reply, so that ids of multi-byte characters show vLLM's hold-back: an event
carries its ids at once, and the text of a character comes with the id that completes it. Of a stopped
answer the last token is EOS and has no text.
"""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.emulator.schedule import Schedule
from tests.emulator.server import Crash, Cut, Hang, Request, Response, Stream

DONE = b"data: [DONE]\n\n"
STEP_COUNTER = "inter_token_latency_seconds_count"
STREAM_FAULTS = ("cut", "crash", "hang", "error_event", "garbage")
"""Faults that come after ``fault_after`` events."""
OTHER_FAULTS = (
    "http_400",
    "no_usage",
    "more_usage",
    "no_ids",
    "no_metrics",
    "abort",
    "cached",
    "no_done",
    "other_prompt",
)


@dataclass
class Totals:
    """What one data-parallel engine has counted."""

    prompt: int = 0
    output: int = 0
    steps: int = 0
    drafts: int = 0
    drafted: int = 0
    accepted: int = 0
    positions: Counter[int] = field(default_factory=Counter)


class Vllm:
    """The app for ``tests.emulator.server.Server``.

    ``answer`` gives the schedule of a request. ``draft_tokens`` 0 is a server without speculation.
    ``metrics`` is the server's ``--per-request-spec-decode-metrics``. ``lies`` are added to series by
    their name without ``vllm:``. ``not_ready`` health checks are answered 503. ``series_late``: the
    speculation series appear with the first draft. ``top`` are the (id, log-probability) pairs with which a request
    for log-probabilities is answered.
    """

    stream_path = "/v1/completions"

    def __init__(
        self,
        answer: Callable[[Request], Schedule],
        *,
        version: str = "0.32.0",
        draft_tokens: int = 0,
        metrics: str = "none",
        served: str = "speedbench",
        owned_by: str = "vllm",
        max_model_len: int = 4096,
        prefix_caching: bool = False,
        step_counter: str | None = STEP_COUNTER,
        log_stats: bool = True,
        series_late: bool = False,
        engines: int = 1,
        not_ready: int = 0,
        lies: Mapping[str, int] | None = None,
        tell: Callable[[dict[str, Any]], None] = lambda metrics: None,
        top: Callable[[Request], Sequence[tuple[int, float]]] = lambda request: (),
    ) -> None:
        self.totals = [Totals() for _ in range(engines)]
        self.running = 0
        self.not_ready = not_ready
        self._answer, self._version, self._k, self._metrics = answer, version, draft_tokens, metrics
        self._served, self._owned_by, self._max_model_len = served, owned_by, max_model_len
        self._prefix_caching, self._step_counter, self._log_stats = prefix_caching, step_counter, log_stats
        self._series_late, self._lies, self._tell, self._top = series_late, dict(lies or {}), tell, top

    # Plain requests

    def plain(self, request: Request) -> Response:
        if request.path == "/health":
            self.not_ready -= 1
            return Response(503 if self.not_ready >= 0 else 200, b"", "text/plain")
        if request.path == "/version":
            return Response.of({"version": self._version})
        if request.path == "/v1/models":
            card = {"id": self._served, "object": "model", "created": 1, "owned_by": self._owned_by}
            return Response.of(
                {"object": "list", "data": [{**card, "root": "m", "max_model_len": self._max_model_len}]}
            )
        if request.path == "/metrics":
            return Response(200, self.exposition().encode(), "text/plain; version=0.0.4")
        return _error(404, "Not Found")

    def exposition(self) -> str:
        lines = []

        def show(name: str, number: float, **labels: object) -> None:
            shown = ",".join(f'{label}="{value}"' for label, value in labels.items())
            lines.append(f"vllm:{name}{{{shown}}} {float(number)}")

        show("cache_config_info", 1, engine=0, enable_prefix_caching=self._prefix_caching, cache_dtype="auto")
        if not self._log_stats:
            return "\n".join(lines) + "\n"
        for engine, totals in enumerate(self.totals):
            label = {"engine": engine, "model_name": self._served}
            series = {
                "prompt_tokens_total": totals.prompt,
                "generation_tokens_total": totals.output,
                "prefix_cache_hits_total": 0,
                "num_preemptions_total": 0,
                "num_requests_running": self.running if engine == 0 else 0,
                "num_requests_waiting": 0,
                # Of every request, and easily taken for the step counter.
                "request_time_per_output_token_seconds_count": 12345,
            }
            if self._step_counter is not None:
                series[self._step_counter] = totals.steps
            if self._k and (totals.drafts or not self._series_late):
                series |= {
                    "spec_decode_num_drafts_total": totals.drafts,
                    "spec_decode_num_draft_tokens_total": totals.drafted,
                    "spec_decode_num_accepted_tokens_total": totals.accepted,
                }
                for position in range(self._k):
                    name = "spec_decode_num_accepted_tokens_per_pos_total"
                    show(name, totals.positions[position], **label, position=position)
                    lines.append(f'vllm:spec_decode_num_drafts_created{{engine="{engine}"}} 1.7955465363087423e+09')
            for name, number in series.items():
                show(name, number + (self._lies.get(name, 0) if engine == 0 else 0), **label)
        return "\n".join(lines) + "\n"

    # Streams

    def stream(self, request: Request) -> Stream | Response:
        body = request.body
        if body.get("model", self._served) != self._served:
            return _error(404, f"The model `{body['model']}` does not exist.")
        # A prompt that leaves less room than max_tokens is taken, and ends early for length.
        if len(body["prompt"]) >= self._max_model_len:
            return _error(400, f"This model's maximum context length is {self._max_model_len} tokens.")
        if "logprobs" in body:
            return Response.of(self._with_logprobs(request))
        schedule = self._answer(request)
        if schedule.fault == "http_400":
            return _error(400, "the request is bad")
        self.running += 1
        return Stream(self._pieces(request, schedule), finished=lambda: self._account(request, schedule))

    def _with_logprobs(self, request: Request) -> dict[str, Any]:
        """One more token and its alternatives, by text unless ids are asked for."""
        named = "token_id:{}" if request.body.get("return_tokens_as_token_ids") else "{:c}"
        top = {named.format(token): logprob for token, logprob in self._top(request)[: request.body["logprobs"]]}
        first = next(iter(top))
        logprobs = {"text_offset": [0], "token_logprobs": [top[first]], "tokens": [first], "top_logprobs": [top]}
        choice = {"index": 0, "text": "", "logprobs": logprobs, "finish_reason": "length", "stop_reason": None}
        return {"id": "cmpl-1", "object": "text_completion", "model": self._served, "choices": [choice]}

    def _account(self, request: Request, schedule: Schedule) -> None:
        totals = self.totals[request.number % len(self.totals)]
        totals.prompt += len(request.body["prompt"])
        totals.output += schedule.output_tokens
        totals.steps += len(schedule.steps)
        totals.drafts += schedule.drafts
        totals.drafted += schedule.drafted
        totals.accepted += schedule.accepted
        for _, accepted in schedule.steps:
            totals.positions.update(range(accepted))

    async def _pieces(self, request: Request, schedule: Schedule) -> AsyncIterator[bytes]:
        try:
            for number, event in enumerate(self.events(request.body, schedule)):
                if schedule.fault in STREAM_FAULTS and number == schedule.fault_after:
                    if schedule.fault == "cut":
                        raise Cut
                    if schedule.fault == "crash":
                        raise Crash
                    if schedule.fault == "hang":
                        raise Hang
                    error = {"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 500}}
                    yield b"data: {]\n\n" if schedule.fault == "garbage" else _event(error)
                    break
                yield _event(event)
            if schedule.fault == "no_done":
                raise Cut
            yield DONE
        finally:
            self.running -= 1

    def events(self, body: Mapping[str, Any], schedule: Schedule) -> list[dict[str, Any]]:
        """The payloads of a stream, without ``[DONE]``."""
        common = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": self._served}
        decode = codecs.getincrementaldecoder("utf-8")().decode
        chunks, events, left = schedule.events, list[dict[str, Any]](), schedule.output_tokens
        for number, ids in enumerate(chunks):
            left -= len(ids)
            shown = ids[:-1] if schedule.stopped and not left else ids
            finish = None if number < len(chunks) - 1 else ("stop" if schedule.stopped else "length")
            choice: dict[str, Any] = {
                "index": 0,
                "text": decode(bytes(shown)),
                "logprobs": None,
                "finish_reason": "abort" if finish and schedule.fault == "abort" else finish,
                "stop_reason": None,
            }
            if body.get("return_token_ids") and schedule.fault != "no_ids":
                choice |= {"prompt_token_ids": None if number else body["prompt"], "token_ids": list(ids)}
            events.append({**common, "choices": [choice]})
        if body.get("stream_options", {}).get("include_usage") and schedule.fault != "no_usage":
            events.append({**common, "choices": [], **self._closing(body, schedule)})
        return events

    def _closing(self, body: Mapping[str, Any], schedule: Schedule) -> dict[str, Any]:
        prompt = len(body["prompt"]) + (schedule.fault == "other_prompt")
        output = schedule.output_tokens + (schedule.fault == "more_usage")
        usage: dict[str, Any] = {"prompt_tokens": prompt, "total_tokens": prompt + output, "completion_tokens": output}
        if schedule.fault == "cached":
            usage["prompt_tokens_details"] = {"cached_tokens": 16}
        closing: dict[str, Any] = {"usage": usage, "system_fingerprint": f"vllm-{self._version}-60d317ec"}
        if self._k and self._metrics != "none" and schedule.fault != "no_metrics":
            metrics = spec_metrics(schedule.steps, self._k, detailed=self._metrics == "detailed")
            self._tell(metrics)
            closing["metrics"] = {"speculative_decoding": metrics}
        return closing


def spec_metrics(steps: Sequence[tuple[int, int]], k: int, *, detailed: bool) -> dict[str, Any]:
    """``metrics.speculative_decoding`` of a request with these (drafted, accepted) steps."""
    drafting = [(d, a) for d, a in steps if d]
    counts = Counter(a for _, a in drafting)
    drafted, accepted = sum(d for d, _ in drafting), sum(a for _, a in drafting)
    metrics: dict[str, Any] = {
        "mean_acceptance_length": 1 + accepted / len(drafting) if drafting else 1.0,
        "draft_acceptance_rate": accepted / drafted if drafted else 0.0,
        "acceptance_histogram": [counts[j] for j in range(k + 1)],
        "num_spec_steps": len(drafting),
        "num_accepted_draft_tokens": accepted,
        "num_draft_tokens": drafted,
        "num_spec_tokens": k,
    }
    # The server leaves empty lists out.
    if detailed and drafting:
        metrics |= {"per_step_accepted": [a for _, a in drafting], "per_step_drafted": [d for d, _ in drafting]}
    return metrics


class Recorded:
    """Replays recorded streams, found by their prompt: ``streams`` are (prompt, lines as they came)."""

    stream_path = "/v1/completions"

    def __init__(self, streams: Sequence[tuple[Sequence[int], Sequence[str]]]) -> None:
        self._lines = {tuple(prompt): tuple(lines) for prompt, lines in streams}

    def plain(self, request: Request) -> Response:
        return _error(404, "Not Found")

    def stream(self, request: Request) -> Stream | Response:
        return Stream(self._pieces(self._lines[tuple(request.body["prompt"])]))

    async def _pieces(self, lines: Sequence[str]) -> AsyncIterator[bytes]:
        for line in lines:
            yield line.encode() + b"\n\n"


def _event(payload: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload, separators=(",", ":")).encode() + b"\n\n"


def _error(status: int, message: str) -> Response:
    error = {"message": message, "type": "BadRequestError", "param": None, "code": status}
    return Response.of({"error": error}, status)

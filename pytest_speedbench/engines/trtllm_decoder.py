"""Events of one ``/v1/completions`` stream of ``trtllm-serve`` to a turn.

A stop token other than the tokenizer's EOS is taken off the output and named in ``stop_reason``. It was
generated all the same, and is put back here, so that every engine counts output tokens alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_speedbench.engines import event_json
from pytest_speedbench.engines.base import TurnRequest
from pytest_speedbench.engines.error_bodies import error_text
from pytest_speedbench.errors import RequestError
from pytest_speedbench.measure.samples import Told, Turn

_WHOLE = 1e-6
"""How far a number of iterations may be off a whole one: the server rounds their mean to single precision."""


@dataclass(slots=True)
class Known:
    """What one turn's decoding tells the next. ``context_uncounted``: see ``Decoder._steps``."""

    version: str = "of unknown version"
    finished: int = 0
    context_uncounted: bool = False


class Decoder:
    """Collects the events of one ``/v1/completions`` stream."""

    def __init__(self, request: TurnRequest, speculation: bool, known: Known) -> None:
        self._request, self._speculation, self._known = request, speculation, known
        self._ids: list[int] = []
        self._shown = 0
        self._event_ns: list[int] = []
        self._event_tokens: list[int] = []
        self._mean = 0.0
        self._finish: str | None = None
        self._usage: Mapping[str, Any] | None = None
        self._done = False

    def event(self, data: bytes, at_ns: int) -> None:
        """Take one event's payload. What comes after the end mark is no part of the answer."""
        if self._done:
            return
        if data == b"[DONE]":
            self._done = True
            return
        payload = event_json.loads(data)
        if "error" in payload or payload.get("object") == "error":
            raise RequestError("error_event", error_text(data))
        if payload.get("usage") is not None:
            self._usage = payload["usage"]
        for choice in payload["choices"]:
            self._choice(choice, at_ns)

    def _choice(self, choice: Mapping[str, Any], at_ns: int) -> None:
        ids = choice.get("token_ids")
        if ids is None:
            raise self._missing("choices[0].token_ids")
        self._finish, stop = choice.get("finish_reason"), choice.get("stop_reason")
        self._mean = choice.get("avg_decoded_tokens_per_iter") or self._mean
        self._shown += len(ids)
        if self._finish == "stop" and type(stop) is int and ids[-1:] != [stop]:
            ids = [*ids, stop]
        if ids:
            self._ids += ids
            self._event_ns.append(at_ns)
            self._event_tokens.append(len(ids))

    def finish(self, start_ns: int) -> Turn:
        """The turn, if the stream ended as it should and says all that is needed. Raises RequestError."""
        if not self._done:
            raise RequestError("stream_cut", "the stream ended without its end mark, data: [DONE]")
        finish, request = self._checked_finish(), self._request
        prompt_tokens = self._checked_usage()
        if not self._ids:
            raise RequestError("no_tokens", "the stream ended without a token")
        told = Told(steps=self._steps()) if self._speculation else None
        self._known.finished += 1
        return Turn(
            question_id=request.question_id,
            category=request.category,
            index=request.index,
            prompt_tokens=prompt_tokens,
            output_tokens=len(self._ids),
            finish=finish,
            start_ns=start_ns,
            event_ns=tuple(self._event_ns),
            event_tokens=tuple(self._event_tokens),
            step_ns=(),
            steps=None,
            text=None,
            output_ids=tuple(self._ids),
            told=told,
        )

    def _checked_finish(self) -> str:
        finish = self._finish
        if finish in ("cancelled", "timeout"):
            raise RequestError("aborted", f"the server gave the request up: {finish}")
        if finish not in ("stop", "length"):
            raise RequestError("unknown_stop", f"the server stopped for {finish!r}, not at EOS or the cap")
        if finish == "stop" and self._request.sampling.ignore_eos:
            raise RequestError("unknown_stop", "the server stopped at EOS, which it was asked to ignore")
        return finish

    def _checked_usage(self) -> int:
        """The prompt's tokens, once all that the usage chunk says is as it must be."""
        usage, sent = self._usage, len(self._request.ids)
        if usage is None:
            raise self._missing("usage")
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        if cached is None:
            raise self._missing("usage.prompt_tokens_details.cached_tokens")
        if usage["prompt_tokens"] != sent:
            raise RequestError(
                "prompt_changed", f"{sent} prompt tokens were sent and {usage['prompt_tokens']} were processed"
            )
        if cached:
            raise RequestError("prefix_cache", f"{cached} of {sent} prompt tokens came from a cache that is to be off")
        if usage["completion_tokens"] != self._shown:
            raise RequestError(
                "ids_lost", f"{usage['completion_tokens']} tokens were generated and {self._shown} ids were streamed"
            )
        return sent

    def _steps(self) -> int | None:
        """S, from the mean of generated tokens per decoding iteration; None where events leave it in doubt.

        The code of 1.2 to 1.4 counts the iteration that processes the prompt as well, but no server has
        shown it here, so the events decide: each iteration sends one, unless some were joined on the way.
        One event more than iterations can only mean that the first iteration is not counted; until a turn
        has shown that, one join on such a server would pass for the other reading.
        """
        tokens, events, known = len(self._ids), len(self._event_ns), self._known
        if tokens == 1:
            return 0
        if not self._mean:
            raise self._missing("choices[0].avg_decoded_tokens_per_iter")
        iterations = round(tokens / self._mean)
        if not iterations or abs(tokens / self._mean - iterations) > _WHOLE * iterations:
            raise RequestError(
                "bad_metrics",
                f"{tokens} tokens at avg_decoded_tokens_per_iter {self._mean!r} make "
                f"{tokens / self._mean:.6f} iterations, which must be a whole number",
            )
        if iterations == events - 1:
            known.context_uncounted = True
        if known.context_uncounted:
            return iterations
        return iterations - 1 if iterations == events else None

    def _missing(self, name: str) -> RequestError:
        return RequestError("missing_field", f"TensorRT-LLM {self._known.version} sends no {name}")

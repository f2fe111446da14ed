"""llama.cpp: the llama-server embedded in the ``xllamacpp`` wheel.

Protocol facts that shape this module: prompts go in as token ids and no BOS is added; every event
carries one token, also when a step accepted several; tokens that end inside an incomplete UTF-8
sequence are never sent, so ids from the stream can be incomplete and counts come from
``tokens_predicted``; the stream ends with an event that has ``stop: true``, not with ``[DONE]``;
the server closes the connection after each stream.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pytest_speedbench.engines import embedded, event_json
from pytest_speedbench.engines.base import (
    Capacity,
    Description,
    Fetch,
    Launch,
    Profile,
    Speculation,
    StreamDecoder,
    TopTokensRequest,
    TurnRequest,
    local_path,
)
from pytest_speedbench.engines.error_bodies import error_text
from pytest_speedbench.engines.installed import package_version
from pytest_speedbench.engines.llamacpp_steps import Seen, Window, reconstruct
from pytest_speedbench.engines.profile_options import environment, wrong_options
from pytest_speedbench.engines.prometheus import totals
from pytest_speedbench.errors import ConfigError, RequestError
from pytest_speedbench.measure.losslessness import TOP_TOKENS, TopTokens
from pytest_speedbench.measure.samples import Counters, Turn

SERVER_SCRIPT = Path(__file__).with_name("llamacpp_server.py")
_NUMBERS = {"threads": 1024, "ngram_lookup": 1024}
"""Options that are whole numbers from 1, and the highest value of each."""
_EXACT_BELOW = 1e6
_LEAST = 1e-45
"""The smallest float32: a probability that came as 0 was less."""
_NEED_DRAFTER = ("eagle3", "dflash")
"""Beside draft; multi-token prediction and DSpark may live in the target's own file."""
OPTIONS = ("python", "port", "served_model", "threads", "ngram_lookup", "draft_cache_type", "params", "args", "env")


class LlamaCpp:
    """The engine module for ``--speedbench-engine=llamacpp``."""

    name: ClassVar[str] = "llamacpp"
    methods: ClassVar[tuple[str, ...]] = (
        *("none", "ngram", "ngram_map_k", "ngram_map_k4v", "ngram_mod"),
        *("draft", "eagle3", "mtp", "dflash", "dspark"),
    )
    steps_source: ClassVar[str] = "per-step totals (timings_per_token)"
    ready_paths: ClassVar[tuple[str, ...]] = ("/health",)
    stream_path: ClassVar[str] = "/completion"
    flush_path: ClassVar[str | None] = None
    counters_poll_s: ClassVar[float | None] = None

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._version = ""
        self._python = local_path(str(profile.options.get("python", sys.executable)))

    @property
    def drafts_always(self) -> bool:
        """A draft model always drafts; n-gram only where it finds a match."""
        return self._profile.speculation.method == "draft"

    @property
    def remembers(self) -> bool:
        """The pool of ngram_mod is shared between conversations; the others see one alone."""
        return self._profile.speculation.method == "ngram_mod"

    def check(self) -> None:
        """Refuse an unknown option, a missing model, or a Python without xllamacpp."""
        problems = _wrong_values(self._profile.options)
        if self._profile.base_url is not None:
            if problems:
                raise ConfigError("\n".join(problems))
            return
        try:
            self._version = _installed_version(self._python, environment(self._profile.options))
        except ConfigError as error:
            problems.append(str(error))
        try:
            self._models(verify=True)
        except ConfigError as error:
            problems.append(str(error))
        if problems:
            raise ConfigError("\n".join(problems))

    def tokenizer_source(self) -> str:
        """The model file itself."""
        return str(self._models()[0])

    def launch(self, capacity: Capacity, port: int) -> Launch:
        """Start ``llamacpp_server.py`` under the profile's Python."""
        profile, speculation = self._profile, self._profile.speculation
        model, draft_model = self._models()
        config = {
            "model": str(model),
            "host": "127.0.0.1",
            "port": port,
            "max_batch_size": capacity.max_batch_size,
            "max_model_len": capacity.max_model_len,
            "threads": int(profile.options.get("threads", embedded.cpu_threads())),
            "method": speculation.method,
            "draft_model": None if draft_model is None else str(draft_model),
            "draft_tokens": speculation.draft_tokens,
            "ngram_lookup": int(profile.options.get("ngram_lookup", 2)),
            "draft_cache_type": str(profile.options.get("draft_cache_type", "f16")),
            "params": _params(profile.options),
        }
        return Launch(
            argv=(self._python, str(SERVER_SCRIPT), "server.json"),
            env=environment(profile.options),
            files={"server.json": json.dumps(config, indent=1)},
        )

    def _models(self, *, verify: bool = False) -> tuple[Path, Path | None]:
        """Target and drafter; with method draft the target drafts for itself where no drafter is named."""
        speculation = self._profile.speculation
        target = embedded.resolve(self._profile.model)
        named = speculation.draft_model
        drafter = None if named is None else embedded.resolve(named)
        if drafter is None and speculation.method == "draft":
            drafter = target
        if drafter is None and speculation.method in _NEED_DRAFTER:
            raise ConfigError(f"llamacpp: method {speculation.method} needs a drafter; give --speedbench-draft-model")
        if verify:
            embedded.verify_gguf(target, "model")
            if drafter not in (None, target):
                embedded.verify_gguf(drafter, "draft model")
        return target, drafter

    def describe(self, fetch: Fetch) -> Description:
        """Build and defaults from ``/props``."""
        props = json.loads(fetch("/props"))
        settings = props["default_generation_settings"]
        resolved = {
            "total_slots": props["total_slots"],
            "n_ctx_slot": settings["n_ctx"],
            "model_ftype": props.get("model_ftype"),
            "build_info": props.get("build_info"),
        }
        served = tuple(str(props[key]) for key in ("model_alias", "model_path") if props.get(key))
        version = self._version or str(props.get("build_info", ""))
        return Description(version, resolved, served, props["total_slots"])

    def counters(self, fetch: Fetch) -> Counters:
        """Totals of ``/metrics``. Speculation series are absent until the first draft."""
        sums = totals(fetch("/metrics").decode())

        def total(name: str) -> int:
            return int(sums.get(f"llamacpp:{name}", 0))

        return Counters(
            prompt_tokens=total("prompt_tokens_total"),
            output_tokens=total("tokens_predicted_total"),
            drafts=total("spec_decode_num_drafts_total"),
            drafted=total("spec_decode_num_draft_tokens_total"),
            accepted=total("spec_decode_num_accepted_tokens_total"),
            slack=_rounding(max(sums.values(), default=0.0)),
        )

    def idle(self, fetch: Fetch) -> bool:
        """Whether the server has neither running nor deferred requests."""
        sums = totals(fetch("/metrics").decode())
        return sums["llamacpp:requests_processing"] + sums["llamacpp:requests_deferred"] == 0

    def body(self, request: TurnRequest) -> dict[str, Any]:
        """All sampling knobs explicit: the server's own defaults are not neutral."""
        sampling = request.sampling
        return {
            "prompt": list(request.ids),
            "n_predict": sampling.osl_cap,
            "temperature": sampling.temperature,
            "top_k": 0 if sampling.temperature else 1,
            "top_p": 1.0,
            "min_p": 0.0,
            "seed": sampling.seed,
            "ignore_eos": sampling.ignore_eos,
            "stream": True,
            "return_tokens": True,
            "cache_prompt": False,
            "timings_per_token": True,
        }

    def decoder(self, request: TurnRequest) -> StreamDecoder:
        """A decoder for ``/completion`` events."""
        return _Decoder(request, self._profile.speculation)

    def top_tokens(self, request: TurnRequest) -> TopTokensRequest:
        """One more token with its alternatives, after sampling.

        What the server tells of before sampling still has EOS where it is to be ignored; after sampling, all
        alternatives are left at a temperature of 1 only.
        """
        body = self.body(request) | {"n_predict": 1, "stream": False, "temperature": 1.0, "top_k": 0}
        del body["timings_per_token"]
        return TopTokensRequest(
            self.stream_path, body | {"n_probs": TOP_TOKENS, "post_sampling_probs": True}, _top_tokens
        )

    def error_text(self, body: bytes) -> str:
        """``error.message`` of the JSON body, or the body itself."""
        return error_text(body)


class _Decoder:
    """Collects the events of one ``/completion`` stream."""

    def __init__(self, request: TurnRequest, speculation: Speculation) -> None:
        self._request = request
        # The draft model always fills its window; n-gram drafts as much as it finds.
        self._window = Window(
            cap=request.sampling.osl_cap,
            draft_size=speculation.draft_tokens if speculation.method == "draft" else None,
            draft_max=speculation.draft_tokens,
        )
        self._seen: list[Seen] = []
        self._ids: list[int] = []
        self._text: list[str] = []
        self._final: dict[str, Any] | None = None

    def event(self, data: bytes, at_ns: int) -> None:
        payload = event_json.loads(data)
        if "error" in payload:
            raise RequestError("error_event", error_text(data))
        timings = payload.get("timings") or {}
        self._text.append(payload["content"])
        if payload["tokens"]:
            self._ids += payload["tokens"]
            self._seen.append(
                Seen(
                    predicted=payload["tokens_predicted"],
                    drafted=timings.get("draft_n", 0),
                    accepted=timings.get("draft_n_accepted", 0),
                    at_ns=at_ns,
                )
            )
        if payload["stop"]:
            self._final = payload

    def finish(self, start_ns: int) -> Turn:
        if self._final is None:
            raise RequestError("stream_cut", "the stream ended without its closing event (stop: true)")
        final, timings = self._final, self._final["timings"]
        request, output_tokens = self._request, int(self._final["tokens_predicted"])
        self._check(final, timings)
        if not self._seen:
            raise RequestError("no_tokens", f"{output_tokens} tokens were generated but none was streamed")
        stopped = final["stop_type"] == "eos"
        steps, step_ns = reconstruct(
            self._seen,
            output_tokens=output_tokens,
            drafted=timings.get("draft_n", 0),
            accepted=timings.get("draft_n_accepted", 0),
            stopped=stopped,
            window=self._window,
        )
        counts = [event.predicted for event in self._seen]
        return Turn(
            question_id=request.question_id,
            category=request.category,
            index=request.index,
            prompt_tokens=timings["prompt_n"],
            output_tokens=output_tokens,
            finish="stop" if stopped else "length",
            start_ns=start_ns,
            event_ns=tuple(event.at_ns for event in self._seen),
            event_tokens=tuple(new - old for old, new in zip([0, *counts], counts, strict=False)),
            step_ns=step_ns,
            steps=steps,
            text="".join(self._text),
            output_ids=tuple(self._ids) if len(self._ids) == output_tokens else None,
        )

    def _check(self, final: dict[str, Any], timings: dict[str, Any]) -> None:
        sent = len(self._request.ids)
        if final["truncated"]:
            raise RequestError("truncated", "the server truncated the prompt or the context")
        if final["stop_type"] not in ("eos", "limit"):
            raise RequestError("unknown_stop", f"the server stopped for {final['stop_type']!r}, not at EOS or the cap")
        if timings["cache_n"]:
            raise RequestError(
                "prefix_cache", f"{timings['cache_n']} of {sent} prompt tokens came from a cache that is to be off"
            )
        if timings["prompt_n"] != sent:
            raise RequestError(
                "prompt_changed", f"{sent} prompt tokens were sent and {timings['prompt_n']} were processed"
            )


def _top_tokens(body: bytes) -> TopTokens:
    (position,) = json.loads(body)["completion_probabilities"]
    return TopTokens.of((int(told["id"]), math.log(max(told["prob"], _LEAST))) for told in position["top_probs"])


def _rounding(value: float) -> int:
    """How far a printed total can be off: the server prints six significant digits."""
    return int(10.0 ** (math.floor(math.log10(value)) - 5)) if value >= _EXACT_BELOW else 0


def _wrong_values(options: Mapping[str, Any]) -> list[str]:
    """One line per option whose value cannot be used."""
    wrong = wrong_options("llamacpp", options, OPTIONS, _NUMBERS)
    if not wrong:
        try:
            _params(options)
        except ConfigError as error:
            wrong.append(str(error))
    return wrong


def _params(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ``CommonParams``: the profile's ``params``, then ``--speedbench-engine-arg=FIELD=VALUE``."""
    params = dict(options.get("params", {}))
    for argument in options.get("args", ()):
        name, equals, value = str(argument).partition("=")
        if not equals:
            raise ConfigError(f"llamacpp: engine argument {argument!r}: give FIELD=VALUE, a field of CommonParams")
        try:
            params[name] = json.loads(value)
        except ValueError:
            params[name] = value
    return params


def _installed_version(python: str, env: Mapping[str, str]) -> str:
    """Version of xllamacpp in ``python``. Raises ConfigError."""
    try:
        found = package_version(python, ("xllamacpp",), env)
    except ConfigError as error:
        raise ConfigError(f"llamacpp: {error}") from error
    if found is None:
        raise ConfigError(
            f"llamacpp: {python} has no package xllamacpp; run pip install 'pytest-speedbench[llamacpp]', "
            "or point engines.llamacpp.python of the profile to a Python that has it"
        )
    return found

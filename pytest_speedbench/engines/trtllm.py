"""TensorRT-LLM: ``trtllm-serve`` with the PyTorch backend, and a generated configuration file.

Protocol facts that shape this module: unknown fields of a request are refused, so the body is a white
list; token ids come only with ``detokenize: false``, and no text then; the stream ends with ``[DONE]``,
after which newer versions may send one more event; an error in mid-stream breaks the connection; drafts
are counted per iteration of the executor, in a queue that reading empties.

No run on hardware stands behind this module, only the protocol; it refuses what it does not know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from packaging.version import InvalidVersion, Version

from pytest_speedbench.engines import installed, trtllm_config
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
from pytest_speedbench.engines.trtllm_checks import drafter_problems, refused, version_problems, version_range
from pytest_speedbench.engines.trtllm_decoder import Decoder, Known
from pytest_speedbench.engines.trtllm_stats import QUIET_READS, IterationLog
from pytest_speedbench.errors import ConfigError, EngineError
from pytest_speedbench.measure.samples import Counters

OPTIONS = ("python", "executable", "port", "args", "env", "config", "speculation", "served_model")


class TrtLlm:
    """The engine module for ``--speedbench-engine=trtllm``."""

    name: ClassVar[str] = "trtllm"
    methods: ClassVar[tuple[str, ...]] = tuple(trtllm_config.SINCE)
    steps_source: ClassVar[str] = "decoding iterations per request (avg_decoded_tokens_per_iter)"
    ready_paths: ClassVar[tuple[str, ...]] = ("/health",)
    stream_path: ClassVar[str] = "/v1/completions"
    flush_path: ClassVar[str | None] = None
    counters_poll_s: ClassVar[float | None] = 0.5

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._installed: installed.Installed | None = None
        self._served = ""
        self._log: IterationLog | None = None
        self._known = Known()

    @property
    def drafts_always(self) -> bool:
        """All but the look-ups, which draft only where they find a match."""
        return self._profile.speculation.active and self._profile.speculation.method not in ("ngram", "sa")

    @property
    def remembers(self) -> bool:
        """Only with the pools that requests share, which the profile has to ask for."""
        return self._profile.speculation.active and trtllm_config.shares_drafts(self._profile)

    def check(self) -> None:
        """Refuse options that cannot work or would spoil a measurement, and what the installed version lacks."""
        profile, options = self._profile, self._profile.options
        problems = wrong_options(self.name, options, OPTIONS) or refused(options)
        if profile.base_url is None:
            problems += drafter_problems(profile)
            try:
                problems += version_problems(profile, self._find().version)
            except ConfigError as error:
                problems.append(str(error))
        if problems:
            raise ConfigError("\n".join(problems))

    def _find(self) -> installed.Installed:
        if self._installed is None:
            self._installed = installed.find(
                self._profile.options,
                engine=self.name,
                packages=("tensorrt-llm", "tensorrt_llm"),
                executable="trtllm-serve",
                module=("-m", "tensorrt_llm.commands.serve"),
            )
        return self._installed

    def tokenizer_source(self) -> str:
        """The model's own."""
        return self._profile.model

    def launch(self, capacity: Capacity, port: int) -> Launch:
        """``trtllm-serve`` with sizes on the command line and all else in the file.

        Sizes stand in one place only: the file used to win over flags, and newer versions say the reverse.
        """
        profile, found = self._profile, self._find()
        content = trtllm_config.launch_config(profile, found.version, capacity)
        tokenizer = () if profile.tokenizer is None else ("--tokenizer", local_path(profile.tokenizer))
        return Launch(
            argv=(
                *found.command,
                local_path(profile.model),
                *("--host", "127.0.0.1"),
                *("--port", str(port)),
                *("--backend", "pytorch"),
                *tokenizer,
                *("--tp_size", str(profile.tensor_parallel)),
                *("--max_batch_size", str(capacity.max_batch_size)),
                *("--max_num_tokens", str(content.pop("max_num_tokens"))),
                *("--max_seq_len", str(capacity.max_model_len)),
                *(trtllm_config.config_flag(found.version), trtllm_config.CONFIG_FILE),
                *map(str, profile.options.get("args", ())),
            ),
            env=environment(profile.options),
            files={trtllm_config.CONFIG_FILE: trtllm_config.text(content)},
        )

    def describe(self, fetch: Fetch) -> Description:
        """Version, served model, and the configuration that was generated.

        vLLM answers the same paths, so it also counts who owns the model and that ``/metrics`` is a JSON
        array. What waits there is read, and with it out of the way.
        """
        told = _asked(fetch, "/version")
        text = told.get("version") if isinstance(told, Mapping) else None
        if not isinstance(text, str):
            raise _another("/version", told)
        models = _asked(fetch, "/v1/models")
        try:
            model, owner = models["data"][0]["id"], models["data"][0].get("owned_by")
        except (LookupError, TypeError, AttributeError) as error:
            raise _another("/v1/models", models) from error
        if owner not in (None, "tensorrt_llm"):
            raise EngineError(
                f"the server does not answer like TensorRT-LLM: its model is owned by {owner!r}, not by 'tensorrt_llm'"
            )
        version = _supported(text)
        self._drain(fetch)
        self._served, self._known.version = str(model), text
        resolved: dict[str, Any] = {"served_model": self._served}
        if self._profile.base_url is None:
            resolved["config"] = trtllm_config.config(self._profile, version, model_name)
        return Description(version=text, resolved=resolved, served=(self._served,))

    def counters(self, fetch: Fetch) -> Counters:
        """Totals over the iterations read so far, by this and by every earlier call.

        ``steps``, ``drafts`` and ``accepted`` are there only with the overlap scheduler off: see
        ``trtllm_stats``. Raises EngineError where requests have run and no iteration was ever told.
        """
        log = self._drain(fetch)
        if self._known.finished and not log.rows and log.empty_reads >= QUIET_READS:
            raise EngineError(
                f"{self._known.finished} requests have run, but GET /metrics of the engine told of no iteration: "
                "either enable_iter_perf_stats is off, or something else empties its queue (the collector of "
                "return_perf_metrics, or another program that reads /metrics)"
            )
        return log.counters()

    def idle(self, fetch: Fetch) -> bool:
        """Whether the newest iteration left no request running or waiting, or no iterations come any more.

        An iteration's row may come a moment after the events that it caused. With the overlap scheduler
        the newest row may speak of a request that has ended, so a few readings without any row will do.
        """
        return self._drain(fetch).idle

    def _drain(self, fetch: Fetch) -> IterationLog:
        if self._log is None:
            self._log = IterationLog(
                speculation=self._profile.speculation.active,
                overlap=trtllm_config.overlaps(self._profile),
                most_drafts=trtllm_config.most_drafts(self._profile),
            )
        body = fetch("/metrics")
        try:
            self._log.read(body)
        except ValueError as error:
            raise EngineError(f"the server does not answer like TensorRT-LLM: {error}") from error
        return self._log

    def body(self, request: TurnRequest) -> dict[str, Any]:
        """Only fields that every supported version has: one that it lacks would be refused."""
        sampling = request.sampling
        return {
            "model": self._served,
            "prompt": list(request.ids),
            "max_tokens": sampling.osl_cap,
            "ignore_eos": sampling.ignore_eos,
            "temperature": sampling.temperature,
            "top_p": 1.0,
            "top_k": 0,
            "seed": sampling.seed,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": False},
            "detokenize": False,
        }

    def decoder(self, request: TurnRequest) -> StreamDecoder:
        """A decoder for the events of ``/v1/completions``."""
        return Decoder(request, self._profile.speculation.active, self._known)

    def top_tokens(self, request: TurnRequest) -> TopTokensRequest | None:
        """None: alternatives come under their text, which two tokens can share, and from few versions at all."""
        return None

    def error_text(self, body: bytes) -> str:
        """The message in any of the forms that the server uses, or the body itself."""
        return error_text(body)


# What the server says of itself


def _asked(fetch: Fetch, path: str) -> Any:
    try:
        body = fetch(path)
    except EngineError as error:
        raise EngineError(f"the server does not answer like TensorRT-LLM: {error}") from error
    try:
        return json.loads(body)
    except ValueError as error:
        raise _another(path, body) from error


def _another(path: str, answer: Any) -> EngineError:
    return EngineError(f"the server does not answer like TensorRT-LLM: GET {path} gave {str(answer)[:80]}")


def _supported(text: str) -> Version:
    """The version of a running server. Raises EngineError."""
    try:
        version = Version(text)
    except InvalidVersion as error:
        raise EngineError(f"cannot read {text!r} as a version of TensorRT-LLM") from error
    problem = version_range(version)
    if problem is not None:
        raise EngineError(problem)
    return version

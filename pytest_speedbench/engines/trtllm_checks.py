"""What a TensorRT-LLM profile cannot ask for: wrong for the version, or ruinous to a measurement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from packaging.version import Version

from pytest_speedbench.engines.base import Profile
from pytest_speedbench.engines.trtllm_config import NEED_DRAFTER, NEED_SAME_VOCABULARY, OLDEST, SINCE, TOO_NEW
from pytest_speedbench.tokenize import vocabulary

_BY_PROFILE = {
    "model": "model",
    "tokenizer": "tokenizer",
    "backend": "the adapter, which knows the pytorch backend alone",
    "tensor_parallel_size": "tensor_parallel",
    "max_batch_size": "the concurrency of the plan",
    "max_seq_len": "max_model_len",
    "speculative_config": "speculation, of the profile and of its engine part",
}
"""Keys of the file that something else of the profile sets: which of the two wins changed between versions."""
_OWN_FLAGS = {
    "host": "the server listens on 127.0.0.1",
    "port": "give the option port",
    "backend": "the adapter knows the pytorch backend alone",
    "tp_size": "give tensor_parallel in the profile",
    "tensor_parallel_size": "give tensor_parallel in the profile",
    "max_batch_size": "it follows from the concurrency of the plan",
    "max_seq_len": "give max_model_len in the profile",
    "config": "give the option config, which is merged into the generated file",
    "extra_llm_api_options": "give the option config, which is merged into the generated file",
    "pp_size": "give pipeline_parallel_size in the option config",
    "pipeline_parallel_size": "give it in the option config",
    "num_serve_frontends": "counters of several front ends cannot be read",
}
_SWITCHES_OFF = "it switches speculation off while the server runs, without a word"


def refused(options: Mapping[str, Any]) -> list[str]:
    """One line for everything in ``config``, ``speculation`` and ``args`` that would spoil a measurement."""
    found = [
        *(f"option config: {line}" for line in _refused_config(options.get("config", {}))),
        *(f"option speculation: {line}" for line in _refused_speculation(options.get("speculation", {}))),
        *(f"option args: {line}" for line in _refused_args(options.get("args", ()))),
    ]
    return [f"trtllm: {line}" for line in found]


def _refused_config(own: Mapping[str, Any]) -> Iterator[str]:
    for key in own:
        if key in _BY_PROFILE:
            yield f"{key} is set by {_BY_PROFILE[key]}"
    if own.get("return_perf_metrics"):
        yield (
            "return_perf_metrics starts a collector that empties the queue of /metrics, "
            "from which drafts are counted; leave it out"
        )
    if not own.get("enable_iter_perf_stats", True):
        yield "enable_iter_perf_stats must stay on: drafts are counted from /metrics"
    for key in ("stream_interval", "iter_perf_stats_interval"):
        if own.get(key, 1) != 1:
            yield f"{key} must stay 1, but is {own[key]!r}: iterations would go unseen"
    if own.get("enable_attention_dp"):
        yield "enable_attention_dp: each rank repeats the drafts of rank 0 in /metrics, so they cannot be counted"
    cache = own.get("kv_cache_config", {})
    if not isinstance(cache, Mapping):
        yield f"kv_cache_config must be a mapping, but is {cache!r}"
    elif cache.get("enable_block_reuse"):
        yield "kv_cache_config.enable_block_reuse must stay off: prompts would come from the cache"


def _refused_speculation(own: Mapping[str, Any]) -> Iterator[str]:
    for key in own:
        if key == "max_concurrency" or key.startswith("acceptance_"):
            yield f"{key}: {_SWITCHES_OFF}"
        elif key == "draft_len_schedule":
            yield f"{key}: the number of drafts would follow the load instead of draft_tokens"
        elif key in ("max_draft_len", "num_nextn_predict_layers"):
            yield f"{key} is set by draft_tokens"
        elif key in ("speculative_model", "speculative_model_dir"):
            yield f"{key} is set by draft_model"


def _refused_args(args: Any) -> Iterator[str]:
    for argument in args:
        name = str(argument).partition("=")[0]
        reason = _OWN_FLAGS.get(name.removeprefix("--").replace("-", "_")) if name.startswith("--") else None
        if reason is not None:
            yield f"{name} is set by the plugin: {reason}"


def version_range(version: Version) -> str | None:
    """Why the version is not supported, None if it is."""
    if OLDEST <= version < TOO_NEW:
        return None
    return f"trtllm: version {version} is not supported; it must be at least {OLDEST} and below 2"


def version_problems(profile: Profile, version: Version) -> list[str]:
    """What the installed version lacks of the profile, at most one line."""
    problem = version_range(version)
    if problem is not None:
        return [problem]
    method = profile.speculation.method
    since = SINCE.get(method)
    if since is None or version >= since:
        return []
    has = ", ".join(name for name, first in SINCE.items() if version >= first)
    return [f"trtllm: version {version} has no method {method}; it has {has}"]


def drafter_problems(profile: Profile) -> list[str]:
    """A drafter that is missing, or cannot propose tokens of the target."""
    method, drafter = profile.speculation.method, profile.speculation.draft_model
    if method not in SINCE:
        return [f"trtllm has no method {method}; choose from {', '.join(SINCE)}"]
    if method in NEED_DRAFTER and drafter is None:
        return [f"trtllm: method {method} needs a draft model; give draft_model"]
    if method not in NEED_SAME_VOCABULARY or drafter is None:
        return []
    target_size, drafter_size = vocabulary(profile.model), vocabulary(drafter)
    if None in (target_size, drafter_size) or target_size == drafter_size:
        return []
    return [
        f"trtllm: method {method} needs one vocabulary, but {profile.model} has {target_size} tokens and "
        f"{drafter} has {drafter_size}"
    ]

"""The configuration file of ``trtllm-serve``.

The file is written as JSON, which is YAML too. Sources of the keys: TensorRT-LLM's ``llm_args`` and
its documentation of speculative decoding, 1.2 to 1.4.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from packaging.version import Version

from pytest_speedbench.engines.base import Capacity, Profile, local_path
from pytest_speedbench.engines.draft_window import flag_value

OLDEST = Version("1.2")
TOO_NEW = Version("2.dev0")
"""Supported versions are from OLDEST up to below this; release candidates come before their release."""
_RENAMED = Version("1.3.dev0")
"""Where ``speculative_model``, the ``decoding_type`` literals and MTP's ``max_draft_len`` took over."""

SINCE: Mapping[str, Version] = {
    "none": OLDEST,
    "ngram": OLDEST,
    "draft": OLDEST,
    "eagle3": OLDEST,
    "mtp": OLDEST,
    "pard": Version("1.3.0rc7"),
    "dflash": Version("1.3.dev0"),
    "sa": Version("1.3.dev0"),
    "dspark": Version("1.4.dev0"),
}
"""The speculation methods, and the first version that has each."""
NEED_DRAFTER = ("draft", "eagle3", "pard", "dflash", "dspark")
NEED_SAME_VOCABULARY = ("draft", "pard")
"""Methods whose drafter proposes ids of its own vocabulary; the others map theirs to the target's."""

_TYPES = {
    "ngram": "NGram",
    "draft": "Draft_Target",
    "eagle3": "Eagle3",
    "mtp": "MTP",
    "pard": "PARD",
    "dflash": "DFlash",
    "sa": "SA",
    "dspark": "DSpark",
}
_OLD_TYPES = {"draft": "DraftTarget", "eagle3": "Eagle"}
"""Up to 1.2 these are the names that the configuration is dispatched by. ``speculation`` can name another."""
_METHOD_KEYS: Mapping[str, Mapping[str, Any]] = {
    # The pools are shared between requests unless told otherwise, and repeats would inflate acceptance.
    "ngram": {"is_public_pool": False},
    "sa": {"enable_global_pool": False},
}
_NO_OVERLAP = ("ngram", "draft")
"""Methods that upstream documents with the overlap scheduler off."""

MAX_NUM_TOKENS = 8192
"""Tokens per iteration, the engine's own default; a batch of full draft windows must fit as well."""
MAX_STATS_LEN = 100_000
"""Iterations that the server keeps for ``/metrics`` between two readings; its default is 1000."""
CONFIG_FILE = "config.yaml"


def config_flag(version: Version) -> str:
    """The flag that names the file.

    ``--config`` is the newer alias of ``--extra_llm_api_options``. Every version from 1.2 on is assumed
    to take the older name, and 1.3 and later, release candidates apart, to take the newer one.
    """
    return "--config" if version >= Version("1.3") else "--extra_llm_api_options"


def config(profile: Profile, version: Version, path: Callable[[str], str] = local_path) -> dict[str, Any]:
    """The content of the file for ``version``: what measuring needs, under the profile's ``config``.

    ``path`` is how a drafter that is a folder is written.
    """
    base: dict[str, Any] = {
        "kv_cache_config": {"enable_block_reuse": False},
        "stream_interval": 1,
        "enable_iter_perf_stats": True,
        "max_stats_len": MAX_STATS_LEN,
    }
    if profile.speculation.method in _NO_OVERLAP:
        base["disable_overlap_scheduler"] = True
    if profile.speculation.active:
        base["speculative_config"] = _speculative(profile, version, path)
    return merged(base, profile.options.get("config", {}))


def launch_config(profile: Profile, version: Version, capacity: Capacity) -> dict[str, Any]:
    """``config`` with what follows from the plan: longer prompts than one iteration takes go in pieces."""
    own = config(profile, version)
    window = 1 + flag_value("trtllm", profile.speculation.draft_tokens)
    sized = {"max_num_tokens": max(MAX_NUM_TOKENS, capacity.max_batch_size * window), **own}
    if capacity.max_model_len > sized["max_num_tokens"]:
        sized = {"enable_chunked_prefill": True, **sized}
    return sized


def text(content: Mapping[str, Any]) -> str:
    """The file. Every JSON text is a YAML text."""
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` on top of ``base``, mapping by mapping; anything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _speculative(profile: Profile, version: Version, path: Callable[[str], str]) -> dict[str, Any]:
    speculation, old = profile.speculation, version < _RENAMED
    window = flag_value("trtllm", speculation.draft_tokens)
    names = {**_TYPES, **(_OLD_TYPES if old else {})}
    own: dict[str, Any] = {"decoding_type": names[speculation.method], "max_draft_len": window}
    if speculation.method == "mtp" and old:
        # There max_draft_len is derived from this one, which is 1 by default.
        own["num_nextn_predict_layers"] = window
    if speculation.draft_model is not None:
        own["speculative_model_dir" if old else "speculative_model"] = path(speculation.draft_model)
    own |= _METHOD_KEYS.get(speculation.method, {})
    return merged(own, profile.options.get("speculation", {}))


def overlaps(profile: Profile) -> bool:
    """Whether iterations may overlap. Of a server that someone else runs nothing is known."""
    own = profile.options.get("config", {})
    if profile.base_url is not None or own.get("pipeline_parallel_size", 1) != 1:
        return True
    off = own.get("disable_overlap_scheduler")
    return not (profile.speculation.method in _NO_OVERLAP if off is None else off)


def most_drafts(profile: Profile) -> int:
    """Most draft tokens of one request in one iteration: a tree holds more than its depth."""
    tree = profile.options.get("speculation", {}).get("max_total_draft_tokens")
    window = flag_value("trtllm", profile.speculation.draft_tokens)
    return max(window, tree) if isinstance(tree, int) else window


def shares_drafts(profile: Profile) -> bool:
    """Whether the profile has requests draft from what others generated."""
    own = profile.options.get("speculation", {})
    nested = own.get("sa_config")
    return bool(
        own.get("is_public_pool")
        or own.get("enable_global_pool")
        or (isinstance(nested, Mapping) and nested.get("enable_global_pool"))
    )

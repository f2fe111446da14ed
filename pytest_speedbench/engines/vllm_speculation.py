"""vLLM's side of speculation: the launch's ``--speculative-config`` and what a request's metrics say.

A step without a draft is in none of the per-request lists and sums. Counts are taken before the last
step is cut at EOS or the cap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from packaging.version import Version

from pytest_speedbench.engines.base import (
    Profile,
    local_path,
)
from pytest_speedbench.engines.draft_window import flag_value
from pytest_speedbench.errors import RequestError
from pytest_speedbench.measure.samples import Told
from pytest_speedbench.tokenize import vocabulary

VLLM_METHOD = {
    "ngram": "ngram",
    "ngram_gpu": "ngram_gpu",
    "draft": "draft_model",
    "pard": "draft_model",
    "eagle": "eagle",
    "eagle3": "eagle3",
    "mtp": "mtp",
    "dflash": "dflash",
    "dspark": "dspark",
    "suffix": "suffix",
    "medusa": "medusa",
    "mlp_speculator": "mlp_speculator",
}
"""vLLM's name of each method; none of these is ``none``."""
NEEDS_DRAFT_MODEL = frozenset({"draft", "pard", "eagle", "eagle3", "dflash", "medusa", "mlp_speculator"})
"""``mtp`` and ``dspark`` may use heads that ship with the target."""
DRAFTS_SOMETIMES = frozenset({"ngram", "ngram_gpu", "suffix"})
"""Methods without a model, which draft only where they find a match."""
REMOVED_IN = {"medusa": Version("0.33"), "mlp_speculator": Version("0.33")}
_SKIPS_DRAFTS = ("num_speculative_tokens_per_batch_size", "enable_adaptive_verification", "max_model_len")
"""Settings with which a method that drafts at every step may leave steps undrafted."""
_FROM_PROFILE = ("method", "model", "num_speculative_tokens")
_CACHED_REQUESTS = "suffix_decoding_max_cached_requests"


def speculative_config(profile: Profile) -> dict[str, Any] | None:
    """The value of ``--speculative-config``, None without speculation. ``options.speculation`` wins.

    Local folders become absolute: the server runs in a folder of its own.
    """
    speculation = profile.speculation
    if not speculation.active:
        return None
    own = dict(profile.options.get("speculation", {}))
    config: dict[str, Any] = {
        "method": VLLM_METHOD[speculation.method],
        "num_speculative_tokens": flag_value("vllm", speculation.draft_tokens),
    }
    if speculation.draft_model is not None:
        config["model"] = local_path(speculation.draft_model)
    if speculation.method == "pard":
        config["parallel_drafting"] = True
    if speculation.method in ("ngram", "ngram_gpu") and not {"prompt_lookup_min", "prompt_lookup_max"} & set(own):
        # vLLM's own defaults (5 and 5) are arbitrary by its own words, and rarely find anything.
        config |= {"prompt_lookup_min": 2, "prompt_lookup_max": 4}
    if speculation.method == "suffix":
        # What other requests generated must not help: it makes acceptance depend on the order of requests.
        config[_CACHED_REQUESTS] = 0
    return config | own


def drafts_always(profile: Profile) -> bool:
    """Whether every decode step drafts."""
    speculation = profile.speculation
    if not speculation.active or speculation.method in DRAFTS_SOMETIMES:
        return False
    return not any(profile.options.get("speculation", {}).get(name) for name in _SKIPS_DRAFTS)


def remembers(profile: Profile) -> bool:
    """Whether suffix decoding keeps what other requests generated.

    A server that someone else started keeps 10000 requests unless the profile says otherwise.
    """
    if profile.speculation.method != "suffix":
        return False
    default = 0 if profile.base_url is None else 10000
    return bool(profile.options.get("speculation", {}).get(_CACHED_REQUESTS, default))


def wrong_speculation(profile: Profile) -> list[str]:
    """One line per thing that is wrong with the method or the ``speculation`` option, whatever the version."""
    speculation, own = profile.speculation, profile.options.get("speculation", {})
    if not speculation.active:
        return ["vllm: option speculation is given, but the profile's method is none"] if own else []
    if speculation.method not in VLLM_METHOD:
        known = ", ".join(["none", *VLLM_METHOD])
        return [f"vllm has no method {speculation.method}; it has {known}"]
    wrong, twice = [], [name for name in _FROM_PROFILE if name in own]
    if twice:
        wrong.append(
            f"vllm: option speculation must not set {', '.join(twice)}: "
            "method, draft_model and draft_tokens of the profile do that"
        )
    if speculation.method in DRAFTS_SOMETIMES and speculation.draft_model is not None:
        wrong.append(f"vllm: method {speculation.method} takes no draft_model")
    return wrong


def impossible_method(profile: Profile, installed: Version | None) -> list[str]:
    """Why the method cannot be launched: removed from this version, no drafter, or one of another vocabulary."""
    method, drafter = profile.speculation.method, profile.speculation.draft_model
    wrong, removed = [], REMOVED_IN.get(method)
    if removed is not None and installed is not None and installed >= removed:
        wrong.append(f"vllm: method {method} was removed in {removed}, and {installed} is installed")
    if method in NEEDS_DRAFT_MODEL and drafter is None:
        wrong.append(f"vllm: method {method} needs a draft_model")
    if method in ("draft", "pard") and drafter is not None:
        wrong += _vocabularies(profile, drafter)
    return wrong


def _vocabularies(profile: Profile, drafter: str) -> list[str]:
    if profile.options.get("speculation", {}).get("use_heterogeneous_vocab"):
        return []
    sizes = vocabulary(profile.model), vocabulary(drafter)
    if None in sizes or sizes[0] == sizes[1]:
        return []
    return [
        f"vllm: the target has a vocabulary of {sizes[0]} tokens and the draft model one of {sizes[1]}; "
        "a draft model must share the target's"
    ]


# What a finished request says


def told(metrics: Mapping[str, Any], draft_tokens: int) -> Told:
    """``metrics.speculative_decoding`` of a request. RequestError ``bad_metrics`` if it contradicts itself.

    With ``detailed`` the lengths are in order; with ``summary`` only how often each occurred is known.
    """
    numbers = {name: _count(metrics, name) for name in _SUMS}
    steps, accepted, drafted, most = (numbers[name] for name in _SUMS)
    histogram = _counts(metrics, "acceptance_histogram")
    if most != draft_tokens:
        raise _bad(f"the server drafts up to {most} tokens per step, but the profile says {draft_tokens}")
    if len(histogram) != most + 1:
        raise _bad(f"acceptance_histogram has {len(histogram)} entries for up to {most} drafts per step")
    _same("steps", num_spec_steps=steps, acceptance_histogram=sum(histogram))
    in_histogram = sum(j * count for j, count in enumerate(histogram))
    _same("accepted drafts", num_accepted_draft_tokens=accepted, acceptance_histogram=in_histogram)
    if not accepted <= drafted <= steps * most:
        raise _bad(f"{accepted} drafts accepted of {drafted} in {steps} steps of up to {most}")
    per_step = _per_step(metrics, steps, accepted, drafted, histogram)
    lengths = per_step if per_step is not None else [j for j, count in enumerate(histogram) for _ in range(count)]
    return Told(
        drafts=steps,
        drafted=drafted,
        accepted=accepted,
        lengths=tuple(j + 1 for j in lengths),
        ordered=per_step is not None,
    )


_SUMS = ("num_spec_steps", "num_accepted_draft_tokens", "num_draft_tokens", "num_spec_tokens")


def _per_step(
    metrics: Mapping[str, Any], steps: int, accepted: int, drafted: int, histogram: Sequence[int]
) -> Sequence[int] | None:
    """Accepted drafts of every step that drafted, None where only the histogram is there.

    vLLM leaves the lists out where they are empty.
    """
    if steps == 0:
        return ()
    if metrics.get("per_step_accepted") is None:
        return None
    by_step, drafts = _counts(metrics, "per_step_accepted"), _counts(metrics, "per_step_drafted")
    _same("steps", num_spec_steps=steps, per_step_accepted=len(by_step), per_step_drafted=len(drafts))
    _same("accepted drafts", num_accepted_draft_tokens=accepted, per_step_accepted=sum(by_step))
    _same("drafts", num_draft_tokens=drafted, per_step_drafted=sum(drafts))
    counted = Counter(by_step)
    if [counted[j] for j in range(len(histogram))] != list(histogram):
        raise _bad(f"per_step_accepted does not give acceptance_histogram {list(histogram)}")
    if any(a > d for a, d in zip(by_step, drafts, strict=True)):
        raise _bad("a step accepted more drafts than it had")
    return by_step


def _count(metrics: Mapping[str, Any], name: str) -> int:
    number = metrics.get(name)
    if type(number) is not int or number < 0:
        raise _bad(f"{name} is {number!r}, which is no count")
    return number


def _counts(metrics: Mapping[str, Any], name: str) -> list[int]:
    numbers = metrics.get(name)
    if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
        raise _bad(f"{name} is {numbers!r}, which is no list of counts")
    return numbers


def _same(what: str, **numbers: int) -> None:
    if len(set(numbers.values())) > 1:
        listed = ", ".join(f"{number} by {name}" for name, number in numbers.items())
        raise _bad(f"{what}: {listed}")


def _bad(message: str) -> RequestError:
    return RequestError("bad_metrics", f"vLLM's own numbers of the request cannot be right: {message}")

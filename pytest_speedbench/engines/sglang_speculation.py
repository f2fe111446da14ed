"""SGLang's speculation: its settings for a profile, and what its closing event says of a turn.

Every decode step of a speculating SGLang is a verify step, also where the drafter found nothing. The
proposed drafts are computed, not counted: verify steps times the slots of the window. They are the
drafts of one chain for a chain drafter; n-gram (and EAGLE with top-k above 1) fills the window with a
tree whose branches exclude each other, so its acceptance rate compares with no chain's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_speedbench.engines.base import Speculation
from pytest_speedbench.engines.draft_window import drafts_of, flag_value
from pytest_speedbench.errors import RequestError
from pytest_speedbench.measure.samples import Told

PREFIX = "speculative_"
"""What the names of all settings begin with, on the command line and in ``/server_info``."""


@dataclass(frozen=True, slots=True)
class Method:
    """``algorithm`` is what the flag takes, ``reported`` what the server may make of it.

    ``chain``: drafts one token after the other, in as many steps as it is told; the others draft a
    whole window at once.
    """

    algorithm: str
    reported: tuple[str, ...]
    needs_drafter: bool
    chain: bool


METHODS: Mapping[str, Method] = {
    "ngram": Method("NGRAM", ("NGRAM",), needs_drafter=False, chain=False),
    "draft": Method("STANDALONE", ("STANDALONE",), needs_drafter=True, chain=True),
    "eagle": Method("EAGLE", ("EAGLE",), needs_drafter=True, chain=True),
    "eagle3": Method("EAGLE3", ("EAGLE3",), needs_drafter=True, chain=True),
    "mtp": Method("NEXTN", ("NEXTN", "EAGLE", "FROZEN_KV_MTP"), needs_drafter=False, chain=True),
    "dflash": Method("DFLASH", ("DFLASH",), needs_drafter=True, chain=False),
    "dspark": Method("DSPARK", ("DSPARK",), needs_drafter=False, chain=False),
}
_OF_THE_PROFILE = {
    "algorithm": "method",
    "draft_model_path": "draft_model",
    "draft_model": "draft_model",
    "num_steps": "draft_tokens",
    "dflash_block_size": "draft_tokens",
    "dspark_block_size": "draft_tokens",
}
"""Settings that follow from the profile, and the key there that they follow from."""


def settings(speculation: Speculation, own: Mapping[str, Any], drafter: str | None) -> dict[str, Any]:
    """SGLang's settings, without their prefix, for a profile's speculation; ``own`` is added and wins."""
    if not speculation.active:
        return {}
    method, drafts = METHODS[speculation.method], speculation.draft_tokens
    chosen: dict[str, Any] = {"algorithm": method.algorithm}
    if drafter is not None:
        chosen["draft_model_path"] = drafter
    if method.chain:
        chosen |= {"num_steps": drafts, "eagle_topk": 1}
    elif speculation.method == "dspark":
        # The drafter's file has a block size too, and SGLang refuses a window that differs from it.
        chosen["dspark_block_size"] = drafts
    chosen["num_draft_tokens"] = flag_value("sglang", drafts)
    return chosen | {_plain(name): value for name, value in own.items()}


def flags(chosen: Mapping[str, Any]) -> list[str]:
    """The command line of settings: True is a bare flag, False and None leave it out."""
    words = []
    for name, value in chosen.items():
        if value is None or value is False:
            continue
        words.append("--" + (PREFIX + name).replace("_", "-"))
        words += [] if value is True else map(str, value) if isinstance(value, list) else [str(value)]
    return words


def wrong_settings(speculation: Speculation, own: Mapping[str, Any]) -> list[str]:
    """One line per setting of the profile's ``speculation`` option that would make k mean something else."""
    wrong = []
    if own and not speculation.active:
        wrong.append("sglang: option speculation has settings, but the profile's method is none")
    names = {_plain(name): value for name, value in own.items()}
    for name in names:
        if name in _OF_THE_PROFILE:
            wrong.append(f"sglang: option speculation must not have {name}; set {_OF_THE_PROFILE[name]} of the profile")
        elif name.startswith("adaptive"):
            wrong.append(f"sglang: option speculation must not have {name}; it changes the draft tokens while running")
    tree = speculation.active and METHODS[speculation.method].chain and names.get("eagle_topk", 1) != 1
    if "num_draft_tokens" in names and not tree:
        wrong.append(
            "sglang: option speculation must not have num_draft_tokens, which follows from draft_tokens of the "
            "profile; it is free only beside an eagle_topk above 1"
        )
    if tree and "num_draft_tokens" not in names:
        wrong.append("sglang: eagle_topk above 1 needs num_draft_tokens, the nodes of the tree and one")
    return wrong


def _plain(name: str) -> str:
    return str(name).replace("-", "_").removeprefix(PREFIX)


def mismatch(speculation: Speculation, info: Mapping[str, Any]) -> str | None:
    """How the server's own settings differ from what the profile says, None if they do not."""
    algorithm = info.get(f"{PREFIX}algorithm")
    if not speculation.active:
        return None if algorithm is None else f"the profile's method is none, but the server runs {algorithm}"
    method = METHODS[speculation.method]
    if algorithm not in method.reported:
        return (
            f"the profile's method is {speculation.method} ({method.algorithm}), but the server runs "
            f"{algorithm or 'without speculation'}"
        )
    window, steps = info.get(f"{PREFIX}num_draft_tokens"), info.get(f"{PREFIX}num_steps")
    drafts = steps if method.chain else None if window is None else drafts_of("sglang", window)
    if drafts != speculation.draft_tokens:
        return f"the profile has {speculation.draft_tokens} draft tokens, but the server drafts {drafts}"
    if info.get(f"{PREFIX}adaptive"):
        return "the server changes the number of draft tokens while running (adaptive speculation)"
    return None


# What the closing event says


_ACCEPTED = ("spec_num_correct_drafts", "spec_accepted_drafts")
_DRAFTED = ("spec_num_proposed_drafts", "spec_proposed_drafts")
_HISTOGRAM = ("spec_correct_drafts_histogram", "spec_accept_histogram")


def told(meta: Mapping[str, Any], *, output_tokens: int, version: str) -> Told:
    """The counts of one turn. ``spec_accept_length`` is not among them: it counts the prefill's token.

    Raises RequestError: ``missing_field``, or ``bad_event`` for counts that contradict each other.
    """
    if output_tokens == 1 and "spec_verify_ct" not in meta:
        # The prefill's token was all, so nothing was verified, and then SGLang says nothing.
        return Told(steps=0, drafts=0, drafted=0, accepted=0, lengths=())
    steps = int(field(meta, "spec_verify_ct", version=version))
    accepted = int(field(meta, *_ACCEPTED, version=version))
    counts = [int(count) for count in field(meta, *_HISTOGRAM, version=version)]
    listed = sum(j * count for j, count in enumerate(counts))
    if (sum(counts), listed) != (steps, accepted):
        raise RequestError(
            "bad_event",
            f"the histogram {counts} holds {sum(counts)} verify steps and {listed} correct drafts, "
            f"but the counts beside it are {steps} and {accepted}",
        )
    return Told(
        steps=steps,
        drafts=steps,
        drafted=int(field(meta, *_DRAFTED, version=version)),
        accepted=accepted,
        lengths=tuple(j + 1 for j, count in enumerate(counts) for _ in range(count)),
        ordered=False,
    )


def field(meta: Mapping[str, Any], *names: str, version: str) -> Any:
    """The first of ``names`` that is there: names changed. Raises RequestError ``missing_field``."""
    for name in names:
        if meta.get(name) is not None:
            return meta[name]
    raise RequestError("missing_field", f"meta_info of SGLang {version or '(version unknown)'} has no {_or(names)}")


def _or(names: Sequence[str]) -> str:
    return " or ".join(names)

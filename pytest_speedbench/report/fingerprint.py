"""How two runs differ, in words: what an upgrade may change, and what makes them no pair at all."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from pytest_speedbench.errors import ConfigError
from pytest_speedbench.report.run_info import EngineRecord, RunInfo


class Kind(Enum):
    """What a difference means for a comparison."""

    UNLIKE = "unlike"
    """The runs answer different questions: other prompts, other sampling, another model, another GPU."""
    SPECULATION = "speculation"
    """Unlike too, except where a run without speculation is what the other is compared with."""
    UPGRADE = "upgrade"
    """What an upgrade changes or brings with it: reported, and compared all the same."""


_UNLIKE = frozenset(
    {
        # who answers
        *("engine", "model", "architectures", "dtype", "quantization", "kv_cache_dtype", "model_ftype"),
        # what is asked
        *("dataset", "dataset contents", "tokenizer and chat template", "completions"),
        # how it answers
        *("osl", "temperature", "seed", "ignore_eos", "sampling_defaults", "preferred_sampling_params"),
        # where
        *("gpu", "gpu count", "cpu", "machine", "tp_size", "dp_size", "pp_size", "ep_size"),
    }
)
_SPECULATION = frozenset({"method", "drafter", "draft tokens", "speculative_algorithm"})
_LAW = re.compile(r"accept|reject|relaxed|typical")
"""Settings of which drafts count as accepted. The length that a synthetic law is set to stands for a drafter."""
_SYNTHETIC = "synthetic_acceptance_length"
_WORDS = {"osl_cap": "osl", "chat_template_and_tokenizer_sha256": "tokenizer and chat template"}
_SAID_BEFORE = frozenset(
    {
        *("draft_model", "draft_tokens", "served_model", "build_info", "speculative_config.method"),
        *("speculative_config.model", "speculative_config.num_speculative_tokens"),
        *("speculative_num_steps", "speculative_num_draft_tokens"),
    }
)
"""What engines call the method, drafter, draft tokens and version, which the record has by one name for all."""
_LAUNCHED = ("speculative_config.", "config.")
"""Where engines keep what they were launched with, rather than what they say of themselves."""
_RUN_OPTIONS = ("completions", "engine-arg")


@dataclass(frozen=True, slots=True)
class Difference:
    """One setting that two runs do not share. None: the run does not have it."""

    name: str
    base: object
    new: object
    kind: Kind

    def __str__(self) -> str:
        return f"{self.name}: {_text(self.base)} against {_text(self.new)}"


def facts(run: RunInfo, engine: EngineRecord) -> dict[str, object]:
    """Everything that tells one measured system from another, by name; nested settings with dots."""
    found: dict[str, object] = {
        "engine": engine.engine,
        "engine version": engine.version,
        "model": engine.model,
        "method": engine.method,
        "drafter": engine.draft_model,
        "draft tokens": engine.draft_tokens,
        "dataset": run.dataset,
        "dataset contents": run.dataset_sha256,
        "gpu": _counted(gpu.name for gpu in engine.gpus),
        "gpu count": len(engine.gpus),
        "driver": _counted(gpu.driver for gpu in engine.gpus),
        "cuda": _counted(gpu.cuda for gpu in engine.gpus),
        "gpu uuid": ", ".join(sorted(gpu.uuid for gpu in engine.gpus)),
        "attached to": engine.base_url,
        # Beside a GPU the host matters less, and is a note.
        "cpu" if not engine.gpus else "host cpu": run.cpu,
        "plugin version": run.plugin_version,
    }
    for number, gpu in enumerate(engine.gpus):
        found |= {f"gpu {number} {name}": value for name, value in _flat(gpu.facts)}
    options = {option.name: option.value for option in run.options}
    found |= {name: options.get(name) for name in _RUN_OPTIONS}
    for name, value in _flat(engine.resolved):
        if name not in _SAID_BEFORE:
            found.setdefault(_WORDS.get(name, name), value)
    return found


def differences(
    base: RunInfo, base_engine: EngineRecord, new: RunInfo, new_engine: EngineRecord
) -> tuple[Difference, ...]:
    """What the two runs do not share: first what makes them unlike. One run with both engines is given twice."""
    one, other = facts(base, base_engine), facts(new, new_engine)
    found = [
        Difference(name, one.get(name), other.get(name), _kind(name, one, other))
        for name in {**one, **other}
        if not _same(one.get(name), other.get(name))
    ]
    return tuple(sorted(found, key=lambda difference: list(Kind).index(difference.kind)))


def kind_of(name: str) -> Kind:
    """What a difference in the setting ``name`` means. What is not known here is the engine's own business."""
    last = name.rpartition(".")[2]
    if name in _SPECULATION:
        return Kind.SPECULATION
    if name in _UNLIKE or (_LAW.search(last) and last != _SYNTHETIC):
        return Kind.UNLIKE
    return Kind.UPGRADE


def _kind(name: str, one: Mapping[str, object], other: Mapping[str, object]) -> Kind:
    # What one engine does not tell is not known to differ: another version tells more of itself. What an
    # engine was launched with is known to the last setting.
    told = name in one and name in other
    return kind_of(name) if told or name.startswith(_LAUNCHED) else Kind.UPGRADE


def unlike(
    found: Iterable[Difference], *, allow: Collection[str] = (), speculation: bool = False
) -> tuple[Difference, ...]:
    """The differences that forbid a comparison.

    ``allow`` names those that the user takes responsibility for. With ``speculation`` one run is the other without
    speculation, and whatever concerns drafting may differ.
    """
    return tuple(
        difference
        for difference in found
        if difference.kind is not Kind.UPGRADE
        and difference.name not in allow
        and not (speculation and _of_speculation(difference))
    )


def check_allowed(names: Iterable[str], one: Mapping[str, object], other: Mapping[str, object]) -> None:
    """Raise ConfigError for a name in ``--allow`` that neither run has: it would allow nothing."""
    known = {**one, **other}
    for name in names:
        if name not in known:
            choices = sorted(name for name in known if kind_of(name) is not Kind.UPGRADE)
            raise ConfigError(f"--allow {name}: the runs have no such setting; choose from {', '.join(choices)}")


def _of_speculation(difference: Difference) -> bool:
    return difference.kind is Kind.SPECULATION or difference.name.startswith("spec")


def _same(a: object, b: object) -> bool:
    # An engine that does not name a setting and one that says it has none are the same.
    return a == b or (a in (None, "", ()) and b in (None, "", ()))


def _flat(settings: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", tuple(value) if isinstance(value, list) else value


def _counted(names: Iterable[str]) -> str:
    return ", ".join(name if count == 1 else f"{count} × {name}" for name, count in sorted(Counter(names).items()))


def _text(value: object) -> str:
    if value is None or value == "":
        return "none"
    text = str(value)
    return f"{text[:12]}…" if re.fullmatch(r"[0-9a-f]{40,}", text) else text

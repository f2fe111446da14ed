"""What must be equal for runs to be samples of one system, and how they differ, in words."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from pytest_speedbench.errors import ConfigError
from pytest_speedbench.report.run_info import EngineRecord, RunInfo

_WORDS = {"osl_cap": "osl"}
_SHOWN = 5


def facts(run: RunInfo, engine: EngineRecord) -> dict[str, object]:
    """Everything that tells one measured system from another, by name; nested settings with dots."""
    found: dict[str, object] = {
        "engine": engine.engine,
        "engine version": engine.version,
        "model": engine.model,
        "method": engine.method,
        "draft model": engine.draft_model,
        "draft tokens": engine.draft_tokens,
        "dataset": run.dataset,
        "dataset contents": run.dataset_sha256[:12],
        "gpu": ", ".join(sorted({gpu.name for gpu in engine.gpus})),
        "gpu count": len(engine.gpus),
    }
    if not engine.gpus:
        found["cpu"] = run.cpu
    for name, value in _flat(engine.resolved):
        found.setdefault(_WORDS.get(name, name), value)
    return found


def require_alike(runs: Mapping[str, dict[str, object]], vary: Collection[str] = ()) -> None:
    """Raise ConfigError unless all ``runs`` (facts by file name) are equal in all but what ``vary`` names."""
    known = {name for own in runs.values() for name in own}
    unknown = [name for name in vary if name not in known]
    if unknown:
        raise ConfigError(f"--vary {unknown[0]}: the runs have no such setting; choose from {', '.join(sorted(known))}")
    (first, wanted), *others = runs.items()
    for path, own in others:
        names = [name for name in {**wanted, **own} if name not in vary and wanted.get(name) != own.get(name)]
        if not names:
            continue
        lines = [f"{name} {_text(wanted.get(name))} and {_text(own.get(name))}" for name in names[:_SHOWN]]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise ConfigError(
            f"{first} and {path} are not runs of one system: {'; '.join(lines)}{more}. Calibrate each apart, or take "
            f"the difference as noise: {' '.join(f'--vary {_quoted(name)}' for name in names)}"
        )


def _flat(settings: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _text(value: object) -> str:
    return "none" if value is None or value == "" else str(value)


def _quoted(name: str) -> str:
    return f"'{name}'" if " " in name else name

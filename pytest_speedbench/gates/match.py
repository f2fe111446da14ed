"""To which runs a thresholds file applies."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from pytest_speedbench.names import PARTIAL

STATIC_FIELDS = (
    "engine",
    "model",
    "method",
    "draft_tokens",
    "draft_model",
    "dataset",
    "osl",
    "temperature",
    "ignore_eos",
)
RUNTIME_FIELDS = ("engine_version", "gpu", "gpu_count")
FIELDS = STATIC_FIELDS + RUNTIME_FIELDS


@dataclass(frozen=True, slots=True)
class Facts:
    """What a run is made of. ``engine_version`` and ``gpus`` are known once the engine has started.

    ``gpus`` are the names of the GPUs that the engine uses; a run on the CPU has none.
    """

    engine: str
    model: str
    method: str | None
    draft_tokens: int | None
    draft_model: str | None
    dataset: str
    osl: int | None = None
    temperature: float | None = None
    ignore_eos: bool | None = None
    engine_version: str | None = None
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Match:
    """The ``match`` block of a thresholds file. A field that is None accepts anything.

    Static fields are compared for equality and need no engine; ``engine_version`` is a PEP 440
    specifier, ``gpu`` a glob that each GPU must match.
    """

    engine: str | None = None
    engine_version: SpecifierSet | None = None
    model: str | None = None
    method: str | None = None
    draft_tokens: int | None = None
    draft_model: str | None = None
    gpu: str | None = None
    gpu_count: int | None = None
    dataset: str | None = None
    osl: int | None = None
    temperature: float | None = None
    ignore_eos: bool | None = None

    def static_mismatches(self, facts: Facts) -> tuple[str, ...]:
        """One line per field known before the start that differs, empty when all fit.

        A partial dataset has to be named, since its values are not those of the full one.
        """
        lines = [
            _mismatch(name, getattr(self, name), getattr(facts, name))
            for name in STATIC_FIELDS
            if getattr(self, name) is not None and getattr(self, name) != getattr(facts, name)
        ]
        if self.dataset is None and facts.dataset.endswith(PARTIAL):
            lines.append(_mismatch("dataset", "a full one (none is named)", facts.dataset))
        return tuple(lines)

    def runtime_mismatches(self, facts: Facts) -> tuple[str, ...]:
        """One line per field known only after the start that differs, empty when all fit."""
        lines = []
        if self.engine_version is not None and not _version_fits(self.engine_version, facts.engine_version):
            lines.append(_mismatch("engine_version", self.engine_version, facts.engine_version))
        if self.gpu is not None:
            others = [gpu for gpu in facts.gpus if not fnmatchcase(gpu, self.gpu)]
            if others or not facts.gpus:
                lines.append(_mismatch("gpu", self.gpu, ", ".join(dict.fromkeys(others)) or None))
        if self.gpu_count is not None and self.gpu_count != len(facts.gpus):
            lines.append(_mismatch("gpu_count", self.gpu_count, len(facts.gpus)))
        return tuple(lines)


def _version_fits(wanted: SpecifierSet, found: str | None) -> bool:
    try:
        # Engines are often run as release candidates or nightlies; those count by their order.
        return found is not None and wanted.contains(Version(found), prereleases=True)
    except InvalidVersion:
        return False


def _mismatch(field: str, wanted: object, found: object) -> str:
    return f"{field}: wanted {_text(wanted)}, found {_text(found)}"


def _text(value: object) -> str:
    """The value as a thresholds file writes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value:g}"
    return repr(str(value))

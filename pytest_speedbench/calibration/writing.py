"""The text of a thresholds file: a new one, or an existing one with only the calibrated values changed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pytest_speedbench.calibration.proposal import Proposal, gpu_text
from pytest_speedbench.calibration.ratchet import Step
from pytest_speedbench.calibration.runs import Calibration
from pytest_speedbench.calibration.yaml_edit import Items, Place, Wanted, edited, entry, scalar
from pytest_speedbench.cells import Cell
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates import thresholds
from pytest_speedbench.gates.limits import CellPattern, Change, Evidence, Gate, Limit, ThresholdsFile
from pytest_speedbench.gates.match import Facts

_WORKLOAD = {"osl": "osl_cap", "temperature": "temperature", "ignore_eos": "ignore_eos"}
_GLOB = {ord(character): f"[{character}]" for character in "*?["}


def facts(calibration: Calibration) -> Facts:
    """What the runs were made of, as ``match`` is compared with it."""
    engine = calibration.engine
    workload = {name: engine.resolved.get(key) for name, key in _WORKLOAD.items()}
    osl, temperature, ignore_eos = workload["osl"], workload["temperature"], workload["ignore_eos"]
    return Facts(
        engine=engine.engine,
        model=engine.model,
        method=engine.method or "none",
        draft_tokens=engine.draft_tokens or 0,
        draft_model=engine.draft_model,
        dataset=calibration.run.dataset,
        osl=osl if isinstance(osl, int) else None,
        temperature=float(temperature) if isinstance(temperature, (int, float)) else None,
        ignore_eos=ignore_eos if isinstance(ignore_eos, bool) else None,
        engine_version=engine.version or None,
        gpus=tuple(gpu.name for gpu in engine.gpus),
    )


def require_match(file: ThresholdsFile, calibration: Calibration) -> None:
    """Raise ConfigError where the file is not for what was measured."""
    own = facts(calibration)
    lines = file.match.static_mismatches(own) + file.match.runtime_mismatches(own)
    if lines:
        raise ConfigError(f"{file.path} is not for these runs: {'; '.join(lines)}; write to another file")


def pattern(cell: Cell) -> CellPattern:
    """The pattern that names ``cell`` and no other."""
    return CellPattern(cell.split, cell.category, cell.isl, cell.difficulty, cell.concurrency)


def existing(file: ThresholdsFile | None, cell: CellPattern, metric: str) -> Limit | None:
    """The limit that a file has for exactly this cell; patterns for several cells are left alone."""
    gates = file.gates if file is not None else ()
    return next((limit for gate in gates if gate.cell == cell for limit in gate.limits if limit.metric == metric), None)


def new_file(calibration: Calibration, proposals: Sequence[Proposal], estimator: str) -> bytes:
    """A file of its own for what was measured."""
    return ("\n".join(_new_lines(calibration, proposals, estimator)) + "\n").encode()


def edited_file(
    raw: bytes, file: ThresholdsFile, steps: Sequence[Step], changes: Sequence[Change | None], estimator: str
) -> bytes:
    """``raw`` with the limits of ``steps`` in place of the old ones, and new gates after the others."""
    places: list[Place] = []
    added: dict[CellPattern, list[Proposal]] = {}
    for step, change in zip(steps, changes, strict=True):
        cell, metric = pattern(step.proposal.cell), step.proposal.limit.metric
        index = _gate_index(file, cell, metric if step.old is not None else None)
        if index is None:
            added.setdefault(cell, []).append(step.proposal)
        elif step.old is None:
            places.append(Place(("gates", index), {metric: _limit(step.proposal)}))
        else:
            places.append(Place(("gates", index, metric), _limit(step.proposal, step.old, change)))
    top: dict[str, Wanted | None] = {}
    if any(step.proposal.limit.metric == "acceptance_length" for step in steps):
        top["estimator"] = estimator
    if added:
        top["gates"] = Items(tuple(_gate(own) for own in added.values()))
    return edited(raw, file.path, top, places)


def require_as_meant(text: bytes, path: Path, before: ThresholdsFile | None, steps: Sequence[Step]) -> ThresholdsFile:
    """Load ``text`` as it will be loaded from ``path``, and see that it holds what was proposed and nothing else new.

    Raises ConfigError: better no file than one that was edited wrongly.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(text)
        try:
            (file,) = thresholds.load(copy)
        except ConfigError as error:
            message = str(error).replace(copy.as_posix(), path.as_posix())
            raise ConfigError(f"what would be written is no thresholds file, so nothing was: {message}") from None
    wrong = [step.proposal.name for step in steps if not _holds(file, step.proposal)]
    touched = {(pattern(step.proposal.cell), step.proposal.limit.metric) for step in steps}
    if wrong or (before is not None and _untouched(before, touched) != _untouched(file, touched)):
        raise ConfigError(f"{path} could not be edited in place ({', '.join(wrong) or 'other gates would change'})")
    return file


def _holds(file: ThresholdsFile, proposal: Proposal) -> bool:
    found = existing(file, pattern(proposal.cell), proposal.limit.metric)
    wanted = proposal.limit
    return found is not None and (found.value, found.reference, found.margin, found.evidence) == (
        wanted.value,
        wanted.reference,
        wanted.margin,
        wanted.evidence,
    )


def _untouched(file: ThresholdsFile, touched: set[tuple[CellPattern, str]]) -> tuple[object, ...]:
    """All that an edit leaves alone, without places in the text."""
    limits = [
        (gate.cell, limit.metric, limit.value, limit.reference, limit.margin, limit.evidence, limit.history)
        for gate in file.gates
        for limit in gate.limits
        if (gate.cell, limit.metric) not in touched
    ]
    waivers = [replace(waiver, source="", waives="") for waiver in file.waivers]
    return (file.match, file.family, *limits, *waivers)


def _gate_index(file: ThresholdsFile, cell: CellPattern, metric: str | None) -> int | None:
    def fits(gate: Gate) -> bool:
        return gate.cell == cell and (metric is None or any(limit.metric == metric for limit in gate.limits))

    return next((number for number, gate in enumerate(file.gates) if fits(gate)), None)


def _new_lines(calibration: Calibration, proposals: Sequence[Proposal], estimator: str) -> Iterator[str]:
    engine, own = calibration.engine, facts(calibration)
    evidence = proposals[0].evidence
    hardware = calibration.run.cpu if not engine.gpus else gpu_text(calibration)
    yield f"# {engine.engine} {engine.version}".rstrip() + f" on {hardware}, measured over {evidence}."
    yield "# Written by `speedbench calibrate`, which also updates it: docs/calibration.md."
    yield "schema: 1"
    fields: dict[str, str | float | bool | None] = {
        name: getattr(own, name)
        for name in ("engine", "model", "method", "draft_tokens", "draft_model", "dataset", *_WORKLOAD)
    }
    models = dict.fromkeys(gpu.name for gpu in engine.gpus)
    if len(models) == 1:
        fields["gpu"] = next(iter(models)).translate(_GLOB)
    fields["gpu_count"] = len(engine.gpus)
    yield "match:"
    yield from (f"  {name}: {scalar(value)}" for name, value in fields.items() if value is not None)
    yield f"estimator: {estimator}"
    yield "family: {alpha: 0.05, beta: 0.05}"
    yield "gates:"
    by_cell: dict[CellPattern, list[Proposal]] = {}
    for proposal in proposals:
        by_cell.setdefault(pattern(proposal.cell), []).append(proposal)
    for group in by_cell.values():
        yield from (f"  {line}" for line in entry(_gate(group)))


def _gate(proposals: Sequence[Proposal]) -> dict[str, Wanted | None]:
    cell = {name: scalar(value) for name, value in proposals[0].cell.as_dict().items()}
    return {"cell": cell, **{proposal.limit.metric: _limit(proposal) for proposal in proposals}}


def _limit(proposal: Proposal, old: Limit | None = None, change: Change | None = None) -> dict[str, Wanted | None]:
    limit = proposal.limit
    assert limit.reference is not None
    assert limit.margin is not None
    wanted: dict[str, Wanted | None] = {
        "max" if limit.ceiling else "min": scalar(limit.value),
        "reference": scalar(limit.reference),
    }
    if old is None or old.margin != limit.margin:
        wanted["margin"] = f"{scalar(round(100 * limit.margin, 10))}%"
    wanted["evidence"] = _evidence(proposal.evidence)
    if change is not None:
        wanted["history"] = Items((_change(change),))
    return wanted


def _evidence(evidence: Evidence) -> Mapping[str, Wanted | None]:
    def text(value: str | None) -> str | None:
        return None if value is None else scalar(value)

    return {
        "starts": scalar(evidence.starts),
        "repeats": scalar(evidence.repeats),
        "sd_start": scalar(evidence.sd_start),
        "sd_repeat": scalar(evidence.sd_repeat) if evidence.repeats > 1 else None,
        "lowest": scalar(evidence.lowest or 0.0),
        "highest": scalar(evidence.highest or 0.0),
        "date": evidence.date.isoformat(),
        "run": text(evidence.run),
        "engine_version": text(evidence.engine_version),
        "gpu": text(evidence.gpu),
        "prompts": None if evidence.prompts is None else f'"{evidence.prompts}"',
        "conditional": "[" + ", ".join(f"{rate:.3f}" for rate in evidence.conditional) + "]"
        if evidence.conditional
        else None,
    }


def _change(change: Change) -> Mapping[str, Wanted | None]:
    return {
        "date": change.date.isoformat(),
        "from": scalar(change.before),
        "to": scalar(change.after),
        "reason": scalar(change.reason),
        "prompts": None if change.prompts is None else f'"{change.prompts}"',
    }

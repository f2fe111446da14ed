"""From artifacts to a thresholds file and its file of prompts, with all that is to be said on the way."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_speedbench.calibration.choice import Margins, estimator_of, metrics_of
from pytest_speedbench.calibration.prompts import Logs, read_logs, references, timing_problem
from pytest_speedbench.calibration.proposal import Proposal, propose
from pytest_speedbench.calibration.ratchet import Permission, Step, changes
from pytest_speedbench.calibration.runs import Calibration, calibration, read
from pytest_speedbench.calibration.table import lines
from pytest_speedbench.calibration.writing import (
    edited_file,
    existing,
    facts,
    new_file,
    pattern,
    require_as_meant,
    require_match,
)
from pytest_speedbench.cells import Cell
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.files import write_atomic
from pytest_speedbench.gates import prompt_reference, thresholds
from pytest_speedbench.gates.limits import ThresholdsFile


@dataclass(frozen=True, slots=True)
class Choices:
    """What to gate, and how. ``label`` names the calibration, ``profile`` the engine where there are several."""

    metrics: tuple[str, ...]
    margins: Margins
    skip_unreachable: bool = False
    label: str | None = None
    profile: str | None = None
    vary: tuple[str, ...] = ()


def calibrate(artifacts: Sequence[Path], output: Path | None, choices: Choices, permission: Permission) -> None:
    """Write limits into ``output``, or print a new file; what each gate will detect goes to standard error.

    Raises ConfigError, and leaves all files as they are, for anything that cannot be calibrated.
    """
    runs = calibration(read(artifacts, choices.profile), vary=choices.vary)
    raw, file = _existing(output)
    if file is not None:
        require_match(file, runs)
    estimator = estimator_of(runs, None if file is None else file.estimator)
    logs = read_logs(runs)
    steps, left_out = _steps(runs, logs, file, estimator, choices)
    history = changes(steps, permission, dt.datetime.now(dt.timezone.utc).date())
    if raw is None or file is None:
        text = new_file(runs, [step.proposal for step in steps], estimator)
    else:
        text = edited_file(raw, file, steps, history, estimator)
    written = require_as_meant(text, output or Path("thresholds.yaml"), file, steps)
    notes = [*lines(written, steps), *runs.notes, *left_out, *_hardware_note(file, runs)]
    if output is None:
        print(text.decode(), end="")
    else:
        cells, about = _references(output, runs, logs, steps)
        write_atomic(output, text)
        _write_references(output, cells)
        print(output)
        notes += about
    for line in notes:
        print(line, file=sys.stderr)


def _existing(output: Path | None) -> tuple[bytes | None, ThresholdsFile | None]:
    if output is None or not output.exists():
        return None, None
    if output.is_dir():
        raise ConfigError(f"{output} is a folder; name the file to write")
    (file,) = thresholds.load(output)
    return output.read_bytes(), file


def _steps(
    runs: Calibration, logs: Logs, file: ThresholdsFile | None, estimator: str, choices: Choices
) -> tuple[list[Step], list[str]]:
    """Each gate beside what it replaces, and a line for each that is left out."""
    steps, refused = [], []
    for measured in runs.cells:
        speculation = runs.engine.method is not None
        for metric in metrics_of(measured, choices.metrics, estimator, speculation=speculation):
            cell = measured.cell
            old = existing(file, pattern(cell), metric)
            margin = choices.margins.of(cell, metric, None if old is None else old.margin)
            proposal = propose(runs, measured, metric, estimator, margin, choices.label)
            problem = proposal.refusal or timing_problem(logs, proposal)
            if problem:
                refused.append(f"{proposal.name}: {problem}")
            else:
                steps.append(Step(proposal, old))
    if refused and not choices.skip_unreachable:
        listed = "".join(f"\n  {line}" for line in refused)
        raise ConfigError(
            f"{len(refused)} gate{'s' * (len(refused) != 1)} would tell nothing (--skip-unreachable leaves them out):"
            f"{listed}"
        )
    if not steps:
        listed = "".join(f"\n  {line}" for line in refused) or " without speculation, name a rate or time with --metric"
        raise ConfigError(f"no gate is left:{listed}")
    return steps, [f"left out: {line}" for line in refused]


def _hardware_note(file: ThresholdsFile | None, runs: Calibration) -> list[str]:
    gpus = facts(runs).gpus
    if file is None or file.match.gpu is not None or not gpus:
        return []
    return [f"{file.path} matches any GPU, but was calibrated on {gpus[0]}; add gpu and gpu_count to its match"]


def _references(
    output: Path, runs: Calibration, logs: Logs, steps: list[Step]
) -> tuple[list[prompt_reference.CellReference], list[str]]:
    """What the file of prompts is to hold, and what there is to say about it."""
    notes = [f"{path} is missing, so there is no reference per prompt" for path in logs.missing[:1]]
    acceptance: dict[Cell, list[Proposal]] = {}
    for step in steps:
        if step.proposal.measures_acceptance:
            acceptance.setdefault(step.proposal.cell, []).append(step.proposal)
    try:
        old = prompt_reference.read(output)
    except ConfigError as error:
        old = None
        notes.append(f"replaced: {error}")
    kept = [own for cell, own in (old.cells if old else {}).items() if cell not in acceptance]
    new = [] if logs.missing else references(runs, logs, acceptance)
    unknown = [cell.id(with_concurrency=True) for cell in acceptance if cell not in {own.cell for own in new}]
    if unknown and not logs.missing:
        notes.append(f"no steps per request, so no reference per prompt: {', '.join(unknown)}")
    return [*kept, *new], notes


def _write_references(output: Path, cells: list[prompt_reference.CellReference]) -> None:
    path = prompt_reference.path_of(output)
    if cells:
        write_atomic(path, prompt_reference.encoded(cells))
    else:
        # One of an earlier calibration would contradict the new limits.
        path.unlink(missing_ok=True)

"""One comparison from start to end: alike or refused, cells paired, every cell judged."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from pytest_speedbench.cells import Cell
from pytest_speedbench.comparison.judging import Policy, judge_cell, missing
from pytest_speedbench.comparison.report import Comparison
from pytest_speedbench.comparison.sources import Side, Windows, common_cells
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.report.fingerprint import Difference, check_allowed, differences, facts, unlike

_SHOWN = 6


def compare(
    base: Side, new: Side, policy: Policy, *, allow: Collection[str] = (), allow_missing: bool = False
) -> Comparison:
    """Judge every cell of two runs that are alike.

    ``allow`` names settings that may differ all the same; with ``allow_missing`` cells of one run only, and a run
    that was interrupted, are a note instead of INVALID. Raises ConfigError for runs that are not
    alike, in words, and for runs without a common cell.
    """
    found = require_alike(base, new, allow=allow)
    notes = list(_state(base, new, allow_missing=allow_missing))
    logs = Windows(base), Windows(new)
    notes += [note for log in logs for note in log.notes]
    cells = list(common_cells(base, new))
    require_same_prompts(base, new, cells)
    judged = [judge_cell(cell, base, new, (logs[0].of(cell), logs[1].of(cell)), cells, policy) for cell in cells]
    only = [(cell, base) for cell in new.cells if cell not in base.cells]
    only += [(cell, new) for cell in base.cells if cell not in new.cells]
    if only and allow_missing:
        notes += [f"{cell.id(with_concurrency=True)}: not measured in {side.name}, not compared" for cell, side in only]
    elif only:
        judged += [missing(cell, side.name) for cell, side in only]
    left_out = sum(each.left_out for each in judged if not each.cell.is_overall)
    if left_out:
        notes.append(
            f"{left_out} later turns of conversations are in no pair, because the replies before them differ between "
            "the runs; acceptance is compared over the others"
        )
    return Comparison(base, new, tuple(judged), found, tuple(notes))


def require_alike(
    base: Side, new: Side, *, allow: Collection[str] = (), speculation: bool = False
) -> tuple[Difference, ...]:
    """The differences between two runs that may be compared. Raises ConfigError, in words, for those that may not."""
    runs = base.source.run, base.engine, new.source.run, new.engine
    check_allowed(allow, facts(*runs[:2]), facts(*runs[2:]))
    found = differences(*runs)
    forbidden = unlike(found, allow=allow, speculation=speculation)
    if forbidden:
        lines = [f"  {difference}" for difference in forbidden[:_SHOWN]]
        more = [f"  and {len(forbidden) - _SHOWN} more"] if len(forbidden) > _SHOWN else []
        options = " ".join(f"--allow {_quoted(difference.name)}" for difference in forbidden)
        raise ConfigError(
            "\n".join([f"{base.name} and {new.name} are not runs of the same workload:", *lines, *more])
            + f"\nan upgrade does not change these; to compare all the same: {options}"
        )
    return found


def require_same_prompts(base: Side, new: Side, cells: Iterable[Cell]) -> None:
    """Raise ConfigError where a cell was measured on other prompts, or where there is no common cell."""
    cells = list(cells)
    if not cells:
        raise ConfigError(
            f"{base.name} and {new.name} have no common cell: {_named(base.cells)} against {_named(new.cells)}"
        )
    other = [cell for cell in cells if base.cells[cell].prompts_sha256 != new.cells[cell].prompts_sha256]
    if other:
        lines = [
            f"  {cell.id(with_concurrency=True)}: prompts {_sha(base, cell)} against {_sha(new, cell)}"
            for cell in other[:_SHOWN]
        ]
        more = [f"  and {len(other) - _SHOWN} more"] if len(other) > _SHOWN else []
        raise ConfigError(
            "\n".join([f"{base.name} and {new.name} did not measure the same prompts:", *lines, *more])
            + "\nmeasure both with the same data, --speedbench-prompts and --speedbench-seed"
        )


def _state(base: Side, new: Side, *, allow_missing: bool) -> Iterable[str]:
    """What to know of the artifacts themselves."""
    for side in (base, new) if base.source is not new.source else (new,):
        if side.source.complete:
            continue
        if not allow_missing:
            raise ConfigError(
                f"{side.source.path}: the run was interrupted, or is not over yet; measure it again, or compare the "
                "cells that it has with --allow-missing"
            )
        yield f"{side.source.path}: the run was interrupted"
    if _identity(base) == _identity(new):
        yield "base and new are the same run: nothing was compared"
    if any(side.engine.base_url for side in (base, new)):
        yield "attached to a server that ran already: its flags and who else used it are not known"


def _identity(side: Side) -> tuple[object, ...]:
    # Two jobs may begin in the same second, but do not take equally long to the nanosecond.
    durations = tuple(result.duration_s for result in side.source.results)
    return side.source.run.started, side.profile, durations


def _sha(side: Side, cell: Cell) -> str:
    return side.cells[cell].prompts_sha256[:12] or "unknown"


def _named(cells: Iterable[Cell]) -> str:
    names = [cell.id(with_concurrency=True) for cell in cells]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3]) or 'none'}{more}"


def _quoted(name: str) -> str:
    return f"'{name}'" if " " in name else name

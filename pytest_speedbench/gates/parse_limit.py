"""One limit of a thresholds file: its value, its direction, and whether its evidence agrees."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass

from pytest_speedbench.cells import OVERALL
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates.limits import MIN_STARTS, CellPattern, Change, Evidence, Limit
from pytest_speedbench.gates.yaml_nodes import Value
from pytest_speedbench.measure.metrics import MetricSpec, gateable
from pytest_speedbench.names import CROSSOVER

ROUNDING = 0.001
"""How far, relatively, a written limit may lie from reference × (1 ∓ margin)."""

_EVIDENCE_KEYS = (
    "starts",
    "repeats",
    "sd_start",
    "sd_repeat",
    "lowest",
    "highest",
    "date",
    "run",
    "engine_version",
    "gpu",
    "conditional",
    "prompts",
)
_CHANGE_KEYS = ("date", "from", "to", "reason", "prompts")
_CALIBRATED = ("reference", "margin", "evidence")


@dataclass(frozen=True, slots=True)
class Context:
    """What the rest of the file, and the day, say about each limit."""

    estimator: str | None
    draft_tokens: int | None
    today: dt.date


def parse_limit(metric: str, value: Value, pattern: CellPattern, context: Context) -> Limit:
    """The limit that ``value`` holds for ``metric`` in the cells of ``pattern``."""
    try:
        spec = gateable(metric)
    except ConfigError as error:
        raise value.error(str(error)) from None
    if metric == "acceptance_length" and context.estimator is None:
        raise value.error(
            "acceptance_length is gated, so the file must name its estimator: "
            "'estimator: request_mean' or 'estimator: pooled'"
        )
    entries = value.mapping(allowed=("min", "max", *_CALIBRATED, "history"))
    limit = _limit_value(spec, value, entries)
    if metric == CROSSOVER:
        return _crossover(value, limit, entries, pattern)
    _refuse_idle(spec, limit, context)
    estimator = context.estimator or "request_mean"
    history = _history(spec, limit, entries["history"], context) if "history" in entries else ()
    if not any(name in entries for name in _CALIBRATED):
        return Limit(metric, limit.positive(), spec.ceiling, value.source, estimator=estimator, history=history)
    for name in ("reference", "evidence"):
        if name not in entries:
            given = next(n for n in _CALIBRATED if n in entries)
            raise entries[given].error(
                f"{value.name} has {given!r} but no {name!r}; a calibrated limit has both a reference and evidence, "
                "a hand-written one just its min or max"
            )
    if not pattern.names_one_cell:
        raise entries["reference"].error(
            f"{value.name} is calibrated, so its cell must name one cell with its concurrency, but is {pattern}"
        )
    reference = entries["reference"].positive()
    overall = pattern.category == OVERALL
    margin = entries["margin"].share() if "margin" in entries else spec.overall_margin if overall else spec.margin
    _check_consistent(spec, limit, reference, margin)
    evidence = _evidence(spec, entries["evidence"], reference, context)
    return Limit(metric, limit.positive(), spec.ceiling, value.source, reference, margin, evidence, estimator, history)


def _crossover(value: Value, limit: Value, entries: Mapping[str, Value], pattern: CellPattern) -> Limit:
    """The limit on the largest concurrency at which speculation pays: of an ISL and difficulty, over concurrencies."""
    if pattern.isl is None or pattern.difficulty is None or pattern.concurrency is not None:
        raise value.error(
            f"{value.name} is about all concurrencies of one ISL and difficulty, so its cell must name these two and "
            f"no concurrency, but is {pattern}"
        )
    extra = [name for name in entries if name != "min"]
    if extra:
        raise entries[extra[0]].error(f"{value.name} takes a min only, not {extra[0]!r}")
    return Limit(CROSSOVER, float(limit.count()), False, value.source)


def _limit_value(spec: MetricSpec, value: Value, entries: dict[str, Value]) -> Value:
    right, wrong = ("max", "min") if spec.ceiling else ("min", "max")
    better = "lower" if spec.ceiling else "higher"
    if right in entries and wrong in entries:
        raise entries[wrong].error(f"{value.name} has both min and max; {better} is better, so keep {right}")
    if wrong in entries:
        raise entries[wrong].error(f"{better} {spec.name} is better, so its limit is a {right}, not a {wrong}")
    if right not in entries:
        raise value.error(f"{value.name} has no {right!r}")
    return entries[right]


def _refuse_idle(spec: MetricSpec, limit: Value, context: Context) -> None:
    """Refuse a limit that nothing can miss, or nothing can meet."""
    number = limit.positive()
    if spec.unit == "share" and number > 1:
        raise limit.error(f"{spec.name} cannot exceed 1, so a min of {number:g} can never pass")
    if spec.unit == "tokens/step":
        if number <= 1:
            raise limit.error(f"{spec.name} is never below 1, so a min of {number:g} can never fail")
        if context.draft_tokens is not None and number > context.draft_tokens + 1:
            raise limit.error(
                f"{spec.name} cannot exceed draft_tokens + 1 = {context.draft_tokens + 1}, "
                f"so a min of {number:g} can never pass"
            )


def _check_consistent(spec: MetricSpec, limit: Value, reference: float, margin: float) -> None:
    number = limit.positive()
    sign, symbol = (1, "+") if spec.ceiling else (-1, "−")
    expected = reference * (1 + sign * margin)
    if abs(number - expected) > ROUNDING * expected or sign * (number - reference) <= 0:
        raise limit.error(
            f"{limit.name} is {number:g}, but reference {reference:g} × (1 {symbol} margin {margin:.4g}) "
            f"is {expected:.4g}; correct one of the three"
        )


def _evidence(spec: MetricSpec, value: Value, reference: float, context: Context) -> Evidence:
    entries = value.mapping(allowed=_EVIDENCE_KEYS, required=("starts", "repeats", "sd_start", "date"))
    starts, repeats = entries["starts"].count(), entries["repeats"].count()
    if starts < MIN_STARTS:
        raise entries["starts"].error(
            f"{entries['starts'].name} is {starts}, but calibration needs at least {MIN_STARTS} engine starts: "
            "the spread between fewer is all but unknown"
        )
    if repeats > 1 and "sd_repeat" not in entries:
        raise value.error(f"{value.name} has no 'sd_repeat'")
    sds = {name: entries[name].not_negative() for name in ("sd_start", "sd_repeat") if name in entries}
    for name, sd in sds.items():
        if sd >= reference:
            raise entries[name].error(
                f"{entries[name].name} is {sd:g} {spec.unit}, not less than the reference {reference:g}; "
                "it is a standard deviation in the metric's own unit"
            )
    if repeats == 1 and sds.get("sd_repeat", 0.0) > 0:
        raise entries["sd_repeat"].error(f"{entries['sd_repeat'].name} cannot be known from 1 repeat per start")
    if spec.log_scale and not any(sds.values()):
        raise entries["sd_start"].error(f"{spec.name} is a time or rate, and those never repeat exactly: give its sd")
    return Evidence(
        starts=starts,
        repeats=repeats,
        sd_start=sds["sd_start"],
        sd_repeat=sds.get("sd_repeat", 0.0),
        date=_past_date(entries["date"], context.today),
        run=entries["run"].text() if "run" in entries else None,
        conditional=_conditional(entries["conditional"], context) if "conditional" in entries else (),
        prompts=entries["prompts"].text() if "prompts" in entries else None,
        engine_version=entries["engine_version"].text() if "engine_version" in entries else None,
        gpu=entries["gpu"].text() if "gpu" in entries else None,
        lowest=_extreme(entries["lowest"], reference, 1) if "lowest" in entries else None,
        highest=_extreme(entries["highest"], reference, -1) if "highest" in entries else None,
    )


def _extreme(value: Value, reference: float, sign: int) -> float:
    """The lowest (``sign`` 1) or highest (-1) value of a run: the reference is a mean, so it lies between them."""
    number = value.positive()
    if sign * (number - reference) > ROUNDING * reference:
        side = "above" if sign > 0 else "below"
        raise value.error(
            f"{value.name} is {number:g}, {side} the reference {reference:g}, which is the mean of the runs; "
            "correct one of the two"
        )
    return number


def _history(spec: MetricSpec, limit: Value, value: Value, context: Context) -> tuple[Change, ...]:
    """Every loosening of the limit, oldest first."""
    changes: list[Change] = []
    sign, looser, tighter = (1, "raised", "lower") if spec.ceiling else (-1, "lowered", "higher")
    for item in value.items():
        entries = item.mapping(allowed=_CHANGE_KEYS, required=("date", "from", "to", "reason"))
        change = Change(
            date=_past_date(entries["date"], context.today),
            before=entries["from"].positive(),
            after=entries["to"].positive(),
            reason=entries["reason"].text(),
            prompts=entries["prompts"].text() if "prompts" in entries else None,
        )
        if changes and change.date < changes[-1].date:
            raise entries["date"].error(
                f"{entries['date'].name} {change.date} comes after {changes[-1].date}; write the oldest change first"
            )
        if change.prompts is None and sign * (change.after - change.before) <= 0:
            raise entries["to"].error(
                f"{entries['to'].name} {change.after:g} is not looser than {change.before:g}: "
                f"the history holds what was {looser}"
            )
        changes.append(change)
    last = changes[-1].after if changes else None
    if last is not None and sign * (limit.positive() - last) > ROUNDING * last:
        raise limit.error(
            f"{limit.name} is {limit.positive():g}, looser than the {last:g} that its history ends with; "
            f"log the change there, or take a {tighter} value"
        )
    return tuple(changes)


def _past_date(value: Value, today: dt.date) -> dt.date:
    date = value.date()
    # A calibration of today may carry tomorrow's date where the sun rises earlier.
    if date > today + dt.timedelta(days=1):
        raise value.error(f"{value.name} {date} lies in the future: today is {today}")
    return date


def _conditional(value: Value, context: Context) -> tuple[float, ...]:
    items = value.items()
    for item in items:
        if item.not_negative() > 1:
            raise item.error(f"{item.name} is a share and cannot exceed 1, but is {item.number():g}")
    if context.draft_tokens is not None and len(items) > context.draft_tokens:
        raise value.error(
            f"{value.name} has {len(items)} draft positions, but match.draft_tokens is {context.draft_tokens}"
        )
    return tuple(item.number() for item in items)

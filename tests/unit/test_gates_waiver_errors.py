"""Each mistake in a waiver: the line it is reported for, and what is said."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates.thresholds import load

TODAY = dt.date(2026, 12, 5)
GOOD = {
    "cell": "{category: coding, concurrency: 8}",
    "metric": "acceptance_length",
    "issue": '"#123"',
    "level": "1.9",
    "margin": "4%",
    "until": "2027-01-31",
    "reason": "the drafter is older than the template",
}
GATES = """\
schema: 1
match: {draft_tokens: 3}
estimator: pooled
gates:
  - {cell: {category: coding, concurrency: 8}, acceptance_length: {min: 2}, ttft_p95_s: {max: 0.2}}
  - {cell: {category: math}, acceptance_length: {min: 2}, user_tps: {min: 9}}
  - {cell: {category: qa, concurrency: 8}, acceptance_length: {min: 2}}
  - {cell: {category: qa, concurrency: 32}, acceptance_length: {min: 2}}
  - {cell: {isl: 1k, concurrency: 32}, output_tps: {min: 5100}}
  - {cell: {split: qualitative}, acceptance_rate: {min: 0.5}}
waivers:
"""
FIRST = GATES.count("\n") + 1
"""The line of the first waiver."""


def waiver(**changes: str | None) -> str:
    """One waiver, a key a line, with some keys changed, added or (None) left out."""
    keys = {**GOOD, **changes}
    lines = [f"{name}: {value}" for name, value in keys.items() if value is not None]
    return "".join(f"{'  - ' if number == 0 else '    '}{line}\n" for number, line in enumerate(lines))


def error_of(folder: Path, text: str) -> tuple[int, str]:
    """The line and the message for a file."""
    path = folder / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, today=TODAY)
    place, _, message = str(caught.value).removeprefix(f"{path.as_posix()}:").partition(": ")
    return int(place), message.replace(path.as_posix(), "bad.yaml")


KEYS = (
    (
        "level",
        None,
        None,
        "waivers[0] has no 'level'; write the acceptance_length that was measured when it was granted",
    ),
    ("reason", None, None, "waivers[0] has no 'reason'"),
    ("until", None, None, "waivers[0] has no 'until'"),
    ("issue", None, None, "waivers[0] has no 'issue'"),
    ("cell", None, None, "waivers[0] has no 'cell'"),
    ("metric", None, None, "waivers[0] has no 'metric'"),
    (
        "min",
        "1.9",
        "min",
        "unknown key 'min' in waivers[0]; choose from cell, metric, issue, level, margin, until, reason",
    ),
    ("metric", "acceptance", "metric", "unknown metric 'acceptance'; choose from acceptance_length, "),
    ("metric", "osl_mean", "metric", "unknown metric 'osl_mean'"),
    (
        "issue",
        "#123",
        "issue",
        'waivers[0].issue must be a string, but is nothing; quote it, as in "#123": unquoted, #',
    ),
    ("issue", "123", "issue", "waivers[0].issue must be a string, but is a number (123); quote it"),
    ("issue", "later", "issue", "waivers[0].issue must say where the cause is followed up"),
    ("reason", "''", "reason", "waivers[0].reason is empty"),
    ("level", ".nan", "level", "waivers[0].level must be a finite decimal number, but is a number (.nan)"),
    ("level", "-1", "level", "waivers[0].level must be above 0, but is -1"),
    ("level", "2.0", "level", "waivers[0].level 2 meets the min 2 in bad.yaml:5, so there is nothing to waive"),
    ("level", "2.1", "level", "waivers[0].level 2.1 meets the min 2 in bad.yaml:5, so there is nothing to waive"),
    (
        "level",
        "1.04",
        "level",
        "acceptance_length is never below 1, so a waiver of 1.04 with a margin of 4 % can never fail",
    ),
    ("margin", "0", "margin", "waivers[0].margin must lie between 0 and 1 (0.04 or 4%), but is 0"),
    ("margin", "100%", "margin", "waivers[0].margin must lie between 0 and 1 (0.04 or 4%), but is 100%"),
    ("until", "2026-12-04", "until", "the waiver for #123 expired on 2026-12-04 (today is 2026-12-05); remove it"),
    (
        "until",
        "2027-06-04",
        "until",
        "waivers[0].until 2027-06-04 is more than 180 days ahead (today is 2026-12-05); choose a day until 2027-06-03",
    ),
    ("until", "31.1.2027", "until", "waivers[0].until must be a date such as 2026-12-01, but is '31.1.2027'"),
    ("until", "2027-02-30", "until", "waivers[0].until must be a date such as 2026-12-01, but is '2027-02-30'"),
    (
        "cell",
        "{category: stem}",
        "cell",
        "waivers[0].cell {split: qualitative, category: stem} names no cell of this file with a gate on "
        "acceptance_length; it has them on {split: qualitative, category: coding, concurrency: 8}, {",
    ),
    (
        "cell",
        "{category: coding, concurrency: 9}",
        "cell",
        "waivers[0].cell {split: qualitative, category: coding, concur",
    ),
    ("cell", "{category: code}", "cell", "unknown waivers[0].cell.category 'code'; choose from coding, "),
    ("cell", "{category: coding, isl: 8k}", "cell", "no cell has both category and isl"),
    (
        "cell",
        "{category: qa}",
        "cell",
        "waivers[0].cell {split: qualitative, category: qa} takes in 2 cells with a gate on acceptance_length: "
        "{split: qualitative, category: qa, concurrency: 8}, {split: qualitative, category: qa, concurrency: 32}; a",
    ),
    (
        "cell",
        "{split: qualitative}",
        "cell",
        "waivers[0].cell {split: qualitative} takes in 4 cells with a gate on accep",
    ),
    (
        "cell",
        "{category: math}",
        "cell",
        "waivers[0].cell must name one cell with its concurrency, since a level is that of one cell, but is "
        "{split: qualitative, category: math}",
    ),
)


@pytest.mark.parametrize(("key", "value", "line", "message"), KEYS)
def test_mistake(tmp_path: Path, key: str, value: str | None, line: str | None, message: str) -> None:
    text = GATES + waiver(**{key: value})
    # The line of the key that is wrong, else that of the waiver.
    expected = FIRST
    if line is not None:
        lines = text.splitlines()[FIRST - 1 :]
        expected += next(number for number, each in enumerate(lines) if each.lstrip(" -").startswith(f"{line}:"))
    found, said = error_of(tmp_path, text)
    assert (found, said[: len(message)]) == (expected, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "ttft_p95_s", "level": "0.15"}, "waivers[0].level 0.15 meets the max 0.2 in bad.yaml:5"),
        (
            {"metric": "output_tps"},
            "waivers[0].cell {split: qualitative, category: coding, concurrency: 8} names no cell",
        ),
        (
            {"metric": "step_p50_s"},
            "waivers[0].cell {split: qualitative, category: coding, concurrency: 8} names no cell ",
        ),
        (
            {"metric": "output_tps", "cell": "{isl: 1k}", "level": "5000"},
            "waivers[0].cell must name one cell with its concurrency, since a level is that of one cell, but is "
            "{split: throughput, isl: 1k, concurrency: 32}",
        ),
    ],
)
def test_mistakes_that_only_fit_a_metric(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    assert error_of(tmp_path, GATES + waiver(**changes))[1].startswith(message)


def test_the_same_gate_is_waived_once(tmp_path: Path) -> None:
    text = GATES + waiver() + waiver(cell="{split: qualitative, category: coding}", level="1.8")
    line, message = error_of(tmp_path, text)
    assert line == FIRST + len(GOOD)
    assert message == (
        "acceptance_length of {split: qualitative, category: coding, concurrency: 8} is waived twice, first in "
        f"bad.yaml:{FIRST}; keep one"
    )


@pytest.mark.parametrize(
    ("text", "message"), [("waivers: 3\n", "waivers must be a list"), ("waivers:\n", "waivers must")]
)
def test_no_list(tmp_path: Path, text: str, message: str) -> None:
    assert error_of(tmp_path, GATES.replace("waivers:\n", text))[1].startswith(message)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"margin": None},
        {"until": "2026-12-05"},
        {"until": "2027-06-03"},
        {"issue": "owner/repo#7"},
        {"issue": "https://example.org/7"},
        {"issue": "ABC-7"},
        {"cell": "{category: math, concurrency: 4}"},
        {"cell": "{category: qa, concurrency: 8}"},
        {"metric": "ttft_p95_s", "level": "0.21"},
        {"metric": "acceptance_rate", "level": "0.4"},
        {"metric": "output_tps", "cell": "{isl: 1k, difficulty: mixed}", "level": "5000"},
    ],
)
def test_valid_twins_of_the_mistakes_load(tmp_path: Path, changes: dict[str, str | None]) -> None:
    path = tmp_path / "good.yaml"
    path.write_text(GATES + waiver(**changes))
    (found,) = load(path, today=TODAY)[0].waivers
    assert found.cell.names_one_cell

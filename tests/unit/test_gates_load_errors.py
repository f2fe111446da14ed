"""Each mistake in a thresholds file: the line it is reported for, and what is said.

The line that an error must name is the one that ends in ``# <--``.
"""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path

import pytest

from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates.thresholds import load

TODAY = dt.date(2026, 12, 5)
MARK = "# <--"


def error_of(folder: Path, text: str) -> str:
    """The message for ``text``, without its path and line, after checking both."""
    path = folder / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, today=TODAY)
    marked = [number for number, line in enumerate(text.splitlines(), start=1) if line.endswith(MARK)]
    prefix = f"{path.as_posix()}:{marked[0] if marked else 1}: "
    message = str(caught.value)
    assert message.startswith(prefix), message
    return message.removeprefix(prefix).replace(path.as_posix(), "bad.yaml")


def limit(body: str, metric: str = "acceptance_length", cell: str = "{category: coding, concurrency: 8}") -> str:
    """A file with one gate, whose limit is ``body``."""
    return f"""\
schema: 1
match: {{draft_tokens: 3}}
estimator: pooled
gates:
  - cell: {cell}
    {metric}: {body}  {MARK}
"""


def evidence(**changes: str | None) -> str:
    """A calibrated limit over several lines; ``changes`` mark the evidence keys they touch."""
    keys = {"starts": "6", "repeats": "2", "sd_start": "0.003", "sd_repeat": "0.002", "date": "2026-12-01"}
    lines = [f"        {k}: {v}" for k, v in keys.items() if k not in changes]
    lines += [f"        {k}: {v}  {MARK}" for k, v in changes.items() if v is not None]
    mark = f"  {MARK}" if None in changes.values() else ""
    return "\n".join(
        (
            "schema: 1",
            "match: {draft_tokens: 3}",
            "estimator: pooled",
            "gates:",
            "  - cell: {category: coding, concurrency: 8}",
            "    acceptance_length:",
            "      min: 1.92",
            "      reference: 2.0",
            "      margin: 4%",
            f"      evidence:{mark}",
            *lines,
        )
    )


STRUCTURE = {
    "empty": ("", "the file is empty"),
    "only a comment": ("# nothing\n", "the file is empty"),
    "a list": (f"- schema: 1  {MARK}\n", "the file must be a mapping, but is a list"),
    "a word": (f"schema  {MARK}\n", "the file must be a mapping, but is a string (schema)"),
    "tabs": (
        "schema: 1\ngates:\n\t- cell: {}  # <--\n",
        r"not valid YAML: found character '\t' that cannot start any token; indent with spaces, not tabs",
    ),
    "open bracket": ("schema: 1\nmatch: {engine: vllm\ngates: []  # <--\n", "not valid YAML: "),
    "two documents": ("schema: 1\n---  # <--\nschema: 1\n", "not valid YAML: but found another document"),
    "unknown alias": ("schema: *one  # <--\n", "not valid YAML: found undefined alias"),
    "no schema": (f"gates: []  {MARK}\n", "the file has no 'schema'"),
    "no gates": (f"schema: 1  {MARK}\n", "the file has no 'gates'"),
    "newer schema": ("schema: 2  # <--\nfuture: 3\n", "schema must be 1, but is 2"),
    "schema as text": ("schema: '1'  # <--\n", "schema must be a whole number, but is a string (1)"),
    "schema as truth": ("schema: true  # <--\n", "schema must be a whole number, but is a truth value (true)"),
    "unknown key": (
        "schema: 1\ngate: []  # <--\ngates: []\n",
        "unknown key 'gate' in the file; choose from schema, match, estimator, family, gates",
    ),
    "key that is a list": ("schema: 1\n[a, b]: 1  # <--\ngates: []\n", "a key of the file must be a plain word"),
    "merge key": (
        "schema: 1\nfamily: &f {alpha: 0.1}\n<<: *f  # <--\n",
        "unknown key '<<' in the file; choose from schema, match, estimator, family, gates",
    ),
    "duplicate key": (
        "schema: 1\ngates: []\ngates: []  # <--\n",
        "gates is given twice, first in line 2",
    ),
    "duplicate metric": (
        "schema: 1\ngates:\n  - cell: {}\n    user_tps: {min: 9}\n    user_tps: {min: 1}  # <--\n",
        "gates[0].user_tps is given twice, first in line 4",
    ),
    "duplicate limit": (limit("{min: 2, min: 1.5}"), "gates[0].acceptance_length.min is given twice, first in line 6"),
    "gates empty": (
        "schema: 1\ngates: []  # <--\n",
        "gates is empty: a thresholds file must gate something",
    ),
    "gates nothing": ("schema: 1\ngates:  # <--\n", "gates must be a list, but is nothing"),
    "gates a mapping": ("schema: 1\ngates: {cell: 1}  # <--\n", "gates must be a list, but is a mapping"),
    "gate a word": ("schema: 1\ngates:\n  - cell  # <--\n", "gates[0] must be a mapping, but is a string (cell)"),
    "gate without cell": ("schema: 1\ngates:\n  - user_tps: {min: 1}  # <--\n", "gates[0] has no 'cell'"),
    "gate without metric": (
        "schema: 1\ngates:\n  - cell: {}  # <--\n",
        "gates[0] has a cell but no metric, so it gates nothing",
    ),
    "custom tag": (
        "schema: 1\ngates: !secret []  # <--\n",
        "gates must be a list, but is a value with the tag !secret",
    ),
    "same gate twice": (
        "schema: 1\ngates:\n  - cell: {category: qa}\n    user_tps: {min: 9}\n"
        "  - cell: {split: qualitative, category: qa}\n    user_tps: {min: 1}  # <--\n",
        "user_tps of {split: qualitative, category: qa} is gated twice, first in bad.yaml:4",
    ),
    "estimator": (
        "schema: 1\nestimator: median  # <--\ngates: []\n",
        "unknown estimator 'median'; choose from request_mean, pooled",
    ),
    "no estimator": (
        f"schema: 1\ngates:\n  - cell: {{}}\n    acceptance_length: {{min: 2}}  {MARK}\n",
        "acceptance_length is gated, so the file must name its estimator: "
        "'estimator: request_mean' or 'estimator: pooled'",
    ),
    "family key": (
        "schema: 1\nfamily: {gamma: 0.1}  # <--\ngates: [{cell: {}, user_tps: {min: 1}}]\n",
        "unknown key 'gamma' in family; choose from alpha, beta",
    ),
    "alpha": (
        "schema: 1\nfamily: {alpha: 0.5}  # <--\ngates: [{cell: {}, user_tps: {min: 1}}]\n",
        "family.alpha must be below 0.5: it is a rate of wrong answers",
    ),
    "beta": (
        "schema: 1\nfamily: {beta: 0}  # <--\ngates: [{cell: {}, user_tps: {min: 1}}]\n",
        "family.beta must lie between 0 and 1 (0.04 or 4%), but is 0",
    ),
}

MATCH = {
    "key": (
        "{engin: vllm}",
        "unknown key 'engin' in match; choose from engine, model, method, draft_tokens, draft_model, dataset, "
        "osl, temperature, ignore_eos, engine_version, gpu, gpu_count",
    ),
    "no value": ("{engine: }", "match.engine must be a string, but is nothing"),
    "empty": ("{engine: ''}", "match.engine is empty"),
    "number": ("{model: 8}", "match.model must be a string, but is a number (8)"),
    "list": ("{gpu: [H100, H200]}", "match.gpu must be a string, but is a list"),
    "draft tokens": ("{draft_tokens: three}", "match.draft_tokens must be a whole number, but is a string (three)"),
    "osl 0": ("{osl: 0}", "match.osl must be at least 1, but is 0"),
    "temperature": ("{temperature: -1}", "match.temperature must not be negative, but is -1"),
    "ignore_eos": ("{ignore_eos: yes}", "match.ignore_eos must be true or false, but is a truth value (yes)"),
    "gpu count": ("{gpu_count: -1}", "match.gpu_count must be at least 0, but is -1"),
    "version as number": (
        "{engine_version: 0.24}",
        'match.engine_version must be a string, but is a number (0.24); write it as in ">=0.24" or "==0.24.*", quoted',
    ),
    "version without operator": (
        "{engine_version: '0.24'}",
        'match.engine_version \'0.24\' is not a version specifier; write it as in ">=0.24" or "==0.24.*", quoted',
    ),
}

CELL = {
    "key": (
        "{batch: 8}",
        "unknown key 'batch' in gates[0].cell; choose from split, category, isl, difficulty, concurrency",
    ),
    "split": ("{split: quality}", "unknown gates[0].cell.split 'quality'; choose from qualitative, throughput"),
    "category": (
        "{category: codng}",
        "unknown gates[0].cell.category 'codng'; choose from coding, humanities, math, multilingual, qa, rag, "
        "reasoning, roleplay, stem, summarization, writing, overall",
    ),
    "difficulty": (
        "{difficulty: hard}",
        "unknown gates[0].cell.difficulty 'hard'; choose from low_entropy, mixed, high_entropy",
    ),
    "isl": ("{isl: 1kk}", "unknown ISL '1kk'; choose from 1k, 2k, 8k, 16k, 32k"),
    "isl in tokens": ("{isl: 8000}", "gates[0].cell.isl must be a string, but is a number (8000)"),
    "concurrency 0": ("{concurrency: 0}", "gates[0].cell.concurrency must be at least 1, but is 0"),
    "octal": ("{concurrency: 010}", "gates[0].cell.concurrency must be a whole number, but is a number (010)"),
    "fraction": ("{concurrency: 1.5}", "gates[0].cell.concurrency must be a whole number, but is a number (1.5)"),
    "concurrencies": ("{concurrency: [1, 2]}", "gates[0].cell.concurrency must be a whole number, but is a list"),
    "qualitative isl": ("{split: qualitative, isl: 1k}", "the qualitative split has no isl"),
    "qualitative difficulty": ("{split: qualitative, difficulty: mixed}", "the qualitative split has no difficulty"),
    "throughput category": ("{split: throughput, category: qa}", "the throughput split has no category"),
    "both kinds": ("{category: qa, isl: 1k}", "no cell has both category and isl"),
    "not a mapping": ("qualitative", "gates[0].cell must be a mapping, but is a string (qualitative)"),
}

LIMIT = {
    "metric": (
        limit("{min: 2}", metric="acceptance"),
        "unknown metric 'acceptance'; choose from acceptance_length, decode_acceptance_length, ",
    ),
    "metric that is not gated": (limit("{min: 2}", metric="osl_mean"), "unknown metric 'osl_mean'; choose from "),
    "bare number": (limit("2.4"), "gates[0].acceptance_length must be a mapping, but is a number (2.4)"),
    "unknown key": (
        limit("{minimum: 2.4}"),
        "unknown key 'minimum' in gates[0].acceptance_length; choose from min, max, reference, margin, evidence, "
        "history",
    ),
    "no limit": (limit("{}"), "gates[0].acceptance_length has no 'min'"),
    "max of a floor": (
        limit("{max: 2.4}"),
        "higher acceptance_length is better, so its limit is a min, not a max",
    ),
    "min of a ceiling": (
        limit("{min: 0.2}", metric="ttft_p95_s"),
        "lower ttft_p95_s is better, so its limit is a max, not a min",
    ),
    "both": (
        limit("{min: 1, max: 2}"),
        "gates[0].acceptance_length has both min and max; higher is better, so keep min",
    ),
    "both of a ceiling": (
        limit("{min: 1, max: 2}", metric="e2e_p50_s"),
        "gates[0].e2e_p50_s has both min and max; lower is better, so keep max",
    ),
    "nan": (
        limit("{min: .nan}"),
        "gates[0].acceptance_length.min must be a finite decimal number, but is a number (.nan)",
    ),
    "infinite": (
        limit("{min: .inf}"),
        "gates[0].acceptance_length.min must be a finite decimal number, but is a number (.inf)",
    ),
    "overflow": (
        limit("{min: 1e999}"),
        "gates[0].acceptance_length.min must be a finite decimal number, but is a string (1e999)",
    ),
    "truth": (
        limit("{min: yes}"),
        "gates[0].acceptance_length.min must be a finite decimal number, but is a truth value (yes)",
    ),
    "sexagesimal": (
        limit("{min: 1:30}", metric="user_tps"),
        "gates[0].user_tps.min must be a finite decimal number, but is a number (1:30)",
    ),
    "leading zero": (
        limit("{min: 010}", metric="user_tps"),
        "gates[0].user_tps.min must be a finite decimal number, but is a number (010)",
    ),
    "quoted": (
        limit("{min: '2.4'}"),
        "gates[0].acceptance_length.min must be a finite decimal number, but is a string (2.4)",
    ),
    "negative": (limit("{min: -2}"), "gates[0].acceptance_length.min must be above 0, but is -2"),
    "zero": (limit("{min: 0}"), "gates[0].acceptance_length.min must be above 0, but is 0"),
    "cannot fail": (limit("{min: 0.9}"), "acceptance_length is never below 1, so a min of 0.9 can never fail"),
    "cannot fail, at 1": (limit("{min: 1.0}"), "acceptance_length is never below 1, so a min of 1 can never fail"),
    "cannot pass": (
        limit("{min: 4.1}"),
        "acceptance_length cannot exceed draft_tokens + 1 = 4, so a min of 4.1 can never pass",
    ),
    "rate above 1": (
        limit("{min: 1.1}", metric="acceptance_rate"),
        "acceptance_rate cannot exceed 1, so a min of 1.1 can never pass",
    ),
    "reference only": (
        limit("{min: 2, reference: 2.1}"),
        "gates[0].acceptance_length has 'reference' but no 'evidence'; a calibrated limit has both a reference and "
        "evidence, a hand-written one just its min or max",
    ),
    "margin only": (limit("{min: 2, margin: 4%}"), "gates[0].acceptance_length has 'margin' but no 'reference'; "),
    "evidence only": (
        limit("{min: 2, evidence: {}}"),
        "gates[0].acceptance_length has 'evidence' but no 'reference'; ",
    ),
    "calibrated without concurrency": (
        limit("{min: 1.92, reference: 2, margin: 4%, evidence: {}}", cell="{category: coding}"),
        "gates[0].acceptance_length is calibrated, so its cell must name one cell with its concurrency, "
        "but is {split: qualitative, category: coding}",
    ),
    "calibrated for many cells": (
        limit("{min: 1.92, reference: 2, margin: 4%, evidence: {}}", cell="{isl: 1k, concurrency: 8}"),
        "gates[0].acceptance_length is calibrated, so its cell must name one cell with its concurrency, ",
    ),
    "negative reference": (
        limit("{min: 1.92, reference: -2, evidence: {}}"),
        "gates[0].acceptance_length.reference must be above 0, but is -2",
    ),
    "margin of 100 %": (
        limit("{min: 1.92, reference: 2, margin: 100%, evidence: {}}"),
        "gates[0].acceptance_length.margin must lie between 0 and 1 (0.04 or 4%), but is 100%",
    ),
    "margin of 0": (
        limit("{min: 1.92, reference: 2, margin: 0, evidence: {}}"),
        "gates[0].acceptance_length.margin must lie between 0 and 1 (0.04 or 4%), but is 0",
    ),
    "margin in percent without sign": (
        limit("{min: 1.92, reference: 2, margin: 4, evidence: {}}"),
        "gates[0].acceptance_length.margin must lie between 0 and 1 (0.04 or 4%), but is 4",
    ),
    "margin in words": (
        limit("{min: 1.92, reference: 2, margin: small, evidence: {}}"),
        "gates[0].acceptance_length.margin must be a finite decimal number, but is a string (small)",
    ),
    "inconsistent": (
        limit("{min: 1.9, reference: 2, margin: 4%, evidence: {}}"),
        "gates[0].acceptance_length.min is 1.9, but reference 2 × (1 − margin 0.04) is 1.92; correct one of the three",
    ),
    "inconsistent with the default margin": (
        limit("{min: 1.92, reference: 2, evidence: {}}", cell="{category: overall, concurrency: 1}"),
        "gates[0].acceptance_length.min is 1.92, but reference 2 × (1 − margin 0.02) is 1.96; ",
    ),
    "inconsistent ceiling": (
        limit("{max: 1.84, reference: 2, margin: 8%, evidence: {}}", metric="ttft_p50_s"),
        "gates[0].ttft_p50_s.max is 1.84, but reference 2 × (1 + margin 0.08) is 2.16; ",
    ),
    "limit not beyond its reference": (
        limit("{min: 2, reference: 2, margin: 0.0005, evidence: {}}"),
        "gates[0].acceptance_length.min is 2, but reference 2 × (1 − margin 0.0005) is 1.999; ",
    ),
    "timing without noise": (
        limit(
            "{min: 95, reference: 100, evidence: {starts: 6, repeats: 1, sd_start: 0, date: 2026-12-01}}",
            metric="user_tps",
        ),
        "user_tps is a time or rate, and those never repeat exactly: give its sd",
    ),
}

EVIDENCE = {
    "unknown key": (
        evidence(stars="6"),
        "unknown key 'stars' in gates[0].acceptance_length.evidence; choose from starts, repeats, sd_start, "
        "sd_repeat, lowest, highest, date, run, engine_version, gpu, conditional, prompts",
    ),
    "no starts": (evidence(starts=None), "gates[0].acceptance_length.evidence has no 'starts'"),
    "no date": (evidence(date=None), "gates[0].acceptance_length.evidence has no 'date'"),
    "no sd_start": (evidence(sd_start=None), "gates[0].acceptance_length.evidence has no 'sd_start'"),
    "no sd_repeat": (evidence(sd_repeat=None), "gates[0].acceptance_length.evidence has no 'sd_repeat'"),
    "few starts": (
        evidence(starts="4"),
        "gates[0].acceptance_length.evidence.starts is 4, but calibration needs at least 5 engine starts: "
        "the spread between fewer is all but unknown",
    ),
    "no repeats": (
        evidence(repeats="0"),
        "gates[0].acceptance_length.evidence.repeats must be at least 1, but is 0",
    ),
    "negative sd": (
        evidence(sd_start="-0.1"),
        "gates[0].acceptance_length.evidence.sd_start must not be negative, but is -0.1",
    ),
    "sd in percent": (
        evidence(sd_repeat="2%"),
        "gates[0].acceptance_length.evidence.sd_repeat must be a finite decimal number, but is a string (2%)",
    ),
    "sd beyond the value": (
        evidence(sd_repeat="2.5"),
        "gates[0].acceptance_length.evidence.sd_repeat is 2.5 tokens/step, not less than the reference 2; "
        "it is a standard deviation in the metric's own unit",
    ),
    "date in the future": (
        evidence(date="2026-12-07"),
        "gates[0].acceptance_length.evidence.date 2026-12-07 lies in the future: today is 2026-12-05",
    ),
    "no such date": (
        evidence(date="2026-02-30"),
        "gates[0].acceptance_length.evidence.date must be a date such as 2026-12-01, but is '2026-02-30'",
    ),
    "date and time": (
        evidence(date="2026-12-01 10:00:00"),
        "gates[0].acceptance_length.evidence.date must be a date such as 2026-12-01, but is '2026-12-01 10:00:00'",
    ),
    "date as number": (
        evidence(date="20261201"),
        "gates[0].acceptance_length.evidence.date must be a date such as 2026-12-01, but is a number (20261201)",
    ),
    "conditional": (
        evidence(conditional="0.7"),
        "gates[0].acceptance_length.evidence.conditional must be a list, but is a number (0.7)",
    ),
    "conditional above 1": (
        evidence(conditional="[0.7, 1.2]"),
        "gates[0].acceptance_length.evidence.conditional[1] is a share and cannot exceed 1, but is 1.2",
    ),
    "conditional longer than the draft": (
        evidence(conditional="[0.7, 0.6, 0.5, 0.4]"),
        "gates[0].acceptance_length.evidence.conditional has 4 draft positions, but match.draft_tokens is 3",
    ),
    "lowest above the mean": (
        evidence(lowest="2.1"),
        "gates[0].acceptance_length.evidence.lowest is 2.1, above the reference 2, which is the mean of the runs; "
        "correct one of the two",
    ),
    "highest below the mean": (
        evidence(highest="1.9"),
        "gates[0].acceptance_length.evidence.highest is 1.9, below the reference 2, which is the mean of the runs; ",
    ),
    "engine version": (
        evidence(engine_version="0.24"),
        "gates[0].acceptance_length.evidence.engine_version must be a string, but is a number (0.24)",
    ),
    "gpu": (evidence(gpu="[]"), "gates[0].acceptance_length.evidence.gpu must be a string, but is a list"),
    "run": (evidence(run="7"), "gates[0].acceptance_length.evidence.run must be a string, but is a number (7)"),
}


def history(*entries: str, value: str = "min: 1.9", metric: str = "acceptance_length") -> str:
    """A hand-written limit with a history, which is a list of entries on a line each."""
    lines = "".join(f"        - {{{entry}\n" for entry in entries)
    return (
        "schema: 1\nestimator: pooled\ngates:\n  - cell: {category: coding}\n"
        f"    {metric}:\n      {value}\n      history:\n{lines}"
    )


HISTORY = {
    "not a list": (
        limit("{min: 2, history: {}}"),
        "gates[0].acceptance_length.history must be a list, but is a mapping",
    ),
    "no reason": (
        history(f"date: 2026-12-01, from: 2.0, to: 1.9}}  {MARK}"),
        "gates[0].acceptance_length.history[0] has no 'reason'",
    ),
    "empty reason": (
        history(f"date: 2026-12-01, from: 2.0, to: 1.9, reason: ' '}}  {MARK}"),
        "gates[0].acceptance_length.history[0].reason is empty",
    ),
    "unknown key": (
        history(f"date: 2026-12-01, from: 2.0, to: 1.9, reason: x, who: me}}  {MARK}"),
        "unknown key 'who' in gates[0].acceptance_length.history[0]; choose from date, from, to, reason, prompts",
    ),
    "future": (
        history(f"date: 2026-12-07, from: 2.0, to: 1.9, reason: x}}  {MARK}"),
        "gates[0].acceptance_length.history[0].date 2026-12-07 lies in the future: today is 2026-12-05",
    ),
    "out of order": (
        history(
            "date: 2026-12-02, from: 2.0, to: 1.95, reason: x}",
            f"date: 2026-12-01, from: 1.95, to: 1.9, reason: x}}  {MARK}",
        ),
        "gates[0].acceptance_length.history[1].date 2026-12-01 comes after 2026-12-02; write the oldest change first",
    ),
    "raised": (
        history(f"date: 2026-12-01, from: 1.8, to: 1.9, reason: x}}  {MARK}"),
        "gates[0].acceptance_length.history[0].to 1.9 is not looser than 1.8: the history holds what was lowered",
    ),
    "ceiling lowered": (
        history(f"date: 2026-12-01, from: 0.3, to: 0.2, reason: x}}  {MARK}", value="max: 0.2", metric="ttft_p50_s"),
        "gates[0].ttft_p50_s.history[0].to 0.2 is not looser than 0.3: the history holds what was raised",
    ),
    "lowered by hand": (
        history("date: 2026-12-01, from: 2.0, to: 1.9, reason: x}", value=f"min: 1.8  {MARK}"),
        "gates[0].acceptance_length.min is 1.8, looser than the 1.9 that its history ends with; log the change there, "
        "or take a higher value",
    ),
    "ceiling raised by hand": (
        history("date: 2026-12-01, from: 0.2, to: 0.3, reason: x}", value=f"max: 0.4  {MARK}", metric="ttft_p50_s"),
        "gates[0].ttft_p50_s.max is 0.4, looser than the 0.3 that its history ends with; log the change there, "
        "or take a lower value",
    ),
}


def _cases(table: dict[str, tuple[str, str]]) -> list[object]:
    return [pytest.param(text, message, id=name.replace(" ", "-")) for name, (text, message) in table.items()]


@pytest.mark.parametrize(("text", "message"), _cases(STRUCTURE | LIMIT | EVIDENCE))
def test_mistake_is_reported_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    assert error_of(tmp_path, text).startswith(message)


@pytest.mark.parametrize(("text", "message"), _cases(HISTORY))
def test_history(tmp_path: Path, text: str, message: str) -> None:
    assert error_of(tmp_path, text) == message


@pytest.mark.parametrize(("body", "message"), _cases(MATCH))
def test_match(tmp_path: Path, body: str, message: str) -> None:
    text = f"schema: 1\nmatch: {body}  {MARK}\ngates:\n  - cell: {{}}\n    user_tps: {{min: 1}}\n"
    assert error_of(tmp_path, text) == message


@pytest.mark.parametrize(("body", "message"), _cases(CELL))
def test_cell(tmp_path: Path, body: str, message: str) -> None:
    text = f"schema: 1\ngates:\n  - user_tps: {{min: 1}}\n    cell: {body}  {MARK}\n"
    assert error_of(tmp_path, text) == message


def test_evidence_of_single_repeats_has_no_sd_of_repeats(tmp_path: Path) -> None:
    text = evidence(sd_repeat="0.002").replace("repeats: 2", "repeats: 1")
    assert error_of(tmp_path, text) == (
        "gates[0].acceptance_length.evidence.sd_repeat cannot be known from 1 repeat per start"
    )


def test_valid_twin_of_the_evidence_cases_loads(tmp_path: Path) -> None:
    path = tmp_path / "good.yaml"
    path.write_text(evidence())
    assert load(path, today=TODAY)[0].gates[0].limits[0].evidence is not None


@pytest.mark.parametrize(
    ("raw", "line", "message"),
    [
        (b"schema: 1\nmatch: {model: \xff}\n", 2, "not UTF-8 text"),
        (b"schema: 1\n\nmatch: {model: \x01}\n", 3, "not valid YAML: a control character"),
        (b"[" * 5000, 1, "not a thresholds file: nested too deeply"),
    ],
    ids=["latin-1", "control character", "deep nesting"],
)
def test_bytes_that_are_no_yaml(tmp_path: Path, raw: bytes, line: int, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match=re.escape(f"bad.yaml:{line}: {message}")):
        load(path)


def test_reference_to_itself_ends(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("schema: 1\ngates: &loop\n  - *loop\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml:2: gates\[0\] must be a mapping, but is a list"):
        load(path)


@pytest.mark.parametrize(
    ("cell", "limit", "line", "message"),
    [
        ("{isl: 1k, difficulty: mixed, concurrency: 8}", "{min: 4}", 4, "must name these two and no concurrency"),
        ("{isl: 1k}", "{min: 4}", 4, "must name these two"),
        ("{category: coding}", "{min: 4}", 4, "must name these two"),
        ("{isl: 1k, difficulty: mixed}", "{max: 4}", 4, "its limit is a min, not a max"),
        ("{isl: 1k, difficulty: mixed}", "{min: 4.5}", 4, "must be a whole number"),
        ("{isl: 1k, difficulty: mixed}", "{min: 4, margin: 5%}", 4, "takes a min only, not 'margin'"),
    ],
)
def test_a_crossover_is_a_whole_number_of_streams_over_all_concurrencies(
    tmp_path: Path, cell: str, limit: str, line: int, message: str
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"schema: 1\ngates:\n  - cell: {cell}\n    crossover: {limit}\n")
    with pytest.raises(ConfigError, match=rf"a\.yaml:{line}: .*{message}"):
        load(path)
    path.write_text("schema: 1\ngates:\n  - cell: {isl: 1k, difficulty: mixed}\n    crossover: {min: 64}\n")
    (gate,) = load(path)[0].gates
    assert (gate.limits[0].metric, gate.limits[0].value) == ("crossover", 64.0)

"""Every option: parsing, precedence of its layers, and errors that say what is possible."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.errors import ConfigError
from pytest_speedbench.names import CATEGORIES, DIFFICULTIES, ISLS, SPLITS
from pytest_speedbench.options import BY_KEY, OPTIONS, Option, Resolved, resolve

# Per option, five different texts and what they mean: command line, environment, ini, profile, and spare.
VALUES: dict[str, list[tuple[str, Any]]] = {
    "engine": [("a", ("a",)), ("b,c", ("b", "c")), (" d , e ", ("d", "e")), ("f,f", ("f",))],
    "split": [(s, (s,)) for s in SPLITS] + [("throughput,qualitative", ("throughput", "qualitative"))],
    "category": [(c, (c,)) for c in (*CATEGORIES[:3], "overall")] + [("qa, rag", ("qa", "rag"))],
    "isl": [(i, (i,)) for i in ISLS] + [("8k,1k", ("8k", "1k"))],
    "difficulty": [(d, (d,)) for d in DIFFICULTIES] + [("mixed,low_entropy", ("mixed", "low_entropy"))],
    "starts": [("1", (1,)), ("3,5,8", (3, 5, 8)), ("6", (6,)), ("2, 2", (2,))],
    "concurrency": [("1", (1,)), ("8,2", (2, 8)), ("4, 4", (4,)), ("512", (512,))],
    "temperature": [("0", 0.0), ("0.7", 0.7), ("1e-1", 0.1), ("2", 2.0)],
    "seed": [("0", 0), ("1", 1), ("2", 2), ("3", 3)],
    "ignore-eos": [("true", True), ("no", False), ("ON", True), ("0", False)],
    "measure-only": [("true", True), ("no", False), ("ON", True), ("0", False)],
    "allow-partial": [("true", True), ("no", False), ("ON", True), ("0", False)],
    "completions": [("true", True), ("no", False), ("ON", True), ("0", False)],
    "prompt-order": [("round-robin", "round-robin"), ("stratified", "stratified")],
    "arrival-rate": [("0.5", 0.5), ("4", 4.0), ("1e2", 100.0), ("7.25", 7.25)],
    "arrivals": [("fixed", "fixed"), ("poisson", "poisson")],
    "lossless": [("true", True), ("no", False), ("ON", True), ("0", False)],
    "speedup": [("true", True), ("no", False), ("ON", True), ("0", False)],
    "inconclusive": [("fail", "fail"), ("warn", "warn"), ("rerun", "rerun")],
    "base-url": [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        (" https://gpu.example/engine/ ", "https://gpu.example/engine"),
        ("http://[::1]:30000/", "http://[::1]:30000"),
        ("http://host", "http://host"),
    ],
}
NUMBERS = [("1", 1), ("22", 22), ("333", 333), ("4444", 4444)]
TEXTS = [("one", "one"), (" two ", "two"), ("three/3", "three/3"), ("-4-", "-4-")]


def values_of(option: Option) -> list[tuple[Any, Any]]:
    """Four raw values and their meanings; where there are fewer, they repeat."""
    if option.repeatable:
        return [([text], (text,)) for text in ("a=1", "b=2", "c=3", "d=4")]
    numeric = option.name in (
        "draft-tokens",
        "tensor-parallel",
        "gpus",
        "prompts",
        "osl",
        "turn-timeout",
        "start-timeout",
        "repeats",
    )
    values: list[tuple[Any, Any]] = list(VALUES.get(option.name, NUMBERS if numeric else TEXTS))
    return (values * 4)[:4]


@pytest.fixture(params=OPTIONS, ids=lambda option: option.name)
def option(request: pytest.FixtureRequest) -> Option:
    chosen = request.param
    assert isinstance(chosen, Option)
    return chosen


def layers(option: Option, names: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of ``resolve`` with a value in each of ``names``, and the meaning of each."""
    raw = dict(zip(("command line", "environment", "ini", "profile"), values_of(option), strict=True))
    environment = raw["environment"][0]
    if option.repeatable:
        environment = "\n".join(environment)
    arguments = {
        "command_line": raw["command line"][0] if "command line" in names else ([] if option.repeatable else None),
        "environ": {option.env: environment} if "environment" in names else {},
        "ini": raw["ini"][0] if "ini" in names else ([] if option.repeatable else None),
        "profile": {option.key: raw["profile"][0]} if "profile" in names else {},
    }
    return arguments, {name: meaning for name, (_, meaning) in raw.items()}


ORDER = ("command line", "environment", "ini", "profile")


@pytest.mark.parametrize("first", range(5))
def test_precedence(option: Option, first: int) -> None:
    # The layers from ``first`` on are given; that one wins over all below it.
    arguments, meanings = layers(option, ORDER[first:])
    found = resolve(option, **arguments)
    if first == 4:
        assert found == Resolved(option.default, "default")
    else:
        origins = {"environment": f"environment {option.env}", "ini": f"ini {option.ini}"}
        assert found == Resolved(meanings[ORDER[first]], origins.get(ORDER[first], ORDER[first]))


@given(st.sampled_from(OPTIONS), st.sets(st.sampled_from(ORDER)))
def test_the_highest_of_any_layers_wins(option: Option, given_in: set[str]) -> None:
    arguments, meanings = layers(option, tuple(given_in))
    winner = next((name for name in ORDER if name in given_in), None)
    assert resolve(option, **arguments).value == (option.default if winner is None else meanings[winner])


def test_names_in_every_place(option: Option) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", option.name)
    assert option.key == option.name.replace("-", "_")
    assert option.ini == f"speedbench_{option.key}"
    assert option.env == f"SPEEDBENCH_{option.key.upper()}"
    assert BY_KEY[option.key] is option
    assert option.help


def test_no_name_is_given_twice() -> None:
    names = [name for option in OPTIONS for name in (option.name, *option.aliases)]
    assert len(set(names)) == len(names)
    assert BY_KEY["concurrency"].aliases == ("batch-size",)


def of(name: str, raw: Any) -> Any:
    return resolve(BY_KEY[name.replace("-", "_")], command_line=raw, environ={}, ini=None, profile={}).value


WRONG = [
    ("engine", ",", "--speedbench-engine is empty; give a comma-separated list or drop the option"),
    ("model", "  ", "--speedbench-model is empty; give a value or drop the option"),
    ("draft-tokens", "0", "--speedbench-draft-tokens=0: give a whole number of at least 1"),
    ("draft-tokens", "-3", "--speedbench-draft-tokens=-3: give a whole number of at least 1"),
    ("draft-tokens", "2.5", "--speedbench-draft-tokens=2.5: give a whole number of at least 1"),
    ("draft-tokens", "two", "--speedbench-draft-tokens=two: give a whole number of at least 1"),
    ("prompts", "9" * 5000, f"--speedbench-prompts={'9' * 5000}: give a whole number of at least 1"),
    ("seed", "-1", "--speedbench-seed=-1: give a whole number of at least 0"),
    ("concurrency", "8,", "--speedbench-concurrency=: give a whole number of at least 1"),
    ("concurrency", "8,0", "--speedbench-concurrency=0: give a whole number of at least 1"),
    ("temperature", "-0.1", "--speedbench-temperature=-0.1: give a number of at least 0 (0 is greedy)"),
    ("temperature", "nan", "--speedbench-temperature=nan: give a number of at least 0 (0 is greedy)"),
    ("temperature", "inf", "--speedbench-temperature=inf: give a number of at least 0 (0 is greedy)"),
    ("temperature", "warm", "--speedbench-temperature=warm: give a number of at least 0 (0 is greedy)"),
    ("ignore-eos", "maybe", "--speedbench-ignore-eos=maybe: give true or false"),
    ("inconclusive", "retry", "--speedbench-inconclusive=retry: choose from fail, warn, rerun"),
    ("split", "both", "--speedbench-split=both: choose from qualitative, throughput"),
    ("split", ",", "--speedbench-split=,: choose from qualitative, throughput"),
    ("isl", "1k,3k", "--speedbench-isl=1k,3k: choose from 1k, 2k, 8k, 16k, 32k"),
    ("difficulty", "low", "--speedbench-difficulty=low: choose from low_entropy, mixed, high_entropy"),
    ("category", "code", f"--speedbench-category=code: choose from {', '.join(CATEGORIES)}, overall"),
    ("tensor-parallel", "0", "--speedbench-tensor-parallel=0: give a whole number of at least 1"),
    ("tensor-parallel", "all", "--speedbench-tensor-parallel=all: give a whole number of at least 1"),
    ("base-url", " ", "--speedbench-base-url is empty; give a value or drop the option"),
    *(
        ("base-url", address, f"--speedbench-base-url={address}: give an address such as http://127.0.0.1:8000")
        for address in (
            "127.0.0.1:8000",
            "localhost",
            "ftp://127.0.0.1",
            "http:/127.0.0.1",
            "http://",
            "https:///v1",
            "http://:8000",
            "http://host:port",
            "http://host:70000",
            "http://[::1",
            "http://a host",
        )
    ),
    ("osl", {"a": 1}, "--speedbench-osl: give a single value or a flat list, not {'a': 1}"),
    ("concurrency", [[1]], "--speedbench-concurrency: give a single value or a flat list, not [[1]]"),
]


@pytest.mark.parametrize(("name", "raw", "message"), WRONG)
def test_errors_list_what_is_possible(name: str, raw: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        of(name, raw)


def test_errors_from_elsewhere_say_so() -> None:
    seed = BY_KEY["seed"]
    base: dict[str, Any] = {"command_line": None, "environ": {}, "ini": None, "profile": {}}
    for where, name in (
        ({"environ": {"SPEEDBENCH_SEED": "x"}}, "environment SPEEDBENCH_SEED"),
        ({"ini": "x"}, "ini speedbench_seed"),
        ({"profile": {"seed": "x"}}, "profile"),
    ):
        with pytest.raises(ConfigError, match=rf"^--speedbench-seed=x: .* \(from {name}\)$"):
            resolve(seed, **(base | where))


def test_a_wrong_value_below_the_winner_is_not_read() -> None:
    found = resolve(BY_KEY["seed"], command_line="1", environ={"SPEEDBENCH_SEED": "x"}, ini="y", profile={"seed": "z"})
    assert found == Resolved(1, "command line")


def test_an_unset_shell_variable_on_the_command_line_is_an_error(option: Option) -> None:
    # pytest --speedbench-model=$MODEL must not fall back to another model when MODEL is not set.
    if not option.is_flag:
        with pytest.raises(ConfigError, match=f"--speedbench-{option.name}"):
            of(option.name, [""] if option.repeatable else "")


def test_empty_elsewhere_is_not_given(option: Option) -> None:
    found = resolve(option, command_line=None, environ={option.env: ""}, ini="", profile={})
    assert found == Resolved(option.default, "default")


@pytest.mark.parametrize(
    ("name", "raw", "value"),
    [
        ("concurrency", [8, 2], (2, 8)),
        ("concurrency", 8, (8,)),
        ("category", ["qa", "rag"], ("qa", "rag")),
        ("osl", 128, 128),
        ("temperature", 0, 0.0),
        ("temperature", 0.5, 0.5),
        ("ignore-eos", True, True),
        ("measure-only", False, False),
        ("engine-arg", ["a=1", "b=2"], ("a=1", "b=2")),
        ("engine-arg", "a=1\nb=2\n", ("a=1", "b=2")),
    ],
)
def test_values_that_are_not_text(name: str, raw: Any, value: Any) -> None:
    assert of(name, raw) == value


def test_defaults_are_valid_values_themselves() -> None:
    for option in OPTIONS:
        if option.default not in (None, ()):
            assert of(option.name, str(option.default)) == option.default

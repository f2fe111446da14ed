"""Options that a profile gives to one engine."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest

from pytest_speedbench.engines.profile_options import environment, wrong_options

ALLOWED = ("python", "executable", "served_model", "port", "args", "env", "params", "config", "speculation", "threads")
RIGHT = {
    "python": "/opt/python",
    "executable": "serve",
    "served_model": "a name",
    "port": 8000,
    "args": ["--flag", 1],
    "env": {"A": 1},
    "params": {},
    "config": {"a": {"b": 1}},
    "speculation": {"x": None},
    "threads": 4,
}


def wrong(options: Mapping[str, Any], *allowed: str, **numbers: int) -> list[str]:
    return wrong_options("engine", options, allowed or ALLOWED, numbers)


def test_nothing_is_wrong() -> None:
    assert wrong(RIGHT, threads=8) == []
    assert wrong({}, threads=8) == []
    assert wrong_options("engine", RIGHT, ALLOWED) == []


def test_unknown_options_are_one_line() -> None:
    assert wrong({"prot": 1, "Python": "x", "port": 1}, "python", "port") == [
        "engine has no option Python, prot; it has python, port"
    ]


@pytest.mark.parametrize("number", [1, 65535, None])
def test_ports(number: object) -> None:
    assert wrong({"port": number}) == []


@pytest.mark.parametrize("number", [0, -1, 65536, "8000", 8000.0, True, [8000]])
def test_no_ports(number: object) -> None:
    assert wrong({"port": number}) == [f"engine: option port must be a whole number from 1 to 65535, but is {number!r}"]


@pytest.mark.parametrize(("number", "allowed"), [(1, True), (8, True), (9, False), (0, False), (True, False)])
def test_numbers_of_an_engine(number: object, allowed: bool) -> None:
    problems = [f"engine: option threads must be a whole number from 1 to 8, but is {number!r}"]
    assert wrong({"threads": number}, threads=8) == ([] if allowed else problems)
    # Without the number's name nothing is known of it, and the port is still looked at.
    assert wrong({"threads": number, "port": 0}) == [
        "engine: option port must be a whole number from 1 to 65535, but is 0"
    ]


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("python", 3, "a path"),
        ("python", None, "a path"),
        ("executable", ["serve"], "a path"),
        ("served_model", 3, "a name"),
        ("args", "--flag", "a list"),
        ("args", {"--flag": 1}, "a list"),
        ("env", ["A=1"], "a mapping"),
        ("params", "x", "a mapping"),
        ("config", [], "a mapping"),
        ("speculation", 5, "a mapping"),
    ],
)
def test_values_of_the_wrong_kind(name: str, value: object, kind: str) -> None:
    assert wrong({name: value}) == [f"engine: option {name} must be {kind}, but is {value!r}"]


def test_an_option_that_the_engine_does_not_have_is_only_unknown() -> None:
    assert wrong({"config": 5}, "port") == ["engine has no option config; it has port"]


def test_everything_wrong_is_said_at_once() -> None:
    assert wrong({"x": 1, "port": 0, "threads": 99, "args": 1, "python": 2}, threads=8) == [
        f"engine has no option x; it has {', '.join(ALLOWED)}",
        "engine: option port must be a whole number from 1 to 65535, but is 0",
        "engine: option threads must be a whole number from 1 to 8, but is 99",
        "engine: option python must be a path, but is 2",
        "engine: option args must be a list, but is 1",
    ]


def test_the_environment_is_text() -> None:
    assert environment({"env": {"A": "x", "B": 1, "C": 0.5, 4: ""}}) == {"A": "x", "B": "1", "C": "0.5", "4": ""}
    assert environment({"env": MappingProxyType({"A": "x"})}) == {"A": "x"}


@pytest.mark.parametrize("options", [{}, {"env": {}}, {"env": None}, {"env": ["A=1"]}, {"env": "A=1"}])
def test_no_environment(options: dict[str, Any]) -> None:
    assert environment(options) == {}


def test_the_environment_is_a_copy() -> None:
    own = {"A": "x"}
    environment({"env": own})["A"] = "y"
    assert own == {"A": "x"}

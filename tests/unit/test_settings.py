"""Options and profile file resolved into Settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_speedbench.cells import DEFAULT_CONCURRENCY, Axes
from pytest_speedbench.engines import embedded, registry
from pytest_speedbench.engines.base import Sampling, Speculation
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.settings import Origin, Settings, build

MODEL = {"model": "org/model", "method": "none"}
CHOICES = ", ".join(registry.NAMES)


class Place:
    """A rootdir, a folder to run in, and what is written where."""

    def __init__(self, tmp_path: Path) -> None:
        self.root = tmp_path / "root"
        self.here = tmp_path / "root" / "here"
        self.here.mkdir(parents=True)

    def build(
        self,
        typed: Mapping[str, Any] | None = None,
        *,
        ini: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
        profile: str | None = None,
    ) -> Settings:
        """``typed`` and ``ini`` go by option key; ``profile`` is the text of speedbench.yaml."""
        if profile is not None:
            (self.root / "speedbench.yaml").write_text(profile, encoding="utf-8")
        line = {"engine": "llamacpp"} | dict(typed or {})
        return build(
            command_line=lambda option: line.get(option.key),
            ini=lambda option: (ini or {}).get(option.key),
            environ=environ or {},
            rootdir=self.root,
            invocation_dir=self.here,
        )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def refused(place: Place, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        place.build(*args, **kwargs)
    return str(caught.value)


# Defaults


def test_defaults_with_a_model(place: Place) -> None:
    settings = place.build(MODEL)
    (profile,) = settings.profiles
    assert (profile.label, profile.engine, profile.model) == ("llamacpp", "llamacpp", "org/model")
    assert (profile.tokenizer, profile.max_model_len, dict(profile.options)) == (None, None, {})
    assert (profile.tensor_parallel, profile.base_url) == (1, None)
    assert profile.speculation == Speculation("none", 0, None)
    assert not profile.speculation.active
    assert settings.axes == Axes()
    assert settings.default_concurrency == DEFAULT_CONCURRENCY
    assert settings.dataset == "nvidia/SPEED-Bench"
    assert settings.prompts is None
    assert settings.sampling == Sampling(osl_cap=4096, temperature=0.0, seed=0, ignore_eos=False)
    assert (settings.thresholds, settings.thresholds_origin) == (place.root / "thresholds", "default")
    assert (settings.measure_only, settings.inconclusive) == (False, "fail")
    assert (settings.turn_timeout_s, settings.start_timeout_s) == (600.0, 900.0)
    assert settings.artifact == place.root / "speedbench.json"
    assert settings.junit is None
    assert not settings.embedded


def test_embedded_defaults_with_llamacpp_alone(place: Place) -> None:
    settings = place.build()
    (profile,) = settings.profiles
    assert settings.embedded
    assert profile.model == embedded.MODEL_FILE
    assert profile.speculation == Speculation("draft", 4, None)
    assert dict(profile.options) == embedded.engine_options("draft")
    assert settings.prompts == 4
    assert settings.dataset == "mini"
    assert settings.sampling.osl_cap == 32
    assert settings.default_concurrency == embedded.CONCURRENCY
    assert settings.origins == (Origin("engine", "llamacpp", "command line"),)
    assert (settings.thresholds, settings.thresholds_origin) == (
        embedded.thresholds_folder(),
        "shipped with the plugin",
    )


@pytest.mark.parametrize(
    ("typed", "speculation"),
    [
        ({"method": "none"}, Speculation("none", 0)),
        ({"draft_tokens": "2"}, Speculation("draft", 2)),
        ({"method": "ngram"}, Speculation("ngram", 8)),
        ({"method": "ngram", "draft_tokens": "3"}, Speculation("ngram", 3)),
        ({"method": "none", "draft_tokens": "3"}, Speculation("none", 0)),
        ({"method": "draft", "draft_model": "org/draft"}, Speculation("draft", 4, "org/draft")),
        ({"method": "none", "draft_model": "org/draft"}, Speculation("none", 0, None)),
    ],
)
def test_embedded_defaults_give_way_one_by_one(place: Place, typed: dict[str, str], speculation: Speculation) -> None:
    settings = place.build(typed)
    assert settings.embedded
    assert settings.profiles[0].speculation == speculation
    assert settings.dataset == "mini"


@pytest.mark.parametrize("where", ["typed", "ini", "environ", "profile"])
def test_a_model_from_anywhere_ends_the_embedded_defaults(place: Place, where: str) -> None:
    everywhere: dict[str, dict[str, Any]] = {
        "typed": {"typed": {"model": "org/m"}},
        "ini": {"ini": {"model": "org/m"}},
        "environ": {"environ": {"SPEEDBENCH_MODEL": "org/m"}},
        "profile": {"profile": "model: org/m\n"},
    }
    settings = place.build(**everywhere[where])
    assert not settings.embedded
    assert settings.profiles[0].model == "org/m"
    assert settings.sampling.osl_cap == 4096
    assert settings.dataset == "nvidia/SPEED-Bench"
    assert settings.thresholds_origin == "default"


def test_the_quick_start_changes_its_own_drafter_only(place: Place) -> None:
    def options(profile: str = "", **typed: str) -> dict[str, Any]:
        return dict(place.build(typed, profile=profile or "seed: 0\n").profiles[0].options)

    assert options() == {"draft_cache_type": "q4_0"}
    assert options(method="ngram") == {}
    assert options(model="org/m", method="draft", draft_tokens="2", draft_model="org/d") == {}
    assert options(draft_model="org/d") == {}
    assert options("engines: {llamacpp: {draft_cache_type: f16}}\n") == {"draft_cache_type": "f16"}


def test_a_model_of_your_own_does_not_silently_draft_for_itself(place: Place) -> None:
    with pytest.raises(ConfigError, match="method draft needs a drafter"):
        place.build({"model": "org/m", "method": "draft", "draft_tokens": "2"})


def test_own_thresholds_win_over_the_shipped_ones(place: Place) -> None:
    (place.root / "thresholds").mkdir()
    settings = place.build()
    assert (settings.thresholds, settings.thresholds_origin) == (place.root / "thresholds", "default")
    settings = place.build({"thresholds": "mine.yaml"})
    assert (settings.thresholds, settings.thresholds_origin) == (place.here / "mine.yaml", "command line")


# Engines and methods


def test_no_engine(place: Place) -> None:
    assert refused(place, {"engine": None}) == f"no engine was named; give --speedbench-engine, one of {CHOICES}"


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("llama", f"unknown engine 'llama'; choose from {CHOICES}"),
        ("VLLM", f"unknown engine 'VLLM'; choose from {CHOICES}"),
        ("llamacpp,tensorrt", f"unknown engine 'tensorrt'; choose from {CHOICES}"),
    ],
)
def test_unknown_engines(place: Place, engine: str, message: str) -> None:
    assert refused(place, {"engine": engine}) == message


def test_an_engine_from_ini_or_environment_counts(place: Place) -> None:
    assert place.build({"engine": None}, ini={"engine": "llamacpp"}).profiles[0].engine == "llamacpp"
    assert place.build({"engine": None}, environ={"SPEEDBENCH_ENGINE": "llamacpp"}).profiles[0].engine == "llamacpp"


def test_method_needs_draft_tokens(place: Place) -> None:
    typed = {"model": "org/m", "method": "ngram"}
    assert refused(place, typed) == "method ngram needs a number of draft tokens; give --speedbench-draft-tokens=K"
    assert place.build(typed | {"draft_tokens": "5"}).profiles[0].speculation == Speculation("ngram", 5)


def test_unknown_method_lists_the_engines_own(place: Place) -> None:
    expected = f"llamacpp has no method 'medusa'; choose from {', '.join(registry.methods('llamacpp'))}"
    assert "none, ngram, " in expected
    assert refused(place, {"method": "medusa"}) == expected
    assert refused(place, MODEL | {"method": "medusa"}) == expected


def test_an_empty_model_is_not_the_default_one(place: Place) -> None:
    assert refused(place, {"model": ""}).startswith("--speedbench-model is empty")


def test_engine_args_add_to_those_of_the_profile(place: Place) -> None:
    profile = "model: org/m\nengines: {llamacpp: {args: [n_batch=8], threads: 2}}\n"
    assert dict(place.build(profile=profile).profiles[0].options) == {"args": ["n_batch=8"], "threads": 2}
    settings = place.build({"engine_arg": ["n_ubatch=4", "x=y=z"]}, profile=profile)
    assert dict(settings.profiles[0].options) == {"args": ["n_batch=8", "n_ubatch=4", "x=y=z"], "threads": 2}
    assert refused(place, {"engine_arg": ["a=1"]}, profile="engines: {llamacpp: {args: n_batch=8}}\n") == (
        "speedbench.yaml: engines.llamacpp.args must be a list, but is 'n_batch=8'"
    )


# Axes, sampling


def test_axes_and_sampling(place: Place) -> None:
    typed = {
        "split": "throughput",
        "isl": "8k,1k",
        "difficulty": "mixed",
        "concurrency": "8,2",
        "osl": "16",
        "temperature": "0.5",
        "seed": "7",
        "ignore_eos": "true",
        "prompts": "12",
        "measure_only": "true",
        "inconclusive": "warn",
        "turn_timeout": "5",
        "start_timeout": "6",
    }
    settings = place.build(typed)
    assert settings.axes == Axes(("throughput",), (), ("8k", "1k"), ("mixed",), (2, 8))
    assert settings.sampling == Sampling(osl_cap=16, temperature=0.5, seed=7, ignore_eos=True)
    assert (settings.prompts, settings.seed) == (12, 7)
    assert (settings.measure_only, settings.inconclusive) == (True, "warn")
    assert (settings.turn_timeout_s, settings.start_timeout_s) == (5.0, 6.0)


def test_origins_and_the_options_to_repeat(place: Place) -> None:
    settings = place.build(
        {"category": "qa,rag", "ignore_eos": "true", "osl": "16", "artifact": "a.json"},
        ini={"seed": "3"},
        environ={"SPEEDBENCH_TEMPERATURE": "0.5"},
        profile="turn_timeout: 9\n",
    )
    assert set(settings.origins) == {
        Origin("engine", "llamacpp", "command line"),
        Origin("category", "qa,rag", "command line"),
        Origin("osl", "16", "command line"),
        Origin("ignore-eos", "True", "command line"),
        Origin("artifact", "a.json", "command line"),
        Origin("seed", "3", "ini speedbench_seed"),
        Origin("temperature", "0.5", "environment SPEEDBENCH_TEMPERATURE"),
        Origin("turn-timeout", "9", "profile"),
    }
    assert settings.reproduce_options == ("--speedbench-osl=16", "--speedbench-ignore-eos")


# Paths


@pytest.mark.parametrize("key", ["artifact", "thresholds", "junit"])
def test_relative_paths_count_from_where_they_were_written(place: Place, key: str) -> None:
    assert getattr(place.build({key: "x/y"}), key) == place.here / "x/y"
    assert getattr(place.build(environ={f"SPEEDBENCH_{key.upper()}": "x/y"}), key) == place.here / "x/y"
    assert getattr(place.build(ini={key: "x/y"}), key) == place.root / "x/y"
    assert getattr(place.build({key: "/abs/y"}), key) == Path("/abs/y")


def test_relative_thresholds_of_a_profile(place: Place) -> None:
    assert place.build(profile="thresholds: x/y\n").thresholds == place.root / "x/y"


@pytest.mark.parametrize("key", ["model", "draft_model", "tokenizer", "dataset"])
def test_files_and_folders_become_absolute(place: Place, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")  # nothing may depend on it
    for folder in (place.root, place.here):
        (folder / "thing").mkdir()

    def found(**given: Any) -> str | None:
        settings = place.build(**given)
        profile = settings.profiles[0]
        return {
            "model": profile.model,
            "draft_model": profile.speculation.draft_model,
            "tokenizer": profile.tokenizer,
            "dataset": settings.dataset,
        }[key]

    base = {"model": "org/m", "method": "draft", "draft_tokens": "2", "draft_model": "org/d"}
    rest = {k: v for k, v in base.items() if k != key}
    assert found(typed=base | {key: "thing"}) == str(place.here / "thing")
    assert found(typed=rest, environ={f"SPEEDBENCH_{key.upper()}": "thing"}) == str(place.here / "thing")
    assert found(typed=rest, ini={key: "thing"}) == str(place.root / "thing")
    # What is not there is a name: a hub id, or one that the engine knows.
    assert found(typed=base | {key: "org/name"}) == "org/name"
    profile = (
        "model: thing\n" if key == "model" else f"model: org/m\n{key}: thing\n" if key != "draft_model" else ""
    ) + "speculation: {method: draft, draft_tokens: 2, draft_model: thing}\n"
    assert found(profile=profile) == str(place.root / "thing")


def test_the_bundled_data_are_not_a_folder_of_that_name(place: Place) -> None:
    (place.here / "mini").mkdir()
    assert place.build({"dataset": "mini"}).dataset == "mini"
    assert place.build({"dataset": "./mini"}).dataset == str(place.here / "mini")


# The profile file

FULL = """\
model: org/target
tokenizer: org/tokenizer
max_model_len: 40960
speculation: {method: draft, draft_model: org/draft, draft_tokens: 3}
split: [qualitative]
category: [qa, rag]
concurrency: [8, 2]
dataset: mini
osl: 64
temperature: 0.5
seed: 4
ignore_eos: true
engines:
  llamacpp: {python: /opt/python, threads: 16, env: {A: B}}
"""


def test_a_full_profile(place: Place) -> None:
    settings = place.build(profile=FULL)
    (profile,) = settings.profiles
    assert (profile.model, profile.tokenizer, profile.max_model_len) == ("org/target", "org/tokenizer", 40960)
    assert profile.speculation == Speculation("draft", 3, "org/draft")
    assert dict(profile.options) == {"python": "/opt/python", "threads": 16, "env": {"A": "B"}}
    assert settings.axes == Axes(("qualitative",), ("qa", "rag"), (), (), (2, 8))
    assert settings.sampling == Sampling(osl_cap=64, temperature=0.5, seed=4, ignore_eos=True)
    assert not settings.embedded


def test_everything_wins_over_the_profile(place: Place) -> None:
    settings = place.build({"osl": "1"}, ini={"seed": "2"}, environ={"SPEEDBENCH_DRAFT_TOKENS": "9"}, profile=FULL)
    assert (settings.sampling.osl_cap, settings.sampling.seed) == (1, 2)
    assert settings.profiles[0].speculation.draft_tokens == 9


@pytest.mark.parametrize(("how", "base"), [("typed", "here"), ("environ", "here"), ("ini", "root")])
def test_a_named_profile_is_found_from_where_it_was_named(place: Place, how: str, base: str) -> None:
    (getattr(place, base) / "own.yaml").write_text("model: org/own\n")
    (place.root / "speedbench.yaml").write_text("model: org/default\n")
    given: dict[str, Any] = {
        "typed": {"typed": {"profile": "own.yaml"}},
        "environ": {"environ": {"SPEEDBENCH_PROFILE": "own.yaml"}},
        "ini": {"ini": {"profile": "own.yaml"}},
    }[how]
    assert place.build(**given).profiles[0].model == "org/own"
    assert place.build().profiles[0].model == "org/default"


def test_a_named_profile_must_exist(place: Place) -> None:
    message = refused(place, {"profile": "gone.yaml"})
    assert message == f"{place.here}/gone.yaml: cannot be read: No such file or directory"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("model: a\nmodle: b\n", 2, "unknown key 'modle' in the file; choose from model, tokenizer, "),
        ("model: a\nengine: vllm\n", 2, "unknown key 'engine'"),
        ("model: a\nmodel: b\n", 2, "model is given twice, first in line 1"),
        ("- model\n", 1, "the file must be a mapping, but is a list"),
        ("", 1, "the file is empty"),
        ("model: [\n", 2, "not valid YAML"),
        ("\nmax_model_len: many\n", 2, "max_model_len must be a whole number"),
        ("model: a\nosl: many\n", 2, "--speedbench-osl=many: give a whole number of at least 1"),
        ("osl: {a: 1}\n", 1, "--speedbench-osl: give a single value or a flat list, not {'a': 1}"),
        ("\n\nisl: [1k, 3k]\n", 3, "--speedbench-isl=1k,3k: choose from 1k, 2k, 8k, 16k, 32k"),
        ("model: ''\n", 1, "--speedbench-model is empty"),
        ("speculation:\n  draft_tokens: 3\n", 1, "speculation has no 'method'"),
        ("speculation:\n  method: draft\n  draft_tokens: 0\n", 3, "--speedbench-draft-tokens=0: give a whole number"),
        ("speculation: {method: draft, k: 3}\n", 1, "unknown key 'k' in speculation; choose from method, draft_model"),
        ("method: draft\n", 1, "unknown key 'method'"),
        ("model: a\nengines:\n  vlm: {}\n", 3, f"unknown key 'vlm' in engines; choose from {CHOICES}"),
        ("model: a\nengines:\n  vllm:\n    tensor_parallel: 0\n", 4, "--speedbench-tensor-parallel=0: give a whole"),
        ("model: a\nengines:\n  vllm:\n\n    model: ''\n", 5, "--speedbench-model is empty"),
        ("engines:\n  vllm:\n    tokenizer: {a: 1}\n", 3, "--speedbench-tokenizer: give a single value or a flat"),
        ("tensor_parallel: many\n", 1, "--speedbench-tensor-parallel=many: give a whole number of at least 1"),
        ("model: a\nbase_url: http://127.0.0.1:8000\n", 2, "unknown key 'base_url'"),
        ("engines:\n  llamacpp: [a]\n", 2, "engines.llamacpp must be a mapping, but is a list"),
        ("seed: !!python/object:os.system 1\n", 1, "seed"),
    ],
)
def test_mistakes_in_a_profile_name_file_and_line(place: Place, text: str, line: int, message: str) -> None:
    found = refused(place, profile=text)
    where, _, rest = found.partition(": ")
    assert where == f"{place.root}/speedbench.yaml:{line}"
    assert rest.startswith(message)


# The part of one engine

PARTS = """\
model: org/target
tokenizer: org/tokenizer
tensor_parallel: 2
speculation: {method: ngram, draft_model: org/draft, draft_tokens: 3}
engines:
  llamacpp: {model: target.gguf, draft_model: draft.gguf, tensor_parallel: 1, threads: 4}
  vllm: {tokenizer: org/other, args: [--max-num-seqs=8]}
"""
THREE = {"engine": "llamacpp,vllm,sglang"}


def parts_of(settings: Settings) -> dict[str, tuple[str, str | None, str | None, int]]:
    return {p.label: (p.model, p.tokenizer, p.speculation.draft_model, p.tensor_parallel) for p in settings.profiles}


def test_the_part_of_an_engine_comes_before_the_rest_of_the_file(place: Place) -> None:
    settings = place.build(THREE, profile=PARTS)
    assert parts_of(settings) == {
        "llamacpp": ("target.gguf", "org/tokenizer", "draft.gguf", 1),
        "vllm": ("org/target", "org/other", "org/draft", 2),
        "sglang": ("org/target", "org/tokenizer", "org/draft", 2),
    }
    # These are no options of the engine module.
    assert [dict(profile.options) for profile in settings.profiles] == [
        {"threads": 4},
        {"args": ["--max-num-seqs=8"]},
        {},
    ]


@pytest.mark.parametrize("how", ["typed", "environ", "ini"])
def test_what_is_typed_holds_for_every_engine(place: Place, how: str) -> None:
    values = {"model": "org/typed", "tokenizer": "org/typed", "draft_model": "org/typed", "tensor_parallel": "4"}
    given: dict[str, Any] = {
        "typed": {"typed": THREE | values},
        "environ": {"typed": THREE, "environ": {f"SPEEDBENCH_{k.upper()}": v for k, v in values.items()}},
        "ini": {"typed": THREE, "ini": values},
    }[how]
    settings = place.build(**given, profile=PARTS)
    assert set(parts_of(settings).values()) == {("org/typed", "org/typed", "org/typed", 4)}


def test_each_value_of_a_part_stands_alone(place: Place) -> None:
    assert parts_of(place.build(THREE | {"model": "org/typed"}, profile=PARTS))["llamacpp"] == (
        "org/typed",
        "org/tokenizer",
        "draft.gguf",
        1,
    )
    # What a part leaves empty is not given.
    empty = place.build(THREE, profile=PARTS.replace("target.gguf", "~"))
    assert parts_of(empty)["llamacpp"] == ("org/target", "org/tokenizer", "draft.gguf", 1)


def test_files_of_a_part_count_from_the_root(place: Place) -> None:
    for folder in (place.root, place.here):
        (folder / "target.gguf").touch()
    (place.here / "draft.gguf").touch()
    settings = place.build(THREE, profile=PARTS)
    assert parts_of(settings)["llamacpp"][::2] == (str(place.root / "target.gguf"), "draft.gguf")


def test_a_model_of_a_part_alone_is_a_model(place: Place) -> None:
    part = "speculation: {method: none}\nengines: {llamacpp: {model: own.gguf}}\n"
    settings = place.build(profile=part)
    assert not settings.embedded
    assert settings.profiles[0].model == "own.gguf"
    assert settings.dataset == "nvidia/SPEED-Bench"
    assert refused(place, {"engine": "llamacpp,vllm"}, profile=part) == (
        "vllm: no model was given; give --speedbench-model, or `model:` in the profile file speedbench.yaml"
    )
    assert place.build(profile="engines: {llamacpp: {model: ~, threads: 2}}\n").embedded


def test_a_drafter_of_a_part_is_a_drafter(place: Place) -> None:
    profile = "model: org/m\nspeculation: {method: draft, draft_tokens: 2}\n"
    assert "method draft needs a drafter" in refused(place, {"engine": "vllm"}, profile=profile)
    settings = place.build({"engine": "vllm"}, profile=profile + "engines: {vllm: {draft_model: org/d}}\n")
    assert settings.profiles[0].speculation == Speculation("draft", 2, "org/d")


# A server that someone else runs


@pytest.mark.parametrize("how", ["typed", "environ", "ini"])
def test_a_server_to_attach_to(place: Place, how: str) -> None:
    url = "http://127.0.0.1:8000/"
    given: dict[str, Any] = {
        "typed": {"typed": MODEL | {"base_url": url}},
        "environ": {"typed": MODEL, "environ": {"SPEEDBENCH_BASE_URL": url}},
        "ini": {"typed": MODEL, "ini": {"base_url": url}},
    }[how]
    (profile,) = place.build(**given).profiles
    assert profile.base_url == "http://127.0.0.1:8000"


def test_one_server_is_not_two_engines(place: Place) -> None:
    typed = MODEL | {"base_url": "http://127.0.0.1:8000", "engine": "llamacpp,vllm"}
    assert refused(place, typed) == "--speedbench-base-url is one server, but 2 engines are named; name one"
    assert place.build(typed | {"engine": "vllm"}).profiles[0].base_url == "http://127.0.0.1:8000"


def test_the_quick_start_does_not_know_what_another_server_runs(place: Place) -> None:
    assert refused(place, {"base_url": "http://127.0.0.1:8000"}) == (
        "llamacpp: no model was given; give --speedbench-model, or `model:` in the profile file speedbench.yaml"
    )


def test_a_mistake_below_the_winner_is_a_mistake_in_the_file(place: Place) -> None:
    assert re.search(r"speedbench\.yaml:1: --speedbench-osl=x", refused(place, {"osl": "3"}, profile="osl: x\n"))


def test_empty_values_of_a_profile_are_not_given(place: Place) -> None:
    settings = place.build(profile="model:\nosl: ~\n")
    assert settings.embedded
    assert settings.sampling.osl_cap == 32


# Data


@pytest.mark.parametrize(
    ("typed", "dataset", "control"),
    [
        ("random", None, "random"),
        ("random-uniform", None, "random-uniform"),
        ("org/set@x,random", "org/set@x", "random"),
        (" mini , random-uniform ", "mini", "random-uniform"),
        ("a,b", "a,b", None),
        ("my-random", "my-random", None),
    ],
)
def test_a_control_stands_alone_or_beside_a_dataset(
    place: Place, typed: str, dataset: str | None, control: str | None
) -> None:
    settings = place.build(MODEL | {"dataset": typed})
    assert (settings.dataset, settings.control) == (dataset, control)
    # There is nothing to judge random prompts by.
    assert settings.measure_only == (dataset is None)


def test_a_folder_with_a_control_becomes_absolute(place: Place) -> None:
    (place.here / "prompts").mkdir(parents=True)
    settings = place.build(MODEL | {"dataset": "prompts,random"})
    assert (settings.dataset, settings.control) == (str(place.here / "prompts"), "random")


def test_a_control_beside_nothing_is_a_slip(place: Place) -> None:
    assert refused(place, MODEL | {"dataset": ",random"}) == (
        "--speedbench-dataset=,random: name the dataset before the comma, or random alone"
    )


def test_how_a_chat_becomes_a_prompt_is_part_of_every_profile(place: Place) -> None:
    settings = place.build(
        {"engine": "vllm,sglang", "model": "org/model", "completions": "true"},
        profile="chat_template_args: {enable_thinking: false, effort: low}\n",
    )
    for profile in settings.profiles:
        assert profile.completions
        assert profile.chat_template_args == {"enable_thinking": False, "effort": "low"}
    assert not place.build(MODEL).profiles[0].completions


# What is measured beside a profile


def test_companions_are_the_engine_before_and_the_one_without_speculation(place: Place) -> None:
    (place.here / "old.yaml").write_text("model: org/model\nspeculation: {method: ngram, draft_tokens: 3}\n")
    typed = {**MODEL, "method": "ngram", "draft_tokens": "4", "speedup": "true", "baseline": "old.yaml", "starts": "3"}
    settings = place.build(typed)
    (profile,) = settings.profiles
    plain, old = settings.companions(profile)
    assert (plain.label, plain.speculation.active) == ("plain-llamacpp", False)
    # What is typed holds for both engines.
    assert (old.label, old.speculation.method, old.speculation.draft_tokens) == ("baseline-llamacpp", "ngram", 4)
    assert (settings.starts, settings.baseline_source, settings.needs_limits) == ((3,), "old.yaml", False)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ({"lossless": "true"}, "no profile speculates; give --speedbench-method"),
        ({"speedup": "true"}, "no profile speculates"),
        (
            {"method": "ngram", "draft_tokens": "3", "lossless": "true", "temperature": "0.7"},
            "compares greedy output, and the temperature is 0.7",
        ),
        ({"baseline": "old.yaml", "arrival_rate": "4"}, "random prompts or an open loop are only measured"),
        ({"baseline": "old.yaml", "dataset": "random"}, "random prompts or an open loop are only measured"),
        ({"baseline": "old.yaml", "inconclusive": "rerun"}, "use --speedbench-starts=2,4"),
        ({"inconclusive": "rerun", "starts": "3,5"}, "so --speedbench-inconclusive=rerun has nothing to add"),
        ({"arrivals": "fixed"}, "give a rate too"),
        ({"baseline": "http://127.0.0.1:9"}, "so the new engine must be one too"),
        ({"baseline": "old.yaml", "base_url": "http://127.0.0.1:9"}, "would start an engine beside a running one"),
        ({"baseline": "old.yaml", "osl": "9"}, None),
        ({"baseline": "missing.yaml"}, "missing.yaml: cannot be read"),
    ],
)
def test_a_comparison_that_could_not_be_made_is_refused_before_it_costs_anything(
    place: Place, typed: dict[str, str], message: str | None
) -> None:
    (place.here / "old.yaml").write_text("model: org/model\n")
    if message is None:
        # Typed options hold for both engines, so that is no difference.
        assert place.build({**MODEL, **typed}).baselines
    else:
        assert message in refused(place, {**MODEL, **typed})

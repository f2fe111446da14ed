"""Which cells are planned, and what the messages say when none are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.cells import Axes, Cell
from pytest_speedbench.engines.base import Profile, Sampling, Speculation
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.gates.match import Facts
from pytest_speedbench.planning import MAX_REPEATS, make, static_facts, without_cells
from pytest_speedbench.settings import Settings

PROFILE = Profile("llamacpp", "llamacpp", "org/model", Speculation("draft", 4))
MATCH = "match: {engine: llamacpp, model: org/model, method: draft, draft_tokens: 4, dataset: data}"


def row(question_id: str, category: str, sub: str = "") -> dict[str, Any]:
    return {"question_id": question_id, "category": category, "sub_category": sub, "turns": [f"Say {question_id}"]}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a dataset and an empty thresholds folder."""
    write_data(tmp_path)
    (tmp_path / "thresholds").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_data(folder: Path) -> None:
    """Two categories of 12 prompts, and three throughput points of 20, 20 and 9."""
    files = {
        "qualitative": [row(f"{c}-{i}", c, f"s{i % 3}") for c in ("coding", "qa") for i in range(12)],
        "throughput_1k": [row(f"1k-{d}-{i}", d) for d in ("low_entropy", "mixed") for i in range(20)],
        "throughput_8k": [row(f"8k-{i}", "mixed") for i in range(9)],
    }
    data = folder / "data"
    data.mkdir()
    for name, rows in files.items():
        (data / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def settings_of(place: Path, **fields: Any) -> Settings:
    base = Settings(
        profiles=(PROFILE,),
        axes=Axes(),
        default_concurrency={"qualitative": (1,), "throughput": (2, 4, 8)},
        dataset=str(place / "data"),
        control=None,
        allow_partial=False,
        prompts=None,
        prompt_order="stratified",
        sampling=Sampling(osl_cap=32),
        seed=0,
        arrivals=None,
        thresholds=place / "thresholds",
        thresholds_origin="default",
        measure_only=False,
        inconclusive="fail",
        starts=(1,),
        repeats=1,
        speedup=False,
        lossless=False,
        turn_timeout_s=1.0,
        start_timeout_s=1.0,
        artifact=place / "speedbench.json",
        junit=None,
        embedded=False,
        origins=(),
    )
    return replace(base, **fields)


def gates(place: Path, *cells: str, match: str = MATCH, name: str = "a.yaml") -> None:
    lines = ["schema: 1", match, "gates:"]
    for cell in cells:
        lines += [f"  - cell: {{{cell}}}", "    output_tps: {min: 1}" if "isl" in cell else "    user_tps: {min: 1}"]
    (place / "thresholds" / name).write_text("\n".join(lines) + "\n")


def planned(place: Path, **fields: Any) -> list[str]:
    return [cell.item_id for cell in make(settings_of(place, **fields)).cells]


def refused(place: Path, **fields: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        make(settings_of(place, **fields))
    return str(caught.value)


# What is planned


def test_gated_cells_are_planned_with_overall_last(place: Path) -> None:
    gates(place, "category: overall", "category: qa", "isl: 1k, difficulty: mixed, concurrency: 4")
    cells = make(settings_of(place)).cells
    assert [cell.item_id for cell in cells] == [
        "llamacpp-qualitative-qa",
        "llamacpp-throughput-1k-mixed-c4",
        "llamacpp-qualitative-coding",
        "llamacpp-qualitative-overall",
    ]
    # What only the overall cell needs may be without a gate of its own.
    assert [cell.item_id for cell in cells if cell.supporting] == ["llamacpp-qualitative-coding"]


def test_support_is_at_the_concurrency_of_its_overall_cell(place: Path) -> None:
    gates(place, "category: overall, concurrency: 2", "category: qa, concurrency: 4")
    cells = make(settings_of(place)).cells
    assert [(cell.item_id.removeprefix("llamacpp-qualitative-"), cell.supporting) for cell in cells] == [
        ("qa-c4", False),
        ("coding-c2", True),
        ("qa-c2", True),
        ("overall-c2", False),
    ]


def test_overall_by_name_measures_the_categories_that_it_needs(place: Path) -> None:
    gates(place, "category: qa")
    for categories in (("overall",), ("qa", "overall")):
        cells = make(settings_of(place, axes=Axes(categories=categories))).cells
        assert {cell.cell.category: cell.supporting for cell in cells} == {
            "coding": True,
            "qa": "qa" not in categories,
            "overall": False,
        }


def test_a_gate_without_concurrency_stands_for_the_default_ones(place: Path) -> None:
    gates(place, "isl: 1k, difficulty: mixed")
    # 20 prompts, each sent 8 times, hold 40 and not 41.
    concurrency = {"qualitative": (1,), "throughput": (2, 40, 41)}
    assert planned(place, default_concurrency=concurrency) == [
        "llamacpp-throughput-1k-mixed-c2",
        "llamacpp-throughput-1k-mixed-c40",
    ]


def test_explicit_axes_win_over_what_is_gated(place: Path) -> None:
    gates(place, "category: qa")
    assert planned(place, axes=Axes(categories=("coding",))) == ["llamacpp-qualitative-coding"]
    assert planned(place, axes=Axes(isls=("8k",))) == [f"llamacpp-throughput-8k-mixed-c{n}" for n in (2, 4, 8)]
    assert planned(place, axes=Axes(splits=("qualitative",))) == [
        "llamacpp-qualitative-coding",
        "llamacpp-qualitative-qa",
        "llamacpp-qualitative-overall",
    ]


def test_concurrency_alone_moves_the_gated_cells(place: Path) -> None:
    gates(place, "category: qa, concurrency: 32", "isl: 1k, difficulty: mixed, concurrency: 4")
    assert planned(place, axes=Axes(concurrencies=(3,))) == [
        "llamacpp-qualitative-qa",
        "llamacpp-throughput-1k-mixed-c3",
    ]
    assert planned(place, axes=Axes(concurrencies=(2, 3))) == [
        "llamacpp-qualitative-qa-c2",
        "llamacpp-throughput-1k-mixed-c2",
        "llamacpp-qualitative-qa-c3",
        "llamacpp-throughput-1k-mixed-c3",
    ]


def test_concurrency_alone_does_not_repeat_cells_gated_at_several(place: Path) -> None:
    gates(place, "category: qa, concurrency: 1", "category: qa, concurrency: 2")
    assert planned(place) == ["llamacpp-qualitative-qa-c1", "llamacpp-qualitative-qa-c2"]
    assert planned(place, axes=Axes(concurrencies=(4,))) == ["llamacpp-qualitative-qa"]


def test_measure_only_without_gates_plans_all(place: Path) -> None:
    (place / "thresholds").rmdir()
    concurrency = {"qualitative": (1,), "throughput": (2, 40, 64)}
    every = planned(place, measure_only=True, default_concurrency=concurrency)
    assert every == [
        "llamacpp-qualitative-coding",
        "llamacpp-qualitative-qa",
        "llamacpp-throughput-1k-low_entropy-c2",
        "llamacpp-throughput-1k-low_entropy-c40",
        "llamacpp-throughput-1k-mixed-c2",
        "llamacpp-throughput-1k-mixed-c40",
        "llamacpp-throughput-8k-mixed-c2",
        "llamacpp-qualitative-overall",
    ]


def test_measure_only_with_gates_plans_those(place: Path) -> None:
    gates(place, "category: qa")
    assert planned(place, measure_only=True) == ["llamacpp-qualitative-qa"]


def test_ids_of_several_profiles_are_unique(place: Path) -> None:
    gates(place, "category: qa", "category: overall", match="match: {engine: llamacpp}")
    other = replace(PROFILE, label="other", speculation=Speculation("none"))
    plan = make(settings_of(place, profiles=(PROFILE, other)))
    assert [cell.item_id for cell in plan.cells] == [
        "llamacpp-qualitative-qa",
        "llamacpp-qualitative-coding",
        "llamacpp-qualitative-overall",
        "other-qualitative-qa",
        "other-qualitative-coding",
        "other-qualitative-overall",
    ]
    assert set(plan.matching) == {"llamacpp", "other"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data only, for tests that write nothing."""
    folder = tmp_path_factory.mktemp("planning")
    write_data(folder)
    return folder


@given(
    splits=st.sampled_from([(), ("qualitative",), ("throughput",), ("throughput", "qualitative")]),
    concurrencies=st.sets(st.integers(1, 3), max_size=3).map(tuple),
    prompts=st.none() | st.integers(8, 30),
)
def test_ids_are_unique_ascii_and_stable(
    shared: Path, splits: tuple[str, ...], concurrencies: tuple[int, ...], prompts: int | None
) -> None:
    def ids() -> list[str]:
        axes = Axes(splits=splits, concurrencies=concurrencies)
        try:
            return planned(shared, axes=axes, prompts=prompts, measure_only=True)
        except ConfigError as error:
            return [re.sub("[^a-z]+", "-", str(error))]

    found = ids()
    assert len(set(found)) == len(found)
    assert all(re.fullmatch(r"[a-z0-9_-]+", name) for name in found)
    assert ids() == found


# Near misses


def test_a_file_that_almost_fits_is_named_with_what_differs(place: Path) -> None:
    gates(place, "category: qa", match="match: {engine: llamacpp, model: org/other, draft_tokens: 3}", name="b.yaml")
    assert refused(place) == (
        "no thresholds file fits llamacpp, so nothing is planned (thresholds/b.yaml: model: wanted 'org/other', found "
        "'org/model'; draft_tokens: wanted 3, found 4); add a file, name cells with --speedbench-split, or measure "
        "without judging with --speedbench-measure-only"
    )


def test_others_are_kept_beside_the_matching(place: Path) -> None:
    gates(place, "category: qa")
    gates(place, "category: qa", match="match: {method: ngram}", name="b.yaml")
    plan = make(settings_of(place))
    assert [file.path for file in plan.matching["llamacpp"]] == ["thresholds/a.yaml"]
    assert plan.others["llamacpp"] == ("thresholds/b.yaml: method: wanted 'ngram', found 'draft'",)


def test_runtime_fields_do_not_matter_to_the_plan(place: Path) -> None:
    gates(place, "category: qa", match='match: {engine: llamacpp, gpu: "NVIDIA H100*", engine_version: ">=99"}')
    assert planned(place) == ["llamacpp-qualitative-qa"]


def test_a_fitting_file_for_other_data(place: Path) -> None:
    gates(place, "category: stem")
    assert refused(place) == (
        "thresholds/a.yaml gates no cell that dataset data has; name cells with --speedbench-split, or another dataset"
    )


def test_no_thresholds_at_all(place: Path) -> None:
    (place / "thresholds").rmdir()
    assert refused(place) == (
        f"there are no thresholds at {place}/thresholds; write some (`speedbench init` makes a stub), give "
        "--speedbench-thresholds, or measure without judging with --speedbench-measure-only"
    )
    # A path that was typed must be there, also where nothing is judged.
    assert "there are no thresholds at" in refused(place, thresholds_origin="command line", measure_only=True)


def test_explicit_axes_need_no_gate_to_be_planned(place: Path) -> None:
    gates(place, "category: qa", match="match: {method: ngram}")
    plan = make(settings_of(place, axes=Axes(categories=("qa",))))
    assert [cell.item_id for cell in plan.cells] == ["llamacpp-qualitative-qa"]
    assert plan.matching["llamacpp"] == ()


# Prompts


def test_too_few_prompts_for_an_asked_concurrency(place: Path) -> None:
    # 9 prompts, each sent 8 times, are 72, which is 4 × 18.
    assert refused(place_with_gate(place), axes=Axes(isls=("8k",), concurrencies=(18, 19))) == (
        "too few prompts for a steady window (4 × concurrency, each prompt sent at most 8 times): "
        "throughput-8k-mixed-c19 has 9 and needs 10; lower the concurrency, or give more prompts"
    )
    assert planned(place, axes=Axes(isls=("8k",), concurrencies=(18,))) == ["llamacpp-throughput-8k-mixed-c18"]
    message = refused(place, axes=Axes(isls=("1k", "8k"), concurrencies=(41, 64)))
    assert message.count(" has ") == 3
    assert " …; lower" in message


def test_as_many_prompts_as_a_refusal_asks_for_are_enough(place: Path) -> None:
    gates(place, "isl: 1k, difficulty: mixed")
    for concurrency in (1, 2, 3, 4, 5, 16, 17, 39, 40):
        axes = Axes(isls=("1k",), difficulties=("mixed",), concurrencies=(concurrency,))
        if concurrency > 2:
            found = re.search(r"has 1 and needs (\d+);", refused(place, axes=axes, prompts=1))
            assert found is not None
            needed = int(found[1])
            assert f"has {needed - 1} and needs {needed};" in refused(place, axes=axes, prompts=needed - 1)
        else:
            needed = 1
        if needed <= 20:
            assert planned(place, axes=axes, prompts=needed)


def test_prompts_are_repeated_as_often_as_a_steady_window_needs(place: Path) -> None:
    gates(place, "isl: 1k, difficulty: mixed")
    plan = make(settings_of(place))

    def repeats(concurrency: int, prompts: int | None = None) -> int:
        fewer = replace(plan, settings=replace(plan.settings, prompts=prompts))
        return fewer.repeats(Cell("throughput", concurrency, isl="1k", difficulty="mixed"))

    # 20 prompts are 4 × 5.
    assert [repeats(n) for n in (1, 5, 6, 10, 11, 40)] == [1, 1, 2, 2, 3, MAX_REPEATS]
    assert [repeats(5, prompts) for prompts in (3, 7, 19, 20, 99)] == [7, 3, 2, 1, 1]
    with pytest.raises(
        ConfigError, match=r"1k-mixed-c5 has 1 prompts, each of which .* sent 20 times .* \(at most 8\)"
    ):
        repeats(5, 1)
    # Qualitative cells have no steady window to fill.
    for concurrency in (1, 512):
        assert plan.repeats(Cell("qualitative", concurrency, category="qa")) == 1
        assert plan.repeats(Cell("qualitative", concurrency, category="overall")) == 1


@given(concurrency=st.integers(1, 40), prompts=st.none() | st.integers(1, 20))
def test_repeats_fill_the_window_and_no_fewer_would(shared: Path, concurrency: int, prompts: int | None) -> None:
    axes = Axes(isls=("1k",), difficulties=("mixed",), concurrencies=(concurrency,))
    try:
        plan = make(settings_of(shared, axes=axes, prompts=prompts, measure_only=True))
    except ConfigError:
        assert (prompts or 20) * MAX_REPEATS < 4 * concurrency
        return
    (planned_cell,) = plan.cells
    sent, repeats = len(plan.entries(planned_cell.cell)), plan.repeats(planned_cell.cell)
    assert sent * (repeats - 1) < 4 * concurrency <= sent * repeats
    assert repeats <= MAX_REPEATS


def place_with_gate(place: Path) -> Path:
    gates(place, "category: qa")
    return place


def test_too_few_prompts_for_a_gates_own_concurrency(place: Path) -> None:
    # A limit that nobody measures must not look as if it had been met.
    gates(place, "isl: 1k, difficulty: mixed, concurrency: 4", "isl: 1k, difficulty: mixed, concurrency: 128")
    assert "throughput-1k-mixed-c128 has 20 and needs 64" in refused(place)
    gates(place, "isl: 1k, difficulty: mixed, concurrency: 32")
    assert "throughput-1k-mixed-c32 has 15 and needs 16" in refused(place, prompts=15)
    assert planned(place, prompts=16) == ["llamacpp-throughput-1k-mixed-c32"]


def test_too_few_prompts_for_every_default(place: Path) -> None:
    gates(place, "isl: 8k, difficulty: mixed")
    concurrency = {"qualitative": (1,), "throughput": (16, 32)}
    assert planned(place, default_concurrency=concurrency) == ["llamacpp-throughput-8k-mixed-c16"]
    assert "throughput-8k-mixed-c16 has 7 and needs 8" in refused(place, prompts=7, default_concurrency=concurrency)


def test_the_default_concurrencies_left_out_do_not_touch_others(place: Path) -> None:
    gates(place, "category: qa", "isl: 8k, difficulty: mixed")
    concurrency = {"qualitative": (1,), "throughput": (7, 8)}
    assert planned(place, prompts=3, default_concurrency=concurrency) == ["llamacpp-qualitative-qa"]


def test_qualitative_cells_need_no_steady_window(place: Path) -> None:
    gates(place, "category: qa, concurrency: 64")
    assert planned(place, prompts=2) == ["llamacpp-qualitative-qa"]


@pytest.mark.parametrize(
    "cell", [Cell("qualitative", 1, category="qa"), Cell("throughput", 2, isl="1k", difficulty="mixed")]
)
def test_prompts_are_a_nested_subset(place: Path, cell: Cell) -> None:
    place_with_gate(place)

    def rows(prompts: int | None, seed: int = 0) -> list[str]:
        plan = make(settings_of(place, prompts=prompts, seed=seed))
        return [row.question_id for row in plan.entries(cell)]

    every = rows(None)
    assert len(every) == (12 if cell.category else 20)
    smaller: set[str] = set()
    for number in range(1, len(every) + 1):
        chosen = rows(number)
        assert len(chosen) == len(set(chosen)) == number
        assert smaller < set(chosen) <= set(every)
        smaller = set(chosen)
    assert rows(1000) == every
    assert {tuple(rows(4, seed)) for seed in range(5)} != {tuple(rows(4))}


# Facts


def test_static_facts(place: Path) -> None:
    sampling = Sampling(osl_cap=16, temperature=0.5, ignore_eos=True)
    profile = replace(PROFILE, speculation=Speculation("draft", 4, "org/draft"))
    facts = static_facts(profile, settings_of(place, sampling=sampling), "data")
    assert facts == Facts("llamacpp", "org/model", "draft", 4, "org/draft", "data", 16, 0.5, True)
    assert facts.engine_version is None


def test_models_given_as_files_go_by_their_name(place: Path) -> None:
    files: Mapping[str, Path] = {name: place / f"{name}.gguf" for name in ("target", "drafter")}
    for path in files.values():
        path.touch()
    speculation = Speculation("draft", 4, str(files["drafter"]))
    profile = replace(PROFILE, model=str(files["target"]), speculation=speculation)
    facts = static_facts(profile, settings_of(place), "data")
    assert (facts.model, facts.draft_model) == ("target.gguf", "drafter.gguf")


def test_a_plan_for_a_users_own_tests_needs_no_thresholds(place: Path) -> None:
    (place / "thresholds").rmdir()
    plan = without_cells(settings_of(place))
    assert plan.cells == ()
    assert plan.matching == {"llamacpp": ()}
    assert plan.others == {"llamacpp": ()}
    assert len(plan.entries(Cell("qualitative", 1, category="qa"))) == 12


def test_data_that_are_not_there(place: Path) -> None:
    assert "no such folder" in refused(place, dataset=str(place / "gone"))


# Partial data


SENTENCE = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH"


def mask(place: Path, config: str, *ids: str) -> None:
    path = place / "data" / f"{config}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(
        "".join(json.dumps({**r, "turns": [SENTENCE]} if r["question_id"] in ids else r) + "\n" for r in rows)
    )


def test_placeholders_stop_a_run_that_needs_them(place: Path) -> None:
    gates(place, "split: qualitative", "isl: 1k, difficulty: mixed, concurrency: 2")
    mask(place, "throughput_1k", "1k-mixed-3")
    assert "throughput_1k: 1 of 40 (1k-mixed-3)" in refused(place)
    assert "--speedbench-allow-partial" in refused(place, axes=Axes(isls=("1k",)))
    # Other cells do not need them, and are not partial.
    assert planned(place, axes=Axes(isls=("8k",), concurrencies=(2,))) == ["llamacpp-throughput-8k-mixed-c2"]
    assert planned(place, axes=Axes(splits=("qualitative",)))


def test_limits_for_the_full_dataset_do_not_hold_for_a_partial_one(place: Path) -> None:
    mask(place, "qualitative", "qa-1", "qa-2")
    gates(place, "category: qa")
    gates(place, "category: qa", match="match: {engine: llamacpp}", name="b.yaml")
    text = refused(place, allow_partial=True)
    assert "thresholds/a.yaml: dataset: wanted 'data', found 'data+partial'" in text
    assert "thresholds/b.yaml: dataset: wanted 'a full one (none is named)', found 'data+partial'" in text

    gates(place, "category: qa", match=MATCH.replace("dataset: data", '"dataset": data+partial'), name="c.yaml")
    plan = make(settings_of(place, allow_partial=True))
    assert [len(plan.entries(cell.cell)) for cell in plan.cells] == [10]


# The control


def test_a_control_for_every_length_and_concurrency_beside_the_real_ones(place: Path) -> None:
    gates(place, "category: qa", "isl: 1k, concurrency: 2", "isl: 8k, difficulty: mixed, concurrency: 4")
    plan = make(settings_of(place, control="random"))
    assert [cell.item_id for cell in plan.cells] == [
        "llamacpp-qualitative-qa",
        "llamacpp-throughput-1k-low_entropy-c2",
        "llamacpp-throughput-1k-mixed-c2",
        "llamacpp-throughput-8k-mixed-c4",
        "llamacpp-throughput-1k-random-c2",
        "llamacpp-throughput-8k-random-c4",
    ]
    assert [plan.number(cell.cell) for cell in plan.cells if cell.cell.is_control] == [20, 9]
    fewer = make(settings_of(place, control="random", prompts=4))
    assert [fewer.number(cell.cell) for cell in fewer.cells if cell.cell.is_control] == [4, 4]


def test_a_control_alone_needs_no_data(place: Path) -> None:
    plan = make(
        settings_of(place, dataset=None, control="random", measure_only=True, axes=Axes(isls=("2k",)), prompts=8)
    )
    assert [(cell.cell.concurrency, plan.number(cell.cell), plan.repeats(cell.cell)) for cell in plan.cells] == [
        (2, 8, 1),
        (4, 8, 2),
        (8, 8, 4),
    ]
    everything = make(settings_of(place, dataset=None, control="random", measure_only=True))
    assert {cell.cell.isl for cell in everything.cells} == {"1k", "2k", "8k", "16k", "32k"}
    assert {everything.number(cell.cell) for cell in everything.cells} == {512}


@pytest.mark.parametrize(
    "axes", [Axes(categories=("qa",)), Axes(difficulties=("mixed",)), Axes(splits=("qualitative",))]
)
def test_a_control_has_no_category_and_no_difficulty(place: Path, axes: Axes) -> None:
    text = refused(place, dataset=None, control="random", measure_only=True, axes=axes)
    assert text.startswith("random prompts are a control of the throughput split and have no category or difficulty")

"""``speedbench data curate`` from a pool to a dataset, with embeddings over HTTP."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_speedbench.data import curate, curation, loading
from pytest_speedbench.data.pool import read_pool
from pytest_speedbench.errors import ConfigError
from tests.emulator.openai_embeddings import EmbeddingServer, serve

SUBJECTS = ("car road", "apple tree", "ship sea", "moon star")


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    with serve(EmbeddingServer(dimensions=64)) as running:
        yield running


def candidates() -> list[dict[str, Any]]:
    """Ten variations of each of four subjects, in two categories."""
    return [
        {"category": category, "prompt": f"{subject} {subject} {category} number {i}", "source": f"s{i}"}
        for category in ("coding", "qa")
        for subject in SUBJECTS
        for i in range(10)
    ]


def write(folder: Path, rows: list[dict[str, Any]], name: str = "pool.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parsed(*words: str | Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    curate.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def run(pool: Path, output: Path, server: EmbeddingServer, **options: Any) -> curate.CurationReport:
    environ = {"OPENAI_BASE_URL": server.url, "SPEEDBENCH_CACHE_DIR": str(pool.parent / "cache")}
    given: dict[str, Any] = {
        "k": 4,
        "embedder": "openai:bins",
        "seed": 0,
        "agree": lambda notice: None,
        "environ": environ,
    }
    return curate.run(pool, output, **(given | options))


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def rows_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "qualitative.jsonl").read_text().splitlines()]


class TestRun:
    def test_takes_one_of_each_subject(self, server: EmbeddingServer, tmp_path: Path) -> None:
        run(write(tmp_path, candidates()), tmp_path / "out", server)
        rows = rows_of(tmp_path / "out")
        subjects = [(row["category"], " ".join(row["turns"][0].split()[:2])) for row in rows]
        assert sorted(subjects) == sorted((c, s) for c in ("coding", "qa") for s in SUBJECTS)

    def test_the_output_is_a_dataset(self, server: EmbeddingServer, tmp_path: Path) -> None:
        run(write(tmp_path, candidates()), tmp_path / "out", server)
        dataset = loading.load(str(tmp_path / "out"))
        assert {row["question_id"] for row in rows_of(tmp_path / "out")} == {
            entry.question_id for entry in dataset.entries_by_config["qualitative"]
        }
        assert all(row["source"].startswith("s") for row in rows_of(tmp_path / "out"))

    def test_the_report_says_what_the_vectors_say(self, server: EmbeddingServer, tmp_path: Path) -> None:
        report = run(write(tmp_path, candidates()), tmp_path / "out", server)
        assert [(c.category, c.candidates, c.k) for c in report.categories] == [("coding", 40, 4), ("qa", 40, 4)]
        for category in report.categories:
            rows = read_pool(tmp_path / "pool.jsonl").by_category()[category.category]
            ids, texts = [row.question_id for row in rows], [row.turns[0] for row in rows]
            vectors = curation.unit_vectors(np.array([server.vector(text) for text in texts]), ids)
            greedy = [texts[i] for i in curation.select(vectors, ids, 4, 0).greedy]
            chosen = [row["turns"][0] for row in rows_of(tmp_path / "out") if row["category"] == category.category]
            for members, similarity in ((texts, category.pool), (greedy, category.greedy), (chosen, category.chosen)):
                raw = np.array([server.vector(text) for text in members])
                unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
                pairs = (unit @ unit.T)[np.triu_indices(len(members), 1)]
                assert similarity == pytest.approx(pairs.mean(), abs=1e-6)
            assert category.random is not None
            assert category.random_least is not None
            assert category.greedy is not None
            assert category.chosen is not None
            assert category.chosen <= category.greedy < category.random_least < category.random
        stored = json.loads((tmp_path / "out" / "curation.json").read_text())
        assert stored["categories"][0]["chosen"] == report.categories[0].chosen
        assert stored["dimensions"] == 64

    def test_the_table_is_written_beside_the_report(self, server: EmbeddingServer, tmp_path: Path) -> None:
        report = run(write(tmp_path, candidates()), tmp_path / "out", server)
        text = (tmp_path / "out" / "curation.md").read_text()
        assert text == report.markdown()
        assert text.startswith("8 of 80 candidates of `pool.jsonl`, embedded by bins (64 dimensions), seed 0.")

    def test_the_order_of_the_file_does_not_matter(self, server: EmbeddingServer, tmp_path: Path) -> None:
        rows = candidates()
        run(write(tmp_path, rows), tmp_path / "a", server, seed=3)
        random.Random(1).shuffle(rows)
        run(write(tmp_path, rows), tmp_path / "b", server, seed=3)
        for name in ("qualitative.jsonl", "curation.json", "curation.md"):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()

    def test_the_seed_matters(self, server: EmbeddingServer, tmp_path: Path) -> None:
        pool = write(tmp_path, candidates())
        chosen = set()
        for seed in range(4):
            run(pool, tmp_path / "out", server, seed=seed)
            chosen.add((tmp_path / "out" / "qualitative.jsonl").read_bytes())
        assert len(chosen) > 1

    def test_the_second_run_sends_nothing(self, server: EmbeddingServer, tmp_path: Path) -> None:
        pool = write(tmp_path, candidates())
        run(pool, tmp_path / "out", server)
        server.requests.clear()
        run(pool, tmp_path / "out", server, k=7)
        assert server.requests == []
        assert len(rows_of(tmp_path / "out")) == 14

    def test_a_report_elsewhere(self, server: EmbeddingServer, tmp_path: Path) -> None:
        run(write(tmp_path, candidates()), tmp_path / "out", server, report=tmp_path / "reports" / "r.json")
        assert files(tmp_path / "out") == {"qualitative.jsonl"}
        assert files(tmp_path / "reports") == {"r.json", "r.md"}

    @pytest.mark.parametrize(("form", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
    def test_a_picture(self, server: EmbeddingServer, tmp_path: Path, form: str, begins: bytes) -> None:
        pytest.importorskip("matplotlib")
        pool = write(tmp_path, candidates())
        first, second = tmp_path / f"a.{form}", tmp_path / f"b.{form}"
        run(pool, tmp_path / "out", server, picture=first)
        run(pool, tmp_path / "out", server, picture=second)
        assert first.read_bytes().startswith(begins)
        assert first.read_bytes() == second.read_bytes()

    def test_the_picture_has_a_bar_for_each_number(self, server: EmbeddingServer, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        run(write(tmp_path, candidates()), tmp_path / "out", server, picture=tmp_path / "p.svg")
        text = (tmp_path / "p.svg").read_text()
        for label in ("coding", "qa", "whole pool", "random", "greedy", "greedy + swaps", "4 prompts per category"):
            assert f"<!-- {label}" in text
        # Two categories of four bars.
        assert sum(f'"patch_{i}"' in text for i in range(3, 11)) == 8


class TestRefusals:
    def test_too_few_candidates_are_named(self, server: EmbeddingServer, tmp_path: Path) -> None:
        rows = [*candidates(), {"category": "math", "prompt": "1 + 1"}, {"category": "stem", "prompt": "Why?"}]
        pool = write(tmp_path, rows)
        with pytest.raises(ConfigError, match=r"fewer than 4 candidates in math \(1\), stem \(1\); .*--allow-short"):
            run(pool, tmp_path / "out", server)
        assert server.requests == []
        assert files(tmp_path / "out") == set()

    def test_or_all_of_them_taken(self, server: EmbeddingServer, tmp_path: Path) -> None:
        rows = [*candidates(), {"category": "math", "prompt": "1 + 1"}]
        report = run(write(tmp_path, rows), tmp_path / "out", server, allow_short=True)
        assert [(c.category, c.k, c.chosen is None) for c in report.categories] == [
            ("coding", 4, False),
            ("math", 1, True),
            ("qa", 4, False),
        ]
        assert len(rows_of(tmp_path / "out")) == 9

    @pytest.mark.parametrize("k", [1, 0, -3])
    def test_k_that_has_no_pairs(self, server: EmbeddingServer, tmp_path: Path, k: int) -> None:
        with pytest.raises(ConfigError, match=f"--k {k}: at least 2"):
            run(write(tmp_path, candidates()), tmp_path / "out", server, k=k)

    def test_the_pool_is_not_replaced(self, server: EmbeddingServer, tmp_path: Path) -> None:
        pool = write(tmp_path, candidates(), "qualitative.jsonl")
        with pytest.raises(ConfigError, match="would replace the pool"):
            run(pool, tmp_path, server)
        assert len(pool.read_text().splitlines()) == 80

    def test_a_picture_of_no_known_form(self, server: EmbeddingServer, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"must end in \.png or \.svg"):
            run(write(tmp_path, candidates()), tmp_path / "out", server, picture=tmp_path / "p.jpg")
        assert server.requests == []

    def test_a_picture_without_matplotlib(
        self, server: EmbeddingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(ConfigError, match="--picture needs matplotlib: pip install"):
            run(write(tmp_path, candidates()), tmp_path / "out", server, picture=tmp_path / "p.svg")
        assert server.requests == []

    def test_no_vector(self, server: EmbeddingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(EmbeddingServer, "vector", lambda self, text: [0.0] * 64)
        with pytest.raises(ConfigError, match=r"the embedding of candidate '[0-9a-f]{32}' is zero or not finite"):
            run(write(tmp_path, candidates()), tmp_path / "out", server)
        assert files(tmp_path / "out") == set()

    def test_an_output_that_cannot_be_written(self, server: EmbeddingServer, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("a file")
        with pytest.raises(ConfigError, match="cannot write"):
            run(write(tmp_path, candidates()), tmp_path / "out", server)

    def test_a_failed_write_leaves_the_old_file(self, server: EmbeddingServer, tmp_path: Path) -> None:
        pool = write(tmp_path, candidates())
        run(pool, tmp_path / "out", server)
        before = (tmp_path / "out" / "qualitative.jsonl").read_bytes()
        (tmp_path / "out" / "curation.json").unlink()
        (tmp_path / "out" / "curation.json").mkdir()
        with pytest.raises(ConfigError, match=r"cannot write .*curation\.json"):
            run(pool, tmp_path / "out", server)
        assert (tmp_path / "out" / "qualitative.jsonl").read_bytes() == before
        assert files(tmp_path / "out") == {"qualitative.jsonl", "curation.json", "curation.md"}


class TestTable:
    def test_rows(self) -> None:
        full = curate.CategoryReport("qa", 500, 7, 80, 0.30004, 0.4, 0.35, 0.2, 0.1, 3)
        lone = curate.CategoryReport("math", 1, None, 1, None, None, None, None, None, 0)
        negative = curate.CategoryReport("stem", 9, 0, 2, 0.1, -0.1, -0.2, -0.9, -1.0, 0)
        report = curate.CurationReport("p.jsonl", 0, "m", 3, 80, 5, 20, (full, lone, negative))
        assert report.markdown().splitlines()[4:] == [
            "| qa | 500 | 7 | 80 | 0.3000 | 0.4000 | 0.2000 | 0.1000 | 3 | 75% |",
            "| math | 1 | – | 1 | – | – | – | – | 0 | – |",
            "| stem | 9 | 0 | 2 | 0.1000 | -0.1000 | -0.9000 | -1.0000 | 0 | – |",
        ]


class TestCommand:
    def test_defaults_are_speed_benchs(self) -> None:
        arguments = parsed("pool.jsonl", "out")
        assert (arguments.k, arguments.seed, arguments.embedder) == (80, 0, "minilm")

    def test_prints_the_table_and_the_next_step(
        self,
        server: EmbeddingServer,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
        monkeypatch.setenv("SPEEDBENCH_CACHE_DIR", str(tmp_path / "cache"))
        pool, out = write(tmp_path, candidates()), tmp_path / "out"
        assert curate.command(parsed(pool, out, "--k", "4", "--embedder", "openai:bins", "--yes")) == 0
        printed = capsys.readouterr()
        assert printed.out.startswith((out / "curation.md").read_text())
        assert f"pytest --speedbench-dataset={out}" in printed.out
        assert "80 texts, " in printed.err
        assert "cost unknown" in printed.err
        assert "embedded 80 of 80" in printed.err
        assert "sk-secret" not in printed.out + printed.err

    @pytest.mark.parametrize("answer", [None, "n\n", "\n"], ids=["no-terminal", "no", "nothing"])
    def test_sends_nothing_without_consent(
        self, server: EmbeddingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str | None
    ) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("SPEEDBENCH_CACHE_DIR", "")
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        arguments = parsed(write(tmp_path, candidates()), tmp_path / "out", "--k", "4", "--embedder", "openai:bins")
        with pytest.raises(ConfigError, match="pass --yes" if answer is None else "nothing was sent"):
            curate.command(arguments)
        assert server.requests == []

    def test_asks_at_a_terminal(
        self,
        server: EmbeddingServer,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("SPEEDBENCH_CACHE_DIR", "")
        monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
        arguments = parsed(write(tmp_path, candidates()), tmp_path / "out", "--k", "4", "--embedder", "openai:bins")
        assert curate.command(arguments) == 0
        assert "Send them? [y/N]" in capsys.readouterr().out


class Terminal:
    """Standard input with one answer; None is no terminal at all."""

    def __init__(self, answer: str | None) -> None:
        self.answer = answer

    def isatty(self) -> bool:
        return self.answer is not None

    def readline(self) -> str:
        assert self.answer is not None
        return self.answer

    def fileno(self) -> int:
        raise OSError


def test_random_draws_are_of_distinct_seeds() -> None:
    ids = [f"q{i}" for i in range(30)]
    assert len({curation.random_sample(ids, 5, f"0/draw {i}") for i in range(curate.RANDOM_DRAWS)}) == 20

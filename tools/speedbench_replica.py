"""Write a synthetic replica of SPEED-Bench: its schema, counts and lengths, and none of its text.

    python tools/speedbench_replica.py FOLDER [--layout prepared|hub] [--masked] [--seed N] [--config NAME ...]

For trying loaders, plans and memory at full size without the data, whose licence forbids to pass it on.
Needs pyarrow and bpe-openai. Two runs with one seed and one Python version give the same rows.

What is known of the data set and kept: 880 qualitative rows (11 x 80, categories in the order of the
published file, 1138 turns, 167 rows flagged as multi-turn, of which some have one turn, while some rows
with two turns are not flagged), 5 x 1536 throughput rows (3 x 512) of exactly 1000 … 32000 o200k_base
tokens, the eight columns, question ids of 32 hexadecimal characters, sources with their revisions, the
forms of src_id, and with ``--masked`` the share of rows that the published files hold as placeholders:
494 of 880, of which 208 are from one gated source, and every ``mixed`` row.

What is invented: the text (slices of the source files of Python's standard library for code, words of
its docstrings for everything else), how many rows each source has within those totals, that a
category's rows stand together, and the number of placeholders of 2k and 16k (between their neighbours').
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import random
import sysconfig
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pytest_speedbench.cells import ISLS, isl_tokens
from pytest_speedbench.data import counting
from pytest_speedbench.data.buckets import fit
from pytest_speedbench.data.schema import CONFIGS, SENTINEL

Record = dict[str, Any]

HUB, GITHUB = "https://huggingface.co/datasets/", "https://raw.githubusercontent.com/"
ROWS_PER_GROUP = 1000  # what the datasets library writes
SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("category", pa.string()),
        ("sub_category", pa.string()),
        ("turns", pa.list_(pa.string())),
        ("source", pa.string()),
        ("src_id", pa.string()),
        ("difficulty", pa.string()),
        ("multiturn", pa.bool_()),
    ],
    metadata={"huggingface": json.dumps({"info": {"splits": {"test": {"name": "test"}}}})},
)

ARTICLE = "\n\nSummarize the article.\n\n{article}"
QUESTION = "\n\n{question}\n\n{starter_code}"
ROLE = "\n\nYou are {role_name}. {role_description_and_catchphrases}\n\n{question}"


@dataclass(frozen=True)
class Source:
    """``rows`` consecutive rows of one origin within a category.

    ``turns`` is the number of turns of the first ``multi`` rows; ``flagged`` rows say that they are
    multi-turn. ``mask`` is the text of a placeholder after the sentinel, None where text is published.
    ``keeps_turns``: a placeholder has as many turns as the resolved row.
    """

    rows: int
    url: str
    src_id: str
    words: tuple[int, int]
    sub_categories: tuple[str, ...] = ("",)
    difficulty: str | None = None
    multi: int = 0
    turns: int = 1
    flagged: int = 0
    mask: str | None = None
    keeps_turns: bool = False


SPEC_BENCH = GITHUB + "hemingkx/Spec-Bench/66230f10/data/spec_bench/question.jsonl"
HLE = HUB + "cais/hle/resolve/021a3d71/data/test-00000-of-00001.parquet"


def mt_bench(**changes: Any) -> Source:
    fields: Record = {"difficulty": "medium", "multi": 10, "turns": 2, "flagged": 10} | changes
    return Source(10, SPEC_BENCH, "spec_bench_{n}", (13, 80), **fields)


def hle(rows: int, *subjects: str) -> Source:
    return Source(rows, HLE, "{hex}", (13, 200), subjects, "hard", mask="")


# In the order in which the categories appear in the published file.
QUALITATIVE: dict[str, tuple[Source, ...]] = {
    "coding": (
        mt_bench(),
        Source(
            8,
            HUB + "deepmind/code_contests/resolve/802411c3",
            "{n}_A. Name",
            (40, 467),
            difficulty="easy",
            mask=QUESTION,
        ),
        Source(
            8,
            HUB + "livecodebench/code_generation_lite/resolve/0fe84c39/test6.jsonl",
            "abc{n}_a",
            (40, 467),
            difficulty="easy",
            mask=QUESTION,
        ),
        Source(54, HUB + "bigcode/humanevalpack/resolve/9a41762f", "Rust/{n}", (20, 200)),
    ),
    "humanities": (mt_bench(), hle(70, "History", "Law", "Linguistics", "Economics", "Philosophy")),
    "math": (
        mt_bench(),
        Source(2, SPEC_BENCH, "{n}_{n}", (20, 53), difficulty="easy"),
        hle(68, "Mathematics", "Applied Mathematics"),
    ),
    "qa": (Source(80, SPEC_BENCH, "spec_bench_{n}", (4, 9)),),
    "rag": (
        Source(46, SPEC_BENCH, "spec_bench_{n}", (200, 600), ("rag",)),
        Source(10, SPEC_BENCH, "spec_bench_{n}", (133, 333), ("extraction",)),
        Source(
            24,
            HUB + "nvidia/ChatRAG-Bench/resolve/af6c7d42/data",
            "sqa_{n}",
            (533, 1867),
            ("table_and_text_extraction",),
            multi=24,
            turns=3,
            flagged=24,
            mask="",
        ),
    ),
    "reasoning": (
        Source(
            60,
            GITHUB + "mtbench101/mt-bench-101/61bc4faa/data/mtbench101.jsonl",
            "mtbench101_{n}",
            (20, 133),
            ("general", "mathematical"),
            multi=45,
            turns=3,
            flagged=60,
            mask="",
        ),
        Source(
            20,
            HUB + "TIGER-Lab/MMLU-Pro/resolve/30527804/data",
            "mmlu_pro_({n}, 'history')",
            (53, 167),
            ("history", "biology"),
            multi=20,
            turns=2,
            mask="",
            keeps_turns=True,
        ),
    ),
    "stem": (mt_bench(), hle(70, "Physics", "Biology", "Medicine", "Computer Science", "Materials Science")),
    "writing": (
        mt_bench(difficulty=None),
        Source(
            50,
            GITHUB + "X-PLUG/WritingBench/4701e81e/benchmark_query/benchmark_all.jsonl",
            "writingbench_{n}",
            (40, 1000),
            ("Politics & Law", "Advertising & Marketing", "Finance & Business", "Education"),
        ),
        Source(
            20,
            GITHUB + "EQ-bench/creative-writing-bench/main/data/prompts.json",
            "eqbench_{n}",
            (67, 267),
            ("historical fiction", "fantasy-humour", "romance"),
        ),
    ),
    "multilingual": (
        Source(
            16,
            HUB + "Helsinki-NLP/opus-100/resolve/805090dc",
            "opus100_ar-ru_{n}",
            (13, 53),
            ("ar-ru", "ar-fr", "en-mk"),
            mask="\n\n{question}",
        ),
        Source(
            44,
            HUB + "RUCAIBox/MMATH/resolve/3920f269",
            "mmath_{n}",
            (20, 133),
            ("ar_math", "es_math", "ja_math", "th_math"),
        ),
        Source(
            20, HUB + "FBK-MT/MCIF/resolve/cd45ce04", "mcif_{n}", (200, 800), ("it_summarization", "de_summarization")
        ),
    ),
    "summarization": (
        Source(80, HUB + "abisee/cnn_dailymail/resolve/96df5e68/3.0.0", "{hex}", (80, 733), mask=ARTICLE),
    ),
    "roleplay": (
        Source(10, SPEC_BENCH, "spec_bench_{n}", (13, 80), difficulty="medium"),
        Source(
            40,
            HUB + "ZenMoore/RoleBench/resolve/a57ed54f",
            "['rolebench', 'instruction-generalization', '_{n}']",
            (67, 267),
            multi=25,
            turns=3,
            flagged=33,
            mask=ROLE,
            keeps_turns=True,
        ),
        Source(30, HUB + "Neph0s/CoSER/resolve/7cc80430/test", "coser_{n}", (867, 1533), mask=""),
    ),
}

REPOBENCH = HUB + "tianyang/repobench_{}_v1.1/resolve/main"
PUBLISHED = {  # rows with text: low_entropy, high_entropy
    "1k": (419, 478),
    "2k": (400, 474),
    "8k": (343, 465),
    "16k": (340, 475),
    "32k": (338, 486),
}


def throughput(isl: str) -> dict[str, tuple[Source, ...]]:
    low, high = PUBLISHED[isl]
    none = (0, 0)  # their length is the bucket's
    return {
        "low_entropy": (
            Source(low // 3, REPOBENCH.format("python"), "repobench_{n}", none),
            Source(low // 3, REPOBENCH.format("java"), "repobench_{n}", none),
            Source(
                low - 2 * (low // 3),
                HUB + "JetBrains-Research/lca-project-level-code-completion/resolve/main",
                "lca_{n}",
                none,
            ),
            Source(512 - low, GITHUB + "open-compass/Ada-LEval/main/textsort.json", "x_{n}", none, mask=""),
        ),
        "mixed": (
            Source(256, GITHUB + "open-compass/Ada-LEval/main/stackselect.json", "{n}", none, mask=""),
            Source(256, HLE, "{hex}", none, mask=""),
        ),
        "high_entropy": (
            Source(high, GITHUB + "EQ-bench/creative-writing-bench/main/data/prompts.json", "eqbench_{n}", none),
            Source(
                512 - high,
                GITHUB + "RUCAIBox/BAMBOO/main/datasets/showssort_16k.jsonl",
                "bamboo_{n}_{n}",
                none,
                mask="",
            ),
        ),
    }


@dataclass
class Text:
    """Text of Python's own standard library: code as it stands, or words of docstrings in random order."""

    rng: random.Random
    counting: counting.Counting = field(default_factory=counting.load)

    def words(self, count: int) -> str:
        return " ".join(self.rng.choices(vocabulary(), k=count))

    def exactly(self, tokens: int, difficulty: str) -> str:
        """Text of exactly ``tokens`` o200k_base tokens: code, half and half, or words."""
        while True:
            code, words = {"low_entropy": (6, 0.0), "mixed": (3, 0.6), "high_entropy": (0, 1.2)}[difficulty]
            # A number first, so that no two prompts are the same.
            number = f"{self.rng.getrandbits(64):x}"
            raw = "\n".join([number, self._code(code * tokens), self.words(round(words * tokens))])
            text = fit(raw, tokens, self.counting.encode, self.counting.decode)
            # A cut can be a token off; another text is not.
            if text.strip() and len(self.counting.encode(text)) == tokens:
                return text

    def _code(self, characters: int) -> str:
        code = source_code()
        start = self.rng.randrange(len(code) - characters)
        return code[start : start + characters]


@cache
def library() -> tuple[str, ...]:
    """The modules of the standard library, tests and installed packages left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [
        path
        for path in sorted(root.rglob("*.py"))
        if not {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(path.relative_to(root).parts)
    ]
    return tuple(path.read_text(encoding="utf-8", errors="ignore") for path in paths)


@cache
def source_code() -> str:
    return "\n".join(library())


@cache
def vocabulary() -> tuple[str, ...]:
    """Words of the library's docstrings, as often as they come."""
    found: list[str] = []
    for text in library():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found += (ast.get_docstring(node) or "").split()
    return tuple(found)


def records(config: str, seed: int, *, masked: bool) -> Iterator[Record]:
    """The rows of ``config`` in file order."""
    text = Text(random.Random(f"{seed}/{config}"))
    plan = QUALITATIVE if config == "qualitative" else throughput(config.removeprefix("throughput_"))
    number = 0
    for category, sources in plan.items():
        for source in sources:
            for index in range(source.rows):
                digest = hashlib.sha256(f"{seed}/{config}/{number}".encode()).hexdigest()
                yield {
                    "question_id": digest[:32],
                    "category": category,
                    "sub_category": source.sub_categories[index % len(source.sub_categories)] or None,
                    "turns": turns(source, index, config, category, text, masked=masked),
                    "source": source.url,
                    "src_id": source.src_id.format(n=number, hex=digest[32:56]),
                    "difficulty": source.difficulty,
                    "multiturn": index < source.flagged,
                }
                number += 1


def turns(source: Source, index: int, config: str, category: str, text: Text, *, masked: bool) -> list[str]:
    count = source.turns if index < source.multi else 1
    if masked and source.mask is not None:
        return [SENTINEL + source.mask] * (count if source.keeps_turns else 1)
    if config != "qualitative":
        return [text.exactly(isl_tokens(config.removeprefix("throughput_")), category)]
    return [
        text.words(text.rng.randint(*source.words)),
        *(text.words(text.rng.randint(8, 40)) for _ in range(count - 1)),
    ]


def write(path: Path, rows: Iterator[Record]) -> int:
    """Write ``rows`` to ``path`` as Parquet, as large a group at a time as upstream's; return their number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = 0
    with pq.ParquetWriter(path, SCHEMA, compression="snappy") as file:
        while group := list(islice(rows, ROWS_PER_GROUP)):
            file.write_table(pa.Table.from_pylist(group, schema=SCHEMA), row_group_size=ROWS_PER_GROUP)
            number += len(group)
    return number


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layout", choices=("prepared", "hub"), default="prepared", help="default: %(default)s")
    parser.add_argument("--masked", action="store_true", help="placeholders where the published files have them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", nargs="+", choices=CONFIGS, default=CONFIGS, metavar="NAME")
    arguments = parser.parse_args(argv)
    for config in arguments.config:
        start = time.perf_counter()
        place = (
            Path("speed", config, "test.parquet")
            if arguments.layout == "prepared"
            else Path(config, "test-00000-of-00001.parquet")
        )
        path = arguments.folder / place
        number = write(path, records(config, arguments.seed, masked=arguments.masked))
        print(f"{path}: {number} rows, {path.stat().st_size / 1e6:.1f} MB, {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    assert set(PUBLISHED) == set(ISLS)
    main()

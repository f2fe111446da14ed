"""``speedbench data curate``: SPEED-Bench's selection on a pool of one's own."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import io
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from pytest_speedbench.data import curation, embedding, pool
from pytest_speedbench.data.schema import Row
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.files import write_atomic

FILE = "qualitative.jsonl"
REPORT = "curation.json"
DEFAULT_K = 80
RANDOM_DRAWS = 20
_SERIES = (("whole pool", "pool"), ("random", "random"), ("greedy", "greedy"), ("greedy + swaps", "chosen"))


@dataclass(frozen=True, slots=True)
class CategoryReport:
    """One category. Similarities are mean cosines over all pairs; None where there is only one prompt.

    ``random`` is the mean of RANDOM_DRAWS draws of ``k``, and ``random_least`` the lowest of them. ``cut``
    counts the candidates that are longer than the model sees; None where that is not known.
    """

    category: str
    candidates: int
    cut: int | None
    k: int
    pool: float | None
    random: float | None
    random_least: float | None
    greedy: float | None
    chosen: float | None
    swaps: int


@dataclass(frozen=True, slots=True)
class CurationReport:
    """What was chosen from what, and what it gained."""

    pool: str
    repeated: int
    embedder: str
    dimensions: int
    k: int
    seed: int
    random_draws: int
    categories: tuple[CategoryReport, ...]

    def json(self) -> str:
        """The report as one JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    def markdown(self) -> str:
        """The report as a table."""
        lines = [
            f"{sum(c.k for c in self.categories)} of {sum(c.candidates for c in self.categories)} candidates of "
            f"`{self.pool}`, embedded by {self.embedder} ({self.dimensions} dimensions), seed {self.seed}. "
            f"Mean pairwise cosine similarity; random is the mean of {self.random_draws} draws. Candidates under "
            "*cut* are longer than the model sees and count by their beginning; *saved* is against random.",
            "",
            "| category | candidates | cut | k | whole pool | random | greedy | greedy + swaps | swaps | saved |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for c in self.categories:
            cut = "–" if c.cut is None else str(c.cut)
            similarities = (f"{v:.4f}" if v is not None else "–" for v in (c.pool, c.random, c.greedy, c.chosen))
            cells = (c.category, str(c.candidates), cut, str(c.k), *similarities, str(c.swaps), _saved(c))
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"


def _saved(report: CategoryReport) -> str:
    """By how much the choice is below a random one."""
    if not report.random or report.chosen is None or report.random <= 0:
        return "–"
    return f"{1 - report.chosen / report.random:.0%}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("pool", type=Path, help="JSON lines with a category and a prompt each")
    parser.add_argument("output", type=Path, help=f"folder for {FILE}, {REPORT} and its table; a dataset to measure")
    parser.add_argument("--k", type=int, default=DEFAULT_K, help="prompts per category (default: %(default)s)")
    parser.add_argument(
        "--embedder",
        default=embedding.MINILM,
        metavar="WHICH",
        help=f"{embedding.MINILM} (offline), {embedding.OPENAI} ({embedding.OPENAI_MODEL}, paid), "
        f"{embedding.OPENAI}:MODEL, or a folder of a sentence-transformers model (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="decides the prompt to start from (default: %(default)s)")
    parser.add_argument("--report", type=Path, help=f"where to write the report (default: OUTPUT/{REPORT})")
    parser.add_argument("--picture", type=Path, help="also draw the report, as .png or .svg")
    parser.add_argument("--allow-short", action="store_true", help="take all of a category with fewer than k prompts")
    parser.add_argument("--yes", action="store_true", help="send texts to a paid service without asking")


def command(arguments: argparse.Namespace) -> int:
    """Run the command as its arguments say and print the table; 0. Raises ConfigError as ``run`` does."""
    report = run(
        arguments.pool,
        arguments.output,
        k=arguments.k,
        embedder=arguments.embedder,
        seed=arguments.seed,
        report=arguments.report,
        picture=arguments.picture,
        allow_short=arguments.allow_short,
        agree=_print if arguments.yes else _ask,
        progress=_show_progress,
        environ=os.environ,
    )
    print(report.markdown())
    print(f"measure it with: pytest --speedbench-dataset={arguments.output}")
    return 0


def run(
    pool_path: Path,
    output: Path,
    *,
    k: int,
    embedder: str,
    seed: int,
    report: Path | None = None,
    picture: Path | None = None,
    allow_short: bool = False,
    agree: Callable[[str], None],
    progress: Callable[[int, int], None] = lambda done, total: None,
    environ: Mapping[str, str],
) -> CurationReport:
    """Choose ``k`` prompts of every category of ``pool_path``; write them to ``output`` as a dataset.

    ``output`` is a folder: it gets ``qualitative.jsonl``, and the report as JSON and, beside it, as Markdown,
    unless ``report`` names another place. The prompts are the same for the same candidates, embedder and
    seed, in whatever order the file has them. ``agree`` is called before texts leave the machine.

    Raises ConfigError for a pool, embedder or k that cannot work, before anything is embedded where that
    can be known. Files are either whole or not there.
    """
    if k < 2:
        raise ConfigError(f"--k {k}: at least 2 prompts per category, or there is nothing to be unlike")
    report = report or output / REPORT
    places = (output / FILE, report, report.with_suffix(".md"), *([picture] if picture else []))
    for place in places:
        if place.resolve() == pool_path.resolve():
            raise ConfigError(f"{place}: would replace the pool; choose another output folder")
    draw = _painter(picture) if picture else None
    candidates = pool.read_pool(pool_path)
    by_category = candidates.by_category()
    short = {category: len(rows) for category, rows in by_category.items() if len(rows) < k}
    if short and not allow_short:
        named = ", ".join(f"{category} ({n})" for category, n in short.items())
        raise ConfigError(
            f"{pool_path}: fewer than {k} candidates in {named}; add some, lower --k, or take all of them with "
            "--allow-short"
        )
    source = embedding.embedder_of(embedder, environ)
    texts = {category: [pool.text_of(row) for row in rows] for category, rows in by_category.items()}
    vectors = embedding.embed(
        [text for members in texts.values() for text in members],
        source,
        embedding.cache_folder(environ),
        agree=agree,
        progress=progress,
    )
    chosen: list[Row] = []
    categories: list[CategoryReport] = []
    first = 0
    for category, rows in by_category.items():
        ids = [row.question_id for row in rows]
        unit = curation.unit_vectors(vectors[first : first + len(rows)], ids)
        first += len(rows)
        selection = curation.select(unit, ids, min(k, len(rows)), seed)
        chosen += [rows[i] for i in selection.chosen]
        categories.append(_category(category, ids, unit, selection, seed, source.cut(texts[category])))
    result = CurationReport(
        pool=pool_path.name,
        repeated=candidates.repeated,
        embedder=source.name,
        dimensions=vectors.shape[1],
        k=k,
        seed=seed,
        random_draws=RANDOM_DRAWS,
        categories=tuple(categories),
    )
    write_atomic(places[0], "".join(json.dumps(pool.record(row), ensure_ascii=False) + "\n" for row in chosen).encode())
    write_atomic(places[1], result.json().encode())
    write_atomic(places[2], result.markdown().encode())
    if picture and draw:
        write_atomic(picture, draw(result))
    return result


def _category(
    category: str, ids: Sequence[str], unit: curation.Vectors, selection: curation.Selection, seed: int, cut: int | None
) -> CategoryReport:
    def similarity(positions: Sequence[int]) -> float | None:
        return curation.mean_similarity(unit[list(positions)])

    k = len(selection.chosen)
    draws = [similarity(curation.random_sample(ids, k, f"{seed}/draw {i}")) for i in range(RANDOM_DRAWS)]
    known = [value for value in draws if value is not None]
    return CategoryReport(
        category=category,
        candidates=len(ids),
        cut=cut,
        k=k,
        pool=curation.mean_similarity(unit),
        random=fmean(known) if known else None,
        random_least=min(known, default=None),
        greedy=similarity(selection.greedy),
        chosen=similarity(selection.chosen),
        swaps=selection.swaps,
    )


def _painter(picture: Path) -> Callable[[CurationReport], bytes]:
    """What draws a report in the format of ``picture``. Raises ConfigError where that cannot be."""
    form = picture.suffix.removeprefix(".").lower()
    if form not in ("png", "svg"):
        raise ConfigError(f"--picture {picture}: the name must end in .png or .svg")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(f"--picture needs matplotlib: {embedding.INSTALL}")

    def draw(report: CurationReport) -> bytes:
        # No pyplot: it opens a display and keeps figures for the whole process.
        import matplotlib as mpl
        from matplotlib.figure import Figure

        figure = Figure(figsize=(max(6.0, 1.1 * len(report.categories) + 1.5), 4.2), layout="constrained")
        axes = figure.subplots()
        width = 0.8 / len(_SERIES)
        for i, (label, name) in enumerate(_SERIES):
            heights = [getattr(c, name) or 0.0 for c in report.categories]
            places = [x + (i - (len(_SERIES) - 1) / 2) * width for x in range(len(heights))]
            axes.bar(places, heights, width, label=label, color=_COLOURS[i])
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xticks(range(len(report.categories)), [c.category for c in report.categories], rotation=25, ha="right")
        axes.set_ylabel("mean pairwise cosine similarity")
        axes.set_title(f"{report.k} prompts per category · {report.embedder}", fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(ncols=len(_SERIES), frameon=False, fontsize="small")
        data = io.BytesIO()
        # The same report gives the same bytes.
        with mpl.rc_context({"svg.hashsalt": "speedbench"}):
            figure.savefig(data, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
        return data.getvalue()

    return draw


_COLOURS = ("#bbbbbb", "#88ccee", "#4477aa", "#222255")
"""From light to dark, so that they differ in print and to colour-blind readers."""


def _ask(notice: str) -> None:
    if not sys.stdin.isatty():
        raise ConfigError(f"{notice}. Nothing was sent; pass --yes to agree")
    if input(f"{notice}. Send them? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ConfigError("nothing was sent")


def _print(notice: str) -> None:
    print(notice, file=sys.stderr)


def _show_progress(done: int, total: int) -> None:
    print(f"embedded {done} of {total}", file=sys.stderr)

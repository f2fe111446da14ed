"""``speedbench data buckets``: a throughput dataset of exact lengths from prompts of one's own."""

from __future__ import annotations

import argparse
import dataclasses
import json
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_speedbench import tokenize
from pytest_speedbench.cells import isl_tokens
from pytest_speedbench.columns import aligned
from pytest_speedbench.data import counting, manifest, tiers
from pytest_speedbench.data.buckets import fit
from pytest_speedbench.data.lengths import Lengths
from pytest_speedbench.data.pool import record
from pytest_speedbench.data.reading import read_rows
from pytest_speedbench.data.schema import Row, some_ids
from pytest_speedbench.data.selection import select
from pytest_speedbench.errors import ConfigError
from pytest_speedbench.names import CATEGORIES, DIFFICULTIES, ISLS

PER_CELL = 512
"""Prompts of a SPEED-Bench throughput cell."""
_WITH_CATEGORIES, _WITH_TIERS = "qualitative", "throughput_1k"  # configs whose rows a pool may have


@dataclass(frozen=True, slots=True)
class BucketReport:
    """One ISL and difficulty.

    ``prompts`` is the sum of those that were ``padded``, ``cut`` and already ``exact``; ``filler_share`` is
    the share of all tokens that are filler. ``tokens`` is counted again in the text that was written,
    ``templated`` with the target's own tokenizer and chat template (None where none was given).
    """

    isl: str
    difficulty: str
    prompts: int
    padded: int
    cut: int
    exact: int
    filler_share: float
    tokens: Lengths
    templated: Lengths | None


@dataclass(frozen=True, slots=True)
class BucketsReport:
    """A whole dataset: whose tokens its lengths are, how difficulties were given, and its cells."""

    id: str
    tokenizer: str
    target: str | None
    tiers: str
    max_padding: float
    seed: int
    cells: tuple[BucketReport, ...]

    def lines(self) -> Iterator[str]:
        """The report as text, one line per cell."""
        yield f"{self.id}: lengths in tokens of {self.tokenizer}; difficulty: {self.tiers}"
        head = ["cell", "prompts", "padded", "cut", "exact", "filler", "tokens min/max"]
        if self.target:
            head.append(f"templated for {self.target} min/mean/max")
        yield from aligned([head, *(self._row(cell) for cell in self.cells)])

    @staticmethod
    def _row(cell: BucketReport) -> list[str]:
        counts = (cell.prompts, cell.padded, cell.cut, cell.exact)
        row = [f"{cell.isl}-{cell.difficulty}", *map(str, counts), f"{cell.filler_share:.1%}"]
        row.append(f"{cell.tokens.min}/{cell.tokens.max}")
        if cell.templated:
            row.append(str(cell.templated))
        return row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("pool", type=Path, help="prompts: a .jsonl or .parquet file in SPEED-Bench's rows, or a folder")
    parser.add_argument("output", type=Path, help="folder to write, which must not exist yet; a dataset to measure")
    parser.add_argument(
        "--isl", type=_names, default=ISLS, metavar="ISL[,ISL…]", help=f"buckets (default: {','.join(ISLS)})"
    )
    parser.add_argument(
        "--tokenizer",
        default=counting.O200K,
        metavar="WHICH",
        help="what lengths are counted with: %(default)s as in SPEED-Bench (the default), a folder or a .gguf file",
    )
    parser.add_argument(
        "--target", metavar="PATH", help="also report lengths with the chat template of this folder or .gguf file"
    )
    parser.add_argument(
        "--tier",
        type=_pairs,
        action="append",
        default=[],
        metavar="CATEGORY=DIFFICULTY[,…]",
        help=f"difficulty of a category: {', '.join(DIFFICULTIES)}, or {tiers.SKIP} to leave it out",
    )
    parser.add_argument("--tier-file", type=Path, metavar="FILE", help="the same for categories or question_ids, YAML")
    parser.add_argument(
        "--entropy", type=Path, metavar="FILE", help="measured difficulty: JSON lines with question_id and entropy"
    )
    parser.add_argument(
        "--entropy-cuts", type=_cuts, metavar="LOW,HIGH", help="where difficulties part (default: thirds of the pool)"
    )
    parser.add_argument(
        "--per-cell",
        type=_count,
        default=PER_CELL,
        metavar="N",
        help="prompts per bucket and difficulty, or all (default: %(default)s)",
    )
    parser.add_argument("--allow-short", action="store_true", help="cells may have fewer prompts, or be missing")
    parser.add_argument(
        "--max-padding",
        type=_share,
        default=1.0,
        metavar="SHARE",
        help="largest share of a prompt that may be filler, such as 20%% (default: 100%%, as upstream)",
    )
    parser.add_argument("--seed", type=int, default=0, help="decides which prompts are taken (default: %(default)s)")
    parser.add_argument("--id", help="name of the dataset in thresholds files (default: the name of the folder)")


def command(arguments: argparse.Namespace) -> int:
    """Run the command as its arguments say and print the report; 0. Raises ConfigError as ``run`` does."""
    report = run(
        arguments.pool,
        arguments.output,
        isls=arguments.isl,
        tokenizer=arguments.tokenizer,
        rule=_rule(arguments),
        per_cell=arguments.per_cell,
        seed=arguments.seed,
        allow_short=arguments.allow_short,
        max_padding=arguments.max_padding,
        target=arguments.target,
        dataset_id=arguments.id,
    )
    for line in report.lines():
        print(line)
    print(f"measure it with: pytest --speedbench-dataset={arguments.output} --speedbench-split=throughput")
    return 0


def run(
    pool: Path,
    output: Path,
    *,
    isls: Sequence[str] = ISLS,
    tokenizer: str = counting.O200K,
    rule: tiers.Rule,
    per_cell: int | None = PER_CELL,
    seed: int = 0,
    allow_short: bool = False,
    max_padding: float = 1.0,
    target: str | None = None,
    dataset_id: str | None = None,
) -> BucketsReport:
    """Cut and pad the prompts of ``pool`` to ``isls`` and write them to ``output`` as a dataset.

    ``rule`` gives difficulties. Each bucket and difficulty gets ``per_cell`` prompts (None: all there are),
    the same for the same pool and ``seed`` in whatever order its rows stand; a prompt that would be filler
    by more than ``max_padding`` (0 to 1) of its tokens is not taken. ``tokenizer`` is what
    ``counting.load`` takes, ``target`` what ``tokenize.load`` takes.

    ``output`` gets ``throughput_<isl>.jsonl`` and a ``manifest.json`` with the report; it is whole, or it is
    not there. A row keeps its question_id and source; its category becomes its difficulty, and what was
    its category its sub_category.

    Raises ConfigError for a pool with placeholders, with several turns in a row or with an id twice, for
    cells with too few prompts unless ``allow_short``, for one without any at all, and for an ``output`` that exists.
    """
    unknown = [isl for isl in isls if isl not in ISLS]
    if unknown or not isls:
        raise ConfigError(f"no ISL bucket {', '.join(unknown) or 'given'}; the buckets are {', '.join(ISLS)}")
    if output.exists() or output.is_symlink():
        raise ConfigError(f"{output} exists; name a new folder, so that nothing is overwritten")
    rows = _read(pool)
    assigned = rule(rows)
    count = counting.load(tokenizer)
    chat = None if target is None else tokenize.load(target)
    by_tier = {
        tier: [_tiered(row, tier) for row in rows if assigned.by_id.get(row.question_id) == tier]
        for tier in DIFFICULTIES
    }
    ordered = [isl for isl in ISLS if isl in isls]
    chosen = _chosen(by_tier, ordered, count, per_cell=per_cell, max_padding=max_padding, seed=seed)
    _refuse_short(pool, chosen, per_cell, allow_short=allow_short)
    name = dataset_id or output.resolve().name
    partial = output.parent / f".{output.name}.{secrets.token_hex(4)}.tmp"
    try:
        partial.mkdir(parents=True)
        try:
            cells = tuple(
                cell for isl in ordered for cell in _write_bucket(partial, isl, chosen[isl], count=count, chat=chat)
            )
            report = BucketsReport(
                id=name,
                tokenizer=count.name,
                target=None if target is None else Path(target).name,
                tiers=assigned.rule,
                max_padding=max_padding,
                seed=seed,
                cells=cells,
            )
            _write_manifest(partial, report)
            partial.rename(output)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror or error}") from None
    return report


def _read(pool: Path) -> tuple[Row, ...]:
    """The prompts of a file, or of the files in a folder and below it in the order of their names."""
    paths = [pool]
    if pool.is_dir():
        paths = sorted(path for path in pool.rglob("*") if path.suffix in (".jsonl", ".parquet") and path.is_file())
    elif pool.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"{pool}: expected a folder, or a file that ends in .jsonl or .parquet")
    rows = tuple(row for path in paths for row in _read_file(path))
    if not rows:
        raise ConfigError(f"{pool}: no prompts; expected .jsonl or .parquet files with the columns of SPEED-Bench")
    repeated = [name for name, number in Counter(row.question_id for row in rows).items() if number > 1]
    if repeated:
        raise ConfigError(f"{pool}: the same question_id more than once: {some_ids(repeated)}; ids must be unique")
    masked = [row.question_id for row in rows if row.is_placeholder]
    if masked:
        raise ConfigError(
            f"{pool}: {len(masked)} of {len(rows)} prompts are placeholders of SPEED-Bench ({some_ids(masked)}); run "
            "upstream's prepare step first, or take them out"
        )
    several = [row.question_id for row in rows if len(row.turns) > 1]
    if several:
        raise ConfigError(
            f"{pool}: {len(several)} of {len(rows)} prompts have several turns ({some_ids(several)}), and a bucket "
            "is the length of one; keep the turn that is meant"
        )
    return rows


def _read_file(path: Path) -> Iterator[Row]:
    try:
        next(read_rows(path, _WITH_TIERS), None)
        config = _WITH_TIERS
    except ConfigError:
        # Then it has categories, or what is wrong with it shows when it is read as such.
        config = _WITH_CATEGORIES
    return (row for _, row in read_rows(path, config))


def _tiered(row: Row, tier: str) -> Row:
    origin = row.category if row.category in CATEGORIES else row.sub_category
    return dataclasses.replace(row, category=tier, sub_category=origin)


def _chosen(
    by_tier: Mapping[str, Sequence[Row]],
    isls: Sequence[str],
    count: counting.Counting,
    *,
    per_cell: int | None,
    max_padding: float,
    seed: int,
) -> dict[str, dict[str, tuple[Row, ...]]]:
    """The prompts of each bucket by difficulty."""
    # Where all may be padded, lengths are not needed yet, and the pool may be large.
    lengths = (
        {row.question_id: len(count.encode(row.turns[0])) for rows in by_tier.values() for row in rows}
        if max_padding < 1
        else {}
    )

    def fits(row: Row, target: int) -> bool:
        return max_padding >= 1 or lengths[row.question_id] >= target * (1 - max_padding)

    return {
        isl: {
            tier: select([row for row in rows if fits(row, isl_tokens(isl))], per_cell, seed)
            for tier, rows in by_tier.items()
        }
        for isl in isls
    }


def _refuse_short(
    pool: Path, chosen: Mapping[str, Mapping[str, Sequence[Row]]], per_cell: int | None, *, allow_short: bool
) -> None:
    sizes = {f"{isl}-{tier}": len(rows) for isl, by_tier in chosen.items() for tier, rows in by_tier.items()}
    empty = [isl for isl, by_tier in chosen.items() if not any(by_tier.values())]
    if empty:
        raise ConfigError(
            f"{pool}: no prompt for {', '.join(empty)}; allow more filler, or leave the bucket out (--isl)"
        )
    short = {cell: size for cell, size in sizes.items() if size < (per_cell or 1)}
    if short and not allow_short:
        shown = ", ".join(f"{cell} ({size})" for cell, size in short.items())
        raise ConfigError(
            f"{pool}: fewer than {per_cell or 1} prompts for {shown}; add some, lower --per-cell, allow more filler, "
            "or take what there is with --allow-short"
        )


def _write_bucket(
    folder: Path,
    isl: str,
    by_tier: Mapping[str, Sequence[Row]],
    *,
    count: counting.Counting,
    chat: tokenize.ChatTokenizer | None,
) -> Iterator[BucketReport]:
    target = isl_tokens(isl)
    with (folder / _file_name(isl)).open("wb") as file:
        for tier, rows in by_tier.items():
            if not rows:
                continue
            before, after = [], []
            texts = []
            for row in rows:
                ids = count.encode(row.turns[0])
                text = fit(row.turns[0], target, count.encode, count.decode, ids)
                if not text.strip():
                    raise ConfigError(f"question {row.question_id}: its first {target} tokens are blank; leave it out")
                before.append(len(ids))
                after.append(len(count.encode(text)))
                if chat is not None:
                    texts.append((row.question_id, text))
                line = json.dumps(record(dataclasses.replace(row, turns=(text,))), ensure_ascii=False)
                file.write(line.encode() + b"\n")
            filler = sum(max(now - was, 0) for was, now in zip(before, after, strict=True))
            yield BucketReport(
                isl=isl,
                difficulty=tier,
                prompts=len(rows),
                padded=sum(was < target for was in before),
                cut=sum(was > target for was in before),
                exact=sum(was == target for was in before),
                filler_share=filler / sum(after),
                tokens=Lengths.of(after),
                templated=None if chat is None else Lengths.of([len(ids) for ids in chat.first_ids(texts)]),
            )


def _file_name(isl: str) -> str:
    return f"throughput_{isl}.jsonl"


def _write_manifest(folder: Path, report: BucketsReport) -> None:
    rows = Counter[str]()
    for cell in report.cells:
        rows[_file_name(cell.isl)] += cell.prompts
    content = {
        "id": report.id,
        "tokenizer": report.tokenizer,
        "files": {
            name: {"sha256": manifest.sha256_of(folder / name), "rows": number} for name, number in sorted(rows.items())
        },
        "buckets": dataclasses.asdict(report),
    }
    text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    (folder / manifest.NAME).write_bytes(text.encode())


def _rule(arguments: argparse.Namespace) -> tiers.Rule:
    pairs: dict[str, str] = {}
    for given in arguments.tier:
        pairs |= given
    if arguments.entropy is None:
        if arguments.entropy_cuts is not None:
            raise ConfigError("--entropy-cuts needs --entropy, the file with the measurements")
        from_file = {} if arguments.tier_file is None else tiers.read_names(arguments.tier_file)
        return tiers.by_name(from_file | pairs)
    if pairs or arguments.tier_file is not None:
        raise ConfigError("--entropy beside --tier or --tier-file: difficulty is measured or given, not both")
    return tiers.by_entropy(arguments.entropy, arguments.entropy_cuts)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _pairs(text: str) -> dict[str, str]:
    pairs = [name.partition("=") for name in _names(text)]
    if not pairs or any(not name or not value for name, _, value in pairs):
        raise argparse.ArgumentTypeError(f"{text!r}: expected category=difficulty, such as coding={DIFFICULTIES[0]}")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _cuts(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected two numbers, such as 0.8,1.6") from None
    return low, high


def _count(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 1 up, or all")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a share from 0 to 1, such as 20%")
    return share

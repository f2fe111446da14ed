"""``speedbench data``: check a dataset, choose prompts for one, cut and pad them to ISL buckets."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pytest_speedbench.cells import Cell
from pytest_speedbench.data import curate, make_buckets

if TYPE_CHECKING:
    from pytest_speedbench.data.dataset import Dataset
    from pytest_speedbench.tokenize import ChatTokenizer


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Make ``data`` and its subcommands known."""
    data = commands.add_parser("data", help="check, choose and prepare prompts")
    subcommands = data.add_subparsers(required=True, metavar="COMMAND")
    check = subcommands.add_parser("check", help="read a dataset in full and show what it has per cell")
    check.add_argument("dataset", metavar="DATASET", help="folder, hub id with its commit, or mini")
    check.add_argument("--tokenizer", metavar="PATH", help="also show input lengths, chat template included")
    check.add_argument("--allow-partial", action="store_true", help="placeholders are no problem")
    check.set_defaults(run=_check)
    choose = subcommands.add_parser("curate", help="choose prompts that differ, as SPEED-Bench does")
    curate.add_arguments(choose)
    choose.set_defaults(run=curate.command)
    cut = subcommands.add_parser("buckets", help="cut and pad prompts to ISL buckets")
    make_buckets.add_arguments(cut)
    cut.set_defaults(run=make_buckets.command)


def _check(arguments: argparse.Namespace) -> int:
    """Print the inventory; 1 when there are placeholders that were not allowed."""
    from pytest_speedbench import tokenize
    from pytest_speedbench.data.loading import load, prepare_command

    dataset = load(arguments.dataset, allow_partial=True)
    tokenizer = None if arguments.tokenizer is None else tokenize.load(arguments.tokenizer)
    print(f"{dataset.id}  {dataset.path}")
    for line in _table([_HEAD, *_rows(dataset, tokenizer)]):
        print(line)
    if tokenizer is not None:
        for line in _spelled(dataset, tokenizer):
            print(line)
    if not dataset.masked:
        return 0
    total = sum(map(len, dataset.masked.values()))
    print(
        f"{total} prompts are placeholders; {prepare_command(dataset.masked)} fetches their text. Without it, "
        "--speedbench-allow-partial measures the rest",
        file=sys.stderr,
    )
    return 0 if arguments.allow_partial else 1


_HEAD = ("cell", "prompts", "masked", "multi-turn", "turns", "characters", "tokens min/mean/max", "sha256")


def _rows(dataset: Dataset, tokenizer: ChatTokenizer | None) -> Iterator[tuple[str, ...]]:
    for item in dataset.inventory():
        yield (
            item.point.id(with_concurrency=False),
            *(str(n) for n in (item.prompts, item.masked, item.multiturn, item.turns, item.characters)),
            _lengths(dataset, item.point, tokenizer) if tokenizer is not None and item.prompts else "–",
            item.sha256[:12] if item.prompts else "–",
        )


def _lengths(dataset: Dataset, point: Cell, tokenizer: ChatTokenizer) -> str:
    rows = dataset.rows(dataset.prompts(point))
    lengths = [len(tokenizer.ids([{"role": "user", "content": row.turns[0]}])) for row in rows]
    return f"{min(lengths)}/{sum(lengths) / len(lengths):.0f}/{max(lengths)}"


def _spelled(dataset: Dataset, tokenizer: ChatTokenizer) -> Iterator[str]:
    """Prompts whose text spells special tokens, which an engine takes for what they are: the end of a turn, say."""
    found = {
        row.question_id: ", ".join(
            dict.fromkeys(token for turn in row.turns for token in tokenizer.spelled_specials(turn))
        )
        for entries in dataset.entries_by_config.values()
        for row in dataset.rows(entries)
    }
    for question_id, tokens in found.items():
        if tokens:
            yield f"{question_id} spells special tokens: {tokens}"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as they need, numbers to the right; columns without any value are left out."""
    columns = [column for column in zip(*rows, strict=True) if any(text != "–" for text in column[1:])]
    widths = [max(map(len, column)) for column in columns]
    for cells in zip(*columns, strict=True):
        first, *rest = zip(cells, widths, strict=True)
        yield "  ".join([first[0].ljust(first[1]), *(text.rjust(width) for text, width in rest)])

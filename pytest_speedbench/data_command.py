"""``speedbench data``: check a dataset, choose prompts for one, cut and pad them to ISL buckets."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pytest_speedbench.columns import aligned
from pytest_speedbench.data import curate, make_buckets
from pytest_speedbench.data.lengths import Lengths

if TYPE_CHECKING:
    from pytest_speedbench.data.dataset import Inventory
    from pytest_speedbench.data.schema import Row
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
    rows: list[tuple[str, ...]] = [_HEAD]
    spelled: list[str] = []
    for item in dataset.inventory():
        texts = dataset.rows(dataset.prompts(item.point)) if tokenizer is not None and item.prompts else ()
        rows.append(_row(item, texts, tokenizer))
        spelled += _spelled(texts, tokenizer)
    print(f"{dataset.id}  {dataset.path}")
    # Without a tokenizer nothing is known of lengths.
    shown = [column for column in zip(*rows, strict=True) if any(text != _NOTHING for text in column[1:])]
    for line in (*aligned(list(zip(*shown, strict=True))), *spelled):
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
_NOTHING = "–"


def _row(item: Inventory, texts: Sequence[Row], tokenizer: ChatTokenizer | None) -> tuple[str, ...]:
    lengths = _NOTHING
    if tokenizer is not None and texts:
        first_ids = tokenizer.first_ids([(row.question_id, row.turns[0]) for row in texts])
        lengths = str(Lengths.of([len(ids) for ids in first_ids]))
    return (
        item.point.id(with_concurrency=False),
        *(str(n) for n in (item.prompts, item.masked, item.multiturn, item.turns, item.characters)),
        lengths,
        item.sha256[:12] if item.prompts else _NOTHING,
    )


def _spelled(texts: Sequence[Row], tokenizer: ChatTokenizer | None) -> Iterator[str]:
    """Prompts whose text spells special tokens, which an engine takes for what they are: the end of a turn, say."""
    if tokenizer is None:
        return
    for row in texts:
        tokens = dict.fromkeys(token for turn in row.turns for token in tokenizer.spelled_specials(turn))
        if tokens:
            yield f"{row.question_id} spells special tokens: {', '.join(tokens)}"

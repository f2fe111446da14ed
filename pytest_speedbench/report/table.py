"""Lines of coloured segments, and a table that leaves columns out until it fits."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from pytest_speedbench.report.wording import MISSING, ascii_only

Markup: TypeAlias = dict[str, bool]
Segment: TypeAlias = tuple[str, Markup]
Line: TypeAlias = list[Segment]

BOLD: Markup = {"bold": True}
GAP = "  "
NARROWEST = 40


@dataclass(frozen=True, slots=True)
class Column:
    """One column. ``drop`` says how early it goes when space is short: highest first, 0 never."""

    title: str
    drop: int = 0
    left: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One text per column, markup by column title, and lines that belong below."""

    cells: tuple[str, ...]
    markup: dict[str, Markup]
    details: tuple[str, ...] = ()


def table(columns: Sequence[Column], rows: Sequence[Row], *, width: int, encoding: str) -> list[Line]:
    """The header and the rows. Columns in which every row has nothing are left out."""
    grid = [tuple(fit_encoding(cell, encoding) for cell in row.cells) for row in rows]
    nothing = fit_encoding(MISSING, encoding)
    shown = [i for i, c in enumerate(columns) if c.drop == 0 or any(cells[i] != nothing for cells in grid)]
    sizes = [max([len(c.title), *(len(cells[i]) for cells in grid)]) for i, c in enumerate(columns)]
    while _total(sizes, shown) > width and any(columns[i].drop for i in shown):
        shown.remove(max(shown, key=lambda i: columns[i].drop))
    # Even what is never left out can be too much for a narrow pane: the first column gives way.
    sizes[0] = max(min(8, sizes[0]), sizes[0] - max(0, _total(sizes, shown) - width))

    def line(cells: Sequence[str], markup: dict[str, Markup], default: Markup) -> Line:
        segments: Line = []
        for i in shown:
            column, size = columns[i], sizes[i]
            text = shorten(cells[i], size, encoding)
            text = text.ljust(size) if column.left else text.rjust(size)
            if i == shown[-1]:
                text = text.rstrip()
            segments += [(text, markup.get(column.title, default)), (GAP, {})]
        return segments[:-1]

    lines = [line([column.title for column in columns], {}, BOLD)]
    for cells, row in zip(grid, rows, strict=True):
        lines.append(line(cells, row.markup, {}))
        for detail in row.details:
            lines += [[(text, {})] for text in wrap(detail, width, "    ", encoding)]
    return lines


def wrap(text: str, width: int, indent: str, encoding: str) -> list[str]:
    """Text over several indented lines; continuation lines are indented further."""
    return textwrap.wrap(
        fit_encoding(text, encoding),
        max(width, NARROWEST),
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_on_hyphens=False,
    )


def shorten(text: str, size: int, encoding: str) -> str:
    """Text of at most ``size`` characters, its cut marked."""
    mark = fit_encoding("…", encoding)
    return text if len(text) <= size else text[: max(0, size - len(mark))] + mark


def fit_encoding(text: str, encoding: str) -> str:
    """Text that a terminal of this encoding can show; in anything but UTF-8, plain ASCII."""
    return text if is_utf8(encoding) else ascii_only(text)


def is_utf8(encoding: str) -> bool:
    """Whether an encoding is one of the names of UTF-8."""
    return encoding.lower().replace("-", "").replace("_", "") in {"utf8", "utf8sig"}


def plain(lines: Sequence[Line]) -> str:
    """The text of lines, without markup."""
    return "\n".join("".join(text for text, _ in line) for line in lines)


def _total(sizes: Sequence[int], shown: Sequence[int]) -> int:
    return sum(sizes[i] for i in shown) + len(GAP) * (len(shown) - 1)

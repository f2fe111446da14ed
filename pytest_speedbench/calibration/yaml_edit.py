"""Change single values of a YAML text and leave every other byte as it is.

A round trip through a parser keeps comments, but not quotes, indentation, the layout of flow style or
CRLF; what a reviewer sees in the diff should be what changed. So values are replaced, added and
removed in the text itself, at the places that PyYAML's nodes know of.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import yaml

from pytest_speedbench.errors import ConfigError

_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_WORD = re.compile(r"[A-Za-z][\w./@+-]*", re.ASCII)
_COMMENT = re.compile(r"([ \t]*)#")
_STEP = "  "


@dataclass(frozen=True, slots=True)
class Items:
    """Entries to append to a list, as YAML in flow style, or as mappings."""

    items: tuple[Wanted, ...]


Wanted = str | Items | Mapping[str, "Wanted | None"]
"""What a value shall be: YAML text on one line, entries to append, or a mapping of such; None removes it."""


@dataclass(frozen=True, slots=True)
class _Splice:
    start: int
    end: int
    text: str


def edited(raw: bytes, name: str, wanted: Mapping[str, Wanted | None], changes: Sequence[Place] = ()) -> bytes:
    """The file ``raw`` with the top-level keys of ``wanted`` and, further down, ``changes``.

    ``name`` is the file's name in errors. Raises ConfigError where the text uses aliases, or where a
    value to change carries an anchor or a tag.
    """
    text = raw.decode("utf-8-sig")
    bom = raw[: len(raw) - len(text.encode())]
    editor = _Editor(text, name)
    splices = list(editor.update(editor.root, wanted))
    for place in changes:
        splices += editor.update(editor.find(place.path), place.wanted)
    return bom + _applied(text, splices).encode()


@dataclass(frozen=True, slots=True)
class Place:
    """A mapping inside the file, found by keys and list indices, and what it shall hold."""

    path: tuple[str | int, ...]
    wanted: Mapping[str, Wanted | None]


def scalar(value: str | float | bool) -> str:
    """A value as YAML text, quoted where YAML would read something else."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return plain_number(value)
    node = yaml.compose(value, Loader=yaml.SafeLoader) if _WORD.fullmatch(value) else None
    if node is not None and node.tag == "tag:yaml.org,2002:str":
        return value
    return '"' + "".join(map(_escaped, value)) + '"'


def plain_number(number: float) -> str:
    """A number without an exponent, which YAML readers disagree on."""
    text = format(Decimal(repr(number)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return character if character.isprintable() else f"\\U{ord(character):08x}"


def flow(value: Wanted | None) -> str:
    """``value`` on one line."""
    match value:
        case str():
            return value
        case Items():
            return "[" + ", ".join(map(flow, value.items)) + "]"
        case None:
            return "null"
    return "{" + ", ".join(f"{key}: {flow(own)}" for key, own in value.items() if own is not None) + "}"


def block(value: Mapping[str, Wanted | None]) -> Iterator[str]:
    """``value`` in block style; what has no further levels stays on one line."""
    for key, own in value.items():
        if isinstance(own, Items):
            yield f"{key}:"
            yield from (_STEP + line for item in own.items for line in entry(item))
        elif isinstance(own, Mapping) and any(isinstance(inner, (Mapping, Items)) for inner in own.values()):
            yield f"{key}:"
            yield from (_STEP + line for line in block(own))
        elif own is not None:
            yield f"{key}: {flow(own)}"


def entry(value: Wanted) -> Iterator[str]:
    """``value`` as an entry of a list in block style."""
    deep = isinstance(value, Mapping) and any(isinstance(inner, (Mapping, Items)) for inner in value.values())
    lines = block(value) if deep and isinstance(value, Mapping) else iter((flow(value),))
    for number, line in enumerate(lines):
        yield (_STEP if number else "- ") + line


class _Editor:
    """One parsed text. Every method that yields splices leaves the text alone."""

    def __init__(self, text: str, name: str) -> None:
        self.text = text
        self.name = name
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise self._error(event, "an alias (*) cannot be edited in place; write the value out")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        assert isinstance(root, yaml.MappingNode), "a thresholds file is a mapping"
        self.root = root
        breaks = _BREAK.findall(text)
        self.newline = max(dict.fromkeys(breaks), key=breaks.count, default="\n")

    def find(self, path: Sequence[str | int]) -> yaml.MappingNode:
        """The mapping at ``path``, which has to exist."""
        node: yaml.Node = self.root
        for part in path:
            if isinstance(part, int):
                node = node.value[part]
            else:
                node = next(value for key, value in node.value if key.value == part)
        assert isinstance(node, yaml.MappingNode), f"{path} is no mapping"
        return node

    def update(self, node: yaml.MappingNode, wanted: Mapping[str, Wanted | None]) -> Iterator[_Splice]:
        """Make the mapping ``node`` hold ``wanted``; its other keys stay."""
        entries = {key.value: (key, value) for key, value in node.value}
        gone = [name for name in entries if name in wanted and wanted[name] is None]
        for name, own in wanted.items():
            if name in entries and own is not None:
                yield from self._change(entries[name][1], own)
        added = {name: own for name, own in wanted.items() if name not in entries and own is not None}
        kept = [pair for name, pair in entries.items() if name not in gone]
        if added:
            yield self._add(node, kept[-1][1] if kept else None, added)
        yield from self._remove(node, list(entries.values()), gone)

    def _change(self, node: yaml.Node, own: Wanted) -> Iterator[_Splice]:
        if isinstance(own, Mapping) and isinstance(node, yaml.MappingNode):
            yield from self.update(node, own)
        elif isinstance(own, Items) and isinstance(node, yaml.SequenceNode):
            yield self._append(node, own)
        elif not _same(node, flow(own)):
            if self.text[node.start_mark.index : node.start_mark.index + 1] in ("&", "!"):
                raise self._error(node, "a value with an anchor or a tag cannot be edited; write it without")
            yield _Splice(node.start_mark.index, self._end(node), flow(own))

    def _add(self, node: yaml.MappingNode, last: yaml.Node | None, added: Mapping[str, Wanted | None]) -> _Splice:
        if node.flow_style:
            text = flow(added)[1:-1]
            return self._insert(self._end(last), ", " + text) if last else self._insert(self._end(node) - 1, text)
        assert last is not None, "a mapping in block style has a key"
        column = node.value[0][0].start_mark.column
        return self._lines(self._line_end(self._end(last)), column, block(added))

    def _append(self, node: yaml.SequenceNode, own: Items) -> _Splice:
        if node.flow_style:
            text = flow(own)[1:-1]
            last = node.value[-1] if node.value else None
            return self._insert(self._end(last), ", " + text) if last else self._insert(self._end(node) - 1, text)
        column = node.start_mark.column
        at = self._line_end(self._end(node))
        while (comment := _COMMENT.match(self.text, self._next_line(at))) and len(comment[1]) > column:
            at = self._line_end(comment.end())
        return self._lines(at, column, (line for item in own.items for line in entry(item)))

    def _remove(
        self, node: yaml.MappingNode, entries: Sequence[tuple[yaml.Node, yaml.Node]], gone: Sequence[str]
    ) -> Iterator[_Splice]:
        for number, (key, value) in enumerate(entries):
            if key.value not in gone:
                continue
            if not node.flow_style:
                begin = key.start_mark.index - key.start_mark.column
                yield _Splice(begin, self._next_line(self._line_end(self._end(value))), "")
            elif any(later.value not in gone for later, _ in entries[number + 1 :]):
                yield _Splice(key.start_mark.index, entries[number + 1][0].start_mark.index, "")
            else:
                begin = self._end(entries[number - 1][1]) if number else key.start_mark.index
                yield _Splice(begin, self._end(value), "")

    def _insert(self, at: int, text: str) -> _Splice:
        return _Splice(at, at, text)

    def _lines(self, at: int, column: int, lines: Iterator[str]) -> _Splice:
        """Whole lines after the one that ends at ``at``."""
        return self._insert(at, "".join(self.newline + " " * column + line for line in lines))

    def _line_end(self, at: int) -> int:
        found = _BREAK.search(self.text, at)
        return found.start() if found else len(self.text)

    def _next_line(self, line_end: int) -> int:
        found = _BREAK.match(self.text, line_end)
        return found.end() if found else line_end

    def _end(self, node: yaml.Node) -> int:
        """Where a value ends; a collection in block style has a mark only behind the comments that follow it."""
        if isinstance(node, yaml.CollectionNode) and not node.flow_style:
            last = node.value[-1]
            return self._end(last[1] if isinstance(last, tuple) else last)
        begin, end = node.start_mark.index, node.end_mark.index
        return begin + len(self.text[begin:end].rstrip())

    def _error(self, at: yaml.Node | yaml.Event, message: str) -> ConfigError:
        return ConfigError(f"{self.name}:{at.start_mark.line + 1 if at.start_mark else 1}: {message}")


def _same(node: yaml.Node, text: str) -> bool:
    """Whether a value says already what ``text`` says, in whatever notation."""
    other = yaml.compose(text, Loader=yaml.SafeLoader)
    return _plain(node) == _plain(other)


def _plain(node: yaml.Node | None) -> object:
    if isinstance(node, yaml.ScalarNode):
        try:
            return float(node.value) if node.style is None else node.value
        except ValueError:
            return node.value
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    if node is None:
        return None
    return {key.value: _plain(value) for key, value in node.value}


def _applied(text: str, splices: Sequence[_Splice]) -> str:
    parts, at = [], 0
    for splice in sorted(splices, key=lambda splice: (splice.start, splice.end)):
        assert splice.start >= at, "changes overlap"
        parts += [text[at : splice.start], splice.text]
        at = splice.end
    return "".join([*parts, text[at:]])

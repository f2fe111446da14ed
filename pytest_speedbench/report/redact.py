"""Secrets out of everything that is written: by key, by value, and by well-known shape.

By key: ``--hf-token X``, ``{"api_key": "X"}``, ``Authorization: X``. By value: whatever the
environment holds under a name that looks secret is replaced wherever it occurs. The words of this
domain (``draft_tokens``, ``tokenizer``, ``eos_token_id``, ``num_key_value_heads``) are no secrets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import overload
from urllib.parse import quote

MASK = "***"
SHORTEST_VALUE = 8
"""Shorter values of secret variables are not scrubbed: they would hit ordinary words."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ALWAYS = _words(
    "secret secrets password passwords passwd passphrase pwd credential credentials authorization cookie bearer "
    "apikey apitoken accesskey privatekey authtoken"
)
_MOSTLY = _words("token key auth pat")
_PLURAL = _words("tokens keys")
_OWNERS = _words("api access auth hf refresh bearer github gitlab private session signing encryption")
# Only what goes with texts: numbers under "token" and "key" are harmless anyway.
_BENIGN = _words(
    "eos bos pad unk sep cls mask stop special image think max min num draft drafts per inter id ids count counts "
    "index value values cache sort primary path file dir sock latency prob probs logprobs budget limit size length "
    "type hash"
)
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}"
    r"|glpat-[A-Za-z0-9_-]{16,}|nvapi-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{16})\b"
)
_URL_USER = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_SCHEME = re.compile(r"(?i)\b(bearer|basic)(\s+)(?!\*\*\*)[A-Za-z0-9._~+/=-]{8,}")
_KEY = re.compile(r"""(?P<key>[A-Za-z][A-Za-z0-9_.-]*)\\*["']?\s*[=:]\s*(?:\\+["'])?""")
_VALUE = re.compile(r"""(?<=\\["'])[^"'\\]+|"[^"]*"|'[^']*'|[^\s"',;&{}\[\]]+""")
_WHOLE_PAIR = re.compile(r"(?s)(?P<key>-*[A-Za-z][A-Za-z0-9_.-]*)(?P<sep>\s*[=:]\s*)(?P<value>.+)")
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?")
_PLAIN = frozenset({"true", "false", "none", "null", '""', "''"})


def is_secret_key(name: str) -> bool:
    """Whether an option, variable, header or JSON key of this name holds a secret."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    words = [word for word in re.split(r"[^a-z0-9]+", spaced.lower()) if word]
    if any(word in _ALWAYS for word in words) and words[-1] not in {"path", "file", "dir"}:
        return True
    for position, word in enumerate(words):
        neighbours = {*words[max(0, position - 1) : position], *words[position + 1 : position + 2]}
        if word in _MOSTLY and not neighbours & _BENIGN:
            return True
        if word in _PLURAL and position and words[position - 1] in _OWNERS:
            return True
    return False


@dataclass(frozen=True, slots=True)
class Redactor:
    """Replaces secrets by ``***``. ``values`` are literal secrets, longest first."""

    values: tuple[str, ...] = ()

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Redactor:
        """A redactor that knows the values of all variables whose names look secret."""
        found: set[str] = set()
        for name, raw in environ.items():
            value = raw.strip()
            # The working directory and the one before are no passwords.
            if name in ("PWD", "OLDPWD") or not is_secret_key(name) or len(value) < SHORTEST_VALUE:
                continue
            found |= {value, quote(value, safe="")}
            # A key file in a variable is often quoted line by line.
            found |= {line.strip() for line in value.splitlines() if len(line.strip()) >= 2 * SHORTEST_VALUE}
        return cls(tuple(sorted(found, key=lambda value: (-len(value), value))))

    def value(self, text: str) -> str:
        """``text`` without known values, URL passwords, auth schemes and well-known token shapes."""
        for secret in self.values:
            text = text.replace(secret, MASK)
        text = _URL_USER.sub(MASK, text)
        text = _SCHEME.sub(rf"\1\2{MASK}", text)
        return _SHAPES.sub(MASK, text)

    def text(self, text: str) -> str:
        """Like ``value``, and also without the right side of ``key=…`` and ``key: …`` pairs."""
        return _without_pairs(self.value(text))

    def argv(self, argv: Sequence[str]) -> tuple[str, ...]:
        """A command line without the values of secret options, in the forms ``--x=v`` and ``--x v``."""
        clean: list[str] = []
        pending = False
        for argument in argv:
            # --speedbench-engine-arg carries another command line, one word at a time.
            carrier, equals, carried = argument.partition("=")
            is_carrier = carrier.startswith("--") and carrier.endswith("engine-arg")
            if is_carrier and not equals:
                clean.append(argument)
                continue
            prefix, word = (f"{carrier}=", carried) if is_carrier else ("", argument)
            option = word.startswith("-")
            clean.append(prefix + (MASK if pending and not option else self._word(word)))
            pending = option and "=" not in word and " " not in word and is_secret_key(word)
        return tuple(clean)

    def _word(self, word: str) -> str:
        pair = _WHOLE_PAIR.fullmatch(word)
        if pair and is_secret_key(pair["key"]) and not _harmless(pair["key"], pair["value"]):
            return f"{pair['key']}{pair['sep']}{MASK}"
        return self.text(word)

    def json(self, data: object) -> object:
        """A JSON value with secret keys masked and every string cleaned."""
        if isinstance(data, str):
            return self.text(data)
        if isinstance(data, Mapping):
            return self.mapping(data)
        if isinstance(data, Sequence):
            if all(isinstance(item, str) for item in data):
                return list(self.argv(data))
            return [self.json(item) for item in data]
        return data

    def mapping(self, data: Mapping[str, object]) -> dict[str, object]:
        """``json`` for an object."""
        return {self.value(str(key)): self._item(str(key), item) for key, item in data.items()}

    def _item(self, key: str, item: object) -> object:
        if item is None or isinstance(item, bool) or not is_secret_key(key) or _harmless(key, item):
            return self.json(item)
        return MASK

    def strings(self, data: object) -> object:
        """A JSON value with every string through ``value``, keys and structure untouched."""
        if isinstance(data, str):
            return self.value(data)
        if isinstance(data, dict):
            return {key: self.strings(item) for key, item in data.items()}
        if isinstance(data, list):
            return [self.strings(item) for item in data]
        return data


def _harmless(key: str, value: object) -> bool:
    """Whether a value is no secret although its key looks like one.

    A number under ``token`` is an id of the vocabulary; under ``password`` it is a password.
    """
    if isinstance(value, str) and (value == "" or value.lower() in _PLAIN):
        return True
    if not isinstance(value, (int, float, str)) or (isinstance(value, str) and not _NUMBER.fullmatch(value)):
        return False
    return not set(re.split(r"[^a-z0-9]+", key.lower())) & (_ALWAYS | _OWNERS)


def _without_pairs(text: str) -> str:
    """``text`` with the right sides of its secret ``key=value`` pairs masked, nested pairs included."""
    parts, at = [], 0
    for match in _KEY.finditer(text):
        value = _VALUE.match(text, match.end()) if match.start() >= at and is_secret_key(match["key"]) else None
        if value is None or _harmless(match["key"], value[0]) or value[0].lower() in {"bearer", "basic"}:
            continue
        quotes = value[0][0] if value[0][0] in "\"'" else ""
        parts += [text[at : value.start()], quotes, MASK, quotes]
        at = value.end()
    return "".join([*parts, text[at:]])


@overload
def redact(data: Mapping[str, object], environ: Mapping[str, str] = ...) -> dict[str, object]: ...
@overload
def redact(data: Sequence[str], environ: Mapping[str, str] = ...) -> tuple[str, ...]: ...
def redact(
    data: Mapping[str, object] | Sequence[str], environ: Mapping[str, str] | None = None
) -> dict[str, object] | tuple[str, ...]:
    """A command line (a sequence of words) or a mapping, without secrets."""
    redactor = Redactor.from_environ(environ or {})
    return redactor.mapping(data) if isinstance(data, Mapping) else redactor.argv(data)

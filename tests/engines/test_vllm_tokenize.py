"""A real vLLM on the CPU makes the same ids of our rendered chats, and counts the ids that we send.

Needs what tests/engines/test_vllm.py needs. The model is a tiny one with SmolLM2's tokenizer: what is
compared does not depend on weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from pytest_speedbench.engines.base import Capacity
from pytest_speedbench.engines.gpus import Nvml
from pytest_speedbench.running import Prepared
from pytest_speedbench.starting import started
from pytest_speedbench.tokenize import ChatTokenizer, Message, load
from tests.engines import test_vllm, tiny_model
from tests.engines.conftest import settings_of
from tests.engines.mini_rows import mini_rows
from tests.engines.test_tokenizers import TEXTS, chat

pytestmark = test_vllm.pytestmark


@dataclass(frozen=True)
class Served:
    """The tokenizer that we load and a server with the same files."""

    tokenizer: ChatTokenizer
    server: httpx.Client
    model: str

    def tokenize(self, text: str) -> tuple[int, ...]:
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        answer = self.server.post("/tokenize", json=body)
        answer.raise_for_status()
        said = answer.json()
        assert said["count"] == len(said["tokens"])
        return tuple(said["tokens"])

    def tokenize_chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        answer = self.server.post("/tokenize", json={"model": self.model, "messages": list(messages)})
        answer.raise_for_status()
        return tuple(answer.json()["tokens"])

    def prompt_tokens(self, ids: Sequence[int]) -> int:
        body = {"model": self.model, "prompt": list(ids), "max_tokens": 1, "temperature": 0}
        answer = self.server.post("/v1/completions", json=body)
        answer.raise_for_status()
        return int(answer.json()["usage"]["prompt_tokens"])


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("vllm")
    original = load(str(model))
    original._tokenizer.save_pretrained(folder / "model")
    tiny_model.write_folder(folder / "model", vocabulary=original.vocab_size)
    profile = test_vllm.profile("none") | {"model": str(folder / "model")}
    settings = settings_of(folder, json.dumps(profile), engine="vllm")
    prepared = Prepared.of(settings.profiles[0])
    with (
        started(prepared, Capacity(2, 4096), settings, folder, Nvml()) as (engine, _),
        httpx.Client(base_url=engine.base_url, trust_env=False, timeout=60) as client,
    ):
        (name,) = (entry["id"] for entry in client.get("/v1/models").json()["data"])
        yield Served(prepared.tokenizer, client, name)


def test_every_mini_row_has_the_servers_ids_and_count(served: Served) -> None:
    rows = mini_rows()
    ids = served.tokenizer.first_ids([(name, turns[0]) for name, turns in rows])
    wrong = {}
    for (name, turns), ours in zip(rows, ids, strict=True):
        theirs = served.tokenize(served.tokenizer.render(chat(turns[0])))
        counted = served.prompt_tokens(ours)
        if not (tuple(ours) == theirs == served.tokenize_chat(chat(turns[0])) and len(ours) == counted):
            wrong[name] = (len(ours), len(theirs), counted)
    assert wrong == {}


def test_hard_texts(served: Served) -> None:
    differing = [text for text in TEXTS if text and served.tokenizer.encode(text) != served.tokenize(text)]
    assert differing == []
    for text in TEXTS:
        ids = served.tokenizer.ids(chat(text))
        assert ids == served.tokenize(served.tokenizer.render(chat(text)))
        if len(ids) < 4000:
            assert served.prompt_tokens(ids) == len(ids)


def test_the_gguf_and_the_folder_of_a_model_give_the_same_ids(served: Served, model: Path) -> None:
    # What llama-server and vLLM are sent for one and the same prompt.
    gguf = load(str(model))
    rows = [(name, turns[0]) for name, turns in mini_rows()]
    assert gguf.first_ids(rows) == served.tokenizer.first_ids(rows)
    assert [gguf.encode(text) for text in TEXTS] == [served.tokenizer.encode(text) for text in TEXTS]

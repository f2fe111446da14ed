"""A server that speaks OpenAI's ``POST /v1/embeddings``, with faults on request.

A vector counts the words of its text in ``dimensions`` hashed bins, so that texts with words in common
are alike. It is not at length 1, which the protocol does not promise.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Fault:
    """An answer in place of the right one. A ``cut`` answer promises its whole body and ends early."""

    status: int = 200
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()
    cut: bool = False
    hang: bool = False


@dataclass
class EmbeddingServer:
    """``faults`` are given in turn, then right answers. ``requests`` are the bodies that came, ``keys`` their keys."""

    dimensions: int = 16
    faults: list[Fault] = field(default_factory=list)
    shuffled: bool = False
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    url: str = ""
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def texts(self) -> list[str]:
        """Every text that was asked for, in order."""
        return [text for request in self.requests for text in request["input"]]

    def vector(self, text: str) -> list[float]:
        counts = [0.0] * self.dimensions
        for word in text.lower().split():
            counts[int(hashlib.sha256(word.encode()).hexdigest(), 16) % self.dimensions] += 1.0
        return counts

    def answer(self, request: dict[str, Any]) -> bytes:
        data = [
            {"object": "embedding", "index": i, "embedding": self.vector(text)}
            for i, text in enumerate(request["input"])
        ]
        if self.shuffled:
            data.reverse()
        return json.dumps({"object": "list", "model": request["model"], "data": data}).encode()


@contextmanager
def serve(server: EmbeddingServer) -> Iterator[EmbeddingServer]:
    """Run ``server`` on a port of its own; its ``url`` ends in ``/v1``."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.requests.append(request)
            server.keys.append(self.headers.get("Authorization"))
            if self.path != "/v1/embeddings":
                self.reply(404, b"{}")
                return
            fault = server.faults.pop(0) if server.faults else Fault()
            if fault.hang:
                server.closing.wait(30)
                self.close_connection = True
                return
            body = server.answer(request) if fault.body is None else fault.body
            self.reply(fault.status, body, fault)

        def reply(self, status: int, body: bytes, fault: Fault | None = None) -> None:
            fault = fault or Fault()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            for name, value in fault.headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if fault.cut else body)
            if fault.cut:
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        http.shutdown()
        thread.join()
        http.server_close()

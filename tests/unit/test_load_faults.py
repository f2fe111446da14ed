"""What servers do wrong on the wire: each is a named reason, and every other turn is kept."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import shutil
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_speedbench.engines.base import Profile, Sampling, Speculation, TurnRequest
from pytest_speedbench.engines.vllm import Vllm
from pytest_speedbench.load.client import StreamingClient
from pytest_speedbench.load.driver import Conversation, Load, Sent
from pytest_speedbench.load.http1 import MAX_HEAD_BYTES
from pytest_speedbench.load.spread import send
from pytest_speedbench.load.sse import MAX_EVENT_BYTES
from pytest_speedbench.measure.samples import Turn
from tests.emulator.llamacpp import byte_tokenizer

TOKENS = 6
FAULTY = 1
"""The first prompt id of the conversation that is answered wrongly."""
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
Answer = Callable[[socket.socket], None]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(payload: object) -> bytes:
    return chunk(b"data: " + json.dumps(payload).encode() + b"\n\n")


def tokens(*ids: int, last: bool = False) -> bytes:
    choice = {"index": 0, "text": "x" * len(ids), "token_ids": ids, "finish_reason": "length" if last else None}
    return event({"choices": [choice]})


USAGE = event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": TOKENS}})
DONE = chunk(b"data: [DONE]\n\n")
END = b"0\r\n\r\n"
GOOD = (HEAD, tokens(1), tokens(2, 3), tokens(4, 5, 6, last=True), USAGE, DONE, END)


@contextlib.contextmanager
def answering(
    faulty: Answer,
    *,
    hang_up_first: int = 0,
    tls: ssl.SSLContext | None = None,
    before: Callable[[int], None] = lambda number: None,
) -> Iterator[str]:
    """A server that answers well, but the conversation ``FAULTY`` with ``faulty``.

    Connections ``hang_up_first`` in number are closed as soon as they are there. ``before`` is called
    with the number of the request, from 0, before it is answered.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    left, numbers = [hang_up_first], itertools.count()

    def serve(peer: socket.socket) -> None:
        if tls is not None:
            try:
                peer = tls.wrap_socket(peer, server_side=True)
            except OSError:
                return
        with peer, contextlib.suppress(OSError):
            data = b""
            while b"\r\n\r\n" not in data or not data.endswith(b"}"):
                data += peer.recv(65536)
            body = json.loads(data.partition(b"\r\n\r\n")[2])
            before(next(numbers))
            if body["prompt"][0] == FAULTY:
                faulty(peer)
            else:
                peer.sendall(b"".join(GOOD))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listener.accept()
                if left[0]:
                    left[0] -= 1
                    peer.close()
                else:
                    threading.Thread(target=serve, args=(peer,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def play(url: str, *, number: int = 4, concurrency: int = 2, deadline_s: float = 20.0, workers: int = 1) -> Sent:
    engine = Vllm(Profile("v", "vllm", "model", Speculation(), base_url=url))
    what = tuple(Conversation(f"q{i}", "coding", ("x",), (i, 7, 7)) for i in range(number))
    load = Load(what, concurrency, Sampling(TOKENS), deadline_s, 0)
    return send(engine, url, byte_tokenizer(), load, progress=lambda *_: None, workers=workers)


def raw(*parts: bytes) -> Answer:
    return lambda peer: peer.sendall(b"".join(parts))


def stalled(*parts: bytes) -> Answer:
    """Sends the parts and then nothing, until the client hangs up."""

    def answer(peer: socket.socket) -> None:
        peer.sendall(b"".join(parts))
        peer.recv(1)

    return answer


def reset(*parts: bytes) -> Answer:
    """Sends the parts and then a TCP reset."""

    def answer(peer: socket.socket) -> None:
        peer.sendall(b"".join(parts))
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return answer


def loris(peer: socket.socket) -> None:
    """Goes on with its headers for ever, slowly."""
    peer.sendall(b"HTTP/1.1 200 OK\r\n")
    peer.settimeout(0.02)
    while True:
        peer.sendall(b"X: y\r\n")
        with contextlib.suppress(TimeoutError):
            if not peer.recv(1):
                return


@pytest.mark.parametrize(
    ("faulty", "reason", "message"),
    [
        (raw(), "stream_cut", "the connection broke off (the server closed it)"),
        (raw(*GOOD[:3]), "stream_cut", "the connection broke off (the server closed it)"),
        (raw(*GOOD[:3], END), "stream_cut", "without its end mark"),
        (reset(*GOOD[:3]), "stream_cut", "the connection broke off ("),
        (raw(b"SSH-2.0-OpenSSH_9.6\r\n"), "bad_http", "no HTTP/1 status line but 'SSH-2.0-OpenSSH_9.6'"),
        (raw(b"HTTP/1.1 200 OK\r\nX: ", b"y" * MAX_HEAD_BYTES), "bad_http", "headers of more than"),
        (raw(HEAD, b"zz\r\n"), "bad_http", "a chunk of size 'zz'"),
        (raw(HEAD, chunk(b"data: " + b"x" * MAX_EVENT_BYTES)), "event_too_long", "without the end of an event"),
        (raw(HEAD, chunk(b": ping\n" * (MAX_EVENT_BYTES // 7 + 1))), "event_too_long", "without the end of an event"),
        (raw(*GOOD[:3], *GOOD[2:]), "ids_lost", "6 tokens were generated and 8 token ids came back"),
        (raw(*GOOD[:4], *GOOD[3:]), "bad_event", "the request was finished before"),
        (raw(*GOOD[:2], chunk(b"data: " + b"[" * 100_000 + b"\n\n")), "bad_event", "(RecursionError: "),
        (raw(*GOOD[:2], *GOOD[3:]), "ids_lost", "6 tokens were generated and 4 token ids came back"),
        (raw(*GOOD[:4], *GOOD[5:]), "missing_field", "no usage"),
        (
            raw(b"HTTP/1.1 503 x\r\nContent-Length: 33\r\n\r\n", b'{"error": {"message": "so busy"}}'),
            "http_503",
            "so busy",
        ),
        (raw(b"HTTP/1.1 500 x\r\n\r\n", b"it broke"), "http_500", "it broke"),
        (raw(b"HTTP/1.1 500 x\r\n\r\n", b"long " * (1 << 20)), "http_500", "long long"),
        (raw(b"HTTP/1.1 307 x\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"), "http_307", ""),
    ],
)
def test_what_goes_wrong_costs_its_turn_alone(faulty: Answer, reason: str, message: str) -> None:
    with answering(faulty) as url:
        sent = play(url)
    (failure,) = sent.failures
    assert (failure.question_id, failure.index, failure.reason) == ("q1", 0, reason)
    assert message in failure.message
    assert len(failure.message) < 700
    assert sorted(turn.question_id for turn in sent.turns) == ["q0", "q2", "q3"]


@pytest.mark.parametrize("faulty", [stalled(), stalled(HEAD), stalled(*GOOD[:3]), stalled(*GOOD[:-1]), loris])
def test_what_never_ends_meets_the_deadline(faulty: Answer) -> None:
    with answering(faulty) as url:
        sent = play(url, deadline_s=0.3)
    assert [(failure.question_id, failure.reason) for failure in sent.failures] == [("q1", "deadline")]
    assert sorted(turn.question_id for turn in sent.turns) == ["q0", "q2", "q3"]


@pytest.mark.parametrize(
    "unusual",
    [
        raw(*GOOD, b"HTTP/1.1 500 more\r\n\r\n"),
        raw(*GOOD[:2], USAGE, *GOOD[2:4], DONE, END),
        raw(b"HTTP/1.1 100 Continue\r\n\r\n", *GOOD),
        raw(b"HTTP/1.0 200 OK\r\n\r\n", *(part.partition(b"\r\n")[2][:-2] for part in GOOD[1:-1])),
        raw(
            HEAD, *(b"%x\r\n%c\r\n" % (1, byte) for part in GOOD[1:-1] for byte in part.partition(b"\r\n")[2][:-2]), END
        ),
        raw(*GOOD[:3], chunk(b": ping\n\n"), *GOOD[3:]),
    ],
)
def test_what_is_unusual_and_right(unusual: Answer) -> None:
    with answering(unusual) as url:
        sent = play(url)
    assert sent.failures == ()
    assert {turn.output_ids for turn in sent.turns} == {(1, 2, 3, 4, 5, 6)}


def test_a_connection_that_was_opened_ahead_and_is_gone_is_replaced() -> None:
    async def turn(url: str) -> Turn:
        engine = Vllm(Profile("v", "vllm", "model", Speculation(), base_url=url))
        async with StreamingClient(engine, url, concurrency=1) as client:
            await client.connect_ahead(2)
            while any(connection.open_still for connection in client._ahead):
                await asyncio.sleep(0.01)
            return await client.turn(TurnRequest("q0", "coding", 0, (0, 7, 7), Sampling(TOKENS)), deadline_s=20.0)

    with answering(raw(*GOOD), hang_up_first=2) as url:
        assert asyncio.run(turn(url)).output_tokens == TOKENS


def test_a_server_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    sent = play(url)
    assert [failure.reason for failure in sent.failures] == ["connection_refused"] * 4
    assert sent.turns == ()


def test_a_name_that_does_not_exist() -> None:
    sent = play("http://no-such-host.invalid:1")
    assert [failure.reason for failure in sent.failures] == ["connection_refused"] * 4


def test_a_name_with_several_addresses() -> None:
    # localhost is ::1 and 127.0.0.1, and the server listens on the second alone.
    with answering(raw(*GOOD)) as url:
        sent = play(url.replace("127.0.0.1", "localhost"))
    assert sent.failures == ()


def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificate")
    key, certificate = str(tmp_path / "key"), str(tmp_path / "certificate")
    command = [openssl, "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with answering(raw(*GOOD[:3]), tls=context) as url:
        stranger = play(url)
        monkeypatch.setattr("certifi.where", lambda: certificate)
        sent = play(url)
    # Nobody vouches for the certificate yet.
    assert [failure.reason for failure in stranger.failures] == ["connection_refused"] * 4
    assert "CERTIFICATE_VERIFY_FAILED" in stranger.failures[0].message
    assert [(failure.question_id, failure.reason) for failure in sent.failures] == [("q1", "stream_cut")]
    assert [turn.output_tokens for turn in sent.turns] == [TOKENS] * 3
    assert sent.client.kernel_stamped == 0


def test_a_prefix_of_the_address_and_the_host_are_sent() -> None:
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                seen.append(peer.recv(65536))
                peer.sendall(b"".join(GOOD))

        thread = threading.Thread(target=serve)
        thread.start()
        sent = play(f"http://user:secret@127.0.0.1:{port}/some/where", number=1, concurrency=1)
        thread.join()
    head = seen[0].partition(b"\r\n\r\n")[0].decode().split("\r\n")
    assert head[0] == "POST /some/where/v1/completions HTTP/1.1"
    assert f"host: 127.0.0.1:{port}" in head
    assert "secret" not in seen[0].decode()
    assert len(sent.turns) == 1


def test_any_json_body_goes_out_whole() -> None:
    # Larger than what a socket takes at once.
    seen: list[dict[str, Any]] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                data = b""
                while not data.endswith(b"}"):
                    data += peer.recv(1 << 16)
                seen.append(json.loads(data.partition(b"\r\n\r\n")[2]))
                peer.sendall(b"HTTP/1.1 400 x\r\nContent-Length: 3\r\n\r\nno!")

        thread = threading.Thread(target=serve)
        thread.start()
        ids = tuple(range(2_000_000))
        load = Load((Conversation("q", "x", ("x",), ids),), 1, Sampling(1), 30.0, 0)
        engine = Vllm(Profile("v", "vllm", "model", Speculation(), base_url=url))
        sent = send(engine, url, byte_tokenizer(), load, progress=lambda *_: None)
        thread.join()
    assert seen[0]["prompt"] == list(ids)
    assert [(failure.reason, failure.message) for failure in sent.failures] == [("http_400", "no!")]

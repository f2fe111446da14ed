"""A server that speaks llama-server's ``/completion`` protocol with a script of known truth.

Tokens are bytes of the reply (ids 0 to 255), so that a reply with multi-byte characters hides tokens
exactly as llama-server does: one that ends inside an incomplete UTF-8 sequence is never sent, and the
text of the whole character comes with the token that completes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_speedbench.tokenize import ChatTokenizer

EOS = 257
_SPECIAL = {"<|im_start|>": 256, "<|im_end|>": EOS}
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer() -> ChatTokenizer:
    """A tokenizer whose ids are the bytes of the text, with a ChatML template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # The printable stand-ins of GPT-2's byte-level alphabet, in the order of the bytes.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    names = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    backend = Tokenizer(models.BPE(vocab={names[b]: b for b in range(256)} | _SPECIAL, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in _SPECIAL])
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=_TEMPLATE)
    return ChatTokenizer(fast, source="bytes", max_context=None)


def text_of(ids: list[int]) -> str:
    """What ``byte_tokenizer`` encodes as ``ids``."""
    special = {number: name.encode() for name, number in _SPECIAL.items()}
    return b"".join(special.get(i) or bytes([i]) for i in ids).decode()


@dataclass(frozen=True)
class Script:
    """One answer. ``steps`` holds (drafted, accepted) per decode step.

    The output is the bytes of ``reply``, plus EOS if ``eos``. The accepted drafts of the last step
    may reach beyond EOS; ``cut`` says by how many tokens. The identity must hold:
    output tokens - 1 + cut = Σ (accepted + 1).
    """

    reply: bytes
    steps: tuple[tuple[int, int], ...]
    eos: bool = False
    cut: int = 0
    fault: str | None = None
    """``http_400``, ``cut``, ``error_event``, ``garbage``, ``odd_event``, ``stall``, ``slow`` or ``crash``."""
    fault_after: int = 2
    """Events that are sent before the fault."""
    final: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the closing event to replace; ``timings.NAME`` for those inside."""

    def __post_init__(self) -> None:
        assert self.output_tokens - 1 + self.cut == sum(a + 1 for _, a in self.steps)
        assert not self.cut or self.eos

    @classmethod
    def of(cls, reply: str | bytes, *, draft: int = 0, accept: tuple[int, ...] = (0,), **fields: Any) -> Script:
        """A script that drafts ``draft`` tokens per step and accepts by a repeating pattern.

        As with the real server, drafts reach no further than the cap, which is where a reply without
        EOS ends; beyond EOS they do reach, and what is accepted there is cut.
        """
        data = reply.encode() if isinstance(reply, str) else reply
        eos = bool(fields.get("eos", False))
        left, steps = len(data) + eos - 1, list[tuple[int, int]]()
        while left > 0:
            drafted = draft if eos else min(draft, left - 1)
            steps.append((drafted, min(accept[len(steps) % len(accept)], drafted)))
            left -= steps[-1][1] + 1
        return cls(data, tuple(steps), cut=-left, **fields)

    @property
    def output_tokens(self) -> int:
        """N, EOS included."""
        return len(self.reply) + self.eos

    @property
    def lengths(self) -> tuple[int, ...]:
        """Accepted + 1 of every decode step."""
        return tuple(a + 1 for _, a in self.steps)

    @property
    def drafted(self) -> int:
        """D, draft tokens."""
        return sum(d for d, _ in self.steps)

    @property
    def accepted(self) -> int:
        """A, accepted draft tokens, those beyond EOS included."""
        return sum(a for _, a in self.steps)

    @property
    def drafts(self) -> int:
        """K, steps that drafted."""
        return sum(1 for d, _ in self.steps if d)

    @property
    def hidden(self) -> int:
        """Tokens that are never sent."""
        return self.output_tokens - sum(1 for event in self.events([]) if event["tokens"])

    def events(self, prompt: list[int]) -> list[dict[str, Any]]:
        """The payloads of the stream, closing event included."""
        ids = [*self.reply, *([EOS] if self.eos else [])]
        totals = [(0, 0)]
        drafted = accepted = 0
        for d, a in self.steps:
            drafted, accepted = drafted + d, accepted + a
            totals += [(drafted, accepted)] * (a + 1)
        events, pending = list[dict[str, Any]](), b""
        for number, token in enumerate(ids, start=1):
            content = ""
            if token != EOS:
                pending += bytes([token])
                try:
                    content = pending.decode()
                except UnicodeDecodeError:
                    continue
                pending = b""
            events.append(
                {
                    "index": 0,
                    "content": content,
                    "tokens": [token],
                    "stop": False,
                    "tokens_predicted": number,
                    "timings": _timings(prompt, number, *totals[number - 1]),
                }
            )
        last: dict[str, Any] = {
            "index": 0,
            "content": "",
            "tokens": [],
            "stop": True,
            "tokens_predicted": len(ids),
            "truncated": False,
            "stop_type": "eos" if self.eos else "limit",
            "timings": _timings(prompt, len(ids), drafted, accepted),
        }
        for name, value in self.final.items():
            group, dot, inner = name.partition(".")
            if dot:
                last[group][inner] = value
            else:
                last[name] = value
        return [*events, last]


def _timings(prompt: list[int], predicted: int, drafted: int, accepted: int) -> dict[str, Any]:
    timings = {"cache_n": 0, "prompt_n": len(prompt), "predicted_n": predicted}
    return timings | ({"draft_n": drafted, "draft_n_accepted": accepted} if drafted else {})


@dataclass(frozen=True)
class Request:
    """One request as the server saw it. ``number`` counts from 0."""

    number: int
    body: dict[str, Any]

    @property
    def ids(self) -> list[int]:
        """The prompt."""
        return list(self.body["prompt"])


class Emulator:
    """The server, on a port of its own, in a thread of its own. Use as a context manager.

    ``answer`` gives the script of a request. ``hold`` is a predicate of (requests in flight,
    requests begun): every answer waits until it is true, so that a test can ask for a state instead
    of waiting some time for it. ``lies`` are added to the counters of ``/metrics``. ``piece`` re-cuts
    the stream into pieces of that many bytes. ``top`` are the (id, probability) pairs with which a request for
    probabilities is answered.
    """

    def __init__(
        self,
        answer: Callable[[Request], Script],
        *,
        hold: Callable[[int, int], bool] = lambda in_flight, begun: True,
        lies: Mapping[str, int] | None = None,
        piece: int | None = None,
        top: Callable[[Request], Sequence[tuple[int, float]]] = lambda request: (),
    ) -> None:
        self.requests: list[Request] = []
        self.in_flight = 0
        self.peak = 0
        self.history: list[int] = []
        """Requests in flight at each begin and end of one."""
        self.counters: dict[str, int] = dict.fromkeys(
            (
                "prompt_tokens_total",
                "tokens_predicted_total",
                "spec_decode_num_drafts_total",
                "spec_decode_num_draft_tokens_total",
                "spec_decode_num_accepted_tokens_total",
                "n_decode_total",
            ),
            0,
        )
        self.base_url = ""
        self._answer, self._hold, self._lies, self._piece = answer, hold, dict(lies or {}), piece
        self._top = top
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="emulator")
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Emulator:
        self._thread.start()
        self._changed = asyncio.Event()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=1024), self._loop
        ).result()
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                method, path, _ = head.split(" ", 2)
                headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if method == "POST":
                    await self._completion(json.loads(body), reader, writer)
                else:
                    _respond(writer, *self._get(path))
                    await writer.drain()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def _get(self, path: str) -> tuple[int, bytes]:
        if path == "/health":
            return 200, b'{"status":"ok"}'
        if path == "/props":
            props = {"total_slots": 4, "default_generation_settings": {"n_ctx": 4096}, "build_info": "emulator"}
            return 200, json.dumps(props).encode()
        if path == "/metrics":
            shown = {name: value + self._lies.get(name, 0) for name, value in self.counters.items()}
            shown |= {"requests_processing": self.in_flight, "requests_deferred": 0}
            return 200, "".join(f"llamacpp:{name} {value}\n" for name, value in shown.items()).encode()
        return 404, b"{}"

    async def _completion(
        self, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if "n_probs" in body:
            _respond(writer, 200, json.dumps(self._with_probabilities(Request(-1, body))).encode())
            await writer.drain()
            return
        request = Request(len(self.requests), body)
        self.requests.append(request)
        self._count(+1)
        # A client that hangs up frees its slot, as with the real server.
        hung_up = self._loop.create_task(reader.read(1))
        work = self._loop.create_task(self._generate(request, writer))
        try:
            await asyncio.wait((work, hung_up), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            for task in (work, hung_up):
                task.cancel()
            await asyncio.gather(work, hung_up, return_exceptions=True)

    def _with_probabilities(self, request: Request) -> dict[str, Any]:
        """One more token and its alternatives: as the model has them, or what sampling leaves of them."""
        body, top = request.body, list[dict[str, Any]]()
        top += ({"id": token, "token": "", "bytes": [], "prob": prob} for token, prob in self._top(request))
        if not body.get("post_sampling_probs"):
            top = [{"logprob": math.log(told.pop("prob")), **told} for told in top]
        elif not body["temperature"] or body["top_k"] == 1:
            top = [{**top[0], "prob": 1.0}]
        alternatives = "top_probs" if body.get("post_sampling_probs") else "top_logprobs"
        told = {**top[0], alternatives: top[: body["n_probs"]]}
        return {"content": "", "tokens": [top[0]["id"]], "stop": True, "completion_probabilities": [told]}

    def _count(self, change: int) -> None:
        self.in_flight += change
        self.peak = max(self.peak, self.in_flight)
        self.history.append(self.in_flight)
        self._changed.set()

    async def _generate(self, request: Request, writer: asyncio.StreamWriter) -> None:
        ended = False
        try:
            while not self._hold(self.in_flight, len(self.requests)):
                self._changed.clear()
                await self._changed.wait()
            script = self._answer(request)
            if script.fault == "http_400":
                _respond(writer, 400, b'{"error":{"code":400,"message":"the request is bad"}}')
                await writer.drain()
                return
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n")
            writer.write(b"Connection: close\r\n\r\n")
            for number, event in enumerate(script.events(request.ids)):
                if script.fault is not None and number == script.fault_after:
                    await self._break(script.fault, writer)
                    return
                if event["stop"]:
                    # The real server frees the slot and counts before the closing event is out.
                    self._account(request, script)
                    self._count(-1)
                    ended = True
                self._send(writer, b"data: " + json.dumps(event).encode() + b"\n\n")
                await writer.drain()
                if script.fault == "slow":
                    await asyncio.sleep(0.02)
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        finally:
            if not ended:
                self._count(-1)

    def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        size = self._piece or len(data)
        for at in range(0, len(data), size):
            piece = data[at : at + size]
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))

    async def _break(self, fault: str, writer: asyncio.StreamWriter) -> None:
        if fault == "cut":
            # A clean end of the HTTP body without the closing event: only the protocol can tell.
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        elif fault == "error_event":
            self._send(writer, b'data: {"error":{"code":500,"message":"slot exploded","type":"server_error"}}\n\n')
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        elif fault == "garbage":
            self._send(writer, b"data: [DONE]\n\n")
            await writer.drain()
        elif fault == "odd_event":
            self._send(writer, b'data: {"content": "x"}\n\n')
            await writer.drain()
        elif fault == "stall":
            await asyncio.Event().wait()
        elif fault == "crash":
            self._server.close()
            writer.transport.abort()

    def _account(self, request: Request, script: Script) -> None:
        self.counters["prompt_tokens_total"] += len(request.ids)
        self.counters["tokens_predicted_total"] += script.output_tokens
        self.counters["spec_decode_num_drafts_total"] += script.drafts
        self.counters["spec_decode_num_draft_tokens_total"] += script.drafted
        self.counters["spec_decode_num_accepted_tokens_total"] += script.accepted
        self.counters["n_decode_total"] += 1 + len(script.steps)


def _respond(writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
    reason = {200: "OK", 400: "Bad Request", 404: "Not Found"}[status]
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)


@contextlib.contextmanager
def serving(script: Script, **options: Any) -> Iterator[Emulator]:
    """An emulator that answers every request with ``script``."""
    with Emulator(lambda request: script, **options) as emulator:
        yield emulator

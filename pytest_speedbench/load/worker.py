"""One worker process of the load driver, and what it and its parent say to each other over one socket.

Messages are pickles, each after its length in 8 bytes. The parent sends ``Job``, gets ``Prepared``, sends
any number of ``ClockAsked``, each answered by the worker's clock, and then ``Go``. The worker reports
``Item``s and ends with ``Played``. When the socket ends so does the worker, whatever it was at: nobody
is left to hear of it. Tokenizing is the parent's: it has the tokenizer loaded, and time.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pytest_speedbench.engines.base import Engine
from pytest_speedbench.load.client import StreamingClient
from pytest_speedbench.load.driver import Item, Share, play, prepare
from pytest_speedbench.tokenize import Message

_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class Job:
    """What to play."""

    engine: Engine
    base_url: str
    share: Share


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that can be done before the clock starts is done."""


@dataclass(frozen=True, slots=True)
class ClockAsked:
    """Answered by an int, ``time.perf_counter_ns()``."""


@dataclass(frozen=True, slots=True)
class Go:
    """Begin."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question to the parent's tokenizer: the prompt of a chat, or the text of ids."""

    number: int
    messages: Sequence[Message] | None
    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to ``Asked`` of this number."""

    number: int
    content: Any


@dataclass(frozen=True, slots=True)
class Reported:
    """An item of the conversation at a place in the share."""

    place: int
    item: Item


def packed(message: object) -> bytes:
    """A message as it is sent."""
    content = pickle.dumps(message, protocol=5)
    return len(content).to_bytes(_LENGTH_BYTES, "big") + content


async def received(reader: asyncio.StreamReader) -> Any:
    """The next message. Raises asyncio.IncompleteReadError or OSError when the other side is gone."""
    length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
    return pickle.loads(await reader.readexactly(length))


class _RemoteChat:
    """The parent's tokenizer."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    async def ids(self, messages: Sequence[Message]) -> Sequence[int]:
        """The prompt."""
        return tuple(await self._ask(messages, ()))

    async def decode(self, ids: Sequence[int]) -> str:
        """The text of a reply."""
        return str(await self._ask(None, ids))

    async def _ask(self, messages: Sequence[Message] | None, ids: Sequence[int]) -> Any:
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        self._writer.write(packed(Asked(number, messages, ids)))
        return await self._waiting[number]

    def answered(self, answer: Answer) -> None:
        """Called with each answer."""
        self._waiting.pop(answer.number).set_result(answer.content)


async def work(parent: socket.socket) -> None:
    """Do what the process at the other end of ``parent`` asks."""
    reader, writer = await asyncio.open_connection(sock=parent)
    job: Job = await received(reader)
    share = job.share
    chat = _RemoteChat(writer)
    go = asyncio.Event()

    async def listen() -> None:
        try:
            while True:
                message = await received(reader)
                if isinstance(message, ClockAsked):
                    writer.write(packed(time.perf_counter_ns()))
                elif isinstance(message, Answer):
                    chat.answered(message)
                else:
                    go.set()
        except (OSError, EOFError):
            os._exit(1)

    listening = asyncio.create_task(listen())
    async with StreamingClient(job.engine, job.base_url, concurrency=share.concurrency) as client:
        ready = await prepare(client, share)
        writer.write(packed(Prepared()))
        await go.wait()
        played = await play(client, chat, share, ready, lambda place, item: writer.write(packed(Reported(place, item))))
    writer.write(packed(played))
    # Until the parent has read all and closes the socket.
    await listening


def main() -> None:
    """Entry point of the process; its argument is the descriptor of the socket."""
    asyncio.run(work(socket.socket(fileno=int(sys.argv[1]))))

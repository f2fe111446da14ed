"""When sockets are read: at once, or by many together, with the kernel's stamps all the same."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_speedbench.engines.base import Profile, Speculation
from pytest_speedbench.engines.vllm import Vllm
from pytest_speedbench.load import streaming
from pytest_speedbench.load.client import StreamingClient
from pytest_speedbench.load.streaming import CROWD, MAX_BACKLOG_BYTES, Address, Connection, Exchange, Reception
from pytest_speedbench.measure.samples import Turn

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's stamps, and epoll, are Linux's")
HEAD = b"HTTP/1.1 200 OK\r\n\r\n"
EVENT = b"data: x\n\n"
NAP_S = 0.5
PROMPTLY_S = 0.4
LATE_S = 0.1
"""Far from what a busy machine adds to one or takes from the other."""


SO_TIMESTAMPNS = 35


@pytest.fixture(autouse=True)
def stamping() -> Iterator[None]:
    """Have the kernel stamp: it begins a moment after the first socket has asked, and ends with the last."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as asking:
        asking.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        peer, _ = listener.accept()
        with peer:
            stamps: list[Any] = []
            while not stamps:
                peer.send(b"x")
                _, stamps, _, _ = asking.recvmsg(1, 64)
            yield


class Arrivals:
    """A decoder that keeps when events arrived, and when it was told."""

    def __init__(self) -> None:
        self.at_ns: list[int] = []
        self.told_ns: list[int] = []

    def event(self, data: bytes, at_ns: int) -> None:
        assert data == b"x"
        self.at_ns.append(at_ns)
        self.told_ns.append(time.perf_counter_ns())

    def finish(self, start_ns: int) -> Turn:
        raise NotImplementedError


class Stream:
    """Both ends of a connection."""

    def __init__(self, reception: Reception, listener: socket.socket) -> None:
        address = Address(socket.AF_INET, listener.getsockname(), None, "")
        connection = Connection.open_at_once(reception, address)
        assert connection is not None
        self.connection, self.arrivals = connection, Arrivals()
        self.peer, _ = listener.accept()
        self.exchange = Exchange(reception, self.arrivals, lambda body: "")
        self.connection.send(b"request", self.exchange)

    async def event(self) -> tuple[float, float]:
        """Send one; how much later (s) it arrived by its stamp, and was decoded."""
        number, sent_ns = len(self.arrivals.at_ns), time.perf_counter_ns()
        self.peer.sendall(EVENT)
        while len(self.arrivals.at_ns) == number:
            await asyncio.sleep(0.001)
        return (self.arrivals.at_ns[-1] - sent_ns) / 1e9, (self.arrivals.told_ns[-1] - sent_ns) / 1e9


def watched() -> tuple[Reception, list[dict[str, Any]]]:
    """A reception of the running loop, and what goes to the exception handler of that."""
    loop, errors = asyncio.get_running_loop(), list[dict[str, Any]]()
    loop.set_exception_handler(lambda _, context: errors.append(context))
    return Reception(loop, time.perf_counter_ns), errors


Script = Callable[[Reception, list[Stream]], Awaitable[None]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Script], list[dict[str, Any]]]:
    """Runs a script with a number of streams, of which the first has had an event; gives what failed unseen."""
    monkeypatch.setattr(streaming, "NAP_S", NAP_S)

    async def main(number: int, script: Script) -> list[dict[str, Any]]:
        reception, errors = watched()
        with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
            streams = [Stream(reception, listener) for _ in range(number)]
            for stream in streams:
                stack.callback(stream.peer.close)
                stack.callback(stream.connection.close)
                stream.peer.sendall(HEAD)
            await streams[0].event()
            await script(reception, streams)
            reception.close()
        return errors

    return lambda number, script: asyncio.run(asyncio.wait_for(main(number, script), 20.0))


def test_many_are_read_together_and_stamped_when_they_arrived(run: Any) -> None:
    async def script(reception: Reception, streams: list[Stream]) -> None:
        waits = [await stream.event() for stream in streams[1:4]]
        # Each was sent after a look that had found something.
        assert all(0 <= arrived_s < LATE_S < told_s for arrived_s, told_s in waits)
        assert reception.reads == reception.kernel_stamps

    assert run(CROWD, script) == []


def test_after_a_silence_the_next_is_read_at_once(run: Any) -> None:
    async def script(reception: Reception, streams: list[Stream]) -> None:
        await asyncio.sleep(3 * NAP_S)
        _, told_s = await streams[1].event()
        assert told_s < PROMPTLY_S

    assert run(CROWD, script) == []


def test_a_few_are_read_at_once(run: Any) -> None:
    async def script(reception: Reception, streams: list[Stream]) -> None:
        waits = [(await stream.event())[1] for stream in streams[:8]]
        assert max(waits) < PROMPTLY_S

    assert run(CROWD - 1, script) == []


def without_a_stamp(reception: Reception) -> None:
    reception.reads += 1


def with_steps_so_short_that_waiting_would_join_them(reception: Reception) -> None:
    reception.soon = reception.reads


@pytest.mark.parametrize("seen", [without_a_stamp, with_steps_so_short_that_waiting_would_join_them])
def test_so_are_many_where_waiting_would_be_seen(run: Any, seen: Callable[[Reception], None]) -> None:
    async def script(reception: Reception, streams: list[Stream]) -> None:
        seen(reception)
        await streams[0].event()
        waits = [(await stream.event())[1] for stream in streams[:8]]
        assert max(waits) < PROMPTLY_S

    assert run(CROWD, script) == []


def test_what_follows_soon_on_the_one_before_of_its_stream_is_counted(run: Any) -> None:
    async def script(reception: Reception, streams: list[Stream]) -> None:
        await asyncio.sleep(0.05)
        before = reception.soon
        for stream in streams[1:]:
            # The head of the answer was long ago, and that of another stream does not count.
            await stream.event()
        assert reception.soon == before
        stamps = streams[1].arrivals.at_ns
        while len(stamps) < 2 or stamps[-1] - stamps[-2] >= streaming.SOON_NS:
            before = reception.soon
            await streams[1].event()
        assert reception.soon == before + 1

    assert run(4, script) == []


def test_nothing_is_read_after_the_end(run: Any) -> None:
    async def script(reception: Reception, streams: list[Stream]) -> None:
        streams[1].peer.sendall(EVENT)
        reception.close()
        await asyncio.sleep(2 * NAP_S)
        assert streams[1].arrivals.at_ns == []

    assert run(CROWD, script) == []


def test_a_stream_that_is_far_ahead_of_its_decoding_is_left_alone(run: Any) -> None:
    async def script(reception: Reception, streams: list[Stream]) -> None:
        (stream,) = streams
        stream.exchange.backlog = MAX_BACKLOG_BYTES
        await stream.event()
        stream.peer.sendall(EVENT)
        await asyncio.sleep(0.05)
        assert len(stream.arrivals.at_ns) == 2
        stream.exchange.backlog = MAX_BACKLOG_BYTES // 2
        while len(stream.arrivals.at_ns) < 3:
            await asyncio.sleep(0.001)

    assert run(1, script) == []


def test_a_client_leaves_nothing_open() -> None:
    async def main() -> None:
        open_before = sorted(Path("/proc/self/fd").iterdir())
        engine = Vllm(Profile("v", "vllm", "model", Speculation(), base_url="http://127.0.0.1:1"))
        client = StreamingClient(engine, "http://127.0.0.1:1", concurrency=1)
        async with client:
            assert sorted(Path("/proc/self/fd").iterdir()) != open_before
        assert sorted(Path("/proc/self/fd").iterdir()) == open_before

    asyncio.run(main())


@contextlib.contextmanager
def pairs(number: int) -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    with contextlib.ExitStack() as stack:
        made = [socket.socketpair() for _ in range(number)]
        for one, other in made:
            one.setblocking(False)
            stack.enter_context(one)
            stack.enter_context(other)
        yield made


def test_a_socket_that_is_closed_by_another_reader_is_not_read() -> None:
    async def main() -> None:
        reception = Reception(asyncio.get_running_loop(), time.perf_counter_ns)
        seen: list[bytes] = []

        def reader(own: socket.socket) -> Callable[[], None]:
            def read() -> None:
                with contextlib.suppress(BlockingIOError):
                    seen.append(own.recv(9))

            return read

        with pairs(2) as ((one, to_one), (other, to_other)):
            replaced = list[tuple[socket.socket, socket.socket]]()

            def closing(own: socket.socket, victim: socket.socket) -> Callable[[], None]:
                def read() -> None:
                    seen.append(own.recv(9))
                    number = victim.fileno()
                    reception.unwatch(victim)
                    victim.close()
                    replaced.append(socket.socketpair())
                    assert replaced[0][0].fileno() == number
                    replaced[0][0].setblocking(False)
                    reception.watch(replaced[0][0], reader(replaced[0][0]))

                return read

            reception.watch(one, closing(one, other))
            reception.watch(other, closing(other, one))
            # Both are ready when they are looked at, and the first that is read closes the second.
            to_one.send(b"old")
            to_other.send(b"old")
            await asyncio.sleep(0.02)
            assert seen == [b"old"]
            ((new, to_new),) = replaced
            to_new.send(b"new")
            await asyncio.sleep(0.02)
            assert seen == [b"old", b"new"]
            reception.close()
            new.close()
            to_new.close()

    asyncio.run(main())


def test_a_watch_that_an_earlier_reader_has_ended_is_over() -> None:
    async def main() -> None:
        reception, errors = watched()
        seen: list[bytes] = []
        with pairs(2) as ((one, to_one), (other, to_other)):

            def ending(own: socket.socket, victim: socket.socket) -> Callable[[], None]:
                def read() -> None:
                    seen.append(own.recv(9))
                    reception.unwatch(victim)

                return read

            reception.watch(one, ending(one, other))
            reception.watch(other, ending(other, one))
            to_one.send(b"x")
            to_other.send(b"x")
            await asyncio.sleep(0.02)
            reception.close()
        assert (seen, errors) == ([b"x"], [])

    asyncio.run(main())


def test_a_reader_that_fails_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "CROWD", 1)

    async def main() -> None:
        reception, errors = watched()
        reception.reads = reception.kernel_stamps = 1
        seen: list[bytes] = []
        with pairs(3) as made:

            def failing(own: socket.socket) -> Callable[[], None]:
                def read() -> None:
                    seen.append(own.recv(9))
                    if seen[-1] != b"a":
                        raise RuntimeError("no")

                return read

            for own, _ in made:
                reception.watch(own, failing(own))
            for content in (b"a", b"b", b"c"):
                for _, to_own in made:
                    to_own.send(content)
                # The next look is one after a nap.
                while len(seen) % len(made) or not seen or seen[-1] != content:
                    await asyncio.sleep(0)
            reception.close()
        assert seen == [b"a", b"a", b"a", b"b", b"b", b"b", b"c", b"c", b"c"]
        assert [str(context["exception"]) for context in errors] == ["no"] * 6

    asyncio.run(asyncio.wait_for(main(), 10.0))


def test_elsewhere_the_loop_watches_each_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")

    async def main() -> None:
        reception = Reception(asyncio.get_running_loop(), time.perf_counter_ns)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            stream = Stream(reception, listener)
            with stream.peer:
                stream.peer.sendall(HEAD)
                assert max([max(await stream.event()) for _ in range(3)]) < PROMPTLY_S
                stream.connection.close()
                reception.close()
        assert reception.kernel_stamps == 0

    asyncio.run(asyncio.wait_for(main(), 10.0))

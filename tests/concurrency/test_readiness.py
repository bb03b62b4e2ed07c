"""Test concurrency/readiness.py: no edge is lost, no socket disturbs another."""

import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from aether_trio.concurrency import readiness
from aether_trio.concurrency.readiness import READ_BYTES, SocketReader


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


async def test_bytes_that_came_before_the_wait_are_found(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.send(b"early")
    reader = SocketReader(ours)
    assert await reader.until(reader.read) == b"early"


async def test_bytes_that_come_while_no_task_waits_are_found_by_the_next(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    reader = SocketReader(ours)
    theirs.send(b"one")
    assert await reader.until(reader.read) == b"one"
    theirs.send(b"two")
    await trio.testing.wait_all_tasks_blocked()
    assert await reader.until(reader.read) == b"two"


async def test_what_one_read_leaves_is_read_next(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.setblocking(False)
    sent = b"x" * (READ_BYTES + 10)
    sent = sent[: theirs.send(sent)]
    reader = SocketReader(ours)
    got = b""
    while len(got) < len(sent):
        got += await reader.until(reader.read)
    assert got == sent


async def test_an_attempt_that_returns_none_is_made_again(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    reader = SocketReader(ours)
    got: list[bytes] = []

    def collect() -> bytes | None:
        got.append(reader.read() or b"")
        return b"".join(got) if got[-1] == b"." else None

    async with trio.open_nursery() as nursery:
        for part in (b"a", b"b", b"."):
            nursery.start_soon(trio.to_thread.run_sync, theirs.send, part)
            if part != b".":
                with trio.move_on_after(0.01):
                    await reader.until(collect)
        assert await reader.until(collect) == b"ab."


async def test_the_end_that_comes_with_the_last_bytes_is_found(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.send(b"last")
    theirs.shutdown(socket.SHUT_WR)
    reader = SocketReader(ours)
    seen: list[bytes] = []

    def until_the_end() -> bool | None:
        data = reader.read()
        assert data is not None
        seen.append(data)
        return True if not data else None

    assert await reader.until(until_the_end)
    assert seen == [b"last", b""]


async def test_what_is_behind_an_urgent_byte_is_read_without_a_further_edge() -> None:
    """A read ends in front of an urgent byte, however much is behind it."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as theirs:
        ours, _ = listener.accept()
        with ours:
            ours.setblocking(False)
            theirs.send(b"before")
            theirs.send(b"!", socket.MSG_OOB)
            theirs.send(b"behind")
            while len(ours.recv(100, socket.MSG_PEEK)) < len("before") or not select.select([], [], [ours], 0)[2]:
                await trio.sleep(0.001)
            reader = SocketReader(ours)
            got: list[bytes] = []

            def collect() -> bytes | None:
                got.append(reader.read() or b"")
                data = b"".join(got)
                return data if data.endswith(b"behind") else None

            with trio.fail_after(300):
                assert await reader.until(collect) == b"beforebehind"
            theirs.send(b"later")
            assert await reader.until(reader.read) == b"later"


async def test_an_error_is_raised_to_its_reader_and_others_read_on(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    other, their_other = socket.socketpair()
    other.setblocking(False)
    with other, their_other:
        failing, working = SocketReader(ours), SocketReader(other)

        def fail() -> None:
            raise ZeroDivisionError

        async def read_other() -> None:
            assert await working.until(working.read) == b"other"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_other)
            theirs.send(b"bad")
            with pytest.raises(ZeroDivisionError):
                await failing.until(fail)
            their_other.send(b"other")
        assert await failing.until(failing.read) == b"bad"


async def test_a_cancelled_wait_loses_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    reader = SocketReader(ours)
    with trio.CancelScope() as scope:
        scope.cancel()
        await reader.until(reader.read)
    assert not reader.is_waiting
    theirs.send(b"later")
    assert await reader.until(reader.read) == b"later"


async def test_wake_ends_the_wait_with_a_value(pair: tuple[socket.socket, socket.socket]) -> None:
    reader = SocketReader(pair[0])
    reader.wake("no task waits")

    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            assert await reader.until(reader.read) == b"woken"

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert reader.is_waiting
        with pytest.raises(trio.BusyResourceError):
            await reader.until(reader.read)
        reader.wake(b"woken")


async def test_a_released_socket_is_not_called_and_may_be_read_by_another(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    first = SocketReader(ours)
    theirs.send(b"one")
    assert await first.until(first.read) == b"one"
    first.release()
    first.release()
    theirs.send(b"two")
    second = SocketReader(ours)
    assert await second.until(second.read) == b"two"


async def test_more_ready_sockets_than_one_turn_serves_are_all_served() -> None:
    pairs = [socket.socketpair() for _ in range(300)]
    got: list[bytes] = []

    async def read(sock: socket.socket) -> None:
        reader = SocketReader(sock)
        got.append(await reader.until(reader.read))
        reader.release()

    try:
        async with trio.open_nursery() as nursery:
            for ours, theirs in pairs:
                ours.setblocking(False)
                nursery.start_soon(read, ours)
                theirs.send(b"x")
    finally:
        for pair in pairs:
            for sock in pair:
                sock.close()
    assert got == [b"x"] * 300


async def test_an_attempt_that_closes_its_socket_fails_its_reader_alone() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    reader = SocketReader(ours)

    def close() -> None:
        reader.read()
        ours.close()

    theirs.send(b"last")
    theirs.close()
    with pytest.raises(OSError):
        await reader.until(close)


async def test_a_socket_that_cannot_be_registered_is_tried_again(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        reader = SocketReader(file)  # type: ignore[arg-type]
        for _ in range(2):
            with pytest.raises(OSError):
                await reader.until(reader.read)


async def test_other_tasks_have_their_turn_between_two_long_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a turn of no time, each ready socket is a turn."""
    monkeypatch.setattr(readiness, "TURN_S", -1.0)
    pairs = [socket.socketpair() for _ in range(3)]
    steps: list[str] = []
    async with trio.open_nursery() as nursery:

        async def read(number: int) -> None:
            reader = SocketReader(pairs[number][0])

            def attempt() -> bytes | None:
                steps.append("read")
                return reader.read()

            await reader.until(attempt)
            reader.release()

        for number, (ours, _) in enumerate(pairs):
            ours.setblocking(False)
            nursery.start_soon(read, number)
        await trio.testing.wait_all_tasks_blocked()

        async def other() -> None:
            while steps.count("read") < 3:
                await trio.lowlevel.checkpoint()
                steps.append("other")

        for _, theirs in pairs:
            theirs.send(b"x")
        nursery.start_soon(other)
    reads = [n for n, step in enumerate(steps) if step == "read"]
    assert len(reads) == 3
    assert reads[2] - reads[0] > 2  # trio runs the tasks of a turn in any order
    for ours, theirs in pairs:
        ours.close()
        theirs.close()

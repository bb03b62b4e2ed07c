"""What trio-asyncio does to asyncio stays inside of trio."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys

import pytest
import trio
import trio.testing

from aether_trio.storage import trio_loop

CALLBACKS = 1000


async def test_asyncio_in_a_thread_is_as_it_was() -> None:
    token = trio.lowlevel.current_trio_token()
    calls: list[str] = []

    async def program() -> type:
        trio.from_thread.run_sync(calls.append, "from a thread", trio_token=token)
        await asyncio.sleep(0)
        return type(asyncio.get_running_loop())

    assert await trio.to_thread.run_sync(asyncio.run, program()) is asyncio.SelectorEventLoop
    assert calls == ["from a thread"]


async def test_asyncio_inside_of_trio_is_theirs() -> None:
    async def program() -> int:
        return await asyncio.sleep(0, 7)

    async with trio_loop.open_loop():
        assert await trio_loop.aio_as_trio(program)() == 7


def test_importing_it_warns_of_nothing() -> None:
    """They use what Python 3.12 deprecates; a user who makes errors of warnings must be able to import us all the same."""
    for module in ("aether_trio.storage.trio_loop", "aether_trio.storage.postgres"):
        subprocess.run([sys.executable, "-W", "error", "-c", f"import {module}"], check=True, timeout=120)


async def test_what_is_ready_runs_in_its_order_and_trio_has_its_turns() -> None:
    """Far more callbacks than one go takes, which make more of them, beside a trio task that counts its turns."""
    ran: list[int] = []
    turns = 0

    async def count() -> None:
        nonlocal turns
        while len(ran) < 2 * CALLBACKS:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio_loop.open_loop() as loop, trio.open_nursery() as nursery:

        def run(number: int) -> None:
            ran.append(number)
            if number < CALLBACKS:
                loop.call_soon(run, CALLBACKS + number)

        for number in range(CALLBACKS):
            loop.call_soon(run, number)
        nursery.start_soon(count)
    assert ran == list(range(2 * CALLBACKS))
    assert turns >= 2 * CALLBACKS // trio_loop.BATCH


async def test_timers_and_trio_tasks_have_their_place_among_callbacks(autojump_clock: trio.testing.MockClock) -> None:
    said: list[str] = []

    async def sleep() -> str:
        said.append("trio begins")
        await trio.sleep(2)
        return "trio is over"

    async with trio_loop.open_loop() as loop:

        async def program() -> None:
            loop.call_later(1, said.append, "one second")
            loop.call_later(3, said.append, "three seconds").cancel()
            loop.call_soon(said.append, "first")
            over = loop.trio_as_future(sleep)
            loop.call_soon(said.append, "second")
            said.append(await over)
            said.append(await asyncio.sleep(0, "the end"))

        await trio_loop.aio_as_trio(program)()
    assert said == ["first", "trio begins", "second", "one second", "trio is over", "the end"]


async def test_a_transport_reads_and_is_closed_in_the_middle() -> None:
    """Many small writes, each answered, then a close while the other side still writes."""
    async with trio_loop.open_loop():

        async def program() -> bytes:
            async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                try:
                    while data := await reader.readexactly(1):
                        writer.write(data + bytes(5000))
                        await writer.drain()
                except (OSError, asyncio.IncompleteReadError):
                    writer.close()

            server = await asyncio.start_server(answer, "127.0.0.1", 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
            got = b""
            for number in range(100):
                writer.write(bytes([number]))
                got += (await reader.readexactly(5001))[:1]
            writer.write(bytes(100))
            await reader.readexactly(1)
            writer.transport.abort()
            server.close()
            return got

        assert await trio_loop.aio_as_trio(program)() == bytes(range(100))


async def test_a_future_that_nobody_asks_for_ends_nothing() -> None:
    async def forget(loop: asyncio.AbstractEventLoop) -> None:
        loop.create_future().set_exception(ConnectionError("unexpected connection_lost() call"))
        gc.collect()

    async def program() -> int:
        return await asyncio.sleep(0.01, 7)

    async with trio_loop.open_loop() as loop:
        await trio_loop.aio_as_trio(forget)(loop)
        assert await trio_loop.aio_as_trio(program)() == 7


async def test_a_callback_that_fails_ends_the_loop() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(BaseExceptionGroup) as caught:
        async with trio_loop.open_loop() as loop:
            loop.call_soon(fail)
            await trio.sleep_forever()
    assert caught.group_contains(ZeroDivisionError)

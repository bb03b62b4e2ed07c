"""asyncio inside trio: in order, with trio's clock, cancellable, without a trace."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from functools import partial

import pytest
import trio
import trio.testing

from aether_trio.storage.postgres import trio_loop

CALLBACKS = 1000


async def test_asyncio_elsewhere_is_as_it_was() -> None:
    token = trio.lowlevel.current_trio_token()
    calls: list[str] = []

    async def program() -> type:
        trio.from_thread.run_sync(calls.append, "from a thread", trio_token=token)
        await asyncio.sleep(0)
        return type(asyncio.get_running_loop())

    async with trio_loop.open_loop():
        assert await trio.to_thread.run_sync(asyncio.run, program()) is asyncio.SelectorEventLoop
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
    assert calls == ["from a thread"]


async def test_a_coroutine_of_asyncio_has_its_loop_and_gives_its_result_or_its_error() -> None:
    async def program(divisor: int) -> float:
        assert asyncio.get_running_loop() is loop
        async with asyncio.timeout(60):
            return await asyncio.sleep(0, 7 / divisor)

    async with trio_loop.open_loop() as loop:
        assert await loop.run(program(1)) == 7
        with pytest.raises(ZeroDivisionError):
            await loop.run(program(0))


async def test_cancelling_reaches_asyncio_and_waits_for_its_end(autojump_clock: trio.testing.MockClock) -> None:
    said: list[str] = []

    async def program() -> None:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            await asyncio.sleep(5)
            said.append("cleaned up")
            raise

    async with trio_loop.open_loop() as loop:
        with trio.move_on_after(1) as scope:
            await loop.run(program())
        assert scope.cancelled_caught
        assert trio.current_time() == pytest.approx(6, abs=0.01)
    assert said == ["cleaned up"]


async def test_tasks_that_are_left_are_cancelled_at_the_end() -> None:
    ended: list[str] = []

    async def program() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append("cancelled")

    with trio.CancelScope() as scope:
        async with trio_loop.open_loop() as loop:
            loop.create_task(program())
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            await trio.sleep_forever()
    assert ended == ["cancelled"]


async def test_threads_call_back_and_an_executor_runs_what_blocks() -> None:
    async with trio_loop.open_loop() as loop:
        heard = loop.create_future()
        await trio.to_thread.run_sync(loop.call_soon_threadsafe, heard.set_result, "from a thread")

        async def program() -> tuple[str, int]:
            addresses = await loop.getaddrinfo("127.0.0.1", 80)
            with pytest.raises(ZeroDivisionError):
                await loop.run_in_executor(None, lambda: 1 // 0)
            return await heard, len(addresses)

        said, found = await loop.run(program())
    assert said == "from a thread"
    assert found


async def test_many_timers_are_due_in_order_and_cancelled_ones_go(autojump_clock: trio.testing.MockClock) -> None:
    due: list[int] = []
    async with trio_loop.open_loop() as loop:
        timers = [loop.call_later(1 + number, due.append, number) for number in range(CALLBACKS)]
        for number, timer in enumerate(timers):
            if number % 10:
                timer.cancel()
        await trio.sleep(2.5)
        assert len(loop._scheduled) < CALLBACKS / 2
        await trio.sleep(CALLBACKS)
    assert due == list(range(0, CALLBACKS, 10))


async def test_a_callback_that_fails_ends_the_loop_and_tells_what_waits_for_it() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    told: list[str] = []

    async def wait(loop: trio_loop.TrioLoop) -> None:
        with trio.CancelScope(shield=True), pytest.raises(RuntimeError, match="failed"):
            await loop.run(asyncio.sleep(3600))
        with pytest.raises(RuntimeError, match="failed"):
            await loop.run(asyncio.sleep(0))
        told.append("both")

    with pytest.raises(BaseExceptionGroup) as caught:
        async with trio_loop.open_loop() as loop, trio.open_nursery() as nursery:
            nursery.start_soon(wait, loop)
            await trio.testing.wait_all_tasks_blocked()
            loop.call_soon(fail)
            await trio.sleep_forever()
    assert caught.group_contains(ZeroDivisionError)
    assert told == ["both"]


def test_importing_it_warns_of_nothing() -> None:
    """A user who makes errors of warnings must be able to import us."""
    for module in ("aether_trio.storage.postgres.trio_loop", "aether_trio.storage.postgres.database"):
        subprocess.run([sys.executable, "-W", "error", "-c", f"import {module}"], check=True, timeout=120)


async def test_what_is_ready_runs_in_its_order_and_trio_has_its_turns() -> None:
    """More callbacks than one turn takes, next to a trio task that counts turns."""
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


async def test_a_transport_reads_and_is_closed_in_the_middle() -> None:
    """Many small answered writes, then a close while the other side still writes."""
    async with trio_loop.open_loop() as loop:

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

        assert await loop.run(program()) == bytes(range(100))


async def test_what_is_started_now_has_had_its_turn() -> None:
    ran: list[str] = []
    fired = trio.Event()
    async with trio_loop.open_loop() as loop:
        await trio.testing.wait_all_tasks_blocked()

        def start() -> None:
            loop.call_soon(ran.append, "first")
            loop.call_soon(loop.call_soon, ran.append, "second")
            loop.call_later(0.01, fired.set)

        loop.start_now(start)
        assert ran == ["first", "second"]
        with trio.fail_after(60):
            await fired.wait()  # the turns go on by themselves
        loop.call_soon(loop.start_now, partial(ran.append, "within a turn"))
        await trio.testing.wait_all_tasks_blocked()
        assert ran[2:] == ["within a turn"]


async def test_an_error_of_what_is_started_now_ends_the_loop_and_not_its_caller() -> None:
    went_on = False
    with pytest.raises(BaseExceptionGroup):
        async with trio_loop.open_loop() as loop:
            loop.start_now(partial(loop.call_soon, loop.call_exception_handler, {"exception": ValueError("a defect")}))
            went_on = True
            await trio.sleep_forever()
    assert went_on


async def test_a_failed_future_that_is_not_awaited_ends_nothing() -> None:
    async def forget(loop: asyncio.AbstractEventLoop) -> None:
        loop.create_future().set_exception(ConnectionError("unexpected connection_lost() call"))
        gc.collect()

    async def program() -> int:
        return await asyncio.sleep(0.01, 7)

    async with trio_loop.open_loop() as loop:
        await loop.run(forget(loop))
        assert await loop.run(program()) == 7

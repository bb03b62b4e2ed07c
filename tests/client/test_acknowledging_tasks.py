"""The task or thread that has a message acknowledges it, no later one of its id."""

from __future__ import annotations

import threading
from contextlib import nullcontext

import anyio
import pytest

from aether_trio.client import MessagesAbandoned, connect_sync
from tests.client.gateways import agent, open_test_gateway, run_on, with_gateway

MESSAGES = 40


class Crash(Exception):
    """What the handling of a message raises."""


async def fill(address: str, count: int = MESSAGES) -> None:
    async with agent(address, "boss") as boss:
        for number in range(count):
            await boss.send("ag::w::i::a", str(number))


async def all_come_again(address: str, count: int = MESSAGES) -> None:
    async with agent(address, "a", manual_acks=True) as a:
        assert [(await a.receive()).text for _ in range(count)] == [str(number) for number in range(count)]


@pytest.mark.parametrize("end", ["well", "raising"])
@with_gateway()
async def test_every_message_has_a_task_that_fails(address: str, end: str) -> None:
    await fill(address)

    async def handle() -> None:
        async for message in a:
            raise Crash(message.text)

    with pytest.raises(Crash, match="the end") if end == "raising" else nullcontext():
        async with agent(address, "a") as a:
            for _ in range(MESSAGES):
                with pytest.raises(ExceptionGroup):
                    async with anyio.create_task_group() as group:
                        group.start_soon(handle)
            if end == "raising":
                raise Crash("the end")
    await all_come_again(address)


@with_gateway()
async def test_every_message_has_a_task_that_is_cancelled(address: str) -> None:
    await fill(address)

    async def handle(taken: anyio.Event) -> None:
        async for _ in a:
            taken.set()
            await anyio.sleep_forever()

    async with agent(address, "a") as a:
        for _ in range(MESSAGES):
            async with anyio.create_task_group() as group:
                taken = anyio.Event()
                group.start_soon(handle, taken)
                await taken.wait()
                group.cancel_scope.cancel()
    await all_come_again(address)


@with_gateway()
async def test_every_message_has_a_task_that_ends_well(address: str) -> None:
    """Their credit comes back while another task waits, and none comes again."""
    await fill(address)
    async with agent(address, "a", credit_messages=4) as a:
        messages = aiter(a)
        found: list[str] = []

        async def handle() -> None:
            message = await anext(messages)
            await anyio.sleep(0)
            found.append(message.text)

        async with anyio.create_task_group() as group:
            for _ in range(MESSAGES):
                group.start_soon(handle)
    assert sorted(found, key=int) == [str(number) for number in range(MESSAGES)]
    await fill(address, 1)
    async with agent(address, "a") as a:
        assert (await a.receive()).text == "0"
        assert a.statistics().buffered == 0


@with_gateway()
async def test_so_many_fail_that_nothing_more_can_come(address: str) -> None:
    """The task that waits is told so, and the next one too; none hangs."""
    await fill(address, 5)

    async def handle() -> None:
        async for _ in a:
            failing.set()
            await fail.wait()
            raise Crash

    async def wait_for_more() -> None:
        with pytest.raises(MessagesAbandoned):
            await anext(aiter(a))
        told.set()

    with pytest.raises(MessagesAbandoned):
        async with agent(address, "a", credit_messages=4) as a:
            told = anyio.Event()
            async with anyio.create_task_group() as waiters:
                for number in range(4):
                    failing, fail = anyio.Event(), anyio.Event()
                    with pytest.raises(ExceptionGroup):
                        async with anyio.create_task_group() as group:
                            group.start_soon(handle)
                            await failing.wait()
                            if number == 3:
                                waiters.start_soon(wait_for_more)
                                await anyio.wait_all_tasks_blocked()
                            fail.set()
                await told.wait()
            await anext(aiter(a))
    await all_come_again(address, 5)


@with_gateway()
async def test_nothing_is_kept_of_what_is_read_behind_the_block(address: str) -> None:
    """No table of tasks is kept, and no instrument of trio."""
    await fill(address, 3)
    async with agent(address, "a") as a:
        messages = aiter(a)
        while a.statistics().buffered < 3:
            await anyio.sleep(0.001)
    assert [(await anext(messages)).text for _ in range(3)] == ["0", "1", "2"]
    cursors = a._dispatch.cursors
    assert (len(cursors._by_task), cursors._ends) == (0, None)


async def test_every_message_has_a_thread_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _args: None)

    def script(address: str) -> None:
        with connect_sync(address, workspace="w", implementation="i", specifier="a") as a:

            def handle() -> None:
                for message in a:
                    raise Crash(message.text)

            for _ in range(MESSAGES):
                thread = threading.Thread(target=handle)
                thread.start()
                thread.join()

    async with open_test_gateway() as gateway:
        address = f"aether://{gateway.address}"
        await fill(address)
        await run_on("thread", script, address)
        await all_come_again(address)


async def test_threads_that_end_with_all_that_may_be_delivered() -> None:
    def script(address: str) -> None:
        with connect_sync(address, workspace="w", implementation="i", specifier="a", credit_messages=4) as a:
            for _ in range(4):
                thread = threading.Thread(target=next, args=(iter(a),))
                thread.start()
                thread.join()
            with pytest.raises(MessagesAbandoned):
                next(iter(a))

    async with open_test_gateway() as gateway:
        address = f"aether://{gateway.address}"
        await fill(address, 5)
        await run_on("thread", script, address)
        await all_come_again(address, 5)

"""A message that crashes its agent again and again: a dead letter, and then."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.services.agents.crash_loops import CrashLoops
from aether_trio.storage.base import StorageUnavailable
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, deadlock_is_an_error, let_manage, message_to
from tests.services.agents.cast import ECHO, assignment, fail, nothing_more, started_by
from tests.services.agents.ops import lister, register
from tests.services.tasks.peers import Op, operate

REASON = "its process ended with exit code 1"


@asynccontextmanager
async def crew(core: Core) -> AsyncIterator[tuple[MemoryLink, MemoryLink]]:
    """(an orchestrator that has "echo" and reports ends, a sender)."""
    async with connect(core, lister("1", "echo")) as orchestrator, connect(core, agent("w", "asker", "1")) as asker:
        await register(orchestrator, "echo")
        yield orchestrator, asker


async def crash(core: Core, orchestrator: MemoryLink, *, how: str = "crash") -> None:
    """Start the agent, which reads nothing, and let it end."""
    asked = await assignment(orchestrator)
    async with connect(core, started_by(asked), wait_ack=False) as it:
        it.pause()
        await trio.sleep(0.3)
        if how == "exit":
            it.finish()
        else:
            it.cut()
        await trio.sleep(0.7)
        if how == "crash":
            assert (await fail(orchestrator, asked.task_id, REASON)).success
        elif how == "exit":
            assert (await operate(orchestrator, Op.COMPLETE, asked.task_id)).success


async def letters(core: Core) -> list[tuple[Any, ...]]:
    return await core.tasks.engine.database.fetch(
        "SELECT t.task_id, t.status, t.error FROM tasks t WHERE t.category = 'dead_message' ORDER BY t.order_us"
    )


async def until_buried(core: Core, count: int = 1) -> str:
    while len(found := await letters(core)) < count:
        await trio.sleep(0.1)
    assert len(found) == count
    return str(found[-1][0])


async def read(core: Core, orchestrator: MemoryLink) -> list[bytes]:
    """Start the agent once more, and return what it is sent."""
    asked = await assignment(orchestrator)
    async with connect(core, started_by(asked)) as it:
        await trio.sleep(2)
        found = [message.msg.payload for message in it.waiting("msg")]
        it.finish()
        assert (await operate(orchestrator, Op.COMPLETE, asked.task_id)).success
    return found


async def test_the_message_is_a_dead_letter_and_the_next_one_is_served(core: Core) -> None:
    let_manage(core)
    async with crew(core) as (orchestrator, asker):
        asker.send(message_to(ECHO, b"bad"), message_to(ECHO, b"good"))
        for _ in range(3):
            assert await letters(core) == []
            await crash(core, orchestrator)
        task_id = await until_buried(core)
        assert await read(core, orchestrator) == [b"good"]
        asker.send(pb.UpstreamMessage(task_query=pb.TaskQuery(op=pb.TaskQuery.GET, task_id=task_id, request_id="q")))
        shown = (await asker.next("task_query")).task_query.task
        assert (shown.status, shown.task_type, shown.workspace) == (pb.TASK_STATUS_FAILED, "dead_message", "w")
        assert shown.error == f"{ECHO} crashed 3 times with this message first: {REASON}"
        metadata = dict(shown.metadata)
        assert metadata["_dead_letter"] == "true"
        assert (metadata["_topic"], metadata["_source"]) == (ECHO, "ag::w::asker::1")
        assert "envelope" not in metadata
        assert (await operate(asker, Op.RETRY, task_id)).task.status == pb.TASK_STATUS_COMPLETED
        asked = await assignment(orchestrator)
        async with connect(core, started_by(asked)) as it:
            message = (await it.next("msg")).msg
            assert (message.payload, message.source_topic) == (b"bad", "ag::w::asker::1")
        again = await operate(asker, Op.RETRY, task_id)  # the same request again
        assert again.success
        assert not (await operate(asker, Op.CANCEL, task_id)).success


async def test_a_dead_letter_is_discarded(core: Core) -> None:
    let_manage(core)
    async with crew(core) as (orchestrator, asker):
        asker.send(message_to(ECHO, b"bad"))
        for _ in range(3):
            await crash(core, orchestrator)
        task_id = await until_buried(core)
        assert (await operate(asker, Op.CANCEL, task_id)).task.status == pb.TASK_STATUS_CANCELLED
        refused = await operate(asker, Op.RETRY, task_id)
        assert (refused.success, "no dead letter any more" in refused.error) == (False, True)
        [[resolved, notes]] = await core.tasks.engine.database.fetch(
            "SELECT resolved_by, notes FROM task_dead_letters WHERE task_id = $1", task_id
        )
        assert (resolved, notes) == ("ag::w::asker::1", "discarded")
        await nothing_more(orchestrator)


async def test_rules_decide_who_may_requeue_and_discard(core: Core) -> None:
    async with crew(core) as (orchestrator, asker):
        asker.send(message_to(ECHO, b"bad"))
        for _ in range(3):
            await crash(core, orchestrator)
        task_id = await until_buried(core)
        for op in (Op.RETRY, Op.CANCEL):
            answer = await operate(asker, op, task_id)  # its sender may send no longer, perhaps
            assert (answer.success, answer.error) == (False, "task not found")


@pytest.mark.parametrize("how", ["exit", "lost"])
async def test_only_crashes_count(core: Core, how: str) -> None:
    async with crew(core) as (orchestrator, asker):
        asker.send(message_to(ECHO, b"one"))
        for _ in range(3):
            await crash(core, orchestrator, how=how)
        await trio.sleep(60)
        assert await letters(core) == []


async def test_another_first_message_counts_from_one(core: Core) -> None:
    async with crew(core) as (orchestrator, asker):
        for word in (b"one", b"two", b"three"):
            asker.send(message_to(ECHO, word))
            await barrier(asker)
            for _ in range(2):
                await crash(core, orchestrator)
            assert word in await read(core, orchestrator)
        assert await letters(core) == []


async def test_a_limit_of_nothing_buries_nothing(world: World) -> None:
    async with (
        deadlock_is_an_error(),
        world.open(tasks={"message_crashes": 0}) as core,
        crew(core) as (orchestrator, asker),
    ):
        asker.send(message_to(ECHO, b"bad"))
        for _ in range(4):
            await crash(core, orchestrator)
        await nothing_more(orchestrator)
        assert await letters(core) == []


async def test_a_higher_limit_is_reached(world: World) -> None:
    async with (
        deadlock_is_an_error(),
        world.open(tasks={"message_crashes": 6}) as core,
        crew(core) as (orchestrator, asker),
    ):
        asker.send(message_to(ECHO, b"bad"))
        for _ in range(6):
            assert await letters(core) == []
            await crash(core, orchestrator)
        await until_buried(core)


@pytest.mark.parametrize("killed", ["before the dead letter", "before the cursor moves"])
async def test_a_gateway_that_is_killed_loses_and_doubles_nothing(
    world: World, killed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise StorageUnavailable("killed")

    async with deadlock_is_an_error():
        async with (
            world.open() as core,
            connect(core, lister("1", "echo")) as orchestrator,
            connect(core, agent("w", "asker", "1")) as asker,
        ):
            await register(orchestrator, "echo")
            asker.send(message_to(ECHO, b"bad"), message_to(ECHO, b"good"))
            for _ in range(2):
                await crash(core, orchestrator)
            await trio.sleep(0.5)  # the second one is counted
            with monkeypatch.context() as patch:
                patch.setattr(CrashLoops, "_skip" if "cursor" in killed else "handle", broken)
                await crash(core, orchestrator)
                await trio.sleep(3)
                assert len(await letters(core)) == int("cursor" in killed)
                for database in world.databases.values():
                    database.failing = True
        async with (
            world.open() as core,
            connect(core, lister("1", "echo")) as orchestrator,
            connect(core, agent("w", "asker", "1")) as asker,
        ):
            asker.send(message_to(ECHO, b"late"))
            assert await read(core, orchestrator) == [b"good", b"late"]
            assert len(await letters(core)) == 1

"""Starts where sender, orchestrators and agent are connected to different nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core, open_core
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, barrier, connect, let_manage, message_to, settings_for_tests
from tests.helpers.engines import PostgresEngine
from tests.services.agents.cast import ECHO, assignment, create, fail, launch, started_by, starts, statuses, until
from tests.services.agents.ops import Op, lister, operate, register, starter
from tests.services.tasks import peers

LONG_S = 300.0


@asynccontextmanager
async def two_nodes(engine: PostgresEngine, **changes: Mapping[str, Any]) -> AsyncIterator[tuple[Core, Core]]:
    settings = settings_for_tests(storage={"database": engine.server.dsn(), "schema": engine.schema}, **changes)
    with trio.fail_after(LONG_S):
        async with open_core(settings) as one, open_core(settings) as two:
            yield one, two


@asynccontextmanager
async def apart(engine: PostgresEngine) -> AsyncIterator[tuple[Core, Core, MemoryLink, MemoryLink]]:
    """(one node, another node, an orchestrator of the first, a sender of the second)."""
    async with (
        two_nodes(engine) as (one, two),
        connect(one, starter("1", "process")) as orchestrator,
        connect(two, agent("w", "asker", "1")) as asker,
    ):
        await register(orchestrator, "echo")
        yield one, two, orchestrator, asker


@asynccontextmanager
async def both_orchestrate(engine: PostgresEngine) -> AsyncIterator[tuple[Core, Core, MemoryLink, MemoryLink]]:
    """(one node, another node, an orchestrator of each); they know of each other."""
    async with (
        two_nodes(engine) as (one, two),
        connect(one, starter("1", "process")) as first,
        connect(two, starter("2", "process")) as second,
    ):
        await register(first, "echo")
        while (await operate(second, Op.LIST_ORCHESTRATORS)).total_count < 2:
            await trio.sleep(0.02)
        yield one, two, first, second


async def test_a_message_on_one_node_an_orchestrator_on_another(postgres_engine: PostgresEngine) -> None:
    async with apart(postgres_engine) as (one, two, orchestrator, asker):
        asker.send(message_to(ECHO, b"one"))
        asked = await assignment(orchestrator)
        async with connect(two, started_by(asked)) as echo:
            assert (await echo.next("config")).config.task_context["task_id"] == asked.task_id
            assert (await echo.next("msg")).msg.payload == b"one"
            await until(one, "running")
            # It is there, and known to be, for those on the other node as well.
            async with connect(one, agent("w", "asker", "2")) as other:
                other.send(message_to(ECHO, b"two"))
                assert (await echo.next("msg")).msg.payload == b"two"
                await trio.sleep(1.5)
                await barrier(other)
        assert orchestrator.waiting("task_assignment") == []
        await until(one, "completed")
        asker.send(message_to(ECHO, b"three"))
        assert (await assignment(orchestrator)).task_id != asked.task_id


async def test_a_task_on_one_node_an_orchestrator_on_another(postgres_engine: PostgresEngine) -> None:
    async with apart(postgres_engine) as (_, two, orchestrator, asker):
        answer = await create(asker, payload=b"work", launch_param_overrides={"voice": "loud"})
        assert answer.status == "orchestration_triggered"
        asked = await assignment(orchestrator)
        assert asked.launch_params["voice"] == "loud"
        async with connect(two, started_by(asked)) as echo:
            given = await assignment(echo)
            assert (given.task_id, given.payload) == (answer.task_id, b"work")


async def test_they_take_turns_wherever_they_are(postgres_engine: PostgresEngine) -> None:
    async with (
        both_orchestrate(postgres_engine) as (one, two, first, second),
        connect(one, starter("3", "other")) as here,
        connect(two, starter("4", "other")) as there,
    ):
        for number in range(6):
            await launch(here if number % 2 else there, str(number))
        for peer in (first, second):
            assert len({(await assignment(peer)).specifier for _ in range(3)}) == 3


async def ask(peer: MemoryLink, count: int) -> None:
    for number in range(count):
        peer.send(message_to(f"ag::w::echo::{number}", b"one"))
        await trio.lowlevel.checkpoint()


async def test_there_is_one_start_for_each_identity_when_several_ask_at_once(postgres_engine: PostgresEngine) -> None:
    count = 40
    async with (
        both_orchestrate(postgres_engine) as (one, two, first, second),
        connect(one, agent("w", "asker", "1")) as a,
        connect(two, agent("w", "asker", "2")) as b,
    ):
        async with trio.open_nursery() as nursery:
            for peer in (a, b):
                nursery.start_soon(ask, peer, count)
        asked: list[str] = []

        async def collect(peer: MemoryLink) -> None:
            while len(asked) < count:
                asked.append((await assignment(peer)).specifier)
            done.cancel_scope.cancel()

        async with trio.open_nursery() as done:
            done.start_soon(collect, first)
            done.start_soon(collect, second)
        await trio.sleep(2)
        assert sorted(asked, key=int) == [str(number) for number in range(count)]
        assert len(await starts(one)) == count
        assert not first.waiting("task_assignment")
        assert not second.waiting("task_assignment")


async def test_an_orchestrator_that_goes_is_replaced_by_one_on_another_node(postgres_engine: PostgresEngine) -> None:
    async with apart(postgres_engine) as (_, two, first, asker):
        asker.send(message_to(ECHO, b"one"))
        asked = await assignment(first)
        async with connect(two, starter("2", "process")) as second:
            first.cut()
            assert (await assignment(second)).task_id == asked.task_id


async def test_they_are_asked_wherever_they_are_connected(postgres_engine: PostgresEngine) -> None:
    async with (
        two_nodes(postgres_engine) as (one, two),
        connect(one, lister("1", "echo")) as first,
        connect(two, lister("2", "clerk")) as second,
        connect(two, agent("w", "asker", "1")) as asker,
    ):
        for name in ("echo", "clerk"):
            await register(first, name)
        while (await operate(second, Op.LIST_ORCHESTRATORS)).total_count < 2:
            await trio.sleep(0.02)
        for number in range(10):
            for name in ("echo", "clerk"):
                asker.send(message_to(f"ag::w::{name}::{number}", b"one"))
        await barrier(asker)
        for peer, name in ((first, "echo"), (second, "clerk")):
            assert {(await assignment(peer)).target_implementation for _ in range(10)} == {name}
        assert await statuses(one) == ["starting"] * 20


@pytest.mark.parametrize("how", ["report first", "goodbye first", "half open"])
async def test_the_end_of_a_process_is_known_on_the_node_of_its_agent(
    postgres_engine: PostgresEngine, how: str
) -> None:
    async with (
        two_nodes(postgres_engine) as (one, two),
        connect(one, lister("1", "echo")) as orchestrator,
        connect(two, agent("w", "asker", "1")) as asker,
    ):
        await register(orchestrator, "echo")
        asker.send(message_to(ECHO, b"one"))
        asked = await assignment(orchestrator)
        async with connect(two, started_by(asked)) as it:
            if how == "goodbye first":
                await until(one, "running")
                it.finish()
            assert (await fail(orchestrator, asked.task_id, "exit code 1")).success
            if how == "report first":
                it.finish()
            assert (await until(one, "failed"))[0] == "exit code 1"
            async with connect(two, starter("9", "other")) as other:
                await launch(other, "1")
        assert (await assignment(orchestrator)).task_id != asked.task_id


async def test_a_message_that_crashes_its_agent_is_a_dead_letter_once(postgres_engine: PostgresEngine) -> None:
    async with (
        two_nodes(postgres_engine) as (one, two),
        connect(one, lister("1", "echo")) as orchestrator,
        connect(two, agent("w", "asker", "1")) as asker,
    ):
        await register(orchestrator, "echo")
        asker.send(message_to(ECHO, b"bad"), message_to(ECHO, b"good"))
        for number in range(3):
            asked = await assignment(orchestrator)
            async with connect(one if number == 1 else two, started_by(asked)) as it:
                it.pause()
                await until(one, *["failed"] * number, "running")
                it.cut()
                assert (await fail(orchestrator, asked.task_id, "exit code 1")).success
        asked = await assignment(orchestrator)
        async with connect(two, started_by(asked)) as it:
            assert (await it.next("msg")).msg.payload == b"good"
        [[count]] = await one.tasks.engine.database.fetch("SELECT count(*) FROM tasks WHERE task_type = 'dead_message'")
        assert count == 1


@pytest.mark.parametrize("other", [pb.TaskOperation.RETRY, pb.TaskOperation.CANCEL], ids=["requeue", "discard"])
async def test_a_dead_message_that_two_nodes_move_at_once_is_moved_once(
    postgres_engine: PostgresEngine, other: pb.TaskOperation.OpType.ValueType
) -> None:
    async with (
        two_nodes(postgres_engine) as (one, two),
        connect(one, lister("1", "echo")) as orchestrator,
        connect(one, agent("w", "asker", "1")) as near,
        connect(two, agent("w", "asker", "2")) as far,
    ):
        let_manage(one)
        let_manage(two)
        await register(orchestrator, "echo")
        near.send(message_to(ECHO, b"bad"))
        for number in range(3):
            asked = await assignment(orchestrator)
            async with connect(two, started_by(asked)) as it:
                it.pause()
                await until(one, *["failed"] * number, "running")
                it.cut()
                assert (await fail(orchestrator, asked.task_id, "exit code 1")).success
        dead = "SELECT task_id FROM tasks WHERE task_type = 'dead_message'"
        while not (found := await one.tasks.engine.database.fetch(dead)):
            await trio.sleep(0.05)
        [[task_id]] = found
        answers: list[pb.TaskOperationResponse] = []

        async def move(peer: MemoryLink, op: pb.TaskOperation.OpType.ValueType) -> None:
            answers.append(await peers.operate(peer, op, task_id))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(move, near, pb.TaskOperation.RETRY)
            nursery.start_soon(move, far, other)
        [moved] = [answer for answer in answers if answer.success]
        requeued = moved.task.status == pb.TASK_STATUS_COMPLETED
        near.send(message_to(ECHO, b"last"))
        asked = await assignment(orchestrator)
        async with connect(two, started_by(asked)) as it:
            await trio.sleep(6)  # the other node's outbox and notifications
            read = sorted(message.msg.payload for message in it.waiting("msg"))
            assert read == [b"bad"] * requeued + [b"last"]

"""Assignments are sent once and in order, and cost nothing while they wait."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.tasks import TaskRow
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.session.session import Session
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, kv_get, kv_put
from tests.services.agents.cast import assignment
from tests.services.agents.cast import create as ask_for
from tests.services.agents.ops import register, starter
from tests.services.tasks.peers import Op, create, get, given, operate

WORKER = "ag::w::i::1"
SIZE = 16 * 1024


async def test_one_that_does_not_read_is_told_when_it_does_what_is_still_its(core: Core, world: World) -> None:
    async with connect(core, agent("w", "c", "1")) as creator, connect(core, agent("w", "i", "1")) as worker:
        worker.send(kv_put("nothing", bytes(SIZE)))
        await worker.next("kv")
        session = core.registry.holder(WORKER)
        assert session is not None
        worker.pause()
        for number in range(core.sessions._parts.outbox_limits.control_bytes // SIZE + 2):
            worker.send(kv_get(f"{number}"))
        while session.outbox.control_has_room:
            await trio.sleep(0.01)
        tasks = [(await create(creator, payload=f"{number}".encode())).task_id for number in range(4)]
        assert (await operate(creator, Op.CANCEL, tasks[1])).success
        assert (await get(creator, tasks[0])).status == pb.TASK_STATUS_QUEUED
        assert core.tasks.engine.statistics().assignments == 0
        world.databases["tasks"].failing = True
        worker.resume()
        await trio.sleep(10)
        assert given(worker) == []
        world.databases["tasks"].failing = False
        await trio.sleep(10)
        told = [one.task_assignment for one in worker.waiting("task_assignment")]
        assert [one.task_id for one in told] == [tasks[0], *tasks[2:]]
        assert [one.payload for one in told] == [b"0", b"2", b"3"]
        assert core.tasks.engine.statistics().assignments == 3
        later = (await create(creator)).task_id
        await barrier(worker)
        assert given(worker)[3:] == [later]
        assert core.tasks.engine.statistics().assignments == 4


async def test_one_that_has_gone_is_told_nothing(core: Core) -> None:
    async with connect(core, agent("w", "i", "1")) as worker:
        session = core.registry.holder(WORKER)
        assert session is not None
        worker.cut()
        while not session.detached:
            await trio.lowlevel.checkpoint()
        core.tasks.engine.assignments.push(session, TaskRow("t", "t", "w"), b"")
        assert core.tasks.engine.statistics().assignments == 0


async def test_an_urgent_start_overtakes_those_that_its_orchestrator_was_not_told_of(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliveries = core.tasks.engine.assignments
    send_starts = deliveries.send_starts
    may_go_on = trio.Event()

    async def slowly(session: Session, starts: Sequence[TaskRow]) -> None:
        await may_go_on.wait()
        await send_starts(session, starts)

    monkeypatch.setattr(deliveries, "send_starts", slowly)
    async with connect(core, starter("1", "process")) as orchestrator, connect(core, agent("w", "asker", "1")) as asker:
        await register(orchestrator, "echo")
        wanted = {"first": 10, "low": 10, "normal": 30, "high": 40}
        for specifier, priority in wanted.items():
            made = await ask_for(asker, target_agent_id=f"ag::w::echo::{specifier}", priority=priority)
            assert made.success, made.error_message
            await trio.sleep(5)
        may_go_on.set()
        told = [(await assignment(orchestrator)).specifier for _ in wanted]
        assert told == ["first", "high", "normal", "low"]


@pytest.mark.parametrize("how", ["again", "anew", "at once"])
async def test_much_that_is_given_at_once_is_not_held_at_once(core: Core, world: World, how: str) -> None:
    """Assignments are sent again after a commit without an answer.

    Or to a new client, or all at once to a worker for which they have waited.
    """
    engine, held = core.tasks.engine, [0]
    after_commit = engine.after_commit

    def measured(tx: TaskTransaction) -> None:
        held.append(sum(len(push.payload or b"") for push in tx.effects.assignments))
        after_commit(tx)

    engine.after_commit = measured  # type: ignore[method-assign]
    payloads = [bytes([number]) * 400_000 for number in range(12)]
    async with connect(core, agent("w", "c", "1")) as creator:

        async def create_all() -> list[str]:
            return [(await create(creator, payload=payload)).task_id for payload in payloads]

        tasks = await create_all() if how == "at once" else []
        async with connect(core, agent("w", "i", "1")) as worker:
            tasks = tasks or await create_all()
            await trio.sleep(10)
            if how == "anew":
                worker.finish()
            elif how == "again":
                worker._downstream.clear()
                world.databases["tasks"].unanswered_writes = world.databases["tasks"].side.unanswered_writes = 1
                await create(creator, target_implementation="other")
                world.databases["tasks"].unanswered_writes = world.databases["tasks"].side.unanswered_writes = 0
                await trio.sleep(10)
            if how != "anew":
                told = [one.task_assignment for one in worker.waiting("task_assignment")]
        if how == "anew":
            async with connect(core, agent("w", "i", "1")) as worker:
                await trio.sleep(10)
                told = [one.task_assignment for one in worker.waiting("task_assignment")]
    assert list({one.task_id: None for one in told}) == tasks  # again may be twice
    assert {one.task_id: one.payload for one in told} == dict(zip(tasks, payloads, strict=True))
    assert max(held) < 2_000_000

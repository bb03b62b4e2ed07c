"""Orchestrators that lie or flood, and crashes that are not the message's."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.services.agents.autostart import AutostartQueue
from aether_trio.services.agents.crash_loops import CrashLoops
from aether_trio.session.init_connection import AGENTS, MAX_AGENTS
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, deadlock_is_an_error, let_manage, message_to
from tests.services.agents.cast import ECHO, assignment, create, fail, launch, nothing_more, started_by, statuses, until
from tests.services.agents.ops import lister, register
from tests.services.agents.test_crash_loops import REASON, crash, crew, letters, until_buried
from tests.services.agents.test_ended_processes import report, started
from tests.services.tasks.peers import Op, get, operate


@pytest.mark.parametrize("how", ["well", "badly"])
async def test_a_former_orchestrator_cannot_name_the_assignment_of_another(core: Core, how: str) -> None:
    async with connect(core, lister("1", "echo")) as former, connect(core, agent("w", "asker", "1")) as asker:
        await register(former, "echo")
        asker.send(message_to(ECHO, b"one"))
        asked = await assignment(former)
        async with connect(core, lister("2", "echo")) as second:
            assert (await fail(former, asked.task_id, "no")).success
            asked = await assignment(second)
            async with connect(core, started_by(asked)) as it:
                await until(core, "running")
                for number in range(6):
                    assert not (await report(former, f"{asked.task_id}@{number}", how)).success
                    assert not (await operate(former, Op.CLAIM, f"{asked.task_id}@{number}")).success
                await trio.sleep(2)
                assert it.ended is None
                assert await statuses(core) == ["running"]


async def test_a_report_with_a_result_is_refused_and_changes_nothing(core: Core) -> None:
    async with started(core) as (orchestrator, _, it, asked):
        wait = pb.WaitSpec(input_match={"result": '"x"'})
        answer = await operate(orchestrator, Op.COMPLETE, asked.task_id, wait_spec=wait)
        assert (answer.success, "has no result" in answer.error) == (False, True)
        it.cut()  # and comes back
        async with connect(core, started_by(asked)) as again:
            await trio.sleep(2)
            assert (again.ended, await statuses(core)) == (None, ["running"])
            assert (await operate(orchestrator, Op.COMPLETE, asked.task_id)).success
            await again.wait_end()


async def test_a_flood_of_agents_waits_as_one_change(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    async with connect(core, lister("1", "echo")) as orchestrator:
        writes = 0
        put = core.tasks.engine.writes.put

        def counted(*given: Any, **named: Any) -> int:
            nonlocal writes
            writes += 1
            return put(*given, **named)

        monkeypatch.setattr(core.tasks.engine.writes, "put", counted)
        for number in range(300):
            names = [f"a{number}-{i}" for i in range(MAX_AGENTS)]
            orchestrator.send(pb.UpstreamMessage(active_extensions=[AGENTS, json.dumps(names)]))
        await barrier(orchestrator)
        await core.tasks.engine.writes.flush()
        assert writes < 150  # as many as there were transactions
        found = await core.tasks.engine.database.fetch("SELECT implementation FROM orchestrator_agents")
        assert {name for (name,) in found} == {f"a299-{i}" for i in range(MAX_AGENTS)}
        orchestrator.send(pb.UpstreamMessage(active_extensions=[AGENTS, '["echo"]']))
        await register(orchestrator, "echo")
        await launch(orchestrator, "1")
        await assignment(orchestrator)


@pytest.mark.parametrize("many", ["the same name", "other names"])
async def test_more_names_than_an_orchestrator_may_say_change_nothing(core: Core, many: str) -> None:
    async with connect(core, lister("1", "echo")) as orchestrator:
        await register(orchestrator, "echo")
        names = ["x" if many == "the same name" else f"a{i}" for i in range(100_000)]
        orchestrator.send(pb.UpstreamMessage(active_extensions=[AGENTS, json.dumps(names)]))
        await launch(orchestrator, "1")
        await assignment(orchestrator)


async def test_orchestrators_that_hang_keep_no_start_from_another_one(world: World) -> None:
    async with (
        deadlock_is_an_error(),
        world.open(tasks={"start_timeout_s": 1}) as core,
        connect(core, lister("1", "echo")) as first,
        connect(core, lister("2", "echo")),
        connect(core, lister("3", "echo")),
    ):
        await register(first, "echo")
        await launch(first, "1")
        asked = await assignment(first)
        async with connect(core, lister("4", "echo")) as last:
            given = await assignment(last)
            assert given.task_id == asked.task_id
            async with connect(core, started_by(given)):
                await until(core, "running")


async def test_a_start_that_is_given_back_for_ever_keeps_few_rows(core: Core) -> None:
    async with connect(core, lister("1", "echo")) as orchestrator:
        await register(orchestrator, "echo")
        await launch(orchestrator, "1")
        for _ in range(60):
            asked = await assignment(orchestrator)
            assert (await operate(orchestrator, Op.REJECT, asked.task_id)).success
        [[count]] = await core.tasks.engine.database.fetch("SELECT count(*) FROM task_attempts")
        assert count < 30


async def test_crashes_with_a_good_end_between_are_not_in_a_row(core: Core) -> None:
    async with crew(core) as (orchestrator, asker):
        asker.send(message_to(ECHO, b"one"))
        for how in ("crash", "crash", "exit", "crash"):
            await crash(core, orchestrator, how=how)
        await trio.sleep(2)
        assert await letters(core) == []


async def test_a_task_that_crashes_its_agent_costs_no_message(core: Core) -> None:
    let_manage(core)
    async with crew(core) as (orchestrator, asker):
        policy = pb.RetryPolicy(max_attempts=3, initial_delay_ms=50)
        job = (await create(asker, retry_policy=policy)).task_id
        asker.send(message_to(ECHO, b"innocent"))
        for _ in range(3):
            asked = await assignment(orchestrator)
            async with connect(core, started_by(asked), wait_ack=False) as it:
                it.pause()
                await trio.sleep(1)
                it.send(pb.UpstreamMessage(task_op=Op(op=Op.CLAIM, task_id=job, request_id="c")))
                while (await get(asker, job)).status != pb.TASK_STATUS_RUNNING:
                    await trio.sleep(0.1)
                it.cut()
                await trio.sleep(0.2)
                assert (await fail(orchestrator, asked.task_id, REASON)).success
        assert (await get(asker, job)).status == pb.TASK_STATUS_FAILED
        for _ in range(3):
            assert await letters(core) == []
            await crash(core, orchestrator)  # now it is the message
        await until_buried(core)


async def test_readers_of_a_workspace_see_no_payload_of_a_dead_message(core: Core) -> None:
    async with (
        crew(core) as (orchestrator, asker),
        connect(core, agent("w", "nosy", "1")) as nosy,
        connect(core, agent("v", "nosy", "1")) as far,
    ):
        asker.send(message_to(ECHO, b"secret"))
        for _ in range(3):
            await crash(core, orchestrator)
        query = pb.TaskQuery(op=pb.TaskQuery.GET, task_id=await until_buried(core), request_id="q")
        query.filter.page_token = "payload"

        async def ask(peer: object) -> pb.TaskQueryResponse:
            peer.send(pb.UpstreamMessage(task_query=query))  # type: ignore[attr-defined]
            return (await peer.next("task_query")).task_query  # type: ignore[attr-defined, no-any-return]

        assert (await ask(far)).error == "task not found"
        for peer in (nosy, asker):
            answer = await ask(peer)
            assert (answer.success, dict(answer.task.metadata)) == (False, {})
            assert "needs MANAGE" in answer.error
        let_manage(core)
        assert (await ask(nosy)).task.metadata["_payload_base64"] == "c2VjcmV0"
        await nothing_more(orchestrator)


async def test_no_start_replaces_one_whose_crash_is_not_counted(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    async def read_before(*_: object) -> set[str]:
        return set()

    async with crew(core) as (orchestrator, asker):
        asker.send(message_to(ECHO, b"one"))
        with monkeypatch.context() as patch:
            patch.setattr(CrashLoops, "unhandled", read_before)
            patch.setattr(AutostartQueue, "agent_crashed", lambda *_: None)
            patch.setattr(AutostartQueue, "agent_ended", lambda *_: None)
            await crash(core, orchestrator)
            asker.send(message_to(ECHO, b"two"))
            await trio.sleep(3)
            assert orchestrator.waiting("task_assignment") == []
        await assignment(orchestrator)
        [[times]] = await core.tasks.engine.database.fetch("SELECT times FROM agent_crashes")
        assert times == 1


async def test_no_crash_of_many_at_once_goes_uncounted(world: World) -> None:
    many = 150
    async with (
        deadlock_is_an_error(),
        world.open(tasks={"message_crashes": 1}, limits={"connections_per_workspace": 0}) as core,
        crew(core) as (orchestrator, asker),
        connect(core, lister("2", "calm")) as calm,
        connect(core, agent("v", "other", "1")) as other,
    ):
        await register(calm, "calm")
        for number in range(many):
            asker.send(message_to(f"ag::w::echo::{number}", b"bad"))
        asked = [await assignment(orchestrator) for _ in range(many)]
        async with AsyncExitStack() as stack:
            links = []
            for one in asked:
                links.append(await stack.enter_async_context(connect(core, started_by(one), wait_ack=False)))
                links[-1].pause()
            await until(core, *["running"] * many)
            for link in links:
                link.cut()
            for one in asked:
                orchestrator.send(pb.UpstreamMessage(task_op=Op(op=Op.FAIL, task_id=one.task_id, request_id="r")))
            other.send(message_to("ag::v::calm::1", b"x"))
            await assignment(calm)
            await until_buried(core, many)


async def test_an_agent_that_crashes_before_its_begin_is_written(core: Core, world: World) -> None:
    database = world.databases["tasks"]
    async with crew(core) as (orchestrator, asker):
        asker.send(message_to(ECHO, b"bad"))
        asked = await assignment(orchestrator)
        await trio.sleep(0.5)
        database.before_write.close()
        async with connect(core, started_by(asked), wait_ack=False) as it:
            it.pause()
            await trio.sleep(0.5)
            it.cut()
            await trio.sleep(0.5)
        database.before_write.open()
        assert (await fail(orchestrator, asked.task_id, REASON)).success
        await until(core, "failed", "starting")
        assert await core.tasks.engine.database.fetch("SELECT times FROM agent_crashes") == [(1,)]

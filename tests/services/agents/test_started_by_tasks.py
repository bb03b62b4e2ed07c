"""Tasks and wishes that start an agent, at once or later; on both engines."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.services.tasks.transaction import startup
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, connect, deadlock_is_an_error
from tests.services.agents.cast import (
    assignment,
    cast,
    create,
    echo,
    fail,
    nothing_more,
    operation,
    sleep_on,
    started_by,
    starts,
    until,
)
from tests.services.agents.ops import Op, info, operate, starter

QUEUE = pb.TARGET_OFFLINE_POLICY_QUEUE
AGAIN = pb.RetryPolicy(max_attempts=3, backoff=pb.BACKOFF_STRATEGY_FIXED, initial_delay_ms=1000)


async def test_a_task_for_an_agent_that_is_not_running_starts_it_and_waits_for_it(core: Core) -> None:
    async with cast(core, voice="low", mood="good") as (orchestrator, asker):
        first = await create(asker, payload=b"work", launch_param_overrides={"voice": "loud"})
        assert (first.success, first.status, first.assigned_to) == (True, "orchestration_triggered", "")
        again = await create(asker, payload=b"more")
        assert (again.success, again.status) == (True, "orchestration_triggered")
        asked = await assignment(orchestrator)
        assert (asked.launch_params["voice"], asked.launch_params["mood"]) == ("loud", "good")
        await nothing_more(orchestrator)
        async with connect(core, started_by(asked)) as started:
            given = [await assignment(started) for _ in range(2)]
            assert [(one.task_id, one.payload) for one in given] == [(first.task_id, b"work"), (again.task_id, b"more")]


async def test_a_task_whose_agent_has_died_starts_it_again_when_it_is_tried_again(core: Core) -> None:
    async with cast(core) as (orchestrator, asker):
        created = await create(asker, payload=b"work", retry_policy=AGAIN)
        asked = await assignment(orchestrator)
        async with connect(core, echo()) as started:
            await assignment(started)
            await operation(started, pb.TaskOperation.CLAIM, created.task_id)
            started.cut()
            await trio.sleep(0.1)
        again = await assignment(orchestrator)
        assert again.task_id != asked.task_id
        async with connect(core, started_by(again)) as started:
            given = await assignment(started)
            assert (given.task_id, given.payload) == (created.task_id, b"work")


async def test_a_task_that_wakes_starts_its_agent(core: Core) -> None:
    async with cast(core) as (orchestrator, asker):
        created = await create(asker, payload=b"work")
        await assignment(orchestrator)
        async with connect(core, echo()) as started:
            await assignment(started)
            await operation(started, pb.TaskOperation.CLAIM, created.task_id)
            await sleep_on(started, created.task_id, scheduled_wake_unix_ms=core.clock.now_ms() + 60_000)
        await trio.sleep(30)
        assert orchestrator.waiting("task_assignment") == []
        await assignment(orchestrator)
        async with connect(core, echo()) as started:
            given = await assignment(started)
            assert (given.task_id, given.checkpoint_key) == (created.task_id, "half")


async def test_it_is_started_later_with_what_the_task_wants_as_well(core: Core) -> None:
    async with cast(core, voice="low", mood="good") as (orchestrator, asker):
        wanted = {"voice": "loud"}
        created = await create(asker, payload=b"work", retry_policy=AGAIN, launch_param_overrides=wanted)
        first = await assignment(orchestrator)
        async with connect(core, echo()) as started:
            await assignment(started)
            await operation(started, pb.TaskOperation.FAIL, created.task_id)
        later = await assignment(orchestrator)
        assert later.task_id != first.task_id
        assert (later.launch_params["voice"], later.launch_params["mood"]) == ("loud", "good")


@pytest.mark.parametrize("end", ["no", "cancel"])
async def test_tasks_for_an_agent_that_cannot_be_started_fail_with_the_reason(core: Core, end: str) -> None:
    policy = pb.RetryPolicy(max_attempts=2, backoff=pb.BACKOFF_STRATEGY_FIXED, initial_delay_ms=10_000)
    async with cast(core) as (orchestrator, asker):
        plain = (await create(asker)).task_id
        again = (await create(asker, retry_policy=policy)).task_id
        kept = (await create(asker, target_offline_policy=QUEUE)).task_id
        asked = await assignment(orchestrator)
        if end == "no":
            for _ in range(3):
                await fail(orchestrator, asked.task_id, "no such command")
                if (await starts(core))[0][0] != "dlq":
                    await assignment(orchestrator)
            why = "ag::w::echo::1 could not be started: no such command"
        else:
            # Until the agent was checked because of the tasks that have just been created.
            await trio.sleep(2)
            await operation(asker, pb.TaskOperation.CANCEL, asked.task_id)
            why = "ag::w::echo::1 could not be started: task cancelled"
        found = await core.tasks.engine.database.fetch("SELECT task_id, status, error FROM tasks WHERE task_type = 't'")
        assert {task_id: (status, error) for task_id, status, error in found} == {
            plain: ("failed", why),
            again: ("failed", why),
            kept: ("pending", ""),
        }
        await trio.sleep(5)
        assert orchestrator.waiting("task_assignment") == []
        assert (await assignment(orchestrator)).task_id != asked.task_id
        async with connect(core, echo()) as started:
            assert {(await assignment(started)).task_id for _ in range(2)} == {again, kept}


async def test_more_tasks_than_a_page_fail_with_their_start(core: Core) -> None:
    async with cast(core) as (orchestrator, asker):
        for _ in range(startup.WAITING_PAGE * 2 + 1):
            await create(asker)
        await operation(asker, pb.TaskOperation.CANCEL, (await assignment(orchestrator)).task_id)
        await core.tasks.engine.follow_ups.flush()
        await core.tasks.engine.follow_ups.flush()
        found = await core.tasks.engine.database.fetch("SELECT DISTINCT status FROM tasks WHERE task_type = 't'")
        assert found == [("failed",)]


async def test_a_task_that_is_only_to_be_kept_starts_no_agent_later_either(core: Core) -> None:
    async with cast(core) as (orchestrator, asker):
        created = await create(asker, payload=b"work", retry_policy=AGAIN, target_offline_policy=QUEUE)
        async with connect(core, echo()) as by_hand:
            await assignment(by_hand)
            await operation(by_hand, pb.TaskOperation.FAIL, created.task_id)
        await nothing_more(orchestrator)
        async with connect(core, echo()) as by_hand:
            assert (await assignment(by_hand)).task_id == created.task_id


async def test_a_start_keeps_its_agent_from_no_work(world: World) -> None:
    async with deadlock_is_an_error(), world.open(tasks={"worker_tasks": 1}) as core, cast(core) as (other, asker):
        await create(asker, payload=b"work")
        await assignment(other)
        async with connect(core, echo()) as started:
            assert (await assignment(started)).payload == b"work"
            await until(core, "running")


async def test_who_does_not_want_a_start_gets_none(core: Core) -> None:
    async with cast(core) as (orchestrator, asker):
        queued = await create(asker, target_offline_policy=QUEUE)
        assert (queued.success, queued.status) == (True, "queued")
        rejected = await create(asker, target_offline_policy=pb.TARGET_OFFLINE_POLICY_REJECT)
        assert (rejected.success, rejected.error_code) == (False, "ERR_TASK_CREATE_FAILED")
        unknown = await create(asker, target_agent_id="ag::w::unknown::1")
        assert (unknown.success, unknown.error_code) == (False, "ERR_TASK_CREATE_FAILED")
        await operate(orchestrator, Op.REGISTER, agent=info("bare"))
        bare = await create(asker, target_agent_id="ag::w::bare::1")
        assert "no launch profile" in bare.error_message
        await nothing_more(orchestrator)
        assert await starts(core) == []


async def test_a_start_can_be_asked_for_by_its_task_type(core: Core) -> None:
    async with cast(core, voice="low") as (orchestrator, asker):
        answer = await create(asker, task_type="agent_startup", launch_param_overrides={"voice": "loud"})
        assert (answer.success, answer.status) == (True, "orchestration_triggered"), answer
        asked = await assignment(orchestrator)
        assert (asked.task_id, asked.launch_params["voice"]) == (answer.task_id, "loud")
        again = await create(asker, task_type="agent_startup")
        assert "is being started already" in again.error_message
        async with connect(core, echo()):
            await until(core, "running")
            there = await create(asker, task_type="agent_startup")
            assert "is connected already" in there.error_message
        await nothing_more(orchestrator)


async def test_launch(core: Core) -> None:
    async with cast(core, voice="low", mood="good") as (orchestrator, _):

        async def launched(implementation: str = "echo", **params: Any) -> pb.AgentResponse:
            wanted = pb.AgentLaunchParams(**params)
            return await operate(orchestrator, Op.LAUNCH, implementation=implementation, launch_params=wanted)

        answer = await launched(workspace="w", specifier="1", param_overrides={"voice": "loud", "auth_token": "mine"})
        assert answer.success
        asked = await assignment(orchestrator)
        assert (asked.task_id, asked.specifier) == (answer.launch_result.task_id, "1")
        assert (asked.launch_params["voice"], asked.launch_params["mood"]) == ("loud", "good")
        assert asked.launch_params["auth_token"] != "mine"
        assert "is being started already" in (await launched(workspace="w", specifier="1")).error
        async with connect(core, echo()):
            await until(core, "running")
            assert "is connected already" in (await launched(workspace="w", specifier="1")).error
        assert (await launched()).success
        asked = await assignment(orchestrator)
        assert (asked.workspace, asked.specifier) == ("default", "default")
        assert "is registered" in (await launched("unknown")).error
        assert "specifier" in (await launched(specifier="*")).error
        await operate(orchestrator, Op.REGISTER, agent=info("bare"))
        assert "no launch profile" in (await launched("bare")).error


async def test_the_same_key_is_the_same_start(core: Core) -> None:
    wish = {"task_type": "agent_startup", "idempotency_key": "once"}
    async with cast(core) as (orchestrator, asker):
        first = await create(asker, **wish)
        assert first.success, first.error_message
        asked = await assignment(orchestrator)
        again = await create(asker, **wish)
        assert (again.success, again.task_id) == (True, first.task_id), again.error_message
        async with connect(core, started_by(asked)):
            await until(core, "running")
        await until(core, "completed")
        later = await create(asker, **wish)
        assert (later.success, later.task_id) == (True, first.task_id), later.error_message
        await nothing_more(orchestrator)


async def test_a_task_that_waits_for_its_agent_is_not_forgotten_with_the_gateway_that_was_to_start_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the task was queued again, and before the start of its agent."""
    policy = pb.RetryPolicy(max_attempts=3, backoff=pb.BACKOFF_STRATEGY_FIXED, initial_delay_ms=60_000)
    async with deadlock_is_an_error():
        async with world.open() as core, cast(core) as (orchestrator, asker):
            created = await create(asker, payload=b"work", retry_policy=policy)
            kept = await create(asker, target_agent_id="ag::w::echo::2", target_offline_policy=QUEUE)
            assert kept.success
            await assignment(orchestrator)
            async with connect(core, echo()) as started:
                await assignment(started)
                await operation(started, pb.TaskOperation.CLAIM, created.task_id)
                await operation(started, pb.TaskOperation.FAIL, created.task_id)
            await until(core, "completed")
            # From here on this gateway starts no agents.
            monkeypatch.setattr(core.autostarter._queue, "target_absent", lambda _: None)
            while world.databases["tasks"].query("SELECT 1 FROM tasks WHERE queue = 'ag::w::echo::1'") == []:
                await trio.sleep(1)
        async with world.open() as core, connect(core, starter("1", "process")) as orchestrator:
            asked = await assignment(orchestrator)
            assert (asked.target_implementation, asked.specifier) == ("echo", "1")
            async with connect(core, started_by(asked)) as started:
                assert (await assignment(started)).task_id == created.task_id
                await nothing_more(orchestrator)

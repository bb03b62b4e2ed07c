"""Creating a task: order of the checks, both answers, and what a failure leaves."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.errors import Code
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, deadlock_is_an_error, errors, user
from tests.services.agents.cast import SetClock
from tests.services.tasks.peers import Op, create, get, given, operate

BIG = b"x" * (512 * 1024 + 1)


# In the order of the checks (reference: tasks.md 2.2): the first that fails says what is wrong.
@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"workspace": "*", "payload": BIG}, Code.INVALID_IDENTIFIER),
        ({"target_implementation": "a::b", "payload": BIG}, Code.INVALID_IDENTIFIER),
        ({"payload": BIG, "authorization": pb.AuthorizationContext(authority_mode="no")}, Code.TASK_PAYLOAD_TOO_LARGE),
        ({"task_type": "x" * 2000}, Code.INVALID_ARGUMENT),
        ({"authorization": pb.AuthorizationContext(authority_mode="no"), "target_implementation": ""},
         Code.PERMISSION_DENIED),
        ({"target_implementation": ""}, Code.TASK_CREATE_FAILED),
        ({"assignment_mode": pb.TARGETED, "target_agent_id": "no identity"}, Code.TASK_CREATE_FAILED),
        ({"assignment_mode": pb.TARGETED, "target_agent_id": "us::u::w"}, Code.TASK_CREATE_FAILED),
        ({"assignment_mode": pb.TARGETED, "target_agent_id": "ag::w::i::1"}, Code.TASK_CREATE_FAILED),
        ({"parent_task_id": "no-such-task"}, Code.TASK_CREATE_FAILED),
        ({"metadata": {"start_to_close_ms": "soon"}}, Code.TASK_CREATE_FAILED),
    ],
)  # fmt: skip
async def test_a_refusal_has_two_answers_and_no_task(
    core: Core, world: World, fields: dict[str, Any], code: Code
) -> None:
    async with connect(core, agent("w", "c", "1")) as creator:
        response = await create(creator, **fields)
        assert (response.success, response.error_code, response.task_id) == (False, code, "")
        assert [(one.code, one.request_id) for one in errors(creator)] == [(code, "")]
        assert world.databases["tasks"].query("SELECT COUNT(*) FROM tasks") == [(0,)]


async def test_without_a_request_id_there_is_no_answer_but_an_error(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as creator:
        bad = pb.CreateTaskRequest(task_type="t", assignment_mode=pb.POOL)
        good = pb.CreateTaskRequest(task_type="t", assignment_mode=pb.POOL, target_implementation="i")
        creator.send(pb.UpstreamMessage(create_task=bad), pb.UpstreamMessage(create_task=good))
        await barrier(creator)
        assert [one.code for one in errors(creator)] == [Code.TASK_CREATE_FAILED]
        assert creator.waiting("create_task") == []
        async with connect(core, agent("w", "i", "1")) as worker:
            await barrier(worker)
            assert len(given(worker)) == 1


async def test_a_user_in_no_workspace_has_to_name_one(core: Core) -> None:
    async with connect(core, user("u", "1")) as creator:
        assert (await create(creator)).error_code == Code.INVALID_IDENTIFIER
        response = await create(creator, workspace="w")
        assert response.success
        shown = await get(creator, response.task_id)
        assert (shown.subject_type, shown.subject_id, shown.creator_actor_id) == ("user", "u", "us::u::1")


async def test_an_idempotency_key_is_free_again_when_the_creation_failed(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as creator, connect(core, agent("v", "c", "1")) as elsewhere:
        failed = await create(creator, idempotency_key="k", parent_task_id="no-such-task")
        assert not failed.success
        first = await create(creator, idempotency_key="k")
        again = await create(creator, idempotency_key="k")
        assert (again.success, again.task_id, again.status) == (True, first.task_id, "")
        other = await create(elsewhere, idempotency_key="k")
        assert other.task_id != first.task_id
        await core.tasks.engine.database.execute("UPDATE task_keys SET expires_ms = 1")
        later = await create(creator, idempotency_key="k")
        assert later.task_id not in ("", first.task_id)


async def test_a_key_that_two_use_at_once_makes_one_task(core: Core, world: World) -> None:
    async with connect(core, agent("w", "c", "1")) as one, connect(core, agent("w", "c", "2")) as other:
        found: list[str] = []

        async def ask(peer: Any) -> None:
            found.append((await create(peer, idempotency_key="k")).task_id)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, one)
            nursery.start_soon(ask, other)
        assert len(set(found)) == 1
        assert world.databases["tasks"].query("SELECT COUNT(*) FROM tasks") == [(1,)]


async def test_a_creation_whose_commit_was_not_answered_is_one_task_and_one_assignment(
    core: Core, world: World
) -> None:
    async with connect(core, agent("w", "c", "1")) as creator, connect(core, agent("w", "i", "1")) as worker:
        await barrier(worker)
        world.databases["tasks"].unanswered_writes = 1
        response = await create(creator)
        assert response.success
        await trio.sleep(5)
        await barrier(worker)
        assert set(given(worker)) == {response.task_id}
        assert world.databases["tasks"].query("SELECT COUNT(*) FROM tasks") == [(1,)]
        assert (await operate(worker, Op.COMPLETE, response.task_id)).success


async def test_while_storage_is_away_everything_is_refused_with_a_code(core: Core, world: World) -> None:
    async with connect(core, agent("w", "c", "1")) as creator:
        task_id = (await create(creator)).task_id
        world.databases["tasks"].failing = True
        assert (await create(creator)).error_code == Code.INTERNAL
        answer = await operate(creator, Op.CANCEL, task_id)
        assert (answer.success, answer.error.startswith(Code.CIRCUIT_OPEN)) == (False, True)
        world.databases["tasks"].failing = False
        assert (await operate(creator, Op.CANCEL, task_id)).success


async def test_a_worker_that_comes_while_storage_is_away_is_given_work_when_it_is_back(
    core: Core, world: World
) -> None:
    async with connect(core, agent("w", "c", "1")) as creator:
        task_id = (await create(creator)).task_id
        world.databases["tasks"].fail_writes = 3
        async with connect(core, agent("w", "i", "1")) as worker:
            await trio.sleep(0.1)
            assert given(worker) == []
            await trio.sleep(5)
            assert given(worker) == [task_id]


async def test_texts_that_a_database_does_not_store_are_no_harm(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as creator, connect(core, agent("w", "i", "1")) as worker:
        await barrier(worker)
        assert (await create(creator, correlation_id="a\x00b")).error_code == Code.INVALID_ARGUMENT
        task_id = (await create(creator, metadata={"a\x00b": "c\x00d"}, payload=b"\x00")).task_id
        assert (await operate(worker, Op.CLAIM, f"{task_id}\x00")).error == "task not found"
        assert (await operate(worker, Op.CLAIM, task_id)).success
        match = {"a\x00": "\x00"}
        wait = pb.WaitSpec(reason=pb.WAIT_REASON_INPUT, input_match=match, expected_principal="\x00")
        assert (await operate(worker, Op.PAUSE, task_id, wait_spec=wait)).success
        shown = await get(creator, task_id)
        assert (shown.metadata["a\x00b"], dict(shown.wait_spec.input_match)) == ("c\x00d", match)
        failed = await operate(worker, Op.FAIL, task_id, reason="x\x00y" + "z" * 10_000)
        assert failed.success
        assert failed.task.error.startswith("x\ufffdyzz")
        assert len(failed.task.error) == 4096
        creator.send(
            pb.UpstreamMessage(
                task_query=pb.TaskQuery(filter=pb.TaskFilter(task_type="\x00", context_id="\x00"), request_id="q")
            )
        )
        listed = (await creator.next("task_query")).task_query
        while listed.request_id != "q":
            listed = (await creator.next("task_query")).task_query
        assert (listed.success, len(listed.tasks)) == (True, 0)


async def test_an_idempotency_key_is_kept_for_a_day(world: World) -> None:
    clock = SetClock(trio.current_time)
    keys = "SELECT COUNT(*) FROM task_keys"
    async with deadlock_is_an_error(), world.open(clock=clock) as core, connect(core, agent("w", "c", "1")) as creator:
        first = await create(creator, idempotency_key="k")
        clock.ahead_ms = 86_400_000 - 60_000
        await trio.sleep(30)
        assert (await create(creator, idempotency_key="k")).task_id == first.task_id
        clock.ahead_ms += 60_000
        await trio.sleep(30)
        assert world.databases["tasks"].query(keys) == [(0,)]
        assert (await create(creator, idempotency_key="k")).task_id != first.task_id

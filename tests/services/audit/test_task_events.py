"""What the audit log says of refused requests on tasks, and of task tokens."""

from __future__ import annotations

import pytest

from aether_trio.gateway.core import Core
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, connect, let_manage, user
from tests.services.agents.cast import ECHO, starting
from tests.services.audit.test_trail import rows
from tests.services.tasks.peers import Op, answer, create, operate, own

Sub = pb.TaskSubscriptionOperation


async def get(peer: MemoryLink, task_id: str) -> str:
    peer.send(pb.UpstreamMessage(task_query=pb.TaskQuery(op=pb.TaskQuery.GET, task_id=task_id, request_id="g")))
    error: str = (await answer(peer, "task_query", "g")).error
    return error


async def test_who_was_refused_a_task(core: Core, world: World) -> None:
    """Requests on tasks that do not exist leave no row: there is nothing to protect."""
    async with connect(core, agent("w", "a", "1")) as owner, connect(core, agent("v", "b", "1")) as outsider:
        task_id = await own(owner)
        for name in (task_id, "00000000-0000-4000-8000-000000000000"):
            assert await get(outsider, name) == "task not found"
            for op in (Op.CANCEL, Op.COMPLETE):
                assert (await operate(outsider, op, name)).error == "task not found"
            follow = Sub(op=Sub.SUBSCRIBE, task_id=name, client_request_id="f")
            outsider.send(pb.UpstreamMessage(task_subscription_op=follow))
            assert not (await outsider.next("task_subscription_response")).task_subscription_response.success
        [session] = [one for one in core.registry if one.identity.workspace == "v"]
    found = await rows(core, world, operation="task_authz_denied")
    assert [row["metadata"]["request"] for row in found] == [
        "task_query", "task_op CANCEL", "task_op COMPLETE", "task_subscribe",
    ]  # fmt: skip
    for row in found:
        assert (row["event_type"], row["resource_type"], row["resource_id"]) == ("task", "task", task_id)
        assert (row["workspace"], row["success"]) == ("w", 0), "the row belongs to the workspace of the task"
        assert (row["actor_type"], row["actor_id"], row["session_id"]) == ("agent", "ag::v::b::1", session.session_id)
        assert row["error_message"] == f"{row['metadata']['request']}: access denied"


async def test_who_may_leaves_no_row_of_a_refusal(core: Core, world: World) -> None:
    let_manage(core, "agent")
    async with connect(core, agent("w", "a", "1")) as owner, connect(core, agent("w", "b", "1")) as neighbour:
        task_id = await own(owner)
        assert await get(owner, task_id) == await get(neighbour, task_id) == ""
        assert (await operate(neighbour, Op.CANCEL, task_id)).success
    assert await rows(core, world, operation="task_authz_denied") == []


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("ag::w::b::1", "task_token_issue needs MANAGE on workspace:w"),
        ("ag::_system::b::1", "there are no tokens for ag::_system::b::1"),
        ("us::eve::1", "a user is given no tasks"),
        ("nonsense", ""),
    ],
)
async def test_why_a_task_has_no_token(core: Core, world: World, target: str, problem: str) -> None:
    async with connect(core, agent("w", "a", "1")) as owner:
        created = await create(owner, target_identity=target)
        assert created.success
        assert created.task_token == ""
    [row] = await rows(core, world, event_type="task", operation="task_token_issue")
    assert (row["resource_id"], row["success"]) == (created.task_id, 0)
    assert problem in row["error_message"]
    assert row["error_message"]
    assert row["metadata"]["target_identity"] == target


async def test_a_token_is_recorded_without_its_text(core: Core, world: World) -> None:
    let_manage(core, "user")
    async with connect(core, user("u", "1")) as window:
        created = await create(window, workspace="w", target_identity="ag::w::b::1", idempotency_key="k")
        assert created.task_token
        again = await create(window, workspace="w", target_identity="ag::w::b::1", idempotency_key="k")
        assert (again.task_id, again.task_token) == (created.task_id, "")
        assert (await create(window, workspace="w")).success
    [row] = await rows(core, world, event_type="task", operation="task_token_issue")
    assert (row["resource_id"], row["workspace"], row["success"]) == (created.task_id, "w", 1)
    assert (row["actor_type"], row["actor_id"]) == ("user", "u")
    assert row["metadata"] == {"target_identity": "ag::w::b::1"}


async def test_the_token_of_a_start_is_recorded(core: Core, world: World) -> None:
    async with starting(core) as (_, _, asked):
        assert asked.launch_params["auth_token"]
        [row] = await rows(core, world, event_type="task", operation="task_token_issue")
    assert (row["resource_id"], row["actor_type"], row["success"]) == (asked.task_id, "orchestrator", 1)
    assert row["metadata"] == {"target_identity": ECHO}

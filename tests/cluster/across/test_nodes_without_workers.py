"""A node without workers is killed, and other nodes finish what it had begun."""

from __future__ import annotations

from typing import Any

import pytest

from aether_trio.devtools.process_cluster import open_process_cluster
from aether_trio.wire.pb import aether_pb2 as pb
from tests.cluster.across.test_stopped_nodes import comes_true
from tests.helpers.core import agent, user
from tests.helpers.participants import Participant, participant

pytestmark = pytest.mark.crash

WAITING = 400
"""Some pages of those that one ended task wakes."""
Op = pb.TaskOperation


async def ask(one: Participant, case: str, **request: Any) -> Any:
    await one.send(pb.UpstreamMessage(**request))
    return getattr(await one.next(case), case)


async def act(one: Participant, op: Op.OpType.ValueType, task_id: str, **fields: Any) -> Any:
    """The answer to an operation on a task, which succeeds."""
    told = await ask(one, "task_op", task_op=Op(op=op, task_id=task_id, **{"request_id": "o", **fields}))
    assert told.success, told.error
    return told


async def begin(one: Participant) -> str:
    wanted = pb.CreateTaskRequest(task_type="t", workspace="w", assignment_mode=pb.SELF_ASSIGN, request_id="c")
    task_id: str = (await ask(one, "create_task", create_task=wanted)).task_id
    await act(one, Op.CLAIM, task_id)
    return task_id


async def test_what_a_killed_node_has_not_woken_is_woken_by_another_one() -> None:
    async with open_process_cluster(2) as cluster:
        killed, other = cluster.nodes
        async with (
            participant("framed", killed.address, user("u", "1")) as person,
            participant("framed", other.address, agent("w", "a", "1")) as worker,
        ):
            first = await begin(person)
            follow = pb.TaskSubscriptionOperation(op=pb.TaskSubscriptionOperation.SUBSCRIBE, task_id=first)
            assert (await ask(person, "task_subscription_response", task_subscription_op=follow)).success
            for _ in range(WAITING):
                await act(worker, Op.WAIT_FOR, await begin(worker), wait_spec=pb.WaitSpec(depends_on=[first]))
            await comes_true(cluster, f"SELECT count(*) = {WAITING} FROM tasks WHERE status = 'waiting_dependency'")
            await act(person, Op.COMPLETE, first)
            await killed.kill()
            await comes_true(cluster, "SELECT count(*) = 0 FROM tasks WHERE status = 'waiting_dependency'")
            await comes_true(cluster, "SELECT count(*) = 0 FROM task_watchers")

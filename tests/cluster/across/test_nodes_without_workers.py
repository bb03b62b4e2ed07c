"""A node without workers is killed, and other nodes finish what it had begun.

No row of it stays.
"""

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
    """The answer to a request."""
    await one.send(pb.UpstreamMessage(**request))
    return getattr(await one.next(case), case)


async def begin(one: Participant) -> str:
    """Create a task of this participant, and begin it."""
    wanted = pb.CreateTaskRequest(task_type="t", workspace="w", assignment_mode=pb.SELF_ASSIGN, request_id="c")
    task_id: str = (await ask(one, "create_task", create_task=wanted)).task_id
    assert (await ask(one, "task_op", task_op=Op(op=Op.CLAIM, task_id=task_id, request_id="o"))).success
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
                spec = pb.WaitSpec(depends_on=[first])
                wait = Op(op=Op.WAIT_FOR, task_id=await begin(worker), wait_spec=spec, request_id="o")
                assert (await ask(worker, "task_op", task_op=wait)).success
            await comes_true(cluster, f"SELECT count(*) = {WAITING} FROM tasks WHERE status = 'waiting_dependency'")
            complete = Op(op=Op.COMPLETE, task_id=first, request_id="o")
            assert (await ask(person, "task_op", task_op=complete)).success
            await killed.kill()
            await comes_true(cluster, "SELECT count(*) = 0 FROM tasks WHERE status = 'waiting_dependency'")
            await comes_true(cluster, "SELECT count(*) = 0 FROM task_watchers")

"""Each change of authority has its row in the audit log, and so has a refusal."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import trio

from aether_trio.gateway.core import Core
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, connect, user
from tests.services.authority.people import (
    Decision,
    GrantOp,
    RequestOp,
    acting_for,
    asked,
    decide,
    delegated,
    derive,
    exchange,
    grant_op,
    request_op,
)
from tests.services.authority.test_tasks import on_behalf
from tests.services.tasks.peers import Op, create, operate

PLANNER = ("agent", "ag::prod::planner::1")


async def rows(core: Core, operation: str) -> list[dict[str, Any]]:
    """The audit rows of an operation, the oldest first."""
    await trio.sleep(5)  # refusals are written in batches
    columns = "actor_id, subject_id, success, resource_id, error_message, parent_authority_grant_id, metadata"
    found = await core.tasks.engine.database.fetch(
        f"SELECT {columns} FROM audit_log WHERE operation = $1 ORDER BY audit_id", operation
    )
    names = columns.split(", ")
    return [{**dict(zip(names, row, strict=True)), "metadata": json.loads(row[-1])} for row in found]


async def test_operations_on_grants_have_rows(core: Core) -> None:
    async with connect(core, user("ann", "w1")) as ann, connect(core, agent("prod", "planner", "1")):
        grant_id = await delegated(core, ann, PLANNER)
        await exchange(core, ann, max_access_level=0)
        await derive(ann, grant_id, PLANNER)
        await grant_op(ann, GrantOp.REVOKE, grant_id=grant_id)
        made, refused = await rows(core, "authority_grant_exchange")
        assert (made["actor_id"], made["subject_id"], made["success"]) == ("ann", "ann", 1)
        assert made["metadata"]["exchange_mode"] == "self"
        assert (refused["success"], "max_access_level" in refused["error_message"]) == (0, True)
        made, refused = await rows(core, "authority_grant_derive")
        assert (made["resource_id"], made["parent_authority_grant_id"] != "") == (grant_id, True)
        assert made["metadata"]["delegate"] == f"agent:{PLANNER[1]}"
        assert (refused["success"], refused["resource_id"]) == (0, grant_id)
        (revoked,) = await rows(core, "authority_grant_revoke")
        assert (revoked["success"], revoked["resource_id"]) == (1, grant_id)


async def test_grants_of_tasks_have_rows_when_they_are_made(core: Core) -> None:
    async with connect(core, agent("prod", "planner", "1")) as agent_, connect(core, user("ann", "w1")) as ann:
        parent = await delegated(core, ann, PLANNER, hops=2)
        refused = await on_behalf(agent_, parent, parent_task_id="none")
        assert not refused.success
        made, same = [await on_behalf(agent_, parent, idempotency_key="once") for _ in range(2)]
        assert made.task_id == same.task_id
        pooled = await on_behalf(agent_, parent, pb.POOL)
        derived = [row for row in await rows(core, "authority_grant_derive") if row["actor_id"] != "ann"]
        assert [row["resource_id"] for row in derived] == [made.authority_grant_id, pooled.authority_grant_id]
        assert {row["actor_id"] for row in derived} == {PLANNER[1]}
        async with connect(core, agent("prod", "worker", "1")) as worker:
            given = (await worker.next("task_assignment")).task_assignment
            while given.task_id != pooled.task_id:
                given = (await worker.next("task_assignment")).task_assignment
            await operate(worker, Op.CLAIM, pooled.task_id)
            assert (await operate(worker, Op.COMPLETE, pooled.task_id)).success
        delivered = (await rows(core, "authority_grant_derive"))[-1]
        assert (delivered["actor_id"], delivered["subject_id"]) == (pooled.task_id, "ann")
        assert delivered["parent_authority_grant_id"] == pooled.authority_grant_id
        assert delivered["metadata"]["delegate"] == "agent:ag::prod::worker::1"
        [revoked] = await rows(core, "authority_grant_revoke")
        assert (revoked["resource_id"], revoked["actor_id"]) == (pooled.authority_grant_id, pooled.task_id)


async def test_steps_of_requests_have_rows(core: Core) -> None:
    async with connect(core, agent("prod", "planner", "1")) as agent_, connect(core, user("ann", "w1")) as ann:
        first, second, third = [await asked(agent_) for _ in range(3)]
        await decide(ann, first)
        await decide(ann, second, Decision.DENY, reason="no")
        await request_op(agent_, RequestOp.CANCEL, request_id=third)
        await asked(agent_)
        await trio.sleep(1805)
        for word, actor, request_id in (
            ("approved", "ann", first),
            ("denied", "ann", second),
            ("cancelled", PLANNER[1], third),
        ):
            (row,) = await rows(core, f"authority_request_{word}")
            assert (row["actor_id"], row["subject_id"], row["resource_id"]) == (actor, "ann", request_id)
            assert row["metadata"]["request_lifecycle_event"] == word
        assert len(await rows(core, "authority_request_created")) == 4
        assert len(await rows(core, "authority_request_expired")) == 1
        (minted,) = await rows(core, "authority_grant_exchange")
        assert minted["actor_id"] == "ann"


async def grants_and_their_rows(core: Core) -> list[tuple[str, int, int, int]]:
    """For each grant: if it is revoked, and how many rows say it was made, revoked."""
    making = await rows(core, "authority_grant_exchange") + await rows(core, "authority_grant_derive")
    ending = await rows(core, "authority_grant_revoke")
    grants = await core.tasks.engine.database.fetch("SELECT grant_id, revoked_ms FROM authority_grants")
    made_of, gone_of = (Counter(row["resource_id"] for row in found if row["success"]) for found in (making, ending))
    assert set(made_of) <= {grant_id for grant_id, _ in grants}
    return [(grant_id, int(revoked > 0), made_of[grant_id], gone_of[grant_id]) for grant_id, revoked in grants]


async def test_grants_of_tasks_and_their_ends_have_one_row_each(core: Core) -> None:
    """Those that a creator passes on, those of a pool's workers, and the ends of all."""
    async with (
        connect(core, agent("prod", "planner", "1")) as planner,
        connect(core, user("ann", "w1")) as ann,
        connect(core, agent("prod", "worker", "1")) as first,
    ):
        parent = await delegated(core, ann, PLANNER, hops=3)
        for mode in (pb.POOL, pb.TARGETED):
            created = await create(
                planner,
                assignment_mode=mode,
                target_implementation="worker",
                target_agent_id="" if mode == pb.POOL else "ag::prod::worker::1",
                authorization=acting_for("ann", parent),
            )
            assert created.success, created.error_message
            await first.next("task_assignment")
            await operate(first, Op.CLAIM, created.task_id)
            assert (await operate(first, Op.COMPLETE, created.task_id)).success
        await grant_op(ann, GrantOp.REVOKE, grant_id=parent)
        await grant_op(ann, GrantOp.REVOKE, grant_id=parent)
        found = await grants_and_their_rows(core)
        assert len(found) == 5  # ann's, the planner's, those of two tasks and of a pool's worker
        assert [(made, gone == revoked) for _, revoked, made, gone in found] == [(1, True)] * 5
        assert sum(revoked for _, revoked, _, _ in found) == 3

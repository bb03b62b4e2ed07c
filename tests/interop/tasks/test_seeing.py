"""Scenarios 82 to 84: tasks are found, hidden and followed."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

from scitrera_aether_client.proto import aether_pb2 as pb

from tests.helpers.sdk import LIMIT_S, Peer, World, answered, in_asyncio
from tests.interop.tasks import steps
from tests.interop.tasks.steps import SELF


async def query(peer: Peer, **fields: Any) -> Any:
    return answered(await peer.client.query_tasks(timeout=LIMIT_S, **fields), "query_tasks")


async def raw_query(peer: Peer, wanted: pb.TaskFilter) -> Any:
    """A query with filters that the SDK's method has no parameters for."""
    asked = pb.TaskQuery(op=pb.TaskQuery.LIST, filter=wanted, request_id=uuid.uuid4().hex)
    upstream = pb.UpstreamMessage(task_query=asked)
    return answered(await peer.client._send_sync_op(upstream, asked.request_id, LIMIT_S), "task_query")


def ids(response: Any) -> list[str]:
    return [one.task_id for one in response.tasks]


@in_asyncio
async def test_82_queries(world: World) -> None:
    a, b = await world.open(world.agent("a"), world.agent("b"))
    done = await steps.create(a, world, "x", mode=SELF, task_class=pb.TASK_CLASS_BATCH)
    await steps.op(a, "complete", done)
    open_ = await steps.create(a, world, "y", mode=SELF, priority=pb.TASK_PRIORITY_HIGH)
    other = await steps.create(b, world, "x", mode=SELF)
    everything = {done, open_, other}
    assert set(ids(await query(a, workspace=world.ws))) == everything
    assert set(ids(await query(a))) == everything
    assert ids(await query(a, status="completed")) == [done]
    assert set(ids(await query(a, statuses=["queued"]))) == {open_, other}
    assert set(ids(await query(a, task_type="x"))) == {done, other}
    assert ids(await query(a, task_class=pb.TASK_CLASS_BATCH)) == [done]
    assert set(ids(await query(a, exclude_task_classes=[pb.TASK_CLASS_BATCH]))) == {open_, other}
    creator = pb.PrincipalRef(principal_type="agent", principal_id=b.topic)
    assert ids(await query(a, creator_actor=creator)) == [other]
    assert ids(await query(a, status_timestamp_after_unix_ms=time.time_ns() // 1_000_000 + 60_000)) == []
    assert ids(await raw_query(a, pb.TaskFilter(min_priority=pb.TASK_PRIORITY_HIGH))) == [open_]
    excluded = pb.TaskFilter(exclude_statuses=[pb.TASK_STATUS_QUEUED])
    assert ids(await raw_query(a, excluded)) == [done]

    many = []
    for _ in range(7):  # the order is that of milliseconds, and of ids within one
        many.append(await steps.create(a, world, "z", mode=SELF))
        await asyncio.sleep(0.002)
    seen: list[str] = []
    token = ""
    pages = 0
    while pages == 0 or token:
        page = await query(a, task_type="z", limit=3, page_token=token)
        seen += ids(page)
        assert page.total_count == len(page.tasks)
        token, pages = page.next_page_token, pages + 1
    assert pages == 3
    assert seen == many[::-1]
    refused = await a.client.query_tasks(page_token="nonsense", timeout=LIMIT_S)
    assert not refused.success


@in_asyncio
async def test_82_descendants(world: World) -> None:
    (me,) = await world.open(world.agent("a"))
    top = await steps.create(me, world, "top", mode=SELF)
    child = await steps.create(me, world, "child", mode=SELF, parent_task_id=top)
    grandchild = await steps.create(me, world, "child", mode=SELF, parent_task_id=child)
    await steps.create(me, world, "aside", mode=SELF)
    assert ids(await raw_query(me, pb.TaskFilter(parent_task_id=top))) == [child]
    below = await raw_query(me, pb.TaskFilter(parent_task_id=top, include_descendants=True))
    assert set(ids(below)) == {child, grandchild}
    assert (await steps.task(me, grandchild)).parent_task_id == child
    response = await steps.ask(me, world, "t", mode=SELF, parent_task_id="no-such-task")
    assert (response.success, response.error_code) == (False, "ERR_TASK_CREATE_FAILED")


@in_asyncio
async def test_83_a_foreign_task_is_like_none(world: World) -> None:
    me, foreign = await world.open(world.agent("a"), world.agent("f", ws=f"{world.ws}-other"))
    task_id = await steps.create(me, world, mode=SELF)
    hidden = await foreign.client.get_task(task_id, timeout=LIMIT_S)
    missing = await foreign.client.get_task(str(uuid.uuid4()), timeout=LIMIT_S)
    assert not hidden.success
    assert not missing.success
    assert hidden.error == missing.error
    assert await steps.refused(foreign, "cancel", task_id) == missing.error
    followed = await foreign.client.subscribe_to_task(task_id, timeout=LIMIT_S)
    assert (followed.success, followed.error) == (False, missing.error)
    assert ids(await query(foreign, workspace=world.ws)) == []
    assert await steps.status(me, task_id) == pb.TASK_STATUS_QUEUED


@in_asyncio
async def test_84_following(world: World) -> None:
    creator, worker = await world.open(world.agent("c", impl=f"{world.impl}-c"), world.agent("w"))
    began_ms = time.time_ns() // 1_000_000 - 1000
    task_id = await steps.create(creator, world)
    followed = answered(await creator.client.subscribe_to_task(task_id, timeout=LIMIT_S), "subscribe")
    await steps.assignment(worker, task_id)
    await steps.op(worker, "claim", task_id)
    await steps.op(worker, "pause", task_id, pb.WaitSpec(reason=pb.WAIT_REASON_INPUT))
    await steps.op(worker, "resume", task_id)
    await steps.op(worker, "fail", task_id, "boom")
    wanted = [
        (pb.TASK_STATUS_QUEUED, pb.TASK_STATUS_RUNNING, ""),
        (pb.TASK_STATUS_RUNNING, pb.TASK_STATUS_WAITING_INPUT, "input"),
        (pb.TASK_STATUS_WAITING_INPUT, pb.TASK_STATUS_RUNNING, ""),
        (pb.TASK_STATUS_RUNNING, pb.TASK_STATUS_FAILED, "boom"),
    ]

    async def changes(peer: Peer, subscription_id: str) -> list[tuple[int, int, str]]:
        got = []
        for _ in wanted:
            event = await steps.event(peer, "status_changed")
            assert (event.task_id, event.subscription_id) == (task_id, subscription_id)
            assert (event.workspace, event.emitted_at_unix_ms > began_ms) == (world.ws, True)
            changed = event.status_changed
            got.append((changed.from_status, changed.to_status, changed.reason))
        return got

    assert await changes(creator, followed.subscription_id) == wanted
    ended = answered(await creator.client.unsubscribe_from_task(followed.subscription_id, timeout=LIMIT_S), "end")
    assert ended.subscription_id == followed.subscription_id

    replayed = answered(
        await worker.client.subscribe_to_task(task_id, start_timestamp_unix_ms=began_ms, timeout=LIMIT_S), "replay"
    )
    assert await changes(worker, replayed.subscription_id) == wanted
    await steps.op(creator, "retry", task_id)
    again = await steps.event(worker, "status_changed")
    assert again.status_changed.to_status == pb.TASK_STATUS_QUEUED
    await creator.barrier()
    assert creator.task_events.empty()


@in_asyncio
async def test_84_following_what_is_below(world: World) -> None:
    me, watcher = await world.open(world.agent("a"), world.agent("b"))
    top = await steps.create(me, world, mode=SELF)
    child = await steps.create(me, world, mode=SELF, parent_task_id=top)
    answered(await watcher.client.subscribe_to_task(top, recursive=True, timeout=LIMIT_S), "subscribe")
    await steps.op(me, "claim", child)
    assert (await steps.event(watcher, "status_changed")).task_id == child
    later = await steps.create(me, world, mode=SELF, parent_task_id=child)
    spawned = await steps.event(watcher, "child_lifecycle", child)
    assert (spawned.child_lifecycle.lifecycle, spawned.child_lifecycle.child_task_id) == ("spawned", later)
    await steps.op(me, "complete", later)
    # Of different tasks, so in either order.
    seen = {}
    while not seen.keys() >= {(later, "status_changed"), (child, "child_lifecycle")}:
        event = await watcher.take(box=watcher.task_events)
        seen[event.task_id, event.WhichOneof("event")] = event
    assert seen[later, "status_changed"].status_changed.to_status == pb.TASK_STATUS_COMPLETED
    done = seen[child, "child_lifecycle"].child_lifecycle
    assert (done.lifecycle, done.child_status) == ("completed", pb.TASK_STATUS_COMPLETED)


@in_asyncio
async def test_a_user_who_takes_part_reads_the_conversation_of_a_task(world: World) -> None:
    window, worker = await world.open(world.user("laptop"), world.agent("w"))
    await window.client.switch_workspace(world.ws)
    task_id = await steps.running(window, worker, world, metadata={"subject_participant": "true"})
    transport = f"tk::{world.ws}::{task_id}::msg"
    await worker.send(transport, b"how many?")
    assert (await window.take()).payload == b"how many?"
    await window.send(transport, b"three")
    assert (await window.take()).payload == b"three"

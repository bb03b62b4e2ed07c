"""Scenarios 71 to 73: progress reports, who sees them, and who may send them."""

from __future__ import annotations

import time

from scitrera_aether_client.proto import aether_pb2 as pb

from tests.helpers.sdk import Peer, World, in_asyncio


async def updates_until_marker(receiver: Peer, probe: Peer, recipient: str) -> list[str]:
    """Give the summaries that arrive before a marker report of `probe`."""
    await probe.barrier()
    await probe.client.report_progress("marker", summary="marker", recipient=recipient)
    got: list[str] = []
    while (update := await receiver.take(box=receiver.progress)).task_id != "marker":
        got.append(update.summary)
    return got


@in_asyncio
async def test_71_a_broadcast_with_every_field(world: World) -> None:
    a, b, c = world.agent("a"), world.agent("b"), world.agent("c", impl=f"{world.impl}-other")
    foreign = world.agent("d", ws=f"{world.ws}-other")
    await world.open(a, b, c, foreign)
    before_ms = time.time_ns() // 1_000_000
    await a.client.report_progress(
        "t1",
        state="running",
        completion=0.25,
        summary="a quarter",
        step_name="fetch",
        step_detail="page 1",
        step_sequence=1,
        step_total=4,
        step_type="io",
        request_id="rq",
        metadata={"k": "v"},
        kind=pb.PROGRESS_KIND_TASK,
    )
    for agent in (b, c):
        u = await agent.take(box=agent.progress)
        assert (u.source, u.workspace, u.task_id) == (a.topic, world.ws, "t1")
        assert (u.state, u.completion, u.summary, u.request_id) == ("running", 0.25, "a quarter", "rq")
        assert (u.step.name, u.step.detail, u.step.step_type) == ("fetch", "page 1", "io")
        assert (u.step.sequence, u.step.total_steps) == (1, 4)
        assert (dict(u.metadata), u.kind) == ({"k": "v"}, pb.PROGRESS_KIND_TASK)
        assert before_ms - 5000 <= u.timestamp_ms <= time.time_ns() // 1_000_000 + 5000
    # Neither the sender nor another workspace hears of it.
    assert await updates_until_marker(a, b, "") == []
    (other_foreign,) = await world.open(world.agent("e", ws=f"{world.ws}-other"))
    assert await updates_until_marker(foreign, other_foreign, "") == []


@in_asyncio
async def test_71_a_services_and_tasks_report_too(world: World) -> None:
    a, task = await world.open(world.agent("a"), world.unique_task("t"))
    await task.client.report_progress("t1", completion=-1.0, summary="no idea how long")
    update = await a.take(box=a.progress)
    assert (update.source, update.completion) == (task.topic, -1.0)
    assert not update.HasField("step")


@in_asyncio
async def test_72_a_progress_for_one_window_or_for_all(world: World) -> None:
    a, b, w1, w2, other = await world.open(
        world.agent("a"), world.agent("b"), world.user("w1"), world.user("w2"), world.user("w1", uid="someone")
    )
    service, inside = await world.open(world.service("s"), world.user("w3"))
    await inside.client.switch_workspace(world.ws)
    await inside.barrier()
    await a.client.report_progress("t", summary="one window", recipient=w1.topic)
    await a.client.report_progress("t", summary="every window", recipient=f"us::{world.uid}")
    await a.barrier()
    await service.client.report_progress("t", summary="from a service", recipient=f"us::{world.uid}")
    await service.barrier()
    expected = ["every window", "from a service"]
    assert await updates_until_marker(w1, a, w1.topic) == ["one window", *expected]
    assert await updates_until_marker(w2, a, w2.topic) == expected
    # In a workspace a window has a second transport, and still sees each report once.
    assert await updates_until_marker(inside, a, inside.topic) == expected
    assert await updates_until_marker(other, a, other.topic) == []
    assert await updates_until_marker(b, a, "") == []


@in_asyncio
async def test_72_a_a_window_in_the_workspace_sees_its_broadcasts(world: World) -> None:
    a, inside, outside = await world.open(world.agent("a"), world.user("w1"), world.user("w2"))
    await inside.client.switch_workspace(world.ws)
    await inside.barrier()
    await a.client.report_progress("t", summary="to the workspace")
    assert await updates_until_marker(inside, a, inside.topic) == ["to the workspace"]
    assert await updates_until_marker(outside, a, outside.topic) == []


@in_asyncio
async def test_73_a_users_do_not_report(world: World) -> None:
    a, user, orchestrator = await world.open(world.agent("a"), world.user("w"), world.orchestrator())
    for sender in (user, orchestrator):
        await sender.client.report_progress("t", summary="not mine to say")
        assert not (await sender.error("ERR_INVALID_PRINCIPAL")).retryable
    b = (await world.open(world.agent("b")))[0]
    assert await updates_until_marker(a, b, "") == []

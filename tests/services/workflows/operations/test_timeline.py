"""TIMELINE tells history, attempts, progress and conversations in one order."""

from __future__ import annotations

import json
from typing import Any

import trio

from aether_trio.model.access import AccessLevel
from aether_trio.services.workflows.operations.timeline import TIMELINE
from aether_trio.testing.memory import message_to
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, deadlock_is_an_error
from tests.services.workflows.helpers import Client, TaskOp, client, let_agents, worker

FLOW: dict[str, Any] = {
    "id": "flow",
    "steps": [
        {"id": "one", "action": {"agent": "hand", "arguments": {"n": 1}}},
        {"id": "go", "wait": {"signal": "go"}, "depends_on": ["one"]},
    ],
}


async def timeline(boss: Client, execution_id: str, limit: int = 200) -> list[dict[str, Any]]:
    """Return all entries, page by page."""
    found: list[dict[str, Any]] = []
    after = ""
    while True:
        page = await boss.do(TIMELINE, execution_id, after, data={"limit": limit})
        found += page["entries"]
        assert len(page["entries"]) <= limit
        after = page["next"]
        if not after:
            return found


async def test_all_sources_are_told_in_the_order_of_time(world: World) -> None:
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as core, client(core) as boss:
        await boss.create(FLOW)
        async with connect(core, agent("w", "hand", "1")) as link:
            execution_id = await boss.run({})
            task = (await link.next("task_assignment")).task_assignment
            link.send(pb.UpstreamMessage(task_op=TaskOp(op=TaskOp.CLAIM, task_id=task.task_id, request_id="c")))
            await link.next("task_op")
            await trio.sleep(1)
            report = pb.ProgressReport(task_id=task.task_id, state="running", completion=0.5, summary="half\u202e way")
            link.send(pb.UpstreamMessage(progress=report))
            await barrier(link)
            await trio.sleep(1)
            link.send(message_to(f"tk::w::{task.task_id}::msg", b"hello \x1b[31m there", pb.CHAT))
            await barrier(link)
            await trio.sleep(1)
            link.send(pb.UpstreamMessage(task_op=TaskOp(op=TaskOp.COMPLETE, task_id=task.task_id, request_id="e")))
            await link.next("task_op")
        await boss.do(101, execution_id, "go", data=7)
        await boss.ended(execution_id)
        found = await timeline(boss, execution_id)
        assert found == await timeline(boss, execution_id, 1) == await timeline(boss, execution_id, 3)
        assert [one["at"] for one in found] == sorted(one["at"] for one in found)
        history = [one for one in found if one["source"] == "history"]
        assert [one["type"] for one in history] == ["Started", "StepEnded", "SignalReceived"]
        [attempt] = [one for one in found if one["source"] == "attempt"]
        assert (attempt["step"], attempt["worker"], attempt["attempt"]) == ("one", "ag::w::hand::1", 1)
        told = [(one["from"], one["to"]) for one in found if one["source"] == "task"]
        assert told[-1] == ("running", "completed")
        [progress] = [one for one in found if one["source"] == "progress"]
        assert (progress["step"], progress["progress"], progress["message"]) == ("one", 0.5, "half\u202e way")
        [chat] = [one for one in found if one["source"] == "chat"]
        assert (chat["step"], chat["from"], chat["type"]) == ("one", "ag::w::hand::1", "chat")
        assert chat["text"] == "hello \x1b[31m there"
        order = [one["source"] for one in found if one["source"] in ("attempt", "progress", "chat")]
        assert order == ["attempt", "progress", "chat"]
        assert "is `next` of the page before" in (await boss.ask(TIMELINE, execution_id, "x y")).error
        let_agents(core, AccessLevel.NONE)
        assert "not found" in (await boss.ask(TIMELINE, execution_id)).error


async def test_a_map_of_many_items_is_told_page_by_page(world: World) -> None:
    each = {"id": "each", "for_each": {"$expr": "1..60"}, "action": {"agent": "hand", "arguments": {"n": 1}}}
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as core, client(core) as boss:
        await boss.create({"id": "flow", "steps": [each]})
        async with worker(core, "hand", lambda task: 1):
            execution_id = await boss.run({})
            await boss.ended(execution_id)
        found = await timeline(boss, execution_id, 50)
        whole = [json.dumps(one, sort_keys=True) for one in found]
        assert len(set(whole)) == len(whole)
        attempts = {one["step"] for one in found if one["source"] == "attempt"}
        assert attempts == {f"each[{number}]" for number in range(60)}

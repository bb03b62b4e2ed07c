"""What would break runs of graphs and functions is refused, or changes nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, deadlock_is_an_error
from tests.services.workflows.helpers import Failed, client, worker


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    """A core whose workflow engine is the embedded one."""
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as opened:
        yield opened


async def test_no_metadata_of_a_document_says_which_step_a_task_is(core: Core) -> None:
    given = {"item": "x", "round": "7", "attempt": "x", "compensates": "y", "step_id": "b", "_hops": "[]", "mine": "m"}
    once = {"id": "a", "action": {"agent": "hand", "metadata": given}}
    items = {"id": "b", "for_each": [1, 2], "action": {"agent": "hand", "metadata": given}, "depends_on": ["a"]}
    async with client(core) as boss, worker(core, "hand", lambda task: 1) as seen:
        await boss.create({"steps": [once, items]})
        assert (await boss.ended(await boss.run()))["execution"]["Status"] == "completed"
        places = [{key: value for key, value in task.metadata.items() if key in given} for task in seen]
        assert places == [
            {"step_id": "a", "mine": "m"},
            {"step_id": "b", "item": "0", "mine": "m"},
            {"step_id": "b", "item": "1", "mine": "m"},
        ]
        assert json.loads(seen[0].payload)["metadata"] == given


MOMENTS = (1e300, 10**30, -1e300, 2**63, True, "soon", None)


async def test_a_function_sleeps_until_no_moment_that_no_database_stores(core: Core) -> None:
    async with client(core) as boss, client(core, "hand") as hand:
        await hand.do(120, "act", data={})
        one = await boss.run({}, "act")
        await hand.operate(one, pb.TaskOperation.CLAIM)
        for number, moment in enumerate(MOMENTS):
            sleeps = {"do": "open", "step": f"s{number}", "kind": "sleep", "until_ms": moment}
            answer = await hand.ask(121, one, data={"assignment": 1, "after": 0, "do": [sleeps]})
            assert "until_ms is a number" in answer.error, moment
        for moment in (0, -1):  # it is over
            sleeps = {"do": "open", "step": f"past{moment}", "kind": "sleep", "until_ms": moment}
            await hand.do(121, one, data={"assignment": 1, "after": 0, "do": [sleeps]})
        await trio.sleep(10)
        closed = [entry["step"] for entry in await boss.do(105, one) if entry["type"] == "StepClosed"]
        assert sorted(closed) == ["past-1", "past0"]


async def test_signals_that_a_function_has_not_taken_do_not_fill_its_history(core: Core) -> None:
    async with client(core) as boss, client(core, "hand") as hand:
        await hand.do(120, "act", data={})
        one = await boss.run({}, "act")
        await hand.operate(one, pb.TaskOperation.CLAIM)
        text = "x" * 60_000
        for _ in range(17):
            await boss.do(101, one, "add", data=text)
        refused = await boss.ask(101, one, "add", data=text)
        assert "at most 1048576 are allowed" in refused.error
        waits = {"do": "open", "step": "s", "kind": "wait", "signal": "add"}
        await hand.do(121, one, data={"assignment": 1, "after": 18, "do": [waits]})
        await boss.do(101, one, "add", data=text)


async def test_a_call_of_a_function_that_is_over_is_not_done_again(core: Core) -> None:
    def fails(task: pb.TaskAssignment) -> None:
        raise Failed("no")

    async with client(core) as boss, client(core, "hand") as hand, worker(core, "book", fails) as seen:
        await hand.do(120, "act", data={})
        one = await boss.run({}, "act")
        await hand.operate(one, pb.TaskOperation.CLAIM)
        calls = {"do": "open", "step": "c", "kind": "call", "agent": "book", "tool": "t"}
        await hand.do(121, one, data={"assignment": 1, "after": 0, "do": [calls]})
        while len(history := await boss.do(105, one)) < 3:
            await trio.sleep(0.1)
        assert history[-1]["outcome"] == "failed"
        refused = await hand.operate(seen[0].task_id, pb.TaskOperation.RETRY)
        assert f"the task is a step of execution {one}: retry the execution" in refused.error
        await trio.sleep(5)
        assert len(seen) == 1

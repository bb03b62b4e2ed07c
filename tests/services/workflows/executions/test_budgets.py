"""Usage of steps is summed up, and budgets pause executions for a person."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.services.workflows.executions import budgets
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, connect, deadlock_is_an_error
from tests.services.workflows.helpers import Client, TaskOp, client, worker


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    """A core whose workflow engine is the embedded one."""
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as opened:
        yield opened


def step(name: str, *after: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "action": {"agent": "hand", "tool_name": name}, "depends_on": list(after), **more}


async def taken(link: MemoryLink) -> pb.TaskAssignment:
    """Take the next task of a worker."""
    task = (await link.next("task_assignment")).task_assignment
    link.send(pb.UpstreamMessage(task_op=TaskOp(op=TaskOp.CLAIM, task_id=task.task_id, request_id="c")))
    return task


def used(link: MemoryLink, task: pb.TaskAssignment, **usage: object) -> None:
    metadata = {f"usage.{name}": str(value) for name, value in usage.items()}
    link.send(pb.UpstreamMessage(progress=pb.ProgressReport(task_id=task.task_id, state="working", metadata=metadata)))


def end(link: MemoryLink, task: pb.TaskAssignment, op: int = TaskOp.COMPLETE) -> None:
    link.send(pb.UpstreamMessage(task_op=TaskOp(op=op, task_id=task.task_id, request_id="e")))  # type: ignore[arg-type]


async def shown(boss: Client, execution_id: str) -> dict[str, Any]:
    found: dict[str, Any] = (await boss.execution(execution_id))["execution"]
    return found


async def becomes(boss: Client, execution_id: str, status: str) -> dict[str, Any]:
    while (found := await shown(boss, execution_id))["Status"] != status:
        await trio.sleep(0.1)
    return found


async def test_usage_is_summed_over_attempts_items_and_workflows(core: Core) -> None:
    steps = [
        step("each", for_each={"items": [1, 2], "max_parallel": 1}),
        step(
            "again",
            "each",
            action={"agent": "hand", "tool_name": "again", "retry": {"max_attempts": 2, "initial": "1s"}},
        ),
        {"id": "below", "workflow": "sub", "depends_on": ["again"]},
    ]
    async with client(core) as boss, connect(core, agent("w", "hand", "1")) as link:
        await boss.create({"name": "sub", "steps": [step("inner")]}, "sub")
        await boss.create({"name": "flow", "steps": steps})
        execution_id = await boss.run()
        for number in range(5):
            task = await taken(link)
            used(link, task, input_tokens=3, output_tokens=1)
            used(link, task, input_tokens=10)  # a total of the attempt, not more of it
            used(link, task, input_tokens=10)
            end(link, task, TaskOp.FAIL if number == 2 else TaskOp.COMPLETE)
        await becomes(boss, execution_id, "completed")
        found = await boss.execution(execution_id)
        assert found["execution"]["Usage"] == {"input_tokens": 50, "output_tokens": 5}
        below = next(one["TaskID"] for one in found["steps"] if one["StepID"] == "below")
        assert (await shown(boss, below))["Usage"] == {"input_tokens": 10, "output_tokens": 1}


async def test_a_wrong_usage_is_refused(core: Core) -> None:
    async with client(core) as boss, connect(core, agent("w", "hand", "1")) as link:
        await boss.create({"name": "flow", "steps": [step("one")]})
        execution_id = await boss.run()
        task = await taken(link)
        used(link, task, tokens="many", cost=2)
        error = (await link.next("error")).error
        assert "has to be a number" in error.message
        end(link, task)
        found = await becomes(boss, execution_id, "completed")
        assert found["Usage"] == {"cost": 2}


async def test_a_used_up_budget_asks_a_person(core: Core) -> None:
    steps = [step("one"), step("two", "one"), step("three", "two")]
    async with client(core) as boss, connect(core, agent("w", "hand", "1")) as link:
        await boss.create({"name": "flow", "steps": steps, "budget": {"usage": {"tokens": 100}}})
        execution_id = await boss.run()
        task = await taken(link)
        used(link, task, tokens=120)
        end(link, task)
        found = await becomes(boss, execution_id, "paused")
        (question,) = [one for one in (await boss.execution(execution_id))["steps"] if one["StepID"] == "~budget"]
        assert "the budget of 100 tokens is used up: 120 are used" in question["WaitsFor"]["question"]
        assert question["WaitsFor"]["choices"] == ["go on", "end it"]
        await boss.do(106, execution_id, "budget", data={"choice": "go on"})
        task = await taken(link)
        used(link, task, tokens=90)
        end(link, task)
        task = await taken(link)
        used(link, task, tokens=20)
        found = await becomes(boss, execution_id, "paused")
        end(link, task)
        await boss.do(106, execution_id, "budget", data={"choice": "end it"})
        found = await boss.ended(execution_id)
        assert found["execution"]["Status"] == "failed"
        assert "ag::w::boss::1 has ended the execution" in found["execution"]["ErrorMessage"]
        assert found["execution"]["Usage"] == {"tokens": 230}


async def test_a_budget_of_steps_asks_too(core: Core) -> None:
    steps = [step("one"), step("two", "one"), step("three", "two")]
    async with client(core) as boss, worker(core, "hand", lambda task: None):
        await boss.create({"name": "flow", "steps": steps, "budget": {"steps": 2}})
        execution_id = await boss.run()
        await becomes(boss, execution_id, "paused")
        await boss.do(106, execution_id, "budget", data={"choice": "go on"})
        await becomes(boss, execution_id, "completed")
        other = await boss.run()
        await becomes(boss, other, "paused")
        await boss.do(pb.WorkflowOperation.CANCEL_EXECUTION, other)
        late = await boss.ask(106, other, "budget", data={"choice": "go on"})
        assert "asks nothing" in late.error


async def test_a_budget_of_runs_pauses_the_next_one(core: Core) -> None:
    document = {"name": "flow", "steps": [{"id": "go", "wait": "1s"}], "budget": {"runs_per_hour": 2}}
    async with client(core) as boss:
        await boss.create(document)
        one, two, three = [await boss.run() for _ in range(3)]
        assert (await shown(boss, three))["Status"] == "paused"
        for each in (one, two):
            await becomes(boss, each, "completed")
        await boss.do(106, three, "budget", data={"choice": "go on"})
        await becomes(boss, three, "completed")
        await trio.sleep(3_600)
        await becomes(boss, await boss.run(), "completed")


async def test_what_a_newer_version_does_not_bound_is_not_granted(world: World) -> None:
    """An execution may be moved to it after its budget was raised."""
    tasks = world.databases["tasks"]
    await tasks.run(lambda: budgets.add("e1", "tokens", 30))
    await tasks.run(lambda: budgets.add("e1", "cents", 30))
    await tasks.execute("UPDATE workflow_usage_totals SET allowance = 20")
    await tasks.run(lambda: budgets.grant("e1", {"cents": 10}))
    found = await tasks.run(lambda: budgets.totals("e1"))
    assert {name: used.allowance for name, used in found.items()} == {"tokens": 20, "cents": 40}

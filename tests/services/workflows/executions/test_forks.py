"""Forks begin with what another execution has done, and leave that as it is."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aether_trio.gateway.core import Core
from aether_trio.model.access import AccessLevel
from aether_trio.services.workflows.operations.past_operations import FORK, REPLAY
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, deadlock_is_an_error
from tests.services.workflows.executions.test_replay import rows_at_rest
from tests.services.workflows.helpers import Client, Failed, Op, asked, client, let_agents, worker


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    """A core whose workflow engine is the embedded one."""
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as opened:
        yield opened


def step(name: str, *after: str, n: str = "1", **more: Any) -> dict[str, Any]:
    action = {"agent": "hand", "tool_name": name, "arguments": {"n": {"$expr": n}}}
    return {"id": name, "action": action, "depends_on": list(after), **more}


UNDO = {"agent": "hand", "tool_name": "undo", "arguments": {"n": {"$expr": "result"}}}
FLOW: dict[str, Any] = {
    "id": "flow",
    "steps": [
        step("first", n="trigger.n", compensate=UNDO),
        step("each", "first", n="item", for_each={"$expr": "1..5"}, output={"$expr": "result + 1"}),
        {"id": "sum", "depends_on": ["each"], "output": {"$expr": "sum(steps.each.result) + steps.first.result"}},
        step("loop", "first", n="round", **{"while": "round < 3"}),
        step("last", "sum", "loop", n="steps.sum.result + trigger.n"),
    ],
    "outputs": {"$expr": "[steps.sum.result, steps.loop.result, steps.last.result]"},
}


def doubled(task: pb.TaskAssignment) -> Any:
    n = asked(task)["n"]
    if n == 99:
        raise Failed("too much")
    return n * 2


async def forked(boss: Client, execution_id: str, step: str, **data: Any) -> dict[str, Any]:
    answer: dict[str, Any] = await boss.do(FORK, execution_id, data={"from": step, **data})
    return answer


def tools(seen: list[pb.TaskAssignment], execution_id: str) -> list[str]:
    """Return which steps the worker has done for an execution."""
    return sorted({one.metadata["step_id"] for one in seen if one.metadata["execution_id"] == execution_id})


def statuses(found: dict[str, Any]) -> dict[str, str]:
    return {one["StepID"]: one["Status"] for one in found["steps"] if "Item" not in one}


async def refusal(boss: Client, execution_id: str, **data: Any) -> str:
    answer = await boss.ask(FORK, execution_id, data=data)
    assert not answer.success
    return answer.error


async def test_a_fork_keeps_what_does_not_follow_from_its_step(core: Core, world: World) -> None:
    async with client(core) as boss, worker(core, "hand", doubled) as seen:
        await boss.create(FLOW)
        origin = await boss.run({"n": 3})
        assert (await boss.ended(origin))["execution"]["Result"] == [41, 4, 88]
        before = await rows_at_rest(world)
        answer = await forked(boss, origin, "sum")
        fork = answer["execution_id"]
        assert answer["kept"] == ["first", "each", "loop"]
        assert answer["undone_by_both"] == []
        found = await boss.ended(fork)
        assert found["execution"]["Result"] == [41, 4, 88]
        assert tools(seen, fork) == ["last"]
        assert found["execution"]["Metadata"]["forked_from"] == origin
        assert found["execution"]["Metadata"]["forked_at"] == "sum"
        shown = await boss.execution(origin)
        assert shown["execution"]["Metadata"]["forks"] == [{"execution_id": fork, "step": "sum"}]
        task = await boss.task(fork)
        assert (task.metadata["forked_from"], task.metadata["forked_at"]) == (origin, "sum")
        after = await rows_at_rest(world)
        for table, rows in before.items():
            assert [row for row in after[table] if fork not in map(str, row)] == rows, table
        history = await boss.do(105, fork)
        assert [history[0][key] for key in ("type", "origin", "step")] == ["Forked", origin, "sum"]
        for execution_id in (origin, fork):
            replayed = await boss.do(REPLAY, execution_id, data={"dry_run": True})
            assert replayed["divergence"] is None


async def test_a_fork_of_a_fork_with_another_input_and_version(core: Core) -> None:
    async with client(core) as boss, worker(core, "hand", doubled) as seen:
        await boss.create(FLOW)
        origin = await boss.run({"n": 3})
        await boss.ended(origin)
        fork = (await forked(boss, origin, "last", input={"n": 5}))["execution_id"]
        found = await boss.ended(fork)
        assert found["execution"]["TriggerData"] == {"n": 5}
        assert found["execution"]["Result"] == [41, 4, 92]
        await boss.create({**FLOW, "outputs": {"$expr": "steps.last.result + 1"}}, version=2)
        again = (await forked(boss, fork, "last", version="newest"))["execution_id"]
        found = await boss.ended(again)
        assert found["execution"]["WorkflowVersion"] == 2
        assert found["execution"]["Result"] == 93
        assert tools(seen, again) == ["last"]
        same = (await forked(boss, fork, "loop"))["execution_id"]
        assert (await boss.ended(same))["execution"]["WorkflowVersion"] == 1
        assert tools(seen, same) == ["last", "loop"]


async def test_what_a_fork_keeps_is_undone_if_it_fails(core: Core) -> None:
    async with client(core) as boss, worker(core, "hand", doubled) as seen:
        await boss.create(FLOW)
        origin = await boss.run({"n": 3})
        await boss.ended(origin)
        fork = (await forked(boss, origin, "last", input={"n": 58}))["execution_id"]
        found = await boss.ended(fork)
        assert found["execution"]["Status"] == "failed"
        assert statuses(found)["first"] == "compensated"
        undone = [one for one in seen if "compensates" in one.metadata]
        assert [(one.metadata["execution_id"], asked(one)) for one in undone] == [(fork, {"n": 6})]
        assert statuses(await boss.execution(origin))["first"] == "completed"
        assert (await boss.do(REPLAY, fork, data={"dry_run": True}))["divergence"] is None
        # What was undone is done again by a retry, and by a fork of the failed fork.
        await boss.do(104, fork)
        assert (await boss.ended(fork))["execution"]["Status"] == "failed"
        answer = await forked(boss, fork, "last", input={"n": 3})
        assert "first" not in answer["kept"]
        assert (await boss.ended(answer["execution_id"]))["execution"]["Result"][2] == 88


async def test_a_running_execution_is_forked_with_the_items_that_are_done(core: Core) -> None:
    held: list[pb.TaskAssignment] = []

    def some(task: pb.TaskAssignment) -> Any:
        if asked(task)["n"] == 4 and not held:
            held.append(task)
            raise Failed("later")
        return doubled(task)

    flow = {
        "id": "flow",
        "steps": [
            step("first", n="trigger.n", compensate=UNDO),
            {"id": "go", "wait": {"signal": "go"}, "depends_on": ["first"]},
            {**step("each", "first", n="item", for_each={"items": {"$expr": "1..5"}, "mode": "fail_fast"}),
             "on_failure": "go2", "compensate": UNDO},
            {"id": "go2", "wait": {"signal": "go2"}},
            step("last", "go", n="steps.go.result"),
        ],
    }  # fmt: skip
    async with client(core) as boss, worker(core, "hand", some) as seen:
        await boss.create(flow)
        origin = await boss.run({"n": 3})
        while statuses(await boss.execution(origin)).get("go2") != "waiting":
            pass
        answer = await forked(boss, origin, "last")
        fork = answer["execution_id"]
        assert answer["undone_by_both"] == ["first", "each"]
        for one in (origin, fork):
            await boss.do(101, one, "go", data=5)
            await boss.do(101, one, "go2", data=5)
            found = await boss.ended(one)
            assert found["execution"]["Status"] == "completed", found
            assert statuses(found)["last"] == "completed"
        assert tools(seen, fork) == ["last"]
        # From `each` on its items begin again, all of them.
        again = (await forked(boss, origin, "each"))["execution_id"]
        found = await boss.ended(again)
        assert found["execution"]["Result"]["each"] == [2, 4, 6, 8, 10]
        assert statuses(found)["go2"] == "skipped"


async def test_the_done_items_of_an_open_map_are_kept(core: Core) -> None:
    flow = {
        "id": "flow",
        "steps": [
            {"id": "each", "for_each": {"$expr": "1..110"}, "workflow": "below", "input": {"$expr": "item"}},
            step("other"),
        ],
    }
    below = {
        "id": "below",
        "steps": [
            {"id": "hold", "when": "trigger == 105", "wait": {"signal": "go"}},
            {"id": "n", "depends_on": ["hold"], "join": "any", "output": 0},
            {"id": "m", "output": {"$expr": "trigger * 2"}},
        ],
        "outputs": {"$expr": "steps.m.result"},
    }
    async with client(core) as boss, worker(core, "hand", doubled):
        await boss.create(below, "below")
        await boss.create(flow)
        origin = await boss.run({})
        while True:
            each = next(one for one in (await boss.execution(origin))["steps"] if one["StepID"] == "each")
            if each.get("Items", {}).get("completed") == 109:
                break
        fork = (await forked(boss, origin, "other"))["execution_id"]
        children = [one for one in await boss.tasks(parent_task_id=fork, limit=1000) if one.task_type == "workflow_run"]
        assert [one.metadata["item"] for one in children] == ["104"]
        for one in (children[0].task_id, (await open_child(boss, origin))):
            await boss.do(101, one, "go")
        for execution_id in (fork, origin):
            found = await boss.ended(execution_id)
            assert found["execution"]["Result"]["each"] == [2 * n for n in range(1, 111)]
            assert (await boss.do(REPLAY, execution_id, data={"dry_run": True}))["divergence"] is None


async def open_child(boss: Client, execution_id: str) -> str:
    found = await boss.do(Op.GET_EXECUTION, execution_id, "each[104]")
    child: str = found["steps"][0]["TaskID"]
    return child


async def test_a_fork_is_refused_with_what_to_do(core: Core) -> None:
    async with client(core) as boss, worker(core, "hand", doubled):
        await boss.create({**FLOW, "inputs": {"n": "number"}})
        origin = await boss.run({"n": 3})
        await boss.ended(origin)
        assert "`from`" in await refusal(boss, origin)
        assert "did you mean 'sum'?" in await refusal(boss, origin, **{"from": "sun"})
        assert "unknown keys: 'speed'" in await refusal(boss, origin, **{"from": "sum", "speed": 1})
        assert "version is newest" in await refusal(boss, origin, **{"from": "sum", "version": 2})
        assert "the input of workflow flow" in await refusal(boss, origin, **{"from": "sum", "input": {"n": "x"}})
        steps = [one for one in FLOW["steps"] if one["id"] != "first"]
        other = [{**steps[0], "depends_on": []}, {"id": "sum", "output": 1}, {**steps[2], "depends_on": []}, steps[3]]
        await boss.create({"id": "flow", "steps": other}, version=2)
        error = await refusal(boss, origin, **{"from": "last", "version": "newest"})
        assert "no step 'first' any more, which is done and would have to be undone" in error
        changed = [FLOW["steps"][0], step("each", "first"), FLOW["steps"][2], *FLOW["steps"][3:]]
        await boss.create({**FLOW, "steps": changed}, version=3)
        error = await refusal(boss, origin, **{"from": "last", "version": "newest"})
        assert "'each' in version 3 of workflow flow: for_each or while was added or taken away" in error
        await boss.do(Op.DELETE_WORKFLOW, "flow")
        assert "is deleted" in await refusal(boss, origin, **{"from": "sum"})
        let_agents(core, AccessLevel.READ)
        assert "ERR_PERMISSION_DENIED" in await refusal(boss, origin, **{"from": "sum"})
        let_agents(core, AccessLevel.NONE)
        assert "not found" in await refusal(boss, origin, **{"from": "sum"})


async def test_an_execution_that_compensates_is_not_forked(core: Core) -> None:
    async with client(core) as boss, worker(core, "hand", doubled) as seen:
        below = {"id": "below", "steps": [{"id": "go", "wait": {"signal": "go"}}]}
        undo = {"id": "undo", "agent": "nowhere", "tool_name": "undo"}
        flow = {"id": "flow", "steps": [{**step("first"), "compensate": undo}, step("last", "first", n="99")]}
        await boss.create(below, "below")
        await boss.create(flow)
        origin = await boss.run({})
        while (await boss.execution(origin))["execution"]["Status"] != "compensating":
            pass
        assert "fork it when it has ended" in await refusal(boss, origin, **{"from": "last"})
        assert len(seen) == 2


async def test_a_key_forks_once(core: Core) -> None:
    async with client(core) as boss, worker(core, "hand", doubled):
        await boss.create(FLOW)
        origin = await boss.run({"n": 3})
        await boss.ended(origin)
        answers = [await boss.ask(FORK, origin, "k", data={"from": "sum"}) for _ in range(2)]
        assert len({json.loads(one.data)["execution_id"] for one in answers}) == 1
        other = await boss.ask(FORK, origin, "k", data={"from": "sum", "input": {"n": 4}})
        assert other.error.startswith("idempotency_key was used for another request before")
        assert len((await boss.execution(origin))["execution"]["Metadata"]["forks"]) == 1


async def test_a_fork_waits_for_its_turn_with_what_it_keeps(core: Core) -> None:
    flow = {
        "id": "flow",
        "flow": {"concurrency": 1},
        "steps": [
            step("first", n="trigger.n", compensate=UNDO),
            {"id": "go", "wait": {"signal": "go"}, "depends_on": ["first"]},
            step("last", "go", n="steps.first.result"),
        ],
        "outputs": {"$expr": "steps.last.result"},
    }
    async with client(core) as boss, worker(core, "hand", doubled) as seen:
        await boss.create(flow)
        origin = await boss.run({"n": 3})
        while statuses(await boss.execution(origin)).get("go") != "waiting":
            pass
        fork = (await forked(boss, origin, "go", input={"n": 5}))["execution_id"]
        assert (await boss.execution(fork))["execution"]["Status"] == "queued"
        assert "has not begun" in await refusal(boss, fork, **{"from": "go"})
        for one in (origin, fork):
            while statuses(await boss.execution(one)).get("go") != "waiting":
                pass
            await boss.do(101, one, "go")
            assert (await boss.ended(one))["execution"]["Result"] == 12
        assert tools(seen, fork) == ["last"]
        assert (await boss.do(REPLAY, fork, data={"dry_run": True}))["divergence"] is None


async def test_a_fork_of_gathered_starts_has_their_input(core: Core) -> None:
    flow = {
        "id": "flow",
        "flow": {"debounce": {"period": "10s"}},
        "steps": [{"id": "one", "output": {"$expr": "trigger.items"}}],
    }
    async with client(core) as boss:
        await boss.create(flow)
        origin = await boss.run({"n": 3})
        assert await boss.run({"n": 4}) == origin
        assert (await boss.ended(origin))["execution"]["Result"] == {"one": [{"n": 3}, {"n": 4}]}
        fork = (await forked(boss, origin, "one"))["execution_id"]
        assert (await boss.ended(fork))["execution"]["Result"] == {"one": [{"n": 3}, {"n": 4}]}

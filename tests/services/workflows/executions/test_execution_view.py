"""What GET_EXECUTION tells of the steps of an execution."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.services.workflows.executions import execution_view
from tests.helpers.core import World, deadlock_is_an_error
from tests.services.workflows.helpers import Client, Failed, Op, asked, client, worker


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    """A core whose workflow engine is the embedded one."""
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as opened:
        yield opened


async def until(boss: Client, execution_id: str, step: str, **wanted: Any) -> dict[str, Any]:
    """Wait until a step as a whole has these fields; return the execution."""
    while True:
        found = await boss.execution(execution_id)
        (one,) = (one for one in found["steps"] if one["StepID"] == step and "Item" not in one)
        if wanted.items() <= one.items():
            return found
        await trio.sleep(0.2)


async def test_of_many_items_those_that_wait_or_have_failed_are_told(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution_view, "STEPS_SHOWN", 6)

    def work(task: Any) -> int:
        if asked(task)["n"] == 17:
            raise Failed("no luck")
        return 1

    each = {
        "id": "each",
        "for_each": {"items": {"$expr": "1..20"}, "mode": "settled"},
        "action": {"agent": "hand", "tool_name": "x", "arguments": {"n": {"$expr": "item"}}},
    }
    steps = [
        each,
        {"id": "may", "depends_on": ["each"], "ask": "Go on?"},
        {"id": "last", "depends_on": ["may"], "output": 1},
    ]
    async with client(core) as boss, worker(core, "hand", work):
        await boss.create({"name": "flow", "steps": steps})
        execution_id = await boss.run()
        found = await until(boss, execution_id, "may", Status="waiting")
        told = [(one["StepID"], one.get("Item"), one["Status"]) for one in found["steps"]]
        assert told[0] == ("each", None, "completed")
        assert ("each", 16, "failed") in told
        assert told[-2:] == [("may", None, "waiting"), ("last", None, "pending")]
        whole = found["steps"][0]
        assert whole["Items"] == {"completed": 19, "failed": 1}
        assert whole["Kind"] == "action"
        (question,) = (one["WaitsFor"] for one in found["steps"] if one["StepID"] == "may")
        assert (question["for"], question["question"]) == ("answer", "Go on?")


async def test_a_step_or_an_item_is_told_alone(core: Core) -> None:
    each = {"id": "each", "for_each": {"$expr": '["a", "b"]'}, "ask": "May {{.item}}?"}
    async with client(core) as boss:
        await boss.create({"name": "flow", "steps": [each, {"id": "other", "output": 1}]})
        execution_id = await boss.run()
        await until(boss, execution_id, "each", Items={"waiting": 2})
        found = await boss.do(Op.GET_EXECUTION, execution_id, "each[1]")
        (item,) = found["steps"]
        assert (item["Item"], item["InputData"]["question"]) == (1, "May b?")
        assert item["WaitsFor"]["question"] == "May b?"
        found = await boss.do(Op.GET_EXECUTION, execution_id, "each")
        assert [one.get("Item") for one in found["steps"]] == [None, 0, 1]
        for wrong in ("none", "each[7]", "each[x]", "other["):
            assert not (await boss.ask(Op.GET_EXECUTION, execution_id, wrong)).success


async def test_a_step_that_waits_for_a_worker_says_for_which(core: Core) -> None:
    step = {"id": "one", "action": {"agent": "absent", "tool_name": "x"}, "timeout": "1h"}
    async with client(core) as boss:
        await boss.create({"name": "flow", "steps": [step, {"id": "nap", "wait": "1h"}]})
        execution_id = await boss.run()
        found = await until(boss, execution_id, "nap", Status="waiting")
        one, nap = found["steps"]
        assert one["WaitsFor"] == {"for": "worker", "pool": "absent"}
        assert nap["WaitsFor"]["for"] == "time"
        assert nap["WaitsFor"]["until"] > nap["StartedAt"]


async def test_what_an_answer_has_no_room_for_is_shown_by_step(core: Core) -> None:
    async with client(core) as boss:
        step = {"output": {"$expr": "repeat('x', 400000)"}}
        await boss.create({"outputs": 1, "steps": [{"id": f"s{number}", **step} for number in range(5)]})
        execution = await boss.run()
        ended = await boss.ended(execution)
        assert ended["execution"]["Status"] == "completed", ended["execution"]
        shown = ended["steps"]
        assert [one["OutputData"] is not None for one in shown] == [True, True, False, False, False]
        found = await boss.do(Op.GET_EXECUTION, execution, "s4")
        assert len(found["steps"][0]["OutputData"]) == 400_000


async def test_the_attempts_of_a_steps_task_are_counted(core: Core) -> None:
    tried: list[int] = []

    def work(task: Any) -> int:
        tried.append(1)
        if len(tried) < 3:
            raise Failed("not yet")
        return 1

    retry = {"max_attempts": 3, "initial": "1s"}
    steps = [{"id": "one", "action": {"agent": "hand", "tool_name": "x", "retry": retry}}, {"id": "two", "output": 1}]
    async with client(core) as boss, worker(core, "hand", work):
        await boss.create({"name": "flow", "steps": steps})
        found = await until(boss, await boss.run(), "one", Status="completed")
        assert {one["StepID"]: one["Attempt"] for one in found["steps"]} == {"one": 3, "two": 0}

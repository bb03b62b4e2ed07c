"""Test the client's operations on workflows at a real gateway, async and blocking."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from aether_trio.client import AgentClient, Refused, TaskNotEnded, connect_sync
from aether_trio.client.operations.workflow_values import Execution
from tests.client.gateways import BACKENDS, agent, open_test_gateway, run_on

WAITS = {"id": "waits", "steps": [{"id": "go", "wait": {"signal": "go"}}], "outputs": {"$expr": "steps.go.result"}}
ASKS = {
    "id": "asks",
    "inputs": {"who": "string"},
    "steps": [
        {"id": "may", "ask": {"question": "May {{.trigger.who}}?", "choices": ["yes", "no"]}},
        {"id": "bad", "depends_on": ["may"], "when": "steps.may.result.choice == 'no'", "fail": "not allowed"},
    ],
}
UNDOES = {
    "id": "undoes",
    "steps": [
        {
            "id": "book",
            "action": {"agent": "hand", "tool_name": "book"},
            "compensate": {"agent": "hand", "tool_name": "unbook"},
        },
        {"id": "on", "depends_on": ["book"], "wait": {"signal": "on"}},
    ],
}


async def asking(client: AgentClient, execution_id: str, step: str) -> Execution:
    """Wait until a step waits for something; return the execution."""
    while True:
        found = await client.workflow.execution(execution_id)
        assert not found.has_ended, found
        if found.step(step).waits_for:
            return found
        await anyio.sleep(0.05)


async def served(backend: str, body: Callable[[str], Any]) -> None:
    """Run a test with the address of a gateway whose workflow engine is its own."""
    async with open_test_gateway(workflow={"engine": "embedded"}) as gateway:
        await run_on(backend, body, f"aether://{gateway.address}")


@pytest.mark.parametrize("backend", BACKENDS)
async def test_an_execution_from_its_definition_to_its_history(backend: str) -> None:
    await served(backend, from_definition_to_history)


async def from_definition_to_history(address: str) -> None:
    async with agent(address, "boss") as boss:
        workflow = boss.workflow
        applied = await workflow.apply([WAITS, ASKS], workspace="w")
        assert [(one.id, one.version, one.change) for one in applied.applied] == [
            ("waits", 1, "created"), ("asks", 1, "created"),
        ]  # fmt: skip
        assert {one.id for one in await workflow.definitions("w")} == {"waits", "asks"}
        definition = await workflow.definition("asks")
        assert (definition.version, definition.workspace, definition.owner) == (1, "w", boss.topic)
        with pytest.raises(Refused, match="'who' is a required property"):
            await workflow.run("asks", {})
        with pytest.raises(Refused, match="step 'on' depends on 'om'; known are on"):
            await workflow.apply([{"id": "x", "steps": [{"id": "on", "output": 1, "depends_on": ["om"]}]}])

        execution_id = await workflow.run("asks", {"who": "ann"}, idempotency_key="once")
        assert await workflow.run("asks", {"who": "ann"}, idempotency_key="once") == execution_id
        found = await asking(boss, execution_id, "may")
        assert (found.status, found.workflow, found.input) == ("running", "asks", {"who": "ann"})
        assert found.step("may").waits_for["question"] == "May ann?"
        assert found.step("bad").status == "pending"
        with pytest.raises(KeyError):
            found.step("other")
        with pytest.raises(TaskNotEnded):
            await workflow.wait(execution_id, timeout=0.01)
        await workflow.answer(execution_id, "may", choice="no")
        ended = await workflow.wait(execution_id)
        assert (ended.status, ended.error) == ("failed", "step bad: not allowed")
        assert [one.execution_id for one in await workflow.executions(status="failed")] == [execution_id]
        assert await workflow.executions(status="running") == ()
        entries = await workflow.history(execution_id)
        assert [one.type for one in entries][:2] == ["Started", "StepEnded"]
        assert [one.number for one in await workflow.history(execution_id, after=1)] == [
            one.number for one in entries[1:]
        ]  # fmt: skip
        (step,) = (await workflow.execution(execution_id, step="may")).steps
        assert step.result["choice"] == "no"
        await lists_come_in_pages(boss)


async def lists_come_in_pages(boss: AgentClient) -> None:
    workflow = boss.workflow
    for _ in range(2):
        await workflow.run("asks", {"who": "ann"})
    newest = [one.execution_id for one in await workflow.executions()]
    assert len(newest) == 3
    first = [one.execution_id for one in await workflow.executions(limit=2)]
    rest = [one.execution_id for one in await workflow.executions(after=first[-1])]
    assert first + rest == newest
    page = await workflow.list_workflows(limit=1)
    assert (json.loads(page.data)[0]["ID"], page.more_after) == ("asks", "w asks")
    page = await workflow.list_workflows(limit=1, after=page.more_after)
    assert (json.loads(page.data)[0]["ID"], page.more_after) == ("waits", "")
    for name in ("first", "second"):
        rule = {"rule_name": name, "source_event": "made", "destination_template": {"agent": "a", "tool_name": "t"}}
        await workflow.create_rule(json.dumps(rule).encode(), workspace="w")
    assert json.loads((await workflow.list_rules(name="second")).data)[0]["RuleName"] == "second"
    assert json.loads((await workflow.list_rules(name="third")).data) == []


async def test_waiting_is_for_the_compensation_too() -> None:
    await served("trio", waiting_for_compensation)


async def waiting_for_compensation(address: str) -> None:
    worker = AgentClient(address, workspace="w", implementation="hand", specifier="1")
    async with agent(address, "boss") as boss, worker as hand:
        await boss.workflow.apply([UNDOES], workspace="w")
        execution_id = await boss.workflow.run("undoes")
        jobs = hand.work()
        async with await anext(jobs):
            pass
        await asking(boss, execution_id, "on")
        await boss.workflow.cancel(execution_id)
        async with await anext(jobs) as job:
            assert job.task.metadata["compensates"] == "true"
            assert (await boss.workflow.execution(execution_id)).status == "compensating"
            async with anyio.create_task_group() as group:
                group.start_soon(boss.workflow.wait, execution_id)
                with pytest.raises(TaskNotEnded):
                    await boss.workflow.wait(execution_id, timeout=0.2)
                await job.progress(0.5)
                group.cancel_scope.cancel()
        ended = await boss.workflow.wait(execution_id)
        assert (ended.status, ended.step("book").status) == ("cancelled", "compensated")
        assert [one.status for one in ended.steps if one.compensates] == ["completed"]


async def test_the_blocking_client_runs_and_steers() -> None:
    await served("thread", blocking)


def blocking(address: str) -> None:
    with connect_sync(address, workspace="w", implementation="boss", specifier="1") as boss:
        boss.workflow.apply([WAITS], workspace="w")
        execution_id = boss.workflow.run("waits")
        boss.workflow.pause(execution_id, "lunch")
        assert boss.workflow.execution(execution_id).status == "paused"
        boss.workflow.resume(execution_id)
        boss.workflow.signal(execution_id, "go", {"x": 7})
        assert boss.workflow.wait(execution_id).result == {"x": 7}

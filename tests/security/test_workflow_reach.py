"""What is defined with a key for one workspace never acts in another one.

The participants have all rights, so that only their keys limit them: what acts later for the owner
of a definition would be let by the access rules.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
import trio

from aether_trio.client import AetherError, AgentClient, MessageType
from aether_trio.gateway import Gateway
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import give_all_rights
from tests.security.tenants import LIMIT_S, agent_of, auth, open_test_gateway

Op = pb.WorkflowOperation
IN_BLUE: Final = {"type": "create_task", "task_type": "t", "target_implementation": "absent", "workspace": "blue"}
IN_RED: Final = {**IN_BLUE, "workspace": "red"}
TEXT: Final = "type: create_task\ntask_type: t\ntarget_implementation: absent\nworkspace: "
JOIN: Final = {
    "type": "join",
    "join": {"name": "j", "correlation_key": "input.key", "mode": "count", "expected_count": 1, "on_complete": IN_BLUE},
}


@asynccontextmanager
async def serving() -> AsyncIterator[Gateway]:
    with trio.fail_after(LIMIT_S):
        async with open_test_gateway(auth=auth(), workflow={"engine": "embedded"}) as gateway:
            give_all_rights(gateway.core)
            yield gateway


def rule(destination: Any, name: str = "r") -> dict[str, Any]:
    return {
        "rule_name": name, "source_event": "go", "workspace": "red", "destination_template": destination,
    }  # fmt: skip


def step(**work: Any) -> dict[str, Any]:
    return {"ID": "flow", "Version": 1, "Workspace": "red", "Definition": {"steps": [{"id": "a", **work}]}}


TIMED: Final = {"id": "s", "workspace": "red", "schedule_type": "interval", "schedule_expr": "1h", "action": IN_BLUE}
MACHINE: Final = {"initial_state": "a", "states": {"a": {"entry_action": IN_BLUE, "on": {"x": "a"}}}}
UNDOING: Final = step(action=IN_RED, compensate=IN_BLUE)
WRITTEN: Final[Sequence[tuple[str, int, dict[str, Any]]]] = (
    ("a workflow", Op.CREATE_WORKFLOW, step(action=IN_BLUE)),
    ("a compensation", Op.CREATE_WORKFLOW, UNDOING),
    ("a rule", Op.CREATE_RULE, rule(IN_BLUE)),
    ("a rule of text", Op.CREATE_RULE, rule(TEXT + "blue")),
    ("a rule with a join", Op.CREATE_RULE, rule(JOIN)),
    ("a schedule", Op.CREATE_SCHEDULE, TIMED),
    ("a schedule, again", Op.UPSERT_SCHEDULE, TIMED),
    ("a machine", Op.CREATE_STATE_MACHINE, {"id": "m", "workspace": "red", "definition": MACHINE}),
)
APPLIED: Final[Sequence[tuple[str, dict[str, Any]]]] = (
    ("a workflow", {"id": "flow", "workspace": "red", "steps": [{"id": "a", "action": IN_BLUE}]}),
    ("a rule", rule(IN_BLUE)),
    ("a rule of text", rule(TEXT + "blue")),
    ("a rule with a join", rule(JOIN)),
    ("a schedule", TIMED),
    ("a machine", {"id": "m", "workspace": "red", **MACHINE}),
    ("what acts everywhere", {**rule(IN_RED), "workspace": "*"}),
)


async def write(agent: AgentClient, op: int, document: dict[str, Any], about: str = "") -> None:
    await agent.workflow._do(op, about, data=json.dumps(document).encode())


async def go(agent: AgentClient) -> None:
    payload = json.dumps({"event_names": ["go"], "data": {"there": "blue", "key": "workspace"}}).encode()
    await agent.send("event::*", payload, type=MessageType.EVENT)


async def tasks_of(agent: AgentClient) -> list[str]:
    return [task.task_type for task in (await agent.tasks.query()).tasks]


async def test_no_definition_acts_where_the_key_does_not_reach() -> None:
    async with serving() as gateway, agent_of(gateway, "red", "eve") as eve:
        for what, op, document in WRITTEN:
            with pytest.raises(AetherError) as caught:
                await write(eve, op, document)
            assert "does not reach workspace blue" in str(caught.value), what
        for what, document in APPLIED:
            with pytest.raises(AetherError) as caught:
                await eve.workflow.apply([document], workspace="red")
            assert "does not reach workspace" in str(caught.value), what
        await write(eve, Op.CREATE_RULE, rule(IN_RED))
        with pytest.raises(AetherError, match="does not reach workspace blue"):
            await write(eve, Op.UPDATE_RULE, {**rule(IN_BLUE), "id": 1})


async def test_the_same_is_written_with_a_key_that_reaches_both() -> None:
    async with serving() as gateway, agent_of(gateway, "red", "eve", key="both") as eve:
        for what, op, document in WRITTEN:
            if what != "a compensation":  # it is another version of the same workflow
                await write(eve, op, {**document, "rule_name": what} if op == Op.CREATE_RULE else document)


COMPUTED: Final = (
    {**IN_BLUE, "workspace": "{{.input.there}}"},
    {**IN_BLUE, "workspace": {"$expr": "input.there"}},
    TEXT + "{{.input.there}}",
    TEXT + "{{if .input.there}}blue{{end}}",
    TEXT.replace("workspace: ", "{{.input.key}}: blue"),
    {"type": "join", "workspace": "{{.input.there}}", "join": {**JOIN["join"], "on_complete": {**IN_BLUE, "workspace": ""}}},
    {"type": "join", "join": {**JOIN["join"], "on_complete": {**IN_BLUE, "workspace": "{{.input.there}}"}}},
)  # fmt: skip


async def test_no_rule_computes_a_workspace_beyond_the_key() -> None:
    """With a wide key the same rules act in blue: the second half says so."""
    async with (
        serving() as gateway,
        agent_of(gateway, "blue", "victim") as victim,
        agent_of(gateway, "red", "eve") as eve,
        agent_of(gateway, "red", "boss", key="all") as boss,
    ):
        documents = [rule(destination, f"r{number}") for number, destination in enumerate(COMPUTED)]
        await eve.workflow.apply([*documents, rule(IN_RED, "own")], workspace="red")
        await go(eve)
        while (await tasks_of(eve)).count("t") < 1 or (await tasks_of(eve)).count("workflow_rule") < len(COMPUTED):
            await trio.sleep(0.05)
        assert await tasks_of(victim) == []
        await boss.workflow.apply(documents, workspace="red")  # the same content, and a wider key
        await go(eve)
        while (await tasks_of(victim)).count("t") < len(COMPUTED):
            await trio.sleep(0.05)


async def test_no_worker_of_a_function_calls_beyond_its_key() -> None:
    async with serving() as gateway, agent_of(gateway, "red", "eve") as eve:
        await eve.workflow._do(120, "f", workspace="red", data=b"{}")
        execution = await eve.workflow.run("f", {})
        command = {"step": "a", "kind": "call", "agent": "absent", "tool": "x", "workspace": "blue"}
        data = json.dumps({"assignment": 1, "after": 0, "do": [command]}).encode()
        with pytest.raises(AetherError, match="does not reach workspace blue"):
            await eve.workflow._do(121, execution, data=data)


ABOUT: Final = {
    "execution": (Op.GET_EXECUTION, Op.CANCEL_EXECUTION, *range(101, 107), 113, 114, 118, 121),
    "flow": (Op.GET_WORKFLOW, Op.DELETE_WORKFLOW, 100, 115),
    "1": (Op.GET_RULE, Op.UPDATE_RULE, Op.DELETE_RULE),
    "s": (Op.DELETE_SCHEDULE, 110, 111, 112),
    "m": (Op.GET_STATE_MACHINE, Op.DELETE_STATE_MACHINE, Op.CREATE_SM_INSTANCE),
    "i": (Op.GET_SM_INSTANCE, Op.SEND_SM_EVENT),
    "hook": (109,),
}
SECOND: Final = {101: "go", 106: "b", 109: "delete"}
DATA: Final = {100: {}, 113: {"dry_run": True}, 114: {"from": "b"}, 121: {"assignment": 1}}
BLUE: Final[Sequence[dict[str, Any]]] = (
    {"id": "flow", "steps": [{"id": "a", "output": "secret"}, {"id": "b", "wait": {"signal": "go"}}]},
    {"rule_name": "r", "source_event": "go", "destination_template": IN_BLUE},
    {**TIMED, "workspace": "blue"},
    {"id": "m", "initial_state": "a", "states": {"a": {"on": {"x": "a"}}}},
    {"kind": "webhook", "name": "hook", "event": "e"},
)
LISTS: Final = (
    Op.LIST_WORKFLOWS, Op.LIST_EXECUTIONS, Op.LIST_RULES, Op.LIST_SCHEDULES, Op.LIST_STATE_MACHINES,
    Op.LIST_SM_INSTANCES, Op.LIST_JOINS, 108,
)  # fmt: skip


async def test_a_key_sees_and_moves_nothing_of_another_workspace() -> None:
    """What it may not see is answered as what is not there; an id tells nothing."""
    async with (
        serving() as gateway,
        agent_of(gateway, "blue", "victim") as victim,
        agent_of(gateway, "red", "eve") as eve,
    ):
        await victim.workflow.apply(BLUE, workspace="blue")
        await write(victim, Op.CREATE_SM_INSTANCE, {"machine_id": "m", "instance_id": "i"}, "m")
        execution = await victim.workflow.run("flow", {"x": "secret"})
        await victim.workflow._do(120, "f", data=b"{}")
        run = await victim.workflow.run("f", {"x": "secret"})
        before = await victim.workflow.execution(execution), await victim.workflow.execution(run)
        webhooks = (await victim.workflow.list_webhooks()).data
        for kind, name in (("execution", execution), ("machine", "m"), ("instance", "m/i"), ("workflow", "flow")):
            for workspace in ("blue", "red"):
                with pytest.raises(AetherError):
                    await eve.workflow.diagram(name, kind=kind, workspace=workspace)
        for key in ("", "key"):
            with pytest.raises(AetherError, match="not found"):
                await eve.workflow.rotate_webhook("hook", workspace="red", idempotency_key=key)
            with pytest.raises(AetherError, match="does not reach"):
                await eve.workflow.rotate_webhook("hook", workspace="blue", idempotency_key=key)
        for name, numbers in ABOUT.items():
            for number in numbers:
                for about in (execution, run) if name == "execution" else (name,):
                    data = json.dumps(DATA[number]).encode() if number in DATA else b""
                    errors = []
                    for workspace in ("blue", "red"):
                        with pytest.raises(AetherError) as caught:
                            await eve.workflow._do(
                                number, about, SECOND.get(number, ""), data=data, workspace=workspace
                            )
                        errors.append(str(caught.value))
                    assert not any("secret" in one or "current one" in one for one in errors), (number, about)
                    if name == "execution":
                        with pytest.raises(AetherError) as caught:
                            await eve.workflow._do(number, "absent", SECOND.get(number, ""), data=data)
                        told = str(caught.value).replace("'absent'", "absent")
                        assert errors[1].replace(about, "absent").replace("'absent'", "absent") == told, (
                            number,
                            errors,
                            told,
                        )
        for number in LISTS:
            with pytest.raises(AetherError, match="does not reach"):
                await eve.workflow._do(number, workspace="blue")
            assert (await eve.workflow._do(number)).data == b"[]", number
        assert before == (await victim.workflow.execution(execution), await victim.workflow.execution(run))
        assert webhooks == (await victim.workflow.list_webhooks()).data

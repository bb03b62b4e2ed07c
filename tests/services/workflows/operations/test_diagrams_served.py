"""DIAGRAM answers what is drawn of workflows, executions, machines and instances."""

from __future__ import annotations

from typing import Any

import pytest

from aether_trio.model.access import AccessLevel
from aether_trio.model.workflows import diagrams
from aether_trio.services.workflows.operations.diagram_operations import DIAGRAM
from tests.helpers.core import World, deadlock_is_an_error
from tests.services.workflows.helpers import Op, client, let_agents

FLOW: dict[str, Any] = {
    "id": "flow",
    "steps": [
        {"id": "each", "for_each": [1, 2], "output": {"$expr": "item"}},
        {"id": "go", "wait": {"signal": "go"}, "depends_on": ["each"]},
    ],
}
MACHINE = {"id": "m", "initial_state": "a", "states": {"a": {"on": {"go": "b"}}, "b": {"terminal": True}}}


async def test_all_kinds_are_drawn_for_those_who_may_read(world: World) -> None:
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as core, client(core) as boss:
        await boss.create(FLOW)
        drawn = await boss.do(DIAGRAM, "flow")
        assert [drawn[key] for key in ("kind", "id", "version", "workspace")] == ["workflow", "flow", 1, "w"]
        assert drawn["edges"] == [{"from": "each", "to": "go", "kind": "depends_on"}]
        assert [one.get("status") for one in drawn["nodes"]] == [None, None]
        execution_id = await boss.run({})
        await boss.create({**FLOW, "steps": FLOW["steps"][:1]}, version=2)
        drawn = await boss.do(DIAGRAM, execution_id, "execution")
        assert (drawn["version"], drawn["status"], drawn["execution_id"]) == (1, "running", execution_id)
        assert [one.get("status") for one in drawn["nodes"]] == ["completed", "waiting"]
        assert drawn["nodes"][0]["items"] == {"completed": 2}
        await boss.do(Op.CREATE_STATE_MACHINE, data={"id": "m", "workspace": "w", "definition": MACHINE})
        await boss.do(Op.CREATE_SM_INSTANCE, "m", data={"instance_id": "i1", "machine_id": "m", "workspace": "w"})
        assert (await boss.do(DIAGRAM, "m", "machine"))["nodes"][0] == {"id": "a", "kind": "state", "initial": True}
        drawn = await boss.do(DIAGRAM, "i1", "instance")
        assert (drawn["nodes"][0]["current"], drawn["instance_id"]) == (True, "i1")
        assert "is one of workflow, execution" in (await boss.ask(DIAGRAM, "m", "picture")).error
        assert "not found" in (await boss.ask(DIAGRAM, "none")).error
        let_agents(core, AccessLevel.NONE)
        for name, kind in (("flow", ""), (execution_id, "execution")):
            assert "not found" in (await boss.ask(DIAGRAM, name, kind)).error
        for name, kind in (("m", "machine"), ("i1", "instance")):
            assert not (await boss.ask(DIAGRAM, name, kind)).success


async def test_a_diagram_that_no_client_takes_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagrams, "CLIENT_MESSAGE_BYTES", 10)
    async with world.open(workflow={"engine": "embedded"}) as core, client(core) as boss:
        await boss.create(FLOW)
        await boss.do(Op.CREATE_STATE_MACHINE, data={"id": "m", "workspace": "w", "definition": MACHINE})
        for name, kind, rest in (("flow", "workflow", "get the workflow"), ("m", "machine", "get the machine")):
            expected = f"the diagram has more than 10 bytes, which is more than a client takes: {rest}"
            assert (await boss.ask(DIAGRAM, name, kind)).error == expected

"""Operations on rules, as the reference answers them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from aether_trio.gateway.core import Core
from aether_trio.model.access import AccessLevel
from aether_trio.services.workflows.stored import rule_rows
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, connect, deadlock_is_an_error
from tests.services.workflows.helpers import Client, client, let_agents, let_only

Op = pb.WorkflowOperation


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    """A core whose workflow engine is the embedded one."""
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as opened:
        yield opened


def rule(name: str = "first", **more: Any) -> dict[str, Any]:
    """Return a rule of workspace w that sends a message."""
    return {
        "rule_name": name,
        "source_event": "made",
        "workspace": "w",
        "destination_template": {"agent": "hand", "tool_name": "use"},
        **more,
    }


async def test_a_rule_is_created_listed_changed_and_deleted(core: Core) -> None:
    async with client(core) as boss:
        made = await boss.do(Op.CREATE_RULE, data=rule(priority=5, trigger_condition="input.n > 1", active=False))
        assert made.pop("CreatedAt") == made.pop("UpdatedAt")
        rule_id = made.pop("ID")
        assert made == {
            "RuleName": "first",
            "SourceAgent": "*",
            "SourceEvent": "made",
            "TriggerCondition": "input.n > 1",
            "TransformationStyle": "template-yaml",
            "DestinationTemplate": {"agent": "hand", "tool_name": "use"},
            "Workspace": "w",
            "Priority": 5,
            "Active": True,  # whatever a new one says
            "Owner": "ag::w::boss::1",
        }
        assert [one["ID"] for one in await boss.do(Op.LIST_RULES)] == [rule_id]
        assert (await boss.do(Op.GET_RULE, str(rule_id)))["RuleName"] == "first"
        template = "agent: hand\ntool_name: '{{.input.tool}}'"
        changed = await boss.do(
            Op.UPDATE_RULE, str(rule_id), data=rule("second", active=False, destination_template=template)
        )
        assert (changed["ID"], changed["RuleName"], changed["Active"], changed["Priority"]) == (
            rule_id, "second", False, 0,
        )  # fmt: skip
        assert changed["TriggerCondition"] == ""
        assert changed["DestinationTemplate"] == template
        assert await boss.do(Op.GET_RULE, str(rule_id)) == changed
        await boss.do(Op.DELETE_RULE, str(rule_id))
        assert await boss.do(Op.LIST_RULES) == []
        assert "not found" in (await boss.ask(Op.GET_RULE, str(rule_id))).error
        assert "not found" in (await boss.ask(Op.DELETE_RULE, str(rule_id))).error
        again = await boss.do(Op.CREATE_RULE, data=rule())
        assert again["ID"] > rule_id, "ids are not given again"


async def test_both_casings_are_understood(core: Core) -> None:
    given = {
        "RuleName": "go",
        "sourceevent": "made",
        "SOURCE_AGENT": "maker",
        "Workspace": "w",
        "DestinationTemplate": "agent: hand",
        "Colour": "red",
    }
    async with client(core) as boss:
        answer = await boss.ask(Op.CREATE_RULE, data=given)
        assert answer.success, answer.error
        assert "Colour" in answer.message
        [made] = await boss.do(Op.LIST_RULES)
        assert (made["RuleName"], made["SourceAgent"], made["SourceEvent"]) == ("go", "maker", "made")
        again = await boss.ask(Op.UPDATE_RULE, data=made)
        assert again.message == f"rule {made['ID']}", "an answer can be sent back, with the id in it"


async def test_an_equal_rule_is_the_same_one(core: Core) -> None:
    async with client(core) as boss, client(core, "other") as other:
        made = await boss.do(Op.CREATE_RULE, data=rule())
        assert await boss.do(Op.CREATE_RULE, data=rule()) == made
        assert "named 'first' already" in (await boss.ask(Op.CREATE_RULE, data=rule(priority=1))).error
        assert "named 'first' already" in (await other.ask(Op.CREATE_RULE, data=rule())).error
        second = await boss.do(Op.CREATE_RULE, data=rule("second"))
        refused = await boss.ask(Op.UPDATE_RULE, str(second["ID"]), data=rule("first"))
        assert f"rule {made['ID']}" in refused.error
        await other.do(Op.UPDATE_RULE, str(made["ID"]), data=rule())
        assert (await boss.do(Op.GET_RULE, str(made["ID"])))["Owner"] == "ag::w::other::1"


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({}, "rule_name"),
        (rule(source_event=""), "source_event"),
        (rule(destination_template=""), "destination_template"),
        (rule(trigger_condition="input.n >"), "trigger_condition"),
        (rule(trigger_condition="1 + 1"), "true or false"),
        (rule(destination_template="{{.input"), "destination_template"),
        (rule(destination_template={"type": "fly"}), "type"),
        (rule(workspace="a b"), "workspace"),
        (rule(priority="high"), "priority"),
        ([], "JSON object"),
    ],
)
async def test_wrong_rules_are_refused_with_the_place(core: Core, given: Any, error: str) -> None:
    async with client(core) as boss:
        answer = await boss.ask(Op.CREATE_RULE, data=given)
        assert error in answer.error
        assert await boss.do(Op.LIST_RULES) == []


@pytest.mark.parametrize("wrong", ["", "first", "0", "-1", "1.5", "9" * 30, "\u0661"])
async def test_an_id_is_a_positive_integer(core: Core, wrong: str) -> None:
    async with client(core) as boss:
        assert "positive integer" in (await boss.ask(Op.GET_RULE, wrong)).error


async def test_rules_are_those_of_a_workspace_and_of_all(core: Core) -> None:
    let_agents(core, AccessLevel.MANAGE)
    async with client(core) as boss:
        await boss.do(Op.CREATE_RULE, data=rule("here"))
        await boss.do(Op.CREATE_RULE, data=rule("there", workspace="x"))
        everywhere = rule("everywhere")
        del everywhere["workspace"]
        made = await boss.do(Op.CREATE_RULE, data=everywhere)
        assert made["Workspace"] == "*"
        assert {one["RuleName"] for one in await boss.do(Op.LIST_RULES)} == {"here", "everywhere"}
        assert {one["RuleName"] for one in await boss.do(Op.LIST_RULES, workspace="x")} == {"there", "everywhere"}
        assert {one["RuleName"] for one in await boss.do(Op.LIST_RULES, workspace="*")} == {"everywhere"}


async def test_rules_of_others_are_hidden(core: Core) -> None:
    let_only(core, boss="w", spy="x")
    async with client(core) as boss, connect(core, agent("x", "spy", "1")) as link:
        made = str((await boss.do(Op.CREATE_RULE, data=rule()))["ID"])
        spy = Client(link)
        for op in (Op.GET_RULE, Op.UPDATE_RULE, Op.DELETE_RULE):
            answer = await spy.ask(op, made, data=rule())
            assert answer.error == f"rule {made} not found"
        assert "PERMISSION_DENIED" in (await spy.ask(Op.CREATE_RULE, data=rule("second"))).error
        assert "PERMISSION_DENIED" in (await spy.ask(Op.LIST_RULES, workspace="w")).error
        moved = rule()
        moved["workspace"] = "x"
        assert "PERMISSION_DENIED" in (await boss.ask(Op.UPDATE_RULE, made, data=moved)).error


async def test_ids_of_old_deletions_are_forgotten(core: Core, monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    monkeypatch.setattr(rule_rows, "LATEST_DELETED", 2)
    async with client(core) as boss:
        for number in range(5):
            made = await boss.do(Op.CREATE_RULE, data=rule(f"r{number}"))
            await boss.do(Op.DELETE_RULE, str(made["ID"]))
    assert len(world.databases["tasks"].query("SELECT id FROM workflow_rules")) == 2
    [[floor]] = world.databases["tasks"].query("SELECT floor FROM workflow_changes WHERE kind = 'rule'")
    assert floor == 6


async def test_rules_are_applied_with_what_belongs_to_them(core: Core, world: World) -> None:
    flow = {"name": "flow", "workspace": "w", "steps": [{"id": "say", "output": {"$expr": "1"}}]}

    async def apply(*documents: Any, **more: Any) -> list[str]:
        answer = await boss.do(107, data={"documents": documents, **more})
        return [f"{one['kind']} {one['workspace']}/{one['id']} {one['change']}" for one in answer["applied"]]

    async with client(core) as boss:
        assert await apply(flow, rule(), dry_run=True) == ["workflow w/flow created", "rule w/first created"]
        assert await boss.do(Op.LIST_RULES) == []
        assert await apply(flow, rule()) == ["workflow w/flow created", "rule w/first created"]
        assert await apply(flow, rule()) == ["workflow w/flow unchanged", "rule w/first unchanged"]
        [made] = await boss.do(Op.LIST_RULES)
        assert await apply(rule(active=False)) == ["rule w/first updated"]
        [changed] = await boss.do(Op.LIST_RULES)
        assert (changed["ID"], changed["Active"]) == (made["ID"], False)

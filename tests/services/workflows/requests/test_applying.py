"""Documents that are applied: all or none, by content, on both engines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from aether_trio.gateway.core import Core
from tests.helpers.core import World, deadlock_is_an_error
from tests.services.workflows.helpers import Client, Op, client

APPLY = 107


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    """A core whose workflow engine is the embedded one."""
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as opened:
        yield opened


def flow(name: str, *steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a workflow of these steps, or of one that computes 1."""
    return {"id": name, "steps": list(steps) or [{"id": "one", "output": 1}], **more}


async def apply(boss: Client, *documents: Any, **more: Any) -> tuple[list[tuple[str, int, str]], list[str]]:
    """Apply documents to w; return (id, version, change) of each, and warnings."""
    found = await boss.do(APPLY, data={"documents": list(documents), **more}, workspace="w")
    assert {(one["kind"], one["workspace"]) for one in found["applied"]} == {("workflow", "w")}
    return [(one["id"], one["version"], one["change"]) for one in found["applied"]], found["warnings"]


async def refused(boss: Client, *documents: Any) -> list[str]:
    answer = await boss.ask(APPLY, data={"documents": list(documents)}, workspace="w")
    assert not answer.success
    return answer.error.splitlines()


async def names(boss: Client) -> list[tuple[str, int]]:
    return [(one["ID"], one["Version"]) for one in await boss.do(Op.LIST_WORKFLOWS, workspace="w")]


async def test_a_new_version_is_one_of_new_content(core: Core) -> None:
    async with client(core) as boss:
        assert await apply(boss, flow("a"), flow("b")) == ([("a", 1, "created"), ("b", 1, "created")], [])
        assert await apply(boss, flow("a"), flow("b", description="x")) == (
            [("a", 1, "unchanged"), ("b", 2, "updated")], []
        )  # fmt: skip
        assert await names(boss) == [("a", 1), ("b", 2)]
        assert await apply(boss, flow("b")) == ([("b", 3, "updated")], [])


async def test_a_dry_run_changes_nothing(core: Core) -> None:
    async with client(core) as boss:
        assert await apply(boss, flow("a"), dry_run=True) == ([("a", 1, "created")], [])
        assert await names(boss) == []
        await apply(boss, flow("a"))
        assert await apply(boss, flow("a", description="x"), dry_run=True) == ([("a", 2, "updated")], [])
        assert await names(boss) == [("a", 1)]


async def test_all_documents_are_applied_or_none(core: Core) -> None:
    async with client(core) as boss:
        await apply(boss, flow("a", version=3))
        problems = await refused(boss, flow("new"), flow("a", version=3, description="x"))
        assert problems == [
            "workflow a: version 3 exists with other content: leave version out, or give one above 3"
        ]  # fmt: skip
        assert await names(boss) == [("a", 3)]


async def test_all_errors_of_all_documents_are_told_at_once(core: Core) -> None:
    async with client(core) as boss:
        late = {"id": "two", "output": 2, "depends_on": ["on"]}
        problems = await refused(
            boss,
            flow("a", {"id": "one", "output": 1}, late),
            flow("b", retires=1),
            flow("c"),
            flow("c"),
            {"id": "d"},
            {"name": "e", "states": {}, "initial_state": "x"},
            7,
        )
        told = "\n".join(problems)
        assert "document 1 (workflow 'a'): /steps/1/depends_on/0: step 'two' depends on 'on'" in told
        assert "did you mean 'one'?" in told
        assert "document 2 (workflow 'b'): /: " in told or "document 2 (workflow 'b'): /retires: " in told
        assert "document 4 (workflow 'c'): document 3 is the same workflow" in problems
        assert "document 5: it is not clear what this is; write kind: and one of workflow" in told
        assert "document 6 (machine 'e'): /states: " in told
        assert "document 7: it is not clear what this is" in told
        assert await names(boss) == []


async def test_a_deleted_workflow_is_applied_again(core: Core) -> None:
    async with client(core) as boss:
        await apply(boss, flow("a"), flow("b", version=7))
        for name in ("a", "b"):
            await boss.do(Op.DELETE_WORKFLOW, name, workspace="w")
        assert await names(boss) == []
        assert await apply(boss, flow("a"), flow("b", version=7)) == (
            [("a", 2, "created"), ("b", 7, "created")], []
        )  # fmt: skip
        assert await names(boss) == [("a", 2), ("b", 7)]


async def test_a_version_below_the_newest_is_warned_of(core: Core) -> None:
    async with client(core) as boss:
        await apply(boss, flow("a", version=7))
        applied, warnings = await apply(boss, flow("a", version=6, description="x"))
        assert applied == [("a", 6, "updated")]
        assert warnings == ["workflow a: version 6 is not run, as version 7 is newer"]


async def test_a_call_of_a_workflow_that_is_not_there_is_warned_of(core: Core) -> None:
    async with client(core) as boss:
        outer = flow("outer", {"id": "in", "workflow": "inner"})
        _, warnings = await apply(boss, outer)
        assert warnings == ["workflow outer: step in calls workflow inner, which is not in workspace w"]
        nightly = {"id": "nightly", "schedule_type": "interval", "schedule_expr": "1h"}
        warnings = (await boss.do(APPLY, data={"documents": [nightly | {"workflow_id": "inner"}]}, workspace="w"))[
            "warnings"
        ]
        assert warnings == ["schedule nightly starts workflow inner, which is not in workspace w"]
        warnings = (await boss.do(APPLY, data={"documents": [nightly | {"workflow_id": "outer"}]}, workspace="w"))[
            "warnings"
        ]
        assert warnings == []
        _, warnings = await apply(boss, outer, flow("inner"))
        assert warnings == []


async def test_another_workspace_needs_its_access(world: World) -> None:
    rules = {"default": "closed"}
    opened = world.open(workflow={"engine": "embedded"}, access=rules)
    async with deadlock_is_an_error(), opened as core, client(core) as boss:
        assert await apply(boss, flow("a")) == ([("a", 1, "created")], [])
        answer = await boss.ask(APPLY, data={"documents": [flow("a", workspace="other")]})
        assert answer.error.startswith("ERR_PERMISSION_DENIED")
        elsewhere = {"id": "x", "action": {"agent": "b", "tool_name": "t", "workspace": "other"}}
        answer = await boss.ask(APPLY, data={"documents": [flow("a", elsewhere)]}, workspace="w")
        assert answer.error.startswith("ERR_PERMISSION_DENIED")


@pytest.mark.parametrize(
    "data", [{}, {"documents": {}}, {"documents": [], "dry": True}, {"documents": [], "dry_run": 1}]
)
async def test_what_is_no_list_of_documents_is_refused(core: Core, data: Any) -> None:
    async with client(core) as boss:
        assert "DOCUMENT" in (await boss.ask(APPLY, data=data)).error

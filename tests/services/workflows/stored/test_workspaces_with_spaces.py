"""Functions in workspaces with spaces, where identifiers are not strict."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aether_trio.gateway.core import Core
from aether_trio.model.workflows.keys import place_key
from aether_trio.services.workflows.stored.sources import WantedEvents
from tests.helpers.core import World, agent, connect, deadlock_is_an_error
from tests.services.workflows.helpers import Client, Op

REGISTER = 120
WHERE = "my team"


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    """A core whose identifiers are not strict."""
    changes = {"workflow": {"engine": "embedded"}, "gateway": {"strict_identifier_charset": False}}
    async with deadlock_is_an_error(), world.open(**changes) as opened:
        yield opened


async def test_lists_go_on_behind_a_function(core: Core) -> None:
    async with connect(core, agent(WHERE, "boss", "1")) as link:
        boss = Client(link)
        for name in ("a", "b", "c"):
            await boss.do(REGISTER, name, data={})
        names, place = [], ""
        for _ in range(3):
            answer = await boss.ask(Op.LIST_WORKFLOWS, data={"limit": 1, **({"after": place} if place else {})})
            assert answer.success, answer.error
            names.append(answer.data)
            place = answer.message.partition("after ")[2]
        assert [name for name in "abc" for one in names if f'"ID":"{name}"'.encode() in one] == ["a", "b", "c"]
        assert place == ""


async def test_queued_runs_of_a_deleted_function_end(core: Core) -> None:
    async with connect(core, agent(WHERE, "boss", "1")) as link:
        boss = Client(link)
        await boss.do(REGISTER, "one", data={"max_executions": 1})
        first, second = await boss.run(name="one"), await boss.run(name="one")
        found = await boss.execution(second)
        assert found["execution"]["Status"] == "queued"
        await boss.do(Op.DELETE_WORKFLOW, "one")
        found = await boss.ended(second)
        assert found["execution"]["Status"] in ("failed", "cancelled")
        assert "was deactivated before it began" in found["execution"]["ErrorMessage"]
        assert first != second


def test_events_are_wanted_in_a_workspace_with_spaces() -> None:
    wanted = WantedEvents()
    wanted.changed([(place_key(WHERE, "task.completed"), True), (place_key("w", "kv.put:a b"), True)], True)
    assert wanted.among(["task.completed", "team task.completed"], WHERE) == ("task.completed",)
    assert wanted.among(["task.completed", "team task.completed"], "my") == ()
    assert wanted.keys("w", "a b") is not None
    wanted.changed([(place_key(WHERE, "task.completed"), None)], False)
    assert wanted.among(["task.completed"], WHERE) == ()

"""Dead letters of workflows act again, each once, on both storage engines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from aether_trio.gateway.core import Core
from aether_trio.model.access import AccessLevel
from aether_trio.services.tasks.transaction import retention
from tests.helpers.core import World, deadlock_is_an_error
from tests.services.workflows.helpers import Client, Op, all_taken, client, let_agents

REDRIVE = 116


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    """A core whose workflow engine is the embedded one."""
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded", "dead_letters": 100}) as opened:
        yield opened


def rule(name: str, payload: str) -> dict[str, Any]:
    destination = {"type": "create_task", "task_type": name, "target_implementation": "absent", "payload": payload}
    return {"rule_name": name, "source_event": "happened", "workspace": "w", "destination_template": destination}


async def buried(core: Core, world: World, boss: Client, count: int) -> dict[str, Any]:
    """Make dead letters of two rules, then mend one of them; return that."""
    broken = "{{.input.customer.name}}"
    made = await boss.do(Op.CREATE_RULE, data=rule("one", broken), workspace="w")
    await boss.do(Op.CREATE_RULE, data=rule("two", broken), workspace="w")
    for n in range(count):
        await boss.emit("happened", data={"n": n})
    await all_taken(core, world)
    mended = {**rule("one", "{{.input.n}}"), "ID": made["ID"]}
    await boss.do(Op.UPDATE_RULE, str(made["ID"]), data=mended)
    found: dict[str, Any] = made
    return found


async def test_the_letters_of_a_rule_act_once(core: Core, world: World) -> None:
    async with client(core) as boss:
        await buried(core, world, boss, 60)
        asked, acted, pages = {"rule": "one"}, 0, 0
        while True:
            page = await boss.do(REDRIVE, data=asked, workspace="w")
            acted, pages = acted + page["acted"], pages + 1
            assert page["refused"] == []
            if "after" not in page:
                break
            asked |= {name: page[name] for name in ("after", "until")}
        assert (acted, pages) == (60, 3)
        again = await boss.do(REDRIVE, data={"rule": "one"}, workspace="w")
        assert (again["acted"], again["refused"]) == (0, [])
        tasks = world.databases["tasks"].query("SELECT COUNT(*) FROM tasks WHERE task_type = 'one'")
        assert tasks[0][0] == 60


async def test_what_is_refused_again_stays_dead(core: Core, world: World) -> None:
    async with client(core) as boss:
        await buried(core, world, boss, 3)
        found = await boss.do(REDRIVE, data={"all": True}, workspace="w")
        assert found["acted"] == 3
        assert len(found["refused"]) == 3
        assert "read of nil" in found["refused"][0]["reason"]
        later = await boss.do(REDRIVE, data={"rule": "two", "since": "2999-01-01T00:00:00Z"}, workspace="w")
        assert (later["acted"], later["refused"]) == (0, [])


async def test_bad_requests_say_what_to_do(core: Core) -> None:
    async with client(core) as boss:
        for data, text in (
            ({}, "all"),
            ({"rule": "a", "workflow": "b"}, "say which"),
            ({"rule": "a", "since": "yesterday"}, "since is a moment"),
            ({"rules": "a"}, "unknown keys"),
            ({"rule": 1}, "rule is a text"),
        ):
            answer = await boss.ask(REDRIVE, data=data, workspace="w")
            assert text in answer.error, data
        let_agents(core, AccessLevel.READ)
        answer = await boss.ask(REDRIVE, data={"all": True}, workspace="w")
        assert not answer.success


async def test_open_letters_have_a_bound(core: Core, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with client(core) as boss:
        await buried(core, world, boss, 60)
        count = "SELECT COUNT(*) FROM task_dead_letters WHERE resolved_ms = 0"
        assert world.databases["tasks"].query(count)[0][0] == 120
        newest = "SELECT task_id FROM task_dead_letters ORDER BY buried_ms DESC, task_id DESC LIMIT 100"
        kept = world.databases["tasks"].query(newest)
        monkeypatch.setattr(retention, "PAGE", 7)
        await core.tasks.engine.forget_workflow_letters()
        await core.tasks.engine.forget_workflow_letters()
        assert world.databases["tasks"].query(count)[0][0] == 100
        assert world.databases["tasks"].query(newest) == kept

"""Decisions on resources of a registered type name its owner in the audit."""

from __future__ import annotations

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.services.agents.resource_owners import REFRESH_S
from tests.helpers.core import World, agent, connect, orchestrator
from tests.services.access.acl import READ, may
from tests.services.agents.ops import Op, info, operate
from tests.services.audit.test_trail import rows


@pytest.mark.parametrize(
    ("resource_type", "owner"),
    [
        ("invoices", ("books", "invoices")),
        ("invoices/us", ("books", "invoices")),
        ("invoices/eu", ("tax", "invoices/eu")),
        ("invoices/eu/paid", ("tax", "invoices/eu")),
        ("invoices/europe", ("books", "invoices")),
        ("invoicesxyz/eu", None),
        ("workspace", None),
    ],
)
async def test_the_longest_prefix_at_a_slash_owns(
    core: Core, world: World, resource_type: str, owner: tuple[str, str] | None
) -> None:
    async with connect(core, orchestrator("o", "1")) as admin, connect(core, agent("w", "a", "1")) as peer:
        for name, prefix in (("books", "invoices/"), ("tax", "invoices/eu")):
            assert (await operate(admin, Op.REGISTER, agent=info(name, prefix))).success
        await trio.sleep(1)
        await may(peer, (resource_type, "7"), READ)
    [row] = await rows(core, world, event_type="authorization", operation="x")
    found = row["metadata"]
    assert (found.get("owning_agent"), found.get("owning_agent_prefix")) == (owner or (None, None))


async def test_owners_follow_registrations(core: Core, world: World) -> None:
    names: list[str | None] = []

    async def look(resource_id: str) -> None:
        await trio.sleep(REFRESH_S + 1)
        async with connect(core, agent("w", "a", "1")) as peer:
            await may(peer, ("invoices/eu", resource_id), READ)
        [row] = await rows(core, world, operation="x", resource_id=resource_id)
        names.append(row["metadata"].get("owning_agent"))

    async with connect(core, orchestrator("o", "1")) as admin:
        assert (await operate(admin, Op.REGISTER, agent=info("tax", "invoices/eu"))).success
        await look("1")
        assert (await operate(admin, Op.UPDATE, agent=info("tax", "orders"))).success
        await look("2")
        assert (await operate(admin, Op.REGISTER, agent=info("books", "invoices"))).success
        await look("3")
        assert (await operate(admin, Op.DELETE, implementation="books")).success
        await look("4")
        queue = world.databases["tasks"]
        queue.failing = True
        assert not (await operate(admin, Op.REGISTER, agent=info("late", "invoices"))).success
        await trio.sleep(5)
        queue.failing = False
        assert (await operate(admin, Op.REGISTER, agent=info("late", "invoices"))).success
        await look("5")
    assert names == ["tax", None, "books", None, "late"]

"""Orchestrators on two nodes of one database."""

from __future__ import annotations

import trio

from aether_trio.core import open_core
from tests.helpers.core import connect, settings_for_tests
from tests.helpers.engines import PostgresEngine
from tests.services.agents.ops import Op, operate, register, starter

LONG_S = 60.0


async def test_they_take_turns_wherever_they_are_connected(postgres_engine: PostgresEngine) -> None:
    settings = settings_for_tests(storage={"database": postgres_engine.server.dsn(), "schema": postgres_engine.schema})
    with trio.fail_after(LONG_S):
        async with open_core(settings) as one, open_core(settings) as two, connect(one, starter("1", "p")) as first:
            await register(first, "echo")
            async with connect(two, starter("2", "p")) as second:
                assert [info.implementation for info in (await operate(second, Op.LIST)).agents] == ["echo"]
                for core in (one, two):
                    picked = [await core.roster.pick("p") for _ in range(2)]
                    assert {one.orchestrator for one in picked if one} == {"orc::o::1", "orc::o::2"}
                listed = await operate(first, Op.LIST_ORCHESTRATORS)
                assert [one.orchestrator_id for one in listed.orchestrators] == ["orc::o::1", "orc::o::2"]
                second.cut()
                while (await operate(first, Op.LIST_ORCHESTRATORS)).total_count > 1:
                    await trio.sleep(0.05)
            picked = [await two.roster.pick("p") for _ in range(2)]
            assert [one.orchestrator for one in picked if one] == ["orc::o::1"] * 2

"""The registry of agent implementations: every operation, and its refusals."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.services.agents import registry as agent_store
from aether_trio.services.agents.registry import AgentRegistry
from aether_trio.session.session import CUT_GRACE_S
from aether_trio.storage.base import Program, StorageUnavailable
from aether_trio.storage.sqlite.database import open_sqlite
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.clocks import ManualClock
from tests.helpers.core import (
    World,
    agent,
    connect,
    deadlock_is_an_error,
    orchestrator,
    pump,
    service,
    user,
    workflow_engine,
)
from tests.services.agents.ops import Op, info, operate, register

ADMIN = orchestrator("o", "admin")


@pytest.fixture
async def peer(core: Core) -> AsyncIterator[MemoryLink]:
    async with connect(core, ADMIN) as opened:
        yield opened


async def listed(peer: Any, **filters: Any) -> list[str]:
    answer = await operate(peer, Op.LIST, filter=pb.AgentFilter(**filters))
    assert answer.success
    return [one.implementation for one in answer.agents]


async def test_what_was_registered_is_there_in_full(core: Core) -> None:
    wanted = info(
        "echo",
        "docs/",
        description="says it again",
        launch_params={"profile": "process", "command": "python echo.py"},
        capabilities={"streams": True, "sleeps": False},
        extensions=["urn:x"],
    )
    async with connect(core, ADMIN) as peer:
        written = await operate(peer, Op.REGISTER, agent=wanted)
        assert written.success
        found = (await operate(peer, Op.GET, implementation="echo")).agent
    assert found == written.agent
    assert found.orchestrator_profile == "process"
    assert found.registered_at == found.updated_at == core.clock.now_ms() // 1000
    for field in ("orchestrator_profile", "registered_at", "updated_at"):
        found.ClearField(field)
    assert found == wanted


async def test_it_outlives_the_gateway(world: World) -> None:
    async with world.open() as core, connect(core, ADMIN) as peer:
        await register(peer, "echo")
    async with world.open() as core, connect(core, ADMIN) as peer:
        assert await listed(peer) == ["echo"]


@pytest.mark.parametrize("op", [Op.REGISTER, Op.UPDATE])
async def test_both_ways_to_write_replace_all_but_the_first_date(op: Op.OpType.ValueType, peer: MemoryLink) -> None:
    await register(peer, "echo", command="x")
    first = (await operate(peer, Op.GET, implementation="echo")).agent
    await trio.sleep(5)
    again = info("echo", launch_params={"profile": "docker"}, description="new")
    written = (await operate(peer, op, implementation="echo", agent=again)).agent
    assert (await operate(peer, Op.GET, implementation="echo")).agent == written
    assert dict(written.launch_params) == {"profile": "docker"}
    assert (written.orchestrator_profile, written.description) == ("docker", "new")
    assert written.registered_at == first.registered_at
    assert written.updated_at == first.updated_at + 5


async def test_update_goes_by_the_operations_implementation(peer: MemoryLink) -> None:
    assert (await operate(peer, Op.UPDATE, implementation="a", agent=info("b"))).agent.implementation == "a"
    assert await listed(peer) == ["a"]


async def test_a_profile_may_be_named_outside_of_the_launch_parameters(peer: MemoryLink) -> None:
    named = (await operate(peer, Op.REGISTER, agent=info("a", orchestrator_profile="process"))).agent
    assert dict(named.launch_params) == {"profile": "process"}
    both = info("b", orchestrator_profile="ignored", launch_params={"profile": "docker"})
    assert (await operate(peer, Op.REGISTER, agent=both)).agent.orchestrator_profile == "docker"
    without = await operate(peer, Op.REGISTER, agent=info("c"))
    assert without.success
    assert without.agent.orchestrator_profile == ""


async def test_lists_are_in_order_filtered_and_in_pages(peer: MemoryLink) -> None:
    for name in ("d", "a", "c", "b"):
        await register(peer, name, "process" if name < "c" else "docker")
    assert await listed(peer) == ["a", "b", "c", "d"]
    assert await listed(peer, orchestrator_profile="docker") == ["c", "d"]
    assert await listed(peer, orchestrator_profile="unknown") == []
    page = await operate(peer, Op.LIST, filter=pb.AgentFilter(limit=2, offset=1))
    assert ([one.implementation for one in page.agents], page.total_count) == (["b", "c"], 4)
    assert (await operate(peer, Op.LIST, filter=pb.AgentFilter(orchestrator_profile="docker"))).total_count == 2


async def test_a_list_fits_into_a_message(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_store, "MAX_PAGE_BYTES", 10_000)
    async with connect(core, ADMIN) as peer:
        for number in range(5):
            await operate(peer, Op.REGISTER, agent=info(f"a{number}", description="x" * 3000))
        page = await operate(peer, Op.LIST)
        assert ([one.implementation for one in page.agents], page.total_count) == (["a0", "a1"], 5)
        rest = await operate(peer, Op.LIST, filter=pb.AgentFilter(offset=2))
        assert [one.implementation for one in rest.agents] == ["a2", "a3"]


async def test_what_is_not_there(peer: MemoryLink) -> None:
    for op in (Op.GET, Op.DELETE):
        answer = await operate(peer, op, implementation="unknown")
        assert not answer.success
        assert "'unknown' is registered" in answer.error
    await register(peer, "echo")
    assert (await operate(peer, Op.DELETE, implementation="echo")).success
    assert await listed(peer) == []


async def test_a_version_is_found_by_its_name_unless_it_has_a_registration_of_its_own(peer: MemoryLink) -> None:
    await register(peer, "echo", command="any")
    assert (await operate(peer, Op.GET, implementation="echo:v2")).agent.launch_params["command"] == "any"
    await register(peer, "echo:v2", command="second")
    assert (await operate(peer, Op.GET, implementation="echo:v2")).agent.launch_params["command"] == "second"
    assert (await operate(peer, Op.GET, implementation="echo:v3")).agent.implementation == "echo"
    assert not (await operate(peer, Op.GET, implementation="echo:v3:x")).success


async def test_a_resource_prefix_has_one_owner(peer: MemoryLink) -> None:
    assert (await operate(peer, Op.REGISTER, agent=info("a", "docs", "mail/"))).success
    for clash in (info("b", "docs"), info("b", "docs/"), info("b", "x", "mail"), info("b", "y", "y/")):
        answer = await operate(peer, Op.REGISTER, agent=clash)
        assert not answer.success
        assert answer.error.startswith("ERR_PREFIX_CONFLICT: ")
    assert await listed(peer) == ["a"]
    # Below another's prefix is somewhere else; what its owner gives up is free, and what is its
    # own it may name again.
    assert (await operate(peer, Op.REGISTER, agent=info("b", "docs/private", "x"))).success
    assert (await operate(peer, Op.UPDATE, implementation="a", agent=info("a", "mail"))).success
    assert (await operate(peer, Op.REGISTER, agent=info("c", "docs"))).success
    assert (await operate(peer, Op.DELETE, implementation="a")).success
    assert (await operate(peer, Op.REGISTER, agent=info("c", "docs", "mail"))).success


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (info("a::b"), '"::"'),
        (info(""), "implementation"),
        (info("a", ""), "resource_type_prefix"),
        (info("a", "x" * 257), "257 bytes"),
        (info("a", launch_params={"profile": "x" * 257}), "257 bytes"),
        (info("a", description="x" * 70_000), "bytes"),
    ],
)
async def test_what_is_no_registration(wrong: pb.AgentRegistrationInfo, why: str, peer: MemoryLink) -> None:
    answer = await operate(peer, Op.REGISTER, agent=wrong)
    assert not answer.success
    assert why in answer.error
    assert await listed(peer) == []


async def test_a_registration_has_to_be_given(peer: MemoryLink) -> None:
    assert "agent is missing" in (await operate(peer, Op.REGISTER, implementation="a")).error
    assert "unknown agent operation 77" in (await operate(peer, 77)).error  # type: ignore[arg-type]


READS = {Op.LIST, Op.GET, Op.LIST_ORCHESTRATORS}


@pytest.mark.parametrize("hello", [agent("w", "a", "1"), user("u", "1"), service("s", "1")])
async def test_others_than_the_system_may_not_and_hear_so_at_once(core: Core, hello: pb.UpstreamMessage) -> None:
    may_read = hello.init.HasField("user")  # by a rule of the open default
    async with connect(core, hello) as peer:
        for op in set(Op.OpType.values()) - (READS if may_read else set()):
            answer = await operate(peer, op, implementation="x", agent=info("x"))
            assert not answer.success
            assert "admin/agents" in answer.error
            error = (await peer.next("error")).error
            assert (error.code, error.request_id) == ("ERR_PERMISSION_DENIED", "r")
        if may_read:
            assert await listed(peer) == []
            assert "no agent implementation 'x'" in (await operate(peer, Op.GET, implementation="x")).error
            assert (await operate(peer, Op.LIST_ORCHESTRATORS)).success
    async with connect(core, workflow_engine()) as peer:
        assert await listed(peer) == []


async def test_who_may_only_read_sees_no_parameters_of_starts(core: Core) -> None:
    async with connect(core, ADMIN) as admin, connect(core, user("u", "1")) as reader:
        await register(admin, "echo", command="run --password secret")
        for peer, names in ((admin, {"profile", "command"}), (reader, {"profile"})):
            [in_list] = (await operate(peer, Op.LIST)).agents
            alone = (await operate(peer, Op.GET, implementation="echo")).agent
            for one in (in_list, alone):
                assert (one.implementation, set(one.launch_params)) == ("echo", names)
            assert not (await operate(peer, Op.GET, implementation="none")).HasField("agent")


async def test_a_storage_that_is_away_is_said(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: object) -> None:
        raise StorageUnavailable("no answer")

    monkeypatch.setattr(core.agents, "page", away)
    async with connect(core, ADMIN) as peer:
        answer = await operate(peer, Op.LIST)
        assert not answer.success
        assert "no answer" in answer.error


@pytest.mark.parametrize("op", [Op.REGISTER, Op.DELETE])
async def test_a_change_counts_though_its_client_is_gone_before_the_answer(
    world: World, op: pb.AgentOperation.OpType.ValueType
) -> None:
    async with deadlock_is_an_error(), world.open() as core:
        queue = core.autostarter._queue
        async with connect(core, ADMIN) as peer:
            world.databases["tasks"].after_write.close()
            before = queue.registrations
            asked = pb.AgentOperation(op=op, implementation="echo", agent=info("echo"))
            peer.send(pb.UpstreamMessage(agent_op=asked))
            await world.databases["tasks"].after_write.arrival()
            peer.cut()
            await trio.sleep(CUT_GRACE_S * 2)
            world.databases["tasks"].after_write.open()
            await pump()
            assert queue.registrations == before + 1


async def test_a_change_counts_once_it_is_written_though_its_client_has_left_before(tmp_path: Path) -> None:
    """The names that are read before the commit are taken for the latest ones."""
    path, free = tmp_path / "tasks.db", threading.Event()
    found: list[list[tuple[str]]] = []

    def look() -> None:
        with closing(sqlite3.connect(path)) as other:
            found.append(other.execute("SELECT implementation FROM agents").fetchall())

    def slow() -> Program[None]:
        free.wait()
        yield from ()

    async with open_sqlite(path, name="tasks") as database, trio.open_nursery() as nursery:
        registry = AgentRegistry(database, ManualClock(), look)
        nursery.start_soon(database.run, slow)
        await trio.sleep(0.05)
        with trio.move_on_after(0.05) as client:
            await registry.put(info("echo"), "echo")
        free.set()
        assert client.cancelled_caught
        with trio.fail_after(300):
            while [("echo",)] not in found:
                await trio.sleep(0.01)

"""Orchestrators that say which agents they have: who is asked for which start."""

from __future__ import annotations

import json

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.errors import Status
from aether_trio.services.tasks.transaction.startup import WAITING_PAGE
from aether_trio.session.init_connection import AGENTS, MAX_AGENTS
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, connect, deadlock_is_an_error, message_to
from tests.services.agents.cast import assignment, fail, launch, nothing_more, until
from tests.services.agents.ops import Op, lister, operate, register, starter


def says(*agents: str) -> pb.UpstreamMessage:
    """Return what an orchestrator sends when it has other agents."""
    return pb.UpstreamMessage(active_extensions=[AGENTS, json.dumps(agents)])


async def launched(peer: MemoryLink, implementation: str, specifier: str = "1") -> pb.AgentResponse:
    params = pb.AgentLaunchParams(workspace="w", specifier=specifier)
    return await operate(peer, Op.LAUNCH, implementation=implementation, launch_params=params)


async def test_each_is_asked_only_for_the_agents_that_it_has(core: Core) -> None:
    async with (
        connect(core, lister("1", "echo")) as first,
        connect(core, lister("2", "clerk")) as second,
        connect(core, starter("3", "other")) as asker,
    ):
        for name in ("echo", "clerk"):
            await register(asker, name)
        for number in range(20):
            for name in ("echo", "clerk"):
                assert (await launched(asker, name, str(number))).success
        for peer, name in ((first, "echo"), (second, "clerk")):
            assert [(await assignment(peer)).target_implementation for _ in range(20)] == [name] * 20
        await nothing_more(first, second)


async def test_two_that_have_the_agent_take_turns_beside_one_that_says_nothing(core: Core) -> None:
    async with (
        connect(core, lister("1", "echo", "other")) as first,
        connect(core, lister("2", "echo")) as second,
        connect(core, starter("3", "process")) as silent,
        connect(core, lister("4")) as none,
        connect(core, starter("5", "other")) as asker,
    ):
        await register(asker, "echo")
        for specifier in "abcdef":
            await launch(asker, specifier)
        for peer in (first, second, silent):
            assert len([await assignment(peer) for _ in range(2)]) == 2
        await nothing_more(first, second, silent, none)


@pytest.mark.parametrize("name", ["echo:2", "echo"])
async def test_a_version_is_started_by_one_that_has_the_agent_without_one(core: Core, name: str) -> None:
    async with connect(core, lister("1", "clerk")) as other, connect(core, lister("2", name)) as it:
        await register(it, "echo")
        assert (await launched(it, "echo:2")).success
        assert (await assignment(it)).target_implementation == "echo:2"
        await nothing_more(other)


async def test_a_start_waits_for_the_agent_and_says_so(core: Core) -> None:
    async with connect(core, lister("1", "clerk")) as first, connect(core, agent("w", "asker", "1")) as asker:
        await register(first, "echo")
        answer = await launched(first, "echo")
        text = "no connected orchestrator of the profile process has the agent echo; the start waits for one"
        assert (answer.error, answer.launch_result.message) == ("", text)
        asker.send(message_to("ag::w::echo::2", b"one"))
        await until(core, "pending", "pending")
        await nothing_more(first)
        async with connect(core, lister("2", "echo")) as second:
            assert {(await assignment(second)).specifier for _ in range(2)} == {"1", "2"}
        answer = await launched(first, "echo", "3")
        assert answer.launch_result.message == text


async def test_starts_that_wait_for_other_agents_hide_none(core: Core) -> None:
    async with connect(core, lister("1")) as first:
        for name in ("echo", "clerk"):
            await register(first, name)
        for number in range(WAITING_PAGE + 10):
            assert (await launched(first, "clerk", str(number))).success
        assert (await launched(first, "echo")).success
        async with connect(core, lister("2", "echo")) as second:
            assert (await assignment(second)).target_implementation == "echo"
            await nothing_more(second)


async def test_an_orchestrator_may_have_other_agents_later(core: Core) -> None:
    async with connect(core, lister("1", "clerk")) as first:
        for name in ("echo", "clerk"):
            await register(first, name)
        assert (await launched(first, "echo")).success
        first.send(says("echo"))
        assert (await assignment(first)).target_implementation == "echo"
        assert "has the agent clerk" in (await launched(first, "clerk")).launch_result.message


async def test_one_that_has_not_said_so_in_its_first_message_cannot_say_it_later(core: Core) -> None:
    async with connect(core, starter("1", "process")) as silent:
        await register(silent, "echo")
        silent.send(says("clerk"))
        assert (await silent.next("error")).error.code == "ERR_NOT_IMPLEMENTED"
        await launch(silent, "1")
        await assignment(silent)


@pytest.mark.parametrize(
    "said",
    ["", "{}", "[1]", '["a\\u0000"]', json.dumps(["x" * 200]), json.dumps([str(n) for n in range(MAX_AGENTS + 1)])],
)
async def test_a_malformed_list_is_refused(core: Core, said: str) -> None:
    declared = [pb.ExtensionDeclaration(uri=AGENTS, json_schema=said)]
    async with connect(core, starter("1", "process", extensions=declared), wait_ack=False) as peer:
        ended = await peer.wait_end()
        assert (ended.status, "urn:aether-trio:agents" in ended.message) == (Status.INVALID_ARGUMENT, True)
    async with connect(core, lister("1", "echo")) as first:
        first.send(pb.UpstreamMessage(active_extensions=[AGENTS, said]))
        assert (await first.next("error")).error.code == "ERR_NOT_IMPLEMENTED"
        await register(first, "echo")
        await launch(first, "1")
        await assignment(first)  # its list is what it was


async def test_one_that_refuses_is_asked_again_only_when_the_others_have_refused_too(core: Core) -> None:
    """Five that say nothing about their agents; the last of them has the agent."""
    async with trio.open_nursery() as nursery:
        peers: list[MemoryLink] = []
        ready = trio.Event()

        async def stay(specifier: str) -> None:
            async with connect(core, starter(specifier, "process")) as peer:
                peers.append(peer)
                ready.set()
                await trio.sleep_forever()

        for specifier in "12345":
            ready = trio.Event()
            nursery.start_soon(stay, specifier)
            await ready.wait()
        await register(peers[0], "echo")
        task_id = await launch(peers[0], "1")
        for peer in peers[:4]:
            assert (await assignment(peer)).task_id == task_id
            await fail(peer, task_id, "this orchestrator has no agent 'echo'")
        assert (await assignment(peers[4])).task_id == task_id
        await fail(peers[4], task_id, "no room")
        assert await until(core, "dlq") == ["no room"]
        nursery.cancel_scope.cancel()


async def test_the_list_is_forgotten_with_its_session(world: World) -> None:
    rows = "SELECT COUNT(*) FROM orchestrator_agents"
    async with deadlock_is_an_error():
        async with world.open() as core, connect(core, lister("1", "echo", "clerk")):
            while world.databases["tasks"].query(rows) != [(2,)]:
                await trio.sleep(1)
            for database in world.databases.values():
                database.failing = True
        async with world.open():
            while world.databases["tasks"].query(rows) != [(0,)]:
                await trio.sleep(1)

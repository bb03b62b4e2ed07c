"""What a gateway asks an orchestrator for, with a real gateway and real processes."""

from __future__ import annotations

import os
import signal
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from aether_trio.client import AgentClient, OrchestratorClient, TaskClient
from aether_trio.client.operations.enums import TaskStatus
from aether_trio.gateway import Gateway
from aether_trio.model.identity import Kind
from aether_trio.orchestrator import AgentSpec, AgentSupervisor, GatewayAddresses, OrchestratorLimits
from tests.client.gateways import QUICK, agent, open_test_gateway
from tests.helpers.forwarder import Forwarder
from tests.orchestrator.starts import Notes, python
from tests.orchestrator.test_process_group import is_there

LIMIT_S = 300.0
SCHEMES = ("aether", "ws")


def script(client: str, body: str) -> str:
    return f"""
import os, trio
from aether_trio.client import {client}

async def main():
    async with {client}.from_environment() as me:
{textwrap.indent(body, " " * 8)}

trio.run(main)
"""


ANSWERS = script("TaskClient", "async for message in me: await me.reply(message, me.topic); message.ack()")
WORKS = script("TaskClient", "async for task in me.work():\n    async with task: await me.send(task.creator, me.topic)")
SAYS_WHO_IT_IS = "async for message in me: await me.reply(message, str(os.getpid())); message.ack()"
TELLS = script("AgentClient", f"print(os.getpid(), flush=True)\n{SAYS_WHO_IT_IS}")
STAYS = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
LATE = """
import os, time
print(os.getpid(), flush=True)
while not os.path.exists({!r}):
    time.sleep(0.02)
""" + script("AgentClient", SAYS_WHO_IT_IS)


@asynccontextmanager
async def asked(scheme: str = "aether", **sections: Any) -> AsyncIterator[tuple[Gateway, AgentClient]]:
    with trio.fail_after(LIMIT_S):
        async with open_test_gateway(**sections) as gateway, agent(f"{scheme}://{gateway.address}", "asker") as asker:
            yield gateway, asker


@asynccontextmanager
async def started_by(
    gateway: Gateway, spec: AgentSpec, grace_s: float = LIMIT_S, *, address: str = ""
) -> AsyncIterator[Notes]:
    """An orchestrator that starts this; `address` is the gateway's for itself."""
    notes = Notes()
    around = GatewayAddresses(gateway.address, f"aether://{gateway.address}")
    made = AgentSupervisor({spec.implementation: spec}, around, notes, OrchestratorLimits(16, grace_s))
    own = f"aether://{address or gateway.address}"
    async with (
        OrchestratorClient(own, implementation="o", profiles=made.profiles, retry=QUICK) as client,
        trio.open_nursery() as nursery,
    ):
        await made.register(client)
        nursery.start_soon(made.run, client)
        yield notes
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_message_starts_a_unique_task(scheme: str) -> None:
    async with asked(scheme) as (gateway, asker), started_by(gateway, python(ANSWERS)):
        await asker.send("tu::w::echo::1", "who are you?")
        assert (await asker.receive()).text == "tu::w::echo::1"


async def test_a_task_starts_the_unique_task_that_it_is_for() -> None:
    async with asked() as (gateway, asker), started_by(gateway, python(WORKS)):
        made = await asker.tasks.create("t", target="tu::w::echo::1")
        assert (await asker.receive()).text == "tu::w::echo::1"
        while (await asker.tasks.get(made.task_id)).status is not TaskStatus.COMPLETED:
            await trio.sleep(0.05)


async def test_an_agent_that_is_started_elsewhere_does_not_live_on_where_it_was() -> None:
    """The agent hangs longer than its grace window, so another orchestrator is asked."""
    async with (
        asked(tasks={"start_grace_s": 1}) as (gateway, asker),
        started_by(gateway, python(TELLS), grace_s=0.5) as one,
        started_by(gateway, python(TELLS), grace_s=0.5) as other,
    ):
        await asker.send("ag::w::echo::1", "who are you?")
        first = int((await asker.receive()).text)
        os.kill(first, signal.SIGSTOP)
        session = gateway.core.registry.holder("ag::w::echo::1")
        assert session is not None
        session.cut()
        await asker.send("ag::w::echo::1", "and you?")
        second = int((await asker.receive()).text)
        assert (first != second, len(one.lines), len(other.lines)) == (True, 1, 1)
        while is_there(first):
            await trio.sleep(0.05)
        assert is_there(second)


async def first_word(notes: Notes) -> int:
    """The process that an orchestrator has started, which says its number."""
    while not notes.lines:
        await trio.sleep(0.02)
    return int(notes.lines[0][1])


async def test_a_start_that_was_given_to_another_orchestrator_has_no_second_process() -> None:
    """The first one has only lost its connection, and its process has not come so far."""
    async with (
        asked(tasks={"start_timeout_s": 0}) as (gateway, asker),
        started_by(gateway, python(STAYS), grace_s=0.5) as one,
    ):
        await asker.send("ag::w::echo::1", "who are you?")
        first = await first_word(one)
        [session] = [one for one in gateway.core.registry if one.identity.kind is Kind.ORCHESTRATOR]
        async with started_by(gateway, python(STAYS), grace_s=0.5) as other:
            session.cut()
            second = await first_word(other)
            while is_there(first):
                await trio.sleep(0.05)
            assert is_there(second)
        assert (len(one.lines), len(other.lines)) == (1, 1)


@pytest.mark.parametrize("comes", ["first", "second"])
async def test_of_two_processes_of_one_start_the_one_that_comes_lives_on(tmp_path: Path, comes: str) -> None:
    """Both have a valid token; one orchestrator is away when the gateway decides."""
    late = LATE.format(str(tmp_path / "now"))
    here, there = (late, STAYS) if comes == "first" else (STAYS, late)
    async with asked(tasks={"start_timeout_s": 0}) as (gateway, asker):
        with Forwarder(gateway.address) as way:
            async with started_by(gateway, python(here), grace_s=0.5, address=way.address) as one:
                await asker.send("ag::w::echo::1", "who are you?")
                first = await first_word(one)
                async with started_by(gateway, python(there), grace_s=0.5) as other:
                    way.refuse()
                    second = await first_word(other)
                    (tmp_path / "now").touch()
                    lives = int((await asker.receive()).text)
                    way.accept()
                    gone = second if comes == "first" else first
                    while is_there(gone):
                        await trio.sleep(0.05)
                    assert is_there(lives)
                    assert {lives, gone} == {first, second}


def test_a_process_is_told_which_client_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORKSPACE", "IMPLEMENTATION", "SPECIFIER", "GATEWAY"):
        monkeypatch.setenv(f"AETHER_{name}", "gw:1" if name == "GATEWAY" else "w")
    monkeypatch.setenv("AETHER_IDENTITY", "tu::w::w::w")
    with pytest.raises(LookupError, match="TaskClient"):
        AgentClient.from_environment()
    TaskClient.from_environment()
    monkeypatch.setenv("AETHER_IDENTITY", "ag::w::w::w")
    with pytest.raises(LookupError, match="AgentClient"):
        TaskClient.from_environment()
    AgentClient.from_environment()

"""What a gateway asks an orchestrator for, with a real gateway and real processes."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from aether_trio.client import AgentClient, OrchestratorClient, TaskClient
from aether_trio.client.operations.enums import TaskStatus
from aether_trio.gateway import Gateway
from aether_trio.model.identity import Kind
from aether_trio.orchestrator import AgentSpec, AgentSupervisor, GatewayAddresses, OrchestratorLimits
from aether_trio.session.session import Session
from tests.client.gateways import QUICK, agent, open_test_gateway
from tests.helpers.forwarder import Forwarder
from tests.orchestrator.starts import Notes, python
from tests.orchestrator.test_process_group import is_there

LIMIT_S = 300.0
SCHEMES = ("aether", "ws")
ANSWERS = """
import trio
from aether_trio.client import TaskClient

async def main():
    async with TaskClient.from_environment() as worker:
        async for message in worker:
            await worker.reply(message, worker.topic)
            message.ack()

trio.run(main)
"""
WORKS = """
import trio
from aether_trio.client import TaskClient

async def main():
    async with TaskClient.from_environment() as worker:
        async for task in worker.work():
            async with task:
                await worker.send(task.creator, worker.topic)

trio.run(main)
"""

TELLS = """
import os, trio
from aether_trio.client import AgentClient

async def main():
    async with AgentClient.from_environment() as me:
        print(os.getpid(), flush=True)
        async for message in me:
            await me.reply(message, str(os.getpid()))
            message.ack()

trio.run(main)
"""

STAYS = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
LATE = """
import os, time
print(os.getpid(), flush=True)
while not os.path.exists({!r}):
    time.sleep(0.02)
""" + TELLS.replace("print(os.getpid(), flush=True)", "pass")


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
    with trio.fail_after(LIMIT_S):
        async with (
            open_test_gateway() as gateway,
            agent(f"{scheme}://{gateway.address}", "asker") as asker,
            started_by(gateway, python(ANSWERS)),
        ):
            await asker.send("tu::w::echo::1", "who are you?")
            assert (await asker.receive()).text == "tu::w::echo::1"


async def test_a_task_starts_the_unique_task_that_it_is_for() -> None:
    with trio.fail_after(LIMIT_S):
        async with (
            open_test_gateway() as gateway,
            agent(f"aether://{gateway.address}", "asker") as asker,
            started_by(gateway, python(WORKS)),
        ):
            made = await asker.tasks.create("t", target="tu::w::echo::1")
            assert (await asker.receive()).text == "tu::w::echo::1"
            while (await asker.tasks.get(made.task_id)).status is not TaskStatus.COMPLETED:
                await trio.sleep(0.05)


async def test_an_agent_that_is_started_elsewhere_does_not_live_on_where_it_was() -> None:
    """The agent hangs longer than its grace window, so another orchestrator is asked."""
    with trio.fail_after(LIMIT_S):
        async with (
            open_test_gateway(tasks={"start_grace_s": 1}) as gateway,
            agent(f"aether://{gateway.address}", "asker") as asker,
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


def orchestrators(gateway: Gateway) -> list[Session]:
    """Those that are connected."""
    return [session for session in gateway.core.registry if session.identity.kind is Kind.ORCHESTRATOR]


async def first_word(notes: Notes) -> int:
    """The process that an orchestrator has started, which says its number."""
    while not notes.lines:
        await trio.sleep(0.02)
    return int(notes.lines[0][1])


async def test_a_start_that_was_given_to_another_orchestrator_has_no_second_process() -> None:
    """The first one has only lost its connection, and its process has not come so far."""
    with trio.fail_after(LIMIT_S):
        async with (
            open_test_gateway(tasks={"start_timeout_s": 0}) as gateway,
            agent(f"aether://{gateway.address}", "asker") as asker,
            started_by(gateway, python(STAYS), grace_s=0.5) as one,
        ):
            await asker.send("ag::w::echo::1", "who are you?")
            first = await first_word(one)
            [session] = orchestrators(gateway)
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
    async with open_test_gateway(tasks={"start_timeout_s": 0}) as gateway:
        address = f"aether://{gateway.address}"
        here, there = (late, STAYS) if comes == "first" else (STAYS, late)
        with trio.fail_after(LIMIT_S), Forwarder(gateway.address) as way:
            async with (
                agent(address, "asker") as asker,
                started_by(gateway, python(here), grace_s=0.5, address=way.address) as one,
            ):
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

"""What a gateway asks an orchestrator for, with a real gateway and real processes."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from aether_trio.client import AgentClient, OrchestratorClient, TaskClient
from aether_trio.client.operations.enums import TaskStatus
from aether_trio.gateway import Gateway
from aether_trio.orchestrator import AgentSpec, Orchestrator, OrchestratorLimits, Surroundings
from tests.client.gateways import agent, open_test_gateway
from tests.orchestrator.starts import Notes, python
from tests.orchestrator.test_child import is_there

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


@asynccontextmanager
async def started_by(gateway: Gateway, spec: AgentSpec, grace_s: float = LIMIT_S) -> AsyncIterator[Notes]:
    """An orchestrator that starts this."""
    notes = Notes()
    address = f"aether://{gateway.address}"
    made = Orchestrator(
        {spec.implementation: spec}, Surroundings(gateway.address, address), notes, OrchestratorLimits(16, grace_s)
    )
    async with (
        OrchestratorClient(address, implementation="o", profiles=made.profiles) as client,
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
    """It hangs, with its connection cut, for longer than its grace; another orchestrator is asked for it then."""
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

"""Clients and a real gateway with cuts, restarts, drains: no loss, no repetition."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
import trio

from aether_trio.client import (
    AgentClient,
    DuplicateIdentity,
    IncomingMessage,
    OrchestratorClient,
    SessionEnded,
    TaskClient,
)
from aether_trio.devtools.fault_proxy import FaultProxy, open_fault_proxy
from aether_trio.devtools.random_faults import RandomFaults
from tests.client.gateways import QUICK, agent, open_test_gateway
from tests.helpers.gateway import open_gateway_process


class Conversation:
    """Numbered messages from some senders to one receiver, and what came of them."""

    def __init__(self, address: str, *, senders: int = 2, count: int) -> None:
        self.address = f"aether://{address}"
        self.senders = senders
        self.count = count
        self.found: dict[str, list[int]] = defaultdict(list)
        self.complete = trio.Event()
        self.progress = trio.Event()
        self.connections = 0

    def client(self, specifier: str) -> AgentClient:
        return agent(self.address, specifier, connect_timeout_s=60.0, close_timeout_s=60.0)

    async def run(self, *, group: int = 10) -> None:
        """Send all; each sender waits for every `group`th message."""
        with trio.fail_after(300):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._receive)
                for number in range(self.senders):
                    nursery.start_soon(self._send, f"tx{number}", group)

    async def _send(self, name: str, group: int) -> None:
        async with self.client(name) as client:
            for number in range(self.count):
                await client.publish("ag::w::i::rx", str(number))
                if number % group == 0:
                    await client.flush()
            await client.flush()
            self.connections += client.connections

    async def _receive(self) -> None:
        async with self.client("rx") as client:
            async for message in client:
                self._note(message)
                if self.complete.is_set():
                    break
            self.connections += client.connections

    def _note(self, message: IncomingMessage) -> None:
        self.found[message.source].append(int(message.text))
        done = sum(map(len, self.found.values()))
        if done * 2 >= self.count * self.senders:
            self.progress.set()
        if done >= self.count * self.senders:
            self.complete.set()

    def check(self) -> None:
        assert self.found == {f"ag::w::i::tx{number}": list(range(self.count)) for number in range(self.senders)}


async def test_random_faults_lose_nothing_and_repeat_nothing() -> None:
    over = False
    async with open_test_gateway() as gateway:
        faults = RandomFaults(random.Random(20), mean_s=0.05, stall_s=0.05, over=lambda: over)
        async with open_fault_proxy(gateway.address, faults) as proxy:
            conversation = Conversation(proxy.address, count=1500)
            async with trio.open_nursery() as nursery:

                async def watch() -> None:
                    nonlocal over
                    await conversation.complete.wait()
                    over = True

                nursery.start_soon(watch)
                await conversation.run()
            conversation.check()
            assert conversation.connections > 3


async def cut_often(proxy: FaultProxy, conversation: Conversation) -> None:
    while not conversation.complete.is_set():
        seen = sum(map(len, conversation.found.values()))
        while sum(map(len, conversation.found.values())) < seen + 37 and not conversation.complete.is_set():
            await trio.sleep(0.001)
        proxy.cut_all()


async def test_cuts_in_the_middle_of_bursts() -> None:
    async with open_test_gateway() as gateway, open_fault_proxy(gateway.address) as proxy:
        conversation = Conversation(proxy.address, count=500)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut_often, proxy, conversation)
            await conversation.run(group=100)
        conversation.check()


@pytest.mark.crash
@pytest.mark.parametrize("end", ["is killed", "drains"])
async def test_a_gateway_that_ends_and_is_started_again(end: str) -> None:
    async with open_gateway_process() as gateway:
        conversation = Conversation(gateway.address, count=1500)
        async with trio.open_nursery() as nursery:

            async def restart() -> None:
                await conversation.progress.wait()
                if end == "is killed":
                    await trio.to_thread.run_sync(gateway.kill)
                await trio.to_thread.run_sync(gateway.restart)

            nursery.start_soon(restart)
            await conversation.run()
        conversation.check()
        assert conversation.connections >= 5


async def test_work_goes_to_another_worker_when_one_leaves_it() -> None:
    async with open_test_gateway() as gateway:
        address = f"aether://{gateway.address}"

        def worker() -> TaskClient:
            return TaskClient(address, workspace="w", implementation="t", retry=QUICK)

        async with agent(address, "a") as a:
            with pytest.raises(ZeroDivisionError):
                async with worker() as first:
                    await a.send_to_workers("t", b"job")
                    async for message in first:
                        assert message.payload == b"job"
                        assert 1 / 0
            async with worker() as second:
                async for message in second:
                    assert message.payload == b"job"
                    break


async def test_a_session_is_taken_over_by_who_knows_it() -> None:
    async with open_test_gateway() as gateway:
        address = f"aether://{gateway.address}"
        with pytest.raises(SessionEnded):
            async with agent(address, "a") as first:
                with pytest.raises(DuplicateIdentity):
                    async with agent(address, "a"):
                        pytest.fail("it was let in")
                async with agent(address, "a", resume_session_id=first.session_id) as second:
                    assert second.resumed
                    await first.receive()


async def test_an_orchestrator_keeps_the_name_that_was_made_up_for_it() -> None:
    """Its starts are still its starts when its connection is back."""
    with trio.fail_after(300):
        async with open_test_gateway() as gateway:
            address = f"aether://{gateway.address}"
            async with OrchestratorClient(address, implementation="o", profiles=["p"], retry=QUICK) as client:
                topic, assigned_id = client.topic, client.assigned_id
                for connections in (2, 3):
                    [session] = list(gateway.core.registry)
                    assert session.identity.text == topic == f"orc::o::{assigned_id}"
                    session.cut()
                    while client.connections < connections:
                        await trio.sleep(0.01)
                    assert (client.topic, client.assigned_id) == (topic, assigned_id)

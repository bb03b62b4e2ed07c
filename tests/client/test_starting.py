"""Test an orchestrator that is asked for an agent, and the agent that it starts."""

from __future__ import annotations

import pytest
import trio

from aether_trio.client import AgentClient, OrchestratorClient, Unauthenticated
from aether_trio.client.operations.agents import Registration
from aether_trio.client.operations.enums import TaskStatus
from tests.client.gateways import agent, open_test_gateway

LIMIT_S = 300.0
WHO = {"AETHER_WORKSPACE": "w", "AETHER_IMPLEMENTATION": "clerk", "AETHER_SPECIFIER": "1"}


@pytest.fixture(autouse=True)
def _not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*WHO, "AETHER_ADDRESS", "AETHER_GATEWAY", "AETHER_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("scheme", ["aether", "ws"])
async def test_what_waited_for_an_orchestrator_is_its_first_start(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with trio.fail_after(LIMIT_S):
        async with open_test_gateway() as gateway, agent(f"{scheme}://{gateway.address}", "a") as asker:
            address = f"{scheme}://{gateway.address}"
            async with OrchestratorClient(address, implementation="o", profiles=["other"]) as admin:
                await admin.registry.register(Registration(implementation="clerk", orchestrator_profile="p"))
                task_id = await admin.registry.launch("clerk", "1", workspace="w", param_overrides={"voice": "loud"})
            async with OrchestratorClient(address, implementation="o", profiles=["p"]) as orchestrator:
                start = await anext(orchestrator.starts)
                assert (start.task_id, start.profile, start.launch_params["voice"]) == (task_id, "p", "loud")
                for name, value in {**WHO, "AETHER_ADDRESS": address}.items():
                    monkeypatch.setenv(name, value)
                token = start.launch_params["auth_token"]
                monkeypatch.setenv("AETHER_AUTH_TOKEN", token)
                async with AgentClient.from_environment() as clerk:
                    assert clerk.topic == "ag::w::clerk::1"
                    while (await orchestrator.tasks.get(task_id)).status is not TaskStatus.RUNNING:
                        await trio.sleep(0.01)
                while (await orchestrator.tasks.get(task_id)).status is not TaskStatus.COMPLETED:
                    await trio.sleep(0.01)
                with pytest.raises(Unauthenticated):
                    async with AgentClient.from_environment():
                        pass
                assert asker.connections == 1


async def test_who_was_not_started_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LookupError, match="AETHER_WORKSPACE, AETHER_IMPLEMENTATION, AETHER_SPECIFIER not set"):
        AgentClient.from_environment()
    for name, value in WHO.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LookupError, match="AETHER_GATEWAY not set"):
        AgentClient.from_environment()


async def test_the_sdks_variable_for_the_gateway_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with trio.fail_after(LIMIT_S):
        async with open_test_gateway() as gateway:
            for name, value in {**WHO, "AETHER_GATEWAY": gateway.address}.items():
                monkeypatch.setenv(name, value)
            async with AgentClient.from_environment(connect_timeout_s=30) as clerk:
                assert clerk.topic == "ag::w::clerk::1"

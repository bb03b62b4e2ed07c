"""What ends with a task ends on every node and every transport."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from aether_trio.client import OrchestratorClient, Unauthenticated
from aether_trio.client.operations.agents import Registration
from aether_trio.client.operations.enums import TaskStatus
from aether_trio.gateway.core import Core
from aether_trio.services.tasks import nodes
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import QUICK, open_test_gateway
from tests.helpers.core import agent, barrier, connect, let_manage, user
from tests.helpers.engines import PostgresEngine
from tests.security.tenants import LIMIT_S, SCHEMES, agent_of
from tests.security.test_credentials_descent import ended as with_api_token
from tests.security.test_credentials_tokens import ask, create, holder
from tests.security.test_tokens import ended, refused, token_for, worker
from tests.services.agents.test_across import two_nodes
from tests.services.tasks.peers import Op, operate

AGENT = "ag::w::clerk::1"


@pytest.mark.parametrize("told", [True, False])
async def test_a_session_on_another_node_ends(
    postgres_engine: PostgresEngine, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_nodes(postgres_engine) as (one, two), connect(one, agent("w", "c", "1")) as creator:
        let_manage(one)
        let_manage(two)
        if not told:
            _lose_hints(one, monkeypatch)
        task_id, token = await token_for(creator, "ag::w::i::1")
        async with connect(two, worker(token)) as peer:
            _, mine = await token_for(peer, "ag::w::i::1")
            _, second = await token_for(peer, "ag::w::i::2")
            async with connect(two, worker(second, "2")) as other:
                await barrier(peer, other)
                await two.tasks.engine.writes.flush()
                assert (await operate(creator, Op.CANCEL, task_id)).success
                assert await ended(peer)
                assert await ended(other)
        for core in (one, two):
            assert await refused(core, worker(token))
            assert await refused(core, worker(mine))
            assert await refused(core, worker(second, "2"))


def _lose_hints(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hint of a session's end leaves this node."""
    tell = core.tasks.engine.nodes.notify

    def lossy(node: str, topic: str, body: str = "") -> None:
        if topic != nodes.ENDED_SESSIONS:
            tell(node, topic, body)

    monkeypatch.setattr(core.tasks.engine.nodes, "notify", lossy)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_started_agent_is_gone_when_its_start_was_cancelled(scheme: str) -> None:
    with trio.fail_after(LIMIT_S):
        async with open_test_gateway() as gateway:
            let_manage(gateway.core)
            address = f"{scheme}://{gateway.address}"
            clerk = partial(agent_of, gateway, "w", "clerk", scheme=scheme)
            async with OrchestratorClient(address, implementation="o", profiles=["p"], retry=QUICK) as orchestrator:
                await orchestrator.registry.register(Registration(implementation="clerk", orchestrator_profile="p"))
                task_id = await orchestrator.registry.launch("clerk", "1", workspace="w")
                start = await anext(orchestrator.starts)
                mine = ""
                with pytest.raises(Unauthenticated, match="has ended"):
                    async with clerk(token=start.launch_params["auth_token"]) as started:
                        mine = (await started.tasks.create("t", target_identity=AGENT)).task_token
                        while (await orchestrator.tasks.get(task_id)).status is not TaskStatus.RUNNING:
                            await trio.sleep(0.01)
                        await orchestrator.tasks.cancel(task_id)
                        async for _ in started:
                            pass
                assert mine
                for token in (mine, start.launch_params["auth_token"]):
                    with pytest.raises(Unauthenticated):
                        async with clerk(token=token):
                            pass


async def test_what_an_api_token_has_made_ends_with_it_on_every_node(postgres_engine: PostgresEngine) -> None:
    async with two_nodes(postgres_engine) as (one, two), connect(one, user("admin", "root")) as admin:
        let_manage(one)
        let_manage(two)
        text, token_id = await create(admin)
        async with holder(two, text, agent("w", "maker", "1")) as maker:
            _, first = await token_for(maker, "ag::w::i::1")
            _, second = await token_for(maker, "ag::w::i::2")
            async with connect(two, worker(first)) as near, connect(one, worker(second, "2")) as far:
                assert (await ask(admin, op=pb.TokenOperation.REVOKE, token_id=token_id)).success
                for peer in (maker, near, far):
                    assert await with_api_token(peer)
        for core in (one, two):
            assert await refused(core, worker(first))
            assert await refused(core, worker(second, "2"))

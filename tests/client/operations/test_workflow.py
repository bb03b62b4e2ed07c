"""Our clients ask a workflow engine, and are one, through a real gateway."""

from __future__ import annotations

import pytest
import trio

from aether_trio.client import Refused, WorkflowEngineClient
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import SCHEMES, agent, open_test_gateway


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_client_asks_and_another_one_answers(scheme: str) -> None:
    async with (
        open_test_gateway() as gateway,
        WorkflowEngineClient(f"{scheme}://{gateway.address}") as engine,
        agent(f"{scheme}://{gateway.address}", "a") as caller,
        engine.workflow.requests() as requests,
        trio.open_nursery() as nursery,
    ):

        async def answer() -> None:
            async for op in requests:
                if op.op == pb.WorkflowOperation.LIST_RULES:
                    await engine.workflow.respond(op.request_id, b"[1]", message="one", total=1)
                else:
                    await engine.workflow.respond(op.request_id, error=f"no {op.id} for {op.request_context.actor}")

        nursery.start_soon(answer)
        found = await caller.workflow.within(30).list_rules("w")
        assert (found.data, found.message, found.total) == (b"[1]", "one", 1)
        with pytest.raises(Refused, match=r"no r1 for .*agent"):
            await caller.workflow.within(30).get_rule("r1")
        nursery.cancel_scope.cancel()


async def test_without_an_engine_the_call_raises_at_once() -> None:
    async with open_test_gateway() as gateway, agent(f"aether://{gateway.address}", "a") as caller:
        with pytest.raises(Refused, match="workflow engine not connected"):
            await caller.workflow.within(30).list_rules()

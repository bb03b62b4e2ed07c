"""A worker registers its functions with a gateway that is cut, or away."""

from __future__ import annotations

import pytest
import trio

from aether_trio.client import AgentClient, Refused
from aether_trio.client.workflows import Flow, serving, workflow
from aether_trio.client.workflows.serving import REGISTER_FUNCTION
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.jobs.shop import LIMIT_S, worker
from tests.client.peer import Peer, scripted


@workflow
async def plan(flow: Flow) -> None:
    """Do nothing."""


async def registration(peer: Peer) -> str:
    """Read the next request, which must register the function; return its id."""
    op = (await peer.line.asked()).workflow_op
    assert (op.op, op.id) == (REGISTER_FUNCTION, "plan")
    return op.request_id


async def answer(peer: Peer, error: str = "", code: str = "") -> None:
    response = pb.WorkflowResponse(success=not error, error=error, request_id=await registration(peer))
    await peer.line.tell(workflow_response=response)


async def test_functions_are_registered_after_a_cut_and_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "AWAY_S", 0.001)

    async def body(one: AgentClient) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.serve_workflows, [plan])
            await registered.wait()
            nursery.cancel_scope.cancel()

    registered = trio.Event()
    with trio.fail_after(LIMIT_S):
        async with scripted(body, client=worker, close_timeout_s=0.1) as (peer, _):
            await registration(peer)
            await peer.cut()
            away = pb.ErrorResponse(code="UNAVAILABLE", retryable=True, request_id=await registration(peer))
            await peer.line.tell(error=away)
            await answer(peer, "ERR_CIRCUIT_OPEN: the gateway's storage does not answer: away")
            await answer(peer, "ERR_OUTCOME_UNKNOWN: the gateway's storage did not say whether this was done")
            await answer(peer)
            registered.set()


async def test_a_registration_that_is_refused_is_raised() -> None:
    async def body(one: AgentClient) -> None:
        with pytest.raises(Refused, match="may not"):
            await one.serve_workflows([plan])

    with trio.fail_after(LIMIT_S):
        async with scripted(body, client=worker, close_timeout_s=0.1) as (peer, _):
            await answer(peer, "you may not")

"""Test that an operation that a real gateway does not serve raises so at once."""

from __future__ import annotations

from typing import Any

import pytest

from aether_trio.client import AgentClient, NotImplementedByGateway
from aether_trio.client.operations.proxy import Proxy
from aether_trio.client.operations.tunnels import Tunnel
from aether_trio.services.unimplemented import FAILURES
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import SCHEMES, agent, open_test_gateway
from tests.client.operations.calls import CALLS, PASSIVE
from tests.client.operations.test_coverage import sent_by

UNTOLD = {"proxy.tell_piece": "proxy_http_body_chunk", "tunnels.refuse": "tunnel_close"}
"""No caller waits for an answer to these.

A refusal of the first is in the client's `errors`; the second is a goodbye.
"""


async def unserved() -> dict[str, str]:
    """Map the calls that a gateway does not serve to what they send first."""
    found: dict[str, str] = {}
    for name in sorted(set(CALLS) - PASSIVE - set(UNTOLD)):
        case = str((await sent_by(name))[0].WhichOneof("payload"))
        if case in FAILURES:
            found[name] = case
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_every_operation_that_is_not_served_says_so(scheme: str) -> None:
    outcomes: dict[str, str] = {}
    async with open_test_gateway() as gateway, agent(f"{scheme}://{gateway.address}", "a") as client:
        wanted = await unserved()
        for name in wanted:
            try:
                await CALLS[name](getattr(client, name.partition(".")[0]).within(30))
            except NotImplementedByGateway as error:
                outcomes[name] = error.code
            except Exception as error:
                outcomes[name] = repr(error)
            else:
                outcomes[name] = "it was served"
        assert client.connections == 1
    assert outcomes == dict.fromkeys(wanted, "ERR_NOT_IMPLEMENTED")


async def test_the_cases_that_are_not_served_are_all_called() -> None:
    untold = {*UNTOLD.values(), "tunnel_data", "tunnel_ack"}
    assert set((await unserved()).values()) | untold == set(FAILURES)


async def refused(client: AgentClient, message: pb.UpstreamMessage) -> Any:
    """Give the refusal of a message that has no answer."""
    await client.tell(message)
    return await anext(client.errors)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_parts_of_an_exchange_are_refused_in_the_clients_errors(scheme: str) -> None:
    async with open_test_gateway() as gateway, agent(f"{scheme}://{gateway.address}", "a") as client:
        await Proxy(client).tell_piece(pb.ProxyHttpBodyChunk(request_id="r", fin=True))
        error = await anext(client.errors)
        assert isinstance(error, NotImplementedByGateway)
        assert error.request_id == "r"
        ack = pb.UpstreamMessage(tunnel_ack=pb.TunnelAck(tunnel_id="t", credits=1))
        assert isinstance(await refused(client, ack), NotImplementedByGateway)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_tunnel_that_was_never_opened_is_closed(scheme: str) -> None:
    async with open_test_gateway() as gateway, agent(f"{scheme}://{gateway.address}", "a") as client:
        tunnels = client.tunnels.within(30)
        async with tunnels.accept(pb.TunnelOpen(tunnel_id="t")) as tunnel:
            assert isinstance(tunnel, Tunnel)
            await tunnel.send(b"hello?")
            with pytest.raises(NotImplementedByGateway):
                await tunnel.receive()

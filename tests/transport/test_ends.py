"""A client that has ended its side does not keep its identity."""

from __future__ import annotations

import pytest

from aether_trio.model.errors import Status
from aether_trio.testing.memory import agent
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import open_test_gateway
from tests.helpers.core import hang_kv
from tests.helpers.participants import participant


@pytest.mark.parametrize("transport", ["grpc", "framed"])
async def test_an_identity_is_free_when_its_client_has_ended_its_side_and_a_request_hangs(transport: str) -> None:
    async with open_test_gateway() as gateway:
        hanging = hang_kv(gateway.core)
        init = agent("w", "a", "1")
        async with participant(transport, gateway.address, init) as a:
            await a.send(pb.UpstreamMessage(kv_op=pb.KVOperation(request_id="r")))
            await hanging.wait()
            await a.leave()
            async with participant(transport, gateway.address, init):
                assert await a.status() is Status.CANCELLED

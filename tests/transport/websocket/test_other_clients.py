"""A client that is not ours, against the transport: trio-websocket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from aether_trio.wire.browser import JSON
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import message_to
from tests.transport.websocket.harness import TransportServer, hello, open_transport, open_window


@asynccontextmanager
async def open_other(transport: TransportServer, subprotocol: str) -> AsyncIterator[WebSocketConnection]:
    with trio.fail_after(300):
        async with await trio.open_tcp_stream(*transport.address) as stream, trio.open_nursery() as nursery:
            ws = await wrap_client_stream(nursery, stream, "localhost", "/v1/connect", subprotocols=[subprotocol])
            yield ws
            await ws.aclose()


async def test_it_connects_pings_sends_and_leaves() -> None:
    async with (
        open_transport() as transport,
        open_window(transport, "bob", "w1") as bob,
        open_other(transport, "aether.v1.json") as ws,
    ):
        await ws.send_message(JSON.encode_upstream(hello()).decode())
        assert JSON.decode_downstream(await ws.get_message()).WhichOneof("payload") == "connection_ack"
        await ws.ping(b"still there?")
        for number in range(100):
            await ws.send_message(JSON.encode_upstream(message_to("us::bob::w1", b"%d" % number)).decode())
        for number in range(100):
            assert (await bob.next("msg")).msg.payload == b"%d" % number
        await bob.send(message_to("us::ada::w1", b"\xff" * 100_000))
        assert JSON.decode_downstream(await ws.get_message()).msg.payload == b"\xff" * 100_000


async def test_it_is_told_why_it_was_closed() -> None:
    async with open_transport() as transport, open_other(transport, "aether.v1.proto") as ws:
        init = pb.InitConnection(workflow_engine=pb.WorkflowEngineIdentity())
        await ws.send_message(pb.UpstreamMessage(init=init).SerializeToString())
        with pytest.raises(ConnectionClosed) as closed:
            await ws.get_message()
        assert closed.value.reason.code == 4207
        assert closed.value.reason.reason.startswith("workflow_engine may not connect over WebSocket")

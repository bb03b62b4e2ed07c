"""A client resets its connection while messages are delivered to it."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import trio

from aether_trio.cli.options import split_address
from aether_trio.transport.http2 import frames
from aether_trio.wire import framing
from tests.security.clients import WAIT_S, FramedTalker, gateway_with, init_of, talkers
from tests.transport.grpc.harness import RawClient, data, message, settings

CONNECT = "/aether.v1.AetherGateway/Connect"


async def test_two_participants_on_one_connection_miss_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with gateway_with() as gateway, talkers(gateway) as clients:
        sender = await clients.connect("framed", "sender")
        assert isinstance(sender, FramedTalker)
        client = RawClient(await trio.open_tcp_stream(*split_address(gateway.address)))
        await client.send(frames.PREFACE, settings())
        for stream_id, name in ((1, "a"), (3, "b")):
            init = init_of(name).SerializeToString()
            await client.send(client.request(stream_id, CONNECT), data(stream_id, message(init)))
            await client.payload(stream_id, 6)
        fan_out = gateway.core.log._fan_out

        async def reset_and_fan_out(*args: Any) -> None:
            client.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.stream.socket.close()
            await fan_out(*args)

        monkeypatch.setattr(gateway.core.log, "_fan_out", reset_and_fan_out)
        with trio.fail_after(WAIT_S):
            await sender.peer.send(framing.Send(1, "ag::w::a::1", b"one"), framing.Send(2, "ag::w::b::1", b"one"))
            while (await sender.peer.next(framing.Ack)).seq < 2:
                pass
            monkeypatch.undo()
            await sender.peer.send(framing.Send(3, "ag::w::a::1", b"two"), framing.Send(4, "ag::w::b::1", b"two"))
            for name in ("a", "b"):
                again = await clients.connect("grpc", name)
                assert [(await again.answer("msg")).msg.payload for _ in range(2)] == [b"one", b"two"]

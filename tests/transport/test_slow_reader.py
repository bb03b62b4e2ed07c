"""A client that reads slowly is told from one that reads nothing."""

from __future__ import annotations

import trio

from aether_trio.cli.options import split_address
from aether_trio.testing.memory import message_to
from tests.helpers.rawh2 import DEFAULT_WINDOW, RawH2, RawPeer
from tests.security.clients import WAIT_S, gateway_with, init_of, talkers


async def test_a_grpc_client_that_opens_its_window_little_by_little_is_not_stuck() -> None:
    async with gateway_with() as gateway, talkers(gateway) as clients:
        sender = await clients.connect("framed", "sender")
        address = split_address(gateway.address)
        peer = RawPeer(await trio.open_tcp_stream(*address), RawH2(window=DEFAULT_WINDOW, keep_window_open=False))
        async with peer.stream:
            await peer.send(init_of("slow").SerializeToString())
            await peer.receive()
            session = gateway.core.registry.holder("ag::w::slow::1")
            assert session is not None
            await sender.say(message_to("ag::w::slow::1", bytes(1_000_000)))
            with trio.fail_after(WAIT_S):
                while (since := session.link.stalled_since) is None:
                    await trio.sleep(0.01)
                peer.h2.grant(1000)
                await peer.flush()
                while session.link.stalled_since == since:
                    await trio.sleep(0.01)
            assert session.link.stalled_since is not None

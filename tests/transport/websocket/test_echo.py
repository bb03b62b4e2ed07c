from __future__ import annotations

import pytest

from aether_trio.wire.browser import CODECS
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import message_to
from tests.transport.websocket.harness import open_transport, open_window


@pytest.mark.parametrize("subprotocol", CODECS)
async def test_a_window_sends_to_another(subprotocol: str) -> None:
    async with (
        open_transport() as transport,
        open_window(transport, "ada", "w1", subprotocol) as ada,
        open_window(transport, "bob", "w1", "aether.v1.proto") as bob,
    ):
        await ada.send(message_to("us::bob::w1", b"\x00\xffhello", pb.CHAT))
        message = (await bob.next("msg")).msg
        assert (message.source_topic, message.payload, message.message_type) == (
            "us::ada::w1",
            b"\x00\xffhello",
            pb.CHAT,
        )
        await bob.send(message_to("us::ada::w1", b"\x00\xffback", pb.CHAT))
        assert (await ada.next("msg")).msg.payload == b"\x00\xffback"

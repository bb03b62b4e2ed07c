"""`sv::impl` means the instances that stand in for their kind, and no others."""

from __future__ import annotations

from aether_trio.gateway.core import Core
from aether_trio.model.errors import Code
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, barrier, connect, errors, message_to, payloads, service


def aside(implementation: str, specifier: str) -> pb.UpstreamMessage:
    hello = service(implementation, specifier)
    hello.init.service.no_pool_consumer = True
    return hello


async def test_a_service_that_stands_aside_is_not_chosen(core: Core) -> None:
    async with (
        connect(core, service("s", "in")) as chosen,
        connect(core, aside("s", "out")) as other,
        connect(core, agent("w", "a", "1")) as sender,
    ):
        for number in range(4):
            sender.send(message_to("sv::s", b"%d" % number))
        sender.send(message_to("sv::s::out", b"by name"))
        await barrier(sender)
        assert payloads(chosen) == [b"0", b"1", b"2", b"3"]
        assert payloads(other) == [b"by name"]


async def test_a_service_without_other_instances_has_none(core: Core) -> None:
    async with connect(core, aside("s", "out")), connect(core, agent("w", "a", "1")) as sender:
        sender.send(message_to("sv::s", b"x"))
        await barrier(sender)
        assert [error.code for error in errors(sender)] == [Code.SV_UNAVAILABLE]

"""A client that reads nothing for long is disconnected; one that reads slowly not."""

from __future__ import annotations

import trio

from aether_trio.model.errors import Status
from tests.helpers.core import World, agent, connect, message_to, payloads, pump

ONE = "ag::w::a::1"


async def test_a_stuck_client_loses_its_session_and_no_message(world: World) -> None:
    async with world.open(grpc={"write_timeout_s": 60.0}) as core, connect(core, agent("w", "s", "1")) as sender:
        async with connect(core, agent("w", "a", "1")) as stuck:
            stuck.pause()
            sender.send(message_to(ONE, b"first"))
            await trio.sleep(50)
            assert stuck.ended is None
            await trio.sleep(30)
            ended = stuck.ended
            assert ended is not None
            assert ended.status is Status.UNAVAILABLE
            assert "60 seconds" in ended.message
            assert core.registry.holder(ONE) is None
        async with connect(core, agent("w", "a", "1")) as back:
            await back.next("msg")


async def test_a_client_that_reads_now_and_then_stays(world: World) -> None:
    async with (
        world.open(grpc={"write_timeout_s": 60.0}) as core,
        connect(core, agent("w", "s", "1")) as sender,
        connect(core, agent("w", "a", "1")) as slow,
    ):
        for number in range(10):
            slow.pause()
            sender.send(message_to(ONE, b"%d" % number))
            await trio.sleep(50)
            slow.resume()
        await pump()
        assert slow.ended is None
        assert payloads(slow) == [b"%d" % number for number in range(10)]


async def test_zero_is_never(world: World) -> None:
    async with (
        world.open(grpc={"write_timeout_s": 0.0}) as core,
        connect(core, agent("w", "s", "1")) as sender,
        connect(core, agent("w", "a", "1")) as stuck,
    ):
        stuck.pause()
        sender.send(message_to(ONE, b"first"))
        await trio.sleep(3000)
        assert stuck.ended is None
        stuck.resume()

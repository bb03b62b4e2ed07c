"""Deliveries that the client acknowledges come again until it has."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aether_trio.transport.websocket import deliveries
from aether_trio.transport.websocket.deliveries import SUBPROTOCOL
from aether_trio.wire.browser import JSON
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import message_to
from tests.transport.websocket.harness import Client, TransportServer, hello, open_socket

TOPIC = "us::ada::w1"


@asynccontextmanager
async def open_page(transport: TransportServer) -> AsyncIterator[Client]:
    async with open_socket(transport, JSON, subprotocols=[SUBPROTOCOL]) as client:
        await client.send(hello())
        assert "connection_ack" in json.loads(await client.receive_data())
        yield client


async def state(client: Client, **said: Any) -> None:
    await client.send_bytes(client.frame(json.dumps({"deliveries": said}).encode()))


async def barrier(client: Client) -> dict[str, Any]:
    """The next message, which must be an answer: no delivery is in front of it."""
    load = pb.CheckpointOperation(op=pb.CheckpointOperation.LOAD, request_id="barrier")
    await client.send(pb.UpstreamMessage(checkpoint_op=load))
    answer: dict[str, Any] = json.loads(await client.receive_data())
    return answer


async def take(client: Client, count: int) -> list[tuple[str, int]]:
    found = []
    for _ in range(count):
        message = json.loads(await client.receive_data())
        assert message["delivery"]["topic"] == TOPIC
        found.append((message["msg"]["payload"], message["delivery"]["offset"]))
    return found


async def test_what_is_not_done_comes_again_and_what_is_done_does_not(transport: TransportServer) -> None:
    async with open_page(transport) as page:
        await page.send(*(message_to(TOPIC, b"%d" % number) for number in range(5)))
        # Nothing is delivered before there is said to be room.
        assert "checkpoint" in await barrier(page)
        await state(page, done=0, messages=10, bytes=10_000)
        first = await take(page, 5)
        await state(page, done=2, messages=10, bytes=10_000)
        assert "checkpoint" in await barrier(page)
        await page.close()
    async with open_page(transport) as page:
        await state(page, done=0, messages=10, bytes=10_000)
        assert await take(page, 3) == first[2:]


async def test_no_more_is_delivered_than_there_is_room_for(transport: TransportServer) -> None:
    async with open_page(transport) as page:
        await state(page, done=0, messages=2, bytes=10_000)
        await page.send(*(message_to(TOPIC, b"%d" % number) for number in range(6)))
        offsets = [offset for _, offset in await take(page, 2)]
        assert "checkpoint" in await barrier(page)
        await state(page, done=1, messages=2, bytes=10_000)
        offsets += [offset for _, offset in await take(page, 1)]
        assert "checkpoint" in await barrier(page)
        # Two are not done, and have more bytes than that.
        await state(page, done=1, messages=9, bytes=1)
        assert "checkpoint" in await barrier(page)
        await state(page, done=3, messages=9, bytes=1)
        offsets += [offset for _, offset in await take(page, 1)]
        assert "checkpoint" in await barrier(page)
        assert offsets == sorted(offsets)


async def test_what_is_delivered_and_not_done_is_bounded_whatever_room_there_is_said_to_be(
    transport: TransportServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "MOST_NOT_DONE", 3)
    async with open_page(transport) as page:
        await state(page, done=0, messages=2**53 - 1, bytes=2**53 - 1)
        await page.send(*(message_to(TOPIC, b"%d" % number) for number in range(7)))
        offsets = [offset for _, offset in await take(page, 3)]
        assert "checkpoint" in await barrier(page)
        for done, count in ((1, 1), (4, 3)):
            await state(page, done=done, messages=2**53 - 1, bytes=2**53 - 1)
            offsets += [offset for _, offset in await take(page, count)]
            assert "checkpoint" in await barrier(page)
        assert offsets == list(range(1, 8))


@pytest.mark.parametrize(
    "said",
    [
        {"done": 1, "messages": 1, "bytes": 1},
        {"done": -1, "messages": 1, "bytes": 1},
        {"done": 0, "messages": 1},
        {"done": 0, "messages": 1, "bytes": 2**53},
        {"done": 0, "messages": "1", "bytes": 1},
        {"done": 0, "messages": 1, "bytes": 1, "more": 1},
    ],
)
async def test_an_impossible_statement_ends_the_connection(transport: TransportServer, said: dict[str, Any]) -> None:
    async with open_page(transport) as page:
        await state(page, **said)
        closed = await page.closed()
        assert closed.code == 4203
        assert closed.reason.startswith("deliveries")

"""A gateway on WebSocket lies: the client reconnects and keeps to its credit."""

from __future__ import annotations

import tracemalloc

import pytest
import trio
from wsproto.events import BytesMessage, CloseConnection, TextMessage

from aether_trio.client import AetherError, AgentClient, InvalidArgument
from aether_trio.client.connection import websocket
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import agent, open_test_gateway
from tests.client.websocket_peer import WebSocketLine, scripted_websocket

WAIT_S = 60


async def barrier(line: WebSocketLine) -> str:
    """The id of the question behind a send."""
    while not (asked := await line.asked()).HasField("connection_status_request"):
        pass
    return asked.connection_status_request.request_id


async def answer(line: WebSocketLine, request_id: str) -> None:
    await line.tell(connection_status_response=pb.ConnectionStatusResponse(request_id=request_id))


@pytest.mark.parametrize(
    "request_id", ["send-", "send-x", "send-0", "send-2", "send--1", "send-٣", "send-²", "send-" + "9" * 5000]
)
async def test_a_refusal_of_a_send_that_was_never_made_is_told_and_refuses_nothing(request_id: str) -> None:
    async def body(a: AgentClient) -> None:
        await a.send(a.topic, b"1")
        error = await anext(a.errors)
        assert (error.code, error.request_id) == ("ERR_INVALID_TOPIC", request_id)
        with pytest.raises(InvalidArgument):
            await a.send(a.topic, b"2")

    async with scripted_websocket(body) as (_, line):
        for refused in (request_id, "send-2"):
            asked = await barrier(line)
            await line.tell(error=pb.ErrorResponse(code="ERR_INVALID_TOPIC", request_id=refused))
            await answer(line, asked)


@pytest.mark.parametrize("options", [{"credit_messages": 3}, {"credit_bytes": 30}])
async def test_what_is_delivered_beyond_the_credit_ends_the_connection_and_is_not_kept(options: dict[str, int]) -> None:
    held = 0

    async def body(a: AgentClient) -> None:
        nonlocal held
        while a.statistics().connections < 2:
            await anext(a.states)
        held = a.statistics().buffered
        assert [(await a.receive()).text for _ in range(3)] == ["0123456789"] * 3

    async with scripted_websocket(body, **options) as (peer, line):
        message = pb.IncomingMessage(payload=b"0123456789")
        for _ in range(4):
            await line.tell(msg=message)
        await line.end()
        await peer.accept("s2")
    assert held == 3


async def test_a_broken_rule_and_a_close_in_one_piece_end_the_connection_and_not_the_client() -> None:
    lost: list[AetherError] = []

    async def body(a: AgentClient) -> None:
        while a.statistics().connections < 2:
            await anext(a.states)

    async with scripted_websocket(body, on_disconnected=lost.append) as (peer, line):
        await line.stream.send_all(line.ws.send(TextMessage(data="x")) + line.ws.send(CloseConnection(1000)))
        await line.stream.aclose()
        await peer.accept("s2")
    assert [error.code for error in lost] == ["UNSUPPORTED_DATA"]


async def test_what_comes_in_very_many_pieces_takes_no_more_than_its_bytes() -> None:
    async def body(a: AgentClient) -> None:
        assert (await a.receive()).text == "whole"

    async with scripted_websocket(body) as (_, line):
        data = pb.DownstreamMessage(msg=pb.IncomingMessage(payload=b"whole")).SerializeToString()
        await line.say(data[:1], finished=False)
        empty = line.ws.send(BytesMessage(data=b"", message_finished=False))
        tracemalloc.start()
        try:
            await line.stream.send_all(empty * 5_000)
            await line.ping()
            snapshot = tracemalloc.take_snapshot()
        finally:
            tracemalloc.stop()
        await line.say(data[1:])
    transport = snapshot.filter_traces([tracemalloc.Filter(True, websocket.__file__)])
    assert sum(one.size for one in transport.statistics("filename")) < 5_000


@pytest.mark.parametrize("transport", ["ws", "aether"])
@pytest.mark.parametrize("options", [{"credit_messages": 2**62}, {"credit_bytes": 2**62}, {"credit_bytes": 1}])
async def test_the_largest_and_the_smallest_credit_are_credit(transport: str, options: dict[str, int]) -> None:
    async with open_test_gateway() as gateway:
        with trio.fail_after(WAIT_S):
            async with agent(f"{transport}://{gateway.address}", "a", **options) as a:
                for number in range(5):
                    await a.send(a.topic, str(number))
                async for message in a:
                    if message.text == "4":
                        break

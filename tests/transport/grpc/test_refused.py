"""Requests that are no gRPC get a plain answer, by the rules of HTTP."""

from __future__ import annotations

import pytest

from aether_trio.transport.grpc.server import GrpcServer
from aether_trio.transport.http2 import frames
from aether_trio.transport.http2.frames import Http2ErrorCode
from tests.transport.grpc.harness import Port, RawClient, connected, data, frame, settings

PLAIN = [({"content_type": "application/json"}, "415"), ({"content_type": None}, "415"), ({"__method": "GET"}, "405")]


async def answer(client: RawClient, stream_id: int) -> tuple[dict[str, str], bytes]:
    """Headers and text of an answer that ends with DATA."""
    headers = client.decode(await client.until_kind(frames.HEADERS, stream_id=stream_id))
    text = b""
    while True:
        found = await client.until_kind(frames.DATA, stream_id=stream_id)
        text += found.body
        if found.flags & frames.END_STREAM:
            return headers, text


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize(("request_headers", "http_status"), PLAIN)
async def test_what_is_no_grpc_is_answered_with_a_text(
    server: GrpcServer, request_headers: dict[str, str], http_status: str, end: bool
) -> None:
    async with connected(server) as client:
        await client.send(client.request(1, end=end, **request_headers))
        headers, text = await answer(client, 1)
        assert (headers[":status"], headers["content-type"]) == (http_status, "text/plain")
        assert headers["grpc-status"] == "13"
        assert headers["grpc-message"]
        assert text.endswith(b": this is a gRPC server\n")
        if not end:  # it was not waited for any longer
            assert await client.reset_code(1) == Http2ErrorCode.NO_ERROR
        # The connection is as good as before, and nothing is kept of the request.
        await client.send(client.request(3, "/probe.Probe/Nothing"))
        assert (await client.trailers(3))["grpc-status"] == "12"
    assert server.statistics().streams_open == 0


async def test_its_answer_waits_for_the_clients_window(port: Port) -> None:
    client = await RawClient.connect(port, settings(window=1))
    await client.send(client.request(1, end=True, content_type="text/html"))
    first = await client.until_kind(frames.DATA, stream_id=1)
    assert (len(first.body), first.flags) == (1, 0)
    await client.send(frames.window_update(1, 1000))
    text = first.body
    while not (found := await client.until_kind(frames.DATA, stream_id=1)).flags & frames.END_STREAM:
        text += found.body
    assert text.endswith(b"gRPC server\n")


@pytest.mark.parametrize(("sent", "good"), [(b"four", True), (b"fours", False), (b"", False)])
async def test_its_content_length_is_that_of_its_content(client: RawClient, sent: bytes, good: bool) -> None:
    await client.send(client.request(1, content_type=None, content_length="4"), data(1, sent[:2]))
    await client.send(data(1, sent[2:], end=True))
    if good:
        assert (await answer(client, 1))[0][":status"] == "415"
    else:
        assert await client.reset_code(1) == Http2ErrorCode.PROTOCOL_ERROR
        assert not any(found.kind == frames.HEADERS for found in client.seen)


async def test_padding_is_looked_at_also_where_nothing_else_is(client: RawClient) -> None:
    await client.send(client.request(1, content_type=None), frame(frames.DATA, frames.PADDED, 1, b"\x05four"))
    assert (await client.goaway())[1] == Http2ErrorCode.PROTOCOL_ERROR


async def test_what_comes_behind_its_end_is_a_mistake(client: RawClient) -> None:
    await client.send(client.request(1, end=True, content_type=None))
    await answer(client, 1)
    await client.send(data(1, b"more"))
    assert await client.reset_code(1) == Http2ErrorCode.STREAM_CLOSED


async def test_a_drain_and_the_end_of_the_client_do_not_wait_for_it(server: GrpcServer) -> None:
    async with connected(server) as client:
        await client.send(client.request(1, content_type=None), frames.rst_stream(1, Http2ErrorCode.CANCEL))
        await client.send(client.request(3, content_type=None), frames.ping(bytes(8)))
        await client.until_kind(frames.PING)
        assert server.statistics().streams_open == 1
        await client.stream.aclose()
    assert server.statistics().streams_open == 0

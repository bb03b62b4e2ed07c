"""Requests that are no gRPC get a plain answer, by the rules of HTTP."""

from __future__ import annotations

import struct

import pytest

from aether_trio.transport.http2 import frames
from tests.transport.grpc.harness import RawClient, data, frame, probe_server, serving

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


def code_of(reset: bytes) -> int:
    return int(struct.unpack(">I", reset)[0])


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize(("request_headers", "http_status"), PLAIN)
async def test_what_is_no_grpc_is_answered_with_a_text(
    request_headers: dict[str, str], http_status: str, end: bool
) -> None:
    server, _ = probe_server()
    async with serving(server) as port:
        client = await RawClient.connect(port)
        await client.send(client.request(1, end=end, **request_headers))
        headers, text = await answer(client, 1)
        assert (headers[":status"], headers["content-type"], headers["grpc-status"]) == (
            http_status,
            "text/plain",
            "13",
        )
        assert headers["grpc-message"]
        assert text.endswith(b": this is a gRPC server\n")
        if not end:  # it was not waited for any longer
            assert (
                code_of((await client.until_kind(frames.RST_STREAM, stream_id=1)).body)
                == frames.Http2ErrorCode.NO_ERROR
            )
        # The connection is as good as before, and nothing is kept of the request.
        await client.send(client.request(3, "/probe.Probe/Nothing"))
        assert (await client.trailers(3))["grpc-status"] == "12"
    assert server.statistics().streams_open == 0


async def test_its_answer_waits_for_the_clients_window() -> None:
    server, _ = probe_server()
    async with serving(server) as port:
        client = await RawClient.connect(port, frame(frames.SETTINGS, 0, 0, struct.pack(">HI", 4, 1)))
        await client.send(client.request(1, end=True, content_type="text/html"))
        first = await client.until_kind(frames.DATA, stream_id=1)
        assert (len(first.body), first.flags) == (1, 0)
        await client.send(frame(frames.WINDOW_UPDATE, 0, 1, struct.pack(">I", 1000)))
        text = first.body
        while not (found := await client.until_kind(frames.DATA, stream_id=1)).flags & frames.END_STREAM:
            text += found.body
        assert text.endswith(b"gRPC server\n")


@pytest.mark.parametrize(("sent", "good"), [(b"four", True), (b"fours", False), (b"", False)])
async def test_its_content_length_is_that_of_its_content(sent: bytes, good: bool) -> None:
    server, _ = probe_server()
    async with serving(server) as port:
        client = await RawClient.connect(port)
        await client.send(client.request(1, content_type=None, content_length="4"), data(1, sent[:2]))
        await client.send(data(1, sent[2:], end=True))
        if good:
            assert (await answer(client, 1))[0][":status"] == "415"
        else:
            reset = await client.until_kind(frames.RST_STREAM, stream_id=1)
            assert code_of(reset.body) == frames.Http2ErrorCode.PROTOCOL_ERROR
            assert not any(found.kind == frames.HEADERS for found in client.seen)


async def test_padding_is_looked_at_also_where_nothing_else_is() -> None:
    server, _ = probe_server()
    async with serving(server) as port:
        client = await RawClient.connect(port)
        await client.send(client.request(1, content_type=None), frame(frames.DATA, frames.PADDED, 1, b"\x05four"))
        assert (await client.goaway())[1] == frames.Http2ErrorCode.PROTOCOL_ERROR


async def test_what_comes_behind_its_end_is_a_mistake() -> None:
    server, _ = probe_server()
    async with serving(server) as port:
        client = await RawClient.connect(port)
        await client.send(client.request(1, end=True, content_type=None))
        await answer(client, 1)
        await client.send(data(1, b"more"))
        reset = await client.until_kind(frames.RST_STREAM, stream_id=1)
        assert code_of(reset.body) == frames.Http2ErrorCode.STREAM_CLOSED


async def test_a_drain_and_the_end_of_the_client_do_not_wait_for_it() -> None:
    server, _ = probe_server()
    async with serving(server) as port:
        client = await RawClient.connect(port)
        await client.send(client.request(1, content_type=None))
        await client.send(frame(frames.RST_STREAM, 0, 1, struct.pack(">I", 8)))
        await client.send(client.request(3, content_type=None))
        await client.send(frame(frames.PING, 0, 0, bytes(8)))
        await client.until(lambda found: found.kind == frames.PING)
        assert server.statistics().streams_open == 1
        await client.stream.aclose()
    assert server.statistics().streams_open == 0

"""Test proxied HTTP: bodies in pieces, what breaks off, and the service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio.testing

from aether_trio.client.errors import (
    ConnectionLost,
    NotImplementedByGateway,
    PayloadTooLarge,
    RequestTimeout,
    UnexpectedAnswer,
)
from aether_trio.client.operations.bodies import PIECE_BYTES, BodyAssembly, pieces
from aether_trio.client.operations.enums import ProxyFailure
from aether_trio.client.operations.proxy import Proxy, ProxyFailed
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.operations.fake import FakeRequester

LONG = bytes(range(256)) * 3000  # three pieces


def piece(request_id: str, seq: int, data: bytes = b"", *, fin: bool = False) -> pb.DownstreamMessage:
    return pb.DownstreamMessage(
        proxy_http_body_chunk=pb.ProxyHttpBodyChunk(request_id=request_id, seq=seq, data=data, fin=fin)
    )


def head(request_id: str, **fields: Any) -> pb.DownstreamMessage:
    return pb.DownstreamMessage(proxy_http_response=pb.ProxyHttpResponse(request_id=request_id, **fields))


def answering(*make: Callable[[str], pb.DownstreamMessage]) -> tuple[FakeRequester, Proxy]:
    """A requester that answers a request with these messages, as soon as it is asked."""
    requester = FakeRequester()

    def answer(message: pb.UpstreamMessage) -> None:
        if message.HasField("proxy_http_request"):
            for one in make:
                requester.publish(one(message.proxy_http_request.request_id))

    requester.on_tell = answer
    return requester, Proxy(requester)


async def test_a_short_body_travels_inside() -> None:
    requester, proxy = answering(lambda i: head(i, status_code=201, headers={"a": "b"}, body=b"made"))
    got = await proxy.request("sv::billing", "post", "/v1?x=1", headers={"c": "d"}, body=b"make", timeout_s=60)
    assert (got.status, dict(got.headers), got.body) == (201, {"a": "b"}, b"made")
    (sent,) = requester.told
    request = sent.proxy_http_request
    assert (request.method, request.path, request.body, request.body_chunked) == ("POST", "/v1?x=1", b"make", False)
    assert request.timeout_ms == 60_000
    assert requester.feeds.has("proxy_http_response") is False, "a feed was left open"


async def test_a_long_body_goes_in_pieces_and_comes_in_pieces() -> None:
    requester = FakeRequester()

    def echo(message: pb.UpstreamMessage) -> None:
        if message.HasField("proxy_http_body_chunk") and message.proxy_http_body_chunk.fin:
            sent = [one.proxy_http_body_chunk for one in requester.told if one.HasField("proxy_http_body_chunk")]
            requester.publish(head(sent[0].request_id, status_code=200, body_chunked=True))
            for one in pieces(sent[0].request_id, b"".join(c.data for c in sent), is_request=False):
                requester.publish(pb.DownstreamMessage(proxy_http_body_chunk=one))

    requester.on_tell = echo
    got = await Proxy(requester).request("sv::billing", "PUT", "/", body=LONG)
    assert got.body == LONG
    first = requester.told[0].proxy_http_request
    assert (first.body, first.body_chunked) == (b"", True)
    chunks = [one.proxy_http_body_chunk for one in requester.told[1:]]
    assert [(c.seq, c.fin, c.is_request) for c in chunks] == [(0, False, True), (1, False, True), (2, True, True)]
    assert max(len(c.data) for c in chunks) == PIECE_BYTES


async def test_a_refused_request_does_not_send_its_body() -> None:
    error = pb.ProxyError(kind=pb.ProxyError.ACL_DENIED, message="no")
    requester, proxy = answering(lambda i: head(i, error=error))
    with pytest.raises(ProxyFailed) as raised:
        await proxy.request("sv::billing", "PUT", "/", body=LONG)
    assert (raised.value.kind, raised.value.retryable) == (ProxyFailure.ACL_DENIED, False)
    assert len(requester.told) == 1


async def test_a_gateway_without_a_proxy_says_so() -> None:
    error = pb.ProxyError(kind=pb.ProxyError.SIDECAR_UNAVAILABLE, message="ERR_NOT_IMPLEMENTED: not yet")
    _, proxy = answering(lambda i: head(i, error=error))
    with pytest.raises(NotImplementedByGateway):
        await proxy.request("sv::billing", "GET", "/")


async def test_answers_to_others_are_not_mine() -> None:
    _, proxy = answering(lambda i: head("another", status_code=500), lambda i: head(i, status_code=204))
    assert (await proxy.request("sv::billing", "GET", "/")).status == 204


async def test_a_body_over_the_limit_or_with_a_gap_is_refused() -> None:
    def start(i: str) -> pb.DownstreamMessage:
        return head(i, status_code=200, body_chunked=True)

    _, proxy = answering(start, lambda i: piece(i, 0, b"12345"))
    with pytest.raises(PayloadTooLarge):
        await proxy.request("sv::billing", "GET", "/", max_response_bytes=4)
    _, proxy = answering(start, lambda i: piece(i, 0, b"1"), lambda i: piece(i, 2, b"3"))
    with pytest.raises(UnexpectedAnswer):
        await proxy.request("sv::billing", "GET", "/")


async def test_a_response_that_breaks_off() -> None:
    error = pb.ProxyError(kind=pb.ProxyError.UPSTREAM_RESET, message="gone")
    _, proxy = answering(
        lambda i: head(i, status_code=200, body_chunked=True),
        lambda i: piece(i, 0, b"1"),
        lambda i: head(i, error=error),
    )
    with pytest.raises(ProxyFailed) as raised:
        await proxy.request("sv::billing", "GET", "/")
    assert raised.value.kind is ProxyFailure.UPSTREAM_RESET


async def test_a_request_without_an_answer_times_out(autojump_clock: object) -> None:
    _, proxy = answering()
    with pytest.raises(RequestTimeout):
        await proxy.request("sv::billing", "GET", "/", timeout_s=5)


async def test_a_cut_ends_it() -> None:
    requester = FakeRequester()
    requester.on_tell = lambda message: requester.feeds.publish("connection_lost", ConnectionLost("cut", in_doubt=True))
    with pytest.raises(ConnectionLost):
        await Proxy(requester).request("sv::billing", "GET", "/")


async def test_a_stream_is_read_as_it_comes(autojump_clock: object) -> None:
    requester, proxy = answering(
        lambda i: head(i, status_code=200, headers={"content-type": "text/event-stream"}, body_chunked=True),
        lambda i: piece(i, 0, b"one"),
    )
    async with proxy.stream("sv::feed", "GET", "/events", idle_s=7) as response:
        body = aiter(response)
        assert (response.status, await anext(body)) == (200, b"one")
        request_id = requester.told[0].proxy_http_request.request_id
        assert requester.told[0].proxy_http_request.stream_response_indefinitely
        assert requester.told[0].proxy_http_request.stream_idle_timeout_ms == 7000
        requester.publish(piece(request_id, 1, b"two"))
        requester.publish(piece(request_id, 2, b"", fin=True))
        assert [part async for part in body] == [b"two"]
        with trio.testing.assert_checkpoints(), pytest.raises(StopAsyncIteration):
            await anext(body)
    async with proxy.stream("sv::feed", "GET", "/events", idle_s=7) as response:
        with pytest.raises(RequestTimeout):
            [part async for part in response]


async def test_a_service_answers() -> None:
    requester = FakeRequester()
    async with Proxy(requester).serve() as requests:
        for part in (
            pb.ProxyHttpRequest(request_id="short", method="GET", path="/", body=b"s", timeout_ms=2500),
            pb.ProxyHttpRequest(request_id="long", method="PUT", path="/l", body_chunked=True),
        ):
            requester.publish(pb.DownstreamMessage(proxy_http_request=part))
        for chunk in pieces("long", LONG, is_request=True):
            requester.publish(pb.DownstreamMessage(proxy_http_body_chunk=chunk))
        requester.publish(piece("long", 0, b"a piece of a response is not for us", fin=True))
        short = await anext(requests)
        assert (short.method, short.body, short.timeout_s) == ("GET", b"s", 2.5)
        long = await anext(requests)
        assert (long.path, long.body) == ("/l", LONG)
        await short.respond(200, {"a": "b"}, b"here")
        await long.respond(200, None, LONG)
        await short.start(200)
        await short.send(b"x")
        await short.finish()
        await long.fail(ProxyFailure.TIMEOUT, "too slow")
    heads = [one.proxy_http_response for one in requester.confirmed]
    assert [(h.request_id, h.status_code, h.body_chunked) for h in heads] == [
        ("short", 200, False), ("long", 200, True), ("short", 200, True), ("long", 0, False),
    ]  # fmt: skip
    assert heads[3].error.kind == pb.ProxyError.TIMEOUT
    chunks = [one.proxy_http_body_chunk for one in requester.told]
    assert b"".join(c.data for c in chunks if c.request_id == "long") == LONG
    assert [(c.seq, c.data, c.fin) for c in chunks if c.request_id == "short"] == [(0, b"x", False), (1, b"", True)]


async def test_a_service_refuses_what_is_too_long() -> None:
    requester = FakeRequester()
    async with Proxy(requester).serve(max_request_bytes=10) as requests:
        message = pb.ProxyHttpRequest(request_id="long", method="PUT", path="/", body_chunked=True)
        requester.publish(pb.DownstreamMessage(proxy_http_request=message))
        for chunk in pieces("long", LONG, is_request=True):
            requester.publish(pb.DownstreamMessage(proxy_http_body_chunk=chunk))
        last = pb.ProxyHttpRequest(request_id="next", method="GET", path="/next")
        requester.publish(pb.DownstreamMessage(proxy_http_request=last))
        assert (await anext(requests)).path == "/next"
    (refused,) = requester.confirmed
    assert refused.proxy_http_response.error.kind == pb.ProxyError.PAYLOAD_TOO_LARGE


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, PIECE_BYTES + 1])
def test_a_body_is_the_same_in_pieces(size: int) -> None:
    body = bytes(size)
    whole = BodyAssembly(size)
    done = [whole.add(one) for one in pieces("r", body, is_request=False)]
    assert whole.body() == body
    assert done == [False] * (len(done) - 1) + [True]

"""One RPC at the frame level: refusals, statuses, deadlines, resets, metadata."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from grpclib.health.v1.health_pb2 import HealthCheckRequest
from trio.testing import MockClock

from aether_trio.transport.grpc import message_encoding
from aether_trio.transport.grpc.limits import GrpcLimits
from aether_trio.transport.grpc.server import GrpcServer
from aether_trio.transport.http2 import frames
from aether_trio.transport.http2.frames import Http2ErrorCode
from tests.transport.grpc.harness import Probe, RawClient, connected, data, frame, header_frames, message


def body(text: str) -> bytes:
    return message(HealthCheckRequest(service=text).SerializeToString())


@pytest.mark.parametrize(
    ("headers", "http_status", "grpc_status"),
    [
        ({"te": None}, "400", "13"),
        ({"path": "/probe.Probe/Nothing"}, "200", "12"),
        ({"grpc_encoding": "snappy"}, "200", "12"),
        ({"grpc_timeout": "soon"}, "200", "13"),
        ({"grpc_timeout": "9" * 400 + "H"}, "200", "13"),
        ({"path": "/" + "long" * 3000}, "200", "12"),
    ],
)
async def test_what_is_no_rpc_is_refused_before_any_message(
    client: RawClient, headers: dict[str, str], http_status: str, grpc_status: str
) -> None:
    await client.send(client.request(1, **headers))
    trailers = await client.trailers(1)
    assert (trailers[":status"], trailers["grpc-status"]) == (http_status, grpc_status)
    assert trailers["grpc-message"]
    # The connection is as good as before.
    await client.send(client.request(3, "/probe.Probe/One"), data(3, body("x"), end=True))
    assert (await client.trailers(3))["grpc-status"] == "0"


@pytest.mark.parametrize(
    ("path", "headers", "payload", "status", "says"),
    [
        ("/probe.Probe/One", {}, b"\xff\xff", "3", "grpc.health.v1.HealthCheckRequest"),
        ("/probe.Probe/Metadata", {"raw_bin": "A"}, b"", "13", ""),
    ],
    ids=["message", "binary metadata"],
)
async def test_what_cannot_be_decoded_is_its_caller_s_mistake(
    server: GrpcServer,
    path: str,
    headers: dict[str, str],
    payload: bytes,
    status: str,
    says: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A client without a credential could fill the disk with tracebacks."""
    async with connected(server) as client:
        await client.send(client.request(1, path, **headers), data(1, message(payload), end=True))
        trailers = await client.trailers(1)
        assert trailers["grpc-status"] == status
        assert says in trailers["grpc-message"]
    assert caplog.text == ""


@pytest.mark.parametrize(
    "content_type", ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"]
)
async def test_a_unary_call(server: GrpcServer, content_type: str) -> None:
    async with connected(server) as client:
        await client.send(
            client.request(1, "/probe.Probe/One", content_type=content_type), data(1, body("x"), end=True)
        )
        assert await client.payload(1, len(body("x"))) == body("x")
        assert (await client.trailers(1))["grpc-status"] == "0"
    assert server.statistics().streams_open == 0


@pytest.mark.parametrize("how", ["bug", "silent"])
async def test_a_handlers_mistake_is_logged(server: GrpcServer, how: str, caplog: pytest.LogCaptureFixture) -> None:
    async with connected(server) as client:
        with caplog.at_level(logging.ERROR):
            await client.send(client.request(1, "/probe.Probe/Fail"), data(1, body(how), end=True))
            trailers = await client.trailers(1)
    assert trailers["grpc-status"] == "2"
    assert "secret" not in trailers["grpc-message"]
    assert "/probe.Probe/Fail" in caplog.text


async def test_the_deadline_of_the_caller_ends_the_rpc(probe: Probe, client: RawClient, jumpy: MockClock) -> None:
    await client.send(client.request(1, "/probe.Probe/Hang", grpc_timeout="5S"))
    await probe.started.wait()
    assert probe.last is not None
    assert probe.last.deadline is not None
    assert (await client.trailers(1))["grpc-status"] == "4"
    assert probe.cancelled.is_set()


async def test_a_reset_by_the_client_cancels_the_rpcs_task(server: GrpcServer, probe: Probe) -> None:
    async with connected(server) as client:
        await client.send(client.request(1, "/probe.Probe/Hang"))
        await probe.started.wait()
        await client.send(frames.rst_stream(1, Http2ErrorCode.CANCEL))
        await probe.cancelled.wait()
        await client.send(frames.ping(b"still up"))
        assert (await client.until_kind(frames.PING)).body == b"still up"
    assert server.statistics().streams_open == 0


async def test_the_end_of_the_connection_cancels_the_rpcs_task(probe: Probe, client: RawClient) -> None:
    await client.send(client.request(1, "/probe.Probe/Hang"))
    await probe.started.wait()
    await client.stream.aclose()
    await probe.cancelled.wait()


async def test_a_message_over_the_cap_fails_its_rpc_only(client: RawClient) -> None:
    await client.send(client.request(1), data(1, b"\0\xff\xff\xff\xff"))
    trailers = await client.trailers(1)
    assert trailers["grpc-status"] == "8"
    assert "4294967295 vs. 10485760" in trailers["grpc-message"]
    await client.send(data(1, b"in flight"), client.request(3), data(3, message(b"next")))
    assert await client.payload(3, 9) == message(b"next")


@pytest.mark.parametrize("limits", [GrpcLimits(max_concurrent_streams=2)])
async def test_streams_beyond_the_limit_are_refused_and_may_be_retried(client: RawClient) -> None:
    await client.send(client.request(1), client.request(3), client.request(5))
    assert await client.reset_code(5) == Http2ErrorCode.REFUSED_STREAM
    await client.send(data(1, b"", end=True))
    assert (await client.trailers(1))["grpc-status"] == "0"
    await client.send(client.request(7), data(7, message(b"now")))
    assert await client.payload(7, 8) == message(b"now")


async def test_content_length_is_not_held_against_data_that_h2_never_sees(client: RawClient) -> None:
    await client.send(client.request(1, "/probe.Probe/One", content_length="8"), data(1, body("x"), end=True))
    assert (await client.trailers(1))["grpc-status"] == "0"


async def test_a_client_that_says_goaway_still_gets_its_answers_and_then_the_end(client: RawClient) -> None:
    await client.send(client.request(1), frames.goaway(0, Http2ErrorCode.NO_ERROR), data(1, message(b"a")))
    assert await client.payload(1, 6) == message(b"a")
    await client.send(data(1, b"", end=True))
    assert (await client.trailers(1))["grpc-status"] == "0"
    assert await client.next() is None


def in_pieces(block: bytes) -> bytes:
    return header_frames(block[:10], block[10:20], block[20:], end=True)


def with_a_priority(block: bytes) -> bytes:
    return frame(frames.HEADERS, frames.END_HEADERS | 0x20, 1, b"\0\0\0\0\x0f" + block)


@pytest.mark.parametrize("headers", [in_pieces, with_a_priority])
async def test_headers_of_every_form_open_a_stream(client: RawClient, headers: Callable[[bytes], bytes]) -> None:
    await client.send(headers(client.block()), data(1, message(b"m")))
    assert await client.payload(1, 6) == message(b"m")


@pytest.mark.parametrize("text", ["\ud800", "x" * 100_000, "\0\r\n"])
def test_any_text_can_be_a_status_message(text: str) -> None:
    value = message_encoding.status_message(text)
    assert value.isascii()
    assert len(value) <= 3 * message_encoding.MAX_STATUS_MESSAGE
    assert b"\n" not in value

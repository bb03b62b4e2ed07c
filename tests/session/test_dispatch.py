"""The table of operations, and what a failing handler costs."""

from __future__ import annotations

import pytest

from aether_trio.gateway.core import Core
from aether_trio.model.errors import Code, RequestError
from aether_trio.session.dispatch import request_id_of
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, barrier, connect, errors, kv_get, kv_put, message_to, payloads

ONE = "ag::w::a::1"


async def test_every_case_of_the_protocol_has_a_handler(core: Core) -> None:
    cases = {field.name for field in pb.UpstreamMessage.DESCRIPTOR.oneofs_by_name["payload"].fields}
    assert core.dispatcher.cases == cases - {"init", "send"}


async def test_a_message_without_content_is_answered_and_the_stream_goes_on(peer: MemoryLink) -> None:
    peer.send(pb.UpstreamMessage(), pb.UpstreamMessage.FromString(b"\xfa\x7f\x01x"), message_to(ONE, b"next"))
    await barrier(peer)
    assert [error.code for error in errors(peer)] == [Code.NOT_IMPLEMENTED] * 2
    assert payloads(peer) == [b"next"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyError("a mistake of ours"), Code.INTERNAL),
        (RequestError(Code.PERMISSION_DENIED, "no"), Code.PERMISSION_DENIED),
    ],
)
async def test_a_handler_that_raises_costs_one_answer(
    core: Core, peer: MemoryLink, monkeypatch: pytest.MonkeyPatch, error: Exception, code: Code
) -> None:
    async def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(core.kv, "handle_some", broken)
    peer.send(kv_get("asked"), message_to(ONE, b"next"))
    answer = (await peer.next("error")).error
    assert (answer.code, answer.request_id, answer.retryable) == (code, "asked", False)
    assert "mistake" not in answer.message
    await barrier(peer)
    assert payloads(peer) == [b"next"]


@pytest.mark.parametrize(
    ("payload", "request_id"),
    [
        (pb.KVOperation(request_id="r"), "r"),
        (pb.SubmitAuditEventRequest(client_request_id="c"), "c"),
        (pb.TunnelAck(tunnel_id="t"), ""),
        (pb.KVOperation(), ""),
    ],
)
def test_the_id_that_correlates(payload: object, request_id: str) -> None:
    assert request_id_of(payload) == request_id


async def test_requests_are_answered_in_order_one_at_a_time(core: Core, peer: MemoryLink) -> None:
    peer.send(*(kv_get(f"{number}") for number in range(50)))
    await barrier(peer)
    assert [one.kv.request_id for one in peer.waiting("kv")] == [f"{number}" for number in range(50)]
    assert core.dispatcher.counts["kv_op"] == 50


async def test_a_client_that_asks_and_does_not_read_is_served_no_further(core: Core, peer: MemoryLink) -> None:
    await peer.next("config")
    peer.send(kv_put("nothing", bytes(10_000)))
    await peer.next("kv")
    peer.pause()
    peer.send(*(kv_get(f"{number}") for number in range(200)))
    other = agent("w", "a", "2")
    async with connect(core, other) as busy:
        for _ in range(20):
            await barrier(busy)
    assert core.dispatcher.counts["kv_op"] < 40
    peer.resume()
    await barrier(peer)
    assert core.dispatcher.counts["kv_op"] == 201
    assert len(peer.waiting("kv")) == 200

"""Participants that are refused, or come for their acknowledgement alone."""

from __future__ import annotations

from typing import Any

from aether_trio.gateway.core import Core
from aether_trio.testing.memory import MemoryLink, StreamEnded
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import connect, rest_of


async def refusal(core: Core, hello: pb.UpstreamMessage, **options: Any) -> StreamEnded:
    """How a connection ends on which the gateway says nothing."""
    async with connect(core, hello, wait_ack=False, **options) as peer:
        return await silent_end(peer)
    raise AssertionError("it was neither refused nor let in")


async def silent_end(peer: MemoryLink) -> StreamEnded:
    """How the stream ends, before which nothing arrives."""
    assert await rest_of(peer) == []
    assert peer.ended is not None
    return peer.ended


async def ack_of(peer: MemoryLink) -> pb.ConnectionAck:
    return (await peer.next("connection_ack")).connection_ack


async def visit(core: Core, hello: pb.UpstreamMessage, **options: Any) -> pb.ConnectionAck:
    """The acknowledgement of a participant that leaves at once."""
    async with connect(core, hello, wait_ack=False, **options) as peer:
        return await ack_of(peer)
    raise AssertionError("it was not let in")


def disconnect(session_id: str, reason: str = "") -> pb.UpstreamMessage:
    op = pb.SessionOperation(op=pb.SessionOperation.DISCONNECT, session_id=session_id, reason=reason)
    return pb.UpstreamMessage(session_op=op)

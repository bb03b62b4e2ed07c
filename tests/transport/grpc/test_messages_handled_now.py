"""Test what GrpcLink.receive returns when `handle_now` takes messages, or raises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import ClassVar

import pytest

from aether_trio.model.errors import StatusError
from aether_trio.transport.grpc.link import GrpcLink
from aether_trio.transport.link import HandleNow, LinkBroken, Upstream
from aether_trio.wire.pb import aether_pb2 as pb


class ReadStream:
    """A stream whose waiting reader is offered batches, until one is to wake it."""

    metadata: ClassVar[dict[str, str]] = {}
    user_agent = None
    connection = SimpleNamespace(certificate=None)
    peer = SimpleNamespace(addr=lambda: ("127.0.0.1", 1))

    def __init__(self, *batches: list[bytes], then: list[bytes] | Exception) -> None:
        self._batches = list(batches)
        self._then = then

    def drop_scope(self) -> None:
        """Do nothing."""

    def drop_headers(self) -> None:
        """Do nothing."""

    def take_now(self) -> list[bytes]:
        return self._batches.pop(0)

    async def receive_batch(self, offer: Callable[[], bool] | None = None) -> list[bytes]:
        assert offer is not None
        while self._batches and not offer():
            pass
        if isinstance(self._then, Exception):
            raise self._then
        return self._then


def send(number: int) -> bytes:
    return pb.UpstreamMessage(send=pb.SendMessage(target_topic=f"t{number}")).SerializeToString()


def targets(batch: Sequence[Upstream]) -> list[str]:
    return [message.send.target_topic for message in batch if isinstance(message, pb.UpstreamMessage)]


def handler(handled: list[str], leaves: str = "") -> HandleNow:
    """Make a `handle_now` that takes all messages before the one for `leaves`."""

    def handle_now(batch: Sequence[Upstream]) -> Sequence[Upstream]:
        names = targets(batch)
        upto = names.index(leaves) if leaves in names else len(batch)
        handled.extend(names[:upto])
        return batch[upto:]

    return handle_now


async def test_the_rest_of_a_batch_precedes_what_comes_before_the_reader_runs() -> None:
    handled: list[str] = []
    link = GrpcLink(ReadStream([send(1)], [send(2), send(3)], then=[send(4)]))  # type: ignore[arg-type]
    assert targets(await link.receive(handler(handled, leaves="t3"))) == ["t3", "t4"]
    assert handled == ["t1", "t2"]


async def test_a_stream_that_breaks_loses_no_message_that_came_before() -> None:
    link = GrpcLink(ReadStream([send(1)], then=LinkBroken("cut")))  # type: ignore[arg-type]
    assert targets(await link.receive(handler([], leaves="t1"))) == ["t1"]
    with pytest.raises(LinkBroken):
        await link.receive(handler([]))


async def test_a_message_that_cannot_be_decoded_fails_behind_the_others() -> None:
    handled: list[str] = []
    link = GrpcLink(ReadStream([send(1), b"\xff"], then=[]))  # type: ignore[arg-type]
    with pytest.raises(StatusError):
        await link.receive(handler(handled))
    assert handled == ["t1"]


async def test_what_the_handler_raises_is_raised_to_the_reader() -> None:
    def defect(_: Sequence[Upstream]) -> Sequence[Upstream]:
        raise ZeroDivisionError

    link = GrpcLink(ReadStream([send(1)], then=[]))  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        await link.receive(defect)

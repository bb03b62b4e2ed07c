"""Run whole gateways without sockets on one database, in one process.

Tests see what a participant on one node sees of those on others.

    async def test(fabric: Fabric) -> None:
        one, two = await fabric.start_many(2)
        a, b = await one.join(agent("w", "a", "1")), await two.join(agent("w", "b", "1"))
        a.send(message_to("ag::w::b::1", b"hello"))

Each core has a task, a separate engine and loop, so one can be stopped, cut off or deafened
without the others.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from unittest import mock

import trio

from aether_trio.cluster.cluster import Cluster
from aether_trio.cluster.relay.log_relay import ClusterLogRelay, LogRelayLimits
from aether_trio.gateway.core import Core, open_core
from aether_trio.log.group_writers import PostgresGroupWriter
from aether_trio.storage.base import StorageUnavailable
from aether_trio.testing.memory import MemoryLink
from aether_trio.transport.link import Peer
from aether_trio.wire.framing import Send
from aether_trio.wire.pb import aether_pb2 as pb
from tests.cluster import nodes
from tests.cluster.nodes import LONG_S, until
from tests.helpers.core import settings_for_tests
from tests.helpers.engines import PostgresEngine

NEVER_S = 10 * LONG_S
"""Between two looks: what these tests see, a hint has told."""
STEADY = replace(nodes.STEADY, sweep_s=1.0)


@dataclass(eq=False)
class Gateway:
    """One core, and the parts of it that tests break."""

    core: Core
    tails: ClusterLogRelay
    cluster: Cluster
    nursery: trio.Nursery
    stop: trio.Event
    stopped: trio.Event
    joined: list[tuple[Participant, trio.Event]] = field(default_factory=list)

    async def join(self, hello: pb.UpstreamMessage, link: Participant | None = None) -> Participant:
        """Connect a scripted participant that stays until the fabric is closed.

        `join`, the function, is for one that leaves before.
        """
        link = link or Participant()
        ended = trio.Event()

        async def serve() -> None:
            await self.core.sessions.serve(link)
            ended.set()

        self.nursery.start_soon(serve)
        self.joined.append((link, ended))
        link.send(hello)
        link.ack = (await link.next("connection_ack")).connection_ack
        return link

    async def part(self) -> None:
        for link, _ in self.joined:
            link.finish()
        for _, ended in self.joined:
            await ended.wait()

    def lose_notifications(self) -> None:
        """Every hint to this node is lost from now on."""
        self.cluster.bus.receive = lambda _payload: None  # type: ignore[method-assign]
        self.cluster.bus.receive_push = lambda _payload: None  # type: ignore[method-assign]

    def push_nothing(self) -> None:
        """Other nodes read the messages of this one, as they do those of a large group."""
        writer = self.core.log._writer
        assert isinstance(writer, PostgresGroupWriter)
        writer._push_again_at = math.inf

    def fail_reads(self, fails: Callable[[], bool]) -> None:
        """The log cannot be read whenever `fails` says so."""
        database = self.core.log.database
        for name in ("read", "read_small"):
            setattr(database, name, partial(_maybe, getattr(database, name), fails))


async def _maybe(read: Callable[..., Any], fails: Callable[[], bool], *args: Any) -> Any:
    await trio.lowlevel.checkpoint()
    if fails():
        raise StorageUnavailable("not now")
    return await read(*args)


class Fabric:
    """Several cores; `settings` are sections for each, `poll_s` how often nodes poll."""

    def __init__(self, nursery: trio.Nursery, engine: PostgresEngine, settings: Mapping[str, Any]) -> None:
        self._nursery = nursery
        self._engine = engine
        self._settings = settings
        self.gateways: list[Gateway] = []

    async def start(self, **changes: Mapping[str, Any]) -> Gateway:
        """One more gateway. Every other one knows of it when this returns."""
        gateway: Gateway = await self._nursery.start(self._run, changes)
        self.gateways.append(gateway)
        if len(self.gateways) > 1:
            await until(lambda: not any(one.cluster.peers.empty for one in self.gateways))
        return gateway

    async def start_many(self, count: int) -> list[Gateway]:
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(self.start)
        return list(self.gateways)

    async def stop(self, gateway: Gateway) -> None:
        self.gateways.remove(gateway)
        gateway.stop.set()
        await gateway.stopped.wait()

    async def _run(self, changes: Mapping[str, Any], task_status: trio.TaskStatus[Gateway]) -> None:
        sections: dict[str, Any] = {**self._settings, **changes}
        place = {"database": self._engine.server.dsn(), "schema": self._engine.schema}
        sections["storage"] = {**place, **sections.get("storage", {})}
        stop, stopped = trio.Event(), trio.Event()
        try:
            async with open_core(settings_for_tests(**sections)) as core:
                tails = core.log.relay
                assert isinstance(tails, ClusterLogRelay)
                task_status.started(Gateway(core, tails, tails._cluster, self._nursery, stop, stopped))
                await stop.wait()
        finally:
            stopped.set()

    async def close(self) -> None:
        for gateway in self.gateways:
            gateway.stop.set()
        for gateway in self.gateways:
            await gateway.stopped.wait()


@asynccontextmanager
async def open_fabric(
    engine: PostgresEngine, *, poll_s: float = NEVER_S, lease_grace_s: float = LONG_S, **settings: Mapping[str, Any]
) -> AsyncIterator[Fabric]:
    """Gateways on this schema. `settings` are sections for all of them."""
    limits = partial(replace, STEADY, lease_grace_s=lease_grace_s)
    with (
        mock.patch("aether_trio.cluster.timeouts.ClusterLimits", limits),
        mock.patch("aether_trio.cluster.relay.log_relay.LogRelayLimits", partial(LogRelayLimits, poll_s=poll_s)),
        trio.fail_after(2 * LONG_S),
    ):
        async with trio.open_nursery() as nursery:
            fabric = Fabric(nursery, engine, settings)
            try:
                yield fabric
                for gateway in fabric.gateways:
                    await gateway.part()
            finally:
                with trio.CancelScope(shield=True):
                    await fabric.close()


# -- participants ----------------------------------------------------------------------------------


@asynccontextmanager
async def join(gateway: Gateway, hello: pb.UpstreamMessage) -> AsyncIterator[Participant]:
    """Connect a scripted participant that leaves at the end of the block.

    It may have been ended by then.
    """
    link = Participant()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway.core.sessions.serve, link)
        link.send(hello)
        link.ack = (await link.next("connection_ack")).connection_ack
        yield link
        link.finish()


class Participant(MemoryLink):
    """A MemoryLink that knows its session."""

    ack: pb.ConnectionAck

    async def ask(self, answer: str, **request: Any) -> Any:
        """The next answer of this kind, after this request."""
        self.send(pb.UpstreamMessage(**request))
        return getattr(await self.next(answer), answer)

    async def take(self, count: int) -> list[bytes]:
        return [(await self.next("msg")).msg.payload for _ in range(count)]


class Numbered(Participant):
    """A framed client with numbered sends; `acked` and `refused` are their answers."""

    def __init__(self, token: bytes) -> None:
        super().__init__()
        self.peer = Peer("memory:0", "memory", publisher=token)
        self.acked = 0
        self.refused: list[int] = []
        self._told = trio.Event()

    def kick(self) -> None:
        receipts = getattr(self._source, "receipts", None)
        if receipts is not None and self.ended is None and not self._broken:
            refused, acked = receipts.take()
            self.refused += [seq for seq, _ in refused]
            self.acked = max(self.acked, acked)
            self._told.set()
        super().kick()

    def publish(self, topic: str, *seqs: int) -> None:
        """Numbered sends whose payloads are their numbers."""
        self._upstream: deque[Any]
        self._upstream.extend(Send(seq, topic, b"%d" % seq) for seq in seqs)
        self._news.set()

    async def wait_acked(self, seq: int) -> None:
        """Until everything up to this number is settled."""
        while self.acked < seq:
            self._told = trio.Event()
            await self._told.wait()


def numbers(payloads: Iterable[bytes], prefix: bytes) -> list[int]:
    """The numbers of the payloads `prefix:number`, in the order of their arrival."""
    return [int(one.split(b":")[1]) for one in payloads if one.startswith(prefix + b":")]

"""Serve clients by chance, in virtual time.

The gateway lets in, refuses, cuts, stands still, answers or does not. It is anyio.

async with open_moody(chance) as gateway:
    async with AgentClient(gateway.address, ...): ...
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.abc

from aether_trio.wire import framing
from aether_trio.wire.framing import FramedConnection, Side
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.jobs.shop import assignment, info
from tests.client.peer import incoming

__all__ = ["Moody", "open_moody"]

BROKEN = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError)
MEAN_S = 60.0
RUNNING, COMPLETED = 2, 3


class Moody:
    """`heard` counts what clients have said, connections included."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.address = ""
        self.heard = 0
        self.gone = False
        """Every connection is closed at once."""
        self._offset = 0
        self._position = 0

    async def serve(self, stream: anyio.abc.SocketStream) -> None:
        self.heard += 1
        chance = self._chance
        mood = chance.choice(["closed", "mute", "error", "in", "in", "in", "in"])
        async with stream:
            if self.gone or mood == "closed":
                return
            try:
                if mood == "mute":
                    await anyio.sleep(chance.expovariate(1 / MEAN_S))
                else:
                    await _Line(self, chance, stream).run(refuse=mood == "error")
            except* BROKEN:
                pass


class _Line:
    def __init__(self, gateway: Moody, chance: random.Random, stream: anyio.abc.SocketStream) -> None:
        self._gateway = gateway
        self._chance = chance
        self._stream = stream
        self._connection = FramedConnection(Side.SERVER)
        self._lock = anyio.Lock()

    async def _say(self, *events: framing.Event) -> None:
        async with self._lock:
            await self._stream.send(b"".join(self._connection.send(event) for event in events))

    async def _tell(self, **payload: object) -> None:
        await self._say(framing.Envelope(pb.DownstreamMessage(**payload).SerializeToString()))  # type: ignore[arg-type]

    async def run(self, *, refuse: bool) -> None:
        events: list[framing.Event] = []
        while not any(isinstance(event, framing.Envelope) for event in events):
            events += self._connection.receive(await self._stream.receive())
            if events and self._connection.state is not framing.ConnectionState.LIVE:
                await self._say(framing.ServerHello(dedup_s=60))
        if refuse:
            await self._say(framing.Error(14, "not now", retryable=True, retry_after_ms=500))
            return
        await self._tell(connection_ack=pb.ConnectionAck(session_id="s1"))
        await self._say(framing.Channel(1, "ag::w::bench::1", self._gateway._position))
        end = self._chance.choice(["cut", "fin", "stand still", "go away"])
        async with anyio.create_task_group() as group:
            group.start_soon(self._live)
            await anyio.sleep(self._chance.expovariate(1 / MEAN_S))
            if end == "go away":
                await self._say(framing.GoAway(framing.GoAwayReason.DRAINING, 1000))
                await anyio.sleep(1)
            group.cancel_scope.cancel()
        if end == "stand still":
            await anyio.sleep(300)
        elif end == "cut":
            await anyio.aclose_forcefully(self._stream)

    async def _live(self) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._deliver)
            while True:
                for event in self._connection.receive(await self._stream.receive()):
                    self._gateway.heard += 1
                    await self._answer(event)

    async def _deliver(self) -> None:
        gateway = self._gateway
        offset = gateway._position
        while True:
            with contextlib.suppress(framing.LocalProtocolError):  # no credit
                await self._say(framing.Deliver(1, offset + 1, incoming(b"hello")))
                offset += 1
            await self._tell(**assignment(f"t{offset % 5}"))
            await anyio.sleep(self._chance.expovariate(1 / 30))

    async def _answer(self, event: framing.Event) -> None:
        match event:
            case framing.Send():
                await self._say(framing.Ack(event.seq))
            case framing.Ping():
                await self._say(framing.Pong(event.number))
            case framing.Delivered():
                self._gateway._position = event.offset
            case framing.Envelope():
                await self._envelope(pb.UpstreamMessage.FromString(event.message))

    async def _envelope(self, message: pb.UpstreamMessage) -> None:
        mood = self._chance.choice(["well", "well", "well", "refused", "busy", "silent"])
        if mood == "silent":
            return
        case = message.WhichOneof("payload")
        request_id = getattr(getattr(message, str(case)), "request_id", "")
        if mood == "busy":
            error = pb.ErrorResponse(code="UNAVAILABLE", message="later", retryable=True, request_id=request_id)
            await self._tell(error=error)
        elif case == "task_op":
            op = message.task_op
            status = COMPLETED if op.op == pb.TaskOperation.COMPLETE else RUNNING
            answer = pb.TaskOperationResponse(success=True, task=info(status, op.task_id), request_id=request_id)
            if mood == "refused":
                answer = pb.TaskOperationResponse(error="no", request_id=request_id)
            await self._tell(task_op=answer)
        elif case == "task_query":
            found = pb.TaskQueryResponse(
                success=True, task=info(RUNNING, message.task_query.task_id), request_id=request_id
            )
            await self._tell(task_query=found)
        elif request_id:
            await self._tell(error=pb.ErrorResponse(code="ERR_NOPE", message="no", request_id=request_id))


@asynccontextmanager
async def open_moody(chance: random.Random) -> AsyncIterator[Moody]:
    """On a free port of 127.0.0.1."""
    gateway = Moody(chance)
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
        host, port = listener.extra(anyio.abc.SocketAttribute.local_address)[:2]
        gateway.address = f"aether://{host}:{port}"
        group.start_soon(listener.serve, gateway.serve)
        yield gateway
        group.cancel_scope.cancel()

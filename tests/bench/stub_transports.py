"""The stub gateway's framed and WebSocket transports, on asyncio.

Both refuse what their specification forbids, so the bench's own codecs are held to it in whole
runs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import grpc
import wsproto
import wsproto.events as ev

from aether_trio.wire import framing as fr
from aether_trio.wire.pb import aether_pb2 as pb

Connect = Callable[[AsyncIterator[pb.UpstreamMessage], Any], AsyncIterator[pb.DownstreamMessage]]
READ_BYTES = 65_536
CHANNEL = 5


class Refused(Exception):
    """The participant is not let in."""


class Context:
    """What a servicer asks of a call."""

    def __init__(self, acknowledged: bool) -> None:
        self.acknowledged = acknowledged

    async def abort(self, code: grpc.StatusCode, text: str) -> None:
        raise Refused(code.value[0], text)


class Framed:
    """The framed transport: deliveries on one channel, settled sends acked one by one."""

    acknowledged = True

    def __init__(self) -> None:
        self.framing = fr.FramedConnection(fr.Side.SERVER)
        self.waiting: deque[int] = deque()
        self.refusal: pb.ErrorResponse | None = None
        self.offset = 0
        self.answer = b""

    def receive(self, data: bytes) -> list[pb.UpstreamMessage]:
        requests = []
        for event in self.framing.receive(data):
            if isinstance(event, fr.ClientHello):
                self.answer = self.framing.send(fr.ServerHello(publish_window=64))
            elif isinstance(event, fr.Envelope):
                requests.append(pb.UpstreamMessage.FromString(bytes(event.message)))
            elif isinstance(event, fr.Send):
                self.waiting.append(event.seq)
                send = pb.SendMessage(target_topic=event.topic, payload=bytes(event.payload))
                requests.append(pb.UpstreamMessage(send=send))
        return requests

    def send(self, message: pb.DownstreamMessage) -> bytes:
        what = message.WhichOneof("payload")
        if what == "error":
            # Until the send that it is about is settled, which is the next one.
            self.refusal = message.error
            return b""
        if what is None:
            seq = self.waiting.popleft()
            refusal, self.refusal = self.refusal, None
            nack = self.framing.send(fr.Nack(seq, refusal.code, refusal.message)) if refusal else b""
            return nack + self.framing.send(fr.Ack(seq))
        if what == "msg":
            opening = b"" if self.offset else self.framing.send(fr.Channel(CHANNEL, "ag::stub", 0))
            self.offset += 1
            return opening + self.framing.send_deliver(CHANNEL, self.offset, message.SerializeToString())
        return self.framing.send(fr.Envelope(message.SerializeToString()))

    def refuse(self, code: int, text: str) -> bytes:
        return self.framing.send(fr.Error(code, text))

    def end(self) -> bytes:
        return b""


class WebSocket:
    """`aether.v1.proto` over wsproto."""

    acknowledged = False

    def __init__(self) -> None:
        self.ws = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        self.answer = b""
        self.close: ev.CloseConnection | None = None

    def receive(self, data: bytes) -> list[pb.UpstreamMessage | None]:
        requests: list[pb.UpstreamMessage | None] = []
        self.ws.receive_data(data)
        for event in self.ws.events():
            if isinstance(event, ev.Request):
                self.answer = self.ws.send(ev.AcceptConnection(subprotocol=event.subprotocols[0]))
            elif isinstance(event, ev.BytesMessage):
                assert event.message_finished or not event.data, "the bench sends whole messages"
                requests.append(pb.UpstreamMessage.FromString(bytes(event.data)))
            elif isinstance(event, ev.CloseConnection):
                self.close = event
                requests.append(None)
        return requests

    def send(self, message: pb.DownstreamMessage) -> bytes:
        return self.ws.send(ev.BytesMessage(message.SerializeToString()))

    def refuse(self, code: int, text: str) -> bytes:
        return self.ws.send(ev.CloseConnection(4200 + code, text))

    def end(self) -> bytes:
        return self.ws.send(self.close.response()) if self.close else b""


TRANSPORTS: dict[str, type[Framed | WebSocket]] = {"framed": Framed, "websocket": WebSocket}


async def serve(transport: str, connect: Connect) -> int:
    """Serve that transport as long as the loop runs; the port."""

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        speech = TRANSPORTS[transport]()

        async def requests() -> AsyncIterator[pb.UpstreamMessage]:
            while data := await reader.read(READ_BYTES):
                found = speech.receive(data)
                writer.write(speech.answer)
                speech.answer = b""
                for request in found:
                    if request is None:
                        return
                    yield request

        with suppress(ConnectionError):
            try:
                async for message in connect(requests(), Context(speech.acknowledged)):
                    writer.write(speech.send(message))
                writer.write(speech.end())
            except Refused as refused:
                writer.write(speech.refuse(*refused.args))
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(accepted, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    return port

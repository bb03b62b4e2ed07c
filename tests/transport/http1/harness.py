"""The HTTP/1.1 server on a real socket, and a client that understands its answers."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import h11
import trio

from aether_trio.transport.http1.connection import BadRequest, Http1Connection, Http1Limits
from aether_trio.transport.http1.server import Answer, serve_requests
from aether_trio.transport.socket.accepted import Accepted
from aether_trio.transport.socket.byte_stream import ByteStream
from aether_trio.transport.socket.listener import Acceptor, open_tcp_listeners

PATIENCE_S = 300


class Client:
    """One connection and what h11 understands of it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.http = h11.Connection(h11.CLIENT)
        self.interim: list[int] = []

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def ask(
        self, path: str = "/", method: str = "GET", body: bytes | list[bytes] = b"", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body). A list is sent chunked; bytes with their length."""
        fields = [("Host", "localhost"), *((name.replace("_", "-"), value) for name, value in headers.items())]
        parts = body if isinstance(body, list) else [body] if body else []
        if isinstance(body, list):
            fields.append(("Transfer-Encoding", "chunked"))
        elif body:
            fields.append(("Content-Length", str(len(body))))
        data = self.http.send(h11.Request(method=method, target=path, headers=fields)) or b""
        for part in parts:
            data += self.http.send(h11.Data(data=part)) or b""
        await self.send(data + (self.http.send(h11.EndOfMessage()) or b""))
        return await self.answer()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        body = b""
        response: h11.Response | None = None
        with trio.fail_after(PATIENCE_S):
            while True:
                event = self.http.next_event()
                if event is h11.NEED_DATA:
                    self.http.receive_data(await self.stream.receive_some(65536))
                elif isinstance(event, h11.InformationalResponse):
                    self.interim.append(event.status_code)
                elif isinstance(event, h11.Response):
                    response = event
                elif isinstance(event, h11.Data):
                    body += event.data
                else:
                    assert isinstance(event, h11.EndOfMessage)
                    break
        assert response is not None
        if self.http.our_state is h11.DONE and self.http.their_state is h11.DONE:
            self.http.start_next_cycle()
        return response.status_code, {name.decode(): value.decode() for name, value in response.headers}, body

    async def answer_of(self, method: str) -> tuple[int, dict[str, str], bytes]:
        """The response to a request that was sent as raw bytes."""
        self.http.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        self.http.send(h11.EndOfMessage())
        return await self.answer()

    async def rest(self) -> bytes:
        received = b""
        with trio.fail_after(PATIENCE_S):
            try:
                while data := await self.stream.receive_some():
                    received += data
            except trio.BrokenResourceError:
                pass
        return received


@dataclass
class Served:
    """A server under test. `ended` has what each connection ended with."""

    port: int
    refused: list[BadRequest] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Client]:
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            yield Client(stream)


@asynccontextmanager
async def serving(answer: Answer, **limits: Any) -> AsyncIterator[Served]:
    """`answer` on a port, until the end of the block."""
    listeners = open_tcp_listeners("127.0.0.1", 0)
    served = Served(listeners[0].getsockname()[1])

    async def handle(sock: socket.socket, address: Any) -> None:
        http = Http1Connection(ByteStream(Accepted(sock, address)), Http1Limits(**limits), server="test")
        try:
            await serve_requests(http, answer, on_refused=served.refused.append)
        except (OSError, trio.TooSlowError) as error:
            served.ended.append(type(error).__name__)
        else:
            served.ended.append("")

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Acceptor(nursery).serve, listeners, handle)
            yield served
            nursery.cancel_scope.cancel()

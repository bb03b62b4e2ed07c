"""A user's window as a browser makes one: wsproto on a socket, JSON messages.

async with open_json_window(address, "ann", "w1") as window:
    await window.say(switch_workspace={"new_workspace_id": "prod"})
    message = await window.hear("msg")
"""

from __future__ import annotations

import base64
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Message, RejectConnection, Request, TextMessage

SUBPROTOCOL = "aether.v1.json"


def b64(data: bytes) -> str:
    """Bytes as JSON has them."""
    return base64.b64encode(data).decode()


def unb64(text: str) -> bytes:
    """And back."""
    return base64.b64decode(text, validate=True)


class JsonWindow:
    """One WebSocket. Messages of a kind that no test has asked for yet wait."""

    def __init__(self, stream: trio.SocketStream, topic: str) -> None:
        self.topic = topic
        self._stream = stream
        self._ws = WSConnection(ConnectionType.CLIENT)
        self._events: deque[Any] = deque()
        self._heard: deque[dict[str, Any]] = deque()
        self._part = ""

    async def upgrade(self, host: str) -> None:
        """Ask for the upgrade; the origin is the gateway's own page."""
        request = Request(
            host=host,
            target="/v1/connect",
            subprotocols=[SUBPROTOCOL],
            extra_headers=[(b"Origin", f"http://{host}".encode())],
        )
        await self._stream.send_all(self._ws.send(request))
        answer = await self._event()
        assert isinstance(answer, AcceptConnection), answer
        assert answer.subprotocol == SUBPROTOCOL

    async def say(self, **payload: Any) -> None:
        """One UpstreamMessage: the oneof case as a keyword, as the protocol's JSON."""
        await self._stream.send_all(self._ws.send(TextMessage(data=json.dumps(payload))))

    async def send(self, topic: str, payload: bytes) -> None:
        """A message, as chat."""
        await self.say(send={"target_topic": topic, "payload": b64(payload), "message_type": "CHAT"})

    async def hear(self, case: str) -> dict[str, Any]:
        """The next message of this case; others wait for who asks for them."""
        for message in self._heard:
            if case in message:
                self._heard.remove(message)
                return dict(message[case])
        while True:
            message = json.loads(await self._text())
            if case in message:
                return dict(message[case])
            self._heard.append(message)

    async def settle(self) -> None:
        """A round trip: what was said before it has happened."""
        await self.say(checkpoint_op={"op": "LOAD", "request_id": "settle"})
        while (await self.hear("checkpoint")).get("request_id") != "settle":
            pass

    async def close(self) -> None:
        """Say goodbye."""
        await self._stream.send_all(self._ws.send(CloseConnection(code=1000)))

    async def _text(self) -> str:
        while True:
            event = await self._event()
            assert isinstance(event, Message), f"{self.topic}: {event}"
            self._part += str(event.data)
            if event.message_finished:
                text, self._part = self._part, ""
                return text

    async def _event(self) -> Any:
        while not self._events:
            data = await self._stream.receive_some()
            self._ws.receive_data(data or None)
            self._events.extend(self._ws.events())
        event = self._events.popleft()
        assert not isinstance(event, (RejectConnection, CloseConnection)), f"{self.topic}: {event}"
        return event


@asynccontextmanager
async def open_json_window(address: str, user_id: str, window_id: str) -> AsyncIterator[JsonWindow]:
    """A window that the gateway at HOST:PORT has let in."""
    host, _, port = address.rpartition(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        window = JsonWindow(stream, f"us::{user_id}::{window_id}")
        await window.upgrade(address)
        await window.say(init={"user": {"user_id": user_id, "window_id": window_id}})
        assert (await window.hear("connection_ack"))["session_id"]
        yield window
        await window.close()
